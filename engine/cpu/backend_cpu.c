/* The ops of backend.h: each is cut into items, and the pool's threads run pieces of them through the chosen table. */
#include "engine/cpu/backend_cpu.h"

#include <stdio.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/cpu/cpu.h"
#include "engine/cpu/pool.h"

#define PIECES_PER_THREAD 4               /* of an op: few enough to be cheap, enough to even out a slow thread */
#define X_BLOCK_BYTES ((size_t)512 << 10) /* activations of a block of rows: they stay in L2 while the weights go by */
#define ATTEND_ROWS 64                    /* rows of one sequence that one item of attention takes */

struct cpu {
    struct sq_backend base;
    const struct sq_cpu_ops *k;
    struct sq_pool *pool;
    int n_threads;
    uint8_t *scratch;    /* [n_threads][scratch_bytes] */
    size_t scratch_bytes;
    size_t used_bytes;
    struct sq_cpu_arena arena; /* of weights */
};

static struct cpu *cpu_of(struct sq_backend *be)
{
    return (struct cpu *)be;
}

/* Pieces of `unit` items or a multiple of it, about PIECES_PER_THREAD for each thread. */
static void run(struct cpu *c, size_t n, size_t unit, sq_pool_fn *fn, void *arg)
{
    size_t pieces = c->n_threads == 1 ? 1 : (size_t)c->n_threads * PIECES_PER_THREAD;
    sq_pool_run(c->pool, n, sq_round_up(SQ_MAX(n / pieces, (size_t)1), unit), fn, arg);
}

/* --- objects --- */

static int buf_new(struct sq_backend *be, enum sq_buf_kind kind, size_t max_rows, size_t cols, struct sq_buf **ret, struct sq_err *err)
{
    int rc = sq_cpu_buf_new(kind, max_rows, cols, ret, err);
    if (rc == 0)
        cpu_of(be)->used_bytes += (*ret)->bytes;
    return rc;
}

static void buf_free(struct sq_backend *be, struct sq_buf *b)
{
    cpu_of(be)->used_bytes -= b ? b->bytes : 0;
    sq_cpu_buf_free(b);
}

static int linear_new(struct sq_backend *be, const struct sq_linear_desc *d, struct sq_linear **ret, struct sq_err *err)
{
    int rc = sq_cpu_linear_new_in(&cpu_of(be)->arena, d, ret, err);
    if (rc == 0)
        cpu_of(be)->used_bytes += (*ret)->bytes;
    return rc;
}

static int linear_put(struct sq_backend *be, struct sq_linear *l, size_t row0, size_t n_rows, const void *rows, struct sq_err *err)
{
    (void)be;
    return sq_cpu_linear_put(l, row0, n_rows, rows, err);
}

static int linear_finish(struct sq_backend *be, struct sq_linear *l, const struct sq_epilogue *e, struct sq_err *err)
{
    (void)be;
    return sq_cpu_linear_finish(l, e, err);
}

static void linear_free(struct sq_backend *be, struct sq_linear *l)
{
    cpu_of(be)->used_bytes -= l ? l->bytes : 0;
    sq_cpu_linear_free(l);
}

static int norm_new(struct sq_backend *be, const struct sq_norm_desc *d, struct sq_norm **ret, struct sq_err *err)
{
    int rc = sq_cpu_norm_new(d, ret, err);
    if (rc == 0)
        cpu_of(be)->used_bytes += (*ret)->bytes;
    return rc;
}

static void norm_free(struct sq_backend *be, struct sq_norm *n)
{
    cpu_of(be)->used_bytes -= n ? n->bytes : 0;
    sq_cpu_norm_free(n);
}

/* Grows the threads' scratch to what a cache like d needs. */
static int scratch_grow(struct cpu *c, const struct sq_kv_desc *d, struct sq_err *err)
{
    size_t want = sq_round_up(sq_cpu_attn_scratch(d), 4096), all;
    if (want <= c->scratch_bytes)
        return 0;
    uint8_t *p = sq_mul_size(want, (size_t)c->n_threads, &all) ? sq_cpu_alloc(all) : NULL;
    if (!p)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the attention scratch of %d threads", c->n_threads);
    sq_free(c->scratch);
    c->used_bytes += (want - c->scratch_bytes) * (size_t)c->n_threads;
    c->scratch = p;
    c->scratch_bytes = want;
    return 0;
}

static int kv_new(struct sq_backend *be, const struct sq_kv_desc *d, struct sq_kv **ret, struct sq_err *err)
{
    struct cpu *c = cpu_of(be);
    int rc = scratch_grow(c, d, err);
    if (rc == 0)
        rc = sq_cpu_kv_new(d, ret, err);
    if (rc == 0)
        c->used_bytes += sq_cpu_kv_used(*ret);
    return rc;
}

