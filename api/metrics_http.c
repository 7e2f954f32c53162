/* GET /metrics: Prometheus text format 0.0.4 from the table of metrics, the engine's snapshot and the process's own figures. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "api/api_priv.h"
#include "engine/base/check.h"
#include "engine/base/metrics.h"
#include "engine/base/threads.h"

/* HTTP status and label per slot: 200 first, then the statuses in their order; equal codes are summed when they are written. */
static int slot_of(int http)
{
    if (http == 200)
        return SQ_STATUS_OK;
    for (int s = SQ_STATUS_OK + 1; s < SQ_STATUS_MAX; s++) {
        if (sq_status_http((enum sq_status)s) == http)
            return s;
    }
    return SQ_STATUS_MAX;
}

void sq_api_count_http(struct sq_api *a, const struct sq_exchange *x)
{
    if (!x->queued)
        return; /* the client left before there was an answer */
    a->http_counts[x->route * SQ_STATUS_SLOTS + slot_of(x->stream ? 200 : x->reply.http)]++;
}

/* The shortest form that reads back as the same number. */
static void put_number(struct sq_wbuf *o, double v)
{
    char buf[40];
    if (v == rint(v) && fabs(v) < 0x1p53) {
        sq_wbuf_int(o, (int64_t)v);
        return;
    }
    if (!isfinite(v)) {
        sq_wbuf_puts(o, isnan(v) ? "NaN" : v > 0 ? "+Inf" : "-Inf");
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        double back;
        (void)snprintf(buf, sizeof(buf), "%.*g", digits, v);
        if (sscanf(buf, "%lf", &back) == 1 && back == v)
            break;
    }
    sq_wbuf_puts(o, buf);
}

static void put_family(struct sq_wbuf *o, const char *family, const char *type, const char *help)
{
    sq_wbuf_printf(o, "# HELP %s %s\n# TYPE %s %s\n", family, help, family, type);
}

static void put_sample(struct sq_wbuf *o, const char *family, const char *labels, double v)
{
    sq_wbuf_puts(o, family);
    if (labels[0])
        sq_wbuf_printf(o, "{%s}", labels);
    sq_wbuf_puts(o, " ");
    put_number(o, v);
    sq_wbuf_puts(o, "\n");
}

static void put_single(struct sq_wbuf *o, const char *family, const char *type, const char *help,
                       double v)
{
    put_family(o, family, type, help);
    put_sample(o, family, "", v);
}

static void put_scalars(struct sq_wbuf *o)
{
    for (int m = 0; m < SQ_M_MAX; m++) {
        struct sq_metric_row r = sq_metric_row((enum sq_metric)m);
        if (r.help[0])
            put_family(o, r.family, r.type == 'c' ? "counter" : "gauge", r.help);
        put_sample(o, r.family, r.labels, r.value);
    }
}

static void put_histograms(struct sq_wbuf *o)
{
    for (int h = 0; h < SQ_H_MAX; h++) {
        struct sq_histogram_row r;
        sq_histogram_row((enum sq_histogram)h, &r);
        put_family(o, r.family, "histogram", r.help);
        uint64_t sum = 0;
        for (size_t i = 0; i <= r.n_edges; i++) {
            sum += r.counts[i];
            sq_wbuf_printf(o, "%s_bucket{le=\"", r.family);
            put_number(o, i < r.n_edges ? r.edges[i] : (double)INFINITY);
            sq_wbuf_printf(o, "\"} %llu\n", (unsigned long long)sum);
        }
        sq_wbuf_printf(o, "%s_sum ", r.family);
        put_number(o, r.sum);
        sq_wbuf_printf(o, "\n%s_count %llu\n", r.family, (unsigned long long)sum);
    }
}

static void put_http(const struct sq_api *a, struct sq_wbuf *o)
{
    static const char family[] = "sqd_http_requests_total";
    put_family(o, family, "counter", "HTTP requests answered, by route and status.");
    for (int r = 0; r < SQ_ROUTE_MAX; r++) {
        const struct sq_route *route = sq_route_get((enum sq_route_id)r);
        for (int s = 0; s < SQ_STATUS_MAX; s++) {
            uint64_t n = a->http_counts[r * SQ_STATUS_SLOTS + s];
            if (!n && (s || !route)) /* a route's 200 is there from the start */
                continue;
            sq_wbuf_printf(o, "%s{route=\"%s\",code=\"%d\"} %llu\n", family,
                           route ? route->path : "none",
                           s ? sq_status_http((enum sq_status)s) : 200, (unsigned long long)n);
        }
    }
}

static void put_label(struct sq_wbuf *o, const char *name, const char *value)
{
    sq_wbuf_printf(o, "%s=\"", name);
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            sq_wbuf_put(o, "\\", 1);
        sq_wbuf_put(o, *value == '\n' ? " " : value, 1);
    }
    sq_wbuf_puts(o, "\"");
}

