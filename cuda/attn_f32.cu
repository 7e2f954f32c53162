/* Attention of single rows over a float cache (calibration, and models of float weights), in the canonical shapes of engine/quant.h, to
 * the bit. In decode a block takes a row, a KV head and a piece of keys, and the last one merges, as over an int8 cache; rows of tiles
 * whose head size has no kernel of its own take all pieces one after the other. */
#include "cuda/attn.cuh"

#define F_THREADS 128

struct f_head {
    const int32_t *blocks;
    int kv_head;
    const float *q; /* [D], shared */
};

/* Scores of keys k0 .. k0 + n - 1 to s. A half warp takes a key: lane l is lane l of the canonical dot. */
__device__ __forceinline__ void f_scores(const struct attn_args &p, const struct f_head &h, int k0,
                                         int n, float *s)
{
    const int dim = p.at.a.head_dim, lane = lane_id() % 16;
#pragma unroll 4
    for (int j0 = 0; j0 < n; j0 += F_THREADS / 16) {
        const int j = j0 + (int)threadIdx.x / 16;
        float acc = 0.0f;
        if (j < n) {
            const size_t tile =
                kv_at(p.kv, p.at.a.layer, h.blocks[(k0 + j) / SQ_KV_BLOCK], h.kv_head);
            const float *k = (const float *)p.kv.k + tile + (k0 + j) % SQ_KV_BLOCK * dim;
#pragma unroll 4
            for (int d = lane; d < dim; d += 16)
                acc = __fmaf_rn(h.q[d], k[d], acc);
        }
        acc = __fmul_rn(d_sum16(acc), p.at.a.score_mul);
        if (lane == 0 && j < n)
            s[j] = acc;
    }
}

/* Maximum of n scores, by every warp for itself. */
__device__ __forceinline__ float f_max(const float *s, int n)
{
    float m = -INFINITY;
    for (int j = lane_id(); j < n; j += 32)
        m = fmaxf(m, s[j]);
    return d_warp_max(m);
}

/* s becomes p. Every half warp sums all of them in the canonical shape: the sum is the same in all threads. */
__device__ __forceinline__ float f_softmax(float *s, int n, float m)
{
    __syncthreads(); /* all have found the maximum */
    for (int j = (int)threadIdx.x; j < n; j += F_THREADS)
        s[j] = d_exp(__fsub_rn(s[j], m));
    __syncthreads();
    float l = 0.0f;
    for (int j = lane_id() % 16; j < n; j += 16)
        l = __fadd_rn(l, s[j]);
    return d_sum16(l);
}

/* o of dimension d: one chain over the keys in ascending order. */
__device__ __forceinline__ float f_value(const struct attn_args &p, const struct f_head &h, int k0,
                                         int n, const float *prob, int d)
{
    const int dim = p.at.a.head_dim;
    float acc = 0.0f;
    for (int j0 = 0; j0 < n; j0 += SQ_KV_BLOCK) {
        const float *v = (const float *)p.kv.v + d +
                         kv_at(p.kv, p.at.a.layer, h.blocks[(k0 + j0) / SQ_KV_BLOCK], h.kv_head);
        if (n - j0 < SQ_KV_BLOCK) {
            for (int j = j0; j < n; j++)
                acc = __fmaf_rn(prob[j], v[(j - j0) * dim], acc);
            break;
        }
        float x[SQ_KV_BLOCK]; /* all on their way at once */
#pragma unroll
        for (int j = 0; j < SQ_KV_BLOCK; j++)
            x[j] = v[j * dim];
#pragma unroll
        for (int j = 0; j < SQ_KV_BLOCK; j++)
            acc = __fmaf_rn(prob[j0 + j], x[j], acc);
    }
    return acc;
}

__device__ __forceinline__ void f_load_query(const struct attn_args &p, int row, int head, float *q)
{
    const int dim = p.at.a.head_dim;
    __syncthreads();
    for (int e = (int)threadIdx.x; e < dim; e += F_THREADS)
        q[e] = p.at.qf[(size_t)row * p.at.ld_qf + head * dim + e];
    __syncthreads();
}

/* --- decode --- */

/* k and v of the row to the cache. */
__device__ __forceinline__ void f_write(const struct attn_args &p, const struct attn_row &r,
                                        int kv_head)
{
    const int dim = p.at.a.head_dim;
    const size_t at = kv_at(p.kv, p.at.a.layer, r.blocks[r.pos / SQ_KV_BLOCK], kv_head) +
                      r.pos % SQ_KV_BLOCK * dim;
    const float *x = p.at.qf + (size_t)r.row * p.at.ld_qf;
    for (int e = (int)threadIdx.x; e < dim; e += F_THREADS) {
        ((float *)p.kv.k)[at + e] = x[part_col(p.at.a, PART_K, kv_head) + e];
        ((float *)p.kv.v)[at + e] = x[part_col(p.at.a, PART_V, kv_head) + e];
    }
}

/* One head of one piece: to its part, or the result if there is one piece. */
__device__ __forceinline__ void f_piece(const struct attn_args &p, const struct f_head &h, int k0,
                                        int n, float *s, float *part, int row, int head)
{
    const int dim = p.at.a.head_dim, ml = (dim + 3) / 4 * 4;
    f_scores(p, h, k0, n, s);
    __syncthreads();
    const float m = f_max(s, n), l = f_softmax(s, n, m);
    for (int d = (int)threadIdx.x; d < dim; d += F_THREADS) {
        const float o = f_value(p, h, k0, n, s, d);
        if (part)
            part[d] = o;
        else
            put_out(p, row, head * dim + d, o, l);
    }
    if (part && threadIdx.x == 0)
        part[ml] = m, part[ml + 1] = l;
}

