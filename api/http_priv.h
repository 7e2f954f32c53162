/* What the files of the HTTP glue share (http.c the server and its listeners, http_conn.c connections, http_exchange.c requests and
 * answers). Nobody else includes this. Loop thread. */
#pragma once

#include <microhttpd.h>
#include <uv.h>

#include "api/http.h"

enum sq_phase { SQ_PHASE_NONE, SQ_PHASE_HEAD, SQ_PHASE_BODY, SQ_PHASE_IDLE, SQ_PHASE_WRITE };

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
    int n_handles; /* still closing */
};

struct sq_conn {
    uint32_t magic;
    struct sq_listener *listener;
    struct sq_exchange *x; /* the current one, or NULL */
    int fd;
    uv_timer_t timer;
    uv_poll_t watch;
    bool has_watch;
    int n_handles; /* open ones: freed with the last */
    enum sq_phase phase;
    uint64_t deadline_ms, ping_ms; /* on the loop's clock, 0 = none */
};

struct sq_http {
    uv_loop_t *loop;
    struct sq_api_limits limits;
    bool allow_chunked, half_close_keep, draining, ending, idle_told;
    struct sq_http_hooks hooks;
    struct sq_list listeners, exchanges;
    size_t n_exchanges; /* dispatched */
    uv_timer_t idle_timer;
    int n_handles;
    uint64_t id_salt, n_ids;
};

/* Runs the library until it has nothing to do at once, then arms its timer. Inside a callback of the library: asks for one more run. */
void sq_http_run(struct sq_listener *l);
/* Both only flag and tell the library; the caller runs it. */
void sq_http_resume(struct sq_exchange *x);
void sq_http_suspend(struct sq_exchange *x);
/* While draining: tells the idle hook from the loop once no exchange is left. */
void sq_http_check_idle(struct sq_http *h);

/* The deadline that the new phase has, from now. */
void sq_conn_phase(struct sq_conn *c, enum sq_phase phase);
/* Watches for the client's end until the exchange is over. */
void sq_conn_watch(struct sq_conn *c);
void sq_conn_start_ping(struct sq_conn *c);
/* The client of x left: tells the owner, and lets the library close the connection. */
void sq_conn_gone(struct sq_exchange *x);

/* Callbacks of the library; cls is the listener. */
void sq_conn_on_connection(void *cls, struct MHD_Connection *mhd, void **socket_context,
                           enum MHD_ConnectionNotificationCode code);
void *sq_exchange_on_target(void *cls, const char *uri, struct MHD_Connection *mhd);
enum MHD_Result sq_exchange_on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                       const char *method, const char *version, const char *data,
                                       size_t *n_data, void **req_cls);
void sq_exchange_on_completed(void *cls, struct MHD_Connection *mhd, void **req_cls,
                              enum MHD_RequestTerminationCode code);
/* Takes the owner off x, or NULL. */
void *sq_exchange_detach(struct sq_exchange *x);
