/* The API object: what the daemon tells it, and what its handlers ask it. */
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "api/api_priv.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/threads.h"

int64_t sq_unix_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec;
}

/* --- hooks of the HTTP side -------------------------------------------------------------------- */

static void on_request(void *ctx, struct sq_exchange *x)
{
    sq_route_get(x->route)->handle(ctx, x);
}

static void on_finished(void *ctx, struct sq_exchange *x)
{
    struct sq_api *a = ctx;
    sq_api_count_http(a, x);
    const struct sq_route *r = sq_route_get(x->route);
    if (!a->access_log || (r && (r->flags & SQ_ROUTE_PROBE)))
        return;
    sq_info("http", "id=%s route=%s status=%d%s outcome=%s prompt=%lld generated=%lld ms=%.1f",
            x->request_id, r ? r->path : "none", x->stream ? 200 : x->reply.http,
            x->stream ? " stream" : "",
            x->outcome ? x->outcome
            : x->gone  ? "gone"
                       : "ok",
            (long long)x->n_in, (long long)x->n_out, (double)(sq_now_ns() - x->t_start_ns) / 1e6);
}

static void on_idle(void *ctx)
{
    struct sq_api *a = ctx;
    if (a->on_idle)
        a->on_idle(a->ctx);
}

/* --- what handlers ask --------------------------------------------------------------------------- */

const char *sq_api_state_name(enum sq_api_state s)
{
    static const char *const names[] = {"loading", "ready", "draining", "stalled", "fault"};
    return names[s];
}

enum sq_api_state sq_api_state_now(const struct sq_api *a, struct sq_engine_stats *ret_stats)
{
    *ret_stats = (struct sq_engine_stats){0};
    if (a->engine)
        sq_engine_stats(a->engine, ret_stats);
    return ret_stats->fault ? SQ_API_FAULT : a->state;
}

bool sq_api_closed(const struct sq_api *a, struct sq_fault *f)
{
    struct sq_engine_stats stats;
    switch (sq_api_state_now(a, &stats)) {
    case SQ_API_READY:
        return false;
    case SQ_API_LOADING:
        (void)sq_fault_set(f, SQ_STATUS_LOADING, NULL, "the model is still loading (%.0f %%)",
                           a->load_ratio * 100);
        f->retry_ms = 5000;
        break;
    case SQ_API_DRAINING:
        (void)sq_fault_set(f, SQ_STATUS_DRAINING, NULL, "the server is shutting down");
        f->retry_ms = 10000;
        break;
    case SQ_API_STALLED:
    case SQ_API_FAULT:
        (void)sq_fault_set(f, SQ_STATUS_UNAVAILABLE, NULL, "the engine does not answer");
        f->retry_ms = 10000;
        break;
    }
    return true;
}

int64_t sq_api_retry_ms(const struct sq_api *a)
{
    struct sq_engine_stats s;
    sq_engine_stats(a->engine, &s);
    double work = (double)s.waiting_tokens + (double)s.waiting * a->mean_generated;
    double ms = s.tokens_per_s > 0 ? work / s.tokens_per_s * 1e3 : 1e3;
    return ms < 1e3 ? 1000 : ms > 120e3 ? 120000 : (int64_t)ms;
}

void sq_api_send(struct sq_exchange *x, struct sq_wbuf *o)
{
    struct sq_reply r = {.http = 200, .body = *o};
    *o = (struct sq_wbuf){0};
    sq_exchange_reply(x, &r);
}

/* --- what the daemon tells ------------------------------------------------------------------------ */

static int copy_names(struct sq_api *a, const char *const *names, struct sq_err *err)
{
    size_t n = 0;
    while (names && names[n])
        n++;
    if (!n)
        return sq_fail(err, SQ_E_INVAL, "API: no served name");
    a->names = sq_new_array(char *, n + 1);
    for (size_t i = 0; a->names && i < n; i++) {
        a->names[i] = sq_strdup(names[i]);
        if (!a->names[i])
            return sq_fail(err, SQ_E_NOMEM, "API: out of memory");
    }
    return a->names ? 0 : sq_fail(err, SQ_E_NOMEM, "API: out of memory");
}

