/* Row ops and the float matmul of every variant against the scalar definitions of quant.h, bit for bit, at odd sizes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/cpu/cpu.h"

#define GUARD 12345.5f

static uint64_t rng_state;

static uint32_t rng(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

/* Mostly small, sometimes large: outlier channels. */
static float rng_float(void)
{
    float x = (float)(rng() % 200001) / 100000.0f - 1.0f;
    return rng() % 37 == 0 ? x * 60.0f : x;
}

static void fill(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = rng_float();
}

static struct sq_buf *buf_new(enum sq_buf_kind kind, int rows, size_t cols)
{
    struct sq_buf *b = NULL;
    assert_int_equal(sq_cpu_buf_new(kind, (size_t)rows, cols, &b, NULL), 0);
    if (kind == SQ_BUF_F32)
        fill(b->f, (size_t)rows * b->stride);
    return b;
}

/* Equal bits, any NaN like any other. */
static void check_floats(const char *what, const char *variant, const float *got, const float *want,
                         size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t g, w;
        memcpy(&g, got + i, 4);
        memcpy(&w, want + i, 4);
        if (g != w && !(isnan(got[i]) && isnan(want[i])))
            fail_msg("%s, %s: element %zu of %zu is %.9g, want %.9g", what, variant, i, n,
                     (double)got[i], (double)want[i]);
    }
}

/* Codes of a row, and that the padding behind it was left alone. */
static void check_codes(const char *what, const char *variant, const struct sq_buf *b, size_t row,
                        const float *want)
{
    const uint8_t *got = b->u + row * b->stride;
    for (size_t i = 0; i < b->stride; i++) {
        int w = i < b->cols ? sq_sat_s8(want[i]) + 128 : 128;
        if (got[i] != w)
            fail_msg("%s, %s: code %zu of %zu is %d, want %d", what, variant, i, b->cols, got[i],
                     w);
    }
}

static const size_t dims[] = {1, 5, 15, 16, 17, 64, 100, 768, 1000};

/* --- norms --- */

enum { SUM, SQUARES };

static float lanes_sum(const float *x, size_t n, float mean, int how)
{
    float l[SQ_LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        float *acc = &l[i % SQ_LANES];
        *acc = how == SUM ? *acc + x[i] : fmaf(x[i] - mean, x[i] - mean, *acc);
    }
    return sq_sum16(l);
}

/* ret = gamma * t + beta, fused */
static void norm_def(const struct sq_norm *n, const float *x, const float *gamma, const float *beta,
                     float *ret)
{
    float k = (float)n->dim, mean = 0.0f;
    if (n->kind == SQ_LAYERNORM)
        mean = lanes_sum(x, n->dim, 0, SUM) / k;
    float rstd = 1.0f / sqrtf(lanes_sum(x, n->dim, mean, SQUARES) / k + n->eps);
    for (size_t i = 0; i < n->dim; i++)
        ret[i] = fmaf((x[i] - mean) * rstd, gamma[i], beta[i]);
}

static void check_norm(const struct sq_cpu_ops *k, const struct sq_norm *n, bool in_place)
{
    enum { ROWS = 5 };
    const size_t dim = n->dim;
    struct sq_buf *x = buf_new(SQ_BUF_F32, ROWS, dim), *y = buf_new(SQ_BUF_F32, ROWS, dim);
    struct sq_buf *y_q = buf_new(SQ_BUF_S8, ROWS, dim);
    float *want = sq_new_array(float, ROWS *dim), *want_q = sq_new_array(float, ROWS *dim);
    memset(x->f + dim, 0, dim * sizeof(float)); /* row 1: nothing but zeros */
    x->f[2 * dim] = NAN;
    for (size_t r = 0; r < ROWS; r++) {
        norm_def(n, x->f + r * dim, n->gamma, n->beta, want + r * dim);
        norm_def(n, x->f + r * dim, n->gamma_q, n->beta_q, want_q + r * dim);
    }
    struct sq_buf *to = in_place ? x : y;
    k->norm(n, x, 0, 2, to, y_q);
    k->norm(n, x, 2, ROWS, to, y_q);
    check_floats("norm", k->name, to->f, want, ROWS * dim);
    for (size_t r = 0; r < ROWS; r++)
        check_codes("norm", k->name, y_q, r, want_q + r * dim);
    sq_cpu_buf_free(x);
    sq_cpu_buf_free(y);
    sq_cpu_buf_free(y_q);
    sq_free(want);
    sq_free(want_q);
}

