/* Internals of the CPU backend: storage of the opaque objects, and the table of slice functions that each instruction set implements.
 *
 * An op of backend.h is cut into slices (rows, panels of columns, or (sequence, head) pairs); the pool's threads run slices of one op;
 * a slice function is pure: it reads its inputs and writes its own part of the output, so the number of threads cannot change a bit.
 * The variants are compiled from the same sources where only the vector width differs (vec.h), each in a static library with its flags. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/quant.h"

struct sq_buf {
    enum sq_buf_kind kind;
    size_t max_rows, cols;
    size_t
        stride; /* elements between rows; F32: cols (dense, view returns it); S8: padded so that 4 KiB aliasing is avoided, multiple of 64 */
    float *f;   /* F32: [max_rows, stride] */
    uint8_t *
        u; /* S8: [max_rows, stride] codes + 128 (vpdpbusd wants unsigned); columns cols..stride hold 128 (code 0) */
    float *row_scale; /* S8: [max_rows] */
    size_t bytes;     /* of memory, for the books */
};

#define SQ_PANEL 32 /* output columns per packed weight panel */

struct sq_linear {
    struct sq_linear_desc d; /* d.name owned */
    size_t n_panels, k_pad;  /* int8: ceil(n_out / SQ_PANEL); n_in rounded up to 4 */
    int8_t *packed; /* int8: [n_panels][k_pad / 4][SQ_PANEL][4], padding zero, 64-aligned */
    int32_t *
        acc0; /* int8: [n_panels * SQ_PANEL] start for unsigned activations: -128 * sum_k w (+ bias_acc), modulo 2^32 */
    int32_t *acc0_s; /* int8: the same for signed activations: 0 (+ bias_acc) */
    bool
        has_min; /* int8: -128 occurs among the weights, so that the sign trick of AVX2 is not exact */
    void *rows;        /* float weights: [n_out, n_in] in d.dtype, row-major, 64-aligned */
    float *mul, *bias; /* [n_panels * SQ_PANEL], padding 0; bias all 0 when there is none */
    uint8_t *put;      /* [n_out] 1 where the row was put; NULL after finish */
    size_t n_put;      /* rows put so far */
    size_t bytes;      /* of memory, for the books */
    struct sq_cpu_chunk *chunk; /* holds packed or rows; NULL: they are allocated alone */
};

struct sq_norm {
    enum sq_norm_kind kind;
    size_t dim;
    float eps;
    float *gamma, *beta, *gamma_q, *beta_q; /* [dim]; beta* never NULL where its gamma* is not */
    size_t bytes;                           /* of memory, for the books */
};

struct sq_rope {
    size_t rot_dim, n_pos;
    float *cos, *sin; /* [n_pos, rot_dim / 2] */
    size_t bytes;     /* of memory, for the books */
};

struct sq_kv; /* attn.h: layout chosen for the attention kernels */

/* attn.c, independent of the instruction set. Storage is 64-aligned and touched once at creation. */
size_t sq_cpu_kv_bytes(const struct sq_kv_desc *d); /* SIZE_MAX when it overflows */
int sq_cpu_kv_new(const struct sq_kv_desc *d, struct sq_kv **ret, struct sq_err *err);
void sq_cpu_kv_free(struct sq_kv *kv);         /* NULL is fine */
size_t sq_cpu_kv_used(const struct sq_kv *kv); /* bytes it holds */
size_t sq_cpu_attn_scratch(
    const struct sq_kv_desc *d); /* bytes each thread's scratch needs for this cache */

/* One matmul of int8 weights: slice = rows [m0,m1) x panels [p0,p1). */
struct sq_gemm {
    const struct sq_linear *l;
    const struct sq_buf *x; /* S8 */
    struct sq_buf *y;       /* by l->d.out */
    int n_rows;
};

