/* The CPU backend between its two sources: the struct, and the ops that stand in the table of backend.h. */
#pragma once

#include "engine/cpu/cpu.h"
#include "engine/cpu/pool.h"

struct sq_cpu {
    struct sq_backend base;
    const struct sq_cpu_ops *k;
    struct sq_pool *pool;
    int n_threads;
    uint8_t *scratch;     /* [n_threads][scratch_bytes], for attention */
    size_t scratch_bytes; /* of one thread */
    size_t used_bytes;
    struct sq_cpu_arena arena; /* of weights */
};

/* As in backend.h. */
int sq_cpu_embed(struct sq_backend *be, const struct sq_batch *b, struct sq_linear *table,
                 struct sq_linear *pos_table, int pos_offset, struct sq_buf *x);
int sq_cpu_norm(struct sq_backend *be, struct sq_norm *n, struct sq_buf *x, int n_rows,
                struct sq_buf *y, struct sq_buf *y_q);
int sq_cpu_quant_rows(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                      struct sq_buf *y_q);
int sq_cpu_gather(struct sq_backend *be, const struct sq_batch *b, struct sq_buf *x,
                  struct sq_buf *y);
int sq_cpu_argmax(struct sq_backend *be, struct sq_buf *x, int n_rows, int32_t *ids);
int sq_cpu_observe(struct sq_backend *be, struct sq_buf *x, int row0, int n_rows, size_t col0,
                   size_t n_cols, float *absmax);
int sq_cpu_view(struct sq_backend *be, struct sq_buf *x, int n_rows, const float **ret);
int sq_cpu_sync(struct sq_backend *be);
int sq_cpu_linear(struct sq_backend *be, struct sq_linear *l, struct sq_buf *x, int n_rows,
                  struct sq_buf *y);
int sq_cpu_rope(struct sq_backend *be, struct sq_rope *r, const struct sq_attn *a,
                const struct sq_batch *b, struct sq_buf *x, struct sq_buf *y);
int sq_cpu_swiglu(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                  struct sq_buf *y);
int sq_cpu_kv_write(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                    const struct sq_batch *b, struct sq_buf *qkv);
int sq_cpu_attend(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                  const struct sq_batch *b, struct sq_buf *qkv, struct sq_buf *out);
