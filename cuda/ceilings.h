/* What the device reaches at its best: read bandwidth, and the library's matmuls of a size that suits it. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Reads `bytes` (a multiple of 16) from p. out: one word of the device, not written. */
cudaError_t sq_gpu_read_all(cudaStream_t st, const void *p, size_t bytes, int n_blocks,
                            uint32_t *out);

#ifdef __cplusplus
}
#endif

struct sq_backend;
struct sq_gpu_ceilings;
struct sq_err;
/* struct sq_gpu_module's entry. */
int sq_cuda_ceilings(struct sq_backend *be, bool quick, struct sq_gpu_ceilings *ret,
                     struct sq_err *err);
