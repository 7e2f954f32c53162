/* Decode attention over an int8 cache by tensor cores: a block takes a row, a KV head with all its query heads, and a piece of keys.
 *
 * All the piece's keys and values are requested first, straight into the registers of the mma operand that they are: 64 KiB on their way
 * at D = 128. Memory order serves the operands as it is, because a product does not care how k is numbered as long as both operands
 * agree: of 64 bytes of a row, lane q of four takes the 16 from 16 q, that is the words k = 4q.. and 16 + 4q.. of two mma.
 *   scores:  A = 16 keys x D, B = query heads (columns, 8 at a time): warp w has key tiles w, w + WARPS, ...
 *   values:  A = 16 dimensions x 256 tokens, B = probabilities: warp w has dimensions 16 w .. 16 w + 15, so D / 16 warps.
 * Partial results go to global memory; the block that comes last merges them in ascending order. */
#include "cuda/attn.cuh"

#define S_STRIDE (SQ_ATTN_PIECE + 4)  /* words: 2 rows are 8 banks apart */
#define P_STRIDE (SQ_ATTN_PIECE + 64) /* bytes: 2 rows are 16 banks apart */
#define PAIRS (SQ_ATTN_PIECE / 64)    /* of cache blocks: one 16-byte load of a warp's 8 rows */

template <int D> struct shape {
    static const int WARPS = D / 16, THREADS = 32 * WARPS;
    static const int K_TILES = (SQ_ATTN_PIECE / 16 + WARPS - 1) / WARPS;
    static const int WIDE = D / 64, REST = D % 64;  /* 64-byte parts of a row; 0, 16 or 32 bytes */
    static const int Q_STRIDE = D == 64 ? 64 : 192; /* two rows never meet in a bank */
    static const int O_STRIDE = D + 4;              /* a part as merge_32 wants it */
};

/* A row's 16 (and, of the rest, 8 or 4) bytes for this lane. */
template <int D> struct row_part {
    uint4 wide[shape<D>::WIDE];
    uint2 rest; /* 32: 8 bytes; 16: x only */

    __device__ __forceinline__ void load(const int8_t *row, int q)
    {
#pragma unroll
        for (int c = 0; c < shape<D>::WIDE; c++) {
            const uint4 *at = (const uint4 *)(row + 64 * c + 16 * q);
            wide[c] = *at;
        }
        const int8_t *at = row + 64 * shape<D>::WIDE;
        if (shape<D>::REST == 32)
            rest = *(const uint2 *)(at + 8 * q);
        else if (shape<D>::REST == 16)
            rest = make_uint2(*(const uint32_t *)(at + 4 * q), 0);
        else
            rest = make_uint2(0, 0);
    }

    __device__ __forceinline__ void clear(void)
    {
#pragma unroll
        for (int c = 0; c < shape<D>::WIDE; c++)
            wide[c] = make_uint4(0, 0, 0, 0);
        rest = make_uint2(0, 0);
    }
};

__device__ __forceinline__ void mma_pair(int32_t (&c)[4], const uint4 &lo, const uint4 &hi,
                                         const uint4 &b)
{
    const uint32_t first[4] = {lo.x, hi.x, lo.y, hi.y}, second[4] = {lo.z, hi.z, lo.w, hi.w};
    p_mma_s8(c, first, b.x, b.y);
    p_mma_s8(c, second, b.z, b.w);
}

struct shared_parts {
    int *s;        /* [G][S_STRIDE] scores; later float o [G][O_STRIDE], which are the parts */
    uint8_t *p;    /* [G][P_STRIDE] */
    int8_t *q;     /* [G][Q_STRIDE] */
    int8_t *k, *v; /* [D] of the row itself */
    int *l;        /* [G][2] */
};

__host__ __device__ __forceinline__ int round16(int n)
{
    return (n + 15) / 16 * 16;
}

