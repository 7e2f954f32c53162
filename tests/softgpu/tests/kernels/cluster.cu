// Clusters of several blocks: their numbers, their barrier, and each other's shared memory.
#include <cooperative_groups.h>
#include <cstdint>
namespace cg = cooperative_groups;

__device__ __forceinline__ uint32_t address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ uint32_t map_shared(uint32_t a, uint32_t rank)
{
    uint32_t r;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank));
    return r;
}

__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// All that a block is told about its cluster.
extern "C" __global__ void numbers(uint32_t *out)
{
    const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const dim3 at = cg::this_cluster().block_index(), size = cg::this_cluster().dim_blocks();
    uint32_t *o = out + block * 16, explicit_cluster;
    asm volatile("{.reg .pred p; mov.pred p, %%is_explicit_cluster; selp.u32 %0, 1, 0, p;}" : "=r"(explicit_cluster));
    o[0] = at.x, o[1] = at.y, o[2] = at.z;
    o[3] = size.x, o[4] = size.y, o[5] = size.z;
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(o[6]));
    asm volatile("mov.u32 %0, %%clusterid.y;" : "=r"(o[7]));
    asm volatile("mov.u32 %0, %%clusterid.z;" : "=r"(o[8]));
    asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(o[9]));
    asm volatile("mov.u32 %0, %%nclusterid.y;" : "=r"(o[10]));
    asm volatile("mov.u32 %0, %%nclusterid.z;" : "=r"(o[11]));
    o[12] = cg::this_cluster().block_rank();
    o[13] = cg::this_cluster().num_blocks();
    o[14] = explicit_cluster;
    o[15] = 0;
}

// Each block adds up what all blocks of its cluster have, and hands its sum round.
extern "C" __global__ void exchange(const int *in, int *out)
{
    __shared__ int own[64], sum[64];
    const cg::cluster_group cluster = cg::this_cluster();
    const unsigned n = cluster.num_blocks(), rank = cluster.block_rank(), t = threadIdx.x;
    own[t] = in[blockIdx.x * 64 + t];
    cluster.sync();
    int s = 0, ranks = 0;
    for (unsigned r = 0; r < n; r++) {
        const int *there = cluster.map_shared_rank(own, r);
        s += there[63 - t] * (int)(r + 1);
        ranks += (int)cluster.query_shared_rank(there) * 10 + (__isClusterShared(there) != 0);
    }
    cluster.map_shared_rank(sum, (rank + 1) % n)[t] = s + ranks + (int)rank;
    cluster.sync();
    out[blockIdx.x * 64 + t] = sum[t];
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) exchange_of_two(const int *in, int *out)
{
    __shared__ int own[32];
    own[threadIdx.x] = in[blockIdx.x * 32 + threadIdx.x];
    cg::this_cluster().sync();
    out[blockIdx.x * 32 + threadIdx.x] = *cg::this_cluster().map_shared_rank(own + threadIdx.x, cg::this_cluster().block_rank() ^ 1);
    cg::this_cluster().sync();
}

// Arrival and wait apart, with work of its own between them; single warps arrive while others have waited.
extern "C" __global__ void split_barrier(int *out)
{
    __shared__ int box[2][128];
    const cg::cluster_group cluster = cg::this_cluster();
    const unsigned peer = cluster.block_rank() ^ 1, t = threadIdx.x;
    int *there = cluster.map_shared_rank(&box[0][0], peer), v = (int)(blockIdx.x * 128 + t);
    for (int i = 0; i < 6; i++) {
        there[i % 2 * 128 + t] = v + i;
        __cluster_barrier_arrive();
        for (unsigned k = 0; k < t / 32 * 5; k++)
            v += __shfl_xor_sync(~0u, v, 1) & 1;
        __cluster_barrier_wait();
        v += box[i % 2][127 - t];
    }
    if (t < 40) // some end early, the others go on
        return;
    out[blockIdx.x * 128 + t] = v;
    cluster.sync();
}

// Lanes of a warp arrive and wait at different places.
extern "C" __global__ void split_lanes(int *out)
{
    __shared__ int box[32];
    const uint32_t there = map_shared(address(&box[threadIdx.x]), cg::this_cluster().block_rank() ^ 1);
    if (threadIdx.x % 2) {
        asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(there), "r"(blockIdx.x * 100 + threadIdx.x) : "memory");
        asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait;" ::: "memory");
    } else {
        asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(there), "r"(blockIdx.x * 200 + threadIdx.x) : "memory");
        asm volatile("barrier.cluster.arrive;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
    }
    out[blockIdx.x * 32 + threadIdx.x] = box[threadIdx.x ^ 1];
}

