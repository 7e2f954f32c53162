/* Row kernels against the CPU backend's plain C, bit for bit. */
#include "tests/gpu/gpu_rows.h"

#define REF (&sq_cpu_ops_ref)

#define LARGE 2000 /* columns */

/* Enough rows for the kernels that do several at once, and rows left over. */
static const int big_shapes[][2] = {{257, 64}, {258, 768}, {256, 4096}, {257, 4100}};

static void big_ones(shape_test *test)
{
    for (size_t i = 0; i < sizeof big_shapes / sizeof big_shapes[0]; i++)
        test(big_shapes[i][0], big_shapes[i][1]);
}

/* --- norms --- */

static void norm_case(int n_rows, int dim, int rms, bool y, bool q, bool in_place)
{
    const size_t n = (size_t)n_rows * (size_t)dim, d = (size_t)dim;
    struct dev x = floats_new(n), par = floats_new(4 * d), out = dev_new(n * sizeof(float));
    struct dev_codes codes = dev_codes(n_rows, dim);
    const float *p = par.h, *dp = par.d;
    const float eps = 1e-5f;
    struct sq_gpu_norm norm = {rms, dim, eps, dp, dp + d, dp + 2 * d, dp + 3 * d};
    struct sq_norm_desc desc = {
        rms ? SQ_RMSNORM : SQ_LAYERNORM, d, eps, p, p + d, p + 2 * d, p + 3 * d};
    struct sq_norm *ref = NULL;
    spoil_rows(x.h, n_rows, d);
    dev_put(&x);
    dev_put(&out);
    struct sq_buf *cx = cpu_buf_of(x.h, n_rows, d), *cy = cpu_buf(SQ_BUF_F32, n_rows, d);
    struct sq_buf *cq = cpu_buf(SQ_BUF_S8, n_rows, d);
    assert_int_equal(sq_cpu_norm_new(&desc, &ref, NULL), 0);
    REF->norm(ref, cx, 0, n_rows, y ? cy : NULL, q ? cq : NULL);
    CUDA_OK(sq_gpu_norm_rows(stream, &norm, x.d, n_rows,
                             y ? (float *)(in_place ? x.d : out.d) : NULL,
                             q ? codes.c : (struct sq_gpu_codes){0}));
    if (y)
        check_floats("norm", dev_get(in_place ? &x : &out), cy->f, (size_t)n_rows, d);
    if (q)
        check_as_cpu("norm codes", &codes, cq, n_rows, false);
    sq_cpu_norm_free(ref);
    sq_cpu_buf_free(cx);
    sq_cpu_buf_free(cy);
    sq_cpu_buf_free(cq);
    dev_free(&x);
    dev_free(&par);
    dev_free(&out);
    dev_codes_free(&codes);
}

static void norm_shape(int n_rows, int dim)
{
    norm_case(n_rows, dim, 0, false, true, false);
    norm_case(n_rows, dim, 1, true, true, true);
}

static void test_norm(void **state)
{
    (void)state;
    all_shapes(norm_shape, LARGE);
    norm_case(3, 100, 0, true, false, true);
    norm_case(3, 100, 1, true, false, false);
    norm_case(2, 16384, 0, true, true, false);
}

static void test_norm_many(void **state)
{
    (void)state;
    big_ones(norm_shape);
    norm_case(256, 8196, 1, false, true, false);
}

/* --- codes --- */

static void quant_case(int n_rows, int cols, float inv_step)
{
    const size_t n = (size_t)n_rows * (size_t)cols, c = (size_t)cols;
    struct dev x = floats_new(n);
    struct dev_codes codes = dev_codes(n_rows, cols);
    spoil_rows(x.h, n_rows, c);
    dev_put(&x);
    struct sq_buf *cx = cpu_buf_of(x.h, n_rows, c), *cq = cpu_buf(SQ_BUF_S8, n_rows, c);
    REF->quant_rows(cx, 0, n_rows, inv_step, cq);
    CUDA_OK(sq_gpu_quant_rows(stream, x.d, n_rows, cols, inv_step, codes.c));
    check_as_cpu("quant", &codes, cq, n_rows, inv_step == 0.0f);
    sq_cpu_buf_free(cx);
    sq_cpu_buf_free(cq);
    dev_free(&x);
    dev_codes_free(&codes);
}

static void quant_shape(int n_rows, int cols)
{
    quant_case(n_rows, cols, 0.0f);
    quant_case(n_rows, cols, 31.7f);
}

static void test_quant(void **state)
{
    (void)state;
    all_shapes(quant_shape, LARGE);
    quant_shape(2, 28672);
    quant_case(2, 40000, 0.0f);
}

static void test_quant_many(void **state)
{
    (void)state;
    big_ones(quant_shape);
}

