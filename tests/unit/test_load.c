/* sq_model_load onto a recording backend: every number of the epilogues, the fused rows, rules C4 and Q, and every failure undone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "engine/quant.h"
#include "tests/lib/backend_record.h"
#include "tests/lib/model_files.h"

#define P "model.decoder."
#define L0 P "layers.0."
#define L1 P "layers.1."

struct fixture {
    struct sq_config c;
    struct sq_file_tensors l;
    struct sq_record be;
    struct sq_source *src;
    struct sq_model *m;
};

static const struct sq_config tiny = {.n_layers = 2,
                                      .hidden = 16,
                                      .ffn = 24,
                                      .n_heads = 2,
                                      .n_kv_heads = 2,
                                      .head_dim = 8,
                                      .vocab = 20,
                                      .max_positions = 8,
                                      .embed_dim = 16,
                                      .norm_eps = 1e-5f,
                                      .pre_norm = true,
                                      .final_norm = true,
                                      .tied = true,
                                      .linear_bias = true,
                                      .norm_affine = true,
                                      .dtype = SQ_F16};

static struct sq_config config_of(enum sq_scheme scheme)
{
    struct sq_config c = tiny;
    c.family = sq_family_find("opt");
    c.scheme = scheme;
    return c;
}

static void init(struct fixture *f, const struct sq_config *c)
{
    *f = (struct fixture){.c = *c};
    sq_files_fill(&f->l, c, 7);
    sq_record_init(&f->be);
    f->src = sq_files_source(&f->l);
}

static int load(struct fixture *f, const struct sq_load_options *o, struct sq_err *err)
{
    return sq_model_load(f->src, &f->c, &f->be.base, o, &f->m, err);
}

static void must_load(struct fixture *f, const struct sq_load_options *o)
{
    struct sq_err err = {0};
    if (load(f, o, &err)) {
        print_error("%s\n", err.msg);
        fail();
    }
}

static void done(struct fixture *f)
{
    sq_model_free(f->m);
    assert_int_equal(f->be.n_linears, 0);
    assert_int_equal(f->be.n_norms, 0);
    sq_source_close(f->src);
    sq_files_done(&f->l);
}

static void assert_near(double a, double b)
{
    if (!(fabs(a - b) <= 1e-6 * fabs(b))) {
        print_error("%.9g is not %.9g\n", a, b);
        fail();
    }
}

/* The tensor's values as f32; freed by the caller. */
static float *values(struct fixture *f, const char *name)
{
    struct sq_file_tensor *t = sq_files_find(&f->l, name);
    assert_non_null(t);
    float *v = calloc(t->info.n_elems, sizeof *v);
    assert_int_equal(sq_source_read_f32(f->src, name, 0, sq_tensor_rows(&t->info), v, NULL), 0);
    return v;
}

static void set_floats(struct fixture *f, const char *name, int rank, size_t rows, size_t cols,
                       const float *v)
{
    size_t shape[2] = {rows, cols};
    sq_files_put(&f->l, name, SQ_F32, rank, shape, v);
}

static void set_scale(struct fixture *f, const char *name, float v)
{
    set_floats(f, name, 1, 1, 0, &v);
}

static const char *const qkv_names[] = {L0 "self_attn.q_proj", L0 "self_attn.k_proj",
                                        L0 "self_attn.v_proj"};

static char *with(const char *module, const char *suffix)
{
    static char name[2][SQ_NAME_BYTES];
    static int turn;
    turn ^= 1;
    snprintf(name[turn], sizeof name[0], "%s%s", module, suffix);
    return name[turn];
}

static void check_linear(const struct sq_linear *l, size_t n_out, size_t n_in, enum sq_dtype dtype,
                         bool dynamic, enum sq_out out, enum sq_act act)
{
    assert_true(l && l->finished);
    assert_int_equal(l->d.n_out, n_out);
    assert_int_equal(l->d.n_in, n_in);
    assert_int_equal(l->d.dtype, dtype);
    assert_int_equal(l->d.dynamic, dynamic);
    assert_int_equal(l->d.out, out);
    assert_int_equal(l->d.act, act);
    assert_int_equal(l->mul != NULL, dtype == SQ_I8);
    assert_int_equal(l->bias_acc != NULL && l->bias == NULL, out == SQ_OUT_S8 && l->bias_acc);
}

/* --- float --------------------------------------------------------------------------------------------------------- */