static void test_norm(void **state)
{
    (void)state;
    for (size_t i = 0; i < SQ_ARRAY_LEN(dims); i++)
        for (int kind = SQ_LAYERNORM; kind <= SQ_RMSNORM; kind++) {
            float g[1000], b[1000], gq[1000], bq[1000];
            fill(g, 1000);
            fill(b, 1000);
            for (int j = 0; j < 1000; j++) {
                gq[j] = g[j] * 40.0f;
                bq[j] = b[j] * 40.0f;
            }
            bool rms = kind == SQ_RMSNORM;
            struct sq_norm_desc d = {kind, dims[i], 1e-5f, g, rms ? NULL : b, gq, rms ? NULL : bq};
            struct sq_norm *n = NULL;
            assert_int_equal(sq_cpu_norm_new(&d, &n, NULL), 0);
            for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++) {
                check_norm(*k, n, false);
                check_norm(*k, n, true);
            }
            sq_cpu_norm_free(n);
        }
}

/* Only codes, only floats: the other constants are absent then. */
static void test_norm_one_output(void **state)
{
    (void)state;
    float g[20];
    fill(g, 20);
    struct sq_norm_desc df = {SQ_LAYERNORM, 20, 1e-5f, g, NULL, NULL, NULL};
    struct sq_norm_desc dq = {SQ_LAYERNORM, 20, 1e-5f, NULL, NULL, g, NULL};
    struct sq_norm *f = NULL, *q = NULL;
    assert_int_equal(sq_cpu_norm_new(&df, &f, NULL), 0);
    assert_int_equal(sq_cpu_norm_new(&dq, &q, NULL), 0);
    for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++) {
        struct sq_buf *x = buf_new(SQ_BUF_F32, 1, 20), *y_q = buf_new(SQ_BUF_S8, 1, 20);
        float want[20];
        norm_def(q, x->f, q->gamma_q, q->beta_q, want);
        (*k)->norm(q, x, 0, 1, NULL, y_q);
        check_codes("norm to codes", (*k)->name, y_q, 0, want);
        norm_def(f, x->f, f->gamma, f->beta, want);
        (*k)->norm(f, x, 0, 1, x, NULL);
        check_floats("norm to floats", (*k)->name, x->f, want, 20);
        sq_cpu_buf_free(x);
        sq_cpu_buf_free(y_q);
    }
    sq_cpu_norm_free(f);
    sq_cpu_norm_free(q);
}

/* --- quantisation --- */

static void check_quant(const struct sq_cpu_ops *k, const struct sq_buf *x, float inv_step,
                        const float *scales)
{
    const size_t n = x->cols;
    struct sq_buf *q = buf_new(SQ_BUF_S8, (int)x->max_rows, n);
    k->quant_rows(x, 0, (int)x->max_rows, inv_step, q);
    for (size_t r = 0; r < x->max_rows; r++) {
        float *want = sq_new_array(float, n);
        float inv = inv_step != 0.0f ? inv_step : 1.0f / scales[r];
        for (size_t i = 0; i < n; i++)
            want[i] = x->f[r * n + i] * inv;
        check_codes("quant_rows", k->name, q, r, want);
        sq_free(want);
    }
    if (inv_step == 0.0f)
        check_floats("row scales", k->name, q->row_scale, scales, x->max_rows);
    sq_cpu_buf_free(q);
}

