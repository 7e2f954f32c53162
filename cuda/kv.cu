/* Rows into the KV cache, and rotary positions. */
#include "cuda/attn.cuh"

/* --- kv_write --- */

#define KV_ROWS                                                                                    \
    32 /* rows of a block; neighbours in the batch are most often neighbours in the cache */
#define KV_THREADS 128
#define KV_STRIDE (ATTN_D_MAX + 4) /* of staged values: a word column hits every bank once */

struct kv_write_args {
    struct sq_gpu_step s;
    struct sq_gpu_kv kv;
    struct sq_gpu_attn a;
    struct sq_gpu_codes x;
    const float *xf;
    int ld_xf, n_rows;
};

/* Where row `row` goes: its block, and its slot there; block -1: nowhere. */
__device__ __forceinline__ int2 slot_of(const struct kv_write_args &p, int row)
{
    int2 at = make_int2(-1, 0);
    if (row >= p.n_rows)
        return at;
    const int seq = p.s.row_seq[row], pos = p.s.pos[row];
    if (seq >= 0) {
        at.x = p.s.blocks[p.s.seq_blocks[seq] + pos / SQ_KV_BLOCK];
        at.y = pos % SQ_KV_BLOCK;
    }
    return at;
}

/* N words of codes at once. */
template <int N> struct words {
    uint32_t w[N];
};
template <> struct __align__(16) words<4>
{
    uint32_t w[4];
};

template <int N> __device__ __forceinline__ struct words<N> load_codes(const int8_t *row, int i) {
    struct words<N> x = ((const struct words<N> *)row)[i];
#pragma unroll
    for (int k = 0; k < N; k++)
        x.w[k] = clamp4(x.w[k]);
    return x;
}

/* A block takes 32 rows of one KV head. Keys are copied row by row, N words a thread. Values are turned: staged in shared memory, then
 * lane = row, so that a warp's byte stores for one dimension fall side by side. */
template <int N>
__global__ void __launch_bounds__(KV_THREADS)
    kv_write_s8(const __grid_constant__ struct kv_write_args p)
{
    __shared__ uint32_t values[KV_ROWS * KV_STRIDE / 4];
    const int per_row = p.a.head_dim / (4 * N), head = (int)blockIdx.y;
    const int row0 = (int)blockIdx.x * KV_ROWS, lane = lane_id();
    const int k_col = part_col(p.a, PART_K, head), v_col = part_col(p.a, PART_V, head);
    const int2 at = slot_of(p, row0 + lane); /* of the lane's row */
    const int last = KV_ROWS * per_row;
    for (int i0 = 0; i0 < last; i0 += KV_THREADS) {
        const int i = i0 + (int)threadIdx.x, r = i < last ? i / per_row : 0, q = i - r * per_row;
        const int block = __shfl_sync(FULL_WARP, at.x, r), slot = __shfl_sync(FULL_WARP, at.y, r);
        if (i >= last || block < 0)
            continue;
        const int8_t *x = p.x.q + (size_t)(row0 + r) * p.x.stride;
        const struct words<N> v = load_codes<N>(x + v_col, q), k = load_codes<N>(x + k_col, q);
        int8_t *to = (int8_t *)p.kv.k + kv_at(p.kv, p.a.layer, block, head) + slot * p.a.head_dim;
        ((struct words<N> *)to)[q] = k;
#pragma unroll
        for (int w = 0; w < N; w++)
            values[r * (KV_STRIDE / 4) + q * N + w] = v.w[w];
    }
    __syncthreads();
    if (at.x < 0)
        return;
    int8_t *to = (int8_t *)p.kv.v + kv_at(p.kv, p.a.layer, at.x, head) + at.y;
    for (int q = warp_id(); q < p.a.head_dim / 4; q += KV_THREADS / 32) {
        const uint32_t v = values[lane * (KV_STRIDE / 4) + q];
#pragma unroll
        for (int i = 0; i < 4; i++)
            to[(4 * q + i) * SQ_KV_BLOCK] = (int8_t)(v >> 8 * i);
    }
}

