/* INT8 matmul: `ref` against a computation that knows nothing of packing, and every variant, at 1 to 3 threads, byte-equal to `ref`. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/cpu/cpu.h"

/* --- one problem --- */

enum fill { FILL_RANDOM, FILL_SMALL, FILL_LOWEST, FILL_OPPOSED };

struct problem {
    int m;
    size_t n, k;
    enum sq_out out;
    enum sq_act act;
    bool dynamic;
    enum fill fill;
    /* drawn from the above */
    int8_t *w, *x; /* [n,k], [m,k] */
    float *mul, *bias, *row_scale, *y0;
    int32_t *bias_acc;
};

static uint32_t draw(uint32_t *s)
{
    *s = *s * 1664525u + 1013904223u;
    return *s >> 8;
}

static float draw_float(uint32_t *s)
{
    return (float)draw(s) / 8388608.0f - 1.0f; /* [-1,1) */
}

static int8_t draw_code(uint32_t *s, enum fill fill, bool weight)
{
    switch (fill) {
    case FILL_SMALL:
        return (int8_t)((int)(draw(s) % 255) - 127); /* no -128: the sign trick of AVX2 */
    case FILL_LOWEST:
        return INT8_MIN;
    case FILL_OPPOSED:
        return weight ? INT8_MIN : draw(s) % 2 ? 127 : INT8_MIN;
    default:
        return (int8_t)draw(s);
    }
}

static void problem_fill(struct problem *p, uint32_t seed)
{
    const size_t m = (size_t)p->m, n = p->n, k = p->k;
    uint32_t s = seed;
    p->w = sq_malloc(n * k);
    p->x = sq_malloc(m * k);
    p->mul = sq_new_array(float, n);
    p->bias = sq_new_array(float, n);
    p->row_scale = sq_new_array(float, m);
    p->y0 = sq_new_array(float, m *n);
    p->bias_acc = sq_new_array(int32_t, n);
    for (size_t i = 0; i < n * k; i++)
        p->w[i] = draw_code(&s, p->fill, true);
    for (size_t i = 0; i < m * k; i++)
        p->x[i] = draw_code(&s, p->fill, false);
    for (size_t i = 0; i < n; i++) {
        /* codes spread over, and often beyond, the int8 range */
        p->mul[i] = (draw_float(&s) + 1.5f) * 0.05f / (float)sqrt((double)k);
        p->bias[i] = draw_float(&s) * 3.0f;
        p->bias_acc[i] = i % 7 == 3 ? INT32_MAX : (int)draw(&s) % 20001 - 10000;
    }
    for (size_t i = 0; i < m; i++)
        p->row_scale[i] = (draw_float(&s) + 1.1f) * 0.01f;
    for (size_t i = 0; i < m * n; i++)
        p->y0[i] = draw_float(&s) * 5.0f;
}

static void problem_done(struct problem *p)
{
    sq_free(p->w);
    sq_free(p->x);
    sq_free(p->mul);
    sq_free(p->bias);
    sq_free(p->row_scale);
    sq_free(p->y0);
    sq_free(p->bias_acc);
}

/* --- running it --- */

struct run {
    struct sq_backend *be;
    struct sq_linear *l;
    struct sq_buf *x, *y;
};

/* Rows are put in three parts, out of order. */
static void put_all(struct run *r, const struct problem *p)
{
    struct sq_err err = {0};
    const size_t a = p->n / 3, b = p->n - p->n / 4;
    assert_int_equal(r->be->ops->linear_put(r->be, r->l, b, p->n - b, p->w + b * p->k, &err), 0);
    assert_int_equal(r->be->ops->linear_put(r->be, r->l, 0, a, p->w, &err), 0);
    assert_int_equal(r->be->ops->linear_put(r->be, r->l, a, b - a, p->w + a * p->k, &err), 0);
}

