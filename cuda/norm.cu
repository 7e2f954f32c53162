/* Norms of rows, alone (norm_rows) or behind an int8 linear that adds to them (finish_norm).
 *
 * A block takes R rows: brings them into shared memory with all its threads (finish_norm dequantises and adds on the way), then one warp
 * a row computes the statistics in their canonical shape, then all threads normalise and store. The sums are serial chains of dim / 16
 * steps by definition, so what matters is that many rows are in work at once: several blocks of few threads on each multiprocessor, or,
 * where rows are few, wide blocks that have all their loads in flight at once. */
#include <cuda_pipeline.h>

#include "cuda/finish.cuh"
#include "cuda/norm.cuh"
#include "cuda/rows.cuh"

/* Bytes of rows in a block: what every device has, and enough for two or three blocks on those with most. */
#define NORM_SHARED (64 << 10)

struct norm_job {
    struct sq_gpu_norm n;
    int n_rows, pitch;     /* pitch: floats between rows in shared memory */
    const float *x;        /* norm_rows: [n_rows, dim] */
    float *y;              /* f32 results, or NULL */
    struct sq_gpu_codes q; /* q.q NULL: none */
    struct sq_gpu_finish f;
    bool keep; /* finish_norm: f.y gets the sums */
};

/* --- rows to shared memory --- */

/* Rows of x as they are. */
template <bool VEC, int R>
__device__ __forceinline__ void stage_x(const struct norm_job &j, int row0, int n, float *s)
{
    const int dim = j.n.dim, quads = n_quads(dim);
    for (int i = threadIdx.x; i < quads; i += blockDim.x) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (r >= n)
                break;
            const float *x = j.x + (size_t)(row0 + r) * dim;
            float *to = s + r * j.pitch;
            if (VEC)
                __pipeline_memcpy_async(to + 4 * i, x + 4 * i, 16);
            else
                *(float4 *)(to + 4 * i) = load4<false>(x, i, dim);
        }
    }
    if (VEC)
        __pipeline_commit();
}

/* U quads of R rows: all loads first. */
template <bool VEC, int R, int U>
__device__ __forceinline__ void stage_sums(const struct norm_job &j, int row0, int n, float *s)
{
    const struct sq_gpu_finish &f = j.f;
    const int dim = j.n.dim, quads = n_quads(dim);
    for (int i0 = threadIdx.x; i0 < quads; i0 += U * blockDim.x) {
        float4 mul[U], bias[U], y[U][R];
        int4 acc[U][R];
#pragma unroll
        for (int u = 0; u < U; u++) {
            const int i = i0 + u * blockDim.x;
            if (i >= quads)
                break;
#pragma unroll
            for (int r = 0; r < R; r++) {
                if (r >= n)
                    break;
                acc[u][r] = load4<VEC>(f.acc + (size_t)(row0 + r) * f.ld_acc, i, dim);
                y[u][r] = load4<VEC>(f.y + (size_t)(row0 + r) * f.ld_y, i, dim);
            }
            mul[u] = load4<VEC>(f.mul, i, dim);
            bias[u] = load4<VEC>(f.bias, i, dim);
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
            const int i = i0 + u * blockDim.x;
            if (i >= quads)
                break;
#pragma unroll
            for (int r = 0; r < R; r++) {
                if (r >= n)
                    break;
                const float4 v =
                    add_f4(y[u][r], finish_dequant(f, row0 + r, acc[u][r], mul[u], bias[u]));
                if (j.keep)
                    store4<VEC>(f.y + (size_t)(row0 + r) * f.ld_y, i, dim, v);
                *(float4 *)(s + r * j.pitch + 4 * i) = v;
            }
        }
    }
}

/* --- the rest --- */

/* gamma and beta of U quads, on their way while the statistics are computed */
template <int U> struct affine {
    float4 gamma[U], beta[U];
};

template <bool VEC, int U>
__device__ __forceinline__ void load_affine(struct affine<U> *a, const float *gamma,
                                            const float *beta, int i0, int dim)
{
#pragma unroll
    for (int u = 0; u < U; u++) {
        const int i = i0 + u * blockDim.x;
        if (4 * i >= dim)
            break;
        a->gamma[u] = load4<VEC>(gamma, i, dim);
        a->beta[u] = load4<VEC>(beta, i, dim);
    }
}

__device__ __forceinline__ float4 applied(float4 x, float2 stats, float4 gamma, float4 beta)
{
    return make_float4(norm_of(x.x, stats, gamma.x, beta.x), norm_of(x.y, stats, gamma.y, beta.y),
                       norm_of(x.z, stats, gamma.z, beta.z), norm_of(x.w, stats, gamma.w, beta.w));
}

/* Quad i of the block's rows. */
template <bool VEC, int R>
__device__ __forceinline__ void store_quad(const struct norm_job &j, int row0, int n, int i,
                                           const float *s, const float2 *stats, float4 gamma,
                                           float4 beta)
{
    const int dim = j.n.dim;
#pragma unroll
    for (int r = 0; r < R; r++) {
        if (r >= n)
            break;
        const float4 x = *(const float4 *)(s + r * j.pitch + 4 * i);
        float4 t = applied(x, stats[r], gamma, beta);
        if (j.q.q) {
            store_codes<4>(j.q.q + (size_t)(row0 + r) * j.q.stride, i, dim,
                           d_codes4(t.x, t.y, t.z, t.w));
            if (!j.y)
                continue;
            t = applied(x, stats[r], load4<VEC>(j.n.gamma, i, dim), load4<VEC>(j.n.beta, i, dim));
        }
        store4<VEC>(j.y + (size_t)(row0 + r) * dim, i, dim, t);
    }
}

