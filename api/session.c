#include "api/session.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "api/api_priv.h"
#include "api/completions.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"
#include "engine/base/threads.h"

/* Credit of a stream: what may be on its way to one reader is bounded by it, in tokens per choice. A chunk of one token takes about this many bytes. */
#define CHUNK_BYTES 512
#define WINDOW_MAX 64

/* --- the table of jobs ------------------------------------------------------------------------ */

static struct sq_choice **bucket(struct sq_jobs *j, sq_req_id id)
{
    return &j->buckets[id &
                       (j->n_buckets - 1)]; /* ids are consecutive: they spread by themselves */
}

static bool jobs_grow(struct sq_jobs *j, size_t n_more)
{
    size_t n = j->n_buckets ? j->n_buckets : 64;
    while (n < j->n + n_more)
        n *= 2;
    if (n == j->n_buckets)
        return true;
    struct sq_jobs bigger = {sq_new_array(struct sq_choice *, n), n, j->n};
    if (!bigger.buckets)
        return false;
    for (size_t i = 0; i < j->n_buckets; i++) {
        for (struct sq_choice *c = j->buckets[i], *next; c; c = next) {
            next = c->next;
            c->next = *bucket(&bigger, c->job);
            *bucket(&bigger, c->job) = c;
        }
    }
    sq_free(j->buckets);
    *j = bigger;
    return true;
}

static void jobs_add(struct sq_jobs *j, struct sq_choice *c)
{
    c->next = *bucket(j, c->job);
    *bucket(j, c->job) = c;
    j->n++;
}

static struct sq_choice *jobs_find(struct sq_jobs *j, sq_req_id id)
{
    struct sq_choice *c = j->n ? *bucket(j, id) : NULL;
    while (c && c->job != id)
        c = c->next;
    return c;
}

static void jobs_remove(struct sq_jobs *j, struct sq_choice *c)
{
    struct sq_choice **at = bucket(j, c->job);
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    c->job = 0;
    j->n--;
}

void sq_jobs_done(struct sq_jobs *j)
{
    SQ_ASSERT(!j->n);
    sq_free(j->buckets);
    *j = (struct sq_jobs){0};
}

/* --- beginning and end of a session ----------------------------------------------------------- */

/* What is still with the engine is cancelled: any end but success. */
static struct sq_session *session_free(struct sq_session *s)
{
    for (int i = 0; i < s->n_choices; i++) {
        struct sq_choice *c = &s->choices[i];
        if (c->job) {
            sq_req_id job = c->job;
            jobs_remove(&s->api->jobs, c);
            sq_engine_cancel(s->api->engine, job);
        }
        sq_flow_done(&c->flow);
        sq_text_done(&c->text);
    }
    sq_free(s->choices);
    sq_completion_done(&s->req);
    sq_wbuf_done(&s->prefix);
    sq_wbuf_done(&s->suffix);
    sq_free(s);
    return NULL;
}

static void close_books(struct sq_session *s, enum sq_metric outcome, const char *name)
{
    int64_t n = 0;
    for (int i = 0; i < s->n_choices; i++)
        n += s->choices[i].n_generated;
    sq_metric_add(outcome, 1);
    sq_metric_observe(SQ_H_E2E, (double)(sq_now_ns() - s->x->t_start_ns) / 1e9);
    sq_metric_observe(SQ_H_REQ_PROMPT, (double)s->req.n_prompt_tokens);
    sq_metric_observe(SQ_H_REQ_GEN, (double)n);
    double mean = (double)n / s->n_choices;
    double *smooth = &s->api->mean_generated;
    *smooth = *smooth > 0 ? *smooth * .9 + mean * .1 : mean;
    s->x->n_in = s->req.n_prompt_tokens;
    s->x->n_out = n;
    s->x->outcome = name;
}

static void on_gone(void *owner)
{
    struct sq_session *s = owner;
    close_books(s, SQ_M_REQ_CANCELLED, "cancelled");
    session_free(s);
}

