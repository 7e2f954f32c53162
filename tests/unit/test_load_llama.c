/* The LLaMA family from config.json to the backend: its keys, the rotations, gate and up in one matrix, and the steps of its W8A8 schemes. */
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
#include "engine/model/load.h"
#include "engine/quant.h"
#include "tests/lib/load_fixture.h"

/* --- config.json --------------------------------------------------------------------------------------------------- */

/* A configuration with `more` (",\"key\":value") at its end. */
static int parse(const char *more, struct sq_config *c, struct sq_err *err)
{
    char json[1024];
    int n = snprintf(json, sizeof json,
                     "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],"
                     "\"num_hidden_layers\":2,\"hidden_size\":64,\"intermediate_size\":112,"
                     "\"num_attention_heads\":4,\"vocab_size\":100,\"max_position_embeddings\":32"
                     "%s}",
                     more);
    return sq_config_parse(json, (size_t)n, "config.json", c, err);
}

static struct sq_config config(const char *more)
{
    struct sq_config c;
    struct sq_err err = {0};
    if (parse(more, &c, &err))
        fail_msg("%s: %s", more, err.msg);
    return c;
}

static void refused(const char *more, int code, const char *text)
{
    struct sq_config c;
    struct sq_err err = {0};
    assert_int_equal(parse(more, &c, &err), -code);
    if (!strstr(err.msg, text))
        fail_msg("expected '%s' in: %s", text, err.msg);
}

static void test_keys(void **state)
{
    (void)state;
    struct sq_config c = config("");
    assert_string_equal(c.family->model_type, "llama");
    assert_true(c.n_kv_heads == 4 && c.head_dim == 16 && c.ffn == 112 && c.embed_dim == 64);
    assert_true(c.pre_norm && c.final_norm && c.norm_affine);
    assert_false(c.tied || c.attn_bias || c.ffn_bias);
    assert_true(c.norm_eps == 1e-6f);
    c = config(",\"num_key_value_heads\":2,\"head_dim\":20,\"rms_norm_eps\":1e-05,"
               "\"attention_bias\":true,\"tie_word_embeddings\":true,\"hidden_act\":\"silu\","
               "\"pretraining_tp\":1,\"use_cache\":true");
    assert_true(c.n_kv_heads == 2 && c.head_dim == 20 && c.norm_eps == 1e-5f);
    assert_true(c.tied && c.attn_bias && !c.ffn_bias);
    assert_true(config(",\"mlp_bias\":true").ffn_bias);
    assert_int_equal(config(",\"head_dim\":null,\"num_key_value_heads\":null").head_dim, 16);
    refused(",\"num_key_value_heads\":3", SQ_E_FORMAT,
            "C3: num_attention_heads 4 is no multiple of num_key_value_heads 3");
    refused(",\"num_key_value_heads\":0", SQ_E_FORMAT, "num_key_value_heads");
    refused(",\"head_dim\":15", SQ_E_FORMAT, "C3: head size 15");
    refused(",\"hidden_act\":\"gelu\"", SQ_E_NOTSUP,
            "C3: key 'hidden_act': 'gelu' is not supported, only 'silu'");
    refused(",\"rms_norm_eps\":\"x\"", SQ_E_FORMAT, "rms_norm_eps");
}

#define LLAMA3                                                                                     \
    "\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"      \
    "\"original_max_position_embeddings\":8192"