static void test_quant_rows(void **state)
{
    (void)state;
    enum { ROWS = 6 };
    for (size_t i = 0; i < SQ_ARRAY_LEN(dims); i++) {
        struct sq_buf *x = buf_new(SQ_BUF_F32, ROWS, dims[i]);
        float scales[ROWS];
        const size_t n = dims[i];
        memset(x->f + n, 0, n * sizeof(float));
        x->f[2 * n + n / 2] = NAN;
        x->f[3 * n + n - 1] = -INFINITY;
        for (size_t j = 0; j < n; j++)
            x->f[4 * n + j] *= 1e-39f; /* too small for a normal step */
        for (size_t r = 0; r < ROWS; r++) {
            float m = 0.0f;
            for (size_t j = 0; j < n; j++)
                m = fabsf(x->f[r * n + j]) > m ? fabsf(x->f[r * n + j]) : m;
            scales[r] = m / 127.0f >= 0x1p-126f ? m / 127.0f : 1.0f;
        }
        for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++) {
            check_quant(*k, x, 0.0f, scales);
            check_quant(*k, x, 31.7f, NULL);
            check_quant(*k, x, 1e30f, NULL);
        }
        sq_cpu_buf_free(x);
    }
}

/* Ties go to the even code on every variant. */
static void test_ties(void **state)
{
    (void)state;
    struct sq_buf *x = buf_new(SQ_BUF_F32, 1, 400);
    for (int i = 0; i < 400; i++)
        x->f[i] = (float)(i - 200) + 0.5f;
    for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++) {
        struct sq_buf *q = buf_new(SQ_BUF_S8, 1, 400);
        (*k)->quant_rows(x, 0, 1, 1.0f, q);
        for (int i = 80; i < 320; i++)
            assert_int_equal((q->u[i] - 128) % 2, 0);
        sq_cpu_buf_free(q);
    }
    sq_cpu_buf_free(x);
}

/* --- rotary --- */

enum { ROPE_ROWS = 5, ROPE_POS = 9 };

/* As quant.h says, into f32; inv[] of q, k, v multiplies what codes are wanted of. */
static void rope_def(const struct sq_rope *r, const struct sq_attn *a, const int32_t *pos,
                     const struct sq_buf *x, const float *inv, float *ret)
{
    const size_t half = r->rot_dim / 2, dim = (size_t)a->head_dim, n = x->cols;
    for (size_t m = 0; m < ROPE_ROWS; m++)
        for (size_t c = 0; c < n; c++) {
            size_t head = c / dim, i = c % dim, part = head < (size_t)a->n_heads ? 0 : 1;
            const float *row = x->f + m * n;
            float v = row[c];
            part = head >= (size_t)(a->n_heads + a->n_kv_heads) ? 2 : part;
            if (part < 2 && i < r->rot_dim) {
                size_t k = (size_t)pos[m] * half + i % half;
                float first = row[c - i + i % half], second = row[c - i + i % half + half];
                v = i < half ? fmaf(first, r->cos[k], -(second * r->sin[k]))
                             : fmaf(second, r->cos[k], first * r->sin[k]);
            }
            ret[m * n + c] = inv ? v * inv[part] : v;
        }
}

