/* int8 matmul of few rows: y[M,N] = x[M,K] w[N,K]^T, M <= 64, which reads the weights once, at the pace of the memory.
 *
 * A block has a range of weight rows (at most 32 for each warp beside another) and a slice of K. It walks the slice in steps of one 128-byte
 * line of each row for each of the `warps_k` warps that share a range of rows; steps pass through a ring in shared memory, filled by cp.async
 * so that most of it is always on its way. A warp loads and multiplies its own 32 rows: weights are operand A (16 rows x 32 k), the rows
 * of x are the columns of operand B, 8 at a time. Lines are swizzled (piece ^ row % 8), so neither copies nor ldmatrix meet a bank
 * conflict. Sums go through shared memory to whole output rows, where the epilogue is applied.
 *
 * With more slices than one, all but one block of a range add their sums to `work`; the last to start waits for them (all
 * of them are running), adds its own, finishes, and leaves zeros. Sums are integers: the order does not matter.
 *
 * With a norm, a block computes it while its first weights are under way: each block all rows, since that costs less than a launch. */
#include "cuda/finish.cuh"
#include "cuda/gemm_plan.h"
#include "cuda/kernels.h"
#include "cuda/numbers.cuh"
#include "cuda/prims.cuh"

#define LINE SQ_SMALL_LINE
#define WARP_ROWS SQ_SMALL_WARP_ROWS
#define WARP_BYTES (LINE * WARP_ROWS)

struct job {
    struct sq_gpu_gemm g;
    struct sq_gpu_norm norm;
    struct sq_small_plan p;
};

/* What this block, and this warp of it, has to do. */
struct part {
    int lane, warp, warp_n, warp_k;
    int row0, n_rows; /* weight rows of the block */
    int line0, n_lines, n_steps;
    const int8_t *w; /* this lane's piece of the warp's first row, line 0 of the slice */
    unsigned valid;  /* bit i: row 4 i + lane / 8 of the warp exists */
};

static __device__ __forceinline__ struct part my_part(const struct job &j)
{
    struct part p;
    const int quads = (j.g.n_out + 3) / 4, lines = (j.g.k + LINE - 1) / LINE;
    const unsigned t = blockIdx.x, s = blockIdx.y;
    p.lane = (int)threadIdx.x % 32;
    p.warp = __shfl_sync(FULL_WARP, (int)threadIdx.x / 32, 0);
    p.warp_n = p.warp % j.p.warps_n;
    p.warp_k = p.warp / j.p.warps_n;
    p.row0 = 4 * (int)((unsigned long long)quads * t / gridDim.x);
    p.n_rows = min(4 * (int)((unsigned long long)quads * (t + 1) / gridDim.x), j.g.n_out) - p.row0;
    p.line0 = (int)(lines * s / gridDim.y);
    p.n_lines = (int)(lines * (s + 1) / gridDim.y) - p.line0;
    p.n_steps = (p.n_lines + j.p.warps_k - 1) / j.p.warps_k;
    const int row = p.warp_n * WARP_ROWS + p.lane / 8;
    p.w = j.g.w + (size_t)(p.row0 + row) * j.g.ldw + (size_t)(p.line0 + p.warp_k) * LINE +
          p.lane % 8 * 16;
    p.valid = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        p.valid |= (unsigned)(row + 4 * i < p.n_rows) << i;
    return p;
}

/* Whether this lane's 16 bytes of the warp's line of a step lie inside of K. */
static __device__ __forceinline__ bool piece_there(const struct job &j, const struct part &p,
                                                   int step)
{
    const int line = p.line0 + step * j.p.warps_k + p.warp_k;
    return line * LINE + p.lane % 8 * 16 < j.g.k;
}

static __device__ __forceinline__ bool has_line(const struct job &j, const struct part &p, int step)
{
    return step * j.p.warps_k + p.warp_k < p.n_lines;
}

