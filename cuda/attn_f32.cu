/* Attention over a float cache (calibration, and models of float weights): the canonical shapes of engine/quant.h, to the bit. */
#include "cuda/attn.cuh"

#define F_THREADS 128
#define F_WARPS (F_THREADS / 32)

struct f_head {
    const int32_t *blocks;
    int kv_head, n_keys;
    const float *q; /* [D], shared */
};

/* Scores of keys k0 .. k0 + n - 1 to s. A half warp takes a key: lane l is lane l of the canonical dot. */
__device__ __forceinline__ void f_scores(const struct attn_args &p, const struct f_head &h, int k0,
                                         int n, float *s)
{
    const int dim = p.at.a.head_dim, lane = (int)threadIdx.x % 16;
    for (int j0 = 0; j0 < n; j0 += F_THREADS / 16) {
        const int j = j0 + (int)threadIdx.x / 16;
        float acc = 0.0f;
        if (j < n) {
            const size_t tile =
                kv_at(p.kv, p.at.a.layer, h.blocks[(k0 + j) / SQ_KV_BLOCK], h.kv_head);
            const float *k = (const float *)p.kv.k + tile + (k0 + j) % SQ_KV_BLOCK * dim;
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
    for (int j = (int)threadIdx.x % 32; j < n; j += 32)
        m = fmaxf(m, s[j]);
    return d_warp_max(m);
}

/* s becomes p. Every half warp sums all of them in the canonical shape; the sum is the same in all threads. */
__device__ __forceinline__ float f_softmax(float *s, int n, float m)
{
    __syncthreads(); /* all have found the maximum */
    for (int j = (int)threadIdx.x; j < n; j += F_THREADS)
        s[j] = d_exp(__fsub_rn(s[j], m));
    __syncthreads();
    float l = 0.0f;
    for (int j = (int)threadIdx.x % 16; j < n; j += 16)
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
        const int len = min(n - j0, SQ_KV_BLOCK);
#pragma unroll 8
        for (int j = 0; j < len; j++)
            acc = __fmaf_rn(prob[j0 + j], v[j * dim], acc);
    }
    return acc;
}

__device__ void f_one_head(const struct attn_args &p, const struct f_head &h, int row, int head,
                           float *s)
{
    const int dim = p.at.a.head_dim;
    float acc[ATTN_D_MAX / F_THREADS] = {}, sum = 0.0f, m = -INFINITY;
    for (int k0 = 0; k0 < h.n_keys; k0 += SQ_ATTN_PIECE) {
        const int n = min(h.n_keys - k0, SQ_ATTN_PIECE);
        f_scores(p, h, k0, n, s);
        __syncthreads();
        m = fmaxf(m, f_max(s, n));
        __syncthreads();
    }
    for (int k0 = 0; k0 < h.n_keys; k0 += SQ_ATTN_PIECE) {
        const int n = min(h.n_keys - k0, SQ_ATTN_PIECE);
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

__global__ void __launch_bounds__(F_THREADS)
    attend_f32_rows(const __grid_constant__ struct attn_args p, int tiles)
{
    __shared__ float s[SQ_ATTN_PIECE], q[ATTN_D_MAX];
    const int i = (int)blockIdx.x, kv_head = (int)blockIdx.y;
    const int group = p.at.a.n_heads / p.at.a.n_kv_heads;
    const struct attn_row r = tiles ? tile_row(p.s, i / SQ_GPU_TILE_ROWS, i % SQ_GPU_TILE_ROWS)
                                    : dec_row(p.s, i);
    if (r.row < 0)
        return;
    if (!tiles && p.at.fused_write)
        f_write(p, r, kv_head);
    for (int g = 0; g < group; g++) {
        const int head = kv_head * group + g, dim = p.at.a.head_dim;
        __syncthreads();
        for (int e = (int)threadIdx.x; e < dim; e += F_THREADS)
            q[e] = p.at.qf[(size_t)r.row * p.at.ld_qf + head * dim + e];
        __syncthreads();
        const struct f_head h = {r.blocks, kv_head, r.pos + 1, q};
        f_one_head(p, h, r.row, head, s);
    }
}

cudaError_t attend_f32(cudaStream_t st, const struct sq_gpu_attend *a)
{
    const int kv = a->a.n_kv_heads;
    if (a->n_dec > 0)
        attend_f32_rows<<<dim3(a->n_dec, kv), F_THREADS, 0, st>>>(attn_args_of(a), 0);
    if (a->n_tiles > 0)
        attend_f32_rows<<<dim3(a->n_tiles * SQ_GPU_TILE_ROWS, kv), F_THREADS, 0, st>>>(
            attn_args_of(a), 1);
    return cudaGetLastError();
}
