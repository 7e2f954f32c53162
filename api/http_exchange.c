/* Exchanges: requests as they come in piece by piece, and answers as they go out. */
#include <stdio.h>
#include <string.h>

#include "api/http_priv.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/threads.h"

#define BLOCK_BYTES 16384
#define DISCARD_MORE_BYTES                                                                         \
    1048576 /* of a chunked body that is too large, beyond the largest one taken */

void *sq_exchange_detach(struct sq_exchange *x)
{
    void *owner = x->owner;
    x->owner = NULL;
    return owner;
}

/* --- answers ------------------------------------------------------------------------------------------ */

static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct sq_exchange *x = cls;
    (void)pos;
    if (x->gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = sq_fifo_read(&x->fifo, buf, max);
    if (n) {
        sq_conn_phase(x->conn, SQ_PHASE_WRITE);
        if (x->owner)
            x->ops->drained(x->owner);
        return (ssize_t)n;
    }
    if (x->stream_end)
        return MHD_CONTENT_READER_END_OF_STREAM;
    sq_conn_phase(
        x->conn,
        SQ_PHASE_NONE); /* called with nothing to give: all earlier bytes are with the kernel */
    sq_http_suspend(x);
    return 0;
}

static ssize_t read_body(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct sq_exchange *x = cls;
    SQ_ASSERT(pos <= x->reply.body.n);
    size_t n = SQ_MIN(x->reply.body.n - (size_t)pos, max);
    memcpy(buf, x->reply.body.data + pos, n);
    sq_conn_phase(x->conn, SQ_PHASE_WRITE);
    return (ssize_t)n;
}

static void add_headers(struct MHD_Response *r, struct sq_exchange *x)
{
    char num[32];
    MHD_add_response_header(r, "X-Request-Id", x->request_id);
    if (x->stream) {
        MHD_add_response_header(r, "Content-Type", "text/event-stream; charset=utf-8");
        MHD_add_response_header(r, "Cache-Control", "no-cache");
        MHD_add_response_header(r, "X-Accel-Buffering", "no");
    } else {
        MHD_add_response_header(r, "Content-Type",
                                x->reply.type ? x->reply.type : "application/json");
    }
    if (x->reply.allow)
        MHD_add_response_header(r, "Allow", x->reply.allow);
    if (x->reply.retry_ms) {
        (void)snprintf(num, sizeof(num), "%lld", (long long)((x->reply.retry_ms + 999) / 1000));
        MHD_add_response_header(r, "Retry-After", num);
        (void)snprintf(num, sizeof(num), "%lld", (long long)x->reply.retry_ms);
        MHD_add_response_header(r, "retry-after-ms", num);
    }
    if (x->reply.no_retry)
        MHD_add_response_header(r, "x-should-retry", "false");
    if (x->close || x->http->draining)
        MHD_add_response_header(r, "Connection", "close");
}

static enum MHD_Result queue(struct sq_exchange *x)
{
    struct MHD_Response *r;
    if (!x->stream && x->reply.body.failed) {
        sq_wbuf_done(&x->reply.body);
        return MHD_NO; /* no memory even for an error */
    }
    if (x->stream)
        r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK_BYTES, read_stream, x, NULL);
    else if (x->reply.body.n <= BLOCK_BYTES)
        r = MHD_create_response_from_buffer(x->reply.body.n, x->reply.body.data,
                                            MHD_RESPMEM_PERSISTENT);
    else
        r = MHD_create_response_from_callback(x->reply.body.n, BLOCK_BYTES, read_body, x, NULL);
    if (!r)
        return MHD_NO;
    add_headers(r, x);
    x->queued = true;
    sq_conn_phase(x->conn, SQ_PHASE_WRITE);
    enum MHD_Result rc = MHD_queue_response(x->mhd, (unsigned)(x->stream ? 200 : x->reply.http), r);
    MHD_destroy_response(r);
    return rc;
}
/* Queues what is there, or waits for it with the client under watch. */
static enum MHD_Result answer(struct sq_exchange *x)
{
    if (x->gone)
        return MHD_NO;
    if (x->reply.http || x->stream) {
        if (x->stream) {
            sq_conn_watch(x->conn);
            sq_conn_start_ping(x->conn);
        }
        return queue(x);
    }
    sq_conn_watch(x->conn);
    sq_http_suspend(x);
    return MHD_YES;
}

