/* The forward pass: which ops a block is made of in every scheme (fake backend), what calibration
 * is shown, and that chunking and company change no bit of the logits (CPU backend, random
 * weights). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/quant.h"
#include "engine/run/forward.h"
#include "tests/lib/backend_fake.h"

/* --- the order of ops ------------------------------------------------------------------------- */

/* One step of a one-layer model: rows 0..2 of one sequence, the last one's logits wanted. */
static void step_of_three(struct sq_model *m, const struct sq_observer *obs, int pos0, int rc_want)
{
    const int32_t ids[] = {5, 6, 7}, pos[] = {pos0, pos0 + 1, pos0 + 2}, out[] = {2}, block[] = {1};
    struct sq_batch_seq seq = {.n_rows = 3, .pos0 = pos0, .blocks = block};
    struct sq_batch b = {.n_rows = 3,
                         .n_seqs = 1,
                         .n_out = 1,
                         .ids = ids,
                         .pos = pos,
                         .seqs = &seq,
                         .out_rows = out};
    struct sq_runner_options o = {.max_rows = 4, .max_out = 2, .n_kv_blocks = 2};
    struct sq_runner *r;
    struct sq_err err = {0};
    assert_int_equal(sq_runner_new(m, &o, &r, &err), 0);
    if (pos0 > 0) { /* the keys before it */
        const int32_t first[] = {0};
        struct sq_batch_seq s0 = {.n_rows = 1, .blocks = block};
        struct sq_batch b0 = {.n_rows = 1, .n_seqs = 1, .ids = ids, .pos = first, .seqs = &s0};
        assert_int_equal(pos0, 1);
        assert_int_equal(sq_forward(r, &b0, NULL, &err), 0);
    }
    assert_int_equal(sq_forward(r, &b, obs, &err), rc_want);
    sq_runner_free(r);
}

static void assert_ops(struct sq_fake_options o, const char *want)
{
    char got[2000];
    o.n_layers = 1;
    o.eos = -1;
    struct sq_model *m = sq_fake_model_new(&o);
    assert_non_null(m);
    sq_fake_trace(m->be, got, sizeof got);
    step_of_three(m, NULL, 0, 0);
    assert_string_equal(got, want);
    sq_fake_model_free(m);
}

static void ops_of_every_scheme(void **state)
{
    (void)state;
    assert_ops(
        (struct sq_fake_options){0},
        "embed embed pos; norm f>f; linear qkv.0 f>f; kv_write f>f; attend f>f; linear o.0 f>x; "
        "norm f>f; linear up.0 f>f; linear down.0 f>x; gather; norm f>x; linear embed f>f");
    assert_ops(
        (struct sq_fake_options){.scheme = SQ_SCHEME_W8A8_STATIC, .int8_attention = true},
        "embed embed pos; norm f>q; linear qkv.0 q>q; kv_write q>q; attend q>q; linear o.0 q>x; "
        "norm f>q; linear up.0 q>q; linear down.0 q>x; gather; norm f>x; linear embed f>f");
    assert_ops((struct sq_fake_options){.scheme = SQ_SCHEME_W8A8_STATIC, .head_int8 = true},
               "embed embed pos; norm f>q; linear qkv.0 q>f; kv_write f>f; attend f>f; quant "
               "static; linear o.0 q>x; "
               "norm f>q; linear up.0 q>q; linear down.0 q>x; gather; norm f>x; quant rows; linear "
               "head q>f");
    assert_ops((struct sq_fake_options){.scheme = SQ_SCHEME_W8A8_DYNAMIC},
               "embed embed pos; norm f>f; quant rows; linear qkv.0 q>f; kv_write f>f; attend f>f; "
               "quant rows; linear o.0 q>x; "
               "norm f>f; quant rows; linear up.0 q>f; quant rows; linear down.0 q>x; gather; norm "
               "f>x; linear embed f>f");
}

