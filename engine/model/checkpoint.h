/* A model directory on disk as a source: model.safetensors, or shards with model.safetensors.index.json, plus sqd_scales.safetensors where it exists.
 * Rules S (safetensors) and X (index), each with its own message naming file, tensor and rule. Files are read with pread; nothing is mapped. */
#pragma once

#include <stdint.h>

#include "engine/model/config.h"
#include "engine/model/source.h"

struct sq_model_dir {
    int fd;     /* the directory; everything is opened beneath it */
    char *path; /* as given */
    struct sq_config config;
    struct sq_source *source;
    const char *prefix; /* the family's prefix that this checkpoint uses, "" if none */
    char note
        [256]; /* accepted, but worth a warning by the caller (rules C2, X5); "" if nothing is */
    uint64_t digest; /* over header bytes of all files, config and scales: for fingerprints */
};

/* Errors: -SQ_E_NOTFOUND (no such directory, or a file it must have is missing), -SQ_E_FORMAT, -SQ_E_NOTSUP, -SQ_E_IO, -SQ_E_LIMIT, -SQ_E_NOMEM. */
int sq_model_dir_open(const char *path, struct sq_model_dir **ret, struct sq_err *err) SQ_CHECKED;
struct sq_model_dir *sq_model_dir_close(struct sq_model_dir *d);