void sq_exchange_own(struct sq_exchange *x, void *owner, const struct sq_owner_ops *ops)
{
    x->owner = owner;
    x->ops = ops;
}

void sq_exchange_reply(struct sq_exchange *x, struct sq_reply *r)
{
    SQ_ASSERT(!x->reply.http && !x->stream);
    x->reply = *r;
    r->body = (struct sq_wbuf){0};
    sq_http_resume(x);
}

void sq_exchange_fault(struct sq_exchange *x, const struct sq_fault *f)
{
    struct sq_reply r;
    sq_reply_fault(&r, f);
    if (!x->outcome)
        x->outcome = sq_status_code(f->status);
    sq_exchange_reply(x, &r);
}

void sq_exchange_stream(struct sq_exchange *x)
{
    SQ_ASSERT(!x->reply.http && !x->stream);
    x->stream = true;
    x->fifo.out.max =
        (size_t)x->http->limits.stream_buffer * 4 + 65536; /* credit keeps it far below */
    sq_http_resume(x);
}

void sq_exchange_flush(struct sq_exchange *x)
{
    x->conn->ping_ms = uv_now(x->http->loop) + (uint64_t)x->http->limits.sse_ping;
    sq_http_resume(x);
}

void sq_exchange_end(struct sq_exchange *x)
{
    x->stream_end = true;
    sq_http_resume(x);
}

/* --- requests -------------------------------------------------------------------------------------------- */

static struct sq_conn *conn_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

/* The request line is there: the exchange begins, and the deadline of the head. */
void *sq_exchange_on_target(void *cls, const char *uri, struct MHD_Connection *mhd)
{
    struct sq_listener *l = cls;
    struct sq_conn *c = conn_of(mhd);
    struct sq_exchange *x = c ? sq_new(struct sq_exchange) : NULL;
    if (!x)
        return NULL;
    x->target = sq_strdup(uri);
    if (!x->target) {
        sq_free(x);
        return NULL;
    }
    x->http = l->http;
    x->conn = c;
    x->mhd = mhd;
    x->t_start_ns = sq_now_ns();
    x->route = SQ_ROUTE_NONE;
    x->content_length = -1;
    sq_list_append(&l->http->exchanges, &x->link);
    c->x = x;
    sq_conn_phase(c, SQ_PHASE_HEAD);
    return x;
}

static enum MHD_Result on_field(void *cls, enum MHD_ValueKind kind, const char *name, size_t n_name,
                                const char *value, size_t n_value)
{
    struct sq_head *h = cls;
    (void)kind;
    if (h->n_fields < SQ_HEAD_MAX_FIELDS)
        h->fields[h->n_fields] = (struct sq_field){name, value ? value : "", n_name, n_value};
    h->n_fields++;
    return MHD_YES;
}

static enum MHD_Result refuse(struct sq_exchange *x, const struct sq_fault *f)
{
    x->close = x->dispatched = true;
    x->http->n_exchanges++;
    sq_exchange_fault(x, f);
    return queue(x);
}

