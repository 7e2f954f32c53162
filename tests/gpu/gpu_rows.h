/* For the tests of the row kernels: memory of the device, test data, and comparison of bits.
 *
 * Every array on the device is a struct dev with host's copy beside it; results start as a pattern, so that what a kernel must not touch
 * shows. All work goes to one non-blocking stream. */
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/kernels.h"
#include "engine/base/mem.h"
#include "engine/cpu/cpu.h"

#define GUARD_BYTES 64
#define PATTERN 0x5a

static cudaStream_t stream;
static uint64_t rng_state;

#define CUDA_OK(e) assert_string_equal(cudaGetErrorString(e), cudaGetErrorString(cudaSuccess))

static inline int gpu_setup(void **state)
{
    (void)state;
    CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return 0;
}

static inline int gpu_teardown(void **state)
{
    (void)state;
    CUDA_OK(cudaStreamDestroy(stream));
    return 0;
}

/* --- memory --- */

struct dev {
    void *d, *h; /* h[bytes] */
    size_t bytes;
    uint8_t *back; /* room for all that comes back, guard included */
};

static inline struct dev dev_new(size_t bytes)
{
    struct dev m = {
        .bytes = bytes, .h = sq_malloc(bytes + 1), .back = sq_malloc(bytes + GUARD_BYTES)};
    assert_non_null(m.h);
    assert_non_null(m.back);
    memset(m.h, PATTERN, bytes);
    CUDA_OK(cudaMalloc(&m.d, bytes + GUARD_BYTES));
    return m;
}

