/* The device seam. Three implementations: cpu (engine/cpu), fake (tests/lib), cuda (cuda/, a module opened at run time).
 *
 * Threads: one owner at a time. The loader uses it first, then the engine thread only; never two at once.
 * Order: calls enqueue in order; only view and sync may block. After open + the *_new calls no op allocates.
 * Errors: 0 or -SQ_E_* (-SQ_E_DEVICE is sticky: the process must end). Shapes are the caller's promise (SQ_ASSERT), contents are not.
 * Rounding, reductions and scales: engine/quant.h. Matrices are row-major; T = rows of the step, N = outputs, K = inputs.
 *
 * Fusion: where rope or swiglu is the only reader of the linear right before it, or attend of the rope and kv_write right before it, a
 * device may leave the buffer between them unwritten.
 *
 * Objects (sq_buf, sq_linear, sq_norm, sq_rope, sq_kv) are opaque here, created and freed by the same backend, and borrowed by ops. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

struct sq_backend;
struct sq_buf;
struct sq_linear;
struct sq_norm;
struct sq_rope;
struct sq_kv;

enum sq_dtype { SQ_F32, SQ_F16, SQ_BF16, SQ_I8 };

static inline size_t sq_dtype_bytes(enum sq_dtype t)
{
    return t == SQ_F32 ? 4 : t == SQ_I8 ? 1 : 2;
}

/* Activation buffers. S8 buffers carry one f32 scale per row beside the codes, used only where a linear is `dynamic`. */
enum sq_buf_kind { SQ_BUF_F32, SQ_BUF_S8 };

/* What a linear does with its result. */
enum sq_out {
    SQ_OUT_F32, /* y[T,N] f32 */
    SQ_OUT_ADD, /* y[T,N] f32 += result: the residual */
    SQ_OUT_S8,  /* y[T,N] codes with a static step; float and dynamic linears cannot */
};
enum sq_act { SQ_ACT_NONE, SQ_ACT_RELU };

/* A matrix [n_out, n_in] and what follows it. A float one serves as an embedding table, too. */
struct sq_linear_desc {
    const char *name; /* for messages; borrowed during the call */
    size_t n_out, n_in;
    enum sq_dtype
        dtype; /* SQ_I8: int8 x int8 -> s32. Else float weights, kept in this type, f32 arithmetic */
    bool
        dynamic; /* SQ_I8 only: input rows bring their own scales (quant_rows), else one static step in `mul` */
    enum sq_out out;
    enum sq_act act;
    bool table; /* rows are only looked up: never an operand of `linear` */
};

/* Constants of the epilogue, borrowed during linear_finish. NULL bias = none. See quant.h for the formulas. */
struct sq_epilogue {
    const float *mul;        /* [n_out]; ignored (may be NULL) for float weights */
    const float *bias;       /* [n_out] real units: F32, ADD, and float weights */
    const int32_t *bias_acc; /* [n_out] accumulator units: S8 */
};

enum sq_norm_kind { SQ_LAYERNORM, SQ_RMSNORM };

struct sq_norm_desc {
    enum sq_norm_kind kind;
    size_t dim;
    float eps;
    const float *gamma, *beta; /* [dim], f32 output; beta NULL = 0 */
    const float *gamma_q,
        *beta_q; /* [dim], already divided by the consumer's static step; NULL = no int8 output */
};

/* Rotary positions: dimension i of a head's first rot_dim pairs with i + rot_dim/2 (the two halves); the rest stays. */
struct sq_rope_desc {
    size_t rot_dim, n_pos;
    const float *cos, *sin; /* [n_pos, rot_dim / 2], borrowed during the call */
};

struct sq_kv_desc {
    size_t n_layers, n_kv_heads, head_dim; /* head_dim a multiple of 4 for int8 */
    size_t
        n_blocks; /* of SQ_KV_BLOCK tokens, shared by all sequences; one block id covers all layers, K and V */
    enum sq_dtype dtype; /* SQ_I8 or SQ_F32 */
};

