/* Each primitive of cuda/prims.cuh against plain C. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "tests/gpu/test_gpu_prims.h"

#define GROUPS 7

static cudaStream_t stream;

static void *device(const void *host, size_t n)
{
    void *p;
    assert_int_equal(cudaMalloc(&p, n), cudaSuccess);
    if (host)
        assert_int_equal(cudaMemcpyAsync(p, host, n, cudaMemcpyHostToDevice, stream), cudaSuccess);
    return p;
}

static void fetch(void *host, void *dev, size_t n)
{
    assert_int_equal(cudaMemcpyAsync(host, dev, n, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(cudaFree(dev), cudaSuccess);
}

/* Bytes of a fixed sequence, all values among them. */
static void fill(uint8_t *p, size_t n)
{
    uint32_t s = 12345;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        p[i] = (uint8_t)(s >> 24);
    }
}

static void test_ldmatrix(void **state)
{
    uint8_t x[512];
    uint32_t y[6 * 32];
    (void)state;
    fill(x, sizeof x);
    void *dx = device(x, sizeof x), *dy = device(NULL, sizeof y);
    assert_int_equal(test_prims_ldmatrix(stream, dx, dy), cudaSuccess);
    fetch(y, dy, sizeof y);
    for (size_t i = 0; i < 6; i++) {
        for (size_t l = 0; l < 32; l++) {
            uint32_t want;
            memcpy(&want, x + 16 * (i % 4 * 8 + l / 4) + 4 * (l % 4), 4);
            assert_int_equal(y[32 * i + l], want);
        }
    }
    cudaFree(dx);
}

static void test_pair(void **state)
{
    enum { N = 5, BYTES = N * 2 * 32 * 16 };
    static uint8_t x[BYTES], y[BYTES];
    int id, has = 0;
    (void)state;
    assert_int_equal(cudaGetDevice(&id), cudaSuccess);
    assert_int_equal(cudaDeviceGetAttribute(&has, cudaDevAttrClusterLaunch, id), cudaSuccess);
    if (!has)
        skip();
    fill(x, BYTES);
    void *dx = device(x, BYTES), *dy = device(NULL, BYTES);
    assert_int_equal(test_prims_pair(stream, dx, N, dy), cudaSuccess);
    fetch(y, dy, BYTES);
    for (size_t i = 0; i < BYTES / 16; i++) /* the other block's, the other lane of two */
        assert_memory_equal(y + 16 * i, x + 16 * (i ^ 32 ^ 1), 16);
    cudaFree(dx);
}

static void test_mma(void **state)
{
    int8_t a[16 * 32], b[8 * 32];
    int32_t c[16 * 8], y[16 * 8];
    (void)state;
    fill((uint8_t *)a, sizeof a);
    fill((uint8_t *)b, sizeof b);
    fill((uint8_t *)c, sizeof c);
    for (int i = 0; i < 32; i++) { /* the extreme products, too */
        a[i] = b[i] = INT8_MIN;
        a[32 + i] = INT8_MAX;
    }
    for (int i = 0; i < 16 * 8; i++)
        c[i] >>= 4;
    void *da = device(a, sizeof a), *db = device(b, sizeof b), *dc = device(c, sizeof c);
    void *dy = device(NULL, sizeof y);
    assert_int_equal(test_prims_mma(stream, da, db, dc, dy), cudaSuccess);
    fetch(y, dy, sizeof y);
    for (int m = 0; m < 16; m++) {
        for (int n = 0; n < 8; n++) {
            int32_t s = c[8 * m + n];
            for (int k = 0; k < 32; k++)
                s += a[32 * m + k] * b[32 * n + k];
            assert_int_equal(y[8 * m + n], s);
        }
    }
    cudaFree(da);
    cudaFree(db);
    cudaFree(dc);
}

static void test_copy(void **state)
{
    uint8_t x[GROUPS * 512], y[GROUPS * 512];
    (void)state;
    fill(x, sizeof x);
    void *dx = device(x, sizeof x), *dy = device(NULL, sizeof y);
    assert_int_equal(test_prims_copy(stream, dx, GROUPS, dy), cudaSuccess);
    fetch(y, dy, sizeof y);
    for (size_t i = 0; i < sizeof x; i++)
        assert_int_equal(y[i], i / 16 % 2 ? 0 : x[i]);
    cudaFree(dx);
}

static void test_red(void **state)
{
    int32_t x[32], y = INT32_MAX - 5, want = y;
    (void)state;
    for (int i = 0; i < 32; i++) {
        x[i] = i * i - 700;
        want += x[i];
    }
    void *dx = device(x, sizeof x), *dy = device(&y, sizeof y);
    assert_int_equal(test_prims_red(stream, dx, dy), cudaSuccess);
    fetch(&y, dy, sizeof y);
    assert_int_equal(y, want);
    cudaFree(dx);
}

static void test_exp2(void **state)
{
    float x[32], y[32];
    (void)state;
    for (int i = 0; i < 32; i++)
        x[i] = -150.0f + 6.37f * (float)i;
    void *dx = device(x, sizeof x), *dy = device(NULL, sizeof y);
    assert_int_equal(test_prims_exp2(stream, dx, dy), cudaSuccess);
    fetch(y, dy, sizeof y);
    for (int i = 0; i < 32; i++) {
        double want = exp2((double)x[i]);
        if (x[i] <= -126.0f)
            assert_true(y[i] == 0.0f);
        else
            assert_true(fabs((double)y[i] / want - 1.0) <= 0x1p-22);
    }
    cudaFree(dx);
}

static int setup(void **state)
{
    (void)state;
    return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess;
}

static int teardown(void **state)
{
    (void)state;
    return cudaStreamDestroy(stream) != cudaSuccess;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_red),  cmocka_unit_test(test_ldmatrix), cmocka_unit_test(test_mma),
        cmocka_unit_test(test_pair), cmocka_unit_test(test_copy),     cmocka_unit_test(test_exp2),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
