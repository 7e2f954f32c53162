/* The decoder, written once for all families: a list of backend calls. A runner owns the activation
 * buffers and the KV cache of one model. One thread at a time. No allocation after new. */
#pragma once

#include "engine/backend.h"
#include "engine/base/err.h"
#include "engine/model/model.h"

/* Where calibration looks (float models only). Inputs are per channel, outputs of the fused
 * projection too. */
enum sq_site {
    SQ_SITE_QKV_IN,  /* [hidden] */
    SQ_SITE_O_IN,    /* [n_heads * D] */
    SQ_SITE_UP_IN,   /* [hidden] */
    SQ_SITE_DOWN_IN, /* [ffn] */
    SQ_SITE_QKV_OUT, /* [(n_heads + 2 n_kv_heads) * D]: q, k, v as they go to the cache */
    SQ_N_SITES
};

struct sq_observer {
    /* [n_layers * SQ_N_SITES] arrays of the sizes above, index layer * SQ_N_SITES + site; they grow
     * in place */
    float **absmax;
    /* leave the row at position 0 out: the first token's massive activations would set every
     * step */
    bool skip_first;
};

struct sq_runner;
struct sq_runner_options {
    int max_rows; /* tokens per step */
    int max_out;  /* rows that go through the head per step */
    int n_kv_blocks;
};

int sq_runner_new(struct sq_model *m, const struct sq_runner_options *o, struct sq_runner **ret,
                  struct sq_err *err) SQ_CHECKED;
struct sq_runner *sq_runner_free(struct sq_runner *r);
/* Bytes of activations and KV cache that new would take. */
void sq_runner_bytes(struct sq_model *m, const struct sq_runner_options *o, size_t *ret_activations,
                     size_t *ret_kv);

/* Runs one step. b within the runner's maxima (asserted). obs may be NULL. Errors: -SQ_E_DEVICE. */
int sq_forward(struct sq_runner *r, const struct sq_batch *b, const struct sq_observer *obs,
               struct sq_err *err) SQ_CHECKED;
/* Results of the last step: dense [n_out, vocab] f32 on the host, valid until the next step. */
int sq_runner_logits(struct sq_runner *r, int n_out, const float **ret,
                     struct sq_err *err) SQ_CHECKED;
/* First maximum of each row, -1 where a row holds a NaN. */
int sq_runner_argmax(struct sq_runner *r, int n_out, int32_t *ids, struct sq_err *err) SQ_CHECKED;