static void check_rope(const struct sq_rope *r, struct sq_attn a)
{
    const int32_t pos[ROPE_ROWS] = {0, 1, 8, 3, 4};
    const struct sq_batch b = {.n_rows = ROPE_ROWS, .pos = pos};
    const size_t n = (size_t)((a.n_heads + 2 * a.n_kv_heads) * a.head_dim);
    const float inv[] = {40.0f, 31.7f, 100.0f};
    a.q_inv = inv[0];
    a.k_inv = inv[1];
    a.v_inv = inv[2];
    struct sq_buf *x = buf_new(SQ_BUF_F32, ROPE_ROWS, n);
    x->f[n + 1] = NAN;
    float *want = sq_new_array(float, ROPE_ROWS *n), *want_q = sq_new_array(float, ROPE_ROWS *n);
    rope_def(r, &a, pos, x, NULL, want);
    rope_def(r, &a, pos, x, inv, want_q);
    for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++) {
        struct sq_buf *y = buf_new(SQ_BUF_F32, ROPE_ROWS, n), *q = buf_new(SQ_BUF_S8, ROPE_ROWS, n);
        (*k)->rope(r, &a, &b, x, q, 0, 2);
        (*k)->rope(r, &a, &b, x, q, 2, ROPE_ROWS);
        for (size_t m = 0; m < ROPE_ROWS; m++)
            check_codes("rope to codes", (*k)->name, q, m, want_q + m * n);
        (*k)->rope(r, &a, &b, x, y, 0, ROPE_ROWS);
        check_floats("rope", (*k)->name, y->f, want, ROPE_ROWS * n);
        memcpy(y->f, x->f, ROPE_ROWS * n * sizeof(float)); /* and over itself */
        (*k)->rope(r, &a, &b, y, y, 0, ROPE_ROWS);
        check_floats("rope in place", (*k)->name, y->f, want, ROPE_ROWS * n);
        sq_cpu_buf_free(y);
        sq_cpu_buf_free(q);
    }
    sq_cpu_buf_free(x);
    sq_free(want);
    sq_free(want_q);
}

static void test_rope(void **state)
{
    (void)state;
    static const struct {
        int dim, rot_dim;
    } sizes[] = {{2, 2}, {16, 16}, {64, 64}, {80, 80}, {128, 128}, {34, 34}, {80, 32}, {96, 20}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(sizes); i++) {
        float cos[ROPE_POS * 64], sin[ROPE_POS * 64];
        fill(cos, SQ_ARRAY_LEN(cos));
        fill(sin, SQ_ARRAY_LEN(sin));
        struct sq_rope_desc d = {(size_t)sizes[i].rot_dim, ROPE_POS, cos, sin};
        struct sq_rope *r = NULL;
        assert_int_equal(sq_cpu_rope_new(&d, &r, NULL), 0);
        memset(cos, 0, sizeof cos); /* it has its own copy */
        check_rope(r, (struct sq_attn){.n_heads = 4, .n_kv_heads = 2, .head_dim = sizes[i].dim});
        check_rope(r, (struct sq_attn){.n_heads = 1, .n_kv_heads = 1, .head_dim = sizes[i].dim});
        sq_cpu_rope_free(r);
    }
}

/* --- SwiGLU --- */

static float swiglu_def(float g, float u)
{
    float e = sq_exp(-fabsf(g));
    return (g >= 0.0f ? g / (1.0f + e) : (g * e) / (1.0f + e)) * u;
}

static void check_swiglu(const struct sq_cpu_ops *k, const struct sq_buf *x, const float *want)
{
    const size_t rows = x->max_rows, n = x->cols / 2;
    struct sq_buf *y = buf_new(SQ_BUF_F32, (int)rows, n), *q = buf_new(SQ_BUF_S8, (int)rows, n);
    k->swiglu(x, 0, 1, 0.0f, y);
    k->swiglu(x, 1, (int)rows, 0.0f, y);
    check_floats("swiglu", k->name, y->f, want, rows * n);
    for (int dynamic = 0; dynamic < 2; dynamic++) {
        k->swiglu(x, 0, (int)rows, dynamic ? 0.0f : 31.7f, q);
        for (size_t r = 0; r < rows; r++) {
            float top = 0.0f, *scaled = sq_new_array(float, n);
            for (size_t i = 0; i < n; i++)
                top = fabsf(want[r * n + i]) > top ? fabsf(want[r * n + i]) : top;
            float scale = top / 127.0f >= 0x1p-126f ? top / 127.0f : 1.0f;
            for (size_t i = 0; i < n; i++)
                scaled[i] = want[r * n + i] * (dynamic ? 1.0f / scale : 31.7f);
            check_codes("swiglu to codes", k->name, q, r, scaled);
            if (dynamic)
                check_floats("swiglu row scale", k->name, &q->row_scale[r], &scale, 1);
            sq_free(scaled);
        }
    }
    sq_cpu_buf_free(y);
    sq_cpu_buf_free(q);
}

