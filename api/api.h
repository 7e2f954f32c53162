/* What daemon/ needs of the HTTP side. Everything here runs on the loop thread. Nothing of libmicrohttpd or JSON shows. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

struct uv_loop_s;
struct sq_api;
struct sq_engine;
struct sq_tokenizer;
struct sq_gen_defaults;

/* Limits: one row each in api/limits.def (name, type, default, min, max, help), which feeds this struct, the configuration parser, --help, etc/sqd.conf and tests. */
struct sq_api_limits {
#define LIMIT(name, def, min, max, unit, help) int64_t name;
#include "api/limits.def"
#undef LIMIT
};
void sq_api_limits_default(struct sq_api_limits *ret);

struct sq_api_options {
    struct uv_loop_s *loop;          /* borrowed */
    struct sq_api_limits limits;     /* copied */
    const char *const *served_names; /* NULL-terminated, copied; the first is the canonical one */
    bool strict_fields;              /* unknown request fields are 400 instead of ignored */
    bool half_close_keep;            /* a client that closes its write side is not gone */
    bool allow_chunked;              /* accept Transfer-Encoding: chunked requests */
    bool access_log;                 /* one line per finished request */
    void (*on_idle)(
        void *ctx); /* called when the last session has ended while draining; may be NULL */
    void *ctx;
};

enum sq_api_state {
    SQ_API_LOADING, /* 503 model_loading */
    SQ_API_READY,
    SQ_API_DRAINING, /* new requests 503 draining, running ones continue */
    SQ_API_STALLED,  /* work running but no step for stall_timeout: livez 503 */
    SQ_API_FAULT,    /* the device failed: livez 503 */
};

/* What the API must know of the loaded model; strings and arrays are copied, the tokenizer and engine borrowed until sq_api_free. */
struct sq_api_model {
    struct sq_engine *engine;
    const struct sq_tokenizer *tokenizer;
    int vocab, max_context;
    int32_t bos;                       /* -1 none */
    const struct sq_gen_defaults *gen; /* generation_config.json defaults (engine/model/config.h) */
    const char *quantization;          /* "w8a8-static", "float", ... */
    uint64_t fingerprint;
    const char *
        kernel; /* "cpu AVX512-VNNI, 2 threads": for /info-like fields and the response header Server-Timing is not needed */
};

int sq_api_new(const struct sq_api_options *o, struct sq_api **ret, struct sq_err *err) SQ_CHECKED;
/* Serves on a bound, listening, close-on-exec socket (TCP or Unix); takes the descriptor on success. May be called several times. */
int sq_api_listen(struct sq_api *a, int fd, const char *name, struct sq_err *err) SQ_CHECKED;
/* LOADING -> READY needs the model first. Callable again with the same model is an error. */
int sq_api_set_model(struct sq_api *a, const struct sq_api_model *m, struct sq_err *err) SQ_CHECKED;
void sq_api_set_state(struct sq_api *a, enum sq_api_state s);
void sq_api_set_progress(struct sq_api *a, double load_ratio); /* shown by /readyz while loading */
/* The engine has events (from the daemon's uv_async): takes and delivers them all, resumes connections, pumps once. */
void sq_api_on_wake(struct sq_api *a);
size_t sq_api_n_sessions(const struct sq_api *a);
/* Stops accepting new connections; running sessions go on. */
void sq_api_quiesce(struct sq_api *a);
/* Ends every session with an error event / 503, resumes all, stops the servers, closes handles (the loop must run once more for their close callbacks). */
struct sq_api *sq_api_free(struct sq_api *a);
