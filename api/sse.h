/* A stream's outgoing bytes: a bounded first-in-first-out buffer, and the framing of server-sent events. One owner, loop thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "api/reply.h"
#include "api/wbuf.h"

struct sq_fifo {
    struct sq_wbuf out; /* bytes from `start` on are waiting; out.max bounds it */
    size_t start;
};
void sq_fifo_done(struct sq_fifo *f);
static inline size_t sq_fifo_n(const struct sq_fifo *f)
{
    return f->out.n - f->start;
}
/* Where to write: makes room at the front first when that is worth it. */
struct sq_wbuf *sq_fifo_tail(struct sq_fifo *f);
size_t sq_fifo_read(struct sq_fifo *f, char *to, size_t max);

/* "data: " json "\n\n" around what was written by the caller in between. */
void sq_sse_begin(struct sq_wbuf *o);
void sq_sse_end(struct sq_wbuf *o);
void sq_sse_fault(struct sq_wbuf *o, const struct sq_fault *f); /* a whole error event */
void sq_sse_finished(struct sq_wbuf *o);                        /* data: [DONE] */
void sq_sse_ping(struct sq_wbuf *o);
