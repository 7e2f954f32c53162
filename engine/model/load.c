#include "engine/model/load.h"

#include <math.h>
#include <stdio.h>

#include "engine/base/check.h"
#include "engine/quant.h"

bool sq_load_find(struct sq_loader *ld, enum sq_role role, int layer, enum sq_part part, char *buf,
                  struct sq_tensor_info *ret_t)
{
    sq_family_name(ld->c->family, ld->prefix, role, layer, sq_part_suffix(part), buf,
                   SQ_NAME_BYTES);
    return ld->src->ops->find(ld->src, buf, ret_t);
}

void sq_load_progress(struct sq_loader *ld, size_t n_elems)
{
    ld->n_done += n_elems;
    if (ld->o->progress)
        ld->o->progress(ld->o->ctx, (double)ld->n_done / (double)ld->n_total);
}

int sq_load_stopped(struct sq_loader *ld)
{
    if (ld->o->stop && atomic_load_explicit(ld->o->stop, memory_order_relaxed))
        return sq_fail(ld->err, SQ_E_INTR, "loading the model was interrupted");
    return 0;
}

size_t sq_load_rows_at_once(const struct sq_tensor_info *t, bool widened)
{
    size_t rows = sq_tensor_rows(t);
    size_t row_bytes = t->n_elems / rows * (widened ? 4 : sq_dtype_bytes(t->dtype));
    size_t n = SQ_STAGE_BYTES / row_bytes;
    SQ_ASSERT(n); /* rows are at most SQ_K_MAX elements */
    return SQ_MIN(n, rows);
}

/* The largest exponent decides; written so that it vectorises. */
static bool all_finite(enum sq_dtype t, const void *p, size_t n)
{
    const uint16_t *h = p;
    const uint32_t *u = p;
    uint32_t mask = t == SQ_F32 ? 0x7f800000u : t == SQ_F16 ? 0x7c00u : 0x7f80u, bad = 0;
    if (t == SQ_F32)
        for (size_t i = 0; i < n; i++)
            bad |= (u[i] & mask) == mask;
    else if (t != SQ_I8)
        for (size_t i = 0; i < n; i++)
            bad |= (uint32_t)((h[i] & mask) == mask);
    return !bad;
}

int sq_load_rows(struct sq_loader *ld, const char *name, const struct sq_tensor_info *t,
                 size_t row0, size_t n)
{
    int r = ld->src->ops->read(ld->src, name, row0, n, ld->stage, ld->err);
    if (r)
        return r;
    if (!all_finite(t->dtype, ld->stage, t->n_elems / sq_tensor_rows(t) * n))
        return sq_fail(ld->err, SQ_E_FORMAT,
                       "tensor '%.128s': Q8: a NaN or an infinity in rows %zu to %zu", name, row0,
                       row0 + n - 1);
    return 0;
}

/* --- the model ---------------------------------------------------------------------------------------------------- */

static int load_table(struct sq_loader *ld, enum sq_role role, struct sq_linear **ret)
{
    struct sq_linear_plan p = {.name = ld->c->family->names[role],
                               .roles = {role},
                               .n_roles = 1,
                               .out = role == SQ_R_PROJECT_IN ? SQ_OUT_ADD : SQ_OUT_F32};
    size_t rows, cols;
    /* an int8 head is made of its own, else the embedding may have to serve as the head */
    p.table = role == SQ_R_POS || (role == SQ_R_EMBED && ld->o->head == SQ_HEAD_INT8);
    sq_role_shape(ld->c, role, &rows, &cols);
    return rows ? sq_load_linear(ld, &p, ret) : 0;
}

static int load_linears(struct sq_loader *ld, int i, const float *out_steps)
{
    struct sq_layer *l = &ld->m->layers[i];
    bool stat = ld->m->scheme == SQ_SCHEME_W8A8_STATIC, s8 = ld->m->int8_attention;
    bool rotary = ld->c->family->positions == SQ_POS_ROTARY,
         gated = ld->c->family->names[SQ_R_GATE];
    char name[64], gate_up_name[64];
    snprintf(name, sizeof name, "layers.%d.self_attn.qkv", i);
    snprintf(gate_up_name, sizeof gate_up_name, "layers.%d.mlp.gate_up", i);
    struct sq_linear_plan qkv = {.name = name,
                                 .roles = {SQ_R_Q, SQ_R_K, SQ_R_V},
                                 .n_roles = 3,
                                 .layer = i,
                                 .out = s8 && !rotary ? SQ_OUT_S8 : SQ_OUT_F32,
                                 .in_step = l->qkv_step,
                                 .out_step = {out_steps[0], out_steps[1], out_steps[2]}};
    struct sq_linear_plan o = {
        .roles = {SQ_R_O}, .n_roles = 1, .layer = i, .out = SQ_OUT_ADD, .in_step = l->o_step};
    struct sq_linear_plan up = {.roles = {SQ_R_UP},
                                .n_roles = 1,
                                .layer = i,
                                .out = stat ? SQ_OUT_S8 : SQ_OUT_F32,
                                .act = ld->c->family->act,
                                .in_step = l->up_step,
                                .out_step = {l->down_step}};
    struct sq_linear_plan gate_up = {.name = gate_up_name,
                                     .roles = {SQ_R_GATE, SQ_R_UP},
                                     .n_roles = 2,
                                     .pairs = true,
                                     .layer = i,
                                     .out = SQ_OUT_F32,
                                     .in_step = l->up_step};
    struct sq_linear_plan down = {
        .roles = {SQ_R_DOWN}, .n_roles = 1, .layer = i, .out = SQ_OUT_ADD, .in_step = l->down_step};
    int r = sq_load_linear(ld, &qkv, &l->qkv);
    if (!r)
        r = sq_load_linear(ld, &o, &l->o);
    if (!r)
        r = sq_load_linear(ld, gated ? &gate_up : &up, &l->up);
    return r ? r : sq_load_linear(ld, &down, &l->down);
}

