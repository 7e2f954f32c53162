/* libmicrohttpd in external-loop mode under libuv.
 *
 * Each listener is one daemon of the library with its epoll descriptor under a uv_poll_t; pump() runs the library and arms one timer with the
 * library's own timeout. Rules that were measured and must be kept:
 *   - the library's timeout is read again after every run, 0 means run again (from a 0 ms timer, so that others get their turn);
 *   - run once more whenever a connection was closed in a run: at its connection limit the library re-adds its listening socket only at
 *     the start of a later run;
 *   - resume only what is flagged as suspended, then one run for the whole batch;
 *   - while a connection is suspended the library does not look at its socket, so a uv_poll_t for UV_DISCONNECT does. It reports a clean
 *     end as an event and a reset as an error: any callback means gone;
 *   - the library knows inactivity only, so the deadlines for head, body, idle and slow readers are timers of our own. */
#include "api/http.h"

#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/threads.h"

#define BLOCK_BYTES 16384
#define SEND_BUFFER_BYTES 65536 /* without it a reader that never reads swallows megabytes before it is noticed */
#define DISCARD_MORE_BYTES 1048576 /* of a chunked body that is too large, beyond the largest one taken */
#define CONN_MAGIC 0x636f6e6eu

enum phase { PHASE_NONE, PHASE_HEAD, PHASE_BODY, PHASE_IDLE, PHASE_WRITE };

struct sq_listener {
    struct sq_list link;
    struct sq_http *http;
    char *name;
    struct MHD_Daemon *mhd;
    uv_poll_t poll;
    uv_timer_t timer;
    bool running, again; /* inside MHD_run; something was resumed meanwhile */
    unsigned n_closed;   /* connections, ever */
    bool quiesced;
};

struct sq_conn {
    uint32_t magic;
    struct sq_listener *listener;
    struct sq_exchange *x; /* the current one, or NULL */
    int fd;
    uv_timer_t timer;
    uv_poll_t watch;
    bool has_watch;
    int n_handles;                 /* open ones: freed with the last */
    enum phase phase;
    uint64_t deadline_ms, ping_ms; /* on the loop's clock, 0 = none */
};

struct sq_http {
    uv_loop_t *loop;
    struct sq_api_limits limits;
    bool allow_chunked, half_close_keep, quiesced, ending, idle_told;
    struct sq_http_hooks hooks;
    struct sq_list listeners, exchanges;
    size_t n_exchanges; /* dispatched */
    uv_timer_t idle_timer;
    int n_handles;
    uint64_t id_salt, n_ids;
};

/* --- the library's run ---------------------------------------------------------------------- */

static void on_listener_timer(uv_timer_t *t);

static void pump(struct sq_listener *l)
{
    if (l->running) { /* a callback of the library: its run ends soon and looks at `again` */
        l->again = true;
        return;
    }
    unsigned closed;
    l->running = true;
    do {
        closed = l->n_closed;
        l->again = false;
        MHD_run(l->mhd);
    } while (l->again || closed != l->n_closed);
    l->running = false;
    MHD_UNSIGNED_LONG_LONG ms;
    if (MHD_get_timeout(l->mhd, &ms) == MHD_YES)
        uv_timer_start(&l->timer, on_listener_timer, ms, 0);
    else
        uv_timer_stop(&l->timer);
}

static void on_listener_timer(uv_timer_t *t)
{
    pump(t->data);
}

static void on_listener_poll(uv_poll_t *p, int status, int events)
{
    (void)status;
    (void)events;
    pump(p->data);
}

void sq_http_pump(struct sq_http *h)
{
    sq_list_each(it, &h->listeners)
    {
        struct sq_listener *l = sq_list_entry(it, struct sq_listener, link);
        if (l->again)
            pump(l);
    }
}

static void resume(struct sq_exchange *x)
{
    if (!x->suspended)
        return;
    x->suspended = false;
    x->conn->listener->again = true;
    MHD_resume_connection(x->mhd);
}

static void suspend(struct sq_exchange *x)
{
    SQ_ASSERT(!x->suspended);
    x->suspended = true;
    MHD_suspend_connection(x->mhd);
}

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