static inline void dev_put(const struct dev *m)
{
    memcpy(m->back, m->h, m->bytes);
    memset(m->back + m->bytes, PATTERN, GUARD_BYTES);
    CUDA_OK(cudaMemcpyAsync(m->d, m->back, m->bytes + GUARD_BYTES, cudaMemcpyHostToDevice, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
}

static inline struct dev dev_of(const void *x, size_t bytes)
{
    struct dev m = dev_new(bytes);
    memcpy(m.h, x, bytes);
    dev_put(&m);
    return m;
}

/* What is there now; the guard behind it must be whole. */
static inline const void *dev_get(const struct dev *m)
{
    CUDA_OK(cudaMemcpyAsync(m->back, m->d, m->bytes + GUARD_BYTES, cudaMemcpyDeviceToHost, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    for (int i = 0; i < GUARD_BYTES; i++)
        assert_int_equal(m->back[m->bytes + (size_t)i], PATTERN);
    return m->back;
}

static inline void dev_free(struct dev *m)
{
    CUDA_OK(cudaFree(m->d));
    sq_free(m->h);
    sq_free(m->back);
}

/* --- data --- */

static inline uint32_t rng(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

/* Mostly small, sometimes large: outlier channels. */
static inline float rng_float(void)
{
    float x = (float)(rng() % 200001) / 100000.0f - 1.0f;
    return rng() % 37 == 0 ? x * 60.0f : x;
}

static inline void fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = rng_float();
}

static inline struct dev floats_new(size_t n)
{
    struct dev m = dev_new(n * sizeof(float));
    fill(m.h, n);
    dev_put(&m);
    return m;
}

/* Rows that are special in one way each, as far as there are rows: a value in the middle, or nothing else in the row. The last two are
 * on either side of where a row's step is too small. */
static inline void spoil_rows(float *x, int n_rows, size_t cols)
{
    static const float one[] = {NAN, INFINITY, -INFINITY, 3e38f};
    static const float all[] = {0.0f, 1e-42f, NAN, 5e-36f, 1e-36f};
    const int n_one = sizeof one / sizeof one[0], n_all = sizeof all / sizeof all[0];
    for (int r = 1; r < n_rows && r <= n_one; r++)
        x[(size_t)r * cols + cols / 2] = one[r - 1];
    for (int r = n_one + 1; r < n_rows && r <= n_one + n_all; r++)
        for (size_t c = 0; c < cols; c++)
            x[(size_t)r * cols + c] = all[r - n_one - 1];
}

/* --- comparison --- */

/* Equal bits, any NaN like any other. */
static inline void check_floats(const char *what, const float *got, const float *want,
                                size_t n_rows, size_t cols)
{
    for (size_t i = 0; i < n_rows * cols; i++) {
        uint32_t g, w;
        memcpy(&g, got + i, 4);
        memcpy(&w, want + i, 4);
        if (g != w && !(isnan(got[i]) && isnan(want[i])))
            fail_msg("%s, %zu x %zu: row %zu column %zu is %.9g (%08x), want %.9g (%08x)", what,
                     n_rows, cols, i / cols, i % cols, (double)got[i], g, (double)want[i], w);
    }
}

/* Codes [n_rows, stride] of which the first cols of each row are results and the rest is as it was. */
static inline void check_codes(const char *what, const int8_t *got, int stride, const int8_t *want,
                               size_t n_rows, size_t cols)
{
    for (size_t r = 0; r < n_rows; r++)
        for (size_t c = 0; c < (size_t)stride; c++) {
            int g = got[r * (size_t)stride + c], w = c < cols ? want[r * cols + c] : PATTERN;
            if (g != w)
                fail_msg("%s, %zu x %zu: row %zu column %zu is %d, want %d", what, n_rows, cols, r,
                         c, g, w);
        }
}

/* Codes of the CPU backend, dense. */
static inline int8_t *cpu_codes(const struct sq_buf *b, size_t n_rows)
{
    int8_t *ret = sq_malloc(n_rows * b->cols + 1);
    assert_non_null(ret);
    for (size_t r = 0; r < n_rows; r++)
        for (size_t c = 0; c < b->cols; c++)
            ret[r * b->cols + c] = (int8_t)(b->u[r * b->stride + c] - 128);
    return ret;
}

static inline struct sq_buf *cpu_buf(enum sq_buf_kind kind, int n_rows, size_t cols)
{
    struct sq_buf *b = NULL;
    assert_int_equal(sq_cpu_buf_new(kind, (size_t)(n_rows ? n_rows : 1), cols, &b, NULL), 0);
    return b;
}

/* With x's contents; rows of the CPU's f32 buffers are dense. */
static inline struct sq_buf *cpu_buf_of(const void *x, int n_rows, size_t cols)
{
    struct sq_buf *b = cpu_buf(SQ_BUF_F32, n_rows, cols);
    assert_int_equal(b->stride, cols);
    memcpy(b->f, x, (size_t)n_rows * cols * sizeof(float));
    return b;
}

/* Code rows on the device, pattern everywhere. */
struct dev_codes {
    struct dev q, scale;
    struct sq_gpu_codes c;
};

static inline struct dev_codes dev_codes(int n_rows, int cols)
{
    struct dev_codes y = {.c.stride = (cols + 15) / 16 * 16 + 32};
    y.q = dev_new((size_t)n_rows * (size_t)y.c.stride);
    y.scale = dev_new((size_t)n_rows * sizeof(float));
    dev_put(&y.q);
    dev_put(&y.scale);
    y.c.q = y.q.d;
    y.c.row_scale = y.scale.d;
    return y;
}

static inline void dev_codes_free(struct dev_codes *y)
{
    dev_free(&y->q);
    dev_free(&y->scale);
}

/* Codes, and the rows' steps where the CPU backend found them by itself, as there. */
static inline void check_as_cpu(const char *what, const struct dev_codes *got,
                                const struct sq_buf *want, int n_rows, bool with_steps)
{
    int8_t *codes = cpu_codes(want, (size_t)n_rows);
    check_codes(what, dev_get(&got->q), got->c.stride, codes, (size_t)n_rows, want->cols);
    if (with_steps)
        check_floats("step", dev_get(&got->scale), want->row_scale, (size_t)n_rows, 1);
    sq_free(codes);
}

/* --- shapes --- */

typedef void shape_test(int n_rows, int dim);

/* Odd sizes and real ones; from `large` columns on with few rows only. */
static inline void all_shapes(shape_test *test, int large)
{
    static const int row_counts[] = {0, 1, 3, 64};
    static const int dims[] = {1, 5, 16, 48, 768, 1003, 7168};
    rng_state = 1;
    for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
        for (size_t r = 0; r < sizeof row_counts / sizeof row_counts[0]; r++)
            if (row_counts[r] < 64 || dims[d] < large)
                test(row_counts[r], dims[d]);
}