static void run_open(struct run *r, const struct problem *p, const char *variant, int n_threads)
{
    struct sq_err err = {0};
    const struct sq_cpu_options o = {.n_threads = n_threads, .variant = variant};
    const struct sq_linear_desc d = {.name = "w",
                                     .n_out = p->n,
                                     .n_in = p->k,
                                     .dtype = SQ_I8,
                                     .dynamic = p->dynamic,
                                     .out = p->out,
                                     .act = p->act};
    const struct sq_epilogue e = {.mul = p->mul, .bias = p->bias, .bias_acc = p->bias_acc};
    const size_t m = (size_t)p->m;
    assert_int_equal(sq_cpu_open(&o, &r->be, &err), 0);
    assert_int_equal(r->be->ops->buf_new(r->be, SQ_BUF_S8, m, p->k, &r->x, &err), 0);
    assert_int_equal(r->be->ops->buf_new(r->be, p->out == SQ_OUT_S8 ? SQ_BUF_S8 : SQ_BUF_F32, m,
                                         p->n, &r->y, &err),
                     0);
    assert_int_equal(r->be->ops->linear_new(r->be, &d, &r->l, &err), 0);
    put_all(r, p);
    assert_int_equal(r->be->ops->linear_finish(r->be, r->l, &e, &err), 0);
    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < p->k; j++)
            r->x->u[i * r->x->stride + j] = (uint8_t)(p->x[i * p->k + j] + 128);
        r->x->row_scale[i] = p->row_scale[i];
        if (p->out != SQ_OUT_S8)
            memcpy(r->y->f + i * r->y->stride, p->y0 + i * p->n, p->n * sizeof(float));
    }
    (void)r->be->ops->step_begin(r->be, NULL, NULL);
    assert_int_equal(r->be->ops->linear(r->be, r->l, r->x, p->m, r->y), 0);
    (void)r->be->ops->step_end(r->be);
}

static void run_close(struct run *r)
{
    struct sq_device_info info;
    r->be->ops->linear_free(r->be, r->l);
    r->be->ops->buf_free(r->be, r->x);
    r->be->ops->buf_free(r->be, r->y);
    r->be->ops->info(r->be, &info);
    assert_int_equal(info.mem_used_bytes, 0);
    r->be->ops->close(r->be);
}

/* --- the independent computation --- */

static float naive_float(const struct problem *p, size_t i, size_t j, int32_t acc)
{
    float v = (float)acc;
    if (p->dynamic)
        v = v * p->row_scale[i];
    v = fmaf(v, p->mul[j], p->bias[j]);
    if (p->act == SQ_ACT_RELU && v < 0.0f)
        v = 0.0f;
    return p->out == SQ_OUT_ADD ? p->y0[i * p->n + j] + v : v;
}

static int naive_code(const struct problem *p, size_t j, int32_t acc)
{
    int32_t sum = (int32_t)(uint32_t)(int64_t)((int64_t)acc + p->bias_acc[j]);
    double v = nearbyint((double)((float)sum * p->mul[j]));
    v = v > 127 ? 127 : v < -127 ? -127 : v;
    if (p->act == SQ_ACT_RELU && v < 0)
        v = 0;
    return (int)v;
}

static void check_naive(const struct problem *p, const struct run *r)
{
    for (size_t i = 0; i < (size_t)p->m; i++) {
        for (size_t j = 0; j < p->n; j++) {
            int64_t acc = 0;
            for (size_t k = 0; k < p->k; k++)
                acc += p->x[i * p->k + k] * p->w[j * p->k + k];
            if (p->out == SQ_OUT_S8) {
                assert_int_equal(r->y->u[i * r->y->stride + j] - 128,
                                 naive_code(p, j, (int32_t)acc));
            } else {
                float want = naive_float(p, i, j, (int32_t)acc),
                      got = r->y->f[i * r->y->stride + j];
                assert_memory_equal(&want, &got, sizeof want);
            }
        }
    }
}

/* Whole buffers, with what lies behind the columns: it must still hold code 0. */
static void check_same(const struct problem *p, const struct run *a, const struct run *b)
{
    const size_t n = a->y->max_rows * a->y->stride;
    const bool f32 = p->out != SQ_OUT_S8;
    const void *pa = f32 ? (const void *)a->y->f : a->y->u,
               *pb = f32 ? (const void *)b->y->f : b->y->u;
    assert_memory_equal(pa, pb, n * (f32 ? sizeof(float) : 1));
    for (size_t i = 0; !f32 && i < n; i++)
        assert_true(i % a->y->stride < p->n || a->y->u[i] == 128);
}

