/* Counters, gauges and histograms of the process, as one table of atomics; any thread may update. api/ renders them.
 * One of the two pieces of process-wide state of the program (the other is the log sink). */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum sq_metric {
#define C(id, family, labels, help) SQ_M_##id,
#define G(id, family, labels, help) SQ_M_##id,
#define H(id, family, edges, help)
#include "engine/base/metrics.def"
#undef C
#undef G
#undef H
    SQ_M_MAX
};

enum sq_histogram {
#define C(id, family, labels, help)
#define G(id, family, labels, help)
#define H(id, family, edges, help) SQ_H_##id,
#include "engine/base/metrics.def"
#undef C
#undef G
#undef H
    SQ_H_MAX
};

void sq_metric_add(enum sq_metric m, uint64_t n);
void sq_metric_set(enum sq_metric m, double v); /* gauges */
void sq_metric_observe(enum sq_histogram h, double v);

double sq_metric_get(enum sq_metric m);
/* Back to zero, for tests. */
void sq_metrics_reset(void);

/* Rendering: calls put for every sample line's parts, families together and in table order. */
struct sq_metric_row {
    const char *family, *labels, *help; /* help is "" on the later rows of a family */
    char type;                          /* 'c', 'g' */
    double value;
};
struct sq_metric_row sq_metric_row(enum sq_metric m);

struct sq_histogram_row {
    const char *family, *help;
    const double *edges; /* [n_edges], ascending, without +Inf */
    size_t n_edges;
    uint64_t counts[40]; /* [n_edges + 1], not cumulative, last = above the highest edge */
    double sum;
};
void sq_histogram_row(enum sq_histogram h, struct sq_histogram_row *ret);
