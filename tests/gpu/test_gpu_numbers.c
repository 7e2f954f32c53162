/* The device's forms of engine/quant.h against the host's, bit for bit, over all kinds of floats. */
#include "tests/gpu/test_gpu_numbers.h"
#include "tests/gpu/gpu_rows.h"

enum { N = 1 << 16 };

/* What exp takes, halves (ties of codes), and any bits. */
static float any_float(int i)
{
    static const float ends[] = {0.0f,   -0.0f,      INFINITY,  -INFINITY,   NAN,
                                 -87.0f, -87.00001f, -86.9999f, 127.5f,      -127.5f,
                                 126.5f, -126.5f,    1e-45f,    -1e-45f,     3e38f,
                                 -3e38f, 1.0f,       -1.0f,     -0.3465736f, -88.0f};
    const uint32_t u = rng() << 1 ^ rng();
    float f;
    if (i < (int)(sizeof ends / sizeof ends[0]))
        return ends[i];
    if (i % 4 == 0)
        return (float)((int)(u % 600) - 300) / 2.0f;
    if (i % 4 == 1) {
        memcpy(&f, &u, 4);
        return f;
    }
    return -100.0f * (float)(u >> 8) / (float)(1 << 24);
}

static void test_floats(void **state)
{
    struct dev x = dev_new(N * 4), code = dev_new(N * 4), packed = dev_new(N), ex = dev_new(N * 4);
    struct dev sum = dev_new(N * 4);
    float *f = x.h, *want = ex.h, *want_sum = sum.h;
    (void)state;
    rng_state = 9;
    for (int i = 0; i < N; i++)
        f[i] = any_float(i);
    for (int i = 0; i < N; i++) {
        ((int32_t *)code.h)[i] = sq_sat_s8(f[i]);
        ((int8_t *)packed.h)[i] = sq_sat_s8(f[i]);
        want[i] = sq_exp(f[i]);
        want_sum[i] = sq_sum16(f + i / 16 * 16);
    }
    dev_put(&x);
    struct dev *out[] = {&code, &packed, &ex, &sum};
    for (int i = 0; i < 4; i++) /* the copy on the host holds what is expected */
        CUDA_OK(cudaMemsetAsync(out[i]->d, PATTERN, out[i]->bytes + GUARD_BYTES, stream));
    const struct num_out y = {code.d, packed.d, ex.d, sum.d};
    CUDA_OK(num_floats(stream, x.d, N, y));
    const int32_t *got = dev_get(&code);
    for (int i = 0; i < N; i++)
        if (got[i] != ((int32_t *)code.h)[i])
            fail_msg("code of %.9g is %d, want %d", (double)f[i], got[i], ((int32_t *)code.h)[i]);
    assert_memory_equal(dev_get(&packed), packed.h, N);
    check_floats("exp", dev_get(&ex), want, 1, N);
    check_floats("sum16", dev_get(&sum), want_sum, 1, N);
    dev_free(&x);
    for (int i = 0; i < 4; i++)
        dev_free(out[i]);
}

static void test_halves(void **state)
{
    struct dev bits = dev_new(N * 2), half = dev_new(N * 4), bfloat = dev_new(N * 4);
    struct dev quad_half = dev_new(N * 4), quad_bfloat = dev_new(N * 4);
    (void)state;
    for (int i = 0; i < N; i++) {
        ((uint16_t *)bits.h)[i] = (uint16_t)i;
        ((float *)half.h)[i] = sq_f16_to_f32((uint16_t)i);
        ((float *)bfloat.h)[i] = sq_bf16_to_f32((uint16_t)i);
    }
    dev_put(&bits);
    dev_put(&quad_half);
    dev_put(&quad_bfloat);
    CUDA_OK(cudaMemsetAsync((char *)half.d + N * 4, PATTERN, GUARD_BYTES, stream));
    CUDA_OK(cudaMemsetAsync((char *)bfloat.d + N * 4, PATTERN, GUARD_BYTES, stream));
    CUDA_OK(num_halves(stream, bits.d, half.d, bfloat.d, quad_half.d, quad_bfloat.d));
    check_floats("f16", dev_get(&half), half.h, 1, N);
    check_floats("bf16", dev_get(&bfloat), bfloat.h, 1, N);
    check_floats("f16 by fours", dev_get(&quad_half), half.h, 1, N);
    check_floats("bf16 by fours", dev_get(&quad_bfloat), bfloat.h, 1, N);
    dev_free(&bits);
    dev_free(&half);
    dev_free(&bfloat);
    dev_free(&quad_half);
    dev_free(&quad_bfloat);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_floats),
                                       cmocka_unit_test(test_halves)};
    return cmocka_run_group_tests(tests, gpu_setup, gpu_teardown);
}
