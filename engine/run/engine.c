/* The engine seam: open to close, and the calls that other threads make. What the engine thread
 * does is in step.c. */
#include <limits.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"
#include "engine/base/threads.h"
#include "engine/quant.h"
#include "engine/run/engine_int.h"

/* --- open and close --------------------------------------------------------------------------- */

static int check_options(struct sq_engine *e, struct sq_err *err)
{
    struct sq_engine_options *o = &e->o;
    int context = e->model->config.max_positions;
    if (o->max_sequences < 1 || o->max_step_tokens < 1 || o->max_chunk < 0 || o->kv_blocks < 0 ||
        o->max_queue < 0 || o->max_queue_tokens < 0)
        return sq_fail(err, SQ_E_INVAL,
                       "engine options: max_sequences %d and max_step_tokens %d must be at least "
                       "1, the bounds not negative",
                       o->max_sequences, o->max_step_tokens);
    o->max_context = o->max_context ? o->max_context : context;
    if (o->max_context < 1 || o->max_context > context)
        return sq_fail(err, SQ_E_LIMIT, "max_context is %d, the model has %d positions",
                       o->max_context, context);
    return 0;
}

/* Decides the size of the KV cache. It must hold one sequence of max_context, else a request could
 * wait for ever. */
static int size_kv(struct sq_engine *e, struct sq_err *err)
{
    struct sq_engine_options *o = &e->o;
    struct sq_runner_options one = {.max_rows = 1, .max_out = 1, .n_kv_blocks = 1};
    size_t acts, block;
    sq_runner_bytes(e->model, &one, &acts, &block);
    const int least = sq_job_blocks_for(o->max_context);
    uint64_t n = (uint64_t)o->kv_blocks;
    if (o->kv_blocks == 0) {
        n = (uint64_t)o->max_sequences * (uint64_t)least;
        if (o->kv_bytes)
            n = SQ_MIN(n, o->kv_bytes / block);
    }
    n = SQ_MIN(n, (uint64_t)INT_MAX / SQ_KV_BLOCK);
    if (n < (uint64_t)least)
        return sq_fail(err, SQ_E_LIMIT,
                       "the KV cache would hold %llu tokens, max_context is %d: it needs at least "
                       "%llu bytes (%d blocks), or a max_context of at most %llu",
                       (unsigned long long)n * SQ_KV_BLOCK, o->max_context,
                       (unsigned long long)least * block, least,
                       (unsigned long long)n * SQ_KV_BLOCK);
    o->kv_blocks = (int)n;
    e->kv_bytes = n * block;
    return 0;
}

static int make_parts(struct sq_engine *e, struct sq_err *err)
{
    struct sq_engine_options *o = &e->o;
    int max_seqs = SQ_MIN(o->max_sequences, o->max_step_tokens);
    struct sq_sched_options so = {.max_sequences = max_seqs,
                                  .max_step_tokens = o->max_step_tokens,
                                  .max_chunk = o->max_chunk};
    struct sq_runner_options ro = {
        .max_rows = o->max_step_tokens, .max_out = max_seqs, .n_kv_blocks = o->kv_blocks};
    int rc = sq_registry_init(&e->registry, (size_t)o->max_queue + (size_t)o->max_sequences, err);
    if (!rc)
        rc = sq_batch_init(&e->batch, o->max_step_tokens, max_seqs, err);
    if (!rc)
        rc = sq_runner_new(e->model, &ro, &e->runner, err);
    if (rc)
        return rc;
    e->pool = sq_kvpool_new(o->kv_blocks);
    e->sched = e->pool ? sq_sched_new(&so, e->pool) : NULL;
    e->sampler = sq_sampler_new(e->model->config.vocab);
    e->tokens = sq_new_array(int32_t, (size_t)max_seqs);
    if (!e->sched || !e->sampler || !e->tokens)
        return sq_fail(err, SQ_E_NOMEM, "no memory for the scheduler");
    return 0;
}

/* A small step of the real model, so that the first request meets pages that are there and threads
 * that have run. */
static int warm_up(struct sq_engine *e, struct sq_err *err)
{
    int n = SQ_MIN(SQ_MIN(e->o.max_step_tokens, 4), e->o.max_context);
    const float *logits;
    int32_t block = sq_kvpool_take(e->pool), last = n - 1;
    for (int i = 0; i < n; i++) {
        e->batch.ids[i] = 0;
        e->batch.pos[i] = i;
    }
    struct sq_batch_seq seq = {.n_rows = n, .blocks = &block};
    struct sq_batch b = {.n_rows = n,
                         .n_seqs = 1,
                         .n_out = 1,
                         .ids = e->batch.ids,
                         .pos = e->batch.pos,
                         .seqs = &seq,
                         .out_rows = &last};
    int rc = sq_forward(e->runner, &b, NULL, err);
    if (!rc)
        rc = sq_runner_argmax(e->runner, 1, e->tokens, err);
    if (!rc)
        rc = sq_runner_logits(e->runner, 1, &logits, err);
    sq_kvpool_put(e->pool, block);
    return rc;
}

