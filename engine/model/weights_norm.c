#include <math.h>

#include "engine/model/load.h"
#include "engine/quant.h"

int sq_load_vector(struct sq_loader *ld, const char *name, float *dst, size_t n)
{
    int r = sq_source_read_f32(ld->src, name, 0, n, dst, ld->err);
    for (size_t i = 0; !r && i < n; i++)
        if (!isfinite(dst[i]))
            r = sq_fail(ld->err, SQ_E_FORMAT, "tensor '%.128s': Q8: element %zu is %g", name, i,
                        (double)dst[i]);
    return r;
}

/* q = v / step; a huge gamma over a tiny step must not become infinite. */
static int divide(struct sq_loader *ld, const char *name, const float *v, size_t n, float step,
                  float *q)
{
    for (size_t i = 0; i < n; i++) {
        q[i] = v[i] / step;
        if (!isfinite(q[i]))
            return sq_fail(ld->err, SQ_E_FORMAT,
                           "tensor '%.128s': Q3: element %zu, %g, over the input step %g overflows",
                           name, i, (double)v[i], (double)step);
    }
    return 0;
}

int sq_load_norm(struct sq_loader *ld, enum sq_role role, int layer, float step,
                 struct sq_norm **ret)
{
    size_t n = (size_t)ld->c->hidden;
    SQ_AUTO_FREE float *v = sq_malloc(4 * n * sizeof *v);
    if (!v)
        return sq_fail(ld->err, SQ_E_NOMEM, "out of memory for a norm of %zu", n);
    float *gamma = v, *beta = v + n, *gamma_q = v + 2 * n, *beta_q = v + 3 * n;
    bool affine = ld->c->norm_affine;
    for (size_t i = 0; i < n; i++) {
        gamma[i] = 1;
        beta[i] = 0;
    }
    char name[SQ_NAME_BYTES];
    struct sq_tensor_info t;
    int r = 0;
    bool biased = sq_expect(ld->c, role, SQ_P_BIAS).need != SQ_NEED_NOT;
    if (biased && sq_load_find(ld, role, layer, SQ_P_BIAS, name, &t))
        r = sq_load_vector(ld, name, beta, n);
    if (!r && step > 0)
        r = divide(ld, name, beta, n, step, beta_q);
    bool found = sq_load_find(ld, role, layer, SQ_P_WEIGHT, name, &t);
    if (!r && affine && found)
        r = sq_load_vector(ld, name, gamma, n);
    if (!r && step > 0)
        r = divide(ld, name, gamma, n, step, gamma_q);
    if (r)
        return r;
    struct sq_norm_desc d = {.kind = ld->c->family->norm,
                             .dim = n,
                             .eps = ld->c->norm_eps,
                             .gamma = gamma,
                             .beta = beta,
                             .gamma_q = step > 0 ? gamma_q : NULL,
                             .beta_q = step > 0 ? beta_q : NULL};
    r = ld->be->ops->norm_new(ld->be, &d, ret, ld->err);
    if (!r)
        ld->m->weight_bytes += (step > 0 ? 4 : 2) * n * sizeof *v;
    return r;
}
