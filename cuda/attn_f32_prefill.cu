/* Prefill attention over a float cache: a block takes 32 rows and a query head. All sums have the canonical shapes of engine/quant.h, to
 * the bit, so this is plain f32 arithmetic, in register tiles.
 *
 * Scores: a warp has 4 rows, a thread 4 rows x 4 keys x 4 of the 16 lanes of the canonical dot; at the end four threads exchange lanes,
 * so that each has whole scores of one row. Values: a warp keeps its 4 rows, a thread 4 neighbouring dimensions. Pass 1 finds the largest
 * score of each row, pass 2 takes the pieces one after the other. */
#include "cuda/attn.cuh"

#define ROWS 32
#define THREADS 256
#define S_STRIDE (SQ_ATTN_PIECE + 8) /* 4 rows side by side never meet in a bank */

template <int D> struct f_shape {
    /* Words from row to row in shared memory, 16 more than a multiple of 32: of two rows, 64 bytes each never meet in a bank. */
    static const int STRIDE = D % 32 == 16 ? D : D + 16;
    /* For values a row of lanes takes 4 rows, or, if it is short, half a warp 2. */
    static const int COLS = D / 4, PER_WARP = COLS <= 16 ? 2 : 1;
    static const int T_ROWS = 4 / PER_WARP;
    static const int TILE = SQ_KV_BLOCK * STRIDE;
    static const int BYTES = (ROWS * STRIDE + 2 * TILE + ROWS * S_STRIDE) * 4;
};

struct f_job {
    const int32_t *blocks;
    const float *k, *v; /* of the layer and KV head: block 0 */
    int64_t tile_stride;
    int pos;    /* of the block's first row */
    int n_keys; /* that the last row sees */
    float mul;
};

template <int D>
__device__ __forceinline__ void f_fetch(const struct f_job &j, const float *base, int block,
                                        float *to)
{
    const float *from = base + j.blocks[block] * j.tile_stride;
#pragma unroll
    for (int i0 = 0; i0 < SQ_KV_BLOCK * f_shape<D>::COLS; i0 += THREADS) {
        const int i = i0 + (int)threadIdx.x;
        if (i0 + THREADS <= SQ_KV_BLOCK * f_shape<D>::COLS || i < SQ_KV_BLOCK * f_shape<D>::COLS)
            p_cp_async16(to + i / f_shape<D>::COLS * f_shape<D>::STRIDE + i % f_shape<D>::COLS * 4,
                         from + 4 * i);
    }
}

/* One step of the canonical tree with the lane `mask` away: the lower lane keeps the first half of x, the upper one the second. */
template <int N> __device__ __forceinline__ void exchange(float (&x)[N], int mask)
{
    const bool upper = lane_id() & mask;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const float give = upper ? x[i] : x[i + N / 2], keep = upper ? x[i + N / 2] : x[i];
        x[i] = __fadd_rn(keep, __shfl_xor_sync(FULL_WARP, give, mask));
    }
}

/* s[i]: score of the warp's row lane % 4 and key lane / 4 + 8 i of a block, times mul. */
template <int D>
__device__ __forceinline__ void f_block_scores(const float *q, const float *k, float mul,
                                               float (&s)[4])
{
    const int part = lane_id() % 4, stride = f_shape<D>::STRIDE;
    float acc[64] = {}; /* [row][key][lane] */
    q += 4 * warp_id() * stride + 4 * part;
    k += lane_id() / 4 * stride + 4 * part;
#pragma unroll 1
    for (int d = 0; d < D; d += 16) {
        float4 a[4], b[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i] = *(const float4 *)(q + i * stride + d);
            b[i] = *(const float4 *)(k + 8 * i * stride + d);
        }
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float *const c = acc + 4 * i;
            c[0] = __fmaf_rn(a[i / 4].x, b[i % 4].x, c[0]);
            c[1] = __fmaf_rn(a[i / 4].y, b[i % 4].y, c[1]);
            c[2] = __fmaf_rn(a[i / 4].z, b[i % 4].z, c[2]);
            c[3] = __fmaf_rn(a[i / 4].w, b[i % 4].w, c[3]);
        }
    }
    exchange<64>(acc, 2); /* lanes l and l + 8: rows 0, 1 or 2, 3 stay */
    float half[32];
