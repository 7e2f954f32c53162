#include "engine/base/num.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool sq_parse_i64(const char *s, int64_t min, int64_t max, int64_t *ret)
{
    char *end;
    if (!s || !(*s == '-' || (*s >= '0' && *s <= '9')))
        return false;
    errno = 0;
    long long v = strtoll(s, &end, 10);
    if (errno || end == s || *end || v < min || v > max)
        return false;
    *ret = v;
    return true;
}

bool sq_parse_double(const char *s, double min, double max, double *ret)
{
    char *end;
    /* strtod alone would also take "nan", "inf", hexadecimal and leading blanks */
    if (!s || !*s || strspn(s, "+-.0123456789eE") != strlen(s))
        return false;
    errno = 0;
    double v = strtod(s, &end);
    if (end == s || *end || !isfinite(v) || !(v >= min && v <= max))
        return false;
    *ret = v;
    return true;
}

static bool parse_unit(const char *s, const char *const *units, const uint64_t *factors,
                       uint64_t *ret)
{
    char *end;
    if (!s || *s < '0' || *s > '9')
        return false;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (errno)
        return false;
    for (int i = 0; units[i]; i++)
        if (strcmp(end, units[i]) == 0)
            return sq_mul_u64(v, factors[i], ret);
    return false;
}

bool sq_parse_bytes(const char *s, uint64_t *ret)
{
    static const char *const units[] = {"", "B", "KiB", "MiB", "GiB", "TiB", NULL};
    static const uint64_t factors[] = {1, 1, 1u << 10, 1u << 20, 1u << 30, 1ull << 40};
    return parse_unit(s, units, factors, ret);
}

bool sq_parse_ms(const char *s, uint64_t *ret)
{
    static const char *const units[] = {"", "ms", "s", "min", "h", NULL};
    static const uint64_t factors[] = {1000, 1, 1000, 60000, 3600000};
    return parse_unit(s, units, factors, ret);
}