static void swiglu_case(int n_rows, int cols, float inv_step, bool f32)
{
    const size_t n = (size_t)n_rows * (size_t)cols, c = (size_t)cols;
    struct dev x = floats_new(2 * n), y = dev_new(n * sizeof(float));
    struct dev_codes codes = dev_codes(n_rows, cols);
    spoil_rows(x.h, n_rows, 2 * c);
    dev_put(&x);
    dev_put(&y);
    struct sq_buf *cx = cpu_buf_of(x.h, n_rows, 2 * c), *cy = cpu_buf(SQ_BUF_F32, n_rows, c);
    struct sq_buf *cq = cpu_buf(SQ_BUF_S8, n_rows, c);
    REF->swiglu(cx, 0, n_rows, inv_step, f32 ? cy : cq);
    CUDA_OK(sq_gpu_swiglu(stream, x.d, n_rows, cols, inv_step, f32 ? y.d : NULL, codes.c));
    if (f32)
        check_floats("swiglu", dev_get(&y), cy->f, (size_t)n_rows, c);
    else
        check_as_cpu("swiglu", &codes, cq, n_rows, inv_step == 0.0f);
    sq_cpu_buf_free(cy);
    sq_cpu_buf_free(cx);
    sq_cpu_buf_free(cq);
    dev_free(&x);
    dev_free(&y);
    dev_codes_free(&codes);
}

static void swiglu_shape(int n_rows, int cols)
{
    swiglu_case(n_rows, cols, 0.0f, false);
    swiglu_case(n_rows, cols, 31.7f, false);
    swiglu_case(n_rows, cols, 0.0f, true);
}

static void test_swiglu(void **state)
{
    (void)state;
    all_shapes(swiglu_shape, LARGE);
    swiglu_case(1, 28672, 0.0f, false);
    swiglu_case(256, 1026, 0.0f, false);
    swiglu_case(257, 1026, 31.7f, false);
}

/* --- embedding, gather --- */

static struct sq_linear *table_new(enum sq_dtype type, size_t n, size_t dim, const void *rows)
{
    struct sq_linear_desc d = {.n_out = n, .n_in = dim, .dtype = type};
    struct sq_linear *l = NULL;
    assert_int_equal(sq_cpu_linear_new(&d, &l, NULL), 0);
    assert_int_equal(sq_cpu_linear_put(l, 0, n, rows, NULL), 0);
    assert_int_equal(sq_cpu_linear_finish(l, NULL, NULL), 0);
    return l;
}

/* Random bits, so of 16-bit floats all kinds; f32 from those. */
static struct dev table_data(enum sq_dtype type, size_t n)
{
    struct dev m = dev_new(n * sq_dtype_bytes(type));
    for (size_t i = 0; i < n; i++) {
        uint16_t h = (uint16_t)rng();
        if (type == SQ_F32)
            ((float *)m.h)[i] = sq_f16_to_f32(h);
        else
            ((uint16_t *)m.h)[i] = h;
    }
    dev_put(&m);
    return m;
}

static void embed_case(int n_rows, int dim, enum sq_dtype type, enum sq_dtype pos_type, int which)
{
    enum { N = 11, OFFSET = 2 };
    const size_t d = (size_t)dim, n = (size_t)n_rows * d;
    struct dev table = table_data(type, N * d), pos_table = table_data(pos_type, N * d);
    struct dev x = dev_new(n * sizeof(float));
    struct dev ids = dev_new(sizeof(int32_t) * (size_t)n_rows),
               pos = dev_new(sizeof(int32_t) * (size_t)n_rows);
    for (int i = 0; i < n_rows; i++) {
        ((int32_t *)ids.h)[i] = (int32_t)(rng() % N);
        ((int32_t *)pos.h)[i] = (int32_t)(rng() % (N - OFFSET));
    }
    dev_put(&ids);
    dev_put(&pos);
    dev_put(&x);
    struct sq_linear *t = table_new(type, N, d, table.h),
                     *p = table_new(pos_type, N, d, pos_table.h);
    struct sq_buf *cx = cpu_buf(SQ_BUF_F32, n_rows, d);
    struct sq_batch b = {.n_rows = n_rows, .ids = ids.h, .pos = pos.h};
    struct sq_gpu_step s = {.ids = ids.d, .pos = pos.d};
    REF->embed(&b, which & 1 ? t : NULL, which & 2 ? p : NULL, OFFSET, cx, 0, n_rows);
    CUDA_OK(sq_gpu_embed(stream, &s, n_rows, which & 1 ? table.d : NULL, type,
                         which & 2 ? pos_table.d : NULL, pos_type, OFFSET, x.d, dim));
    check_floats("embed", dev_get(&x), cx->f, (size_t)n_rows, d);
    sq_cpu_linear_free(t);
    sq_cpu_linear_free(p);
    sq_cpu_buf_free(cx);
    dev_free(&table);
    dev_free(&pos_table);
    dev_free(&x);
    dev_free(&ids);
    dev_free(&pos);
}

