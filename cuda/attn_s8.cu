/* Decode attention over an int8 cache by tensor cores: a block takes a row, a KV head with all its query heads, and neighbouring pieces of
 * its keys, one after the other.
 *
 * A piece's keys and values are requested straight into the registers of the mma operand that they are: 64 KiB on their way at D = 128.
 * The next piece's keys are requested as soon as these ones are used, before the softmax, its values likewise. Memory order serves the
 * operands as it is, because a product does not care how k is numbered as long as both operands agree: of 64 bytes of a row, lane q of
 * four takes the 16 from 16 q, that is the words k = 4q.. and 16 + 4q.. of two mma.
 *   scores:  A = 16 keys x D, B = query heads (columns, 8 at a time): warp w has key tiles w, w + WARPS, ...
 *   values:  A = 16 dimensions x 256 tokens, B = probabilities: warp w has dimensions 16 w .. 16 w + 15, so D / 16 warps.
 * Partial results of the pieces are merged in ascending order: in shared memory where the block has all pieces of its row, else in global
 * memory by the block that comes last. How pieces are shared out changes no bit. */
#include "cuda/attn.cuh"

#define S_STRIDE (SQ_ATTN_PIECE + 4)  /* words: 2 rows are 8 banks apart */
#define P_STRIDE (SQ_ATTN_PIECE + 64) /* bytes: 2 rows are 16 banks apart */
#define PAIRS (SQ_ATTN_PIECE / 64)    /* of cache blocks: one 16-byte load of a warp's 8 rows */

template <int D> struct shape {
    static const int WARPS = D / 16, THREADS = 32 * WARPS;
    static const int BLOCKS = 1024 / THREADS / 2; /* resident on a multiprocessor, by registers */
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
    int *s;        /* [G][S_STRIDE] scores */
    uint8_t *p;    /* [G][P_STRIDE] */
    int8_t *q;     /* [G][Q_STRIDE] */
    int8_t *k, *v; /* [D] of the row itself */
    int *l;        /* [G][2] */
    float *m;      /* [G] */
    float *parts;  /* [pieces][G][O_STRIDE] where the block has them all */
};

__host__ __device__ __forceinline__ int div_up(int n, int by)
{
    return (n + by - 1) / by;
}

__host__ __device__ __forceinline__ int round16(int n)
{
    return div_up(n, 16) * 16;
}

/* Bytes before the parts; sets the pointers if there is memory. */
template <int D>
__host__ __device__ __forceinline__ int lay_out(int group, uint8_t *mem, struct shared_parts *ret)
{
    const int at_p = round16(group * 4 * S_STRIDE), at_q = at_p + group * P_STRIDE;
    const int at_k = at_q + group * shape<D>::Q_STRIDE, at_l = at_k + 2 * D;
    const int at_m = at_l + group * 2 * 4, at_parts = round16(at_m + group * 4);
    if (ret)
        *ret = {(int *)mem,
                mem + at_p,
                (int8_t *)mem + at_q,
                (int8_t *)mem + at_k,
                (int8_t *)mem + at_k + D,
                (int *)(mem + at_l),
                (float *)(mem + at_m),
                (float *)(mem + at_parts)};
    return at_parts;
}

/* What a block is about. */
struct dec_block {
    struct attn_row r;
    int kv_head, group;
    int begin, end, n_pieces; /* its pieces; all of the row */
    int own_piece; /* which has the row's own key, if that comes from the projection; else -1 */
    size_t tile0;  /* elements before the KV head's first cache block */
    uint32_t tile_stride; /* elements between cache blocks */
};

/* Keys of a piece that the row sees. */
__device__ __forceinline__ int keys_of(const struct dec_block &d, int piece)
{
    return min(d.r.pos + 1 - piece * SQ_ATTN_PIECE, SQ_ATTN_PIECE);
}

/* Those of them that lie in the cache. */
__device__ __forceinline__ int cached_of(const struct dec_block &d, int piece)
{
    return keys_of(d, piece) - (piece == d.own_piece);
}

/* The lane's share of where a piece lies: the id of its cache block lane % PIECE_BLOCKS. */
__device__ __forceinline__ int id_of(const struct dec_block &d, int piece)
{
    const int block = lane_id() % PIECE_BLOCKS;
    return block * SQ_KV_BLOCK < keys_of(d, piece) ? d.r.blocks[piece * PIECE_BLOCKS + block] : 0;
}