static void check_problem(struct problem p, uint32_t seed, bool naive)
{
    struct run ref, other;
    problem_fill(&p, seed);
    run_open(&ref, &p, "ref", 1);
    if (naive)
        check_naive(&p, &ref);
    for (const char *const *v = sq_cpu_variant_names(); *v; v++) {
        for (int threads = 1; threads <= 3; threads++) {
            run_open(&other, &p, *v, threads);
            check_same(&p, &ref, &other);
            run_close(&other);
        }
    }
    run_close(&ref);
    problem_done(&p);
}

/* --- tests --- */

static const struct epilogue_case {
    enum sq_out out;
    enum sq_act act;
    bool dynamic;
} cases[] = {
    {SQ_OUT_F32, SQ_ACT_NONE, false}, {SQ_OUT_F32, SQ_ACT_RELU, false},
    {SQ_OUT_ADD, SQ_ACT_NONE, false}, {SQ_OUT_S8, SQ_ACT_NONE, false},
    {SQ_OUT_S8, SQ_ACT_RELU, false},  {SQ_OUT_F32, SQ_ACT_NONE, true},
    {SQ_OUT_ADD, SQ_ACT_RELU, true},
};

static struct problem problem_of(size_t i_case, int m, size_t n, size_t k, enum fill fill)
{
    const struct epilogue_case *c = &cases[i_case % SQ_ARRAY_LEN(cases)];
    return (struct problem){
        .m = m, .n = n, .k = k, .out = c->out, .act = c->act, .dynamic = c->dynamic, .fill = fill};
}

static void every_number_of_rows(void **state)
{
    (void)state;
    for (int m = 1; m <= 33; m = m == 17 ? 33 : m + 1) {
        for (size_t c = 0; c < SQ_ARRAY_LEN(cases); c++) {
            check_problem(problem_of(c, m, 70, 39, FILL_SMALL), (uint32_t)m, true);
            check_problem(problem_of(c, m, 70, 39, FILL_RANDOM), (uint32_t)m + 100, true);
        }
    }
}

static void odd_columns_and_depths(void **state)
{
    static const size_t ns[] = {1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 97},
                        ks[] = {1, 2, 3, 4, 5, 8, 63, 64, 65, 260};
    size_t c = 0;
    (void)state;
    for (size_t i = 0; i < SQ_ARRAY_LEN(ns); i++) {
        for (size_t j = 0; j < SQ_ARRAY_LEN(ks); j++, c++)
            check_problem(
                problem_of(c, 1 + (int)(c % 6), ns[i], ks[j], c % 3 ? FILL_SMALL : FILL_RANDOM),
                (uint32_t)c, true);
    }
}

/* Sums that saturate s16 pairs where a kernel is careless: -128 * -128 and 127 * -128 everywhere. */
static void extreme_codes(void **state)
{
    (void)state;
    for (size_t c = 0; c < SQ_ARRAY_LEN(cases); c++) {
        for (int m = 1; m <= 15; m += 7) {
            check_problem(problem_of(c, m, 40, 300, FILL_LOWEST), 1, true);
            check_problem(problem_of(c, m, 40, 300, FILL_OPPOSED), 2, true);
        }
    }
}

static void deepest_sum_fits(void **state)
{
    (void)state;
    check_problem(problem_of(0, 1, 3, SQ_K_MAX, FILL_LOWEST), 3, true);
    check_problem(problem_of(3, 2, 33, SQ_K_MAX, FILL_OPPOSED), 4, true);
}

/* Several blocks of rows and several pieces of panels. */
static void many_rows(void **state)
{
    (void)state;
    check_problem(problem_of(2, 150, 200, 8192, FILL_SMALL), 5, false);
    check_problem(problem_of(3, 257, 330, 1024, FILL_SMALL), 6, false);
}

