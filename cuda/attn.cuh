/* What the attention kernels and the cache's writers share. Shapes: kernels.h; numbers: engine/quant.h, "Attention" and "Rotary". */
#pragma once

#include "cuda/kernels.h"
#include "cuda/numbers.cuh"
#include "cuda/prims.cuh"

#define PIECE_BLOCKS (SQ_ATTN_PIECE / SQ_KV_BLOCK)
#define ATTN_D_MAX 256 /* head size: 127 * 127 * 256 stays below 2^22 */

/* struct sq_gpu_attend by value, as kernels take it. */
struct attn_args {
    struct sq_gpu_step s;
    struct sq_gpu_kv kv;
    struct sq_gpu_attend at; /* its s and kv are the host's: not to be used */
};

static inline struct attn_args attn_args_of(const struct sq_gpu_attend *a)
{
    return {*a->s, *a->kv, *a};
}

__device__ __forceinline__ int lane_id(void)
{
    return (int)(threadIdx.x % 32u);
}

__device__ __forceinline__ int warp_id(void)
{
    return (int)(threadIdx.x / 32u);
}

/* One query row: -1 for none. */
struct attn_row {
    int row, pos;
    const int32_t *blocks; /* of its sequence */
    int parts;             /* decode: where its partial results begin, in pieces */
};

__device__ __forceinline__ struct attn_row dec_row(const struct sq_gpu_step &s, int i)
{
    const int4 d = s.dec[i];
    return {d.x, d.y, s.blocks + d.z, d.w};
}

/* Row i of a tile. */
__device__ __forceinline__ struct attn_row tile_row(const struct sq_gpu_step &s, int tile, int i)
{
    const int4 t = s.tiles[tile];
    struct attn_row r = {-1, t.w + i, NULL, 0};
    if (t.z < 0 || i >= t.y)
        return r;
    r.row = t.x + i;
    r.blocks = s.blocks + s.seq_blocks[t.z];
    return r;
}

/* First element of the keys (and as many values) of a block of 32 tokens. */
__device__ __forceinline__ size_t kv_at(const struct sq_gpu_kv &kv, int layer, int block, int head)
{
    return (((size_t)layer * kv.n_blocks + block) * kv.n_kv_heads + head) *
           (size_t)(SQ_KV_BLOCK * kv.head_dim);
}

/* Four codes; -128, which a saturating matmul may give, counts as -127. */
__device__ __forceinline__ uint32_t clamp4(uint32_t x)
{
    uint32_t low_bits = (x & 0x7f7f7f7fu) + 0x7f7f7f7fu; /* bit 7: any of them set */
    return x + ((x & ~low_bits & 0x80808080u) >> 7);
}

__device__ __forceinline__ int clamp1(int code)
{
    return max(code, -127);
}

/* Element e of a head whose elements lie at x, rotated by its position. */
__device__ __forceinline__ float rotated(const struct sq_gpu_rope &r, const float *x, int pos,
                                         int e)
{
    const int half = r.rot_dim / 2, i = e < half ? e : e - half;
    if (e >= r.rot_dim)
        return x[e];
    const float c = r.cos[(size_t)pos * half + i], s = r.sin[(size_t)pos * half + i];
    const float a = x[i], b = x[i + half];
    return e < half ? d_rotated_a(a, b, c, s) : d_rotated_b(a, b, c, s);
}

enum attn_part { PART_Q, PART_K, PART_V };

/* First column of a part's head in the fused projection. */
__device__ __forceinline__ int part_col(const struct sq_gpu_attn &a, enum attn_part part, int head)
{
    const int before = part == PART_Q ? 0 : part == PART_K ? a.n_heads : a.n_heads + a.n_kv_heads;
    return (before + head) * a.head_dim;
}

/* Code of element e of a head in row `row`: from the projection's codes, or rotated and quantised on the fly. */
__device__ __forceinline__ int proj_code(const struct attn_args &p, int row, int pos,
                                         enum attn_part part, int head, int e)
{
    const struct sq_gpu_attn &a = p.at.a;
    const int col = part_col(a, part, head);
    if (!p.at.rope_x)
        return clamp1(p.at.q.q[(size_t)row * p.at.q.stride + col + e]);
    const float *x = p.at.rope_x + (size_t)row * p.at.ld_rope_x + col;
    if (part == PART_V)
        return d_sat_s8(__fmul_rn(x[e], a.v_inv));
    return d_sat_s8(__fmul_rn(rotated(p.at.rope, x, pos, e), part == PART_Q ? a.q_inv : a.k_inv));
}

/* The result of one element: codes or f32. */
__device__ __forceinline__ void put_out(const struct attn_args &p, int row, int col, float acc,
                                        float sum)
{
    const float y = __fmul_rn(__fdiv_rn(acc, sum), p.at.a.out_mul);
    if (p.at.out_f)
        p.at.out_f[(size_t)row * p.at.ld_out + col] = y;
    else
        p.at.out.q[(size_t)row * p.at.out.stride + col] = (int8_t)d_sat_s8(y);
}