static void ops_of_post_norm_models(void **state)
{
    (void)state;
    assert_ops((struct sq_fake_options){.post_norm = true, .project = true},
               "embed embed; embed pos; linear project_in f>x; linear qkv.0 f>f; kv_write f>f; "
               "attend f>f; linear o.0 f>x; norm f>x; "
               "linear up.0 f>f; linear down.0 f>x; norm f>x; gather; linear project_out f>f; "
               "linear embed f>f");
    assert_ops((struct sq_fake_options){.post_norm = true,
                                        .scheme = SQ_SCHEME_W8A8_STATIC,
                                        .int8_attention = true},
               "embed embed pos; quant static; linear qkv.0 q>q; kv_write q>q; attend q>q; linear "
               "o.0 q>x; norm f>x f>q; "
               "linear up.0 q>q; linear down.0 q>x; norm f>x; gather; linear embed f>f");
    assert_ops((struct sq_fake_options){.post_norm = true, .scheme = SQ_SCHEME_W8A8_DYNAMIC},
               "embed embed pos; quant rows; linear qkv.0 q>f; kv_write f>f; attend f>f; quant "
               "rows; linear o.0 q>x; norm f>x; "
               "quant rows; linear up.0 q>f; quant rows; linear down.0 q>x; norm f>x; gather; "
               "linear embed f>f");
}

static void ops_of_gated_models(void **state)
{
    (void)state;
    assert_ops((struct sq_fake_options){.gated = true},
               "embed embed; norm f>f; linear qkv.0 f>f; rope f>x; kv_write f>f; attend f>f; "
               "linear o.0 f>x; norm f>f; linear gate_up.0 f>f; swiglu f>f; linear down.0 f>x; "
               "gather; norm f>x; linear embed f>f");
    assert_ops((struct sq_fake_options){.gated = true,
                                        .scheme = SQ_SCHEME_W8A8_STATIC,
                                        .int8_attention = true},
               "embed embed; norm f>q; linear qkv.0 q>f; rope f>q; kv_write q>q; attend q>q; "
               "linear o.0 q>x; norm f>q; linear gate_up.0 q>f; swiglu f>q static; linear down.0 "
               "q>x; gather; norm f>x; linear embed f>f");
    assert_ops((struct sq_fake_options){.gated = true, .scheme = SQ_SCHEME_W8A8_STATIC},
               "embed embed; norm f>q; linear qkv.0 q>f; rope f>x; kv_write f>f; attend f>f; quant "
               "static; linear o.0 q>x; norm f>q; linear gate_up.0 q>f; swiglu f>q static; linear "
               "down.0 q>x; gather; norm f>x; linear embed f>f");
    assert_ops((struct sq_fake_options){.gated = true, .scheme = SQ_SCHEME_W8A8_DYNAMIC},
               "embed embed; norm f>f; quant rows; linear qkv.0 q>f; rope f>x; kv_write f>f; "
               "attend f>f; quant rows; linear o.0 q>x; norm f>f; quant rows; linear gate_up.0 "
               "q>f; swiglu f>q rows; linear down.0 q>x; gather; norm f>x; linear embed f>f");
}

/* The fake's observe adds the number of rows it was shown to every channel. */
static void calibration_sees_every_site(void **state)
{
    (void)state;
    struct sq_fake_options o = {.eos = -1, .n_layers = 2};
    const size_t sizes[2][SQ_N_SITES] = {{16, 16, 16, 64, 48}, {16, 16, 16, 64, 32}};
    for (int gated = 0; gated < 2; gated++)
        for (int skip = 0; skip < 2; skip++)
            for (int pos0 = 0; pos0 < 2; pos0++) {
                o.gated = gated;
                struct sq_model *m = sq_fake_model_new(&o);
                float absmax[2 * SQ_N_SITES][65] = {{0}}, *rows[2 * SQ_N_SITES];
                for (int i = 0; i < 2 * SQ_N_SITES; i++)
                    rows[i] = absmax[i];
                struct sq_observer obs = {.absmax = rows, .skip_first = skip};
                step_of_three(m, &obs, pos0, 0);
                for (int i = 0; i < 2 * SQ_N_SITES; i++)
                    for (size_t c = 0; c < 65; c++)
                        assert_true(absmax[i][c] == (c < sizes[gated][i % SQ_N_SITES]
                                                         ? skip && pos0 == 0 ? 2.0f : 3.0f
                                                         : 0.0f));
                sq_fake_model_free(m);
            }
}

