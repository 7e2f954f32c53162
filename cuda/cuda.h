/* Internals of the module's host side: storage of the opaque objects, device memory, the step and its recording. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/gemm_lt.h"
#include "cuda/kernels.h"
#include "cuda/module.h"
#include "engine/backend.h"
#include "engine/quant.h"

#define SQ_CUDA_ALIGN 256 /* cudaMalloc's own */
/* Results between cuBLASLt and what follows it: larger matmuls go through it in parts. */
#define SQ_CUDA_SCRATCH_MAX ((size_t)256 << 20)
#define SQ_CUDA_MAX_RECORDINGS 256
/* A norm of few rows goes into the matmul behind it up to so many columns: a row must fit a block's shared memory beside all else. */
#define SQ_CUDA_FUSED_NORM_DIM 12288
#define SQ_CUDA_FUSED_NORM_DIM_SM75 4096
#define SQ_CUDA_SMALL_BUCKETS 16 /* at least those up to SQ_GPU_SMALL_MAX */

struct sq_buf {
    struct sq_buf *next;
    enum sq_buf_kind kind;
    size_t max_rows, cols;
    float *f;                 /* F32: [max_rows, cols] dense */
    struct sq_gpu_codes code; /* S8 */
    size_t bytes;
    float *host; /* pinned copy for view, made by the first one */
};

struct sq_linear {
    struct sq_linear *next;
    struct sq_linear_desc d; /* d.name owned */
    /* int8: n_in rounded up to 16, elements between rows, n_out rounded up to 4 (rows added are zero). float: n_in, n_in, n_out */
    size_t k_pad, ld, n_pad;
    /* int8 out: bias digits stand behind k_pad, so that the library can write codes itself */
    bool bias_cols;
    void *w;
    float *mul, *bias; /* [n_pad]; bias 0 where there is none */
    int32_t *bias_acc; /* [n_pad]; S8 only */
    uint8_t *put;      /* [n_out] 1 where the row was put; NULL after finish */
    size_t n_put, bytes;
    /* by number of the bucket of rows: whether the library is faster, and the times that say so (0 where nothing is timed) */
    uint32_t lt_buckets;
    float small_ms[SQ_CUDA_SMALL_BUCKETS], lt_ms[SQ_CUDA_SMALL_BUCKETS];
};

struct sq_norm {
    struct sq_gpu_norm n; /* device vectors in one allocation */
    void *mem;
    size_t bytes;
    bool has_f, has_q, has_beta;
};

struct sq_rope {
    struct sq_gpu_rope r;
    void *mem;
    size_t bytes, n_pos;
};

struct sq_kv {
    struct sq_gpu_kv kv;
    size_t bytes;
};

/* --- memory.c --- */

enum sq_cuda_class { SQ_CUDA_WEIGHTS, SQ_CUDA_KV, SQ_CUDA_ACTS, SQ_CUDA_WORK, SQ_CUDA_N_CLASSES };

struct sq_cuda;

/* bytes > 0, 256-aligned. In a plan nothing is taken and *ret is an address that must not be used. `what` names it in the message. */
int sq_cuda_alloc(struct sq_cuda *c, enum sq_cuda_class k, size_t bytes, const char *what,
                  void **ret, struct sq_err *err) SQ_CHECKED;
void sq_cuda_free(struct sq_cuda *c, enum sq_cuda_class k, void *p,
                  size_t bytes); /* NULL is fine */
int sq_cuda_zero(struct sq_cuda *c, void *p, size_t bytes, struct sq_err *err) SQ_CHECKED;

/* --- upload.c: host memory to the device through two pinned buffers --- */

#define SQ_CUDA_STAGE_BYTES ((size_t)4 << 20)
struct sq_cuda_stage {
    uint8_t *host[2]; /* pinned */
    cudaEvent_t done[2];
    int turn;
};
int sq_cuda_stage_init(struct sq_cuda *c, struct sq_err *err) SQ_CHECKED;
void sq_cuda_stage_done(struct sq_cuda *c);
/* n_rows rows of row_bytes, dense in src, to dst with dst_pitch. src may be reused at once; the device has it in stream order. */
int sq_cuda_upload(struct sq_cuda *c, void *dst, size_t dst_pitch, const void *src,
                   size_t row_bytes, size_t n_rows, struct sq_err *err) SQ_CHECKED;

/* --- step.c --- */

/* One decode step as a graph: all rows decode, n_rows and the pieces of the longest rounded up. */
struct sq_cuda_recording {
    const void *key;
    int n_rows, n_pieces;
    cudaGraphExec_t exec;
};