static struct sq_engine *free_parts(struct sq_engine *e)
{
    sq_events_free(sq_engine_take_events(e));
    e->sched = sq_sched_free(e->sched);
    e->pool = sq_kvpool_free(e->pool);
    e->runner = sq_runner_free(e->runner);
    e->sampler = sq_sampler_free(e->sampler);
    sq_batch_done(&e->batch);
    sq_free(e->tokens);
    sq_registry_done(&e->registry);
    sq_mbox_done(&e->inbox);
    sq_mbox_done(&e->outbox);
    pthread_mutex_destroy(&e->lock);
    sq_free(e);
    return NULL;
}

int sq_engine_open(const struct sq_engine_options *o, struct sq_engine **ret, struct sq_err *err)
{
    struct sq_engine *e = sq_new(struct sq_engine);
    if (!e)
        return sq_fail(err, SQ_E_NOMEM, "no memory for the engine");
    SQ_MAGIC_SET(e, SQ_ENGINE_MAGIC);
    e->o = *o;
    e->model = o->model;
    SQ_ASSERT(pthread_mutex_init(&e->lock, NULL) == 0);
    sq_mbox_init(&e->inbox);
    sq_mbox_init(&e->outbox);
    int rc = check_options(e, err);
    if (!rc)
        rc = size_kv(e, err);
    if (!rc)
        rc = make_parts(e, err);
    if (!rc && !e->o.sizes_only)
        rc = warm_up(e, err);
    if (rc) {
        free_parts(e);
        return rc;
    }
    sq_metric_set(SQ_M_KV_BYTES, (double)e->kv_bytes);
    sq_metric_set(SQ_M_KV_FREE, e->o.kv_blocks);
    *ret = e;
    return 0;
}

int sq_engine_start(struct sq_engine *e, struct sq_err *err)
{
    SQ_MAGIC_CHECK(e, SQ_ENGINE_MAGIC);
    SQ_ASSERT(!e->is_started);
    int rc = sq_thread_start(&e->thread, "sqd-engine", sq_engine_main, e, err);
    e->is_started = rc == 0;
    return rc;
}

struct sq_engine *sq_engine_close(struct sq_engine *e)
{
    if (!e)
        return NULL;
    SQ_MAGIC_CHECK(e, SQ_ENGINE_MAGIC);
    atomic_store(&e->stop, true);
    sq_mbox_close(&e->inbox);
    if (e->is_started)
        pthread_join(e->thread, NULL);
    e->o.wake = NULL; /* nobody is there to come for the last events */
    sq_engine_end_all(e, SQ_FINISH_CANCELLED);
    return free_parts(e);
}

/* --- submit ----------------------------------------------------------------------------------- */

static int check_request(const struct sq_engine *e, const struct sq_request *r, struct sq_err *err)
{
    const int context = e->o.max_context, vocab = e->model->config.vocab;
    if (r->n_ids < 1 || r->sampling.max_tokens < 1 || r->n_ids > context - r->sampling.max_tokens)
        return sq_fail(err, SQ_E_LIMIT,
                       "a prompt of %d tokens and max_tokens %d: at least 1 each, and no more than "
                       "the context of %d",
                       r->n_ids, r->sampling.max_tokens, context);
    for (int i = 0; i < r->n_ids; i++)
        if (r->ids[i] < 0 || r->ids[i] >= vocab)
            return sq_fail(err, SQ_E_INVAL, "token %d of the prompt is %d, the vocabulary has %d",
                           i, (int)r->ids[i], vocab);
    return 0;
}

/* Room in the queue? What could start at once does not count against it. One request that alone has
 * more tokens than the queue may hold is taken by an empty queue, or it could never run. */
static int decide(struct sq_engine *e, int n, int64_t n_tokens)
{
    if (atomic_load(&e->fault))
        return SQ_ENGINE_FAULT;
    if (atomic_load(&e->draining) || atomic_load(&e->stop))
        return SQ_ENGINE_DRAINING;
    int waiting = atomic_load(&e->n_waiting);
    int slots = SQ_MAX(0, e->o.max_sequences - atomic_load(&e->n_running));
    if ((int64_t)waiting + n > (int64_t)e->o.max_queue + slots)
        return SQ_ENGINE_FULL;
    if (waiting > 0 && atomic_load(&e->waiting_tokens) + n_tokens > e->o.max_queue_tokens)
        return SQ_ENGINE_FULL;
    return 0;
}

static struct sq_job *job_of_msg(struct sq_node *n)
{
    return ((struct sq_job_msg *)n)->job;
}

static void free_chain(struct sq_node *n)
{
    while (n) {
        struct sq_job *j = job_of_msg(n);
        n = n->next;
        sq_job_free(j);
    }
}

