/* Does this build have code for the device at all? One empty kernel answers for all: every file is compiled for the same targets. */
#include "cuda/kernels.h"

static __global__ void nothing()
{
}

cudaError_t sq_gpu_has_code(void)
{
    struct cudaFuncAttributes a;
    cudaError_t e = cudaFuncGetAttributes(&a, nothing);
    (void)cudaGetLastError();
    return e;
}