static void kv_free(struct sq_backend *be, struct sq_kv *kv)
{
    cpu_of(be)->used_bytes -= kv ? sq_cpu_kv_used(kv) : 0;
    sq_cpu_kv_free(kv);
}

static size_t kv_bytes(struct sq_backend *be, const struct sq_kv_desc *d)
{
    (void)be;
    return sq_cpu_kv_bytes(d);
}

/* --- ops by rows --- */

/* The arguments of whichever op the pool is running. */
struct call {
    struct cpu *c;
    const struct sq_batch *b;
    const struct sq_attn *a;
    struct sq_kv *kv;
    const struct sq_linear *l, *l2;
    const struct sq_norm *n;
    struct sq_buf *x, *y, *y_q;
    int n_rows, pos_offset, row0;
    float inv_step;
    int32_t *ids;
    size_t col0, n_cols;
    float *absmax;
    size_t n_blocks; /* of rows */
};

static void check_f32(const struct sq_buf *b, int n_rows)
{
    SQ_ASSERT(b && b->kind == SQ_BUF_F32 && n_rows >= 0 && (size_t)n_rows <= b->max_rows);
}

static void check_s8(const struct sq_buf *b, int n_rows)
{
    SQ_ASSERT(b && b->kind == SQ_BUF_S8 && n_rows >= 0 && (size_t)n_rows <= b->max_rows);
}

static void embed_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->embed(o->b, o->l, o->l2, o->pos_offset, o->x, (int)i0, (int)i1);
}

static int embed(struct sq_backend *be, const struct sq_batch *b, struct sq_linear *table, struct sq_linear *pos_table, int pos_offset, struct sq_buf *x)
{
    struct call o = {.c = cpu_of(be), .b = b, .l = table, .l2 = pos_table, .pos_offset = pos_offset, .x = x};
    check_f32(x, b->n_rows);
    SQ_ASSERT(table->d.dtype != SQ_I8 && table->d.n_in == x->cols);
    SQ_ASSERT(!pos_table || (pos_table->d.dtype != SQ_I8 && pos_table->d.n_in == x->cols));
    run(o.c, (size_t)b->n_rows, 1, embed_piece, &o);
    return 0;
}

static void norm_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->norm(o->n, o->x, (int)i0, (int)i1, o->y, o->y_q);
}

static int norm(struct sq_backend *be, struct sq_norm *n, struct sq_buf *x, int n_rows, struct sq_buf *y, struct sq_buf *y_q)
{
    struct call o = {.c = cpu_of(be), .n = n, .x = x, .y = y, .y_q = y_q};
    check_f32(x, n_rows);
    SQ_ASSERT(x->cols == n->dim);
    if (y) {
        check_f32(y, n_rows);
        SQ_ASSERT(y->cols == n->dim && n->gamma);
    }
    if (y_q) {
        check_s8(y_q, n_rows);
        SQ_ASSERT(y_q->cols == n->dim && n->gamma_q);
    }
    run(o.c, (size_t)n_rows, 1, norm_piece, &o);
    return 0;
}

static void quant_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->quant_rows(o->x, (int)i0, (int)i1, o->inv_step, o->y_q);
}

static int quant_rows(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step, struct sq_buf *y_q)
{
    struct call o = {.c = cpu_of(be), .x = x, .inv_step = inv_step, .y_q = y_q};
    check_f32(x, n_rows);
    check_s8(y_q, n_rows);
    SQ_ASSERT(x->cols == y_q->cols);
    run(o.c, (size_t)n_rows, 1, quant_piece, &o);
    return 0;
}

static int gather(struct sq_backend *be, struct sq_buf *x, const int32_t *rows, int n_rows, struct sq_buf *y)
{
    (void)be;
    check_f32(x, 0);
    check_f32(y, n_rows);
    SQ_ASSERT(x->cols == y->cols);
    for (int i = 0; i < n_rows; i++) {
        SQ_ASSERT(rows[i] >= 0 && (size_t)rows[i] < x->max_rows);
        memcpy(y->f + (size_t)i * y->stride, x->f + (size_t)rows[i] * x->stride, x->cols * sizeof *x->f);
    }
    return 0;
}

static void argmax_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->argmax(o->x, (int)i0, (int)i1, o->ids);
}

static int argmax(struct sq_backend *be, struct sq_buf *x, int n_rows, int32_t *ids)
{
    struct call o = {.c = cpu_of(be), .x = x, .ids = ids};
    check_f32(x, n_rows);
    run(o.c, (size_t)n_rows, 1, argmax_piece, &o);
    return 0;
}

