#include "engine/base/metrics.h"

#include <stdatomic.h>

#include "engine/base/check.h"

/* Edges follow what dashboards of other servers use, with finer steps where INT8 decode is faster than theirs. */
static const double edges_ttft[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                    1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
static const double edges_itl[] = {.001, .002, .003, .005, .0075, .01, .025, .05,
                                   .075, .1,   .15,  .2,   .3,    .4,  .5,   .75,
                                   1,    2.5,  5,    7.5,  10,    20,  40,   80};
static const double edges_e2e[] = {.05, .1, .3, .5, .8, 1,   1.5, 2,   2.5, 5,    10,  15,
                                   20,  30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double edges_queue[] = {.001, .01, .05, .1, .3, .5, .8, 1,  1.5, 2,
                                     2.5,  5,   10,  15, 20, 30, 40, 60, 120, 240};
static const double edges_tokens[] = {1,   2,   4,    8,    16,   32,   64,   128,
                                      256, 512, 1024, 2048, 4096, 8192, 16384};

struct scalar_info {
    const char *family, *labels, *help;
    char type;
};

static const struct scalar_info scalars[] = {
#define C(id, family, labels, help) {family, labels, help, 'c'},
#define G(id, family, labels, help) {family, labels, help, 'g'},
#define H(id, family, edges, help)
#include "engine/base/metrics.def"
#undef C
#undef G
#undef H
};

struct histogram_info {
    const char *family, *help;
    const double *edges;
    size_t n_edges;
};

static const struct histogram_info histograms[] = {
#define C(id, family, labels, help)
#define G(id, family, labels, help)
#define H(id, family, edges, help) {family, help, edges, SQ_ARRAY_LEN(edges)},
#include "engine/base/metrics.def"
#undef C
#undef G
#undef H
};

static _Atomic uint64_t counters[SQ_M_MAX];
static _Atomic double gauges[SQ_M_MAX];
static struct {
    _Atomic uint64_t counts[40];
    _Atomic double sum;
} hists[SQ_H_MAX];

void sq_metric_add(enum sq_metric m, uint64_t n)
{
    atomic_fetch_add_explicit(&counters[m], n, memory_order_relaxed);
}

void sq_metric_set(enum sq_metric m, double v)
{
    atomic_store_explicit(&gauges[m], v, memory_order_relaxed);
}

void sq_metric_observe(enum sq_histogram h, double v)
{
    const struct histogram_info *info = &histograms[h];
    size_t i = 0;
    while (i < info->n_edges && !(v <= info->edges[i]))
        i++;
    atomic_fetch_add_explicit(&hists[h].counts[i], 1, memory_order_relaxed);
    double old = atomic_load_explicit(&hists[h].sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&hists[h].sum, &old, old + v))
        ;
}

double sq_metric_get(enum sq_metric m)
{
    return scalars[m].type == 'c' ? (double)atomic_load(&counters[m]) : atomic_load(&gauges[m]);
}

void sq_metrics_reset(void)
{
    for (int i = 0; i < SQ_M_MAX; i++) {
        atomic_store(&counters[i], 0);
        atomic_store(&gauges[i], 0.0);
    }
    for (int i = 0; i < SQ_H_MAX; i++) {
        for (size_t j = 0; j < SQ_ARRAY_LEN(hists[i].counts); j++)
            atomic_store(&hists[i].counts[j], 0);
        atomic_store(&hists[i].sum, 0.0);
    }
}

struct sq_metric_row sq_metric_row(enum sq_metric m)
{
    const struct scalar_info *s = &scalars[m];
    return (struct sq_metric_row){s->family, s->labels, s->help, s->type, sq_metric_get(m)};
}

void sq_histogram_row(enum sq_histogram h, struct sq_histogram_row *ret)
{
    const struct histogram_info *info = &histograms[h];
    *ret = (struct sq_histogram_row){
        .family = info->family, .help = info->help, .edges = info->edges, .n_edges = info->n_edges};
    for (size_t i = 0; i <= info->n_edges; i++)
        ret->counts[i] = atomic_load(&hists[h].counts[i]);
    ret->sum = atomic_load(&hists[h].sum);
}
