/* The HTTP side over the stand-in engine as a program, with the command line of `sqd serve` as far as the integration tests need it:
 *   api_harness serve --model DIR --listen ADDR... [--max-sequences N] [--max-queue N] [--max-step-tokens N] [--step-us N] [--load-ms N] [--drain-timeout T]
 *                     [--LIMIT VALUE]... [--half-close-keep=yes] [--allow-chunked=yes] [--strict-fields=yes]
 * DIR needs tokenizer.json only. ADDR is HOST:PORT or unix:PATH. SIGTERM drains and exits. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#include "api/api.h"
#include "engine/base/log.h"
#include "engine/base/num.h"
#include "engine/engine.h"
#include "engine/model/config.h"
#include "engine/text/tokenizer.h"
#include "tests/lib/engine_fake.h"

#define VOCAB_MAX 60000

struct harness {
    uv_loop_t loop;
    uv_async_t wake;
    uv_signal_t term;
    uv_timer_t load, drain;
    struct sq_api *api;
    struct sq_engine *engine;
    struct sq_tokenizer *tokenizer;
    struct sq_engine_options engine_options;
    struct sq_engine_fake fake;
    const char *dir;
    bool closing;
    uint64_t drain_ms;
};

static void die(const char *what, const struct sq_err *err)
{
    fprintf(stderr, "api_harness: %s: %s\n", what, err ? err->msg : "failed");
    exit(1);
}

static void on_wake(uv_async_t *h)
{
    struct harness *me = h->data;
    if (!me->closing)
        sq_api_on_wake(me->api);
}

static void wake(void *ctx)
{
    struct harness *me = ctx;
    (void)uv_async_send(&me->wake);
}

static void finish(void *ctx)
{
    struct harness *me = ctx;
    if (me->closing)
        return;
    me->closing = true;
    me->api = sq_api_free(me->api);
    if (me->engine)
        me->engine = sq_engine_close(me->engine);
    uv_close((uv_handle_t *)&me->wake, NULL);
    uv_close((uv_handle_t *)&me->term, NULL);
    uv_close((uv_handle_t *)&me->load, NULL);
    uv_close((uv_handle_t *)&me->drain, NULL);
}

static void on_deadline(uv_timer_t *t)
{
    finish(t->data);
}

static void on_term(uv_signal_t *s, int signum)
{
    struct harness *me = s->data;
    (void)signum;
    sq_api_set_state(me->api, SQ_API_DRAINING);
    uv_timer_start(&me->drain, on_deadline, me->drain_ms, 0);
    sq_api_quiesce(me->api);
}

static void on_load(uv_timer_t *t)
{
    struct harness *me = t->data;
    struct sq_err err = {0};
    char path[4096];
    static const struct sq_gen_defaults gen = {NAN, NAN, NAN, NAN, -1, -1};
    (void)snprintf(path, sizeof(path), "%s/tokenizer.json", me->dir);
    if (sq_tokenizer_open(AT_FDCWD, path, 0, &me->tokenizer, &err))
        die(path, &err);
    me->fake.vocab = (int)sq_tokenizer_n_ids(me->tokenizer);
    if (sq_engine_fake_open(&me->engine_options, &me->fake, &me->engine, &err) ||
        sq_engine_start(me->engine, &err))
        die("engine", &err);
    const struct sq_api_model m = {.engine = me->engine,
                                   .tokenizer = me->tokenizer,
                                   .vocab = me->fake.vocab,
                                   .max_context = me->engine_options.max_context,
                                   .bos = 2,
                                   .gen = &gen,
                                   .quantization = "fake",
                                   .fingerprint = 0x1234,
                                   .kernel = "none"};
    if (sq_api_set_model(me->api, &m, &err))
        die("model", &err);
    sq_api_set_state(me->api, SQ_API_READY);
    sq_notice("serve", "ready");
}

static int listen_on(const char *addr)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_un un;
    } a = {0};
    socklen_t n;
    if (!strncmp(addr, "unix:", 5)) {
        a.un.sun_family = AF_UNIX;
        (void)snprintf(a.un.sun_path, sizeof(a.un.sun_path), "%s", addr + 5);
        (void)unlink(a.un.sun_path);
        n = sizeof(a.un);
    } else {
        const char *colon = strrchr(addr, ':');
        a.in.sin_family = AF_INET;
        a.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        a.in.sin_port = htons((uint16_t)atoi(colon ? colon + 1 : "0"));
        n = sizeof(a.in);
    }
    int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (fd < 0 || bind(fd, &a.any, n) || listen(fd, 4096))
        die(addr, NULL);
    if (a.any.sa_family == AF_INET) {
        (void)getsockname(fd, &a.any, &n);
        sq_notice("serve", "listening on 127.0.0.1:%d", ntohs(a.in.sin_port));
    } else {
        sq_notice("serve", "listening on %s", addr);
    }
    return fd;
}

static int64_t parse(const char *value, const char *unit)
{
    uint64_t v = 0;
    int64_t count = 0;
    bool fine = !strcmp(unit, "ms")      ? sq_parse_ms(value, &v)
                : !strcmp(unit, "bytes") ? sq_parse_bytes(value, &v)
                                         : sq_parse_i64(value, 0, INT64_MAX, &count);
    if (!fine)
        die(value, NULL);
    return count + (int64_t)v;
}

static bool set_limit(struct sq_api_limits *l, const char *name, const char *value)
{
#define LIMIT(field, def, min, max, unit, help)                                                    \
    if (!strcmp(name, #field)) {                                                                   \
        l->field = parse(value, unit);                                                             \
        return true;                                                                               \
    }
#include "api/limits.def"
#undef LIMIT
    return false;
}

struct args {
    struct sq_api_options api;
    const char *listen[8], *name;
    int n_listen;
    unsigned load_ms;
};

static void set_option(struct harness *me, struct args *a, char *name, const char *value)
{
    for (char *c = name; *c; c++) {
        if (*c == '-')
            *c = '_';
    }
    if (!strcmp(name, "model"))
        me->dir = value;
    else if (!strcmp(name, "listen") && a->n_listen < 8)
        a->listen[a->n_listen++] = value;
    else if (!strcmp(name, "max_sequences"))
        me->engine_options.max_sequences = atoi(value);
    else if (!strcmp(name, "max_queue"))
        me->engine_options.max_queue = atoi(value);
    else if (!strcmp(name, "step_us"))
        me->fake.step_us = (unsigned)atoi(value);
    else if (!strcmp(name, "served_name"))
        a->name = value;
    else if (!strcmp(name, "max_step_tokens"))
        me->fake.prefill_rows = (unsigned)atoi(value);
    else if (!strcmp(name, "drain_timeout"))
        me->drain_ms = (uint64_t)parse(value, "ms");
    else if (!strcmp(name, "load_ms"))
        a->load_ms = (unsigned)atoi(value);
    else if (!strcmp(name, "half_close_keep"))
        a->api.half_close_keep = !strcmp(value, "yes");
    else if (!strcmp(name, "allow_chunked"))
        a->api.allow_chunked = !strcmp(value, "yes");
    else if (!strcmp(name, "strict_fields"))
        a->api.strict_fields = !strcmp(value, "yes");
    else if (!set_limit(&a->api.limits, name, value))
        die(name, NULL);
}

int main(int argc, char **argv)
{
    static struct harness me = {.engine_options = {.max_sequences = 64,
                                                   .max_context = 512,
                                                   .kv_blocks = 1024,
                                                   .max_queue = 256,
                                                   .max_queue_tokens = 262144},
                                .fake = {.first_id = 300, .step_us = 1000, .prefill_rows = 256},
                                .drain_ms = 60000};
    struct args a = {0};
    struct sq_err err = {0};
    sq_api_limits_default(&a.api.limits);
    for (int i = 2; i < argc; i++) {
        char *eq = strchr(argv[i], '=');
        char *value = eq ? eq + 1 : i + 1 < argc ? argv[++i] : NULL;
        if (!value)
            die(argv[i], NULL);
        if (eq)
            *eq = 0;
        set_option(&me, &a, argv[eq ? i : i - 1] + 2, value);
    }
    sq_log_init(SQ_LOG_INFO, false);
    const char *slash = strrchr(me.dir, '/');
    const char *names[] = {a.name ? a.name : slash ? slash + 1 : me.dir, "alias/one", NULL};
    uv_loop_init(&me.loop);
    uv_async_init(&me.loop, &me.wake, on_wake);
    uv_signal_init(&me.loop, &me.term);
    uv_timer_init(&me.loop, &me.load);
    uv_timer_init(&me.loop, &me.drain);
    me.wake.data = me.term.data = me.load.data = me.drain.data = &me;
    me.engine_options.wake = wake;
    me.engine_options.ctx = &me;
    a.api.loop = &me.loop;
    a.api.served_names = names;
    a.api.access_log = true;
    a.api.on_idle = finish;
    a.api.ctx = &me;
    if (sq_api_new(&a.api, &me.api, &err))
        die("api", &err);
    for (int i = 0; i < a.n_listen; i++) {
        if (sq_api_listen(me.api, listen_on(a.listen[i]), a.listen[i], &err))
            die(a.listen[i], &err);
    }
    uv_signal_start(&me.term, on_term, SIGTERM);
    uv_timer_start(&me.load, on_load, a.load_ms, 0);
    uv_run(&me.loop, UV_RUN_DEFAULT);
    uv_loop_close(&me.loop);
    sq_tokenizer_free(me.tokenizer);
    return 0;
}
