/* What the row kernels share. A quad of the input (quads.cuh) is the unit that a thread handles.
 *
 * A source computes from quad i of a row N results (4, or 2 of gate and up); a kernel stores them as floats, as codes of a static step, or
 * finds the row's step first. Results beyond the row's end are 0. */
#pragma once

#include "cuda/quads.cuh"

#define MAP_THREADS 256
#define ROW_THREADS 1024
/* Rows from which on there are enough blocks for all multiprocessors, so that each may do more. */
#define MANY_ROWS 256

/* Threads for n units of work, whole warps, at most `most`. */
static inline int threads_for(int n, int most)
{
    int t = (n + 31) / 32 * 32;
    return t < most ? t : most;
}

/* --- sources --- */

template <bool VEC> struct src_f32 {
    static const int N = 4;
    static const bool vec = VEC;
    const float *x;
    int cols;
    __device__ __forceinline__ void get(int row, int i, float *v) const
    {
        float4 t = load4<VEC>(x + (size_t)row * cols, i, cols);
        v[0] = t.x, v[1] = t.y, v[2] = t.z, v[3] = t.w;
    }
};

/* gate, up, gate, up */
template <bool VEC> struct src_swiglu {
    static const int N = 2;
    static const bool vec = VEC;
    const float *x;
    int cols; /* of x, twice the results */
    __device__ __forceinline__ void get(int row, int i, float *v) const
    {
        float4 t = load4<VEC>(x + (size_t)row * cols, i, cols);
        v[0] = d_swiglu(t.x, t.y), v[1] = d_swiglu(t.z, t.w);
    }
};

/* --- kernels: a block takes U * its threads of quads of one row --- */

struct map_to {
    int quads, cols;       /* quads of the input, columns of the result */
    float *y;              /* f32 results, dense, or NULL: */
    struct sq_gpu_codes q; /* codes */
    float inv_step;
};

template <class Src, int U> __global__ void map_kernel(const Src src, const struct map_to to)
{
    const int row = blockIdx.x, i0 = blockIdx.y * blockDim.x * U + threadIdx.x;
    float v[U][Src::N];
#pragma unroll
    for (int u = 0; u < U; u++)
        if (i0 + u * blockDim.x < to.quads)
            src.get(row, i0 + u * blockDim.x, v[u]);
#pragma unroll
    for (int u = 0; u < U; u++) {
        const int i = i0 + u * blockDim.x;
        if (i >= to.quads)
            break;
        if (to.y)
            store_floats<Src::N, Src::vec>(to.y + (size_t)row * to.cols, i, to.cols, v[u]);
        else
            store_codes<Src::N>(to.q.q + (size_t)row * to.q.stride, i, to.cols,
                                codes_of<Src::N>(v[u], to.inv_step));
    }
}

template <class Src, int U>
static void launch_map(cudaStream_t st, const Src src, int n_rows, int threads,
                       const struct map_to to)
{
    const int each = U * threads;
    map_kernel<Src, U><<<dim3(n_rows, (to.quads + each - 1) / each), threads, 0, st>>>(src, to);
}

template <class Src>
static cudaError_t map_rows(cudaStream_t st, const Src src, int n_rows, const struct map_to to)
{
    const int threads = threads_for(to.quads, MAP_THREADS), U = Src::vec ? 4 : 1;
    if (n_rows <= 0 || to.quads <= 0)
        return cudaSuccess;
    if (n_rows >= MANY_ROWS && to.quads >= U * threads)
        launch_map<Src, U>(st, src, n_rows, threads, to);
    else
        launch_map<Src, 1>(st, src, n_rows, threads, to);
    return cudaGetLastError();
}

/* --- kernels: codes with a step of the row's own; one block a row --- */

__device__ __forceinline__ float block_max(float m, float *shared)
{
    m = d_warp_max(m);
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = m;
    __syncthreads();
    m = threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f;
    return d_warp_max(m);
}

/* Writes the row's step, returns its inverse to all threads. */
__device__ __forceinline__ float row_inv(float absmax, const struct sq_gpu_codes &q)
{
    __shared__ float part[ROW_THREADS / 32];
    const float step = d_row_step(block_max(absmax, part));
    if (threadIdx.x == 0)
        q.row_scale[blockIdx.x] = step;
    return __fdiv_rn(1.0f, step);
}

/* The row stays in registers: at most V quads a thread. */
template <class Src, int V>
__global__ void __launch_bounds__(ROW_THREADS)
    quant_kernel(const Src src, int quads, int cols, struct sq_gpu_codes q)
{
    const int row = blockIdx.x;
    float v[V][Src::N], top = 0.0f;
#pragma unroll
    for (int u = 0; u < V; u++)
        if (threadIdx.x + u * blockDim.x < quads)
            src.get(row, threadIdx.x + u * blockDim.x, v[u]);
#pragma unroll
    for (int u = 0; u < V; u++)
        if (threadIdx.x + u * blockDim.x < quads)
#pragma unroll
            for (int k = 0; k < Src::N; k++)
                top = fmaxf(top, fabsf(v[u][k]));
    const float inv = row_inv(top, q);
#pragma unroll
    for (int u = 0; u < V; u++) {
        const int i = threadIdx.x + u * blockDim.x;
        if (i < quads)
            store_codes<Src::N>(q.q + (size_t)row * q.stride, i, cols, codes_of<Src::N>(v[u], inv));
    }
}

/* Rows of any length: read twice. */
template <class Src>
__global__ void __launch_bounds__(ROW_THREADS)
    quant_long_kernel(const Src src, int quads, int cols, struct sq_gpu_codes q)
{
    const int row = blockIdx.x;
    float v[Src::N], top = 0.0f;
    for (int i = threadIdx.x; i < quads; i += blockDim.x) {
        src.get(row, i, v);
#pragma unroll
        for (int k = 0; k < Src::N; k++)
            top = fmaxf(top, fabsf(v[k]));
    }
    const float inv = row_inv(top, q);
    for (int i = threadIdx.x; i < quads; i += blockDim.x) {
        src.get(row, i, v);
        store_codes<Src::N>(q.q + (size_t)row * q.stride, i, cols, codes_of<Src::N>(v, inv));
    }
}

template <class Src>
static cudaError_t quant_dynamic(cudaStream_t st, const Src src, int n_rows, int quads, int cols,
                                 struct sq_gpu_codes q)
{
    const int few = 2 * (4 / Src::N), most = 8 * (4 / Src::N); /* the same registers for both N */
    const int all = threads_for(quads, ROW_THREADS);
    if (n_rows <= 0 || quads <= 0)
        return cudaSuccess;
    if constexpr (Src::vec) {
        const int frugal = threads_for((quads + most - 1) / most, ROW_THREADS);
        const int threads = n_rows < MANY_ROWS ? all : frugal;
        if (n_rows < MANY_ROWS && quads <= few * ROW_THREADS)
            quant_kernel<Src, few><<<n_rows, all, 0, st>>>(src, quads, cols, q);
        else if (quads <= most * ROW_THREADS)
            quant_kernel<Src, most><<<n_rows, threads, 0, st>>>(src, quads, cols, q);
        else
            quant_long_kernel<Src><<<n_rows, all, 0, st>>>(src, quads, cols, q);
    } else {
        quant_long_kernel<Src><<<n_rows, all, 0, st>>>(src, quads, cols, q);
    }
    return cudaGetLastError();
}