static __device__ __forceinline__ void load_weights(const struct job &j, const struct part &p,
                                                    int step, uint8_t *slot)
{
    if (!has_line(j, p, step))
        return;
    const unsigned valid = piece_there(j, p, step) ? p.valid : 0;
    const int8_t *w = p.w + (size_t)step * j.p.warps_k * LINE;
    const size_t row4 = (size_t)j.g.ldw * 4;
    uint8_t *to = slot + p.warp * WARP_BYTES + p.lane / 8 * LINE;
    const int at = (p.lane % 8 ^ p.lane / 8) * 16;
#pragma unroll
    for (int i = 0; i < 8; i++, w += row4)
        p_cp_async16(to + i * 4 * LINE + (at ^ i % 2 * 64), w, valid >> i & 1);
}

/* The warps side by side share the line of x. The first steps' come by plain loads: they need no group, and wait for no weights. */
template <bool ASYNC>
static __device__ __forceinline__ void load_x(const struct job &j, const struct part &p, int step,
                                              uint8_t *slot)
{
    if (!has_line(j, p, step))
        return;
    const bool there = piece_there(j, p, step);
    const int piece = p.lane % 8, line = p.line0 + step * j.p.warps_k + p.warp_k;
    uint8_t *to = slot + j.p.warps_n * j.p.warps_k * WARP_BYTES + p.warp_k * j.g.n_rows * LINE;
    for (int m = p.warp_n * 4 + p.lane / 8; m < j.g.n_rows; m += 4 * j.p.warps_n) {
        const int8_t *x = j.g.x.q + (size_t)m * j.g.x.stride + (size_t)line * LINE + piece * 16;
        uint8_t *at = to + m * LINE + (piece ^ m % 8) * 16;
        if (ASYNC)
            p_cp_async16(at, x, there);
        else
            *(uint4 *)at = there ? *(const uint4 *)x : make_uint4(0, 0, 0, 0);
    }
}

/* acc += one line of 32 weight rows times NT * 8 rows of x. `x_at`: this lane's row of a column tile; with a norm x is not swizzled. */
template <int NT, bool NORM>
static __device__ __forceinline__ void multiply(int32_t (&acc)[2][NT][4], const uint8_t *w,
                                                const uint8_t *x, int w_at, const int (&x_at)[NT])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t a[2][2][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            p_ldmatrix_x4(a[i / 2][i % 2], w + i / 2 * 16 * LINE + (w_at ^ (h * 64 + i % 2 * 32)));
#pragma unroll
        for (int n = 0; n < NT; n++) {
            uint32_t b[4];
            p_ldmatrix_x4(b, x + (NORM ? x_at[n] + h * 64 : x_at[n] ^ h * 64));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                p_mma_s8(acc[i][n], a[i][0], b[0], b[1]);
                p_mma_s8(acc[i][n], a[i][1], b[2], b[3]);
            }
        }
    }
}

/* --- the norm in front --- */

/* Sum over a row in shared memory, in the canonical shape; the half warp's lane has every sixteenth element. */
template <bool SQUARES>
static __device__ __forceinline__ float lane_sum(const float *x, int dim, float mean)
{
    float acc = 0.0f;
#pragma unroll 8
    for (int k = (int)threadIdx.x % SQ_LANES; k < dim; k += SQ_LANES) {
        const float d = SQUARES ? __fsub_rn(x[k], mean) : x[k];
        acc = SQUARES ? __fmaf_rn(d, d, acc) : __fadd_rn(acc, d);
    }
    return d_sum16(acc);
}

/* x - 0 is x: RMSNorm is the same with a mean of 0. */
static __device__ void row_stats(const struct sq_gpu_norm &n, const float *x, float2 *ret)
{
    const float dim = (float)n.dim;
    const float mean = n.rms ? 0.0f : __fdiv_rn(lane_sum<false>(x, n.dim, 0.0f), dim);
    const float var = __fdiv_rn(lane_sum<true>(x, n.dim, mean), dim);
    if (threadIdx.x % SQ_LANES == 0)
        *ret = make_float2(mean, __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(var, n.eps))));
}

