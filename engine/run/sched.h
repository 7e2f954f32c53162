/* What runs in the next step. Pure: no clock, no thread, no device; one owner.
 *
 * Continuous batching: every running sequence that needs one row gets it, then chunks of prompts
 * fill the step up to max_step_tokens, then waiting sequences are admitted in order of arrival.
 * Admission takes the blocks of all tokens known so far, so that only decoding grows.
 *
 * Why it always goes on. Older means earlier arrival. A sequence that needs a block while none is
 * free takes those of the youngest running sequence behind it, which goes back to waiting. So the
 * oldest runnable sequence is never preempted; it may preempt everything else but the reserved, and
 * its worst case fits the pool (the engine refuses other requests). A sequence preempted
 * SQ_PREEMPT_MAX times comes back only when its worst case is free, and holds it: reserved, it is
 * no victim any more and needs nothing to finish. So preemptions are bounded, and a step is empty
 * only if every sequence that holds blocks waits for its client's credit.
 *
 * Parked sequences (no credit) keep their blocks, but count neither as running at once nor as
 * older: for the oldest runnable sequence, or for an admission when nothing else can run, they are
 * preempted, too. */
#pragma once

#include <stdint.h>

#include "engine/run/job.h"
#include "engine/run/kvpool.h"

#define SQ_PREEMPT_MAX 3 /* preemptions of one sequence at most */

struct sq_sched_options {
    int max_sequences;   /* per step */
    int max_step_tokens; /* rows per step */
    int max_chunk;       /* rows of one sequence per step; 0 = no bound */
};

struct sq_plan_seq {
    struct sq_job *job; /* rows [job->n_cached, job->n_cached + n_rows) of its ids */
    int n_rows;
    bool out; /* the last row's logits are wanted */
};

struct sq_plan {
    struct sq_plan_seq *seqs; /* [n_seqs] */
    int n_seqs, n_rows, n_out;
};

struct sq_sched;

struct sq_sched *sq_sched_new(const struct sq_sched_options *o,
                              struct sq_kvpool *pool); /* pool borrowed. NULL: no memory */
struct sq_sched *sq_sched_free(struct sq_sched *s);    /* asserts that no job is left */

/* The job's worst case fits the pool (asserted). Jobs are borrowed until removed. */
void sq_sched_add(struct sq_sched *s, struct sq_job *j);
void sq_sched_credit(struct sq_sched *s, struct sq_job *j, int n_tokens); /* saturates */
/* Finished, cancelled or failed: forgets it at once and gives its blocks back. Never between plan
 * and ran. */
void sq_sched_remove(struct sq_sched *s, struct sq_job *j);

/* The next step; n_seqs == 0: nothing can run until something is added or credited. Valid until the
 * next call. */
const struct sq_plan *sq_sched_plan(struct sq_sched *s, uint64_t now_ns);
/* The planned rows are in the cache now. Sampled tokens are appended after this. */
void sq_sched_ran(struct sq_sched *s);

struct sq_sched_stats {
    int n_running, n_waiting; /* running includes the parked */
    int64_t waiting_tokens;   /* prompt tokens of waiting sequences */
    uint64_t n_preemptions;
};
struct sq_sched_stats sq_sched_stats(const struct sq_sched *s);
/* A job that is still there, running ones first, or NULL: to end them all. */
struct sq_job *sq_sched_any(const struct sq_sched *s);