static enum MHD_Result on_head(struct sq_exchange *x, const char *method, const char *version)
{
    struct sq_http *http = x->http;
    struct sq_head h = {.method = method, .version = version, .target = x->target};
    MHD_get_connection_values_n(x->mhd, MHD_HEADER_KIND, on_field, &h);
    struct sq_fault f = {0};
    x->head_seen = true;
    int rc = sq_head_check(&h, &http->limits, http->allow_chunked, &f);
    if (h.request_id)
        (void)snprintf(x->request_id, sizeof(x->request_id), "%s", h.request_id);
    else
        (void)snprintf(x->request_id, sizeof(x->request_id), "req-%016llx%08llx",
                       (unsigned long long)http->id_salt, (unsigned long long)++http->n_ids);
    x->verb = h.verb;
    x->content_length = h.content_length;
    if (rc)
        return refuse(x, &f);
    x->route = sq_route_find(x->target, x->arg, sizeof(x->arg));
    /* An answer queued now closes the connection. It keeps open if the body is read first, so that is done where there is one that is
     * small enough and already on its way. */
    if (sq_route_check(x->route, &h, &http->limits, &x->fault) &&
        (h.expect_continue || h.content_length > http->limits.max_body))
        return refuse(x, &x->fault);
    sq_conn_phase(x->conn, SQ_PHASE_BODY);
    return MHD_YES;
}

static enum MHD_Result on_body(struct sq_exchange *x, const char *data, size_t n)
{
    size_t max = (size_t)x->http->limits.max_body;
    if (!x->fault.status && x->body.n + n > max) /* only chunked bodies come here */
        (void)sq_fault_set(&x->fault, SQ_STATUS_BODY_TOO_LARGE, NULL,
                           "the body is larger than %zu bytes", max);
    if (x->fault.status) {
        sq_wbuf_done(&x->body);
        x->sent += n; /* read and dropped, so that the answer finds a client that listens */
        return x->sent > max + DISCARD_MORE_BYTES ? MHD_NO : MHD_YES;
    }
    sq_wbuf_put(&x->body, data, n);
    if (!x->body.failed)
        return MHD_YES;
    sq_wbuf_done(&x->body);
    (void)sq_fault_no_memory(&x->fault);
    return MHD_YES;
}

enum MHD_Result sq_exchange_on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                       const char *method, const char *version, const char *data,
                                       size_t *n_data, void **req_cls)
{
    struct sq_exchange *x = *req_cls;
    (void)cls;
    (void)mhd;
    (void)url;
    if (!x)
        return MHD_NO;
    if (!x->head_seen)
        return on_head(x, method, version);
    if (*n_data) {
        size_t n = *n_data;
        *n_data = 0;
        return on_body(x, data, n);
    }
    if (!x->dispatched) {
        x->dispatched = true;
        x->http->n_exchanges++;
        sq_conn_phase(x->conn, SQ_PHASE_NONE);
        if (x->fault.status)
            sq_exchange_fault(x, &x->fault);
        else
            x->http->hooks.request(x->http->hooks.ctx, x);
    }
    return answer(x);
}
void sq_exchange_on_completed(void *cls, struct MHD_Connection *mhd, void **req_cls,
                              enum MHD_RequestTerminationCode code)
{
    struct sq_exchange *x = *req_cls;
    (void)cls;
    (void)mhd;
    *req_cls = NULL;
    if (!x)
        return;
    struct sq_http *h = x->http;
    x->gone |= code != MHD_REQUEST_TERMINATED_COMPLETED_OK;
    void *owner = sq_exchange_detach(x);
    if (owner)
        x->ops->gone(owner);
    if (x->dispatched) {
        h->n_exchanges--;
        h->hooks.finished(h->hooks.ctx, x);
    }
    if (x->conn->has_watch)
        uv_poll_stop(&x->conn->watch);
    x->conn->x = NULL;
    x->conn->ping_ms = 0;
    sq_conn_phase(x->conn, SQ_PHASE_IDLE);
    sq_list_remove(&x->link);
    sq_free(x->target);
    sq_wbuf_done(&x->body);
    sq_wbuf_done(&x->reply.body);
    sq_fifo_done(&x->fifo);
    sq_free(x);
    sq_http_check_idle(h);
}
