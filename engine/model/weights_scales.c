/* Scales of int8 checkpoints: rules Q2 (shape, checked by C4's pass), Q3 and Q4 (value), Q5 (zero points). */
#include <math.h>
#include <string.h>

#include "engine/model/load.h"
#include "engine/quant.h"

static int check_scale(struct sq_loader *ld, const char *name, size_t i, float s)
{
    if (sq_scale_ok(s))
        return 0;
    if (s == 0)
        return sq_fail(ld->err, SQ_E_FORMAT, "tensor '%.128s': Q4: scale %zu is zero", name, i);
    return sq_fail(ld->err, SQ_E_FORMAT,
                   "tensor '%.128s': Q3: scale %zu is %g, expected a positive normal number", name,
                   i, (double)s);
}

static int check_zero_points(struct sq_loader *ld, enum sq_role role, int layer, enum sq_part part)
{
    char name[SQ_NAME_BYTES];
    struct sq_tensor_info t;
    if (!sq_load_find(ld, role, layer, part, name, &t))
        return 0;
    size_t rows = sq_tensor_rows(&t), at_once = sq_load_rows_at_once(&t, false);
    for (size_t row = 0; row < rows; row += at_once) {
        size_t n = rows - row < at_once ? rows - row : at_once;
        int r = ld->src->ops->read(ld->src, name, row, n, ld->stage, ld->err);
        if (r)
            return r;
        for (size_t i = 0; i < n; i++)
            if (ld->stage[i])
                return sq_fail(ld->err, SQ_E_NOTSUP,
                               "tensor '%.128s': Q5: zero point %zu is %d: asymmetric quantisation "
                               "is not supported",
                               name, row + i, (int8_t)ld->stage[i]);
    }
    return 0;
}

int sq_load_weight_scales(struct sq_loader *ld, enum sq_role role, int layer, float *dst,
                          size_t n_rows)
{
    char name[SQ_NAME_BYTES];
    struct sq_tensor_info t;
    int r = check_zero_points(ld, role, layer, SQ_P_WEIGHT_ZERO);
    if (r)
        return r;
    if (!sq_load_find(ld, role, layer, SQ_P_WEIGHT_SCALE, name, &t))
        return sq_fail(ld->err, SQ_E_FORMAT, "tensor '%.128s': C4: missing beside int8 weights",
                       name);
    size_t n = t.n_elems;
    r = sq_source_read_f32(ld->src, name, 0, sq_tensor_rows(&t), dst, ld->err);
    for (size_t i = 0; !r && i < n; i++)
        r = check_scale(ld, name, i, dst[i]);
    for (size_t i = n; !r && i < n_rows; i++)
        dst[i] = dst[0]; /* one for the whole tensor */
    return r;
}

/* One per-tensor step. Returns 1 if the source has none. */
static int read_step(struct sq_loader *ld, enum sq_role role, int layer, enum sq_part part,
                     float *ret)
{
    char name[SQ_NAME_BYTES];
    struct sq_tensor_info t;
    if (!sq_load_find(ld, role, layer, part, name, &t))
        return 1;
    float s;
    int r = sq_source_read_f32(ld->src, name, 0, 1, &s, ld->err);
    if (!r)
        r = check_scale(ld, name, 0, s);
    if (!r)
        *ret = s;
    return r;
}

