/* Kernels of test_gpu_prims.c. */
#include "cuda/prims.cuh"
#include "tests/gpu/test_gpu_prims.h"

static __global__ void ldmatrix_test(const uint8_t *x, uint32_t *y)
{
    __shared__ __align__(16) uint8_t s[512];
    const int l = (int)threadIdx.x;
    uint32_t r4[4], r2[2];
    ((uint4 *)s)[l] = ((const uint4 *)x)[l];
    __syncwarp();
    p_ldmatrix_x4(r4, s + 16 * l);
    p_ldmatrix_x2(r2, s + 16 * (l % 16));
    for (int i = 0; i < 4; i++)
        y[32 * i + l] = r4[i];
    for (int i = 0; i < 2; i++)
        y[128 + 32 * i + l] = r2[i];
}

static __global__ void mma_test(const uint32_t *a, const uint32_t *b, const int32_t *c, int32_t *y)
{
    const int g = (int)threadIdx.x / 4, q = (int)threadIdx.x % 4;
    uint32_t fa[4];
    int32_t s[4], t[4];
    for (int i = 0; i < 4; i++) {
        fa[i] = a[8 * (g + i % 2 * 8) + i / 2 * 4 + q];
        s[i] = c[8 * (g + i / 2 * 8) + 2 * q + i % 2];
    }
    p_mma_s8_from(t, fa, b[8 * g + q], b[8 * g + 4 + q], s);
    p_mma_s8(s, fa, b[8 * g + q], b[8 * g + 4 + q]);
    for (int i = 0; i < 4; i++)
        y[8 * (g + i / 2 * 8) + 2 * q + i % 2] = s[i] == t[i] ? s[i] : INT32_MIN;
}

static __global__ void copy_test(const uint8_t *x, int n_groups, uint8_t *y)
{
    __shared__ __align__(16) uint8_t s[3][512];
    const int l = (int)threadIdx.x, at = 16 * l;
    for (int i = 0; i < n_groups + 2; i++) {
        if (i < n_groups)
            p_cp_async16(s[i % 3] + at, x + 512 * i + at, l % 2 == 0);
        p_cp_async_commit();
        if (i < 2)
            continue;
        p_cp_async_wait<2>();
        *(uint4 *)(y + 512 * (i - 2) + at) = *(const uint4 *)(s[(i - 2) % 3] + at);
    }
}

static __global__ void red_test(const int32_t *x, int32_t *y)
{
    p_red_add(y, p_again(x[threadIdx.x]));
}

extern "C" cudaError_t test_prims_red(cudaStream_t st, const int32_t *x, int32_t *y)
{
    red_test<<<1, 32, 0, st>>>(x, y);
    return cudaGetLastError();
}

static __global__ void exp2_test(const float *x, float *y)
{
    y[threadIdx.x] = p_exp2_near(x[threadIdx.x]);
}

extern "C" cudaError_t test_prims_exp2(cudaStream_t st, const float *x, float *y)
{
    exp2_test<<<1, 32, 0, st>>>(x, y);
    return cudaGetLastError();
}

/* Back and forth, so that a barrier that orders only one way would show. */
static __global__ void pair_test(const uint4 *x, int n, uint4 *y)
{
    __shared__ uint4 s[2][32];
    const int l = (int)threadIdx.x, at = (int)blockIdx.x * 32 + l;
    p_cluster_barrier();
    for (int i = 0; i < n; i++) {
        p_store_peer16(&s[i % 2][l ^ 1], x[i * 64 + at]);
        p_cluster_barrier();
        y[i * 64 + at] = s[i % 2][l];
    }
}

extern "C" cudaError_t test_prims_pair(cudaStream_t st, const void *x, int n, void *y)
{
    cudaLaunchAttribute a = {};
    cudaLaunchConfig_t c = {};
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = 2;
    a.val.clusterDim.y = a.val.clusterDim.z = 1;
    c.gridDim = dim3(2);
    c.blockDim = dim3(32);
    c.stream = st;
    c.attrs = &a;
    c.numAttrs = 1;
    return cudaLaunchKernelEx(&c, pair_test, (const uint4 *)x, n, (uint4 *)y);
}

extern "C" cudaError_t test_prims_ldmatrix(cudaStream_t st, const uint8_t *x, uint32_t *y)
{
    ldmatrix_test<<<1, 32, 0, st>>>(x, y);
    return cudaGetLastError();
}

extern "C" cudaError_t test_prims_mma(cudaStream_t st, const uint8_t *a, const int8_t *b,
                                      const int32_t *c, int32_t *y)
{
    mma_test<<<1, 32, 0, st>>>((const uint32_t *)a, (const uint32_t *)b, c, y);
    return cudaGetLastError();
}

extern "C" cudaError_t test_prims_copy(cudaStream_t st, const uint8_t *x, int n_groups, uint8_t *y)
{
    copy_test<<<1, 32, 0, st>>>(x, n_groups, y);
    return cudaGetLastError();
}