template <bool FINISH, bool VEC, int R>
__global__ void __launch_bounds__(R == 1 ? ROW_THREADS : MAP_THREADS)
    norm_kernel(const struct norm_job j)
{
    extern __shared__ float4 rows[];
    __shared__ float2 stats[R];
    const int U = R == 1 ? 2 : 1;
    float *s = (float *)rows;
    const int row0 = blockIdx.x * R, n = min(R, j.n_rows - row0), quads = n_quads(j.n.dim);
    const unsigned warp = threadIdx.x / 32;
    const float *gamma = j.q.q ? j.n.gamma_q : j.n.gamma, *beta = j.q.q ? j.n.beta_q : j.n.beta;
    struct affine<U> a;
    if (FINISH)
        stage_sums<VEC, R, U>(j, row0, n, s);
    else
        stage_x<VEC, R>(j, row0, n, s);
    load_affine<VEC, U>(&a, gamma, beta, threadIdx.x, j.n.dim);
    if (!FINISH && VEC)
        __pipeline_wait_prior(0);
    __syncthreads();
    if (warp < R) {
        const float2 t = warp < n ? row_stats(j.n, s + warp * j.pitch) : make_float2(0.0f, 0.0f);
        if (threadIdx.x % 32 == 0)
            stats[warp] = t;
    }
    __syncthreads();
    for (int i0 = threadIdx.x; i0 < quads; i0 += U * blockDim.x) {
#pragma unroll
        for (int u = 0; u < U; u++)
            if (i0 + u * blockDim.x < quads)
                store_quad<VEC, R>(j, row0, n, i0 + u * blockDim.x, s, stats, a.gamma[u],
                                   a.beta[u]);
        load_affine<VEC, U>(&a, gamma, beta, i0 + U * blockDim.x, j.n.dim);
    }
}

/* --- launch --- */

template <bool FINISH, bool VEC, int R>
static cudaError_t launch(cudaStream_t st, const struct norm_job *j)
{
    const size_t shared = (size_t)R * j->pitch * sizeof(float);
    const int quads = n_quads(j->n.dim);
    const int threads = R == 1 && j->n_rows < MANY_ROWS ? threads_for((quads + 1) / 2, ROW_THREADS)
                        : R == 1                        ? threads_for(quads, MAP_THREADS)
                                                        : MAP_THREADS;
    if (shared > 48 << 10) {
        cudaError_t rc = cudaFuncSetAttribute(
            norm_kernel<FINISH, VEC, R>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
        if (rc != cudaSuccess)
            return rc;
    }
    norm_kernel<FINISH, VEC, R><<<(j->n_rows + R - 1) / R, threads, shared, st>>>(*j);
    return cudaGetLastError();
}

template <bool FINISH> static cudaError_t norm(cudaStream_t st, struct norm_job *j, bool vec)
{
    const size_t row = n_quads(j->n.dim) * sizeof(float4);
    j->pitch = 4 * n_quads(j->n.dim);
    if (j->n_rows <= 0)
        return cudaSuccess;
    if (!vec)
        return launch<FINISH, false, 1>(st, j);
    if (j->n_rows >= MANY_ROWS && 4 * row <= NORM_SHARED)
        return launch<FINISH, true, 4>(st, j);
    if (j->n_rows >= MANY_ROWS && 2 * row <= NORM_SHARED)
        return launch<FINISH, true, 2>(st, j);
    return launch<FINISH, true, 1>(st, j);
}

static bool norm_aligned(const struct norm_job *j)
{
    const struct sq_gpu_norm *n = &j->n;
    return n->dim % 4 == 0 && aligned16(j->y) &&
           (!j->y || (aligned16(n->gamma) && aligned16(n->beta))) &&
           (!j->q.q || (aligned16(n->gamma_q) && aligned16(n->beta_q)));
}

cudaError_t sq_gpu_norm_rows(cudaStream_t st, const struct sq_gpu_norm *n, const float *x,
                             int n_rows, float *y, struct sq_gpu_codes y_q)
{
    struct norm_job j = {};
    j.n = *n, j.n_rows = n_rows, j.x = x, j.y = y, j.q = y_q;
    return norm<false>(st, &j, norm_aligned(&j) && aligned16(x));
}

cudaError_t sq_gpu_finish_norm(cudaStream_t st, const struct sq_gpu_finish *f,
                               const struct sq_gpu_norm *n, float *z, struct sq_gpu_codes z_q)
{
    struct norm_job j = {};
    if (f->epi != SQ_EPI_ADD || f->n_out != n->dim || (z == f->y && f->ld_y != n->dim))
        return cudaErrorInvalidValue;
    j.n = *n, j.n_rows = f->n_rows, j.y = z, j.q = z_q, j.f = *f;
    j.keep = z != f->y;
    return norm<true>(st, &j,
                      norm_aligned(&j) && f->ld_acc % 4 == 0 && f->ld_y % 4 == 0 &&
                          aligned16(f->acc) && aligned16(f->y) && aligned16(f->mul) &&
                          aligned16(f->bias));
}