static void misuse_is_an_error(void **state)
{
    struct sq_err err = {0};
    struct sq_linear *l;
    const struct sq_linear_desc d = {
        .name = "q_proj", .n_out = 5, .n_in = 4, .dtype = SQ_I8, .out = SQ_OUT_F32};
    const int8_t rows[20] = {0};
    const float mul[5] = {1, 1, 1, 1, 1};
    const struct sq_epilogue e = {.mul = mul};
    (void)state;
    assert_int_equal(sq_cpu_linear_new(&d, &l, &err), 0);
    assert_int_equal(sq_cpu_linear_put(l, 1, 5, rows, &err), -SQ_E_INVAL);
    assert_int_equal(sq_cpu_linear_put(l, 6, 0, rows, &err), -SQ_E_INVAL);
    assert_int_equal(sq_cpu_linear_put(l, 1, SIZE_MAX, rows, &err), -SQ_E_INVAL);
    assert_int_equal(sq_cpu_linear_put(l, 0, 3, rows, &err), 0);
    assert_int_equal(sq_cpu_linear_put(l, 2, 2, rows, &err), -SQ_E_INVAL);
    assert_string_equal(err.msg, "q_proj: row 2 put twice");
    assert_int_equal(sq_cpu_linear_finish(l, &e, &err), -SQ_E_INVAL);
    assert_string_equal(err.msg, "q_proj: finished with 3 of 5 rows");
    assert_int_equal(sq_cpu_linear_put(l, 3, 2, rows, &err), 0);
    assert_int_equal(sq_cpu_linear_finish(l, &e, &err), 0);
    assert_int_equal(sq_cpu_linear_finish(l, &e, &err), -SQ_E_STATE);
    assert_int_equal(sq_cpu_linear_put(l, 0, 1, rows, &err), -SQ_E_STATE);
    sq_cpu_linear_free(l);

    const struct sq_linear_desc deep = {
        .name = "deep", .n_out = 1, .n_in = SQ_K_MAX + 1, .dtype = SQ_I8};
    assert_int_equal(sq_cpu_linear_new(&deep, &l, &err), -SQ_E_LIMIT);
    const struct sq_linear_desc huge = {
        .name = "huge", .n_out = SIZE_MAX / 128, .n_in = 1024, .dtype = SQ_I8};
    assert_int_equal(sq_cpu_linear_new(&huge, &l, &err), -SQ_E_NOMEM);
}

static void unknown_variant_is_refused(void **state)
{
    struct sq_err err = {0};
    struct sq_backend *be = NULL;
    const struct sq_cpu_options o = {.n_threads = 1, .variant = "AVX9"};
    (void)state;
    assert_int_equal(sq_cpu_open(&o, &be, &err), -SQ_E_NOTSUP);
    assert_non_null(strstr(err.msg, "AVX9"));
    assert_non_null(strstr(err.msg, "ref"));
    assert_null(be);
}

static void out_of_memory_is_an_error(void **state)
{
    struct sq_err err = {0};
    const struct sq_linear_desc d = {
        .name = "w", .n_out = 33, .n_in = 5, .dtype = SQ_I8, .out = SQ_OUT_F32};
    (void)state;
    for (uint64_t k = 1; k < 100; k++) {
        struct sq_linear *l = NULL;
        sq_mem_fail_at(k, false);
        int rc = sq_cpu_linear_new(&d, &l, &err);
        bool failed = sq_mem_count() >= k;
        sq_mem_fail_at(0, false);
        assert_int_equal(rc, failed ? -SQ_E_NOMEM : 0);
        sq_cpu_linear_free(l);
        if (!failed)
            return;
    }
    fail_msg("allocation never succeeded");
}

static void names_match_tables(void **state)
{
    const struct sq_cpu_ops *const *v = sq_cpu_variants();
    const char *const *names = sq_cpu_variant_names();
    size_t i = 0;
    (void)state;
    for (; v[i]; i++)
        assert_string_equal(v[i]->name, names[i]);
    assert_null(names[i]);
    assert_string_equal(v[i - 1]->name, "ref");
    print_message("variants: %s first of %zu\n", names[0], i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_match_tables),         cmocka_unit_test(every_number_of_rows),
        cmocka_unit_test(odd_columns_and_depths),     cmocka_unit_test(extreme_codes),
        cmocka_unit_test(deepest_sum_fits),           cmocka_unit_test(many_rows),
        cmocka_unit_test(misuse_is_an_error),         cmocka_unit_test(out_of_memory_is_an_error),
        cmocka_unit_test(unknown_variant_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
