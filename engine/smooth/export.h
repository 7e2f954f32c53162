/* Writes a quantised model as an ordinary Hugging Face directory in compressed-tensors'
 * int-quantized format. One thread. */
#pragma once

#include <stdint.h>

#include "engine/model/checkpoint.h"
#include "engine/smooth/outdir.h"
#include "engine/smooth/progress.h"
#include "engine/smooth/recipe.h"

#define SQ_SHARD_BYTES                                                                             \
    ((uint64_t)4 << 30) /* of tensors in one file, unless one tensor alone is larger */

struct sq_export {
    const struct sq_model_dir *dir;     /* where config.json, tokenizer and the rest come from */
    const struct sq_smoothed *smoothed; /* config and tensors */
    const struct sq_recipe *recipe;     /* noted in the files' metadata */
    uint64_t shard_bytes;               /* 0 = SQ_SHARD_BYTES */
    const struct sq_progress *progress;
};

/* Writes everything into the open output directory; the caller commits it. *ret_bytes: of all
 * tensors. Errors: -SQ_E_IO, -SQ_E_NOMEM, -SQ_E_INTR, -SQ_E_FORMAT, -SQ_E_LIMIT (more than 1,024
 * shards). */
int sq_export(const struct sq_export *x, struct sq_outdir *out, uint64_t *ret_bytes,
              struct sq_err *err) SQ_CHECKED;
