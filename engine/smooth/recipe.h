/* From a float checkpoint to its smoothed, quantised twin, in memory: calibrate, choose factors,
 * fold, verify, quantise. The result is a stack of sources that `quantize` writes to disk and
 * `eval` loads at once. One thread. */
#pragma once

#include "engine/model/checkpoint.h"
#include "engine/smooth/calibrate.h"
#include "engine/smooth/fold.h"
#include "engine/smooth/progress.h"
#include "engine/smooth/quant_source.h"

#define SQ_CALIBRATION_TOKENS 512 /* of a passage, at most */

/* How far the smoothed float model's logits may be from the original's, relative to their range.
 * Factors are powers of two, so that the two agree to the last bit unless a value leaves the
 * normal range of f32; what is left is room for such values only. */
#define SQ_FOLD_BOUND 1e-6

struct sq_recipe {
    double alpha; /* 0..1 */
    enum sq_fold_set folds;
    bool per_tensor; /* weights: one scale per tensor, else per output channel */
    bool dynamic;    /* activations: per token at run time (O1), else static per tensor (O3) */
    bool keep_first; /* the first token of a passage counts in the statistics, too */
    const char *calibration; /* text file; NULL = calibration.txt in the model's directory */
    int max_passages;
};

struct sq_smoothed {
    struct sq_config config;  /* the directory's, with the scheme of the recipe */
    struct sq_source *source; /* the quantised model; borrows the directory */
    struct sq_smoothing *smoothing;
    struct sq_stats *stats;
    int n_cut;                /* passages cut at the limit */
    double verify_diff;       /* largest difference of a logit, relative to the logits' range */
    int n_verified;           /* positions whose logits were compared; 0 = nothing was folded */
    struct sq_source *folded; /* below source */
    struct sq_steps steps;
};

/* Errors: -SQ_E_NOTSUP (already quantised), -SQ_E_NOTFOUND (no calibration text), -SQ_E_STATE (a
 * fold changed the model), -SQ_E_INTR, and those of loading and running. */
int sq_smoothed_make(struct sq_model_dir *dir, struct sq_backend *be, const struct sq_recipe *r,
                     const struct sq_progress *progress, struct sq_smoothed **ret,
                     struct sq_err *err) SQ_CHECKED;
struct sq_smoothed *sq_smoothed_free(struct sq_smoothed *s);
