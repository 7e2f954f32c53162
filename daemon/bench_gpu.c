#include "daemon/bench_gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/bench_block.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/model/expect.h"
#include "engine/model/model.h"
#include "engine/quant.h"
#include "engine/run/forward.h"

#define WARM_UP                                                                                    \
    3 /* steps before the first sample: a device may record a step before it replays it */
#define MAX_SAMPLES 64

bool sq_stage_parse(const char *s, struct sq_stage *ret)
{
    char copy[64];
    int64_t n, context = 0;
    (void)snprintf(copy, sizeof copy, "%s", s);
    char *rest = strchr(copy, ':');
    if (!rest)
        return false;
    *rest++ = '\0';
    const bool decode = strcmp(copy, "decode") == 0;
    if (!decode && strcmp(copy, "prefill") != 0)
        return false;
    char *tail = decode ? strchr(rest, ':') : NULL;
    if (decode && !tail)
        return false;
    if (tail) {
        *tail++ = '\0';
        if (!sq_parse_i64(tail, 1, 1 << 20, &context))
            return false;
    }
    if (!sq_parse_i64(rest, 1, 1 << 16, &n))
        return false;
    *ret = (struct sq_stage){.decode = decode, .n = (int)n, .context = (int)context};
    return true;
}

struct sq_stage_work sq_stage_work(const struct sq_config *c, const struct sq_stage *s, bool int8)
{
    double layer = 0, layers = c->n_layers, head = (double)c->vocab * c->embed_dim;
    for (int role = 0; role < SQ_N_LAYER_ROLES; role++) {
        size_t rows, cols;
        sq_role_shape(c, (enum sq_role)role, &rows, &cols);
        layer += (double)rows * (double)cols;
    }
    double n = s->n,
           keys = s->decode ? n * (s->context + 1) : n * (n + 1) / 2; /* row and key pairs */
    double cells = s->decode ? keys : n; /* cells of the cache that are read or written */
    double kv = 2.0 * c->n_kv_heads * c->head_dim * (int8 ? 1 : 4);
    double outs = s->decode ? n : 1;
    return (struct sq_stage_work){
        .bytes = (layers * layer + head) * (int8 ? 1 : 2) + layers * kv * cells,
        .ops = 2 * layers * layer * n + 4 * layers * c->n_heads * c->head_dim * keys +
               2 * head * outs};
}

/* --- one build of a model --- */

struct rig {
    struct sq_backend *be;
    struct sq_model *model;
    struct sq_runner *runner;
    int max_rows, max_out, seq_blocks, n_blocks;
    int32_t *ids, *pos, *out_rows, *blocks,
        *best;                 /* [max_rows], [max_rows], [max_out], [n_blocks], [max_out]; owned */
    struct sq_batch_seq *seqs; /* [max_out], owned */
};

static void rig_done(struct rig *r)
{
    sq_runner_free(r->runner);
    sq_model_free(r->model);
    if (r->be)
        r->be->ops->close(r->be);
    sq_free(r->ids);
    sq_free(r->pos);
    sq_free(r->out_rows);
    sq_free(r->blocks);
    sq_free(r->best);
    sq_free(r->seqs);
    *r = (struct rig){0};
}

static int blocks_for(int n_tokens)
{
    return (n_tokens + SQ_KV_BLOCK - 1) / SQ_KV_BLOCK;
}

static int rig_sizes(struct rig *r, const struct sq_stage_bench *b, const struct sq_config *c,
                     struct sq_err *err)
{
    r->max_rows = r->max_out = 1;
    for (int i = 0; i < b->n_stages; i++) {
        const struct sq_stage *s = &b->stages[i];
        int tokens = s->decode ? s->context + 1 : s->n;
        if (tokens > c->max_positions)
            return sq_fail(err, SQ_E_LIMIT, "a stage of %d tokens, the shape has %d positions",
                           tokens, c->max_positions);
        r->max_rows = SQ_MAX(r->max_rows, s->n);
        r->max_out = SQ_MAX(r->max_out, s->decode ? s->n : 1);
        r->seq_blocks = SQ_MAX(r->seq_blocks, blocks_for(tokens));
    }
    for (int i = 0; i < b->n_stages; i++)
        r->n_blocks =
            SQ_MAX(r->n_blocks, r->seq_blocks * (b->stages[i].decode ? b->stages[i].n : 1));
    r->ids = sq_new_array(int32_t, (size_t)r->max_rows);
    r->pos = sq_new_array(int32_t, (size_t)r->max_rows);
    r->out_rows = sq_new_array(int32_t, (size_t)r->max_out);
    r->best = sq_new_array(int32_t, (size_t)r->max_out);
    r->blocks = sq_new_array(int32_t, (size_t)r->n_blocks);
    r->seqs = sq_new_array(struct sq_batch_seq, (size_t)r->max_out);
    if (!r->ids || !r->pos || !r->out_rows || !r->best || !r->blocks || !r->seqs)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    for (int i = 0; i < r->n_blocks; i++)
        r->blocks[i] = i;
    return 0;
}

