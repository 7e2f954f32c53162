/* How a matmul of few rows is spread over a device and what each block keeps in shared memory: plain arithmetic, the same for the same sizes. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SQ_SMALL_LINE 128      /* bytes of a weight row that a warp takes at once */
#define SQ_SMALL_WARP_ROWS 32  /* weight rows of a warp */
#define SQ_SMALL_WARPS 16      /* of a block at most */
#define SQ_SMALL_WARPS_WIDE 12 /* beyond SQ_SMALL_WIDE rows of x, where a thread holds more sums */
#define SQ_SMALL_WIDE 32
#define SQ_SMALL_STAGES 8 /* at most */

/* `work`: two counters for each range, then the sums of joined slices. */
#define SQ_SMALL_RANGES 2048
#define SQ_SMALL_SUMS (2 << 20)

struct sq_small_shape {
    int n_out, k, n_rows;
    int norm_dim;            /* of the norm in front, or 0 */
    bool may_join;           /* there is `work` */
    int n_sms, shared_bytes; /* of the device: multiprocessors, shared memory of a block */
};

struct sq_small_plan {
    int ranges, slices;      /* of weight rows, of k: the grid */
    int warps_n, warps_k;    /* of a block: side by side over rows, and over the lines of a step */
    int stages, stage_bytes; /* the ring */
    int x_stride; /* norm: row of codes in shared memory, 16 bytes more than whole lines */
    int norm_rows,
        row_floats; /* norm: rows at a time; an f32 row, 16 more than a multiple of 32, so that two share no banks */
    int sum_stride; /* s32 between rows of x, behind the loop */
    int codes_at, rows_at, ring_at,
        shared_bytes; /* mul and bias lie at 0, the sums over the ring */
};

/* The cheapest plan; false where none fits into the device's shared memory. */
bool sq_small_plan(const struct sq_small_shape *s, struct sq_small_plan *ret);

#ifdef __cplusplus
}
#endif
