/* A growing byte buffer and the JSON writer on top of it. Failure is sticky: writers return nothing, the owner looks at `failed`
 * once at the end. Any thread, one owner. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sq_wbuf {
    char *data; /* owned; not NUL-terminated */
    size_t n, cap;
    size_t max;  /* 0 = no cap; beyond it the buffer fails */
    bool failed; /* out of memory or beyond max: contents are incomplete */
};

void sq_wbuf_done(struct sq_wbuf *o); /* frees and zeroes, keeps max */

void sq_wbuf_put(struct sq_wbuf *o, const void *p, size_t n);
void sq_wbuf_puts(struct sq_wbuf *o, const char *s);
void sq_wbuf_printf(struct sq_wbuf *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sq_wbuf_int(struct sq_wbuf *o, int64_t v);

/* JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD, so the result is always valid JSON. */
void sq_wbuf_json(struct sq_wbuf *o, const char *s, size_t n);
/* The same without quotes. */
void sq_wbuf_escaped(struct sq_wbuf *o, const char *s, size_t n);
/* A JSON string, or null for NULL. */
void sq_wbuf_json_or_null(struct sq_wbuf *o, const char *s);
