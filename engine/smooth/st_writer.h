/* Writes safetensors files: a padded header, then the tensors' bytes in the header's order,
 * streamed from a source in small blocks. Within a file wider types come first, so that every
 * tensor is aligned to its type. One thread. */
#pragma once

#include <stdint.h>

#include "engine/model/source.h"
#include "engine/smooth/outdir.h"
#include "engine/smooth/progress.h"

struct sq_out_tensor {
    const char *name; /* borrowed; [A-Za-z0-9._-] only */
    struct sq_tensor_info info;
    uint64_t n_bytes;
};

/* Sorts tensors[n] and writes them. metadata: [n_meta] pairs key, value of plain ASCII without
 * quotes or backslashes. *done_bytes counts on over several files for progress against
 * total_bytes. */
struct sq_write_job {
    struct sq_outdir *out;
    struct sq_source *source;
    const char *(*metadata)[2];
    int n_meta;
    const struct sq_progress *progress;
    uint64_t done_bytes, total_bytes;
};
int sq_st_write(struct sq_write_job *job, const char *file, struct sq_out_tensor *tensors, size_t n,
                struct sq_err *err) SQ_CHECKED;
