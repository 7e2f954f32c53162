/* Same tokens, whatever the batch: 64 prompts of the demo model, quantised O3 in memory, run alone and all together, with prefill chunks of
 * 1, 7, 64 and unlimited rows, on 1 and 2 threads, on every kernel variant, give identical tokens and bit-identical logits. And the engine
 * itself, with its own scheduling, gives the tokens of the solo runs, greedy and sampled. Sanitizer builds run fewer prompts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/engine.h"
#include "engine/run/forward.h"
#include "engine/smooth/recipe.h"
#include "engine/text/tokenizer.h"

#if defined(__SANITIZE_THREAD__)
#define N_PROMPTS 3
#elif defined(__SANITIZE_ADDRESS__)
#define N_PROMPTS 6
#else
#define N_PROMPTS 64
#endif
#define N_NEW 8
#define MAX_PROMPT 90
#define MAX_ROWS 256
#define SEQ_BLOCKS 4 /* MAX_PROMPT + N_NEW tokens */

struct prompt {
    int32_t ids[MAX_PROMPT + N_NEW];
    int n;
};

/* What must not change: the tokens, and the bits of every row of logits. */
struct outcome {
    int32_t tokens[N_PROMPTS][N_NEW];
    uint64_t digests[N_PROMPTS];
};

static struct {
    struct sq_model_dir *dir;
    struct sq_backend *be;
    struct sq_smoothed *smoothed;
    struct prompt prompts[N_PROMPTS];
    struct outcome solo;
} world;

