#include "api/reply.h"

#include <stdarg.h>
#include <stdio.h>

#include "engine/base/check.h"
#include "engine/base/err.h"

static const struct {
    int http;
    const char *type, *code;
} statuses[] = {
    {200, "", ""},
#define STATUS(id, http, type, code) {http, type, code},
#include "api/status.def"
#undef STATUS
};

int sq_status_http(enum sq_status s)
{
    SQ_ASSERT(s < SQ_STATUS_MAX);
    return statuses[s].http;
}

const char *sq_status_code(enum sq_status s)
{
    SQ_ASSERT(s < SQ_STATUS_MAX);
    return statuses[s].code;
}

int sq_fault_set(struct sq_fault *f, enum sq_status s, const char *param, const char *fmt, ...)
{
    SQ_ASSERT(s > SQ_STATUS_OK && s < SQ_STATUS_MAX);
    *f = (struct sq_fault){.status = s};
    if (param)
        (void)snprintf(f->param, sizeof(f->param), "%s", param);
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(f->msg, sizeof(f->msg), fmt, ap);
    va_end(ap);
    return -SQ_E_INVAL;
}

int sq_fault_no_memory(struct sq_fault *f)
{
    return sq_fault_set(f, SQ_STATUS_INTERNAL, NULL, "out of memory");
}

void sq_fault_write(const struct sq_fault *f, struct sq_wbuf *o)
{
    sq_wbuf_puts(o, "{\"error\":{\"message\":");
    sq_wbuf_json_or_null(o, f->msg);
    sq_wbuf_puts(o, ",\"type\":");
    sq_wbuf_json_or_null(o, statuses[f->status].type);
    sq_wbuf_puts(o, ",\"param\":");
    sq_wbuf_json_or_null(o, f->param[0] ? f->param : NULL);
    sq_wbuf_puts(o, ",\"code\":");
    sq_wbuf_json_or_null(o, statuses[f->status].code);
    if (f->status == SQ_STATUS_CONTEXT)
        sq_wbuf_printf(o, ",\"n_prompt_tokens\":%lld,\"max_tokens\":%lld,\"n_ctx\":%lld",
                       (long long)f->counts[0], (long long)f->counts[1], (long long)f->counts[2]);
    sq_wbuf_puts(o, "}}");
}

void sq_reply_fault(struct sq_reply *r, const struct sq_fault *f)
{
    *r = (struct sq_reply){.http = sq_status_http(f->status),
                           .retry_ms = f->retry_ms,
                           .allow = f->allow,
                           .no_retry = f->no_retry};
    sq_fault_write(f, &r->body);
}
