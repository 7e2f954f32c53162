// A module with kernels for clusters, for compute_90.
#include "clusters.h"

#include <cooperative_groups.h>
namespace cg = cooperative_groups;

// Each block writes what the next one of its cluster holds; blocks_done: the blocks of the grid wait for each other.
static __device__ void pass_on(const int *in, int *out, unsigned *blocks_done)
{
    __shared__ int own;
    const cg::cluster_group cluster = cg::this_cluster();
    if (threadIdx.x == 0)
        own = in[blockIdx.x];
    cluster.sync();
    const int got = *cluster.map_shared_rank(&own, (cluster.block_rank() + 1) % cluster.num_blocks());
    cluster.sync();
    if (threadIdx.x != 0)
        return;
    if (blocks_done) {
        __threadfence();
        atomicAdd(blocks_done, 1);
        while (*(volatile unsigned *)blocks_done % gridDim.x)
            ;
    }
    out[blockIdx.x] = got;
}

extern "C" __global__ void ring(const int *in, int *out, unsigned *blocks_done) { pass_on(in, out, blocks_done); }
extern "C" __global__ void __cluster_dims__(4, 1, 1) ring_of_four(const int *in, int *out, unsigned *blocks_done) { pass_on(in, out, blocks_done); }

// The second block of a cluster ends, and the first looks into its memory all the same.
extern "C" __global__ void look_behind(const int *in, int *out, unsigned *blocks_done)
{
    __shared__ int own;
    const cg::cluster_group cluster = cg::this_cluster();
    own = in[0];
    cluster.sync();
    if (cluster.block_rank())
        return;
    for (int i = 0; i < 1000; i++)
        __nanosleep(10);
    out[0] = *cluster.map_shared_rank(&own, 1) + (blocks_done != nullptr);
}

const void *kernel_ring(void) { return (const void *)ring; }
const void *kernel_ring_of_four(void) { return (const void *)ring_of_four; }
const void *kernel_look_behind(void) { return (const void *)look_behind; }

void launch_ring_of_four(const int *in, int *out, unsigned *blocks_done, int blocks, cudaStream_t s)
{
    ring_of_four<<<blocks, 64, 0, s>>>(in, out, blocks_done);
}