struct sq_cuda_step {
    struct sq_step_limits max;
    struct sq_gpu_step dev; /* pointers into mem */
    int32_t *mem, *host[2]; /* the same layout, [words] */
    size_t words;
    size_t at_ids, at_pos, at_row_seq, at_out, at_seq, at_dec, at_tiles, at_blocks;
    cudaEvent_t copied[2];
    int turn;
    /* of the step that runs */
    const struct sq_batch *b;
    int n_rows; /* what the kernels are launched for: b's rows, or the recording's */
    int n_dec, n_pieces, n_tiles;
    bool recording;
    struct sq_cuda_recording rec[SQ_CUDA_MAX_RECORDINGS];
    int n_rec;
};
int sq_cuda_reserve(struct sq_backend *be, const struct sq_step_limits *l, struct sq_err *err);
void sq_cuda_step_done(struct sq_cuda *c);
int sq_cuda_step_begin(struct sq_backend *be, const struct sq_batch *b, const void *key);
int sq_cuda_step_end(struct sq_backend *be);
/* What an op's n rows are launched as: the recording's size, where n is the batch's. */
int sq_cuda_rows(const struct sq_cuda *c, int n);

/* --- ops.c: the ops, and which of them become one launch --- */

/* What was asked for and waits for the next op, which may take it in. At most one chain waits. */
enum sq_cuda_pending {
    SQ_PEND_NONE,
    SQ_PEND_NORM,   /* norm -> linear of few rows */
    SQ_PEND_ADD,    /* matmul done, its residual add -> norm */
    SQ_PEND_LINEAR, /* f32 out (with its norm or without) -> swiglu */
    SQ_PEND_ROPE,   /* rope to codes -> kv_write */
    SQ_PEND_KV      /* kv_write (with or without rope) -> attend */
};
struct sq_cuda_wait {
    enum sq_cuda_pending kind;
    struct sq_norm *norm;
    struct sq_linear *l;
    struct sq_rope *rope; /* PEND_KV: NULL = none */
    struct sq_kv *kv;
    const struct sq_attn *a;
    struct sq_buf *x, *y;
    const float *norm_x; /* PEND_LINEAR: input of norm, where there is one */
    int n_rows;
    struct sq_gpu_finish add;
};
/* Matmuls of few rows that become one launch, in order, each with the norm in front of it. They were asked for before what waits above. */
struct sq_cuda_chain {
    struct sq_gpu_gemm g[SQ_GPU_CHAIN];
    struct sq_gpu_norm norm[SQ_GPU_CHAIN];
    const char *name; /* of the first */
    int n;
};
/* Launches them; before anything else goes to the stream. */
int sq_cuda_flush_chain(struct sq_cuda *c);
/* Launches all that waits. */
int sq_cuda_flush(struct sq_cuda *c);

int sq_cuda_embed(struct sq_backend *be, const struct sq_batch *b, struct sq_linear *table,
                  struct sq_linear *pos_table, int pos_offset, struct sq_buf *x);
int sq_cuda_norm(struct sq_backend *be, struct sq_norm *n, struct sq_buf *x, int n_rows,
                 struct sq_buf *y, struct sq_buf *y_q);
int sq_cuda_quant_rows(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                       struct sq_buf *y_q);
int sq_cuda_swiglu(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                   struct sq_buf *y);
int sq_cuda_gather(struct sq_backend *be, const struct sq_batch *b, struct sq_buf *x,
                   struct sq_buf *y);
int sq_cuda_argmax(struct sq_backend *be, struct sq_buf *x, int n_rows, int32_t *ids);
int sq_cuda_observe(struct sq_backend *be, struct sq_buf *x, int row0, int n_rows, size_t col0,
                    size_t n_cols, float *absmax);
int sq_cuda_view(struct sq_backend *be, struct sq_buf *x, int n_rows, const float **ret);
int sq_cuda_sync(struct sq_backend *be);

/* --- linear.c: weights and the ways through them --- */

int sq_cuda_linear_new(struct sq_backend *be, const struct sq_linear_desc *d,
                       struct sq_linear **ret, struct sq_err *err);
int sq_cuda_linear_put(struct sq_backend *be, struct sq_linear *l, size_t row0, size_t n_rows,
                       const void *rows, struct sq_err *err);
int sq_cuda_linear_finish(struct sq_backend *be, struct sq_linear *l, const struct sq_epilogue *e,
                          struct sq_err *err);
void sq_cuda_linear_free(struct sq_backend *be, struct sq_linear *l);

int sq_cuda_linear(struct sq_backend *be, struct sq_linear *l, struct sq_buf *x, int n_rows,
                   struct sq_buf *y);
