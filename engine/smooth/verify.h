/* Does the smoothed float model still compute what the original did? One thread. */
#pragma once

#include "engine/smooth/calibrate.h"
#include "engine/smooth/fold.h"

/* Logits of the last positions of the first passages. */
struct sq_probe {
    const struct sq_passages *passages; /* borrowed */
    int n_rows;
    size_t vocab;
    float *logits; /* [n_rows, vocab] */
};

/* Runs the original. Errors: -SQ_E_NOMEM, -SQ_E_DEVICE. */
int sq_probe_take(struct sq_model *m, const struct sq_passages *p, struct sq_probe *ret,
                  struct sq_err *err) SQ_CHECKED;
void sq_probe_done(struct sq_probe *p);

/* Runs the smoothed model on the same passages. -SQ_E_STATE where logits differ by more than
 * bound, relative to their range, are not finite, or where an activation goes beyond what stats
 * and factors promise. *ret_diff is the largest relative difference. */
int sq_probe_compare(const struct sq_probe *p, struct sq_model *smoothed,
                     const struct sq_stats *stats, const struct sq_smoothing *s, bool skip_first,
                     double bound, double *ret_diff, struct sq_err *err) SQ_CHECKED;
