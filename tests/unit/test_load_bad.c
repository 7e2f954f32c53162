/* sq_model_load refused, stopped, or failing half-way: rules C4 and Q1 to Q8, each with its text, and nothing left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"
#include "tests/lib/load_fixture.h"

static void drop_one(struct sq_load_fixture *f)
{
    sq_files_drop(&f->l, L1 "fc1.bias");
}

static void drop_and_add(struct sq_load_fixture *f)
{
    size_t one[] = {1};
    drop_one(f);
    for (int i = 0; i < 4; i++) {
        char name[32];
        snprintf(name, sizeof name, "ghost.%d", i);
        sq_files_put(&f->l, name, SQ_F32, 1, one, NULL);
    }
}

static void add_layer(struct sq_load_fixture *f)
{
    sq_load_set_scale(f, P "layers.2.fc1.bias", 1);
}

static void odd_number(struct sq_load_fixture *f)
{
    sq_load_set_scale(f, P "layers.00.fc1.bias", 1);
}

static void wrong_shape(struct sq_load_fixture *f)
{
    size_t shape[] = {16, 16};
    sq_files_put(&f->l, L0 "fc1.weight", f->c.scheme ? SQ_I8 : SQ_F16, 2, shape, NULL);
}

static void empty_tensor(struct sq_load_fixture *f)
{
    size_t shape[] = {0, 16};
    sq_files_put(&f->l, L0 "fc1.weight", SQ_F16, 2, shape, NULL);
}

static void codes_for_floats(struct sq_load_fixture *f)
{
    size_t shape[] = {24, 16};
    sq_files_put(&f->l, L0 "fc1.weight", SQ_I8, 2, shape, NULL);
}

static void floats_for_codes(struct sq_load_fixture *f)
{
    size_t shape[] = {24, 16};
    sq_files_put(&f->l, L0 "fc1.weight", SQ_BF16, 2, shape, NULL);
}

static void rank_three(struct sq_load_fixture *f)
{
    size_t shape[] = {24, 16, 1};
    sq_files_put(&f->l, L0 "fc1.weight", SQ_I8, 3, shape, NULL);
}

static void scale_shape(struct sq_load_fixture *f)
{
    sq_load_set_floats(f, L0 "fc1.weight_scale", 2, 1, 24, (float[24]){0});
}

static void scale_codes(struct sq_load_fixture *f)
{
    size_t one[] = {1};
    sq_files_put(&f->l, L0 "fc1.input_scale", SQ_I8, 1, one, NULL);
}

static void scale_value(struct sq_load_fixture *f, float v)
{
    struct sq_file_tensor *t = sq_files_find(&f->l, L0 "fc1.weight_scale");
    ((float *)t->data)[7] = v;
    memset((char *)sq_files_find(&f->l, L0 "fc1.weight")->data + 7 * 16, 0, 16);
}

static void scale_zero(struct sq_load_fixture *f)
{
    scale_value(f, 0);
}

static void scale_negative(struct sq_load_fixture *f)
{
    scale_value(f, -1);
}

static void scale_nan(struct sq_load_fixture *f)
{
    scale_value(f, NAN);
}

static void scale_infinite(struct sq_load_fixture *f)
{
    scale_value(f, INFINITY);
}

static void scale_subnormal(struct sq_load_fixture *f)
{
    scale_value(f, 1e-40f);
}

static void scale_product(struct sq_load_fixture *f)
{
    scale_value(f, 1e-37f); /* normal, but not times the input's step */
}

static void step_zero(struct sq_load_fixture *f)
{
    sq_load_set_scale(f, L1 "fc2.input_scale", 0);
}

static void step_huge(struct sq_load_fixture *f)
{
    sq_load_set_scale(f, L0 "self_attn.k_proj.output_scale", 1e38f);
    sq_load_set_scale(f, L0 "self_attn.q_proj.output_scale", 1e38f);
}

static void steps_differ(struct sq_load_fixture *f)
{
    sq_load_set_scale(f, L1 "self_attn.k_proj.input_scale", 0.5f);
}

static void step_missing(struct sq_load_fixture *f)
{
    sq_files_drop(&f->l, L1 "self_attn.v_proj.output_scale");
}

static void zero_point(struct sq_load_fixture *f)
{
    size_t shape[] = {24, 1};
    int8_t z[24] = {[23] = 3};
    sq_files_put(&f->l, L0 "fc1.weight_zero_point", SQ_I8, 2, shape, z);
}

static void input_zero_point(struct sq_load_fixture *f)
{
    size_t one[] = {1};
    int8_t z = -5;
    sq_files_put(&f->l, L0 "self_attn.k_proj.input_zero_point", SQ_I8, 1, one, &z);
}

static void huge_bias(struct sq_load_fixture *f)
{
    struct sq_file_tensor *t = sq_files_find(&f->l, L0 "fc1.bias");
    ((uint16_t *)t->data)[2] = 0x7bff; /* 65504 */
}

