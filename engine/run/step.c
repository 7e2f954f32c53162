/* The engine thread: inbox -> plan -> forward -> sample -> events, once per step, and asleep while
 * there is nothing to run. */
#include <stdio.h>
#include <time.h>

#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"
#include "engine/base/threads.h"
#include "engine/run/engine_int.h"

/* Nothing depends on this; a wake-up a minute costs nothing and would heal a lost signal. */
#define IDLE_MS 60000
/* tokens_per_s looks back over about this many steps. */
#define RATE_DECAY 0.95

/* --- the end of a job ------------------------------------------------------------------------- */

static void chain_add(struct sq_chain *c, struct sq_event *ev)
{
    if (!c->first)
        c->tail = &c->first;
    ev->node.next = NULL;
    *c->tail = &ev->node;
    c->tail = &ev->node.next;
}

static void send_events(struct sq_engine *e)
{
    if (!e->done.first)
        return;
    struct sq_node *first = e->done.first;
    e->done.first = NULL;
    SQ_ASSERT(sq_mbox_push_chain(&e->outbox, first));
    if (e->o.wake)
        e->o.wake(e->o.ctx);
}

static void fill(struct sq_event *ev, const struct sq_job *j, int32_t token, enum sq_finish finish,
                 uint64_t now_ns)
{
    *ev = (struct sq_event){.id = j->id,
                            .token = token,
                            .finish = finish,
                            .n_generated = sq_job_n_generated(j),
                            .t_ns = now_ns,
                            .t_admitted_ns = j->t_admitted_ns};
}

/* Nobody can find the job any more after this. If a message about it is still in the mailbox,
 * whoever takes that message frees it. */
static void drop(struct sq_engine *e, struct sq_job *j)
{
    pthread_mutex_lock(&e->lock);
    sq_registry_remove(&e->registry, j);
    pthread_mutex_unlock(&e->lock);
    if (!atomic_load(&j->inbox.changed_sent))
        sq_job_free(j);
}

/* The last event of a job, whose memory was there from the start, so that it cannot fail. */
static void finish_job(struct sq_engine *e, struct sq_job *j, int32_t token, enum sq_finish finish,
                       uint64_t now_ns)
{
    struct sq_event *ev = sq_steal(&j->last);
    fill(ev, j, token, finish, now_ns);
    chain_add(&e->done, ev);
    if (j->state == SQ_JOB_NEW)
        j->state = SQ_JOB_DONE;
    else
        sq_sched_remove(e->sched, j);
    drop(e, j);
}

static void finish_every_job(struct sq_engine *e, enum sq_finish finish)
{
    uint64_t now_ns = sq_now_ns();
    struct sq_job *j;
    while ((j = sq_sched_any(e->sched)))
        finish_job(e, j, -1, finish, now_ns);
}

/* --- what others said ------------------------------------------------------------------------- */

static void take_new(struct sq_engine *e, struct sq_job *j)
{
    /* submit has counted it as waiting already */
    e->told_waiting++;
    e->told_waiting_tokens += j->n_prompt;
    if (atomic_load(&e->fault))
        finish_job(e, j, -1, SQ_FINISH_FAILED, sq_now_ns());
    else
        sq_sched_add(e->sched, j);
}

static void take_change(struct sq_engine *e, struct sq_job *j)
{
    /* cleared before the news are read: what comes later sends a new message */
    atomic_store(&j->inbox.changed_sent, false);
    if (j->state == SQ_JOB_DONE) {
        sq_job_free(j);
        return;
    }
    sq_sched_credit(e->sched, j, atomic_exchange(&j->inbox.credit, 0));
    if (atomic_load(&j->inbox.cancel))
        finish_job(e, j, -1, SQ_FINISH_CANCELLED, sq_now_ns());
}

static void take_inbox(struct sq_engine *e, struct sq_node *n)
{
    while (n) {
        struct sq_job_msg *m = (struct sq_job_msg *)n;
        n = n->next; /* m may be sent again, or freed, from here on */
        if (m->is_new)
            take_new(e, m->job);
        else
            take_change(e, m->job);
    }
}

/* --- one step --------------------------------------------------------------------------------- */

static struct sq_sample_in sample_in(const struct sq_engine *e, const struct sq_job *j)
{
    const struct sq_config *c = &e->model->config;
    return (struct sq_sample_in){.sampling = &j->sampling,
                                 .ids = j->ids,
                                 .n_prompt = j->n_prompt,
                                 .n_ids = j->n_ids,
                                 .eos = c->eos,
                                 .n_eos = c->n_eos};
}