static void test_float(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_FLOAT);
    init(&f, &c);
    must_load(&f, NULL);
    const struct sq_model *m = f.m;
    assert_false(m->int8_attention || m->head_int8);
    assert_ptr_equal(m->head, m->embed);
    assert_null(m->project_in);
    assert_int_equal(m->fingerprint, 0); /* a source without digest */
    check_linear(m->embed, 20, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    check_linear(m->pos, 10, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    for (int i = 0; i < 2; i++) {
        const struct sq_layer *l = &m->layers[i];
        check_linear(l->qkv, 48, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
        check_linear(l->o, 16, 16, SQ_F16, false, SQ_OUT_ADD, SQ_ACT_NONE);
        check_linear(l->up, 24, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_RELU);
        check_linear(l->down, 16, 24, SQ_F16, false, SQ_OUT_ADD, SQ_ACT_NONE);
        assert_true(l->norm1->d.dim == 16 && !l->norm1->d.gamma_q && !l->norm2->d.gamma_q);
        assert_true(l->attn.layer == i && l->attn.n_heads == 2 && l->attn.head_dim == 8);
        assert_near(l->attn.score_mul, 1 / sqrt(8));
        assert_true(l->attn.out_mul == 1 && l->qkv_step == 0);
    }
    for (int i = 0; i < 3; i++) {
        float *bias = values(&f, with(qkv_names[i], ".bias"));
        assert_memory_equal(m->layers[0].qkv->bias + 16 * i, bias, 16 * sizeof *bias);
        assert_memory_equal(m->layers[0].qkv->rows + (size_t)(512 * i),
                            sq_files_find(&f.l, with(qkv_names[i], ".weight"))->data, 512);
        free(bias);
    }
    float *gamma = values(&f, P "final_layer_norm.weight");
    assert_memory_equal(m->final_norm->d.gamma, gamma, 16 * sizeof *gamma);
    free(gamma);
    done(&f);
}

/* q, k and v of different types meet in f32; the others keep theirs. */
static void test_mixed_types(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_FLOAT);
    init(&f, &c);
    float *k = values(&f, L0 "self_attn.k_proj.weight");
    float *v = values(&f, L0 "self_attn.v_proj.weight");
    set_floats(&f, L0 "self_attn.k_proj.weight", 2, 16, 16, k);
    must_load(&f, NULL);
    check_linear(f.m->layers[0].qkv, 48, 16, SQ_F32, false, SQ_OUT_F32, SQ_ACT_NONE);
    assert_memory_equal(f.m->layers[0].qkv->rows + 1024, k, 1024);
    assert_memory_equal(f.m->layers[0].qkv->rows + 2048, v, 1024);
    assert_int_equal(f.m->layers[1].qkv->d.dtype, SQ_F16);
    free(k);
    free(v);
    done(&f);
}

static void test_350m_shape(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_FLOAT);
    c.pre_norm = c.final_norm = false;
    c.embed_dim = 12;
    init(&f, &c);
    must_load(&f, NULL);
    assert_null(f.m->final_norm);
    check_linear(f.m->embed, 20, 12, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    check_linear(f.m->project_in, 16, 12, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    check_linear(f.m->project_out, 12, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    assert_null(f.m->project_in->bias);
    done(&f);
}

static void test_no_bias_no_affine(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_W8A8_STATIC);
    c.linear_bias = c.norm_affine = false;
    init(&f, &c);
    must_load(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_true(!l->qkv->bias && !l->qkv->bias_acc && !l->down->bias);
    assert_true(l->norm1->d.gamma[3] == 1 && l->norm1->d.beta[3] == 0);
    assert_near(l->norm1->d.gamma_q[3], 1 / (double)l->qkv_step);
    done(&f);
}

/* --- W8A8 ---------------------------------------------------------------------------------------------------------- */

static void check_s8_rows(struct fixture *f, const struct sq_linear *l, size_t row0,
                          const char *module, size_t n, float s_in, float s_out)
{
    float *w = values(f, with(module, ".weight_scale")), *b = values(f, with(module, ".bias"));
    for (size_t i = 0; i < n; i++) {
        assert_near(l->mul[row0 + i], (double)s_in * (double)w[i] / (double)s_out);
        assert_int_equal(l->bias_acc[row0 + i],
                         lrint((double)b[i] / ((double)s_in * (double)w[i])));
    }
    free(w);
    free(b);
}

static void check_real_rows(struct fixture *f, const struct sq_linear *l, const char *module,
                            size_t n, float s_in)
{
    float *w = values(f, with(module, ".weight_scale")), *b = values(f, with(module, ".bias"));
    for (size_t i = 0; i < n; i++)
        assert_near(l->mul[i], (double)s_in * (double)w[i]);
    assert_memory_equal(l->bias, b, n * sizeof *b);
    free(w);
    free(b);
}

static void test_static(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_W8A8_STATIC);
    init(&f, &c);
    static const float out[] = {0.03f, 0.04f, 0.05f};
    for (int i = 0; i < 3; i++) {
        set_scale(&f, with(qkv_names[i], ".input_scale"), 0.02f);
        set_scale(&f, with(qkv_names[i], ".output_scale"), out[i]);
    }
    set_scale(&f, L0 "self_attn.out_proj.input_scale", 0.01f);
    set_scale(&f, L0 "fc1.input_scale", 0.06f);
    set_scale(&f, L0 "fc2.input_scale", 0.07f);
    must_load(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_true(f.m->int8_attention);
    check_linear(l->qkv, 48, 16, SQ_I8, false, SQ_OUT_S8, SQ_ACT_NONE);
    check_linear(l->o, 16, 16, SQ_I8, false, SQ_OUT_ADD, SQ_ACT_NONE);
    check_linear(l->up, 24, 16, SQ_I8, false, SQ_OUT_S8, SQ_ACT_RELU);
    check_linear(l->down, 16, 24, SQ_I8, false, SQ_OUT_ADD, SQ_ACT_NONE);
    for (int i = 0; i < 3; i++)
        check_s8_rows(&f, l->qkv, (size_t)(16 * i), qkv_names[i], 16, 0.02f, out[i]);
    check_s8_rows(&f, l->up, 0, L0 "fc1", 24, 0.06f, 0.07f);
    check_real_rows(&f, l->o, L0 "self_attn.out_proj", 16, 0.01f);
    check_real_rows(&f, l->down, L0 "fc2", 16, 0.07f);
    assert_near(l->attn.score_mul, 0.03 * 0.04 / sqrt(8));
    assert_near(l->attn.out_mul, 0.05f / 0.01f);
    assert_true(l->qkv_step == 0.02f && l->o_step == 0.01f && l->up_step == 0.06f &&
                l->down_step == 0.07f);
    float *gamma = values(&f, L0 "self_attn_layer_norm.weight");
    float *beta = values(&f, L0 "final_layer_norm.bias");
    assert_near(l->norm1->d.gamma_q[5], (double)gamma[5] / 0.02);
    assert_near(l->norm2->d.beta_q[5], (double)beta[5] / 0.06);
    assert_true(l->norm1->d.gamma[5] == gamma[5] && !f.m->final_norm->d.gamma_q);
    free(gamma);
    free(beta);
    done(&f);
}

/* Post-norm: norm1 feeds fc1, norm2 the next layer's q, k, v, and nobody in int8 after the last. */
static void test_static_post_norm(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_W8A8_STATIC);
    c.pre_norm = c.final_norm = false;
    init(&f, &c);
    set_scale(&f, L0 "fc1.input_scale", 0.06f);
    set_scale(&f, L1 "self_attn.q_proj.input_scale", 0.09f);
    set_scale(&f, L1 "self_attn.k_proj.input_scale", 0.09f);
    set_scale(&f, L1 "self_attn.v_proj.input_scale", 0.09f);
    must_load(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_near(l[0].norm1->d.gamma_q[1], (double)l[0].norm1->d.gamma[1] / 0.06);
    assert_near(l[0].norm2->d.gamma_q[1], (double)l[0].norm2->d.gamma[1] / 0.09);
    assert_null(l[1].norm2->d.gamma_q);
    done(&f);
}

/* Static without the extra steps of q, k and v: what llm-compressor writes. Scales in other shapes and types, too. */
static void test_static_plain(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_W8A8_STATIC);
    init(&f, &c);
    for (size_t i = f.l.n; i-- > 0;)
        if (strstr(f.l.t[i].name, ".output_scale"))
            sq_files_drop(&f.l, f.l.t[i].name);
    float v[16];
    for (int i = 0; i < 16; i++)
        v[i] = 0.001f * (float)(i + 1);
    uint16_t half = 0x3c00; /* 1.0 in F16 */
    size_t one[2] = {1, 1};
    set_floats(&f, L0 "self_attn.q_proj.weight_scale", 1, 16, 0, v);    /* [out] */
    set_floats(&f, L0 "self_attn.k_proj.weight_scale", 0, 0, 0, v + 4); /* [] */
    set_floats(&f, L0 "self_attn.v_proj.weight_scale", 2, 1, 1, v + 5); /* [1, 1] */
    sq_files_put(&f.l, L0 "fc2.input_scale", SQ_F16, 2, one, &half);
    int8_t zeros[16] = {0};
    size_t column[2] = {16, 1};
    sq_files_put(&f.l, L0 "self_attn.q_proj.weight_zero_point", SQ_I8, 2, column, zeros);
    sq_files_put(&f.l, L0 "fc1.input_zero_point", SQ_I8, 1, one, zeros);
    set_scale(&f, L0 "self_attn.k_scale", 0.1f); /* of a KV scheme: not ours, no surplus either */
    must_load(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_false(f.m->int8_attention);
    check_linear(l->qkv, 48, 16, SQ_I8, false, SQ_OUT_F32, SQ_ACT_NONE);
    check_linear(l->up, 24, 16, SQ_I8, false, SQ_OUT_S8, SQ_ACT_RELU);
    assert_near(l->attn.score_mul, 1 / sqrt(8));
    assert_true(l->down_step == 1.0f);
    for (size_t i = 0; i < 16; i++) {
        assert_near(l->qkv->mul[i], l->qkv_step * v[i]);
        assert_near(l->qkv->mul[16 + i], l->qkv_step * v[4]);
        assert_near(l->qkv->mul[32 + i], l->qkv_step * v[5]);
    }
    done(&f);
}

static void test_dynamic(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_W8A8_DYNAMIC);
    c.tied = false;
    c.head_quantized = true;
    init(&f, &c);
    must_load(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_false(f.m->int8_attention);
    check_linear(l->qkv, 48, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_NONE);
    check_linear(l->o, 16, 16, SQ_I8, true, SQ_OUT_ADD, SQ_ACT_NONE);
    check_linear(l->up, 24, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_RELU);
    check_linear(l->down, 16, 24, SQ_I8, true, SQ_OUT_ADD, SQ_ACT_NONE);
    check_real_rows(&f, l->down, L0 "fc2", 16, 1);
    assert_null(l->norm1->d.gamma_q);
    check_linear(f.m->head, 20, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_NONE);
    assert_true(f.m->head_int8);
    done(&f);
}

/* --- the head ------------------------------------------------------------------------------------------------------ */

static void check_quantised(const struct sq_linear *l, const float *w, size_t rows, size_t k)
{
    for (size_t i = 0; i < rows; i++) {
        float top = 0;
        for (size_t j = 0; j < k; j++)
            top = fmaxf(top, fabsf(w[i * k + j]));
        float step = top > 0 ? top / 127 : 1;
        assert_true(l->mul[i] == step);
        for (size_t j = 0; j < k; j++)
            assert_int_equal(((const int8_t *)l->rows)[i * k + j], sq_sat_s8(w[i * k + j] / step));
    }
}

static void test_head_int8(void **state)
{
    (void)state;
    struct sq_load_options o = {.head = SQ_HEAD_INT8};
    for (int tied = 0; tied < 2; tied++) {
        struct fixture f;
        struct sq_config c = config_of(SQ_SCHEME_FLOAT);
        c.tied = tied;
        init(&f, &c);
        const char *name = tied ? P "embed_tokens.weight" : "lm_head.weight";
        memset(sq_files_find(&f.l, name)->data, 0, 32); /* a row of padding */
        float *w = values(&f, name);
        must_load(&f, &o);
        check_linear(f.m->head, 20, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_NONE);
        assert_true(f.m->head_int8 && f.m->head != f.m->embed);
        check_quantised(f.m->head, w, 20, 16);
        free(w);
        done(&f);
    }
}

/* Tied, but a head is stored: the same one is not kept twice, another one is used. */
static void test_head_stored(void **state)
{
    (void)state;
    for (int differs = 0; differs < 2; differs++) {
        struct fixture f;
        struct sq_config c = config_of(SQ_SCHEME_FLOAT);
        init(&f, &c);
        struct sq_file_tensor *e = sq_files_find(&f.l, P "embed_tokens.weight");
        struct sq_tensor_info info = e->info;
        struct sq_file_tensor *h =
            sq_files_put(&f.l, "lm_head.weight", info.dtype, info.rank, info.shape, e->data);
        ((uint16_t *)h->data)[319] ^= (uint16_t)differs;
        must_load(&f, NULL);
        assert_int_equal(f.m->head != f.m->embed, differs);
        if (differs)
            assert_memory_equal(f.m->head->rows, sq_files_find(&f.l, "lm_head.weight")->data, 640);
        done(&f);
    }
}

/* llm-compressor quantises 350m's projections, too; they run in float. */
static void test_quantised_projection(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_W8A8_STATIC);
    c.embed_dim = 12;
    init(&f, &c);
    int8_t codes[192];
    float scales[16];
    for (int i = 0; i < 192; i++)
        codes[i] = (int8_t)(i - 96);
    for (int i = 0; i < 16; i++)
        scales[i] = 0.5f + (float)i;
    size_t shape[] = {16, 12};
    sq_files_put(&f.l, P "project_in.weight", SQ_I8, 2, shape, codes);
    set_floats(&f, P "project_in.weight_scale", 2, 16, 1, scales);
    set_scale(&f, P "project_in.input_scale", 0.1f);
    must_load(&f, NULL);
    check_linear(f.m->project_in, 16, 12, SQ_F32, false, SQ_OUT_F32, SQ_ACT_NONE);
    for (int i = 0; i < 192; i++)
        assert_true(((float *)(void *)f.m->project_in->rows)[i] ==
                    scales[i / 12] * (float)codes[i]);
    done(&f);
}

/* --- bad weights --------------------------------------------------------------------------------------------------- */

static void drop_one(struct fixture *f)
{
    sq_files_drop(&f->l, L1 "fc1.bias");
}

static void drop_and_add(struct fixture *f)
{
    size_t one[] = {1};
    drop_one(f);
    for (int i = 0; i < 4; i++) {
        char name[32];
        snprintf(name, sizeof name, "ghost.%d", i);
        sq_files_put(&f->l, name, SQ_F32, 1, one, NULL);
    }
}

static void add_layer(struct fixture *f)
{
    set_scale(f, P "layers.2.fc1.bias", 1);
}

static void wrong_shape(struct fixture *f)
{
    size_t shape[] = {16, 16};
    sq_files_put(&f->l, L0 "fc1.weight", f->c.scheme ? SQ_I8 : SQ_F16, 2, shape, NULL);
}

static void empty_tensor(struct fixture *f)
{
    size_t shape[] = {0, 16};
    sq_files_put(&f->l, L0 "fc1.weight", SQ_F16, 2, shape, NULL);
}

static void codes_for_floats(struct fixture *f)
{
    size_t shape[] = {24, 16};
    sq_files_put(&f->l, L0 "fc1.weight", SQ_I8, 2, shape, NULL);
}

static void floats_for_codes(struct fixture *f)
{
    size_t shape[] = {24, 16};
    sq_files_put(&f->l, L0 "fc1.weight", SQ_BF16, 2, shape, NULL);
}

static void rank_three(struct fixture *f)
{
    size_t shape[] = {24, 16, 1};
    sq_files_put(&f->l, L0 "fc1.weight", SQ_I8, 3, shape, NULL);
}

static void scale_shape(struct fixture *f)
{
    set_floats(f, L0 "fc1.weight_scale", 2, 1, 24, (float[24]){0});
}

static void scale_codes(struct fixture *f)
{
    size_t one[] = {1};
    sq_files_put(&f->l, L0 "fc1.input_scale", SQ_I8, 1, one, NULL);
}

static void scale_value(struct fixture *f, float v)
{
    struct sq_file_tensor *t = sq_files_find(&f->l, L0 "fc1.weight_scale");
    ((float *)t->data)[7] = v;
    memset((char *)sq_files_find(&f->l, L0 "fc1.weight")->data + 7 * 16, 0, 16);
}

static void scale_zero(struct fixture *f)
{
    scale_value(f, 0);
}

static void scale_negative(struct fixture *f)
{
    scale_value(f, -1);
}

static void scale_nan(struct fixture *f)
{
    scale_value(f, NAN);
}

static void scale_infinite(struct fixture *f)
{
    scale_value(f, INFINITY);
}

static void scale_subnormal(struct fixture *f)
{
    scale_value(f, 1e-40f);
}

static void scale_product(struct fixture *f)
{
    scale_value(f, 1e-37f); /* normal, but not times the input's step */
}

static void step_zero(struct fixture *f)
{
    set_scale(f, L1 "fc2.input_scale", 0);
}

static void step_huge(struct fixture *f)
{
    set_scale(f, L0 "self_attn.k_proj.output_scale", 1e38f);
    set_scale(f, L0 "self_attn.q_proj.output_scale", 1e38f);
}

static void steps_differ(struct fixture *f)
{
    set_scale(f, L1 "self_attn.k_proj.input_scale", 0.5f);
}

static void step_missing(struct fixture *f)
{
    sq_files_drop(&f->l, L1 "self_attn.v_proj.output_scale");
}

static void zero_point(struct fixture *f)
{
    size_t shape[] = {24, 1};
    int8_t z[24] = {[23] = 3};
    sq_files_put(&f->l, L0 "fc1.weight_zero_point", SQ_I8, 2, shape, z);
}

static void input_zero_point(struct fixture *f)
{
    size_t one[] = {1};
    int8_t z = -5;
    sq_files_put(&f->l, L0 "self_attn.k_proj.input_zero_point", SQ_I8, 1, one, &z);
}

static void huge_bias(struct fixture *f)
{
    struct sq_file_tensor *t = sq_files_find(&f->l, L0 "fc1.bias");
    ((uint16_t *)t->data)[2] = 0x7bff; /* 65504 */
}

static void norm_nan(struct fixture *f)
{
    ((uint16_t *)sq_files_find(&f->l, L1 "final_layer_norm.weight")->data)[4] = 0x7e00;
}

static void norm_overflow(struct fixture *f)
{
    float v[16] = {[3] = 3e38f};
    set_floats(f, L0 "final_layer_norm.weight", 1, 16, 0, v);
}

static void bias_infinite(struct fixture *f)
{
    ((uint16_t *)sq_files_find(&f->l, L0 "fc2.bias")->data)[4] = 0xfc00;
}

static void embed_nan(struct fixture *f)
{
    ((uint16_t *)sq_files_find(&f->l, P "embed_tokens.weight")->data)[319] = 0x7c01;
}

static void weight_nan(struct fixture *f)
{
    ((uint16_t *)sq_files_find(&f->l, L1 "fc2.weight")->data)[0] = 0x7c00;
}

static const struct bad {
    enum sq_scheme scheme;
    void (*spoil)(struct fixture *f);
    int code;
    const char *text;
} bads[] = {
    {SQ_SCHEME_FLOAT, drop_one, SQ_E_FORMAT,
     "C4: missing tensors: 1 ('" L1 "fc1.bias'); surplus: 0"},
    {SQ_SCHEME_FLOAT, drop_and_add, SQ_E_FORMAT,
     "missing tensors: 1 ('" L1 "fc1.bias'); surplus: 4 ('ghost.0', 'ghost.1', 'ghost.2', ...)"},
    {SQ_SCHEME_FLOAT, add_layer, SQ_E_FORMAT, "surplus: 1 ('" P "layers.2.fc1.bias')"},
    {SQ_SCHEME_FLOAT, wrong_shape, SQ_E_FORMAT,
     "'" L0 "fc1.weight': C4: expected shape [24, 16], found [16, 16]"},
    {SQ_SCHEME_FLOAT, empty_tensor, SQ_E_FORMAT, "C4: expected shape [24, 16], found [0, 16]"},
    {SQ_SCHEME_FLOAT, codes_for_floats, SQ_E_FORMAT, "C4: expected F32, F16 or BF16, found I8"},
    {SQ_SCHEME_FLOAT, norm_nan, SQ_E_FORMAT, "'" L1 "final_layer_norm.weight': Q8: element 4"},
    {SQ_SCHEME_FLOAT, bias_infinite, SQ_E_FORMAT, "'" L0 "fc2.bias': Q8: element 4 is -inf"},
    {SQ_SCHEME_FLOAT, embed_nan, SQ_E_FORMAT, "embed_tokens.weight': Q8: a NaN or an infinity"},
    {SQ_SCHEME_FLOAT, weight_nan, SQ_E_FORMAT, "'" L1 "fc2.weight': Q8: "},
    {SQ_SCHEME_W8A8_STATIC, drop_one, SQ_E_FORMAT, "C4: missing tensors: 1"},
    {SQ_SCHEME_W8A8_STATIC, floats_for_codes, SQ_E_FORMAT, "Q1: expected I8, found BF16"},
    {SQ_SCHEME_W8A8_STATIC, rank_three, SQ_E_FORMAT, "Q1: expected shape [24, 16], found [24, 16,"},
    {SQ_SCHEME_W8A8_STATIC, wrong_shape, SQ_E_FORMAT,
     "Q1: expected shape [24, 16], found [16, 16]"},
    {SQ_SCHEME_W8A8_STATIC, scale_shape, SQ_E_FORMAT,
     "Q2: expected shape [24, 1] or [1], found [1, 24]"},
    {SQ_SCHEME_W8A8_STATIC, scale_codes, SQ_E_FORMAT, "Q2: expected F32, F16 or BF16, found I8"},
    {SQ_SCHEME_W8A8_STATIC, scale_zero, SQ_E_FORMAT,
     "'" L0 "fc1.weight_scale': Q4: scale 7 is zero"},
    {SQ_SCHEME_W8A8_STATIC, scale_negative, SQ_E_FORMAT, "Q3: scale 7 is -1, expected a positive"},
    {SQ_SCHEME_W8A8_STATIC, scale_nan, SQ_E_FORMAT, "Q3: scale 7 is nan"},
    {SQ_SCHEME_W8A8_STATIC, scale_infinite, SQ_E_FORMAT, "Q3: scale 7 is inf"},
    {SQ_SCHEME_W8A8_STATIC, scale_subnormal, SQ_E_FORMAT, "Q3: scale 7 is 9.99995e-41"},
    {SQ_SCHEME_W8A8_STATIC, scale_product, SQ_E_FORMAT, "Q3: row 7: input step"},
    {SQ_SCHEME_W8A8_DYNAMIC, scale_zero, SQ_E_FORMAT, "Q4: scale 7 is zero"},
    {SQ_SCHEME_W8A8_STATIC, step_zero, SQ_E_FORMAT, "'" L1 "fc2.input_scale': Q4: scale 0 is zero"},
    {SQ_SCHEME_W8A8_STATIC, step_huge, SQ_E_FORMAT, "layer 0: Q3: the steps of q 1e+38"},
    {SQ_SCHEME_W8A8_STATIC, steps_differ, SQ_E_NOTSUP, "layer 1: q_proj, k_proj and v_proj have"},
    {SQ_SCHEME_W8A8_STATIC, step_missing, SQ_E_FORMAT, "C4: 5 of 6 output scales of q, k, v"},
    {SQ_SCHEME_W8A8_STATIC, zero_point, SQ_E_NOTSUP, "Q5: zero point 23 is 3"},
    {SQ_SCHEME_W8A8_STATIC, input_zero_point, SQ_E_NOTSUP, "Q5: zero point 0 is -5"},
    {SQ_SCHEME_W8A8_STATIC, huge_bias, SQ_E_FORMAT, "fc1.weight: Q6: row 2: bias 65504 is "},
    {SQ_SCHEME_W8A8_STATIC, norm_overflow, SQ_E_FORMAT,
     "'" L0 "final_layer_norm.weight': Q3: element 3"},
    {SQ_SCHEME_W8A8_STATIC, norm_nan, SQ_E_FORMAT, "Q8: element 4"},
};

static void test_bad(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_ARRAY_LEN(bads); i++) {
        struct fixture f;
        struct sq_config c = config_of(bads[i].scheme);
        struct sq_err err = {0};
        init(&f, &c);
        bads[i].spoil(&f);
        if (bads[i].spoil == huge_bias) /* make 65504 too many units */
            set_scale(&f, L0 "fc1.input_scale", 1e-3f);
        int r = load(&f, NULL, &err);
        if (r != -bads[i].code || !strstr(err.msg, bads[i].text)) {
            print_error("%zu: expected %d '%s'\nfound %d '%s'\n", i, -bads[i].code, bads[i].text, r,
                        err.msg);
            fail();
        }
        done(&f);
    }
}

/* Q6 on a shape that no list in memory needs to hold: the check comes before anything is read. */
struct wide_source {
    struct sq_source base;
    struct sq_source *inner;
};

static bool wide_find(struct sq_source *s, const char *name, struct sq_tensor_info *ret)
{
    struct sq_source *in = ((struct wide_source *)s)->inner;
    return in->ops->find(in, name, ret);
}

static void test_too_many_inputs(void **state)
{
    (void)state;
    static const struct sq_source_ops ops = {.find = wide_find};
    struct sq_config c = config_of(SQ_SCHEME_W8A8_STATIC);
    struct wide_source s = {.base.ops = &ops};
    struct sq_record be;
    struct sq_model *m;
    struct sq_err err = {0};
    c.ffn = SQ_K_MAX + 1;
    assert_int_equal(sq_random_source_open(&c, 1, &s.inner, NULL), 0);
    sq_record_init(&be);
    assert_int_equal(sq_model_load(&s.base, &c, &be.base, NULL, &m, &err), -SQ_E_NOTSUP);
    assert_non_null(strstr(err.msg, "fc2.weight': Q6: 131072 inputs"));
    sq_source_close(s.inner);
}

static void test_surplus_allowed(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_FLOAT);
    struct sq_load_options o = {.allow_surplus = true};
    init(&f, &c);
    set_scale(&f, "ghost", 1);
    must_load(&f, &o);
    done(&f);
}

