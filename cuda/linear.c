/* Weights on the device, and the ways through a matmul:
 *   few rows            one kernel of our own streams the weights and does whatever follows (gemm_small.cu);
 *   more, int8 out      cuBLASLt writes the codes itself: scales by an alpha vector, the bias inside the accumulator by 32 more columns of
 *                       weights against constants behind the activations; where the library does not round to nearest even, or a bias is
 *                       beyond those columns' reach, as the next line;
 *   more, else          cuBLASLt writes s32, and one kernel does whatever follows (epilogue.cu);
 *   float weights       cuBLASLt in the weights' type with f32 sums; inputs are rounded to that type. */
#include "cuda/cuda.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/put.h"

/* --- storage --- */

static bool is_int8(const struct sq_linear *l)
{
    return l->d.dtype == SQ_I8;
}

static size_t weight_pitch(const struct sq_linear *l)
{
    return l->ld * sq_dtype_bytes(l->d.dtype);
}

/* weights | mul | bias | bias_acc, each 256-aligned, in one allocation */
static int alloc_all(struct sq_cuda *c, struct sq_linear *l, struct sq_err *err)
{
    size_t w;
    if (l->ld > INT32_MAX || l->n_pad > INT32_MAX || !sq_mul_size(l->n_pad, weight_pitch(l), &w) ||
        w > SIZE_MAX / 2)
        return sq_fail(err, SQ_E_LIMIT, "%s: [%zu, %zu] is too large", l->d.name, l->d.n_out,
                       l->d.n_in);
    w = sq_round_up(w, SQ_CUDA_ALIGN);
    const size_t v = sq_round_up(l->n_pad * sizeof(float), SQ_CUDA_ALIGN);
    l->bytes = w + (is_int8(l) ? 3 : 1) * v;
    int rc = sq_cuda_alloc(c, SQ_CUDA_WEIGHTS, l->bytes, l->d.name, &l->w, err);
    if (rc)
        return rc;
    uint8_t *at = (uint8_t *)l->w + w;
    l->bias = (float *)at;
    if (is_int8(l)) {
        l->mul = (float *)(at + v);
        l->bias_acc = (int32_t *)(at + 2 * v);
    }
    /* padding of rows and columns, and constants that are not given, are zero */
    rc = sq_cuda_zero(c, at, l->bytes - w, err);
    if (!rc && (l->n_pad > l->d.n_out || l->ld > l->d.n_in))
        rc = sq_cuda_zero(c, l->w, w, err);
    return rc;
}

int sq_cuda_linear_new(struct sq_backend *be, const struct sq_linear_desc *d,
                       struct sq_linear **ret, struct sq_err *err)
{
    struct sq_cuda *c = sq_cuda_of(be);
    const bool int8 = d->dtype == SQ_I8;
    const char *name = d->name ? d->name : "linear";
    SQ_ASSERT(d->n_out > 0 && d->n_in > 0 && (int8 || !d->dynamic));
    SQ_ASSERT(d->out != SQ_OUT_S8 || (int8 && !d->dynamic));
    SQ_ASSERT(!d->table || !int8);
    if (int8 && d->n_in > SQ_K_MAX)
        return sq_fail(err, SQ_E_LIMIT, "%s: %zu inputs, at most %d fit a 32-bit accumulator", name,
                       d->n_in, SQ_K_MAX);
    if (d->n_out > INT32_MAX / 4 || d->n_in > INT32_MAX / 4)
        return sq_fail(err, SQ_E_LIMIT, "%s: [%zu, %zu] is too large", name, d->n_out, d->n_in);
    struct sq_linear *l = sq_new(struct sq_linear);
    if (!l)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for %s", name);
    l->d = *d;
    l->d.name = sq_strdup(name);
    l->put = sq_calloc(d->n_out, 1);
    l->bias_cols = d->out == SQ_OUT_S8;
    l->k_pad = int8 ? sq_round_up(d->n_in, 16) : d->n_in;
    l->ld = l->k_pad + (l->bias_cols ? SQ_LT_BIAS_COLS : 0);
    l->n_pad = int8 ? sq_round_up(d->n_out, 4) : d->n_out;
    int rc = l->d.name && l->put ? alloc_all(c, l, err)
                                 : sq_fail(err, SQ_E_NOMEM, "out of memory for %s", name);
    if (rc) {
        sq_cuda_linear_free(be, l);
        return rc;
    }
    l->next = c->linears;
    c->linears = l;
    *ret = l;
    return 0;
}

