/* int8 matmuls of few rows: y[M,N] = x[M,K] w[N,K]^T, M <= 64, which read the weights once, at the pace of the memory; one of them, or a chain of
 * several that read what the one before wrote, in one launch.
 *
 * A unit of work is a range of weight rows (at most 32 for each warp beside another) and a slice of K. A block walks the slice in steps of one
 * 128-byte line of each row for each of the `warps_k` warps that share a range of rows; steps pass through a ring in shared memory, filled by
 * cp.async so that most of it is always on its way. A warp loads and multiplies its own 32 rows: weights are operand A (16 rows x 32 k), the rows
 * of x are the columns of operand B, 8 at a time. Lines are swizzled (piece ^ row % 8), so neither copies nor ldmatrix meet a bank
 * conflict. Sums go through shared memory to whole output rows, where the epilogue is applied.
 *
 * Blocks stay: each goes from unit to unit, through all matmuls of the chain, with a barrier of the grid between two of them. The ring is filled
 * with the next unit's weights before the sums of this one are finished, so that the memory works through epilogue, barrier and norm.
 *
 * With more slices than one, all but one block of a range add their sums to `work`; the first slice's waits for them, adds its own,
 * finishes, and leaves zeros. Sums are integers: the order does not matter. Barriers and slices need all blocks to run at once: a cooperative launch.
 *
 * With many rows, blocks work in pairs that share what they read of x (gemm_x.cuh): they go through their steps together.
 *
 * A norm of few rows is computed by each block, all of it, since that costs less than waiting; more rows are shared out, with one more barrier. */
#include "cuda/finish.cuh"
#include "cuda/gemm_norm.cuh"
#include "cuda/gemm_x.cuh"

#define PAUSE_NS 32 /* between two looks at a counter */

template <bool PAIR>
static __device__ __forceinline__ void load_weights(const struct part &p, int step, uint8_t *slot)
{
    if (!has_weights<PAIR>(p, step))
        return;
    const unsigned valid = piece_there(p, step) ? p.valid : 0;
    const int8_t *w = p.w + (size_t)step * p.warps_k * LINE;
    const size_t row4 = (size_t)p.ldw * 4;
    uint8_t *to = slot + p.warp * WARP_BYTES + p.lane / 8 * LINE;
    const int at = (p.lane % 8 ^ p.lane / 8) * 16;
#pragma unroll
    for (int i = 0; i < 8; i++, w += row4)
        p_cp_async16(to + i * 4 * LINE + (at ^ i % 2 * 64), w, valid >> i & 1);
}

/* Where a warp finds its operands in a line: this lane's row of weights and of the first tile of x, bytes to each next tile, and rows there are. */
struct operands {
    int w_at, x_at, x_tile, n_rows;
};

/* acc += one line of 32 weight rows times NT tiles of 8 rows of x; tiles that do not exist are the first one again. */
template <int NT>
static __device__ __forceinline__ void multiply(int32_t (&acc)[2][NT][4], const uint8_t *w,
                                                const uint8_t *x, const struct operands &o)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t a[2][2][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            p_ldmatrix_x4(a[i / 2][i % 2],
                          w + i / 2 * 16 * LINE + (o.w_at ^ (h * 64 + i % 2 * 32)));
#pragma unroll
        for (int n = 0; n < NT; n++) {
            uint32_t b[4];
            p_ldmatrix_x4(b, x + (n * 8 < o.n_rows ? n * o.x_tile : 0) + (o.x_at ^ h * 64));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                p_mma_s8(acc[i][n], a[i][0], b[0], b[1]);
                p_mma_s8(acc[i][n], a[i][1], b[2], b[3]);
            }
        }
    }
}

/* --- the grid --- */

