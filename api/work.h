/* Work on immutable inputs that is too long for the loop: parsing and tokenising of large bodies on libuv's worker threads. A job is a struct
 * with a sq_work first; run touches nothing but it. Everything else is called on the loop thread. */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "engine/base/list.h"

struct sq_api;
struct sq_exchange;
struct uv_loop_s;
struct uv_req_s;

struct sq_work {
    struct sq_list link; /* of the set, until it is over */
    struct sq_work_set *set;
    struct sq_exchange *x;          /* who waits; NULL once the client is gone */
    struct uv_req_s *req;           /* the loop's own part */
    void (*run)(struct sq_work *w); /* on a worker */
    void (*done)(struct sq_api *a,
                 struct sq_work *w); /* on the loop, only if x still waits; w is freed after it */
    void (*free)(struct sq_work *w); /* always the last call */
    bool ran;                        /* under the set's lock */
};

struct sq_work_set {
    struct uv_loop_s *loop;
    struct sq_api *a;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    struct sq_list works;
};
void sq_work_set_init(struct sq_work_set *s, struct uv_loop_s *loop, struct sq_api *a);
/* Waits for what is running on a worker; no `done` is called any more. */
void sq_work_set_done(struct sq_work_set *s);

/* Runs inline when it is small, else on a worker with x suspended. Takes w. Either way w's fields run, done and free are called as above. */
void sq_work_submit(struct sq_work_set *s, struct sq_work *w, struct sq_exchange *x, bool small);
