/* What a launch of gemm_small.cu is told, and which part of it a block and a warp have. */
#pragma once

#include "cuda/gemm_plan.h"
#include "cuda/kernels.h"
#include "cuda/numbers.cuh"

#define LINE SQ_SMALL_LINE
#define WARP_ROWS SQ_SMALL_WARP_ROWS
#define WARP_BYTES (LINE * WARP_ROWS)

struct job {
    struct sq_gpu_gemm g;
    struct sq_gpu_norm norm; /* dim 0: none */
    struct sq_small_plan p;
};

struct chain {
    struct job job[SQ_GPU_CHAIN];
    int n;
};

/* A unit of work, and what this warp and lane have of it. */
struct part {
    int lane, warp, warp_n, warp_k;
    bool idle; /* the warp is one too many for this matmul */
    int range, slice;
    int row0, n_rows; /* weight rows */
    int line0, n_lines, n_steps;
    /* For the loop, which would otherwise read the job from memory again and again: */
    int warps_n, warps_k, stages, stage_bytes;
    int lines_left,
        k_left; /* lines from the warp's first one on, and bytes of K from the lane's piece of it */
    const int8_t *w; /* that piece of the warp's first row */
    unsigned valid;  /* bit i: row 4 i + lane / 8 of the warp exists */
    int ldw;
};

static __device__ __forceinline__ int n_units(const struct job &j)
{
    return j.p.ranges * j.p.slices;
}

static __device__ __forceinline__ struct part my_part(const struct job &j, int unit)
{
    struct part p;
    const int quads = (j.g.n_out + 3) / 4, lines = (j.g.k + LINE - 1) / LINE;
    const unsigned n = (unsigned)j.p.ranges;
    const unsigned s = j.p.slices == 1 ? 0 : (unsigned)unit / n, t = (unsigned)unit - s * n;
    p.lane = (int)threadIdx.x % 32;
    p.warp = __shfl_sync(FULL_WARP, (int)threadIdx.x / 32, 0);
    p.warps_n = j.p.warps_n, p.warps_k = j.p.warps_k;
    p.stages = j.p.stages, p.stage_bytes = j.p.stage_bytes;
    p.warp_n = p.warp % p.warps_n;
    p.warp_k = p.warp / p.warps_n;
    p.idle = p.warp_k >= p.warps_k;
    p.range = (int)t, p.slice = (int)s;
    p.row0 = 4 * (int)((unsigned long long)quads * t / n);
    p.n_rows = min(4 * (int)((unsigned long long)quads * (t + 1) / n), j.g.n_out) - p.row0;
    p.line0 = (int)(lines * s / j.p.slices);
    p.n_lines = (int)(lines * (s + 1) / j.p.slices) - p.line0;
    p.n_steps = (p.n_lines + p.warps_k - 1) / p.warps_k;
    if (p.idle) {
        p.lines_left = p.k_left = p.ldw = 0;
        p.valid = 0;
        p.w = NULL;
        return p;
    }
    const int row = p.warp_n * WARP_ROWS + p.lane / 8;
    const int at = (p.line0 + p.warp_k) * LINE + p.lane % 8 * 16;
    p.lines_left = p.n_lines - p.warp_k;
    p.k_left = j.g.k - at;
    p.ldw = j.g.ldw;
    p.w = j.g.w + (size_t)(p.row0 + row) * p.ldw + at;
    p.valid = (1u << min(max((p.n_rows - row + 3) / 4, 0), 8)) - 1;
    return p;
}