/* Fills e->tokens, one per output row, -1 where the logits were not finite. Logits come to the host
 * only if a row needs more than their first maximum. */
static int sample_rows(struct sq_engine *e, const struct sq_plan *plan, struct sq_err *err)
{
    int n_argmax = 0, row = 0;
    for (int i = 0; i < plan->n_seqs; i++) {
        struct sq_sample_in in = sample_in(e, plan->seqs[i].job);
        n_argmax += plan->seqs[i].out && sq_sample_is_argmax(&in);
    }
    int rc = n_argmax > 0 ? sq_runner_argmax(e->runner, plan->n_out, e->tokens, err) : 0;
    if (rc || n_argmax == plan->n_out)
        return rc;
    const float *logits;
    rc = sq_runner_logits(e->runner, plan->n_out, &logits, err);
    for (int i = 0; i < plan->n_seqs && !rc; i++) {
        struct sq_sample_in in = sample_in(e, plan->seqs[i].job);
        if (!plan->seqs[i].out)
            continue;
        if (!sq_sample_is_argmax(&in))
            e->tokens[row] =
                sq_sample(e->sampler, &in, logits + (size_t)row * (size_t)e->model->config.vocab);
        row++;
    }
    return rc;
}

/* A sampled token reaches its job and its client. */
static void deliver(struct sq_engine *e, struct sq_job *j, int32_t token, uint64_t now_ns)
{
    struct sq_sample_in in = sample_in(e, j);
    if (token < 0) {
        sq_metric_add(SQ_M_NAN_LOGITS, 1);
        finish_job(e, j, -1, SQ_FINISH_FAILED, now_ns);
        return;
    }
    if (j->t_token_ns)
        sq_metric_observe(SQ_H_ITL, (double)(now_ns - j->t_token_ns) * 1e-9);
    j->t_token_ns = now_ns;
    if (sq_sample_is_end(&in, token)) {
        finish_job(e, j, token, SQ_FINISH_EOS, now_ns);
        return;
    }
    sq_job_append(j, token);
    sq_metric_add(SQ_M_GEN_TOKENS, 1);
    if (sq_job_n_generated(j) == j->sampling.max_tokens) {
        finish_job(e, j, token, SQ_FINISH_LENGTH, now_ns);
        return;
    }
    struct sq_event *ev = sq_new(struct sq_event);
    if (!ev) { /* a token that cannot be told is a gap in the text: better an honest end */
        finish_job(e, j, -1, SQ_FINISH_FAILED, now_ns);
        return;
    }
    fill(ev, j, token, SQ_FINISH_NONE, now_ns);
    chain_add(&e->done, ev);
}

/* Prompt rows of this step that were never computed before, and the kinds of rows there were. */
static void count_rows(const struct sq_plan *plan)
{
    bool prefill = false, decode = false;
    for (int i = 0; i < plan->n_seqs; i++) {
        struct sq_job *j = plan->seqs[i].job;
        int done = SQ_MIN(j->n_cached, j->n_prompt);
        bool is_decode =
            plan->seqs[i].n_rows == 1 && j->n_cached == j->n_ids && j->n_ids > j->n_prompt;
        decode |= is_decode;
        prefill |= !is_decode;
        if (done > j->n_counted) {
            sq_metric_add(SQ_M_PROMPT_TOKENS, (uint64_t)(done - j->n_counted));
            if (j->n_counted == 0)
                sq_metric_observe(SQ_H_QUEUE_TIME,
                                  (double)(j->t_admitted_ns - j->t_submit_ns) * 1e-9);
            j->n_counted = done;
        }
    }
    sq_metric_add(prefill && decode ? SQ_M_STEPS_MIXED
                  : prefill         ? SQ_M_STEPS_PREFILL
                                    : SQ_M_STEPS_DECODE,
                  1);
    sq_metric_observe(SQ_H_STEP_TOKENS, plan->n_rows);
}

