#include "cuda/gemm_plan.h"

#include <stdint.h>

#define WARPS_WANTED                                                                               \
    10 /* enough to keep up with the memory, where a block has that many rows and lines */
#define STAGES_WANTED 4
#define LINES_LEAST 4  /* of a slice */
#define RANGE_LEAST 16 /* rows */

static int div_up(int a, int b)
{
    return (a + b - 1) / b;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

static int most(int a, int b)
{
    return a > b ? a : b;
}

/* Rows are given out in fours: a thread of the epilogue takes four, gate and up stay together. */
static int range_rows(const struct sq_small_shape *s, const struct sq_small_plan *p)
{
    return 4 * div_up(div_up(s->n_out, 4), p->ranges);
}

static int slice_lines(const struct sq_small_shape *s, const struct sq_small_plan *p)
{
    return div_up(div_up(s->k, SQ_SMALL_LINE), p->slices);
}

static bool in_front(const struct sq_small_shape *s)
{
    return s->norm_dim > 0 && s->n_rows <= SQ_SMALL_FRONT_ROWS;
}

/* Bytes of x in a stage of the ring, or, of a pair, in each of the two places beside it. */
static int x_step_bytes(const struct sq_small_shape *s, const struct sq_small_plan *p)
{
    return SQ_SMALL_X_ROWS(s->n_rows) * p->warps_k * SQ_SMALL_LINE;
}

/* Where everything lies, and a stage of the ring, for given warps. */
static void place(const struct sq_small_shape *s, struct sq_small_plan *p)
{
    const int rows = p->warps_n * SQ_SMALL_WARP_ROWS;
    int front = p->warps_k * s->n_rows * p->sum_stride * (int)sizeof(int32_t);
    p->norm_in_front = in_front(s);
    p->const_bytes = most(2 * rows * (int)sizeof(float), s->const_least);
    p->front_at = 2 * p->const_bytes;
    if (s->norm_dim) {
        p->row_floats = div_up(s->norm_dim, 32) * 32 + 16;
        const int row_bytes = p->row_floats * (int)sizeof(float);
        const int room = s->shared_bytes / 8 * 3; /* the rest is the ring's */
        p->norm_rows = in_front(s) ? least(most(room / row_bytes, 1), s->n_rows) : 1;
        front = most(front, p->norm_rows * row_bytes);
    }
    p->front_bytes = most(front, s->front_least);
    p->x_at = div_up(p->front_at + p->front_bytes, SQ_SMALL_LINE) * SQ_SMALL_LINE;
    p->x_stride = in_front(s) ? slice_lines(s, p) * SQ_SMALL_LINE : SQ_SMALL_LINE;
    p->ring_at = p->x_at;
    p->stage_bytes = rows * p->warps_k * SQ_SMALL_LINE;
    if (in_front(s))
        p->ring_at += s->n_rows * p->x_stride;
    else if (s->pairs)
        p->ring_at += 2 * x_step_bytes(s, p);
    else
        p->stage_bytes += x_step_bytes(s, p);
}

/* The block's shape for given ranges and slices: as many warps along k as are of use and leave room for a ring; then its stages.
 * False if it does not fit. */
static bool shape_block(const struct sq_small_shape *s, struct sq_small_plan *p)
{
    const int lines = slice_lines(s, p);
    const int can = SQ_SMALL_WARPS_MOST(s->n_rows, s->pairs);
    const int wanted = least(least(s->warps_most ? s->warps_most : can, can), WARPS_WANTED);
    int room;
    /* at least two in a pair: together they hold half a step of x in registers */
    p->warps_n = most(div_up(range_rows(s, p), SQ_SMALL_WARP_ROWS), s->pairs ? 2 : 1);
    if (p->warps_n > can)
        return false;
    p->sum_stride = p->warps_n * SQ_SMALL_WARP_ROWS + 4;
    for (p->warps_k = 8;; p->warps_k /= 2) {
        place(s, p);
        room = s->shared_bytes - p->ring_at;
        if (p->warps_k == 1 || (p->warps_n * p->warps_k <= wanted && p->warps_k <= lines &&
                                STAGES_WANTED * p->stage_bytes <= room))
            break;
    }
    p->stages = least(room / p->stage_bytes, SQ_SMALL_STAGES);
    p->stages = most(least(p->stages, div_up(lines, p->warps_k) + 1), 2);
    p->shared_bytes = p->ring_at + p->stages * p->stage_bytes;
    return p->shared_bytes <= s->shared_bytes;
}

static bool plan_fits(const struct sq_small_shape *s, struct sq_small_plan *p)
{
    if (!shape_block(s, p) || (s->norm_dim > 0 && !p->norm_in_front && !s->may_join))
        return false;
    return p->slices == 1 ||
           (s->may_join && p->ranges <= SQ_SMALL_RANGES &&
            (int64_t)p->ranges * p->warps_n * SQ_SMALL_WARP_ROWS * s->n_rows <= SQ_SMALL_SUMS);
}

/* In bytes of memory traffic: bytes that others have read before come from the L2 and cost about a third, an uneven share of the work
 * costs a part of what it delays, since what is left to load then finds an idle memory. Joining slices costs round trips to the L2, with the next
 * weights on their way behind them, and its traffic: each slice but the first adds its sums, and the first reads them and leaves zeros. */
static double plan_cost(const struct sq_small_shape *s, const struct sq_small_plan *p)
{
    const double cached = 0.36, uneven = 0.3, join_fixed = 1e6;
    const double weights = (double)s->n_out * s->k, blocks = (double)p->ranges * p->slices;
    const int waves = div_up(p->ranges * p->slices, s->n_sms);
    const double longest = (double)range_rows(s, p) * slice_lines(s, p) * SQ_SMALL_LINE;
    double cost = weights + uneven * (longest * waves * s->n_sms - weights);
    if (in_front(s))
        cost += cached * s->norm_dim * (4.0 * s->n_rows * blocks + 8.0 * p->ranges);
    else
        cost += cached * s->n_rows * p->ranges * s->k / (s->pairs ? 2 : 1);
    if (p->slices > 1)
        cost += join_fixed + cached * 4.0 * s->n_rows * s->n_out * (p->slices + 1);
    return cost;
}

/* Ranges for a number of slices: a unit for each multiprocessor, or, of whole k, as many more as let a range fit. */
static bool plan_ranges(const struct sq_small_shape *s, struct sq_small_plan *p)
{
    const int one = s->pairs ? 2 : 1, all = div_up(div_up(s->n_out, RANGE_LEAST), one) * one;
    const int blocks = s->n_sms / one * one;
    for (int waves = 1;; waves++) {
        p->ranges = least(most(blocks * waves / p->slices / one, 1) * one, all);
        if (plan_fits(s, p))
            return true;
        if (p->ranges == all || p->slices > 1)
            return false;
    }
}

bool sq_small_plan(const struct sq_small_shape *s, struct sq_small_plan *ret)
{
    const int most_slices = most(div_up(s->k, SQ_SMALL_LINE) / LINES_LEAST, 1);
    double best = 0;
    bool found = false;
    for (int slices = 1; slices <= least(most_slices, s->n_sms / (s->pairs ? 2 : 1)); slices++) {
        struct sq_small_plan p = {.slices = slices};
        if (!plan_ranges(s, &p))
            continue;
        const double cost = plan_cost(s, &p);
        if (!found || cost < best) {
            best = cost;
            *ret = p;
        }
        found = true;
    }
    return found;
}

bool sq_small_plan_chain(struct sq_small_shape *s, int n, struct sq_small_plan *ret)
{
    int consts = 0, front = 0, warps = WARPS_WANTED;
    for (int i = 0; i < n; i++) {
        s[i].warps_most = s[i].const_least = s[i].front_least = 0;
        if (!sq_small_plan(&s[i], &ret[i]))
            return false;
        warps = least(warps, 2 * ret[i].warps_n * ret[i].warps_k);
    }
    for (int i = 0; i < n;) {
        s[i].warps_most = warps;
        s[i].const_least = consts;
        s[i].front_least = front;
        if (!sq_small_plan(&s[i], &ret[i]))
            return false;
        const bool grew = ret[i].const_bytes > consts || ret[i].front_bytes > front;
        consts = most(consts, ret[i].const_bytes);
        front = most(front, ret[i].front_bytes);
        /* those before have to lie alike; both sizes only grow, and not beyond the device's memory */
        i = grew && i > 0 ? 0 : i + 1;
    }
    return true;
}
