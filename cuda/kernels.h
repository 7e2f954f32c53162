/* Launchers of all kernels, the seam between host C and the .cu files. C and CUDA C++ both include it.
 *
 * Every launcher enqueues on the stream and returns cudaGetLastError()'s answer (or an error of the launch's shape). They allocate nothing,
 * synchronise nothing and read no device memory on the host, so that all can be captured into a graph. n_rows is a host value: in a recorded
 * step it is the bucket's size, and rows beyond the real ones hold harmless data (ids 0, row_seq -1).
 * Results follow engine/quant.h to the bit wherever that is possible: int8 codes, accumulators, norms, attention. */
#pragma once

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Rows of codes. Columns beyond the tensor's own up to k_pad are 0; then the constants that carry a bias through the matmul (gemm_lt.h,
 * SQ_LT_BIAS_COLS). */
struct sq_gpu_codes {
    int8_t *q;        /* [max_rows, stride], 16-aligned, stride a multiple of 16 */
    float *row_scale; /* [max_rows], of dynamic quantisation */
    int stride;
};

/* One step on the device: fixed addresses, filled by one copy at step_begin. Arrays are filled up to the launch's n_rows. */
struct sq_gpu_step {
    const int32_t *ids, *pos;  /* [n_rows] */
    const int32_t *row_seq;    /* [n_rows] sequence of a row; -1: no row, touch nothing */
    const int32_t *out_rows;   /* [n_out] */
    const int32_t *seq_blocks; /* [n_seqs] where a sequence's ids begin in blocks */
    const int32_t *blocks;     /* block ids */
    /* [n_dec] rows that attend one by one (decode kernel): x row (-1: none), y position, z where its sequence's ids begin in blocks, w where
     * its partial results begin, in pieces */
    const int4 *dec;
    const int4 *
        tiles; /* [n_tiles] x first row, y rows (<= SQ_GPU_TILE_ROWS), z sequence, w position of the first row */
};
#define SQ_GPU_TILE_ROWS 128 /* rows of one sequence that a block of the prefill kernel takes */

/* --- code.cu --- */

/* cudaErrorNoKernelImageForDevice where this build has nothing that the current device can run. */
cudaError_t sq_gpu_has_code(void);

/* --- ceiling.cu --- */

/* Reads `bytes` (a multiple of 16) from p. out: one word of the device, which may be written. */
cudaError_t sq_gpu_read_all(cudaStream_t st, const void *p, size_t bytes, int n_blocks,
                            uint32_t *out);

/* --- rows.cu --- */

/* dtype of tables and weights: enum sq_dtype's values */
cudaError_t sq_gpu_embed(cudaStream_t st, const struct sq_gpu_step *s, int n_rows,
                         const void *table, int dtype, const void *pos_table, int pos_dtype,
                         int pos_offset, float *x, int dim);

struct sq_gpu_norm {
    int rms; /* 0: LayerNorm, 1: RMSNorm */
    int dim;
    float eps;
    const float *gamma, *beta, *gamma_q,
        *beta_q; /* device; beta* never NULL where its gamma* is not */
};
/* y (may be x, may be NULL) and codes (q NULL: none), as quant.h and engine/cpu/rows.inc, bit for bit. */
cudaError_t sq_gpu_norm_rows(cudaStream_t st, const struct sq_gpu_norm *n, const float *x,
                             int n_rows, float *y, struct sq_gpu_codes y_q);
/* inv_step > 0 static, 0 per row. */
cudaError_t sq_gpu_quant_rows(cudaStream_t st, const float *x, int n_rows, int cols, float inv_step,
                              struct sq_gpu_codes y);
/* x [n_rows, 2 cols] pairs -> y [n_rows, cols] f32, or codes if y is NULL. */
cudaError_t sq_gpu_swiglu(cudaStream_t st, const float *x, int n_rows, int cols, float inv_step,
                          float *y, struct sq_gpu_codes y_q);
cudaError_t sq_gpu_gather(cudaStream_t st, const struct sq_gpu_step *s, const float *x, int n_out,
                          int cols, float *y);
/* What the blocks of a row have found so far: zeros, and left so. */
struct sq_gpu_best {
    unsigned long long key;
    unsigned n_done;
};
/* ids[r] = the first largest column of x[r]; 0 where nothing is above -inf, -1 with a NaN. rows [n_rows]; one stream. */
cudaError_t sq_gpu_argmax(cudaStream_t st, const float *x, int n_rows, int cols,
                          struct sq_gpu_best *rows, int32_t *ids);
