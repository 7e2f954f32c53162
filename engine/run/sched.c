#include "engine/run/sched.h"

#include <limits.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"

struct sq_sched {
    struct sq_sched_options o;
    struct sq_kvpool *pool;          /* borrowed */
    struct sq_list running, waiting; /* of struct sq_job, oldest first */
    int n_running, n_waiting;
    int64_t waiting_tokens;
    uint64_t n_added, n_preemptions;
    struct sq_plan plan; /* seqs: [max_sequences] */
};

static struct sq_job *job_of(struct sq_list *l)
{
    return sq_list_entry(l, struct sq_job, link);
}

struct sq_sched *sq_sched_new(const struct sq_sched_options *o, struct sq_kvpool *pool)
{
    SQ_ASSERT(o->max_sequences > 0 && o->max_step_tokens > 0 && o->max_chunk >= 0);
    struct sq_sched *s = sq_new(struct sq_sched);
    if (!s)
        return NULL;
    s->o = *o;
    s->pool = pool;
    sq_list_init(&s->running);
    sq_list_init(&s->waiting);
    s->plan.seqs = sq_new_array(struct sq_plan_seq, (size_t)o->max_sequences);
    return s->plan.seqs ? s : sq_sched_free(s);
}

struct sq_sched *sq_sched_free(struct sq_sched *s)
{
    if (!s)
        return NULL;
    SQ_ASSERT(sq_list_empty(&s->running) && sq_list_empty(&s->waiting));
    sq_free(s->plan.seqs);
    sq_free(s);
    return NULL;
}

/* Keeps the list in order of arrival; new jobs are the youngest, so it looks from the end. */
static void insert_by_age(struct sq_list *head, struct sq_job *j)
{
    struct sq_list *at = head->prev;
    while (at != head && job_of(at)->seq > j->seq)
        at = at->prev;
    sq_list_prepend(at, &j->link);
}

static void enter_waiting(struct sq_sched *s, struct sq_job *j)
{
    j->state = SQ_JOB_WAITING;
    insert_by_age(&s->waiting, j);
    s->n_waiting++;
    s->waiting_tokens += j->n_prompt;
}

static void leave_waiting(struct sq_sched *s, struct sq_job *j)
{
    sq_list_remove(&j->link);
    s->n_waiting--;
    s->waiting_tokens -= j->n_prompt;
}

static void leave_running(struct sq_sched *s, struct sq_job *j)
{
    sq_list_remove(&j->link);
    s->n_running--;
    while (j->n_blocks > 0)
        sq_kvpool_put(s->pool, j->blocks[--j->n_blocks]);
    j->n_cached = 0;
}

void sq_sched_add(struct sq_sched *s, struct sq_job *j)
{
    SQ_ASSERT(j->state == SQ_JOB_NEW && j->max_blocks <= sq_kvpool_size(s->pool));
    j->seq = s->n_added++;
    enter_waiting(s, j);
}

void sq_sched_credit(struct sq_sched *s, struct sq_job *j, int n_tokens)
{
    (void)s;
    SQ_ASSERT(n_tokens >= 0);
    j->credit = n_tokens > INT_MAX - j->credit ? INT_MAX : j->credit + n_tokens;
}

void sq_sched_remove(struct sq_sched *s, struct sq_job *j)
{
    if (j->state == SQ_JOB_WAITING)
        leave_waiting(s, j);
    else
        leave_running(s, j);
    j->state = SQ_JOB_DONE;
}

static void preempt(struct sq_sched *s, struct sq_job *j)
{
    leave_running(s, j);
    j->n_preempted++;
    s->n_preemptions++;
    enter_waiting(s, j);
}

static bool is_runnable(const struct sq_job *j)
{
    return j->credit > 0;
}

static bool is_reserved(const struct sq_job *j)
{
    return j->n_preempted >= SQ_PREEMPT_MAX;
}

/* The youngest running job that may be preempted: behind `after` (NULL: anywhere), or parked ones
 * only. NULL = none. */
static struct sq_job *victim(struct sq_sched *s, const struct sq_job *after, bool parked_only)
{
    for (struct sq_list *l = s->running.prev; l != &s->running; l = l->prev) {
        struct sq_job *j = job_of(l);
        if (after && j == after)
            return NULL;
        if (!is_reserved(j) && !(parked_only && is_runnable(j)))
            return j;
    }
    return NULL;
}

/* Gives j the block of its next row. false: not in this step. */
static bool grow(struct sq_sched *s, struct sq_job *j, bool is_oldest)
{
    if (j->n_cached < j->n_blocks * SQ_KV_BLOCK)
        return true;
    while (sq_kvpool_n_free(s->pool) == 0) {
        struct sq_job *v = victim(s, j, false);
        if (!v && is_oldest)
            v = victim(s, NULL, true);
        if (!v)
            return false;
        preempt(s, v);
    }
    SQ_ASSERT(j->n_blocks < j->max_blocks);
    j->blocks[j->n_blocks++] = sq_kvpool_take(s->pool);
    return true;
}

static bool step_is_full(const struct sq_sched *s)
{
    return s->plan.n_seqs == s->o.max_sequences || s->plan.n_rows == s->o.max_step_tokens;
}

