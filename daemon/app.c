/* Threads: the loop thread (this one) owns HTTP, sessions, signals and notifications. A loader thread lives from start until the model is
 * there; clients meanwhile get 503. The engine has its own thread; its wake-ups arrive here through one uv_async.
 *
 *   LOADING --loaded--> SERVING --SIGTERM--> DRAINING --idle or timeout or second SIGTERM--> ENDED
 *      |                    |--device fault--> FAULT --1 s--> ENDED (exit code 70)
 *      '--load failed or SIGTERM--> ENDED */
#include "daemon/app.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <uv.h>

#include "daemon/cmd.h"
#include "daemon/listen.h"
#include "daemon/load.h"
#include "daemon/notify.h"
#include "daemon/plan.h"
#include "engine/base/check.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"
#include "engine/base/threads.h"

#define MAX_SOCKETS 32
#define TICK_MS 250
#define FAULT_LINGER_MS 1000 /* failed requests get their error before the process ends */

enum phase { LOADING, SERVING, DRAINING, FAULT, ENDED };

struct app {
    const struct sq_settings *s;
    sq_reload_fn reload;
    void *reload_ctx;
    uv_loop_t loop;
    uv_async_t wake;   /* the engine has events */
    uv_async_t loader; /* the loader has progress, or has ended */
    uv_timer_t tick, watchdog, deadline;
    uv_signal_t on_term, on_int, on_hup;
    struct sq_api *api;
    enum phase phase;
    bool activated; /* sockets came from the service manager: they outlive us */
    bool stalled;
    int exit_code;
    uint64_t drain_ms, ticks;

    pthread_t load_thread;
    bool load_joined;
    struct sq_loaded loaded; /* written by the loader, read after the join */
    struct sq_err load_err;
    int load_rc;
    _Atomic double load_ratio;
    _Atomic bool load_ended, load_stop;
};

static void end(struct app *a, int exit_code)
{
    a->phase = ENDED;
    a->exit_code = exit_code;
    uv_stop(&a->loop);
}

/* --- loading --- */

static void load_progress(void *ctx, double ratio)
{
    struct app *a = ctx;
    atomic_store(&a->load_ratio, ratio);
    uv_async_send(&a->loader);
}

static void engine_wake(void *ctx)
{
    struct app *a = ctx;
    uv_async_send(&a->wake);
}

static void *load_main(void *arg)
{
    struct app *a = arg;
    struct sq_load_hooks hooks = {
        .progress = load_progress, .wake = engine_wake, .ctx = a, .stop = &a->load_stop};
    a->load_rc = sq_load(a->s, &hooks, &a->loaded, &a->load_err);
    atomic_store(&a->load_ended, true);
    uv_async_send(&a->loader);
    return NULL;
}

static const char *quantization(const struct sq_model *m)
{
    switch (m->scheme) {
    case SQ_SCHEME_W8A8_STATIC:
        return m->int8_attention ? "w8a8-static (O3)" : "w8a8-static";
    case SQ_SCHEME_W8A8_DYNAMIC:
        return "w8a8-dynamic";
    default:
        return "float";
    }
}

/* Where the device's memory went. */
static void log_memory(const struct sq_loaded *l)
{
    struct sq_memory m;
    struct sq_device_info d;
    const double mib = 1048576.0;
    if (!l->backend.gpu)
        return;
    sq_loaded_memory(l, &m);
    l->backend.be->ops->info(l->backend.be, &d);
    sq_info("serve",
            "device memory: weights %.1f, KV cache %.1f, activations %.1f, workspace %.1f, in all "
            "%.1f MiB in %zu allocations; %.1f of %.1f MiB are free",
            (double)m.weights / mib, (double)m.kv / mib, (double)m.activations / mib,
            (double)m.workspace / mib, (double)m.total / mib, m.n_allocs,
            (double)d.mem_free_bytes / mib, (double)d.mem_total_bytes / mib);
}