static void test_rope_keys(void **state)
{
    (void)state;
    struct sq_rope_config r = config("").rope;
    assert_true(r.kind == SQ_ROPE_DEFAULT && r.theta == 10000);
    r = config(",\"rope_theta\":500000.0,\"rope_scaling\":null").rope;
    assert_true(r.kind == SQ_ROPE_DEFAULT && r.theta == 500000);
    r = config(",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":7e4}").rope;
    assert_true(r.kind == SQ_ROPE_DEFAULT && r.theta == 7e4);
    r = config(",\"rope_theta\":5e5,\"rope_scaling\":{" LLAMA3 "}").rope;
    assert_true(r.kind == SQ_ROPE_LLAMA3 && r.theta == 5e5 && r.factor == 8 && r.low_freq == 1 &&
                r.high_freq == 4 && r.original == 8192);
    r = config(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}").rope;
    assert_true(r.kind == SQ_ROPE_LINEAR && r.factor == 2.5);
    /* rope_scaling wins */
    r = config(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},\"rope_parameters\":{" LLAMA3
               ",\"rope_theta\":9e9}")
            .rope;
    assert_true(r.kind == SQ_ROPE_LINEAR && r.theta == 10000);
    refused(",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}", SQ_E_NOTSUP,
            "C3: key 'rope_scaling.rope_type': 'yarn' is not supported, only default, linear, "
            "llama3");
    refused(",\"rope_parameters\":{\"rope_type\":\"longrope\"}", SQ_E_NOTSUP,
            "'rope_parameters.rope_type': 'longrope'");
    refused(",\"rope_scaling\":{\"type\":\"linear\"}", SQ_E_FORMAT, "no key 'rope_scaling.factor'");
    refused(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}", SQ_E_FORMAT, "factor");
    refused(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}", SQ_E_FORMAT,
            "no key 'rope_scaling.low_freq_factor'");
    refused(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
            "\"high_freq_factor\":4,\"original_max_position_embeddings\":64}",
            SQ_E_FORMAT, "expected more than low_freq_factor 4, found 4");
    /* one and the same where they are used, as float32 */
    refused(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
            "\"high_freq_factor\":4.0000001,\"original_max_position_embeddings\":64}",
            SQ_E_FORMAT, "expected more than low_freq_factor 4, found 4");
    refused(",\"rope_scaling\":3", SQ_E_FORMAT, "'rope_scaling': expected an object");
    refused(",\"partial_rotary_factor\":0.5", SQ_E_NOTSUP, "'partial_rotary_factor': 0.5");
    refused(",\"rope_theta\":0", SQ_E_FORMAT, "rope_theta");
}

/* --- rotations ----------------------------------------------------------------------------------------------------- */

/* What transformers 5.23.0 has for heads of 128. */
static void test_frequencies(void **state)
{
    (void)state;
    static const int at[] = {1, 20, 30, 35, 63}; /* llama3: among them as it is, mixed, by factor */
    static const struct {
        struct sq_rope_config rope;
        float want[5];
    } cases[] = {
        {{SQ_ROPE_DEFAULT, 10000, 1, 0, 0, 0},
         {0x1.bb5faep-1f, 0x1.ccab84p-5f, 0x1.b4f7e4p-7f, 0x1.a9942ap-8f, 0x1.e459c4p-14f}},
        {{SQ_ROPE_LLAMA3, 500000, 8, 1, 4, 8192},
         {0x1.a11582p-1f, 0x1.0f5386p-6f, 0x1.67a23ap-10f, 0x1.90d10cp-14f, 0x1.4985fep-22f}},
        {{SQ_ROPE_LLAMA3, 10000, 4, 2, 8, 4096},
         {0x1.bb5faep-1f, 0x1.ccab84p-5f, 0x1.b4f7e4p-7f, 0x1.c266d8p-9f, 0x1.e459c4p-16f}},
        {{SQ_ROPE_LINEAR, 500000, 3, 0, 0, 0},
         {0x1.160e56p-2f, 0x1.69c4b2p-8f, 0x1.7470aep-11f, 0x1.0b3608p-12f, 0x1.b75d52p-21f}},
    };
    for (size_t i = 0; i < SQ_ARRAY_LEN(cases); i++) {
        struct sq_config c = {.head_dim = 128, .rope = cases[i].rope};
        float f[64];
        sq_rope_frequencies(&c, f);
        assert_true(f[0] == (i == 3 ? 1.0f / 3.0f : 1.0f));
        for (size_t k = 0; k < SQ_ARRAY_LEN(at); k++)
            if (f[at[k]] != cases[i].want[k])
                fail_msg("case %zu: frequency %d is %a, want %a", i, at[k], (double)f[at[k]],
                         (double)cases[i].want[k]);
    }
}

/* --- loading ------------------------------------------------------------------------------------------------------- */

#define M0 "model.layers.0."

/* Rows 2i of gate_up are gate's, rows 2i + 1 up's, byte for byte. */
static void check_pairs(struct sq_load_fixture *f, const struct sq_linear *l)
{
    const struct sq_file_tensor *gate = sq_files_find(&f->l, M0 "mlp.gate_proj.weight"),
                                *up = sq_files_find(&f->l, M0 "mlp.up_proj.weight");
    size_t row = l->d.n_in * sq_dtype_bytes(l->d.dtype);
    for (size_t i = 0; i < l->d.n_out / 2; i++) {
        assert_memory_equal(l->rows + 2 * i * row, (const char *)gate->data + i * row, row);
        assert_memory_equal(l->rows + (2 * i + 1) * row, (const char *)up->data + i * row, row);
    }
}

