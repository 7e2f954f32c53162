/* The GPU backend against the CPU's on whole models with random weights: W8A8 with an int8 head gives the same logits to the bit, whatever the
 * chunks, the company, recorded steps or not; float weights come close. Then memory: what a plan counts is what a real start takes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cuda/cuda.h"
#include "cuda/timing.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/model/model.h"
#include "engine/quant.h"
#include "engine/run/forward.h"

#define VOCAB 203
#define CONTEXT 320
#define N_SEQS 3
#define MAX_STEPS 5 /* tokens decoded behind the prompts */
#define N_BLOCKS (N_SEQS * (CONTEXT / SQ_KV_BLOCK + 1))

struct rig {
    struct sq_backend *be;
    struct sq_model *m;
    struct sq_runner *r;
};

static const char opt_json[] =
    "{\"model_type\": \"opt\", \"architectures\": [\"OPTForCausalLM\"], \"num_hidden_layers\": 2, "
    "\"hidden_size\": %d, \"ffn_dim\": 320, \"num_attention_heads\": 2, "
    "\"word_embed_proj_dim\": %d, \"vocab_size\": 203, \"max_position_embeddings\": 320, "
    "\"do_layer_norm_before\": %s, \"activation_function\": \"relu\", \"torch_dtype\": \"%s\", "
    "\"bos_token_id\": 2, \"eos_token_id\": 2, \"pad_token_id\": 1}";
static const char llama_json[] =
    "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], "
    "\"num_hidden_layers\": 2, \"hidden_size\": %d, \"intermediate_size\": 176, "
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"vocab_size\": 203, "
    "\"max_position_embeddings\": 320, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "
    "\"hidden_act\": \"silu\", \"torch_dtype\": \"%s\", \"bos_token_id\": 1, "
    "\"eos_token_id\": 2, \"tie_word_embeddings\": false}";

struct kind {
    bool llama, post_norm;
    int hidden;
    const char *dtype;
    enum sq_scheme scheme;
};

static void rig_open(struct rig *t, struct sq_backend *be, const struct kind *k, int max_rows)
{
    struct sq_err err = {0};
    struct sq_config c;
    char json[1024];
    int n = k->llama ? snprintf(json, sizeof json, llama_json, k->hidden, k->dtype)
                     : snprintf(json, sizeof json, opt_json, k->hidden,
                                k->post_norm ? k->hidden / 2 : k->hidden,
                                k->post_norm ? "false" : "true", k->dtype);
    if (sq_config_parse(json, (size_t)n, "test", &c, &err))
        fail_msg("%s", err.msg);
    c.scheme = k->scheme;
    struct sq_load_options lo = {.head =
                                     k->scheme == SQ_SCHEME_FLOAT ? SQ_HEAD_KEEP : SQ_HEAD_INT8};
    struct sq_runner_options ro = {
        .max_rows = max_rows, .max_out = N_SEQS + 5, .n_kv_blocks = N_BLOCKS};
    struct sq_source *src;
    t->be = be;
    if (sq_random_source_open(&c, 11, &src, &err) || sq_model_load(src, &c, be, &lo, &t->m, &err) ||
        sq_runner_new(t->m, &ro, &t->r, &err))
        fail_msg("%s", err.msg);
    src->ops->close(src);
}

static struct sq_backend *cpu_open(void)
{
    const struct sq_cpu_options o = {.n_threads = 1};
    struct sq_backend *be;
    struct sq_err err = {0};
    if (sq_cpu_open(&o, &be, &err))
        fail_msg("%s", err.msg);
    return be;
}

static struct sq_backend *gpu_open(bool no_graphs, bool plan)
{
    const struct sq_gpu_options o = {.no_graphs = no_graphs, .plan = plan};
    struct sq_backend *be;
    struct sq_err err = {0};
    if (sq_cuda_open(&o, &be, &err))
        fail_msg("%s", err.msg);
    return be;
}

static void rig_close(struct rig *t)
{
    sq_runner_free(t->r);
    sq_model_free(t->m);
    t->be->ops->close(t->be);
}

struct seq {
    int n_prompt, n, n_cached;
    int32_t ids[CONTEXT], blocks[CONTEXT / SQ_KV_BLOCK + 1];
    float logits[MAX_STEPS + 1][VOCAB]; /* of the prompt's last token, and of those behind it */
};