static void the_first_error_stops_the_pass(void **state)
{
    (void)state;
    struct sq_fake_options o = {.eos = -1, .n_layers = 1};
    for (uint64_t k = 1; k <= 26; k++) {
        o.gated = k > 12;
        struct sq_model *m = sq_fake_model_new(&o);
        struct sq_fake_counts c;
        const uint64_t at = o.gated ? k - 12 : k;
        sq_fake_fail_at(m->be, at);
        step_of_three(m, NULL, 0, -SQ_E_DEVICE);
        sq_fake_counts(m->be, &c);
        assert_int_equal(c.n_ops, at);
        sq_fake_model_free(m);
    }
}

static void out_of_memory_is_told(void **state)
{
    (void)state;
    struct sq_fake_options o = {
        .eos = -1, .scheme = SQ_SCHEME_W8A8_DYNAMIC, .project = true, .head_int8 = true};
    struct sq_model *m = sq_fake_model_new(&o);
    struct sq_runner_options ro = {.max_rows = 4, .max_out = 2, .n_kv_blocks = 2};
    struct sq_fake_counts before, after;
    int rc = -1;
    sq_fake_counts(m->be, &before);
    for (uint64_t k = 1; rc; k++) {
        struct sq_runner *r = NULL;
        sq_mem_fail_at(k, false);
        rc = sq_runner_new(m, &ro, &r, NULL);
        sq_mem_fail_at(0, false);
        assert_true(rc == 0 || (rc == -SQ_E_NOMEM && !r));
        sq_runner_free(r);
        sq_fake_counts(m->be, &after);
        assert_int_equal(after.n_objects, before.n_objects);
    }
    sq_fake_model_free(m);
}

/* --- the same bits whatever the chunks and the company ---------------------------------------- */

#define VOCAB 101
#define CONTEXT 400
#define N_SEQS 3

struct cpu_rig {
    struct sq_backend *be;
    struct sq_model *m;
    struct sq_runner *r;
};

enum shape { PRE_NORM, POST_NORM, LLAMA };

static struct sq_config tiny_llama(enum sq_scheme scheme)
{
    return (struct sq_config){
        .family = sq_family_find("llama"),
        .n_layers = 2,
        .hidden = 64,
        .ffn = 104,
        .n_heads = 4,
        .n_kv_heads = 2,
        .head_dim = 20,
        .vocab = VOCAB,
        .max_positions = CONTEXT,
        .embed_dim = 64,
        .norm_eps = 1e-5f,
        .pre_norm = true,
        .final_norm = true,
        .norm_affine = true,
        .rope = {.theta = 10000, .factor = 1},
        .dtype = SQ_BF16,
        .scheme = scheme,
        .bos = 2,
        .pad = -1,
    };
}

static struct sq_config tiny_config(enum sq_scheme scheme, enum shape shape)
{
    const bool post_norm = shape == POST_NORM;
    if (shape == LLAMA)
        return tiny_llama(scheme);
    return (struct sq_config){
        .family = sq_family_find("opt"),
        .n_layers = 2,
        .hidden = 64,
        .ffn = 160,
        .n_heads = 2,
        .n_kv_heads = 2,
        .head_dim = 32,
        .vocab = VOCAB,
        .max_positions = CONTEXT,
        .embed_dim = post_norm ? 48 : 64,
        .norm_eps = 1e-5f,
        .pre_norm = !post_norm,
        .final_norm = !post_norm,
        .tied = true,
        .attn_bias = true,
        .ffn_bias = true,
        .norm_affine = true,
        .dtype = SQ_F32,
        .scheme = scheme,
        .bos = 2,
        .pad = -1,
        .eos = {2},
        .n_eos = 1,
    };
}

