/* jansson on files nobody vouches for: a scan of size and shape before anything is allocated, and getters that take one type only.
 *
 * The scan bounds memory: jansson needs up to 80 bytes a byte of input, and nests 2,048 deep. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/base/err.h"

struct sq_json_limits {
    size_t max_bytes;
    int max_depth;
    size_t max_containers; /* objects and arrays together */
    size_t max_commas;     /* about the number of values */
    bool plain_integers;   /* a minus sign outside of strings is refused, too (jansson takes -0) */
};

/* Whose JSON it is and which rule a breach is reported under. */
struct sq_json_where {
    const char *file;      /* for messages */
    const char *rule;      /* "C1" */
    const char *utf8_rule; /* for text that is no UTF-8; NULL = rule */
    const char *path;      /* put before a key: "quantization_config." or "" */
    struct sq_err *err;
};

/* One object, duplicate keys refused. Errors: -SQ_E_FORMAT, -SQ_E_LIMIT, -SQ_E_NOMEM. (When an allocation inside of jansson 2.14 itself fails,
 * it may report a syntax error or run into an assertion of its own: keep its needs small rather than its memory scarce.) */
int sq_json_load(const char *buf, size_t n_bytes, const struct sq_json_limits *lim,
                 const struct sq_json_where *w, json_t **ret) SQ_CHECKED;

/* The getters return 0 (found), 1 (absent or null; *ret untouched) or -SQ_E_FORMAT (another type, or outside [min,max]).
 * Integers are JSON integers only; reals may be written as integers. */
int sq_json_int(const json_t *o, const struct sq_json_where *w, const char *key, int64_t min,
                int64_t max, int64_t *ret) SQ_CHECKED;
int sq_json_real(const json_t *o, const struct sq_json_where *w, const char *key, double min,
                 double max, double *ret) SQ_CHECKED;
int sq_json_bool(const json_t *o, const struct sq_json_where *w, const char *key,
                 bool *ret) SQ_CHECKED;
int sq_json_str(const json_t *o, const struct sq_json_where *w, const char *key,
                const char **ret) SQ_CHECKED; /* borrowed from o */

/* "a string", "an integer", ... for messages. */
const char *sq_json_type_text(const json_t *v);
