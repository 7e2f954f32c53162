/* A request's head as plain data, and every check of its framing that the HTTP library does not make. Pure: the glue fills the
 * struct from the library, tests and the fuzzer fill it by hand. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/reply.h"

struct sq_api_limits;

enum sq_method {
    SQ_METHOD_OTHER = 0, /* a word of HTTP that no route of ours takes */
    SQ_METHOD_GET = 1,
    SQ_METHOD_HEAD = 2,
    SQ_METHOD_POST = 4,
    SQ_METHOD_OPTIONS = 8,
    SQ_METHOD_DELETE = 16,
};

#define SQ_HEAD_MAX_FIELDS 257 /* one more than the largest setting of max_fields */

struct sq_field {
    const char *name, *value;
    size_t n_name, n_value;
};

struct sq_head {
    /* in */
    const char *method, *version;
    const char *target; /* raw, as on the wire */
    struct sq_field fields[SQ_HEAD_MAX_FIELDS];
    size_t n_fields; /* may count more than were stored */
    /* out */
    enum sq_method verb;
    int64_t content_length; /* -1 none */
    bool chunked, expect_continue;
    const char *content_type; /* first one, or NULL */
    const char *request_id;   /* a usable X-Request-Id of the client, or NULL */
};

/* 0, or -SQ_E_INVAL with *f filled: answer and close the connection. */
int sq_head_check(struct sq_head *h, const struct sq_api_limits *l, bool allow_chunked,
                  struct sq_fault *f);
/* application/json, with or without parameters. */
bool sq_head_is_json(const char *content_type);