__global__ void __launch_bounds__(F_THREADS, 4)
    attend_f32_pieces(const __grid_constant__ struct attn_args p)
{
    __shared__ float s[SQ_ATTN_PIECE], q[ATTN_D_MAX];
    const int i_dec = (int)blockIdx.z, kv_head = (int)blockIdx.x, piece = (int)blockIdx.y;
    const struct attn_row r = dec_row(p.s, i_dec);
    const int n_pieces = r.pos / SQ_ATTN_PIECE + 1, k0 = piece * SQ_ATTN_PIECE;
    if (r.row < 0 || piece >= n_pieces)
        return;
    const int group = p.at.a.n_heads / p.at.a.n_kv_heads, head0 = kv_head * group;
    const int floats = part_floats(p.at.a.head_dim), n = min(r.pos + 1 - k0, SQ_ATTN_PIECE);
    const size_t stride = (size_t)p.at.a.n_heads * floats;
    float *parts = n_pieces == 1 ? NULL : p.at.parts + r.parts * stride + head0 * floats;
    if (p.at.fused_write && piece == n_pieces - 1)
        f_write(p, r, kv_head); /* a barrier follows */
    for (int g = 0; g < group; g++) {
        const struct f_head h = {r.blocks, kv_head, q};
        f_load_query(p, r.row, head0 + g, q);
        f_piece(p, h, k0, n, s, parts ? parts + piece * stride + g * floats : NULL, r.row,
                head0 + g);
    }
    if (!parts || !last_of(p.at.counters + i_dec * p.at.a.n_kv_heads + kv_head, n_pieces))
        return;
    const int chunks = (p.at.a.head_dim + 31) / 32;
    for (int i = warp_id(); i < group * chunks; i += F_THREADS / 32)
        merge_32(p, parts + i / chunks * floats, stride, n_pieces, r.row, head0 + i / chunks,
                 i % chunks * 32);
}

cudaError_t attend_f32_decode(cudaStream_t st, const struct sq_gpu_attend *a)
{
    attend_f32_pieces<<<dim3(a->a.n_kv_heads, a->n_pieces, a->n_dec), F_THREADS, 0, st>>>(
        attn_args_of(a));
    return cudaGetLastError();
}

/* --- rows of tiles, one by one --- */

/* Keys are gone through twice: the weights of pieces need the maximum of all. */
__device__ void f_all_pieces(const struct attn_args &p, const struct f_head &h, int n_keys, int row,
                             int head, float *s)
{
    const int dim = p.at.a.head_dim;
    float acc[ATTN_D_MAX / F_THREADS] = {}, sum = 0.0f, m = -INFINITY;
    for (int k0 = 0; k0 < n_keys; k0 += SQ_ATTN_PIECE) {
        const int n = min(n_keys - k0, SQ_ATTN_PIECE);
        f_scores(p, h, k0, n, s);
        __syncthreads();
        m = fmaxf(m, f_max(s, n));
        __syncthreads();
    }
    for (int k0 = 0; k0 < n_keys; k0 += SQ_ATTN_PIECE) {
        const int n = min(n_keys - k0, SQ_ATTN_PIECE);
        f_scores(p, h, k0, n, s);
        __syncthreads();
        const float mi = f_max(s, n), l = f_softmax(s, n, mi), w = d_exp(__fsub_rn(mi, m));
        sum = __fmaf_rn(w, l, sum);
#pragma unroll
        for (int i = 0; i < ATTN_D_MAX / F_THREADS; i++) {
            const int d = i * F_THREADS + (int)threadIdx.x;
            if (d < dim)
                acc[i] = __fmaf_rn(w, f_value(p, h, k0, n, s, d), acc[i]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < ATTN_D_MAX / F_THREADS; i++) {
        const int d = i * F_THREADS + (int)threadIdx.x;
        if (d < dim)
            put_out(p, row, head * dim + d, acc[i], sum);
    }
}

__global__ void __launch_bounds__(F_THREADS, 4)
    attend_f32_rows(const __grid_constant__ struct attn_args p)
{
    __shared__ float s[SQ_ATTN_PIECE], q[ATTN_D_MAX];
    const int i = (int)blockIdx.x, head = (int)blockIdx.y;
    const struct attn_row r = tile_row(p.s, i / SQ_GPU_TILE_ROWS, i % SQ_GPU_TILE_ROWS);
    if (r.row < 0)
        return;
    f_load_query(p, r.row, head, q);
    const struct f_head h = {r.blocks, head / (p.at.a.n_heads / p.at.a.n_kv_heads), q};
    f_all_pieces(p, h, r.pos + 1, r.row, head, s);
}

cudaError_t attend_f32_rows_of_tiles(cudaStream_t st, const struct sq_gpu_attend *a)
{
    attend_f32_rows<<<dim3(a->n_tiles * SQ_GPU_TILE_ROWS, a->a.n_heads), F_THREADS, 0, st>>>(
        attn_args_of(a));
    return cudaGetLastError();
}