static __device__ __forceinline__ float4 load_quad(const float *p, int k, int n)
{
    if (p == NULL)
        return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (k + 4 <= n && (uintptr_t)(p + k) % 16 == 0)
        return *(const float4 *)(p + k);
    return make_float4(k < n ? p[k] : 0.0f, k + 1 < n ? p[k + 1] : 0.0f,
                       k + 2 < n ? p[k + 2] : 0.0f, k + 3 < n ? p[k + 3] : 0.0f);
}

static __device__ __forceinline__ float norm_code(float x, float2 s, float gamma, float beta)
{
    return __fmaf_rn(__fmul_rn(__fsub_rn(x, s.x), s.y), gamma, beta);
}

/* Columns of the slice, of rows [m0, m0 + n), which are in shared memory. The first range's blocks put them into x.q as well. */
static __device__ void norm_codes(const struct job &j, const struct part &p, int m0, int n,
                                  const float *rows, const float2 *stats, uint8_t *codes)
{
    const int k0 = p.line0 * LINE, dim = j.norm.dim;
    for (int c = (int)threadIdx.x * 4; c < p.n_lines * LINE; c += (int)blockDim.x * 4) {
        const float4 g = load_quad(j.norm.gamma_q, k0 + c, dim);
        const float4 b = load_quad(j.norm.beta_q, k0 + c, dim);
        for (int m = 0; m < n; m++) {
            const float4 x = load_quad(rows + m * j.p.row_floats, k0 + c, dim);
            const float2 s = stats[m];
            uint32_t q = d_codes4(norm_code(x.x, s, g.x, b.x), norm_code(x.y, s, g.y, b.y),
                                  norm_code(x.z, s, g.z, b.z), norm_code(x.w, s, g.w, b.w));
            const int left =
                dim - k0 - c; /* what is not there is 0, whatever the mean made of it */
            q &= left >= 4 ? ~0u : left <= 0 ? 0u : (1u << 8 * left) - 1;
            *(uint32_t *)(codes + (m0 + m) * j.p.x_stride + c) = q;
            if (blockIdx.x == 0 && j.g.x.q && k0 + c < j.g.k)
                *(uint32_t *)(j.g.x.q + (size_t)(m0 + m) * j.g.x.stride + k0 + c) = q;
        }
    }
}

static __device__ void norm_in_front(const struct job &j, const struct part &p, uint8_t *shared)
{
    __shared__ float2 stats[SQ_GPU_NORM_ROWS];
    float *rows = (float *)(shared + j.p.rows_at);
    const int dim = j.norm.dim;
    for (int m0 = 0; m0 < j.g.n_rows; m0 += j.p.norm_rows) {
        const int n = min(j.p.norm_rows, j.g.n_rows - m0);
        if (m0)
            __syncthreads();
        for (int m = 0; m < n; m++) {
            const float *x = j.g.norm_x + (size_t)(m0 + m) * dim;
#pragma unroll 4
            for (int k = (int)threadIdx.x * 4; k < dim; k += (int)blockDim.x * 4)
                *(float4 *)(rows + m * j.p.row_floats + k) = load_quad(x, k, dim);
        }
        __syncthreads();
        for (int i = p.warp * 2; i < n; i += (int)blockDim.x / 16) {
            const int m = min(i + p.lane / 16, n - 1);
            row_stats(j.norm, rows + m * j.p.row_floats, &stats[m]);
        }
        __syncthreads();
        norm_codes(j, p, m0, n, rows, stats, shared + j.p.codes_at);
    }
}

/* --- results --- */