/* Gives back what was received once enough of it has left; below half a window per choice it is not worth a message. */
static void on_drained(void *owner)
{
    struct sq_session *s = owner;
    for (int i = 0; i < s->n_choices; i++) {
        struct sq_choice *c = &s->choices[i];
        if (c->job && c->owed * 2 >= s->window) {
            sq_engine_credit(s->api->engine, c->job, c->owed);
            c->owed = 0;
        }
    }
}

/* The half of the buffer that is not covered by credit. */
static void on_drained_enough(void *owner)
{
    struct sq_session *s = owner;
    if (sq_fifo_n(&s->x->fifo) * 2 <= (size_t)s->api->border.limits.stream_buffer)
        on_drained(owner);
}

void sq_session_fail(struct sq_session *s, const struct sq_fault *f)
{
    struct sq_exchange *x = s->x;
    if (f->status == SQ_STATUS_CANCELLED)
        close_books(s, SQ_M_REQ_CANCELLED, "cancelled");
    else
        close_books(s, SQ_M_REQ_FAILED, "failed");
    sq_exchange_own(x, NULL, NULL);
    session_free(s);
    if (!x->stream) {
        sq_exchange_fault(x, f);
        return;
    }
    sq_sse_fault(sq_fifo_tail(&x->fifo), f);
    sq_exchange_end(x);
}

static void fail_no_memory(struct sq_session *s)
{
    struct sq_fault f;
    (void)sq_fault_no_memory(&f);
    sq_session_fail(s, &f);
}

static void on_abort(void *owner)
{
    struct sq_fault f;
    (void)sq_fault_set(&f, SQ_STATUS_DRAINING, NULL, "the server is shutting down");
    f.retry_ms = 10000;
    sq_session_fail(owner, &f);
}

static const struct sq_owner_ops ops = {on_gone, on_drained_enough, on_abort};

/* Every choice has ended. */
static void succeed(struct sq_session *s)
{
    struct sq_exchange *x = s->x;
    bool cut = false;
    for (int i = 0; i < s->n_choices; i++)
        cut |= s->choices[i].end == SQ_END_LENGTH;
    struct sq_wbuf body = {0};
    if (s->req.stream)
        sq_completion_stream_end(s);
    else
        sq_completion_body(s, &body);
    if (body.failed || x->fifo.out.failed) {
        sq_wbuf_done(&body);
        fail_no_memory(s);
        return;
    }
    close_books(s, cut ? SQ_M_REQ_LENGTH : SQ_M_REQ_STOP, cut ? "length" : "stop");
    sq_exchange_own(x, NULL, NULL);
    session_free(s);
    if (x->stream)
        sq_exchange_end(x);
    else
        sq_api_send(x, &body);
}

/* --- events ---------------------------------------------------------------------------------------- */

static void end_choice(struct sq_session *s, struct sq_choice *c, enum sq_end end)
{
    c->end = end;
    s->n_live--;
}

/* Queue and inter-token times are the engine's own figures; the first token's is from the request's arrival here. */
static void observe_first(struct sq_session *s, const struct sq_event *ev)
{
    if (s->t_first_ns)
        return;
    s->t_first_ns = ev->t_ns;
    uint64_t t_start = s->x->t_start_ns;
    sq_metric_observe(SQ_H_TTFT, ev->t_ns > t_start ? (double)(ev->t_ns - t_start) / 1e9 : 0);
}

/* The choice after this event: 1 while it goes on, 0 when it has ended, or -SQ_E_NOMEM. */
static int advance(struct sq_session *s, struct sq_choice *c, const struct sq_event *ev)
{
    int rc = 0;
    if (ev->token >= 0 && ev->finish != SQ_FINISH_EOS)
        rc = sq_flow_push(&c->flow, ev->token, ev->n_generated > s->req.sampling.min_tokens,
                          &c->text);
    if (!rc && ev->finish != SQ_FINISH_NONE)
        rc = sq_flow_finish(&c->flow, &c->text);
    if (rc < 0)
        return rc;
    if (rc == SQ_FLOW_STOP || ev->finish == SQ_FINISH_EOS)
        end_choice(s, c, SQ_END_STOP);
    else if (ev->finish == SQ_FINISH_LENGTH)
        end_choice(s, c, SQ_END_LENGTH);
    return c->end == SQ_END_NONE;
}

