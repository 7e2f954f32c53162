/* Reading JSON bodies strictly: the only file of api/ that knows the JSON library. A request's body is scanned for depth and
 * number of things before it is parsed, so that the cost of parsing is bounded by the limits and not by the body's cleverness.
 *
 * Getters check one value and put the reason of a refusal, with the value's path, into a fault. They return
 *   0                 *ret was set
 *   SQ_JSON_ABSENT    the value is missing or null; *ret is untouched
 *   -SQ_E_INVAL       refused, *f is filled
 * true and 1 are never the same; a float with a whole value counts as an integer. Pure, any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/reply.h"

struct json_t;
struct sq_api_limits;

#define SQ_JSON_ABSENT 1

enum sq_json_kind {
    SQ_JSON_NULL, /* also: missing */
    SQ_JSON_BOOL,
    SQ_JSON_INT,
    SQ_JSON_REAL,
    SQ_JSON_STRING,
    SQ_JSON_ARRAY,
    SQ_JSON_OBJECT,
};

/* The scan alone: depth, containers and values within the limits. 0 or -SQ_E_INVAL. */
int sq_json_scan(const char *s, size_t n, const struct sq_api_limits *l, struct sq_fault *f);

/* The body as an object, or NULL with *f filled. Duplicate keys and invalid UTF-8 are refused. */
struct json_t *sq_json_parse(const char *s, size_t n, const struct sq_api_limits *l,
                             struct sq_fault *f);
void sq_json_free(struct json_t *j);

enum sq_json_kind sq_json_kind(const struct json_t *v);
const char *sq_json_kind_name(const struct json_t *v); /* "a number", "null": for messages */
size_t sq_json_len(const struct json_t *v);            /* elements or members */
const struct json_t *sq_json_at(const struct json_t *array, size_t i);
const struct json_t *sq_json_get(const struct json_t *object, const char *key);

/* Members in order: it starts as NULL; false at the end. */
bool sq_json_next(const struct json_t *object, void **it, const char **ret_key,
                  const struct json_t **ret_value);

int sq_json_int(const struct json_t *v, const char *path, int64_t min, int64_t max, int64_t *ret,
                struct sq_fault *f);
/* min <= value <= max, also after narrowing to float. */
int sq_json_float(const struct json_t *v, const char *path, double min, double max, float *ret,
                  struct sq_fault *f);
int sq_json_bool(const struct json_t *v, const char *path, bool *ret, struct sq_fault *f);
/* *ret points into v and is valid UTF-8 without NUL. */
int sq_json_str(const struct json_t *v, const char *path, const char **ret, size_t *ret_n,
                struct sq_fault *f);
