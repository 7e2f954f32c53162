#include "daemon/bench_steps.h"

#include "daemon/bench_rig.h"
#include "engine/base/check.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/cpu/roof.h"

#define PREFILL 128
#define MAX_BATCH 32
#define CONTEXT 128 /* decode starts here */
#define DECODE_SPAN 32
#define DECODE_STRIDE                                                                              \
    8 /* a sample is the mean over positions 128, 136, ... 152: the whole span would take minutes */
#define MAX_SAMPLES 64

/* One prompt of PREFILL tokens; its last row goes through the head. */
static int prefill(struct sq_bench_rig *r, double *ret_s, struct sq_err *err)
{
    struct sq_batch b = sq_bench_prompt(r, 0, 0, PREFILL);
    return sq_bench_step(r, &b, ret_s, err);
}

/* Mean step time over the span. What the cache holds does not change the time. */
static int decode(struct sq_bench_rig *r, int n, double *ret_s, struct sq_err *err)
{
    double sum = 0;
    int steps = 0, rc = 0;
    for (int pos = CONTEXT; pos < CONTEXT + DECODE_SPAN && !rc; pos += DECODE_STRIDE, steps++) {
        double s;
        struct sq_batch b = sq_bench_decode(r, n, pos);
        rc = sq_bench_step(r, &b, &s, err);
        sum += rc ? 0 : s;
    }
    *ret_s = sum / steps;
    return rc;
}

static int measure(struct sq_bench_rig *r, struct sq_roof_probe *probe,
                   const struct sq_step_options *o, int batch, struct sq_step_figure *f,
                   struct sq_err *err)
{
    const struct sq_config *c = o->config;
    int rows = batch ? batch : PREFILL, n = SQ_MIN(o->n_samples, MAX_SAMPLES);
    const double params = sq_bench_layer_params(c), head_params = (double)c->vocab * c->embed_dim;
    double layers = 2 * params * rows, head = 2 * head_params;
    double kv_bytes = 2.0 * c->n_layers * c->n_kv_heads * c->head_dim * (CONTEXT + DECODE_SPAN / 2);
    double times[MAX_SAMPLES], shares[MAX_SAMPLES], all[MAX_SAMPLES], peaks[MAX_SAMPLES];
    f->of_bandwidth = batch == 1;
    f->threads = o->threads;
    (void)snprintf(f->shape, sizeof f->shape, "%s", o->name);
    (void)snprintf(f->stage, sizeof f->stage, batch ? "decode B=%d" : "prefill %d", rows);
    for (int i = -1; i < n; i++) { /* the first round warms up and is not counted */
        double peak = 1e9 * (f->of_bandwidth ? sq_roof_read_bw(probe) : sq_roof_int8_peak(probe)),
               s;
        int rc = batch ? decode(r, batch, &s, err) : prefill(r, &s, err);
        if (rc)
            return rc;
        if (i < 0)
            continue;
        double work = f->of_bandwidth ? params + head_params + kv_bytes : layers + head;
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

int sq_bench_steps(const struct sq_step_options *o, struct sq_step_figure ret[SQ_N_STEP_FIGURES],
                   struct sq_err *err)
{
    static const int batches[SQ_N_STEP_FIGURES] = {0, 1, 16, 32};
    struct sq_cpu_options cpu = {.n_threads = o->threads, .variant = o->variant};
    struct sq_bench_rig r;
    struct sq_roof_probe *probe = NULL;
    struct sq_source *src = NULL;
    int rc = sq_bench_rig_init(&r, o->config, PREFILL, MAX_BATCH, CONTEXT + DECODE_SPAN, err);
    if (rc)
        return rc;
    rc = sq_cpu_open(&cpu, &r.be, err);
    if (!rc)
        rc = sq_random_source_open(o->config, 1, &src, err);
    if (!rc)
        rc = sq_bench_rig_build(&r, src, o->config, SQ_HEAD_INT8, err);
    if (!rc)
        rc = sq_roof_probe_new(r.be, &probe, err);
    for (int i = 0; !rc && i < SQ_N_STEP_FIGURES; i++)
        rc = measure(&r, probe, o, batches[i], &ret[i], err);
    sq_roof_probe_free(probe);
    sq_source_close(src);
    sq_bench_rig_done(&r);
    return rc;
}
