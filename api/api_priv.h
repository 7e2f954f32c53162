/* What the files of api/ share: the API object, and the answers' common parts. Loop thread. */
#pragma once

#include "api/api.h"
#include "api/http.h"
#include "api/request.h"
#include "api/route.h"
#include "api/session.h"
#include "api/work.h"

struct sq_api {
    struct sq_http *http;
    bool access_log;
    void (*on_idle)(void *ctx);
    void *ctx;
    enum sq_api_state state;
    int64_t state_since; /* Unix time */
    double load_ratio;
    int64_t t_started; /* Unix time */
    /* the model */
    struct sq_engine *engine; /* NULL while loading */
    struct sq_border
        border;   /* immutable from set_model on; without a model it checks what can be checked */
    char **names; /* owned, NULL-terminated */
    char *quantization, *kernel;
    char fingerprint[64]; /* "sqd-<version>-<hex>" */
    int64_t t_model;      /* Unix time of set_model */
    /* sessions */
    struct sq_jobs jobs;
    struct sq_work_set works;
    uint64_t id_salt, next_id;
    double mean_generated; /* tokens per choice, smoothed; for Retry-After */
    uint64_t *http_counts; /* [SQ_ROUTE_MAX][SQ_STATUS_SLOTS] */
};

/* Counters per HTTP status: one slot for each status that status.def can answer, and 200. */
#define SQ_STATUS_SLOTS (SQ_STATUS_MAX + 1)

int64_t sq_unix_time(void);

/* The state as probes and requests see it: the engine's own fault counts even before the daemon has said so. */
enum sq_api_state sq_api_state_now(const struct sq_api *a, struct sq_engine_stats *ret_stats);
const char *sq_api_state_name(enum sq_api_state s);

/* A 503 that fits the state; false when requests are taken. */
bool sq_api_closed(const struct sq_api *a, struct sq_fault *f);

/* Milliseconds until the queue has drained at the measured rate, 1 to 120 s. */
int64_t sq_api_retry_ms(const struct sq_api *a);

/* Sends o as the JSON body of a 200. */
void sq_api_send(struct sq_exchange *x, struct sq_wbuf *o);

void sq_api_count_http(struct sq_api *a, const struct sq_exchange *x);