#pragma unroll
    for (int i = 0; i < 32; i++)
        half[i] = acc[i];
    exchange<32>(half, 1); /* l and l + 4: one row stays */
#pragma unroll
    for (int i = 0; i < 4; i++)
        s[i] = __fmul_rn(__fadd_rn(__fadd_rn(half[4 * i], half[4 * i + 2]),
                                   __fadd_rn(half[4 * i + 1], half[4 * i + 3])),
                         mul);
}

/* What a half warp knows of its rows 2 h and 2 h + 1 of the warp's four. */
struct f_rows {
    float top[2], w[2], sum[2];
};

/* The warp's rows of s [4][S_STRIDE] become probabilities of a piece, 0 for keys that a row does not see; n: keys in s. */
__device__ __forceinline__ void f_piece_softmax(float *s, int n, int sees0, struct f_rows &r)
{
    const int lane = lane_id() % 16, h = lane_id() / 16;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float *const x = s + (2 * h + i) * S_STRIDE;
        const int sees = min(sees0 + 2 * h + i, n);
        float m = -INFINITY, l = 0.0f;
        for (int j = lane; j < sees; j += 16)
            m = fmaxf(m, x[j]);
        for (int mask = 8; mask; mask /= 2)
            m = fmaxf(m, __shfl_xor_sync(FULL_WARP, m, mask));
        for (int j = lane; j < n; j += 16) {
            const float p = j < sees ? d_exp(__fsub_rn(x[j], m)) : 0.0f;
            x[j] = p;
            l = j < sees ? __fadd_rn(l, p) : l;
        }
        l = d_sum16(l);
        r.w[i] = sees > 0 ? d_exp(__fsub_rn(m, r.top[i])) : 0.0f;
        r.sum[i] = __fmaf_rn(r.w[i], l, r.sum[i]);
    }
    __syncwarp();
}

/* w or sum of the warp's row i, to all lanes. */
__device__ __forceinline__ float f_of_row(const float (&x)[2], int i)
{
    return __shfl_sync(FULL_WARP, i % 2 ? x[1] : x[0], i / 2 * 16);
}

/* o += p v over a block, in the order of keys. p: of the thread's first row; sees: keys of the block that this row sees. */
template <int D>
__device__ __forceinline__ void f_block_values(const float *p, const float *v, int sees,
                                               float4 (&o)[f_shape<D>::T_ROWS])
{
#pragma unroll 2
    for (int j = 0; j < SQ_KV_BLOCK; j += 4) {
        float4 w[f_shape<D>::T_ROWS];
#pragma unroll
        for (int r = 0; r < f_shape<D>::T_ROWS; r++)
            w[r] = *(const float4 *)(p + r * S_STRIDE + j);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float4 x = *(const float4 *)(v + (j + k) * f_shape<D>::STRIDE);
#pragma unroll
            for (int r = 0; r < f_shape<D>::T_ROWS; r++) {
                const float a = k == 0 ? w[r].x : k == 1 ? w[r].y : k == 2 ? w[r].z : w[r].w;
                if (j + k >= sees + r)
                    continue; /* not even by 0: what lies there may be NaN */
                o[r].x = __fmaf_rn(a, x.x, o[r].x);
                o[r].y = __fmaf_rn(a, x.y, o[r].y);
                o[r].z = __fmaf_rn(a, x.z, o[r].z);
                o[r].w = __fmaf_rn(a, x.w, o[r].w);
            }
        }
    }
}