/* Bytes; sets the pointers if there is memory. */
template <int D>
__host__ __device__ __forceinline__ int lay_out(int group, uint8_t *mem, struct shared_parts *ret)
{
    const int at_p = round16(group * 4 * S_STRIDE), at_q = at_p + group * P_STRIDE;
    const int at_k = at_q + group * shape<D>::Q_STRIDE, at_l = at_k + 2 * D;
    if (ret)
        *ret = {(int *)mem,
                mem + at_p,
                (int8_t *)mem + at_q,
                (int8_t *)mem + at_k,
                (int8_t *)mem + at_k + D,
                (int *)(mem + at_l)};
    return at_l + group * 2 * 4;
}

/* What a block is about. */
struct dec_piece {
    struct attn_row r;
    int kv_head, group, piece, n_pieces;
    int n;   /* keys of the piece that the row sees */
    int own; /* the row's own key in the piece, if it comes from the projection; else -1 */
    size_t tile_stride, tile0; /* in elements */
};

/* Where the piece's block i begins, in the keys and in the values. */
__device__ __forceinline__ size_t tile_at(const struct dec_piece &d, int i)
{
    return d.tile0 + d.r.blocks[d.piece * PIECE_BLOCKS + i] * d.tile_stride;
}

template <int D>
__device__ __forceinline__ void load_keys(const struct attn_args &p, const struct dec_piece &d,
                                          struct row_part<D> (&k)[shape<D>::K_TILES][2])
{
    const int lane = lane_id(), warp = warp_id();
#pragma unroll
    for (int i = 0; i < shape<D>::K_TILES; i++) {
        const int tile = warp + i * shape<D>::WARPS;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int key = 16 * tile + 8 * half + lane / 4;
            k[i][half].clear();
            if (key < d.n && key != d.own) /* d.n <= SQ_ATTN_PIECE */
                k[i][half].load((const int8_t *)p.kv.k + tile_at(d, tile / 2) +
                                    key % SQ_KV_BLOCK * D,
                                lane % 4);
        }
    }
}

template <int D>
__device__ __forceinline__ void load_values(const struct attn_args &p, const struct dec_piece &d,
                                            uint4 (&v)[PAIRS][2])
{
    const int lane = lane_id(), warp = warp_id(), q = lane % 4;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        v[i][0] = v[i][1] = make_uint4(0, 0, 0, 0);
        if (64 * i + 16 * q < d.n) {
            const int8_t *t = (const int8_t *)p.kv.v + tile_at(d, 2 * i + q / 2) +
                              (16 * warp + lane / 4) * SQ_KV_BLOCK + 16 * (q % 2);
            v[i][0] = *(const uint4 *)t;
            v[i][1] = *(const uint4 *)(t + 8 * SQ_KV_BLOCK);
        }
    }
}

/* The row's codes to shared memory; its own key and value to the cache. */
template <int D>
__device__ __forceinline__ void stage(const struct attn_args &p, const struct dec_piece &d,
                                      const struct shared_parts &sh)
{
    for (int i = (int)threadIdx.x; i < d.group * D; i += shape<D>::THREADS)
        sh.q[i / D * shape<D>::Q_STRIDE + i % D] =
            (int8_t)proj_code(p, d.r.row, d.r.pos, PART_Q, d.kv_head * d.group + i / D, i % D);
    if (d.own < 0)
        return;
    const int slot = d.own % SQ_KV_BLOCK;
    const size_t at = tile_at(d, d.own / SQ_KV_BLOCK);
    for (int i = (int)threadIdx.x; i < D; i += shape<D>::THREADS) {
        const int k = proj_code(p, d.r.row, d.r.pos, PART_K, d.kv_head, i);
        const int v = proj_code(p, d.r.row, d.r.pos, PART_V, d.kv_head, i);
        sh.k[i] = (int8_t)k;
        sh.v[i] = (int8_t)v;
        ((int8_t *)p.kv.k)[at + slot * D + i] = (int8_t)k;
        ((int8_t *)p.kv.v)[at + i * SQ_KV_BLOCK + slot] = (int8_t)v;
    }
}

