/* A model on a backend with the batches that benchmarks run on it, and their clock. */
#pragma once

#include <stdint.h>

#include "engine/model/model.h"
#include "engine/run/forward.h"

/* Every sequence has blocks of its own: sequence i those from i * seq_blocks on. */
struct sq_bench_rig {
    struct sq_backend *be; /* owned; the caller opens it between init and build */
    struct sq_model *model;
    struct sq_runner *runner;
    int max_rows, max_seqs, seq_blocks;
    int32_t *ids, *pos;        /* [max_rows], owned */
    int32_t *out_rows, *best;  /* [max_seqs], owned */
    int32_t *blocks;           /* [max_seqs * seq_blocks], owned */
    struct sq_batch_seq *seqs; /* [max_seqs], owned */
};

/* For steps of at most max_rows rows, and max_seqs sequences of max_tokens tokens. Zeroed is what done takes, too.
 * Errors: -SQ_E_LIMIT where c has fewer positions, -SQ_E_NOMEM. */
int sq_bench_rig_init(struct sq_bench_rig *r, const struct sq_config *c, int max_rows, int max_seqs,
                      int max_tokens, struct sq_err *err) SQ_CHECKED;
/* Loads c's weights from src (borrowed for this call) onto r->be and makes the runner. */
int sq_bench_rig_build(struct sq_bench_rig *r, struct sq_source *src, const struct sq_config *c,
                       enum sq_head_mode head, struct sq_err *err) SQ_CHECKED;
void sq_bench_rig_done(struct sq_bench_rig *r);

/* n rows of one sequence from pos0 on; the last one's logits are wanted. Batches borrow r, which holds one at a time. */
struct sq_batch sq_bench_prompt(struct sq_bench_rig *r, int seq, int pos0, int n);
/* One row of each of n sequences, at pos. */
struct sq_batch sq_bench_decode(struct sq_bench_rig *r, int n, int pos);
/* Runs a step; *ret_s is the time from the call to the sampled ids on the host. */
int sq_bench_step(struct sq_bench_rig *r, const struct sq_batch *b, double *ret_s,
                  struct sq_err *err) SQ_CHECKED;

/* Weights of all layers' matrices. */
double sq_bench_layer_params(const struct sq_config *c);
