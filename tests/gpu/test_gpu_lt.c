/* cuBLASLt behind cuda/gemm_lt.h: sums, codes under every rounding, floats, captures, the file of algorithms, faults. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda/gemm_lt.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"

/* --- a library that can be made to misbehave --- */

/* Our calls of cublasLtMatmul come here first. */
static struct {
    int32_t id, tile;   /* of the algorithm meant; id 0: every one */
    cudaDataType_t out; /* which matmuls: of this output */
    bool spoil;         /* changes the first result */
    cublasStatus_t refuse;
    uint64_t n_rows; /* with this many rows only; 0: any */
} mischief;

static bool is_meant(const cublasLtMatmulAlgo_t *algo, cublasLtMatrixLayout_t y)
{
    uint32_t type = 0, tile = 0;
    uint64_t n_rows = 0;
    int32_t id = 0;
    size_t n;
    cublasLtMatrixLayoutGetAttribute(y, CUBLASLT_MATRIX_LAYOUT_TYPE, &type, sizeof type, &n);
    cublasLtMatrixLayoutGetAttribute(y, CUBLASLT_MATRIX_LAYOUT_COLS, &n_rows, sizeof n_rows, &n);
    cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_ID, &id, sizeof id, &n);
    cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile,
                                         &n);
    return type == (uint32_t)mischief.out && (!mischief.n_rows || n_rows == mischief.n_rows) &&
           (!mischief.id || (id == mischief.id && (int32_t)tile == mischief.tile));
}

typedef cublasStatus_t matmul_fn(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *,
                                 cublasLtMatrixLayout_t, const void *, cublasLtMatrixLayout_t,
                                 const void *, const void *, cublasLtMatrixLayout_t, void *,
                                 cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *,
                                 size_t, cudaStream_t);

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t la, const void *b,
                              cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                              cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t n_bytes,
                              cudaStream_t st)
{
    matmul_fn *real = (matmul_fn *)dlsym(RTLD_NEXT, "cublasLtMatmul");
    const bool meant = (mischief.spoil || mischief.refuse) && is_meant(algo, ld);
    if (meant && mischief.refuse)
        return mischief.refuse;
    const cublasStatus_t s =
        real(handle, desc, alpha, a, la, b, lb, beta, c, lc, d, ld, algo, workspace, n_bytes, st);
    if (meant && s == CUBLAS_STATUS_SUCCESS)
        cudaMemsetAsync(d, 99, 1, st);
    return s;
}

/* --- a device with a stream and a workspace --- */

struct rig {
    cudaStream_t st;
    void *workspace;
    char name[256];
    int capability;
    struct sq_lt *lt;
};

static struct rig rig;

static bool is_softgpu(void)
{
    return strstr(rig.name, "(softgpu)") != NULL;
}

static struct sq_lt_options options(const char *name, const char *dir)
{
    return (struct sq_lt_options){.cache_dir = dir,
                                  .workspace = rig.workspace,
                                  .workspace_bytes = SQ_LT_WORKSPACE,
                                  .device_name = name,
                                  .capability = rig.capability};
}

static int start(void)
{
    struct cudaDeviceProp prop;
    if (cudaGetDeviceProperties(&prop, 0) != cudaSuccess)
        return -1;
    snprintf(rig.name, sizeof rig.name, "%s", prop.name);
    rig.capability = prop.major * 10 + prop.minor;
    if (cudaStreamCreateWithFlags(&rig.st, cudaStreamNonBlocking) != cudaSuccess)
        return -1;
    return cudaMalloc(&rig.workspace, SQ_LT_WORKSPACE) == cudaSuccess ? 0 : -1;
}

static int set_up(void **state)
{
    struct sq_err err = {0};
    (void)state;
    if (start())
        return -1;
    const struct sq_lt_options o = options(rig.name, NULL);
    int rc = sq_lt_open(&o, rig.st, &rig.lt, &err);
    if (rc)
        fprintf(stderr, "%s\n", err.msg);
    return rc;
}

static int tear_down(void **state)
{
    (void)state;
    sq_lt_close(rig.lt);
    cudaFree(rig.workspace);
    cudaStreamDestroy(rig.st);
    return 0;
}

static void *to_device(const void *p, size_t n_bytes)
{
    void *d;
    assert_int_equal(cudaMalloc(&d, n_bytes), cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(d, p, n_bytes, cudaMemcpyHostToDevice, rig.st), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(rig.st), cudaSuccess);
    return d;
}

static void to_host(void *to, const void *d, size_t n_bytes)
{
    assert_int_equal(cudaMemcpyAsync(to, d, n_bytes, cudaMemcpyDeviceToHost, rig.st), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(rig.st), cudaSuccess);
}

/* --- numbers --- */