int sq_cuda_linear_put(struct sq_backend *be, struct sq_linear *l, size_t row0, size_t n_rows,
                       const void *rows, struct sq_err *err)
{
    int rc = sq_put_check(l->put, &l->d, row0, n_rows, err);
    if (!rc)
        rc = sq_cuda_upload(sq_cuda_of(be), (uint8_t *)l->w + row0 * weight_pitch(l),
                            weight_pitch(l), rows, l->d.n_in * sq_dtype_bytes(l->d.dtype), n_rows,
                            err);
    if (!rc)
        sq_put_mark(l->put, &l->n_put, row0, n_rows);
    return rc;
}

/* The digits of every bias behind its row of weights; clears bias_cols where one does not fit. */
static int put_bias_columns(struct sq_cuda *c, struct sq_linear *l, const int32_t *bias,
                            struct sq_err *err)
{
    const size_t n = l->d.n_out;
    int8_t *digits = sq_calloc(n, SQ_LT_BIAS_COLS);
    if (!digits)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for %s", l->d.name);
    for (size_t i = 0; i < n && l->bias_cols && bias; i++) {
        l->bias_cols = sq_lt_bias_fits(bias[i], (int)l->d.n_in);
        if (l->bias_cols)
            sq_lt_bias_digits(bias[i], digits + i * SQ_LT_BIAS_COLS);
    }
    int rc = !l->bias_cols ? 0
                           : sq_cuda_upload(c, (uint8_t *)l->w + l->k_pad, l->ld, digits,
                                            SQ_LT_BIAS_COLS, n, err);
    sq_free(digits);
    return rc;
}

int sq_cuda_linear_finish(struct sq_backend *be, struct sq_linear *l, const struct sq_epilogue *e,
                          struct sq_err *err)
{
    struct sq_cuda *c = sq_cuda_of(be);
    const size_t n = l->d.n_out, bytes = n * sizeof(float);
    int rc = sq_put_check_finish(l->put, l->n_put, &l->d, err);
    if (rc)
        return rc;
    if (is_int8(l)) {
        SQ_ASSERT(e && e->mul);
        rc = sq_cuda_upload(c, l->mul, bytes, e->mul, bytes, 1, err);
    }
    if (!rc && l->d.out == SQ_OUT_S8) {
        if (e->bias_acc)
            rc = sq_cuda_upload(c, l->bias_acc, bytes, e->bias_acc, bytes, 1, err);
        rc = rc ? rc : put_bias_columns(c, l, e->bias_acc, err);
    } else if (!rc && e && e->bias) {
        rc = sq_cuda_upload(c, l->bias, bytes, e->bias, bytes, 1, err);
    }
    if (rc)
        return rc;
    sq_free(l->put);
    l->put = NULL;
    return 0;
}

void sq_cuda_linear_free(struct sq_backend *be, struct sq_linear *l)
{
    struct sq_cuda *c = sq_cuda_of(be);
    if (!l)
        return;
    for (struct sq_linear **at = &c->linears; *at; at = &(*at)->next)
        if (*at == l) {
            *at = l->next;
            break;
        }
    sq_cuda_free(c, SQ_CUDA_WEIGHTS, l->w, l->bytes);
    sq_free(l->put);
    sq_free((char *)l->d.name);
    sq_free(l);
}

/* --- what a step needs of it --- */

/* Does the library write the codes itself? */
static bool direct(const struct sq_cuda *c, const struct sq_linear *l)
{
    return l->d.out == SQ_OUT_S8 && l->bias_cols && sq_lt_rounding(c->lt) == SQ_LT_RNE;
}

size_t sq_cuda_linear_scratch(const struct sq_linear *l, size_t n_rows)
{
    return n_rows * l->n_pad * sizeof(int32_t);
}

size_t sq_cuda_linear_convert(const struct sq_linear *l, size_t n_rows)
{
    return n_rows * l->ld * (is_int8(l) ? 1 : l->d.dtype == SQ_F32 ? 4 : 2);
}

/* Rows that go through scratch at once. */
static int part_rows(const struct sq_cuda *c, const struct sq_linear *l, int n_rows)
{
    size_t most = c->scratch_bytes / (l->n_pad * sizeof(int32_t));
    SQ_ASSERT(most > 0);
    if (most >= (size_t)n_rows)
        return n_rows;
    return (int)(most > 128 ? most / 128 * 128 : most);
}