/* What one instruction set offers. Every field set. */
struct sq_cpu_ops {
    const char *name; /* "ref", "AVX2", "AVX-VNNI" (in either encoding) or "AVX512-VNNI" */
    void (*gemm_s8)(const struct sq_gemm *g, int m0, int m1, size_t p0, size_t p1);
    /* n rounds of the INT8 multiply-accumulate on registers only: the ceiling of gemm_s8. Returns the operations done, two for each
     * product; 0: no such probe (ref). */
    uint64_t (*int8_probe)(size_t n);
    /* float matmul: rows [m0,m1) x outputs [n0,n1) of x[.,K] f32; epilogue F32 or ADD, ReLU */
    void (*gemm_float)(const struct sq_linear *l, const struct sq_buf *x, struct sq_buf *y, int m0,
                       int m1, size_t n0, size_t n1);
    void (*norm)(const struct sq_norm *n, const struct sq_buf *x, int m0, int m1, struct sq_buf *y,
                 struct sq_buf *y_q);
    void (*quant_rows)(const struct sq_buf *x, int m0, int m1, float inv_step, struct sq_buf *y_q);
    void (*embed)(const struct sq_batch *b, const struct sq_linear *table,
                  const struct sq_linear *pos_table, int pos_offset, struct sq_buf *x, int m0,
                  int m1);
    void (*rope)(const struct sq_rope *r, const struct sq_attn *a, const struct sq_batch *b,
                 const struct sq_buf *x, struct sq_buf *y, int m0, int m1);
    void (*swiglu)(const struct sq_buf *x, int m0, int m1, float inv_step, struct sq_buf *y);
    void (*observe)(const struct sq_buf *x, int row0, int n_rows, size_t col0, size_t n_cols,
                    float *absmax);
    void (*argmax)(const struct sq_buf *x, int m0, int m1, int32_t *ids);
    void (*kv_write)(struct sq_kv *kv, const struct sq_attn *a, const struct sq_batch *b,
                     const struct sq_buf *qkv, int i_seq, int kv_head);
    /* all rows of sequence i_seq between rows [m0,m1), for the query heads that share kv_head; scratch: sq_cpu_attn_scratch() bytes of
     * this thread. Callers go through the KV heads of a sequence in ascending order, because each call prefetches for the next. */
    void (*attend)(struct sq_kv *kv, const struct sq_attn *a, const struct sq_batch *b,
                   const struct sq_buf *qkv, struct sq_buf *out, int i_seq, int kv_head, int m0,
                   int m1, void *scratch);
};

/* --- memory and weights (memory.c, linear.c), independent of the instruction set --- */

#define SQ_CPU_ALIGN 64

/* Zeroed (so touched), SQ_CPU_ALIGN-aligned, in huge pages where it is large; freed by sq_free. NULL: out of memory. */
void *sq_cpu_alloc(size_t bytes);

/* Where weights lie: side by side in large chunks of huge pages, because a matrix of a small model alone is less than one huge page,
 * and with small pages reading weights is up to a third slower. A chunk goes when its last user and the arena let go of it. */
struct sq_cpu_chunk;
struct sq_cpu_arena {
    struct sq_cpu_chunk *open; /* has room */
};

/* Like sq_cpu_alloc; freed by sq_cpu_chunk_unref(*ret_chunk), or by sq_free where *ret_chunk is NULL: large and small pieces, and all if a is NULL. */
void *sq_cpu_arena_alloc(struct sq_cpu_arena *a, size_t bytes, struct sq_cpu_chunk **ret_chunk);
void sq_cpu_chunk_unref(struct sq_cpu_chunk *c);
void sq_cpu_arena_done(struct sq_cpu_arena *a);

/* As the ops of backend.h. */
int sq_cpu_buf_new(enum sq_buf_kind kind, size_t max_rows, size_t cols, struct sq_buf **ret,
                   struct sq_err *err);
void sq_cpu_buf_free(struct sq_buf *b);
int sq_cpu_linear_new(const struct sq_linear_desc *d, struct sq_linear **ret, struct sq_err *err);
int sq_cpu_linear_new_in(struct sq_cpu_arena *a, const struct sq_linear_desc *d,
                         struct sq_linear **ret, struct sq_err *err);
int sq_cpu_linear_put(struct sq_linear *l, size_t row0, size_t n_rows, const void *rows,
                      struct sq_err *err);
