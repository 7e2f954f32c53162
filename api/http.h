/* The one glue between libmicrohttpd, libuv and the rest of api/: listeners, connections, deadlines, and an exchange (one request with its
 * answer) as a plain struct. All on the loop thread. Handlers run inside the library's own run and may answer at once or later. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/api.h"
#include "api/head.h"
#include "api/reply.h"
#include "api/route.h"
#include "api/sse.h"
#include "engine/base/list.h"

struct sq_http;
struct MHD_Connection;

struct sq_http_hooks {
    void (*request)(void *ctx,
                    struct sq_exchange *x); /* the request is complete and its route is known */
    void (*finished)(void *ctx, struct sq_exchange *x); /* it is over; the last call for x */
    void (*idle)(
        void *
            ctx); /* after quiesce: no exchange is left. From the loop, never from inside another call */
    void *ctx;
};

/* Who waits behind an exchange. gone: the client left; the owner has been detached already. drained: bytes of the stream were handed to the
 * connection; sq_fifo_n(&x->fifo) says how many are left. abort: the server ends; answer or end x now. */
struct sq_owner_ops {
    void (*gone)(void *owner);
    void (*drained)(void *owner);
    void (*abort)(void *owner);
};

struct sq_exchange {
    struct sq_list link; /* of the server's exchanges */
    struct sq_http *http;
    struct sq_conn *conn;
    struct MHD_Connection *mhd;
    uint64_t t_start_ns;
    /* the request */
    char *target; /* owned, raw */
    enum sq_method verb;
    enum sq_route_id route;
    char arg[256]; /* of a route with an argument */
    char request_id[129];
    int64_t content_length;
    struct sq_wbuf body;
    struct sq_fault fault; /* found in the head, answered once the body was read */
    /* the answer */
    struct sq_reply reply; /* http != 0: ready */
    struct sq_fifo fifo;   /* of a stream */
    size_t sent;           /* of a long body */
    bool head_seen, dispatched, suspended, stream, stream_end, queued, gone, close;
    /* behind it */
    void *owner;
    const struct sq_owner_ops *ops;
    /* for the access log */
    int64_t n_in, n_out; /* tokens */
    const char *outcome; /* static, or NULL */
};

int sq_http_new(struct uv_loop_s *loop, const struct sq_api_limits *l, bool allow_chunked,
                bool half_close_keep, const struct sq_http_hooks *hooks, struct sq_http **ret,
                struct sq_err *err) SQ_CHECKED;
int sq_http_listen(struct sq_http *h, int fd, const char *name, struct sq_err *err) SQ_CHECKED;
/* From now on every answer closes its connection, and the idle hook is called once nothing is left. */
void sq_http_drain(struct sq_http *h);
/* Stops accepting; drains too. */
void sq_http_quiesce(struct sq_http *h);
size_t sq_http_n_exchanges(const struct sq_http *h); /* dispatched and not over */
/* Runs the library once for everything that was resumed since. */
void sq_http_pump(struct sq_http *h);
/* Ends every exchange, stops and closes all. h frees itself after its handles closed. */
void sq_http_free(struct sq_http *h);

/* An owner behind x, which must be answered or ended by it; NULL detaches. */
void sq_exchange_own(struct sq_exchange *x, void *owner, const struct sq_owner_ops *ops);
/* Answers. The reply's body moves into x; call once. */
void sq_exchange_reply(struct sq_exchange *x, struct sq_reply *r);
void sq_exchange_fault(struct sq_exchange *x, const struct sq_fault *f);
/* 200 with an event stream: write to sq_fifo_tail(&x->fifo), then sq_exchange_flush. */
void sq_exchange_stream(struct sq_exchange *x);
void sq_exchange_flush(struct sq_exchange *x);
/* No more bytes will come. */
void sq_exchange_end(struct sq_exchange *x);