static void test_float(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_llama_config(SQ_SCHEME_FLOAT);
    sq_load_init(&f, &c);
    sq_load_must(&f, NULL);
    const struct sq_model *m = f.m;
    const struct sq_layer *l = m->layers;
    assert_true(!m->pos && !m->project_in && m->head != m->embed && m->rope);
    sq_load_check_linear(l->qkv, 64, 16, SQ_BF16, false, SQ_OUT_F32, SQ_ACT_NONE);
    sq_load_check_linear(l->o, 16, 32, SQ_BF16, false, SQ_OUT_ADD, SQ_ACT_NONE);
    sq_load_check_linear(l->up, 24, 16, SQ_BF16, false, SQ_OUT_F32, SQ_ACT_NONE);
    sq_load_check_linear(l->down, 16, 12, SQ_BF16, false, SQ_OUT_ADD, SQ_ACT_NONE);
    assert_true(!l->qkv->bias && !l->up->bias && l->norm1->d.kind == SQ_RMSNORM);
    assert_true(l->norm1->d.beta[3] == 0 && l->attn.n_kv_heads == 2);
    check_pairs(&f, l->up);
    assert_true(m->rope->d.rot_dim == 8 && m->rope->d.n_pos == 9);
    for (int i = 0; i < 9 * 4; i++) {
        double angle = i / 4 * pow(10000, -(i % 4) / 4.0);
        assert_true(fabs((double)m->rope->d.cos[i] - cos(angle)) < 1e-6);
        assert_true(fabs((double)m->rope->d.sin[i] - sin(angle)) < 1e-6);
    }
    sq_load_done(&f);
}

/* More rows than go through the stage at once, and of two types, which meet in f32. */
static void test_many_pairs(void **state)
{
    (void)state;
    for (int mixed = 0; mixed < 2; mixed++) {
        struct sq_load_fixture f;
        struct sq_config c = sq_load_llama_config(SQ_SCHEME_FLOAT);
        c.n_layers = 1;
        c.hidden = c.embed_dim = 4096;
        c.ffn = 70;
        c.ffn_bias = true;
        sq_load_init(&f, &c);
        float *up = sq_load_values(&f, M0 "mlp.up_proj.weight");
        if (mixed)
            sq_load_set_floats(&f, M0 "mlp.up_proj.weight", 2, 70, 4096, up);
        float *gate_bias = sq_load_values(&f, M0 "mlp.gate_proj.bias"),
              *up_bias = sq_load_values(&f, M0 "mlp.up_proj.bias");
        sq_load_must(&f, NULL);
        const struct sq_linear *l = f.m->layers[0].up;
        sq_load_check_linear(l, 140, 4096, mixed ? SQ_F32 : SQ_BF16, false, SQ_OUT_F32,
                             SQ_ACT_NONE);
        if (!mixed)
            check_pairs(&f, l);
        for (size_t i = 0; i < 70; i++) {
            assert_true(l->bias[2 * i] == gate_bias[i] && l->bias[2 * i + 1] == up_bias[i]);
            if (mixed)
                assert_memory_equal(l->rows + (2 * i + 1) * 16384, up + i * 4096, 16384);
        }
        free(up);
        free(gate_bias);
        free(up_bias);
        sq_load_done(&f);
    }
}

static void set_step(struct sq_load_fixture *f, const char *module, const char *part, float v)
{
    char name[SQ_NAME_BYTES];
    snprintf(name, sizeof name, M0 "%s.%s", module, part);
    sq_load_set_scale(f, name, v);
}

