/* Buffers, norms, rotary tables, the KV cache, and the table of ops. */
#include <stdio.h>

#include "cuda/cuda.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"

/* --- buffers --- */

/* The constants behind each of n_rows rows. */
static cudaError_t write_ones(struct sq_cuda *c, int8_t *at, size_t stride, size_t n_rows)
{
    int8_t ones[SQ_LT_BIAS_COLS];
    cudaError_t e = cudaSuccess;
    sq_lt_bias_ones(ones);
    for (int i = 0, n; i < SQ_LT_BIAS_COLS && e == cudaSuccess; i += n) {
        for (n = 1; i + n < SQ_LT_BIAS_COLS && ones[i + n] == ones[i];)
            n++;
        e = cudaMemset2DAsync(at + i, stride, ones[i], (size_t)n, n_rows, c->st);
    }
    return e;
}

static int make_codes(struct sq_cuda *c, struct sq_buf *b, struct sq_err *err)
{
    const size_t k_pad = sq_round_up(b->cols, 16), stride = k_pad + SQ_LT_BIAS_COLS;
    const size_t scales = sq_round_up(b->max_rows * sizeof(float), 16);
    size_t codes;
    if (stride > INT32_MAX || !sq_mul_size(b->max_rows, stride, &codes) ||
        !sq_add_size(codes, scales, &b->bytes))
        return sq_fail(err, SQ_E_LIMIT, "activations: %zu x %zu is too large", b->max_rows,
                       b->cols);
    void *p;
    int rc = sq_cuda_alloc(c, SQ_CUDA_ACTS, b->bytes, "activations", &p, err);
    if (rc)
        return rc;
    b->code =
        (struct sq_gpu_codes){.row_scale = p, .q = (int8_t *)p + scales, .stride = (int)stride};
    rc = sq_cuda_zero(c, p, b->bytes, err);
    /* once, for ops leave columns behind their own alone */
    if (!rc && !c->o.plan)
        rc = sq_cuda_fail(c, write_ones(c, b->code.q + k_pad, stride, b->max_rows), "activations",
                          err);
    return rc;
}

static int make_floats(struct sq_cuda *c, struct sq_buf *b, struct sq_err *err)
{
    size_t n;
    void *p;
    if (b->cols > INT32_MAX || !sq_mul_size(b->max_rows, b->cols, &n) ||
        !sq_mul_size(n, sizeof(float), &b->bytes))
        return sq_fail(err, SQ_E_LIMIT, "activations: %zu x %zu is too large", b->max_rows,
                       b->cols);
    int rc = sq_cuda_alloc(c, SQ_CUDA_ACTS, b->bytes, "activations", &p, err);
    if (rc)
        return rc;
    b->f = p;
#ifdef SQ_GPU_POISON
    return 0; /* rows that nobody writes must not matter */
#else
    return sq_cuda_zero(c, p, b->bytes, err);
#endif
}

static void buf_free(struct sq_backend *be, struct sq_buf *b)
{
    struct sq_cuda *c = sq_cuda_of(be);
    if (!b)
        return;
    for (struct sq_buf **at = &c->bufs; *at; at = &(*at)->next)
        if (*at == b) {
            *at = b->next;
            break;
        }
    sq_cuda_free(c, SQ_CUDA_ACTS, b->kind == SQ_BUF_F32 ? b->f : b->code.row_scale, b->bytes);
    if (b->host)
        (void)cudaFreeHost(b->host);
    sq_free(b);
}

static int buf_new(struct sq_backend *be, enum sq_buf_kind kind, size_t max_rows, size_t cols,
                   struct sq_buf **ret, struct sq_err *err)
{
    struct sq_cuda *c = sq_cuda_of(be);
    struct sq_buf *b = sq_new(struct sq_buf);
    if (!b)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for activations");
    b->kind = kind;
    b->max_rows = max_rows;
    b->cols = cols;
    int rc = kind == SQ_BUF_F32 ? make_floats(c, b, err) : make_codes(c, b, err);
    if (rc) {
        buf_free(be, b);
        return rc;
    }
    b->next = c->bufs;
    c->bufs = b;
    *ret = b;
    return 0;
}

/* --- norms and rotary tables: vectors behind each other in one allocation --- */

static void norm_free(struct sq_backend *be, struct sq_norm *n)
{
    if (!n)
        return;
    sq_cuda_free(sq_cuda_of(be), SQ_CUDA_WEIGHTS, n->mem, n->bytes);
    sq_free(n);
}

