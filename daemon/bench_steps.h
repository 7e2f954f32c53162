/* Whole engine steps as shares of the machine's own peaks: prefill and decode of a model shape, each sample paired with a live probe. */
#pragma once

#include <stdio.h>

#include "engine/base/err.h"
#include "engine/model/config.h"

struct sq_step_figure {
    char shape[64], stage[32]; /* "opt-125m", "prefill 128", "decode B=16" */
    int threads;
    double ms; /* median of the samples */
    double tokens_per_s;
    double share; /* of the INT8 peak; decode B=1: of read bandwidth. Median of paired shares */
    double
        share_all_rows; /* as share, but with the head's operations counted for every row of the batch instead of once */
    double peak; /* median of the probes: operations/s, or bytes/s for decode B=1 */
    bool of_bandwidth;
};

struct sq_step_options {
    const char *name; /* of the shape, for the figures */
    const struct sq_config *config;
    int threads;
    const char *variant; /* CPU kernels, NULL = best */
    int n_samples;       /* per figure */
};

#define SQ_N_STEP_FIGURES 4 /* prefill 128, decode B = 1, 16, 32 at context 128 to 160 */

/* Random W8A8 O3 weights with an int8 head; needs the memory of such a model. Errors: -SQ_E_LIMIT where it has fewer positions than the steps
 * reach, -SQ_E_NOTSUP (variant), -SQ_E_NOMEM. */
int sq_bench_steps(const struct sq_step_options *o, struct sq_step_figure ret[SQ_N_STEP_FIGURES],
                   struct sq_err *err) SQ_CHECKED;