/* --- progress, stopping, failing ----------------------------------------------------------------------------------- */

static void see(void *ctx, double ratio)
{
    double *last = ctx;
    assert_true(ratio > *last && ratio <= 1);
    *last = ratio;
}

/* Up to exactly 1, wherever the head comes from: kept or quantised, and stored though it is tied, or not. */
static void test_progress(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct fixture f;
        struct sq_config c = config_of(SQ_SCHEME_FLOAT);
        double last = 0;
        struct sq_load_options o = {
            .progress = see, .ctx = &last, .head = i % 2 ? SQ_HEAD_INT8 : SQ_HEAD_KEEP};
        init(&f, &c);
        struct sq_file_tensor *e = sq_files_find(&f.l, P "embed_tokens.weight");
        size_t shape[] = {20, 16};
        if (i / 2)
            sq_files_put(&f.l, "lm_head.weight", SQ_F16, 2, shape, e->data);
        must_load(&f, &o);
        assert_true(last == 1);
        done(&f);
    }
}

static void test_stop(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_FLOAT);
    _Atomic bool stop = true;
    struct sq_load_options o = {.stop = &stop};
    init(&f, &c);
    assert_int_equal(load(&f, &o, NULL), -SQ_E_INTR);
    done(&f);
}

static void test_device_fails(void **state)
{
    (void)state;
    struct fixture f;
    struct sq_config c = config_of(SQ_SCHEME_W8A8_STATIC);
    init(&f, &c);
    int r = -1, k;
    for (k = 1; r; k++) {
        f.be.fail_at = k;
        r = load(&f, NULL, NULL);
        if (r) {
            assert_int_equal(r, -SQ_E_DEVICE);
            assert_true(f.be.n_linears == 0 && f.be.n_norms == 0);
        }
    }
    assert_true(k > 10);
    done(&f);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    struct sq_load_options o = {.head = SQ_HEAD_INT8};
    for (int scheme = SQ_SCHEME_FLOAT; scheme <= SQ_SCHEME_W8A8_DYNAMIC; scheme++) {
        struct fixture f;
        struct sq_config c = config_of((enum sq_scheme)scheme);
        c.embed_dim = 12;
        init(&f, &c);
        int r = -1;
        for (uint64_t k = 1; r; k++) {
            sq_mem_fail_at(k, k % 2);
            r = load(&f, &o, NULL);
            sq_mem_fail_at(0, false);
            if (r) {
                assert_int_equal(r, -SQ_E_NOMEM);
                assert_true(f.be.n_linears == 0 && f.be.n_norms == 0);
            }
        }
        done(&f);
    }
}

