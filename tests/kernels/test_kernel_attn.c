/* Attention and the KV cache: every variant against the scalar definition of quant.h, bit for bit; the definition against plain
 * softmax attention in double precision; and that neither chunks of a prompt, nor the batch, nor the place of blocks change a bit. */
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
#include "engine/cpu/attn.h"

#define N_LAYERS 2
#define LAYER 1
#define N_BLOCKS 96

static uint64_t rng_state;

static uint32_t rng(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 33);
}

static float rng_unit(void)
{
    return (float)(rng() % 20001) / 10000.0f - 1.0f;
}

/* One sequence of n positions: its projected q, k, v, in codes (+ 128) or floats, and the output of attention. */
struct world {
    struct sq_kv_desc d;
    struct sq_attn a;
    int n;
    size_t cols, out_cols;
    uint8_t *u; /* [n, cols] */
    float *f;   /* [n, cols]: the codes' values, or the floats of a float cache */
    int32_t blocks[N_BLOCKS];
};

static void shuffle(int32_t *blocks, int n)
{
    for (int i = 0; i < n; i++)
        blocks[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(rng() % (uint32_t)(i + 1));
        int32_t t = blocks[i];
        blocks[i] = blocks[j];
        blocks[j] = t;
    }
}

static struct world world_new(enum sq_dtype dtype, int n, int dim, int n_heads, int n_kv,
                              float spread)
{
    struct world w = {.n = n};
    w.d = (struct sq_kv_desc){N_LAYERS, (size_t)n_kv, (size_t)dim, N_BLOCKS, dtype};
    w.a = (struct sq_attn){.layer = LAYER, .n_heads = n_heads, .n_kv_heads = n_kv, .head_dim = dim};
    w.a.score_mul = spread / (dtype == SQ_I8 ? 73.0f * 73.0f : 0.33f) / sqrtf((float)dim);
    w.a.out_mul = dtype == SQ_I8 ? 1.37f : 1.0f;
    w.cols = (size_t)(n_heads + 2 * n_kv) * (size_t)dim;
    w.out_cols = (size_t)(n_heads * dim);
    w.u = sq_new_array(uint8_t, (size_t)n * w.cols);
    w.f = sq_new_array(float, (size_t)n *w.cols);
    for (size_t i = 0; i < (size_t)n * w.cols; i++) {
        int code = (int)(rng() % 255) - 127;
        w.u[i] = (uint8_t)(code + 128);
        w.f[i] = dtype == SQ_I8 ? (float)code : rng_unit();
    }
    shuffle(w.blocks, N_BLOCKS);
    return w;
}

static void world_free(struct world *w)
{
    sq_free(w->u);
    sq_free(w->f);
}

static void put_rows(struct sq_buf *x, int row, const struct world *w, int pos0, int n)
{
    for (int i = 0; i < n; i++) {
        size_t from = (size_t)(pos0 + i) * w->cols, to = (size_t)(row + i) * x->stride;
        if (x->kind == SQ_BUF_S8)
            memcpy(x->u + to, w->u + from, w->cols);
        else
            memcpy(x->f + to, w->f + from, w->cols * sizeof(float));
    }
}

/* One step with all sequences of the batch; rows of heads go in uneven slices. */
static void step(const struct sq_cpu_ops *k, struct sq_kv *kv, const struct sq_attn *a,
                 const struct sq_batch *b, struct sq_buf *qkv, struct sq_buf *out)
{
    void *scratch = sq_aligned_alloc(64, sq_cpu_attn_scratch(&kv->d));
    for (int s = 0; s < b->n_seqs; s++)
        for (int h = 0; h < a->n_kv_heads; h++)
            k->kv_write(kv, a, b, qkv, s, h);
    for (int s = b->n_seqs - 1; s >= 0; s--)
        for (int h = 0; h < a->n_kv_heads; h++) {
            k->attend(kv, a, b, qkv, out, s, h, 0, 13, scratch);
            k->attend(kv, a, b, qkv, out, s, h, 13, b->n_rows, scratch);
        }
    sq_free(scratch);
}

/* Rows of bytes of the result, [n, out_cols] dense. */
static size_t row_bytes(const struct world *w, enum sq_buf_kind kind)
{
    return w->out_cols * (kind == SQ_BUF_S8 ? 1 : sizeof(float));
}