static void set_phase(struct sq_conn *c, enum phase phase)
{
    const struct sq_api_limits *l = &c->listener->http->limits;
    const int64_t ms[] = {[PHASE_NONE] = 0,
                          [PHASE_HEAD] = l->head_timeout,
                          [PHASE_BODY] = l->body_timeout,
                          [PHASE_IDLE] = l->idle_timeout,
                          [PHASE_WRITE] = l->reader_timeout};
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
    sq_wbuf_printf(&o,
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
    if (c->phase == PHASE_BODY && c->x)
        answer_timeout(c);
    set_phase(c, PHASE_NONE);
    (void)shutdown(c->fd, SHUT_RDWR); /* the library sees the end of the connection in its next run */
}

static void ping(struct sq_conn *c)
{
    struct sq_exchange *x = c->x;
    c->ping_ms = uv_now(c->listener->http->loop) + (uint64_t)c->listener->http->limits.sse_ping;
    if (x->stream_end || sq_fifo_n(&x->fifo))
        return;
    sq_sse_ping(sq_fifo_tail(&x->fifo));
    resume(x);
    pump(c->listener);
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

static void *detach(struct sq_exchange *x)
{
    void *owner = x->owner;
    x->owner = NULL;
    return owner;
}

static void mark_gone(struct sq_exchange *x)
{
    x->gone = true;
    void *owner = detach(x);
    if (owner)
        x->ops->gone(owner);
    resume(x);
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
    mark_gone(c->x);
    pump(c->listener);
}

/* The handle lives as long as the connection, the watching as long as an exchange that waits. */
static void watch(struct sq_conn *c)
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

/* --- answers ------------------------------------------------------------------------------------------ */

static ssize_t read_stream(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct sq_exchange *x = cls;
    (void)pos;
    if (x->gone)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = sq_fifo_read(&x->fifo, buf, max);
    if (n) {
        set_phase(x->conn, PHASE_WRITE);
        if (x->owner)
            x->ops->drained(x->owner);
        return (ssize_t)n;
    }
    if (x->stream_end)
        return MHD_CONTENT_READER_END_OF_STREAM;
    set_phase(x->conn, PHASE_NONE); /* called with nothing to give: all earlier bytes are with the kernel */
    suspend(x);
    return 0;
}

static ssize_t read_body(void *cls, uint64_t pos, char *buf, size_t max)
{
    struct sq_exchange *x = cls;
    SQ_ASSERT(pos <= x->reply.body.n);
    size_t n = SQ_MIN(x->reply.body.n - (size_t)pos, max);
    memcpy(buf, x->reply.body.data + pos, n);
    set_phase(x->conn, PHASE_WRITE);
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
        MHD_add_response_header(r, "Content-Type", x->reply.type ? x->reply.type : "application/json");
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
    if (x->close || x->http->quiesced)
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
        r = MHD_create_response_from_buffer(x->reply.body.n, x->reply.body.data, MHD_RESPMEM_PERSISTENT);
    else
        r = MHD_create_response_from_callback(x->reply.body.n, BLOCK_BYTES, read_body, x, NULL);
    if (!r)
        return MHD_NO;
    add_headers(r, x);
    x->queued = true;
    set_phase(x->conn, PHASE_WRITE);
    enum MHD_Result rc = MHD_queue_response(x->mhd, (unsigned)(x->stream ? 200 : x->reply.http), r);
    MHD_destroy_response(r);
    return rc;
}

static void start_ping(struct sq_exchange *x)
{
    x->conn->ping_ms = uv_now(x->http->loop) + (uint64_t)x->http->limits.sse_ping;
    schedule(x->conn);
}

/* Queues what is there, or waits for it with the client under watch. */
static enum MHD_Result answer(struct sq_exchange *x)
{
    if (x->gone)
        return MHD_NO;
    if (x->reply.http || x->stream) {
        if (x->stream) {
            watch(x->conn);
            start_ping(x);
        }
        return queue(x);
    }
    watch(x->conn);
    suspend(x);
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
    resume(x);
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
    x->fifo.out.max = (size_t)x->http->limits.stream_buffer * 4 + 65536; /* credit keeps it far below */
    resume(x);
}

void sq_exchange_flush(struct sq_exchange *x)
{
    x->conn->ping_ms = uv_now(x->http->loop) + (uint64_t)x->http->limits.sse_ping;
    resume(x);
}

void sq_exchange_end(struct sq_exchange *x)
{
    x->stream_end = true;
    resume(x);
}

/* --- requests -------------------------------------------------------------------------------------------- */

static struct sq_conn *conn_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info ? info->socket_context : NULL;
}

/* The request line is there: the exchange begins, and the deadline of the head. */
static void *on_target(void *cls, const char *uri, struct MHD_Connection *mhd)
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
    set_phase(c, PHASE_HEAD);
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
    set_phase(x->conn, PHASE_BODY);
    return MHD_YES;
}