static void test_swiglu(void **state)
{
    (void)state;
    enum { ROWS = 5 };
    for (size_t i = 0; i < SQ_ARRAY_LEN(dims); i++) {
        const size_t n = dims[i];
        struct sq_buf *x = buf_new(SQ_BUF_F32, ROWS, 2 * n);
        for (size_t j = 0; j < 2 * n; j++)
            x->f[j] *= 10.0f;
        memset(x->f + 2 * n, 0, 2 * n * sizeof(float));
        x->f[4 * n] = NAN;
        x->f[6 * n] = -100.0f; /* exp underflows */
        x->f[6 * n + 1] = 1e30f;
        x->f[8 * n] = -0.0f;
        float *want = sq_new_array(float, ROWS *n);
        for (size_t j = 0; j < ROWS * n; j++)
            want[j] = swiglu_def(x->f[2 * j], x->f[2 * j + 1]);
        for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++)
            check_swiglu(*k, x, want);
        sq_cpu_buf_free(x);
        sq_free(want);
    }
}

/* The formula against silu itself. */
static void test_silu_accuracy(void **state)
{
    (void)state;
    for (int i = -20000; i <= 20000; i++) {
        float x = (float)i / 1000.0f;
        double want = (double)x / (1.0 + exp(-(double)x));
        assert_true(fabs((double)swiglu_def(x, 1.0f) - want) <= 1e-6 * fabs(want));
    }
}

/* --- tables, observation, argmax --- */

/* Random weights of a type, no NaN; ret_f = their values. */
static void *weights(enum sq_dtype t, size_t n, float *ret_f)
{
    uint16_t *h = sq_calloc(n, 4);
    float *f = (float *)h;
    for (size_t i = 0; i < n; i++) {
        float x = rng_float() * 0.1f;
        uint32_t u;
        memcpy(&u, &x, 4);
        if (t == SQ_F32)
            f[i] = ret_f[i] = x;
        else if (t == SQ_BF16)
            ret_f[i] = sq_bf16_to_f32(h[i] = (uint16_t)(u >> 16));
        else /* any bits but those of infinity and NaN: subnormals, too */
            ret_f[i] = sq_f16_to_f32(h[i] = (uint16_t)(rng() & (i % 3 ? 0xb7ff : 0x83ff)));
    }
    return h;
}

static struct sq_linear *linear_new(const struct sq_linear_desc *d, const void *rows,
                                    const float *bias)
{
    struct sq_linear *l = NULL;
    struct sq_epilogue e = {.bias = bias};
    assert_int_equal(sq_cpu_linear_new(d, &l, NULL), 0);
    assert_int_equal(sq_cpu_linear_put(l, 0, d->n_out, rows, NULL), 0);
    assert_int_equal(sq_cpu_linear_finish(l, &e, NULL), 0);
    return l;
}

