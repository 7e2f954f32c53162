/* The CPU backend through its table of ops: one small transformer layer over a mixed batch gives the same bits on every variant and
 * number of threads; and the ops that only move or look at data are right. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/cpu/backend_cpu.h"

#define D 48 /* model width: 3 heads of 16, one shared key-value head */
#define N_HEADS 3
#define HEAD_DIM 16
#define QKV_COLS ((N_HEADS + 2) * HEAD_DIM)
#define VOCAB 37
#define MAX_ROWS 80
#define N_POS 128
#define N_BLOCKS 8

struct model {
    struct sq_backend *be;
    const struct sq_backend_ops *ops;
    struct sq_linear *tokens, *positions, *qkv, *proj, *dyn_head, *head;
    struct sq_norm *norm;
    struct sq_kv *kv;
    struct sq_buf *x, *xn, *xq, *qkv_q, *attn_q, *last, *last_q, *logits, *dyn_logits;
    float absmax[D];
    int32_t best[MAX_ROWS];
};

static uint32_t draw(uint32_t *s)
{
    *s = *s * 1664525u + 1013904223u;
    return *s >> 8;
}

static struct sq_linear *linear_of(struct model *m, struct sq_linear_desc d, uint32_t seed)
{
    struct sq_err err = {0};
    struct sq_linear *l;
    int8_t q[D * QKV_COLS];
    float f[D * N_POS], mul[N_POS], bias[N_POS];
    int32_t bias_acc[N_POS];
    for (size_t i = 0; i < SQ_ARRAY_LEN(q); i++)
        q[i] = (int8_t)(draw(&seed) % 255 - 127);
    for (size_t i = 0; i < SQ_ARRAY_LEN(f); i++)
        f[i] = (float)draw(&seed) / 8388608.0f - 1.0f;
    for (size_t i = 0; i < N_POS; i++) {
        mul[i] = 0.002f + (float)(i % 5) * 1e-4f;
        bias[i] = (float)i * 0.01f - 0.3f;
        bias_acc[i] = (int32_t)(draw(&seed) % 2000) - 1000;
    }
    const struct sq_epilogue e = {.mul = mul, .bias = bias, .bias_acc = bias_acc};
    d.name = "test";
    assert_int_equal(m->ops->linear_new(m->be, &d, &l, &err), 0);
    const void *rows = d.dtype == SQ_I8 ? (const void *)q : f;
    assert_int_equal(m->ops->linear_put(m->be, l, 0, d.n_out, rows, &err), 0);
    assert_int_equal(m->ops->linear_finish(m->be, l, d.dtype == SQ_F32 ? NULL : &e, &err), 0);
    return l;
}

static struct sq_buf *buf_of(struct model *m, enum sq_buf_kind kind, size_t cols)
{
    struct sq_err err = {0};
    struct sq_buf *b;
    assert_int_equal(m->ops->buf_new(m->be, kind, MAX_ROWS, cols, &b, &err), 0);
    return b;
}

