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
#define SQ_SMALL_WARPS_PAIR 8 /* of blocks in pairs, whose threads hold inputs on their way, too */
/* Of a block with that many rows of x, at most. */
#define SQ_SMALL_WARPS_MOST(n_rows, pairs)                                                         \
    ((pairs)                    ? SQ_SMALL_WARPS_PAIR                                              \
     : (n_rows) > SQ_SMALL_WIDE ? SQ_SMALL_WARPS_WIDE                                              \
                                : SQ_SMALL_WARPS)
#define SQ_SMALL_STAGES 8 /* at most */

/* A norm of more rows than this is shared out among the blocks; up to here each block computes it all, since that costs less than waiting. */
#define SQ_SMALL_FRONT_ROWS 2

/* From so many rows on, two blocks of neighbouring ranges bring the inputs together, where the device can. */
#define SQ_SMALL_PAIR_LEAST 17

/* `work`, in words: the grid's barrier, a counter for each range, then the sums of joined slices. */
#define SQ_SMALL_COUNTERS 32
#define SQ_SMALL_RANGES 2048
#define SQ_SMALL_SUMS_AT (SQ_SMALL_COUNTERS + SQ_SMALL_RANGES)
#define SQ_SMALL_SUMS (2 << 20)

struct sq_small_shape {
    int n_out, k, n_rows;
    int norm_dim;                 /* of the norm in front, or 0 */
    bool may_join;                /* there is `work`, and all blocks of the grid run at once */
    bool pairs;                   /* blocks work in pairs: as many ranges as make whole ones */
    int n_sms, shared_bytes;      /* of the device: multiprocessors, shared memory of a block */
    int warps_most;               /* of a block, or 0: what others of the launch can use */
    int const_least, front_least; /* bytes that another matmul of the launch wants there, or 0 */
};

/* Shared memory: constants (mul and bias) of this unit and of the next; the front (f32 rows of a norm, later the sums); what there is of the inputs
 * beside the ring (codes of a norm, or two steps of a pair); the ring. */
struct sq_small_plan {
    int ranges,
        slices; /* of weight rows, of k: a unit of work is one of both; with slices there is a block for each */
    int warps_n, warps_k; /* of a block: side by side over rows, and over the lines of a step */
    int const_bytes;      /* of one unit */
    int front_at, front_bytes;
    int sum_stride;     /* s32 between rows of x */
    bool norm_in_front; /* each block computes the norm, not the grid together */
    int norm_rows,
        row_floats; /* norm: rows at a time; an f32 row, 16 more than a multiple of 32, so that two share no banks */
    int x_at, x_stride; /* the inputs beside the ring; bytes between rows */
    int ring_at, stages, stage_bytes;
    int shared_bytes;
};

/* Rows of x in a stage: whole tiles of 8, beyond the first one. */
#define SQ_SMALL_X_ROWS(n_rows) ((n_rows) <= 8 ? (n_rows) : ((n_rows) + 7) / 8 * 8)

/* The cheapest plan; false where none fits into the device's shared memory. */
bool sq_small_plan(const struct sq_small_shape *s, struct sq_small_plan *ret);
/* The same for n matmuls of one launch, whose constants and fronts lie at the same place. Sets s[i].const_least, front_least and
 * warps_most: a block has the warps of the matmul with most, and all go through all. */
bool sq_small_plan_chain(struct sq_small_shape *s, int n, struct sq_small_plan *ret);

#ifdef __cplusplus
}
#endif