static uint32_t draw(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static int8_t *codes(size_t n, uint32_t seed)
{
    int8_t *p = test_malloc(n);
    for (size_t i = 0; i < n; i++)
        p[i] = (int8_t)((int)(draw(&seed) % 255) - 127);
    return p;
}

/* What the library makes of a sum, by the rule it was found to follow. */
static int8_t code_of(enum sq_lt_round r, float alpha, int32_t acc)
{
    float v = alpha * (float)acc;
    v = r == SQ_LT_RNE ? rintf(v) : r == SQ_LT_RZ ? truncf(v) : roundf(v);
    return (int8_t)fmaxf(-128.0f, fminf(127.0f, v));
}

/* An int8 problem with its rows padded, and its sums. */
struct ints {
    int n_out, k, n_rows, ldw, ldx, ldy;
    int8_t *w, *x;
    float *alpha;
    int32_t *acc; /* [n_rows, n_out] */
    struct sq_lt_mm m;
    void *y;
    size_t y_bytes;
};

static void sum_up(struct ints *p)
{
    for (int t = 0; t < p->n_rows; t++)
        for (int n = 0; n < p->n_out; n++) {
            const int8_t *w = p->w + (size_t)n * (size_t)p->ldw,
                         *x = p->x + (size_t)t * (size_t)p->ldx;
            int32_t acc = 0;
            for (int k = 0; k < p->k; k++)
                acc += w[k] * x[k];
            p->acc[t * p->n_out + n] = acc;
        }
}

static void make_ints(struct ints *p, int n_out, int k, int n_rows, int pad)
{
    *p = (struct ints){n_out, k,    n_rows, k + pad, k + pad, n_out + pad, NULL, NULL,
                       NULL,  NULL, {0},    NULL,    0};
    p->w = codes((size_t)n_out * (size_t)p->ldw, 1);
    p->x = codes((size_t)n_rows * (size_t)p->ldx, 2);
    p->alpha = test_malloc((size_t)n_out * sizeof(float));
    p->acc = test_malloc((size_t)n_out * (size_t)n_rows * sizeof(int32_t));
    /* powers of two make exact ties; most codes are in range */
    for (int n = 0; n < n_out; n++)
        p->alpha[n] =
            n % 3 == 0 ? 0x1p-10f : 40.0f / (5376.0f * sqrtf((float)k)) * (float)(1 + n % 4);
    sum_up(p);
    p->y_bytes = (size_t)n_rows * (size_t)p->ldy * 4;
    assert_int_equal(cudaMalloc(&p->y, p->y_bytes), cudaSuccess);
    p->m = (struct sq_lt_mm){.w = to_device(p->w, (size_t)n_out * (size_t)p->ldw),
                             .x = to_device(p->x, (size_t)n_rows * (size_t)p->ldx),
                             .ldw = p->ldw,
                             .ldx = p->ldx,
                             .ldy = p->ldy,
                             .n_out = n_out,
                             .k = k,
                             .n_rows = n_rows,
                             .dtype = SQ_I8,
                             .y = p->y};
}

static const float *alpha_on_device(const struct ints *p)
{
    return to_device(p->alpha, (size_t)p->n_out * sizeof(float));
}

static void free_ints(struct ints *p)
{
    cudaFree((void *)p->m.w);
    cudaFree((void *)p->m.x);
    cudaFree((void *)p->m.alpha);
    cudaFree(p->y);
    test_free(p->w);
    test_free(p->x);
    test_free(p->alpha);
    test_free(p->acc);
}

static void poison(const struct ints *p)
{
    assert_int_equal(cudaMemsetAsync(p->y, 0x5A, p->y_bytes, rig.st), cudaSuccess);
}

static void check_s32(const struct ints *p)
{
    int32_t *y = test_malloc(p->y_bytes);
    to_host(y, p->y, p->y_bytes);
    for (int t = 0; t < p->n_rows; t++)
        for (int n = 0; n < p->ldy; n++) {
            const int32_t want = n < p->n_out ? p->acc[t * p->n_out + n] : 0x5A5A5A5A;
            if (y[t * p->ldy + n] != want)
                fail_msg("[%d, %d] x %d: y[%d, %d] = %d, expected %d", p->n_out, p->k, p->n_rows, t,
                         n, y[t * p->ldy + n], want);
        }
    test_free(y);
}

static void check_s8(const struct ints *p, enum sq_lt_round r)
{
    int8_t *y = test_malloc(p->y_bytes);
    to_host(y, p->y, p->y_bytes);
    for (int t = 0; t < p->n_rows; t++)
        for (int n = 0; n < p->ldy; n++) {
            const int want =
                n < p->n_out ? code_of(r, p->alpha[n], p->acc[t * p->n_out + n]) : 0x5A;
            if (y[t * p->ldy + n] != want)
                fail_msg("[%d, %d] x %d: y[%d, %d] = %d, expected %d (sum %d, alpha %g)", p->n_out,
                         p->k, p->n_rows, t, n, y[t * p->ldy + n], want, p->acc[t * p->n_out + n],
                         (double)p->alpha[n]);
        }
    test_free(y);
}

static void prepare_and_run(struct sq_lt *lt, const struct sq_lt_mm *m)
{
    struct sq_err err = {0};
    if (sq_lt_prepare(lt, m, &err))
        fail_msg("%s", err.msg);
    if (sq_lt_matmul(lt, m))
        fail_msg("%s", sq_lt_last_error(lt));
}

/* --- tests without a device --- */

static void buckets_grow_by_at_most_half(void **state)
{
    static const int want[] = {1,  2,   4,   8,   16,  24,  32,  48,  64,
                               96, 128, 192, 256, 384, 512, 768, 1024};
    (void)state;
    int at = 0;
    for (int n = 1; n <= 1024; n++) {
        if (n > want[at])
            at++;
        assert_int_equal(sq_lt_bucket(n), want[at]);
    }
    assert_int_equal(sq_lt_bucket(0), 1);
    assert_int_equal(sq_lt_bucket(2049), 3072);
    assert_int_equal(sq_lt_bucket(1 << 24), 1 << 24);
}

static void a_bias_is_the_sum_of_its_digits(void **state)
{
    int8_t ones[SQ_LT_BIAS_COLS], d[SQ_LT_BIAS_COLS];
    (void)state;
    sq_lt_bias_ones(ones);
    assert_int_equal(ones[0], 127);
    assert_int_equal(ones[30], 127);
    assert_int_equal(ones[31], 1);
    for (int32_t b = -SQ_LT_BIAS_MAX; b <= SQ_LT_BIAS_MAX; b++) {
        int32_t sum = 0;
        bool in_range = true;
        sq_lt_bias_digits(b, d);
        for (int i = 0; i < SQ_LT_BIAS_COLS; i++) {
            sum += ones[i] * d[i];
            in_range = in_range && d[i] != -128;
        }
        if (sum != b || !in_range)
            fail_msg("digits of %d sum up to %d", b, sum);
    }
    assert_true(sq_lt_bias_fits(SQ_LT_BIAS_MAX, 4096));
    assert_true(sq_lt_bias_fits(-SQ_LT_BIAS_MAX, 4096));
    assert_false(sq_lt_bias_fits(SQ_LT_BIAS_MAX + 1, 4096));
    assert_false(sq_lt_bias_fits(INT64_MIN + 1, 4096));
    assert_true(
        sq_lt_bias_fits(16383, SQ_K_MAX)); /* 131071 * 128 * 128 + 16383 is the largest s32 */
    assert_false(sq_lt_bias_fits(16384, SQ_K_MAX));
}

/* --- int8 --- */

static void the_rounding_found_is_the_one_played(void **state)
{
    const char *played = getenv("SG_LT_ROUND");
    (void)state;
    if (is_softgpu())
        assert_string_equal(sq_lt_round_name(sq_lt_rounding(rig.lt)), played ? played : "rne");
    else
        printf("this library rounds int8 output: %s\n", sq_lt_round_name(sq_lt_rounding(rig.lt)));
}

static const struct shape {
    int n_out, k, pad;
} shapes[] = {{4, 4, 0},      {36, 20, 4},     {64, 64, 16},
              {768, 1056, 0}, {2048, 800, 32}, {132, 3104, 0}};
static const int row_counts[] = {1, 3, 17, 130};

static void sums_are_exact(void **state)
{
    (void)state;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            struct ints p;
            make_ints(&p, shapes[s].n_out, shapes[s].k, row_counts[r], shapes[s].pad);
            poison(&p);
            prepare_and_run(rig.lt, &p.m);
            check_s32(&p);
            free_ints(&p);
        }
}