static void model_objects(struct model *m)
{
    struct sq_err err = {0};
    float gamma[D], beta[D], gamma_q[D], beta_q[D];
    for (int i = 0; i < D; i++) {
        gamma[i] = 1.0f + (float)i * 0.01f;
        beta[i] = (float)i * 0.02f - 0.4f;
        gamma_q[i] = gamma[i] * 40.0f;
        beta_q[i] = beta[i] * 40.0f;
    }
    const struct sq_norm_desc n = {SQ_LAYERNORM, D, 1e-5f, gamma, beta, gamma_q, beta_q};
    const struct sq_kv_desc kv = {
        .n_layers = 1, .n_kv_heads = 1, .head_dim = HEAD_DIM, .n_blocks = N_BLOCKS, .dtype = SQ_I8};
    m->tokens =
        linear_of(m, (struct sq_linear_desc){.n_out = VOCAB, .n_in = D, .dtype = SQ_F32}, 1);
    m->positions =
        linear_of(m, (struct sq_linear_desc){.n_out = N_POS, .n_in = D, .dtype = SQ_F32}, 2);
    m->qkv = linear_of(
        m, (struct sq_linear_desc){.n_out = QKV_COLS, .n_in = D, .dtype = SQ_I8, .out = SQ_OUT_S8},
        3);
    m->proj = linear_of(
        m, (struct sq_linear_desc){.n_out = D, .n_in = D, .dtype = SQ_I8, .out = SQ_OUT_ADD}, 4);
    m->dyn_head = linear_of(
        m,
        (struct sq_linear_desc){
            .n_out = VOCAB, .n_in = D, .dtype = SQ_I8, .dynamic = true, .out = SQ_OUT_F32},
        5);
    m->head = linear_of(
        m,
        (struct sq_linear_desc){
            .n_out = VOCAB, .n_in = D, .dtype = SQ_F32, .out = SQ_OUT_F32, .act = SQ_ACT_RELU},
        6);
    assert_int_equal(m->ops->norm_new(m->be, &n, &m->norm, &err), 0);
    assert_int_equal(m->ops->kv_new(m->be, &kv, &m->kv, &err), 0);
    assert_true(m->ops->kv_bytes(m->be, &kv) >= 2 * N_BLOCKS * 32 * HEAD_DIM);
}

static void model_init(struct model *m, const char *variant, int n_threads)
{
    struct sq_err err = {0};
    const struct sq_cpu_options o = {.n_threads = n_threads, .variant = variant};
    *m = (struct model){0};
    assert_int_equal(sq_cpu_open(&o, &m->be, &err), 0);
    m->ops = m->be->ops;
    model_objects(m);
    m->x = buf_of(m, SQ_BUF_F32, D);
    m->xn = buf_of(m, SQ_BUF_F32, D);
    m->xq = buf_of(m, SQ_BUF_S8, D);
    m->qkv_q = buf_of(m, SQ_BUF_S8, QKV_COLS);
    m->attn_q = buf_of(m, SQ_BUF_S8, D);
    m->last = buf_of(m, SQ_BUF_F32, D);
    m->last_q = buf_of(m, SQ_BUF_S8, D);
    m->logits = buf_of(m, SQ_BUF_F32, VOCAB);
    m->dyn_logits = buf_of(m, SQ_BUF_F32, VOCAB);
}

static void model_done(struct model *m)
{
    struct sq_linear *const ls[] = {m->tokens, m->positions, m->qkv, m->proj, m->dyn_head, m->head};
    struct sq_buf *const bs[] = {m->x,    m->xn,     m->xq,     m->qkv_q,     m->attn_q,
                                 m->last, m->last_q, m->logits, m->dyn_logits};
    struct sq_device_info info;
    for (size_t i = 0; i < SQ_ARRAY_LEN(ls); i++)
        m->ops->linear_free(m->be, ls[i]);
    for (size_t i = 0; i < SQ_ARRAY_LEN(bs); i++)
        m->ops->buf_free(m->be, bs[i]);
    m->ops->norm_free(m->be, m->norm);
    m->ops->info(m->be, &info);
    assert_true(info.mem_used_bytes > 0); /* the cache is still there */
    m->ops->kv_free(m->be, m->kv);
    m->ops->close(m->be);
}

