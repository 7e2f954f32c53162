#include "api/wbuf.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/text/utf8.h"

void sq_wbuf_done(struct sq_wbuf *o)
{
    sq_free(o->data);
    *o = (struct sq_wbuf){.max = o->max};
}

/* Room for n more bytes, or NULL with `failed` set. */
static char *room(struct sq_wbuf *o, size_t n)
{
    size_t need;
    if (o->failed || !sq_add_size(o->n, n, &need) || (o->max && need > o->max)) {
        o->failed = true;
        return NULL;
    }
    if (need > o->cap) {
        size_t cap = o->cap ? o->cap : 256;
        while (cap < need && cap <= SIZE_MAX / 2)
            cap *= 2;
        char *p = cap < need ? NULL : sq_realloc_array(o->data, cap, 1);
        if (!p) {
            o->failed = true;
            return NULL;
        }
        o->data = p;
        o->cap = cap;
    }
    return o->data + o->n;
}

void sq_wbuf_put(struct sq_wbuf *o, const void *p, size_t n)
{
    char *to = n ? room(o, n) : NULL;
    if (to) {
        memcpy(to, p, n);
        o->n += n;
    }
}

void sq_wbuf_puts(struct sq_wbuf *o, const char *s)
{
    sq_wbuf_put(o, s, strlen(s));
}

void sq_wbuf_printf(struct sq_wbuf *o, const char *fmt, ...)
{
    char buf[512];
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int n = vsnprintf(buf, sizeof(buf), fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof(buf)) {
        sq_wbuf_put(o, buf, (size_t)n);
    } else if (n < 0) {
        o->failed = true;
    } else {
        char *to = room(o, (size_t)n + 1);
        if (to) {
            (void)vsnprintf(to, (size_t)n + 1, fmt, again);
            o->n += (size_t)n;
        }
    }
    va_end(again);
}

void sq_wbuf_int(struct sq_wbuf *o, int64_t v)
{
    char buf[24];
    char *p = buf + sizeof(buf);
    uint64_t u = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    do {
        *--p = (char)('0' + u % 10);
        u /= 10;
    } while (u);
    if (v < 0)
        *--p = '-';
    sq_wbuf_put(o, p, (size_t)(buf + sizeof(buf) - p));
}

/* Writes what one byte below 0x80 that may not stand for itself becomes; to has room for 6. */
static size_t escape(char *to, unsigned char c)
{
    static const char hex[] = "0123456789abcdef";
    static const char from[] = "\"\\\b\f\n\r\t", into[] = "\"\\bfnrt";
    to[0] = '\\';
    const char *hit = c ? memchr(from, c, sizeof(from) - 1) : NULL;
    if (hit) {
        to[1] = into[hit - from];
        return 2;
    }
    memcpy(to + 1, "u00", 3);
    to[4] = hex[c >> 4];
    to[5] = hex[c & 15];
    return 6;
}

void sq_wbuf_escaped(struct sq_wbuf *o, const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s, *end = p + n;
    while (p < end && !o->failed) {
        const unsigned char *run = p;
        while (p < end && *p >= 0x20 && *p < 0x7F && *p != '"' && *p != '\\')
            p++;
        sq_wbuf_put(o, run, (size_t)(p - run));
        if (p == end)
            break;
        if (*p < 0x80) {
            char esc[6];
            sq_wbuf_put(o, esc, escape(esc, *p++));
            continue;
        }
        bool cut;
        int len = sq_utf8_step(p, (size_t)(end - p), &cut);
        if (len > 0)
            sq_wbuf_put(o, p, (size_t)len);
        else
            sq_wbuf_put(o, "\xEF\xBF\xBD", 3);
        p += len > 0 ? len : -len;
    }
}

void sq_wbuf_json(struct sq_wbuf *o, const char *s, size_t n)
{
    sq_wbuf_put(o, "\"", 1);
    sq_wbuf_escaped(o, s, n);
    sq_wbuf_put(o, "\"", 1);
}

void sq_wbuf_json_or_null(struct sq_wbuf *o, const char *s)
{
    if (s)
        sq_wbuf_json(o, s, strlen(s));
    else
        sq_wbuf_puts(o, "null");
}
