/* Quads in memory: four neighbouring columns of a row, 16 bytes of f32 or s32, and the results that come of them.
 *
 * VEC: rows are 16-aligned and a multiple of 4 long; otherwise elements go one by one, and what lies behind a row's end is not touched. */
#pragma once

#include "cuda/kernels.h"
#include "cuda/numbers.cuh"

static inline __host__ __device__ bool aligned16(const void *p)
{
    return ((uintptr_t)p & 15) == 0;
}

static inline __host__ __device__ int n_quads(int cols)
{
    return (cols + 3) / 4;
}

template <class T> struct quad_of;
template <> struct quad_of<float> {
    typedef float4 type;
};
template <> struct quad_of<int32_t> {
    typedef int4 type;
};

/* Quad i of a row; what does not exist is 0. */
template <bool VEC, class T>
__device__ __forceinline__ typename quad_of<T>::type load4(const T *row, int i, int cols)
{
    const int c = 4 * i;
    if (VEC)
        return *(const typename quad_of<T>::type *)(row + c);
    return {row[c], c + 1 < cols ? row[c + 1] : T(0), c + 2 < cols ? row[c + 2] : T(0),
            c + 3 < cols ? row[c + 3] : T(0)};
}

template <bool VEC, class T>
__device__ __forceinline__ void store4(T *row, int i, int cols, const typename quad_of<T>::type v)
{
    const int c = 4 * i;
    if (VEC) {
        *(typename quad_of<T>::type *)(row + c) = v;
        return;
    }
    row[c] = v.x;
    if (c + 1 < cols)
        row[c + 1] = v.y;
    if (c + 2 < cols)
        row[c + 2] = v.z;
    if (c + 3 < cols)
        row[c + 3] = v.w;
}

/* N results (4 or 2) of quad i */
template <int N, bool VEC>
__device__ __forceinline__ void store_floats(float *row, int i, int cols, const float *v)
{
    if (N == 4) {
        store4<VEC>(row, i, cols, make_float4(v[0], v[1], v[2], v[3]));
    } else if (VEC) {
        ((float2 *)row)[i] = make_float2(v[0], v[1]);
    } else {
        row[2 * i] = v[0];
        if (2 * i + 1 < cols)
            row[2 * i + 1] = v[1];
    }
}

/* The same as codes; rows of codes are always aligned. */
template <int N>
__device__ __forceinline__ void store_codes(int8_t *row, int i, int cols, uint32_t codes)
{
    const int c = N * i;
    if (c + N <= cols) {
        if (N == 4)
            *(uint32_t *)(row + c) = codes;
        else
            *(uint16_t *)(row + c) = (uint16_t)codes;
        return;
    }
    for (int k = 0; k < N && c + k < cols; k++)
        row[c + k] = (int8_t)(codes >> 8 * k);
}

template <int N> __device__ __forceinline__ uint32_t codes_of(const float *v, float inv_step)
{
    uint32_t c[N];
#pragma unroll
    for (int k = 0; k < N; k++)
        c[k] = d_code_bits(__fmul_rn(v[k], inv_step));
    return N == 4 ? d_pack4(c[0], c[1], c[N - 2], c[N - 1]) : __byte_perm(c[0], c[1], 0x0040);
}

__device__ __forceinline__ float4 add_f4(float4 a, float4 b)
{
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z),
                       __fadd_rn(a.w, b.w));
}

__device__ __forceinline__ float4 relu_f4(float4 v)
{
    return make_float4(d_relu(v.x), d_relu(v.y), d_relu(v.z), d_relu(v.w));
}