static void forward(struct model *m, const struct sq_batch *b)
{
    const struct sq_backend_ops *ops = m->ops;
    const struct sq_attn a = {.layer = 0,
                              .n_heads = N_HEADS,
                              .n_kv_heads = 1,
                              .head_dim = HEAD_DIM,
                              .score_mul = 3e-4f,
                              .out_mul = 1.3f};
    const int t = b->n_rows;
    assert_int_equal(ops->step_begin(m->be, b, NULL), 0);
    assert_int_equal(ops->embed(m->be, b, m->tokens, m->positions, 2, m->x), 0);
    assert_int_equal(ops->norm(m->be, m->norm, m->x, t, m->xn, m->xq), 0);
    assert_int_equal(ops->linear(m->be, m->qkv, m->xq, t, m->qkv_q), 0);
    assert_int_equal(ops->kv_write(m->be, m->kv, &a, b, m->qkv_q), 0);
    assert_int_equal(ops->attend(m->be, m->kv, &a, b, m->qkv_q, m->attn_q), 0);
    assert_int_equal(ops->linear(m->be, m->proj, m->attn_q, t, m->x), 0);
    assert_int_equal(ops->observe(m->be, m->x, 1, t - 1, 5, 40, m->absmax), 0);
    assert_int_equal(ops->gather(m->be, b, m->x, m->last), 0);
    assert_int_equal(ops->quant_rows(m->be, m->last, b->n_out, 0.0f, m->last_q), 0);
    assert_int_equal(ops->linear(m->be, m->dyn_head, m->last_q, b->n_out, m->dyn_logits), 0);
    assert_int_equal(ops->linear(m->be, m->head, m->last, b->n_out, m->logits), 0);
    assert_int_equal(ops->argmax(m->be, m->dyn_logits, b->n_out, m->best), 0);
    assert_int_equal(ops->step_end(m->be), 0);
    assert_int_equal(ops->sync(m->be), 0);
}

/* --- two steps: a prompt of 40 tokens; then its next token beside another prompt of 70 --- */

struct steps {
    int32_t ids[MAX_ROWS], pos[MAX_ROWS], blocks_a[2], blocks_b[3], out_rows[4];
    struct sq_batch_seq seqs[2];
    struct sq_batch batch;
};

static void first_step(struct steps *s)
{
    *s = (struct steps){.blocks_a = {5, 0}, .blocks_b = {3, 7, 1}};
    for (int i = 0; i < 40; i++) {
        s->ids[i] = (i * 7 + 3) % VOCAB;
        s->pos[i] = i;
    }
    s->out_rows[0] = 39;
    s->seqs[0] = (struct sq_batch_seq){.row0 = 0, .n_rows = 40, .pos0 = 0, .blocks = s->blocks_a};
    s->batch = (struct sq_batch){.n_rows = 40,
                                 .n_seqs = 1,
                                 .n_out = 1,
                                 .ids = s->ids,
                                 .pos = s->pos,
                                 .seqs = s->seqs,
                                 .out_rows = s->out_rows};
}

static void second_step(struct steps *s)
{
    for (int i = 0; i < 70; i++) {
        s->ids[i] = (i * 5 + 1) % VOCAB;
        s->pos[i] = i;
    }
    s->ids[70] = 11;
    s->pos[70] = 40;
    s->out_rows[0] = 12;
    s->out_rows[1] = 69;
    s->out_rows[2] = 70;
    s->seqs[0] = (struct sq_batch_seq){.row0 = 0, .n_rows = 70, .pos0 = 0, .blocks = s->blocks_b};
    s->seqs[1] = (struct sq_batch_seq){.row0 = 70, .n_rows = 1, .pos0 = 40, .blocks = s->blocks_a};
    s->batch.n_rows = 71;
    s->batch.n_seqs = 2;
    s->batch.n_out = 3;
}

/* What the steps left behind. */
struct result {
    float x[71 * D], logits[3 * VOCAB], dyn_logits[3 * VOCAB], absmax[D];
    int32_t best[3];
};

static void copy_out(struct model *m, struct sq_buf *b, int rows, float *to, size_t n)
{
    const float *v;
    assert_int_equal(m->ops->view(m->be, b, rows, &v), 0);
    memcpy(to, v, n * sizeof *to);
}