static void codes_follow_the_rule_found(void **state)
{
    const enum sq_lt_round rule = sq_lt_rounding(rig.lt);
    (void)state;
    if (rule == SQ_LT_OTHER)
        skip();
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            struct ints p;
            make_ints(&p, shapes[s].n_out, shapes[s].k, row_counts[r], shapes[s].pad);
            p.m.alpha = alpha_on_device(&p);
            poison(&p);
            prepare_and_run(rig.lt, &p.m);
            check_s8(&p, rule);
            free_ints(&p);
        }
}

/* Rows [k | 32 digits] against rows [k | 127 .. 127, 1]: the sum has the bias inside, and the codes are quant.h's where the library rounds as it
 * does and no code is -128. */
static void a_bias_in_the_columns_is_exact(void **state)
{
    enum { OUT = 64, K = 96, ROWS = 5, LD = K + SQ_LT_BIAS_COLS };
    static const int32_t biases[] = {0, 1, -1, 127, -128, 16129, -499999, SQ_LT_BIAS_MAX};
    struct ints p;
    (void)state;
    make_ints(&p, OUT, LD, ROWS, 0);
    for (int n = 0; n < OUT; n++)
        sq_lt_bias_digits(biases[n % 8] + (n % 8 == 7 ? 0 : n), p.w + n * LD + K);
    for (int t = 0; t < ROWS; t++)
        sq_lt_bias_ones(p.x + t * LD + K);
    p.k = K;
    sum_up(&p);
    for (int i = 0; i < ROWS * OUT; i++)
        p.acc[i] += biases[i % OUT % 8] + (i % OUT % 8 == 7 ? 0 : i % OUT);
    cudaFree((void *)p.m.w);
    cudaFree((void *)p.m.x);
    p.m.w = to_device(p.w, OUT * LD);
    p.m.x = to_device(p.x, ROWS * LD);
    poison(&p);
    prepare_and_run(rig.lt, &p.m);
    check_s32(&p);
    if (sq_lt_rounding(rig.lt) == SQ_LT_RNE) {
        p.m.alpha = alpha_on_device(&p);
        prepare_and_run(rig.lt, &p.m);
        int8_t y[ROWS * OUT];
        to_host(y, p.y, sizeof y);
        for (int i = 0; i < ROWS * OUT; i++)
            assert_int_equal(SQ_MAX(y[i], -127), sq_sat_s8((float)p.acc[i] * p.alpha[i % OUT]));
    }
    free_ints(&p);
}

static void what_no_algorithm_takes_is_refused_in_words(void **state)
{
    struct sq_err err = {0};
    struct ints p;
    (void)state;
    make_ints(&p, 64, 64, 3, 16);
    struct sq_lt_mm m = p.m;
    m.n_out = 62;
    assert_int_equal(sq_lt_prepare(rig.lt, &m, &err), -SQ_E_NOTSUP);
    assert_non_null(strstr(err.msg, "[62, 64] x 3 rows"));
    assert_int_equal(sq_lt_matmul(rig.lt, &m), -SQ_E_NOTSUP);
    assert_string_equal(sq_lt_last_error(rig.lt), err.msg);
    m = p.m;
    m.x = (const int8_t *)m.x + 1;
    assert_int_equal(sq_lt_prepare(rig.lt, &m, &err), -SQ_E_NOTSUP);
    assert_non_null(strstr(err.msg, "not aligned"));
    m = p.m;
    m.ldx = 60;
    assert_int_equal(sq_lt_matmul(rig.lt, &m), -SQ_E_NOTSUP);
    m = p.m;
    m.y = NULL;
    assert_int_equal(sq_lt_matmul(rig.lt, &m), -SQ_E_NOTSUP);
    m = p.m;
    m.n_rows = 0;
    assert_int_equal(sq_lt_matmul(rig.lt, &m), 0);
    free_ints(&p);
}

static void a_bucket_nobody_prepared_is_asked_for_late(void **state)
{
    struct sq_lt_stats before, after;
    struct ints p;
    (void)state;
    make_ints(&p, 44, 68, 6, 0);
    sq_lt_get_stats(rig.lt, &before);
    for (int i = 0; i < 2; i++) { /* then it is known */
        poison(&p);
        if (sq_lt_matmul(rig.lt, &p.m))
            fail_msg("%s", sq_lt_last_error(rig.lt));
        check_s32(&p);
    }
    sq_lt_get_stats(rig.lt, &after);
    assert_int_equal(after.asked_late, before.asked_late + 1);
    free_ints(&p);
}

