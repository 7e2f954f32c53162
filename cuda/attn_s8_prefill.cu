/* Prefill attention over an int8 cache by tensor cores: a block takes a tile of rows of one sequence and a query head, a warp 16 rows.
 *
 * Pass 1 finds the maximum of each row in each piece of 256 keys, as an integer: the weights of pieces depend on the largest. Pass 2
 * computes the scores again, makes codes of the probabilities, which lie in registers just as the next mma wants its A operand, and
 * multiplies by the values. So nothing of size keys x rows leaves the registers.
 *
 * Keys and values pass through shared memory in steps of 64 keys, several on their way. Rows of keys are put in such an order that the
 * lane that gets the scores of 4 neighbouring keys is the one that needs their probabilities: in 16 keys, key 4a + 2h + e is row
 * 8h + 2a + e.
 *
 * Accumulators start at 1.5 * 2^23 as a float's bits: adding an integer of less than 2^22 gives the bits of 1.5 * 2^23 + that integer, so
 * that one subtraction converts it. In pass 2 scores start at that less the row's maximum, so they come as exact differences to it.
 *
 * Most of the time would go into the exponential. Only 128 results are possible, so an approximation finds nearly all of them: where it
 * lies so near to the middle between two codes that its error could matter (1 score in 1000 of those that are not 0), the warp computes
 * its 16 x 16 scores again by the definition. */
#include "cuda/attn.cuh"

#define TILE_WARPS (SQ_GPU_TILE_ROWS / 16)
#define TILE_THREADS (32 * TILE_WARPS)
#define STEP 64 /* keys */
#define PIECE_STEPS (SQ_ATTN_PIECE / STEP)
/* Steps in shared memory in pass 2; pass 1 has twice as many, of keys alone. */
#define STAGES 3
/* Pieces whose maxima are kept; where there are more, they are found once more, this many at a time. */
#define KEPT_PIECES 32
#define HIDDEN INT32_MIN /* maximum of a row that sees no key */
/* The approximation and the definition are apart by at most 1.2e-5 |m| + 1.5e-4: for a maximum up to 24 by less than NEAR, up to 56 by less
 * than 2 NEAR. */
#define NEAR (32.0f / 65536.0f)
#define NEAR_M 24.0f
#define FAR_M 56.0f
#define LOG2_127 6.98868469f

template <int D> struct tile_shape {
    static const int CHUNKS = D / 16; /* of 16 bytes in a row of keys */
    /* Rows of a power of two are swizzled, others padded: 8 rows never meet in a bank. */
    static const int K_STRIDE = D == 64 || D == 128 ? D : (CHUNKS | 1) * 16;
    static const int K_BYTES = STEP * K_STRIDE, V_BYTES = D * STEP;
    static const int BYTES = K_BYTES > V_BYTES ? K_BYTES : V_BYTES; /* of a buffer */
    static const int K_STEPS = (D + 31) / 32, N_TILES = D / 8;
    static const bool EVEN = TILE_THREADS % (2 * D) == 0;
    static const int FETCH_HALVES = 2 * D * 2 == TILE_THREADS ? 1 : 2;
    static const int O_STRIDE = D == 128 ? D : D + 8;
    static const int SHARED = 2 * STAGES * BYTES + KEPT_PIECES * SQ_GPU_TILE_ROWS * 4;
    static_assert(SQ_GPU_TILE_ROWS * O_STRIDE * 4 <= SHARED, "the sums must fit");
};

template <int D> __device__ __forceinline__ int k_offset(int row, int chunk)
{
    if (D == 128)
        chunk ^= row & 7;
    if (D == 64)
        chunk ^= row >> 1 & 3;
    return row * tile_shape<D>::K_STRIDE + 16 * chunk;
}

/* Sums: 4 rows side by side never meet in a bank. */
template <int D> __device__ __forceinline__ int o_column(int row, int col)
{
    return D == 128 ? col ^ 8 * (row & 3) : col;
}

/* Values: rows of 64 tokens, two rows in 128 bytes. */
__device__ __forceinline__ int v_offset(int row, int chunk)
{
    return row * STEP + 16 * (chunk ^ ((row & 2) | (row >> 2 & 1)));
}

struct tile_job {
    const int32_t *blocks;
    /* Of the layer and KV head: block 0; where EVEN, this thread's chunk of it. */
    const int8_t *k, *v;
    int k_place, v_place;
    int tile_stride;
    int n_keys, n_steps; /* that the last row sees */
    int warp_pos;        /* position of the warp's first row; -16: it has no rows */
};