/* The largest score of the warp's row lane % 4. */
template <int D>
__device__ __forceinline__ float f_top(const struct f_job &j, const float *q, float *tiles)
{
    float m = -INFINITY;
    const auto fetch = [&](int block, int buffer) {
        f_fetch<D>(j, j.k, block, tiles + buffer * f_shape<D>::TILE);
    };
    flow<2>(0, (j.n_keys + SQ_KV_BLOCK - 1) / SQ_KV_BLOCK, fetch, [&](int block, int buffer) {
        float s[4];
        f_block_scores<D>(q, tiles + buffer * f_shape<D>::TILE, j.mul, s);
        const int last = j.pos + 4 * warp_id() + lane_id() % 4 - block * SQ_KV_BLOCK;
#pragma unroll
        for (int i = 0; i < 4; i++)
            m = lane_id() / 4 + 8 * i <= last ? fmaxf(m, s[i]) : m;
    });
    for (int mask = 4; mask <= 16; mask *= 2)
        m = fmaxf(m, __shfl_xor_sync(FULL_WARP, m, mask));
    return m;
}

/* One piece: its blocks of keys, then those of values, flow through the two tiles. */
template <int D>
__device__ __forceinline__ void f_piece_of_rows(const struct f_job &j, int k0, const float *q,
                                                float *tiles, float *s, struct f_rows &r,
                                                float4 (&acc)[f_shape<D>::T_ROWS])
{
    typedef struct f_shape<D> shape;
    const int n_blocks = (min(j.n_keys - k0, SQ_ATTN_PIECE) + SQ_KV_BLOCK - 1) / SQ_KV_BLOCK;
    const int lane = lane_id(), row0 = shape::PER_WARP == 2 ? lane / 16 * 2 : 0;
    const int col = shape::PER_WARP == 2 ? lane % 16 : lane;
    const int pos = j.pos + 4 * warp_id() - k0; /* of the warp's first row, in the piece */
    float *const own = s + 4 * warp_id() * S_STRIDE;
    float4 o[shape::T_ROWS] = {};
    const auto fetch = [&](int i, int buffer) {
        const int block = k0 / SQ_KV_BLOCK + (i < n_blocks ? i : i - n_blocks);
        f_fetch<D>(j, i < n_blocks ? j.k : j.v, block, tiles + buffer * shape::TILE);
    };
    flow<2>(0, 2 * n_blocks, fetch, [&](int i, int buffer) {
        const float *tile = tiles + buffer * shape::TILE;
        if (i < n_blocks) {
            float x[4];
            f_block_scores<D>(q, tile, j.mul, x);
#pragma unroll
            for (int k = 0; k < 4; k++)
                own[lane % 4 * S_STRIDE + i * SQ_KV_BLOCK + lane / 4 + 8 * k] = x[k];
            return;
        }
        i -= n_blocks;
        if (i == 0) {
            __syncwarp();
            f_piece_softmax(own, n_blocks * SQ_KV_BLOCK, pos + 1, r);
        }
        if (col < shape::COLS)
            f_block_values<D>(own + row0 * S_STRIDE + i * SQ_KV_BLOCK, tile + 4 * col,
                              pos + row0 + 1 - i * SQ_KV_BLOCK, o);
    });
#pragma unroll
    for (int i = 0; i < shape::T_ROWS; i++) {
        const float w = shape::PER_WARP == 2 ? r.w[i] : f_of_row(r.w, i);
        acc[i].x = __fmaf_rn(w, o[i].x, acc[i].x);
        acc[i].y = __fmaf_rn(w, o[i].y, acc[i].y);
        acc[i].z = __fmaf_rn(w, o[i].z, acc[i].z);
        acc[i].w = __fmaf_rn(w, o[i].w, acc[i].w);
    }
}