/* All blocks have come here, and what they wrote before is seen. The counter's highest bit turns with each barrier, whatever the grid's size. */
static __device__ void grid_barrier(void *work)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned *at = (unsigned *)work;
        const unsigned mine = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1;
        __threadfence();
        const unsigned before = atomicAdd(at, mine);
        while (((before ^ *(volatile unsigned *)at) & 0x80000000u) == 0)
            __nanosleep(PAUSE_NS);
        __threadfence();
    }
    __syncthreads();
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
    if (p.idle)
        return;
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

static __device__ __forceinline__ int32_t *range_sums(const struct job &j, const struct part &p)
{
    return (int32_t *)j.g.work + SQ_SMALL_SUMS_AT +
           (size_t)p.range * (size_t)(j.g.n_rows * j.p.warps_n * WARP_ROWS);
}

static __device__ void add_slice(const struct job &j, const struct part &p, const struct sums &s)
{
    int32_t *sums = range_sums(j, p);
    for (int m = p.warp; m < j.g.n_rows; m += (int)blockDim.x / 32) {
        for (int r = p.lane; r < p.n_rows; r += 32) {
            int32_t sum = 0;
            for (int i = 0; i < s.n_copies; i++)
                sum += s.at[i * s.copy + m * s.ld + r];
            p_red_add(&sums[m * j.p.warps_n * WARP_ROWS + r], sum);
        }
    }
}