/* absmax[c] = max(absmax[c], |x[r,c]|), c < n_cols; x points at the first row and column. */
cudaError_t sq_gpu_observe(cudaStream_t st, const float *x, int n_rows, int n_cols, int stride,
                           float *absmax);
/* f32 -> f16 / bf16 (enum sq_dtype), round to nearest even, [n_rows, cols] dense to stride */
cudaError_t sq_gpu_convert(cudaStream_t st, const float *x, int n_rows, int cols, void *y,
                           int dtype, int stride);

/* --- epilogue.cu: what follows a cuBLASLt matmul --- */

enum sq_gpu_epi {
    SQ_EPI_F32,      /* y f32 = fmaf((float)acc [* row_scale], mul, bias) */
    SQ_EPI_F32_RELU, /* then max(0, .) as the CPU does it */
    SQ_EPI_ADD,      /* y f32 += */
    SQ_EPI_S8,       /* codes: sat(rne((float)(acc + bias_acc) * mul)) */
    SQ_EPI_S8_RELU,  /* then max(0, .) */
    SQ_EPI_SWIGLU_S8, /* columns 2i, 2i+1 are gate and up: codes of swiglu by inv_step, n_out / 2 of them */
    SQ_EPI_SWIGLU_F32, /* the same, f32 */
    SQ_EPI_ACC         /* y s32 = acc; tests, and what has no fused form */
};

/* From accumulators [n_rows, ld_acc] to what epi says; n_out columns of acc. */
struct sq_gpu_finish {
    const int32_t *acc;
    int ld_acc, n_rows, n_out;
    int epi;                 /* enum sq_gpu_epi */
    const float *x_scale;    /* [n_rows] row scales of dynamic inputs, or NULL */
    const float *mul, *bias; /* [n_out]; bias never NULL */
    const int32_t
        *bias_acc;  /* [n_out] for the S8 kinds, never NULL there; already inside acc: NULL */
    float inv_step; /* SWIGLU_S8 */
    float *y;       /* f32 results, [n_rows, ld_y] */
    struct sq_gpu_codes y_q; /* code results */
    int ld_y;
};
cudaError_t sq_gpu_finish(cudaStream_t st, const struct sq_gpu_finish *f);
/* y += what acc says (SQ_EPI_ADD), then the norm of y's rows: z (f32, may be NULL or y itself) and codes. One kernel, a row stays on chip. */
cudaError_t sq_gpu_finish_norm(cudaStream_t st, const struct sq_gpu_finish *f,
                               const struct sq_gpu_norm *n, float *z, struct sq_gpu_codes z_q);
/* codes = max(0, code), in place */
cudaError_t sq_gpu_relu_s8(cudaStream_t st, struct sq_gpu_codes y, int n_rows, int cols);
/* f32 matmul results: y (+)= relu?(r + bias); r [n_rows, n_out] dense */
cudaError_t sq_gpu_finish_float(cudaStream_t st, const float *r, int n_rows, int n_out,
                                const float *bias, int epi, float *y);

/* --- gemm_small.cu: int8 matmul of few rows, streaming the weights once --- */

#define SQ_GPU_SMALL_MAX 64 /* rows it takes at most */
struct sq_gpu_gemm {
    const int8_t *w;   /* [n_out, ldw] row-major, 16-aligned, ldw a multiple of 16 */
    int ldw, n_out, k; /* k: a multiple of 16, padding is zero on both sides */
    int n_rows;
    struct sq_gpu_codes x;   /* [n_rows, k]; unused with a norm */
    struct sq_gpu_finish to; /* everything but acc, ld_acc, n_rows and n_out */
    /* With norm: the input is the codes of norm(norm_x) (static step), made on the fly; x.q is then written, too (for tests and for whoever reads it
     * later; with more than a few rows also for the matmul itself, which then needs work). NULL: x. norm->beta_q may be NULL: zeros. */
    const struct sq_gpu_norm *norm;
    const float *norm_x; /* [n_rows, norm->dim] */
    int32_t *acc_y;      /* SQ_EPI_ACC: [n_rows, n_out] */
    void *
        work; /* sq_gpu_gemm_small_work() bytes, zeroed once at the start of the program and for one stream; the kernel leaves the sums and counters in
               * it zeroed. NULL: k is never split */
};
size_t sq_gpu_gemm_small_work(void);

