/* Weights quantised on the fly, under the names they have on disk: for a linear P of a layer
 *   P.weight I8 [out,in], P.weight_scale F32 [out,1] or [1], and with static steps P.input_scale
 * F32 [1] and, for q, k and v,
 *   P.output_scale F32 [1].
 * Everything else comes from the source below as it is. Rounding: quant.h; a step is absmax / 127.
 * */
#pragma once

#include "engine/model/config.h"
#include "engine/model/source.h"
#include "engine/smooth/fold.h"

/* Static steps of the smoothed model, derived from the original's statistics: smoothing divides a
 * channel's range by its factor. q, k and v share their input step. */
struct sq_steps {
    float *in;  /* [n_layers * SQ_N_SITES], QKV_OUT unused */
    float *out; /* [n_layers * 3]: q, k, v */
};
int sq_steps_make(const struct sq_stats *stats, const struct sq_config *config,
                  const struct sq_smoothing *m, struct sq_steps *ret,
                  struct sq_err *err) SQ_CHECKED;
void sq_steps_done(struct sq_steps *s);

/* Reads all weights once for their scales. steps NULL = dynamic activations, else borrowed like
 * under. Errors: the source's, -SQ_E_NOMEM, -SQ_E_INTR, -SQ_E_FORMAT where a weight is not finite.
 * */
int sq_quant_source_open(struct sq_source *under, const struct sq_config *config,
                         const char *prefix, bool per_tensor, const struct sq_steps *steps,
                         const struct sq_progress *progress, struct sq_source **ret,
                         struct sq_err *err) SQ_CHECKED;