/* Where the piece's block i begins, in the keys and in the values. The whole warp must ask. */
__device__ __forceinline__ size_t tile_at(const struct dec_block &d, int id, int i)
{
    return d.tile0 + (size_t)(uint32_t)__shfl_sync(FULL_WARP, id, i) * d.tile_stride;
}

template <int D>
__device__ __forceinline__ void load_keys(const struct attn_args &p, const struct dec_block &d,
                                          int piece, int id,
                                          struct row_part<D> (&k)[shape<D>::K_TILES][2])
{
    const int lane = lane_id(), warp = warp_id(), n = cached_of(d, piece);
#pragma unroll
    for (int i = 0; i < shape<D>::K_TILES; i++) {
        const int tile = warp + i * shape<D>::WARPS; /* may be beyond the piece: n stops it */
        const int8_t *block = (const int8_t *)p.kv.k + tile_at(d, id, tile / 2 % PIECE_BLOCKS);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int key = 16 * tile + 8 * half + lane / 4;
            k[i][half].clear();
            if (key < n)
                k[i][half].load(block + key % SQ_KV_BLOCK * D, lane % 4);
        }
    }
}

template <int D>
__device__ __forceinline__ void load_values(const struct attn_args &p, const struct dec_block &d,
                                            int piece, int id, uint4 (&v)[PAIRS][2])
{
    const int lane = lane_id(), q = lane % 4, n = cached_of(d, piece);
    const int at = (16 * warp_id() + lane / 4) * SQ_KV_BLOCK + 16 * (q % 2);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        const int8_t *t = (const int8_t *)p.kv.v + tile_at(d, id, 2 * i + q / 2) + at;
        v[i][0] = v[i][1] = make_uint4(0, 0, 0, 0);
        if (64 * i + 16 * q < n) {
            v[i][0] = *(const uint4 *)t;
            v[i][1] = *(const uint4 *)(t + 8 * SQ_KV_BLOCK);
        }
    }
}

/* --- the row's own codes --- */

/* Four codes from element e of head g of the block (group: its key, group + 1: its value) to shared memory; key and value to the cache. */
template <int D>
__device__ __forceinline__ void put_codes(const struct attn_args &p, const struct dec_block &d,
                                          const struct shared_parts &sh, int g, int e, uint32_t x)
{
    if (g < d.group) {
        *(uint32_t *)(sh.q + g * shape<D>::Q_STRIDE + e) = x;
        return;
    }
    const int slot = d.r.pos % SQ_KV_BLOCK;
    const size_t at = d.tile0 + (size_t)d.r.blocks[d.r.pos / SQ_KV_BLOCK] * d.tile_stride;
    if (g == d.group) {
        *(uint32_t *)(sh.k + e) = x;
        *(uint32_t *)((int8_t *)p.kv.k + at + slot * D + e) = x;
        return;
    }
    int8_t *to = (int8_t *)p.kv.v + at + e * SQ_KV_BLOCK + slot;
    *(uint32_t *)(sh.v + e) = x;
#pragma unroll
    for (int i = 0; i < 4; i++)
        to[i * SQ_KV_BLOCK] = (int8_t)(x >> 8 * i);
}

/* Elements e .. e + 3 and their partners half a rotation on. */
template <int D>
__device__ __forceinline__ void put_pairs(const struct attn_args &p, const struct dec_block &d,
                                          const struct shared_parts &sh, int g, int e,
                                          const float *x, float inv)
{
    const int half = p.at.rope.rot_dim / 2;
    const size_t at = (size_t)d.r.pos * half + e;
    const float4 a = *(const float4 *)(x + e), b = *(const float4 *)(x + e + half);
    const float4 c = *(const float4 *)(p.at.rope.cos + at);
    const float4 s = *(const float4 *)(p.at.rope.sin + at);
    const float4 lo = {d_rotated_a(a.x, b.x, c.x, s.x), d_rotated_a(a.y, b.y, c.y, s.y),
                       d_rotated_a(a.z, b.z, c.z, s.z), d_rotated_a(a.w, b.w, c.w, s.w)};
    const float4 hi = {d_rotated_b(a.x, b.x, c.x, s.x), d_rotated_b(a.y, b.y, c.y, s.y),
                       d_rotated_b(a.z, b.z, c.z, s.z), d_rotated_b(a.w, b.w, c.w, s.w)};
    put_codes<D>(p, d, sh, g, e, d_quant4(lo, inv));
    put_codes<D>(p, d, sh, g, e + half, d_quant4(hi, inv));
}

