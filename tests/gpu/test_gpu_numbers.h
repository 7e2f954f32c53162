/* Kernels around the functions of cuda/numbers.cuh, one result an element. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* code = d_sat_s8, packed = d_codes4 of x[4i..], exp = d_exp, sum = d_sum16 of the 16 around i; n % 32 == 0 */
struct num_out {
    int32_t *code;
    uint32_t *packed; /* [n / 4] */
    float *exp, *sum;
};
cudaError_t num_floats(cudaStream_t st, const float *x, int n, struct num_out y);

/* half[i], bfloat[i]: of the 16 bits i, i < 65536; quad_*: the same by fours */
cudaError_t num_halves(cudaStream_t st, const uint16_t *bits, float *half, float *bfloat,
                       float *quad_half, float *quad_bfloat);

#ifdef __cplusplus
}
#endif
