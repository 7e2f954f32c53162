#include "engine/model/expect.h"

#include <string.h>

static const char *const suffixes[SQ_N_PARTS] = {
    [SQ_P_WEIGHT] = ".weight",
    [SQ_P_BIAS] = ".bias",
    [SQ_P_WEIGHT_SCALE] = ".weight_scale",
    [SQ_P_INPUT_SCALE] = ".input_scale",
    [SQ_P_WEIGHT_ZERO] = ".weight_zero_point",
    [SQ_P_INPUT_ZERO] = ".input_zero_point",
    [SQ_P_OUTPUT_SCALE] = ".output_scale",
};

const char *sq_part_suffix(enum sq_part part)
{
    return suffixes[part];
}

bool sq_part_find(const char *suffix, enum sq_part *ret)
{
    for (int i = 0; i < SQ_N_PARTS; i++)
        if (strcmp(suffixes[i], suffix) == 0) {
            *ret = (enum sq_part)i;
            return true;
        }
    return false;
}

void sq_role_shape(const struct sq_config *c, enum sq_role role, size_t *ret_rows, size_t *ret_cols)
{
    size_t hidden = (size_t)c->hidden, embed = (size_t)c->embed_dim, ffn = (size_t)c->ffn;
    size_t heads = (size_t)c->n_heads * (size_t)c->head_dim;
    size_t kv_heads = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    bool projected = hidden != embed;
    const size_t shapes[SQ_N_ROLES][2] = {
        [SQ_R_NORM1] = {hidden, 0},
        [SQ_R_Q] = {heads, hidden},
        [SQ_R_K] = {kv_heads, hidden},
        [SQ_R_V] = {kv_heads, hidden},
        [SQ_R_O] = {hidden, heads},
        [SQ_R_NORM2] = {hidden, 0},
        [SQ_R_GATE] = {ffn, hidden},
        [SQ_R_UP] = {ffn, hidden},
        [SQ_R_DOWN] = {hidden, ffn},
        [SQ_R_EMBED] = {(size_t)c->vocab, embed},
        [SQ_R_POS] = {(size_t)c->max_positions + (size_t)c->family->pos_offset, hidden},
        [SQ_R_PROJECT_IN] = {projected ? hidden : 0, embed},
        [SQ_R_PROJECT_OUT] = {projected ? embed : 0, hidden},
        [SQ_R_FINAL_NORM] = {c->final_norm ? hidden : 0, 0},
        [SQ_R_HEAD] = {(size_t)c->vocab, embed},
    };
    bool there = c->family->names[role] != NULL;
    *ret_rows = there ? shapes[role][0] : 0;
    *ret_cols = shapes[role][1];
}

static bool is_norm(enum sq_role role)
{
    return role == SQ_R_NORM1 || role == SQ_R_NORM2 || role == SQ_R_FINAL_NORM;
}

static bool is_layer_linear(enum sq_role role)
{
    return role < SQ_N_LAYER_ROLES && !is_norm(role);
}

static bool has_bias(const struct sq_config *c, enum sq_role role)
{
    if (is_norm(role))
        return c->norm_affine && c->family->norm == SQ_LAYERNORM;
    if (!is_layer_linear(role))
        return false;
    bool ffn = role == SQ_R_GATE || role == SQ_R_UP || role == SQ_R_DOWN;
    return ffn ? c->ffn_bias : c->attn_bias;
}

/* Linears that may come quantised, but run in float or with input scales of our own: their stored input scales are not used. */
static bool is_loose(const struct sq_config *c, enum sq_role role)
{
    return role == SQ_R_PROJECT_IN || role == SQ_R_PROJECT_OUT ||
           (role == SQ_R_HEAD && c->head_quantized);
}

static struct sq_expected weight(const struct sq_config *c, enum sq_role role)
{
    bool quantised = c->scheme != SQ_SCHEME_FLOAT;
    struct sq_expected e = {.need = SQ_NEED_MUST, .form = SQ_FORM_FLOAT};
    if (is_norm(role) && !c->norm_affine)
        e.need = SQ_NEED_NOT;
    if (role == SQ_R_HEAD && c->tied)
        e.need = SQ_NEED_MAY;
    if (quantised && is_layer_linear(role))
        e.form = SQ_FORM_CODES;
    else if (quantised && is_loose(c, role))
        e.form = SQ_FORM_FLOAT_OR_CODES;
    return e;
}