/* The row's queries, and where the block has the row's own piece, its key and value: each unit is four elements, or four pairs of what
 * is rotated. */
template <int D>
__device__ __forceinline__ void stage(const struct attn_args &p, const struct dec_block &d,
                                      const struct shared_parts &sh)
{
    const struct sq_gpu_attn &a = p.at.a;
    const int rot = p.at.rope_x ? p.at.rope.rot_dim : 0, half = rot % 8 == 0 ? rot / 2 : 0;
    const int own = d.end - 1 == d.own_piece, per = (D - half) / 4;
    const int n_rot = (d.group + own) * per, n = n_rot + own * (D / 4);
    for (int i = (int)threadIdx.x; i < n; i += shape<D>::THREADS) {
        const int g = i < n_rot ? i / per : d.group + 1;
        const int e = 4 * (i < n_rot ? i % per : i - n_rot);
        const enum attn_part part = g < d.group ? PART_Q : g == d.group ? PART_K : PART_V;
        const int head = g < d.group ? d.kv_head * d.group + g : d.kv_head;
        const float inv = part == PART_Q ? a.q_inv : part == PART_K ? a.k_inv : a.v_inv;
        const int col = part_col(a, part, head), at = part == PART_V || e < half ? e : e + half;
        const float *x = p.at.rope_x + (size_t)d.r.row * p.at.ld_rope_x + col;
        if (!p.at.rope_x) {
            const int8_t *q = p.at.q.q + (size_t)d.r.row * p.at.q.stride + col;
            put_codes<D>(p, d, sh, g, e, clamp4(*(const uint32_t *)(q + e)));
        } else if (part == PART_V || at >= rot) {
            put_codes<D>(p, d, sh, g, at, d_quant4(*(const float4 *)(x + at), inv));
        } else if (half) {
            put_pairs<D>(p, d, sh, g, e, x, inv);
        } else { /* a rotation that no four elements fit into */
            uint32_t codes = 0;
            for (int j = 0; j < 4; j++)
                codes |= (uint32_t)(proj_code(p, d.r.row, d.r.pos, part, head, e + j) & 255)
                         << 8 * j;
            put_codes<D>(p, d, sh, g, e, codes);
        }
    }
}

/* x, or with its byte i (0..3) replaced by b. */
__device__ __forceinline__ uint32_t with_byte(uint32_t x, bool replace, int i, uint32_t b)
{
    return replace ? (x & ~(255u << 8 * i)) | b << 8 * i : x;
}

/* The row's own key and value among what was loaded. */
template <int D>
__device__ __forceinline__ void put_own(int own, const struct shared_parts &sh,
                                        struct row_part<D> (&k)[shape<D>::K_TILES][2],
                                        uint4 (&v)[PAIRS][2])
{
    const int lane = lane_id(), warp = warp_id();
#pragma unroll
    for (int i = 0; i < shape<D>::K_TILES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (16 * (warp + i * shape<D>::WARPS) + 8 * half + lane / 4 == own)
                k[i][half].load(sh.k, lane % 4);
    /* word of the lane's 16 values (4 of each pair of blocks) */
    const int word = lane % 4 == own % 64 / 16 ? own / 64 * 4 + own % 16 / 4 : -1;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t value = (uint8_t)sh.v[16 * warp + 8 * half + lane / 4];
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            uint4 &x = v[i][half];
            x.x = with_byte(x.x, word == 4 * i, own % 4, value);
            x.y = with_byte(x.y, word == 4 * i + 1, own % 4, value);
            x.z = with_byte(x.z, word == 4 * i + 2, own % 4, value);
            x.w = with_byte(x.w, word == 4 * i + 3, own % 4, value);
        }
    }
}