static void put_infos(const struct sq_api *a, struct sq_wbuf *o)
{
    put_family(o, "sqd_build_info", "gauge", "The program's version.");
    put_sample(o, "sqd_build_info", "version=\"" SQD_VERSION "\"", 1);
    put_family(o, "sqd_model_info", "gauge", "The model that is served.");
    if (a->engine) {
        sq_wbuf_puts(o, "sqd_model_info{");
        put_label(o, "model", a->names[0]);
        sq_wbuf_puts(o, ",");
        put_label(o, "quantization", a->quantization);
        sq_wbuf_puts(o, ",");
        put_label(o, "kernel", a->kernel);
        sq_wbuf_printf(o, ",fingerprint=\"%s\"} 1\n", a->fingerprint);
    }
    struct sq_engine_stats s;
    enum sq_api_state now = sq_api_state_now(a, &s);
    put_family(o, "sqd_state", "gauge", "1 for the state the server is in.");
    for (int i = SQ_API_LOADING; i <= SQ_API_FAULT; i++)
        sq_wbuf_printf(o, "sqd_state{state=\"%s\"} %d\n", sq_api_state_name((enum sq_api_state)i),
                       i == (int)now);
}

static double count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    if (!d)
        return 0;
    int n = -1; /* the directory's own descriptor */
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Fields 20 (threads), 23 and 24 (memory) of /proc/self/stat, counted behind the program's name. */
static void read_stat(double *ret_threads, double *ret_virtual, double *ret_resident)
{
    char buf[1024];
    FILE *f = fopen("/proc/self/stat", "re");
    size_t n = f ? fread(buf, 1, sizeof(buf) - 1, f) : 0;
    if (f)
        (void)fclose(f);
    buf[n] = 0;
    const char *p = strrchr(buf, ')');
    unsigned long long threads = 0, bytes = 0, pages = 0;
    if (p && sscanf(p + 1,
                    " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %llu %*d "
                    "%*u %llu %llu",
                    &threads, &bytes, &pages) != 3)
        threads = bytes = pages = 0;
    *ret_threads = (double)threads;
    *ret_virtual = (double)bytes;
    *ret_resident = (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static void put_process(const struct sq_api *a, struct sq_wbuf *o)
{
    struct rusage u = {0};
    struct rlimit lim = {0};
    double threads, bytes, resident;
    (void)getrusage(RUSAGE_SELF, &u);
    (void)getrlimit(RLIMIT_NOFILE, &lim);
    read_stat(&threads, &bytes, &resident);
    put_single(o, "process_cpu_seconds_total", "counter", "User and system time.",
               (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                   (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
    put_single(o, "process_open_fds", "gauge", "Open file descriptors.", count_fds());
    put_single(o, "process_max_fds", "gauge", "Limit of open file descriptors.",
               (double)lim.rlim_cur);
    put_single(o, "process_virtual_memory_bytes", "gauge", "Virtual memory.", bytes);
    put_single(o, "process_resident_memory_bytes", "gauge", "Resident memory.", resident);
    put_single(o, "process_threads", "gauge", "Threads.", threads);
    put_single(o, "process_start_time_seconds", "gauge", "Unix time of the server's start.",
               (double)a->t_started);
}

/* Gauges that only the snapshot knows. */
static void refresh(const struct sq_api *a)
{
    struct sq_engine_stats s;
    (void)sq_api_state_now(a, &s);
    sq_metric_set(SQ_M_REQ_RUNNING, s.running);
    sq_metric_set(SQ_M_REQ_WAITING, s.waiting);
    sq_metric_set(SQ_M_QUEUE_TOKENS, (double)s.waiting_tokens);
    sq_metric_set(SQ_M_KV_USED, s.kv_used);
    sq_metric_set(SQ_M_KV_FREE, s.kv_blocks - s.kv_used);
    sq_metric_set(SQ_M_KV_RATIO, s.kv_blocks ? (double)s.kv_used / s.kv_blocks : 0);
    sq_metric_set(SQ_M_KV_BYTES, (double)s.kv_bytes);
    if (s.last_step_ns) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        double age = ((double)sq_now_ns() - (double)s.last_step_ns) / 1e9;
        sq_metric_set(SQ_M_LAST_STEP, (double)now.tv_sec + (double)now.tv_nsec / 1e9 - age);
    }
}

void sq_metrics_handle(struct sq_api *a, struct sq_exchange *x)
{
    struct sq_reply r = {.http = 200, .type = "text/plain; version=0.0.4; charset=utf-8"};
    refresh(a);
    put_scalars(&r.body);
    put_histograms(&r.body);
    put_http(a, &r.body);
    put_infos(a, &r.body);
    put_process(a, &r.body);
    sq_exchange_reply(x, &r);
}
