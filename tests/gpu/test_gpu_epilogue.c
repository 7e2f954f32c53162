/* What follows a matmul, against the definitions of engine/quant.h and the CPU backend's plain C, bit for bit. */
#include <limits.h>

#include "tests/gpu/gpu_rows.h"

#define REF (&sq_cpu_ops_ref)

#define LARGE 800 /* columns */

/* --- the definitions --- */

static float silu(float g)
{
    float e = sq_exp(-fabsf(g));
    return g >= 0.0f ? g / (1.0f + e) : (g * e) / (1.0f + e);
}

struct job {
    int n_rows, n_out, ld_acc;
    int epi;
    bool dynamic, in_acc; /* row scales; the bias is inside the accumulators */
    float inv_step;
    struct dev acc, scale, mul, bias, bias_acc;
    struct dev y; /* f32, with what was there before */
    struct dev_codes q;
};

static bool is_swiglu(int epi)
{
    return epi == SQ_EPI_SWIGLU_S8 || epi == SQ_EPI_SWIGLU_F32;
}

static bool is_codes(int epi)
{
    return epi == SQ_EPI_S8 || epi == SQ_EPI_S8_RELU || epi == SQ_EPI_SWIGLU_S8;
}

static int job_cols(const struct job *j)
{
    return is_swiglu(j->epi) ? j->n_out / 2 : j->n_out;
}

/* Everything but SwiGLU and codes. */
static float real_of(const struct job *j, int r, int n)
{
    const int32_t acc = ((int32_t *)j->acc.h)[r * j->ld_acc + n];
    float v = (float)acc;
    if (j->dynamic)
        v *= ((float *)j->scale.h)[r];
    v = fmaf(v, ((float *)j->mul.h)[n], ((float *)j->bias.h)[n]);
    if (j->epi == SQ_EPI_F32_RELU)
        v = 0.0f > v ? 0.0f : v;
    if (j->epi == SQ_EPI_ADD)
        v = ((float *)j->y.h)[r * j->n_out + n] + v;
    if (j->epi == SQ_EPI_ACC)
        memcpy(&v, &acc, 4);
    return v;
}

static int8_t code_of(const struct job *j, int r, int n)
{
    uint32_t acc = (uint32_t)((int32_t *)j->acc.h)[r * j->ld_acc + n];
    if (!j->in_acc)
        acc += (uint32_t)((int32_t *)j->bias_acc.h)[n];
    int8_t q = sq_sat_s8((float)(int32_t)acc * ((float *)j->mul.h)[n]);
    return j->epi == SQ_EPI_S8_RELU && q < 0 ? 0 : q;
}

/* ret[n_rows, job_cols] f32 */
static struct sq_buf *reals(const struct job *j)
{
    const int cols = job_cols(j);
    struct sq_buf *b = cpu_buf(SQ_BUF_F32, j->n_rows, (size_t)cols);
    for (int r = 0; r < j->n_rows; r++)
        for (int n = 0; n < cols; n++)
            b->f[r * cols + n] = is_swiglu(j->epi)
                                     ? silu(real_of(j, r, 2 * n)) * real_of(j, r, 2 * n + 1)
                                     : real_of(j, r, n);
    return b;
}

/* --- jobs --- */

/* Accumulators of all sizes; a few at the ends. */
static int32_t rng_acc(void)
{
    const uint32_t r = rng();
    if (r % 53 == 0)
        return r & 64 ? INT32_MAX : INT32_MIN;
    return (int32_t)((rng() << 1) ^ rng()) >> (r % 25);
}

static void spoil(struct dev *m, size_t n)
{
    float *f = m->h;
    if (n > 8) {
        f[n / 2] = NAN;
        f[n / 3] = INFINITY;
        f[n / 4] = -0.0f;
        f[n - 1] = -1e30f;
    }
    dev_put(m);
}

