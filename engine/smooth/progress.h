/* How long work tells where it is and learns that it should stop. Callbacks come on the working
 * thread. */
#pragma once

#include <stdatomic.h>
#include <stddef.h>

#include "engine/base/err.h"

struct sq_progress {
    void (*tell)(void *ctx, const char *phase, double done_ratio); /* may be NULL */
    void *ctx;
    const _Atomic bool *stop; /* may be NULL */
};

/* Reports, then checks for a stop: -SQ_E_INTR. p may be NULL. */
static inline int sq_progress_step(const struct sq_progress *p, const char *phase, double ratio,
                                   struct sq_err *err)
{
    if (!p)
        return 0;
    if (p->tell)
        p->tell(p->ctx, phase, ratio);
    if (p->stop && atomic_load_explicit(p->stop, memory_order_relaxed))
        return sq_fail(err, SQ_E_INTR, "interrupted while %s", phase);
    return 0;
}
