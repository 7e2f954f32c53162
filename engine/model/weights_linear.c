#include <math.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/model/load.h"
#include "engine/quant.h"

/* One linear while it is made: the plan, what the source has for it, and the constants of its epilogue. */
struct build {
    struct sq_loader *ld;
    const struct sq_linear_plan *p;
    struct sq_linear_desc d;
    char names[3][SQ_NAME_BYTES]; /* of the weights */
    struct sq_tensor_info t[3];
    size_t row0[4];  /* where each role's rows begin, and the end */
    bool dequantise; /* int8 weights for a float linear: project_in and project_out */
    float *scales, *mul, *bias;
    int32_t *bias_acc;
};

static int find_weights(struct build *b)
{
    const struct sq_linear_plan *p = b->p;
    for (int i = 0; i < p->n_roles; i++) {
        if (!sq_load_find(b->ld, p->roles[i], p->layer, SQ_P_WEIGHT, b->names[i], &b->t[i]))
            return sq_fail(b->ld->err, SQ_E_NOTFOUND, "tensor '%.128s': C4: missing", b->names[i]);
        b->row0[i + 1] = b->row0[i] + b->t[i].shape[0];
    }
    return 0;
}

/* Float weights stay as stored; those of one fused matrix that differ in type meet in f32. */
static void choose_type(struct build *b)
{
    enum sq_dtype t = b->t[0].dtype;
    for (int i = 1; i < b->p->n_roles; i++)
        if (b->t[i].dtype != t)
            t = SQ_F32;
    b->dequantise =
        t == SQ_I8 && (b->p->roles[0] == SQ_R_PROJECT_IN || b->p->roles[0] == SQ_R_PROJECT_OUT);
    b->d = (struct sq_linear_desc){.name = b->p->name ? b->p->name : b->names[0],
                                   .n_out = b->row0[b->p->n_roles],
                                   .n_in = b->t[0].shape[1],
                                   .dtype = b->dequantise ? SQ_F32 : t,
                                   .out = b->p->out,
                                   .act = b->p->act,
                                   .table = b->p->table};
    b->d.dynamic = b->d.dtype == SQ_I8 && !(b->p->in_step > 0);
}

/* a0 a1 ... b0 b1 ... -> a0 b0 a1 b1 ..., for what a plan with pairs has per row. */
static int interleave(struct build *b, float *v)
{
    size_t n = b->d.n_out / 2;
    if (!b->p->pairs || !v)
        return 0;
    SQ_AUTO_FREE float *was = sq_memdup(v, 2 * n * sizeof *v);
    if (!was)
        return sq_fail(b->ld->err, SQ_E_NOMEM, "%s: out of memory", b->d.name);
    for (size_t i = 0; i < n; i++) {
        v[2 * i] = was[i];
        v[2 * i + 1] = was[n + i];
    }
    return 0;
}

/* Biases of all roles; b->bias stays NULL where the model has none. */
static int load_bias(struct build *b)
{
    char name[SQ_NAME_BYTES];
    struct sq_tensor_info t;
    for (int i = 0; i < b->p->n_roles; i++) {
        enum sq_role role = b->p->roles[i];
        if (sq_expect(b->ld->c, role, SQ_P_BIAS).need == SQ_NEED_NOT)
            continue;
        if (!b->bias && !(b->bias = sq_calloc(b->d.n_out, sizeof *b->bias)))
            return sq_fail(b->ld->err, SQ_E_NOMEM, "%s: out of memory", b->d.name);
        (void)sq_load_find(b->ld, role, b->p->layer, SQ_P_BIAS, name, &t);
        int r = sq_load_vector(b->ld, name, b->bias + b->row0[i], b->row0[i + 1] - b->row0[i]);
        if (r)
            return r;
    }
    return interleave(b, b->bias);
}

/* The formulas of quant.h for row n; step: of the output, 1 for float outputs. */
static int set_row(struct build *b, size_t n, float step)
{
    float s_in = b->d.dynamic ? 1.0f : b->p->in_step, unit = s_in * b->scales[n];
    b->mul[n] = unit / step;
    if (!sq_scale_ok(unit) || !sq_scale_ok(b->mul[n]))
        return sq_fail(b->ld->err, SQ_E_FORMAT,
                       "%s: Q3: row %zu: input step %g, weight scale %g, output step %g make no "
                       "normal multiplier",
                       b->d.name, n, (double)s_in, (double)b->scales[n], (double)step);
    if (b->d.out != SQ_OUT_S8 || !b->bias)
        return 0;
    double acc = nearbyint((double)b->bias[n] / ((double)s_in * (double)b->scales[n]));
    double room = (double)INT32_MAX - 128.0 * 127.0 * (double)b->d.n_in;
    if (!(fabs(acc) <= room))
        return sq_fail(b->ld->err, SQ_E_FORMAT,
                       "%s: Q6: row %zu: bias %g is %.0f units of the accumulator, which has room "
                       "for %.0f",
                       b->d.name, n, (double)b->bias[n], acc, room);
    b->bias_acc[n] = (int32_t)acc;
    return 0;
}