static const void *out_row(const struct sq_buf *b, int r)
{
    size_t at = (size_t)r * b->stride;
    return b->kind == SQ_BUF_S8 ? (const void *)(b->u + at) : (const void *)(b->f + at);
}

/* The whole sequence in steps of `chunk` rows. */
static uint8_t *run(const struct sq_cpu_ops *k, const struct world *w, int chunk,
                    enum sq_buf_kind kind)
{
    struct sq_kv *kv = NULL;
    struct sq_buf *qkv = NULL, *out = NULL;
    size_t bytes = row_bytes(w, kind);
    uint8_t *ret = sq_malloc((size_t)w->n * bytes);
    assert_int_equal(sq_cpu_kv_new(&w->d, &kv, NULL), 0);
    memset(kv->data, 0x81, kv->bytes); /* what others left in the blocks must not matter */
    enum sq_buf_kind in = w->d.dtype == SQ_I8 ? SQ_BUF_S8 : SQ_BUF_F32;
    assert_int_equal(sq_cpu_buf_new(in, (size_t)chunk, w->cols, &qkv, NULL), 0);
    assert_int_equal(sq_cpu_buf_new(kind, (size_t)chunk, w->out_cols, &out, NULL), 0);
    for (int pos = 0; pos < w->n; pos += chunk) {
        int n = SQ_MIN(chunk, w->n - pos);
        struct sq_batch_seq seq = {.n_rows = n, .pos0 = pos, .blocks = w->blocks};
        struct sq_batch b = {.n_rows = n, .n_seqs = 1, .seqs = &seq};
        put_rows(qkv, 0, w, pos, n);
        step(k, kv, &w->a, &b, qkv, out);
        for (int i = 0; i < n; i++)
            memcpy(ret + (size_t)(pos + i) * bytes, out_row(out, i), bytes);
    }
    sq_cpu_buf_free(qkv);
    sq_cpu_buf_free(out);
    sq_cpu_kv_free(kv);
    return ret;
}

/* --- the definition of quant.h, spelled out --- */

static float canonical_dot(const float *a, const float *b, int n)
{
    float l[SQ_LANES] = {0};
    for (int i = 0; i < n; i++)
        l[i % SQ_LANES] = fmaf(a[i], b[i], l[i % SQ_LANES]);
    return sq_sum16(l);
}

struct def_piece {
    float m, l;
    float o[256];
};

/* Codes: exact sums, p in 0..127. Floats: p = exp, l in sixteen lanes, o by fma in the order of keys. */
static void def_piece(const struct world *w, const float *q, size_t k_col, size_t v_col, int j0,
                      int j1, struct def_piece *ret)
{
    const int dim = w->a.head_dim;
    const bool codes = w->d.dtype == SQ_I8;
    float s[SQ_ATTN_PIECE], lanes[SQ_LANES] = {0};
    memset(ret, 0, sizeof *ret);
    for (int j = j0; j < j1; j++) {
        const float *k = w->f + (size_t)j * w->cols + k_col;
        int32_t acc = 0;
        for (int d = 0; d < dim; d++)
            acc += (int32_t)q[d] * (int32_t)k[d];
        s[j - j0] = (codes ? (float)acc : canonical_dot(q, k, dim)) * w->a.score_mul;
        ret->m = j == j0 || s[j - j0] > ret->m ? s[j - j0] : ret->m;
    }
    for (int j = j0; j < j1; j++) {
        const float *v = w->f + (size_t)j * w->cols + v_col;
        float p = sq_exp(s[j - j0] - ret->m);
        if (codes)
            p = rintf(127.0f * p);
        lanes[(j - j0) % SQ_LANES] += p;
        for (int d = 0; d < dim; d++)
            ret->o[d] = fmaf(p, v[d], ret->o[d]); /* exact for codes: below 2^24 */
    }
    ret->l = sq_sum16(lanes);
}

