/* The parts of `sqd bench` that run on any backend: shapes, repeated blocks of weights, what a stage must move, steps of a part of the layers. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/bench_block.h"
#include "daemon/bench_gpu.h"
#include "daemon/bench_shapes.h"
#include "daemon/bench_steps.h"
#include "engine/base/check.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/model/model.h"

static struct sq_config shape(const char *name)
{
    struct sq_config c;
    struct sq_err err = {0};
    assert_int_equal(sq_shape_config(name, &c, &err), 0);
    return c;
}

static void test_shapes(void **state)
{
    (void)state;
    char names[] = SQ_SHAPE_NAMES;
    int n = 0;
    for (char *save, *t = strtok_r(names, ", ", &save); t; t = strtok_r(NULL, ", ", &save), n++)
        (void)shape(t);
    assert_int_equal(n, 11);
    struct sq_config c = shape("llama-3-70b"), unused;
    assert_int_equal(c.n_layers, 80);
    assert_int_equal(c.n_kv_heads, 8);
    assert_int_equal(c.head_dim, 128);
    assert_int_equal(c.ffn, 28672);
    c = shape("opt-66b");
    assert_true(c.n_layers == 64 && c.hidden == 9216 && c.ffn == 36864 && c.embed_dim == 9216);
    assert_true(c.n_heads == 72 && c.n_kv_heads == 72 && c.vocab == 50272);
    struct sq_err err = {0};
    assert_int_equal(sq_shape_config("opt-9b", &unused, &err), -SQ_E_NOTFOUND);
    assert_non_null(strstr(err.msg, "opt-6.7b"));
}

static void test_stage_words(void **state)
{
    (void)state;
    struct sq_stage s;
    assert_true(sq_stage_parse("decode:64:1024", &s));
    assert_true(s.decode && s.n == 64 && s.context == 1024);
    assert_true(sq_stage_parse("prefill:2048", &s));
    assert_true(!s.decode && s.n == 2048);
    static const char *const wrong[] = {"", "decode", "decode:4", "decode:0:5",
                                        "prefill:", "prefill:1:2", "prefill:-1", "both:1",
                                        "decode:4:x", "decode:4:5:6", "prefill:4x",
                                        /* wrong only behind what a buffer of 64 bytes would hold */
                                        "prefill:0000000000000000000000000"
                                        "000000000000000000000000012345x"};
    for (size_t i = 0; i < SQ_ARRAY_LEN(wrong); i++)
        assert_false(sq_stage_parse(wrong[i], &s));
}

/* Counted by hand for OPT-30B: 48 layers of 12 * 7168^2 weights. */
static void test_work(void **state)
{
    (void)state;
    struct sq_config c = shape("opt-30b");
    const double w = 48.0 * 12 * 7168 * 7168, head = 50272.0 * 7168, kv = 48.0 * 2 * 7168;
    struct sq_stage one = {.decode = true, .n = 1, .context = 1024}, all = {.n = 2048};
    struct sq_stage_work q = sq_stage_work(&c, &one, true);
    assert_true(q.bytes == w + head + kv * 1025);
    assert_true(q.ops == 2 * w + 4.0 * 48 * 7168 * 1025 + 2 * head);
    assert_true(sq_stage_work(&c, &one, false).bytes == 2 * (w + head) + 4 * kv * 1025);
    q = sq_stage_work(&c, &all, true);
    assert_true(q.bytes == w + head + kv * 2048);
    assert_true(q.ops == 2 * w * 2048 + 4.0 * 48 * 7168 * (2048.0 * 2049 / 2) + 2 * head);
    c = shape("llama-3-8b"); /* gate, up and down; 8 of 32 heads have keys */
    q = sq_stage_work(&c, &one, true);
    assert_true(q.bytes == 32.0 * (4096.0 * 6144 + 4096.0 * 4096 + 3 * 4096.0 * 14336) +
                               128256.0 * 4096 + 32.0 * 2 * 1024 * 1025);
}

