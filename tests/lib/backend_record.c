#include "tests/lib/backend_record.h"

#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"

static struct sq_record *record_of(struct sq_backend *be)
{
    return (struct sq_record *)be;
}

static void linear_free(struct sq_backend *be, struct sq_linear *l)
{
    if (!l)
        return;
    record_of(be)->n_linears--;
    sq_free((char *)l->d.name);
    sq_free(l->rows);
    sq_free(l->put);
    sq_free(l->mul);
    sq_free(l->bias);
    sq_free(l->bias_acc);
    sq_free(l);
}

static int linear_new(struct sq_backend *be, const struct sq_linear_desc *d, struct sq_linear **ret,
                      struct sq_err *err)
{
    SQ_ASSERT(d->n_out && d->n_in && d->name);
    SQ_ASSERT(d->dtype == SQ_I8 || (!d->dynamic && d->out != SQ_OUT_S8));
    SQ_ASSERT(!(d->dynamic && d->out == SQ_OUT_S8));
    struct sq_linear *l = sq_new(struct sq_linear);
    if (!l)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    record_of(be)->n_linears++;
    l->d = *d;
    l->d.name = sq_strdup(d->name);
    l->rows = sq_calloc(d->n_out * d->n_in, sq_dtype_bytes(d->dtype));
    l->put = sq_new_array(bool, d->n_out);
    if (!l->d.name || !l->rows || !l->put) {
        linear_free(be, l);
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    }
    *ret = l;
    return 0;
}

static int linear_put(struct sq_backend *be, struct sq_linear *l, size_t row0, size_t n_rows,
                      const void *rows, struct sq_err *err)
{
    struct sq_record *r = record_of(be);
    if (r->fail_at && --r->fail_at == 0)
        return sq_fail(err, SQ_E_DEVICE, "made to fail");
    SQ_ASSERT(!l->finished && row0 + n_rows <= l->d.n_out);
    size_t row_bytes = l->d.n_in * sq_dtype_bytes(l->d.dtype);
    memcpy(l->rows + row0 * row_bytes, rows, n_rows * row_bytes);
    for (size_t i = row0; i < row0 + n_rows; i++) {
        SQ_ASSERT(!l->put[i]);
        l->put[i] = true;
    }
    return 0;
}

static bool keep(void *ret, const void *p, size_t n)
{
    if (p)
        *(void **)ret = sq_memdup(p, 4 * n);
    return !p || *(void **)ret;
}

static int linear_finish(struct sq_backend *be, struct sq_linear *l, const struct sq_epilogue *e,
                         struct sq_err *err)
{
    (void)be;
    for (size_t i = 0; i < l->d.n_out; i++)
        SQ_ASSERT(l->put[i]);
    SQ_ASSERT(!l->finished && (l->d.dtype == SQ_I8) == (e->mul != NULL));
    l->finished = true;
    if (!keep(&l->mul, e->mul, l->d.n_out) || !keep(&l->bias, e->bias, l->d.n_out) ||
        !keep(&l->bias_acc, e->bias_acc, l->d.n_out))
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    return 0;
}

static void norm_free(struct sq_backend *be, struct sq_norm *n)
{
    if (!n)
        return;
    record_of(be)->n_norms--;
    sq_free((void *)n->d.gamma);
    sq_free((void *)n->d.beta);
    sq_free((void *)n->d.gamma_q);
    sq_free((void *)n->d.beta_q);
    sq_free(n);
}

static int norm_new(struct sq_backend *be, const struct sq_norm_desc *d, struct sq_norm **ret,
                    struct sq_err *err)
{
    struct sq_norm *n = sq_new(struct sq_norm);
    if (!n)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    record_of(be)->n_norms++;
    n->d = (struct sq_norm_desc){.kind = d->kind, .dim = d->dim, .eps = d->eps};
    if (!keep(&n->d.gamma, d->gamma, d->dim) || !keep(&n->d.beta, d->beta, d->dim) ||
        !keep(&n->d.gamma_q, d->gamma_q, d->dim) || !keep(&n->d.beta_q, d->beta_q, d->dim)) {
        norm_free(be, n);
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    }
    *ret = n;
    return 0;
}

static void rope_free(struct sq_backend *be, struct sq_rope *r)
{
    if (!r)
        return;
    record_of(be)->n_ropes--;
    sq_free((void *)r->d.cos);
    sq_free((void *)r->d.sin);
    sq_free(r);
}

static int rope_new(struct sq_backend *be, const struct sq_rope_desc *d, struct sq_rope **ret,
                    struct sq_err *err)
{
    SQ_ASSERT(d->rot_dim && d->rot_dim % 2 == 0 && d->n_pos);
    struct sq_rope *r = sq_new(struct sq_rope);
    if (!r)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    record_of(be)->n_ropes++;
    r->d = (struct sq_rope_desc){.rot_dim = d->rot_dim, .n_pos = d->n_pos};
    if (!keep(&r->d.cos, d->cos, d->n_pos * d->rot_dim / 2) ||
        !keep(&r->d.sin, d->sin, d->n_pos * d->rot_dim / 2)) {
        rope_free(be, r);
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    }
    *ret = r;
    return 0;
}

static const struct sq_backend_ops ops = {.linear_new = linear_new,
                                          .linear_put = linear_put,
                                          .linear_finish = linear_finish,
                                          .linear_free = linear_free,
                                          .norm_new = norm_new,
                                          .norm_free = norm_free,
                                          .rope_new = rope_new,
                                          .rope_free = rope_free};

void sq_record_init(struct sq_record *r)
{
    *r = (struct sq_record){.base.ops = &ops};
}
