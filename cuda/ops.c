/* The ops of backend.h. Some wait for the one that follows and become one launch with it: a norm goes into the matmul of few rows that reads it,
 * a residual add into the norm behind it, a matmul's f32 result into swiglu, rope and kv_write into attention; and matmuls of few rows
 * that follow each other become one launch, from attention to attention. */
#include "cuda/cuda.h"
#include "engine/base/check.h"

static bool waits(const struct sq_cuda *c, enum sq_cuda_pending kind)
{
    return c->wait.kind == kind;
}

static int norm_now(struct sq_cuda *c, struct sq_norm *n, struct sq_buf *x, int n_rows,
                    struct sq_buf *y, struct sq_buf *y_q)
{
    const struct sq_gpu_codes none = {0};
    return sq_cuda_check(
        c, sq_gpu_norm_rows(c->st, &n->n, x->f, n_rows, y ? y->f : NULL, y_q ? y_q->code : none),
        "norm");
}

static int epi_of(const struct sq_linear *l)
{
    const bool relu = l->d.act == SQ_ACT_RELU;
    switch (l->d.out) {
    case SQ_OUT_ADD:
        return SQ_EPI_ADD;
    case SQ_OUT_S8:
        return relu ? SQ_EPI_S8_RELU : SQ_EPI_S8;
    default:
        return relu ? SQ_EPI_F32_RELU : SQ_EPI_F32;
    }
}

int sq_cuda_flush_chain(struct sq_cuda *c)
{
    struct sq_cuda_chain *ch = &c->chain;
    const int n = ch->n;
    ch->n = 0;
    return n ? sq_cuda_check(c, sq_gpu_gemm_chain(c->st, &c->device, ch->g, n), ch->name) : 0;
}

/* What waits is launched, or joins the chain. */
static int settle(struct sq_cuda *c)
{
    const struct sq_cuda_wait w = c->wait;
    c->wait.kind = SQ_PEND_NONE;
    if (w.kind == SQ_PEND_NONE)
        return 0;
    if (w.kind == SQ_PEND_LINEAR)
        return sq_cuda_linear_run(c, w.l, w.x, w.n_rows, w.y, epi_of(w.l), 0.0f, w.norm, w.norm_x);
    int rc = sq_cuda_flush_chain(c);
    if (rc)
        return rc;
    if (w.kind == SQ_PEND_NORM)
        return norm_now(c, w.norm, w.x, w.n_rows, NULL, w.y);
    if (w.kind == SQ_PEND_ADD)
        return sq_cuda_check(c, sq_gpu_finish(c->st, &w.add), w.l->d.name);
    return sq_cuda_attention_now(c, &w);
}

int sq_cuda_flush(struct sq_cuda *c)
{
    int rc = settle(c);
    return rc ? rc : sq_cuda_flush_chain(c);
}

/* The fault that sticks, or what the flush says. */
static int ready(struct sq_cuda *c)
{
    return c->fault[0] ? -SQ_E_DEVICE : sq_cuda_flush(c);
}

int sq_cuda_embed(struct sq_backend *be, const struct sq_batch *b, struct sq_linear *table,
                  struct sq_linear *pos_table, int pos_offset, struct sq_buf *x)
{
    struct sq_cuda *c = sq_cuda_of(be);
    SQ_ASSERT(c->step.b == b && (table || pos_table));
    int rc = ready(c);
    if (rc || b->n_rows == 0)
        return rc;
    return sq_cuda_check(
        c,
        sq_gpu_embed(c->st, &c->step.dev, sq_cuda_rows(c, b->n_rows), table ? table->w : NULL,
                     table ? (int)table->d.dtype : 0, pos_table ? pos_table->w : NULL,
                     pos_table ? (int)pos_table->d.dtype : 0, pos_offset, x->f, (int)x->cols),
        "embed");
}

static bool fits_matmul(const struct sq_cuda *c, const struct sq_norm *n, int n_rows)
{
    const int dim = c->capability < 80 ? SQ_CUDA_FUSED_NORM_DIM_SM75 : SQ_CUDA_FUSED_NORM_DIM;
    return n_rows <= SQ_GPU_SMALL_MAX && n->n.dim <= dim;
}