/* Rows are copied as they are, T (a float or four) at a time. */
template <class T>
__global__ void __launch_bounds__(KV_THREADS)
    kv_write_f32(const __grid_constant__ struct kv_write_args p)
{
    const int n = (int)(sizeof(T) / sizeof(float)), per_head = p.a.head_dim / n;
    const int row = (int)blockIdx.x, k0 = p.a.n_heads * per_head, v0 = p.a.n_kv_heads * per_head;
    const int2 slot = slot_of(p, row);
    if (slot.x < 0)
        return;
    const T *x = (const T *)(p.xf + (size_t)row * p.ld_xf) + k0;
    const size_t tile0 = kv_at(p.kv, p.a.layer, slot.x, 0) / n;
    for (int i = (int)(blockIdx.y * KV_THREADS + threadIdx.x); i < v0;
         i += (int)gridDim.y * KV_THREADS) {
        const int head = i / per_head, e = i - head * per_head;
        const size_t at = tile0 + (size_t)((head * SQ_KV_BLOCK + slot.y) * per_head + e);
        ((T *)p.kv.k)[at] = x[i];
        ((T *)p.kv.v)[at] = x[v0 + i];
    }
}

static void write_f32(cudaStream_t st, const struct kv_write_args &p)
{
    const bool quads = p.a.head_dim % 4 == 0 && p.ld_xf % 4 == 0;
    const int units = p.a.n_kv_heads * p.a.head_dim / (quads ? 4 : 1);
    /* few rows: spread one over several blocks */
    const int per_row = p.n_rows >= 64 ? 1 : (units + KV_THREADS - 1) / KV_THREADS;
    if (quads)
        kv_write_f32<float4><<<dim3(p.n_rows, per_row), KV_THREADS, 0, st>>>(p);
    else
        kv_write_f32<float><<<dim3(p.n_rows, per_row), KV_THREADS, 0, st>>>(p);
}

cudaError_t sq_gpu_kv_write(cudaStream_t st, const struct sq_gpu_step *s, int n_rows,
                            const struct sq_gpu_kv *kv, const struct sq_gpu_attn *a,
                            struct sq_gpu_codes x, const float *xf, int ld_xf)
{
    if (!kv->is_f32 && (a->head_dim % 4 != 0 || a->head_dim > ATTN_D_MAX))
        return cudaErrorInvalidValue;
    const struct kv_write_args p = {*s, *kv, *a, x, xf, ld_xf, n_rows};
    const dim3 grid((n_rows + KV_ROWS - 1) / KV_ROWS, a->n_kv_heads);
    if (kv->is_f32)
        write_f32(st, p);
    else if (a->head_dim % 16 == 0)
        kv_write_s8<4><<<grid, KV_THREADS, 0, st>>>(p);
    else
        kv_write_s8<1><<<grid, KV_THREADS, 0, st>>>(p);
    return cudaGetLastError();
}

/* --- rope --- */

#define ROPE_THREADS 256

struct rope_args {
    struct sq_gpu_step s;
    struct sq_gpu_rope rope; /* rot_dim 0: none */
    struct sq_gpu_attn a;
    const float *x;
    float *y;
    struct sq_gpu_codes y_q;
};

/* Elements e.. of head h to y, or codes. */
template <int VEC>
__device__ __forceinline__ void rope_put(const struct rope_args &p, int row, int h, int e,
                                         const float *v)
{
    const int col = h * p.a.head_dim + e;
    const float inv = h < p.a.n_heads                    ? p.a.q_inv
                      : h < p.a.n_heads + p.a.n_kv_heads ? p.a.k_inv
                                                         : p.a.v_inv;
    const int cols = (p.a.n_heads + 2 * p.a.n_kv_heads) * p.a.head_dim;
    if (p.y) {
#pragma unroll
        for (int i = 0; i < VEC; i++)
            p.y[(size_t)row * cols + col + i] = v[i];
        return;
    }
    int8_t *q = p.y_q.q + (size_t)row * p.y_q.stride + col;
    if (VEC == 4)
        *(uint32_t *)q = d_quant4(*(const float4 *)v, inv);
    else
        q[0] = (int8_t)d_sat_s8(__fmul_rn(v[0], inv));
}

