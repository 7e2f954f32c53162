/* The ops of backend.h: each is cut into items, and the pool's threads run pieces of them through the chosen table. */
#include "engine/cpu/backend_ops.h"

#include "engine/base/check.h"
#include "engine/base/num.h"

/* Pieces of an op for each thread: few enough to be cheap, enough to even out a slow thread. */
#define PIECES_PER_THREAD 4
/* Activations of a block of rows: they stay near the core while the weights go by. */
#define X_BLOCK_BYTES ((size_t)1 << 20)
/* Rows of one sequence that one item of attention takes. */
#define ATTEND_ROWS 64

static struct sq_cpu *cpu_of(struct sq_backend *be)
{
    return (struct sq_cpu *)be;
}

/* Pieces of `unit` items or a multiple of it, about PIECES_PER_THREAD for each thread. */
static void run(struct sq_cpu *c, size_t n, size_t unit, sq_pool_fn *fn, void *arg)
{
    size_t pieces = c->n_threads == 1 ? 1 : (size_t)c->n_threads * PIECES_PER_THREAD;
    sq_pool_run(c->pool, n, sq_round_up(SQ_MAX(n / pieces, (size_t)1), unit), fn, arg);
}

/* --- ops by rows --- */

/* The arguments of whichever op the pool is running. */
struct call {
    struct sq_cpu *c;
    const struct sq_batch *b;
    const struct sq_attn *a;
    struct sq_kv *kv;
    const struct sq_linear *l, *l2;
    const struct sq_norm *n;
    const struct sq_rope *r;
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

int sq_cpu_embed(struct sq_backend *be, const struct sq_batch *b, struct sq_linear *table,
                 struct sq_linear *pos_table, int pos_offset, struct sq_buf *x)
{
    struct call o = {
        .c = cpu_of(be), .b = b, .l = table, .l2 = pos_table, .pos_offset = pos_offset, .x = x};
    check_f32(x, b->n_rows);
    SQ_ASSERT(table || pos_table);
    SQ_ASSERT(!table || (table->d.dtype != SQ_I8 && table->d.n_in == x->cols));
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

int sq_cpu_norm(struct sq_backend *be, struct sq_norm *n, struct sq_buf *x, int n_rows,
                struct sq_buf *y, struct sq_buf *y_q)
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

int sq_cpu_quant_rows(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                      struct sq_buf *y_q)
{
    struct call o = {.c = cpu_of(be), .x = x, .inv_step = inv_step, .y_q = y_q};
    check_f32(x, n_rows);
    check_s8(y_q, n_rows);
    SQ_ASSERT(x->cols == y_q->cols);
    run(o.c, (size_t)n_rows, 1, quant_piece, &o);
    return 0;
}

static void swiglu_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->swiglu(o->x, (int)i0, (int)i1, o->inv_step, o->y);
}

int sq_cpu_swiglu(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                  struct sq_buf *y)
{
    struct call o = {.c = cpu_of(be), .x = x, .inv_step = inv_step, .y = y};
    check_f32(x, n_rows);
    SQ_ASSERT(x->cols == 2 * y->cols && x != y && (size_t)n_rows <= y->max_rows);
    run(o.c, (size_t)n_rows, 1, swiglu_piece, &o);
    return 0;
}

int sq_cpu_gather(struct sq_backend *be, const struct sq_batch *b, struct sq_buf *x,
                  struct sq_buf *y)
{
    (void)be;
    check_f32(x, 0);
    check_f32(y, b->n_out);
    SQ_ASSERT(x->cols == y->cols);
    for (int i = 0; i < b->n_out; i++) {
        const int32_t row = b->out_rows[i];
        SQ_ASSERT(row >= 0 && (size_t)row < x->max_rows);
        memcpy(y->f + (size_t)i * y->stride, x->f + (size_t)row * x->stride,
               x->cols * sizeof *x->f);
    }
    return 0;
}

static void argmax_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->argmax(o->x, (int)i0, (int)i1, o->ids);
}