/* Where 16-byte chunk i of a block of keys, or values, goes in a step's buffer; half: first or second block of the step. */
template <int D> __device__ __forceinline__ int key_place(int i, int half)
{
    const int r = i / tile_shape<D>::CHUNKS;
    const int row = (r & ~15) | (r & 2) << 2 | (r >> 1 & 6) | (r & 1);
    return half * SQ_KV_BLOCK * tile_shape<D>::K_STRIDE +
           k_offset<D>(row, i % tile_shape<D>::CHUNKS);
}

__device__ __forceinline__ int value_place(int i, int half)
{
    return v_offset(i / 2, 2 * half + i % 2);
}

/* Starts the copy of a step's keys, and values if VALUES; zeros where the sequence has no such block. A block has 2 D chunks: threads take
 * the same ones in each step, so places are computed once (job.k_place ...) where that comes out even. */
template <int D, bool VALUES>
__device__ __forceinline__ void fetch(const struct tile_job &j, int step, uint8_t *keys,
                                      uint8_t *vals)
{
    const int n = 2 * D, id = (int)threadIdx.x;
#pragma unroll
    for (int h = 0; h < tile_shape<D>::FETCH_HALVES; h++) {
        const int half = tile_shape<D>::FETCH_HALVES == 2 ? h : id / n;
        const int block = 2 * step + half;
        const bool there = block * SQ_KV_BLOCK < j.n_keys;
        const int64_t at = there ? (int64_t)j.blocks[block] * j.tile_stride : 0;
        if constexpr (tile_shape<D>::EVEN) {
            p_cp_async16(keys + j.k_place + h * SQ_KV_BLOCK * tile_shape<D>::K_STRIDE, j.k + at,
                         there);
            if (VALUES)
                p_cp_async16(vals + (j.v_place ^ 32 * h), j.v + at, there);
        } else {
#pragma unroll
            for (int i = id; i < n; i += TILE_THREADS) {
                p_cp_async16(keys + key_place<D>(i, half), j.k + at + 16 * i, there);
                if (VALUES)
                    p_cp_async16(vals + value_place(i, half), j.v + at + 16 * i, there);
            }
        }
    }
}

/* What does not change from step to step. */
template <int D> __device__ __forceinline__ void fetch_places(struct tile_job *j)
{
    const int n = 2 * D, i = (int)threadIdx.x % n, half = (int)threadIdx.x / n;
    if (!tile_shape<D>::EVEN)
        return;
    j->k_place = key_place<D>(i, half);
    j->v_place = value_place(i, half);
    j->k += 16 * i;
    j->v += 16 * i;
}

/* The warp's queries as operands. */
template <int D>
__device__ __forceinline__ void load_queries(const struct attn_args &p, const int8_t *q, int n_rows,
                                             int warp, uint32_t (&a)[tile_shape<D>::K_STEPS][4])
{
    const int lane = lane_id();
#pragma unroll
    for (int s = 0; s < tile_shape<D>::K_STEPS; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = 16 * warp + i % 2 * 8 + lane / 4,
                      at = 32 * s + i / 2 * 16 + lane % 4 * 4;
            a[s][i] = 0;
            if (row < n_rows && 32 * s + i / 2 * 16 < D)
                a[s][i] = clamp4(*(const uint32_t *)(q + (size_t)row * p.at.q.stride + at));
        }
}

/* Scores of 16 rows and the 8 keys in rows 8 i .. 8 i + 7 of a step, plus start. */
template <int D>
__device__ __forceinline__ void tile_scores(const uint32_t (&q)[tile_shape<D>::K_STEPS][4],
                                            const uint8_t *keys, int i, const int32_t (&start)[4],
                                            int32_t (&c)[4])
{
    const int lane = lane_id(), row = lane % 8;
    keys += 8 * i * tile_shape<D>::K_STRIDE;
#pragma unroll
    for (int s = 0; s + 1 < tile_shape<D>::K_STEPS; s += 2) {
        uint32_t b[4];
        p_ldmatrix_x4(b, keys + k_offset<D>(row, 2 * s + lane / 8));
        if (s == 0)
            p_mma_s8_from(c, q[s], b[0], b[1], start);
        else
            p_mma_s8(c, q[s], b[0], b[1]);
        p_mma_s8(c, q[s + 1], b[2], b[3]);
    }
    if (tile_shape<D>::K_STEPS % 2) {
        const int s = tile_shape<D>::K_STEPS - 1, odd = D % 32 ? 0 : lane / 8 % 2;
        uint32_t b[2]; /* a last chunk without a second one is multiplied by zeros */
        p_ldmatrix_x2(b, keys + k_offset<D>(row, 2 * s + odd));
        p_mma_s8(c, q[s], b[0], b[1]);
    }
}

