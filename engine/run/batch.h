/* The rows of one step, laid out as the backend wants them. Allocated once for the largest step. */
#pragma once

#include "engine/backend.h"
#include "engine/base/err.h"
#include "engine/run/sched.h"

struct sq_batch_space {
    struct sq_batch b; /* points into the arrays below; valid until the next build */
    int max_rows, max_seqs;
    int32_t *ids, *pos, *out_rows; /* [max_rows], [max_rows], [max_seqs]; owned */
    struct sq_batch_seq *seqs;     /* [max_seqs], owned; block tables are the jobs' own */
};

int sq_batch_init(struct sq_batch_space *s, int max_rows, int max_seqs,
                  struct sq_err *err) SQ_CHECKED;
void sq_batch_done(struct sq_batch_space *s); /* fine on a zeroed one */

/* plan has at least one row and at most the maxima (asserted). The jobs must not change until the
 * step is over. */
void sq_batch_build(struct sq_batch_space *s, const struct sq_plan *plan);