static const char *last_part(const char *path)
{
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

/* Linears that read the same codes must have equal steps; only a writer that calibrated them apart makes others. */
static int read_shared_step(struct sq_loader *ld, const enum sq_role *roles, int n, int layer,
                            float *ret)
{
    float first = 0, s = 0;
    for (int i = 0; i < n; i++) {
        int r = check_zero_points(ld, roles[i], layer, SQ_P_INPUT_ZERO);
        if (!r)
            r = read_step(ld, roles[i], layer, SQ_P_INPUT_SCALE, &s);
        if (r)
            return r;
        first = i ? first : s;
        if (s != first)
            return sq_fail(ld->err, SQ_E_NOTSUP,
                           "layer %d: %s and %s have input scales %g and %g; only equal ones are "
                           "supported",
                           layer, last_part(ld->c->family->names[roles[0]]),
                           last_part(ld->c->family->names[roles[i]]), (double)first, (double)s);
    }
    *ret = first;
    return 0;
}

static int read_input_steps(struct sq_loader *ld, int layer)
{
    static const enum sq_role qkv[] = {SQ_R_Q, SQ_R_K, SQ_R_V}, o[] = {SQ_R_O},
                              up[] = {SQ_R_UP, SQ_R_GATE}, down[] = {SQ_R_DOWN};
    struct sq_layer *l = &ld->m->layers[layer];
    int r = read_shared_step(ld, qkv, 3, layer, &l->qkv_step);
    if (!r)
        r = read_shared_step(ld, o, 1, layer, &l->o_step);
    if (!r)
        r = read_shared_step(ld, up, ld->c->family->names[SQ_R_GATE] ? 2 : 1, layer, &l->up_step);
    return r ? r : read_shared_step(ld, down, 1, layer, &l->down_step);
}

/* The steps beyond the standard format: all of them or none. *ret_n counts those found. */
static int read_output_steps(struct sq_loader *ld, float (*steps)[3], int *ret_n)
{
    static const enum sq_role roles[] = {SQ_R_Q, SQ_R_K, SQ_R_V};
    char missing[SQ_NAME_BYTES] = "";
    int n = 0;
    for (int layer = 0; layer < ld->c->n_layers; layer++)
        for (int i = 0; i < 3; i++) {
            int r = read_step(ld, roles[i], layer, SQ_P_OUTPUT_SCALE, &steps[layer][i]);
            if (r < 0)
                return r;
            n += r == 0;
            if (r && !missing[0])
                sq_family_name(ld->c->family, ld->prefix, roles[i], layer, ".output_scale", missing,
                               sizeof missing);
        }
    if (n && missing[0])
        return sq_fail(ld->err, SQ_E_FORMAT,
                       "C4: %d of %d output scales of q, k, v are there, but not '%.128s'", n,
                       3 * ld->c->n_layers, missing);
    *ret_n = n;
    return 0;
}

static int set_attention(struct sq_loader *ld, int layer, const float *out)
{
    struct sq_layer *l = &ld->m->layers[layer];
    float root = sqrtf((float)ld->c->head_dim);
    l->attn = (struct sq_attn){.layer = layer,
                               .n_heads = ld->c->n_heads,
                               .n_kv_heads = ld->c->n_kv_heads,
                               .head_dim = ld->c->head_dim,
                               .score_mul = 1 / root,
                               .out_mul = 1};
    if (!ld->m->int8_attention)
        return 0;
    l->attn.score_mul = out[0] * out[1] / root;
    l->attn.out_mul = out[2] / l->o_step;
    l->attn.q_inv = 1 / out[0];
    l->attn.k_inv = 1 / out[1];
    l->attn.v_inv = 1 / out[2];
    if (!sq_scale_ok(l->attn.score_mul) || !sq_scale_ok(l->attn.out_mul) ||
        !sq_scale_ok(l->attn.q_inv) || !sq_scale_ok(l->attn.k_inv) || !sq_scale_ok(l->attn.v_inv))
        return sq_fail(ld->err, SQ_E_FORMAT,
                       "layer %d: Q3: the steps of q %g, k %g, v %g and of o_proj's input %g make "
                       "no normal multiplier",
                       layer, (double)out[0], (double)out[1], (double)out[2], (double)l->o_step);
    return 0;
}

int sq_load_steps(struct sq_loader *ld, float (*out_steps)[3])
{
    int r = 0, n_out = 0;
    if (ld->m->scheme == SQ_SCHEME_W8A8_STATIC) {
        for (int i = 0; !r && i < ld->c->n_layers; i++)
            r = read_input_steps(ld, i);
        if (!r)
            r = read_output_steps(ld, out_steps, &n_out);
        if (r)
            return r;
    }
    /* the int8 attention kernels take four codes at a time */
    ld->m->int8_attention = n_out && ld->c->head_dim % 4 == 0;
    for (int i = 0; !r && i < ld->c->n_layers; i++)
        r = set_attention(ld, i, out_steps[i]);
    return r;
}