static void def_head(const struct world *w, int pos, int head, float *ret)
{
    static struct def_piece pieces[N_BLOCKS * SQ_KV_BLOCK / SQ_ATTN_PIECE];
    const int dim = w->a.head_dim, n_keys = pos + 1;
    const int kv_head = head / (w->a.n_heads / w->a.n_kv_heads);
    const float *q = w->f + (size_t)pos * w->cols + (size_t)(head * dim);
    size_t k_col = (size_t)((w->a.n_heads + kv_head) * dim);
    size_t v_col = k_col + (size_t)(w->a.n_kv_heads * dim);
    int n = (n_keys + SQ_ATTN_PIECE - 1) / SQ_ATTN_PIECE;
    float m = 0.0f, sum = 0.0f, weight[N_BLOCKS];
    for (int i = 0; i < n; i++) {
        int j0 = i * SQ_ATTN_PIECE;
        def_piece(w, q, k_col, v_col, j0, SQ_MIN(j0 + SQ_ATTN_PIECE, n_keys), &pieces[i]);
        m = i == 0 || pieces[i].m > m ? pieces[i].m : m;
    }
    for (int i = 0; i < n; i++) {
        weight[i] = sq_exp(pieces[i].m - m);
        sum = fmaf(weight[i], pieces[i].l, sum);
    }
    for (int d = 0; d < dim; d++) {
        float acc = 0.0f;
        for (int i = 0; i < n; i++)
            acc = fmaf(weight[i], pieces[i].o[d], acc);
        ret[d] = acc / sum * w->a.out_mul;
    }
}

/* [n, out_cols] floats */
static float *definition(const struct world *w)
{
    float *ret = sq_new_array(float, (size_t)w->n * w->out_cols);
    for (int pos = 0; pos < w->n; pos++)
        for (int h = 0; h < w->a.n_heads; h++)
            def_head(w, pos, h, ret + (size_t)pos * w->out_cols + (size_t)(h * w->a.head_dim));
    return ret;
}

/* Plain attention in double for one row and head. ret_slack[d] = sum_j w_j 0.5/127 |v_j - ret[d]| / sum_j e_j, where w_j is the
 * weight of key j's piece: what rounding each p to 1/127 of its piece's maximum can move. */
static void exact_head(const struct world *w, int pos, int head, double *ret, double *ret_slack)
{
    static double e[N_BLOCKS * SQ_KV_BLOCK], weight[N_BLOCKS];
    const int dim = w->a.head_dim, kv_head = head / (w->a.n_heads / w->a.n_kv_heads);
    const float *q = w->f + (size_t)pos * w->cols + (size_t)(head * dim);
    size_t k_col = (size_t)((w->a.n_heads + kv_head) * dim);
    size_t v_col = k_col + (size_t)(w->a.n_kv_heads * dim);
    double top = -INFINITY, sum = 0;
    for (int j = 0; j <= pos; j++) {
        e[j] = 0;
        for (int d = 0; d < dim; d++)
            e[j] += (double)q[d] * (double)w->f[(size_t)j * w->cols + k_col + (size_t)d];
        e[j] *= (double)w->a.score_mul;
        top = fmax(top, e[j]);
    }
    for (int j = 0; j <= pos; j++) {
        e[j] = exp(e[j] - top);
        sum += e[j];
        double *wp = &weight[j / SQ_ATTN_PIECE];
        *wp = j % SQ_ATTN_PIECE == 0 ? e[j] : fmax(*wp, e[j]);
    }
    for (int d = 0; d < dim; d++) {
        const float *v = w->f + v_col + d;
        ret[d] = ret_slack[d] = 0;
        for (int j = 0; j <= pos; j++)
            ret[d] += e[j] / sum * (double)v[(size_t)j * w->cols];
        for (int j = 0; j <= pos; j++)
            ret_slack[d] += weight[j / SQ_ATTN_PIECE] * 0.5 / 127 / sum *
                            fabs((double)v[(size_t)j * w->cols] - ret[d]);
        ret[d] *= (double)w->a.out_mul;
        ret_slack[d] *= (double)w->a.out_mul;
    }
}

/* --- tests --- */

static void to_codes(const float *f, size_t n, uint8_t *ret)
{
    for (size_t i = 0; i < n; i++)
        ret[i] = (uint8_t)(sq_sat_s8(f[i]) + 128);
}

static void check_world(const struct world *w, const int *chunks)
{
    size_t n = (size_t)w->n * w->out_cols;
    float *want_f = definition(w);
    uint8_t *want_u = sq_malloc(n);
    to_codes(want_f, n, want_u);
    for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++)
        for (const int *c = chunks; *c; c++) {
            int chunk = SQ_MIN(*c, w->n);
            uint8_t *got = run(*k, w, chunk, SQ_BUF_F32);
            if (memcmp(got, want_f, n * sizeof(float)) != 0)
                fail_msg("%s, head dimension %d, chunks of %d: floats differ", (*k)->name,
                         w->a.head_dim, chunk);
            sq_free(got);
            if (w->d.dtype != SQ_I8)
                continue;
            got = run(*k, w, chunk, SQ_BUF_S8);
            if (memcmp(got, want_u, n) != 0)
                fail_msg("%s, head dimension %d, chunks of %d: codes differ", (*k)->name,
                         w->a.head_dim, chunk);
            sq_free(got);
        }
    sq_free(want_f);
    sq_free(want_u);
}

