/* sq_model_load onto a recording backend: every number of the epilogues, the fused rows, and the committed models. */
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
#include "tests/lib/load_fixture.h"

static void assert_near(double a, double b)
{
    if (!(fabs(a - b) <= 1e-6 * fabs(b))) {
        print_error("%.9g is not %.9g\n", a, b);
        fail();
    }
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

/* --- float --------------------------------------------------------------------------------------------------------- */

static void test_float(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    sq_load_init(&f, &c);
    sq_load_must(&f, NULL);
    const struct sq_model *m = f.m;
    assert_false(m->int8_attention || m->head_int8);
    assert_ptr_equal(m->head, m->embed);
    assert_null(m->project_in);
    assert_int_equal(m->fingerprint, 0); /* a source without digest */
    sq_load_check_linear(m->embed, 20, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    sq_load_check_linear(m->pos, 10, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    for (int i = 0; i < 2; i++) {
        const struct sq_layer *l = &m->layers[i];
        sq_load_check_linear(l->qkv, 48, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
        sq_load_check_linear(l->o, 16, 16, SQ_F16, false, SQ_OUT_ADD, SQ_ACT_NONE);
        sq_load_check_linear(l->up, 24, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_RELU);
        sq_load_check_linear(l->down, 16, 24, SQ_F16, false, SQ_OUT_ADD, SQ_ACT_NONE);
        assert_true(l->norm1->d.dim == 16 && !l->norm1->d.gamma_q && !l->norm2->d.gamma_q);
        assert_true(l->attn.layer == i && l->attn.n_heads == 2 && l->attn.head_dim == 8);
        assert_near(l->attn.score_mul, 1 / sqrt(8));
        assert_true(l->attn.out_mul == 1 && l->qkv_step == 0);
    }
    for (int i = 0; i < 3; i++) {
        float *bias = sq_load_values(&f, with(qkv_names[i], ".bias"));
        assert_memory_equal(m->layers[0].qkv->bias + 16 * i, bias, 16 * sizeof *bias);
        assert_memory_equal(m->layers[0].qkv->rows + (size_t)(512 * i),
                            sq_files_find(&f.l, with(qkv_names[i], ".weight"))->data, 512);
        free(bias);
    }
    float *gamma = sq_load_values(&f, P "final_layer_norm.weight");
    assert_memory_equal(m->final_norm->d.gamma, gamma, 16 * sizeof *gamma);
    free(gamma);
    sq_load_done(&f);
}

/* q, k and v of different types meet in f32; the others keep theirs. */
static void test_mixed_types(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    sq_load_init(&f, &c);
    float *k = sq_load_values(&f, L0 "self_attn.k_proj.weight");
    float *v = sq_load_values(&f, L0 "self_attn.v_proj.weight");
    sq_load_set_floats(&f, L0 "self_attn.k_proj.weight", 2, 16, 16, k);
    sq_load_must(&f, NULL);
    sq_load_check_linear(f.m->layers[0].qkv, 48, 16, SQ_F32, false, SQ_OUT_F32, SQ_ACT_NONE);
    assert_memory_equal(f.m->layers[0].qkv->rows + 1024, k, 1024);
    assert_memory_equal(f.m->layers[0].qkv->rows + 2048, v, 1024);
    assert_int_equal(f.m->layers[1].qkv->d.dtype, SQ_F16);
    free(k);
    free(v);
    sq_load_done(&f);
}

static void test_350m_shape(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    c.pre_norm = c.final_norm = false;
    c.embed_dim = 12;
    sq_load_init(&f, &c);
    sq_load_must(&f, NULL);
    assert_null(f.m->final_norm);
    sq_load_check_linear(f.m->embed, 20, 12, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    sq_load_check_linear(f.m->project_in, 16, 12, SQ_F16, false, SQ_OUT_ADD, SQ_ACT_NONE);
    sq_load_check_linear(f.m->project_out, 12, 16, SQ_F16, false, SQ_OUT_F32, SQ_ACT_NONE);
    assert_null(f.m->project_in->bias);
    sq_load_done(&f);
}

static void test_no_bias_no_affine(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_STATIC);
    c.attn_bias = c.ffn_bias = c.norm_affine = false;
    sq_load_init(&f, &c);
    sq_load_must(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_true(!l->qkv->bias && !l->qkv->bias_acc && !l->down->bias);
    assert_true(l->norm1->d.gamma[3] == 1 && l->norm1->d.beta[3] == 0);
    assert_near(l->norm1->d.gamma_q[3], 1 / (double)l->qkv_step);
    sq_load_done(&f);
}

/* --- W8A8 ---------------------------------------------------------------------------------------------------------- */

static void check_s8_rows(struct sq_load_fixture *f, const struct sq_linear *l, size_t row0,
                          const char *module, size_t n, float s_in, float s_out)
{
    float *w = sq_load_values(f, with(module, ".weight_scale")),
          *b = sq_load_values(f, with(module, ".bias"));
    for (size_t i = 0; i < n; i++) {
        assert_near(l->mul[row0 + i], (double)s_in * (double)w[i] / (double)s_out);
        assert_int_equal(l->bias_acc[row0 + i],
                         lrint((double)b[i] / ((double)s_in * (double)w[i])));
    }
    free(w);
    free(b);
}

static void check_real_rows(struct sq_load_fixture *f, const struct sq_linear *l,
                            const char *module, size_t n, float s_in)
{
    float *w = sq_load_values(f, with(module, ".weight_scale")),
          *b = sq_load_values(f, with(module, ".bias"));
    for (size_t i = 0; i < n; i++)
        assert_near(l->mul[i], (double)s_in * (double)w[i]);
    assert_memory_equal(l->bias, b, n * sizeof *b);
    free(w);
    free(b);
}

static void test_static(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_STATIC);
    sq_load_init(&f, &c);
    static const float out[] = {0.03f, 0.04f, 0.05f};
    for (int i = 0; i < 3; i++) {
        sq_load_set_scale(&f, with(qkv_names[i], ".input_scale"), 0.02f);
        sq_load_set_scale(&f, with(qkv_names[i], ".output_scale"), out[i]);
    }
    sq_load_set_scale(&f, L0 "self_attn.out_proj.input_scale", 0.01f);
    sq_load_set_scale(&f, L0 "fc1.input_scale", 0.06f);
    sq_load_set_scale(&f, L0 "fc2.input_scale", 0.07f);
    sq_load_must(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_true(f.m->int8_attention);
    sq_load_check_linear(l->qkv, 48, 16, SQ_I8, false, SQ_OUT_S8, SQ_ACT_NONE);
    sq_load_check_linear(l->o, 16, 16, SQ_I8, false, SQ_OUT_ADD, SQ_ACT_NONE);
    sq_load_check_linear(l->up, 24, 16, SQ_I8, false, SQ_OUT_S8, SQ_ACT_RELU);
    sq_load_check_linear(l->down, 16, 24, SQ_I8, false, SQ_OUT_ADD, SQ_ACT_NONE);
    for (int i = 0; i < 3; i++)
        check_s8_rows(&f, l->qkv, (size_t)(16 * i), qkv_names[i], 16, 0.02f, out[i]);
    check_s8_rows(&f, l->up, 0, L0 "fc1", 24, 0.06f, 0.07f);
    check_real_rows(&f, l->o, L0 "self_attn.out_proj", 16, 0.01f);
    check_real_rows(&f, l->down, L0 "fc2", 16, 0.07f);
    assert_near(l->attn.score_mul, 0.03 * 0.04 / sqrt(8));
    assert_near(l->attn.out_mul, 0.05f / 0.01f);
    assert_true(l->qkv_step == 0.02f && l->o_step == 0.01f && l->up_step == 0.06f &&
                l->down_step == 0.07f);
    float *gamma = sq_load_values(&f, L0 "self_attn_layer_norm.weight");
    float *beta = sq_load_values(&f, L0 "final_layer_norm.bias");
    assert_near(l->norm1->d.gamma_q[5], (double)gamma[5] / 0.02);
    assert_near(l->norm2->d.beta_q[5], (double)beta[5] / 0.06);
    assert_true(l->norm1->d.gamma[5] == gamma[5] && !f.m->final_norm->d.gamma_q);
    free(gamma);
    free(beta);
    sq_load_done(&f);
}

/* Post-norm: norm1 feeds fc1, norm2 the next layer's q, k, v, and nobody in int8 after the last. */
static void test_static_post_norm(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_STATIC);
    c.pre_norm = c.final_norm = false;
    sq_load_init(&f, &c);
    sq_load_set_scale(&f, L0 "fc1.input_scale", 0.06f);
    sq_load_set_scale(&f, L1 "self_attn.q_proj.input_scale", 0.09f);
    sq_load_set_scale(&f, L1 "self_attn.k_proj.input_scale", 0.09f);
    sq_load_set_scale(&f, L1 "self_attn.v_proj.input_scale", 0.09f);
    sq_load_must(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_near(l[0].norm1->d.gamma_q[1], (double)l[0].norm1->d.gamma[1] / 0.06);
    assert_near(l[0].norm2->d.gamma_q[1], (double)l[0].norm2->d.gamma[1] / 0.09);
    assert_null(l[1].norm2->d.gamma_q);
    sq_load_done(&f);
}

/* Static without the extra steps of q, k and v: what llm-compressor writes. Scales in other shapes and types, too. */
static void test_static_plain(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_STATIC);
    sq_load_init(&f, &c);
    sq_load_drop_all(&f, ".output_scale");
    float v[16];
    for (int i = 0; i < 16; i++)
        v[i] = 0.001f * (float)(i + 1);
    uint16_t half = 0x3c00; /* 1.0 in F16 */
    size_t one[2] = {1, 1};
    sq_load_set_floats(&f, L0 "self_attn.q_proj.weight_scale", 1, 16, 0, v);    /* [out] */
    sq_load_set_floats(&f, L0 "self_attn.k_proj.weight_scale", 0, 0, 0, v + 4); /* [] */
    sq_load_set_floats(&f, L0 "self_attn.v_proj.weight_scale", 2, 1, 1, v + 5); /* [1, 1] */
    sq_files_put(&f.l, L0 "fc2.input_scale", SQ_F16, 2, one, &half);
    int8_t zeros[16] = {0};
    size_t column[2] = {16, 1};
    sq_files_put(&f.l, L0 "self_attn.q_proj.weight_zero_point", SQ_I8, 2, column, zeros);
    sq_files_put(&f.l, L0 "fc1.input_zero_point", SQ_I8, 1, one, zeros);
    sq_load_set_scale(&f, L0 "self_attn.k_scale",
                      0.1f); /* of a KV scheme: not ours, no surplus either */
    sq_load_must(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_false(f.m->int8_attention);
    sq_load_check_linear(l->qkv, 48, 16, SQ_I8, false, SQ_OUT_F32, SQ_ACT_NONE);
    sq_load_check_linear(l->up, 24, 16, SQ_I8, false, SQ_OUT_S8, SQ_ACT_RELU);
    assert_near(l->attn.score_mul, 1 / sqrt(8));
    assert_true(l->down_step == 1.0f);
    for (size_t i = 0; i < 16; i++) {
        assert_near(l->qkv->mul[i], l->qkv_step * v[i]);
        assert_near(l->qkv->mul[16 + i], l->qkv_step * v[4]);
        assert_near(l->qkv->mul[32 + i], l->qkv_step * v[5]);
    }
    sq_load_done(&f);
}

static void test_dynamic(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_DYNAMIC);
    c.tied = false;
    c.head_quantized = true;
    sq_load_init(&f, &c);
    sq_load_must(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_false(f.m->int8_attention);
    sq_load_check_linear(l->qkv, 48, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_NONE);
    sq_load_check_linear(l->o, 16, 16, SQ_I8, true, SQ_OUT_ADD, SQ_ACT_NONE);
    sq_load_check_linear(l->up, 24, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_RELU);
    sq_load_check_linear(l->down, 16, 24, SQ_I8, true, SQ_OUT_ADD, SQ_ACT_NONE);
    check_real_rows(&f, l->down, L0 "fc2", 16, 1);
    assert_null(l->norm1->d.gamma_q);
    sq_load_check_linear(f.m->head, 20, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_NONE);
    assert_true(f.m->head_int8);
    sq_load_done(&f);
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
        struct sq_load_fixture f;
        struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
        c.tied = tied;
        sq_load_init(&f, &c);
        const char *name = tied ? P "embed_tokens.weight" : "lm_head.weight";
        memset(sq_files_find(&f.l, name)->data, 0, 32); /* a row of padding */
        float *w = sq_load_values(&f, name);
        sq_load_must(&f, &o);
        sq_load_check_linear(f.m->head, 20, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_NONE);
        assert_true(f.m->head_int8 && f.m->head != f.m->embed);
        check_quantised(f.m->head, w, 20, 16);
        free(w);
        sq_load_done(&f);
    }
}

/* Tied, but a head is stored: the same one is not kept twice, another one is used. */
static void test_head_stored(void **state)
{
    (void)state;
    for (int differs = 0; differs < 2; differs++) {
        struct sq_load_fixture f;
        struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
        sq_load_init(&f, &c);
        struct sq_file_tensor *e = sq_files_find(&f.l, P "embed_tokens.weight");
        struct sq_tensor_info info = e->info;
        struct sq_file_tensor *h =
            sq_files_put(&f.l, "lm_head.weight", info.dtype, info.rank, info.shape, e->data);
        ((uint16_t *)h->data)[319] ^= (uint16_t)differs;
        sq_load_must(&f, NULL);
        assert_int_equal(f.m->head != f.m->embed, differs);
        if (differs)
            assert_memory_equal(f.m->head->rows, sq_files_find(&f.l, "lm_head.weight")->data, 640);
        sq_load_done(&f);
    }
}

/* llm-compressor quantises 350m's projections, too; they run in float. */
static void test_quantised_projection(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_STATIC);
    c.embed_dim = 12;
    sq_load_init(&f, &c);
    int8_t codes[192];
    float scales[16];
    for (int i = 0; i < 192; i++)
        codes[i] = (int8_t)(i - 96);
    for (int i = 0; i < 16; i++)
        scales[i] = 0.5f + (float)i;
    size_t shape[] = {16, 12};
    sq_files_put(&f.l, P "project_in.weight", SQ_I8, 2, shape, codes);
    sq_load_set_floats(&f, P "project_in.weight_scale", 2, 16, 1, scales);
    sq_load_set_scale(&f, P "project_in.input_scale", 0.1f);
    sq_load_must(&f, NULL);
    sq_load_check_linear(f.m->project_in, 16, 12, SQ_F32, false, SQ_OUT_ADD, SQ_ACT_NONE);
    for (int i = 0; i < 192; i++)
        assert_true(((float *)(void *)f.m->project_in->rows)[i] ==
                    scales[i / 12] * (float)codes[i]);
    sq_load_done(&f);
}

/* --- random weights ------------------------------------------------------------------------------------------------ */

/* Any rows alone are what they are in the whole; another seed, name or row gives others; codes are spread over -127..127. */
static void test_random_source(void **state)
{
    (void)state;
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_STATIC);
    struct sq_source *a, *b;
    struct sq_tensor_info t;
    int8_t whole[24 * 16], part[5 * 16], other[24 * 16];
    assert_int_equal(sq_random_source_open(&c, 1, &a, NULL), 0);
    assert_int_equal(sq_random_source_open(&c, 2, &b, NULL), 0);
    assert_true(a->ops->find(a, L0 "fc1.weight", &t) && t.dtype == SQ_I8 && t.n_elems == 384);
    assert_int_equal(a->ops->read(a, L0 "fc1.weight", 0, 24, whole, NULL), 0);
    assert_int_equal(a->ops->read(a, L0 "fc1.weight", 7, 5, part, NULL), 0);
    assert_memory_equal(part, whole + 7 * 16, sizeof part);
    assert_memory_not_equal(whole, whole + 16, 16);
    assert_int_equal(b->ops->read(b, L0 "fc1.weight", 0, 24, other, NULL), 0);
    assert_memory_not_equal(whole, other, sizeof whole);
    assert_int_equal(a->ops->read(a, L1 "fc1.weight", 0, 24, other, NULL), 0);
    assert_memory_not_equal(whole, other, sizeof whole);
    int n_large = 0, sum = 0;
    for (size_t i = 0; i < sizeof whole; i++) {
        assert_true(whole[i] > -128);
        n_large += abs(whole[i]) > 63;
        sum += whole[i];
    }
    assert_true(n_large > 150 && n_large < 234 && abs(sum) < 384 * 12);
    assert_false(a->ops->find(a, P "layers.2.fc1.weight", &t));
    assert_false(a->ops->find(a, "lm_head.weight", &t));
    assert_int_equal(a->ops->read(a, "x", 0, 1, whole, NULL), -SQ_E_NOTFOUND);
    sq_source_close(a);
    sq_source_close(b);
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
        "tests/golden/logits/llama-d16-f32",
        "tests/golden/logits/llama-d64-tied-bf16",
        "tests/golden/logits/llama-scaled-f16",
        "tests/golden/logits/llama-linear-bias-f16",
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
        assert_true(be.n_linears == 0 && be.n_norms == 0 && be.n_ropes == 0);
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
        cmocka_unit_test(test_random_source),
        cmocka_unit_test(test_committed_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