/* One prepared size serves its whole bucket. */
static void a_bucket_serves_all_its_sizes(void **state)
{
    struct sq_lt_stats before, after;
    struct sq_err err = {0};
    struct ints p;
    (void)state;
    make_ints(&p, 72, 80, 48, 0);
    assert_int_equal(sq_lt_prepare(rig.lt, &p.m, &err), 0);
    sq_lt_get_stats(rig.lt, &before);
    for (int n = 33; n <= 48; n++) {
        p.n_rows = p.m.n_rows = n;
        poison(&p);
        assert_int_equal(sq_lt_matmul(rig.lt, &p.m), 0);
        check_s32(&p);
    }
    sq_lt_get_stats(rig.lt, &after);
    assert_int_equal(after.asked_late, before.asked_late);
    free_ints(&p);
}

/* --- what another library might do; the algorithms meant are softgpu's --- */

static int behave(void **state)
{
    (void)state;
    memset(&mischief, 0, sizeof mischief);
    return 0;
}

static int open_again(struct sq_lt **ret, struct sq_err *err)
{
    const struct sq_lt_options o = options("a GPU", NULL);
    *ret = NULL;
    return sq_lt_open(&o, rig.st, ret, err);
}

static void algorithms_that_round_unlike_each_other_are_no_rule(void **state)
{
    struct sq_err err = {0};
    struct sq_lt *lt;
    (void)state;
    if (!is_softgpu())
        skip();
    mischief.id = 70, mischief.tile = 18, mischief.out = CUDA_R_8I, mischief.spoil = true;
    assert_int_equal(open_again(&lt, &err), 0);
    assert_int_equal(sq_lt_rounding(lt), SQ_LT_OTHER);
    sq_lt_close(lt);
    memset(&mischief, 0, sizeof mischief);
}

/* The probe saw nothing, but the favourite for this shape rounds otherwise. */
static void an_algorithm_that_rounds_otherwise_is_dropped(void **state)
{
    struct sq_lt_stats stats;
    struct sq_err err = {0};
    struct sq_lt *lt;
    struct ints p;
    (void)state;
    if (!is_softgpu())
        skip();
    assert_int_equal(open_again(&lt, &err), 0);
    assert_int_equal(sq_lt_rounding(lt), sq_lt_rounding(rig.lt));
    make_ints(&p, 64, 96, 7, 0);
    p.m.alpha = alpha_on_device(&p);
    mischief.id = 71, mischief.tile = 24, mischief.out = CUDA_R_8I, mischief.spoil = true;
    for (int n = 0; n < 2; n++) { /* the first, then another */
        poison(&p);
        prepare_and_run(lt, &p.m);
        check_s8(&p, sq_lt_rounding(lt));
        sq_lt_get_stats(lt, &stats);
        assert_int_equal(stats.misrounding, 1 + n);
        mischief.id = 70, mischief.tile = 18;
    }
    mischief.id = 0; /* all of them */
    assert_int_equal(sq_lt_prepare(lt, &p.m, &err), -SQ_E_NOTSUP);
    assert_non_null(strstr(err.msg, "[64, 96] x 7 rows"));
    memset(&mischief, 0, sizeof mischief);
    sq_lt_close(lt);
    free_ints(&p);
}

static void wrong_sums_are_found_at_start(void **state)
{
    struct sq_err err = {0};
    struct sq_lt *lt;
    (void)state;
    mischief.out = CUDA_R_32I, mischief.spoil = true;
    assert_int_equal(open_again(&lt, &err), -SQ_E_DEVICE);
    memset(&mischief, 0, sizeof mischief);
    assert_null(lt);
    assert_non_null(strstr(err.msg, "a sum is"));
}

/* No int8 output at all is a rule of its own; no int8 matmul is an error. */
static void a_library_without_int8_says_so(void **state)
{
    struct sq_err err = {0};
    struct sq_lt *lt;
    (void)state;
    mischief.out = CUDA_R_8I, mischief.refuse = CUBLAS_STATUS_NOT_SUPPORTED;
    assert_int_equal(open_again(&lt, &err), 0);
    assert_int_equal(sq_lt_rounding(lt), SQ_LT_OTHER);
    sq_lt_close(lt);
    mischief.out = CUDA_R_32I;
    assert_int_equal(open_again(&lt, &err), -SQ_E_NOTSUP);
    assert_non_null(strstr(err.msg, "int8"));
    memset(&mischief, 0, sizeof mischief);
}

static void a_size_that_its_buckets_algorithm_refuses_is_asked_for(void **state)
{
    struct sq_lt_stats before, after;
    struct sq_err err = {0};
    struct ints p;
    (void)state;
    make_ints(&p, 64, 112, 7, 0);
    p.n_rows = p.m.n_rows = 8;
    assert_int_equal(sq_lt_prepare(rig.lt, &p.m, &err), 0);
    p.n_rows = p.m.n_rows = 7;
    sq_lt_get_stats(rig.lt, &before);
    mischief.id = 71, mischief.tile = 24, mischief.out = CUDA_R_32I, mischief.n_rows = 7;
    mischief.refuse = CUBLAS_STATUS_NOT_SUPPORTED;
    if (is_softgpu()) {
        poison(&p);
        assert_int_equal(sq_lt_matmul(rig.lt, &p.m), 0); /* by the next of the list */
        check_s32(&p);
        sq_lt_get_stats(rig.lt, &after);
        assert_int_equal(after.asked_late, before.asked_late + 1);
    }
    mischief.id = 0;
    assert_int_equal(sq_lt_matmul(rig.lt, &p.m), -SQ_E_NOTSUP);
    mischief.refuse = CUBLAS_STATUS_EXECUTION_FAILED;
    assert_int_equal(sq_lt_matmul(rig.lt, &p.m), -SQ_E_DEVICE);
    assert_non_null(strstr(sq_lt_last_error(rig.lt), "CUBLAS_STATUS_EXECUTION_FAILED"));
    assert_non_null(strstr(sq_lt_last_error(rig.lt), "s32, [64, 112] x 7 rows"));
    mischief.refuse = CUBLAS_STATUS_ALLOC_FAILED;
    assert_int_equal(sq_lt_matmul(rig.lt, &p.m), -SQ_E_NOMEM);
    memset(&mischief, 0, sizeof mischief);
    free_ints(&p);
}

