/* INT8 matmul in plain C: the oracle that every other variant equals byte for byte. Formulas: engine/quant.h. */
#include "engine/cpu/gemm.h"

/* Sums wrap modulo 2^32 like the vector instructions; within SQ_K_MAX only bias_acc can get there. */
static void dot_panel(const uint8_t *x, const int8_t *w, size_t nk, const int32_t *start,
                      int32_t *acc)
{
    memcpy(acc, start, SQ_PANEL * sizeof *acc);
    for (size_t k = 0; k < nk; k++, x += 4, w += 4 * SQ_PANEL) {
        const int a0 = x[0] - 128, a1 = x[1] - 128, a2 = x[2] - 128, a3 = x[3] - 128;
        for (int n = 0; n < SQ_PANEL; n++) {
            const int8_t *q = w + 4 * n;
            acc[n] = (int32_t)((uint32_t)acc[n] +
                               (uint32_t)(a0 * q[0] + a1 * q[1] + a2 * q[2] + a3 * q[3]));
        }
    }
}

static void store(const struct sq_gemm *g, int m, size_t n, int32_t acc)
{
    const struct sq_linear *l = g->l;
    const bool relu = l->d.act == SQ_ACT_RELU;
    const size_t at = (size_t)m * g->y->stride + n;
    if (l->d.out == SQ_OUT_S8) {
        int q = sq_sat_s8((float)acc * l->mul[n]);
        g->y->u[at] = (uint8_t)((relu && q < 0 ? 0 : q) + 128);
        return;
    }
    float v = (float)acc;
    if (l->d.dynamic)
        v *= g->x->row_scale[m];
    v = fmaf(v, l->mul[n], l->bias[n]);
    if (relu)
        v = 0.0f > v ? 0.0f : v;
    g->y->f[at] = l->d.out == SQ_OUT_ADD ? g->y->f[at] + v : v;
}

void SQ_CPU_FN(sq_gemm_s8)(const struct sq_gemm *g, int m0, int m1, size_t p0, size_t p1)
{
    const struct sq_linear *l = g->l;
    for (int m = m0; m < m1; m++) {
        for (size_t p = p0; p < p1; p++) {
            int32_t acc[SQ_PANEL];
            dot_panel(g->x->u + (size_t)m * g->x->stride, l->packed + p * l->k_pad * SQ_PANEL,
                      l->k_pad / 4, l->acc0_s + p * SQ_PANEL, acc);
            for (size_t n = p * SQ_PANEL; n < (p + 1) * SQ_PANEL && n < l->d.n_out; n++)
                store(g, m, n, acc[n % SQ_PANEL]);
        }
    }
}

uint64_t SQ_CPU_FN(sq_int8_probe)(size_t n)
{
    (void)n;
    return 0;
}
