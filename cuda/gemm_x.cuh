/* How the rows of x come to the blocks of gemm_small.cu: each brings its own, in the stages of its ring; or two blocks of a cluster (sm_90 and later), which
 * go through the same slice side by side, bring half of each step for both, through distributed shared memory: x then leaves the L2 half as often. */
#pragma once

#include "cuda/gemm_small.cuh"
#include "cuda/prims.cuh"

/* Whether the warp has a line of a step. */
static __device__ __forceinline__ bool has_line(const struct part &p, int step)
{
    return step * p.warps_k < p.lines_left;
}

/* Whether the warp has weights in a step: in a pair's block it may be there for x alone. */
template <bool PAIR>
static __device__ __forceinline__ bool has_weights(const struct part &p, int step)
{
    return has_line(p, step) && (!PAIR || p.warp_n * WARP_ROWS < p.n_rows);
}

/* Whether the lane's 16 bytes of it lie inside of K. */
static __device__ __forceinline__ bool piece_there(const struct part &p, int step)
{
    return step * p.warps_k * LINE < p.k_left;
}

/* The lane's 16 bytes of row m in the warp's line of a step. */
static __device__ __forceinline__ const int8_t *x_piece(const struct job &j, const struct part &p,
                                                        int step, int m)
{
    const int line = p.line0 + step * p.warps_k + p.warp_k;
    return j.g.x.q + (size_t)m * j.g.x.stride + (size_t)line * LINE + p.lane % 8 * 16;
}

/* Where they lie behind the beginning of the line in shared memory. */
static __device__ __forceinline__ int x_swizzled(const struct part &p, int m)
{
    return m * LINE + (p.lane % 8 ^ m % 8) * 16;
}

/* Where the warp's line begins behind the beginning of a step's x. */
static __device__ __forceinline__ int x_line(const struct job &j, const struct part &p)
{
    return p.warp_k * SQ_SMALL_X_ROWS(j.g.n_rows) * LINE;
}

/* --- a block by itself --- */

/* Where a line of x begins in a stage: behind the weights. */
static __device__ __forceinline__ int x_in_stage(const struct job &j, const struct part &p)
{
    return p.warps_n * p.warps_k * WARP_BYTES + x_line(j, p);
}

/* The warps side by side share the line of x; rows that fill up a tile are zero. The first steps' come by plain loads: they need no group, and wait
 * for no weights. */
template <bool ASYNC>
static __device__ __forceinline__ void load_x(const struct job &j, const struct part &p, int step,
                                              uint8_t *slot)
{
    if (!has_line(p, step))
        return;
    const bool there = piece_there(p, step);
    uint8_t *to = slot + x_in_stage(j, p);
    for (int m = p.warp_n * 4 + p.lane / 8; m < SQ_SMALL_X_ROWS(j.g.n_rows); m += 4 * p.warps_n) {
        const int8_t *x = x_piece(j, p, step, m);
        uint8_t *at = to + x_swizzled(p, m);
        const bool read = there && m < j.g.n_rows;
        if (ASYNC)
            p_cp_async16(at, x, read);
        else
            *(uint4 *)at = read ? *(const uint4 *)x : make_uint4(0, 0, 0, 0);
    }
}

/* --- two blocks --- */

/* The thread's share of a step's x on its way from memory: of the block's half of the rows, up to 8 NT, what at least two warps side by side have. */
template <int NT> struct x_half {
    uint4 piece[(NT + 1) / 2];
};

/* Calls f(i, m) for each of the thread's pieces: of row m. */
template <int NT, typename F>
static __device__ __forceinline__ void each_of_half(const struct job &j, const struct part &p, F f)
{
    const int half = SQ_SMALL_X_ROWS(j.g.n_rows) / 2, first = (int)(blockIdx.x % 2) * half;
#pragma unroll
    for (int i = 0; i < NT / 2; i++) {
        const int m = (i * p.warps_n + p.warp_n) * 4 + p.lane / 8;
        if (m < half)
            f(i, first + m);
    }
}

template <int NT>
static __device__ __forceinline__ void ask_x(struct x_half<NT> &x, const struct job &j,
                                             const struct part &p, int step)
{
    if (!has_line(p, step))
        return;
    const bool there = piece_there(p, step);
    each_of_half<NT>(j, p, [&](int i, int m) {
        x.piece[i] = there && m < j.g.n_rows ? __ldcg((const uint4 *)x_piece(j, p, step, m))
                                             : make_uint4(0, 0, 0, 0);
    });
}

/* Where a step's x lies: steps take turns. */
static __device__ __forceinline__ uint8_t *x_of_step(const struct job &j, const struct part &p,
                                                     int step, uint8_t *shared)
{
    const int bytes = SQ_SMALL_X_ROWS(j.g.n_rows) * p.warps_k * LINE;
    return shared + j.p.x_at + step % 2 * bytes + x_line(j, p);
}

/* To both blocks, which must be done with the step before the last. */
template <int NT>
static __device__ __forceinline__ void give_x(const struct x_half<NT> &x, const struct job &j,
                                              const struct part &p, int step, uint8_t *shared)
{
    if (!has_line(p, step))
        return;
    uint8_t *line = x_of_step(j, p, step, shared);
    each_of_half<NT>(j, p, [&](int i, int m) {
        uint8_t *to = line + x_swizzled(p, m);
        *(uint4 *)to = x.piece[i];
        p_store_peer16(to, x.piece[i]);
    });
}
