/* Connections: absolute deadlines for head, body, idle and slow readers, pings on silent streams, and the watch for clients that leave. */
#include <stdio.h>
#include <sys/socket.h>

#include "api/http_priv.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"

#define SEND_BUFFER_BYTES                                                                          \
    65536 /* without it a reader that never reads swallows megabytes before it is noticed */
#define CONN_MAGIC 0x636f6e6eu

/* --- deadlines ---------------------------------------------------------------------------------- */

static void on_conn_timer(uv_timer_t *t);

/* One timer for both times of a connection. It is only ever moved forward: a later time is found when it fires. */
static void schedule(struct sq_conn *c)
{
    uint64_t at = c->deadline_ms;
    if (c->ping_ms && (!at || c->ping_ms < at))
        at = c->ping_ms;
    if (!at)
        return;
    uint64_t now = uv_now(c->listener->http->loop);
    if (uv_is_active((uv_handle_t *)&c->timer) && now + uv_timer_get_due_in(&c->timer) <= at)
        return;
    uv_timer_start(&c->timer, on_conn_timer, at > now ? at - now : 0, 0);
}

void sq_conn_phase(struct sq_conn *c, enum sq_phase phase)
{
    const struct sq_api_limits *l = &c->listener->http->limits;
    const int64_t ms[] = {[SQ_PHASE_NONE] = 0,
                          [SQ_PHASE_HEAD] = l->head_timeout,
                          [SQ_PHASE_BODY] = l->body_timeout,
                          [SQ_PHASE_IDLE] = l->idle_timeout,
                          [SQ_PHASE_WRITE] = l->reader_timeout};
    c->phase = phase;
    c->deadline_ms = ms[phase] ? uv_now(c->listener->http->loop) + (uint64_t)ms[phase] : 0;
    schedule(c);
}

/* The library has no way to answer in the middle of an upload, so the bytes go to the socket directly: nothing was written on it for this
 * request, and nothing will be. */
static void answer_timeout(const struct sq_conn *c)
{
    struct sq_fault f;
    struct sq_wbuf o = {0}, body = {0};
    (void)sq_fault_set(&f, SQ_STATUS_TIMEOUT, NULL, "the body did not arrive in time");
    sq_fault_write(&f, &body);
    sq_wbuf_printf(
        &o,
        "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: application/json\r\n"
        "X-Request-Id: %s\r\nContent-Length: %zu\r\n\r\n",
        c->x->request_id, body.n);
    sq_wbuf_put(&o, body.data, body.n);
    if (!o.failed && !body.failed)
        (void)!send(c->fd, o.data, o.n, MSG_NOSIGNAL | MSG_DONTWAIT);
    sq_wbuf_done(&o);
    sq_wbuf_done(&body);
}

static void expire(struct sq_conn *c)
{
    if (c->phase == SQ_PHASE_BODY && c->x)
        answer_timeout(c);
    sq_conn_phase(c, SQ_PHASE_NONE);
    (void)shutdown(c->fd,
                   SHUT_RDWR); /* the library sees the end of the connection in its next run */
}

static void ping(struct sq_conn *c)
{
    struct sq_exchange *x = c->x;
    c->ping_ms = uv_now(c->listener->http->loop) + (uint64_t)c->listener->http->limits.sse_ping;
    if (x->stream_end || sq_fifo_n(&x->fifo))
        return;
    sq_sse_ping(sq_fifo_tail(&x->fifo));
    sq_http_resume(x);
    sq_http_run(c->listener);
}

static void on_conn_timer(uv_timer_t *t)
{
    struct sq_conn *c = t->data;
    SQ_MAGIC_CHECK(c, CONN_MAGIC);
    uint64_t now = uv_now(t->loop);
    if (c->deadline_ms && now >= c->deadline_ms)
        expire(c);
    else if (c->ping_ms && now >= c->ping_ms)
        ping(c);
    if (!uv_is_closing((uv_handle_t *)t))
        schedule(c);
}

/* --- the client is gone ---------------------------------------------------------------------------- */
void sq_conn_gone(struct sq_exchange *x)
{
    x->gone = true;
    void *owner = sq_exchange_detach(x);
    if (owner)
        x->ops->gone(owner);
    sq_http_resume(x);
}

static void on_watch(uv_poll_t *p, int status, int events)
{
    struct sq_conn *c = p->data;
    SQ_MAGIC_CHECK(c, CONN_MAGIC);
    uv_poll_stop(p);
    if (!c->x || c->x->gone)
        return;
    if (!status && (events & UV_DISCONNECT) && c->listener->http->half_close_keep)
        return; /* a reset later shows in the next write: pings see to that */
    sq_conn_gone(c->x);
    sq_http_run(c->listener);
}

/* The handle lives as long as the connection, the watching as long as an exchange that waits. */
void sq_conn_watch(struct sq_conn *c)
{
    if (!c->has_watch) {
        if (uv_poll_init(c->listener->http->loop, &c->watch, c->fd))
            return; /* without it the client's end shows at the next write only */
        c->watch.data = c;
        c->has_watch = true;
        c->n_handles++;
    }
    (void)uv_poll_start(&c->watch, UV_DISCONNECT, on_watch);
}
void sq_conn_start_ping(struct sq_conn *c)
{
    c->ping_ms = uv_now(c->listener->http->loop) + (uint64_t)c->listener->http->limits.sse_ping;
    schedule(c);
}

/* --- connections and listeners ------------------------------------------------------------------------------ */

static void on_conn_closed(uv_handle_t *handle)
{
    struct sq_conn *c = handle->data;
    if (!--c->n_handles)
        sq_free(c);
}

void sq_conn_on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                           enum MHD_ConnectionNotificationCode code)
{
    struct sq_listener *l = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        struct sq_conn *c = sq_new(struct sq_conn);
        *socket_context = c;
        if (!c)
            return; /* on_target then refuses its requests */
        SQ_MAGIC_SET(c, CONN_MAGIC);
        c->listener = l;
        c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        int bytes = SEND_BUFFER_BYTES;
        (void)setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
        uv_timer_init(l->http->loop, &c->timer);
        c->timer.data = c;
        c->n_handles = 1;
        sq_conn_phase(c, SQ_PHASE_HEAD);
        return;
    }
    struct sq_conn *c = *socket_context;
    l->n_closed++;
    *socket_context = NULL;
    if (!c)
        return;
    SQ_MAGIC_CHECK(c, CONN_MAGIC);
    uv_close((uv_handle_t *)&c->timer, on_conn_closed);
    if (c->has_watch)
        uv_close((uv_handle_t *)&c->watch, on_conn_closed);
}