static void count_time(struct sq_engine *e, int n_rows, uint64_t t0_ns, uint64_t t1_ns)
{
    struct timespec wall;
    double s = (double)(t1_ns - t0_ns) * 1e-9;
    e->recent_rows = e->recent_rows * RATE_DECAY + n_rows;
    e->recent_s = e->recent_s * RATE_DECAY + s;
    atomic_store(&e->tokens_per_s, e->recent_s > 0.0 ? e->recent_rows / e->recent_s : 0.0);
    atomic_fetch_add(&e->n_steps, 1);
    atomic_store(&e->last_step_ns, t1_ns);
    sq_metric_observe(SQ_H_STEP_TIME, s);
    clock_gettime(CLOCK_REALTIME, &wall);
    sq_metric_set(SQ_M_LAST_STEP, (double)wall.tv_sec + (double)wall.tv_nsec * 1e-9);
}

/* Brings the shared figures and the gauges up to date. */
static void publish(struct sq_engine *e)
{
    struct sq_sched_stats s = sq_sched_stats(e->sched);
    int size = sq_kvpool_size(e->pool), used = size - sq_kvpool_n_free(e->pool);
    atomic_fetch_add(&e->n_waiting, s.n_waiting - e->told_waiting);
    atomic_fetch_add(&e->waiting_tokens, s.waiting_tokens - e->told_waiting_tokens);
    atomic_store(&e->n_running, s.n_running);
    atomic_store(&e->kv_used, used);
    sq_metric_add(SQ_M_PREEMPTIONS, s.n_preemptions - e->told_preemptions);
    e->told_waiting = s.n_waiting;
    e->told_waiting_tokens = s.waiting_tokens;
    e->told_preemptions = s.n_preemptions;
    sq_metric_set(SQ_M_REQ_RUNNING, s.n_running);
    sq_metric_set(SQ_M_REQ_WAITING, atomic_load(&e->n_waiting));
    sq_metric_set(SQ_M_QUEUE_TOKENS, (double)atomic_load(&e->waiting_tokens));
    sq_metric_set(SQ_M_KV_USED, used);
    sq_metric_set(SQ_M_KV_FREE, size - used);
    sq_metric_set(SQ_M_KV_RATIO, (double)used / size);
}

/* After a device error no token leaves any more: whatever it computed is suspect. */
static void device_fault(struct sq_engine *e, const struct sq_err *err)
{
    sq_debug("engine", "%s", err->msg);
    if (!atomic_load(&e->fault))
        snprintf(e->fault_text, sizeof e->fault_text, "%.255s", err->msg);
    pthread_mutex_lock(&e->lock);
    atomic_store(&e->fault, true);
    pthread_mutex_unlock(&e->lock);
    finish_every_job(e, SQ_FINISH_FAILED);
}

/* false: there was nothing to run. */
static bool run_step(struct sq_engine *e)
{
    struct sq_err err = {0};
    uint64_t t0_ns = sq_now_ns();
    const struct sq_plan *plan = sq_sched_plan(e->sched, t0_ns);
    if (plan->n_seqs == 0)
        return false;
    publish(e); /* who has just been admitted is not waiting any more */
    sq_batch_build(&e->batch, plan);
    int rc = sq_forward(e->runner, &e->batch.b, NULL, &err);
    if (!rc && plan->n_out > 0)
        rc = sample_rows(e, plan, &err);
    if (rc) {
        device_fault(e, &err);
        return true;
    }
    uint64_t t1_ns = sq_now_ns();
    sq_sched_ran(e->sched);
    count_rows(plan);
    count_time(e, plan->n_rows, t0_ns, t1_ns);
    /* a finished job takes itself out of the scheduler, which leaves the plan's other entries alone
     */
    for (int i = 0, row = 0; i < plan->n_seqs; i++)
        if (plan->seqs[i].out)
            deliver(e, plan->seqs[i].job, e->tokens[row++], t1_ns);
    return true;
}

void sq_engine_end_all(struct sq_engine *e, enum sq_finish finish)
{
    take_inbox(e, sq_mbox_take(&e->inbox));
    finish_every_job(e, finish);
    publish(e);
    send_events(e);
}

void *sq_engine_main(void *arg)
{
    struct sq_engine *e = arg;
    SQ_MAGIC_CHECK(e, SQ_ENGINE_MAGIC);
    bool idle = true;
    while (!atomic_load(&e->stop)) {
        take_inbox(e, idle ? sq_mbox_wait(&e->inbox, IDLE_MS) : sq_mbox_take(&e->inbox));
        idle = !run_step(e);
        publish(e);
        send_events(e);
    }
    return NULL;
}