static enum MHD_Result on_body(struct sq_exchange *x, const char *data, size_t n)
{
    size_t max = (size_t)x->http->limits.max_body;
    if (!x->fault.status && x->body.n + n > max) /* only chunked bodies come here */
        (void)sq_fault_set(&x->fault, SQ_STATUS_BODY_TOO_LARGE, NULL, "the body is larger than %zu bytes",
                           max);
    if (x->fault.status) {
        sq_wbuf_done(&x->body);
        x->sent += n; /* read and dropped, so that the answer finds a client that listens */
        return x->sent > max + DISCARD_MORE_BYTES ? MHD_NO : MHD_YES;
    }
    sq_wbuf_put(&x->body, data, n);
    if (!x->body.failed)
        return MHD_YES;
    sq_wbuf_done(&x->body);
    (void)sq_fault_set(&x->fault, SQ_STATUS_INTERNAL, NULL, "out of memory");
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url,
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
        set_phase(x->conn, PHASE_NONE);
        if (x->fault.status)
            sq_exchange_fault(x, &x->fault);
        else
            x->http->hooks.request(x->http->hooks.ctx, x);
    }
    return answer(x);
}

static void on_idle_timer(uv_timer_t *t)
{
    struct sq_http *h = t->data;
    if (!h->idle_told && !h->n_exchanges && h->hooks.idle) {
        h->idle_told = true;
        h->hooks.idle(h->hooks.ctx);
    }
}

static void check_idle(struct sq_http *h)
{
    if (h->quiesced && !h->ending && !h->n_exchanges)
        uv_timer_start(&h->idle_timer, on_idle_timer, 0, 0);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **req_cls,
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
    void *owner = detach(x);
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
    set_phase(x->conn, PHASE_IDLE);
    sq_list_remove(&x->link);
    sq_free(x->target);
    sq_wbuf_done(&x->body);
    sq_wbuf_done(&x->reply.body);
    sq_fifo_done(&x->fifo);
    sq_free(x);
    check_idle(h);
}

/* --- connections and listeners ------------------------------------------------------------------------------ */

static void on_conn_closed(uv_handle_t *handle)
{
    struct sq_conn *c = handle->data;
    if (!--c->n_handles)
        sq_free(c);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
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
        set_phase(c, PHASE_HEAD);
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

static size_t no_unescape(void *cls, struct MHD_Connection *mhd, char *s)
{
    (void)cls;
    (void)mhd;
    return strlen(s);
}

static void on_library_log(void *cls, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
static void on_library_log(void *cls, const char *fmt, va_list ap)
{
    char line[256];
    (void)cls;
    if (!sq_log_enabled(SQ_LOG_DEBUG))
        return;
    (void)vsnprintf(line, sizeof(line), fmt, ap);
    line[strcspn(line, "\r\n")] = 0;
    sq_debug("http", "library: %s", line);
}

/* Inherited by accepted TCP sockets; a Unix socket refuses them, which does no harm. */
static void set_keepalive(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {{SOL_SOCKET, SO_KEEPALIVE, 1},
                   {IPPROTO_TCP, TCP_KEEPIDLE, 30},
                   {IPPROTO_TCP, TCP_KEEPINTVL, 10},
                   {IPPROTO_TCP, TCP_KEEPCNT, 3},
                   {IPPROTO_TCP, TCP_USER_TIMEOUT, 60000}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(options); i++)
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int));
}

static void http_release(struct sq_http *h)
{
    if (!--h->n_handles)
        sq_free(h);
}

static void on_http_closed(uv_handle_t *handle)
{
    http_release(handle->data);
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct sq_listener *l = handle->data;
    if (handle == (uv_handle_t *)&l->poll) {
        uv_close((uv_handle_t *)&l->timer, on_listener_closed);
        return;
    }
    struct sq_http *h = l->http;
    sq_free(l->name);
    sq_free(l);
    http_release(h);
}

