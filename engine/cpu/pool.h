/* Fork-join over a fixed set of threads, made for many short regions in a row.
 *
 * A region is one call of sq_pool_run. Its items are handed out by an atomic counter, so a thread that comes late (or was
 * preempted) takes less work, and one that has not started by the time the items run out is not waited for. Between
 * step_begin and step_end the workers spin for the next region, for about 200 us, then yield, then sleep; outside they sleep.
 *
 * One thread owns the pool and calls everything here; it takes part in every region as thread 0. */
#pragma once

#include <stddef.h>

#include "engine/base/err.h"

struct sq_pool;

/* n_threads >= 1 counts the owner: 1 starts no thread. Errors: -SQ_E_NOMEM. */
int sq_pool_new(int n_threads, struct sq_pool **ret, struct sq_err *err) SQ_CHECKED;
void sq_pool_free(struct sq_pool *p); /* NULL is fine */
int sq_pool_n_threads(const struct sq_pool *p);

void sq_pool_step_begin(struct sq_pool *p);
void sq_pool_step_end(struct sq_pool *p);

/* Items [i0,i1), on thread 0 <= thread < n_threads. Pieces of a region run at the same time. */
typedef void sq_pool_fn(void *arg, size_t i0, size_t i1, int thread);

/* Runs fn over [0,n) in pieces of `grain` items (the last may be smaller); returns when all are done. */
void sq_pool_run(struct sq_pool *p, size_t n, size_t grain, sq_pool_fn *fn, void *arg);
