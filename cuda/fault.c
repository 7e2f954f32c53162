/* The runtime's statuses in our words. Errors of a running kernel stick: every later call returns them, nothing heals them, and the process must end. */
#include <stdio.h>

#include "cuda/cuda.h"

const char *sq_cuda_words(cudaError_t e)
{
    switch (e) {
    case cudaErrorInsufficientDriver:
        return "no NVIDIA driver, or one older than the CUDA runtime needs";
    case cudaErrorNoDevice:
        return "no NVIDIA GPU";
    case cudaErrorNoKernelImageForDevice:
        return "this build has no code for this GPU's architecture";
    case cudaErrorMemoryAllocation:
        return "out of device memory";
    default:
        return cudaGetErrorString(e);
    }
}

int sq_cuda_check(struct sq_cuda *c, cudaError_t e, const char *what)
{
    if (e == cudaSuccess)
        return 0;
    (void)cudaGetLastError(); /* a sticky one stays */
    if (!c->fault[0])
        snprintf(c->fault, sizeof c->fault, "%s: %s (%s)", what, sq_cuda_words(e),
                 cudaGetErrorName(e));
    return -SQ_E_DEVICE;
}

int sq_cuda_check_lt(struct sq_cuda *c, int rc, const char *what)
{
    if (rc && !c->fault[0])
        snprintf(c->fault, sizeof c->fault, "%s: cuBLASLt: %s", what, sq_lt_last_error(c->lt));
    return rc ? -SQ_E_DEVICE : 0;
}

int sq_cuda_fail(struct sq_cuda *c, cudaError_t e, const char *what, struct sq_err *err)
{
    if (e == cudaSuccess)
        return 0;
    (void)cudaGetLastError();
    if (e == cudaErrorMemoryAllocation)
        return sq_fail(err, SQ_E_LIMIT, "%s: %s", what, sq_cuda_words(e));
    (void)sq_cuda_check(c, e, what);
    return sq_fail(err, SQ_E_DEVICE, "%s: %s (%s)", what, sq_cuda_words(e), cudaGetErrorName(e));
}