static const int dims[] = {64, 80, 96, 128, 20, 4};

static void test_equal_to_definition(void **state)
{
    (void)state;
    const int chunks[] = {1, 7, 64, 100000, 0};
    for (size_t i = 0; i < SQ_ARRAY_LEN(dims); i++) {
        struct world w = world_new(SQ_I8, i ? 301 : 700, dims[i], 2, 2, 3.0f);
        check_world(&w, chunks);
        world_free(&w);
        w = world_new(SQ_I8, i == 1 ? 530 : 131, dims[i], 4, 1, 8.0f);
        check_world(&w, chunks);
        world_free(&w);
    }
}

static void test_float_equal_to_definition(void **state)
{
    (void)state;
    const int chunks[] = {1, 7, 100000, 0};
    const int odd[] = {64, 80, 20, 7};
    for (size_t i = 0; i < SQ_ARRAY_LEN(odd); i++) {
        struct world w = world_new(SQ_F32, i ? 270 : 540, odd[i], 4, i % 2 ? 1 : 4, 3.0f);
        check_world(&w, chunks);
        world_free(&w);
    }
}

/* The largest sums, equal scores, and scores so far apart that one key takes all. */
static void test_extremes(void **state)
{
    (void)state;
    const int chunks[] = {1, 64, 0};
    for (int kind = 0; kind < 4; kind++) {
        struct world w = world_new(SQ_I8, 300, 128, 2, 1, kind == 3 ? 3000.0f : 2.0f);
        for (size_t i = 0; i < (size_t)w.n * w.cols && kind < 3; i++) {
            int code = kind == 0 ? 127 : kind == 1 ? -127 : rng() % 2 ? 127 : -127;
            w.u[i] = (uint8_t)(code + 128);
            w.f[i] = (float)code;
        }
        check_world(&w, chunks);
        world_free(&w);
    }
}

/* out - exact = sum_j (p_j - e_j) (v_j - exact) / L, and |p_j - e_j| <= w_j 0.5/127: the slack, but for L in place of the exact sum,
 * which is within a tenth of it here; 1e-4 for float arithmetic. */
static void test_near_exact_attention(void **state)
{
    (void)state;
    for (int k = 0; k < 2; k++) {
        struct world w = world_new(k ? SQ_F32 : SQ_I8, 600, 64, 2, 1, 4.0f);
        const struct sq_cpu_ops *best = *sq_cpu_variants();
        uint8_t *got = run(best, &w, 600, SQ_BUF_F32);
        for (int pos = 0; pos < w.n; pos += 13)
            for (int h = 0; h < 2; h++) {
                double want[64], slack[64];
                exact_head(&w, pos, h, want, slack);
                for (int d = 0; d < 64; d++) {
                    float x;
                    size_t at = (size_t)pos * w.out_cols + (size_t)(h * 64 + d);
                    memcpy(&x, got + at * sizeof x, sizeof x);
                    double bound = k ? 2e-6 : 1.1 * slack[d] + 1e-4;
                    if (!(fabs((double)x - want[d]) <= bound))
                        fail_msg("position %d, dimension %d: %g, want %g within %g", pos, d,
                                 (double)x, want[d], bound);
                }
            }
        sq_free(got);
        world_free(&w);
    }
}

#define N_SEQS 5

