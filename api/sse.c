#include "api/sse.h"

#include <string.h>

#include "engine/base/check.h"

/* Below this the bytes already read are not worth moving the rest for. */
#define COMPACT_MIN 4096

void sq_fifo_done(struct sq_fifo *f)
{
    sq_wbuf_done(&f->out);
    f->start = 0;
}

struct sq_wbuf *sq_fifo_tail(struct sq_fifo *f)
{
    if (f->start >= COMPACT_MIN && f->start >= f->out.n / 2) {
        f->out.n -= f->start;
        memmove(f->out.data, f->out.data + f->start, f->out.n);
        f->start = 0;
    }
    return &f->out;
}

size_t sq_fifo_read(struct sq_fifo *f, char *to, size_t max)
{
    size_t n = SQ_MIN(sq_fifo_n(f), max);
    if (!n)
        return 0;
    memcpy(to, f->out.data + f->start, n);
    f->start += n;
    if (f->start == f->out.n)
        f->start = f->out.n = 0;
    return n;
}

void sq_sse_begin(struct sq_wbuf *o)
{
    sq_wbuf_put(o, "data: ", 6);
}

void sq_sse_end(struct sq_wbuf *o)
{
    sq_wbuf_put(o, "\n\n", 2);
}

void sq_sse_fault(struct sq_wbuf *o, const struct sq_fault *f)
{
    sq_sse_begin(o);
    sq_fault_write(f, o);
    sq_sse_end(o);
}

void sq_sse_finished(struct sq_wbuf *o)
{
    sq_wbuf_puts(o, "data: [DONE]\n\n");
}

void sq_sse_ping(struct sq_wbuf *o)
{
    sq_wbuf_puts(o, ": ping\n\n");
}