/* What a launch has to know of the current device: asked once. */
struct sq_gpu_device {
    int n_sms, shared_bytes; /* multiprocessors; shared memory that a block may ask for */
    bool can_pair;           /* clusters of two blocks, on all multiprocessors at once */
};
cudaError_t sq_gpu_device(struct sq_gpu_device *ret);

/* n (at most SQ_GPU_CHAIN) matmuls of the same rows, each of which may read what those before it write; one launch where they fit together, and with
 * work, else one after the other. cudaErrorInvalidConfiguration: a norm of too many columns for a device of little shared memory. */
#define SQ_GPU_CHAIN 4
cudaError_t sq_gpu_gemm_chain(cudaStream_t st, const struct sq_gpu_device *d,
                              const struct sq_gpu_gemm *g, int n);

/* --- kv.cu, attn_s8.cu, attn_f32.cu --- */

/* The cache of all layers. int8: k [layer][block][kv head][32 tokens][D], v [layer][block][kv head][D][32 tokens]: the value matmul wants
 * tokens together. f32: both [32 tokens][D]. One block id addresses all layers. */
struct sq_gpu_kv {
    void *k, *v;
    int n_layers, n_blocks, n_kv_heads, head_dim;
    int is_f32;
};
struct sq_gpu_rope {
    const float *cos, *sin; /* device, [n_pos, rot_dim / 2] */
    int rot_dim;
};
struct sq_gpu_attn { /* struct sq_attn's numbers */
    int layer, n_heads, n_kv_heads, head_dim;
    float score_mul, out_mul, q_inv, k_inv, v_inv;
};

/* x f32 [n_rows, (n_heads + 2 n_kv_heads) D]; y f32 (may be x) or NULL, then codes. rope NULL: quantise only. */
cudaError_t sq_gpu_rope_rows(cudaStream_t st, const struct sq_gpu_step *s, int n_rows,
                             const struct sq_gpu_rope *rope, const struct sq_gpu_attn *a,
                             const float *x, float *y, struct sq_gpu_codes y_q);
/* k and v of each row into the cache: from codes (a stored -128 counts as -127: cuBLASLt saturates there) or, f32 cache, from xf. */
cudaError_t sq_gpu_kv_write(cudaStream_t st, const struct sq_gpu_step *s, int n_rows,
                            const struct sq_gpu_kv *kv, const struct sq_gpu_attn *a,
                            struct sq_gpu_codes x, const float *xf, int ld_xf);

struct sq_gpu_attend {
    const struct sq_gpu_step *s;
    const struct sq_gpu_kv *kv;
    struct sq_gpu_attn a;
    int n_dec,
        n_pieces; /* rows of the decode kernel, pieces of 256 keys of the longest of them (at least) */
    int n_tiles;           /* tiles of the prefill kernel */
    struct sq_gpu_codes q; /* the projection's codes (int8 cache), q in the first columns */
    const float *qf;       /* f32 cache: the projection */
    int ld_qf;
    struct sq_gpu_codes out; /* codes out (int8 cache), or */
    float *out_f;            /* f32 out */
    int ld_out;
    /* The decode kernel takes k and v of its row from the projection and writes them to the cache, too: no kv_write before it. */
    bool fused_write;
    const float *
        rope_x; /* with fused_write, or NULL: the projection in f32, to be rotated and quantised on the fly (q is then unused) */
    int ld_rope_x;
    struct sq_gpu_rope rope;
    float
        *parts; /* partial results, sq_gpu_attend_part_floats() floats per (dec row, head, piece) */
    int32_t *counters; /* [n_dec * n_kv_heads] zero; left zero */
    /* Neighbouring pieces that a block of the int8 decode kernel takes at most, with the same results whatever it is; a row whose pieces all
     * fall to one block needs no parts. 0: what suits a device of n_sms multiprocessors. */
    int pieces_per_block, n_sms;
};
int sq_gpu_attend_part_floats(int head_dim);
/* Decode rows and prefill tiles: one launch for each kind that is there. */
cudaError_t sq_gpu_attend(cudaStream_t st, const struct sq_gpu_attend *a);

#ifdef __cplusplus
}
#endif
