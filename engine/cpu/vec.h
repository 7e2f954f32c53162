/* Sixteen float lanes and sixteen s32 lanes, whatever the registers: one zmm, two ymm, or arrays in plain C.
 *
 * rows.inc, gemm_float.inc and attn.inc are written once on these and compiled once per instruction set; each function here gives the same bits in
 * every implementation, and the scalar definitions of quant.h are what they are tested against. Nothing is fused but v_fma.
 *
 *   v16  float lanes        v_load v_store v_set1 v_add v_sub v_mul v_div v_fma v_min v_max v_abs v_exp ...
 *   i16  s32 lanes          i_load i_store i_set1 i_add i_max ...
 *   b64  64 bytes, four for each s32 lane: the operand of the dot products
 *
 * "part" functions touch the first n < 16 elements in memory only; missing lanes read as zero. v_first(a, b, n) takes lanes below n
 * from a and the others from b. v_min and v_max keep their second operand when an operand is NaN.
 * Dot products, four bytes into each lane: i_dot_p takes unsigned codes 0..127; i_dot_q takes a query code quad that q_quad has made
 * from codes + 128, on accumulators that start at I_QK_START(sums of the keys): exact for key codes in [-127,127]. */
#pragma once

#include <float.h>

#include "engine/base/check.h"
#include "engine/cpu/cpu.h"

/* Widths of the instruction sets by the name that meson gives them. */
#define V_BITS_ref 0
#define V_BITS_avx2 256
#define V_BITS_avxvnni 256
#define V_BITS_evexvnni 256
#define V_BITS_avx512vnni 512
#define V_BITS SQ_CPU_CAT_(V_BITS, SQ_CPU_ISA)

/* Kernels are unrolled into their register tiles: not in plain C, which has none, nor under sanitizers, which take minutes to
 * compile them, instrumented as they are. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define V_INLINE static __attribute__((noinline, unused))
#define V_UNROLL
#define V_NO_UNROLL
#elif V_BITS == 0
#define V_INLINE static inline
#define V_UNROLL
#define V_NO_UNROLL
#elif defined(__clang__)
#define V_INLINE static inline __attribute__((always_inline))
#define V_UNROLL _Pragma("clang loop unroll(full)")
#define V_NO_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define V_INLINE static inline __attribute__((always_inline))
#define V_UNROLL _Pragma("GCC unroll 16")
#define V_NO_UNROLL _Pragma("GCC unroll 1")
#endif

#if V_BITS == 512
#include "engine/cpu/vec_512.h"
#elif V_BITS == 256
#include "engine/cpu/vec_256.h"
#else
#include "engine/cpu/vec_c.h"
#endif

V_INLINE v16 v_load_16bit(const uint16_t *p, enum sq_dtype t)
{
    return t == SQ_F16 ? v_load_f16(p) : v_load_bf16(p);
}

/* Sixteen elements from index i of an array of floats of type t. */
V_INLINE v16 v_load_as(const void *p, size_t i, enum sq_dtype t)
{
    return t == SQ_F32 ? v_load((const float *)p + i) : v_load_16bit((const uint16_t *)p + i, t);
}

V_INLINE v16 v_load_as_part(const void *p, size_t i, size_t n, enum sq_dtype t)
{
    if (t == SQ_F32)
        return v_load_part((const float *)p + i, n);
    uint16_t h[16] = {0};
    memcpy(h, (const uint16_t *)p + i, n * sizeof h[0]);
    return v_load_16bit(h, t);
}

/* exp for x in [-87,0]: the polynomial of sq_exp, step by step. */
V_INLINE v16 v_exp_core(v16 x)
{
    v16 n = v_rint(v_mul(x, v_set1(1.44269504f)));
    v16 r = v_fma(n, v_set1(-0.693145752f), x);
    r = v_fma(n, v_set1(-1.42860677e-6f), r);
    v16 p = v_set1(1.3888889e-3f);
    p = v_fma(p, r, v_set1(8.3333333e-3f));
    p = v_fma(p, r, v_set1(4.1666667e-2f));
    p = v_fma(p, r, v_set1(1.6666667e-1f));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p, r, v_set1(1.0f));
    p = v_fma(p, r, v_set1(1.0f));
    return v_scale2(p, n);
}

/* sq_exp, lane by lane, for any x. */
V_INLINE v16 v_exp(v16 x)
{
    v16 lo = v_set1(-87.0f), zero = v_set1(0.0f);
    v16 e = v_exp_core(v_min(v_max(x, lo), zero));
    e = v_sel_lt(x, lo, zero, e);
    return v_sel_nan(x, e);
}

/* Static codes: sat(rne(x)) + 128. */
V_INLINE i16 v_code(v16 x)
{
    x = v_max(v_min(v_set1(127.0f), x), v_set1(-127.0f));
    return i_add(i_rne(x), i_set1(128));
}