/* The same for four neighbours; col a multiple of 4. */
__device__ __forceinline__ void put_out4(const struct attn_args &p, int row, int col, float4 acc,
                                         float sum)
{
    const float mul = p.at.a.out_mul;
    const float4 y =
        make_float4(__fmul_rn(__fdiv_rn(acc.x, sum), mul), __fmul_rn(__fdiv_rn(acc.y, sum), mul),
                    __fmul_rn(__fdiv_rn(acc.z, sum), mul), __fmul_rn(__fdiv_rn(acc.w, sum), mul));
    if (p.at.out_f)
        *(float4 *)(p.at.out_f + (size_t)row * p.at.ld_out + col) = y;
    else
        *(uint32_t *)(p.at.out.q + (size_t)row * p.at.out.stride + col) =
            d_codes4(y.x, y.y, y.z, y.w);
}

/* --- merging the pieces of a decode row --- */

/* Partial results of one (piece, head): o [D], then m and l, then padding to 16 bytes. Heads of a piece lie side by side. */
__host__ __device__ __forceinline__ int part_floats(int head_dim)
{
    return (head_dim + 3) / 4 * 4 + 4;
}

/* Counts this block as done with its partial results; true in all threads of the block that is the last of n, which may read all. */
__device__ __forceinline__ bool last_of(int32_t *counter, int n)
{
    __shared__ int is_last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(counter, 1) == n - 1;
        if (is_last)
            *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return is_last;
}

/* Of shared memory, or what other blocks have written. */
template <bool SHARED, class T> __device__ __forceinline__ T part_value(const T *at)
{
    return SHARED ? *at : __ldcg(at);
}

/* One warp merges 32 elements from d0 of a head; parts: of that head in the row's first piece, next piece `stride` floats further. */
template <bool SHARED = false>
__device__ __forceinline__ void merge_32(const struct attn_args &p, const float *parts,
                                         size_t stride, int n_pieces, int row, int head, int d0)
{
    const int dim = p.at.a.head_dim, lane = lane_id(), d = d0 + lane;
    const float *ml = parts + (dim + 3) / 4 * 4, *o = parts + (d < dim ? d : dim - 1);
    float m = -INFINITY, acc = 0.0f, sum = 0.0f;
    for (int i = lane; i < n_pieces; i += 32)
        m = fmaxf(m, part_value<SHARED>(ml + i * stride));
    m = d_warp_max(m);
    for (int i0 = 0; i0 < n_pieces; i0 += 32) {
        const int n = min(n_pieces - i0, 32);
        float w = 0.0f, l = 0.0f;
        if (lane < n) {
            const float2 x = part_value<SHARED>((const float2 *)(ml + (i0 + lane) * stride));
            w = d_exp(__fsub_rn(x.x, m)), l = x.y;
        }
#pragma unroll 8
        for (int i = 0; i < n; i++) {
            const float wi = __shfl_sync(FULL_WARP, w, i), li = __shfl_sync(FULL_WARP, l, i);
            sum = __fmaf_rn(wi, li, sum);
            acc = __fmaf_rn(wi, part_value<SHARED>(o + (i0 + i) * stride), acc);
        }
    }
    if (d < dim)
        put_out(p, row, head * dim + d, acc, sum);
}

/* --- copies in flight --- */

/* Steps begin .. end - 1 flow through N buffers: F(step, buffer) starts a copy, U(step, buffer) uses it. */
template <int N, class F, class U>
__device__ __forceinline__ void flow(int begin, int end, F fetch, U use)
{
#pragma unroll 1
    for (int i = 0; i < N - 1; i++) {
        if (begin + i < end)
            fetch(begin + i, i);
        p_cp_async_commit();
    }
    int buffer = 0;
    for (int step = begin; step < end; step++) {
        p_cp_async_wait<N - 2>();
        __syncthreads(); /* the copies of all threads are there, and all are done with the buffer before */
        const int free_one = buffer == 0 ? N - 1 : buffer - 1;
        if (step + N - 1 < end)
            fetch(step + N - 1, free_one);
        p_cp_async_commit();
        use(step, buffer);
        buffer = buffer == N - 1 ? 0 : buffer + 1;
    }
    __syncthreads();
}

/* --- launchers of the parts --- */

/* launch(attn_dim<D>()) for a head size D that has kernels of its own, other() else. */
template <int D> struct attn_dim {
    static const int value = D;
};

template <class L, class O> static inline cudaError_t attn_by_dim(int head_dim, L launch, O other)
{
    switch (head_dim) {
    case 64:
        return launch(attn_dim<64>());
    case 80:
        return launch(attn_dim<80>());
    case 96:
        return launch(attn_dim<96>());
    case 128:
        return launch(attn_dim<128>());
    default:
        return other();
    }
}

/* True where the head size has kernels of its own. Others go through the plain ones, up to ATTN_D_MAX. */
static inline bool attn_has_tiles(int head_dim)
{
    return attn_by_dim(
               head_dim, [](auto) { return cudaSuccess; }, [] { return cudaErrorInvalidValue; }) ==
           cudaSuccess;
}

cudaError_t attend_s8_decode(cudaStream_t st, const struct sq_gpu_attend *a);
cudaError_t attend_s8_prefill(cudaStream_t st, const struct sq_gpu_attend *a);
cudaError_t attend_s8_any(cudaStream_t st, const struct sq_gpu_attend *a, bool tiles);
cudaError_t attend_f32_decode(cudaStream_t st, const struct sq_gpu_attend *a);
cudaError_t attend_f32_prefill(cudaStream_t st, const struct sq_gpu_attend *a);
cudaError_t attend_f32_rows_of_tiles(cudaStream_t st, const struct sq_gpu_attend *a);