static void norm_nan(struct sq_load_fixture *f)
{
    ((uint16_t *)sq_files_find(&f->l, L1 "final_layer_norm.weight")->data)[4] = 0x7e00;
}

static void norm_overflow(struct sq_load_fixture *f)
{
    float v[16] = {[3] = 3e38f};
    sq_load_set_floats(f, L0 "final_layer_norm.weight", 1, 16, 0, v);
}

static void bias_infinite(struct sq_load_fixture *f)
{
    ((uint16_t *)sq_files_find(&f->l, L0 "fc2.bias")->data)[4] = 0xfc00;
}

static void embed_nan(struct sq_load_fixture *f)
{
    ((uint16_t *)sq_files_find(&f->l, P "embed_tokens.weight")->data)[319] = 0x7c01;
}

static void weight_nan(struct sq_load_fixture *f)
{
    ((uint16_t *)sq_files_find(&f->l, L1 "fc2.weight")->data)[0] = 0x7c00;
}

static const struct bad {
    enum sq_scheme scheme;
    void (*spoil)(struct sq_load_fixture *f);
    int code;
    const char *text;
} bads[] = {
    {SQ_SCHEME_FLOAT, drop_one, SQ_E_FORMAT,
     "C4: missing tensors: 1 ('" L1 "fc1.bias'); surplus: 0"},
    {SQ_SCHEME_FLOAT, drop_and_add, SQ_E_FORMAT,
     "missing tensors: 1 ('" L1 "fc1.bias'); surplus: 4 ('ghost.0', 'ghost.1', 'ghost.2', ...)"},
    {SQ_SCHEME_FLOAT, add_layer, SQ_E_FORMAT, "surplus: 1 ('" P "layers.2.fc1.bias')"},
    {SQ_SCHEME_FLOAT, odd_number, SQ_E_FORMAT, "surplus: 1 ('" P "layers.00.fc1.bias')"},
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
    {SQ_SCHEME_W8A8_STATIC, steps_differ, SQ_E_NOTSUP, "layer 1: q_proj and k_proj have"},
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
        struct sq_load_fixture f;
        struct sq_config c = sq_load_config(bads[i].scheme);
        sq_load_init(&f, &c);
        bads[i].spoil(&f);
        if (bads[i].spoil == huge_bias) /* make 65504 too many units */
            sq_load_set_scale(&f, L0 "fc1.input_scale", 1e-3f);
        sq_load_fails(&f, bads[i].code, bads[i].text);
        sq_load_done(&f);
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
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_STATIC);
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
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_load_options o = {.allow_surplus = true};
    sq_load_init(&f, &c);
    sq_load_set_scale(&f, "ghost", 1);
    sq_load_must(&f, &o);
    sq_load_done(&f);
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
        struct sq_load_fixture f;
        struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
        double last = 0;
        struct sq_load_options o = {
            .progress = see, .ctx = &last, .head = i % 2 ? SQ_HEAD_INT8 : SQ_HEAD_KEEP};
        sq_load_init(&f, &c);
        struct sq_file_tensor *e = sq_files_find(&f.l, P "embed_tokens.weight");
        size_t shape[] = {20, 16};
        if (i / 2)
            sq_files_put(&f.l, "lm_head.weight", SQ_F16, 2, shape, e->data);
        sq_load_must(&f, &o);
        assert_true(last == 1);
        sq_load_done(&f);
    }
}

static void test_stop(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    _Atomic bool stop = true;
    struct sq_load_options o = {.stop = &stop};
    sq_load_init(&f, &c);
    assert_int_equal(sq_load_try(&f, &o, NULL), -SQ_E_INTR);
    sq_load_done(&f);
}

static void test_device_fails(void **state)
{
    (void)state;
    struct sq_load_fixture f;
    struct sq_config c = sq_load_config(SQ_SCHEME_W8A8_STATIC);
    sq_load_init(&f, &c);
    int r = -1, k;
    for (k = 1; r; k++) {
        f.be.fail_at = k;
        r = sq_load_try(&f, NULL, NULL);
        if (r) {
            assert_int_equal(r, -SQ_E_DEVICE);
            assert_true(f.be.n_linears == 0 && f.be.n_norms == 0);
        }
    }
    assert_true(k > 10);
    sq_load_done(&f);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    struct sq_load_options o = {.head = SQ_HEAD_INT8};
    for (int scheme = SQ_SCHEME_FLOAT; scheme <= SQ_SCHEME_W8A8_DYNAMIC; scheme++) {
        struct sq_load_fixture f;
        struct sq_config c = sq_load_config((enum sq_scheme)scheme);
        c.embed_dim = 12;
        sq_load_init(&f, &c);
        sq_load_starved(&f, &o);
        sq_load_done(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_too_many_inputs),
        cmocka_unit_test(test_surplus_allowed),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_device_fails),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
