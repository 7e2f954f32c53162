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

enum sq_field_kind {
    SQ_JSON_NULL, /* also: missing */
    SQ_JSON_BOOL,
    SQ_JSON_INT,
    SQ_JSON_REAL,
    SQ_JSON_STRING,
    SQ_JSON_ARRAY,
    SQ_JSON_OBJECT,
};

/* The scan alone: depth, containers and values within the limits. 0 or -SQ_E_INVAL. */
int sq_field_scan(const char *s, size_t n, const struct sq_api_limits *l, struct sq_fault *f);

/* The body as an object, or NULL with *f filled. Duplicate keys and invalid UTF-8 are refused. */
struct json_t *sq_field_parse(const char *s, size_t n, const struct sq_api_limits *l,
                              struct sq_fault *f);
void sq_field_free(struct json_t *j);

enum sq_field_kind sq_field_kind(const struct json_t *v);
const char *sq_field_kind_name(const struct json_t *v); /* "a number", "null": for messages */
size_t sq_field_len(const struct json_t *v);            /* elements or members */
const struct json_t *sq_field_at(const struct json_t *array, size_t i);
const struct json_t *sq_field_get(const struct json_t *object, const char *key);

/* Members in order: it starts as NULL; false at the end. */
bool sq_field_next(const struct json_t *object, void **it, const char **ret_key,
                   const struct json_t **ret_value);

int sq_field_int(const struct json_t *v, const char *path, int64_t min, int64_t max, int64_t *ret,
                 struct sq_fault *f);
/* min <= value <= max, also after narrowing to float. */
int sq_field_float(const struct json_t *v, const char *path, double min, double max, float *ret,
                   struct sq_fault *f);
int sq_field_bool(const struct json_t *v, const char *path, bool *ret, struct sq_fault *f);
/* *ret points into v and is valid UTF-8 without NUL. */
int sq_field_str(const struct json_t *v, const char *path, const char **ret, size_t *ret_n,
                 struct sq_fault *f);