int sq_cuda_norm(struct sq_backend *be, struct sq_norm *n, struct sq_buf *x, int n_rows,
                 struct sq_buf *y, struct sq_buf *y_q)
{
    struct sq_cuda *c = sq_cuda_of(be);
    const int rows = sq_cuda_rows(c, n_rows);
    SQ_ASSERT(x->cols == (size_t)n->n.dim && (!y || n->has_f) && (!y_q || n->has_q));
    if (c->fault[0])
        return -SQ_E_DEVICE;
    if (waits(c, SQ_PEND_ADD) && c->wait.y == x && c->wait.n_rows == rows) {
        const struct sq_gpu_codes none = {0};
        const struct sq_cuda_wait w = c->wait;
        c->wait.kind = SQ_PEND_NONE;
        return sq_cuda_check(
            c, sq_gpu_finish_norm(c->st, &w.add, &n->n, y ? y->f : NULL, y_q ? y_q->code : none),
            "residual and norm");
    }
    int rc = settle(c);
    if (rc || n_rows == 0)
        return rc;
    if (!y && fits_matmul(c, n, rows)) {
        c->wait = (struct sq_cuda_wait){
            .kind = SQ_PEND_NORM, .norm = n, .x = x, .y = y_q, .n_rows = rows};
        return 0;
    }
    rc = sq_cuda_flush_chain(c);
    return rc ? rc : norm_now(c, n, x, rows, y, y_q);
}

int sq_cuda_quant_rows(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                       struct sq_buf *y_q)
{
    struct sq_cuda *c = sq_cuda_of(be);
    SQ_ASSERT(x->kind == SQ_BUF_F32 && y_q->kind == SQ_BUF_S8 && x->cols == y_q->cols);
    int rc = ready(c);
    if (rc || n_rows == 0)
        return rc;
    return sq_cuda_check(
        c,
        sq_gpu_quant_rows(c->st, x->f, sq_cuda_rows(c, n_rows), (int)x->cols, inv_step, y_q->code),
        "quant_rows");
}

int sq_cuda_linear(struct sq_backend *be, struct sq_linear *l, struct sq_buf *x, int n_rows,
                   struct sq_buf *y)
{
    struct sq_cuda *c = sq_cuda_of(be);
    const int rows = sq_cuda_rows(c, n_rows);
    SQ_ASSERT(!l->put && x->cols == l->d.n_in && y->cols == l->d.n_out);
    SQ_ASSERT((l->d.dtype == SQ_I8) == (x->kind == SQ_BUF_S8));
    if (c->fault[0])
        return -SQ_E_DEVICE;
    const struct sq_cuda_wait w = c->wait;
    const bool normed = w.kind == SQ_PEND_NORM && w.y == x && w.n_rows == rows && !l->d.dynamic &&
                        l->d.dtype == SQ_I8 && sq_cuda_use_small(l, rows);
    int rc = 0;
    if (normed)
        c->wait.kind = SQ_PEND_NONE;
    else
        rc = settle(c);
    if (rc || n_rows == 0)
        return rc;
    struct sq_norm *norm = normed ? w.norm : NULL;
    const float *norm_x = normed ? w.x->f : NULL;
    if (l->d.dtype != SQ_I8 || epi_of(l) != SQ_EPI_F32 || l->d.n_out % 2)
        return sq_cuda_linear_run(c, l, x, rows, y, epi_of(l), 0.0f, norm, norm_x);
    c->wait = (struct sq_cuda_wait){.kind = SQ_PEND_LINEAR,
                                    .l = l,
                                    .x = x,
                                    .y = y,
                                    .norm = norm,
                                    .norm_x = norm_x,
                                    .n_rows = rows};
    return 0;
}

int sq_cuda_swiglu(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                   struct sq_buf *y)
{
    struct sq_cuda *c = sq_cuda_of(be);
    const int rows = sq_cuda_rows(c, n_rows);
    const bool codes = y->kind == SQ_BUF_S8;
    SQ_ASSERT(x->kind == SQ_BUF_F32 && x->cols == 2 * y->cols);
    if (c->fault[0])
        return -SQ_E_DEVICE;
    const struct sq_cuda_wait w = c->wait;
    if (w.kind == SQ_PEND_LINEAR && w.y == x && w.n_rows == rows && (!codes || inv_step > 0.0f)) {
        c->wait.kind = SQ_PEND_NONE;
        return sq_cuda_linear_run(c, w.l, w.x, rows, y,
                                  codes ? SQ_EPI_SWIGLU_S8 : SQ_EPI_SWIGLU_F32, inv_step, w.norm,
                                  w.norm_x);
    }
    int rc = sq_cuda_flush(c);
    if (rc || n_rows == 0)
        return rc;
    return sq_cuda_check(
        c, sq_gpu_swiglu(c->st, x->f, rows, (int)y->cols, inv_step, codes ? NULL : y->f, y->code),
        "swiglu");
}