static struct job job_new(int n_rows, int n_out, int ld_acc, int epi)
{
    const size_t n = (size_t)n_out, m = (size_t)n_rows;
    struct job j = {
        .n_rows = n_rows, .n_out = n_out, .ld_acc = ld_acc, .epi = epi, .inv_step = 3.7f};
    j.acc = dev_new(m * (size_t)ld_acc * 4);
    j.bias_acc = dev_new(n * 4);
    j.scale = floats_new(m);
    j.mul = floats_new(n);
    j.bias = floats_new(n);
    j.y = floats_new(m * (size_t)job_cols(&j));
    j.q = dev_codes(n_rows, job_cols(&j));
    for (size_t i = 0; i < m * (size_t)ld_acc; i++)
        ((int32_t *)j.acc.h)[i] = rng_acc();
    for (size_t i = 0; i < n; i++)
        ((int32_t *)j.bias_acc.h)[i] = rng_acc();
    for (size_t i = 0; i < n; i++)
        ((float *)j.mul.h)[i] *= 1e-4f;
    spoil(&j.mul, n);
    spoil(&j.bias, n);
    spoil(&j.y, m * (size_t)job_cols(&j));
    dev_put(&j.acc);
    dev_put(&j.bias_acc);
    return j;
}

static void job_free(struct job *j)
{
    dev_free(&j->acc);
    dev_free(&j->scale);
    dev_free(&j->mul);
    dev_free(&j->bias);
    dev_free(&j->bias_acc);
    dev_free(&j->y);
    dev_codes_free(&j->q);
}

static struct sq_gpu_finish finish_of(const struct job *j)
{
    struct sq_gpu_finish f = {.acc = j->acc.d, .ld_acc = j->ld_acc, .n_rows = j->n_rows};
    f.n_out = j->n_out;
    f.epi = j->epi;
    f.x_scale = j->dynamic ? j->scale.d : NULL;
    f.mul = j->mul.d;
    f.bias = j->bias.d;
    f.bias_acc = j->in_acc ? NULL : j->bias_acc.d;
    f.inv_step = j->inv_step;
    f.y = j->y.d;
    f.y_q = j->q.c;
    f.ld_y = job_cols(j);
    return f;
}

/* --- finish --- */

static void check_job_codes(const struct job *j)
{
    const int cols = job_cols(j);
    if (is_swiglu(j->epi)) {
        struct sq_buf *b = reals(j), *q = cpu_buf(SQ_BUF_S8, j->n_rows, (size_t)cols);
        REF->quant_rows(b, 0, j->n_rows, j->inv_step, q);
        check_as_cpu("codes", &j->q, q, j->n_rows, j->inv_step == 0.0f);
        sq_cpu_buf_free(b);
        sq_cpu_buf_free(q);
        return;
    }
    int8_t *want = sq_malloc((size_t)j->n_rows * (size_t)cols + 1);
    for (int i = 0; i < j->n_rows * cols; i++)
        want[i] = code_of(j, i / cols, i % cols);
    check_codes("codes", dev_get(&j->q.q), j->q.c.stride, want, (size_t)j->n_rows, (size_t)cols);
    sq_free(want);
}

static void finish_case(int n_rows, int n_out, int ld_acc, int epi, bool dynamic, bool in_acc,
                        float inv_step)
{
    struct job j = job_new(n_rows, n_out, ld_acc, epi);
    j.dynamic = dynamic;
    j.in_acc = in_acc;
    j.inv_step = inv_step;
    const struct sq_gpu_finish f = finish_of(&j);
    CUDA_OK(sq_gpu_finish(stream, &f));
    if (is_codes(epi)) {
        check_job_codes(&j);
    } else {
        struct sq_buf *want = reals(&j);
        const float *got = dev_get(&j.y);
        if (epi == SQ_EPI_ACC)
            assert_memory_equal(got, want->f, (size_t)n_rows * (size_t)n_out * 4);
        else
            check_floats("finish", got, want->f, (size_t)n_rows, (size_t)job_cols(&j));
        sq_cpu_buf_free(want);
    }
    job_free(&j);
}

static void finish_shape(int n_rows, int cols)
{
    for (int epi = SQ_EPI_F32; epi <= SQ_EPI_ACC; epi++) {
        int n_out = is_swiglu(epi) ? 2 * cols : cols;
        finish_case(n_rows, n_out, (n_out + 3) / 4 * 4, epi, cols % 2, cols % 3 == 0, 3.7f);
    }
}