/* x, or with its byte i (0..3) replaced by b. */
__device__ __forceinline__ uint32_t with_byte(uint32_t x, bool replace, int i, uint32_t b)
{
    return replace ? (x & ~(255u << 8 * i)) | b << 8 * i : x;
}

/* The row's own key and value among what was loaded. */
template <int D>
__device__ __forceinline__ void put_own(const struct dec_piece &d, const struct shared_parts &sh,
                                        struct row_part<D> (&k)[shape<D>::K_TILES][2],
                                        uint4 (&v)[PAIRS][2])
{
    const int lane = lane_id(), warp = warp_id();
#pragma unroll
    for (int i = 0; i < shape<D>::K_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (16 * (warp + i * shape<D>::WARPS) + 8 * half + lane / 4 == d.own)
                k[i][half].load(sh.k, lane % 4);
    /* word of the lane's 16 values (4 of each pair of blocks) */
    const int word = lane % 4 == d.own % 64 / 16 ? d.own / 64 * 4 + d.own % 16 / 4 : -1;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t own = (uint8_t)sh.v[16 * warp + 8 * half + lane / 4];
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            uint4 &x = v[i][half];
            x.x = with_byte(x.x, word == 4 * i, d.own % 4, own);
            x.y = with_byte(x.y, word == 4 * i + 1, d.own % 4, own);
            x.z = with_byte(x.z, word == 4 * i + 2, d.own % 4, own);
            x.w = with_byte(x.w, word == 4 * i + 3, d.own % 4, own);
        }
    }
}

/* Scores of heads h0 .. h0 + 7 of the group. */
template <int D>
__device__ __forceinline__ void scores(const struct dec_piece &d, const struct shared_parts &sh,
                                       const struct row_part<D> (&k)[shape<D>::K_TILES][2], int h0)
{
    const int lane = lane_id(), warp = warp_id();
    struct row_part<D> q;
    q.clear();
    if (h0 + lane / 4 < d.group)
        q.load(sh.q + (h0 + lane / 4) * shape<D>::Q_STRIDE, lane % 4);
#pragma unroll
    for (int i = 0; i < shape<D>::K_TILES; i++) {
        const int key0 = 16 * (warp + i * shape<D>::WARPS);
        int32_t c[4] = {};
        if (key0 >= d.n)
            break;
#pragma unroll
        for (int w = 0; w < shape<D>::WIDE; w++)
            mma_pair(c, k[i][0].wide[w], k[i][1].wide[w], q.wide[w]);
        if (shape<D>::REST) {
            const uint32_t a[4] = {k[i][0].rest.x, k[i][1].rest.x, k[i][0].rest.y, k[i][1].rest.y};
            p_mma_s8(c, a, q.rest.x, q.rest.y);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int h = h0 + lane % 4 * 2 + j % 2;
            if (h < d.group)
                sh.s[h * S_STRIDE + key0 + j / 2 * 8 + lane / 4] = c[j];
        }
    }
}

/* Four probabilities from key j on, of n, packed. */
__device__ __forceinline__ uint32_t probabilities(const int4 s, int j, int n, float mul, float m)
{
    const int x[4] = {s.x, s.y, s.z, s.w};
    int e[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float y = d_exp(__fsub_rn(__fmul_rn(__int2float_rn(x[i]), mul), m));
        e[i] = j + i < n ? __float2int_rn(__fmul_rn(127.0f, y)) : 0;
    }
    return d_pack4(e[0], e[1], e[2], e[3]);
}