static int serve_loaded(struct app *a, struct sq_err *err)
{
    struct sq_loaded *l = &a->loaded;
    int rc = sq_engine_start(l->engine, err);
    if (rc)
        return rc;
    struct sq_engine_stats st;
    sq_engine_stats(l->engine, &st);
    char kernel[200];
    (void)snprintf(kernel, sizeof kernel, "%s %s", l->backend.device.name,
                   l->backend.device.detail);
    struct sq_api_model m = {
        .engine = l->engine,
        .tokenizer = l->tokenizer,
        .vocab = st.vocab,
        .max_context = st.max_context,
        .bos = l->model->config.bos,
        .gen = &l->model->config.gen,
        .quantization = quantization(l->model),
        .fingerprint = l->model->fingerprint,
        .kernel = kernel,
    };
    rc = sq_api_set_model(a->api, &m, err);
    if (rc)
        return rc;
    sq_info("serve", "%s", l->backend.why);
    if (l->dir->note[0])
        sq_warn("serve", "%s", l->dir->note);
    sq_info("serve",
            "model %s: %s, weights %.1f MiB, KV cache %.1f MiB (%d blocks of 32 tokens), context "
            "%d, loaded in %.2f s",
            a->s->model, m.quantization, (double)l->model->weight_bytes / 1048576.0,
            (double)st.kv_bytes / 1048576.0, st.kv_blocks, st.max_context, l->seconds);
    log_memory(l);
    sq_metric_set(SQ_M_LOAD_SECONDS, l->seconds);
    return 0;
}

static void on_loaded(struct app *a)
{
    pthread_join(a->load_thread, NULL);
    a->load_joined = true;
    struct sq_err err = a->load_err;
    int rc = a->load_rc;
    if (!rc && a->phase == LOADING)
        rc = serve_loaded(a, &err);
    if (rc && a->phase == LOADING && rc != -SQ_E_INTR) {
        sq_error("serve", "%s", err.msg);
        sq_notify("STATUS=failed: %s\nERRNO=%d", err.msg, (int)sq_exit_code(&err));
        end(a, (int)sq_exit_code(&err));
        return;
    }
    if (rc || a->phase != LOADING) {
        end(a, SQ_EXIT_OK); /* told to stop while loading */
        return;
    }
    a->phase = SERVING;
    sq_api_set_state(a->api, SQ_API_READY);
    sq_notify("READY=1\nSTATUS=serving");
    sq_notice("serve", "ready");
}

static void on_loader(uv_async_t *h)
{
    struct app *a = h->data;
    if (atomic_load(&a->load_ended)) {
        if (!a->load_joined)
            on_loaded(a);
        return;
    }
    sq_api_set_progress(a->api, atomic_load(&a->load_ratio));
}

/* --- running --- */

static void on_wake(uv_async_t *h)
{
    struct app *a = h->data;
    if (a->phase != LOADING)
        sq_api_on_wake(a->api);
}

static bool is_stalled(const struct app *a, const struct sq_engine_stats *st)
{
    uint64_t now = sq_now_ns();
    return st->running > 0 && st->last_step_ns && now > st->last_step_ns &&
           (now - st->last_step_ns) / 1000000 > a->s->stall_timeout;
}

static void on_deadline(uv_timer_t *h)
{
    struct app *a = h->data;
    if (a->phase == DRAINING)
        sq_warn("serve", "drain_timeout reached with %zu requests running: ending them",
                sq_api_n_sessions(a->api));
    end(a, a->phase == FAULT ? SQ_EXIT_DEVICE : SQ_EXIT_OK);
}

static void enter_fault(struct app *a)
{
    a->phase = FAULT;
    sq_error("serve",
             "the device failed: running requests are ended with an error and the process exits "
             "with code %d: %s",
             SQ_EXIT_DEVICE, sq_engine_fault_text(a->loaded.engine));
    sq_notify("STATUS=device fault");
    sq_api_set_state(a->api, SQ_API_FAULT);
    uv_timer_start(&a->deadline, on_deadline, FAULT_LINGER_MS, 0);
}

static void on_tick(uv_timer_t *h)
{
    struct app *a = h->data;
    a->ticks++;
    if (a->phase == LOADING && a->ticks % 8 == 0)
        sq_notify("EXTEND_TIMEOUT_USEC=30000000\nSTATUS=loading, %.0f %%",
                  100 * atomic_load(&a->load_ratio));
    if (a->phase != SERVING && a->phase != DRAINING)
        return;
    struct sq_engine_stats st;
    sq_engine_stats(a->loaded.engine, &st);
    if (st.fault) {
        enter_fault(a);
        return;
    }
    bool stalled = is_stalled(a, &st);
    if (stalled != a->stalled && a->phase == SERVING) {
        a->stalled = stalled;
        sq_api_set_state(a->api, stalled ? SQ_API_STALLED : SQ_API_READY);
        sq_log(stalled ? SQ_LOG_ERROR : SQ_LOG_NOTICE, "serve",
               stalled ? "stalled: work is running and no step ended for %llu ms"
                       : "the engine moves again (stall_timeout %llu ms)",
               (unsigned long long)a->s->stall_timeout);
    }
    if (a->phase == DRAINING && a->ticks % 8 == 0)
        sq_notify("EXTEND_TIMEOUT_USEC=30000000\nSTATUS=draining: %zu requests running",
                  sq_api_n_sessions(a->api));
    else if (a->ticks % 40 == 0)
        sq_notify("STATUS=serving: %d running, %d waiting, KV cache %d of %d blocks", st.running,
                  st.waiting, st.kv_used, st.kv_blocks);
}