/* The rows of one step. Borrowed host arrays, immutable during the step. Rows of a sequence are consecutive, positions ascending by 1. */
struct sq_batch_seq {
    int row0, n_rows;      /* rows [row0, row0 + n_rows) */
    int pos0;              /* position of row0; keys 0..pos0-1 are in the cache already */
    const int32_t *blocks; /* [ceil((pos0 + n_rows) / SQ_KV_BLOCK)] block ids */
};
struct sq_batch {
    int n_rows, n_seqs, n_out;
    const int32_t *ids;              /* [n_rows] token ids, < vocabulary */
    const int32_t *pos;              /* [n_rows] */
    const struct sq_batch_seq *seqs; /* [n_seqs] */
    const int32_t *out_rows;         /* [n_out] rows whose logits are wanted, ascending */
};

/* One attention call. The fused projection holds [q | k | v] in its columns: n_heads*D, n_kv_heads*D, n_kv_heads*D. */
struct sq_attn {
    int layer;
    int n_heads, n_kv_heads, head_dim;
    float score_mul; /* int8: q_step * k_step / sqrt(D); float: 1 / sqrt(D) */
    float out_mul; /* int8 cache: v_step (F32 out) or v_step / out_step (S8 out); float cache: 1 */
    float q_inv, k_inv, v_inv; /* 1 / step: `rope` to codes only */
};

/* What the steps to come will need at most. */
struct sq_step_limits {
    int max_rows, max_seqs, max_out;
    int max_blocks;  /* block ids in the tables of one step, all sequences together */
    int max_context; /* positions of one sequence */
    int n_heads, n_kv_heads, head_dim;
};

/* What step_begin may answer beside 0 and errors. */
enum { SQ_STEP_REPLAYED = 1 };

struct sq_device_info {
    char name[64];    /* "cpu" */
    char detail[128]; /* "AVX512-VNNI, 2 threads" */
    size_t mem_used_bytes;
    size_t mem_free_bytes,
        mem_total_bytes; /* of the device now; 0 where it is not its own memory */
    int n_threads;
};

struct sq_backend_ops {
    void (*close)(struct sq_backend *be);
    void (*info)(struct sq_backend *be, struct sq_device_info *ret);

    /* --- objects, before the first step --- */
    int (*buf_new)(struct sq_backend *be, enum sq_buf_kind kind, size_t max_rows, size_t cols,
                   struct sq_buf **ret, struct sq_err *err);
    void (*buf_free)(struct sq_backend *be,
                     struct sq_buf *b); /* NULL is fine, as for all frees here */

    /* new -> put rows in any order, each exactly once -> finish. Rows arrive in desc->dtype, [n_rows, n_in]; they are copied into
     * their final (packed) place at once, so a loader needs a staging buffer of a few rows only. */
    int (*linear_new)(struct sq_backend *be, const struct sq_linear_desc *d, struct sq_linear **ret,
                      struct sq_err *err);
    int (*linear_put)(struct sq_backend *be, struct sq_linear *l, size_t row0, size_t n_rows,
                      const void *rows, struct sq_err *err);
    int (*linear_finish)(struct sq_backend *be, struct sq_linear *l, const struct sq_epilogue *e,
                         struct sq_err *err);
    void (*linear_free)(struct sq_backend *be, struct sq_linear *l);

    int (*norm_new)(struct sq_backend *be, const struct sq_norm_desc *d, struct sq_norm **ret,
                    struct sq_err *err);
    void (*norm_free)(struct sq_backend *be, struct sq_norm *n);

    int (*kv_new)(struct sq_backend *be, const struct sq_kv_desc *d, struct sq_kv **ret,
                  struct sq_err *err);
    void (*kv_free)(struct sq_backend *be, struct sq_kv *kv);
    /* Bytes that kv_new would take for d: admission plans and the budget print use it. */
    size_t (*kv_bytes)(struct sq_backend *be, const struct sq_kv_desc *d);

    int (*rope_new)(struct sq_backend *be, const struct sq_rope_desc *d, struct sq_rope **ret,
                    struct sq_err *err);
    void (*rope_free)(struct sq_backend *be, struct sq_rope *r);
    /* Makes room for the steps to come; before the first one, after all objects were made. */
    int (*reserve)(struct sq_backend *be, const struct sq_step_limits *l, struct sq_err *err);

    /* --- one step: begin ... end brackets the ops of a forward pass --- */