/* One warp: p of the keys 4 lane + 128 i, i = i0 .. i1 - 1, of head h. The maximum is of all keys; l of these. Returns m. */
__device__ __forceinline__ float softmax(const struct shared_parts &sh, int h, int n, float mul,
                                         int i0, int i1, int *ret_l)
{
    const int lane = lane_id();
    int best = INT32_MIN, sum = 0;
    int4 s[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int j = 4 * lane + 128 * i;
        s[i] = make_int4(0, 0, 0, 0);
        if (j >= n)
            continue;
        s[i] = *(const int4 *)(sh.s + h * S_STRIDE + j);
        best = max(best, s[i].x);
        best = max(best, j + 1 < n ? s[i].y : INT32_MIN);
        best = max(best, j + 2 < n ? s[i].z : INT32_MIN);
        best = max(best, j + 3 < n ? s[i].w : INT32_MIN);
    }
#pragma unroll
    for (int i = 16; i; i /= 2)
        best = max(best, __shfl_xor_sync(FULL_WARP, best, i));
    const float m = __fmul_rn(__int2float_rn(best), mul);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (i < i0 || i >= i1)
            continue;
        const int j = 4 * lane + 128 * i;
        const uint32_t e = probabilities(s[i], j, n, mul, m);
        *(uint32_t *)(sh.p + h * P_STRIDE + j) = e;
        sum = __dp4a((int)e, 0x01010101, sum);
    }
#pragma unroll
    for (int i = 16; i; i /= 2)
        sum += __shfl_xor_sync(FULL_WARP, sum, i);
    *ret_l = sum;
    return m;
}

/* All heads' softmax by all warps; with few heads two warps share one. m_of [group]. */
template <int D>
__device__ __forceinline__ void all_softmax(const struct attn_args &p, const struct dec_piece &d,
                                            const struct shared_parts &sh, float *m_of)
{
    const int warp = warp_id(), per = 2 * d.group <= shape<D>::WARPS ? 2 : 1;
    for (int task = warp; task < d.group * per; task += shape<D>::WARPS) {
        const int h = task / per, i0 = per == 2 ? task % 2 : 0, i1 = per == 2 ? i0 + 1 : 2;
        int l;
        const float m = softmax(sh, h, d.n, p.at.a.score_mul, i0, i1, &l);
        if (lane_id() == 0) {
            sh.l[2 * h + i0] = l;
            if (per == 1)
                sh.l[2 * h + 1] = 0;
            if (i0 == 0)
                m_of[h] = m;
        }
    }
}

/* o of heads h0 .. h0 + 7 to shared memory, in floats: exact, below 2^22. */
template <int D>
__device__ __forceinline__ void values(const struct dec_piece &d, const struct shared_parts &sh,
                                       const uint4 (&v)[PAIRS][2], int h0)
{
    const int lane = lane_id(), warp = warp_id();
    int32_t c[4] = {};
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        uint4 b = make_uint4(0, 0, 0, 0);
        if (64 * i >= d.n)
            break;
        if (h0 + lane / 4 < d.group)
            b = *(const uint4 *)(sh.p + (h0 + lane / 4) * P_STRIDE + 64 * i + 16 * (lane % 4));
        mma_pair(c, v[i][0], v[i][1], b);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int h = h0 + lane % 4 * 2 + j % 2;
        if (h < d.group)
            ((float *)sh.s)[h * shape<D>::O_STRIDE + 16 * warp + j / 2 * 8 + lane / 4] =
                __int2float_rn(c[j]);
    }
}

/* What the shared memory holds becomes the result, or this piece's part of it. */
template <int D>
__device__ __forceinline__ void finish(const struct attn_args &p, const struct dec_piece &d,
                                       const struct shared_parts &sh, int i_dec)
{
    const float *o = (const float *)sh.s;
    const int n_heads = p.at.a.n_heads, head0 = d.kv_head * d.group;
    if (d.n_pieces == 1) {
        for (int i = (int)threadIdx.x; i < d.group * D; i += shape<D>::THREADS) {
            const float *of = o + i / D * shape<D>::O_STRIDE;
            put_out(p, d.r.row, head0 * D + i, of[i % D], of[D + 1]);
        }
        return;
    }
    const size_t stride = (size_t)n_heads * shape<D>::O_STRIDE;
    float *parts = p.at.parts + p.s.dec_parts[i_dec] * stride + head0 * shape<D>::O_STRIDE;
    float4 *to = (float4 *)(parts + d.piece * stride);
    for (int i = (int)threadIdx.x; i < d.group * (shape<D>::O_STRIDE / 4); i += shape<D>::THREADS)
        to[i] = ((const float4 *)o)[i];
    if (!last_of(p.at.counters + i_dec * p.at.a.n_kv_heads + d.kv_head, d.n_pieces))
        return;
    const int chunks = (D + 31) / 32;
    for (int i = warp_id(); i < d.group * chunks; i += shape<D>::WARPS)
        merge_32(p, parts + i / chunks * shape<D>::O_STRIDE, stride, d.n_pieces, d.r.row,
                 head0 + i / chunks, i % chunks * 32);
}