/* Rows of a repeated block come out the same however they are asked for, small tensors are the inner source's. */
static void test_block_source(void **state)
{
    (void)state;
    struct sq_config c = shape("opt-2.7b");
    struct sq_err err = {0};
    struct sq_source *inner, *src;
    assert_int_equal(sq_random_source_open(&c, 1, &inner, &err), 0);
    assert_int_equal(sq_block_source_open(inner, &src, &err), 0);
    const char *w = "model.decoder.layers.3.fc1.weight", *b = "model.decoder.layers.3.fc1.bias";
    enum { COLS = 2560, N = 700 };
    static uint16_t whole[N * COLS], part[COLS], plain[COLS], bias[10240], inner_bias[10240];
    assert_int_equal(src->ops->read(src, w, 5000, N, whole, &err), 0);
    for (size_t row = 0; row < N; row += 99) {
        assert_int_equal(src->ops->read(src, w, 5000 + row, 1, part, &err), 0);
        assert_memory_equal(part, whole + row * COLS, sizeof part);
    }
    assert_int_equal(src->ops->read(src, w, 0, 1, part, &err), 0);
    assert_int_equal(inner->ops->read(inner, w, 0, 1, plain, &err), 0);
    assert_memory_equal(part, plain, sizeof part);
    assert_int_equal(src->ops->read(src, b, 0, 10240, bias, &err), 0);
    assert_int_equal(inner->ops->read(inner, b, 0, 10240, inner_bias, &err), 0);
    assert_memory_equal(bias, inner_bias, sizeof bias);
    sq_source_close(src);
    sq_source_close(inner);
}

static int open_cpu(void *ctx, struct sq_backend **ret, struct sq_err *err)
{
    ++*(int *)ctx;
    return sq_cpu_open(&(struct sq_cpu_options){.n_threads = 1}, ret, err);
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fabs(b);
}

static void test_steps(void **state)
{
    (void)state;
    static const struct sq_stage stages[] = {{.n = 33}, {.decode = true, .n = 3, .context = 40}};
    static const char *const shapes[] = {"tiny-opt", "tiny-llama"};
    const struct sq_gpu_ceilings top = {1e9, 1e9, 1e9};
    for (int i = 0; i < 4; i++) {
        struct sq_config c = shape(shapes[i / 2]);
        struct sq_err err = {0};
        struct sq_stage_figure f[2];
        int n_opened = 0;
        struct sq_stage_bench b = {.open = open_cpu,
                                   .ctx = &n_opened,
                                   .ceilings = &top,
                                   .stages = stages,
                                   .n_stages = 2,
                                   .n_layers = i & 1 ? 3 : 0,
                                   .n_samples = 3,
                                   .fill_cache = true};
        for (int int8 = 0; int8 < 2; int8++) {
            n_opened = 0;
            assert_int_equal(sq_bench_stages(&b, &c, int8, f, &err), 0);
            assert_int_equal(n_opened, i & 1 ? 2 : 1);
            assert_int_equal(f[1].n_measured, i & 1 ? 3 : 6);
            assert_int_equal(f[1].n_layers, 6);
            assert_true(f[0].ms > 0 && f[1].ms > 0);
            struct sq_stage_work w = sq_stage_work(&c, &stages[1], int8);
            assert_true(near(f[1].read_share, w.bytes / (f[1].ms / 1000) / 1e9));
            assert_true(near(f[1].tokens_per_s, 3 / (f[1].ms / 1000)));
        }
    }
}

static void test_too_long(void **state)
{
    (void)state;
    static const struct sq_stage stage = {.n = 2049};
    struct sq_config c = shape("tiny-opt");
    struct sq_err err = {0};
    struct sq_stage_figure f;
    int n_opened = 0;
    struct sq_stage_bench b = {
        .open = open_cpu, .ctx = &n_opened, .stages = &stage, .n_stages = 1, .n_samples = 1};
    assert_int_equal(sq_bench_stages(&b, &c, true, &f, &err), -SQ_E_LIMIT);
    assert_int_equal(n_opened, 0);
    struct sq_step_figure figures[SQ_N_STEP_FIGURES];
    struct sq_step_options o = {.name = "short", .config = &c, .threads = 1, .n_samples = 1};
    c.max_positions = 128; /* a prompt fits, decoding behind it does not */
    c.scheme = SQ_SCHEME_W8A8_STATIC;
    assert_int_equal(sq_bench_steps(&o, figures, &err), -SQ_E_LIMIT);
    assert_non_null(strstr(err.msg, "a stage of 160 tokens, the shape has 128 positions"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes), cmocka_unit_test(test_stage_words),
        cmocka_unit_test(test_work),   cmocka_unit_test(test_block_source),
        cmocka_unit_test(test_steps),  cmocka_unit_test(test_too_long)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
