/* What goes back to a client that is no stream: a fault (an error in OpenAI's shape) or a body with its status and headers. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/wbuf.h"

enum sq_status {
    SQ_STATUS_OK,
#define STATUS(id, http, type, code) SQ_STATUS_##id,
#include "api/status.def"
#undef STATUS
    SQ_STATUS_MAX
};
int sq_status_http(enum sq_status s);
const char *sq_status_code(enum sq_status s);

/* Why a request is refused. Zeroed = none. */
struct sq_fault {
    enum sq_status status;
    char param[128]; /* path of the offending field; "" = null on the wire */
    char msg[480];
    int64_t counts[3]; /* context_length_exceeded: tokens of the prompt, max_tokens, the context */
    int64_t retry_ms;  /* 0 = no Retry-After */
    const char *allow; /* static; the Allow header of a 405 */
    bool no_retry;     /* x-should-retry: false */
};

/* Sets status, param (NULL = none) and message; returns -SQ_E_INVAL so that it can be returned. */
int sq_fault_set(struct sq_fault *f, enum sq_status s, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5), cold));

int sq_fault_no_memory(struct sq_fault *f) __attribute__((cold));

/* {"error":{...}} without anything behind it: the body of an error and the data of a stream's error event. */
void sq_fault_write(const struct sq_fault *f, struct sq_wbuf *o);

struct sq_reply {
    int http;
    const char *type; /* static; NULL = application/json */
    struct sq_wbuf body;
    int64_t retry_ms;  /* 0 = none */
    const char *allow; /* static or NULL */
    bool no_retry;
};
void sq_reply_fault(struct sq_reply *r, const struct sq_fault *f);
