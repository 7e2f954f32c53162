#include "engine/base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Messages may quote bytes of a hostile file; a log line or a terminal must get neither control bytes nor line breaks. */
static void clean(char *s)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c < 0x20 || c == 0x7f)
            *s = '?';
    }
}

int sq_fail(struct sq_err *err, enum sq_code code, const char *fmt, ...)
{
    if (err) {
        va_list ap;
        va_start(ap, fmt);
        err->code = (int)code;
        (void)vsnprintf(err->msg, sizeof err->msg, fmt, ap);
        va_end(ap);
        clean(err->msg);
    }
    return -(int)code;
}

int sq_fail_in(struct sq_err *err, const char *fmt, ...)
{
    if (!err)
        return -SQ_E_INVAL;
    char head[sizeof err->msg], all[2 * sizeof err->msg + 2];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    (void)snprintf(all, sizeof all, "%s: %s", head, err->msg);
    all[sizeof err->msg - 1] = '\0';
    memcpy(err->msg, all, sizeof err->msg);
    clean(err->msg);
    return err->code ? -err->code : -SQ_E_INVAL;
}

const char *sq_code_text(int code)
{
    static const char *const texts[] = {
        "success",
#define X(code, text) text,
#include "engine/base/err.def"
#undef X
    };
    int i = abs(code);
    return i < SQ_E_MAX ? texts[i] : "unknown error";
}
