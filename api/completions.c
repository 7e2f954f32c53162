/* POST /v1/completions: from the body to a session, and the shapes of its answers. */
#include "api/completions.h"

#include "api/api_priv.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"

/* --- shapes ---------------------------------------------------------------------------------------- */

static void write_head(struct sq_session *s, struct sq_wbuf *o)
{
    sq_wbuf_printf(o, "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%lld,\"model\":",
                   s->id, (long long)s->created);
    sq_wbuf_json_or_null(o, s->api->names[0]);
    sq_wbuf_printf(o, ",\"system_fingerprint\":\"%s\",\"choices\":[", s->api->fingerprint);
}

static void write_usage(struct sq_session *s, struct sq_wbuf *o)
{
    int64_t n = 0;
    for (int i = 0; i < s->n_choices; i++)
        n += s->choices[i].n_generated;
    sq_wbuf_printf(
        o,
        "\"usage\":{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
        "\"prompt_tokens_details\":{\"cached_tokens\":0}}",
        (long long)s->req.n_prompt_tokens, (long long)n, (long long)(s->req.n_prompt_tokens + n));
}

static void write_choice(struct sq_choice *c, struct sq_wbuf *o)
{
    static const char *const reasons[] = {"null}", "\"stop\"}", "\"length\"}"};
    sq_wbuf_puts(o, "{\"index\":");
    sq_wbuf_int(o, c->index);
    sq_wbuf_puts(o, ",\"text\":");
    sq_wbuf_json(o, c->text.data ? c->text.data : "", c->text.n);
    sq_wbuf_puts(o, ",\"logprobs\":null,\"finish_reason\":");
    sq_wbuf_puts(o, reasons[c->end]);
}

bool sq_completion_shape(struct sq_session *s)
{
    if (!s->req.stream)
        return true;
    sq_sse_begin(&s->prefix);
    write_head(s, &s->prefix);
    sq_wbuf_puts(&s->suffix, s->req.include_usage ? "],\"usage\":null}" : "]}");
    sq_sse_end(&s->suffix);
    return !s->prefix.failed && !s->suffix.failed;
}

void sq_completion_chunk(struct sq_session *s, struct sq_choice *c)
{
    struct sq_wbuf *o = sq_fifo_tail(&s->x->fifo);
    sq_wbuf_put(o, s->prefix.data, s->prefix.n);
    write_choice(c, o);
    sq_wbuf_put(o, s->suffix.data, s->suffix.n);
    c->text.n = 0;
}

void sq_completion_stream_end(struct sq_session *s)
{
    struct sq_wbuf *o = sq_fifo_tail(&s->x->fifo);
    if (s->req.include_usage) {
        sq_wbuf_put(o, s->prefix.data, s->prefix.n);
        sq_wbuf_puts(o, "],");
        write_usage(s, o);
        sq_wbuf_puts(o, "}");
        sq_sse_end(o);
    }
    sq_sse_finished(o);
}

void sq_completion_body(struct sq_session *s, struct sq_wbuf *o)
{
    write_head(s, o);
    for (int i = 0; i < s->n_choices; i++) {
        if (i)
            sq_wbuf_puts(o, ",");
        write_choice(&s->choices[i], o);
    }
    sq_wbuf_puts(o, "],");
    write_usage(s, o);
    sq_wbuf_puts(o, "}");
}

/* --- the handler --------------------------------------------------------------------------------------- */

struct prepare {
    struct sq_work work; /* first */
    const struct sq_border *border;
    struct sq_wbuf body;
    struct sq_completion req;
    struct sq_fault fault;
};

static void prepare_run(struct sq_work *w)
{
    struct prepare *p = (struct prepare *)w;
    int rc = sq_completion_parse(&p->req, p->body.data, p->body.n, p->border, &p->fault);
    if (!rc && p->border->tokenizer)
        rc = sq_completion_tokenise(&p->req, p->border, &p->fault);
    SQ_ASSERT(!rc == !p->fault.status);
}

static void prepare_done(struct sq_api *a, struct sq_work *w)
{
    struct prepare *p = (struct prepare *)w;
    sq_metric_add(SQ_M_UNKNOWN_FIELDS, (uint64_t)p->req.n_unknown);
    struct sq_fault closed;
    if (p->fault.status)
        sq_exchange_fault(w->x, &p->fault);
    else if (sq_api_closed(a, &closed))
        sq_session_reject(a, w->x, &closed);
    else
        sq_session_start(a, w->x, &p->req);
}

static void prepare_free(struct sq_work *w)
{
    struct prepare *p = (struct prepare *)w;
    sq_wbuf_done(&p->body);
    sq_completion_done(&p->req);
    sq_free(p);
}

void sq_completions_handle(struct sq_api *a, struct sq_exchange *x)
{
    struct prepare *p = sq_new(struct prepare);
    if (!p) {
        struct sq_fault f;
        (void)sq_fault_no_memory(&f);
        sq_exchange_fault(x, &f);
        return;
    }
    p->work.run = prepare_run;
    p->work.done = prepare_done;
    p->work.free = prepare_free;
    p->border = &a->border;
    p->body = x->body;
    x->body = (struct sq_wbuf){0};
    /* Without a model the border may still change: no worker may look at it then. */
    bool small = !a->engine || p->body.n <= (size_t)a->border.limits.offload_body;
    sq_work_submit(&a->works, &p->work, x, small);
}