static void on_bad_finish(struct sq_session *s, const struct sq_event *ev)
{
    struct sq_fault f;
    if (ev->finish == SQ_FINISH_CANCELLED) {
        (void)sq_fault_set(&f, SQ_STATUS_CANCELLED, NULL, "the request was cancelled");
        f.no_retry = true;
    } else {
        (void)sq_fault_set(&f, SQ_STATUS_UNAVAILABLE, NULL,
                           "the engine could not finish the request");
        f.retry_ms = 5000;
    }
    sq_session_fail(s, &f);
}

void sq_session_event(struct sq_api *a, const struct sq_event *ev)
{
    struct sq_choice *c = jobs_find(&a->jobs, ev->id);
    if (!c)
        return; /* cancelled meanwhile */
    struct sq_session *s = c->session;
    sq_req_id job = c->job;
    if (ev->finish != SQ_FINISH_NONE)
        jobs_remove(&a->jobs, c);
    if (ev->finish == SQ_FINISH_CANCELLED || ev->finish == SQ_FINISH_FAILED) {
        on_bad_finish(s, ev);
        return;
    }
    observe_first(s, ev);
    c->n_generated = ev->n_generated;
    c->owed++;
    int rc = advance(s, c, ev);
    if (rc < 0) {
        fail_no_memory(s);
        return;
    }
    if (!rc && c->job) { /* a stop string: the engine need not go on */
        jobs_remove(&a->jobs, c);
        sq_engine_cancel(a->engine, job);
    }
    if (s->req.stream && (c->text.n || !rc)) {
        sq_completion_chunk(s, c);
        sq_exchange_flush(s->x);
    } else if (s->req.stream) {
        on_drained_enough(s); /* nothing to show means nothing to drain */
    }
    if (s->x->fifo.out.failed)
        fail_no_memory(s);
    else if (!s->n_live)
        succeed(s);
}

/* --- start ------------------------------------------------------------------------------------------- */

/* splitmix64: choices of one request differ, and the same seed gives the same choices. */
static uint64_t seed_of(uint64_t seed, int i)
{
    uint64_t z = seed + (uint64_t)i * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return i ? z ^ z >> 31 : seed;
}

static void fill_request(struct sq_session *s, struct sq_choice *c, struct sq_request *r)
{
    const struct sq_prompt *p = &s->req.prompts[c->index / s->req.n];
    *r = (struct sq_request){.id = c->job,
                             .ids = p->ids,
                             .n_ids = (int)p->n_ids,
                             .sampling = s->req.sampling,
                             .credit = s->req.stream ? s->window : s->req.sampling.max_tokens};
    r->sampling.seed = seed_of(s->req.sampling.seed, c->index % s->req.n);
}

static struct sq_session *session_new(struct sq_api *a, struct sq_exchange *x,
                                      struct sq_completion *req)
{
    struct sq_session *s = sq_new(struct sq_session);
    if (!s)
        return NULL;
    s->api = a;
    s->x = x;
    s->req = *req;
    *req = (struct sq_completion){0};
    int n = (int)s->req.n_prompts * s->req.n;
    s->choices = sq_new_array(struct sq_choice, n);
    if (!s->choices)
        return session_free(s);
    s->n_choices = s->n_live = n;
    int64_t window = a->border.limits.stream_buffer / 2 / (CHUNK_BYTES * (int64_t)n);
    s->window = (int)SQ_MAX(SQ_MIN(window, WINDOW_MAX), 2);
    s->created = sq_unix_time();
    (void)snprintf(s->id, sizeof(s->id), "cmpl-%016llx%08llx", (unsigned long long)a->id_salt,
                   (unsigned long long)++a->next_id);
    for (int i = 0; i < n; i++) {
        s->choices[i].session = s;
        s->choices[i].index = i;
        if (sq_flow_init(&s->choices[i].flow, a->border.tokenizer, &s->req.stops))
            return session_free(s);
    }
    if (!s->req.has_seed && getrandom(&s->req.sampling.seed, sizeof(s->req.sampling.seed), 0) < 0)
        s->req.sampling.seed = sq_now_ns();
    return sq_completion_shape(s) ? s : session_free(s);
}