static struct sq_lt_mm matmul_of(const struct sq_linear *l, const void *x, int ldx, int n_rows,
                                 void *y, int ldy)
{
    return (struct sq_lt_mm){.w = l->w,
                             .x = x,
                             .ldw = (int)l->ld,
                             .ldx = ldx,
                             .ldy = ldy,
                             .n_out = (int)l->n_pad,
                             .k = (int)l->k_pad,
                             .n_rows = n_rows,
                             .dtype = l->d.dtype,
                             .y = y};
}

int sq_cuda_linear_prepare(struct sq_cuda *c, struct sq_linear *l, int max_rows, struct sq_err *err)
{
    const int most = direct(c, l) ? max_rows : part_rows(c, l, max_rows);
    int rc = 0;
    /* where our kernel is not compared with the library, the library is not asked for what our kernel takes */
    int least = is_int8(l) && !c->is_timed ? SQ_GPU_SMALL_MAX + 1 : 1;
    for (int n = least; n <= most && !rc; n++) {
        n = sq_lt_bucket(n);
        int rows = SQ_MIN(n, most);
        struct sq_lt_mm m = matmul_of(l, c->convert, (int)l->ld, rows, c->scratch, (int)l->n_pad);
        if (direct(c, l)) {
            m.k += SQ_LT_BIAS_COLS;
            m.alpha = l->mul;
        }
        rc = sq_lt_prepare(c->lt, &m, err);
    }
    return rc || !is_int8(l) || !c->is_timed ? rc : sq_cuda_choose(c, l, max_rows, err);
}

/* --- one matmul --- */

static struct sq_gpu_finish finish_of(const struct sq_linear *l, const struct sq_buf *x, int n_rows,
                                      struct sq_buf *y, int epi, float inv_step)
{
    return (struct sq_gpu_finish){.n_rows = n_rows,
                                  .n_out = (int)l->d.n_out,
                                  .epi = epi,
                                  .x_scale = l->d.dynamic ? x->code.row_scale : NULL,
                                  .mul = l->mul,
                                  .bias = l->bias,
                                  .bias_acc = l->bias_acc,
                                  .inv_step = inv_step,
                                  .y = y->kind == SQ_BUF_F32 ? y->f : NULL,
                                  .y_q = y->code,
                                  .ld_y = (int)y->cols};
}

/* Into the chain. */
static int run_small(struct sq_cuda *c, struct sq_linear *l, struct sq_buf *x, int n_rows,
                     struct sq_buf *y, int epi, float inv_step, const struct sq_norm *norm,
                     const float *norm_x)
{
    struct sq_cuda_chain *ch = &c->chain;
    if (ch->n == SQ_GPU_CHAIN || (ch->n && ch->g[0].n_rows != n_rows)) {
        int rc = sq_cuda_flush_chain(c);
        if (rc)
            return rc;
    }
    struct sq_gpu_norm *n = &ch->norm[ch->n];
    if (norm)
        *n = norm->n;
    if (norm && !norm->has_beta)
        n->beta_q = NULL; /* every block reads it: zeros need not be read */
    ch->name = ch->n ? ch->name : l->d.name;
    ch->g[ch->n++] = (struct sq_gpu_gemm){.w = l->w,
                                          .ldw = (int)l->ld,
                                          .n_out = (int)l->d.n_out,
                                          .k = (int)l->k_pad,
                                          .n_rows = n_rows,
                                          .x = x->code,
                                          .to = finish_of(l, x, n_rows, y, epi, inv_step),
                                          .norm = norm ? n : NULL,
                                          .norm_x = norm_x,
                                          .work = c->small_work};
    return 0;
}

static int run_direct(struct sq_cuda *c, struct sq_linear *l, struct sq_buf *x, int n_rows,
                      struct sq_buf *y, int epi)
{
    struct sq_lt_mm m = matmul_of(l, x->code.q, x->code.stride, n_rows, y->code.q, y->code.stride);
    m.k += SQ_LT_BIAS_COLS;
    m.alpha = l->mul;
    int rc = sq_cuda_check_lt(c, sq_lt_matmul(c->lt, &m), l->d.name);
    if (!rc && epi == SQ_EPI_S8_RELU)
        rc = sq_cuda_check(c, sq_gpu_relu_s8(c->st, y->code, n_rows, (int)l->d.n_out), l->d.name);
    return rc;
}

static void advance(struct sq_gpu_finish *f, int rows, const struct sq_buf *y)
{
    f->x_scale = f->x_scale ? f->x_scale + rows : NULL;
    f->y = f->y ? f->y + (size_t)rows * y->cols : NULL;
    f->y_q.q = f->y_q.q ? f->y_q.q + (size_t)rows * (size_t)f->y_q.stride : NULL;
    f->y_q.row_scale = f->y_q.row_scale ? f->y_q.row_scale + rows : NULL;
}

