// As faults.cu, for clusters of two blocks: each kernel does one thing wrong, or only looks wrong.
#include <cooperative_groups.h>
#include <cstdint>
namespace cg = cooperative_groups;

__device__ __forceinline__ unsigned my_rank() { return cg::this_cluster().block_rank(); }
__device__ __forceinline__ uint32_t address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ uint32_t map_shared(uint32_t a, uint32_t rank)
{
    uint32_t r;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank));
    return r;
}
__device__ __forceinline__ void arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() { arrive(), wait(); }
__device__ __forceinline__ void stay() // so long that the other block has done what it does
{
    for (int i = 0; i < 2000; i++)
        asm volatile("nanosleep.u32 10;");
}

// mode 0: the other block's store comes with no barrier before the read; 1: only with a relaxed arrival; 2: only with the
// block's own barrier; 3: right
extern "C" __global__ void read_too_early(int *out, int mode)
{
    __shared__ int s[64];
    s[threadIdx.x] = 0;
    cluster_sync();
    cg::this_cluster().map_shared_rank(s, my_rank() ^ 1)[threadIdx.x] = threadIdx.x;
    if (mode == 1)
        asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
    if (mode == 2)
        __syncthreads();
    if (mode == 3)
        cluster_sync();
    out[blockIdx.x * 64 + threadIdx.x] = s[threadIdx.x];
    cluster_sync();
}

// The second round overwrites what the other block may still read; right if fine.
extern "C" __global__ void overwrite_too_early(int *out, int fine)
{
    __shared__ int s[64];
    int *there = cg::this_cluster().map_shared_rank(s, my_rank() ^ 1), sum = 0;
    for (int i = 0; i < 2; i++) {
        if (i && my_rank() == 1)
            stay();
        there[threadIdx.x] = i;
        cluster_sync();
        sum += s[63 - threadIdx.x];
        if (fine)
            cluster_sync();
    }
    out[blockIdx.x * 64 + threadIdx.x] = sum;
    cluster_sync();
}

extern "C" __global__ void remote_past_end(int *out, int offset)
{
    extern __shared__ int s[];
    s[threadIdx.x] = 1;
    cluster_sync();
    int v;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(map_shared(address(s), my_rank() ^ 1) + offset));
    out[threadIdx.x] = v;
    cluster_sync();
}
extern "C" __global__ void generic_past_end(int *out, int offset)
{
    extern __shared__ int s[];
    s[threadIdx.x] = 1;
    cluster_sync();
    cg::this_cluster().map_shared_rank(s, my_rank() ^ 1)[offset] = 1;
    cluster_sync();
}

// wait: for how long the second block stays: it ends at once, or arrives without waiting, or waits
extern "C" __global__ void after_exit(int *out, int wait_for)
{
    __shared__ int s[32];
    s[threadIdx.x] = 5;
    cluster_sync();
    if (my_rank() == 1) {
        if (wait_for == 1)
            arrive();
        if (wait_for == 2)
            cluster_sync();
        return;
    }
    stay();
    out[threadIdx.x] = cg::this_cluster().map_shared_rank(s, 1)[threadIdx.x];
    cluster_sync();
}
// The first block reads first, and the second ends, without any barrier or with one that the first reaches by ending.
extern "C" __global__ void before_exit(int *out, int fine)
{
    __shared__ int s[32];
    s[threadIdx.x] = 5;
    cluster_sync();
    if (my_rank() == 0)
        out[threadIdx.x] = cg::this_cluster().map_shared_rank(s, 1)[threadIdx.x];
    else if (fine)
        cluster_sync();
    else
        stay();
}

extern "C" __global__ void wait_without_arrival(int *out)
{
    if (my_rank() == 0)
        arrive();
    wait();
    out[blockIdx.x] = 1;
}
extern "C" __global__ void arrive_twice(int *out)
{
    arrive();
    arrive();
    wait();
    out[blockIdx.x] = 1;
}
extern "C" __global__ void barrier_in_branches(int *out)
{
    if (threadIdx.x % 2) {
        out[threadIdx.x] = 1;
        cluster_sync();
    } else {
        out[threadIdx.x] = 2;
        cluster_sync();
    }
    out[threadIdx.x]++;
}
extern "C" __global__ void guarded_barrier(int *out)
{
    asm volatile("{.reg .pred p; setp.ne.u32 p, %0, 0; @p barrier.cluster.arrive.aligned; @p barrier.cluster.wait.aligned;}" ::"r"(threadIdx.x % 2) : "memory");
    out[threadIdx.x] = 1;
}
extern "C" __global__ void stuck_cluster(int *out)
{
    if (my_rank() == 1 && threadIdx.x < 32)
        asm volatile("bar.sync 3, 64;");
    else if (my_rank() == 0 || threadIdx.x < 64)
        cluster_sync();
    out[threadIdx.x] = 1;
}