static void test_finish(void **state)
{
    (void)state;
    all_shapes(finish_shape, LARGE);
}

static void test_finish_kinds(void **state)
{
    (void)state;
    rng_state = 2;
    for (int epi = SQ_EPI_F32; epi <= SQ_EPI_ACC; epi++)
        for (int i = 0; i < 8; i++)
            finish_case(5, i & 4 ? 132 : 134, 136, epi, i & 1, i & 2, 0.9f);
    finish_case(3, 2 * 1003, 2 * 1003, SQ_EPI_SWIGLU_S8, false, false, 0.0f);
    finish_case(3, 2 * 1024, 2 * 1024, SQ_EPI_SWIGLU_S8, true, false, 0.0f);
    finish_case(260, 256, 260, SQ_EPI_SWIGLU_S8, true, false, 0.0f);
    finish_case(1, 2 * 28672, 2 * 28672, SQ_EPI_SWIGLU_S8, false, false, 0.0f);
}

static void test_finish_many(void **state)
{
    (void)state;
    rng_state = 3;
    finish_shape(258, 4128);
    finish_shape(1027, 64);
}

/* --- finish_norm --- */

/* to: where z goes: 0 nowhere, 1 elsewhere, 2 over y. */
static void norm_case(int n_rows, int dim, int rms, bool dynamic, int to, bool codes)
{
    const size_t d = (size_t)dim, n = (size_t)n_rows * d;
    struct job j = job_new(n_rows, dim, (dim + 3) / 4 * 4, SQ_EPI_ADD);
    struct dev par = floats_new(4 * d), z = dev_new(n * sizeof(float));
    const float *p = par.h, *dp = par.d;
    struct sq_gpu_norm norm = {rms, dim, 1e-5f, dp, dp + d, dp + 2 * d, dp + 3 * d};
    struct sq_norm_desc desc = {
        rms ? SQ_RMSNORM : SQ_LAYERNORM, d, 1e-5f, p, p + d, p + 2 * d, p + 3 * d};
    struct sq_norm *ref = NULL;
    dev_put(&z);
    for (int i = 0; i < dim; i++) /* most rows whole: NaN and Inf come through y, in row 0 */
        if (!isfinite(((float *)j.mul.h)[i]) || fabsf(((float *)j.mul.h)[i]) > 1e20f)
            ((float *)j.mul.h)[i] = 1e-4f;
    for (int i = 0; i < dim; i++)
        if (!isfinite(((float *)j.bias.h)[i]) || fabsf(((float *)j.bias.h)[i]) > 1e20f)
            ((float *)j.bias.h)[i] = 0.5f;
    dev_put(&j.mul);
    dev_put(&j.bias);
    j.dynamic = dynamic;
    struct sq_buf *sum = reals(&j), *cz = cpu_buf(SQ_BUF_F32, n_rows, d),
                  *cq = cpu_buf(SQ_BUF_S8, n_rows, d);
    assert_int_equal(sq_cpu_norm_new(&desc, &ref, NULL), 0);
    REF->norm(ref, sum, 0, n_rows, cz, cq);
    const struct sq_gpu_finish f = finish_of(&j);
    CUDA_OK(sq_gpu_finish_norm(stream, &f, &norm,
                               to == 2   ? j.y.d
                               : to == 1 ? z.d
                                         : NULL,
                               codes ? j.q.c : (struct sq_gpu_codes){0}));
    check_floats("sums", dev_get(&j.y), to == 2 ? cz->f : sum->f, (size_t)n_rows, d);
    if (to == 1)
        check_floats("norm", dev_get(&z), cz->f, (size_t)n_rows, d);
    if (codes)
        check_as_cpu("norm codes", &j.q, cq, n_rows, false);
    sq_cpu_norm_free(ref);
    sq_cpu_buf_free(sum);
    sq_cpu_buf_free(cz);
    sq_cpu_buf_free(cq);
    dev_free(&par);
    dev_free(&z);
    job_free(&j);
}

static void norm_shape(int n_rows, int dim)
{
    norm_case(n_rows, dim, 0, false, 0, true);
    norm_case(n_rows, dim, 1, true, 2, true);
}