static void test_embed(void **state)
{
    (void)state;
    enum { VOCAB = 9, N_POS = 12, ROWS = 4 };
    const int32_t ids[ROWS] = {8, 0, 3, 3}, pos[ROWS] = {0, 9, 1, 4};
    struct sq_batch b = {.n_rows = ROWS, .ids = ids, .pos = pos};
    for (size_t i = 0; i < SQ_ARRAY_LEN(dims); i++)
        for (enum sq_dtype t = SQ_F32; t <= SQ_BF16; t++) {
            const size_t n = dims[i];
            float *tab = sq_new_array(float, VOCAB *n), *ptab = sq_new_array(float, N_POS *n);
            void *tab_w = weights(t, VOCAB * n, tab), *ptab_w = weights(t, N_POS * n, ptab);
            struct sq_linear_desc d = {.name = "t", .n_out = VOCAB, .n_in = n, .dtype = t};
            struct sq_linear *l = linear_new(&d, tab_w, NULL);
            d.n_out = N_POS;
            struct sq_linear *pl = linear_new(&d, ptab_w, NULL);
            struct sq_buf *x = buf_new(SQ_BUF_F32, ROWS, n);
            float *want = sq_new_array(float, ROWS *n);
            for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++)
                for (int with_pos = 0; with_pos < 2; with_pos++) {
                    for (size_t r = 0; r < ROWS; r++)
                        for (size_t j = 0; j < n; j++) {
                            want[r * n + j] = tab[(size_t)ids[r] * n + j];
                            if (with_pos)
                                want[r * n + j] += ptab[(size_t)(pos[r] + 2) * n + j];
                        }
                    (*k)->embed(&b, l, with_pos ? pl : NULL, 2, x, 0, ROWS);
                    check_floats("embed", (*k)->name, x->f, want, ROWS * n);
                }
            sq_cpu_buf_free(x);
            sq_cpu_linear_free(l);
            sq_cpu_linear_free(pl);
            sq_free(tab);
            sq_free(ptab);
            sq_free(tab_w);
            sq_free(ptab_w);
            sq_free(want);
        }
}

static void test_observe(void **state)
{
    (void)state;
    struct sq_buf *x = buf_new(SQ_BUF_F32, 7, 100);
    for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++)
        for (size_t n = 1; n < 60; n++) {
            float got[61], want[61];
            fill(want, 61);
            want[n] = GUARD;
            memcpy(got, want, sizeof got);
            for (size_t r = 2; r < 6; r++)
                for (size_t c = 0; c < n; c++)
                    want[c] = fmaxf(want[c], fabsf(x->f[r * 100 + 40 + c]));
            (*k)->observe(x, 2, 4, 40, n, got);
            check_floats("observe", (*k)->name, got, want, n + 1);
        }
    sq_cpu_buf_free(x);
}

static int32_t argmax_def(const float *x, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i]))
            return -1;
        if (x[i] > x[best])
            best = i;
    }
    return (int32_t)best;
}

static void test_argmax(void **state)
{
    (void)state;
    enum { ROWS = 9 };
    for (size_t i = 0; i < SQ_ARRAY_LEN(dims); i++) {
        const size_t n = dims[i];
        struct sq_buf *x = buf_new(SQ_BUF_F32, ROWS, n);
        for (size_t j = 0; j < n; j++) {
            x->f[1 * n + j] = -INFINITY;
            x->f[2 * n + j] = j % 2 ? 0.0f : -0.0f;
            x->f[3 * n + j] = j * 2 >= n ? 7.0f : -1.0f; /* a tie */
            x->f[4 * n + j] = -3.0f - (float)j;
            x->f[5 * n + j] = (float)j;
        }
        x->f[6 * n + n - 1] = NAN;
        x->f[7 * n] = -NAN;
        x->f[8 * n + n / 2] = INFINITY;
        for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++) {
            int32_t ids[ROWS];
            (*k)->argmax(x, 0, 4, ids);
            (*k)->argmax(x, 4, ROWS, ids);
            for (size_t r = 0; r < ROWS; r++)
                assert_int_equal(ids[r], argmax_def(x->f + r * n, n));
        }
        sq_cpu_buf_free(x);
    }
}

/* --- float matmul --- */

static float dot_def(const float *x, const float *w, size_t n)
{
    float l[SQ_LANES] = {0};
    for (size_t i = 0; i < n; i++)
        l[i % SQ_LANES] = fmaf(x[i], w[i], l[i % SQ_LANES]);
    return sq_sum16(l);
}

