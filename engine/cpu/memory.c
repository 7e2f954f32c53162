/* Storage of buffers, norms and rotations of the CPU backend. */
#include <string.h>
#include <sys/mman.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/cpu/cpu.h"

#define HUGE_PAGE ((size_t)2 << 20)

void *sq_cpu_alloc(size_t bytes)
{
    const bool huge = bytes >= 2 * HUGE_PAGE;
    void *p = sq_aligned_alloc(huge ? HUGE_PAGE : SQ_CPU_ALIGN, bytes);
    if (!p)
        return NULL;
    if (huge)
        (void)madvise(p, bytes, MADV_HUGEPAGE); /* a wish; any answer is fine */
    memset(p, 0, bytes);
    return p;
}

#define CHUNK_BYTES ((size_t)32 << 20)
#define CHUNK_SHARE (CHUNK_BYTES / 4)  /* what is larger gets memory of its own, */
#define CHUNK_LEAST ((size_t)64 << 10) /* and what is too small to be worth a huge page, too */
#define CHUNK_ALIGN 4096

struct sq_cpu_chunk {
    uint8_t *mem; /* [CHUNK_BYTES] */
    size_t used, n_refs;
};

/* An empty chunk. Its memory is not touched here, so that what is never handed out never becomes resident. */
static struct sq_cpu_chunk *chunk_new(void)
{
    struct sq_cpu_chunk *c = sq_new(struct sq_cpu_chunk);
    if (!c)
        return NULL;
    c->mem = sq_aligned_alloc(HUGE_PAGE, CHUNK_BYTES);
    if (!c->mem) {
        sq_free(c);
        return NULL;
    }
    (void)madvise(c->mem, CHUNK_BYTES, MADV_HUGEPAGE);
    c->n_refs = 1;
    return c;
}

void sq_cpu_chunk_unref(struct sq_cpu_chunk *c)
{
    if (!c || --c->n_refs)
        return;
    sq_free(c->mem);
    sq_free(c);
}

void *sq_cpu_arena_alloc(struct sq_cpu_arena *a, size_t bytes, struct sq_cpu_chunk **ret_chunk)
{
    if (!a || bytes > CHUNK_SHARE || bytes < CHUNK_LEAST) {
        *ret_chunk = NULL;
        return sq_cpu_alloc(bytes);
    }
    const size_t want = sq_round_up(bytes, CHUNK_ALIGN);
    if (!a->open || CHUNK_BYTES - a->open->used < want) {
        struct sq_cpu_chunk *c = chunk_new();
        if (!c)
            return NULL;
        sq_cpu_arena_done(a);
        a->open = c;
    }
    void *p = a->open->mem + a->open->used;
    a->open->used += want;
    a->open->n_refs++;
    *ret_chunk = a->open;
    return memset(p, 0, bytes);
}

void sq_cpu_arena_done(struct sq_cpu_arena *a)
{
    sq_cpu_chunk_unref(a->open);
    a->open = NULL;
}

/* Elements between S8 rows: an odd number of cache lines, so that the rows of a tile never fall into the same cache sets. */
static size_t s8_stride(size_t cols)
{
    return (sq_div_up(cols, SQ_CPU_ALIGN) | 1) * SQ_CPU_ALIGN;
}

