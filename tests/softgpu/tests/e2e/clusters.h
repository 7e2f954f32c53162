/* What the module with clusters exports. */
#pragma once
#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif
const void *kernel_ring(void);
const void *kernel_ring_of_four(void);
const void *kernel_look_behind(void);
void launch_ring_of_four(const int *in, int *out, unsigned *blocks_done, int blocks, cudaStream_t s);
#ifdef __cplusplus
}
#endif