/* Epilogue constants of the block's rows, as loaded from memory; what is not there is 0. */
static __device__ void load_constants(const struct job &j, const struct part &p, float *to)
{
    const struct sq_gpu_finish &f = j.g.to;
    const float *bias = finish_is_s8(f.epi) ? (const float *)f.bias_acc : f.bias;
    const int n = j.p.warps_n * WARP_ROWS;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) {
        const bool there = i < p.n_rows && f.epi != SQ_EPI_ACC;
        to[i] = there ? f.mul[p.row0 + i] : 0.0f;
        to[n + i] = there && bias ? bias[p.row0 + i] : 0.0f;
    }
}

/* The sums of a block in shared memory, [warps_k][rows of x][ld]; ld leaves the stores without conflicts. */
struct sums {
    int32_t *at;
    int ld, n_copies, copy;
};

template <int NT>
static __device__ __forceinline__ void store_sums(const struct sums &s, const struct job &j,
                                                  const struct part &p,
                                                  const int32_t (&acc)[2][NT][4])
{
    int32_t *to = s.at + p.warp_k * s.copy + p.warp_n * WARP_ROWS + p.lane / 4;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int m = n * 8 + p.lane % 4 * 2 + i % 2;
            if (m < j.g.n_rows)
                to[m * s.ld + i / 2 * 8] = acc[i / 4][n][i % 4];
        }
}

/* --- several slices --- */

static __device__ __forceinline__ int32_t *range_sums(const struct job &j)
{
    return (int32_t *)j.g.work + 2 * SQ_SMALL_RANGES +
           (size_t)blockIdx.x * (size_t)(j.g.n_rows * j.p.warps_n * WARP_ROWS);
}

/* Taken at the start of a block, looked at when its sums are there: the last to start finishes the range, for all others are running. */
static __device__ __forceinline__ bool take_ticket(const struct job &j)
{
    int32_t *counters = (int32_t *)j.g.work + 2 * blockIdx.x;
    return gridDim.y == 1 || (threadIdx.x == 0 && atomicAdd(&counters[0], 1) == (int)gridDim.y - 1);
}

static __device__ void add_slice(const struct job &j, const struct part &p, const struct sums &s)
{
    int32_t *sums = range_sums(j);
    for (int m = p.warp; m < j.g.n_rows; m += (int)blockDim.x / 32) {
        for (int r = p.lane; r < p.n_rows; r += 32) {
            int32_t sum = 0;
            for (int i = 0; i < s.n_copies; i++)
                sum += s.at[i * s.copy + m * s.ld + r];
            atomicAdd(&sums[m * j.p.warps_n * WARP_ROWS + r], sum);
        }
    }
}

/* True in the block that finishes, when the others have added their sums to work. `ticket`: thread 0's. */
static __device__ bool join_slices(const struct job &j, const struct part &p, const struct sums &s,
                                   bool ticket)
{
    int32_t *counters = (int32_t *)j.g.work + 2 * blockIdx.x;
    if (!__syncthreads_or(threadIdx.x == 0 && ticket)) {
        add_slice(j, p, s);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0)
            atomicAdd(&counters[1], 1);
        return false;
    }
    if (threadIdx.x == 0) {
        while (*(volatile int32_t *)&counters[1] != (int)gridDim.y - 1)
            ;
        counters[0] = counters[1] = 0;
        __threadfence();
    }
    __syncthreads();
    return true;
}

