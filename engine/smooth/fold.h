/* Smoothing: factors per channel, and the source that applies them.
 *
 * A fold is exact: the outputs of `from` are divided by s, channel by channel, and the matching
 * input columns of `to` multiplied. With X the input of `to` and W its weights, s_j =
 * max|X_j|^alpha / max|W_j|^(1 - alpha), both maxima clamped at 1e-5, W over all matrices that
 * share the input (SmoothQuant, eq. 4). Each s_j is then rounded to a power of two: the smoothed
 * model's floats are the original's with other exponents, so it gives the same logits bit for bit
 * and any wrong fold shows.
 *
 * Where several query heads read one value head, the inputs of `to` that come from one output of
 * `from` have one factor, by the largest of their maxima.
 *
 * A fold between two linears also multiplies rows of `from` by 1/s. With one weight scale per row
 * that costs nothing; with one per tensor a small s would blow up the range of the whole tensor,
 * so there such folds only ever shrink rows: s is at least its geometric mean.
 *
 * Which folds a family has is a table (engine/model/family.h). One thread at a time. */
#pragma once

#include "engine/model/config.h"
#include "engine/model/source.h"
#include "engine/smooth/calibrate.h"

enum sq_fold_set { SQ_FOLDS_NONE, SQ_FOLDS_PAPER, SQ_FOLDS_ALL };

enum sq_fold_state {
    SQ_FOLD_APPLIED,
    SQ_FOLD_NOT_ASKED, /* not in the set asked for */
    SQ_FOLD_POST_NORM, /* the norm's output is the residual, too */
    SQ_FOLD_NO_AFFINE, /* the norm has no weight to fold into */
};

struct sq_smoothing {
    const struct sq_family *family;
    int n_layers;
    /* [n_layers * family->n_folds] factors of `from`'s outputs, and the same as the inputs of `to`
     * see them (its own array only where query heads share a value head); NULL where not applied */
    float **s, **s_in;
    enum sq_fold_state *states; /* [family->n_folds] */
    float min_s, max_s;         /* over all; 1 if there are none */
};

/* Chooses the factors; reads the weights of src once. per_tensor: how the weights will be
 * quantised. Errors: the source's, -SQ_E_NOMEM. */
int sq_smoothing_make(struct sq_source *src, const struct sq_config *config, const char *prefix,
                      const struct sq_stats *stats, double alpha, enum sq_fold_set set,
                      bool per_tensor, struct sq_smoothing **ret, struct sq_err *err) SQ_CHECKED;
struct sq_smoothing *sq_smoothing_free(struct sq_smoothing *m);

/* s of the fold whose output side is `from` in this layer, or NULL. */
const float *sq_smoothing_out(const struct sq_smoothing *m, enum sq_role from, int layer);
/* s of the fold whose input side is `to` in this layer, or NULL. */
const float *sq_smoothing_in(const struct sq_smoothing *m, enum sq_role to, int layer);

/* "self_attn_layer_norm -> q_proj, k_proj, v_proj" for messages. */
void sq_fold_describe(const struct sq_family *f, int i_fold, char *buf, size_t n_buf);
const char *sq_fold_set_text(enum sq_fold_set s); /* "none", "paper", "all" */
const char *sq_fold_state_text(enum sq_fold_state s);

/* The folded model as a source over `under`: tensors that a fold touches come as F32, all others
 * as they are. Borrows under and m. */
int sq_fold_source_open(struct sq_source *under, const struct sq_smoothing *m, const char *prefix,
                        struct sq_source **ret, struct sq_err *err) SQ_CHECKED;