static void plan_rows(struct sq_sched *s, struct sq_job *j)
{
    struct sq_plan *p = &s->plan;
    int left = j->n_ids - j->n_cached, n = s->o.max_step_tokens - p->n_rows;
    if (s->o.max_chunk > 0)
        n = SQ_MIN(n, s->o.max_chunk);
    n = SQ_MIN(n, left);
    SQ_ASSERT(n > 0 && j->n_cached + n <= j->n_blocks * SQ_KV_BLOCK);
    p->seqs[p->n_seqs++] = (struct sq_plan_seq){.job = j, .n_rows = n, .out = n == left};
    p->n_rows += n;
    p->n_out += n == left;
}

/* Sequences that need one row. Those behind the current one may be preempted while the list is
 * walked, so `next` is read late. */
static void plan_decodes(struct sq_sched *s)
{
    bool is_oldest = true;
    for (struct sq_list *l = s->running.next; l != &s->running && !step_is_full(s); l = l->next) {
        struct sq_job *j = job_of(l);
        if (!is_runnable(j))
            continue;
        if (j->n_ids - j->n_cached == 1 && grow(s, j, is_oldest))
            plan_rows(s, j);
        is_oldest = false;
    }
}

/* The rest of prompts that are under way; their blocks are there. */
static void plan_prompts(struct sq_sched *s)
{
    for (struct sq_list *l = s->running.next; l != &s->running && !step_is_full(s); l = l->next) {
        struct sq_job *j = job_of(l);
        if (is_runnable(j) && j->n_ids - j->n_cached > 1)
            plan_rows(s, j);
    }
}

struct census {
    int n_runnable; /* running with credit */
    int n_growing;  /* running, not reserved: each may want a block soon */
};

static struct census count_running(struct sq_sched *s)
{
    struct census c = {0};
    for (struct sq_list *l = s->running.next; l != &s->running; l = l->next) {
        c.n_runnable += is_runnable(job_of(l));
        c.n_growing += !is_reserved(job_of(l));
    }
    return c;
}

/* Are the blocks free that j needs to start, beside one for each sequence that grows? Without that
 * margin, the sequence admitted into the last blocks would be preempted at once. If nothing else
 * can run, parked sequences make room. */
static bool make_room(struct sq_sched *s, const struct sq_job *j, struct census *c)
{
    int want = is_reserved(j) ? j->max_blocks : sq_job_blocks_for(j->n_ids);
    while (sq_kvpool_n_free(s->pool) < want + c->n_growing) {
        struct sq_job *v = c->n_runnable == 0 ? victim(s, NULL, true) : NULL;
        if (!v)
            return false;
        preempt(s, v);
        *c = count_running(s);
    }
    return true;
}

static void start(struct sq_sched *s, struct sq_job *j, uint64_t now_ns)
{
    int want = is_reserved(j) ? j->max_blocks : sq_job_blocks_for(j->n_ids);
    leave_waiting(s, j);
    j->state = SQ_JOB_RUNNING;
    insert_by_age(&s->running, j);
    s->n_running++;
    while (j->n_blocks < want)
        j->blocks[j->n_blocks++] = sq_kvpool_take(s->pool);
    if (!j->t_admitted_ns)
        j->t_admitted_ns = now_ns;
}

/* In order of arrival; the first that does not fit holds up those behind it, so that a large
 * request is not starved by small ones. */
static void admit(struct sq_sched *s, uint64_t now_ns)
{
    struct census c = count_running(s);
    struct sq_list *next;
    for (struct sq_list *l = s->waiting.next; l != &s->waiting && !step_is_full(s); l = next) {
        struct sq_job *j = job_of(l);
        next = l->next;
        if (!is_runnable(j))
            continue;
        if (c.n_runnable >= s->o.max_sequences || !make_room(s, j, &c))
            return;
        /* make_room may have put jobs back right behind this one */
        next = l->next;
        start(s, j, now_ns);
        c.n_runnable++;
        c.n_growing += !is_reserved(j);
        plan_rows(s, j);
    }
}

const struct sq_plan *sq_sched_plan(struct sq_sched *s, uint64_t now_ns)
{
    uint64_t n_before = s->n_preemptions;
    s->plan.n_seqs = s->plan.n_rows = s->plan.n_out = 0;
    plan_decodes(s);
    plan_prompts(s);
    /* who has just been preempted must not come back in the same step: its blocks are wanted
     * elsewhere */
    if (s->n_preemptions == n_before)
        admit(s, now_ns);
    return &s->plan;
}

void sq_sched_ran(struct sq_sched *s)
{
    for (int i = 0; i < s->plan.n_seqs; i++)
        s->plan.seqs[i].job->n_cached += s->plan.seqs[i].n_rows;
}

struct sq_sched_stats sq_sched_stats(const struct sq_sched *s)
{
    return (struct sq_sched_stats){.n_running = s->n_running,
                                   .n_waiting = s->n_waiting,
                                   .waiting_tokens = s->waiting_tokens,
                                   .n_preemptions = s->n_preemptions};
}

struct sq_job *sq_sched_any(const struct sq_sched *s)
{
    if (!sq_list_empty(&s->running))
        return job_of(s->running.next);
    return sq_list_empty(&s->waiting) ? NULL : job_of(s->waiting.next);
}