/* --- floats --- */

static uint16_t f32_to_f16(float f) /* small normal numbers with few bits only */
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)((u >> 16 & 0x8000) |
                      (f == 0.0f ? 0 : ((u >> 23 & 0xff) - 112) << 10 | (u >> 13 & 0x3ff)));
}

static uint16_t f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return (uint16_t)(u >> 16);
}

/* Eighths, exact in every type. */
static void *floats(size_t n, enum sq_dtype dtype, uint32_t seed, float **ret_values)
{
    float *v = test_malloc(n * sizeof *v);
    void *p = test_malloc(n * sq_dtype_bytes(dtype));
    for (size_t i = 0; i < n; i++) {
        v[i] = (float)((int)(draw(&seed) % 129) - 64) / 8.0f;
        if (dtype == SQ_F32)
            ((float *)p)[i] = v[i];
        else
            ((uint16_t *)p)[i] = dtype == SQ_F16 ? f32_to_f16(v[i]) : f32_to_bf16(v[i]);
    }
    *ret_values = v;
    return p;
}

static void check_floats(enum sq_dtype dtype, int n_out, int k, int n_rows)
{
    const size_t w_n = (size_t)n_out * (size_t)k, x_n = (size_t)n_rows * (size_t)k,
                 y_n = (size_t)n_rows * (size_t)n_out, size = sq_dtype_bytes(dtype);
    float *wv, *xv, *y = test_malloc(y_n * sizeof *y);
    void *w = floats(w_n, dtype, 3, &wv), *x = floats(x_n, dtype, 4, &xv),
         *wd = to_device(w, w_n * size), *xd = to_device(x, x_n * size), *yd;
    assert_int_equal(cudaMalloc(&yd, y_n * sizeof *y), cudaSuccess);
    const struct sq_lt_mm m = {.w = wd,
                               .x = xd,
                               .ldw = k,
                               .ldx = k,
                               .ldy = n_out,
                               .n_out = n_out,
                               .k = k,
                               .n_rows = n_rows,
                               .dtype = dtype,
                               .y = yd};
    prepare_and_run(rig.lt, &m);
    to_host(y, yd, y_n * sizeof *y);
    for (size_t i = 0; i < y_n; i++) {
        double want = 0;
        for (int j = 0; j < k; j++)
            want += (double)wv[i % (size_t)n_out * (size_t)k + (size_t)j] *
                    (double)xv[i / (size_t)n_out * (size_t)k + (size_t)j];
        if (!(fabs((double)y[i] - want) <= 1e-5 * 64 * k))
            fail_msg("dtype %d [%d, %d] x %d: y[%zu] = %g, expected %g", dtype, n_out, k, n_rows, i,
                     (double)y[i], want);
    }
    cudaFree(wd);
    cudaFree(xd);
    cudaFree(yd);
    test_free(w);
    test_free(x);
    test_free(wv);
    test_free(xv);
    test_free(y);
}

static void floats_are_near_the_double_sum(void **state)
{
    static const enum sq_dtype dtypes[] = {SQ_F32, SQ_F16, SQ_BF16};
    (void)state;
    for (size_t i = 0; i < 3; i++)
        for (size_t r = 0; r < sizeof row_counts / sizeof *row_counts; r++) {
            check_floats(dtypes[i], 48, 40, row_counts[r]);
            check_floats(dtypes[i], 51, 33,
                         row_counts[r]); /* nothing aligned: a vocabulary may be odd */
            check_floats(dtypes[i], 512, 768, row_counts[r]);
        }
}

/* --- a captured step --- */

static void a_captured_matmul_reads_new_inputs(void **state)
{
    struct sq_err err = {0};
    struct ints p;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    (void)state;
    make_ints(&p, 128, 160, 17, 0);
    const struct sq_lt_mm plain = p.m;
    p.m.alpha = alpha_on_device(&p);
    struct sq_lt_mm with_alpha = p.m;
    assert_int_equal(cudaMalloc(&with_alpha.y, 17 * 128), cudaSuccess);
    assert_int_equal(sq_lt_prepare(rig.lt, &plain, &err), 0);
    const bool has_s8 = sq_lt_rounding(rig.lt) != SQ_LT_OTHER;
    if (has_s8)
        assert_int_equal(sq_lt_prepare(rig.lt, &with_alpha, &err), 0);
    poison(&p);
    assert_int_equal(cudaStreamSynchronize(rig.st), cudaSuccess);

    assert_int_equal(cudaStreamBeginCapture(rig.st, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    assert_int_equal(sq_lt_matmul(rig.lt, &plain), 0);
    if (has_s8)
        assert_int_equal(sq_lt_matmul(rig.lt, &with_alpha), 0);
    assert_int_equal(cudaStreamEndCapture(rig.st, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < 17 * 160; i++)
            p.x[i] = (int8_t)(-p.x[i] / (1 + round));
        assert_int_equal(
            cudaMemcpyAsync((void *)p.m.x, p.x, 17 * 160, cudaMemcpyHostToDevice, rig.st),
            cudaSuccess);
        sum_up(&p);
        assert_int_equal(cudaGraphLaunch(exec, rig.st), cudaSuccess);
        check_s32(&p);
        if (has_s8) {
            void *const y = p.y;
            p.y = with_alpha.y;
            p.y_bytes = 17 * 128;
            check_s8(&p, sq_lt_rounding(rig.lt));
            p.y = y;
            p.y_bytes = 17 * 128 * 4;
        }
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaFree(with_alpha.y);
    free_ints(&p);
}

/* --- the file --- */

static char dir[64], path[512];

static void new_dir(void)
{
    snprintf(dir, sizeof dir, "/tmp/sqd-lt-XXXXXX");
    assert_non_null(mkdtemp(dir));
}

static int n_files(void)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));)
        if (e->d_name[0] != '.') {
            snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
            n++;
        }
    closedir(d);
    return n;
}