/* One vector of the norm; one that is not there is zero. */
static int norm_vector(struct sq_cuda *c, const struct sq_norm *n, int i, const float *from,
                       const float **ret, struct sq_err *err)
{
    const size_t bytes = (size_t)n->n.dim * sizeof(float);
    uint8_t *at = (uint8_t *)n->mem + (size_t)i * sq_round_up(bytes, 16);
    *ret = (const float *)at;
    return from ? sq_cuda_upload(c, at, bytes, from, bytes, 1, err)
                : sq_cuda_zero(c, at, bytes, err);
}

static int norm_new(struct sq_backend *be, const struct sq_norm_desc *d, struct sq_norm **ret,
                    struct sq_err *err)
{
    struct sq_cuda *c = sq_cuda_of(be);
    struct sq_norm *n = sq_new(struct sq_norm);
    if (!n)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a norm");
    SQ_ASSERT(d->dim > 0 && d->dim <= INT32_MAX / 16);
    n->n = (struct sq_gpu_norm){.rms = d->kind == SQ_RMSNORM, .dim = (int)d->dim, .eps = d->eps};
    n->has_f = d->gamma != NULL;
    n->has_q = d->gamma_q != NULL;
    n->has_beta = d->beta_q != NULL;
    const float *const from[] = {d->gamma, d->beta, d->gamma_q, d->beta_q};
    const float **const to[] = {&n->n.gamma, &n->n.beta, &n->n.gamma_q, &n->n.beta_q};
    n->bytes = SQ_ARRAY_LEN(to) * sq_round_up(d->dim * sizeof(float), 16);
    int rc = sq_cuda_alloc(c, SQ_CUDA_WEIGHTS, n->bytes, "a norm", &n->mem, err);
    for (int i = 0; i < (int)SQ_ARRAY_LEN(to) && !rc; i++)
        rc = norm_vector(c, n, i, from[i], to[i], err);
    if (rc) {
        norm_free(be, n);
        return rc;
    }
    *ret = n;
    return 0;
}

static void rope_free(struct sq_backend *be, struct sq_rope *r)
{
    if (!r)
        return;
    sq_cuda_free(sq_cuda_of(be), SQ_CUDA_WEIGHTS, r->mem, r->bytes);
    sq_free(r);
}

static int rope_new(struct sq_backend *be, const struct sq_rope_desc *d, struct sq_rope **ret,
                    struct sq_err *err)
{
    struct sq_cuda *c = sq_cuda_of(be);
    struct sq_rope *r = sq_new(struct sq_rope);
    size_t n, bytes;
    if (!r)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for rotary tables");
    SQ_ASSERT(d->rot_dim % 2 == 0 && d->rot_dim > 0 && d->n_pos > 0);
    if (!sq_mul_size(d->n_pos, d->rot_dim / 2, &n) || !sq_mul_size(n, sizeof(float), &bytes) ||
        bytes > SIZE_MAX / 4) {
        sq_free(r);
        return sq_fail(err, SQ_E_LIMIT, "rotary tables of %zu positions are too large", d->n_pos);
    }
    r->n_pos = d->n_pos;
    r->bytes = 2 * sq_round_up(bytes, 16);
    int rc = sq_cuda_alloc(c, SQ_CUDA_WEIGHTS, r->bytes, "rotary tables", &r->mem, err);
    if (!rc) {
        float *cos = r->mem, *sin = (float *)((uint8_t *)r->mem + r->bytes / 2);
        r->r = (struct sq_gpu_rope){.cos = cos, .sin = sin, .rot_dim = (int)d->rot_dim};
        rc = sq_cuda_upload(c, cos, bytes, d->cos, bytes, 1, err);
        rc = rc ? rc : sq_cuda_upload(c, sin, bytes, d->sin, bytes, 1, err);
    }
    if (rc) {
        rope_free(be, r);
        return rc;
    }
    *ret = r;
    return 0;
}

/* --- the KV cache --- */

/* Bytes of one of the two halves; SIZE_MAX where it overflows. */
static size_t kv_half(const struct sq_kv_desc *d)
{
    size_t n = SQ_KV_BLOCK * sq_dtype_bytes(d->dtype);
    if (!sq_mul_size(n, d->head_dim, &n) || !sq_mul_size(n, d->n_kv_heads, &n) ||
        !sq_mul_size(n, d->n_blocks, &n) || !sq_mul_size(n, d->n_layers, &n) || n > SIZE_MAX / 4)
        return SIZE_MAX;
    return sq_round_up(n, SQ_CUDA_ALIGN);
}

static size_t kv_bytes(struct sq_backend *be, const struct sq_kv_desc *d)
{
    (void)be;
    size_t half = kv_half(d);
    return half == SIZE_MAX ? SIZE_MAX : 2 * half;
}