/* Whether the lane's row r (0, 1) sees key e (0, 1) of the 8 in tile i. limit: the position of the lane's first row less the lane's first
 * key of the step. */
__device__ __forceinline__ bool sees(int limit, int i, int r, int e)
{
    return i / 2 * 16 + i % 2 * 2 + e - 8 * r <= limit;
}

__device__ __forceinline__ int limit_of(const struct tile_job &j, int step)
{
    const int lane = lane_id();
    return j.warp_pos + lane / 4 - (step * STEP + lane % 4 * 4);
}

/* Some of the step's keys must not be seen by some of the warp's rows. */
__device__ __forceinline__ bool is_partial(const struct tile_job &j, int step)
{
    return (step + 1) * STEP - 1 > j.warp_pos;
}

/* Maxima of the warp's rows lane / 4 and lane / 4 + 8 over a step, of this lane's keys. */
template <int D, bool PARTIAL>
__device__ __forceinline__ void step_max(const struct tile_job &j,
                                         const uint32_t (&q)[tile_shape<D>::K_STEPS][4],
                                         const uint8_t *keys, int step, int (&best)[2])
{
    const int32_t zero[4] = {};
    const int limit = limit_of(j, step);
#pragma unroll
    for (int i = 0; i < STEP / 8; i++) {
        int32_t c[4];
        tile_scores<D>(q, keys, i, zero, c);
#pragma unroll
        for (int k = 0; k < 4; k++)
            c[k] = !PARTIAL || sees(limit, i, k / 2, k % 2) ? c[k] : HIDDEN;
        best[0] = max(best[0], max(c[0], c[1]));
        best[1] = max(best[1], max(c[2], c[3]));
    }
}

__device__ __forceinline__ int quad_max(int x)
{
    x = max(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return max(x, __shfl_xor_sync(FULL_WARP, x, 2));
}

__device__ __forceinline__ int quad_sum(int x)
{
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

/* What a warp's rows bring to a piece. */
struct piece_rows {
    float m[2]; /* maxima: -Inf where a row sees nothing */
    int32_t
        start[4];  /* of score accumulators: the bits of RNE_MAGIC less the maximum as an integer */
    bool exact;    /* no approximation: the same in all lanes, as what follows */
    float round;   /* 128 + 1/2 + NEAR, or twice NEAR */
    uint32_t high; /* bits of two 16-bit numbers that are 0 below 2 NEAR, or 4 */
};

__device__ __forceinline__ float piece_max(int best, float mul)
{
    return best == HIDDEN ? -INFINITY : __fmul_rn(__int2float_rn(best), mul);
}

__device__ __forceinline__ struct piece_rows piece_rows_of(int best0, int best1, float mul)
{
    struct piece_rows w = {{piece_max(best0, mul), piece_max(best1, mul)}, {}, false, 0.0f, 0};
    w.start[0] = w.start[1] = (int32_t)((uint32_t)RNE_MAGIC_BITS - (uint32_t)best0);
    w.start[2] = w.start[3] = (int32_t)((uint32_t)RNE_MAGIC_BITS - (uint32_t)best1);
    const float m = fmaxf(fabsf(w.m[0]), fabsf(w.m[1])); /* Inf if a row sees nothing */
    const bool is_far = __any_sync(FULL_WARP, m > NEAR_M);
    w.exact = __any_sync(FULL_WARP, !(m <= FAR_M));
    w.round = 128.5f + (is_far ? 2.0f * NEAR : NEAR);
    w.high = is_far ? 0xff80ff80u : 0xffc0ffc0u;
    return w;
}

/* rne(127 * sq_exp(x)) in the low byte, x <= 0. Where sq_exp is below e^-80 the result is 0 with or without it, and the product by 2^n
 * is a sum of exponents, as it is normal. */
__device__ __forceinline__ uint32_t exact_code(float x)
{
    const struct d_exp_parts e = d_exp_parts_of(fmaxf(x, -80.0f));
    const float y = __uint_as_float(__float_as_uint(e.rest) + (e.n << 23));
    return __float_as_uint(__fadd_rn(__fmul_rn(127.0f, y), RNE_MAGIC));
}

/* The lane's 8 probabilities of two tiles, by the definition: a[r] for its row r. */
__device__ __forceinline__ uint2 exact_codes(const int32_t (&c)[2][4], const struct piece_rows &w,
                                             float mul, bool partial, int limit, int i)
{
    uint32_t a[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        uint32_t e[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int score = (int)((uint32_t)c[k / 2][2 * r + k % 2] - (uint32_t)w.start[2 * r]);
            e[k] = exact_code(__fsub_rn(__fmul_rn(__int2float_rn(score), mul), w.m[r]));
            if (partial && !sees(limit, i + k / 2, r, k % 2))
                e[k] = 0;
        }
        a[r] = d_pack4((int)e[0], (int)e[1], (int)e[2], (int)e[3]);
    }
    return make_uint2(a[0], a[1]);
}

/* The same by approximation; true: one is so near to a tie that it may be wrong. Scores are all seen. */
__device__ __forceinline__ bool near_codes(const int32_t (&c)[2][4], const struct piece_rows &w,
                                           float mul_log2, uint32_t *a)
{
    uint32_t near = 0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        /* y + round: the code is in byte 2, and near a tie the 16 bits below are near 0 */
        uint32_t u[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const float x = __fsub_rn(__int_as_float(c[k / 2][2 * r + k % 2]), RNE_MAGIC);
            const float y = p_exp2_near(__fmaf_rn(x, mul_log2, LOG2_127));
            u[k] = __float_as_uint(__fadd_rn(y, w.round));
        }
        a[r] =
            __byte_perm(__byte_perm(u[0], u[1], 0x0062), __byte_perm(u[2], u[3], 0x0062), 0x5410);
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
            const uint32_t z = __byte_perm(u[k], u[k + 1], 0x5410) & w.high;
            near |= (z - 0x00010001u) & ~z;
        }
    }
    return near & 0x80008000u;
}

