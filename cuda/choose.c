/* Up to SQ_GPU_SMALL_MAX rows: our own kernel or the library? Timed once per shape and bucket of rows at the start, on a real device: the
 * library's way with everything that follows it, so that no bucket is slower than it has to be. Where nothing is timed, our own kernel
 * has them all. */
#include "cuda/cuda.h"
#include "cuda/timing.h"
#include "engine/base/check.h"
#include "engine/base/num.h"

enum { LAUNCHES = 8, ROUNDS = 5 };

/* Buckets up to SQ_GPU_SMALL_MAX, by number. */
static int bucket_number(int n_rows)
{
    int i = 0;
    for (int n = 1; n < n_rows && n < SQ_GPU_SMALL_MAX; n = sq_lt_bucket(n + 1))
        i++;
    return i;
}

bool sq_cuda_use_small(const struct sq_linear *l, int n_rows)
{
    return n_rows <= SQ_GPU_SMALL_MAX && !(l->lt_buckets >> bucket_number(n_rows) & 1);
}

/* What is timed: l on n_rows rows of zeros in the convert buffer, results to scratch behind the library's own. */
struct trial {
    struct sq_cuda *c;
    struct sq_linear *l;
    struct sq_buf x, y;
    int n_rows;
    bool small;
};

static int run_once(void *ctx)
{
    struct trial *t = ctx;
    const int epi = t->l->d.out == SQ_OUT_S8 ? SQ_EPI_S8_RELU : SQ_EPI_F32;
    return sq_cuda_linear_way(t->c, t->l, &t->x, t->n_rows, &t->y, epi, t->small);
}

static const struct sq_linear *same_shape(const struct sq_cuda *c, const struct sq_linear *l)
{
    for (const struct sq_linear *o = c->linears; o != l; o = o->next)
        if (o->d.dtype == SQ_I8 && o->d.n_out == l->d.n_out && o->d.n_in == l->d.n_in &&
            o->d.out == l->d.out && o->d.dynamic == l->d.dynamic && o->bias_cols == l->bias_cols)
            return o;
    return NULL;
}

/* Inputs and results of a trial within the backend's own scratch; false: it is too small for n_rows. */
static bool place(struct trial *t)
{
    struct sq_cuda *c = t->c;
    const struct sq_linear *l = t->l;
    const size_t rows = (size_t)t->n_rows, acc = rows * l->n_pad * sizeof(int32_t);
    const size_t stride_x = l->k_pad + SQ_LT_BIAS_COLS;
    const size_t stride_y = sq_round_up(l->n_pad, 16) + SQ_LT_BIAS_COLS;
    if (rows * (stride_x + sizeof(float)) > c->convert_bytes || 2 * acc > c->scratch_bytes)
        return false;
    int8_t *in = c->convert, *out = (int8_t *)c->scratch + acc;
    t->x = (struct sq_buf){.kind = SQ_BUF_S8, .max_rows = rows, .cols = l->d.n_in};
    t->x.code = (struct sq_gpu_codes){
        .q = in, .row_scale = (float *)(in + rows * stride_x), .stride = (int)stride_x};
    t->y = (struct sq_buf){.max_rows = rows, .cols = l->d.n_out};
    if (l->d.out == SQ_OUT_S8) {
        t->y.kind = SQ_BUF_S8;
        t->y.code = (struct sq_gpu_codes){.q = out, .stride = (int)stride_y};
        return rows * stride_y <= acc;
    }
    t->y.kind = SQ_BUF_F32;
    t->y.f = (float *)out;
    return true;
}

int sq_cuda_choose(struct sq_cuda *c, struct sq_linear *l, int max_rows, struct sq_err *err)
{
    const struct sq_linear *known = same_shape(c, l);
    if (known) {
        l->lt_buckets = known->lt_buckets;
        return 0;
    }
    int rc = 0;
    for (int n = 1, i = 0; n <= SQ_MIN(max_rows, SQ_GPU_SMALL_MAX); n = sq_lt_bucket(n + 1), i++) {
        struct trial t = {.c = c, .l = l, .n_rows = n};
        float ms[2];
        if (!place(&t))
            continue;
        for (int small = 0; small < 2 && !rc; small++) {
            t.small = small;
            rc = sq_cuda_time(c, run_once, &t, ROUNDS, LAUNCHES, &ms[small]);
        }
        if (rc)
            return sq_fail(err, SQ_E_DEVICE, "timing %s at %d rows: %s", l->d.name, n, c->fault);
        l->lt_buckets &= ~(1u << i);
        l->small_ms[i] = ms[1];
        l->lt_ms[i] = ms[0];
        l->lt_buckets |= ms[0] < ms[1] ? 1u << i : 0;
    }
    return 0;
}

void sq_cuda_choices(struct sq_backend *be, sq_gpu_choice_fn *each, void *ctx)
{
    const struct sq_cuda *c = sq_cuda_of(be);
    for (const struct sq_linear *l = c->linears; l; l = l->next) {
        if (l->d.dtype != SQ_I8 || same_shape(c, l))
            continue;
        for (int n = 1, i = 0; n <= SQ_GPU_SMALL_MAX; n = sq_lt_bucket(n + 1), i++) {
            const struct sq_gpu_choice choice = {.name = l->d.name,
                                                 .n_out = l->d.n_out,
                                                 .n_in = l->d.n_in,
                                                 .n_rows = n,
                                                 .own = sq_cuda_use_small(l, n),
                                                 .own_us = (double)l->small_ms[i] * 1e3,
                                                 .library_us = (double)l->lt_ms[i] * 1e3};
            each(ctx, &choice);
        }
    }
}