static void test_static(void **state)
{
    (void)state;
    static const char *const qkv[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    static const float out[] = {0.03f, 0.04f, 0.05f};
    struct sq_load_fixture f;
    struct sq_config c = sq_load_llama_config(SQ_SCHEME_W8A8_STATIC);
    sq_load_init(&f, &c);
    for (int i = 0; i < 3; i++) {
        set_step(&f, qkv[i], "input_scale", 0.02f);
        set_step(&f, qkv[i], "output_scale", out[i]);
    }
    set_step(&f, "self_attn.o_proj", "input_scale", 0.01f);
    set_step(&f, "mlp.gate_proj", "input_scale", 0.06f);
    set_step(&f, "mlp.up_proj", "input_scale", 0.06f);
    set_step(&f, "mlp.down_proj", "input_scale", 0.07f);
    float *gate = sq_load_values(&f, M0 "mlp.gate_proj.weight_scale"),
          *up = sq_load_values(&f, M0 "mlp.up_proj.weight_scale"),
          *k = sq_load_values(&f, M0 "self_attn.k_proj.weight_scale");
    sq_load_must(&f, NULL);
    const struct sq_layer *l = f.m->layers;
    assert_true(f.m->int8_attention);
    sq_load_check_linear(l->qkv, 64, 16, SQ_I8, false, SQ_OUT_F32,
                         SQ_ACT_NONE); /* rope makes the codes */
    sq_load_check_linear(l->up, 24, 16, SQ_I8, false, SQ_OUT_F32, SQ_ACT_NONE);
    sq_load_check_linear(l->down, 16, 12, SQ_I8, false, SQ_OUT_ADD, SQ_ACT_NONE);
    check_pairs(&f, l->up);
    for (size_t i = 0; i < 12; i++)
        assert_true(l->up->mul[2 * i] == 0.06f * gate[i] && l->up->mul[2 * i + 1] == 0.06f * up[i]);
    assert_true(l->qkv->mul[32 + 5] == 0.02f * k[5]);
    assert_true(l->up_step == 0.06f && l->down_step == 0.07f && l->o_step == 0.01f);
    assert_true(l->attn.q_inv == 1 / 0.03f && l->attn.k_inv == 1 / 0.04f &&
                l->attn.v_inv == 1 / 0.05f);
    assert_true(l->attn.score_mul == 0.03f * 0.04f / sqrtf(8) && l->attn.out_mul == 0.05f / 0.01f);
    assert_true(l->norm2->d.gamma_q[3] == l->norm2->d.gamma[3] / 0.06f);
    free(gate);
    free(up);
    free(k);
    sq_load_done(&f);
}

/* What llm-compressor writes: no steps of q, k and v, so attention is float. Old rotation tables are no surplus. */
static void test_static_plain(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_llama_config(SQ_SCHEME_W8A8_STATIC);
    float freq[4] = {0};
    sq_load_init(&f, &c);
    sq_load_drop_all(&f, ".output_scale");
    sq_load_set_floats(&f, M0 "self_attn.rotary_emb.inv_freq", 1, 4, 0, freq);
    sq_load_must(&f, NULL);
    assert_false(f.m->int8_attention);
    assert_true(f.m->layers[1].attn.out_mul == 1 && f.m->layers[1].attn.q_inv == 0);
    sq_load_done(&f);
}

static void test_dynamic(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_llama_config(SQ_SCHEME_W8A8_DYNAMIC);
    sq_load_init(&f, &c);
    sq_load_must(&f, NULL);
    sq_load_check_linear(f.m->layers[1].qkv, 64, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_NONE);
    sq_load_check_linear(f.m->layers[1].up, 24, 16, SQ_I8, true, SQ_OUT_F32, SQ_ACT_NONE);
    check_pairs(&f, f.m->layers[0].up);
    sq_load_done(&f);
}

static void test_refusals(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_llama_config(SQ_SCHEME_W8A8_STATIC);
    sq_load_init(&f, &c);
    set_step(&f, "mlp.gate_proj", "input_scale", 0.5f);
    sq_load_fails(&f, SQ_E_NOTSUP, "layer 0: up_proj and gate_proj have input scales");
    sq_files_drop(&f.l, M0 "mlp.gate_proj.weight");
    sq_load_fails(&f, SQ_E_FORMAT,
                  "C4: missing tensors: 1 ('model.layers.0.mlp.gate_proj.weight')");
    sq_load_done(&f);
    c = sq_load_llama_config(SQ_SCHEME_FLOAT);
    sq_load_init(&f, &c);
    float zeros[16] = {0};
    sq_load_set_floats(&f, M0 "input_layernorm.bias", 1, 16, 0, zeros);
    sq_load_fails(&f, SQ_E_FORMAT, "surplus: 1 ('model.layers.0.input_layernorm.bias')");
    sq_files_drop(&f.l, M0 "input_layernorm.bias");
    sq_files_drop(&f.l, "lm_head.weight");
    sq_load_fails(&f, SQ_E_FORMAT, "missing tensors: 1 ('lm_head.weight')");
    sq_load_done(&f);
}

/* Any allocation may fail; nothing stays behind on the backend. */
static void test_out_of_memory(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_llama_config(SQ_SCHEME_W8A8_STATIC);
    c.ffn_bias = true;
    c.n_layers = 1;
    sq_load_init(&f, &c);
    sq_load_starved(&f, NULL);
    sq_load_done(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),         cmocka_unit_test(test_rope_keys),
        cmocka_unit_test(test_frequencies),  cmocka_unit_test(test_float),
        cmocka_unit_test(test_many_pairs),   cmocka_unit_test(test_static),
        cmocka_unit_test(test_static_plain), cmocka_unit_test(test_dynamic),
        cmocka_unit_test(test_refusals),     cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
