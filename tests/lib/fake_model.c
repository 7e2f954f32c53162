/* A model of the OPT family (or like LLaMA's) without files, on the fake backend: what the loader would make of a
 * config, with weights of one repeated row. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "tests/lib/backend_fake.h"

/* Self-contained on purpose: tests of the engine link no loader. */
static const struct sq_family fake_family = {
    .model_type = "opt",
    .norm = SQ_LAYERNORM,
    .positions = SQ_POS_LEARNED,
    .pos_offset = 2,
    .act = SQ_ACT_RELU,
    .tied_by_default = true,
};

static const struct sq_family fake_gated_family = {
    .model_type = "llama",
    .names = {[SQ_R_GATE] = "gate"},
    .norm = SQ_RMSNORM,
    .positions = SQ_POS_ROTARY,
};

static struct sq_linear *fake_linear(struct sq_model *m, const char *part, int layer, int n_out,
                                     int n_in, bool quant, enum sq_out out)
{
    const struct sq_backend_ops *ops = m->be->ops;
    char name[32];
    (void)snprintf(name, sizeof name, layer < 0 ? "%s" : "%s.%d", part, layer);
    const bool dynamic =
        quant && (m->scheme == SQ_SCHEME_W8A8_DYNAMIC || strcmp(part, "head") == 0);
    struct sq_linear_desc d = {
        .name = name,
        .n_out = (size_t)n_out,
        .n_in = (size_t)n_in,
        .dtype = quant ? SQ_I8 : SQ_F32,
        .dynamic = dynamic,
        .out = out,
        .act = strcmp(part, "up") == 0 ? SQ_ACT_RELU : SQ_ACT_NONE,
    };
    struct sq_linear *l;
    if (ops->linear_new(m->be, &d, &l, NULL))
        return NULL;
    float *row = sq_new_array(float, (size_t)n_in);
    if (!row) {
        ops->linear_free(m->be, l);
        return NULL;
    }
    int rc = 0;
    for (int i = 0; i < n_out && !rc; i++)
        rc = ops->linear_put(m->be, l, (size_t)i, 1, row, NULL);
    struct sq_epilogue e = {0};
    rc = rc ? rc : ops->linear_finish(m->be, l, &e, NULL);
    sq_free(row);
    SQ_ASSERT(!rc);
    return l;
}

static struct sq_norm *fake_norm(struct sq_model *m, bool has_q)
{
    struct sq_norm *n;
    float one = 1.0f;
    struct sq_norm_desc d = {
        .dim = (size_t)m->config.hidden, .eps = 1e-5f, .gamma_q = has_q ? &one : NULL};
    return m->be->ops->norm_new(m->be, &d, &n, NULL) ? NULL : n;
}

static bool fake_layer(struct sq_model *m, int i)
{
    const struct sq_config *c = &m->config;
    struct sq_layer *l = &m->layers[i];
    const bool quant = m->scheme != SQ_SCHEME_FLOAT, stat = m->scheme == SQ_SCHEME_W8A8_STATIC;
    const bool last = i + 1 == c->n_layers;
    const bool gated = c->family->names[SQ_R_GATE];
    const int qkv = (c->n_heads + 2 * c->n_kv_heads) * c->head_dim;
    l->qkv = fake_linear(m, "qkv", i, qkv, c->hidden, quant,
                         m->int8_attention && !gated ? SQ_OUT_S8 : SQ_OUT_F32);
    l->o = fake_linear(m, "o", i, c->hidden, c->hidden, quant, SQ_OUT_ADD);
    l->up = gated
                ? fake_linear(m, "gate_up", i, 2 * c->ffn, c->hidden, quant, SQ_OUT_F32)
                : fake_linear(m, "up", i, c->ffn, c->hidden, quant, stat ? SQ_OUT_S8 : SQ_OUT_F32);
    l->down = fake_linear(m, "down", i, c->hidden, c->ffn, quant, SQ_OUT_ADD);
    l->norm1 = fake_norm(m, stat);
    l->norm2 = fake_norm(m, stat && (c->pre_norm || !last));
    if (stat)
        l->qkv_step = l->o_step = l->up_step = l->down_step = 0.5f;
    l->attn = (struct sq_attn){.layer = i,
                               .n_heads = c->n_heads,
                               .n_kv_heads = c->n_kv_heads,
                               .head_dim = c->head_dim,
                               .score_mul = 1.0f,
                               .out_mul = 1.0f};
    if (m->int8_attention)
        l->attn.q_inv = l->attn.k_inv = l->attn.v_inv = 2.0f;
    return l->qkv && l->o && l->up && l->down && l->norm1 && l->norm2;
}

