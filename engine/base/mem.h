/* Memory: overflow-checked, countable, and able to fail at the k-th call for tests.
 *
 * Everything allocated here is freed by sq_free. Sizes of 0 give a valid pointer. NULL means out of memory and nothing else. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

void *sq_malloc(size_t size);
void *sq_calloc(size_t n, size_t size);                 /* zeroed; n * size checked */
void *sq_realloc_array(void *p, size_t n, size_t size); /* old block stays valid on failure */
void *sq_aligned_alloc(size_t align, size_t size);      /* align: power of two; not zeroed */
char *sq_strdup(const char *s);
char *sq_strndup(const char *s, size_t n);
void *sq_memdup(const void *p, size_t size);
void sq_free(void *p);

#define sq_new(type) ((type *)sq_calloc(1, sizeof(type)))
#define sq_new_array(type, n) ((type *)sq_calloc((n), sizeof(type)))

/* Tests: the k-th allocation from now (1-based) fails, or with `forever` all from the k-th on; 0 switches it off. Process-wide. */
void sq_mem_fail_at(uint64_t k, bool forever);
/* Number of allocations made since the last sq_mem_fail_at. */
uint64_t sq_mem_count(void);

static inline void sq_auto_free_(void *p)
{
    sq_free(*(void **)p);
}
/* Freed when it goes out of scope; hand it on with sq_steal(&p). */
#define SQ_AUTO_FREE __attribute__((cleanup(sq_auto_free_)))

/* SQ_AUTO(sq_x) calls sq_x_free on leaving the scope; declare it once with SQ_AUTO_DEFINE(sq_x) beside the type. */
#define SQ_AUTO_DEFINE(type)                                                                       \
    static inline void type##_auto_(struct type **p)                                               \
    {                                                                                              \
        if (*p)                                                                                    \
            type##_free(*p);                                                                       \
    }
#define SQ_AUTO(type) __attribute__((cleanup(type##_auto_)))

#define sq_steal(pp)                                                                               \
    ({                                                                                             \
        __typeof__(*(pp)) stolen_ = *(pp);                                                         \
        *(pp) = NULL;                                                                              \
        stolen_;                                                                                   \
    })

/* A growing bump allocator with a byte cap, freed as a whole. One owner, one thread. */
struct sq_arena {
    struct sq_arena_block *blocks;
    size_t used_bytes; /* handed out so far */
    size_t cap_bytes;  /* refuses beyond it; 0 = no cap */
};
void sq_arena_init(struct sq_arena *a, size_t cap_bytes);
void *sq_arena_alloc(struct sq_arena *a, size_t size); /* 16-aligned, zeroed; NULL: cap or memory */
void sq_arena_done(struct sq_arena *a);
