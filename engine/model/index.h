/* model.safetensors.index.json: which shard holds which tensor. Rules X1 to X3; X4 and X5 need the shards, checkpoint.c has them. */
#pragma once

#include <stdint.h>

#include "engine/base/err.h"
#include "engine/base/mem.h"

struct sq_index_tensor {
    const char *name; /* in the arena */
    size_t shard;
};

struct sq_index {
    char **shards; /* [n_shards] file names in ascending order */
    size_t n_shards;
    struct sq_index_tensor *tensors; /* [n_tensors], by name */
    size_t n_tensors;
    int64_t total_size; /* metadata.total_size, -1 if absent */
    struct sq_arena text;
};

/* Errors: -SQ_E_NOTFOUND (no such file), -SQ_E_FORMAT, -SQ_E_LIMIT, -SQ_E_NOMEM, -SQ_E_IO. */
int sq_index_load(int dir_fd, const char *name, const char *dir_name, struct sq_index *ret,
                  struct sq_err *err) SQ_CHECKED;
int sq_index_parse(const char *json, size_t n_bytes, const char *file, struct sq_index *ret,
                   struct sq_err *err) SQ_CHECKED;
const struct sq_index_tensor *sq_index_find(const struct sq_index *index, const char *name);
void sq_index_done(struct sq_index *index);
