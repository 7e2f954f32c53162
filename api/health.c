/* GET /health, /livez, /readyz: answered from a snapshot, so that a busy engine does not look dead. */
#include "api/api_priv.h"
#include "engine/base/threads.h"

static void answer(struct sq_api *a, struct sq_exchange *x, bool fine, enum sq_api_state state,
                   const struct sq_engine_stats *s)
{
    struct sq_reply r = {.http = fine ? 200 : 503};
    struct sq_wbuf *o = &r.body;
    sq_wbuf_printf(o, "{\"status\":\"%s\",\"state\":\"%s\",\"since\":%lld,\"model\":",
                   fine ? "ok" : "unavailable", sq_api_state_name(state),
                   (long long)a->state_since);
    sq_wbuf_json_or_null(o, a->names[0]);
    if (state == SQ_API_LOADING)
        sq_wbuf_printf(o, ",\"progress\":%.3f", a->load_ratio);
    sq_wbuf_printf(o, ",\"running\":%d,\"waiting\":%d,\"last_step_age_s\":", s->running,
                   s->waiting);
    uint64_t now = sq_now_ns();
    if (s->last_step_ns)
        sq_wbuf_printf(o, "%.3f}",
                       now > s->last_step_ns ? (double)(now - s->last_step_ns) / 1e9 : 0.0);
    else
        sq_wbuf_puts(o, "null}");
    if (!fine)
        r.retry_ms = 5000;
    sq_exchange_reply(x, &r);
}

void sq_health_handle(struct sq_api *a, struct sq_exchange *x)
{
    struct sq_engine_stats s;
    enum sq_api_state state = sq_api_state_now(a, &s);
    answer(a, x, state == SQ_API_READY, state, &s);
}

void sq_livez_handle(struct sq_api *a, struct sq_exchange *x)
{
    struct sq_engine_stats s;
    enum sq_api_state state = sq_api_state_now(a, &s);
    answer(a, x, state != SQ_API_STALLED && state != SQ_API_FAULT, state, &s);
}