static void remove_dir(void)
{
    while (n_files())
        assert_int_equal(remove(path), 0);
    assert_int_equal(rmdir(dir), 0);
}

static size_t slurp(char *to, size_t max)
{
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    const size_t n = fread(to, 1, max - 1, f);
    to[n] = '\0';
    fclose(f);
    return n;
}

static void spit(const char *text, size_t n)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

/* Opens under a name that makes it time its algorithms, prepares three buckets, runs one, closes. */
static struct sq_lt_stats one_start(const char *name)
{
    struct sq_lt_stats s;
    struct sq_err err = {0};
    struct sq_lt *lt;
    struct ints p;
    const struct sq_lt_options o = options(name, dir);
    assert_int_equal(sq_lt_open(&o, rig.st, &lt, &err), 0);
    make_ints(&p, 64, 96, 17, 0);
    for (int n = 1; n <= 17; n += 8) {
        p.n_rows = p.m.n_rows = n;
        if (sq_lt_prepare(lt, &p.m, &err))
            fail_msg("%s", err.msg);
    }
    poison(&p);
    assert_int_equal(sq_lt_matmul(lt, &p.m), 0);
    check_s32(&p);
    sq_lt_get_stats(lt, &s);
    if (sq_lt_save(lt, &err))
        fail_msg("%s", err.msg);
    sq_lt_close(lt);
    free_ints(&p);
    return s;
}

static void timings_are_kept_and_used(void **state)
{
    (void)state;
    new_dir();
    struct sq_lt_stats s = one_start("NVIDIA Test/GPU 1\n");
    assert_int_equal(s.file_foreign, 1); /* there was none */
    assert_int_equal(s.prepared, 3);
    assert_true(s.timed >= 3);
    assert_int_equal(n_files(), 1); /* no temporary one beside it */
    assert_non_null(strstr(path, "NVIDIA_Test_GPU_1_"));
    s = one_start("NVIDIA Test/GPU 1\n");
    assert_int_equal(s.file_foreign, 0);
    assert_int_equal(s.file_lines, 3);
    assert_int_equal(s.file_bad_lines, 0);
    assert_int_equal(s.from_file, 3);
    assert_int_equal(s.timed, 0);
    assert_int_equal(s.stale, 0);
    s = one_start("another GPU"); /* its own file */
    assert_int_equal(s.file_foreign, 1);
    assert_int_equal(s.from_file, 0);
    assert_int_equal(n_files(), 2);
    remove_dir();
}

static void a_device_without_a_clock_writes_nothing(void **state)
{
    (void)state;
    new_dir();
    struct sq_lt_stats s = one_start("NVIDIA H200 (softgpu)");
    assert_int_equal(s.prepared, 3);
    assert_int_equal(s.timed, 0);
    assert_int_equal(n_files(), 0);
    assert_int_equal(sq_lt_is_timed(rig.lt), !is_softgpu());
    remove_dir();
}

static void a_directory_that_is_not_there_is_no_failure(void **state)
{
    struct sq_err err = {0};
    struct sq_lt *lt;
    struct ints p;
    (void)state;
    const struct sq_lt_options o = options("some GPU", "/nonexistent/cache");
    assert_int_equal(sq_lt_open(&o, rig.st, &lt, &err), 0);
    make_ints(&p, 64, 96, 2, 0);
    assert_int_equal(sq_lt_prepare(lt, &p.m, &err), 0);
    assert_int_equal(sq_lt_save(lt, &err), -SQ_E_IO);
    assert_non_null(strstr(err.msg, "/nonexistent/cache"));
    sq_lt_close(lt);
    free_ints(&p);
}

/* good is three lines; bad and stale are what a start must count with text in the file's place. */
static void start_with(const char *text, size_t n, int want_lines, int want_bad, int want_stale)
{
    spit(text, n);
    const struct sq_lt_stats s = one_start("GPU");
    if (s.file_lines != want_lines || s.file_bad_lines != want_bad || s.stale != want_stale)
        fail_msg("%d lines, %d bad, %d stale; expected %d, %d, %d: %.300s", s.file_lines,
                 s.file_bad_lines, s.stale, want_lines, want_bad, want_stale, text);
}

static void a_bad_file_is_ignored_line_by_line(void **state)
{
    static const char *const bad[] = {
        "s32 64 96 1 16 : 66 23 1 0 0 0 35 0 0",       /* no time */
        "s32 64 96 1 16 : 66 23 1 0 0 0 35 0 : 5",     /* a number too few */
        "s32 64 96 1 16 : 66 23 1 0 0 0 35 0 0 0 : 5", /* too many */
        "s32 64 96 1 16 : 66 23 1 0 0 0 35 0 0 : 5 ",  /* more behind it */
        "s32 64 96 3 16 : 66 23 1 0 0 0 35 0 0 : 5",   /* no bucket */
        "s32 64 96 0 16 : 66 23 1 0 0 0 35 0 0 : 5",
        "s32 64 96 1 12 : 66 23 1 0 0 0 35 0 0 : 5", /* no alignment */
        "s32 64 96 1 32 : 66 23 1 0 0 0 35 0 0 : 5",
        "s32 -64 96 1 16 : 66 23 1 0 0 0 35 0 0 : 5",
        "s32 64 99999999999999999999 1 16 : 66 23 1 0 0 0 35 0 0 : 5",
        "s64 64 96 1 16 : 66 23 1 0 0 0 35 0 0 : 5", /* no kind */
        "s32 64 96 1 16 : -1 23 1 0 0 0 35 0 0 : 5",
        "s32 64 96 1 16 : 4294967296 23 1 0 0 0 35 0 0 : 5",
        "s32 64 96 1 16 : 0x42 23 1 0 0 0 35 0 0 : 5",
        "s32 64  96 1 16 : 66 23 1 0 0 0 35 0 0 : 5", /* two blanks */
        "",
        "%s%n%s%n",
    };
    char good[4096], text[8192];
    (void)state;
    new_dir();
    one_start("GPU");
    assert_int_equal(n_files(), 1);
    const size_t n = slurp(good, sizeof good);
    const char *first = strchr(good, '\n') + 1;
    start_with(good, n, 3, 0, 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const int len =
            snprintf(text, sizeof text, "%.*s%s\n%s", (int)(first - good), good, bad[i], first);
        start_with(text, (size_t)len, 3, 1, 0);
    }
    /* a line twice; one of 5000 bytes; a NUL; cut off at every byte */
    int len = snprintf(text, sizeof text, "%s%s", good, first);
    start_with(text, (size_t)len, 3, 3, 0);
    len = snprintf(text, sizeof text, "%s%05000d\n", good, 0);
    start_with(text, (size_t)len, 3, 1, 0);
    memcpy(text, good, n);
    text[n - 3] = '\0';
    start_with(text, n, 2, 1, 0);
    const size_t head = (size_t)(first - good);
    for (size_t cut = 0; cut < n; cut += cut < head ? 29 : 7) {
        spit(good, cut);
        const struct sq_lt_stats s = one_start("GPU");
        assert_true(s.file_lines < 3);
        assert_int_equal(s.file_foreign, cut < head);
    }
    remove_dir();
}

