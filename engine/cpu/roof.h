/* The roofline of this machine: what the INT8 kernels reach of the processor's own peaks.
 *
 * Absolute figures of a shared machine are worth little, so each sample of a kernel is paired with a probe that ran right before it
 * on the same threads, and a share is the median of the paired ratios: of the INT8 peak (multiply-accumulate on registers only)
 * for many rows, of the read bandwidth of the memory for few. Weights rotate through enough memory to come from DRAM. All cells are
 * measured in several passes, so that what disturbs the host for some seconds does not decide a cell. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/backend.h"
#include "engine/base/err.h"

#define SQ_ROOF_THREADS_MAX 8 /* entries of the list */

struct sq_roof_options {
    const char *variant;              /* NULL: the best one this processor runs */
    int threads[SQ_ROOF_THREADS_MAX]; /* counts to measure, ended by 0; all 0: 1 and 2 */
    bool quick;                       /* two shapes, one pass: some 3 seconds */
};

/* One kernel: y[m, n] from x[m, k] and w[n, k]; int8 out where n > k, else added to an f32 residual. */
struct sq_roof_cell {
    int threads, m;
    size_t k, n;
    bool by_bandwidth;  /* the share is of read bandwidth, else of the INT8 peak */
    double us;          /* median time of one call */
    double rate, probe; /* medians: GB/s of weights and of the probe, or GOP/s of both */
    double share, share_min,
        share_max; /* of the paired samples: median and extremes; 0 where the variant has no probe */
    int n_samples,
        n_quiet; /* and in how many of them nobody else ran on our processors; others are taken again, within limits */
};

/* Called for each cell when all are measured, in order; `arg` is the caller's. */
typedef void sq_roof_fn(void *arg, const struct sq_roof_cell *cell);

/* Runs everything, in at most two minutes on two cores, with about 0.6 GB of memory.
 * Errors: -SQ_E_NOTSUP (variant), -SQ_E_INVAL (threads), -SQ_E_NOMEM. */
int sq_roof_run(const struct sq_roof_options *o, sq_roof_fn *fn, void *arg,
                struct sq_err *err) SQ_CHECKED;

/* Probes for shares of whole steps. They use the threads of a CPU backend, between its steps. */
struct sq_roof_probe;
int sq_roof_probe_new(struct sq_backend *be, struct sq_roof_probe **ret,
                      struct sq_err *err) SQ_CHECKED; /* touches 256 MiB */
void sq_roof_probe_free(struct sq_roof_probe *p);
double sq_roof_int8_peak(struct sq_roof_probe *p); /* GOP/s now, in about 1 ms; 0 for ref */
double sq_roof_read_bw(struct sq_roof_probe *p);   /* GB/s now, in about 2 ms */

/* Median of n >= 1 samples, the mean of the two middle ones where n is even. Sorts v. */
double sq_roof_median(double *v, int n);
