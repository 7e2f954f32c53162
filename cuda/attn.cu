/* Attention of any head size up to ATTN_D_MAX, for rows of decode and of tiles, plain and slow; and the way to the others. */
#include "cuda/attn.cuh"

#define ANY_THREADS 128

/* max or sum over the block; every thread gets it. */
template <bool MAX> __device__ __forceinline__ int block_reduce(int x)
{
    __shared__ int part[ANY_THREADS / 32];
    for (int i = 16; i; i /= 2) {
        const int y = __shfl_xor_sync(FULL_WARP, x, i);
        x = MAX ? max(x, y) : x + y;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[0];
    for (int i = 1; i < ANY_THREADS / 32; i++)
        x = MAX ? max(x, part[i]) : x + part[i];
    return x;
}

struct any_head {
    const int32_t *blocks;
    int kv_head, n_keys; /* keys that the row sees */
    const uint32_t *q;   /* [D / 4] */
};

__device__ __forceinline__ int any_score(const struct attn_args &p, const struct any_head &h, int j)
{
    const int quads = p.at.a.head_dim / 4;
    const uint32_t *k =
        (const uint32_t *)((const int8_t *)p.kv.k +
                           kv_at(p.kv, p.at.a.layer, h.blocks[j / SQ_KV_BLOCK], h.kv_head)) +
        j % SQ_KV_BLOCK * quads;
    int acc = 0;
    for (int i = 0; i < quads; i++)
        acc = __dp4a((int)h.q[i], (int)k[i], acc);
    return acc;
}

__device__ __forceinline__ int any_max(const struct attn_args &p, const struct any_head &h)
{
    int best = INT32_MIN;
    for (int j = (int)threadIdx.x; j < h.n_keys; j += ANY_THREADS)
        best = max(best, any_score(p, h, j));
    return block_reduce<true>(best);
}

/* Probabilities of a piece to prob [SQ_ATTN_PIECE], keys beyond the row's count as 0; returns m, and l. */
__device__ __forceinline__ float any_softmax(const struct attn_args &p, const struct any_head &h,
                                             int k0, uint8_t *prob, float *ret_l)
{
    int s[SQ_ATTN_PIECE / ANY_THREADS], best = INT32_MIN, sum = 0;
#pragma unroll
    for (int i = 0; i < SQ_ATTN_PIECE / ANY_THREADS; i++) {
        const int j = k0 + i * ANY_THREADS + (int)threadIdx.x;
        s[i] = j < h.n_keys ? any_score(p, h, j) : INT32_MIN;
        best = max(best, s[i]);
    }
    best = block_reduce<true>(best);
    const float m = __fmul_rn(__int2float_rn(best), p.at.a.score_mul);
#pragma unroll
    for (int i = 0; i < SQ_ATTN_PIECE / ANY_THREADS; i++) {
        const int at = i * ANY_THREADS + (int)threadIdx.x;
        const float x = __fsub_rn(__fmul_rn(__int2float_rn(s[i]), p.at.a.score_mul), m);
        const int e = k0 + at < h.n_keys ? __float2int_rn(__fmul_rn(127.0f, d_exp(x))) : 0;
        prob[at] = (uint8_t)e;
        sum += e;
    }
    *ret_l = __int2float_rn(block_reduce<false>(sum)); /* a barrier, too: prob is complete */
    return m;
}

/* sum over the piece of p v for one dimension */
__device__ __forceinline__ int any_value(const struct attn_args &p, const struct any_head &h,
                                         int k0, const uint8_t *prob, int d)
{
    const int n = min(h.n_keys - k0, SQ_ATTN_PIECE);
    int acc = 0;
    for (int j = 0; j < n; j += 4) {
        const size_t tile = kv_at(p.kv, p.at.a.layer, h.blocks[(k0 + j) / SQ_KV_BLOCK], h.kv_head);
        const int8_t *v = (const int8_t *)p.kv.v + tile + d * SQ_KV_BLOCK + j % SQ_KV_BLOCK;
        acc = __dp4a(*(const int *)v, *(const int *)(prob + j), acc);
    }
    return acc;
}

__device__ void any_one_head(const struct attn_args &p, const struct any_head &h, int row, int head,
                             uint8_t *prob)
{
    const int dim = p.at.a.head_dim;
    const float m = __fmul_rn(__int2float_rn(any_max(p, h)), p.at.a.score_mul);
    float acc[ATTN_D_MAX / ANY_THREADS] = {}, sum = 0.0f, l;
    for (int k0 = 0; k0 < h.n_keys; k0 += SQ_ATTN_PIECE) {
        const float w = d_exp(__fsub_rn(any_softmax(p, h, k0, prob, &l), m));
        sum = __fmaf_rn(w, l, sum);
#pragma unroll
        for (int i = 0; i < ATTN_D_MAX / ANY_THREADS; i++) {
            const int d = i * ANY_THREADS + (int)threadIdx.x;
            if (d < dim)
                acc[i] = __fmaf_rn(w, __int2float_rn(any_value(p, h, k0, prob, d)), acc[i]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < ATTN_D_MAX / ANY_THREADS; i++) {
        const int d = i * ANY_THREADS + (int)threadIdx.x;
        if (d < dim)
            put_out(p, row, head * dim + d, acc[i], sum);
    }
}

/* k and v of the row to the cache. */
__device__ __forceinline__ void any_write(const struct attn_args &p, const struct attn_row &r,
                                          int kv_head)
{
    const int dim = p.at.a.head_dim, slot = r.pos % SQ_KV_BLOCK;
    const size_t tile = kv_at(p.kv, p.at.a.layer, r.blocks[r.pos / SQ_KV_BLOCK], kv_head);
    for (int e = (int)threadIdx.x; e < dim; e += ANY_THREADS) {
        ((int8_t *)p.kv.k)[tile + slot * dim + e] =
            (int8_t)proj_code(p, r.row, r.pos, PART_K, kv_head, e);
        ((int8_t *)p.kv.v)[tile + e * SQ_KV_BLOCK + slot] =
            (int8_t)proj_code(p, r.row, r.pos, PART_V, kv_head, e);
    }
}

/* A block takes a row and the query heads of a KV head, one after the other. Keys are gone through twice, because the weights of pieces
 * need the maximum of all first. */
__global__ void __launch_bounds__(ANY_THREADS, 4)
    attend_any(const __grid_constant__ struct attn_args p, int tiles)
{
    __shared__ __align__(16) uint8_t prob[SQ_ATTN_PIECE];
    __shared__ __align__(16) int8_t q[ATTN_D_MAX];
    const int i = (int)blockIdx.x, kv_head = (int)blockIdx.y;
    const int group = p.at.a.n_heads / p.at.a.n_kv_heads;
    const struct attn_row r =
        tiles ? tile_row(p.s, i / SQ_GPU_TILE_ROWS, i % SQ_GPU_TILE_ROWS) : dec_row(p.s, i);
    if (r.row < 0)
        return;
    if (!tiles && p.at.fused_write)
        any_write(p, r, kv_head);
    for (int g = 0; g < group; g++) {
        const int head = kv_head * group + g;
        __syncthreads();
        for (int e = (int)threadIdx.x; e < p.at.a.head_dim; e += ANY_THREADS)
            q[e] = (int8_t)proj_code(p, r.row, r.pos, PART_Q, head, e);
        __syncthreads();
        const struct any_head h = {r.blocks, kv_head, r.pos + 1, (const uint32_t *)q};
        any_one_head(p, h, r.row, head, prob);
    }
}

cudaError_t attend_s8_any(cudaStream_t st, const struct sq_gpu_attend *a, bool tiles)
{
    const int n = tiles ? a->n_tiles * SQ_GPU_TILE_ROWS : a->n_dec;
    attend_any<<<dim3(n, a->a.n_kv_heads), ANY_THREADS, 0, st>>>(attn_args_of(a), tiles);
    return cudaGetLastError();
}

int sq_gpu_attend_part_floats(int head_dim)
{
    return part_floats(head_dim);
}

cudaError_t sq_gpu_attend(cudaStream_t st, const struct sq_gpu_attend *a)
{
    const bool has_tiles = attn_has_tiles(a->a.head_dim);
    cudaError_t e = cudaSuccess;
    if (a->a.head_dim > ATTN_D_MAX || (!a->kv->is_f32 && a->a.head_dim % 4 != 0) ||
        a->a.n_heads % a->a.n_kv_heads != 0)
        return cudaErrorInvalidValue;
    if (a->n_dec > 0)
        e = a->kv->is_f32 ? attend_f32_decode(st, a)
            : has_tiles   ? attend_s8_decode(st, a)
                          : attend_s8_any(st, a, false);
    if (e == cudaSuccess && a->n_tiles > 0)
        e = a->kv->is_f32 ? attend_f32_prefill(st, a)
            : has_tiles   ? attend_s8_prefill(st, a)
                          : attend_s8_any(st, a, true);
    return e;
}