static void algorithms_the_library_does_not_propose_are_timed_again(void **state)
{
    char good[4096], text[8192];
    (void)state;
    new_dir();
    one_start("GPU");
    assert_int_equal(n_files(), 1);
    slurp(good, sizeof good);
    const char *first = strchr(good, '\n') + 1;
    const int len =
        snprintf(text, sizeof text,
                 "%.*ss32 64 96 1 16 : 4294967295 4294967295 4294967295 4294967295 4294967295 "
                 "4294967295 4294967295 65535 65535 : 0\n"
                 "s32 64 96 16 16 : 0 0 0 0 0 0 0 0 0 : 1\n",
                 (int)(first - good), good);
    start_with(text, (size_t)len, 2, 0, 2);
    slurp(text, sizeof text); /* and the file was put right */
    assert_null(strstr(text, "4294967295"));
    /* another version's file under our name */
    good[4] ^= 1;
    spit(good, strlen(good));
    const struct sq_lt_stats s = one_start("GPU");
    assert_int_equal(s.file_foreign, 1);
    assert_int_equal(s.file_lines, 0);
    remove_dir();
}

static void a_full_file_is_taken_and_one_beyond_it_not(void **state)
{
    char good[4096];
    (void)state;
    new_dir();
    one_start("GPU");
    assert_int_equal(n_files(), 1);
    slurp(good, sizeof good);
    *(strchr(good, '\n') + 1) = '\0';
    FILE *f = fopen(path, "w");
    fputs(good, f);
    for (int i = 0; i < 1030; i++)
        fprintf(f, "s32 %d 96 1 16 : 0 0 0 0 0 0 0 0 0 : 1\n", 1000 + i);
    fclose(f);
    struct sq_lt_stats s = one_start("GPU"); /* three shapes take old ones' places */
    assert_int_equal(s.file_lines, 1024);
    assert_int_equal(s.file_bad_lines, 6);
    s = one_start("GPU");
    assert_int_equal(s.file_lines, 1024);
    assert_int_equal(s.from_file, 3);
    assert_int_equal(truncate(path, 2 << 20), 0); /* too large to be ours */
    s = one_start("GPU");
    assert_int_equal(s.file_lines, 0);
    remove_dir();
}