/* Scores of heads h0 .. h0 + 7 of the group. */
template <int D>
__device__ __forceinline__ void scores(int group, int n, const struct shared_parts &sh,
                                       const struct row_part<D> (&k)[shape<D>::K_TILES][2], int h0)
{
    const int lane = lane_id(), warp = warp_id();
    struct row_part<D> q;
    q.clear();
    if (h0 + lane / 4 < group)
        q.load(sh.q + (h0 + lane / 4) * shape<D>::Q_STRIDE, lane % 4);
#pragma unroll
    for (int i = 0; i < shape<D>::K_TILES; i++) {
        const int key0 = 16 * (warp + i * shape<D>::WARPS);
        int32_t c[4] = {};
        if (key0 >= n)
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
            if (h < group)
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

/* All heads' softmax by all warps; with few heads two warps share one. */
template <int D>
__device__ __forceinline__ void all_softmax(int group, int n, float mul,
                                            const struct shared_parts &sh)
{
    const int warp = warp_id(), per = 2 * group <= shape<D>::WARPS ? 2 : 1;
    for (int task = warp; task < group * per; task += shape<D>::WARPS) {
        const int h = task / per, i0 = per == 2 ? task % 2 : 0, i1 = per == 2 ? i0 + 1 : 2;
        int l;
        const float m = softmax(sh, h, n, mul, i0, i1, &l);
        if (lane_id() == 0) {
            sh.l[2 * h + i0] = l;
            if (per == 1)
                sh.l[2 * h + 1] = 0;
            if (i0 == 0)
                sh.m[h] = m;
        }
    }
}

/* o of heads h0 .. h0 + 7 to the piece's part, in floats: exact, below 2^22. */
template <int D>
__device__ __forceinline__ void values(int group, int n, const struct shared_parts &sh,
                                       const uint4 (&v)[PAIRS][2], int h0, float *part)
{
    const int lane = lane_id(), warp = warp_id();
    int32_t c[4] = {};
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        uint4 b = make_uint4(0, 0, 0, 0);
        if (64 * i >= n)
            break;
        if (h0 + lane / 4 < group)
            b = *(const uint4 *)(sh.p + (h0 + lane / 4) * P_STRIDE + 64 * i + 16 * (lane % 4));
        mma_pair(c, v[i][0], v[i][1], b);
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int h = h0 + lane % 4 * 2 + j % 2;
        if (h < group)
            part[h * shape<D>::O_STRIDE + 16 * warp + j / 2 * 8 + lane / 4] = __int2float_rn(c[j]);
    }
}

/* All heads of the row from its pieces' parts. */
template <int D, bool SHARED>
__device__ __forceinline__ void merge(const struct attn_args &p, const struct dec_block &d,
                                      const float *parts, int stride)
{
    const int chunks = (D + 31) / 32;
    for (int i = warp_id(); i < d.group * chunks; i += shape<D>::WARPS)
        merge_32<SHARED>(p, parts + i / chunks * shape<D>::O_STRIDE, stride, d.n_pieces, d.r.row,
                         d.kv_head * d.group + i / chunks, i % chunks * 32);
}

/* parts: of the row's first piece, next piece `stride` floats further. */
template <int D>
__device__ __forceinline__ void all_pieces(const struct attn_args &p, const struct dec_block &d,
                                           const struct shared_parts &sh, float *parts, int stride)
{
    struct row_part<D> k[shape<D>::K_TILES][2];
    uint4 v[PAIRS][2];
    int id = id_of(d, d.begin);
    load_keys<D>(p, d, d.begin, id, k);
    load_values<D>(p, d, d.begin, id, v);
    stage<D>(p, d, sh);
    __syncthreads();
#pragma unroll 1
    for (int i = d.begin; i < d.end; i++) {
        const bool more = i + 1 < d.end;
        float *part = parts + (size_t)i * stride;
        if (more)
            id = id_of(d, i + 1);
        if (i == d.own_piece)
            put_own<D>(keys_of(d, i) - 1, sh, k, v);
        for (int h0 = 0; h0 < d.group; h0 += 8)
            scores<D>(d.group, keys_of(d, i), sh, k, h0);
        if (more)
            load_keys<D>(p, d, i + 1, id, k);
        __syncthreads();
        all_softmax<D>(d.group, keys_of(d, i), p.at.a.score_mul, sh);
        __syncthreads();
        for (int h0 = 0; h0 < d.group; h0 += 8)
            values<D>(d.group, keys_of(d, i), sh, v, h0, part);
        if (more)
            load_values<D>(p, d, i + 1, id, v);
        for (int h = (int)threadIdx.x; h < d.group; h += shape<D>::THREADS)
            *(float4 *)(part + h * shape<D>::O_STRIDE + D) =
                make_float4(sh.m[h], __int2float_rn(sh.l[2 * h] + sh.l[2 * h + 1]), 0.0f, 0.0f);
    }
}

template <int D>
__global__ void __launch_bounds__(shape<D>::THREADS, shape<D>::BLOCKS)
    attend_decode(const __grid_constant__ struct attn_args p, int per_block)
{
    extern __shared__ __align__(16) uint8_t mem[];
    const int i_dec = (int)blockIdx.z;
    struct shared_parts sh;
    struct dec_block d;
    d.r = dec_row(p.s, i_dec);
    d.n_pieces = d.r.pos / SQ_ATTN_PIECE + 1;
    const bool alone = d.n_pieces <= per_block; /* else the row's pieces are shared out evenly */
    const int per = alone ? d.n_pieces : div_up(d.n_pieces, (int)gridDim.y);
    d.begin = (int)blockIdx.y * per;
    if (d.r.row < 0 || d.begin >= d.n_pieces)
        return;
    d.end = min(d.begin + per, d.n_pieces);
    d.own_piece = p.at.fused_write ? d.n_pieces - 1 : -1;
    d.kv_head = (int)blockIdx.x;
    d.group = p.at.a.n_heads / p.at.a.n_kv_heads;
    d.tile0 = kv_at(p.kv, p.at.a.layer, 0, d.kv_head);
    d.tile_stride = (uint32_t)(p.kv.n_kv_heads * SQ_KV_BLOCK * D);
    lay_out<D>(d.group, mem, &sh);

    const int of_rows = p.at.a.n_heads * shape<D>::O_STRIDE;
    const int of_block = d.group * shape<D>::O_STRIDE;
    float *parts = p.at.parts + (size_t)d.r.parts * of_rows + d.kv_head * of_block;
    all_pieces<D>(p, d, sh, alone ? sh.parts : parts, alone ? of_block : of_rows);
    if (alone) {
        __syncthreads();
        merge<D, true>(p, d, sh.parts, of_block);
    } else if (last_of(p.at.counters + i_dec * p.at.a.n_kv_heads + d.kv_head,
                       div_up(d.n_pieces, per))) {
        merge<D, false>(p, d, parts, of_rows);
    }
}

/* --- the launch --- */

#define BLOCKS_WANTED 3 /* for a multiprocessor: neighbours of unlike length even out */

/* As many pieces as leave the device enough blocks, at most `fit`. */
static int share_out(const struct sq_gpu_attend *a, int fit)
{
    const int wanted = div_up(BLOCKS_WANTED * a->n_sms, a->n_dec * a->a.n_kv_heads);
    const int per_block = wanted > 0 ? div_up(a->n_pieces, wanted) : a->n_pieces;
    const int most = per_block < fit ? per_block : fit;
    return div_up(a->n_pieces, div_up(a->n_pieces, most)); /* evenly */
}

template <int D> static cudaError_t decode(cudaStream_t st, const struct sq_gpu_attend *a)
{
    /* what each of BLOCKS may have where a multiprocessor has 100 KiB, 1 of them the system's for each */
    const int room = 96 * 1024 / shape<D>::BLOCKS - 256;
    const int group = a->a.n_heads / a->a.n_kv_heads, before = lay_out<D>(group, NULL, NULL);
    const int part = group * shape<D>::O_STRIDE * (int)sizeof(float);
    const int fit = before + part > room ? 1 : (room - before) / part;
    int per_block = a->pieces_per_block < fit ? a->pieces_per_block : fit;
    if (per_block == 0)
        per_block = share_out(a, fit);
    const int bytes = before + per_block * part;
    cudaError_t e = bytes <= 48 * 1024
                        ? cudaSuccess
                        : cudaFuncSetAttribute(attend_decode<D>,
                                               cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (e != cudaSuccess)
        return e;
    const dim3 grid(a->a.n_kv_heads, div_up(a->n_pieces, per_block), a->n_dec);
    attend_decode<D><<<grid, shape<D>::THREADS, bytes, st>>>(attn_args_of(a), per_block);
    return cudaGetLastError();
}

cudaError_t attend_s8_decode(cudaStream_t st, const struct sq_gpu_attend *a)
{
    return attn_by_dim(
        a->a.head_dim, [=](auto d) { return decode<decltype(d)::value>(st, a); },
        [] { return cudaErrorInvalidValue; });
}
