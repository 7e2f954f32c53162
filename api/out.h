/* A growing byte buffer and the JSON writer on top of it. Failure is sticky: writers return nothing, the owner looks at `failed`
 * once at the end. Any thread, one owner. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sq_out {
    char *data; /* owned; not NUL-terminated */
    size_t n, cap;
    size_t max;  /* 0 = no cap; beyond it the buffer fails */
    bool failed; /* out of memory or beyond max: contents are incomplete */
};

void sq_out_done(struct sq_out *o); /* frees and zeroes, keeps max */

void sq_out_put(struct sq_out *o, const void *p, size_t n);
void sq_out_puts(struct sq_out *o, const char *s);
void sq_out_printf(struct sq_out *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sq_out_int(struct sq_out *o, int64_t v);

/* JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD, so the result is always valid JSON. */
void sq_out_json(struct sq_out *o, const char *s, size_t n);
/* The same without quotes. */
void sq_out_escaped(struct sq_out *o, const char *s, size_t n);
/* A JSON string, or null for NULL. */
void sq_out_json_or_null(struct sq_out *o, const char *s);
