#include "engine/base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/num.h"

/* The fail-at-k hook is the one piece of process-wide state here: tests set it, nothing else does. */
static _Atomic uint64_t n_allocs, fail_at;
static _Atomic bool fail_forever;

void sq_mem_fail_at(uint64_t k, bool forever)
{
    atomic_store(&fail_forever, forever);
    atomic_store(&n_allocs, 0);
    atomic_store(&fail_at, k);
}

uint64_t sq_mem_count(void)
{
    return atomic_load(&n_allocs);
}

static bool must_fail(void)
{
    uint64_t n = atomic_fetch_add_explicit(&n_allocs, 1, memory_order_relaxed) + 1;
    uint64_t k = atomic_load_explicit(&fail_at, memory_order_relaxed);
    return k && (n == k || (n > k && atomic_load_explicit(&fail_forever, memory_order_relaxed)));
}

void *sq_malloc(size_t size)
{
    return must_fail() ? NULL : malloc(size ? size : 1);
}

void *sq_calloc(size_t n, size_t size)
{
    size_t bytes;
    if (!sq_mul_size(n, size, &bytes) || must_fail())
        return NULL;
    return calloc(1, bytes ? bytes : 1);
}

void *sq_realloc_array(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (!sq_mul_size(n, size, &bytes) || must_fail())
        return NULL;
    return realloc(p, bytes ? bytes : 1);
}

void *sq_aligned_alloc(size_t align, size_t size)
{
    void *p = NULL;
    if (must_fail() ||
        posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align, size ? size : 1))
        return NULL;
    return p;
}

char *sq_strdup(const char *s)
{
    return sq_memdup(s, strlen(s) + 1);
}

char *sq_strndup(const char *s, size_t n)
{
    n = strnlen(s, n);
    char *p = sq_malloc(n + 1);
    if (!p)
        return NULL;
    memcpy(p, s, n);
    p[n] = '\0';
    return p;
}

void *sq_memdup(const void *p, size_t size)
{
    void *copy = sq_malloc(size);
    if (copy && size)
        memcpy(copy, p, size);
    return copy;
}

void sq_free(void *p)
{
    free(p);
}

struct sq_arena_block {
    struct sq_arena_block *next;
    size_t size, used;
    _Alignas(16) unsigned char data[];
};

void sq_arena_init(struct sq_arena *a, size_t cap_bytes)
{
    *a = (struct sq_arena){.cap_bytes = cap_bytes};
}

void *sq_arena_alloc(struct sq_arena *a, size_t size)
{
    size_t want, total;
    if (!sq_add_size(size, 15, &want) || !sq_add_size(a->used_bytes, want & ~(size_t)15, &total))
        return NULL;
    want &= ~(size_t)15;
    if (a->cap_bytes && total > a->cap_bytes)
        return NULL;
    struct sq_arena_block *b = a->blocks;
    if (!b || b->size - b->used < want) {
        size_t bytes = want > 4096 ? want : 4096;
        b = sq_malloc(sizeof *b + bytes);
        if (!b)
            return NULL;
        *b = (struct sq_arena_block){.next = a->blocks, .size = bytes};
        a->blocks = b;
    }
    void *p = b->data + b->used;
    b->used += want;
    a->used_bytes = total;
    memset(p, 0, size);
    return p;
}

void sq_arena_done(struct sq_arena *a)
{
    while (a->blocks) {
        struct sq_arena_block *next = a->blocks->next;
        sq_free(a->blocks);
        a->blocks = next;
    }
    a->used_bytes = 0;
}