/* The scheme decides the rest: an int8 head comes as codes, so that nothing has to be quantised here. */
static struct sq_config config_for(const struct sq_config *c, bool int8, int n_layers)
{
    struct sq_config r = *c;
    r.n_layers = n_layers;
    r.scheme = int8 ? SQ_SCHEME_W8A8_STATIC : SQ_SCHEME_FLOAT;
    if (int8) {
        r.head_quantized = true;
        r.tied = false;
    }
    return r;
}

static int load_random(struct rig *r, const struct sq_config *c, struct sq_err *err)
{
    struct sq_source *inner = NULL, *src = NULL;
    struct sq_load_options lo = {.head = SQ_HEAD_KEEP, .prefix = c->family->prefixes[0]};
    int rc = sq_random_source_open(c, 1, &inner, err);
    if (!rc)
        rc = sq_block_source_open(inner, &src, err);
    if (!rc)
        rc = sq_model_load(src, c, r->be, &lo, &r->model, err);
    sq_source_close(src);
    sq_source_close(inner);
    return rc;
}

static int rig_init(struct rig *r, const struct sq_stage_bench *b, const struct sq_config *c,
                    struct sq_err *err)
{
    *r = (struct rig){0};
    int rc = rig_sizes(r, b, c, err);
    if (!rc)
        rc = b->open(b->ctx, &r->be, err);
    if (!rc)
        rc = load_random(r, c, err);
    struct sq_runner_options ro = {
        .max_rows = r->max_rows, .max_out = r->max_out, .n_kv_blocks = r->n_blocks};
    if (!rc)
        rc = sq_runner_new(r->model, &ro, &r->runner, err);
    if (rc)
        rig_done(r);
    return rc;
}

/* --- steps --- */

/* n rows of one sequence from pos0 on; the last one's logits are wanted. */
static struct sq_batch prompt(struct rig *r, int seq, int pos0, int n)
{
    for (int i = 0; i < n; i++) {
        r->ids[i] = (i * 37 + 11 + pos0) % r->model->config.vocab;
        r->pos[i] = pos0 + i;
    }
    r->out_rows[0] = n - 1;
    r->seqs[0] = (struct sq_batch_seq){
        .n_rows = n, .pos0 = pos0, .blocks = r->blocks + (ptrdiff_t)seq * r->seq_blocks};
    return (struct sq_batch){.n_rows = n,
                             .n_seqs = 1,
                             .n_out = 1,
                             .ids = r->ids,
                             .pos = r->pos,
                             .seqs = r->seqs,
                             .out_rows = r->out_rows};
}

/* One row of each of n sequences, every one with blocks of its own. */
static struct sq_batch decode_rows(struct rig *r, int n, int pos)
{
    for (int i = 0; i < n; i++) {
        r->ids[i] = (i * 101 + pos) % r->model->config.vocab;
        r->pos[i] = pos;
        r->out_rows[i] = i;
        r->seqs[i] = (struct sq_batch_seq){.row0 = i,
                                           .n_rows = 1,
                                           .pos0 = pos,
                                           .blocks = r->blocks + (ptrdiff_t)i * r->seq_blocks};
    }
    return (struct sq_batch){.n_rows = n,
                             .n_seqs = n,
                             .n_out = n,
                             .ids = r->ids,
                             .pos = r->pos,
                             .seqs = r->seqs,
                             .out_rows = r->out_rows};
}

/* From the call to the sampled ids on the host. */
static int step(struct rig *r, const struct sq_batch *b, double *ret_s, struct sq_err *err)
{
    uint64_t start = sq_now_ns();
    int rc = sq_forward(r->runner, b, NULL, err);
    if (!rc)
        rc = sq_runner_argmax(r->runner, b->n_out, r->best, err);
    *ret_s = (double)(sq_now_ns() - start) / 1e9;
    return rc;
}

static int fill_cache(struct rig *r, const struct sq_stage *s, struct sq_err *err)
{
    int rc = 0;
    for (int seq = 0; seq < s->n && !rc; seq++)
        for (int pos = 0; pos < s->context && !rc; pos += r->max_rows) {
            double unused;
            struct sq_batch b = prompt(r, seq, pos, SQ_MIN(r->max_rows, s->context - pos));
            rc = step(r, &b, &unused, err);
        }
    return rc;
}

