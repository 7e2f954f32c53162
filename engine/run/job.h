/* One sequence: its tokens, where they stand in the cache, and what it was promised. Made by submit
 * (any thread), then owned by the engine thread; only struct sq_job_inbox is shared.
 *
 *   NEW --> WAITING --admitted--> RUNNING --removed--> DONE
 *              ^------preempted------'
 *
 * RUNNING without credit is parked: it keeps its blocks and is not planned. Preempted: the blocks
 * are given back, the tokens stay, and the cache is computed again later. */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/base/list.h"
#include "engine/engine.h"

enum sq_job_state { SQ_JOB_NEW, SQ_JOB_WAITING, SQ_JOB_RUNNING, SQ_JOB_DONE };

/* A job's two messages to the engine thread, preallocated so that neither can fail: it is there;
 * something about it changed. */
struct sq_job_msg {
    struct sq_node node; /* first */
    struct sq_job *job;
    bool is_new;
};

/* What other threads say about a job, collected until the engine thread reads it. */
struct sq_job_inbox {
    struct sq_job_msg added, changed;
    _Atomic bool changed_sent; /* `changed` is in the mailbox */
    _Atomic bool cancel;
    _Atomic int credit;
};

struct sq_job {
    struct sq_list link;      /* in the scheduler's waiting or running list */
    struct sq_job *hash_next; /* in the engine's registry */
    struct sq_job_inbox inbox;

    sq_req_id id;
    uint64_t seq; /* order of arrival, set by the scheduler */
    enum sq_job_state state;
    int credit; /* tokens it may still send */

    int32_t *ids; /* [n_prompt + max_tokens], owned: the prompt, then what was generated */
    int n_prompt, n_ids;
    struct sq_sampling sampling; /* stop_ids and bias owned */

    int32_t *blocks;          /* [max_blocks], owned; the first n_blocks are held */
    int n_blocks, max_blocks; /* max_blocks: its worst case */
    int n_cached;             /* tokens whose keys and values are in the cache */
    int n_counted; /* prompt tokens counted in the metrics: recomputing counts none twice */
    int n_preempted;

    uint64_t t_submit_ns, t_admitted_ns, t_token_ns; /* 0 = not yet */
    struct sq_event *last;                           /* its final event, owned until sent */
};

/* Copies all of r. NULL: no memory. r's numbers are checked by the caller. */
struct sq_job *sq_job_new(const struct sq_request *r);
struct sq_job *sq_job_free(struct sq_job *j);

/* KV blocks for n_tokens. */
int sq_job_blocks_for(int n_tokens);
/* Blocks a request may come to hold: the last token it generates is never written. */
int sq_job_worst_blocks(int n_prompt, int max_tokens);

static inline int sq_job_n_generated(const struct sq_job *j)
{
    return j->n_ids - j->n_prompt;
}

/* Takes a sampled token and one unit of credit. */
void sq_job_append(struct sq_job *j, int32_t token);
