/* Statistics of a row in shared memory, and what a norm makes of an element: quant.h's, bit for bit. */
#pragma once

#include "cuda/kernels.h"
#include "cuda/numbers.cuh"

enum sum_kind { SUM_PLAIN, SUM_DEVIATIONS };

template <enum sum_kind K> __device__ __forceinline__ float sum_step(float acc, float x, float mean)
{
    if (K == SUM_PLAIN)
        return __fadd_rn(acc, x);
    x = __fsub_rn(x, mean);
    return __fmaf_rn(x, x, acc);
}

/* Canonical sum over a row, by half a warp; the other half has the same row, or another one of the same length. AHEAD elements of a lane are on their
 * way while as many are summed. */
template <enum sum_kind K, int AHEAD>
__device__ __forceinline__ float row_sum(const float *x, int n, float mean)
{
    const int batches = n / (SQ_LANES * AHEAD);
    float acc = 0.0f, now[AHEAD], next[AHEAD];
    int k = threadIdx.x % SQ_LANES;
    if (batches)
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            now[i] = x[k + i * SQ_LANES];
    for (int b = 0; b < batches; b++) {
        k += AHEAD * SQ_LANES;
        if (b + 1 < batches)
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                next[i] = x[k + i * SQ_LANES];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            acc = sum_step<K>(acc, now[i], mean);
            now[i] = next[i];
        }
    }
    for (; k < n; k += SQ_LANES)
        acc = sum_step<K>(acc, x[k], mean);
    return d_sum16(acc);
}

/* (mean, 1 / deviation), in all lanes. RMSNorm has no mean: subtracting 0 changes nothing. */
template <int AHEAD = 8>
__device__ __forceinline__ float2 row_stats(const struct sq_gpu_norm &n, const float *x)
{
    const float dim = (float)n.dim;
    const float mean = n.rms ? 0.0f : __fdiv_rn(row_sum<SUM_PLAIN, AHEAD>(x, n.dim, 0.0f), dim);
    const float var = __fdiv_rn(row_sum<SUM_DEVIATIONS, AHEAD>(x, n.dim, mean), dim);
    return make_float2(mean, __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(var, n.eps))));
}

__device__ __forceinline__ float norm_of(float x, float2 stats, float gamma, float beta)
{
    return __fmaf_rn(__fmul_rn(__fsub_rn(x, stats.x), stats.y), gamma, beta);
}