/* Jobs for all n requests, chained by their first messages, or NULL. */
static struct sq_node *make_jobs(const struct sq_request *reqs, int n)
{
    struct sq_node *first = NULL, **tail = &first;
    uint64_t now_ns = sq_now_ns();
    for (int i = 0; i < n; i++) {
        struct sq_job *j = sq_job_new(&reqs[i]);
        if (!j) {
            free_chain(first);
            return NULL;
        }
        j->t_submit_ns = now_ns;
        *tail = &j->inbox.added.node;
        tail = &j->inbox.added.node.next;
    }
    return first;
}

/* With the lock held: from here on the requests are named, counted and queued. */
static void enqueue(struct sq_engine *e, struct sq_node *first, int n, int64_t n_tokens)
{
    for (struct sq_node *m = first; m; m = m->next)
        sq_registry_put(&e->registry, job_of_msg(m));
    atomic_fetch_add(&e->n_waiting, n);
    atomic_fetch_add(&e->waiting_tokens, n_tokens);
    SQ_ASSERT(sq_mbox_push_chain(&e->inbox, first));
}

int sq_engine_submit(struct sq_engine *e, const struct sq_request *reqs, int n, struct sq_err *err)
{
    SQ_MAGIC_CHECK(e, SQ_ENGINE_MAGIC);
    SQ_ASSERT(n > 0);
    int64_t n_tokens = 0;
    for (int i = 0; i < n; i++) {
        int rc = check_request(e, &reqs[i], err);
        if (rc)
            return rc;
        n_tokens += reqs[i].n_ids;
    }
    /* looked at twice: first so that a refusal costs nothing, then for good */
    int rc = decide(e, n, n_tokens);
    if (rc)
        return rc;
    struct sq_node *first = make_jobs(reqs, n);
    if (!first)
        return sq_fail(err, SQ_E_NOMEM, "no memory for %d requests", n);
    pthread_mutex_lock(&e->lock);
    rc = decide(e, n, n_tokens);
    if (!rc)
        enqueue(e, first, n, n_tokens);
    pthread_mutex_unlock(&e->lock);
    if (rc)
        free_chain(first);
    return rc;
}

/* --- the other calls -------------------------------------------------------------------------- */

/* With the lock held. At most one message about a job is under way; it carries all that was said
 * since the last. */
static void tell(struct sq_engine *e, struct sq_job *j)
{
    if (!atomic_exchange(&j->inbox.changed_sent, true) &&
        !sq_mbox_push(&e->inbox, &j->inbox.changed.node))
        atomic_store(&j->inbox.changed_sent, false); /* closing */
}

void sq_engine_cancel(struct sq_engine *e, sq_req_id id)
{
    pthread_mutex_lock(&e->lock);
    struct sq_job *j = sq_registry_find(&e->registry, id);
    if (j) {
        atomic_store(&j->inbox.cancel, true);
        tell(e, j);
    }
    pthread_mutex_unlock(&e->lock);
}

void sq_engine_credit(struct sq_engine *e, sq_req_id id, int n_tokens)
{
    SQ_ASSERT(n_tokens >= 0);
    pthread_mutex_lock(&e->lock);
    struct sq_job *j = sq_registry_find(&e->registry, id);
    if (j && n_tokens > 0) {
        int old = atomic_load(&j->inbox.credit);
        while (!atomic_compare_exchange_weak(&j->inbox.credit, &old,
                                             n_tokens > INT_MAX - old ? INT_MAX : old + n_tokens))
            ;
        tell(e, j);
    }
    pthread_mutex_unlock(&e->lock);
}

void sq_engine_drain(struct sq_engine *e)
{
    atomic_store(&e->draining, true);
}

struct sq_event *sq_engine_take_events(struct sq_engine *e)
{
    return (struct sq_event *)sq_mbox_take(&e->outbox);
}

void sq_events_free(struct sq_event *first)
{
    while (first) {
        struct sq_event *next = (struct sq_event *)first->node.next;
        sq_free(first);
        first = next;
    }
}

const char *sq_engine_fault_text(const struct sq_engine *e)
{
    return atomic_load(&e->fault) ? e->fault_text : "";
}

void sq_engine_stats(struct sq_engine *e, struct sq_engine_stats *ret)
{
    *ret = (struct sq_engine_stats){
        .running = atomic_load(&e->n_running),
        .waiting = atomic_load(&e->n_waiting),
        .waiting_tokens = atomic_load(&e->waiting_tokens),
        .kv_blocks = e->o.kv_blocks,
        .kv_used = atomic_load(&e->kv_used),
        .kv_bytes = e->kv_bytes,
        .n_steps = atomic_load(&e->n_steps),
        .last_step_ns = atomic_load(&e->last_step_ns),
        .tokens_per_s = atomic_load(&e->tokens_per_s),
        .fault = atomic_load(&e->fault),
        .max_context = e->o.max_context,
        .vocab = e->model->config.vocab,
    };
}