/* Through s32. A residual add that fits scratch whole waits for the norm that may follow. */
static int run_s32(struct sq_cuda *c, struct sq_linear *l, struct sq_buf *x, int n_rows,
                   struct sq_buf *y, int epi, float inv_step)
{
    struct sq_gpu_finish f = finish_of(l, x, n_rows, y, epi, inv_step);
    const int part = part_rows(c, l, n_rows);
    f.acc = c->scratch;
    f.ld_acc = (int)l->n_pad;
    int rc = 0;
    for (int r = 0; r < n_rows && !rc; r += part) {
        f.n_rows = SQ_MIN(part, n_rows - r);
        const struct sq_lt_mm m = matmul_of(l, x->code.q + (size_t)r * (size_t)x->code.stride,
                                            x->code.stride, f.n_rows, c->scratch, (int)l->n_pad);
        rc = sq_cuda_check_lt(c, sq_lt_matmul(c->lt, &m), l->d.name);
        if (!rc && epi == SQ_EPI_ADD && part == n_rows) {
            c->wait = (struct sq_cuda_wait){
                .kind = SQ_PEND_ADD, .l = l, .y = y, .n_rows = n_rows, .add = f};
            return 0;
        }
        rc = rc ? rc : sq_cuda_check(c, sq_gpu_finish(c->st, &f), l->d.name);
        advance(&f, f.n_rows, y);
    }
    return rc;
}

static int run_float(struct sq_cuda *c, struct sq_linear *l, struct sq_buf *x, int n_rows,
                     struct sq_buf *y, int epi)
{
    const int part = part_rows(c, l, n_rows), k = (int)l->d.n_in, n = (int)l->d.n_out;
    int rc = 0;
    for (int r = 0; r < n_rows && !rc; r += part) {
        const int rows = SQ_MIN(part, n_rows - r);
        const float *from = x->f + (size_t)r * x->cols;
        const void *in = from;
        if (l->d.dtype != SQ_F32) {
            in = c->convert;
            rc = sq_cuda_check(
                c, sq_gpu_convert(c->st, from, rows, k, c->convert, (int)l->d.dtype, k), l->d.name);
        }
        const struct sq_lt_mm m = matmul_of(l, in, k, rows, c->scratch, n);
        if (!rc)
            rc = sq_cuda_check_lt(c, sq_lt_matmul(c->lt, &m), l->d.name);
        if (!rc)
            rc = sq_cuda_check(c,
                               sq_gpu_finish_float(c->st, c->scratch, rows, n, l->bias, epi,
                                                   y->f + (size_t)r * y->cols),
                               l->d.name);
    }
    return rc;
}

int sq_cuda_linear_way(struct sq_cuda *c, struct sq_linear *l, struct sq_buf *x, int n_rows,
                       struct sq_buf *y, int epi, bool small)
{
    if (small) {
        int rc = run_small(c, l, x, n_rows, y, epi, 0.0f, NULL, NULL);
        return rc ? rc : sq_cuda_flush_chain(c);
    }
    return direct(c, l) ? run_direct(c, l, x, n_rows, y, epi)
                        : run_s32(c, l, x, n_rows, y, epi, 0.0f);
}

int sq_cuda_linear_run(struct sq_cuda *c, struct sq_linear *l, struct sq_buf *x, int n_rows,
                       struct sq_buf *y, int epi, float inv_step, const struct sq_norm *norm,
                       const float *norm_x)
{
    /* with SwiGLU the library's way writes and reads twice the outputs in s32: its time was never the better one */
    const bool gated = epi == SQ_EPI_SWIGLU_S8 || epi == SQ_EPI_SWIGLU_F32;
    if (is_int8(l) && (sq_cuda_use_small(l, n_rows) || (gated && n_rows <= SQ_GPU_SMALL_MAX)))
        return run_small(c, l, x, n_rows, y, epi, inv_step, norm, norm_x);
    SQ_ASSERT(!norm);
    int rc = sq_cuda_flush_chain(c);
    if (rc)
        return rc;
    if (!is_int8(l))
        return run_float(c, l, x, n_rows, y, epi);
    if (direct(c, l))
        return run_direct(c, l, x, n_rows, y, epi);
    return run_s32(c, l, x, n_rows, y, epi, inv_step);
}