static void embed_shape(int n_rows, int dim)
{
    embed_case(n_rows, dim, SQ_F16, SQ_F16, 3);
}

static void test_embed(void **state)
{
    static const enum sq_dtype types[] = {SQ_F32, SQ_F16, SQ_BF16};
    (void)state;
    all_shapes(embed_shape, LARGE);
    for (int t = 0; t < 3; t++)
        for (int p = 0; p < 3; p++)
            for (int which = 1; which <= 3; which++) {
                embed_case(5, 132, types[t], types[p], which);
                embed_case(5, 131, types[t], types[p], which);
            }
    embed_case(260, 1028, SQ_BF16, SQ_F32, 3);
}

static void gather_shape(int n_rows, int cols)
{
    enum { FROM = 7 };
    const size_t c = (size_t)cols;
    struct dev x = floats_new(FROM * c), y = dev_new((size_t)n_rows * c * sizeof(float));
    struct dev rows = dev_new(sizeof(int32_t) * (size_t)n_rows);
    float *want = sq_new_array(float, (size_t)n_rows *c + 1);
    for (int i = 0; i < n_rows; i++) {
        int32_t r = (int32_t)(rng() % FROM);
        ((int32_t *)rows.h)[i] = r;
        memcpy(want + (size_t)i * c, (float *)x.h + (size_t)r * c, c * sizeof(float));
    }
    dev_put(&rows);
    dev_put(&y);
    struct sq_gpu_step s = {.out_rows = rows.d};
    CUDA_OK(sq_gpu_gather(stream, &s, x.d, n_rows, cols, y.d));
    check_floats("gather", dev_get(&y), want, (size_t)n_rows, c);
    sq_free(want);
    dev_free(&x);
    dev_free(&y);
    dev_free(&rows);
}

static void test_gather(void **state)
{
    (void)state;
    all_shapes(gather_shape, LARGE);
}

/* --- argmax, observe --- */

/* x[n_rows, cols] is on the device and on the host. */
static void check_argmax(const struct dev *x, int n_rows, int cols)
{
    struct dev ids = dev_new((size_t)n_rows * sizeof(int32_t));
    struct dev best = dev_new((size_t)n_rows * sizeof(struct sq_gpu_best));
    struct sq_buf *cx = cpu_buf_of(x->h, n_rows, (size_t)cols);
    int32_t *want = sq_new_array(int32_t, (size_t)n_rows + 1);
    dev_put(&ids);
    memset(best.h, 0, best.bytes);
    dev_put(&best);
    REF->argmax(cx, 0, n_rows, want);
    for (int again = 0; again < 2; again++) /* it leaves them so */
        CUDA_OK(sq_gpu_argmax(stream, x->d, n_rows, cols, best.d, ids.d));
    const int32_t *got = dev_get(&ids);
    for (int r = 0; r < n_rows; r++)
        if (got[r] != want[r])
            fail_msg("argmax, %d x %d, row %d: %d, want %d", n_rows, cols, r, got[r], want[r]);
    sq_free(want);
    sq_cpu_buf_free(cx);
    dev_free(&ids);
    dev_free(&best);
}

static void argmax_shape(int n_rows, int cols)
{
    struct dev x = floats_new((size_t)n_rows * (size_t)cols);
    check_argmax(&x, n_rows, cols);
    spoil_rows(x.h, n_rows, (size_t)cols);
    for (int c = 0; n_rows > 9 && c < cols; c++) { /* nothing above -inf; ties of both zeros */
        ((float *)x.h)[8 * cols + c] = -INFINITY;
        ((float *)x.h)[9 * cols + c] = c % 3 ? -1.0f : c % 2 ? 0.0f : -0.0f;
    }
    dev_put(&x);
    check_argmax(&x, n_rows, cols);
    dev_free(&x);
}

/* The maximum, twice, at places where threads, passes and vectors end. */
static void argmax_places(int cols)
{
    static const int at[] = {0, 3, 4, 31 * 4 + 3, 4095, 4096, 16383, 16384, 50000};
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
        struct dev x = floats_new((size_t)cols);
        float *f = x.h;
        if (at[i] >= cols)
            f[0] = 100.0f;
        else
            f[at[i]] = 100.0f;
        f[cols - 1] = 100.0f;
        dev_put(&x);
        check_argmax(&x, 1, cols);
        f[cols - 1] = NAN;
        dev_put(&x);
        check_argmax(&x, 1, cols);
        dev_free(&x);
    }
}