/* True in the block of the first slice, when the others have added their sums to work. */
static __device__ bool join_slices(const struct job &j, const struct part &p, const struct sums &s)
{
    int32_t *counter = (int32_t *)j.g.work + SQ_SMALL_COUNTERS + p.range;
    if (p.slice != 0) {
        add_slice(j, p, s);
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0)
            atomicAdd(counter, 1);
        return false;
    }
    if (threadIdx.x == 0) {
        while (*(volatile int32_t *)counter != j.p.slices - 1)
            __nanosleep(PAUSE_NS);
        *counter = 0;
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
    const bool joined = j.p.slices > 1;
    const int n_quads = (p.n_rows + 3) / 4, width = j.p.warps_n * WARP_ROWS;
    for (int i = (int)threadIdx.x; i < n_quads * j.g.n_rows; i += (int)blockDim.x) {
        const int m = i / n_quads, r = (i - m * n_quads) * 4;
        int4 sum = *(const int4 *)(s.at + m * s.ld + r);
        for (int c = 1; c < s.n_copies; c++)
            sum = add4(sum, *(const int4 *)(s.at + c * s.copy + m * s.ld + r));
        if (joined) {
            int4 *others = (int4 *)(range_sums(j, p) + m * width + r);
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

/* The unit that this block has after (job, unit), unit counting from the block's own number in steps of the grid. */
struct next {
    int job, unit;
};

static __device__ __forceinline__ struct next first_from(const struct chain &c, struct next at)
{
    while (at.job < c.n && at.unit >= n_units(c.job[at.job]))
        at.job++, at.unit = (int)blockIdx.x;
    return at;
}

/* Asks for its weights, as many as the ring holds, and its constants. All threads must be done with the unit before but for its front and constants. */
template <bool PAIR>
static __device__ struct part request(const struct chain &c, const struct next &at, uint8_t *shared,
                                      int turn)
{
    if (at.job >= c.n)
        return {};
    const struct job &j = c.job[at.job];
    const struct part p = my_part(j, at.unit);
    for (int i = 0; i < p.stages - 1; i++) {
        load_weights<PAIR>(p, i, shared + j.p.ring_at + i * p.stage_bytes);
        p_cp_async_commit();
    }
    load_constants(j, p, (float *)(shared + turn * j.p.const_bytes));
    return p;
}

/* All threads have come here, those of the pair's other block too. */
template <bool PAIR> static __device__ __forceinline__ void step_barrier(void)
{
    if (PAIR)
        p_cluster_barrier();
    else
        __syncthreads();
}

/* acc = the unit's weights times x. The weights of the first stages are on their way. */
template <int NT, bool PAIR>
static __device__ __forceinline__ void stream(int32_t (&acc)[2][NT][4], const struct job &j,
                                              const struct part &p, uint8_t *shared)
{
    const bool front = j.p.norm_in_front;
    const int row = min(p.lane % 8, j.g.n_rows - 1);
    const struct operands o = {
        (p.lane % 8 + p.lane / 8 % 2 * 8) * LINE + (p.lane / 16 ^ p.lane % 8) * 16,
        row * j.p.x_stride + (p.lane / 8 ^ row) * 16, 8 * j.p.x_stride, j.g.n_rows};
    uint8_t *ring = shared + j.p.ring_at;
    struct x_half<NT> x;
    if (PAIR) {
        ask_x(x, j, p, 0);
        p_cluster_barrier(); /* the other block is there, and done with the unit before */
        give_x(x, j, p, 0, shared);
        ask_x(x, j, p, 1);
    }
    for (int step = 0, slot = 0, free_one = p.stages - 1; step < p.n_steps; step++) {
        wait_groups(p.stages - 2);
        step_barrier<PAIR>();
        if (free_one == p.stages)
            free_one = 0;
        load_weights<PAIR>(p, step + p.stages - 1, ring + free_one * p.stage_bytes);
        if (!front && !PAIR)
            load_x<true>(j, p, step + p.stages - 1, ring + free_one * p.stage_bytes);
        p_cp_async_commit();
        if (PAIR) {
            give_x(x, j, p, step + 1, shared);
            ask_x(x, j, p, step + 2);
        }
        free_one++;
        const uint8_t *at = ring + slot * p.stage_bytes;
        if (has_weights<PAIR>(p, step))
            multiply<NT>(acc, at + p.warp * WARP_BYTES,
                         PAIR    ? x_of_step(j, p, step, shared)
                         : front ? shared + j.p.x_at + (step * p.warps_k + p.warp_k) * LINE
                                 : at + x_in_stage(j, p),
                         o);
        slot = slot + 1 == p.stages ? 0 : slot + 1;
    }
    p_cp_async_wait<0>(); /* empty groups */
    __syncthreads();
}

template <int NT, bool PAIR>
static __global__ void __launch_bounds__(SQ_SMALL_WARPS_MOST(NT * 8, PAIR) * 32, 1)
    gemm_small(const __grid_constant__ struct chain c)
{
    extern __shared__ __align__(128) uint8_t shared[];
#if __CUDA_ARCH__ < 900
    if (PAIR) /* never launched there: no clusters */
        return;
#endif
    int turn = 0;
    struct part p = request<PAIR>(c, first_from(c, {0, (int)blockIdx.x}), shared, turn);
    for (int i = 0; i < c.n; i++) {
        const struct job &j = c.job[i];
        const bool front = j.p.norm_in_front;
        if (i > 0)
            grid_barrier(j.g.work);
        if (j.norm.dim > 0 && !front) {
            norm_shared_out(j, shared);
            grid_barrier(j.g.work);
        }
        for (int unit = (int)blockIdx.x; unit < n_units(j); unit += (int)gridDim.x) {
            if (NT * 8 > SQ_SMALL_WIDE && !PAIR)
                p = my_part(j, p_again(unit));    /* registers are dearer there than arithmetic */
            if (front && unit == (int)blockIdx.x) /* more units have the same slice: all of k */
                norm_in_front(j, p, shared);
            for (int k = 0; k < p.stages - 1 && !front && !PAIR; k++)
                load_x<false>(j, p, k, shared + j.p.ring_at + k * p.stage_bytes);
            int32_t acc[2][NT][4] = {};
            stream<NT, PAIR>(acc, j, p, shared);
            const struct part done = my_part(j, p_again(unit));
            struct sums s = {(int32_t *)(shared + j.p.front_at), j.p.sum_stride, j.p.warps_k, 0};
            s.copy = j.g.n_rows * s.ld;
            store_sums<NT>(s, j, done, acc);
            p = request<PAIR>(c, first_from(c, {i, unit + (int)gridDim.x}), shared, !turn);
            __syncthreads();
            if (j.p.slices == 1 || join_slices(j, done, s))
                finish(j, done, s, (const float *)(shared + turn * j.p.const_bytes));
            turn = !turn;
        }
    }
}

/* --- the launch --- */

extern "C" size_t sq_gpu_gemm_small_work(void)
{
    return (SQ_SMALL_SUMS_AT + (size_t)SQ_SMALL_SUMS) * sizeof(int32_t);
}

typedef void kernel_fn(struct chain);

static kernel_fn *kernel_for(int n_rows, bool pairs)
{
    if (n_rows <= 8)
        return gemm_small<1, false>;
    if (n_rows <= 16)
        return gemm_small<2, false>;
    if (n_rows <= SQ_SMALL_WIDE)
        return pairs ? gemm_small<4, true> : gemm_small<4, false>;
    return pairs ? gemm_small<8, true> : gemm_small<8, false>;
}

struct launch {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attr[2];
};

static void in_pairs(struct launch *l)
{
    cudaLaunchAttribute *a = &l->attr[l->config.numAttrs++];
    a->id = cudaLaunchAttributeClusterDimension;
    a->val.clusterDim.x = 2;
    a->val.clusterDim.y = a->val.clusterDim.z = 1;
}

static cudaError_t allow_shared(kernel_fn *fn, size_t bytes)
{
    return cudaFuncSetAttribute((const void *)fn, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)bytes);
}

/* Are there clusters, in this build's code too, and do they fill the device? */
static cudaError_t can_pair(const struct sq_gpu_device *d, int capability, bool *ret)
{
    kernel_fn *fn = kernel_for(SQ_GPU_SMALL_MAX, true);
    struct cudaFuncAttributes a;
    struct launch l = {};
    int n = 0;
    *ret = false;
    cudaError_t e = cudaFuncGetAttributes(&a, (const void *)fn);
    if (e != cudaSuccess || capability < 90 || a.ptxVersion < 90 || d->n_sms < 2)
        return e;
    l.config.gridDim = dim3((unsigned)(d->n_sms / 2 * 2));
    l.config.blockDim = dim3(SQ_SMALL_WARPS_PAIR * 32);
    l.config.dynamicSmemBytes = (size_t)d->shared_bytes;
    l.config.attrs = l.attr;
    in_pairs(&l);
    e = allow_shared(fn, (size_t)d->shared_bytes);
    if (e == cudaSuccess)
        e = cudaOccupancyMaxActiveClusters(&n, (const void *)fn, &l.config);
    *ret = e == cudaSuccess && n >= d->n_sms / 2;
    return e;
}

extern "C" cudaError_t sq_gpu_device(struct sq_gpu_device *ret)
{
    struct sq_gpu_device d = {};
    int id, major = 0;
    cudaError_t e = cudaGetDevice(&id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&d.n_sms, cudaDevAttrMultiProcessorCount, id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&d.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    if (e == cudaSuccess)
        e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
    d.shared_bytes -= 128; /* what is declared in functions */
    if (e == cudaSuccess)
        e = can_pair(&d, major * 10, &d.can_pair);
    if (e == cudaSuccess)
        *ret = d;
    return e;
}

static bool shape_ok(const struct sq_gpu_gemm *g)
{
    if (g->n_rows < 1 || g->n_rows > SQ_GPU_SMALL_MAX || g->n_out < 1 || g->k < 16 || g->k % 16)
        return false;
    return !g->norm || (g->norm->dim <= g->k && (g->n_rows <= SQ_SMALL_FRONT_ROWS || g->x.q));
}

static bool chain_ok(const struct sq_gpu_gemm *g, int n)
{
    if (n < 1 || n > SQ_GPU_CHAIN)
        return false;
    for (int i = 0; i < n; i++)
        if (!shape_ok(&g[i]) || g[i].n_rows != g[0].n_rows || g[i].work != g[0].work ||
            (n > 1 && !g[i].work))
            return false;
    return true;
}

/* False: they do not fit into one launch. */
static bool plan_all(struct chain *c, const struct sq_gpu_gemm *g, int n,
                     const struct sq_gpu_device *d, bool pairs)
{
    struct sq_small_shape s[SQ_GPU_CHAIN] = {};
    struct sq_small_plan p[SQ_GPU_CHAIN];
    for (int i = 0; i < n; i++) {
        s[i].n_out = g[i].n_out;
        s[i].k = g[i].k;
        s[i].n_rows = g[i].n_rows;
        s[i].norm_dim = g[i].norm ? g[i].norm->dim : 0;
        s[i].may_join = g[i].work != NULL;
        s[i].pairs = pairs;
        s[i].n_sms = d->n_sms;
        s[i].shared_bytes = d->shared_bytes;
    }
    if (!sq_small_plan_chain(s, n, p))
        return false;
    c->n = n;
    for (int i = 0; i < n; i++) {
        c->job[i].g = g[i];
        c->job[i].norm = g[i].norm ? *g[i].norm : (struct sq_gpu_norm){};
        c->job[i].p = p[i];
    }
    return true;
}

static cudaError_t launch_planned(cudaStream_t st, const struct chain *c,
                                  const struct sq_gpu_device *d, bool pairs)
{
    kernel_fn *fn = kernel_for(c->job[0].g.n_rows, pairs);
    int units = 0, threads = 0, bytes = 0;
    bool together = c->n > 1;
    for (int i = 0; i < c->n; i++) {
        const struct sq_small_plan *p = &c->job[i].p;
        units = max(units, p->ranges * p->slices);
        threads = max(threads, p->warps_n * p->warps_k * 32);
        bytes = max(bytes, p->shared_bytes);
        together = together || p->slices > 1 || (c->job[i].norm.dim > 0 && !p->norm_in_front);
    }
    struct launch l = {};
    l.config.gridDim = dim3((unsigned)min(units, pairs ? d->n_sms / 2 * 2 : d->n_sms));
    l.config.blockDim = dim3((unsigned)threads);
    l.config.dynamicSmemBytes = (size_t)bytes;
    l.config.stream = st;
    l.config.attrs = l.attr;
    if (pairs)
        in_pairs(&l);
    if (together) {
        cudaLaunchAttribute *a = &l.attr[l.config.numAttrs++];
        a->id = cudaLaunchAttributeCooperative;
        a->val.cooperative = 1;
    }
    cudaError_t e = allow_shared(fn, (size_t)bytes);
    if (e == cudaSuccess)
        e = cudaLaunchKernelEx(&l.config, fn, *c);
    return e != cudaSuccess ? e : cudaGetLastError();
}

extern "C" cudaError_t sq_gpu_gemm_chain(cudaStream_t st, const struct sq_gpu_device *d,
                                         const struct sq_gpu_gemm *g, int n)
{
    struct chain c = {};
    if (!chain_ok(g, n))
        return cudaErrorInvalidValue;
    bool pairs = d->can_pair && g->n_rows >= SQ_SMALL_PAIR_LEAST;
    bool fits = plan_all(&c, g, n, d, pairs);
    if (!fits && pairs) {
        pairs = false;
        fits = plan_all(&c, g, n, d, pairs);
    }
    if (fits)
        return launch_planned(st, &c, d, pairs);
    cudaError_t e = n == 1 ? cudaErrorInvalidConfiguration : cudaSuccess;
    for (int i = 0; i < n && e == cudaSuccess; i++)
        e = sq_gpu_gemm_chain(st, d, &g[i], 1);
    return e;
}
