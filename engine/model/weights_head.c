/* The head: the embedding itself, a matrix of its own, or either quantised here, one scale per vocabulary entry. */
#include <math.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/model/load.h"
#include "engine/quant.h"

/* True (in *ret) if the stored head is bit for bit the embedding: some writers store a tied head, too. */
static int same_as_embedding(struct sq_loader *ld, const char *name, const struct sq_tensor_info *t,
                             bool *ret)
{
    char embed[SQ_NAME_BYTES];
    struct sq_tensor_info e;
    if (!sq_load_find(ld, SQ_R_EMBED, 0, SQ_P_WEIGHT, embed, &e) || e.dtype != t->dtype) {
        *ret = false;
        return 0;
    }
    size_t rows = t->shape[0], row_bytes = t->shape[1] * sq_dtype_bytes(t->dtype);
    size_t at_once = SQ_MAX(SQ_STAGE_BYTES / 2 / row_bytes, 1); /* a row is at most a quarter */
    for (size_t row = 0; row < rows; row += at_once) {
        size_t n = SQ_MIN(at_once, rows - row);
        unsigned char *half = ld->stage + SQ_STAGE_BYTES / 2;
        int r = ld->src->ops->read(ld->src, name, row, n, ld->stage, ld->err);
        if (!r)
            r = ld->src->ops->read(ld->src, embed, row, n, half, ld->err);
        if (r)
            return r;
        if (memcmp(ld->stage, half, n * row_bytes)) {
            *ret = false;
            return 0;
        }
    }
    *ret = true;
    return 0;
}

/* Codes of one row of k floats, in place or not; the scale is the return value. A row of zeros (padding of the vocabulary) gets 1. */
static float quantise_row(const float *x, size_t k, int8_t *q)
{
    float top = 0;
    for (size_t i = 0; i < k; i++)
        top = fmaxf(top, fabsf(x[i]));
    float step = top / 127;
    if (!sq_scale_ok(step)) {
        memset(q, 0, k);
        return 1;
    }
    for (size_t i = 0; i < k; i++)
        q[i] = sq_sat_s8(x[i] / step);
    return step;
}

static int put_quantised(struct sq_loader *ld, const char *name, const struct sq_tensor_info *t,
                         struct sq_linear *l, float *scales)
{
    size_t rows = t->shape[0], k = t->shape[1], at_once = sq_load_rows_at_once(t, true);
    float *f = (float *)(void *)ld->stage;
    for (size_t row = 0; row < rows; row += at_once) {
        size_t n = SQ_MIN(at_once, rows - row), size = sq_dtype_bytes(t->dtype);
        int r = sq_load_rows(ld, name, t, row, n);
        if (r)
            return r;
        memmove(ld->stage + n * k * (4 - size), ld->stage, n * k * size);
        sq_widen_in_place(t->dtype, n * k, f);
        /* the codes of row i overwrite floats that have been read: 4 * k * i >= k * i */
        for (size_t i = 0; i < n; i++)
            scales[row + i] = quantise_row(f + i * k, k, (int8_t *)ld->stage + i * k);
        r = ld->be->ops->linear_put(ld->be, l, row, n, ld->stage, ld->err);
        if (r)
            return r;
        sq_load_progress(ld, n * k);
    }
    return 0;
}

static int quantise_head(struct sq_loader *ld, const char *name, const struct sq_tensor_info *t)
{
    struct sq_linear_desc d = {.name = "head",
                               .n_out = t->shape[0],
                               .n_in = t->shape[1],
                               .dtype = SQ_I8,
                               .dynamic = true,
                               .out = SQ_OUT_F32};
    struct sq_linear *l = NULL;
    SQ_AUTO_FREE float *scales = sq_calloc(d.n_out, sizeof *scales);
    if (!scales)
        return sq_fail(ld->err, SQ_E_NOMEM, "head: out of memory");
    int r = ld->be->ops->linear_new(ld->be, &d, &l, ld->err);
    if (!r && !ld->o->sizes_only)
        r = put_quantised(ld, name, t, l, scales);
    struct sq_epilogue e = {.mul = scales};
    if (!r && !ld->o->sizes_only)
        r = ld->be->ops->linear_finish(ld->be, l, &e, ld->err);
    if (r) {
        ld->be->ops->linear_free(ld->be, l);
        return r;
    }
    ld->m->head = l;
    ld->m->head_int8 = true;
    ld->m->weight_bytes += d.n_out * (d.n_in + sizeof *scales);
    return 0;
}

/* Which tensor is the head: its own where there is one that differs, else the embedding. */
static int find_head(struct sq_loader *ld, char *name, struct sq_tensor_info *t, bool *ret_own)
{
    bool own = sq_load_find(ld, SQ_R_HEAD, 0, SQ_P_WEIGHT, name, t), same = false;
    if (own && ld->c->tied) {
        int r = same_as_embedding(ld, name, t, &same);
        if (r)
            return r;
    }
    *ret_own = own && !same;
    if (same && ld->o->head == SQ_HEAD_KEEP)
        sq_load_progress(ld, t->n_elems);
    if (!*ret_own)
        (void)sq_load_find(ld, SQ_R_EMBED, 0, SQ_P_WEIGHT, name, t);
    return 0;
}

int sq_load_head(struct sq_loader *ld)
{
    char name[SQ_NAME_BYTES];
    struct sq_tensor_info t;
    bool own;
    int r = find_head(ld, name, &t, &own);
    if (r)
        return r;
    if (t.dtype != SQ_I8 && ld->o->head == SQ_HEAD_INT8)
        return quantise_head(ld, name, &t);
    if (!own) {
        ld->m->head = ld->m->embed;
        return 0;
    }
    struct sq_linear_plan p = {
        .name = "head", .roles = {SQ_R_HEAD}, .n_roles = 1, .out = SQ_OUT_F32};
    ld->m->head_int8 = t.dtype == SQ_I8;
    return sq_load_linear(ld, &p, &ld->m->head);
}
