/* cuBLASLt behind one door: int8 (s32 or s8 out) and float matmuls of the one layout sqd uses, their algorithms (heuristic, timed, cached on disk),
 * and what the library does not document (the rounding of int8 output), found out at start.
 *
 * y[M,N] = x[M,K] w[N,K]^T, all row-major: for the library w is A transposed, x is B, y is D, so that nothing is ever transposed in memory. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/base/err.h"

struct sq_lt;

struct sq_lt_options {
    const char *cache_dir;  /* timings are kept in a file there; NULL = not kept */
    void *workspace;        /* device, 256-aligned, borrowed */
    size_t workspace_bytes; /* SQ_LT_WORKSPACE */
    const char
        *device_name; /* part of the cache's key; a name that ends in "(softgpu)" is never timed */
    int capability;
};
#define SQ_LT_WORKSPACE ((size_t)32 << 20)

/* How the library rounds int8 output. Only RNE is what quant.h says; with others int8 goes out as s32 and our own kernel rounds. */
enum sq_lt_round { SQ_LT_RNE, SQ_LT_RZ, SQ_LT_RNA, SQ_LT_OTHER };

int sq_lt_open(const struct sq_lt_options *o, cudaStream_t st, struct sq_lt **ret,
               struct sq_err *err) SQ_CHECKED;
void sq_lt_close(struct sq_lt *lt);
enum sq_lt_round sq_lt_rounding(const struct sq_lt *lt);

struct sq_lt_mm {
    const void *w, *x; /* int8, or float of `dtype` */
    int ldw, ldx, ldy; /* elements between rows; int8: multiples of 4 (16 for speed) */
    int n_out, k, n_rows;
    enum sq_dtype dtype; /* of w and x */
    void *y;             /* int8 in: s32, or s8 with alpha; float in: f32 */
    const float *alpha;  /* device [n_out]: s8 out = sat(round(alpha[n] * acc)); NULL: s32 out */
};
/* Finds and keeps the algorithm for the shape's bucket; before the first step and outside captures. Timed where the device is real. */
int sq_lt_prepare(struct sq_lt *lt, const struct sq_lt_mm *m, struct sq_err *err) SQ_CHECKED;
/* Enqueues. The shape's bucket was prepared (asserted in debug builds: else the heuristic is asked, which is slow but right). 0 or -SQ_E_*. */
int sq_lt_matmul(struct sq_lt *lt, const struct sq_lt_mm *m) SQ_CHECKED;
/* Smallest prepared size that serves n_rows: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, ... */
int sq_lt_bucket(int n_rows);
