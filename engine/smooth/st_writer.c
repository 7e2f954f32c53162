#include "engine/smooth/st_writer.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"

#define BLOCK_BYTES ((size_t)1 << 20)

/* A growing header; after a failure nothing more is added. */
struct header {
    char *text;
    size_t n, cap;
    bool failed;
};

static void put(struct header *h, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct header *h, const char *fmt, ...)
{
    char piece[1024];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(piece, sizeof piece, fmt, ap);
    va_end(ap);
    SQ_ASSERT(n >= 0 && (size_t)n < sizeof piece);
    if (h->n + (size_t)n > h->cap && !h->failed) {
        size_t cap = SQ_MAX((size_t)4096, h->cap * 2);
        char *text = sq_realloc_array(h->text, cap, 1);
        h->failed = !text;
        h->text = text ? text : h->text;
        h->cap = text ? cap : h->cap;
    }
    if (!h->failed) {
        memcpy(h->text + h->n, piece, (size_t)n);
        h->n += (size_t)n;
    }
}

static const char *dtype_name(enum sq_dtype t)
{
    switch (t) {
    case SQ_F32:
        return "F32";
    case SQ_F16:
        return "F16";
    case SQ_BF16:
        return "BF16";
    case SQ_I8:
        return "I8";
    }
    return NULL;
}

static int wide_first(const void *a, const void *b)
{
    const struct sq_out_tensor *x = a, *y = b;
    size_t wx = sq_dtype_bytes(x->info.dtype), wy = sq_dtype_bytes(y->info.dtype);
    if (wx != wy)
        return wx > wy ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void make_header(struct header *h, const struct sq_write_job *job,
                        const struct sq_out_tensor *tensors, size_t n)
{
    uint64_t at = 0;
    put(h, "{\"__metadata__\":{");
    for (int i = 0; i < job->n_meta; i++)
        put(h, "%s\"%s\":\"%s\"", i ? "," : "", job->metadata[i][0], job->metadata[i][1]);
    put(h, "}");
    for (size_t i = 0; i < n; i++) {
        const struct sq_tensor_info *t = &tensors[i].info;
        put(h, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensors[i].name, dtype_name(t->dtype));
        for (int k = 0; k < t->rank; k++)
            put(h, "%s%zu", k ? "," : "", t->shape[k]);
        put(h, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + tensors[i].n_bytes);
        at += tensors[i].n_bytes;
    }
    put(h, "}");
    while (h->n % 8 && !h->failed)
        put(h, " ");
}

static int write_header(int fd, const char *file, const struct header *h, struct sq_err *err)
{
    unsigned char len[8];
    for (int i = 0; i < 8; i++)
        len[i] = (unsigned char)((uint64_t)h->n >> (8 * i));
    int rc = sq_write_all(fd, file, len, sizeof len, err);
    return rc ? rc : sq_write_all(fd, file, h->text, h->n, err);
}

static int write_tensor(struct sq_write_job *job, int fd, const char *file,
                        const struct sq_out_tensor *t, struct sq_err *err)
{
    const size_t n_rows = t->info.rank ? t->info.shape[0] : 1;
    const size_t row = (size_t)(t->n_bytes / n_rows), step = SQ_MAX((size_t)1, BLOCK_BYTES / row);
    SQ_AUTO_FREE char *block = sq_malloc(row * SQ_MIN(step, n_rows));
    if (!block)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a block of '%s'", t->name);
    for (size_t r = 0; r < n_rows; r += step) {
        size_t n = SQ_MIN(step, n_rows - r);
        double ratio = (double)job->done_bytes / (double)job->total_bytes;
        int rc = sq_progress_step(job->progress, "writing", ratio, err);
        if (!rc)
            rc = job->source->ops->read(job->source, t->name, r, n, block, err);
        if (!rc)
            rc = sq_write_all(fd, file, block, n * row, err);
        if (rc)
            return rc;
        job->done_bytes += n * row;
    }
    return 0;
}

int sq_st_write(struct sq_write_job *job, const char *file, struct sq_out_tensor *tensors, size_t n,
                struct sq_err *err)
{
    struct header h = {0};
    qsort(tensors, n, sizeof *tensors, wide_first);
    make_header(&h, job, tensors, n);
    int fd = -1;
    int rc = h.failed ? sq_fail(err, SQ_E_NOMEM, "out of memory for the header of %s", file)
                      : sq_outdir_create(job->out, file, &fd, err);
    if (!rc)
        rc = write_header(fd, file, &h, err);
    for (size_t i = 0; !rc && i < n; i++)
        rc = write_tensor(job, fd, file, &tensors[i], err);
    sq_free(h.text);
    if (fd < 0)
        return rc;
    if (rc) {
        close(fd);
        return rc;
    }
    return sq_outdir_finish_file(job->out, file, fd, err);
}