template <int D>
__global__ void __launch_bounds__(THREADS)
    attend_f32_tiles(const __grid_constant__ struct attn_args p)
{
    typedef struct f_shape<D> shape;
    extern __shared__ __align__(16) float f_mem[];
    float *const q = f_mem, *const tiles = q + ROWS * shape::STRIDE;
    float *const s = tiles + 2 * shape::TILE;
    const int per_tile = SQ_GPU_TILE_ROWS / ROWS, i = (int)(gridDim.y - 1 - blockIdx.y);
    const int4 tile = p.s.tiles[i / per_tile];
    const int row0 = i % per_tile * ROWS, n_rows = min(tile.y - row0, ROWS);
    const int head = (int)blockIdx.x, kv_head = head / (p.at.a.n_heads / p.at.a.n_kv_heads);
    if (tile.z < 0 || n_rows <= 0)
        return;
    struct f_job j;
    j.blocks = p.s.blocks + p.s.seq_blocks[tile.z];
    j.tile_stride = (int64_t)p.kv.n_kv_heads * SQ_KV_BLOCK * D;
    j.k = (const float *)p.kv.k + kv_at(p.kv, p.at.a.layer, 0, kv_head);
    j.v = (const float *)p.kv.v + kv_at(p.kv, p.at.a.layer, 0, kv_head);
    j.pos = tile.w + row0, j.n_keys = j.pos + n_rows, j.mul = p.at.a.score_mul;
    for (int x = (int)threadIdx.x; x < ROWS * shape::COLS; x += THREADS) {
        const int row = x / shape::COLS, col = x % shape::COLS * 4;
        float4 f = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < n_rows)
            f = *(const float4 *)(p.at.qf + (size_t)(tile.x + row0 + row) * p.at.ld_qf + head * D +
                                  col);
        *(float4 *)(q + row * shape::STRIDE + col) = f;
    }
    __syncthreads();
    struct f_rows r = {};
    const float top = f_top<D>(j, q, tiles);
    r.top[0] = __shfl_sync(FULL_WARP, top, lane_id() / 16 * 2);
    r.top[1] = __shfl_sync(FULL_WARP, top, lane_id() / 16 * 2 + 1);
    float4 acc[shape::T_ROWS] = {};
    for (int k0 = 0; k0 < j.n_keys; k0 += SQ_ATTN_PIECE)
        f_piece_of_rows<D>(j, k0, q, tiles, s, r, acc);
    const int first = shape::PER_WARP == 2 ? lane_id() / 16 * 2 : 0;
    const int col = 4 * (shape::PER_WARP == 2 ? lane_id() % 16 : lane_id());
#pragma unroll
    for (int x = 0; x < shape::T_ROWS; x++) {
        const float sum = shape::PER_WARP == 2 ? r.sum[x] : f_of_row(r.sum, x);
        const int row = 4 * warp_id() + first + x;
        if (row < n_rows && col < D)
            put_out4(p, tile.x + row0 + row, head * D + col, acc[x], sum);
    }
}

template <int D> static cudaError_t f_prefill(cudaStream_t st, const struct sq_gpu_attend *a)
{
    cudaError_t e = cudaFuncSetAttribute(
        attend_f32_tiles<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, f_shape<D>::BYTES);
    if (e != cudaSuccess) { /* a device with little shared memory */
        (void)cudaGetLastError();
        return attend_f32_rows_of_tiles(st, a);
    }
    attend_f32_tiles<D><<<dim3(a->a.n_heads, a->n_tiles * (SQ_GPU_TILE_ROWS / ROWS)), THREADS,
                          f_shape<D>::BYTES, st>>>(attn_args_of(a));
    return cudaGetLastError();
}

cudaError_t attend_f32_prefill(cudaStream_t st, const struct sq_gpu_attend *a)
{
    const bool even = a->ld_qf % 4 == 0 && a->ld_out % 4 == 0;
    return attn_by_dim(
        even ? a->a.head_dim : 0, [=](auto d) { return f_prefill<decltype(d)::value>(st, a); },
        [=] { return attend_f32_rows_of_tiles(st, a); });
}