static void cpu_open(struct cpu_rig *t, enum sq_scheme scheme, enum shape shape,
                     const char *variant, int n_threads)
{
    struct sq_err err = {0};
    struct sq_config c = tiny_config(scheme, shape);
    struct sq_cpu_options co = {.n_threads = n_threads, .variant = variant};
    struct sq_load_options lo = {.head = SQ_HEAD_KEEP};
    struct sq_runner_options ro = {
        .max_rows = CONTEXT, .max_out = N_SEQS, .n_kv_blocks = 3 * (CONTEXT / SQ_KV_BLOCK + 1)};
    struct sq_source *src;
    if (sq_cpu_open(&co, &t->be, &err) || sq_random_source_open(&c, 11, &src, &err) ||
        sq_model_load(src, &c, t->be, &lo, &t->m, &err) || sq_runner_new(t->m, &ro, &t->r, &err))
        fail_msg("%s", err.msg);
    src->ops->close(src);
}

static void cpu_close(struct cpu_rig *t)
{
    sq_runner_free(t->r);
    sq_model_free(t->m);
    t->be->ops->close(t->be);
}

struct seq {
    int n, n_cached;
    int32_t ids[CONTEXT], blocks[CONTEXT / SQ_KV_BLOCK + 1];
    float logits[VOCAB]; /* of the last token */
};

/* Sequences of different lengths; their blocks are interleaved: no table is the identity. */
static void make_seqs(struct seq *s)
{
    static const int lengths[N_SEQS] = {300, 1, 77};
    for (int i = 0; i < N_SEQS; i++) {
        s[i] = (struct seq){.n = lengths[i]};
        for (int k = 0; k < s[i].n; k++)
            s[i].ids[k] = (k * 37 + i * 11 + k * k % 13) % VOCAB;
        for (int b = 0; b <= CONTEXT / SQ_KV_BLOCK; b++)
            s[i].blocks[b] = b * N_SEQS + (i + b) % N_SEQS;
    }
}

/* One step over the sequences of [first, first + n), at most chunk rows of each. false: all is in
 * the cache. */
static bool step(struct cpu_rig *t, struct seq *s, int n, int chunk)
{
    int32_t ids[CONTEXT], pos[CONTEXT], out[N_SEQS];
    struct sq_batch_seq seqs[N_SEQS];
    struct seq *outs[N_SEQS];
    struct sq_batch b = {.ids = ids, .pos = pos, .seqs = seqs, .out_rows = out};
    for (int i = 0; i < n; i++) {
        int rows = SQ_MIN(chunk, s[i].n - s[i].n_cached);
        if (rows == 0)
            continue;
        seqs[b.n_seqs++] = (struct sq_batch_seq){
            .row0 = b.n_rows, .n_rows = rows, .pos0 = s[i].n_cached, .blocks = s[i].blocks};
        for (int k = 0; k < rows; k++, b.n_rows++) {
            ids[b.n_rows] = s[i].ids[s[i].n_cached];
            pos[b.n_rows] = s[i].n_cached++;
        }
        if (s[i].n_cached == s[i].n) {
            outs[b.n_out] = &s[i];
            out[b.n_out++] = b.n_rows - 1;
        }
    }
    const float *logits;
    if (b.n_rows == 0)
        return false;
    assert_int_equal(sq_forward(t->r, &b, NULL, NULL), 0);
    if (b.n_out > 0)
        assert_int_equal(sq_runner_logits(t->r, b.n_out, &logits, NULL), 0);
    for (int i = 0; i < b.n_out; i++)
        memcpy(outs[i]->logits, logits + (size_t)i * VOCAB, sizeof outs[i]->logits);
    return true;
}

static void assert_same_bits(const struct seq *a, const struct seq *b)
{
    for (int i = 0; i < N_SEQS; i++)
        assert_memory_equal(a[i].logits, b[i].logits, sizeof a[i].logits);
}

