/* Weights of the CPU backend: rows come in, in any order, and go straight to their packed place. */
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/cpu/cpu.h"
#include "engine/put.h"

static int alloc_int8(struct sq_linear *l, struct sq_cpu_arena *a)
{
    size_t n, bytes;
    l->n_panels = sq_div_up(l->d.n_out, SQ_PANEL);
    l->k_pad = sq_round_up(l->d.n_in, 4);
    n = l->n_panels * SQ_PANEL;
    if (!sq_mul_size(n, l->k_pad, &bytes))
        return -SQ_E_NOMEM;
    l->packed = sq_cpu_arena_alloc(a, bytes, &l->chunk);
    l->acc0 = sq_cpu_alloc(n * sizeof *l->acc0);
    l->acc0_s = sq_cpu_alloc(n * sizeof *l->acc0_s);
    l->bytes = bytes + n * (sizeof *l->acc0 + sizeof *l->acc0_s);
    return l->packed && l->acc0 && l->acc0_s ? 0 : -SQ_E_NOMEM;
}

static int alloc_float(struct sq_linear *l, struct sq_cpu_arena *a)
{
    size_t n, bytes;
    l->n_panels = sq_div_up(l->d.n_out, SQ_PANEL);
    if (!sq_mul_size(l->d.n_out, l->d.n_in, &n) ||
        !sq_mul_size(n, sq_dtype_bytes(l->d.dtype), &bytes))
        return -SQ_E_NOMEM;
    l->rows = sq_cpu_arena_alloc(a, bytes, &l->chunk);
    l->bytes = bytes;
    return l->rows ? 0 : -SQ_E_NOMEM;
}

static int alloc_all(struct sq_linear *l, struct sq_cpu_arena *a, const char *name)
{
    int rc = l->d.dtype == SQ_I8 ? alloc_int8(l, a) : alloc_float(l, a);
    if (rc)
        return rc;
    const size_t n = l->n_panels * SQ_PANEL;
    l->mul = sq_cpu_alloc(n * sizeof *l->mul);
    l->bias = sq_cpu_alloc(n * sizeof *l->bias);
    l->put = sq_calloc(l->d.n_out, 1);
    l->d.name = sq_strdup(name);
    l->bytes += n * (sizeof *l->mul + sizeof *l->bias);
    return l->mul && l->bias && l->put && l->d.name ? 0 : -SQ_E_NOMEM;
}

int sq_cpu_linear_new_in(struct sq_cpu_arena *a, const struct sq_linear_desc *d,
                         struct sq_linear **ret, struct sq_err *err)
{
    const bool int8 = d->dtype == SQ_I8;
    SQ_ASSERT(d->n_out > 0 && d->n_in > 0);
    SQ_ASSERT(int8 || !d->dynamic);
    SQ_ASSERT(d->out != SQ_OUT_S8 || (int8 && !d->dynamic));
    const char *name = d->name ? d->name : "linear";
    if (int8 && d->n_in > SQ_K_MAX)
        return sq_fail(err, SQ_E_LIMIT, "%s: %zu inputs, at most %d fit a 32-bit accumulator", name,
                       d->n_in, SQ_K_MAX);
    if (d->n_out > SIZE_MAX / 64)
        return sq_fail(err, SQ_E_LIMIT, "%s: %zu outputs are too many", name, d->n_out);
    struct sq_linear *l = sq_new(struct sq_linear);
    if (!l)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for %s", name);
    l->d = *d;
    l->d.name = NULL;
    if (alloc_all(l, a, name)) {
        sq_cpu_linear_free(l);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for %s [%zu, %zu]", name, d->n_out, d->n_in);
    }
    *ret = l;
    return 0;
}

int sq_cpu_linear_new(const struct sq_linear_desc *d, struct sq_linear **ret, struct sq_err *err)
{
    return sq_cpu_linear_new_in(NULL, d, ret, err);
}

/* Spreads a row over its panel, four inputs at a time, and sums it for the shift of the unsigned activations. */
static void pack_row(struct sq_linear *l, size_t n, const int8_t *row)
{
    int8_t *to = l->packed + n / SQ_PANEL * SQ_PANEL * l->k_pad + n % SQ_PANEL * 4;
    const size_t n_in = l->d.n_in;
    int32_t sum = 0;
    bool min = false;
    for (size_t k = 0; k < n_in; k++) {
        sum += row[k];
        min |= row[k] == INT8_MIN;
    }
    for (size_t k = 0; k < n_in; k += 4, to += 4 * SQ_PANEL)
        memcpy(to, row + k, n_in - k < 4 ? n_in - k : 4);
    l->acc0[n] = -128 * sum;
    l->has_min |= min;
}

int sq_cpu_linear_put(struct sq_linear *l, size_t row0, size_t n_rows, const void *rows,
                      struct sq_err *err)
{
    int rc = sq_put_check(l->put, &l->d, row0, n_rows, err);
    if (rc)
        return rc;
    const size_t row_bytes = l->d.n_in * sq_dtype_bytes(l->d.dtype);
    if (l->d.dtype != SQ_I8)
        memcpy((uint8_t *)l->rows + row0 * row_bytes, rows, n_rows * row_bytes);
    else
        for (size_t i = 0; i < n_rows; i++)
            pack_row(l, row0 + i, (const int8_t *)rows + i * row_bytes);
    sq_put_mark(l->put, &l->n_put, row0, n_rows);
    return 0;
}

int sq_cpu_linear_finish(struct sq_linear *l, const struct sq_epilogue *e, struct sq_err *err)
{
    const size_t n_out = l->d.n_out;
    int rc = sq_put_check_finish(l->put, l->n_put, &l->d, err);
    if (rc)
        return rc;
    if (l->d.dtype == SQ_I8) {
        SQ_ASSERT(e && e->mul);
        memcpy(l->mul, e->mul, n_out * sizeof *l->mul);
    }
    if (l->d.out == SQ_OUT_S8 && e && e->bias_acc) {
        for (size_t n = 0; n < n_out; n++) { /* modulo 2^32, like the accumulators */
            l->acc0[n] = (int32_t)((uint32_t)l->acc0[n] + (uint32_t)e->bias_acc[n]);
            l->acc0_s[n] = e->bias_acc[n];
        }
    }
    if (l->d.out != SQ_OUT_S8 && e && e->bias)
        memcpy(l->bias, e->bias, n_out * sizeof *l->bias);
    sq_free(l->put);
    l->put = NULL;
    return 0;
}

void sq_cpu_linear_free(struct sq_linear *l)
{
    if (!l)
        return;
    if (l->chunk) {
        sq_cpu_chunk_unref(l->chunk);
    } else {
        sq_free(l->packed);
        sq_free(l->rows);
    }
    sq_free(l->acc0);
    sq_free(l->acc0_s);
    sq_free(l->mul);
    sq_free(l->bias);
    sq_free(l->put);
    sq_free((char *)l->d.name);
    sq_free(l);
}
