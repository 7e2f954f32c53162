/* Reads memory as fast as it comes: what a decode step's bandwidth is compared with. */
#include "cuda/kernels.h"

namespace
{

constexpr int threads = 512, unroll = 8;

/* Sums so that no load can be left out; a sum that is stored is as likely as any one of 2^32. */
__global__ void __launch_bounds__(threads) read_all(const uint4 *p, size_t n, uint32_t *out)
{
    const size_t stride = (size_t)gridDim.x * threads * unroll;
    uint32_t sum = 0;
    for (size_t i = (size_t)blockIdx.x * threads * unroll + threadIdx.x; i < n; i += stride) {
        uint4 v[unroll];
#pragma unroll
        for (int k = 0; k < unroll; k++)
            v[k] = i + k * threads < n ? __ldcs(p + i + k * threads) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int k = 0; k < unroll; k++)
            sum += v[k].x + v[k].y + v[k].z + v[k].w;
    }
    if (sum == 0x9e3779b9u)
        *out = sum;
}

} // namespace

extern "C" cudaError_t sq_gpu_read_all(cudaStream_t st, const void *p, size_t bytes, int n_blocks,
                                       uint32_t *out)
{
    read_all<<<n_blocks, threads, 0, st>>>(static_cast<const uint4 *>(p), bytes / sizeof(uint4),
                                           out);
    return cudaGetLastError();
}
