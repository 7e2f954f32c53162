/* The norm in front of a matmul of few rows: each block all rows, or the rows shared out among the blocks. */
#pragma once

#include "cuda/gemm_small.cuh"
#include "cuda/norm.cuh"

static __device__ __forceinline__ float4 load_quad(const float *p, int k, int n)
{
    if (p == NULL)
        return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (k + 4 <= n && (uintptr_t)(p + k) % 16 == 0)
        return *(const float4 *)(p + k);
    return make_float4(k < n ? p[k] : 0.0f, k + 1 < n ? p[k + 1] : 0.0f,
                       k + 2 < n ? p[k + 2] : 0.0f, k + 3 < n ? p[k + 3] : 0.0f);
}

/* Rows [m0, m0 + n), columns [k0, k0 + cols) as codes: to shared memory (NULL: not), swizzled like lines of x, and to x.q. */
struct norm_part {
    int m0, n, k0, cols;
    uint8_t *codes;
    bool to_memory;
};

/* rows: f32, in shared memory, like stats. */
static __device__ void norm_codes(const struct job &j, const struct norm_part &t, const float *rows,
                                  const float2 *stats)
{
    const int dim = j.norm.dim;
    for (int c = (int)threadIdx.x * 4; c < t.cols; c += (int)blockDim.x * 4) {
        const float4 g = load_quad(j.norm.gamma_q, t.k0 + c, dim);
        const float4 b = load_quad(j.norm.beta_q, t.k0 + c, dim);
        for (int i = 0; i < t.n; i++) {
            const int m = t.m0 + i;
            const float4 x = load_quad(rows + i * j.p.row_floats, t.k0 + c, dim);
            const float2 s = stats[i];
            uint32_t q = d_codes4(norm_of(x.x, s, g.x, b.x), norm_of(x.y, s, g.y, b.y),
                                  norm_of(x.z, s, g.z, b.z), norm_of(x.w, s, g.w, b.w));
            const int left =
                dim - t.k0 - c; /* what is not there is 0, whatever the mean made of it */
            q &= left >= 4 ? ~0u : left <= 0 ? 0u : (1u << 8 * left) - 1;
            if (t.codes)
                *(uint32_t *)(t.codes + m * j.p.x_stride + (c ^ m % 8 * 16)) = q;
            if (t.to_memory && t.k0 + c < j.g.k)
                *(uint32_t *)(j.g.x.q + (size_t)m * j.g.x.stride + t.k0 + c) = q;
        }
    }
}

/* The rows are brought to shared memory (`rows`), their statistics found there, then the codes. */
static __device__ __noinline__ void norm_rows(const struct job &j, const struct norm_part t,
                                              float *rows)
{
    __shared__ float2 stats[SQ_SMALL_FRONT_ROWS];
    const int dim = j.norm.dim, warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    __syncthreads(); /* all are done with what lay there */
    for (int i = 0; i < t.n; i++) {
        const float *x = j.g.norm_x + (size_t)(t.m0 + i) * dim;
#pragma unroll 4
        for (int k = (int)threadIdx.x * 4; k < dim; k += (int)blockDim.x * 4)
            *(float4 *)(rows + i * j.p.row_floats + k) = load_quad(x, k, dim);
    }
    __syncthreads();
    for (int i = warp * 2; i < t.n; i += (int)blockDim.x / 16) {
        const int r = min(i + lane / 16, t.n - 1);
        const float2 s = row_stats<4>(j.norm, rows + r * j.p.row_floats);
        if (lane % SQ_LANES == 0)
            stats[r] = s;
    }
    __syncthreads();
    norm_codes(j, t, rows, stats);
}

/* All rows, as many at a time as there is room for; the columns of the unit's slice. */
static __device__ void norm_in_front(const struct job &j, const struct part &p, uint8_t *shared)
{
    for (int m0 = 0; m0 < j.g.n_rows; m0 += j.p.norm_rows) {
        const struct norm_part t = {m0,
                                    min(j.p.norm_rows, j.g.n_rows - m0),
                                    p.line0 * LINE,
                                    p.n_lines * LINE,
                                    shared + j.p.x_at,
                                    p.range == 0 && j.g.x.q};
        norm_rows(j, t, (float *)(shared + j.p.front_at));
    }
}

/* Whole rows, shared out among the blocks. */
static __device__ void norm_shared_out(const struct job &j, uint8_t *shared)
{
    for (int m = (int)blockIdx.x; m < j.g.n_rows; m += (int)gridDim.x) {
        const struct norm_part t = {m, 1, 0, j.g.k, NULL, true};
        norm_rows(j, t, (float *)(shared + j.p.front_at));
    }
}
