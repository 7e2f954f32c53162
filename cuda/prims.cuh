/* The instructions that CUDA C++ has no name for: all inline PTX of the module stands here. Each has its test in tests/gpu/test_gpu_prims.c.
 *
 * sm_75 has neither cp.async nor the larger int8 mma: there the primitives do the same with what it has. */
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t p_shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* Four (two) 8 x 16-byte matrices from shared memory: lane l names row l % 8 of matrix l / 8 by a 16-aligned pointer (x2: lanes from 16 on
 * are not looked at, but must hold a valid one). Lane l gets word l % 4 of row l / 4 of each. */
__device__ __forceinline__ void p_ldmatrix_x4(uint32_t (&r)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(p_shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void p_ldmatrix_x2(uint32_t (&r)[2], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(p_shared_address(row))
                 : "memory");
}

#if __CUDA_ARCH__ < 800
/* c[8 x 8] += a[8 x 16] * b[16 x 8], a quarter of what follows. */
__device__ __forceinline__ void p_mma_8_(int32_t &c0, int32_t &c1, uint32_t a, uint32_t b)
{
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c0), "+r"(c1)
                 : "r"(a), "r"(b));
}
#endif

/* c[16 x 8] += a[16 x 32] * b[32 x 8], exact in s32. With g = lane / 4, q = lane % 4, words of four bytes along k:
 *   a[0], a[2]: row g, k = 4q and 16 + 4q;  a[1], a[3]: the same of row g + 8;  b0, b1: column g, k = 4q and 16 + 4q;
 *   c[0], c[1]: row g, columns 2q and 2q + 1;  c[2], c[3]: the same of row g + 8. */
__device__ __forceinline__ void p_mma_s8(int32_t (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    p_mma_8_(c[0], c[1], a[0], b0);
    p_mma_8_(c[0], c[1], a[2], b1);
    p_mma_8_(c[2], c[3], a[1], b0);
    p_mma_8_(c[2], c[3], a[3], b1);
#endif
}

/* d = c + a * b: a start that is kept. */
__device__ __forceinline__ void p_mma_s8_from(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                              uint32_t b1, const int32_t (&c)[4])
{
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]),
                   "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else
    d[0] = c[0], d[1] = c[1], d[2] = c[2], d[3] = c[3];
    p_mma_s8(d, a, b0, b1);
#endif
}

/* 2^x within a relative error of 2^-22; subnormal results are 0. */
__device__ __forceinline__ float p_exp2_near(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 16 bytes from global to shared memory, past L1; both 16-aligned. `there` false: zeros, and `from` is not read. They are there after
 * a wait for their group and, for other threads, a barrier. */
__device__ __forceinline__ void p_cp_async16(void *to, const void *from, bool there = true)
{
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(p_shared_address(to)),
        "l"(from), "r"(there ? 16 : 0)
        : "memory");
#else
    *(uint4 *)to = there ? *(const uint4 *)from : make_uint4(0, 0, 0, 0);
#endif
}

/* What has been started since the last commit becomes a group. */
__device__ __forceinline__ void p_cp_async_commit(void)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* Waits until at most the N newest groups of this thread are on their way. */
template <int N> __device__ __forceinline__ void p_cp_async_wait(void)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

/* *p += x, in global memory and in whatever order; nothing comes back. */
__device__ __forceinline__ void p_red_add(int32_t *p, int32_t x)
{
    asm volatile("red.global.add.s32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(x)
                 : "memory");
}

/* --- clusters of two blocks, from sm_90 on; their kernels are not launched elsewhere --- */

/* Where p, in this block's shared memory, lies in that of the cluster's other block; an address of distributed shared memory. */
__device__ __forceinline__ uint32_t p_peer_address(const void *p)
{
    uint32_t at = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n\t.reg .u32 rank;\n\tmov.u32 rank, %%cluster_ctarank;\n\txor.b32 rank, rank, 1;\n\t"
        "mapa.shared::cluster.u32 %0, %1, rank;\n\t}"
        : "=r"(at)
        : "r"(p_shared_address(p)));
#endif
    return at;
}

/* v to there; 16-aligned. */
__device__ __forceinline__ void p_store_peer16(void *p, uint4 v)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(p_peer_address(p)),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#else
    __trap();
#endif
}

/* All threads of the cluster have come here, and see what the others have written. Whole warps. */
__device__ __forceinline__ void p_cluster_barrier(void)
{
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
            : "memory");
#else
    __trap();
#endif
}

/* x, and the compiler does not know: what is computed from it is computed again, instead of being kept in registers over a loop. */
__device__ __forceinline__ int p_again(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}