int sq_cpu_linear_finish(struct sq_linear *l, const struct sq_epilogue *e, struct sq_err *err);
void sq_cpu_linear_free(struct sq_linear *l);
int sq_cpu_norm_new(const struct sq_norm_desc *d, struct sq_norm **ret, struct sq_err *err);
void sq_cpu_norm_free(struct sq_norm *n);
int sq_cpu_rope_new(const struct sq_rope_desc *d, struct sq_rope **ret, struct sq_err *err);
void sq_cpu_rope_free(struct sq_rope *r);

/* --- one library per instruction set ---
 * Its sources are compiled with -DSQ_CPU_ISA=<isa> (ref, avx2, avxvnni, evexvnni, avx512vnni) and name what they export with
 * SQ_CPU_FN(sq_x), so that one source can serve several libraries. ops_isa.c puts the table together. */
#ifdef SQ_CPU_ISA
#define SQ_CPU_CAT2_(a, b) a##_##b
#define SQ_CPU_CAT_(a, b) SQ_CPU_CAT2_(a, b)
#define SQ_CPU_FN(name) SQ_CPU_CAT_(name, SQ_CPU_ISA)

void SQ_CPU_FN(sq_gemm_s8)(const struct sq_gemm *g, int m0, int m1, size_t p0, size_t p1);
uint64_t SQ_CPU_FN(sq_int8_probe)(size_t n);
void SQ_CPU_FN(sq_gemm_float)(const struct sq_linear *l, const struct sq_buf *x, struct sq_buf *y,
                              int m0, int m1, size_t n0, size_t n1);
void SQ_CPU_FN(sq_norm)(const struct sq_norm *n, const struct sq_buf *x, int m0, int m1,
                        struct sq_buf *y, struct sq_buf *y_q);
void SQ_CPU_FN(sq_quant_rows)(const struct sq_buf *x, int m0, int m1, float inv_step,
                              struct sq_buf *y_q);
void SQ_CPU_FN(sq_embed)(const struct sq_batch *b, const struct sq_linear *table,
                         const struct sq_linear *pos_table, int pos_offset, struct sq_buf *x,
                         int m0, int m1);
void SQ_CPU_FN(sq_rope)(const struct sq_rope *r, const struct sq_attn *a, const struct sq_batch *b,
                        const struct sq_buf *x, struct sq_buf *y, int m0, int m1);
void SQ_CPU_FN(sq_swiglu)(const struct sq_buf *x, int m0, int m1, float inv_step, struct sq_buf *y);
void SQ_CPU_FN(sq_observe)(const struct sq_buf *x, int row0, int n_rows, size_t col0, size_t n_cols,
                           float *absmax);
void SQ_CPU_FN(sq_argmax)(const struct sq_buf *x, int m0, int m1, int32_t *ids);
void SQ_CPU_FN(sq_kv_write)(struct sq_kv *kv, const struct sq_attn *a, const struct sq_batch *b,
                            const struct sq_buf *qkv, int i_seq, int kv_head);
void SQ_CPU_FN(sq_attend)(struct sq_kv *kv, const struct sq_attn *a, const struct sq_batch *b,
                          const struct sq_buf *qkv, struct sq_buf *out, int i_seq, int kv_head,
                          int m0, int m1, void *scratch);
#endif

extern const struct sq_cpu_ops sq_cpu_ops_ref, sq_cpu_ops_avx2, sq_cpu_ops_avxvnni,
    sq_cpu_ops_evexvnni, sq_cpu_ops_avx512vnni;

/* --- dispatch (ops.c) --- */

/* Best first, NULL-terminated; only those this processor can run. `ref` is always the last. */
const struct sq_cpu_ops *const *sq_cpu_variants(void);

/* The named one, the best for NULL; NULL if this processor cannot run it. */
const struct sq_cpu_ops *sq_cpu_variant(const char *name);

/* --- for measurements (roof.c) --- */

struct sq_pool *sq_cpu_pool(struct sq_backend *be);
const struct sq_cpu_ops *sq_cpu_table(struct sq_backend *be);