static void observe_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->observe(o->x, o->row0, o->n_rows, o->col0 + i0, i1 - i0, o->absmax + i0);
}

static int observe(struct sq_backend *be, struct sq_buf *x, int row0, int n_rows, size_t col0, size_t n_cols, float *absmax)
{
    struct call o = {.c = cpu_of(be), .x = x, .row0 = row0, .n_rows = n_rows, .col0 = col0, .absmax = absmax};
    SQ_ASSERT(row0 >= 0 && n_rows >= 0);
    check_f32(x, row0 + n_rows);
    SQ_ASSERT(col0 <= x->cols && n_cols <= x->cols - col0);
    run(o.c, n_cols, 64, observe_piece, &o);
    return 0;
}

static int view(struct sq_backend *be, struct sq_buf *x, int n_rows, const float **ret)
{
    (void)be;
    check_f32(x, n_rows);
    *ret = x->f;
    return 0;
}

static int sync_all(struct sq_backend *be)
{
    (void)be;
    return 0;
}

/* --- matmul --- */

/* Item = block of rows x panel, blocks outermost: the weights go by once for each block. */
static void gemm_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    const struct sq_gemm g = {.l = o->l, .x = o->x, .y = o->y, .n_rows = o->n_rows};
    const size_t n_panels = o->l->n_panels;
    (void)thread;
    while (i0 < i1) {
        size_t block = i0 / n_panels, p0 = i0 % n_panels, p1 = SQ_MIN(n_panels, p0 + (i1 - i0));
        size_t m0 = (size_t)o->n_rows * block / o->n_blocks, m1 = (size_t)o->n_rows * (block + 1) / o->n_blocks;
        o->c->k->gemm_s8(&g, (int)m0, (int)m1, p0, p1);
        i0 += p1 - p0;
    }
}

static void gemm_float_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->gemm_float(o->l, o->x, o->y, 0, o->n_rows, i0, i1);
}

static int linear(struct sq_backend *be, struct sq_linear *l, struct sq_buf *x, int n_rows, struct sq_buf *y)
{
    struct call o = {.c = cpu_of(be), .l = l, .x = x, .y = y, .n_rows = n_rows};
    SQ_ASSERT(!l->put && x->cols == l->d.n_in && y->cols == l->d.n_out);
    if (l->d.out == SQ_OUT_S8)
        check_s8(y, n_rows);
    else
        check_f32(y, n_rows);
    if (l->d.dtype != SQ_I8) {
        check_f32(x, n_rows);
        run(o.c, l->d.n_out, 16, gemm_float_piece, &o);
        return 0;
    }
    check_s8(x, n_rows);
    o.n_blocks = sq_div_up((size_t)n_rows * l->k_pad, X_BLOCK_BYTES);
    if (n_rows)
        run(o.c, o.n_blocks * l->n_panels, 1, gemm_piece, &o);
    return 0;
}

/* --- attention --- */

static void check_attn(const struct sq_attn *a, const struct sq_batch *b, const struct sq_buf *qkv)
{
    SQ_ASSERT(a->n_heads > 0 && a->n_kv_heads > 0 && a->head_dim > 0 && a->n_heads % a->n_kv_heads == 0);
    SQ_ASSERT(qkv->cols == (size_t)(a->n_heads + 2 * a->n_kv_heads) * (size_t)a->head_dim);
    SQ_ASSERT(b->n_rows >= 0 && (size_t)b->n_rows <= qkv->max_rows);
}

/* Item = sequence x key-value head. */
static void kv_write_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    const size_t n_heads = (size_t)o->a->n_kv_heads;
    (void)thread;
    for (size_t i = i0; i < i1; i++)
        o->c->k->kv_write(o->kv, o->a, o->b, o->x, (int)(i / n_heads), (int)(i % n_heads));
}

static int kv_write(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a, const struct sq_batch *b, struct sq_buf *qkv)
{
    struct call o = {.c = cpu_of(be), .kv = kv, .a = a, .b = b, .x = qkv};
    check_attn(a, b, qkv);
    run(o.c, (size_t)b->n_seqs * (size_t)a->n_kv_heads, 1, kv_write_piece, &o);
    return 0;
}

static size_t n_chunks(const struct sq_batch_seq *s)
{
    return sq_div_up((size_t)s->n_rows, ATTEND_ROWS);
}

