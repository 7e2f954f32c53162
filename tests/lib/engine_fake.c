#include "tests/lib/engine_fake.h"

#include <stdatomic.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/base/list.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"
#include "engine/base/threads.h"

#define BLOCK 32

struct job {
    struct sq_list link;
    struct sq_request r; /* ids owned */
    uint64_t hash, t_admitted_ns;
    int n_done, n_blocks, prefilled; /* n_blocks: held, 0 while waiting */
    bool cancelled;
};

struct sq_engine {
    struct sq_engine_options o;
    struct sq_engine_fake f;
    pthread_t thread;
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t changed;
    struct sq_list jobs;
    struct sq_event *events, **events_end;
    bool started, stop, draining;
    int running, waiting, kv_used;
    int64_t waiting_tokens;
    uint64_t n_steps, last_step_ns, n_tokens, t_start_ns;
};

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

int sq_engine_fake_open(const struct sq_engine_options *o, const struct sq_engine_fake *f,
                        struct sq_engine **ret, struct sq_err *err)
{
    struct sq_engine *e = sq_new(struct sq_engine);
    if (!e)
        return sq_fail(err, SQ_E_NOMEM, "fake engine: out of memory");
    e->o = *o;
    e->f = *f;
    e->events_end = &e->events;
    e->t_start_ns = sq_now_ns();
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    sq_list_init(&e->jobs);
    *ret = e;
    return 0;
}

static void emit(struct sq_engine *e, struct job *j, int32_t token, enum sq_finish finish)
{
    struct sq_event *ev = sq_new(struct sq_event);
    SQ_ASSERT(ev);
    ev->id = j->r.id;
    ev->token = token;
    ev->finish = finish;
    ev->n_generated = j->n_done;
    ev->t_ns = sq_now_ns();
    ev->t_admitted_ns = j->t_admitted_ns;
    *e->events_end = ev;
    e->events_end = (struct sq_event **)&ev->node.next;
}

static void job_end(struct sq_engine *e, struct job *j)
{
    if (j->n_blocks) {
        e->running--;
        e->kv_used -= j->n_blocks;
    } else {
        e->waiting--;
        e->waiting_tokens -= j->r.n_ids;
    }
    sq_list_remove(&j->link);
    sq_free((void *)j->r.ids);
    sq_free(j);
}

static bool admit(struct sq_engine *e, struct job *j)
{
    int need = (j->r.n_ids + j->r.sampling.max_tokens + BLOCK - 1) / BLOCK;
    if (e->running >= e->o.max_sequences || e->kv_used + need > e->o.kv_blocks)
        return false;
    j->n_blocks = need;
    j->t_admitted_ns = sq_now_ns();
    e->kv_used += need;
    e->running++;
    e->waiting--;
    e->waiting_tokens -= j->r.n_ids;
    return true;
}

static void decode(struct sq_engine *e, struct job *j)
{
    int32_t last = j->r.ids[j->r.n_ids - 1];
    if (j->n_done == 3 && (last == SQ_FAKE_ID_FAIL || last == SQ_FAKE_ID_CANCEL)) {
        emit(e, j, -1, last == SQ_FAKE_ID_FAIL ? SQ_FINISH_FAILED : SQ_FINISH_CANCELLED);
        job_end(e, j);
        return;
    }
    if (j->n_done == 5 && last == SQ_FAKE_ID_EOS && !j->r.sampling.ignore_eos) {
        emit(e, j, 2, SQ_FINISH_EOS);
        job_end(e, j);
        return;
    }
    j->hash = mix(j->hash, j->r.sampling.temperature > 0 ? j->r.sampling.seed + (uint64_t)j->n_done
                                                         : (uint64_t)j->n_done);
    int32_t token = e->f.first_id + (int32_t)(j->hash % (uint64_t)(e->f.vocab - e->f.first_id));
    j->n_done++;
    j->r.credit--;
    e->n_tokens++;
    sq_metric_add(SQ_M_GEN_TOKENS, 1);
    bool end = j->n_done == j->r.sampling.max_tokens;
    emit(e, j, token, end ? SQ_FINISH_LENGTH : SQ_FINISH_NONE);
    if (end)
        job_end(e, j);
}

/* One step under the lock; true if it emitted or moved anything. */
static bool step(struct sq_engine *e)
{
    bool moved = false;
    sq_list_each (it, &e->jobs) {
        struct job *j = sq_list_entry(it, struct job, link);
        if (j->cancelled) {
            emit(e, j, -1, SQ_FINISH_CANCELLED);
            job_end(e, j);
            moved = true;
        } else if (!j->n_blocks && !admit(e, j)) {
            continue;
        } else if (j->prefilled < j->r.n_ids) {
            j->prefilled += (int)e->f.prefill_rows;
            moved = true;
        } else if (j->r.credit > 0) {
            decode(e, j);
            moved = true;
        }
    }
    e->n_steps += moved;
    e->last_step_ns = sq_now_ns();
    return moved;
}

