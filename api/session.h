/* A session: one valid request from its submission to the engine until its last token, its client's end or the server's. It has a choice
 * (and an engine job) per prompt and n. No pointer of a session ever enters the engine: jobs are 64-bit ids, found again in a table.
 *
 * Books: accepted once at the start; exactly one of stop, length, cancelled, failed at the end, or one of rejected. Loop thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/request.h"
#include "api/text.h"
#include "engine/engine.h"

struct sq_api;
struct sq_exchange;
struct sq_session;

enum sq_end { SQ_END_NONE, SQ_END_STOP, SQ_END_LENGTH };

struct sq_choice {
    struct sq_choice *next; /* in its bucket of the job table */
    sq_req_id job;          /* 0: none (any more) */
    struct sq_session *session;
    int index;
    struct sq_flow flow;
    struct sq_text text; /* unary: all of it; stream: scratch of one chunk */
    int n_generated;
    int owed; /* tokens that came since credit was last given */
    enum sq_end end;
};

struct sq_session {
    struct sq_api *api;
    struct sq_exchange *x; /* the session is its owner */
    struct sq_completion req;
    struct sq_choice *choices; /* [n_choices], index = prompt * n + i */
    int n_choices, n_live;
    int window;  /* credit of one choice of a stream */
    char id[48]; /* "cmpl-..." */
    int64_t created;
    uint64_t t_first_ns;
    struct sq_wbuf prefix, suffix; /* of every chunk of a stream */
};

/* Ids of running jobs to their choices. Zeroed memory is empty. */
struct sq_jobs {
    struct sq_choice **buckets; /* [n_buckets], a power of two */
    size_t n_buckets, n;
};
void sq_jobs_done(struct sq_jobs *j); /* asserts that it is empty */

/* Takes a valid, tokenised request (*req is emptied) and answers x: now with a refusal, or as tokens come. */
void sq_session_start(struct sq_api *a, struct sq_exchange *x, struct sq_completion *req);
/* A valid request that cannot be run in the server's state. */
void sq_session_reject(struct sq_api *a, struct sq_exchange *x, const struct sq_fault *f);
void sq_session_event(struct sq_api *a, const struct sq_event *ev);
/* Ends a running session with a fault: an error event, or the error's status. */
void sq_session_fail(struct sq_session *s, const struct sq_fault *f);