/* Item = chunk of a sequence's rows x key-value head. */
static void attend_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    const struct sq_batch_seq *seqs = o->b->seqs;
    const size_t n_heads = (size_t)o->a->n_kv_heads;
    void *scratch = o->c->scratch + (size_t)thread * o->c->scratch_bytes;
    size_t first = 0; /* chunk that starts sequence s */
    int s = 0;
    for (size_t i = i0; i < i1; i++) {
        const size_t chunk = i / n_heads;
        while (chunk - first >= n_chunks(&seqs[s]))
            first += n_chunks(&seqs[s++]);
        const int m0 = seqs[s].row0 + (int)(chunk - first) * ATTEND_ROWS, end = seqs[s].row0 + seqs[s].n_rows;
        o->c->k->attend(o->kv, o->a, o->b, o->x, o->y, s, (int)(i % n_heads), m0, SQ_MIN(m0 + ATTEND_ROWS, end), scratch);
    }
}

static int attend(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a, const struct sq_batch *b, struct sq_buf *qkv, struct sq_buf *out)
{
    struct call o = {.c = cpu_of(be), .kv = kv, .a = a, .b = b, .x = qkv, .y = out};
    size_t chunks = 0;
    check_attn(a, b, qkv);
    SQ_ASSERT(out->cols == (size_t)a->n_heads * (size_t)a->head_dim && (size_t)b->n_rows <= out->max_rows);
    for (int s = 0; s < b->n_seqs; s++)
        chunks += n_chunks(&b->seqs[s]);
    run(o.c, chunks * (size_t)a->n_kv_heads, 1, attend_piece, &o);
    return 0;
}

/* --- the backend --- */

static void step_begin(struct sq_backend *be)
{
    sq_pool_step_begin(cpu_of(be)->pool);
}

static void step_end(struct sq_backend *be)
{
    sq_pool_step_end(cpu_of(be)->pool);
}

static void info(struct sq_backend *be, struct sq_device_info *ret)
{
    const struct cpu *c = cpu_of(be);
    *ret = (struct sq_device_info){.name = "cpu", .mem_used_bytes = c->used_bytes, .n_threads = c->n_threads};
    snprintf(ret->detail, sizeof ret->detail, "%s, %d thread%s", c->k->name, c->n_threads, c->n_threads == 1 ? "" : "s");
}

static void close_cpu(struct sq_backend *be)
{
    struct cpu *c = cpu_of(be);
    sq_pool_free(c->pool);
    sq_cpu_arena_done(&c->arena);
    sq_free(c->scratch);
    sq_free(c);
}

static const struct sq_backend_ops cpu_ops = {
    .close = close_cpu,
    .info = info,
    .buf_new = buf_new,
    .buf_free = buf_free,
    .linear_new = linear_new,
    .linear_put = linear_put,
    .linear_finish = linear_finish,
    .linear_free = linear_free,
    .norm_new = norm_new,
    .norm_free = norm_free,
    .kv_new = kv_new,
    .kv_free = kv_free,
    .kv_bytes = kv_bytes,
    .step_begin = step_begin,
    .step_end = step_end,
    .embed = embed,
    .norm = norm,
    .quant_rows = quant_rows,
    .linear = linear,
    .kv_write = kv_write,
    .attend = attend,
    .gather = gather,
    .argmax = argmax,
    .observe = observe,
    .view = view,
    .sync = sync_all,
};

static int no_variant(const char *name, struct sq_err *err)
{
    char list[128] = "";
    size_t n = 0;
    for (const char *const *v = sq_cpu_variant_names(); *v && n < sizeof list; v++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", *v);
    return sq_fail(err, SQ_E_NOTSUP, "CPU kernels '%s' cannot run on this processor; it runs: %s", name, list);
}

int sq_cpu_open(const struct sq_cpu_options *o, struct sq_backend **ret, struct sq_err *err)
{
    SQ_ASSERT(o->n_threads >= 0);
    const struct sq_cpu_ops *k = sq_cpu_variant(o->variant);
    if (!k)
        return no_variant(o->variant, err);
    struct cpu *c = sq_new(struct cpu);
    if (!c)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the CPU backend");
    c->base.ops = &cpu_ops;
    c->k = k;
    c->n_threads = o->n_threads ? o->n_threads : sq_n_cpus();
    int rc = sq_pool_new(c->n_threads, &c->pool, err);
    if (rc) {
        sq_free(c);
        return rc;
    }
    *ret = &c->base;
    return 0;
}

struct sq_pool *sq_cpu_pool(struct sq_backend *be)
{
    return cpu_of(be)->pool;
}

const struct sq_cpu_ops *sq_cpu_table(struct sq_backend *be)
{
    return cpu_of(be)->k;
}