/* Positions: a table of vectors, or of rotations. */
static bool fake_positions(struct sq_model *m)
{
    const struct sq_config *c = &m->config;
    if (c->family->positions == SQ_POS_LEARNED) {
        m->pos = fake_linear(m, "pos", -1, c->max_positions + 2, c->hidden, false, SQ_OUT_F32);
        return m->pos;
    }
    const size_t n_pos = (size_t)c->max_positions, rot_dim = (size_t)c->head_dim;
    float *table = sq_new_array(float, n_pos *rot_dim);
    struct sq_rope_desc d = {.rot_dim = rot_dim, .n_pos = n_pos, .cos = table, .sin = table};
    bool made = table && !m->be->ops->rope_new(m->be, &d, &m->rope, NULL);
    sq_free(table);
    return made;
}

static bool fake_parts(struct sq_model *m, const struct sq_fake_options *o)
{
    const struct sq_config *c = &m->config;
    m->embed = fake_linear(m, "embed", -1, c->vocab, c->embed_dim, false, SQ_OUT_F32);
    m->head = o->head_int8 ? fake_linear(m, "head", -1, c->vocab, c->embed_dim, true, SQ_OUT_F32)
                           : m->embed;
    if (!m->embed || !m->head || !fake_positions(m))
        return false;
    if (o->project) {
        m->project_in =
            fake_linear(m, "project_in", -1, c->hidden, c->embed_dim, false, SQ_OUT_ADD);
        m->project_out =
            fake_linear(m, "project_out", -1, c->embed_dim, c->hidden, false, SQ_OUT_F32);
        if (!m->project_in || !m->project_out)
            return false;
    }
    m->final_norm = c->final_norm ? fake_norm(m, false) : NULL;
    if (c->final_norm && !m->final_norm)
        return false;
    for (int i = 0; i < c->n_layers; i++)
        if (!fake_layer(m, i))
            return false;
    return true;
}

static struct sq_config fake_config(const struct sq_fake_options *o)
{
    return (struct sq_config){
        .family = o->gated ? &fake_gated_family : &fake_family,
        .n_layers = o->n_layers,
        .hidden = o->hidden,
        .ffn = 4 * o->hidden,
        .n_heads = 2,
        .n_kv_heads = o->gated ? 1 : 2,
        .head_dim = o->hidden / 2,
        .vocab = o->vocab,
        .max_positions = o->context,
        .embed_dim = o->project ? o->hidden / 2 : o->hidden,
        .norm_eps = 1e-5f,
        .pre_norm = !o->post_norm,
        .final_norm = !o->post_norm,
        .tied = true,
        .attn_bias = !o->gated,
        .ffn_bias = !o->gated,
        .norm_affine = true,
        .dtype = SQ_F32,
        .scheme = o->scheme,
        .bos = 1 < o->vocab ? 1 : 0,
        .pad = -1,
        .eos = {o->eos},
        .n_eos = o->eos >= 0,
        .gen = {NAN, NAN, NAN, NAN, -1, -1},
    };
}

struct sq_model *sq_fake_model_new(const struct sq_fake_options *options)
{
    struct sq_fake_options o = options ? *options : (struct sq_fake_options){.eos = -1};
    o.vocab = o.vocab ? o.vocab : 256;
    o.context = o.context ? o.context : 512;
    o.n_layers = o.n_layers ? o.n_layers : 2;
    o.hidden = o.hidden ? o.hidden : 16;
    SQ_ASSERT(o.hidden % 8 == 0 && o.eos < o.vocab);
    struct sq_model *m = sq_new(struct sq_model);
    if (!m)
        return NULL;
    m->be = sq_fake_open(&o);
    m->config = fake_config(&o);
    m->scheme = o.scheme;
    m->int8_attention = o.int8_attention;
    m->head_int8 = o.head_int8;
    m->layers = sq_new_array(struct sq_layer, (size_t)o.n_layers);
    if (!m->be || !m->layers || !fake_parts(m, &o))
        return sq_fake_model_free(m);
    return m;
}

struct sq_model *sq_fake_model_free(struct sq_model *m)
{
    if (!m)
        return NULL;
    const struct sq_backend_ops *ops = m->be ? m->be->ops : NULL;
    for (int i = 0; ops && m->layers && i < m->config.n_layers; i++) {
        struct sq_layer *l = &m->layers[i];
        struct sq_linear *const linears[] = {l->qkv, l->o, l->up, l->down};
        for (size_t j = 0; j < SQ_ARRAY_LEN(linears); j++)
            ops->linear_free(m->be, linears[j]);
        ops->norm_free(m->be, l->norm1);
        ops->norm_free(m->be, l->norm2);
    }
    if (ops) {
        ops->norm_free(m->be, m->final_norm);
        ops->linear_free(m->be, m->project_in);
        ops->linear_free(m->be, m->project_out);
        if (m->head != m->embed)
            ops->linear_free(m->be, m->head);
        ops->linear_free(m->be, m->pos);
        ops->rope_free(m->be, m->rope);
        ops->linear_free(m->be, m->embed);
        ops->close(m->be);
    }
    sq_free(m->layers);
    sq_free(m);
    return NULL;
}