/* What a warp gathers over a piece, and over all. Index j of o and acc: row lane / 4 + 8 (j / 2), dimension 8 n + 2 (lane % 4) + j % 2. */
template <int D> struct tile_sums {
    int32_t o[tile_shape<D>::N_TILES][4], l[2]; /* l: of the lane's keys */
    float acc[tile_shape<D>::N_TILES][4], sum[2];
};

/* 32 keys: probabilities as the A operand, then values. limit: for the first of them. */
template <int D>
__device__ __forceinline__ void half_values(const uint32_t (&q)[tile_shape<D>::K_STEPS][4],
                                            const uint8_t *keys, const uint8_t *vals, int half,
                                            bool partial, int limit, float mul,
                                            const struct piece_rows &w, struct tile_sums<D> &t)
{
    const int lane = lane_id();
    uint32_t a[4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int32_t c[2][4];
        bool exact = partial || w.exact;
        tile_scores<D>(q, keys, 2 * i, w.start, c[0]);
        tile_scores<D>(q, keys, 2 * i + 1, w.start, c[1]);
        if (!exact)
            exact = __any_sync(FULL_WARP, near_codes(c, w, __fmul_rn(mul, LOG2_E), a + 2 * i));
        if (exact) {
            const uint2 e = exact_codes(c, w, mul, partial, limit, 2 * i);
            a[2 * i] = e.x, a[2 * i + 1] = e.y;
        }
        t.l[0] = __dp4a((int)a[2 * i], 0x01010101, t.l[0]);
        t.l[1] = __dp4a((int)a[2 * i + 1], 0x01010101, t.l[1]);
    }
    vals += v_offset(lane % 8, 2 * half + lane / 8 % 2) + lane / 16 * 8 * STEP;
#pragma unroll
    for (int n = 0; n < tile_shape<D>::N_TILES; n += 2) {
        uint32_t b[4];
        p_ldmatrix_x4(b, vals + 8 * n * STEP);
        p_mma_s8(t.o[n], a, b[0], b[1]);
        p_mma_s8(t.o[n + 1], a, b[2], b[3]);
    }
}

