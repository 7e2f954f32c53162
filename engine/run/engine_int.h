/* The engine's own parts, shared by engine.c (open to close, and the calls of other threads) and
 * step.c (the engine thread). */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "engine/engine.h"
#include "engine/model/model.h"
#include "engine/run/batch.h"
#include "engine/run/forward.h"
#include "engine/run/registry.h"
#include "engine/run/sample.h"
#include "engine/run/sched.h"

/* Events of the step under way, oldest first; they go out together. */
struct sq_chain {
    struct sq_node *first, **tail;
};

struct sq_engine {
    uint32_t magic;
    struct sq_engine_options o; /* max_context and kv_blocks resolved */
    struct sq_model *model;     /* borrowed */
    uint64_t kv_bytes;

    /* Shared. Lock order: lock, then a mailbox's own. */
    pthread_mutex_t lock; /* registry, and that a submit is decided and queued as one */
    struct sq_registry registry;
    struct sq_mbox inbox;  /* of struct sq_job_msg: new jobs, and jobs with news */
    struct sq_mbox outbox; /* of struct sq_event */
    _Atomic bool stop, draining, fault;
    char fault_text[256]; /* written once, before fault is set */
    /* What others may read at any time. Submit adds to the waiting ones, the engine thread corrects
     * them by difference. */
    _Atomic int n_waiting, n_running, kv_used;
    _Atomic int64_t waiting_tokens;
    _Atomic uint64_t n_steps, last_step_ns;
    _Atomic double tokens_per_s;

    /* The engine thread's. */
    pthread_t thread;
    bool is_started;
    struct sq_runner *runner;
    struct sq_kvpool *pool;
    struct sq_sched *sched;
    struct sq_sampler *sampler;
    struct sq_batch_space batch;
    int32_t *tokens;      /* [max_sequences] what the step sampled */
    struct sq_chain done; /* events not yet sent */
    int told_waiting;     /* the scheduler's figures when the shared ones were last corrected */
    int64_t told_waiting_tokens;
    uint64_t told_preemptions;
    double recent_rows, recent_s; /* decaying sums behind tokens_per_s */
};

#define SQ_ENGINE_MAGIC 0x5371656eu

/* The thread's body; arg is the engine. It returns once `stop` is set. */
void *sq_engine_main(void *arg);
/* Takes what is in the mailbox and ends every job with this finish; the events are queued, not
 * announced. After the thread. */
void sq_engine_end_all(struct sq_engine *e, enum sq_finish finish);