// Relaxed arrivals order nothing, but a fence before them does.
extern "C" __global__ void fence_and_relaxed(int *out)
{
    __shared__ int box;
    if (threadIdx.x == 0)
        *cg::this_cluster().map_shared_rank(&box, cg::this_cluster().block_rank() ^ 1) = (int)blockIdx.x + 5;
    asm volatile("fence.acq_rel.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (threadIdx.x == 33)
        out[blockIdx.x] = box;
    cluster_sync();
}

template <class T> __device__ void move_one(char *from, char *to, unsigned peer, unsigned t)
{
    const cg::cluster_group cluster = cg::this_cluster();
    const T v = ((const T *)cluster.map_shared_rank(from, peer))[t];
    ((T *)cluster.map_shared_rank(to, peer))[t] = v;
}

// Loads and stores of all sizes, by generic addresses.
extern "C" __global__ void generic_sizes(const char *in, char *out)
{
    __shared__ __align__(16) char a[5 * 512], b[5 * 512];
    const unsigned peer = cg::this_cluster().block_rank() ^ 1, t = threadIdx.x;
    for (unsigned i = t; i < sizeof(a); i += 32)
        a[i] = in[blockIdx.x * sizeof(a) + i], b[i] = 0;
    cluster_sync();
    move_one<char>(a, b, peer, t);
    move_one<short>(a + 512, b + 512, peer, t);
    move_one<int>(a + 1024, b + 1024, peer, t);
    move_one<int2>(a + 1536, b + 1536, peer, t);
    move_one<int4>(a + 2048, b + 2048, peer, t);
    cluster_sync();
    for (unsigned i = t; i < sizeof(a); i += 32)
        out[blockIdx.x * sizeof(a) + i] = b[i];
}

// The same with shared::cluster addresses, and the forms of loads and stores.
extern "C" __global__ void shared_sizes(const uint4 *in, uint4 *out)
{
    __shared__ uint4 a[32], b[32];
    const unsigned peer = cg::this_cluster().block_rank() ^ 1, t = threadIdx.x;
    const uint32_t from = map_shared(address(&a[t]), peer), to = map_shared(address(&b[t]), peer);
    uint64_t generic, back, wide;
    uint32_t rank, yes;
    uint4 v;
    a[t] = in[blockIdx.x * 32 + t];
    cluster_sync();
    asm volatile("ld.shared::cluster.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from));
    asm volatile("ld.relaxed.cluster.shared::cluster.u32 %0, [%1+8];" : "=r"(v.z) : "r"(from));
    asm volatile("ld.acquire.cluster.shared::cluster.u32 %0, [%1+12];" : "=r"(v.w) : "r"(from));
    asm volatile("cvta.shared::cluster.u64 %0, %1;" : "=l"(generic) : "l"((uint64_t)to));
    asm volatile("cvta.to.shared::cluster.u64 %0, %1;" : "=l"(back) : "l"(generic));
    asm volatile("mapa.shared::cluster.u64 %0, %1, %2;" : "=l"(wide) : "l"((uint64_t)address(&b[t])), "r"(peer));
    asm volatile("getctarank.shared::cluster.u32 %0, %1;" : "=r"(rank) : "r"(to));
    asm volatile("{.reg .pred p, q; isspacep.shared::cluster p, %1; isspacep.shared::cta q, %1; selp.u32 %0, 1, 0, p;"
                 "@q add.u32 %0, %0, 2; isspacep.global q, %1; @q add.u32 %0, %0, 4;}" : "=r"(yes) : "l"(generic));
    if (back != to || wide != to || rank != peer || yes != 1)
        v.x = 0xBAD;
    if (t % 2)
        asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
    else
        *(volatile uint64_t *)generic = (uint64_t)v.y << 32 | v.x, *(volatile uint64_t *)(generic + 8) = (uint64_t)v.w << 32 | v.z;
    cluster_sync();
    out[blockIdx.x * 32 + t] = b[t];
}

// Every block counts in the memory of every block.
extern "C" __global__ void remote_atomics(int *out)
{
    __shared__ int sum, most;
    __shared__ unsigned long long wide;
    const cg::cluster_group cluster = cg::this_cluster();
    if (threadIdx.x == 0)
        sum = 0, most = -1, wide = 0;
    cluster.sync();
    for (unsigned r = 0; r < cluster.num_blocks(); r++) {
        atomicAdd(cluster.map_shared_rank(&sum, r), (int)threadIdx.x);
        atomicAdd(cluster.map_shared_rank(&wide, r), 1ull << 32 | threadIdx.x);
        asm volatile("red.relaxed.cluster.shared::cluster.max.s32 [%0], %1;" ::"r"(map_shared(address(&most), r)),
                     "r"(cluster.block_rank() * 100 + threadIdx.x) : "memory");
    }
    cluster.sync();
    if (threadIdx.x == 0)
        out[blockIdx.x * 4] = sum, out[blockIdx.x * 4 + 1] = most, out[blockIdx.x * 4 + 2] = (int)wide, out[blockIdx.x * 4 + 3] = (int)(wide >> 32);
}

// A ring of two boxes that the first block fills in the second; each tells the other by an mbarrier there.
extern "C" __global__ void mbarrier_ring(const int *in, int *out, int n)
{
    __shared__ int box[2][32];
    __shared__ uint64_t full[2], empty[2];
    const uint32_t rank = cg::this_cluster().block_rank(), t = threadIdx.x;
    if (t == 0) {
        for (int i = 0; i < 2; i++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 32;" ::"r"(address(&full[i])) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 32;" ::"r"(address(&empty[i])) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_sync();
    for (int i = 0; i < n; i++) {
        const int s = i % 2, round = i / 2;
        uint64_t *mine = rank ? &full[s] : &empty[s], *theirs = rank ? &empty[s] : &full[s];
        if (rank || round)
            asm volatile("{.reg .pred p;\n\tAGAIN:\n\tmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n\t@!p bra AGAIN;\n\t}"
                         ::"r"(address(mine)), "r"(rank ? round & 1 : (round - 1) & 1) : "memory");
        if (rank)
            out[i * 32 + t] = box[s][31 - t];
        else
            asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(map_shared(address(&box[s][t]), 1)), "r"(in[i * 32 + t]) : "memory");
        asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(map_shared(address(theirs), rank ^ 1)) : "memory");
    }
    cluster_sync();
}

// Waits by itself until n blocks have come: a barrier of the grid.
__device__ void meet(unsigned *count, unsigned n)
{
    unsigned now;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        atomicAdd(count, 1);
        do {
            __nanosleep(20);
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
        } while (now < n);
    }
    __syncthreads();
}

// A ring of tiles that both blocks of a cluster fill, each half of every tile, read by ldmatrix; cp.async goes on beside
// it; all blocks of the grid meet between rounds. Dynamic shared memory: 2 tiles of 4 KiB, and 2 KiB for the copy.
extern "C" __global__ void __launch_bounds__(256) shared_tiles(const uint4 *in, const uint4 *weights, uint32_t *out, uint32_t *next,
                                                               unsigned *count, int n_rounds, int n_tiles)
{
    extern __shared__ __align__(128) unsigned char smem[];
    uint32_t rank, sum = 0;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    const unsigned t = threadIdx.x, pair = blockIdx.x / 2;
    const uint32_t own = address(smem), peer = map_shared(own, rank ^ 1), copy = own + 8192;
    for (int round = 0; round < n_rounds; round++) {
        if (t < 128)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(copy + t * 16), "l"(weights + blockIdx.x * 128 + t) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
        for (int i = 0; i < n_tiles; i++) {
            if (t < 128) {
                const uint32_t at = i % 2 * 4096 + rank * 2048 + t * 16;
                uint4 v;
                asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                             : "l"(in + ((pair * n_tiles + i) * 2 + rank) * 128 + t));
                v.x += round;
                asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(own + at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
                asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(peer + at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
            }
            cluster_sync();
            uint32_t a, b, c, d;
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(a), "=r"(b), "=r"(c), "=r"(d)
                         : "r"(own + i % 2 * 4096 + t * 16));
            sum = sum * 3 + (a ^ b) + (c ^ d);
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
        meet(count, gridDim.x * (2 * round + 1));
        sum += ((uint32_t *)(smem + 8192))[t];
        next[(blockIdx.x + 1) % gridDim.x * 256 + t] = sum;
        meet(count, gridDim.x * (2 * round + 2));
        sum += __ldcg(next + blockIdx.x * 256 + t);
    }
    out[blockIdx.x * 256 + t] = sum;
}