extern "C" __global__ void unwritten_remote(int *out, int n)
{
    __shared__ int s[32];
    if ((int)threadIdx.x < n)
        cg::this_cluster().map_shared_rank(s, my_rank() ^ 1)[threadIdx.x] = 1;
    cluster_sync();
    out[blockIdx.x * 32 + threadIdx.x] = cg::this_cluster().map_shared_rank(s, my_rank() ^ 1)[threadIdx.x];
    cluster_sync();
}

extern "C" __global__ void no_such_rank(int *out)
{
    __shared__ int s;
    out[0] = (int)map_shared(address(&s), my_rank() + 2);
}
extern "C" __global__ void not_shared(int *out) { *cg::this_cluster().map_shared_rank(out, my_rank() ^ 1) = 1; }
extern "C" __global__ void plain_load(int *out)
{
    __shared__ int s;
    int v;
    s = 0;
    cluster_sync();
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(map_shared(address(&s), my_rank() ^ 1)));
    out[0] = v;
}
extern "C" __global__ void remote_ldmatrix(int *out)
{
    __shared__ int4 s[32];
    int v;
    s[threadIdx.x] = make_int4(0, 0, 0, 0);
    cluster_sync();
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(v) : "r"(map_shared(address(&s[threadIdx.x % 8]), my_rank() ^ 1)));
    out[0] = v;
}
extern "C" __global__ void remote_copy(const int4 *in, int *out)
{
    __shared__ int4 s[32];
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(map_shared(address(&s[threadIdx.x]), my_rank() ^ 1)), "l"(in + threadIdx.x) : "memory");
    asm volatile("cp.async.wait_all;" ::: "memory");
    out[0] = s[0].x;
}
// A store into bytes that a copy of the other block is on its way to.
extern "C" __global__ void store_into_copy(const int4 *in, int *out)
{
    __shared__ int4 s[32];
    if (my_rank() == 0)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(&s[threadIdx.x])), "l"(in + threadIdx.x) : "memory");
    cluster_sync();
    if (my_rank() == 1)
        cg::this_cluster().map_shared_rank(s, 0)[threadIdx.x].y = 1;
    cluster_sync();
    asm volatile("cp.async.wait_all;" ::: "memory");
    out[0] = s[0].x;
}
extern "C" __global__ void send_async(int *out)
{
    __shared__ uint64_t bar;
    __shared__ int s;
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(map_shared(address(&s), my_rank() ^ 1)),
                 "r"(1), "r"(map_shared(address(&bar), my_rank() ^ 1)) : "memory");
    out[0] = s;
}

// Global memory: the cluster's barrier orders it, between the blocks of a cluster.
extern "C" __global__ void global_exchange(int *p, int *out, int distance)
{
    p[blockIdx.x] = 1;
    cluster_sync();
    out[blockIdx.x] = p[blockIdx.x ^ distance];
}

extern "C" __global__ void fine_early_exit(int *out)
{
    __shared__ int s[64];
    cg::this_cluster().map_shared_rank(s, my_rank() ^ 1)[threadIdx.x] = threadIdx.x;
    cluster_sync();
    if (my_rank() == 1 || threadIdx.x < 8) // those that have arrived and end, and those that only end
        return;
    arrive();
    wait();
    out[threadIdx.x] = s[threadIdx.x];
}
// Who has arrived and ended is not counted twice: the others wait for the last one all the same.
extern "C" __global__ void fine_arrive_and_end(int *out)
{
    __shared__ int s;
    if (my_rank() == 1) {
        if (threadIdx.x < 32)
            return;
        stay();
        *cg::this_cluster().map_shared_rank(&s, 0) = 7;
        cluster_sync();
        return;
    }
    arrive();
    if (threadIdx.x < 32)
        return;
    wait();
    out[threadIdx.x] = s;
}
extern "C" __global__ void __cluster_dims__(2, 1, 1) two_by_decree(int *out) { out[blockIdx.x] = 1; }