    /* b: the step's rows, the same in every op of it; NULL where no op takes a batch. key: says that steps of this key and this shape
     * of b (decode rows only, all of them wanted) are always the same list of ops on the same objects, so that a device may record it
     * once and replay it; NULL = do not. SQ_STEP_REPLAYED: that has happened, issue no ops, go on with step_end. */
    int (*step_begin)(struct sq_backend *be, const struct sq_batch *b, const void *key);
    int (*step_end)(struct sq_backend *be);

    /* x[T,dim] f32 = table[ids] + pos_table[pos + pos_offset]; either table may be NULL. Tables are float linears. */
    int (*embed)(struct sq_backend *be, const struct sq_batch *b, struct sq_linear *table,
                 struct sq_linear *pos_table, int pos_offset, struct sq_buf *x);
    /* Norm of x's first n_rows rows. y (F32, may be x itself) and/or y_q (S8, static step) are written where not NULL. */
    int (*norm)(struct sq_backend *be, struct sq_norm *n, struct sq_buf *x, int n_rows,
                struct sq_buf *y, struct sq_buf *y_q);
    /* x[T,cols] f32 -> codes; inv_step > 0: one static step (code = sat(rne(x * inv_step))); inv_step == 0: per row, scale = max|x| / 127 (1 if the row is all
     * zero), code = sat(rne(x * (1/scale))). */
    int (*quant_rows)(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                      struct sq_buf *y_q);
    /* y = l(x) on the first n_rows rows; x is S8 for int8 weights, F32 for float ones; y is what l's epilogue says. */
    int (*linear)(struct sq_backend *be, struct sq_linear *l, struct sq_buf *x, int n_rows,
                  struct sq_buf *y);
    /* Rotates q and k of the fused projection x (F32, columns as struct sq_attn says) by their positions. y is x or another F32 buffer;
     * or an S8 one of the same shape: codes of q, k (rotated) and v by q_inv, k_inv, v_inv. */
    int (*rope)(struct sq_backend *be, struct sq_rope *r, const struct sq_attn *a,
                const struct sq_batch *b, struct sq_buf *x, struct sq_buf *y);
    /* y[.,i] = silu(x[.,2i]) * x[.,2i+1], x F32 of twice y's columns. y F32; or S8: inv_step as in quant_rows. */
    int (*swiglu)(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                  struct sq_buf *y);
    /* Writes k and v of every row of qkv (columns as struct sq_attn says; S8 for an int8 cache, F32 for a float one) into the cache. */
    int (*kv_write)(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                    const struct sq_batch *b, struct sq_buf *qkv);
    /* Causal attention of every row over its sequence's keys 0..pos. out[T, n_heads*D]: S8 (int8 cache) or F32. */
    int (*attend)(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                  const struct sq_batch *b, struct sq_buf *qkv, struct sq_buf *out);
    /* y[i] = x[b->out_rows[i]], i < b->n_out; f32; the rows that go through the head. */
    int (*gather)(struct sq_backend *be, const struct sq_batch *b, struct sq_buf *x,
                  struct sq_buf *y);
    /* ids[i] = first index of the maximum of row i of x[.,cols] f32; -1 if any value of the row is NaN. Synchronous. */
    int (*argmax)(struct sq_backend *be, struct sq_buf *x, int n_rows, int32_t *ids);
    /* Calibration: absmax[c - col0] = max(absmax[c - col0], |x[r,c]|) for rows [row0,row0+n_rows), columns [col0,col0+n_cols). f32 buffers. Synchronous. */
    int (*observe)(struct sq_backend *be, struct sq_buf *x, int row0, int n_rows, size_t col0,
                   size_t n_cols, float *absmax);
    /* Host pointer to the first n_rows rows of an F32 buffer, dense [n_rows, cols], valid until the next op. Blocks until it is there. */
    int (*view)(struct sq_backend *be, struct sq_buf *x, int n_rows, const float **ret);
    int (*sync)(struct sq_backend *be);
    /* What the device said about its sticky error; "" where it said nothing. Valid until close. */
    const char *(*fault)(struct sq_backend *be);
};

/* Implementations embed this as their first member. */
struct sq_backend {
    const struct sq_backend_ops *ops;
};
