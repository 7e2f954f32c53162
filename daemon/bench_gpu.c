#include "daemon/bench_gpu.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "daemon/bench_block.h"
#include "daemon/bench_rig.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/cpu/roof.h"

#define WARM_UP                                                                                    \
    3 /* steps before the first sample: a device may record a step before it replays it */
#define MAX_SAMPLES 64

bool sq_stage_parse(const char *s, struct sq_stage *ret)
{
    char copy[64];
    int64_t n, context = 0;
    if ((size_t)snprintf(copy, sizeof copy, "%s", s) >= sizeof copy)
        return false;
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
    double params = sq_bench_layer_params(c), head = (double)c->vocab * c->embed_dim;
    double n = s->n,
           keys = s->decode ? n * (s->context + 1) : n * (n + 1) / 2; /* row and key pairs */
    double cells = s->decode ? keys : n; /* cells of the cache that are read or written */
    double kv = 2.0 * c->n_kv_heads * c->head_dim * (int8 ? 1 : 4);
    double outs = s->decode ? n : 1;
    return (struct sq_stage_work){
        .bytes = (params + head) * (int8 ? 1 : 2) + c->n_layers * kv * cells,
        .ops =
            2 * params * n + 4.0 * c->n_layers * c->n_heads * c->head_dim * keys + 2 * head * outs};
}

/* --- one build of a model --- */

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

static int load_random(struct sq_bench_rig *r, const struct sq_config *c, struct sq_err *err)
{
    struct sq_source *inner = NULL, *src = NULL;
    int rc = sq_random_source_open(c, 1, &inner, err);
    if (!rc)
        rc = sq_block_source_open(inner, &src, err);
    if (!rc)
        rc = sq_bench_rig_build(r, src, c, SQ_HEAD_KEEP, err);
    sq_source_close(src);
    sq_source_close(inner);
    return rc;
}

/* As large as the largest of b's stages. */
static int rig_open(struct sq_bench_rig *r, const struct sq_stage_bench *b,
                    const struct sq_config *c, struct sq_err *err)
{
    int rows = 1, seqs = 1, tokens = 1;
    for (int i = 0; i < b->n_stages; i++) {
        const struct sq_stage *s = &b->stages[i];
        rows = SQ_MAX(rows, s->n);
        seqs = SQ_MAX(seqs, s->decode ? s->n : 1);
        tokens = SQ_MAX(tokens, s->decode ? s->context + 1 : s->n);
    }
    int rc = sq_bench_rig_init(r, c, rows, seqs, tokens, err);
    if (rc)
        return rc;
    rc = b->open(b->ctx, &r->be, err);
    if (!rc)
        rc = load_random(r, c, err);
    if (rc)
        sq_bench_rig_done(r);
    return rc;
}

/* --- steps --- */

static int fill_cache(struct sq_bench_rig *r, const struct sq_stage *s, struct sq_err *err)
{
    int rc = 0;
    for (int seq = 0; seq < s->n && !rc; seq++)
        for (int pos = 0; pos < s->context && !rc; pos += r->max_rows) {
            double unused;
            struct sq_batch b = sq_bench_prompt(r, seq, pos, SQ_MIN(r->max_rows, s->context - pos));
            rc = sq_bench_step(r, &b, &unused, err);
        }
    return rc;
}

static struct sq_batch stage_batch(struct sq_bench_rig *r, const struct sq_stage *s)
{
    return s->decode ? sq_bench_decode(r, s->n, s->context) : sq_bench_prompt(r, 0, 0, s->n);
}

/* Median time of a stage's step. */
static int measure(struct sq_bench_rig *r, const struct sq_stage_bench *b, const struct sq_stage *s,
                   double *ret_s, struct sq_err *err)
{
    double times[MAX_SAMPLES], unused;
    const int n = SQ_MIN(b->n_samples, MAX_SAMPLES);
    int rc = s->decode && b->fill_cache ? fill_cache(r, s, err) : 0;
    struct sq_batch batch = stage_batch(r, s);
    for (int i = 0; i < WARM_UP && !rc; i++)
        rc = sq_bench_step(r, &batch, &unused, err);
    for (int i = 0; i < n && !rc; i++)
        rc = sq_bench_step(r, &batch, &times[i], err);
    if (rc)
        return rc;
    *ret_s = sq_roof_median(times, n);
    return 0;
}

static int measure_all(const struct sq_stage_bench *b, const struct sq_config *c, bool int8,
                       int n_layers, double *ret_s, struct sq_err *err)
{
    struct sq_bench_rig r;
    struct sq_config built = config_for(c, int8, n_layers);
    int rc = rig_open(&r, b, &built, err);
    for (int i = 0; i < b->n_stages && !rc; i++)
        rc = measure(&r, b, &b->stages[i], &ret_s[i], err);
    sq_bench_rig_done(&r);
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
    struct sq_bench_rig r;
    struct sq_config built = config_for(config, int8, b->n_layers);
    if (b->vocab)
        built.vocab = SQ_MIN(built.vocab, b->vocab);
    double unused;
    int rc = rig_open(&r, b, &built, err);
    for (int i = 0; i < b->n_samples && !rc; i++) {
        struct sq_batch batch = stage_batch(&r, &b->stages[0]);
        rc = sq_bench_step(&r, &batch, &unused, err);
    }
    sq_bench_rig_done(&r);
    return rc;
}

int sq_bench_choices(const struct sq_stage_bench *b, const struct sq_config *config,
                     const struct sq_gpu_module *m, sq_gpu_choice_fn *each, void *ctx,
                     struct sq_err *err)
{
    struct sq_bench_rig r;
    struct sq_config built = config_for(config, true, 1);
    int rc = rig_open(&r, b, &built, err);
    if (!rc)
        m->choices(r.be, each, ctx);
    sq_bench_rig_done(&r);
    return rc;
}
