/* libmicrohttpd in external-loop mode under libuv.
 *
 * Each listener is one daemon of the library with its epoll descriptor under a uv_poll_t; sq_http_run() runs the library and arms one timer with
 * the library's own timeout. Rules that were measured and must be kept:
 *   - the library's timeout is read again after every run, 0 means run again (from a 0 ms timer, so that others get their turn);
 *   - run once more whenever a connection was closed in a run: at its connection limit the library re-adds its listening socket only at
 *     the start of a later run;
 *   - resume only what is flagged as suspended, then one run for the whole batch;
 *   - while a connection is suspended the library does not look at its socket, so a uv_poll_t for UV_DISCONNECT does. It reports a clean
 *     end as an event and a reset as an error: any callback means gone;
 *   - the library knows inactivity only, so the deadlines for head, body, idle and slow readers are timers of our own. */
#include "api/http.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/http_priv.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/threads.h"

/* --- the library's run ---------------------------------------------------------------------- */

static void on_listener_timer(uv_timer_t *t);

void sq_http_run(struct sq_listener *l)
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
    sq_http_run(t->data);
}

static void on_listener_poll(uv_poll_t *p, int status, int events)
{
    (void)status;
    (void)events;
    sq_http_run(p->data);
}

void sq_http_pump(struct sq_http *h)
{
    sq_list_each (it, &h->listeners) {
        struct sq_listener *l = sq_list_entry(it, struct sq_listener, link);
        if (l->again)
            sq_http_run(l);
    }
}

void sq_http_resume(struct sq_exchange *x)
{
    if (!x->suspended)
        return;
    x->suspended = false;
    x->conn->listener->again = true;
    MHD_resume_connection(x->mhd);
}

void sq_http_suspend(struct sq_exchange *x)
{
    SQ_ASSERT(!x->suspended);
    x->suspended = true;
    MHD_suspend_connection(x->mhd);
}

/* --- listeners -------------------------------------------------------------------- */

static void on_idle_timer(uv_timer_t *t)
{
    struct sq_http *h = t->data;
    if (!h->idle_told && !h->n_exchanges && h->hooks.idle) {
        h->idle_told = true;
        h->hooks.idle(h->hooks.ctx);
    }
}

void sq_http_check_idle(struct sq_http *h)
{
    if (h->draining && !h->ending && !h->n_exchanges)
        uv_timer_start(&h->idle_timer, on_idle_timer, 0, 0);
}

static size_t no_unescape(void *cls, struct MHD_Connection *mhd, char *s)
{
    (void)cls;
    (void)mhd;
    return strlen(s);
}

static void on_library_log(void *cls, const char *fmt, va_list ap)
    __attribute__((format(printf, 2, 0)));
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
    if (--l->n_handles)
        return;
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
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL,
        sq_exchange_on_request, l, MHD_OPTION_EXTERNAL_LOGGER, on_library_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)h->limits.max_connections, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)h->limits.max_head * 2 + 32768, MHD_OPTION_URI_LOG_CALLBACK, sq_exchange_on_target,
        l, MHD_OPTION_NOTIFY_COMPLETED, sq_exchange_on_completed, l, MHD_OPTION_NOTIFY_CONNECTION,
        sq_conn_on_connection, l, MHD_OPTION_UNESCAPE_CALLBACK, no_unescape, NULL, MHD_OPTION_END);
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
    sq_http_run(l);
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
    sq_http_run(l);
}

void sq_http_drain(struct sq_http *h)
{
    h->draining = true;
    sq_http_check_idle(h);
}

void sq_http_quiesce(struct sq_http *h)
{
    sq_list_each (it, &h->listeners)
        quiesce(sq_list_entry(it, struct sq_listener, link));
    sq_http_drain(h);
}

size_t sq_http_n_exchanges(const struct sq_http *h)
{
    return h->n_exchanges;
}

void sq_http_free(struct sq_http *h)
{
    h->draining = h->ending = true;
    sq_list_each (it, &h->exchanges) {
        struct sq_exchange *x = sq_list_entry(it, struct sq_exchange, link);
        if (x->owner)
            x->ops->abort(x->owner);
        if (x->stream)
            sq_exchange_end(x);
        else if (!x->reply.http)
            sq_conn_gone(x);
    }
    /* The library aborts the process if it is stopped with a suspended connection; it resumes them in its next runs. */
    sq_list_each (it, &h->listeners) {
        struct sq_listener *l = sq_list_entry(it, struct sq_listener, link);
        quiesce(l);
        for (int i = 0; i < 4; i++)
            sq_http_run(l);
        MHD_stop_daemon(l->mhd);
        sq_list_remove(&l->link);
        l->n_handles = 2;
        uv_close((uv_handle_t *)&l->poll, on_listener_closed);
        uv_close((uv_handle_t *)&l->timer, on_listener_closed);
    }
    uv_close((uv_handle_t *)&h->idle_timer, on_http_closed);
}
