/* Epilogues of an int8 linear, a quad at a time: what gemm_small.cu, epilogue.cu and norm.cu do with its sums. Their constants: mul, and
 * bias, which for the S8 kinds holds the bits of bias_acc, or zeros. */
#pragma once

#include "cuda/quads.cuh"

/* The quad of row m that begins at column n (a multiple of 4), of which columns below n_out exist. */
struct four_at {
    int m, n, n_out;
};

__device__ __forceinline__ bool finish_is_s8(int epi)
{
    return epi == SQ_EPI_S8 || epi == SQ_EPI_S8_RELU;
}

__device__ __forceinline__ float4 finish_dequant(const struct sq_gpu_finish &f, int row, int4 sum,
                                                 float4 mul, float4 bias)
{
    if (!f.x_scale)
        return make_float4(d_dequant(sum.x, mul.x, bias.x), d_dequant(sum.y, mul.y, bias.y),
                           d_dequant(sum.z, mul.z, bias.z), d_dequant(sum.w, mul.w, bias.w));
    const float scale = f.x_scale[row];
    return make_float4(
        d_dequant_rows(sum.x, scale, mul.x, bias.x), d_dequant_rows(sum.y, scale, mul.y, bias.y),
        d_dequant_rows(sum.z, scale, mul.z, bias.z), d_dequant_rows(sum.w, scale, mul.w, bias.w));
}

/* The S8 kinds. */
__device__ __forceinline__ uint32_t finish_codes(const struct sq_gpu_finish &f, int4 sum,
                                                 float4 mul, float4 bias)
{
    float v[4] = {d_requant_real(sum.x, __float_as_int(bias.x), mul.x),
                  d_requant_real(sum.y, __float_as_int(bias.y), mul.y),
                  d_requant_real(sum.z, __float_as_int(bias.z), mul.z),
                  d_requant_real(sum.w, __float_as_int(bias.w), mul.w)};
#pragma unroll
    for (int k = 0; k < 4; k++)
        v[k] = f.epi == SQ_EPI_S8_RELU ? fmaxf(v[k], 0.0f) : v[k];
    return d_codes4(v[0], v[1], v[2], v[3]);
}

/* N f32 results of quad i to row m of y; vec: all are there, and aligned to their size. */
template <int N>
__device__ __forceinline__ void finish_floats(const struct sq_gpu_finish &f,
                                              const struct four_at &at, const float *v, bool vec)
{
    float *y = f.y + (size_t)at.m * f.ld_y;
    const int cols = at.n_out / (4 / N);
    if (vec)
        store_floats<N, true>(y, at.n / 4, cols, v);
    else
        store_floats<N, false>(y, at.n / 4, cols, v);
}

/* All kinds but SQ_EPI_ACC. old: what y holds, for SQ_EPI_ADD; vec: all four are there, and y has them 16-aligned. Constants of columns that
 * do not exist may be anything; codes behind n_out stay as they are. */
__device__ __forceinline__ void finish_quad(const struct sq_gpu_finish &f, const struct four_at &at,
                                            int4 sum, float4 mul, float4 bias, float4 old, bool vec)
{
    int8_t *q = f.y_q.q + (size_t)at.m * f.y_q.stride;
    if (finish_is_s8(f.epi)) {
        store_codes<4>(q, at.n / 4, at.n_out, finish_codes(f, sum, mul, bias));
        return;
    }
    float4 r = finish_dequant(f, at.m, sum, mul, bias);
    if (f.epi == SQ_EPI_SWIGLU_S8 || f.epi == SQ_EPI_SWIGLU_F32) {
        const float pair[2] = {d_swiglu(r.x, r.y), d_swiglu(r.z, r.w)};
        if (f.epi == SQ_EPI_SWIGLU_F32)
            finish_floats<2>(f, at, pair, vec);
        else
            store_codes<2>(q, at.n / 4, at.n_out / 2, codes_of<2>(pair, f.inv_step));
        return;
    }
    if (f.epi == SQ_EPI_F32_RELU)
        r = relu_f4(r);
    else if (f.epi == SQ_EPI_ADD)
        r = add_f4(old, r);
    const float v[4] = {r.x, r.y, r.z, r.w};
    finish_floats<4>(f, at, v, vec);
}

/* The same where nothing is known of y beforehand. */
__device__ __forceinline__ void finish_four(const struct sq_gpu_finish &f, const struct four_at &at,
                                            int4 sum, float4 mul4, float4 bias4)
{
    const float *y = f.y + (size_t)at.m * f.ld_y;
    const bool vec = at.n + 4 <= at.n_out && aligned16(y);
    float4 old = {};
    if (f.epi == SQ_EPI_ADD)
        old = vec ? load4<true>(y, at.n / 4, at.n_out) : load4<false>(y, at.n / 4, at.n_out);
    finish_quad(f, at, sum, mul4, bias4, old, vec);
}
