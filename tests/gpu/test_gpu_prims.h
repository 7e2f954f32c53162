/* Launchers of test_gpu_prims.cu: one warp each, all pointers on the device. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* y[i] = 2^x[i], i < 32 */
cudaError_t test_prims_exp2(cudaStream_t st, const float *x, float *y);
/* x [512] bytes: 32 rows of 16. y [4][32] words of x4, then [2][32] words of x2 (of rows 0..15). */
cudaError_t test_prims_ldmatrix(cudaStream_t st, const uint8_t *x, uint32_t *y);
/* a [16][32], b [8][32] (columns), c [16][8] s32: y = c + a b (INT32_MIN where its two forms differ). */
cudaError_t test_prims_mma(cudaStream_t st, const uint8_t *a, const int8_t *b, const int32_t *c,
                           int32_t *y);
/* x, y [n][2][32][16] bytes: two blocks of one warp hand each other theirs, lane by lane crosswise. Needs clusters. */
cudaError_t test_prims_pair(cudaStream_t st, const void *x, int n, void *y);
/* y += x, all 32 of it to one word */
cudaError_t test_prims_red(cudaStream_t st, const int32_t *x, int32_t *y);
/* y [n_groups][512] = x, copied in groups, of which two are on their way at a time; pieces of odd lanes are zeros. */
cudaError_t test_prims_copy(cudaStream_t st, const uint8_t *x, int n_groups, uint8_t *y);

#ifdef __cplusplus
}
#endif
