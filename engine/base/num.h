/* Arithmetic on sizes that come from outside: files, JSON, the command line, HTTP headers. Nothing else may add or multiply them. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline bool sq_mul_size(size_t a, size_t b, size_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}

static inline bool sq_add_size(size_t a, size_t b, size_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

static inline bool sq_mul_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_mul_overflow(a, b, ret);
}

static inline bool sq_add_u64(uint64_t a, uint64_t b, uint64_t *ret)
{
    return !__builtin_add_overflow(a, b, ret);
}

/* Rounds up to a multiple of step (a power of two or not, > 0). The caller has bounded n. */
static inline size_t sq_round_up(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

static inline size_t sq_div_up(size_t n, size_t step)
{
    return (n + step - 1) / step;
}

/* Whole string, decimal, within [min,max]; false otherwise. */
bool sq_parse_i64(const char *s, int64_t min, int64_t max, int64_t *ret);

/* Whole string, finite, within [min,max]; the C locale's decimal point whatever the locale. */
bool sq_parse_double(const char *s, double min, double max, double *ret);

/* "64MiB", "8KiB", "2GiB" or plain bytes. */
bool sq_parse_bytes(const char *s, uint64_t *ret);

/* "250ms", "30s", "5min" or plain seconds, to milliseconds. */
bool sq_parse_ms(const char *s, uint64_t *ret);
