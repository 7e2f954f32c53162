#include "tests/gpu/test_gpu_numbers.h"

#include "cuda/numbers.cuh"

#define THREADS 128

__global__ void floats_kernel(const float *x, int n, struct num_out y)
{
    const int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n)
        return;
    y.code[i] = d_sat_s8(x[i]);
    y.exp[i] = d_exp(x[i]);
    y.sum[i] = d_sum16(x[i]);
    if (i % 4 == 0)
        y.packed[i / 4] = d_codes4(x[i], x[i + 1], x[i + 2], x[i + 3]);
}

cudaError_t num_floats(cudaStream_t st, const float *x, int n, struct num_out y)
{
    floats_kernel<<<(n + THREADS - 1) / THREADS, THREADS, 0, st>>>(x, n, y);
    return cudaGetLastError();
}

__global__ void halves_kernel(const uint16_t *bits, float *half, float *bfloat, float *quad_half,
                              float *quad_bfloat)
{
    const int i = blockIdx.x * THREADS + threadIdx.x;
    half[i] = d_load(bits, i, SQ_F16);
    bfloat[i] = d_load(bits, i, SQ_BF16);
    if (i % 4 == 0) {
        *(float4 *)(quad_half + i) = d_load4(bits, i, SQ_F16);
        *(float4 *)(quad_bfloat + i) = d_load4(bits, i, SQ_BF16);
    }
}

cudaError_t num_halves(cudaStream_t st, const uint16_t *bits, float *half, float *bfloat,
                       float *quad_half, float *quad_bfloat)
{
    halves_kernel<<<65536 / THREADS, THREADS, 0, st>>>(bits, half, bfloat, quad_half, quad_bfloat);
    return cudaGetLastError();
}