/* A norm's int8 output has the step of the linear that follows it. Post-norm: norm2 of one layer feeds the next one's q, k, v. */
static int load_norms(struct sq_loader *ld, int i)
{
    struct sq_layer *l = &ld->m->layers[i];
    float next = i + 1 < ld->c->n_layers ? l[1].qkv_step : 0;
    bool pre = ld->c->pre_norm;
    int r = sq_load_norm(ld, SQ_R_NORM1, i, pre ? l->qkv_step : l->up_step, &l->norm1);
    return r ? r : sq_load_norm(ld, SQ_R_NORM2, i, pre ? l->up_step : next, &l->norm2);
}

static int load_layers(struct sq_loader *ld)
{
    SQ_AUTO_FREE float(*out_steps)[3] = sq_calloc((size_t)ld->c->n_layers, sizeof *out_steps);
    if (!out_steps)
        return sq_fail(ld->err, SQ_E_NOMEM, "out of memory for %d layers", ld->c->n_layers);
    int r = sq_load_steps(ld, out_steps);
    for (int i = 0; !r && i < ld->c->n_layers; i++) {
        r = load_norms(ld, i);
        if (!r)
            r = load_linears(ld, i, out_steps[i]);
    }
    return r;
}

static int load_all(struct sq_loader *ld)
{
    struct sq_model *m = ld->m;
    int r = sq_load_check(ld);
    if (!r)
        r = load_table(ld, SQ_R_EMBED, &m->embed);
    if (!r)
        r = load_table(ld, SQ_R_POS, &m->pos);
    if (!r && ld->c->family->positions == SQ_POS_ROTARY)
        r = sq_load_rope(ld);
    if (!r)
        r = load_table(ld, SQ_R_PROJECT_IN, &m->project_in);
    if (!r)
        r = load_table(ld, SQ_R_PROJECT_OUT, &m->project_out);
    if (!r)
        r = load_layers(ld);
    if (!r && ld->c->final_norm)
        r = sq_load_norm(ld, SQ_R_FINAL_NORM, 0, 0, &m->final_norm);
    return r ? r : sq_load_head(ld);
}

int sq_model_load(struct sq_source *src, const struct sq_config *config, struct sq_backend *be,
                  const struct sq_load_options *o, struct sq_model **ret, struct sq_err *err)
{
    static const struct sq_load_options plain = {0};
    struct sq_loader ld = {
        .src = src, .c = config, .be = be, .o = o ? o : &plain, .err = err, .prefix = ""};
    ld.prefix = ld.o->prefix ? ld.o->prefix : sq_family_prefix(config->family, src);
    if (!ld.prefix)
        ld.prefix = config->family->prefixes[0]; /* the check will say what is missing */
    SQ_AUTO_FREE unsigned char *stage = sq_aligned_alloc(64, SQ_STAGE_BYTES);
    struct sq_model *m = sq_new(struct sq_model);
    if (m)
        m->layers = sq_new_array(struct sq_layer, (size_t)config->n_layers);
    if (!stage || !m || !m->layers) {
        if (m)
            sq_free(m->layers);
        sq_free(m);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a model of %d layers", config->n_layers);
    }
    m->config = *config;
    m->be = be;
    m->scheme = config->scheme;
    ld.stage = stage;
    ld.m = m;
    int r = load_all(&ld);
    if (r) {
        sq_model_free(m);
        return r;
    }
    if (src->ops->digest)
        m->fingerprint = src->ops->digest(src);
    *ret = m;
    return 0;
}

struct sq_model *sq_model_free(struct sq_model *m)
{
    if (!m)
        return NULL;
    const struct sq_backend_ops *ops = m->be->ops;
    for (int i = 0; i < m->config.n_layers; i++) {
        struct sq_layer *l = &m->layers[i];
        ops->norm_free(m->be, l->norm1);
        ops->norm_free(m->be, l->norm2);
        ops->linear_free(m->be, l->qkv);
        ops->linear_free(m->be, l->o);
        ops->linear_free(m->be, l->up);
        ops->linear_free(m->be, l->down);
    }
    if (m->head != m->embed)
        ops->linear_free(m->be, m->head);
    ops->linear_free(m->be, m->embed);
    ops->linear_free(m->be, m->pos);
    if (m->rope)
        ops->rope_free(m->be, m->rope);
    ops->linear_free(m->be, m->project_in);
    ops->linear_free(m->be, m->project_out);
    ops->norm_free(m->be, m->final_norm);
    sq_free(m->layers);
    sq_free(m);
    return NULL;
}
