/* engine/quant.h on the device: the same bits, operation by operation. Nothing here may be fused or approximated by the compiler, so each
 * operation is named by its rounding intrinsic.
 *
 * NaN: results that are NaN on the CPU are NaN here (payloads differ), codes of a NaN are -127. */
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/quant.h"

#define FULL_WARP 0xffffffffu

/* Added to |x| < 2^22 it leaves rne(x) in the lowest bits of the sum: full speed, where conversions are not. */
#define RNE_MAGIC 12582912.0f
#define RNE_MAGIC_BITS 0x4b400000

/* The lowest byte is sq_sat_s8(x), the other ones are not 0. The lower bound comes first, so that a NaN becomes -127. */
__device__ __forceinline__ uint32_t d_code_bits(float x)
{
    return __float_as_uint(__fadd_rn(fminf(fmaxf(x, -127.0f), 127.0f), RNE_MAGIC));
}

__device__ __forceinline__ int d_sat_s8(float x)
{
    return (int)(d_code_bits(x) - RNE_MAGIC_BITS);
}

/* Lowest bytes in memory order. */
__device__ __forceinline__ uint32_t d_pack4(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

__device__ __forceinline__ uint32_t d_codes4(float a, float b, float c, float d)
{
    return d_pack4(d_code_bits(a), d_code_bits(b), d_code_bits(c), d_code_bits(d));
}

/* Codes of four values by the inverse of their step. */
__device__ __forceinline__ uint32_t d_quant4(float4 x, float inv)
{
    return d_codes4(__fmul_rn(x.x, inv), __fmul_rn(x.y, inv), __fmul_rn(x.z, inv),
                    __fmul_rn(x.w, inv));
}

#define LOG2_E 1.44269504f

/* e^x = 2^n * rest, by the steps of sq_exp; n stands in the lowest bits. For |x| < 2^21, else meaningless. */
struct d_exp_parts {
    float rest;
    uint32_t n;
};

__device__ __forceinline__ struct d_exp_parts d_exp_parts_of(float x)
{
    float t = __fadd_rn(__fmul_rn(x, LOG2_E), RNE_MAGIC);
    float n = __fsub_rn(t, RNE_MAGIC);
    float r = __fmaf_rn(n, -0.693145752f, x);
    r = __fmaf_rn(n, -1.42860677e-6f, r);
    float p = 1.3888889e-3f;
    p = __fmaf_rn(p, r, 8.3333333e-3f);
    p = __fmaf_rn(p, r, 4.1666667e-2f);
    p = __fmaf_rn(p, r, 1.6666667e-1f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    return {p, __float_as_uint(t)};
}

/* sq_exp of x <= 0 or NaN */
__device__ __forceinline__ float d_exp_neg(float x)
{
    struct d_exp_parts e = d_exp_parts_of(x);
    float scale = __uint_as_float((e.n << 23) + 0x3f800000u); /* 2^n */
    return x < -87.0f ? 0.0f : __fmul_rn(e.rest, scale);
}

/* sq_exp of any x */
__device__ __forceinline__ float d_exp(float x)
{
    return x > 0.0f ? 1.0f : d_exp_neg(x);
}

/* silu(g) * u */
__device__ __forceinline__ float d_swiglu(float g, float u)
{
    float e = d_exp_neg(-fabsf(g));
    float silu = __fdiv_rn(g >= 0.0f ? g : __fmul_rn(g, e), __fadd_rn(1.0f, e));
    return __fmul_rn(silu, u);
}

/* Elements a of a head's first half and b of its second, rotated by an angle of cosine c and sine s. */
__device__ __forceinline__ float d_rotated_a(float a, float b, float c, float s)
{
    return __fmaf_rn(a, c, -__fmul_rn(b, s));
}

__device__ __forceinline__ float d_rotated_b(float a, float b, float c, float s)
{
    return __fmaf_rn(b, c, __fmul_rn(a, s));
}

/* sq_sum16 over the lanes of an aligned half warp; every lane gets the sum. The whole warp must call it. */
__device__ __forceinline__ float d_sum16(float x)
{
#pragma unroll
    for (int i = 8; i; i /= 2)
        x = __fadd_rn(x, __shfl_xor_sync(FULL_WARP, x, i));
    return x;
}

__device__ __forceinline__ float d_warp_max(float x)
{
#pragma unroll
    for (int i = 16; i; i /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, i));
    return x;
}

/* The step of a row with per-row scales: max|x| / 127, or 1 where that would be zero or subnormal. */
__device__ __forceinline__ float d_row_step(float absmax)
{
    float s = __fdiv_rn(absmax, 127.0f);
    return s >= 1.17549435e-38f ? s : 1.0f;
}

/* --- epilogues of an int8 linear --- */

/* f32 results; row_scale of a dynamic input. */
__device__ __forceinline__ float d_dequant(int32_t acc, float mul, float bias)
{
    return __fmaf_rn(__int2float_rn(acc), mul, bias);
}

__device__ __forceinline__ float d_dequant_rows(int32_t acc, float row_scale, float mul, float bias)
{
    return __fmaf_rn(__fmul_rn(__int2float_rn(acc), row_scale), mul, bias);
}

/* Of f32 results: keeps NaN and -0. */
__device__ __forceinline__ float d_relu(float x)
{
    return 0.0f > x ? 0.0f : x;
}

/* What becomes a code; the sum wraps as on the CPU. ReLU is fmaxf(0, .) of it: a NaN gives code 0, as there. */
__device__ __forceinline__ float d_requant_real(int32_t acc, int32_t bias_acc, float mul)
{
    return __fmul_rn(__int2float_rn((int32_t)((uint32_t)acc + (uint32_t)bias_acc)), mul);
}

/* --- floats as stored in checkpoints --- */

__device__ __forceinline__ float d_f16(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}

__device__ __forceinline__ float d_bf16(uint16_t h)
{
    return __uint_as_float((uint32_t)h << 16);
}

__device__ __forceinline__ float d_load(const void *p, size_t i, int dtype)
{
    if (dtype == SQ_F32)
        return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    return dtype == SQ_F16 ? d_f16(h) : d_bf16(h);
}

/* Elements i..i+3, aligned to their size. */
__device__ __forceinline__ float4 d_load4(const void *p, size_t i, int dtype)
{
    if (dtype == SQ_F32)
        return *(const float4 *)((const float *)p + i);
    uint2 u = *(const uint2 *)((const uint16_t *)p + i);
    if (dtype == SQ_F16)
        return make_float4(d_f16((uint16_t)u.x), d_f16((uint16_t)(u.x >> 16)), d_f16((uint16_t)u.y),
                           d_f16((uint16_t)(u.y >> 16)));
    return make_float4(__uint_as_float(u.x << 16), __uint_as_float(u.x & 0xffff0000u),
                       __uint_as_float(u.y << 16), __uint_as_float(u.y & 0xffff0000u));
}
