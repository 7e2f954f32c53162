/* The books of a matrix that comes in by rows, which devices keep alike: each row is put once, in any order, and all of them before finish.
 *
 * put: [d->n_out] 1 where the row was put; NULL once the matrix is finished. n_put: how many were. d->name begins the messages. */
#pragma once

#include <stdint.h>
#include <string.h>

#include "engine/backend.h"

/* May rows [row0, row0 + n_rows) be put? 0, -SQ_E_STATE after finish, or -SQ_E_INVAL. */
static inline int sq_put_check(const uint8_t *put, const struct sq_linear_desc *d, size_t row0,
                               size_t n_rows, struct sq_err *err)
{
    if (!put)
        return sq_fail(err, SQ_E_STATE, "%s: rows put after finish", d->name);
    if (row0 > d->n_out || n_rows > d->n_out - row0)
        return sq_fail(err, SQ_E_INVAL, "%s: %zu rows put from row %zu on, but it has %zu", d->name,
                       n_rows, row0, d->n_out);
    const uint8_t *twice = memchr(put + row0, 1, n_rows);
    if (twice)
        return sq_fail(err, SQ_E_INVAL, "%s: row %zu put twice", d->name, (size_t)(twice - put));
    return 0;
}

/* They were. */
static inline void sq_put_mark(uint8_t *put, size_t *n_put, size_t row0, size_t n_rows)
{
    memset(put + row0, 1, n_rows);
    *n_put += n_rows;
}

/* May the matrix be finished? 0, -SQ_E_STATE where it is, or -SQ_E_INVAL. */
static inline int sq_put_check_finish(const uint8_t *put, size_t n_put,
                                      const struct sq_linear_desc *d, struct sq_err *err)
{
    if (!put)
        return sq_fail(err, SQ_E_STATE, "%s: finished twice", d->name);
    if (n_put != d->n_out)
        return sq_fail(err, SQ_E_INVAL, "%s: finished with %zu of %zu rows", d->name, n_put,
                       d->n_out);
    return 0;
}