static __device__ __forceinline__ int4 add4(int4 a, int4 b)
{
    return make_int4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

static __device__ void put_sums(const struct job &j, int m, int n, int4 sum)
{
    const int32_t acc[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (n + i < j.g.n_out)
            j.g.acc_y[(size_t)m * j.g.n_out + n + i] = acc[i];
}

static __device__ void finish(const struct job &j, const struct part &p, const struct sums &s,
                              const float *constants)
{
    const bool joined = gridDim.y > 1;
    const int n_quads = (p.n_rows + 3) / 4, width = j.p.warps_n * WARP_ROWS;
    for (int i = (int)threadIdx.x; i < n_quads * j.g.n_rows; i += (int)blockDim.x) {
        const int m = i / n_quads, r = (i - m * n_quads) * 4;
        int4 sum = *(const int4 *)(s.at + m * s.ld + r);
        for (int c = 1; c < s.n_copies; c++)
            sum = add4(sum, *(const int4 *)(s.at + c * s.copy + m * s.ld + r));
        if (joined) {
            int4 *others = (int4 *)(range_sums(j) + m * width + r);
            sum = add4(sum, __ldcg(others));
            __stcg(others, make_int4(0, 0, 0, 0));
        }
        if (j.g.to.epi == SQ_EPI_ACC)
            put_sums(j, m, p.row0 + r, sum);
        else
            finish_four(j.g.to, {m, p.row0 + r, j.g.n_out}, sum, *(const float4 *)(constants + r),
                        *(const float4 *)(constants + width + r));
    }
}

/* --- the kernel --- */

/* At most n groups still on their way. */
static __device__ __forceinline__ void wait_groups(int n)
{
    switch (n) {
    case 0:
        p_cp_async_wait<0>();
        break;
    case 1:
        p_cp_async_wait<1>();
        break;
    case 2:
        p_cp_async_wait<2>();
        break;
    case 3:
        p_cp_async_wait<3>();
        break;
    case 4:
        p_cp_async_wait<4>();
        break;
    case 5:
        p_cp_async_wait<5>();
        break;
    default:
        p_cp_async_wait<6>();
    }
}

template <int NT, bool NORM>
static __global__ void
    __launch_bounds__((NT * 8 > SQ_SMALL_WIDE ? SQ_SMALL_WARPS_WIDE : SQ_SMALL_WARPS) * 32, 1)
        gemm_small(const __grid_constant__ struct job j)
{
    extern __shared__ __align__(128) uint8_t shared[];
    const struct part p = my_part(j);
    uint8_t *ring = shared + j.p.ring_at;
    float *constants = (float *)shared;

    for (int i = 0; i < j.p.stages - 1; i++) {
        load_weights(j, p, i, ring + i * j.p.stage_bytes);
        p_cp_async_commit();
    }
    load_constants(j, p, constants);
    p_let_next_start();
    p_wait_for_previous();
    const bool ticket = take_ticket(j);
    if (NORM)
        norm_in_front(j, p, shared);
    else
        for (int i = 0; i < j.p.stages - 1; i++)
            load_x<false>(j, p, i, ring + i * j.p.stage_bytes);

    int32_t acc[2][NT][4] = {};
    const int w_at = (p.lane % 8 + p.lane / 8 % 2 * 8) * LINE + ((p.lane / 16 ^ p.lane % 8) * 16);
    int x_at[NT];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const int m = min(n * 8 + p.lane % 8, j.g.n_rows - 1);
        x_at[n] = NORM ? m * j.p.x_stride + p.lane / 8 * 16 : m * LINE + (p.lane / 8 ^ m % 8) * 16;
    }
    const int x_in_slot = j.p.warps_n * j.p.warps_k * WARP_BYTES + p.warp_k * j.g.n_rows * LINE;
    for (int step = 0, slot = 0, next = j.p.stages - 1; step < p.n_steps; step++) {
        wait_groups(j.p.stages - 2);
        __syncthreads();
        if (next == j.p.stages)
            next = 0;
        load_weights(j, p, step + j.p.stages - 1, ring + next * j.p.stage_bytes);
        if (!NORM)
            load_x<true>(j, p, step + j.p.stages - 1, ring + next * j.p.stage_bytes);
        p_cp_async_commit();
        next++;
        uint8_t *at = ring + slot * j.p.stage_bytes;
        if (has_line(j, p, step))
            multiply<NT, NORM>(acc, at + p.warp * WARP_BYTES,
                               NORM ? shared + j.p.codes_at + (step * j.p.warps_k + p.warp_k) * LINE
                                    : at + x_in_slot,
                               w_at, x_at);
        slot = slot + 1 == j.p.stages ? 0 : slot + 1;
    }
    p_cp_async_wait<0>();
    __syncthreads();

    struct sums s = {(int32_t *)ring, j.p.sum_stride, j.p.warps_k, 0};
    s.copy = j.g.n_rows * s.ld;
    store_sums<NT>(s, j, p, acc);
    __syncthreads();
    if (gridDim.y == 1 || join_slices(j, p, s, ticket))
        finish(j, p, s, constants);
}

/* --- the launch --- */

/* Overlapping the kernel before (sm_90 and later): blocks start, and load weights, as soon as that one's blocks leave room. */
static void config(cudaLaunchConfig_t *c, cudaLaunchAttribute *a, cudaStream_t st,
                   const struct job *j, bool overlap)
{
    const struct sq_small_plan *p = &j->p;
    c->gridDim = dim3((unsigned)p->ranges, (unsigned)p->slices);
    c->blockDim = dim3((unsigned)(p->warps_n * p->warps_k * 32));
    c->dynamicSmemBytes = (size_t)p->shared_bytes;
    c->stream = st;
    a->id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a->val.programmaticStreamSerializationAllowed = 1;
    c->attrs = a;
    c->numAttrs = overlap ? 1 : 0;
}

template <int NT, bool NORM>
static cudaError_t launch(cudaStream_t st, const struct job *j, bool overlap)
{
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute a = {};
    cudaError_t e = cudaFuncSetAttribute(
        gemm_small<NT, NORM>, cudaFuncAttributeMaxDynamicSharedMemorySize, j->p.shared_bytes);
    if (e != cudaSuccess)
        return e;
    config(&c, &a, st, j, overlap);
    e = cudaLaunchKernelEx(&c, gemm_small<NT, NORM>, *j);
    return e != cudaSuccess ? e : cudaGetLastError();
}

static cudaError_t this_device(struct sq_small_shape *s, int *ret_major)
{
    int id;
    cudaError_t e = cudaGetDevice(&id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&s->n_sms, cudaDevAttrMultiProcessorCount, id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&s->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(ret_major, cudaDevAttrComputeCapabilityMajor, id);
    s->shared_bytes -= 128; /* what is declared in functions */
    return e;
}

extern "C" size_t sq_gpu_gemm_small_work(void)
{
    return (2 * SQ_SMALL_RANGES + (size_t)SQ_SMALL_SUMS) * sizeof(int32_t);
}

static bool shape_ok(const struct sq_gpu_gemm *g)
{
    if (g->n_rows < 1 || g->n_rows > SQ_GPU_SMALL_MAX || g->n_out < 1 || g->k < 16 || g->k % 16)
        return false;
    return !g->norm || (g->n_rows <= SQ_GPU_NORM_ROWS && g->norm->dim <= g->k);
}

extern "C" cudaError_t sq_gpu_gemm_small(cudaStream_t st, const struct sq_gpu_gemm *g)
{
    struct sq_small_shape s = {};
    struct job j = {};
    int major = 0;
    if (!shape_ok(g))
        return cudaErrorInvalidValue;
    cudaError_t e = this_device(&s, &major);
    if (e != cudaSuccess)
        return e;
    j.g = *g;
    if (g->norm)
        j.norm = *g->norm;
    s.n_out = g->n_out;
    s.k = g->k;
    s.n_rows = g->n_rows;
    s.norm_dim = j.norm.dim;
    s.may_join = g->work != NULL;
    if (!sq_small_plan(&s, &j.p))
        return cudaErrorInvalidConfiguration;
    const bool overlap = g->overlap && major >= 9;
    if (g->norm)
        return launch<1, true>(st, &j, overlap);
    if (g->n_rows <= 8)
        return launch<1, false>(st, &j, overlap);
    if (g->n_rows <= 16)
        return launch<2, false>(st, &j, overlap);
    if (g->n_rows <= SQ_SMALL_WIDE)
        return launch<4, false>(st, &j, overlap);
    return launch<8, false>(st, &j, overlap);
}