template <int D>
__global__ void __launch_bounds__(shape<D>::THREADS, 1024 / shape<D>::THREADS / 2)
    attend_decode(const __grid_constant__ struct attn_args p)
{
    extern __shared__ __align__(16) uint8_t mem[];
    const int i_dec = (int)blockIdx.z;
    struct dec_piece d;
    d.r = dec_row(p.s, i_dec);
    d.kv_head = (int)blockIdx.x, d.piece = (int)blockIdx.y;
    d.n_pieces = d.r.pos / SQ_ATTN_PIECE + 1;
    if (d.r.row < 0 || d.piece >= d.n_pieces)
        return;
    d.group = p.at.a.n_heads / p.at.a.n_kv_heads;
    d.n = min(d.r.pos + 1 - d.piece * SQ_ATTN_PIECE, SQ_ATTN_PIECE);
    d.own = p.at.fused_write && d.piece == d.n_pieces - 1 ? d.n - 1 : -1;
    d.tile0 = kv_at(p.kv, p.at.a.layer, 0, d.kv_head);
    d.tile_stride = (size_t)p.kv.n_kv_heads * SQ_KV_BLOCK * D;

    struct shared_parts sh;
    struct row_part<D> k[shape<D>::K_TILES][2];
    uint4 v[PAIRS][2];
    float *m_of = (float *)(mem + lay_out<D>(d.group, mem, &sh));
    load_keys<D>(p, d, k);
    load_values<D>(p, d, v);
    stage<D>(p, d, sh);
    __syncthreads();
    if (d.own >= 0)
        put_own<D>(d, sh, k, v);
    for (int h0 = 0; h0 < d.group; h0 += 8)
        scores<D>(d, sh, k, h0);
    __syncthreads();
    all_softmax<D>(p, d, sh, m_of);
    __syncthreads();
    for (int h0 = 0; h0 < d.group; h0 += 8)
        values<D>(d, sh, v, h0);
    for (int h = (int)threadIdx.x; h < d.group; h += shape<D>::THREADS)
        *(float4 *)((float *)sh.s + h * shape<D>::O_STRIDE + D) =
            make_float4(m_of[h], __int2float_rn(sh.l[2 * h] + sh.l[2 * h + 1]), 0.0f, 0.0f);
    __syncthreads();
    finish<D>(p, d, sh, i_dec);
}

template <int D> static cudaError_t decode(cudaStream_t st, const struct sq_gpu_attend *a)
{
    const int group = a->a.n_heads / a->a.n_kv_heads;
    const int bytes = lay_out<D>(group, NULL, NULL) + group * 4;
    if (bytes > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(attend_decode<D>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (e != cudaSuccess)
            return e;
    }
    attend_decode<D>
        <<<dim3(a->a.n_kv_heads, a->n_pieces, a->n_dec), shape<D>::THREADS, bytes, st>>>(
            attn_args_of(a));
    return cudaGetLastError();
}

cudaError_t attend_s8_decode(cudaStream_t st, const struct sq_gpu_attend *a)
{
    switch (a->a.head_dim) {
    case 64:
        return decode<64>(st, a);
    case 80:
        return decode<80>(st, a);
    case 96:
        return decode<96>(st, a);
    case 128:
        return decode<128>(st, a);
    default:
        return cudaErrorInvalidValue;
    }
}
