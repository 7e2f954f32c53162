/* Embedding, quantisation, SwiGLU, gather, and what looks over whole rows. Norms: norm.cu. */
#include "cuda/rows.cuh"

/* --- embed --- */

template <bool VEC> struct src_embed {
    static const int N = 4;
    static const bool vec = VEC;
    struct sq_gpu_step s;
    const void *table, *pos_table;
    int dtype, pos_dtype, pos_offset, dim;

    __device__ __forceinline__ float4 quad(const void *t, int type, int row, int i) const
    {
        const size_t at = (size_t)row * dim + 4 * i;
        if (VEC)
            return d_load4(t, at, type);
        const int n = dim - 4 * i;
        return make_float4(d_load(t, at, type), n > 1 ? d_load(t, at + 1, type) : 0.0f,
                           n > 2 ? d_load(t, at + 2, type) : 0.0f,
                           n > 3 ? d_load(t, at + 3, type) : 0.0f);
    }

    __device__ __forceinline__ void get(int row, int i, float *v) const
    {
        float4 a, b;
        if (table)
            a = quad(table, dtype, s.ids[row], i);
        if (pos_table)
            b = quad(pos_table, pos_dtype, s.pos[row] + pos_offset, i);
        if (!table)
            a = b;
        else if (pos_table)
            a = add_f4(a, b);
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    }
};

template <bool VEC>
static cudaError_t embed(cudaStream_t st, const struct sq_gpu_step *s, int n_rows,
                         const void *table, int dtype, const void *pos_table, int pos_dtype,
                         int pos_offset, const struct map_to to)
{
    const src_embed<VEC> src = {*s, table, pos_table, dtype, pos_dtype, pos_offset, to.cols};
    return map_rows(st, src, n_rows, to);
}

cudaError_t sq_gpu_embed(cudaStream_t st, const struct sq_gpu_step *s, int n_rows,
                         const void *table, int dtype, const void *pos_table, int pos_dtype,
                         int pos_offset, float *x, int dim)
{
    struct map_to to = {};
    to.quads = n_quads(dim), to.cols = dim, to.y = x;
    const bool vec = dim % 4 == 0 && aligned16(x) && aligned16(table) && aligned16(pos_table);
    return vec ? embed<true>(st, s, n_rows, table, dtype, pos_table, pos_dtype, pos_offset, to)
               : embed<false>(st, s, n_rows, table, dtype, pos_table, pos_dtype, pos_offset, to);
}

/* --- gather --- */

template <bool VEC> struct src_gather {
    static const int N = 4;
    static const bool vec = VEC;
    const int32_t *rows;
    struct src_f32<VEC> x;
    __device__ __forceinline__ void get(int row, int i, float *v) const
    {
        x.get(rows[row], i, v);
    }
};

cudaError_t sq_gpu_gather(cudaStream_t st, const struct sq_gpu_step *s, const float *x, int n_out,
                          int cols, float *y)
{
    struct map_to to = {};
    to.quads = n_quads(cols), to.cols = cols, to.y = y;
    const src_gather<true> quads = {s->out_rows, {x, cols}};
    const src_gather<false> single = {s->out_rows, {x, cols}};
    const bool vec = cols % 4 == 0 && aligned16(x) && aligned16(y);
    return vec ? map_rows(st, quads, n_out, to) : map_rows(st, single, n_out, to);
}

/* --- codes --- */

template <class Src>
static cudaError_t to_codes(cudaStream_t st, const Src src, int n_rows, int cols, float inv_step,
                            struct sq_gpu_codes y)
{
    struct map_to to = {};
    to.quads = (cols + Src::N - 1) / Src::N, to.cols = cols, to.q = y, to.inv_step = inv_step;
    return inv_step == 0.0f ? quant_dynamic(st, src, n_rows, to.quads, cols, y)
                            : map_rows(st, src, n_rows, to);
}

cudaError_t sq_gpu_quant_rows(cudaStream_t st, const float *x, int n_rows, int cols, float inv_step,
                              struct sq_gpu_codes y)
{
    const src_f32<true> quads = {x, cols};
    const src_f32<false> single = {x, cols};
    return cols % 4 == 0 && aligned16(x) ? to_codes(st, quads, n_rows, cols, inv_step, y)
                                         : to_codes(st, single, n_rows, cols, inv_step, y);
}

