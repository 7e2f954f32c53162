#include "daemon/bench_steps.h"

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/cpu/roof.h"
#include "engine/model/model.h"
#include "engine/quant.h"
#include "engine/run/forward.h"

#define PREFILL 128
#define MAX_BATCH 32
#define CONTEXT 128 /* decode starts here */
#define DECODE_SPAN 32
#define DECODE_STRIDE                                                                              \
    8 /* a sample is the mean over positions 128, 136, ... 152: the whole span would take minutes */
#define SEQ_BLOCKS ((CONTEXT + DECODE_SPAN + SQ_KV_BLOCK - 1) / SQ_KV_BLOCK)
#define MAX_SAMPLES 64

struct rig {
    struct sq_model *model;
    struct sq_runner *runner;
    struct sq_roof_probe *probe;
    int32_t ids[PREFILL], pos[PREFILL], out_rows[MAX_BATCH];
    int32_t blocks[MAX_BATCH * SEQ_BLOCKS];
    struct sq_batch_seq seqs[MAX_BATCH];
};

static double layer_params(const struct sq_config *c)
{
    double qkv = (double)(c->n_heads + 2 * c->n_kv_heads) * c->head_dim * c->hidden;
    double o = (double)c->n_heads * c->head_dim * c->hidden;
    double ffn = (c->family->names[SQ_R_GATE] ? 3.0 : 2.0) * c->hidden * c->ffn;
    return c->n_layers * (qkv + o + ffn);
}

static double head_params(const struct sq_config *c)
{
    return (double)c->vocab * c->embed_dim;
}

static int run(struct rig *r, const struct sq_batch *b, double *ret_s, struct sq_err *err)
{
    int32_t ids[MAX_BATCH];
    uint64_t start = sq_now_ns();
    int rc = sq_forward(r->runner, b, NULL, err);
    if (!rc)
        rc = sq_runner_argmax(r->runner, b->n_out, ids, err);
    *ret_s = (double)(sq_now_ns() - start) / 1e9;
    return rc;
}

/* One prompt of PREFILL tokens; its last row goes through the head. */
static int prefill(struct rig *r, double *ret_s, struct sq_err *err)
{
    for (int i = 0; i < PREFILL; i++) {
        r->ids[i] = (i * 37 + 11) % r->model->config.vocab;
        r->pos[i] = i;
    }
    r->seqs[0] = (struct sq_batch_seq){.n_rows = PREFILL, .blocks = r->blocks};
    r->out_rows[0] = PREFILL - 1;
    struct sq_batch b = {.n_rows = PREFILL,
                         .n_seqs = 1,
                         .n_out = 1,
                         .ids = r->ids,
                         .pos = r->pos,
                         .seqs = r->seqs,
                         .out_rows = r->out_rows};
    return run(r, &b, ret_s, err);
}

static int decode_at(struct rig *r, int n, int pos, double *ret_s, struct sq_err *err)
{
    for (int i = 0; i < n; i++) {
        r->ids[i] = (i * 101 + pos) % r->model->config.vocab;
        r->pos[i] = pos;
        r->out_rows[i] = i;
        r->seqs[i] = (struct sq_batch_seq){
            .row0 = i, .n_rows = 1, .pos0 = pos, .blocks = r->blocks + i * SEQ_BLOCKS};
    }
    struct sq_batch b = {.n_rows = n,
                         .n_seqs = n,
                         .n_out = n,
                         .ids = r->ids,
                         .pos = r->pos,
                         .seqs = r->seqs,
                         .out_rows = r->out_rows};
    return run(r, &b, ret_s, err);
}

/* Mean step time over the span. What the cache holds does not change the time; every sequence has blocks of its own. */
static int decode(struct rig *r, int n, double *ret_s, struct sq_err *err)
{
    double sum = 0;
    int steps = 0, rc = 0;
    for (int pos = CONTEXT; pos < CONTEXT + DECODE_SPAN && !rc; pos += DECODE_STRIDE, steps++) {
        double s;
        rc = decode_at(r, n, pos, &s, err);
        sum += rc ? 0 : s;
    }
    *ret_s = sum / steps;
    return rc;
}

