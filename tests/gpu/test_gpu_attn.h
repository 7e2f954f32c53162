/* What test_gpu_attn.c compares with: a step over a cache with a history, made up and computed by the CPU's plain C. */
#pragma once

#include "engine/base/check.h"
#include "engine/cpu/attn.h"
#include "tests/gpu/gpu_rows.h"

#include <stdio.h>

#define N_LAYERS 2
#define LAYER 1
#define N_BLOCKS 300
#define MAX_SEQS 64
#define N_PAD 3 /* rows after the real ones that are none */

struct shape {
    int heads, kv_heads, dim, rot_dim; /* rot_dim 0: codes come as they are */
    bool is_f32, out_f32;
};

/* Sequences of the step under test: rows pos0 .. pos0 + n - 1, after pos0 rows that are in the cache already. */
struct seqs {
    int n;
    struct {
        int pos0, n;
    } s[MAX_SEQS];
};

struct world {
    struct shape sh;
    struct seqs seqs;
    struct sq_attn a;
    int cols, out_cols, n_rows;
    int32_t blocks[N_BLOCKS], seq_blocks[MAX_SEQS];
    int hist_row0[MAX_SEQS], row0[MAX_SEQS];
    int n_hist;
    float *hist_f, *now_f;  /* projections */
    int8_t *hist_q, *now_q; /* codes: -128 occurs */
    float *cos, *sin;
    /* the CPU's */
    int8_t *rope_codes;
    float *rope_f;
    void *want; /* [n_rows, out_cols] codes or floats */
    struct sq_kv *kv;
};

/* --- what the CPU says --- */

static void put_codes(struct sq_buf *b, const int8_t *q, int n_rows)
{
    for (size_t r = 0; r < (size_t)n_rows; r++)
        for (size_t c = 0; c < b->cols; c++) {
            int code = q[r * b->cols + c];
            b->u[r * b->stride + c] = (uint8_t)((code == -128 ? -127 : code) + 128);
        }
}

static struct sq_buf *projection(const struct world *w, bool hist)
{
    const int n = hist ? w->n_hist : w->n_rows;
    struct sq_buf *b = cpu_buf(w->sh.is_f32 ? SQ_BUF_F32 : SQ_BUF_S8, n, (size_t)w->cols);
    if (w->sh.is_f32)
        memcpy(b->f, hist ? w->hist_f : w->now_f, (size_t)n * (size_t)w->cols * sizeof(float));
    else
        put_codes(b, hist ? w->hist_q : w->now_q, n);
    return b;
}

/* The step as the backends get it; hist: the one that filled the cache. */
static struct sq_batch batch_of(const struct world *w, bool hist, struct sq_batch_seq *s,
                                int32_t *pos)
{
    struct sq_batch b = {.n_rows = hist ? w->n_hist : w->n_rows, .seqs = s, .pos = pos};
    for (int i = 0; i < w->seqs.n; i++) {
        const int n = hist ? w->seqs.s[i].pos0 : w->seqs.s[i].n;
        const int row0 = hist ? w->hist_row0[i] : w->row0[i], pos0 = hist ? 0 : w->seqs.s[i].pos0;
        for (int r = 0; r < n; r++)
            pos[row0 + r] = pos0 + r;
        if (n)
            s[b.n_seqs++] = (struct sq_batch_seq){row0, n, pos0, w->blocks + w->seq_blocks[i]};
    }
    return b;
}

static void cpu_rope(struct world *w, const struct sq_batch *b, struct sq_buf *qkv)
{
    const struct sq_rope r = {(size_t)w->sh.rot_dim, 4096, w->cos, w->sin, 0};
    struct sq_buf *x = cpu_buf_of(w->now_f, w->n_rows, (size_t)w->cols);
    sq_cpu_ops_ref.rope(&r, &w->a, b, x, qkv, 0, w->n_rows);
    w->rope_codes = cpu_codes(qkv, (size_t)w->n_rows);
    sq_cpu_ops_ref.rope(&r, &w->a, b, x, x, 0, w->n_rows);
    w->rope_f = sq_new_array(float, (size_t)w->n_rows *(size_t)w->cols);
    memcpy(w->rope_f, x->f, (size_t)w->n_rows * (size_t)w->cols * sizeof(float));
    sq_cpu_buf_free(x);
}