/* --- real directories ---------------------------------------------------------------------------------------------- */

static void test_committed_models(void **state)
{
    (void)state;
    static const char *const dirs[] = {
        "tests/golden/logits/hd64-f32",
        "tests/golden/logits/hd80-f16",
        "tests/golden/logits/oddvocab-bf16",
        "tests/golden/logits/postnorm-f16",
        "tests/golden/logits/sharded-bf16",
        "tests/golden/logits/untied-nobias-f16",
        "tests/models/demo-opt",
    };
    for (size_t i = 0; i < SQ_ARRAY_LEN(dirs); i++) {
        char path[512];
        struct sq_model_dir *d;
        struct sq_model *m;
        struct sq_record be;
        struct sq_err err = {0};
        snprintf(path, sizeof path, "%s/%s", SQD_SOURCE_DIR, dirs[i]);
        sq_record_init(&be);
        if (sq_model_dir_open(path, &d, &err))
            fail_msg("%s", err.msg);
        struct sq_load_options o = {.prefix = d->prefix};
        if (sq_model_load(d->source, &d->config, &be.base, &o, &m, &err))
            fail_msg("%s: %s", path, err.msg);
        assert_true(m->fingerprint == d->digest && m->fingerprint);
        sq_model_free(m);
        sq_model_dir_close(d);
        assert_true(be.n_linears == 0 && be.n_norms == 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_float),
        cmocka_unit_test(test_mixed_types),
        cmocka_unit_test(test_350m_shape),
        cmocka_unit_test(test_no_bias_no_affine),
        cmocka_unit_test(test_static),
        cmocka_unit_test(test_static_post_norm),
        cmocka_unit_test(test_static_plain),
        cmocka_unit_test(test_dynamic),
        cmocka_unit_test(test_head_int8),
        cmocka_unit_test(test_head_stored),
        cmocka_unit_test(test_quantised_projection),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_too_many_inputs),
        cmocka_unit_test(test_surplus_allowed),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_device_fails),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_committed_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