static int measure(struct rig *r, const struct sq_step_options *o, int batch,
                   struct sq_step_figure *f, struct sq_err *err)
{
    const struct sq_config *c = o->config;
    int rows = batch ? batch : PREFILL, n = SQ_MIN(o->n_samples, MAX_SAMPLES);
    double layers = 2 * layer_params(c) * rows, head = 2 * head_params(c);
    double kv_bytes = 2.0 * c->n_layers * c->n_kv_heads * c->head_dim * (CONTEXT + DECODE_SPAN / 2);
    double times[MAX_SAMPLES], shares[MAX_SAMPLES], all[MAX_SAMPLES], peaks[MAX_SAMPLES];
    f->of_bandwidth = batch == 1;
    f->threads = o->threads;
    (void)snprintf(f->shape, sizeof f->shape, "%s", o->name);
    (void)snprintf(f->stage, sizeof f->stage, batch ? "decode B=%d" : "prefill %d", rows);
    for (int i = -1; i < n; i++) { /* the first round warms up and is not counted */
        double peak = 1e9 *
                      (f->of_bandwidth ? sq_roof_read_bw(r->probe) : sq_roof_int8_peak(r->probe)),
               s;
        int rc = batch ? decode(r, batch, &s, err) : prefill(r, &s, err);
        if (rc)
            return rc;
        if (i < 0)
            continue;
        double work = f->of_bandwidth ? layer_params(c) + head_params(c) + kv_bytes : layers + head;
        double work_all = f->of_bandwidth || !batch ? work : layers + head * batch;
        times[i] = s;
        peaks[i] = peak;
        shares[i] = peak > 0 ? work / s / peak : 0; /* the plain C variant has no probe */
        all[i] = peak > 0 ? work_all / s / peak : 0;
    }
    double s = sq_roof_median(times, n);
    f->ms = 1000 * s;
    f->tokens_per_s = rows / s;
    f->share = sq_roof_median(shares, n);
    f->share_all_rows = sq_roof_median(all, n);
    f->peak = sq_roof_median(peaks, n);
    return 0;
}

static int build(struct rig *r, struct sq_source *src, struct sq_backend *be,
                 const struct sq_step_options *o, struct sq_err *err)
{
    struct sq_load_options lo = {.head = SQ_HEAD_INT8, .prefix = o->config->family->prefixes[0]};
    int rc = sq_model_load(src, o->config, be, &lo, &r->model, err);
    if (rc)
        return rc;
    struct sq_runner_options ro = {
        .max_rows = PREFILL, .max_out = MAX_BATCH, .n_kv_blocks = MAX_BATCH * SEQ_BLOCKS};
    rc = sq_runner_new(r->model, &ro, &r->runner, err);
    if (rc)
        return rc;
    for (int i = 0; i < MAX_BATCH * SEQ_BLOCKS; i++)
        r->blocks[i] = i;
    return sq_roof_probe_new(be, &r->probe, err);
}

int sq_bench_steps(const struct sq_step_options *o, struct sq_step_figure ret[SQ_N_STEP_FIGURES],
                   struct sq_err *err)
{
    static const int batches[SQ_N_STEP_FIGURES] = {0, 1, 16, 32};
    struct rig *r = sq_new(struct rig);
    struct sq_source *src = NULL;
    struct sq_backend *be = NULL;
    int rc = r ? 0 : sq_fail(err, SQ_E_NOMEM, "out of memory");
    if (!rc)
        rc = sq_cpu_open(&(struct sq_cpu_options){.n_threads = o->threads, .variant = o->variant},
                         &be, err);
    if (!rc)
        rc = sq_random_source_open(o->config, 1, &src, err);
    if (!rc)
        rc = build(r, src, be, o, err);
    for (int i = 0; !rc && i < SQ_N_STEP_FIGURES; i++)
        rc = measure(r, o, batches[i], &ret[i], err);
    if (r) {
        sq_roof_probe_free(r->probe);
        sq_runner_free(r->runner);
        sq_model_free(r->model);
    }
    sq_source_close(src);
    if (be)
        be->ops->close(be);
    sq_free(r);
    return rc;
}