/* Prompts of different lengths; blocks interleaved; the tokens that follow are given, not chosen. */
static void make_seqs(struct seq *s)
{
    static const int lengths[N_SEQS] = {253, 1, 77}; /* the first decodes across a piece's end */
    for (int i = 0; i < N_SEQS; i++) {
        s[i] = (struct seq){.n_prompt = lengths[i], .n = lengths[i] + MAX_STEPS};
        for (int k = 0; k < s[i].n; k++)
            s[i].ids[k] = (k * 7 + i * 31 + k * k % 13) % VOCAB;
        for (int k = 0; k < (int)SQ_ARRAY_LEN(s[i].blocks); k++)
            s[i].blocks[k] = k * N_SEQS + i;
    }
}

/* One step: up to `chunk` prompt rows, or one token, of each of n sequences. false: all are through. */
static bool step(struct rig *t, struct seq *s, int n, int chunk)
{
    static int32_t ids[N_SEQS * CONTEXT], pos[N_SEQS * CONTEXT], out[N_SEQS];
    struct sq_batch_seq seqs[N_SEQS];
    struct seq *outs[N_SEQS];
    struct sq_batch b = {.ids = ids, .pos = pos, .seqs = seqs, .out_rows = out};
    for (int i = 0; i < n; i++) {
        int left = s[i].n_cached < s[i].n_prompt ? s[i].n_prompt - s[i].n_cached
                                                 : SQ_MIN(1, s[i].n - s[i].n_cached);
        int rows = SQ_MIN(left, chunk);
        if (rows == 0)
            continue;
        seqs[b.n_seqs++] = (struct sq_batch_seq){
            .row0 = b.n_rows, .n_rows = rows, .pos0 = s[i].n_cached, .blocks = s[i].blocks};
        for (int k = 0; k < rows; k++, b.n_rows++) {
            ids[b.n_rows] = s[i].ids[s[i].n_cached];
            pos[b.n_rows] = s[i].n_cached++;
        }
        if (s[i].n_cached >= s[i].n_prompt) {
            outs[b.n_out] = &s[i];
            out[b.n_out++] = b.n_rows - 1;
        }
    }
    struct sq_err err = {0};
    const float *logits;
    if (b.n_rows == 0)
        return false;
    if (sq_forward(t->r, &b, NULL, &err))
        fail_msg("%s", err.msg);
    if (b.n_out > 0 && sq_runner_logits(t->r, b.n_out, &logits, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < b.n_out; i++) {
        float *to = outs[i]->logits[outs[i]->n_cached - outs[i]->n_prompt];
        memcpy(to, logits + (size_t)i * VOCAB, VOCAB * sizeof *to);
    }
    return true;
}

static void run_alone(struct rig *t, struct seq *s)
{
    make_seqs(s);
    for (int i = 0; i < N_SEQS; i++)
        while (step(t, &s[i], 1, CONTEXT))
            ;
}

static void run_together(struct rig *t, struct seq *s, int chunk)
{
    make_seqs(s);
    while (step(t, s, N_SEQS, chunk))
        ;
}

static void assert_same_bits(const struct seq *a, const struct seq *b)
{
    for (int i = 0; i < N_SEQS; i++)
        for (int k = 0; k <= MAX_STEPS; k++)
            for (int v = 0; v < VOCAB; v++)
                if (memcmp(&a[i].logits[k][v], &b[i].logits[k][v], sizeof(float)) != 0)
                    fail_msg("sequence %d, %d tokens behind its prompt, logit %d: %.9g and %.9g", i,
                             k, v, (double)a[i].logits[k][v], (double)b[i].logits[k][v]);
}

static void assert_close(const struct seq *a, const struct seq *b, float tolerance)
{
    for (int i = 0; i < N_SEQS; i++)
        for (int k = 0; k <= MAX_STEPS; k++) {
            float range = 0.0f, off = 0.0f;
            for (int v = 0; v < VOCAB; v++) {
                range = fmaxf(range, fabsf(a[i].logits[k][v]));
                off = fmaxf(off, fabsf(a[i].logits[k][v] - b[i].logits[k][v]));
            }
            if (!(off <= tolerance * range))
                fail_msg("sequence %d, %d behind: off by %.3g of %.3g", i, k, (double)off,
                         (double)range);
        }
}

static struct seq want[N_SEQS], got[N_SEQS];

static void compare(float tolerance)
{
    if (tolerance > 0.0f)
        assert_close(want, got, tolerance);
    else
        assert_same_bits(want, got);
}

static void want_of(const struct kind *k)
{
    struct rig cpu;
    rig_open(&cpu, cpu_open(), k, CONTEXT);
    run_alone(&cpu, want);
    rig_close(&cpu);
}

/* tolerance 0: to the bit */
static void check_kind(struct kind k, float tolerance)
{
    struct rig gpu;
    want_of(&k);
    rig_open(&gpu, gpu_open(false, false), &k, CONTEXT);
    run_together(&gpu, got, CONTEXT / N_SEQS);
    compare(tolerance);
    run_alone(&gpu, got);
    compare(tolerance);
    rig_close(&gpu);
}

/* Small chunks; steps that are not recorded; matmuls that go whichever way a clock says, here that of softgpu, which says anything. */
static void ways_change_no_bit(void **state)
{
    struct kind k = {.hidden = 128, .dtype = "float16", .scheme = SQ_SCHEME_W8A8_STATIC};
    (void)state;
    want_of(&k);
    for (int way = 0; way < 3; way++) {
        struct rig gpu;
        struct sq_backend *be = gpu_open(way == 1, false);
        if (way == 2)
            sq_cuda_of(be)->is_timed = true;
        rig_open(&gpu, be, &k, CONTEXT);
        run_together(&gpu, got, way == 0 ? 7 : 100);
        assert_same_bits(want, got);
        rig_close(&gpu);
    }
}

static void static_w8a8_is_the_cpus(void **state)
{
    (void)state;
    check_kind((struct kind){.hidden = 128, .dtype = "float16", .scheme = SQ_SCHEME_W8A8_STATIC},
               0.0f);
}

static void odd_sizes_are_the_cpus(void **state)
{
    (void)state;
    check_kind((struct kind){.hidden = 56, .dtype = "float32", .scheme = SQ_SCHEME_W8A8_STATIC},
               0.0f);
}

static void post_norm_is_the_cpus(void **state)
{
    (void)state;
    check_kind(
        (struct kind){
            .hidden = 64, .post_norm = true, .dtype = "float32", .scheme = SQ_SCHEME_W8A8_STATIC},
        1e-3f); /* projections are float matmuls */
}

static void dynamic_w8a8_is_close(void **state)
{
    (void)state;
    check_kind((struct kind){.hidden = 128, .dtype = "float16", .scheme = SQ_SCHEME_W8A8_DYNAMIC},
               1e-3f);
}

static void float_is_close(void **state)
{
    (void)state;
    check_kind((struct kind){.hidden = 128, .dtype = "float32"}, 1e-4f);
    check_kind((struct kind){.hidden = 128, .dtype = "float16"}, 2e-2f);
}

static void llama_is_the_cpus(void **state)
{
    (void)state;
    check_kind(
        (struct kind){
            .llama = true, .hidden = 128, .dtype = "bfloat16", .scheme = SQ_SCHEME_W8A8_STATIC},
        0.0f);
}

static void argmax_is_of_the_logits(void **state)
{
    struct kind k = {.hidden = 64, .dtype = "float32", .scheme = SQ_SCHEME_W8A8_STATIC};
    struct rig t;
    int32_t id, block = 0, zero = 0;
    (void)state;
    rig_open(&t, gpu_open(false, false), &k, 16);
    for (int32_t i = 0; i < 5; i++) { /* recorded and replayed */
        struct sq_batch_seq seq = {.n_rows = 1, .pos0 = i, .blocks = &block};
        struct sq_batch b = {.n_rows = 1,
                             .n_seqs = 1,
                             .n_out = 1,
                             .ids = &(int32_t){i * 31 % VOCAB},
                             .pos = &(int32_t){i},
                             .seqs = &seq,
                             .out_rows = &zero};
        const float *logits;
        int best = 0;
        assert_int_equal(sq_forward(t.r, &b, NULL, NULL), 0);
        assert_int_equal(sq_runner_argmax(t.r, 1, &id, NULL), 0);
        assert_int_equal(sq_runner_logits(t.r, 1, &logits, NULL), 0);
        for (int v = 1; v < VOCAB; v++)
            best = logits[v] > logits[best] ? v : best;
        assert_int_equal(id, best);
    }
    rig_close(&t);
}

static void a_plan_counts_what_is_taken(void **state)
{
    struct kind k = {.hidden = 128, .dtype = "float16", .scheme = SQ_SCHEME_W8A8_STATIC};
    struct sq_gpu_budget real, plan;
    struct rig t;
    (void)state;
    rig_open(&t, gpu_open(false, false), &k, CONTEXT);
    sq_cuda_budget(t.be, &real);
    rig_close(&t);
    rig_open(&t, gpu_open(false, true), &k, CONTEXT);
    sq_cuda_budget(t.be, &plan);
    rig_close(&t);
    assert_true(real.weight_bytes > 0 && real.kv_bytes > 0 && real.activation_bytes > 0 &&
                real.workspace_bytes > 0);
    assert_memory_equal(&real, &plan, sizeof real);
}

/* The books and the words are engine/put.h's; that they are kept here, too. */
static void rows_are_put_once(void **state)
{
    struct sq_backend *be = gpu_open(false, false);
    const struct sq_linear_desc d = {
        .name = "q_proj", .n_out = 5, .n_in = 4, .dtype = SQ_I8, .out = SQ_OUT_F32};
    const int8_t rows[20] = {0};
    const float mul[5] = {1, 1, 1, 1, 1};
    const struct sq_epilogue e = {.mul = mul};
    struct sq_err err = {0};
    struct sq_linear *l;
    (void)state;
    assert_int_equal(be->ops->linear_new(be, &d, &l, &err), 0);
    assert_int_equal(be->ops->linear_put(be, l, 1, 5, rows, &err), -SQ_E_INVAL);
    assert_string_equal(err.msg, "q_proj: 5 rows put from row 1 on, but it has 5");
    assert_int_equal(be->ops->linear_put(be, l, 1, SIZE_MAX, rows, &err), -SQ_E_INVAL);
    assert_int_equal(be->ops->linear_put(be, l, 0, 3, rows, &err), 0);
    assert_int_equal(be->ops->linear_put(be, l, 2, 2, rows, &err), -SQ_E_INVAL);
    assert_string_equal(err.msg, "q_proj: row 2 put twice");
    assert_int_equal(be->ops->linear_finish(be, l, &e, &err), -SQ_E_INVAL);
    assert_string_equal(err.msg, "q_proj: finished with 3 of 5 rows");
    assert_int_equal(be->ops->linear_put(be, l, 3, 2, rows, &err), 0);
    assert_int_equal(be->ops->linear_finish(be, l, &e, &err), 0);
    assert_int_equal(be->ops->linear_finish(be, l, &e, &err), -SQ_E_STATE);
    assert_int_equal(be->ops->linear_put(be, l, 0, 1, rows, &err), -SQ_E_STATE);
    be->ops->linear_free(be, l);
    be->ops->close(be);
}

struct calls {
    int n, fails_at;
};

static int count_call(void *ctx)
{
    struct calls *k = ctx;
    return ++k->n == k->fails_at ? -SQ_E_DEVICE : 0;
}

static void timing_calls_as_often_as_it_says(void **state)
{
    float odd[] = {5, 1, 4}, even[] = {2, 8, 1, 3}, ms = -1.0f;
    struct sq_backend *be = gpu_open(false, false);
    struct sq_cuda *c = sq_cuda_of(be);
    struct calls k = {0}, bad = {.fails_at = 9};
    (void)state;
    assert_true(sq_cuda_median(odd, 3) == 4.0f);
    assert_true(sq_cuda_median(even, 4) == 3.0f); /* the upper one */
    assert_int_equal(sq_cuda_time(c, count_call, &k, 5, 8, &ms), 0);
    assert_int_equal(k.n, 2 + 5 * 8); /* with two that warm up */
    assert_true(ms >= 0.0f);
    ms = -1.0f;
    assert_int_equal(sq_cuda_time(c, count_call, &bad, 5, 8, &ms), -SQ_E_DEVICE);
    assert_int_equal(bad.n, 9);
    assert_true(ms == -1.0f);
    be->ops->close(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(static_w8a8_is_the_cpus),
        cmocka_unit_test(ways_change_no_bit),
        cmocka_unit_test(odd_sizes_are_the_cpus),
        cmocka_unit_test(post_norm_is_the_cpus),
        cmocka_unit_test(dynamic_w8a8_is_close),
        cmocka_unit_test(float_is_close),
        cmocka_unit_test(llama_is_the_cpus),
        cmocka_unit_test(argmax_is_of_the_logits),
        cmocka_unit_test(a_plan_counts_what_is_taken),
        cmocka_unit_test(rows_are_put_once),
        cmocka_unit_test(timing_calls_as_often_as_it_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
