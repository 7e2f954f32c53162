#include "daemon/bench_block.h"

#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"

#define BLOCK_BYTES ((size_t)4 << 20)
#define SMALL_ELEMS ((size_t)1 << 20) /* up to here tensors are the inner source's own */
#define MAX_BLOCKS 8

/* Rows of one type and width. The width decides the scale of random weights, so that a block serves every matrix of its width. */
struct block {
    enum sq_dtype dtype;
    size_t cols, n_rows;
    unsigned char *rows; /* [n_rows, cols], owned */
};

struct block_source {
    struct sq_source base;
    struct sq_source *inner; /* borrowed */
    struct block blocks[MAX_BLOCKS];
    int n_blocks;
};

static bool find(struct sq_source *s, const char *name, struct sq_tensor_info *ret)
{
    struct block_source *b = (struct block_source *)s;
    return b->inner->ops->find(b->inner, name, ret);
}

/* The block of a tensor's type and width, drawn from that tensor's first rows at the first time. */
static int block_of(struct block_source *b, const char *name, const struct sq_tensor_info *t,
                    size_t cols, struct block **ret, struct sq_err *err)
{
    for (int i = 0; i < b->n_blocks; i++)
        if (b->blocks[i].dtype == t->dtype && b->blocks[i].cols == cols) {
            *ret = &b->blocks[i];
            return 0;
        }
    size_t row_bytes = cols * sq_dtype_bytes(t->dtype);
    struct block n = {.dtype = t->dtype,
                      .cols = cols,
                      .n_rows = SQ_MIN(SQ_MAX(BLOCK_BYTES / row_bytes, 1), t->shape[0])};
    SQ_ASSERT(b->n_blocks < MAX_BLOCKS); /* hidden, ffn, heads and embedding widths, two types */
    n.rows = sq_malloc(n.n_rows * row_bytes);
    if (!n.rows)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for random weights");
    int rc = b->inner->ops->read(b->inner, name, 0, n.n_rows, n.rows, err);
    if (rc) {
        sq_free(n.rows);
        return rc;
    }
    b->blocks[b->n_blocks] = n;
    *ret = &b->blocks[b->n_blocks++];
    return 0;
}

static int read_rows(struct sq_source *s, const char *name, size_t row0, size_t n_rows, void *dst,
                     struct sq_err *err)
{
    struct block_source *b = (struct block_source *)s;
    struct sq_tensor_info t;
    if (!find(s, name, &t) || t.n_elems <= SMALL_ELEMS)
        return b->inner->ops->read(b->inner, name, row0, n_rows, dst, err);
    size_t cols = t.n_elems / sq_tensor_rows(&t);
    struct block *k = NULL;
    int rc = block_of(b, name, &t, cols, &k, err);
    if (rc)
        return rc;
    size_t row_bytes = cols * sq_dtype_bytes(t.dtype);
    for (size_t done = 0; done < n_rows;) {
        size_t at = (row0 + done) % k->n_rows, n = SQ_MIN(k->n_rows - at, n_rows - done);
        memcpy((unsigned char *)dst + done * row_bytes, k->rows + at * row_bytes, n * row_bytes);
        done += n;
    }
    return 0;
}

static void close_source(struct sq_source *s)
{
    struct block_source *b = (struct block_source *)s;
    for (int i = 0; i < b->n_blocks; i++)
        sq_free(b->blocks[i].rows);
    sq_free(b);
}

int sq_block_source_open(struct sq_source *inner, struct sq_source **ret, struct sq_err *err)
{
    static const struct sq_source_ops ops = {
        .find = find, .read = read_rows, .close = close_source};
    struct block_source *b = sq_new(struct block_source);
    if (!b)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    b->base.ops = &ops;
    b->inner = inner;
    *ret = &b->base;
    return 0;
}
