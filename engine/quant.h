/* The one definition of rounding, clamping, scale rules and float reductions. Every backend is tested against it.
 *
 * Integers. Symmetric int8: code = clamp(rne(x / step), -127, 127). Our writer's step is absmax / 127; a reader uses the stored
 * scale, and -128 may occur in stored weights. A scale must be finite, positive and normal.
 *
 * Linear with static scales: acc = sum_k a_q[k] * w_q[n,k] is exact in s32 (K <= SQ_K_MAX).
 *   int8 out:  y_q = sat(rne((float)(acc + bias_acc[n]) * mul[n])),  bias_acc = rne(bias / (s_in * s_w[n])),  mul = s_in * s_w[n] / s_out;
 *              with ReLU the code is max(0, .).
 *   f32 out:   y = fmaf((float)acc, mul[n], bias[n]),  mul = s_in * s_w[n];  "add" does x = x + y. With per-row input scales r[m]:
 *              y = fmaf((float)acc * r[m], mul[n], bias[n]),  mul = s_w[n].
 *
 * Rotary: with c, s of the row's position, for each pair (a, b):  a' = fmaf(a, c, -(b * s)),  b' = fmaf(b, c, a * s); codes are
 * sat(rne(a' * inv_step)).  SwiGLU: silu(g) * u with e = sq_exp(-|g|):  silu(g) = g >= 0 ? g / (1 + e) : (g * e) / (1 + e).
 *
 * Float reductions have one canonical shape, so that all kernel variants give the same bits and a row's bits do not depend on the batch:
 * 16 lanes, lane l takes k = l, l+16, ... in ascending order (missing tail elements are skipped), fused multiply-add where a product is
 * summed, then the tree l+8, l+4, l+2, l+1. sq_sum16 below is that tree.
 *
 * Attention (int8): keys are visited in pieces of SQ_ATTN_PIECE positions counted from position 0. Within a piece, for one query row:
 *   s[j] = (float)(q . k_j) * score_mul;  m_i = max_j s[j] (visible keys only);  p[j] = (int) rne(127 * sq_exp(s[j] - m_i));
 *   l_i = sum p[j] (exact);  o_i[d] = sum_j p[j] * v_q[j,d] (exact s32).
 * Pieces are merged in ascending order at the end: m = max m_i;  w_i = sq_exp(m_i - m);  L = sum_i w_i * l_i and
 * O[d] = sum_i w_i * o_i[d], each as acc = fmaf(w_i, (float)x_i, acc) from acc = 0;  out = (O[d] / L) * v_step. So P is quantised
 * relative to the maximum of its piece (never to 1.0, which would lose every p below 0.4 %), a row does not depend on chunking or
 * batch, and decode may split over pieces.
 * int8 out: code = sat(rne((O[d] / L) * out_mul)), out_mul = v_step / out_step.
 *
 * Attention (float): the same pieces and merge, with s[j] = (q . k_j) * score_mul, the dot in the canonical shape; p[j] = sq_exp(s[j] - m_i);
 * l_i = sum of p in the canonical shape over the piece; o_i[d] = acc by acc = fmaf(p[j], v[j,d], acc) over ascending j. */
#pragma once

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SQ_K_MAX 131071   /* 128 * 128 * K must fit into s32 */
#define SQ_KV_BLOCK 32    /* tokens per KV block */
#define SQ_ATTN_PIECE 256 /* keys per attention piece, a multiple of SQ_KV_BLOCK */
#define SQ_LANES 16       /* strided lanes of a float reduction */

/* Round half to even, saturate to [-127,127]; NaN gives -127 on every variant (min/max keep their second operand). */
static inline int8_t sq_sat_s8(float x)
{
    x = 127.0f < x ? 127.0f : x;
    x = x > -127.0f ? x : -127.0f;
    return (int8_t)lrintf(x);
}

static inline bool sq_scale_ok(float s)
{
    return isnormal(s) && s > 0.0f;
}

/* The tree that ends every reduction. */
static inline float sq_sum16(const float *l)
{
    float a[8], b[4];
    for (int i = 0; i < 8; i++)
        a[i] = l[i] + l[i + 8];
    for (int i = 0; i < 4; i++)
        b[i] = a[i] + a[i + 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}

/* exp(x) for x <= 0, the one polynomial all variants use. Below -87 it is 0. Relative error below 2.5e-7. NaN gives NaN.
 * Cody-Waite reduction x = n ln2 + r with rne(n), then a degree-6 polynomial in r by fused Horner steps (minimax-like Taylor on
 * |r| <= ln2/2), scaled by 2^n through the exponent. */
static inline float sq_exp(float x)
{
    if (x < -87.0f)
        return 0.0f;
    float n = rintf(x * 1.44269504f);
    float r = fmaf(n, -0.693145752f, x);
    r = fmaf(n, -1.42860677e-6f, r);
    float p = 1.3888889e-3f;
    p = fmaf(p, r, 8.3333333e-3f);
    p = fmaf(p, r, 4.1666667e-2f);
    p = fmaf(p, r, 1.6666667e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    if (!(x <= 0.0f))
        return x == x ? 1.0f
                      : x; /* callers subtract a maximum; guards NaN for the integer step below */
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* 16-bit floats as stored in checkpoints. */
static inline float sq_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float sq_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = (h >> 10) & 0x1fu, man = h & 0x3ffu, u;
    if (exp == 0x1f)
        u = sign | 0x7f800000u | man << 13;
    else if (exp)
        u = sign | (exp + 112) << 23 | man << 13;
    else { /* zero or subnormal: exact in f32 */
        float f = (float)man * 0x1p-24f;
        memcpy(&u, &f, sizeof u);
        u |= sign;
    }
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
