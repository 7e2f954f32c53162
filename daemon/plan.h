/* What a start takes of memory, known before anything is taken: `sqd serve --plan`, and the check before a GPU is filled. */
#pragma once

#include "daemon/load.h"

/* Bytes as asked from the device's allocator (GPU), or as counted by the backend (CPU). */
struct sq_memory {
    size_t weights, kv, activations, workspace, total;
    size_t held;     /* what the device gives for total, with its rounding */
    size_t n_allocs; /* 0: not counted */
    int kv_blocks, max_context;
};
/* Of a model that is loaded, or planned. */
void sq_loaded_memory(const struct sq_loaded *l, struct sq_memory *ret);

/* Size of the KV cache on the GPU that `on` is open on, before anything is taken for the model: as configured, or what is left beside the rest.
 * -SQ_E_LIMIT where that is too little; the message names the settings that would fit. */
int sq_plan_kv(const struct sq_settings *s, const struct sq_chosen_backend *on,
               uint64_t *ret_kv_bytes, struct sq_err *err) SQ_CHECKED;

/* Prints the plan to stdout; the exit code of the command. */
int sq_plan_print(const struct sq_settings *s, bool json);