static int make_epilogue(struct build *b)
{
    size_t n = b->d.n_out;
    b->scales = sq_malloc(2 * n * sizeof *b->scales);
    b->bias_acc = b->d.out == SQ_OUT_S8 ? sq_calloc(n, sizeof *b->bias_acc) : NULL;
    if (!b->scales || (b->d.out == SQ_OUT_S8 && !b->bias_acc))
        return sq_fail(b->ld->err, SQ_E_NOMEM, "%s: out of memory", b->d.name);
    b->mul = b->scales + n;
    int r = 0;
    for (int i = 0; !r && i < b->p->n_roles; i++)
        r = sq_load_weight_scales(b->ld, b->p->roles[i], b->p->layer, b->scales + b->row0[i],
                                  b->row0[i + 1] - b->row0[i]);
    if (!r)
        r = interleave(b, b->scales);
    for (int i = 0; !r && i < b->p->n_roles; i++)
        for (size_t k = b->row0[i]; !r && !b->dequantise && k < b->row0[i + 1]; k++)
            r = set_row(b, k, b->d.out == SQ_OUT_S8 ? b->p->out_step[i] : 1.0f);
    return r;
}

/* Makes f32 of n rows in the stage. */
static void to_f32(struct build *b, int i, size_t row, size_t n)
{
    float *f = (float *)(void *)b->ld->stage;
    size_t k = b->d.n_in, size = sq_dtype_bytes(b->t[i].dtype);
    memmove(b->ld->stage + n * k * (4 - size), b->ld->stage, n * k * size);
    sq_widen_in_place(b->t[i].dtype, n * k, f);
    for (size_t r = 0; b->dequantise && r < n; r++)
        for (size_t c = 0; c < k; c++)
            f[r * k + c] *= b->scales[row + r];
}

static int put_role(struct build *b, int i, struct sq_linear *l)
{
    struct sq_loader *ld = b->ld;
    if (ld->o->sizes_only)
        return sq_load_stopped(ld);
    bool widen = b->d.dtype != b->t[i].dtype;
    size_t rows = b->t[i].shape[0], at_once = sq_load_rows_at_once(&b->t[i], widen);
    for (size_t row = 0; row < rows; row += at_once) {
        size_t n = SQ_MIN(at_once, rows - row);
        int r = sq_load_rows(ld, b->names[i], &b->t[i], row, n);
        if (r)
            return r;
        if (widen)
            to_f32(b, i, row, n);
        r = ld->be->ops->linear_put(ld->be, l, b->row0[i] + row, n, ld->stage, ld->err);
        if (r)
            return r;
        sq_load_progress(ld, n * b->d.n_in);
    }
    return sq_load_stopped(ld);
}

/* Rows of two roles in turn: both come to the first half of the stage, one after the other, and go from there to their places in the second. */
static int put_pairs(struct build *b, struct sq_linear *l)
{
    struct sq_loader *ld = b->ld;
    if (ld->o->sizes_only)
        return sq_load_stopped(ld);
    const size_t row_bytes = b->d.n_in * sq_dtype_bytes(b->d.dtype), n_rows = b->t[0].shape[0];
    const size_t at_once = SQ_STAGE_BYTES / 4 / row_bytes;
    unsigned char *half = ld->stage + SQ_STAGE_BYTES / 2;
    SQ_ASSERT(at_once); /* rows are at most SQ_K_MAX elements */
    for (size_t row = 0; row < n_rows; row += at_once) {
        size_t n = SQ_MIN(at_once, n_rows - row);
        for (int i = 0; i < 2; i++) {
            int r = sq_load_rows(ld, b->names[i], &b->t[i], row, n);
            if (r)
                return r;
            if (b->d.dtype != b->t[i].dtype)
                to_f32(b, i, row, n);
            for (size_t k = 0; k < n; k++)
                memcpy(half + (2 * k + (size_t)i) * row_bytes, ld->stage + k * row_bytes,
                       row_bytes);
        }
        int r = ld->be->ops->linear_put(ld->be, l, 2 * row, 2 * n, half, ld->err);
        if (r)
            return r;
        sq_load_progress(ld, 2 * n * b->d.n_in);
    }
    return sq_load_stopped(ld);
}

static int build_linear(struct build *b, struct sq_linear **ret)
{
    struct sq_loader *ld = b->ld;
    const struct sq_backend_ops *ops = ld->be->ops;
    bool s8 = b->d.out == SQ_OUT_S8, codes = b->d.dtype == SQ_I8;
    int r = load_bias(b);
    if (!r && (codes || b->dequantise))
        r = make_epilogue(b);
    struct sq_linear *l = NULL;
    if (!r)
        r = ops->linear_new(ld->be, &b->d, &l, ld->err);
    if (!r && b->p->pairs)
        r = put_pairs(b, l);
    for (int i = 0; !r && !b->p->pairs && i < b->p->n_roles; i++)
        r = put_role(b, i, l);
    struct sq_epilogue e = {.mul = codes ? b->mul : NULL,
                            .bias = s8 ? NULL : b->bias,
                            .bias_acc = s8 && b->bias ? b->bias_acc : NULL};
    if (!r && !ld->o->sizes_only)
        r = ops->linear_finish(ld->be, l, &e, ld->err);
    if (r) {
        ops->linear_free(ld->be, l);
        return r;
    }
    ld->m->weight_bytes += b->d.n_out * b->d.n_in * sq_dtype_bytes(b->d.dtype) +
                           b->d.n_out * ((codes ? 4u : 0u) + (b->bias ? 4u : 0u));
    *ret = l;
    return 0;
}

int sq_load_linear(struct sq_loader *ld, const struct sq_linear_plan *p, struct sq_linear **ret)
{
    struct build b = {.ld = ld, .p = p};
    int r = find_weights(&b);
    if (!r) {
        choose_type(&b);
        r = build_linear(&b, ret);
    }
    sq_free(b.scales);
    sq_free(b.bias);
    sq_free(b.bias_acc);
    return r;
}