/* Runs l, or puts it into the chain: epi says what becomes of the result, norm (may be NULL) what is done before. n_rows as launched. */
int sq_cuda_linear_run(struct sq_cuda *c, struct sq_linear *l, struct sq_buf *x, int n_rows,
                       struct sq_buf *y, int epi, float inv_step, const struct sq_norm *norm,
                       const float *norm_x);
/* One way of an int8 linear: our kernel or the library. */
int sq_cuda_linear_way(struct sq_cuda *c, struct sq_linear *l, struct sq_buf *x, int n_rows,
                       struct sq_buf *y, int epi, bool small);
/* Bytes of scratch that l needs for steps of n_rows, and the library's algorithms for them. */
size_t sq_cuda_linear_scratch(const struct sq_linear *l, size_t n_rows);
size_t sq_cuda_linear_convert(const struct sq_linear *l, size_t n_rows);
int sq_cuda_linear_prepare(struct sq_cuda *c, struct sq_linear *l, int max_rows,
                           struct sq_err *err) SQ_CHECKED;

/* --- choose.c --- */

bool sq_cuda_use_small(const struct sq_linear *l, int n_rows);
int sq_cuda_choose(struct sq_cuda *c, struct sq_linear *l, int max_rows,
                   struct sq_err *err) SQ_CHECKED;
void sq_cuda_choices(struct sq_backend *be, sq_gpu_choice_fn *each, void *ctx);

/* --- ceilings.c --- */

int sq_cuda_ceilings(struct sq_backend *be, bool quick, struct sq_gpu_ceilings *ret,
                     struct sq_err *err);

/* --- attend.c --- */

int sq_cuda_rope(struct sq_backend *be, struct sq_rope *r, const struct sq_attn *a,
                 const struct sq_batch *b, struct sq_buf *x, struct sq_buf *y);
int sq_cuda_kv_write(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                     const struct sq_batch *b, struct sq_buf *qkv);
int sq_cuda_attend(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                   const struct sq_batch *b, struct sq_buf *qkv, struct sq_buf *out);
/* PEND_ROPE and PEND_KV as launches of their own. */
int sq_cuda_attention_now(struct sq_cuda *c, const struct sq_cuda_wait *w);

/* --- the backend --- */

struct sq_cuda {
    struct sq_backend base;
    struct sq_gpu_options o;
    char name[256];
    int capability;
    struct sq_gpu_device device;
    cudaStream_t st;
    struct sq_lt *lt;
    bool is_timed; /* there is a clock that means something: sq_lt_is_timed */
    size_t used_bytes[SQ_CUDA_N_CLASSES], n_allocs;
    size_t held_bytes; /* struct sq_gpu_budget's */
    uintptr_t plan_at; /* next address of a plan */
    struct sq_cuda_stage stage;
    struct sq_cuda_step step;
    struct sq_cuda_wait wait;
    struct sq_cuda_chain chain;
    struct sq_linear *linears; /* all, for reserve */
    struct sq_buf *bufs;
    /* made by reserve */
    void *lt_work;
    void *scratch, *convert; /* results of the library, inputs in 16 bits */
    size_t scratch_bytes, convert_bytes;
    void *small_work;
    size_t small_bytes;
    float *parts; /* of attention */
    int32_t *counters;
    size_t parts_bytes, counter_bytes;
    int32_t *ids, *host_ids; /* of argmax */
    struct sq_gpu_best *best;
    float *absmax; /* of observe */
    size_t ids_bytes, best_bytes, absmax_bytes;
    cudaEvent_t timer[2]; /* of timing.c */
    char fault[256];      /* the first sticky error, "" = none */
};

static inline struct sq_cuda *sq_cuda_of(struct sq_backend *be)
{
    return (struct sq_cuda *)be;
}

/* --- fault.c: no status of the runtime is dropped --- */

/* 0, or the sticky -SQ_E_DEVICE with `what` and the runtime's words kept in c->fault. */
int sq_cuda_check(struct sq_cuda *c, cudaError_t e, const char *what);
/* The same for the library's wrapper. */
int sq_cuda_check_lt(struct sq_cuda *c, int rc, const char *what);
/* For calls that report: 0 or sq_fail with the code that fits (memory: SQ_E_LIMIT). */
int sq_cuda_fail(struct sq_cuda *c, cudaError_t e, const char *what, struct sq_err *err);
/* Our own words for what a machine lacks: no driver, no device. */
const char *sq_cuda_words(cudaError_t e);

/* --- open.c: the functions of the module's table --- */

int sq_cuda_probe(struct sq_gpu_probe *ret, struct sq_err *err);
int sq_cuda_open(const struct sq_gpu_options *o, struct sq_backend **ret, struct sq_err *err);
void sq_cuda_budget(struct sq_backend *be, struct sq_gpu_budget *ret);

/* objects.c */
extern const struct sq_backend_ops sq_cuda_ops;