static void *run(void *arg)
{
    struct sq_engine *e = arg;
    pthread_mutex_lock(&e->lock);
    while (!e->stop) {
        bool moved = step(e), events = e->events != NULL;
        if (!moved)
            pthread_cond_wait(&e->changed, &e->lock);
        pthread_mutex_unlock(&e->lock);
        if (events && e->o.wake)
            e->o.wake(e->o.ctx);
        if (moved)
            usleep(e->f.step_us);
        pthread_mutex_lock(&e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

int sq_engine_start(struct sq_engine *e, struct sq_err *err)
{
    int rc = sq_thread_start(&e->thread, "fake-engine", run, e, err);
    e->started = !rc;
    return rc;
}

struct sq_engine *sq_engine_close(struct sq_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
    if (e->started)
        pthread_join(e->thread, NULL);
    sq_list_each (it, &e->jobs)
        job_end(e, sq_list_entry(it, struct job, link));
    SQ_ASSERT(!e->kv_used && !e->running && !e->waiting);
    sq_events_free(e->events);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->changed);
    sq_free(e);
    return NULL;
}

static struct job *job_new(const struct sq_request *r)
{
    struct job *j = sq_new(struct job);
    SQ_ASSERT(j);
    j->r = *r;
    j->r.ids = sq_memdup(r->ids, (size_t)r->n_ids * sizeof(*r->ids));
    SQ_ASSERT(j->r.ids);
    for (int i = 0; i < r->n_ids; i++)
        j->hash = mix(j->hash, (uint64_t)r->ids[i]);
    return j;
}

int sq_engine_submit(struct sq_engine *e, const struct sq_request *reqs, int n, struct sq_err *err)
{
    (void)err;
    int64_t tokens = 0;
    for (int i = 0; i < n; i++)
        tokens += reqs[i].n_ids;
    pthread_mutex_lock(&e->lock);
    int rc = e->draining                                          ? SQ_ENGINE_DRAINING
             : e->waiting + n > e->o.max_queue                    ? SQ_ENGINE_FULL
             : e->waiting_tokens + tokens > e->o.max_queue_tokens ? SQ_ENGINE_FULL
                                                                  : 0;
    for (int i = 0; i < n && !rc; i++) {
        sq_list_append(&e->jobs, &job_new(&reqs[i])->link);
        e->waiting++;
        e->waiting_tokens += reqs[i].n_ids;
    }
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
    return rc;
}

static struct job *find(struct sq_engine *e, sq_req_id id)
{
    sq_list_each (it, &e->jobs) {
        struct job *j = sq_list_entry(it, struct job, link);
        if (j->r.id == id)
            return j;
    }
    return NULL;
}

void sq_engine_cancel(struct sq_engine *e, sq_req_id id)
{
    pthread_mutex_lock(&e->lock);
    struct job *j = find(e, id);
    if (j)
        j->cancelled = true;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

void sq_engine_credit(struct sq_engine *e, sq_req_id id, int n_tokens)
{
    pthread_mutex_lock(&e->lock);
    struct job *j = find(e, id);
    if (j)
        j->r.credit += n_tokens;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

void sq_engine_drain(struct sq_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->draining = true;
    pthread_mutex_unlock(&e->lock);
}

struct sq_event *sq_engine_take_events(struct sq_engine *e)
{
    pthread_mutex_lock(&e->lock);
    struct sq_event *first = e->events;
    e->events = NULL;
    e->events_end = &e->events;
    pthread_mutex_unlock(&e->lock);
    return first;
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
    (void)e;
    return "";
}

void sq_engine_stats(struct sq_engine *e, struct sq_engine_stats *ret)
{
    pthread_mutex_lock(&e->lock);
    double s = (double)(sq_now_ns() - e->t_start_ns) / 1e9;
    *ret = (struct sq_engine_stats){.running = e->running,
                                    .waiting = e->waiting,
                                    .waiting_tokens = e->waiting_tokens,
                                    .kv_blocks = e->o.kv_blocks,
                                    .kv_used = e->kv_used,
                                    .kv_bytes = (uint64_t)e->o.kv_blocks * 1024,
                                    .n_steps = e->n_steps,
                                    .last_step_ns = e->n_steps ? e->last_step_ns : 0,
                                    .tokens_per_s = s > 0 ? (double)e->n_tokens / s : 0,
                                    .max_context = e->o.max_context,
                                    .vocab = e->f.vocab};
    pthread_mutex_unlock(&e->lock);
}