static enum sq_need vector_need(const struct sq_config *c, enum sq_role role, enum sq_part part)
{
    bool fixed = is_layer_linear(role), stat = c->scheme == SQ_SCHEME_W8A8_STATIC;
    if (part == SQ_P_BIAS)
        return has_bias(c, role) ? SQ_NEED_MUST : SQ_NEED_NOT;
    if (c->scheme == SQ_SCHEME_FLOAT || !(fixed || is_loose(c, role)))
        return SQ_NEED_NOT;
    switch (part) {
    case SQ_P_WEIGHT_SCALE:
        return fixed ? SQ_NEED_MUST : SQ_NEED_MAY;
    case SQ_P_INPUT_SCALE:
        return !stat ? SQ_NEED_NOT : fixed ? SQ_NEED_MUST : SQ_NEED_MAY;
    case SQ_P_OUTPUT_SCALE:
        return stat && (role == SQ_R_Q || role == SQ_R_K || role == SQ_R_V) ? SQ_NEED_MAY
                                                                            : SQ_NEED_NOT;
    case SQ_P_INPUT_ZERO:
        return stat ? SQ_NEED_MAY : SQ_NEED_NOT;
    default:
        return SQ_NEED_MAY;
    }
}

struct sq_expected sq_expect(const struct sq_config *c, enum sq_role role, enum sq_part part)
{
    static const enum sq_form forms[SQ_N_PARTS] = {
        [SQ_P_BIAS] = SQ_FORM_FLOAT,        [SQ_P_WEIGHT_SCALE] = SQ_FORM_CHANNEL_SCALE,
        [SQ_P_INPUT_SCALE] = SQ_FORM_SCALE, [SQ_P_WEIGHT_ZERO] = SQ_FORM_ZERO,
        [SQ_P_INPUT_ZERO] = SQ_FORM_ZERO,   [SQ_P_OUTPUT_SCALE] = SQ_FORM_SCALE,
    };
    struct sq_expected e = {0};
    size_t rows, cols;
    sq_role_shape(c, role, &rows, &cols);
    if (!rows)
        return e;
    if (part == SQ_P_WEIGHT) {
        e = weight(c, role);
        e.cols = cols;
    } else {
        e = (struct sq_expected){.need = vector_need(c, role, part), .form = forms[part]};
    }
    e.rows = rows;
    return e;
}

static bool one_element(const struct sq_tensor_info *t)
{
    return t->rank <= 2 && t->n_elems == 1;
}

static bool shape_ok(const struct sq_expected *e, const struct sq_tensor_info *t)
{
    if (e->form == SQ_FORM_SCALE)
        return one_element(t);
    if (e->form == SQ_FORM_CHANNEL_SCALE || e->form == SQ_FORM_ZERO)
        return one_element(t) || (t->rank == 1 && t->shape[0] == e->rows) ||
               (t->rank == 2 && t->shape[0] == e->rows && t->shape[1] == 1);
    if (e->cols)
        return t->rank == 2 && t->shape[0] == e->rows && t->shape[1] == e->cols;
    return t->rank == 1 && t->shape[0] == e->rows;
}

/* The rule a breach is reported under: Q1 for int8 weights, Q2 for scales, Q5 for zero points, else C4. */
static const char *rule_of(const struct sq_expected *e)
{
    switch (e->form) {
    case SQ_FORM_CODES:
        return "Q1";
    case SQ_FORM_SCALE:
    case SQ_FORM_CHANNEL_SCALE:
        return "Q2";
    case SQ_FORM_ZERO:
        return "Q5";
    default:
        return "C4";
    }
}

int sq_expect_check(const struct sq_expected *e, const char *name, const struct sq_tensor_info *t,
                    struct sq_err *err)
{
    bool codes = t->dtype == SQ_I8,
         must_codes = e->form == SQ_FORM_CODES || e->form == SQ_FORM_ZERO;
    if (codes != must_codes && e->form != SQ_FORM_FLOAT_OR_CODES)
        return sq_fail(err, SQ_E_FORMAT, "tensor '%.128s': %s: expected %s, found %s", name,
                       rule_of(e), must_codes ? "I8" : "F32, F16 or BF16", sq_dtype_name(t->dtype));
    if (shape_ok(e, t))
        return 0;
    size_t shape[2] = {e->rows, e->cols};
    const char *or_one = "";
    if (e->form == SQ_FORM_CHANNEL_SCALE || e->form == SQ_FORM_ZERO) {
        shape[1] = 1;
        or_one = " or [1]";
    } else if (e->form == SQ_FORM_SCALE) {
        shape[0] = 1;
    }
    return sq_fail(err, SQ_E_FORMAT, "tensor '%.128s': %s: expected shape %s%s, found %s", name,
                   rule_of(e), sq_shape_text(shape[1] ? 2 : 1, shape).s, or_one,
                   sq_shape_text(t->rank, t->shape).s);
}
