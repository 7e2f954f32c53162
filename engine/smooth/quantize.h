/* `sqd quantize`: a float checkpoint in, a smoothed W8A8 one out, or nothing. One thread. */
#pragma once

#include <stdint.h>

#include "engine/smooth/recipe.h"

struct sq_quantize_options {
    const char *model_dir, *out_dir;
    struct sq_recipe recipe;
    uint64_t shard_bytes; /* 0 = 4 GiB */
};

#define SQ_MAX_FOLDS 8
struct sq_quantize_report {
    int n_folds;
    struct {
        char what[128]; /* "self_attn_layer_norm -> q_proj, k_proj, v_proj" */
        enum sq_fold_state state;
    } folds[SQ_MAX_FOLDS];
    int n_passages, n_cut;
    size_t n_tokens;
    double min_s, max_s;
    double verify_diff; /* of the logits' range */
    int n_verified;
    uint64_t bytes; /* of all tensors written */
};

/* Errors: as sq_smoothed_make and sq_export; -SQ_E_STATE, too, where out_dir is taken. On failure
 * out_dir is as it was. */
int sq_quantize(const struct sq_quantize_options *o, struct sq_backend *be,
                const struct sq_progress *progress, struct sq_quantize_report *ret,
                struct sq_err *err) SQ_CHECKED;