/* want: every sequence alone and whole. skip: leave out that many of the small chunks. */
static void check_chunks(struct cpu_rig *t, const struct seq *want, size_t skip)
{
    static const int chunks[] = {1, 7, 64, 100};
    static struct seq s[N_SEQS];
    for (size_t c = skip; c < SQ_ARRAY_LEN(chunks); c++) {
        make_seqs(s);
        while (step(t, s, N_SEQS, chunks[c]))
            ;
        assert_same_bits(s, want);
    }
}

static void check_scheme(enum sq_scheme scheme, enum shape shape)
{
    struct cpu_rig t;
    static struct seq alone[N_SEQS];
    cpu_open(&t, scheme, shape, NULL, 1);
    assert_int_equal(t.m->int8_attention, scheme == SQ_SCHEME_W8A8_STATIC);
    make_seqs(alone);
    for (int i = 0; i < N_SEQS; i++)
        while (step(&t, &alone[i], 1, CONTEXT))
            ;
    assert_memory_not_equal(alone[0].logits, alone[2].logits, sizeof alone[0].logits);
    check_chunks(&t, alone, 0);
    cpu_close(&t);
    for (const char *const *v = sq_cpu_variant_names(); *v; v++)
        for (int threads = 1; threads <= 2; threads++) {
            cpu_open(&t, scheme, shape, *v, threads);
            /* hundreds of tiny steps on two threads take long on a busy machine, and show no more
             */
            check_chunks(&t, alone, threads > 1);
            cpu_close(&t);
        }
}

static void chunks_and_company_change_no_bit_float(void **state)
{
    (void)state;
    check_scheme(SQ_SCHEME_FLOAT, PRE_NORM);
}

static void chunks_and_company_change_no_bit_static(void **state)
{
    (void)state;
    check_scheme(SQ_SCHEME_W8A8_STATIC, PRE_NORM);
}

static void chunks_and_company_change_no_bit_dynamic(void **state)
{
    (void)state;
    check_scheme(SQ_SCHEME_W8A8_DYNAMIC, PRE_NORM);
}

static void chunks_and_company_change_no_bit_post_norm(void **state)
{
    (void)state;
    check_scheme(SQ_SCHEME_FLOAT, POST_NORM);
}

static void chunks_and_company_change_no_bit_llama(void **state)
{
    (void)state;
    check_scheme(SQ_SCHEME_FLOAT, LLAMA);
    check_scheme(SQ_SCHEME_W8A8_STATIC, LLAMA);
    check_scheme(SQ_SCHEME_W8A8_DYNAMIC, LLAMA);
}

/* Equal tokens at different positions must differ: with project_in the position's part has its own
 * way into x. */
static void positions_count(void **state)
{
    (void)state;
    for (enum shape shape = PRE_NORM; shape <= POST_NORM; shape++) {
        struct cpu_rig t;
        struct seq s[2] = {{.n = 1}, {.n = 2}};
        s[1].ids[0] = s[0].ids[0] = s[1].ids[1] = 9;
        s[1].blocks[0] = 1;
        cpu_open(&t, SQ_SCHEME_FLOAT, shape, NULL, 1);
        assert_true(step(&t, s, 2, 2));
        assert_memory_not_equal(s[0].logits, s[1].logits, sizeof s[0].logits);
        cpu_close(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ops_of_every_scheme),
        cmocka_unit_test(ops_of_post_norm_models),
        cmocka_unit_test(ops_of_gated_models),
        cmocka_unit_test(calibration_sees_every_site),
        cmocka_unit_test(the_first_error_stops_the_pass),
        cmocka_unit_test(out_of_memory_is_told),
        cmocka_unit_test(chunks_and_company_change_no_bit_float),
        cmocka_unit_test(chunks_and_company_change_no_bit_static),
        cmocka_unit_test(chunks_and_company_change_no_bit_dynamic),
        cmocka_unit_test(chunks_and_company_change_no_bit_post_norm),
        cmocka_unit_test(chunks_and_company_change_no_bit_llama),
        cmocka_unit_test(positions_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