/* Sequences at different positions in one batch, in two orders, against each alone. */
static void test_batch_does_not_matter(void **state)
{
    (void)state;
    const int lens[N_SEQS] = {1, 40, 300, 33, 257}, tail[N_SEQS] = {1, 40, 1, 5, 9};
    struct world w[N_SEQS];
    int32_t all[N_BLOCKS];
    shuffle(all, N_BLOCKS);
    for (int i = 0, at = 0; i < N_SEQS; i++) {
        w[i] = world_new(SQ_I8, lens[i], 64, 4, 2, 3.0f);
        memcpy(w[i].blocks, all + at, sizeof(int32_t) * (size_t)(lens[i] + 31) / 32 + 4);
        at += (lens[i] + 31) / 32;
    }
    for (const struct sq_cpu_ops *const *k = sq_cpu_variants(); *k; k++)
        for (int turn = 0; turn < 2; turn++) {
            struct sq_kv *kv = NULL;
            struct sq_buf *qkv = NULL, *out = NULL;
            struct sq_batch_seq seqs[N_SEQS];
            int n = 0;
            assert_int_equal(sq_cpu_kv_new(&w[0].d, &kv, NULL), 0);
            assert_int_equal(sq_cpu_buf_new(SQ_BUF_S8, 300, w[0].cols, &qkv, NULL), 0);
            assert_int_equal(sq_cpu_buf_new(SQ_BUF_S8, 300, w[0].out_cols, &out, NULL), 0);
            for (int i = 0; i < N_SEQS; i++) { /* the past, one sequence at a time */
                struct sq_batch_seq s = {.n_rows = lens[i] - tail[i], .blocks = w[i].blocks};
                struct sq_batch b = {.n_rows = s.n_rows, .n_seqs = 1, .seqs = &s};
                put_rows(qkv, 0, &w[i], 0, s.n_rows);
                step(*k, kv, &w[i].a, &b, qkv, out);
            }
            for (int i = 0; i < N_SEQS; i++) {
                int s = turn ? N_SEQS - 1 - i : i;
                seqs[i] = (struct sq_batch_seq){n, tail[s], lens[s] - tail[s], w[s].blocks};
                put_rows(qkv, n, &w[s], seqs[i].pos0, tail[s]);
                n += tail[s];
            }
            struct sq_batch b = {.n_rows = n, .n_seqs = N_SEQS, .seqs = seqs};
            step(*k, kv, &w[0].a, &b, qkv, out);
            for (int i = 0; i < N_SEQS; i++) {
                int s = turn ? N_SEQS - 1 - i : i;
                uint8_t *alone = run(*k, &w[s], w[s].n, SQ_BUF_S8);
                size_t bytes = row_bytes(&w[s], SQ_BUF_S8);
                for (int r = 0; r < tail[s]; r++)
                    assert_memory_equal(out_row(out, seqs[i].row0 + r),
                                        alone + (size_t)(seqs[i].pos0 + r) * bytes, bytes);
                sq_free(alone);
            }
            sq_cpu_buf_free(qkv);
            sq_cpu_buf_free(out);
            sq_cpu_kv_free(kv);
        }
    for (int i = 0; i < N_SEQS; i++)
        world_free(&w[i]);
}

static void test_cache_storage(void **state)
{
    (void)state;
    struct sq_kv_desc d = {3, 2, 64, 10, SQ_I8};
    struct sq_kv *kv = NULL;
    struct sq_err err = {0};
    assert_int_equal(sq_cpu_kv_bytes(&d), 3 * 2 * 10 * (32 * 64 + 128 + 32 * 64));
    assert_int_equal(sq_cpu_kv_new(&d, &kv, &err), 0);
    assert_int_equal(sq_cpu_kv_used(kv), sq_cpu_kv_bytes(&d));
    assert_int_equal((uintptr_t)kv->data % 64, 0);
    sq_cpu_kv_free(kv);
    sq_cpu_kv_free(NULL);
    for (uint64_t k = 1; k <= 2; k++) {
        sq_mem_fail_at(k, false);
        assert_int_equal(sq_cpu_kv_new(&d, &kv, &err), -SQ_E_NOMEM);
        sq_mem_fail_at(0, false);
    }
    d.head_dim = 18;
    assert_int_equal(sq_cpu_kv_new(&d, &kv, &err), -SQ_E_INVAL);
    assert_non_null(strstr(err.msg, "18"));
    d = (struct sq_kv_desc){SIZE_MAX / 4, 8, 64, 10, SQ_I8};
    assert_int_equal(sq_cpu_kv_bytes(&d), SIZE_MAX);
    assert_int_equal(sq_cpu_kv_new(&d, &kv, &err), -SQ_E_LIMIT);
}

int main(void)
{
    rng_state = 20;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_to_definition),
        cmocka_unit_test(test_float_equal_to_definition),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_near_exact_attention),
        cmocka_unit_test(test_batch_does_not_matter),
        cmocka_unit_test(test_cache_storage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