int sq_cpu_argmax(struct sq_backend *be, struct sq_buf *x, int n_rows, int32_t *ids)
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

int sq_cpu_observe(struct sq_backend *be, struct sq_buf *x, int row0, int n_rows, size_t col0,
                   size_t n_cols, float *absmax)
{
    struct call o = {
        .c = cpu_of(be), .x = x, .row0 = row0, .n_rows = n_rows, .col0 = col0, .absmax = absmax};
    SQ_ASSERT(row0 >= 0 && n_rows >= 0);
    check_f32(x, row0 + n_rows);
    SQ_ASSERT(col0 <= x->cols && n_cols <= x->cols - col0);
    run(o.c, n_cols, 64, observe_piece, &o);
    return 0;
}

int sq_cpu_view(struct sq_backend *be, struct sq_buf *x, int n_rows, const float **ret)
{
    (void)be;
    check_f32(x, n_rows);
    *ret = x->f;
    return 0;
}

int sq_cpu_sync(struct sq_backend *be)
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
        size_t m0 = (size_t)o->n_rows * block / o->n_blocks,
               m1 = (size_t)o->n_rows * (block + 1) / o->n_blocks;
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

int sq_cpu_linear(struct sq_backend *be, struct sq_linear *l, struct sq_buf *x, int n_rows,
                  struct sq_buf *y)
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
    SQ_ASSERT(a->n_heads > 0 && a->n_kv_heads > 0 && a->head_dim > 0 &&
              a->n_heads % a->n_kv_heads == 0);
    SQ_ASSERT(qkv->cols == (size_t)(a->n_heads + 2 * a->n_kv_heads) * (size_t)a->head_dim);
    SQ_ASSERT(b->n_rows >= 0 && (size_t)b->n_rows <= qkv->max_rows);
}

static void rope_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const struct call *o = arg;
    (void)thread;
    o->c->k->rope(o->r, o->a, o->b, o->x, o->y, (int)i0, (int)i1);
}

int sq_cpu_rope(struct sq_backend *be, struct sq_rope *r, const struct sq_attn *a,
                const struct sq_batch *b, struct sq_buf *x, struct sq_buf *y)
{
    struct call o = {.c = cpu_of(be), .r = r, .a = a, .b = b, .x = x, .y = y};
    check_attn(a, b, x);
    check_f32(x, b->n_rows);
    SQ_ASSERT(x->cols == y->cols && (size_t)b->n_rows <= y->max_rows);
    SQ_ASSERT(r->rot_dim <= (size_t)a->head_dim);
    run(o.c, (size_t)b->n_rows, 1, rope_piece, &o);
    return 0;
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

int sq_cpu_kv_write(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                    const struct sq_batch *b, struct sq_buf *qkv)
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
        const int m0 = seqs[s].row0 + (int)(chunk - first) * ATTEND_ROWS,
                  end = seqs[s].row0 + seqs[s].n_rows;
        o->c->k->attend(o->kv, o->a, o->b, o->x, o->y, s, (int)(i % n_heads), m0,
                        SQ_MIN(m0 + ATTEND_ROWS, end), scratch);
    }
}

int sq_cpu_attend(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                  const struct sq_batch *b, struct sq_buf *qkv, struct sq_buf *out)
{
    struct call o = {.c = cpu_of(be), .kv = kv, .a = a, .b = b, .x = qkv, .y = out};
    size_t chunks = 0;
    check_attn(a, b, qkv);
    SQ_ASSERT(out->cols == (size_t)a->n_heads * (size_t)a->head_dim &&
              (size_t)b->n_rows <= out->max_rows);
    for (int s = 0; s < b->n_seqs; s++)
        chunks += n_chunks(&b->seqs[s]);
    run(o.c, chunks * (size_t)a->n_kv_heads, 1, attend_piece, &o);
    return 0;
}