template <int D>
__device__ __forceinline__ void
step_values(const struct tile_job &j, const uint32_t (&q)[tile_shape<D>::K_STEPS][4],
            const uint8_t *keys, const uint8_t *vals, int step, float mul,
            const struct piece_rows &w, struct tile_sums<D> &t)
{
    const bool partial = is_partial(j, step);
    int limit = limit_of(j, step);
#pragma unroll 1
    for (int half = 0; half < 2; half++) {
        half_values<D>(q, keys, vals, half, partial, limit, mul, w, t);
        keys += 32 * tile_shape<D>::K_STRIDE;
        limit -= 32;
    }
}

template <int D> __device__ __forceinline__ void piece_begin(struct tile_sums<D> &t)
{
    t.l[0] = t.l[1] = 0;
#pragma unroll
    for (int n = 0; n < tile_shape<D>::N_TILES; n++)
        t.o[n][0] = t.o[n][1] = t.o[n][2] = t.o[n][3] = RNE_MAGIC_BITS;
}

/* A row that sees nothing of the piece has weight 0 and zeros: no change. */
template <int D>
__device__ __forceinline__ void piece_end(struct tile_sums<D> &t, const float (&m)[2],
                                          const float (&top)[2])
{
    const float w[2] = {d_exp(__fsub_rn(m[0], top[0])), d_exp(__fsub_rn(m[1], top[1]))};
    t.sum[0] = __fmaf_rn(w[0], __int2float_rn(quad_sum(t.l[0])), t.sum[0]);
    t.sum[1] = __fmaf_rn(w[1], __int2float_rn(quad_sum(t.l[1])), t.sum[1]);
#pragma unroll
    for (int n = 0; n < tile_shape<D>::N_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            t.acc[n][i] =
                __fmaf_rn(w[i / 2], __fsub_rn(__int_as_float(t.o[n][i]), RNE_MAGIC), t.acc[n][i]);
}

/* Tiles of long sequences come late in the list, and should start early. */
__device__ __forceinline__ int4 this_tile(const struct attn_args &p)
{
    return __ldcv(p.s.tiles + (gridDim.y - 1 - blockIdx.y));
}

/* Sums pass through the warp's part of the shared memory: rows are divided and written by neighbouring lanes. */
template <int D>
__device__ __forceinline__ void tile_out(const struct attn_args &p, const struct tile_sums<D> &t,
                                         float *mem)
{
    const int stride = tile_shape<D>::O_STRIDE, lane = lane_id();
    const int4 tile = this_tile(p); /* read again: registers are scarce in between */
    const int row0 = 16 * warp_id(), n_rows = min(tile.y - row0, 16), col = 4 * lane;
    mem += row0 * stride;
#pragma unroll
    for (int i = 0; i < 2 * tile_shape<D>::N_TILES; i++) {
        const int n = i / 2, r = i % 2, row = 8 * r + lane / 4;
        *(float2 *)(mem + row * stride + o_column<D>(row, 8 * n) + lane % 4 * 2) =
            make_float2(t.acc[n][2 * r], t.acc[n][2 * r + 1]);
    }
    __syncwarp();
#pragma unroll 1
    for (int row = 0; row < n_rows; row++) {
        const float sum = __shfl_sync(FULL_WARP, row < 8 ? t.sum[0] : t.sum[1], row % 8 * 4);
        if (col >= D)
            continue;
        const float4 o = *(const float4 *)(mem + row * stride + o_column<D>(row, col));
        put_out4(p, tile.x + row0 + row, (int)blockIdx.x * D + col, o, sum);
    }
}

/* Where a step's piece has its maxima. */
__device__ __forceinline__ int kept_slot(int step)
{
    return step / PIECE_STEPS % KEPT_PIECES * SQ_GPU_TILE_ROWS;
}

template <int D>
__global__ void __launch_bounds__(TILE_THREADS, 1)
    attend_tiles(const __grid_constant__ struct attn_args p)
{
    typedef struct tile_shape<D> shape;
    extern __shared__ __align__(128) uint8_t mem[];
    const int4 tile = this_tile(p);
    const int head = (int)blockIdx.x, kv_head = head / (p.at.a.n_heads / p.at.a.n_kv_heads);
    const int warp = warp_id();
    const float mul = p.at.a.score_mul;
    if (tile.z < 0 || tile.y <= 0)
        return;
    struct tile_job j;
    j.blocks = p.s.blocks + p.s.seq_blocks[tile.z];
    j.tile_stride = p.kv.n_kv_heads * SQ_KV_BLOCK * D;
    j.k = (const int8_t *)p.kv.k + kv_at(p.kv, p.at.a.layer, 0, kv_head);
    j.v = (const int8_t *)p.kv.v + kv_at(p.kv, p.at.a.layer, 0, kv_head);
    j.n_keys = tile.w + tile.y, j.n_steps = (j.n_keys + STEP - 1) / STEP;
    j.warp_pos = 16 * warp < tile.y ? tile.w + 16 * warp : -16;
    fetch_places<D>(&j);

    uint32_t q[shape::K_STEPS][4];
    load_queries<D>(p, p.at.q.q + (size_t)tile.x * p.at.q.stride + head * D, tile.y, warp, q);
    /* [KEPT_PIECES][SQ_GPU_TILE_ROWS] maxima; a quad of lanes uses its own two rows only */
    int *const kept = (int *)(mem + 2 * STAGES * shape::BYTES) + 16 * warp + lane_id() / 4;
    int best[2] = {HIDDEN, HIDDEN};
    float top[2] = {-INFINITY, -INFINITY};
    const auto fetch_k = [&](int step, int buffer) {
        fetch<D, false>(j, step, mem + buffer * shape::BYTES, NULL);
    };
    const auto use_k = [&](int step, int buffer) {
        const uint8_t *keys = mem + buffer * shape::BYTES;
        if (!is_partial(j, step))
            step_max<D, false>(j, q, keys, step, best);
        else if (step * STEP <= j.warp_pos + 15)
            step_max<D, true>(j, q, keys, step, best);
        if (step % PIECE_STEPS != PIECE_STEPS - 1 && step != j.n_steps - 1)
            return;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            best[r] = quad_max(best[r]);
            top[r] = fmaxf(top[r], piece_max(best[r], mul));
            if (threadIdx.x % 4 == 0)
                kept[kept_slot(step) + 8 * r] = best[r];
            best[r] = HIDDEN;
        }
        __syncwarp();
    };
    flow<2 * STAGES>(0, j.n_steps, fetch_k, use_k);

    struct tile_sums<D> t = {
    };
    struct piece_rows w;
    const auto fetch_kv = [&](int step, int buffer) {
        fetch<D, true>(j, step, mem + 2 * buffer * shape::BYTES,
                       mem + (2 * buffer + 1) * shape::BYTES);
    };
    const auto use_kv = [&](int step, int buffer) {
        if (step % PIECE_STEPS == 0) {
            const int *at = kept + kept_slot(step);
            w = piece_rows_of(at[0], at[8], mul);
            piece_begin<D>(t);
        }
        if (step * STEP > j.warp_pos + 15)
            return;
        step_values<D>(j, q, mem + 2 * buffer * shape::BYTES, mem + (2 * buffer + 1) * shape::BYTES,
                       step, mul, w, t);
        if (step % PIECE_STEPS == PIECE_STEPS - 1 || step == j.n_steps - 1 ||
            (step + 1) * STEP > j.warp_pos + 15)
            piece_end<D>(t, w.m, top);
    };
    for (int begin = 0, end; begin < j.n_steps; begin = end) {
        end = min(begin + KEPT_PIECES * PIECE_STEPS, j.n_steps);
        if (j.n_steps > KEPT_PIECES * PIECE_STEPS) /* the slots were used more than once */
            flow<2 * STAGES>(begin, end, fetch_k, use_k);
        flow<STAGES>(begin, end, fetch_kv, use_kv);
    }
    if (j.warp_pos >= 0)
        tile_out<D>(p, t, (float *)mem);
}

template <int D> static cudaError_t prefill(cudaStream_t st, const struct sq_gpu_attend *a)
{
    const int bytes = tile_shape<D>::SHARED;
    if (bytes > 48 * 1024) {
        cudaError_t e = cudaFuncSetAttribute(attend_tiles<D>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
        if (e != cudaSuccess)
            return e;
    }
    attend_tiles<D><<<dim3(a->a.n_heads, a->n_tiles), TILE_THREADS, bytes, st>>>(attn_args_of(a));
    return cudaGetLastError();
}

cudaError_t attend_s8_prefill(cudaStream_t st, const struct sq_gpu_attend *a)
{
    return attn_by_dim(
        a->a.head_dim, [=](auto d) { return prefill<decltype(d)::value>(st, a); },
        [] { return cudaErrorInvalidValue; });
}