/* Fed by the loop, but only while the engine makes progress: a hung device must restart the service. */
static void on_watchdog(uv_timer_t *h)
{
    struct app *a = h->data;
    if (!a->stalled && a->phase != FAULT)
        sq_notify("WATCHDOG=1");
}

/* --- ending --- */

static void on_idle(void *ctx)
{
    struct app *a = ctx;
    if (a->phase == DRAINING)
        end(a, SQ_EXIT_OK);
}

static void drain(struct app *a)
{
    a->phase = DRAINING;
    sq_notice("serve", "draining: %zu requests running, at most %llu ms", sq_api_n_sessions(a->api),
              (unsigned long long)a->drain_ms);
    sq_notify("STOPPING=1\nSTATUS=draining");
    sq_api_set_state(a->api, SQ_API_DRAINING);
    sq_engine_drain(a->loaded.engine);
    if (a->activated)
        sq_api_quiesce(a->api); /* new clients wait in the manager's backlog for our successor */
    if (sq_api_n_sessions(a->api) == 0)
        end(a, SQ_EXIT_OK);
    else
        uv_timer_start(&a->deadline, on_deadline, a->drain_ms, 0);
}

static void on_stop_signal(uv_signal_t *h, int signum)
{
    struct app *a = h->data;
    sq_notice("serve", "%s", signum == SIGTERM ? "SIGTERM" : "SIGINT");
    if (a->phase == LOADING && !atomic_load(&a->load_stop)) {
        sq_notify("STOPPING=1");
        atomic_store(&a->load_stop, true);
        a->phase = ENDED; /* on_loaded ends the loop once the thread is joined */
    } else if (a->phase == SERVING)
        drain(a);
    else if (a->phase == DRAINING)
        end(a, SQ_EXIT_OK);
}

static enum sq_log_level log_level(const char *word)
{
    static const char *const words[] = {"error", "warning", "notice", "info", "debug"};
    for (int i = 0; i < 5; i++)
        if (strcmp(words[i], word) == 0)
            return (enum sq_log_level)(SQ_LOG_ERROR + i);
    return SQ_LOG_INFO;
}