static void what_is_no_plain_file_is_left_alone(void **state)
{
    (void)state;
    new_dir();
    one_start("GPU");
    assert_int_equal(n_files(), 1);
    assert_int_equal(remove(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* must not wait for a writer */
    struct sq_lt_stats s = one_start("GPU");
    assert_int_equal(s.file_lines, 0);
    char elsewhere[sizeof path + 8]; /* the rename put a file there, a good one */
    snprintf(elsewhere, sizeof elsewhere, "%s.real", path);
    assert_int_equal(rename(path, elsewhere), 0);
    assert_int_equal(symlink(elsewhere, path), 0);
    s = one_start("GPU");
    assert_int_equal(s.file_lines, 0);
    remove_dir();
}

/* --- memory and faults --- */

static void no_memory_is_an_error_everywhere(void **state)
{
    struct sq_err err = {0};
    struct sq_lt *lt = NULL;
    int k = 1;
    (void)state;
    new_dir();
    one_start("GPU");
    const struct sq_lt_options o = options("GPU", dir);
    for (;; k++) {
        sq_mem_fail_at((uint64_t)k, false);
        const int rc = sq_lt_open(&o, rig.st, &lt, &err);
        sq_mem_fail_at(0, false);
        if (rc == 0)
            break;
        assert_int_equal(rc, -SQ_E_NOMEM);
    }
    assert_int_equal(k, 5);  /* the table, the path, the text, the probe */
    sq_mem_fail_at(1, true); /* nothing after it takes memory */
    struct ints p;
    make_ints(&p, 64, 96, 2, 0);
    prepare_and_run(lt, &p.m);
    sq_mem_fail_at(0, false);
    free_ints(&p);
    sq_lt_close(lt);
    remove_dir();
}

/* A start of its own process, under whatever fault the environment asks for: 0 all well, 3 an error with a text, 4 anything else. */
static int faulty_run(void)
{
    struct sq_err err = {0};
    struct sq_lt_mm m = {
        .ldw = 64, .ldx = 64, .ldy = 32, .n_out = 32, .k = 64, .n_rows = 5, .dtype = SQ_I8};
    void *w = NULL, *x = NULL, *y = NULL, *alpha = NULL;
    int rc = start();
    if (!rc)
        rc = cudaMalloc(&w, 2048) || cudaMalloc(&x, 512) || cudaMalloc(&y, 640) ||
                     cudaMalloc(&alpha, 128)
                 ? -1
                 : 0;
    if (!rc)
        rc = cudaMemsetAsync(w, 1, 2048, rig.st) || cudaMemsetAsync(x, 1, 512, rig.st) ||
                     cudaMemsetAsync(alpha, 0, 128, rig.st)
                 ? -1
                 : 0;
    m.w = w, m.x = x, m.y = y;
    const bool ours = rc == 0;
    const struct sq_lt_options o = options("a GPU", NULL);
    if (!rc)
        rc = sq_lt_open(&o, rig.st, &rig.lt, &err);
    for (int i = 0; i < 2 && !rc; i++) {
        m.alpha = i ? alpha : NULL;
        rc = sq_lt_prepare(rig.lt, &m, &err);
        if (!rc) {
            rc = sq_lt_matmul(rig.lt, &m);
            if (rc)
                snprintf(err.msg, sizeof err.msg, "%s", sq_lt_last_error(rig.lt));
        }
    }
    const bool bad = ours && rc && (rc > 0 || !err.msg[0]);
    if (rc && ours)
        fprintf(stderr, "told: %d %s\n", rc, err.msg);
    if (!rc && cudaStreamSynchronize(rig.st) != cudaSuccess)
        rc = -1;
    sq_lt_close(rig.lt);
    cudaFree(w);
    cudaFree(x);
    cudaFree(y);
    cudaFree(alpha);
    cudaFree(rig.workspace);
    if (rig.st)
        cudaStreamDestroy(rig.st);
    (void)cudaGetLastError();
    return bad ? 4 : rc ? 3 : 0;
}

/* Runs faulty_run in a process whose n-th call fails. False: it never got that far. */
static bool strike(const char *self, const char *variable, int n, const char *code, int *ret_rc)
{
    char value[64], out[8192];
    int fds[2], status;
    snprintf(value, sizeof value, "%d%s", n, code);
    assert_int_equal(pipe(fds), 0);
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        setenv(variable, value, 1);
        setenv("SG_CHECK_LEAKS", "1", 1);
        dup2(fds[1], 2);
        close(fds[0]);
        close(fds[1]);
        execl(self, self, "--faulty", (char *)NULL);
        _exit(99);
    }
    close(fds[1]);
    size_t len = 0;
    for (ssize_t got;
         len < sizeof out - 1 && (got = read(fds[0], out + len, sizeof out - 1 - len)) > 0;)
        len += (size_t)got;
    out[len] = '\0';
    close(fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 3))
        fail_msg("%s=%s: status %d\n%s", variable, value, status, out);
    /* a call that gives back may itself be the one that fails: its thing is lost, and so is all after a fault that stays */
    const bool lost = strstr(out, "softgpu: leak") != NULL,
               freeing = strstr(out, "Free: fault") || strstr(out, "Destroy: fault") ||
                         strcmp(code, ":2") != 0;
    if (lost && !freeing)
        fail_msg("%s=%s: %s", variable, value, out);
    *ret_rc = WEXITSTATUS(status);
    return strstr(out, "fault injected") != NULL;
}

static char *self;

static void every_fault_is_a_clean_error(void **state)
{
    static const struct {
        const char *variable, *code;
    } kinds[] = {{"SG_FAULT", ""}, {"SG_FAULT", ":2"}, {"SG_FAULT_OP", ""}};
    (void)state;
    if (!is_softgpu() || getenv("SG_FAULT") || getenv("SG_FAULT_OP"))
        skip();
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        int n = 1, told = 0, rc;
        for (; strike(self, kinds[i].variable, n, kinds[i].code, &rc); n += 1 + n / 12)
            told += rc == 3;
        assert_true(told > 10);
        printf("%s%s: up to call %d, %d errors told\n", kinds[i].variable, kinds[i].code, n, told);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--faulty") == 0)
        return faulty_run();
    self = argv[0];
    int n_devices = 0;
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        printf("no device\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(buckets_grow_by_at_most_half),
        cmocka_unit_test(a_bias_is_the_sum_of_its_digits),
        cmocka_unit_test(the_rounding_found_is_the_one_played),
        cmocka_unit_test(sums_are_exact),
        cmocka_unit_test(codes_follow_the_rule_found),
        cmocka_unit_test(a_bias_in_the_columns_is_exact),
        cmocka_unit_test(what_no_algorithm_takes_is_refused_in_words),
        cmocka_unit_test(a_bucket_nobody_prepared_is_asked_for_late),
        cmocka_unit_test(a_bucket_serves_all_its_sizes),
        cmocka_unit_test_teardown(algorithms_that_round_unlike_each_other_are_no_rule, behave),
        cmocka_unit_test_teardown(an_algorithm_that_rounds_otherwise_is_dropped, behave),
        cmocka_unit_test_teardown(wrong_sums_are_found_at_start, behave),
        cmocka_unit_test_teardown(a_library_without_int8_says_so, behave),
        cmocka_unit_test_teardown(a_size_that_its_buckets_algorithm_refuses_is_asked_for, behave),
        cmocka_unit_test(floats_are_near_the_double_sum),
        cmocka_unit_test(a_captured_matmul_reads_new_inputs),
        cmocka_unit_test(timings_are_kept_and_used),
        cmocka_unit_test(a_device_without_a_clock_writes_nothing),
        cmocka_unit_test(a_directory_that_is_not_there_is_no_failure),
        cmocka_unit_test(a_bad_file_is_ignored_line_by_line),
        cmocka_unit_test(algorithms_the_library_does_not_propose_are_timed_again),
        cmocka_unit_test(a_full_file_is_taken_and_one_beyond_it_not),
        cmocka_unit_test(what_is_no_plain_file_is_left_alone),
        cmocka_unit_test(no_memory_is_an_error_everywhere),
        cmocka_unit_test(every_fault_is_a_clean_error),
    };
    return cmocka_run_group_tests_name("cublaslt", tests, set_up, tear_down);
}