template <bool VEC>
static cudaError_t swiglu(cudaStream_t st, const float *x, int n_rows, int cols, float inv_step,
                          float *y, struct sq_gpu_codes y_q)
{
    const src_swiglu<VEC> src = {x, 2 * cols};
    struct map_to to = {};
    to.quads = n_quads(2 * cols), to.cols = cols, to.y = y;
    return y ? map_rows(st, src, n_rows, to) : to_codes(st, src, n_rows, cols, inv_step, y_q);
}

cudaError_t sq_gpu_swiglu(cudaStream_t st, const float *x, int n_rows, int cols, float inv_step,
                          float *y, struct sq_gpu_codes y_q)
{
    const bool vec = cols % 2 == 0 && aligned16(x) && aligned16(y);
    return vec ? swiglu<true>(st, x, n_rows, cols, inv_step, y, y_q)
               : swiglu<false>(st, x, n_rows, cols, inv_step, y, y_q);
}

/* --- argmax: a row's columns are shared out among blocks --- */

#define ARGMAX_LOADS 4 /* quads of a thread, all on their way at once */

struct best {
    float x;
    int at; /* INT32_MAX: nothing above -inf so far */
};

__device__ __forceinline__ struct best warp_best(struct best b)
{
#pragma unroll
    for (int i = 16; i; i /= 2) {
        const float x = __shfl_xor_sync(FULL_WARP, b.x, i);
        const int at = __shfl_xor_sync(FULL_WARP, b.at, i);
        if (x > b.x || (x == b.x && at < b.at)) {
            b.x = x;
            b.at = at;
        }
    }
    return b;
}

/* The thread's share of the block's columns, in ascending order, so that a tie leaves the first; returns whether there was a NaN. */
template <bool VEC> __device__ __forceinline__ bool scan(const float *row, int cols, struct best *b)
{
    const int quads = n_quads(cols), i0 = blockIdx.x * ARGMAX_LOADS * blockDim.x + threadIdx.x;
    bool nan = false;
    float4 t[ARGMAX_LOADS];
#pragma unroll
    for (int u = 0; u < ARGMAX_LOADS; u++)
        if (i0 + u * blockDim.x < quads)
            t[u] = load4<VEC>(row, i0 + u * blockDim.x, cols);
        else
            t[u] = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
#pragma unroll
    for (int u = 0; u < ARGMAX_LOADS; u++) {
        const float v[4] = {t[u].x, t[u].y, t[u].z, t[u].w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int c = 4 * (i0 + u * blockDim.x) + k;
            if (v[k] <= b->x || (!VEC && c >= cols)) /* seldom false */
                continue;
            if (v[k] == v[k]) {
                b->x = v[k];
                b->at = c;
            } else {
                nan = true;
            }
        }
    }
    return nan;
}

/* The larger key has the larger value, or the same and comes first; a NaN has the largest. */
__device__ __forceinline__ unsigned long long key_of(struct best b, bool nan)
{
    const uint32_t bits = __float_as_uint(b.x + 0.0f); /* one zero */
    const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return nan ? ~0ull : (unsigned long long)order << 32 | (uint32_t)~b.at;
}

__device__ __forceinline__ int32_t id_of(unsigned long long key)
{
    const int at = (int)~(uint32_t)key;
    return key == ~0ull ? -1 : at == INT32_MAX ? 0 : at;
}

template <bool VEC>
__global__ void __launch_bounds__(ROW_THREADS)
    argmax_kernel(const float *x, int cols, struct sq_gpu_best *rows, int32_t *ids)
{
    __shared__ float part_x[ROW_THREADS / 32];
    __shared__ int part_at[ROW_THREADS / 32];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    struct best b = {-INFINITY, INT32_MAX};
    const bool nan = scan<VEC>(x + (size_t)blockIdx.y * cols, cols, &b);
    b = warp_best(b);
    if (lane == 0) {
        part_x[warp] = b.x;
        part_at[warp] = b.at;
    }
    const bool any_nan = __syncthreads_or(nan);
    if (warp)
        return;
    const unsigned i = lane < blockDim.x / 32 ? lane : 0;
    b = warp_best({part_x[i], part_at[i]});
    if (lane)
        return;
    struct sq_gpu_best *row = rows + blockIdx.y;
    atomicMax(&row->key, key_of(b, any_nan));
    __threadfence();
    if (atomicAdd(&row->n_done, 1) == gridDim.x - 1) {
        __threadfence();
        ids[blockIdx.y] = id_of(atomicExch(&row->key, 0));
        row->n_done = 0;
    }
}