int sq_http_listen(struct sq_http *h, int fd, const char *name, struct sq_err *err)
{
    struct sq_listener *l = sq_new(struct sq_listener);
    char *copy = sq_strdup(name);
    if (!l || !copy) {
        sq_free(l);
        sq_free(copy);
        return sq_fail(err, SQ_E_NOMEM, "listener %s: out of memory", name);
    }
    l->http = h;
    l->name = copy;
    set_keepalive(fd);
    l->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_request, l,
        MHD_OPTION_EXTERNAL_LOGGER, on_library_log, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_CONNECTION_LIMIT, (unsigned)h->limits.max_connections,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)h->limits.max_head * 2 + 32768,
        MHD_OPTION_URI_LOG_CALLBACK, on_target, l, MHD_OPTION_NOTIFY_COMPLETED, on_completed, l,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, l, MHD_OPTION_UNESCAPE_CALLBACK, no_unescape, NULL,
        MHD_OPTION_END);
    int epoll_fd = l->mhd ? MHD_get_daemon_info(l->mhd, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd : -1;
    if (!l->mhd || uv_poll_init(h->loop, &l->poll, epoll_fd)) {
        int saved = errno;
        if (l->mhd) {
            (void)MHD_quiesce_daemon(l->mhd); /* the socket stays the caller's */
            MHD_stop_daemon(l->mhd);
        }
        sq_free(l->name);
        sq_free(l);
        return sq_fail(err, SQ_E_IO, "cannot serve on %s: %s", name, strerror(saved));
    }
    uv_timer_init(h->loop, &l->timer);
    l->poll.data = l->timer.data = l;
    h->n_handles++;
    sq_list_append(&h->listeners, &l->link);
    uv_poll_start(&l->poll, UV_READABLE, on_listener_poll);
    pump(l);
    return 0;
}

int sq_http_new(struct uv_loop_s *loop, const struct sq_api_limits *limits, bool allow_chunked,
                bool half_close_keep, const struct sq_http_hooks *hooks, struct sq_http **ret,
                struct sq_err *err)
{
    struct sq_http *h = sq_new(struct sq_http);
    if (!h)
        return sq_fail(err, SQ_E_NOMEM, "HTTP server: out of memory");
    h->loop = loop;
    h->limits = *limits;
    h->allow_chunked = allow_chunked;
    h->half_close_keep = half_close_keep;
    h->hooks = *hooks;
    if (uv_random(NULL, NULL, &h->id_salt, sizeof(h->id_salt), 0, NULL))
        h->id_salt = sq_now_ns();
    sq_list_init(&h->listeners);
    sq_list_init(&h->exchanges);
    uv_timer_init(loop, &h->idle_timer);
    h->idle_timer.data = h;
    h->n_handles = 1;
    *ret = h;
    return 0;
}

static void quiesce(struct sq_listener *l)
{
    if (l->quiesced)
        return;
    l->quiesced = true;
    int fd = MHD_quiesce_daemon(l->mhd);
    if (fd >= 0)
        (void)close(fd);
    pump(l);
}

void sq_http_quiesce(struct sq_http *h)
{
    h->quiesced = true;
    sq_list_each(it, &h->listeners)
        quiesce(sq_list_entry(it, struct sq_listener, link));
    check_idle(h);
}

size_t sq_http_n_exchanges(const struct sq_http *h)
{
    return h->n_exchanges;
}

void sq_http_free(struct sq_http *h)
{
    h->quiesced = h->ending = true;
    sq_list_each(it, &h->exchanges)
    {
        struct sq_exchange *x = sq_list_entry(it, struct sq_exchange, link);
        if (x->owner)
            x->ops->abort(x->owner);
        if (x->stream)
            sq_exchange_end(x);
        else if (!x->reply.http)
            mark_gone(x);
    }
    /* The library aborts the process if it is stopped with a suspended connection; it resumes them in its next runs. */
    sq_list_each(it, &h->listeners)
    {
        struct sq_listener *l = sq_list_entry(it, struct sq_listener, link);
        quiesce(l);
        for (int i = 0; i < 4; i++)
            pump(l);
        MHD_stop_daemon(l->mhd);
        sq_list_remove(&l->link);
        uv_close((uv_handle_t *)&l->poll, on_listener_closed);
    }
    uv_close((uv_handle_t *)&h->idle_timer, on_http_closed);
}