static void run_steps(const char *variant, int n_threads, struct result *ret)
{
    struct model m;
    struct steps s;
    model_init(&m, variant, n_threads);
    first_step(&s);
    forward(&m, &s.batch);
    second_step(&s);
    forward(&m, &s.batch);
    memset(ret, 0, sizeof *ret);
    copy_out(&m, m.x, 71, ret->x, SQ_ARRAY_LEN(ret->x));
    copy_out(&m, m.logits, 3, ret->logits, SQ_ARRAY_LEN(ret->logits));
    copy_out(&m, m.dyn_logits, 3, ret->dyn_logits, SQ_ARRAY_LEN(ret->dyn_logits));
    memcpy(ret->absmax, m.absmax, sizeof ret->absmax);
    memcpy(ret->best, m.best, sizeof ret->best);
    model_done(&m);
}

static void same_bits_everywhere(void **state)
{
    struct result ref, other;
    (void)state;
    run_steps("ref", 1, &ref);
    for (const char *const *v = sq_cpu_variant_names(); *v; v++) {
        for (int threads = 1; threads <= 3; threads++) {
            run_steps(*v, threads, &other);
            assert_memory_equal(&ref, &other, sizeof ref);
        }
    }
}

static void looks_are_right(void **state)
{
    struct result r;
    (void)state;
    run_steps(NULL, 2, &r);
    for (int i = 0; i < 3; i++) {
        const float *row = r.dyn_logits + i * VOCAB;
        int best = 0;
        for (int j = 1; j < VOCAB; j++)
            best = row[j] > row[best] ? j : best;
        assert_int_equal(r.best[i], best);
    }
    for (int c = 0; c < 40; c++) { /* of the second step at least */
        float max = 0.0f;
        for (int i = 1; i < 71; i++)
            max = fmaxf(max, fabsf(r.x[i * D + 5 + c]));
        assert_true(max > 0.0f && r.absmax[c] >= max);
    }
    for (int i = 0; i < 3 * VOCAB; i++)
        assert_true(r.logits[i] >= 0.0f); /* ReLU */
}

static void empty_batches_do_nothing(void **state)
{
    const struct sq_batch none = {0};
    const struct sq_attn a = {.n_heads = N_HEADS, .n_kv_heads = 1, .head_dim = HEAD_DIM};
    struct model m;
    (void)state;
    model_init(&m, NULL, 2);
    assert_int_equal(m.ops->step_begin(m.be, NULL, NULL), 0);
    assert_int_equal(m.ops->embed(m.be, &none, m.tokens, NULL, 0, m.x), 0);
    assert_int_equal(m.ops->norm(m.be, m.norm, m.x, 0, NULL, m.xq), 0);
    assert_int_equal(m.ops->linear(m.be, m.qkv, m.xq, 0, m.qkv_q), 0);
    assert_int_equal(m.ops->kv_write(m.be, m.kv, &a, &none, m.qkv_q), 0);
    assert_int_equal(m.ops->attend(m.be, m.kv, &a, &none, m.qkv_q, m.attn_q), 0);
    assert_int_equal(m.ops->argmax(m.be, m.logits, 0, NULL), 0);
    assert_int_equal(m.ops->step_end(m.be), 0);
    model_done(&m);
}

static void frees_take_null(void **state)
{
    struct sq_err err = {0};
    struct sq_backend *be;
    struct sq_device_info info;
    const struct sq_cpu_options o = {.n_threads = 2};
    (void)state;
    assert_int_equal(sq_cpu_open(&o, &be, &err), 0);
    be->ops->buf_free(be, NULL);
    be->ops->linear_free(be, NULL);
    be->ops->norm_free(be, NULL);
    be->ops->kv_free(be, NULL);
    be->ops->info(be, &info);
    assert_int_equal(info.mem_used_bytes, 0);
    assert_int_equal(info.n_threads, 2);
    assert_non_null(strstr(info.detail, "2 threads"));
    be->ops->close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_everywhere),
        cmocka_unit_test(looks_are_right),
        cmocka_unit_test(empty_batches_do_nothing),
        cmocka_unit_test(frees_take_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