static void test_finish_norm(void **state)
{
    (void)state;
    all_shapes(norm_shape, LARGE);
    norm_case(3, 260, 0, false, 1, false);
    norm_case(3, 261, 1, false, 2, false);
    norm_case(2, 16384, 0, false, 1, true);
}

static void test_finish_norm_many(void **state)
{
    (void)state;
    rng_state = 5;
    norm_case(257, 4096, 1, false, 0, true);
    norm_case(258, 768, 0, true, 2, true);
    norm_case(257, 4100, 0, false, 0, true);
    norm_case(256, 8196, 1, false, 0, true);
}

/* What it cannot do it refuses. */
static void test_finish_norm_refuses(void **state)
{
    (void)state;
    struct sq_gpu_norm n = {.dim = 16};
    struct sq_gpu_finish f = {.n_rows = 1, .n_out = 16, .epi = SQ_EPI_F32};
    assert_int_equal(sq_gpu_finish_norm(stream, &f, &n, NULL, (struct sq_gpu_codes){0}),
                     cudaErrorInvalidValue);
    f.epi = SQ_EPI_ADD;
    f.n_out = 20;
    assert_int_equal(sq_gpu_finish_norm(stream, &f, &n, NULL, (struct sq_gpu_codes){0}),
                     cudaErrorInvalidValue);
}

/* --- ReLU of codes, float matmuls --- */

static void relu_case(int n_rows, int cols)
{
    struct dev_codes y = dev_codes(n_rows, cols);
    int8_t *q = y.q.h, *want = sq_malloc((size_t)n_rows * (size_t)cols + 1);
    for (int r = 0; r < n_rows; r++)
        for (int c = 0; c < cols; c++) {
            q[r * y.c.stride + c] = (int8_t)(rng() % 256);
            want[r * cols + c] = q[r * y.c.stride + c] < 0 ? 0 : q[r * y.c.stride + c];
        }
    dev_put(&y.q);
    CUDA_OK(sq_gpu_relu_s8(stream, y.c, n_rows, cols));
    check_codes("relu", dev_get(&y.q), y.c.stride, want, (size_t)n_rows, (size_t)cols);
    sq_free(want);
    dev_codes_free(&y);
}

static void float_case(int n_rows, int n_out, int epi, bool with_bias)
{
    const size_t n = (size_t)n_rows * (size_t)n_out;
    struct dev r = floats_new(n), bias = floats_new((size_t)n_out), y = floats_new(n);
    float *want = sq_new_array(float, n + 1);
    spoil(&r, n);
    spoil(&y, n);
    for (size_t i = 0; i < n; i++) {
        float v = ((float *)r.h)[i] + (with_bias ? ((float *)bias.h)[i % (size_t)n_out] : 0.0f);
        if (epi == SQ_EPI_F32_RELU)
            v = v < 0.0f ? 0.0f : v;
        want[i] = epi == SQ_EPI_ADD ? ((float *)y.h)[i] + v : v;
    }
    CUDA_OK(sq_gpu_finish_float(stream, r.d, n_rows, n_out, with_bias ? bias.d : NULL, epi, y.d));
    check_floats("float", dev_get(&y), want, (size_t)n_rows, (size_t)n_out);
    sq_free(want);
    dev_free(&r);
    dev_free(&bias);
    dev_free(&y);
}

static void relu_and_float_shape(int n_rows, int dim)
{
    relu_case(n_rows, dim);
    for (int epi = SQ_EPI_F32; epi <= SQ_EPI_ADD; epi++)
        float_case(n_rows % 60, dim, epi, epi != SQ_EPI_F32 || n_rows % 2);
}

static void test_relu_and_float(void **state)
{
    (void)state;
    all_shapes(relu_and_float_shape, INT_MAX);
    relu_case(2, 28672);
    float_case(260, 1028, SQ_EPI_ADD, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finish),           cmocka_unit_test(test_finish_kinds),
        cmocka_unit_test(test_finish_many),      cmocka_unit_test(test_finish_norm),
        cmocka_unit_test(test_finish_norm_many), cmocka_unit_test(test_finish_norm_refuses),
        cmocka_unit_test(test_relu_and_float),
    };
    return cmocka_run_group_tests(tests, gpu_setup, gpu_teardown);
}
