/* Epilogues of an int8 linear, four neighbouring results at a time: what gemm_small.cu does with its sums. */
#pragma once

#include "cuda/kernels.h"
#include "cuda/numbers.cuh"

/* Four columns from n on, of which those below n_out exist. */
struct four_at {
    int m, n, n_out;
};

static __device__ __forceinline__ bool finish_is_s8(int epi)
{
    return epi == SQ_EPI_S8 || epi == SQ_EPI_S8_RELU;
}

static __device__ __forceinline__ void finish_floats(const struct sq_gpu_finish &f,
                                                     const struct four_at &at, const float *v)
{
    float *y = f.y + (size_t)at.m * f.ld_y + at.n;
    const bool add = f.epi == SQ_EPI_ADD;
    if (at.n + 4 <= at.n_out && (uintptr_t)y % 16 == 0) {
        const float4 r = make_float4(v[0], v[1], v[2], v[3]);
        const float4 old = add ? *(const float4 *)y : r;
        *(float4 *)y = add ? make_float4(__fadd_rn(old.x, r.x), __fadd_rn(old.y, r.y),
                                         __fadd_rn(old.z, r.z), __fadd_rn(old.w, r.w))
                           : r;
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (at.n + i < at.n_out)
            y[i] = add ? __fadd_rn(y[i], v[i]) : v[i];
}

/* Two results of two pairs. */
static __device__ __forceinline__ void finish_swiglu(const struct sq_gpu_finish &f,
                                                     const struct four_at &at, const float *v)
{
    const float a = d_swiglu(v[0], v[1]), b = d_swiglu(v[2], v[3]);
    const bool both = at.n + 4 <= at.n_out;
    if (f.epi == SQ_EPI_SWIGLU_F32) {
        float *y = f.y + (size_t)at.m * f.ld_y + at.n / 2;
        y[0] = a;
        if (both)
            y[1] = b;
        return;
    }
    int8_t *q = f.y_q.q + (size_t)at.m * f.y_q.stride + at.n / 2;
    const uint32_t codes = d_codes4(__fmul_rn(a, f.inv_step), __fmul_rn(b, f.inv_step), 0.0f, 0.0f);
    if (both)
        *(uint16_t *)q = (uint16_t)codes;
    else
        *q = (int8_t)codes;
}

/* What lies behind n_out in a row of codes stays as it is. */
static __device__ __forceinline__ void finish_codes(const struct sq_gpu_finish &f,
                                                    const struct four_at &at, const int32_t *acc,
                                                    const float *mul, const int32_t *bias)
{
    int8_t *y = f.y_q.q + (size_t)at.m * f.y_q.stride + at.n;
    int q[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        q[i] = d_requant(acc[i], bias[i], mul[i]);
        q[i] = f.epi == SQ_EPI_S8_RELU ? max(q[i], 0) : q[i];
    }
    if (at.n + 4 <= at.n_out) {
        *(uint32_t *)y = d_pack4(q[0], q[1], q[2], q[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (at.n + i < at.n_out)
            y[i] = (int8_t)q[i];
}

/* All kinds but SQ_EPI_ACC. bias4 holds s32 for the S8 kinds; constants of columns that do not exist may be anything. */
static __device__ __forceinline__ void finish_four(const struct sq_gpu_finish &f,
                                                   const struct four_at &at, int4 sum, float4 mul4,
                                                   float4 bias4)
{
    const int32_t acc[4] = {sum.x, sum.y, sum.z, sum.w};
    const float mul[4] = {mul4.x, mul4.y, mul4.z, mul4.w};
    const float bias[4] = {bias4.x, bias4.y, bias4.z, bias4.w};
    if (finish_is_s8(f.epi)) {
        const int32_t b[4] = {__float_as_int(bias[0]), __float_as_int(bias[1]),
                              __float_as_int(bias[2]), __float_as_int(bias[3])};
        finish_codes(f, at, acc, mul, b);
        return;
    }
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[i] = f.x_scale ? d_dequant_rows(acc[i], f.x_scale[at.m], mul[i], bias[i])
                         : d_dequant(acc[i], mul[i], bias[i]);
        v[i] = f.epi == SQ_EPI_F32_RELU ? d_relu(v[i]) : v[i];
    }
    if (f.epi == SQ_EPI_SWIGLU_S8 || f.epi == SQ_EPI_SWIGLU_F32)
        finish_swiglu(f, at, v);
    else
        finish_floats(f, at, v);
}