static void test_argmax(void **state)
{
    (void)state;
    all_shapes(argmax_shape, LARGE);
    argmax_places(50272);
    argmax_places(50257);
    argmax_shape(2, 128256);
}

static void observe_shape(int n_rows, int cols)
{
    const size_t c = (size_t)cols, stride = c + 7;
    struct dev x = floats_new((size_t)n_rows * stride + 8), max = floats_new(c);
    float *top = max.h;
    for (size_t i = 0; i < c; i++)
        top[i] = fabsf(top[i]) * 0.1f;
    if (n_rows > 1) {
        ((float *)x.h)[stride + 3] = NAN;
        ((float *)x.h)[stride + 3 + c / 2] = -INFINITY;
    }
    dev_put(&max);
    dev_put(&x);
    struct sq_buf *cx = cpu_buf_of(x.h, n_rows, stride);
    CUDA_OK(sq_gpu_observe(stream, (const float *)x.d + 3, n_rows, cols, (int)stride, max.d));
    REF->observe(cx, 0, n_rows, 3, c, top);
    check_floats("observe", dev_get(&max), top, 1, c);
    sq_cpu_buf_free(cx);
    dev_free(&x);
    dev_free(&max);
}

static void test_observe(void **state)
{
    (void)state;
    all_shapes(observe_shape, LARGE);
    observe_shape(200, 300);
}

/* --- convert --- */

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static float of_16(uint16_t h, int dtype)
{
    return dtype == SQ_F16 ? sq_f16_to_f32(h) : sq_bf16_to_f32(h);
}

/* Whether h is a nearest value of x and, at a tie, the even one: neighbours are no nearer. */
static bool is_nearest(float x, uint16_t h, int dtype)
{
    const double top = dtype == SQ_F16 ? 65520.0 : 0x1.ffp127; /* from here on Inf */
    const double got = (double)of_16(h, dtype), d = fabs((double)x - got);
    if (isnan(x))
        return isnan(got);
    if (fabs((double)x) >= top)
        return isinf(got) && !signbit(got) == !signbit(x);
    if (isinf(got) || !signbit(got) != !signbit(x))
        return false;
    for (int i = -1; i <= 1; i += 2) {
        uint16_t other = (uint16_t)(h + i);
        if ((h & 0x7fff) == 0 && i < 0)
            continue;
        double o = fabs((double)x - (double)of_16(other, dtype));
        if (o < d || (o == d && (h & 1)))
            return false;
    }
    return true;
}

static void convert_case(int n_rows, int cols, int dtype, int stride)
{
    const size_t n = (size_t)n_rows * (size_t)cols;
    struct dev x = floats_new(n), y = dev_new((size_t)n_rows * (size_t)stride * 2);
    float *f = x.h;
    for (size_t i = 0; i < n; i++) {
        uint32_t u = rng() << 1 ^ rng();
        switch (rng() % 4) {
        case 0: /* any bits */
            memcpy(f + i, &u, 4);
            break;
        case 1: /* ties */
            u = bits_of(of_16((uint16_t)u, dtype)) | (dtype == SQ_F16 ? 0x1000u : 0x8000u);
            memcpy(f + i, &u, 4);
            break;
        case 2: /* around the subnormals of f16 */
            f[i] *= 1e-6f;
        }
    }
    dev_put(&x);
    dev_put(&y);
    CUDA_OK(sq_gpu_convert(stream, x.d, n_rows, cols, y.d, dtype, stride));
    const uint16_t *got = dev_get(&y);
    for (int r = 0; r < n_rows; r++)
        for (int c = 0; c < stride; c++) {
            uint16_t h = got[r * stride + c];
            float v = c < cols ? f[r * cols + c] : 0.0f;
            if (c < cols ? !is_nearest(v, h, dtype) : h != PATTERN * 0x101)
                fail_msg("convert %d, %d x %d: row %d column %d: %.9g became %04x", dtype, n_rows,
                         cols, r, c, (double)v, h);
        }
    dev_free(&x);
    dev_free(&y);
}

static void convert_shape(int n_rows, int cols)
{
    convert_case(n_rows, cols, SQ_F16, cols);
    convert_case(n_rows, cols, SQ_BF16, (cols + 7) / 8 * 8 + 8);
}

static void test_convert(void **state)
{
    (void)state;
    all_shapes(convert_shape, LARGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),    cmocka_unit_test(test_norm_many),
        cmocka_unit_test(test_quant),   cmocka_unit_test(test_quant_many),
        cmocka_unit_test(test_swiglu),  cmocka_unit_test(test_embed),
        cmocka_unit_test(test_gather),  cmocka_unit_test(test_argmax),
        cmocka_unit_test(test_observe), cmocka_unit_test(test_convert),
    };
    return cmocka_run_group_tests(tests, gpu_setup, gpu_teardown);
}
