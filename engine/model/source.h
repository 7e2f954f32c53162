/* Where tensors come from: a name -> {dtype, shape, rows} interface. A checkpoint on disk is one source; engine/smooth stacks others on it
 * (folded weights, weights quantised on the fly), so that the loader and the exporter never know the difference.
 *
 * A source is used by one thread at a time. Names and infos stay valid until the source is closed. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/base/err.h"

#define SQ_MAX_RANK 8
#define SQ_NAME_BYTES 256 /* enough for every name a family makes, with its NUL */

struct sq_tensor_info {
    enum sq_dtype dtype;
    int rank;
    size_t shape[SQ_MAX_RANK];
    size_t n_elems;
};

struct sq_source;
struct sq_source_ops {
    /* True and *ret filled if the tensor is there. */
    bool (*find)(struct sq_source *s, const char *name, struct sq_tensor_info *ret);
    /* Rows [row0, row0 + n_rows) in the tensor's dtype, dense, into dst. A row is the product of the dimensions after the first;
     * rank 0 counts as one row of one element. Errors: -SQ_E_IO, -SQ_E_FORMAT, -SQ_E_NOTFOUND, naming file and tensor. */
    int (*read)(struct sq_source *s, const char *name, size_t row0, size_t n_rows, void *dst,
                struct sq_err *err);
    void (*close)(struct sq_source *s);
    /* May be NULL: the i-th name, in a fixed order, NULL beyond the last. Without it surplus tensors go unnoticed. */
    const char *(*name)(struct sq_source *s, size_t i);
    /* May be NULL (= 0): a digest of what the source stands for, for the model's fingerprint. */
    uint64_t (*digest)(struct sq_source *s);
};
struct sq_source {
    const struct sq_source_ops *ops; /* first member of every implementation */
};

static inline struct sq_source *sq_source_close(struct sq_source *s)
{
    if (s)
        s->ops->close(s);
    return NULL;
}

/* As read, but widened to f32 whatever the stored float type (I8 codes become their value). */
int sq_source_read_f32(struct sq_source *s, const char *name, size_t row0, size_t n_rows,
                       float *dst, struct sq_err *err) SQ_CHECKED;

/* Turns n elements of t that lie at the end of dst's 4 * n bytes into f32. */
void sq_widen_in_place(enum sq_dtype t, size_t n, float *dst);

/* Rows as read() counts them: the first dimension, 1 for rank 0. */
static inline size_t sq_tensor_rows(const struct sq_tensor_info *t)
{
    return t->rank ? t->shape[0] : 1;
}

/* "F32" ... and "[50272, 768]" for messages. */
const char *sq_dtype_name(enum sq_dtype t);
struct sq_shape_text {
    char s[192];
};
struct sq_shape_text sq_shape_text(int rank, const size_t *shape);