template <int VEC> __device__ __forceinline__ void rope_get(const float *x, float *ret)
{
    if (VEC == 4)
        *(float4 *)ret = *(const float4 *)x;
    else
        ret[0] = x[0];
}

/* A block takes a row; a thread VEC pairs (a, b) of a head, or VEC elements that are not rotated. Both halves of a pair are read before
 * either is written: y may be x. */
template <int VEC>
__global__ void __launch_bounds__(ROPE_THREADS)
    rope_rows(const __grid_constant__ struct rope_args p)
{
    const int row = (int)blockIdx.y, dim = p.a.head_dim, n_rot = p.a.n_heads + p.a.n_kv_heads;
    if (p.s.row_seq[row] < 0)
        return;
    const int half = p.rope.rot_dim / 2, units = (dim - half) / VEC, pos = p.s.pos[row];
    const int n_units = n_rot * units + p.a.n_kv_heads * (dim / VEC);
    const float *x = p.x + (size_t)row * (n_rot + p.a.n_kv_heads) * dim;
    for (int u = (int)(blockIdx.x * ROPE_THREADS + threadIdx.x); u < n_units;
         u += (int)gridDim.x * ROPE_THREADS) {
        float a[VEC], b[VEC], c[VEC], s[VEC];
        const bool is_v = u >= n_rot * units;
        const int w = is_v ? u - n_rot * units : u, per = is_v ? dim / VEC : units;
        const int h = w / per + (is_v ? n_rot : 0), e = w % per * VEC;
        if (is_v || e >= half) {
            const int from = is_v ? e : e + half;
            rope_get<VEC>(x + h * dim + from, a);
            rope_put<VEC>(p, row, h, from, a);
            continue;
        }
        rope_get<VEC>(x + h * dim + e, a);
        rope_get<VEC>(x + h * dim + e + half, b);
        rope_get<VEC>(p.rope.cos + (size_t)pos * half + e, c);
        rope_get<VEC>(p.rope.sin + (size_t)pos * half + e, s);
#pragma unroll
        for (int i = 0; i < VEC; i++) {
            const float a1 = d_rotated_a(a[i], b[i], c[i], s[i]);
            b[i] = d_rotated_b(a[i], b[i], c[i], s[i]);
            a[i] = a1;
        }
        rope_put<VEC>(p, row, h, e, a);
        rope_put<VEC>(p, row, h, e + half, b);
    }
}

cudaError_t sq_gpu_rope_rows(cudaStream_t st, const struct sq_gpu_step *s, int n_rows,
                             const struct sq_gpu_rope *rope, const struct sq_gpu_attn *a,
                             const float *x, float *y, struct sq_gpu_codes y_q)
{
    struct rope_args p = {*s, {}, *a, x, y, y_q};
    if (rope)
        p.rope = *rope;
    const bool quads = a->head_dim % 4 == 0 && p.rope.rot_dim % 8 == 0;
    const int n_units = (a->n_heads + 2 * a->n_kv_heads) * a->head_dim / (quads ? 4 : 1);
    /* few rows: spread one over several blocks */
    const int per_row = n_rows >= 64 ? 1 : (n_units + ROPE_THREADS - 1) / ROPE_THREADS;
    if (quads)
        rope_rows<4><<<dim3(per_row, n_rows), ROPE_THREADS, 0, st>>>(p);
    else
        rope_rows<1><<<dim3(per_row, n_rows), ROPE_THREADS, 0, st>>>(p);
    return cudaGetLastError();
}
