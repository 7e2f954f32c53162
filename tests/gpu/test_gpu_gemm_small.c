/* The weight-streaming matmul against plain C written from engine/quant.h: bit for bit, for every epilogue, with and without a norm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/gemm_plan.h"
#include "cuda/kernels.h"
#include "engine/quant.h"

static cudaStream_t stream;
static struct sq_gpu_device device;
static void *work;

struct shape {
    int m, n, k; /* k: of the norm's input; padded to 16 */
    int norm;    /* 0 none, 1 LayerNorm, 2 RMSNorm, 3 RMSNorm without beta */
    int ld_more; /* columns of y beyond n */
};

/* One matmul: host arrays, sizes padded as the kernel wants them. */
struct sample {
    struct shape s;
    int k_pad, ldw, ldx, ldy, ldq;
    int8_t *w, *x, *q;
    float *mul, *bias, *x_scale, *y, *norm_x, *gamma, *beta;
    int32_t *bias_acc, *acc;
    size_t n_y, n_q;
};

static uint32_t seed;

static uint32_t draw(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static float draw_real(void)
{
    return (float)draw() / (float)(1 << 23) - 1.0f;
}

static void *host(size_t n, size_t size)
{
    void *p = calloc(n + 1, size);
    assert_non_null(p);
    return p;
}

static float *reals(size_t n, float around, float spread)
{
    float *p = host(n, sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = around + spread * draw_real();
    return p;
}

/* Rows of codes, zeros from column k on; some rows all at the lower end. */
static int8_t *codes(int rows, int k, int stride, int lowest)
{
    int8_t *p = host((size_t)rows * (size_t)stride, 1);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < k; c++) {
            int v = (int)(draw() % 256) - 128;
            v = r % 7 == 3 ? lowest : v;
            p[(size_t)r * (size_t)stride + (size_t)c] = (int8_t)(v < lowest ? lowest : v);
        }
    return p;
}

static void sample_norm(struct sample *t)
{
    const size_t k = (size_t)t->s.k;
    t->norm_x = reals(k * (size_t)t->s.m, 0.3f, 2.0f);
    t->gamma = reals(k, 40.0f, 30.0f);
    t->beta = reals(k, 0.0f, t->s.norm == 3 ? 0.0f : 20.0f);
    if (k > 5)
        t->norm_x[5] = 300.0f; /* an outlier, as there are */
}

static struct sample sample_new(struct shape s)
{
    struct sample t = {.s = s};
    const size_t n = (size_t)s.n, m = (size_t)s.m;
    seed = (uint32_t)(s.m * 31 + s.n * 7 + s.k);
    t.k_pad = (s.k + 15) / 16 * 16;
    t.ldw = t.k_pad + 16 * (s.n % 3 * (s.n < 4000) + 2); /* what lies behind k is not read */
    t.ldx = t.k_pad + 32;
    t.ldy = s.n + s.ld_more;
    t.ldq = (s.n + 15) / 16 * 16 + 32;
    t.w = codes(s.n, s.k, t.ldw, -128);
    t.x = codes(s.m, s.k, t.ldx, -127);
    t.mul = reals(n, 2e-3f, 1e-3f);
    t.bias = reals(n, 0.0f, 3.0f);
    t.x_scale = reals(m, 1.0f, 0.5f);
    t.bias_acc = host(n, sizeof *t.bias_acc);
    for (size_t i = 0; i < n; i++)
        t.bias_acc[i] = (int32_t)(draw() % 20000) - 10000;
    t.n_y = m * (size_t)t.ldy;
    t.y = reals(t.n_y, 0.0f, 9.0f);
    t.n_q = m * (size_t)t.ldq;
    t.q = host(t.n_q, 1);
    memset(t.q, 77, t.n_q);
    t.acc = host(m * n, sizeof *t.acc);
    if (s.norm)
        sample_norm(&t);
    return t;
}

static void sample_free(struct sample *t)
{
    void *all[] = {t->w, t->x,      t->q,     t->mul,  t->bias,     t->x_scale,
                   t->y, t->norm_x, t->gamma, t->beta, t->bias_acc, t->acc};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* --- expected --- */

static float canonical_sum(const float *x, int n, float mean, int squares)
{
    float lane[16] = {0};
    for (int k = 0; k < n; k++) {
        float d = x[k] - mean;
        lane[k % 16] = squares ? fmaf(d, d, lane[k % 16]) : lane[k % 16] + x[k];
    }
    return sq_sum16(lane);
}

static void expect_norm(struct sample *t)
{
    const int k = t->s.k;
    const float dim = (float)k;
    for (int m = 0; m < t->s.m; m++) {
        const float *x = t->norm_x + (size_t)m * (size_t)k;
        float mean = t->s.norm == 1 ? canonical_sum(x, k, 0.0f, 0) / dim : 0.0f;
        float rstd = 1.0f / sqrtf(canonical_sum(x, k, mean, 1) / dim + 1e-5f);
        for (int c = 0; c < k; c++)
            t->x[(size_t)m * (size_t)t->ldx + (size_t)c] =
                sq_sat_s8(fmaf((x[c] - mean) * rstd, t->gamma[c], t->beta[c]));
    }
}

static void expect_acc(struct sample *t)
{
    for (int m = 0; m < t->s.m; m++) {
        for (int n = 0; n < t->s.n; n++) {
            const int8_t *x = t->x + (size_t)m * (size_t)t->ldx;
            const int8_t *w = t->w + (size_t)n * (size_t)t->ldw;
            int32_t sum = 0;
            for (int k = 0; k < t->s.k; k++)
                sum += x[k] * w[k];
            t->acc[(size_t)m * (size_t)t->s.n + (size_t)n] = sum;
        }
    }
}

static float swiglu(float g, float u)
{
    float e = sq_exp(-fabsf(g));
    float silu = g >= 0.0f ? g / (1.0f + e) : (g * e) / (1.0f + e);
    return silu * u;
}

static float real(const struct sample *t, int m, int n, int dynamic)
{
    float v = (float)t->acc[(size_t)m * (size_t)t->s.n + (size_t)n];
    v = dynamic ? v * t->x_scale[m] : v;
    return fmaf(v, t->mul[n], t->bias[n]);
}

#define INV_STEP 3.7f

static void expect_at(struct sample *t, int epi, int dynamic, int m, int n)
{
    const int half = epi == SQ_EPI_SWIGLU_S8 || epi == SQ_EPI_SWIGLU_F32;
    if (half && n % 2)
        return;
    float *y = t->y + (size_t)m * (size_t)t->ldy + (size_t)(half ? n / 2 : n);
    int8_t *q = t->q + (size_t)m * (size_t)t->ldq + (size_t)(half ? n / 2 : n);
    if (epi == SQ_EPI_S8 || epi == SQ_EPI_S8_RELU) {
        int32_t acc = t->acc[(size_t)m * (size_t)t->s.n + (size_t)n] + t->bias_acc[n];
        int8_t c = sq_sat_s8((float)acc * t->mul[n]);
        *q = epi == SQ_EPI_S8_RELU && c < 0 ? 0 : c;
        return;
    }
    float v = real(t, m, n, dynamic);
    if (half)
        v = swiglu(v, real(t, m, n + 1, dynamic));
    if (epi == SQ_EPI_SWIGLU_S8)
        *q = sq_sat_s8(v * INV_STEP);
    else if (epi == SQ_EPI_ADD)
        *y += v;
    else if (epi == SQ_EPI_F32_RELU)
        *y = 0.0f > v ? 0.0f : v;
    else
        *y = v;
}

/* --- the device --- */

static void *upload(const void *p, size_t n)
{
    void *d;
    assert_int_equal(cudaMalloc(&d, n ? n : 1), cudaSuccess);
    if (n)
        assert_int_equal(cudaMemcpyAsync(d, p, n, cudaMemcpyHostToDevice, stream), cudaSuccess);
    return d;
}

static void download(void *p, const void *d, size_t n)
{
    assert_int_equal(cudaMemcpyAsync(p, d, n, cudaMemcpyDeviceToHost, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
}

struct device_sample {
    struct sq_gpu_gemm g;
    struct sq_gpu_norm norm;
};

static struct device_sample device_new(const struct sample *t)
{
    const size_t n = (size_t)t->s.n, m = (size_t)t->s.m, k = (size_t)t->s.k;
    struct device_sample d = {
        .g = {.ldw = t->ldw, .n_out = t->s.n, .k = t->k_pad, .n_rows = t->s.m}};
    d.g.w = upload(t->w, n * (size_t)t->ldw);
    d.g.x = (struct sq_gpu_codes){upload(t->x, m * (size_t)t->ldx), NULL, t->ldx};
    d.g.to.x_scale = upload(t->x_scale, m * 4);
    d.g.to.mul = upload(t->mul, n * 4);
    d.g.to.bias = upload(t->bias, n * 4);
    d.g.to.bias_acc = upload(t->bias_acc, n * 4);
    d.g.to.inv_step = INV_STEP;
    d.g.to.y = upload(t->y, t->n_y * 4);
    d.g.to.ld_y = t->ldy;
    d.g.to.y_q = (struct sq_gpu_codes){upload(t->q, t->n_q), NULL, t->ldq};
    d.g.acc_y = upload(NULL, 0);
    cudaFree(d.g.acc_y);
    assert_int_equal(cudaMalloc((void **)&d.g.acc_y, m * n * 4), cudaSuccess);
    d.g.work = work;
    if (t->s.norm) {
        d.norm = (struct sq_gpu_norm){.rms = t->s.norm >= 2, .dim = t->s.k, .eps = 1e-5f};
        d.norm.gamma_q = upload(t->gamma, k * 4);
        d.norm.beta_q = t->s.norm == 3 ? NULL : upload(t->beta, k * 4);
        d.g.norm_x = upload(t->norm_x, m * k * 4);
    }
    return d;
}

static void device_free(struct device_sample *d)
{
    const void *all[] = {d->g.w,       d->g.x.q,         d->g.to.x_scale, d->g.to.mul,
                         d->g.to.bias, d->g.to.bias_acc, d->g.to.y,       d->g.to.y_q.q,
                         d->g.acc_y,   d->norm.gamma_q,  d->norm.beta_q,  d->g.norm_x};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cudaFree((void *)(uintptr_t)all[i]);
}

static void run_gemm(struct device_sample *d, int epi, int dynamic)
{
    struct sq_gpu_gemm g = d->g;
    g.to.epi = epi;
    g.norm = g.norm_x ? &d->norm : NULL;
    if (!dynamic)
        g.to.x_scale = NULL;
    assert_int_equal(sq_gpu_gemm_chain(stream, &device, &g, 1), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
}

static void compare(const struct shape *s, const char *what, const void *got, const void *want,
                    size_t n)
{
    const uint8_t *a = got, *b = want;
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i])
            fail_msg("m %d n %d k %d norm %d: %s differs at byte %zu of %zu", s->m, s->n, s->k,
                     s->norm, what, i, n);
}

static void check_results(const struct sample *t, const struct device_sample *d)
{
    float *y = host(t->n_y, 4);
    int8_t *q = host(t->n_q, 1);
    download(y, d->g.to.y, t->n_y * 4);
    download(q, d->g.to.y_q.q, t->n_q);
    compare(&t->s, "y", y, t->y, t->n_y * 4);
    compare(&t->s, "codes", q, t->q, t->n_q);
    free(y);
    free(q);
}

/* The kernel leaves it zeroed, but for the grid's barrier: its first words. */
static void check_work(void)
{
    const size_t n = sq_gpu_gemm_small_work() / sizeof(int32_t);
    int32_t *p = host(n, sizeof *p);
    download(p, work, n * sizeof *p);
    assert_int_equal(p[0] & INT32_MAX, 0);
    for (size_t i = 1; i < n; i++)
        if (p[i])
            fail_msg("work is not zero at word %zu", i);
    free(p);
}

static void check_acc(struct sample *t, struct device_sample *d)
{
    const size_t n = (size_t)t->s.m * (size_t)t->s.n;
    int32_t *acc = host(n, 4);
    int8_t *x = host((size_t)t->s.m * (size_t)t->ldx, 1);
    if (t->s.norm)
        expect_norm(t);
    expect_acc(t);
    run_gemm(d, SQ_EPI_ACC, 0);
    download(x, d->g.x.q, (size_t)t->s.m * (size_t)t->ldx);
    compare(&t->s, "x", x, t->x, (size_t)t->s.m * (size_t)t->ldx);
    download(acc, d->g.acc_y, n * 4);
    compare(&t->s, "sums", acc, t->acc, n * 4);
    free(acc);
    free(x);
}

static void check_epi(struct sample *t, struct device_sample *d, int epi, int dynamic)
{
    for (int m = 0; m < t->s.m; m++)
        for (int n = 0; n < t->s.n; n++)
            expect_at(t, epi, dynamic, m, n);
    run_gemm(d, epi, dynamic);
    check_results(t, d);
}

static void check_shape(struct shape s)
{
    struct sample t = sample_new(s);
    struct device_sample d = device_new(&t);
    check_acc(&t, &d);
    check_epi(&t, &d, SQ_EPI_F32, 0);
    check_epi(&t, &d, SQ_EPI_ADD, 0);
    check_epi(&t, &d, SQ_EPI_ADD, 1);
    check_epi(&t, &d, SQ_EPI_F32_RELU, 0);
    check_epi(&t, &d, SQ_EPI_S8, 0);
    check_epi(&t, &d, SQ_EPI_S8_RELU, 0);
    if (s.n % 2 == 0) {
        check_epi(&t, &d, SQ_EPI_SWIGLU_S8, 0);
        check_epi(&t, &d, SQ_EPI_SWIGLU_F32, 1);
    }
    device_free(&d);
    sample_free(&t);
    check_work();
}

static void check_all(const struct shape *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        check_shape(s[i]);
}
#define CHECK_ALL(s) check_all(s, sizeof s / sizeof *s)

static void test_rows(void **state)
{
    (void)state;
    for (int m = 1; m <= SQ_GPU_SMALL_MAX; m += m < 18 ? 1 : 7)
        check_shape((struct shape){.m = m, .n = 50, .k = 160});
    check_shape((struct shape){.m = SQ_GPU_SMALL_MAX, .n = 50, .k = 160});
}

static void test_odd_sizes(void **state)
{
    static const struct shape s[] = {
        {.m = 1, .n = 1, .k = 16},
        {.m = 3, .n = 2, .k = 48},
        {.m = 2, .n = 67, .k = 144, .ld_more = 3},
        {.m = 9, .n = 131, .k = 400},
        {.m = 33, .n = 257, .k = 272},
        {.m = 64, .n = 33, .k = 1040},
        {.m = 5, .n = 998, .k = 336},
        {.m = 17, .n = 24, .k = 2064, .ld_more = 4},
    };
    (void)state;
    CHECK_ALL(s);
}

/* Scaled by 8 from OPT-30B and Llama-3-8B, and the demo model. */
static void test_real_sizes(void **state)
{
    static const struct shape s[] = {
        {.m = 1, .n = 2688, .k = 896},  {.m = 4, .n = 896, .k = 3584},
        {.m = 16, .n = 3584, .k = 896}, {.m = 64, .n = 512, .k = 1792},
        {.m = 1, .n = 256, .k = 1024},  {.m = 8, .n = 768, .k = 256},
    };
    (void)state;
    CHECK_ALL(s);
}

/* Few outputs and many inputs: the inputs are split over blocks. */
static void test_slices(void **state)
{
    static const struct shape s[] = {
        {.m = 1, .n = 64, .k = 32768},
        {.m = 12, .n = 130, .k = 16400},
        {.m = 64, .n = 96, .k = 8192},
        {.m = 2, .n = 40, .k = 12288, .norm = 1},
    };
    (void)state;
    CHECK_ALL(s);
}

static void test_norm(void **state)
{
    static const struct shape s[] = {
        {.m = 1, .n = 50, .k = 160, .norm = 1},  {.m = 2, .n = 96, .k = 256, .norm = 2},
        {.m = 4, .n = 33, .k = 1030, .norm = 1}, {.m = 3, .n = 130, .k = 77, .norm = 2},
        {.m = 4, .n = 16, .k = 7168, .norm = 1}, {.m = 3, .n = 200, .k = 4096, .norm = 2},
        {.m = 1, .n = 8, .k = 5, .norm = 1},     {.m = 1, .n = 64, .k = 512, .norm = 3},
    };
    (void)state;
    CHECK_ALL(s);
}

/* Every row and every line is somebody's, and all fits, on whatever device. */
static void check_plan(const struct sq_small_shape *s)
{
    struct sq_small_plan p;
    if (!sq_small_plan(s, &p))
        fail_msg("no plan for n %d k %d m %d on %d with %d", s->n_out, s->k, s->n_rows, s->n_sms,
                 s->shared_bytes);
    const int rows = ((s->n_out + 3) / 4 + p.ranges - 1) / p.ranges * 4;
    const int warps = p.warps_n * p.warps_k;
    assert_true(rows <= p.warps_n * SQ_SMALL_WARP_ROWS);
    assert_true(warps <= SQ_SMALL_WARPS_MOST(s->n_rows, s->pairs));
    assert_true(p.stages >= 2 && p.stages <= SQ_SMALL_STAGES);
    assert_true(p.shared_bytes <= s->shared_bytes);
    assert_true(p.ring_at % 128 == 0 && p.stage_bytes % 128 == 0);
    assert_true(p.ring_at + p.stages * p.stage_bytes <= p.shared_bytes);
    assert_true(p.warps_k * s->n_rows * p.sum_stride * 4 <= p.front_bytes);
    assert_true(p.front_at + p.front_bytes <= p.x_at && p.x_at <= p.ring_at);
    assert_true(p.slices * p.warps_k <= (s->k + 127) / 128);
    assert_true(p.slices <= 65535);
    if (s->pairs) {
        const int x_bytes = p.warps_k * SQ_SMALL_X_ROWS(s->n_rows) * SQ_SMALL_LINE;
        assert_true(p.ranges % 2 == 0 && p.warps_n >= 2);
        assert_true(p.x_at + 2 * x_bytes <= p.ring_at);
    }
    if (p.slices > 1) {
        assert_true(p.ranges * p.slices <= s->n_sms);
        assert_true(s->may_join && p.ranges <= SQ_SMALL_RANGES);
        assert_true((long)p.ranges * p.warps_n * SQ_SMALL_WARP_ROWS * s->n_rows <= SQ_SMALL_SUMS);
    }
}

static void test_plans(void **state)
{
    static const int devices[][2] = {
        {132, 232320}, {108, 166784}, {58, 101248}, {40, 65408}, {1, 65408}};
    static const int sizes[][2] = {{21504, 7168},  {7168, 28672},    {28672, 4096}, {4096, 14336},
                                   {128256, 4096}, {500000, 131056}, {1, 131056},   {256, 256},
                                   {7, 16},        {50272, 12288},   {36864, 9216}};
    static const int rows[] = {1, 2, 4, 7, 8, 16, 17, 32, 33, 64};
    (void)state;
    for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes * 2; i++) {
            struct sq_small_shape s = {
                .n_out = sizes[i / 2][0], .k = sizes[i / 2][1], .may_join = i % 2};
            s.n_sms = devices[d][0];
            s.shared_bytes = devices[d][1];
            for (size_t m = 0; m < sizeof rows / sizeof *rows; m++) {
                s.n_rows = rows[m];
                check_plan(&s);
                s.pairs = s.n_rows >= SQ_SMALL_PAIR_LEAST && s.n_sms > 100;
                check_plan(&s);
                s.pairs = false;
            }
            s.norm_dim = s.k <= 9216 ? s.k : 0;
            const int most = s.shared_bytes < 100000 ? 1 : s.may_join ? 64 : SQ_SMALL_FRONT_ROWS;
            for (s.n_rows = 1; s.n_rows <= most; s.n_rows += s.n_rows < 4 ? 1 : 20)
                check_plan(&s);
        }
    }
}

/* --- chains --- */

/* What stands between two attentions: x += o(a); g = swiglu(gate_up(norm(x))); x += down(g); y = qkv(norm(x)) */
struct block {
    int m, heads, hidden, ffn, qkv;
};

struct block_sample {
    struct sample s[SQ_GPU_CHAIN];
    struct device_sample d[SQ_GPU_CHAIN];
    struct sq_gpu_gemm g[SQ_GPU_CHAIN];
    float *y; /* of qkv, device */
    size_t n_x, n_y, n_q;
};

static void block_new(struct block_sample *t, const struct block *b)
{
    const struct shape shapes[SQ_GPU_CHAIN] = {
        {.m = b->m, .n = b->hidden, .k = b->heads},
        {.m = b->m, .n = 2 * b->ffn, .k = b->hidden, .norm = 2},
        {.m = b->m, .n = b->hidden, .k = b->ffn},
        {.m = b->m, .n = b->qkv, .k = b->hidden, .norm = 1}};
    static const int epi[SQ_GPU_CHAIN] = {SQ_EPI_ADD, SQ_EPI_SWIGLU_S8, SQ_EPI_ADD, SQ_EPI_F32};
    for (int i = 0; i < SQ_GPU_CHAIN; i++) {
        t->s[i] = sample_new(shapes[i]);
        t->d[i] = device_new(&t->s[i]);
        t->g[i] = t->d[i].g;
        t->g[i].to.epi = epi[i];
        t->g[i].to.x_scale = NULL;
        t->g[i].norm = t->g[i].norm_x ? &t->d[i].norm : NULL;
    }
    t->g[2].to.y = t->g[0].to.y;
    t->g[1].norm_x = t->g[3].norm_x = t->g[0].to.y;
    t->g[2].x =
        t->g[1].to.y_q; /* what is not written of it is 77 everywhere: k is a multiple of 16 */
    t->y = t->g[3].to.y;
    t->n_x = t->s[0].n_y, t->n_y = t->s[3].n_y, t->n_q = t->s[1].n_q;
}

/* Everything that is written, as it was at the start; one launch or four; what is written then. */
static void block_run(struct block_sample *t, bool chain, float *x, float *y, int8_t *q)
{
    assert_int_equal(
        cudaMemcpyAsync(t->g[0].to.y, t->s[0].y, t->n_x * 4, cudaMemcpyHostToDevice, stream), 0);
    assert_int_equal(cudaMemcpyAsync(t->y, t->s[3].y, t->n_y * 4, cudaMemcpyHostToDevice, stream),
                     0);
    assert_int_equal(
        cudaMemcpyAsync(t->g[1].to.y_q.q, t->s[1].q, t->n_q, cudaMemcpyHostToDevice, stream), 0);
    for (int i = 0; i < SQ_GPU_CHAIN; i += chain ? SQ_GPU_CHAIN : 1)
        assert_int_equal(sq_gpu_gemm_chain(stream, &device, &t->g[i], chain ? SQ_GPU_CHAIN : 1),
                         cudaSuccess);
    download(x, t->g[0].to.y, t->n_x * 4);
    download(y, t->y, t->n_y * 4);
    download(q, t->g[1].to.y_q.q, t->n_q);
}

static void check_block(const struct block *b)
{
    const bool can_pair = device.can_pair;
    struct block_sample t;
    block_new(&t, b);
    float *x = host(t.n_x * 2, 4), *y = host(t.n_y * 2, 4);
    int8_t *q = host(t.n_q * 2, 1);
    block_run(&t, false, x, y, q);
    for (int again = 0; again < 2; again++) {
        block_run(&t, true, x + t.n_x, y + t.n_y, q + t.n_q);
        compare(&t.s[0].s, "x of a chain", x + t.n_x, x, t.n_x * 4);
        compare(&t.s[1].s, "codes of a chain", q + t.n_q, q, t.n_q);
        compare(&t.s[3].s, "y of a chain", y + t.n_y, y, t.n_y * 4);
        device.can_pair = false; /* the second time, where there were pairs */
    }
    device.can_pair = can_pair;
    if (memcmp(y, t.s[3].y, t.n_y * 4) == 0)
        fail_msg("nothing was written");
    free(x);
    free(y);
    free(q);
    for (int i = 0; i < SQ_GPU_CHAIN; i++) {
        device_free(&t.d[i]);
        sample_free(&t.s[i]);
    }
    check_work();
}

static void test_chains(void **state)
{
    static const struct block b[] = {
        {.m = 1, .heads = 512, .hidden = 512, .ffn = 1792, .qkv = 768},
        {.m = 2, .heads = 64, .hidden = 80, .ffn = 160, .qkv = 100},
        {.m = 3, .heads = 256, .hidden = 256, .ffn = 688, .qkv = 768},
        {.m = 9, .heads = 96, .hidden = 112, .ffn = 4000, .qkv = 130},
        {.m = 24, .heads = 320, .hidden = 256, .ffn = 512, .qkv = 600},
        {.m = 64, .heads = 512, .hidden = 512, .ffn = 1792, .qkv = 768},
        {.m = 41, .heads = 48, .hidden = 64, .ffn = 16, .qkv = 9},
    };
    (void)state;
    for (size_t i = 0; i < sizeof b / sizeof *b; i++)
        check_block(&b[i]);
}

/* Several units for a block: more rows than blocks can hold at once, before and behind another matmul. */
static void test_many_units(void **state)
{
    (void)state;
    check_block(&(struct block){.m = 1, .heads = 16, .hidden = 32, .ffn = 40000, .qkv = 80004});
}

/* Of all matmuls of a launch, constants and fronts lie at the same place. */
static void test_plans_of_chains(void **state)
{
    static const int rows[] = {1, 2, 3, 8, 17, 33, 64};
    (void)state;
    for (size_t m = 0; m < sizeof rows / sizeof *rows; m++) {
        struct sq_small_shape s[4] = {{.n_out = 7168, .k = 7168},
                                      {.n_out = 28672, .k = 7168, .norm_dim = 7168},
                                      {.n_out = 7168, .k = 28672},
                                      {.n_out = 21504, .k = 7168, .norm_dim = 7168}};
        struct sq_small_plan p[4];
        for (int i = 0; i < 4; i++)
            s[i].n_rows = rows[m], s[i].may_join = true, s[i].n_sms = 132,
            s[i].shared_bytes = 232320, s[i].pairs = rows[m] >= SQ_SMALL_PAIR_LEAST;
        assert_true(sq_small_plan_chain(s, 4, p));
        for (int i = 0; i < 4; i++) {
            check_plan(&s[i]);
            assert_int_equal(p[i].const_bytes, p[0].const_bytes);
            assert_int_equal(p[i].front_bytes, p[0].front_bytes);
            assert_true(p[i].shared_bytes <= s[i].shared_bytes);
        }
    }
}

/* Blocks in pairs and by themselves; sizes of which not all rows, lines and ranges are whole. */
static void test_pairs(void **state)
{
    static const struct shape s[] = {
        {.m = 17, .n = 600, .k = 272},
        {.m = 30, .n = 64, .k = 16384},
        {.m = 33, .n = 257, .k = 1040},
        {.m = 41, .n = 4, .k = 16},
        {.m = 64, .n = 1, .k = 144},
        {.m = 64, .n = 40000, .k = 48},
        {.m = 40, .n = 130, .k = 77, .norm = 2},
        {.m = 64, .n = 96, .k = 8192},
    };
    (void)state;
    if (!device.can_pair)
        skip();
    CHECK_ALL(s);
    device.can_pair = false;
    CHECK_ALL(s);
    device.can_pair = true;
}

static void test_refused(void **state)
{
    struct sample t = sample_new((struct shape){.m = 1, .n = 4, .k = 16});
    struct device_sample d = device_new(&t);
    (void)state;
    d.g.n_rows = SQ_GPU_SMALL_MAX + 1;
    assert_int_equal(sq_gpu_gemm_chain(stream, &device, &d.g, 1), cudaErrorInvalidValue);
    d.g.n_rows = 1;
    d.g.k = 20;
    assert_int_equal(sq_gpu_gemm_chain(stream, &device, &d.g, 1), cudaErrorInvalidValue);
    d.g.k = 16;
    struct sq_gpu_gemm two[SQ_GPU_CHAIN + 1] = {d.g, d.g};
    assert_int_equal(sq_gpu_gemm_chain(stream, &device, two, 0), cudaErrorInvalidValue);
    assert_int_equal(sq_gpu_gemm_chain(stream, &device, two, SQ_GPU_CHAIN + 1),
                     cudaErrorInvalidValue);
    two[1].n_rows = 2;
    assert_int_equal(sq_gpu_gemm_chain(stream, &device, two, 2), cudaErrorInvalidValue);
    device_free(&d);
    sample_free(&t);
}

static int setup(void **state)
{
    (void)state;
    return sq_gpu_device(&device) != cudaSuccess ||
           cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess ||
           cudaMalloc(&work, sq_gpu_gemm_small_work()) != cudaSuccess ||
           cudaMemsetAsync(work, 0, sq_gpu_gemm_small_work(), stream) != cudaSuccess;
}

static int teardown(void **state)
{
    (void)state;
    return cudaFree(work) != cudaSuccess || cudaStreamDestroy(stream) != cudaSuccess;
}

/* --- real sizes, once each, for SG_COUNTERS and the cost model: SQ_GEMM_SHAPES="m:n:k:epi:norm ..." --- */

static int run_shapes(const char *list)
{
    struct shape s;
    int epi, used;
    if (setup(NULL))
        return 1;
    for (; sscanf(list, " %d:%d:%d:%d:%d%n", &s.m, &s.n, &s.k, &epi, &s.norm, &used) == 5;
         list += used) {
        s.ld_more = 0;
        struct sample t = sample_new(s);
        struct device_sample d = device_new(&t);
        run_gemm(&d, epi, 0);
        device_free(&d);
        sample_free(&t);
    }
    return teardown(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),       cmocka_unit_test(test_odd_sizes),
        cmocka_unit_test(test_real_sizes), cmocka_unit_test(test_slices),
        cmocka_unit_test(test_norm),       cmocka_unit_test(test_pairs),
        cmocka_unit_test(test_chains),     cmocka_unit_test(test_many_units),
        cmocka_unit_test(test_plans),      cmocka_unit_test(test_plans_of_chains),
        cmocka_unit_test(test_refused),
    };
    const char *shapes = getenv("SQ_GEMM_SHAPES");
    return shapes ? run_shapes(shapes) : cmocka_run_group_tests(tests, setup, teardown);
}