int sq_cuda_gather(struct sq_backend *be, const struct sq_batch *b, struct sq_buf *x,
                   struct sq_buf *y)
{
    struct sq_cuda *c = sq_cuda_of(be);
    SQ_ASSERT(c->step.b == b && x->cols == y->cols);
    int rc = ready(c);
    if (rc || b->n_out == 0)
        return rc;
    return sq_cuda_check(
        c, sq_gpu_gather(c->st, &c->step.dev, x->f, sq_cuda_rows(c, b->n_out), (int)x->cols, y->f),
        "gather");
}

int sq_cuda_argmax(struct sq_backend *be, struct sq_buf *x, int n_rows, int32_t *ids)
{
    struct sq_cuda *c = sq_cuda_of(be);
    SQ_ASSERT(!c->step.recording && n_rows <= c->step.max.max_out);
    int rc = ready(c);
    if (rc || n_rows == 0)
        return rc;
    rc = sq_cuda_check(c, sq_gpu_argmax(c->st, x->f, n_rows, (int)x->cols, c->best, c->ids),
                       "argmax");
    if (!rc)
        rc = sq_cuda_check(c,
                           cudaMemcpyAsync(c->host_ids, c->ids, (size_t)n_rows * sizeof *ids,
                                           cudaMemcpyDeviceToHost, c->st),
                           "argmax");
    rc = rc ? rc : sq_cuda_check(c, cudaStreamSynchronize(c->st), "a step");
    for (int i = 0; i < n_rows && !rc; i++)
        ids[i] = c->host_ids[i];
    return rc;
}

int sq_cuda_observe(struct sq_backend *be, struct sq_buf *x, int row0, int n_rows, size_t col0,
                    size_t n_cols, float *absmax)
{
    struct sq_cuda *c = sq_cuda_of(be);
    SQ_ASSERT(x->kind == SQ_BUF_F32 && row0 >= 0 && col0 + n_cols <= x->cols);
    SQ_ASSERT(n_cols * sizeof(float) <= c->absmax_bytes && !c->step.recording);
    int rc = ready(c);
    if (rc || n_rows == 0 || n_cols == 0)
        return rc;
    const size_t bytes = n_cols * sizeof(float);
    rc = sq_cuda_upload(c, c->absmax, bytes, absmax, bytes, 1, NULL);
    if (!rc)
        rc = sq_cuda_check(c,
                           sq_gpu_observe(c->st, x->f + (size_t)row0 * x->cols + col0, n_rows,
                                          (int)n_cols, (int)x->cols, c->absmax),
                           "observe");
    /* pageable memory: the copy is complete when the stream is */
    if (!rc)
        rc = sq_cuda_check(
            c, cudaMemcpyAsync(absmax, c->absmax, bytes, cudaMemcpyDeviceToHost, c->st), "observe");
    return rc ? rc : sq_cuda_check(c, cudaStreamSynchronize(c->st), "observe");
}

int sq_cuda_view(struct sq_backend *be, struct sq_buf *x, int n_rows, const float **ret)
{
    struct sq_cuda *c = sq_cuda_of(be);
    SQ_ASSERT(x->kind == SQ_BUF_F32 && n_rows >= 0 && (size_t)n_rows <= x->max_rows);
    int rc = ready(c);
    if (!rc && !x->host) /* once for a buffer, in the engine's first step */
        rc = sq_cuda_check(c, cudaHostAlloc((void **)&x->host, x->bytes, cudaHostAllocDefault),
                           "pinned memory for results");
    if (!rc && n_rows > 0)
        rc = sq_cuda_check(c,
                           cudaMemcpyAsync(x->host, x->f, (size_t)n_rows * x->cols * sizeof(float),
                                           cudaMemcpyDeviceToHost, c->st),
                           "view");
    rc = rc ? rc : sq_cuda_check(c, cudaStreamSynchronize(c->st), "a step");
    if (!rc)
        *ret = x->host;
    return rc;
}

int sq_cuda_sync(struct sq_backend *be)
{
    struct sq_cuda *c = sq_cuda_of(be);
    int rc = ready(c);
    return rc ? rc : sq_cuda_check(c, cudaStreamSynchronize(c->st), "a step");
}