static void check_gemm(size_t n_in, size_t n_out, int rows, enum sq_dtype t, enum sq_out out,
                       enum sq_act act)
{
    float *w = sq_new_array(float, n_in *n_out), *bias = sq_new_array(float, n_out);
    void *raw = weights(t, n_in * n_out, w);
    struct sq_linear_desc d = {"w", n_out, n_in, t, false, out, act, false};
    fill(bias, n_out);
    struct sq_linear *l = linear_new(&d, raw, rows % 2 ? bias : NULL);
    struct sq_buf *x = buf_new(SQ_BUF_F32, rows, n_in), *y = buf_new(SQ_BUF_F32, rows, n_out);
    size_t n = (size_t)rows * n_out;
    float *before = sq_memdup(y->f, n * sizeof(float)), *want = sq_new_array(float, n);
    for (size_t i = 0; i < n; i++) {
        size_t r = i / n_out, c = i % n_out;
        float v = dot_def(x->f + r * n_in, w + c * n_in, n_in) + (rows % 2 ? bias[c] : 0.0f);
        v = act == SQ_ACT_RELU && v < 0.0f ? 0.0f : v;
        want[i] = out == SQ_OUT_ADD ? before[i] + v : v;
    }
    for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++) {
        memcpy(y->f, before, n * sizeof(float));
        (*k)->gemm_float(l, x, y, 0, rows, 0, n_out);
        check_floats("float matmul", (*k)->name, y->f, want, n);
        memcpy(y->f, before, n * sizeof(float)); /* cut in four: the same bits */
        size_t n_mid = n_out / 3;
        for (int i = 0; i < 4; i++)
            (*k)->gemm_float(l, x, y, i & 1 ? rows / 2 : 0, i & 1 ? rows : rows / 2,
                             i & 2 ? n_mid : 0, i & 2 ? n_out : n_mid);
        check_floats("float matmul in parts", (*k)->name, y->f, want, n);
    }
    sq_cpu_buf_free(x);
    sq_cpu_buf_free(y);
    sq_cpu_linear_free(l);
    sq_free(w);
    sq_free(bias);
    sq_free(raw);
    sq_free(before);
    sq_free(want);
}

static void test_gemm_float(void **state)
{
    (void)state;
    const size_t ks[] = {1, 7, 16, 20, 100, 768}, ns[] = {1, 3, 4, 5, 37};
    const int rows[] = {1, 2, 3, 4, 5, 7, 9, 20};
    for (size_t k = 0; k < SQ_ARRAY_LEN(ks); k++)
        for (size_t n = 0; n < SQ_ARRAY_LEN(ns); n++)
            for (size_t m = 0; m < SQ_ARRAY_LEN(rows); m++) {
                enum sq_dtype t = (k + n + m) % 3;
                check_gemm(ks[k], ns[n], rows[m], t, m % 2 ? SQ_OUT_ADD : SQ_OUT_F32,
                           n % 2 ? SQ_ACT_RELU : SQ_ACT_NONE);
            }
    check_gemm(8192, 6, 40, SQ_BF16, SQ_OUT_F32, SQ_ACT_NONE); /* several blocks of rows */
}

/* The bound that quant.h states for its polynomial. */
static void test_exp_accuracy(void **state)
{
    (void)state;
    for (int i = 0; i < 400000; i++) {
        float x = -87.0f * (float)(rng() % 1000001) / 1000000.0f;
        double want = exp((double)x), got = (double)sq_exp(x);
        assert_true(fabs(got - want) <= 2.5e-7 * want);
    }
    assert_true(sq_exp(-87.5f) == 0.0f && sq_exp(0.0f) == 1.0f && isnan(sq_exp(NAN)));
}

int main(void)
{
    rng_state = 3;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),         cmocka_unit_test(test_norm_one_output),
        cmocka_unit_test(test_quant_rows),   cmocka_unit_test(test_ties),
        cmocka_unit_test(test_embed),        cmocka_unit_test(test_observe),
        cmocka_unit_test(test_argmax),       cmocka_unit_test(test_gemm_float),
        cmocka_unit_test(test_exp_accuracy), cmocka_unit_test(test_rope),
        cmocka_unit_test(test_swiglu),       cmocka_unit_test(test_silu_accuracy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
