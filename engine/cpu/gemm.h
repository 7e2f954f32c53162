/* What the INT8 matmul kernels share: the description of one tile and the walk over panels and tiles (gemm.inc). */
#pragma once

#include <string.h>

#include "engine/cpu/cpu.h"

/* c[mr][SQ_PANEL] = acc0 + x * w over the whole K. */
struct sq_gemm_tile {
    const uint8_t *x;    /* [mr, stride] codes + 128, first row */
    size_t stride;       /* bytes between rows */
    const int8_t *w;     /* [nk][SQ_PANEL][4], one panel */
    const int32_t *acc0; /* [SQ_PANEL] */
    size_t nk;           /* quads of k */
    const char *
        pf; /* weights to prefetch: per quad one line at pf and one at pf + pf_off, then pf += pf_step; */
    size_t pf_off; /* never read, so they may lie behind the end */
    size_t pf_step;
    int32_t *c; /* 64-aligned */
};

static inline int sq_gemm_quad(const uint8_t *x)
{
    int q;
    memcpy(&q, x, sizeof q);
    return q;
}