static void kv_free(struct sq_backend *be, struct sq_kv *kv)
{
    if (!kv)
        return;
    sq_cuda_free(sq_cuda_of(be), SQ_CUDA_KV, kv->kv.k, kv->bytes);
    sq_free(kv);
}

static int kv_new(struct sq_backend *be, const struct sq_kv_desc *d, struct sq_kv **ret,
                  struct sq_err *err)
{
    struct sq_cuda *c = sq_cuda_of(be);
    const size_t half = kv_half(d);
    if (half == SIZE_MAX || d->n_blocks > INT32_MAX)
        return sq_fail(err, SQ_E_LIMIT, "a KV cache of %zu blocks is too large", d->n_blocks);
    struct sq_kv *kv = sq_new(struct sq_kv);
    if (!kv)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the KV cache");
    kv->bytes = 2 * half;
    int rc = sq_cuda_alloc(c, SQ_CUDA_KV, kv->bytes, "the KV cache", &kv->kv.k, err);
    if (!rc) /* kernels read whole blocks, whatever stands behind the last token */
        rc = sq_cuda_zero(c, kv->kv.k, kv->bytes, err);
    if (rc) {
        kv_free(be, kv);
        return rc;
    }
    kv->kv = (struct sq_gpu_kv){.k = kv->kv.k,
                                .v = (uint8_t *)kv->kv.k + half,
                                .n_layers = (int)d->n_layers,
                                .n_blocks = (int)d->n_blocks,
                                .n_kv_heads = (int)d->n_kv_heads,
                                .head_dim = (int)d->head_dim,
                                .is_f32 = d->dtype == SQ_F32};
    *ret = kv;
    return 0;
}

/* --- the backend --- */

static void info(struct sq_backend *be, struct sq_device_info *ret)
{
    struct sq_cuda *c = sq_cuda_of(be);
    size_t used = 0;
    for (int k = 0; k < SQ_CUDA_N_CLASSES; k++)
        used += c->used_bytes[k];
    *ret = (struct sq_device_info){.name = "cuda", .mem_used_bytes = used};
    snprintf(ret->detail, sizeof ret->detail, "%.80s, compute %d.%d", c->name, c->capability / 10,
             c->capability % 10);
    if (!c->o.plan && cudaMemGetInfo(&ret->mem_free_bytes, &ret->mem_total_bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        ret->mem_free_bytes = ret->mem_total_bytes = 0;
    }
}

static const char *fault(struct sq_backend *be)
{
    return sq_cuda_of(be)->fault;
}

static void close_cuda(struct sq_backend *be)
{
    struct sq_cuda *c = sq_cuda_of(be);
    if (c->st)
        (void)cudaStreamSynchronize(c->st); /* what is on its way still reads pinned memory */
    sq_cuda_step_done(c);
    sq_lt_close(c->lt);
    sq_cuda_free(c, SQ_CUDA_WORK, c->small_work, c->small_bytes);
    sq_cuda_free(c, SQ_CUDA_WORK, c->lt_work, SQ_LT_WORKSPACE);
    sq_cuda_stage_done(c);
    for (int i = 0; i < 2; i++)
        if (c->timer[i])
            (void)cudaEventDestroy(c->timer[i]);
    if (c->st)
        (void)cudaStreamDestroy(c->st);
    sq_free(c);
}

const struct sq_backend_ops sq_cuda_ops = {
    .close = close_cuda,
    .info = info,
    .buf_new = buf_new,
    .buf_free = buf_free,
    .linear_new = sq_cuda_linear_new,
    .linear_put = sq_cuda_linear_put,
    .linear_finish = sq_cuda_linear_finish,
    .linear_free = sq_cuda_linear_free,
    .norm_new = norm_new,
    .norm_free = norm_free,
    .rope_new = rope_new,
    .rope_free = rope_free,
    .kv_new = kv_new,
    .kv_free = kv_free,
    .kv_bytes = kv_bytes,
    .reserve = sq_cuda_reserve,
    .step_begin = sq_cuda_step_begin,
    .step_end = sq_cuda_step_end,
    .embed = sq_cuda_embed,
    .norm = sq_cuda_norm,
    .quant_rows = sq_cuda_quant_rows,
    .linear = sq_cuda_linear,
    .rope = sq_cuda_rope,
    .swiglu = sq_cuda_swiglu,
    .kv_write = sq_cuda_kv_write,
    .attend = sq_cuda_attend,
    .gather = sq_cuda_gather,
    .argmax = sq_cuda_argmax,
    .observe = sq_cuda_observe,
    .view = sq_cuda_view,
    .sync = sq_cuda_sync,
    .fault = fault,
};