static struct sq_batch stage_batch(struct rig *r, const struct sq_stage *s)
{
    return s->decode ? decode_rows(r, s->n, s->context) : prompt(r, 0, 0, s->n);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median time of a stage's step. */
static int measure(struct rig *r, const struct sq_stage_bench *b, const struct sq_stage *s,
                   double *ret_s, struct sq_err *err)
{
    double times[MAX_SAMPLES], unused;
    const int n = SQ_MIN(b->n_samples, MAX_SAMPLES);
    int rc = s->decode && b->fill_cache ? fill_cache(r, s, err) : 0;
    struct sq_batch batch = stage_batch(r, s);
    for (int i = 0; i < WARM_UP && !rc; i++)
        rc = step(r, &batch, &unused, err);
    for (int i = 0; i < n && !rc; i++)
        rc = step(r, &batch, &times[i], err);
    if (rc)
        return rc;
    qsort(times, (size_t)n, sizeof *times, by_value);
    *ret_s = times[n / 2];
    return 0;
}

static int measure_all(const struct sq_stage_bench *b, const struct sq_config *c, bool int8,
                       int n_layers, double *ret_s, struct sq_err *err)
{
    struct rig r;
    struct sq_config built = config_for(c, int8, n_layers);
    int rc = rig_init(&r, b, &built, err);
    for (int i = 0; i < b->n_stages && !rc; i++)
        rc = measure(&r, b, &b->stages[i], &ret_s[i], err);
    rig_done(&r);
    return rc;
}

static struct sq_stage_figure figure(const struct sq_stage_bench *b, const struct sq_config *c,
                                     const struct sq_stage *s, bool int8, int n_measured, double t)
{
    const struct sq_stage_work w = sq_stage_work(c, s, int8);
    const struct sq_gpu_ceilings *top = b->ceilings;
    const double ops = !top ? 0 : int8 ? top->int8_ops_per_s : top->f16_ops_per_s;
    return (struct sq_stage_figure){
        .stage = *s,
        .int8 = int8,
        .n_layers = c->n_layers,
        .n_measured = n_measured,
        .ms = 1000 * t,
        .tokens_per_s = s->n / t,
        .read_share = top && top->read_bytes_per_s > 0 ? w.bytes / t / top->read_bytes_per_s : 0,
        .ops_share = ops > 0 ? w.ops / t / ops : 0};
}

int sq_bench_stages(const struct sq_stage_bench *b, const struct sq_config *config, bool int8,
                    struct sq_stage_figure *ret, struct sq_err *err)
{
    const int all = config->n_layers, n = b->n_layers > 1 && b->n_layers < all ? b->n_layers : all;
    SQ_AUTO_FREE double *times = sq_new_array(double, 2 * (size_t)b->n_stages);
    if (!times)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    double *one = times + b->n_stages;
    int rc = measure_all(b, config, int8, n, times, err);
    if (!rc && n < all)
        rc = measure_all(b, config, int8, 1, one, err);
    for (int i = 0; i < b->n_stages && !rc; i++) {
        double t = times[i];
        if (n < all)
            t = one[i] + fmax(t - one[i], 0) / (n - 1) * (all - 1); /* noise is no gain */
        ret[i] = figure(b, config, &b->stages[i], int8, n, t);
    }
    return rc;
}

int sq_bench_repeat(const struct sq_stage_bench *b, const struct sq_config *config, bool int8,
                    struct sq_err *err)
{
    struct rig r;
    struct sq_config built = config_for(config, int8, b->n_layers);
    if (b->vocab)
        built.vocab = SQ_MIN(built.vocab, b->vocab);
    double unused;
    int rc = rig_init(&r, b, &built, err);
    for (int i = 0; i < b->n_samples && !rc; i++) {
        struct sq_batch batch = stage_batch(&r, &b->stages[0]);
        rc = step(&r, &batch, &unused, err);
    }
    rig_done(&r);
    return rc;
}

int sq_bench_choices(const struct sq_stage_bench *b, const struct sq_config *config,
                     const struct sq_gpu_module *m, sq_gpu_choice_fn *each, void *ctx,
                     struct sq_err *err)
{
    struct rig r;
    struct sq_config built = config_for(config, true, 1);
    int rc = rig_init(&r, b, &built, err);
    if (!rc)
        m->choices(r.be, each, ctx);
    rig_done(&r);
    return rc;
}
