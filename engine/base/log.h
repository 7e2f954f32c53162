/* The log sink: one line per call to stderr, with the journal's <N> prefix where stderr is the journal.
 * Only daemon/ and api/ log; engine and cuda return errors (debug lines are allowed). Never prompt or completion text.
 * Thread-safe: a line is one write(2). */
#pragma once

#include <stdbool.h>

enum sq_log_level {
    SQ_LOG_ERROR = 3,
    SQ_LOG_WARN = 4,
    SQ_LOG_NOTICE = 5,
    SQ_LOG_INFO = 6,
    SQ_LOG_DEBUG = 7
};

void sq_log_init(enum sq_log_level level, bool journal_prefix); /* before any other thread starts */
void sq_log_set_level(enum sq_log_level level);
bool sq_log_enabled(enum sq_log_level level);
void sq_log(enum sq_log_level level, const char *module, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define sq_error(module, ...) sq_log(SQ_LOG_ERROR, module, __VA_ARGS__)
#define sq_warn(module, ...) sq_log(SQ_LOG_WARN, module, __VA_ARGS__)
#define sq_notice(module, ...) sq_log(SQ_LOG_NOTICE, module, __VA_ARGS__)
#define sq_info(module, ...) sq_log(SQ_LOG_INFO, module, __VA_ARGS__)
#define sq_debug(module, ...)                                                                      \
    do {                                                                                           \
        if (sq_log_enabled(SQ_LOG_DEBUG))                                                          \
            sq_log(SQ_LOG_DEBUG, module, __VA_ARGS__);                                             \
    } while (0)