static void cpu_step(struct world *w, bool hist)
{
    struct sq_batch_seq s[MAX_SEQS];
    int32_t *pos = sq_new_array(int32_t, (size_t)(w->n_hist + w->n_rows));
    struct sq_batch b = batch_of(w, hist, s, pos);
    struct sq_buf *qkv = projection(w, hist);
    struct sq_buf *out =
        cpu_buf(w->sh.out_f32 ? SQ_BUF_F32 : SQ_BUF_S8, w->n_rows, (size_t)w->out_cols);
    void *scratch = sq_aligned_alloc(64, sq_cpu_attn_scratch(&w->kv->d));
    if (!hist && w->sh.rot_dim)
        cpu_rope(w, &b, qkv);
    for (int i = 0; i < b.n_seqs; i++)
        for (int h = 0; h < w->sh.kv_heads; h++) {
            sq_cpu_ops_ref.kv_write(w->kv, &w->a, &b, qkv, i, h);
            if (!hist)
                sq_cpu_ops_ref.attend(w->kv, &w->a, &b, qkv, out, i, h, 0, b.n_rows, scratch);
        }
    if (!hist && w->sh.out_f32) {
        w->want = sq_new_array(float, (size_t)w->n_rows *(size_t)w->out_cols);
        memcpy(w->want, out->f, (size_t)w->n_rows * (size_t)w->out_cols * sizeof(float));
    } else if (!hist)
        w->want = cpu_codes(out, (size_t)w->n_rows);
    sq_free(scratch);
    sq_free(pos);
    sq_cpu_buf_free(qkv);
    sq_cpu_buf_free(out);
}

static int8_t *random_codes(size_t n)
{
    int8_t *q = sq_malloc(n + 1);
    for (size_t i = 0; i < n; i++)
        q[i] = (int8_t)(rng() % 256);
    return q;
}

static float *random_floats(size_t n)
{
    float *f = sq_new_array(float, n + 1);
    for (size_t i = 0; i < n; i++)
        f[i] = (float)(rng() % 20001) / 10000.0f - 1.0f;
    return f;
}

static void place_blocks(struct world *w)
{
    int32_t ids[N_BLOCKS];
    for (int i = 0; i < N_BLOCKS; i++)
        ids[i] = i;
    for (int i = N_BLOCKS - 1; i > 0; i--) {
        int j = (int)(rng() % (uint32_t)(i + 1));
        int32_t t = ids[i];
        ids[i] = ids[j];
        ids[j] = t;
    }
    int at = 0;
    for (int i = 0; i < w->seqs.n; i++) {
        w->seq_blocks[i] = at;
        for (int j = 0; j < w->seqs.s[i].pos0 + w->seqs.s[i].n; j += SQ_KV_BLOCK, at++)
            w->blocks[at] = ids[at];
    }
    assert_true(at <= N_BLOCKS);
}

static struct world world_new(struct shape sh, struct seqs seqs, float spread)
{
    struct world w = {.sh = sh, .seqs = seqs};
    const struct sq_kv_desc d = {N_LAYERS, (size_t)sh.kv_heads, (size_t)sh.dim, N_BLOCKS,
                                 sh.is_f32 ? SQ_F32 : SQ_I8};
    w.a = (struct sq_attn){
        .layer = LAYER, .n_heads = sh.heads, .n_kv_heads = sh.kv_heads, .head_dim = sh.dim};
    w.a.score_mul = spread / (sh.is_f32 ? 0.33f : 73.0f * 73.0f) / sqrtf((float)sh.dim);
    w.a.out_mul = sh.is_f32 ? 1.0f : 1.37f;
    w.a.q_inv = 101.0f, w.a.k_inv = 90.0f, w.a.v_inv = 131.0f;
    w.cols = (sh.heads + 2 * sh.kv_heads) * sh.dim;
    w.out_cols = sh.heads * sh.dim;
    for (int i = 0; i < seqs.n; i++) {
        w.hist_row0[i] = w.n_hist;
        w.row0[i] = w.n_rows;
        w.n_hist += seqs.s[i].pos0;
        w.n_rows += seqs.s[i].n;
    }
    place_blocks(&w);
    w.hist_q = random_codes((size_t)w.n_hist * (size_t)w.cols);
    w.now_q = random_codes((size_t)w.n_rows * (size_t)w.cols);
    w.hist_f = random_floats((size_t)w.n_hist * (size_t)w.cols);
    w.now_f = random_floats((size_t)w.n_rows * (size_t)w.cols);
    w.cos = random_floats(4096 * (size_t)sh.dim / 2);
    w.sin = random_floats(4096 * (size_t)sh.dim / 2);
    assert_int_equal(sq_cpu_kv_new(&d, &w.kv, NULL), 0);
    cpu_step(&w, true);
    cpu_step(&w, false);
    return w;
}

static void world_free(struct world *w)
{
    void *all[] = {w->hist_q, w->now_q, w->hist_f, w->now_f,     w->cos,
                   w->sin,    w->want,  w->rope_f, w->rope_codes};
    for (size_t i = 0; i < SQ_ARRAY_LEN(all); i++)
        sq_free(all[i]);
    sq_cpu_kv_free(w->kv);
}
