/* The float path against transformers: logits within 1e-3 of their range and the same greedy
 * tokens, for every configuration under tests/golden/logits and every variant of the CPU kernels.
 * See make_logits.py there for the file format. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/model/checkpoint.h"
#include "engine/quant.h"
#include "engine/run/forward.h"

#define MAX_ROWS 320
#define TOLERANCE 1e-3

static const char *const cases[] = {"hd64-f32",         "hd80-f16",
                                    "postnorm-f16",     "oddvocab-bf16",
                                    "sharded-bf16",     "untied-nobias-f16",
                                    "llama-d16-f32",    "llama-d64-tied-bf16",
                                    "llama-scaled-f16", "llama-linear-bias-f16"};

struct vectors {
    char *data;
    size_t n, at;
};

static struct vectors read_vectors(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, SQD_SOURCE_DIR "/tests/golden/logits/%s/logits.bin", name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    struct vectors v = {.data = malloc(1 << 20)};
    assert_non_null(v.data);
    v.n = fread(v.data, 1, 1 << 20, f);
    fclose(f);
    assert_true(v.n > 16 && memcmp(v.data, "SQGL", 4) == 0);
    v.at = 4;
    return v;
}

static const void *take(struct vectors *v, size_t n)
{
    assert_true(v->n - v->at >= n);
    const void *p = v->data + v->at;
    v->at += n;
    return p;
}

static int32_t take_int(struct vectors *v)
{
    int32_t i;
    memcpy(&i, take(v, sizeof i), sizeof i);
    return i;
}

struct model {
    struct sq_backend *be;
    struct sq_model_dir *dir;
    struct sq_model *m;
    struct sq_runner *r;
};

static struct model open_model(const char *name, const char *variant)
{
    char path[1024];
    struct model k = {0};
    struct sq_err err = {0};
    snprintf(path, sizeof path, SQD_SOURCE_DIR "/tests/golden/logits/%s", name);
    struct sq_cpu_options cpu = {.n_threads = 2, .variant = variant};
    struct sq_load_options load = {.head = SQ_HEAD_KEEP};
    struct sq_runner_options run = {
        .max_rows = MAX_ROWS, .max_out = MAX_ROWS, .n_kv_blocks = MAX_ROWS / SQ_KV_BLOCK};
    int rc = sq_cpu_open(&cpu, &k.be, &err);
    if (!rc)
        rc = sq_model_dir_open(path, &k.dir, &err);
    if (!rc) {
        load.prefix = k.dir->prefix;
        rc = sq_model_load(k.dir->source, &k.dir->config, k.be, &load, &k.m, &err);
    }
    if (!rc)
        rc = sq_runner_new(k.m, &run, &k.r, &err);
    if (rc)
        fail_msg("%s", err.msg);
    return k;
}

static void close_model(struct model *k)
{
    sq_runner_free(k->r);
    sq_model_free(k->m);
    sq_model_dir_close(k->dir);
    k->be->ops->close(k->be);
}

/* Runs ids at positions pos0.. and returns the logits of the wanted rows of this step. */
static const float *step(struct model *k, const int32_t *ids, int n, int pos0, const int32_t *rows,
                         int n_rows)
{
    int32_t pos[MAX_ROWS], blocks[MAX_ROWS / SQ_KV_BLOCK];
    for (int i = 0; i < n; i++)
        pos[i] = pos0 + i;
    for (int i = 0; i < MAX_ROWS / SQ_KV_BLOCK; i++)
        blocks[i] = MAX_ROWS / SQ_KV_BLOCK - 1 - i; /* not in order, on purpose */
    struct sq_batch_seq seq = {.n_rows = n, .pos0 = pos0, .blocks = blocks};
    struct sq_batch b = {.n_rows = n,
                         .n_seqs = 1,
                         .n_out = n_rows,
                         .ids = ids,
                         .pos = pos,
                         .seqs = &seq,
                         .out_rows = rows};
    struct sq_err err = {0};
    const float *logits = NULL;
    assert_int_equal(sq_forward(k->r, &b, NULL, &err), 0);
    assert_int_equal(sq_runner_logits(k->r, n_rows, &logits, &err), 0);
    return logits;
}

static double difference(const float *got, const float *want, size_t n)
{
    double diff = 0, low = INFINITY, high = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(got[i]));
        diff = fmax(diff, fabs((double)got[i] - (double)want[i]));
        low = fmin(low, (double)want[i]);
        high = fmax(high, (double)want[i]);
    }
    return diff / (high - low);
}

static int32_t best(const float *logits, int n)
{
    int b = 0;
    for (int i = 1; i < n; i++)
        b = logits[i] > logits[b] ? i : b;
    return b;
}

static double check_prompt(struct model *k, struct vectors *v, int vocab)
{
    const int n = take_int(v);
    const int32_t *ids = take(v, (size_t)n * 4);
    const int n_rows = take_int(v);
    const int32_t *rows = take(v, (size_t)n_rows * 4);
    const size_t n_logits = (size_t)n_rows * (size_t)vocab;
    const float *want = take(v, n_logits * 4), *got = step(k, ids, n, 0, rows, n_rows);
    const double diff = difference(got, want, n_logits);
    if (!(diff <= TOLERANCE))
        fail_msg("prompt of %d tokens: logits differ by %g of their range", n, diff);

    const int n_more = take_int(v);
    const int32_t *more = take(v, (size_t)n_more * 4), only_row = 0;
    int32_t token = best(got + (size_t)(n_rows - 1) * (size_t)vocab, vocab);
    for (int i = 0; i < n_more; i++) {
        if (token != more[i])
            fail_msg("prompt of %d tokens: greedy token %d is %d, not %d", n, i, token, more[i]);
        token = best(step(k, &token, 1, n + i, &only_row, 1), vocab);
    }
    return diff;
}

static void check_case(const char *name, const char *variant)
{
    print_message("%s, %s\n", name, variant);
    struct model k = open_model(name, variant);
    struct vectors v = read_vectors(name);
    assert_int_equal(take_int(&v), 1);
    const int n_prompts = take_int(&v), vocab = take_int(&v);
    assert_int_equal(vocab, k.dir->config.vocab);
    double worst = 0;
    for (int i = 0; i < n_prompts; i++)
        worst = fmax(worst, check_prompt(&k, &v, vocab));
    assert_true(v.at == v.n);
    print_message("    largest difference %.2g of the range\n", worst);
    free(v.data);
    close_model(&k);
}

static void test_all(void **state)
{
    (void)state;
    const char *const *variants = sq_cpu_variant_names();
    for (int i = 0; variants[i]; i++)
        for (size_t k = 0; k < SQ_ARRAY_LEN(cases); k++)
            check_case(cases[k], variants[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
