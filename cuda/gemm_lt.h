/* cuBLASLt behind one door: int8 (s32 or s8 out) and float matmuls of the one layout sqd uses, their algorithms (heuristic, timed, cached on disk),
 * and what the library does not document (the rounding of int8 output), found out at start.
 *
 * y[M,N] = x[M,K] w[N,K]^T, all row-major: for the library w is A transposed, x is B, y is D, so that nothing is ever transposed in memory.
 * One owner at a time. Host memory is taken by open (and by save, for a file's buffer) only; device memory never. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/base/err.h"

struct sq_lt;

struct sq_lt_options {
    const char *cache_dir;  /* timings are kept in a file there; NULL = not kept */
    void *workspace;        /* device, 256-aligned, borrowed, nobody else's */
    size_t workspace_bytes; /* SQ_LT_WORKSPACE */
    const char
        *device_name; /* part of the cache's key; a name that ends in "(softgpu)" is never timed */
    int capability;   /* 90 for 9.0 */
};
/* 32 MiB for the library, as it wants on sm_90, and behind them the probe's matrices, which stay. */
#define SQ_LT_WORKSPACE (((size_t)32 << 20) + ((size_t)512 << 10))

/* How the library rounds int8 output. Only RNE is what quant.h says; with others int8 goes out as s32 and our own kernel rounds.
 * OTHER: none of the three, not the same for all algorithms, or no int8 output at all (then sq_lt_matmul with an alpha is refused). */
enum sq_lt_round { SQ_LT_RNE, SQ_LT_RZ, SQ_LT_RNA, SQ_LT_OTHER };

/* Multiplies a small matrix with known sums to see that the sums are exact and how int8 output is rounded; waits for the stream. A file that
 * cannot be used is no error. -SQ_E_NOTSUP: no int8 matmul on this device. */
int sq_lt_open(const struct sq_lt_options *o, cudaStream_t st, struct sq_lt **ret,
               struct sq_err *err) SQ_CHECKED;
/* Saves what sq_lt_save has not. NULL is allowed. */
void sq_lt_close(struct sq_lt *lt);
enum sq_lt_round sq_lt_rounding(const struct sq_lt *lt);
const char *sq_lt_round_name(enum sq_lt_round r); /* "rne", "rz", "rna", "other" */
/* Does the device have a clock that means something? */
bool sq_lt_is_timed(const struct sq_lt *lt);

struct sq_lt_mm {
    const void *w, *x;    /* int8, or float of `dtype` */
    int ldw, ldx, ldy;    /* elements between rows; int8: multiples of 4 (16 for speed) */
    int n_out, k, n_rows; /* int8: n_out and k multiples of 4; n_rows is free */
    enum sq_dtype dtype;  /* of w and x */
    void *y;              /* int8 in: s32, or s8 with alpha; float in: f32 */
    const float *alpha;   /* device [n_out]: s8 out = sat(round(alpha[n] * acc)), saturated to
                             [-128,127]; NULL: s32 out. Read when the matmul runs */
};
/* Finds and keeps the algorithm for the shape's bucket; before the first step and outside captures. n_rows: the most that the bucket will see.
 * On a real device the candidates are timed at n_rows (or the file's choice is run once, which loads it), so y is spoilt and the stream waited for. */
int sq_lt_prepare(struct sq_lt *lt, const struct sq_lt_mm *m, struct sq_err *err) SQ_CHECKED;
/* Enqueues, allocates nothing, waits for nothing. A bucket that was not prepared, or an algorithm that refuses the exact shape, is right but
 * slow: the heuristic is asked (and counted in the stats). 0 or -SQ_E_*, then sq_lt_last_error says what. */
int sq_lt_matmul(struct sq_lt *lt, const struct sq_lt_mm *m) SQ_CHECKED;
/* Text of the last failure of any call; "" if there was none. */
const char *sq_lt_last_error(const struct sq_lt *lt);
/* Smallest prepared size that serves n_rows: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, ... */
int sq_lt_bucket(int n_rows);

/* Writes the file of timings, atomically, if there is something new. After the last prepare. -SQ_E_IO is no reason to stop. */
int sq_lt_save(struct sq_lt *lt, struct sq_err *err) SQ_CHECKED;

struct sq_lt_stats {
    int file_lines;     /* read from the file and kept */
    int file_bad_lines; /* not a line of the format, out of range, cut off, or beyond the table */
    int file_foreign;   /* 1: the file as a whole was not for this library and device, or no file */
    int prepared, timed; /* buckets, candidates */
    int from_file;       /* buckets whose algorithm the file named */
    int stale;           /* the file named one that the library does not propose any more */
    int misrounding;     /* candidates dropped since they round otherwise than the rest */
    int asked_late;      /* matmuls that had to ask the heuristic */
};
void sq_lt_get_stats(const struct sq_lt *lt, struct sq_lt_stats *ret);

/* A bias inside the accumulator: more columns along K. Inputs hold constants there (ones: 127, and 1 in the last column), each weight row the
 * digits of its bias in accumulator units: sum_i ones[i] * digits[i] == bias, digits within [-127,127]. */
#define SQ_LT_BIAS_COLS 32
#define SQ_LT_BIAS_MAX (127 * 31 * 127 + 127)
/* Within the digits' reach, and no sum over k products of codes (-128 among them) can leave s32 with it. */
bool sq_lt_bias_fits(int64_t bias, int k);
void sq_lt_bias_digits(int32_t bias, int8_t digits[SQ_LT_BIAS_COLS]); /* |bias| <= SQ_LT_BIAS_MAX */
void sq_lt_bias_ones(int8_t ones[SQ_LT_BIAS_COLS]);