static void on_reload_signal(uv_signal_t *h, int signum)
{
    struct app *a = h->data;
    (void)signum;
    sq_notify("RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)(sq_now_ns() / 1000));
    struct sq_settings fresh;
    struct sq_err err = {0};
    if (a->reload(a->reload_ctx, &fresh, &err)) {
        sq_error("serve", "reload refused, the old settings stay: %s", err.msg);
    } else {
        sq_log_set_level(log_level(fresh.log_level));
        a->drain_ms = fresh.drain_timeout;
        sq_notice("serve", "reloaded: log_level %s, drain_timeout %llu ms", fresh.log_level,
                  (unsigned long long)fresh.drain_timeout);
        sq_settings_done(&fresh);
    }
    if (a->phase == SERVING)
        sq_notify("READY=1");
}

/* --- start --- */

static int listen_all(struct app *a, struct sq_err *err)
{
    int fds[MAX_SOCKETS];
    char names[MAX_SOCKETS][64], name[256];
    int n = sq_notify_listen_fds(fds, names, MAX_SOCKETS, err);
    if (n < 0)
        return n;
    a->activated = n > 0;
    for (int i = 0; i < n; i++) {
        int rc = sq_api_listen(a->api, fds[i], names[i], err);
        if (rc)
            return rc;
        sq_info("serve", "listening on the service manager's socket '%s'", names[i]);
    }
    if (a->activated)
        return 0;
    const char *const fallback[] = {"127.0.0.1:8080", NULL};
    const char *const *list = a->s->listen.n ? (const char *const *)a->s->listen.items : fallback;
    for (; *list; list++) {
        int fd, rc = sq_listen(*list, &fd, name, sizeof name, err);
        if (rc)
            return rc;
        rc = sq_api_listen(a->api, fd, name, err);
        if (rc) {
            close(fd);
            return rc;
        }
        sq_info("serve", "listening on %s", name);
    }
    return 0;
}

static int make_api(struct app *a, struct sq_err *err)
{
    SQ_AUTO_FREE char *path = sq_strdup(a->s->model);
    if (!path)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
        path[n - 1] = '\0';
    const char *slash = strrchr(path, '/');
    const char *const fallback[] = {slash && slash[1] ? slash + 1 : path, NULL};
    struct sq_api_options o = {
        .loop = &a->loop,
        .limits = a->s->limits,
        .served_names =
            a->s->served_name.n ? (const char *const *)a->s->served_name.items : fallback,
        .strict_fields = a->s->strict_fields,
        .half_close_keep = a->s->half_close_keep,
        .allow_chunked = a->s->allow_chunked,
        .access_log = a->s->access_log,
        .on_idle = on_idle,
        .ctx = a,
    };
    return sq_api_new(&o, &a->api, err);
}

static void init_handles(struct app *a)
{
    SQ_ASSERT(uv_loop_init(&a->loop) == 0);
    SQ_ASSERT(uv_async_init(&a->loop, &a->wake, on_wake) == 0);
    SQ_ASSERT(uv_async_init(&a->loop, &a->loader, on_loader) == 0);
    uv_timer_t *timers[] = {&a->tick, &a->watchdog, &a->deadline};
    for (size_t i = 0; i < SQ_ARRAY_LEN(timers); i++) {
        uv_timer_init(&a->loop, timers[i]);
        timers[i]->data = a;
    }
    uv_signal_t *signals[] = {&a->on_term, &a->on_int, &a->on_hup};
    for (size_t i = 0; i < SQ_ARRAY_LEN(signals); i++) {
        SQ_ASSERT(uv_signal_init(&a->loop, signals[i]) == 0);
        signals[i]->data = a;
    }
    a->wake.data = a->loader.data = a;
    uv_signal_start(&a->on_term, on_stop_signal, SIGTERM);
    uv_signal_start(&a->on_int, on_stop_signal, SIGINT);
    uv_signal_start(&a->on_hup, on_reload_signal, SIGHUP);
    uv_timer_start(&a->tick, on_tick, TICK_MS, TICK_MS);
    uint64_t watchdog_ms = sq_notify_watchdog_us() / 2000;
    if (watchdog_ms)
        uv_timer_start(&a->watchdog, on_watchdog, 0, watchdog_ms);
}

static void close_handle(uv_handle_t *h, void *arg)
{
    (void)arg;
    if (!uv_is_closing(h))
        uv_close(h, NULL);
}

static void raise_file_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &r);
    }
}

static int start(struct app *a, struct sq_err *err)
{
    int rc = make_api(a, err);
    if (!rc)
        rc = listen_all(a, err);
    if (!rc)
        rc = sq_thread_start(&a->load_thread, "sqd-load", load_main, a, err);
    a->load_joined = rc != 0;
    return rc;
}

int sq_app_run(const struct sq_settings *s, sq_reload_fn reload, void *ctx)
{
    struct app *a = sq_new(struct app);
    if (!a)
        return SQ_EXIT_MEMORY;
    a->s = s;
    a->reload = reload;
    a->reload_ctx = ctx;
    a->drain_ms = s->drain_timeout;
    sq_log_init(log_level(s->log_level), getenv("JOURNAL_STREAM") != NULL);
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    init_handles(a);
    struct sq_err err = {0};
    if (start(a, &err)) {
        sq_error("serve", "%s", err.msg);
        a->exit_code = (int)sq_exit_code(&err);
    } else {
        uv_run(&a->loop, UV_RUN_DEFAULT);
    }
    a->api = sq_api_free(a->api);
    if (!a->load_joined)
        pthread_join(a->load_thread, NULL);
    sq_loaded_done(&a->loaded); /* joins the engine thread: no wake after this */
    uv_walk(&a->loop, close_handle, NULL);
    while (uv_run(&a->loop, UV_RUN_DEFAULT))
        ;
    SQ_ASSERT(uv_loop_close(&a->loop) == 0);
    int code = a->exit_code;
    sq_notice("serve", "ended");
    sq_free(a);
    return code;
}