static void release(struct sq_api *a)
{
    for (char **it = a->names; it && *it; it++)
        sq_free(*it);
    sq_free(a->names);
    sq_free(a->quantization);
    sq_free(a->kernel);
    sq_free(a->http_counts);
    sq_jobs_done(&a->jobs);
    sq_free(a);
}

int sq_api_new(const struct sq_api_options *o, struct sq_api **ret, struct sq_err *err)
{
    struct sq_api *a = sq_new(struct sq_api);
    if (!a)
        return sq_fail(err, SQ_E_NOMEM, "API: out of memory");
    int rc = copy_names(a, o->served_names, err);
    a->http_counts = sq_new_array(uint64_t, SQ_ROUTE_MAX * SQ_STATUS_SLOTS);
    if (!rc && !a->http_counts)
        rc = sq_fail(err, SQ_E_NOMEM, "API: out of memory");
    const struct sq_http_hooks hooks = {on_request, on_finished, on_idle, a};
    if (!rc)
        rc = sq_http_new(o->loop, &o->limits, o->allow_chunked, o->half_close_keep, &hooks,
                         &a->http, err);
    if (rc) {
        release(a);
        return rc;
    }
    a->access_log = o->access_log;
    a->on_idle = o->on_idle;
    a->ctx = o->ctx;
    a->t_started = a->state_since = sq_unix_time();
    a->border = (struct sq_border){.limits = o->limits,
                                   .names = (const char *const *)a->names,
                                   .strict_fields = o->strict_fields,
                                   .vocab = INT32_MAX,
                                   .max_context = INT32_MAX,
                                   .bos = -1};
    if (getrandom(&a->id_salt, sizeof(a->id_salt), 0) < 0)
        a->id_salt = sq_now_ns();
    sq_work_set_init(&a->works, o->loop, a);
    *ret = a;
    return 0;
}

int sq_api_listen(struct sq_api *a, int fd, const char *name, struct sq_err *err)
{
    return sq_http_listen(a->http, fd, name, err);
}

int sq_api_set_model(struct sq_api *a, const struct sq_api_model *m, struct sq_err *err)
{
    if (a->engine)
        return sq_fail(err, SQ_E_STATE, "API: the model is set already");
    char *quantization = sq_strdup(m->quantization ? m->quantization : "unknown");
    char *kernel = sq_strdup(m->kernel ? m->kernel : "unknown");
    if (!quantization || !kernel) {
        sq_free(quantization);
        sq_free(kernel);
        return sq_fail(err, SQ_E_NOMEM, "API: out of memory");
    }
    a->quantization = quantization;
    a->kernel = kernel;
    a->engine = m->engine;
    a->border.tokenizer = m->tokenizer;
    a->border.vocab = m->vocab;
    a->border.max_context = m->max_context;
    a->border.bos = m->bos;
    a->border.gen = *m->gen;
    a->t_model = sq_unix_time();
    (void)snprintf(a->fingerprint, sizeof(a->fingerprint), "sqd-%s-%016llx", SQD_VERSION,
                   (unsigned long long)m->fingerprint);
    return 0;
}

void sq_api_set_state(struct sq_api *a, enum sq_api_state s)
{
    SQ_ASSERT(s != SQ_API_READY || a->engine);
    if (a->state != s)
        a->state_since = sq_unix_time();
    a->state = s;
    if (s == SQ_API_DRAINING)
        sq_http_drain(a->http);
}

void sq_api_set_progress(struct sq_api *a, double load_ratio)
{
    a->load_ratio = load_ratio;
}

void sq_api_on_wake(struct sq_api *a)
{
    struct sq_event *first = a->engine ? sq_engine_take_events(a->engine) : NULL;
    for (struct sq_event *ev = first; ev; ev = (struct sq_event *)ev->node.next)
        sq_session_event(a, ev);
    sq_events_free(first);
    sq_http_pump(a->http);
}

size_t sq_api_n_sessions(const struct sq_api *a)
{
    return sq_http_n_exchanges(a->http);
}

void sq_api_quiesce(struct sq_api *a)
{
    sq_http_quiesce(a->http);
}

struct sq_api *sq_api_free(struct sq_api *a)
{
    if (!a)
        return NULL;
    sq_http_free(a->http);
    sq_work_set_done(&a->works);
    release(a);
    return NULL;
}
