#include "engine/model/source.h"

#include <stdio.h>
#include <string.h>

#include "engine/quant.h"

#define PIECE 2048 /* elements converted at a time, through the stack */

const char *sq_dtype_name(enum sq_dtype t)
{
    static const char *const names[] = {"F32", "F16", "BF16", "I8"};
    return names[t];
}

struct sq_shape_text sq_shape_text(int rank, const size_t *shape)
{
    struct sq_shape_text t = {"["};
    size_t at = 1;
    for (int i = 0; i < rank && at < sizeof t.s - 24; i++)
        at += (size_t)snprintf(t.s + at, sizeof t.s - at, i ? ", %zu" : "%zu", shape[i]);
    snprintf(t.s + at, sizeof t.s - at, "]");
    return t;
}

static void widen(enum sq_dtype t, const void *src, size_t n, float *dst)
{
    const uint16_t *h = src;
    const int8_t *q = src;
    if (t == SQ_F16)
        for (size_t i = 0; i < n; i++)
            dst[i] = sq_f16_to_f32(h[i]);
    else if (t == SQ_BF16)
        for (size_t i = 0; i < n; i++)
            dst[i] = sq_bf16_to_f32(h[i]);
    else
        for (size_t i = 0; i < n; i++)
            dst[i] = (float)q[i];
}

void sq_widen_in_place(enum sq_dtype t, size_t n, float *dst)
{
    if (t == SQ_F32)
        return;
    size_t size = sq_dtype_bytes(t);
    /* the raw elements lie at the end of dst, so that writing in ascending order never overtakes reading */
    const char *raw = (const char *)dst + n * (4 - size);
    uint16_t piece[PIECE];
    for (size_t i = 0; i < n; i += PIECE) {
        size_t k = n - i < PIECE ? n - i : PIECE;
        memcpy(piece, raw + i * size, k * size);
        widen(t, piece, k, dst + i);
    }
}

int sq_source_read_f32(struct sq_source *s, const char *name, size_t row0, size_t n_rows,
                       float *dst, struct sq_err *err)
{
    struct sq_tensor_info t;
    if (!s->ops->find(s, name, &t))
        return sq_fail(err, SQ_E_NOTFOUND, "tensor '%.128s' is not there", name);
    size_t rows = sq_tensor_rows(&t), n = rows ? t.n_elems / rows * n_rows : 0;
    char *raw = (char *)dst + n * (4 - sq_dtype_bytes(t.dtype));
    int r = s->ops->read(s, name, row0, n_rows, raw, err);
    if (r)
        return r;
    sq_widen_in_place(t.dtype, n, dst);
    return 0;
}