/* 0, an outcome of sq_engine_submit, or -SQ_E_NOMEM. The jobs are in the table only on success. */
static int submit(struct sq_session *s)
{
    struct sq_api *a = s->api;
    SQ_AUTO_FREE struct sq_request *reqs = sq_new_array(struct sq_request, s->n_choices);
    if (!reqs || !jobs_grow(&a->jobs, (size_t)s->n_choices))
        return -SQ_E_NOMEM;
    for (int i = 0; i < s->n_choices; i++) {
        s->choices[i].job = ++a->next_id;
        fill_request(s, &s->choices[i], &reqs[i]);
    }
    int rc = sq_engine_submit(a->engine, reqs, s->n_choices, NULL);
    for (int i = 0; i < s->n_choices; i++) {
        if (rc)
            s->choices[i].job = 0;
        else
            jobs_add(&a->jobs, &s->choices[i]);
    }
    return rc;
}

static void refuse(struct sq_api *a, struct sq_exchange *x, int rc)
{
    struct sq_fault f;
    if (rc == SQ_ENGINE_FULL) {
        (void)sq_fault_set(&f, SQ_STATUS_QUEUE_FULL, NULL,
                           "too many requests are waiting, try again later");
        f.retry_ms = sq_api_retry_ms(a);
    } else if (rc == SQ_ENGINE_DRAINING) {
        (void)sq_fault_set(&f, SQ_STATUS_DRAINING, NULL, "the server is shutting down");
        f.retry_ms = 10000;
    } else {
        (void)sq_fault_set(&f, SQ_STATUS_UNAVAILABLE, NULL, "the engine cannot take requests");
        f.retry_ms = 5000;
    }
    sq_session_reject(a, x, &f);
}

void sq_session_reject(struct sq_api *a, struct sq_exchange *x, const struct sq_fault *f)
{
    (void)a;
    sq_metric_add(SQ_M_REQ_ACCEPTED, 1);
    sq_metric_add(f->status == SQ_STATUS_QUEUE_FULL ? SQ_M_REQ_REJ_QUEUE_FULL
                  : f->status == SQ_STATUS_DRAINING ? SQ_M_REQ_REJ_DRAINING
                  : f->status == SQ_STATUS_LOADING  ? SQ_M_REQ_REJ_LOADING
                                                    : SQ_M_REQ_REJ_UNAVAILABLE,
                  1);
    sq_exchange_fault(x, f);
}

/* No token was asked for: every choice is an empty text cut by its length. */
static void end_empty(struct sq_session *s)
{
    for (int i = 0; i < s->n_choices; i++) {
        end_choice(s, &s->choices[i], SQ_END_LENGTH);
        if (s->req.stream)
            sq_completion_chunk(s, &s->choices[i]);
    }
    succeed(s);
}

void sq_session_start(struct sq_api *a, struct sq_exchange *x, struct sq_completion *req)
{
    struct sq_session *s = session_new(a, x, req);
    int rc = s && s->req.sampling.max_tokens ? submit(s) : 0;
    if (s && rc > 0) {
        session_free(s);
        refuse(a, x, rc);
        return;
    }
    sq_metric_add(SQ_M_REQ_ACCEPTED, 1);
    if (!s) {
        struct sq_fault f;
        (void)sq_fault_no_memory(&f);
        sq_metric_add(SQ_M_REQ_FAILED, 1);
        sq_exchange_fault(x, &f);
        return;
    }
    if (rc < 0) {
        fail_no_memory(s);
        return;
    }
    sq_exchange_own(x, s, &ops);
    if (s->req.stream)
        sq_exchange_stream(x);
    if (!s->req.sampling.max_tokens)
        end_empty(s);
}