static uint64_t digest(uint64_t h, const float *row, int n)
{
    const unsigned char *p = (const unsigned char *)row;
    for (size_t i = 0; i < (size_t)n * sizeof *row; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static void make_prompts(void)
{
    struct sq_tokenizer *t = NULL;
    struct sq_err err = {0};
    if (sq_tokenizer_open(world.dir->fd, "tokenizer.json", 0, &t, &err))
        fail_msg("%s", err.msg);
    FILE *f = fopen(SQD_SOURCE_DIR "/tests/models/demo-opt/heldout.txt", "r");
    assert_non_null(f);
    char text[60000];
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    while (n && (text[n - 1] & 0x80))
        n--; /* whole characters only */
    int32_t *ids;
    size_t n_ids;
    if (sq_tokenizer_encode(t, text, n, 0, &ids, &n_ids, &err))
        fail_msg("%s", err.msg);
    size_t at = 0;
    for (int i = 0; i < N_PROMPTS; i++) {
        struct prompt *p = &world.prompts[i];
        p->n = i == 1 ? MAX_PROMPT : 1 + (i * 29) % 53;
        p->ids[0] = world.dir->config.bos;
        for (int k = 1; k < p->n; k++)
            p->ids[k] = ids[at++ % n_ids];
    }
    sq_free(ids);
    sq_tokenizer_free(t);
}

static int make_world(void **state)
{
    (void)state;
    struct sq_err err = {0};
    struct sq_recipe r = {.alpha = 0.5, .folds = SQ_FOLDS_ALL, .max_passages = 8};
    struct sq_progress quiet = {0};
    if (sq_model_dir_open(SQD_SOURCE_DIR "/tests/models/demo-opt", &world.dir, &err) ||
        sq_cpu_open(&(struct sq_cpu_options){.n_threads = 2}, &world.be, &err) ||
        sq_smoothed_make(world.dir, world.be, &r, &quiet, &world.smoothed, &err)) {
        fprintf(stderr, "%s\n", err.msg);
        return -1;
    }
    make_prompts();
    return 0;
}

static int end_world(void **state)
{
    (void)state;
    sq_smoothed_free(world.smoothed);
    world.be->ops->close(world.be);
    sq_model_dir_close(world.dir);
    return 0;
}

struct rig {
    struct sq_backend *be;
    struct sq_model *model;
    struct sq_runner *runner;
};

static void rig_open(struct rig *r, const char *variant, int threads)
{
    struct sq_err err = {0};
    struct sq_load_options lo = {.head = SQ_HEAD_INT8, .prefix = world.dir->prefix};
    struct sq_runner_options ro = {
        .max_rows = MAX_ROWS, .max_out = N_PROMPTS, .n_kv_blocks = N_PROMPTS * SEQ_BLOCKS};
    if (sq_cpu_open(&(struct sq_cpu_options){.n_threads = threads, .variant = variant}, &r->be,
                    &err) ||
        sq_model_load(world.smoothed->source, &world.smoothed->config, r->be, &lo, &r->model,
                      &err) ||
        sq_runner_new(r->model, &ro, &r->runner, &err))
        fail_msg("%s, %d threads: %s", variant, threads, err.msg);
    assert_true(r->model->int8_attention);
}

static void rig_close(struct rig *r)
{
    sq_runner_free(r->runner);
    sq_model_free(r->model);
    r->be->ops->close(r->be);
}

struct seq {
    struct prompt p; /* grows by the generated tokens */
    int done, n_new;
    int32_t blocks[SEQ_BLOCKS];
};

struct step {
    int32_t ids[MAX_ROWS], pos[MAX_ROWS], out_rows[N_PROMPTS];
    struct sq_batch_seq seqs[N_PROMPTS];
    int who[N_PROMPTS];
    struct sq_batch b;
};

/* Takes up to `chunk` rows of every unfinished sequence while there is room in the step. */
static void fill(struct step *s, struct seq *seqs, int n, int first, int chunk)
{
    s->b =
        (struct sq_batch){.ids = s->ids, .pos = s->pos, .seqs = s->seqs, .out_rows = s->out_rows};
    for (int k = 0; k < n; k++) {
        struct seq *q = &seqs[(first + k) % n];
        int rows = SQ_MIN(SQ_MIN(q->p.n - q->done, chunk), MAX_ROWS - s->b.n_rows);
        if (q->n_new == N_NEW || rows <= 0)
            continue;
        s->seqs[s->b.n_seqs++] = (struct sq_batch_seq){
            .row0 = s->b.n_rows, .n_rows = rows, .pos0 = q->done, .blocks = q->blocks};
        for (int i = 0; i < rows; i++) {
            s->ids[s->b.n_rows] = q->p.ids[q->done];
            s->pos[s->b.n_rows++] = q->done++;
        }
        if (q->done == q->p.n) {
            s->who[s->b.n_out] = (first + k) % n;
            s->out_rows[s->b.n_out++] = s->b.n_rows - 1;
        }
    }
}

static void take(struct rig *r, struct step *s, struct seq *seqs, int base, struct outcome *ret)
{
    struct sq_err err;
    const float *logits;
    int32_t best[N_PROMPTS];
    int vocab = r->model->config.vocab;
    assert_int_equal(sq_forward(r->runner, &s->b, NULL, &err), 0);
    if (!s->b.n_out)
        return; /* chunks only */
    assert_int_equal(sq_runner_argmax(r->runner, s->b.n_out, best, &err), 0);
    assert_int_equal(sq_runner_logits(r->runner, s->b.n_out, &logits, &err), 0);
    for (int i = 0; i < s->b.n_out; i++) {
        struct seq *q = &seqs[s->who[i]];
        int index = base + s->who[i];
        ret->digests[index] =
            digest(ret->digests[index], logits + (size_t)i * (size_t)vocab, vocab);
        ret->tokens[index][q->n_new++] = best[i];
        q->p.ids[q->p.n++] = best[i];
    }
}

/* Runs prompts [base, base + n) in common steps. The order of sequences in a step turns, so that rows change places. */
static void run_together(struct rig *r, int base, int n, int chunk, struct outcome *ret)
{
    static struct seq seqs[N_PROMPTS];
    static struct step s;
    for (int i = 0; i < n; i++) {
        seqs[i] = (struct seq){.p = world.prompts[base + i]};
        for (int b = 0; b < SEQ_BLOCKS; b++)
            seqs[i].blocks[b] =
                (i * SEQ_BLOCKS + b) * 7 %
                (N_PROMPTS * SEQ_BLOCKS); /* scattered; 7 divides no power-of-two or 24 */
    }
    for (int turn = 0;; turn++) {
        fill(&s, seqs, n, turn % n, chunk);
        if (!s.b.n_rows)
            return;
        take(r, &s, seqs, base, ret);
    }
}

static void expect_same(const struct outcome *got, const char *what)
{
    for (int i = 0; i < N_PROMPTS; i++) {
        for (int k = 0; k < N_NEW; k++)
            if (got->tokens[i][k] != world.solo.tokens[i][k])
                fail_msg("%s: prompt %d, token %d: %d, alone %d", what, i, k, got->tokens[i][k],
                         world.solo.tokens[i][k]);
        if (got->digests[i] != world.solo.digests[i])
            fail_msg("%s: prompt %d: logits differ from the solo run's", what, i);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_logits_and_tokens(void **state)
{
    (void)state;
    static const int chunks[] = {1, 7, 64, MAX_ROWS};
    bool first = true;
    for (const char *const *v = sq_cpu_variant_names(); *v; v++)
        for (int threads = 1; threads <= 2; threads++) {
            struct rig r;
            double start = now();
            rig_open(&r, *v, threads);
            for (size_t c = 0; c < SQ_ARRAY_LEN(chunks); c++)
                for (int alone = 1; alone >= 0; alone--) {
                    static struct outcome out;
                    char what[100];
                    memset(&out, 0, sizeof out);
                    for (int i = 0; i < (alone ? N_PROMPTS : 1); i++)
                        run_together(&r, i, alone ? 1 : N_PROMPTS, chunks[c], &out);
                    snprintf(what, sizeof what, "%s, %d threads, chunks of %d, %s", *v, threads,
                             chunks[c], alone ? "alone" : "together");
                    if (first)
                        world.solo = out;
                    first = false;
                    expect_same(&out, what);
                }
            rig_close(&r);
            print_message(
                "%s, %d threads: 4 chunk sizes x alone and together x %d prompts equal (%.1f s)\n",
                *v, threads, N_PROMPTS, now() - start);
        }
    /* the prompts must not all say the same, or equality would mean little */
    int distinct = 0;
    for (int i = 1; i < N_PROMPTS; i++)
        distinct += world.solo.digests[i] != world.solo.digests[0];
    assert_true(distinct >= N_PROMPTS - 2); /* two prompts are the bare BOS */
}

static struct sq_request request(int i, bool sampled)
{
    return (struct sq_request){
        .id = (sq_req_id)i + 1,
        .ids = world.prompts[i].ids,
        .n_ids = world.prompts[i].n,
        .sampling = {.temperature = sampled ? 0.8f : 0,
                     .top_p = sampled ? 0.9f : 1,
                     .top_k = sampled ? 40 : 0,
                     .repetition = 1,
                     .seed = 1000u + (uint64_t)i,
                     .max_tokens = N_NEW,
                     .ignore_eos = true},
        .credit = N_NEW,
    };
}

/* Submits prompts [base, base + n) at once and waits for all of them. */
static void engine_run(struct sq_engine *e, int base, int n, bool sampled,
                       int32_t tokens[N_PROMPTS][N_NEW])
{
    static struct sq_request reqs[N_PROMPTS];
    struct sq_err err;
    for (int i = 0; i < n; i++)
        reqs[i] = request(base + i, sampled);
    assert_int_equal(sq_engine_submit(e, reqs, n, &err), 0);
    for (int left = n; left > 0;) {
        struct sq_event *chain = sq_engine_take_events(e);
        for (struct sq_event *ev = chain; ev; ev = (struct sq_event *)ev->node.next) {
            if (ev->token >= 0 && ev->n_generated >= 1)
                tokens[ev->id - 1][ev->n_generated - 1] = ev->token;
            if (ev->finish != SQ_FINISH_NONE) {
                assert_int_equal(ev->finish, SQ_FINISH_LENGTH);
                left--;
            }
        }
        sq_events_free(chain);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}

/* The engine with a KV cache too small for all at once (so that sequences wait and are pre-empted), against one that runs each prompt alone. */
static void test_engine(void **state)
{
    (void)state;
    static const int chunks[] = {0, 1, 7, 64};
    static int32_t solo[2][N_PROMPTS][N_NEW], got[N_PROMPTS][N_NEW];
    struct rig r;
    struct sq_err err = {0};
    rig_open(&r, NULL, 2);
    for (int run = -1; run < (int)SQ_ARRAY_LEN(chunks); run++) {
        struct sq_engine *e;
        struct sq_engine_options o = {.model = r.model,
                                      .max_sequences = 24,
                                      .max_step_tokens = 48,
                                      .max_context = MAX_PROMPT + N_NEW,
                                      .kv_blocks = run == 3 ? 12 : 64,
                                      .max_queue = N_PROMPTS,
                                      .max_queue_tokens = 100000,
                                      .max_chunk = run < 0 ? 0 : chunks[run]};
        if (sq_engine_open(&o, &e, &err) || sq_engine_start(e, &err))
            fail_msg("%s", err.msg);
        for (int sampled = 0; sampled <= 1; sampled++) {
            if (run < 0) {
                for (int i = 0; i < N_PROMPTS; i++)
                    engine_run(e, i, 1, sampled, solo[sampled]);
                continue;
            }
            memset(got, 0xff, sizeof got);
            engine_run(e, 0, N_PROMPTS, sampled, got);
            assert_memory_equal(got, solo[sampled], sizeof got);
        }
        sq_engine_close(e);
    }
    assert_memory_equal(solo[0], world.solo.tokens,
                        sizeof solo[0]); /* and the engine's greedy tokens are the runner's */
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_logits_and_tokens),
                                       cmocka_unit_test(test_engine)};
    return cmocka_run_group_tests(tests, make_world, end_world);
}