cudaError_t sq_gpu_argmax(cudaStream_t st, const float *x, int n_rows, int cols,
                          struct sq_gpu_best *rows, int32_t *ids)
{
    const int quads = n_quads(cols), threads = threads_for(quads, ROW_THREADS);
    if (n_rows <= 0 || cols <= 0)
        return cudaSuccess;
    const dim3 grid((unsigned)((quads - 1) / (ARGMAX_LOADS * threads) + 1), (unsigned)n_rows);
    if (cols % 4 == 0 && aligned16(x))
        argmax_kernel<true><<<grid, threads, 0, st>>>(x, cols, rows, ids);
    else
        argmax_kernel<false><<<grid, threads, 0, st>>>(x, cols, rows, ids);
    return cudaGetLastError();
}

/* --- observe --- */

#define OBSERVE_ROWS 64 /* of a block */

/* A thread per column. Not negative, so the maxima compare as integers; a NaN among x counts as nothing. */
__global__ void observe_kernel(const float *x, int n_rows, int n_cols, int stride, float *absmax)
{
    const int c = blockIdx.x * blockDim.x + threadIdx.x, row0 = blockIdx.y * OBSERVE_ROWS;
    const int n = min(n_rows - row0, OBSERVE_ROWS);
    float m = 0.0f;
    if (c >= n_cols)
        return;
    const float *p = x + (size_t)row0 * stride + c;
#pragma unroll 8
    for (int r = 0; r < n; r++)
        m = fmaxf(m, fabsf(p[(size_t)r * stride]));
    atomicMax((int *)absmax + c, __float_as_int(m));
}

cudaError_t sq_gpu_observe(cudaStream_t st, const float *x, int n_rows, int n_cols, int stride,
                           float *absmax)
{
    if (n_rows <= 0 || n_cols <= 0)
        return cudaSuccess;
    dim3 grid((n_cols + MAP_THREADS - 1) / MAP_THREADS, (n_rows + OBSERVE_ROWS - 1) / OBSERVE_ROWS);
    observe_kernel<<<grid, MAP_THREADS, 0, st>>>(x, n_rows, n_cols, stride, absmax);
    return cudaGetLastError();
}

/* --- convert --- */

__device__ __forceinline__ uint16_t to_half(float x, int dtype)
{
    return dtype == SQ_F16 ? __half_as_ushort(__float2half_rn(x))
                           : __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <bool VEC>
__global__ void convert_kernel(const struct src_f32<VEC> src, int dtype, uint16_t *y, int stride)
{
    const int row = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x, cols = src.cols;
    float v[4];
    uint32_t h[4];
    if (4 * i >= cols)
        return;
    src.get(row, i, v);
#pragma unroll
    for (int k = 0; k < 4; k++)
        h[k] = to_half(v[k], dtype);
    uint16_t *to = y + (size_t)row * stride + 4 * i;
    if (VEC) {
        *(uint2 *)to = make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16);
    } else {
#pragma unroll
        for (int k = 0; k < 4; k++)
            if (4 * i + k < cols)
                to[k] = (uint16_t)h[k];
    }
}

cudaError_t sq_gpu_convert(cudaStream_t st, const float *x, int n_rows, int cols, void *y,
                           int dtype, int stride)
{
    const int quads = n_quads(cols), threads = threads_for(quads, MAP_THREADS);
    if (dtype != SQ_F16 && dtype != SQ_BF16)
        return cudaErrorInvalidValue;
    if (n_rows <= 0 || cols <= 0)
        return cudaSuccess;
    dim3 grid(n_rows, (quads + threads - 1) / threads);
    if (cols % 4 == 0 && stride % 4 == 0 && aligned16(x) && aligned16(y))
        convert_kernel<true><<<grid, threads, 0, st>>>({x, cols}, dtype, (uint16_t *)y, stride);
    else
        convert_kernel<false><<<grid, threads, 0, st>>>({x, cols}, dtype, (uint16_t *)y, stride);
    return cudaGetLastError();
}
