#include "engine/base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine/base/check.h"

static _Atomic int max_level = SQ_LOG_INFO;
static _Atomic bool with_prefix;

void sq_log_init(enum sq_log_level level, bool journal_prefix)
{
    atomic_store(&max_level, (int)level);
    atomic_store(&with_prefix, journal_prefix);
}

void sq_log_set_level(enum sq_log_level level)
{
    atomic_store(&max_level, (int)level);
}

bool sq_log_enabled(enum sq_log_level level)
{
    return (int)level <= atomic_load_explicit(&max_level, memory_order_relaxed);
}

void sq_log(enum sq_log_level level, const char *module, const char *fmt, ...)
{
    if (!sq_log_enabled(level))
        return;
    static const char *const names[] = {[SQ_LOG_ERROR] = "error",
                                        [SQ_LOG_WARN] = "warning",
                                        [SQ_LOG_NOTICE] = "notice",
                                        [SQ_LOG_INFO] = "info",
                                        [SQ_LOG_DEBUG] = "debug"};
    char line[1024];
    int n = atomic_load(&with_prefix)
                ? snprintf(line, sizeof line, "<%d>%s: ", (int)level, module)
                : snprintf(line, sizeof line, "sqd %s %s: ", names[level], module);
    va_list ap;
    va_start(ap, fmt);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    va_end(ap);
    size_t len = (size_t)n + (size_t)(m < 0 ? 0 : m);
    if (len > sizeof line - 2)
        len = sizeof line - 2;
    /* a line stays a line, whatever a client managed to put into it */
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
            line[i] = '?';
    line[len++] = '\n';
    /* a full disk or a closed stderr must not stop serving */
    ssize_t written = write(STDERR_FILENO, line, len);
    (void)written;
}

void sq_assert_failed(const char *expr, const char *file, int line)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expr);
    abort();
}