int sq_cpu_buf_new(enum sq_buf_kind kind, size_t max_rows, size_t cols, struct sq_buf **ret,
                   struct sq_err *err)
{
    const bool f32 = kind == SQ_BUF_F32;
    size_t n = 0, bytes = SIZE_MAX, scale_bytes = 0;
    struct sq_buf *b = sq_new(struct sq_buf);
    if (!b)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a buffer");
    b->kind = kind;
    b->max_rows = max_rows;
    b->cols = cols;
    if (cols <= SIZE_MAX / 2) {
        b->stride = f32 ? cols : s8_stride(cols);
        if (!sq_mul_size(max_rows, b->stride, &n) ||
            !sq_mul_size(n, f32 ? sizeof(float) : 1, &bytes) ||
            !sq_mul_size(max_rows, f32 ? 0 : sizeof(float), &scale_bytes) ||
            bytes > SIZE_MAX - scale_bytes)
            bytes = SIZE_MAX;
    }
    if (bytes != SIZE_MAX && f32)
        b->f = sq_cpu_alloc(bytes);
    if (bytes != SIZE_MAX && !f32) {
        b->u = sq_cpu_alloc(bytes);
        b->row_scale = sq_cpu_alloc(scale_bytes);
    }
    if (f32 ? !b->f : !b->u || !b->row_scale) {
        sq_cpu_buf_free(b);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a buffer of %zu x %zu", max_rows, cols);
    }
    if (!f32)
        memset(b->u, 128, bytes);
    b->bytes = bytes + scale_bytes;
    *ret = b;
    return 0;
}

void sq_cpu_buf_free(struct sq_buf *b)
{
    if (!b)
        return;
    sq_free(b->f);
    sq_free(b->u);
    sq_free(b->row_scale);
    sq_free(b);
}

/* A copy of src; zeros where src is NULL; nothing where not wanted. */
static bool copy_vec(float **to, const float *src, bool want, size_t n)
{
    if (!want)
        return true;
    *to = sq_cpu_alloc(n * sizeof **to);
    if (*to && src)
        memcpy(*to, src, n * sizeof **to);
    return *to;
}

int sq_cpu_norm_new(const struct sq_norm_desc *d, struct sq_norm **ret, struct sq_err *err)
{
    SQ_ASSERT(d->dim > 0 && d->dim <= SIZE_MAX / 64 && (d->gamma || d->gamma_q));
    struct sq_norm *n = sq_new(struct sq_norm);
    if (!n)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a norm");
    n->kind = d->kind;
    n->dim = d->dim;
    n->eps = d->eps;
    if (!copy_vec(&n->gamma, d->gamma, d->gamma, d->dim) ||
        !copy_vec(&n->beta, d->beta, d->gamma, d->dim) ||
        !copy_vec(&n->gamma_q, d->gamma_q, d->gamma_q, d->dim) ||
        !copy_vec(&n->beta_q, d->beta_q, d->gamma_q, d->dim)) {
        sq_cpu_norm_free(n);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a norm of %zu", d->dim);
    }
    n->bytes = ((d->gamma ? 2u : 0u) + (d->gamma_q ? 2u : 0u)) * d->dim * sizeof(float);
    *ret = n;
    return 0;
}

void sq_cpu_norm_free(struct sq_norm *n)
{
    if (!n)
        return;
    sq_free(n->gamma);
    sq_free(n->beta);
    sq_free(n->gamma_q);
    sq_free(n->beta_q);
    sq_free(n);
}

int sq_cpu_rope_new(const struct sq_rope_desc *d, struct sq_rope **ret, struct sq_err *err)
{
    SQ_ASSERT(d->rot_dim > 0 && d->rot_dim % 2 == 0 && d->n_pos > 0);
    struct sq_rope *r = sq_new(struct sq_rope);
    size_t n = 0, bytes;
    bool fits = sq_mul_size(d->n_pos, d->rot_dim / 2, &n) && sq_mul_size(n, 8, &bytes);
    if (r && fits)
        *r = (struct sq_rope){.rot_dim = d->rot_dim, .n_pos = d->n_pos, .bytes = bytes};
    if (!r || !fits || !copy_vec(&r->cos, d->cos, true, n) || !copy_vec(&r->sin, d->sin, true, n)) {
        sq_cpu_rope_free(r);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the rotations of %zu positions",
                       d->n_pos);
    }
    *ret = r;
    return 0;
}

void sq_cpu_rope_free(struct sq_rope *r)
{
    if (!r)
        return;
    sq_free(r->cos);
    sq_free(r->sin);
    sq_free(r);
}
