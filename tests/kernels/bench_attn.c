/* Timings of attention, the float matmul and the row ops, one thread, for each variant; not a test. Beside each figure stands a
 * live probe of read bandwidth from the same seconds, because a shared machine's absolute figures move.
 *
 *   bench_attn [variant] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/cpu/attn.h"

#define REPEATS 9
#define MAX_BATCH 16
#define COLD_BYTES ((size_t)160 << 20) /* what is rotated through, so that it comes from DRAM */

/* Processor time of this thread, so that being preempted is not counted. */
static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *x)
{
    qsort(x, REPEATS, sizeof *x, by_size);
    return x[REPEATS / 2];
}

/* GB/s of summing COLD_BYTES with eight streams of 64-bit words. */
static double probe_read(const uint64_t *p)
{
    uint64_t sum[8] = {0};
    double t0 = now();
    for (size_t i = 0; i < COLD_BYTES / 8; i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += p[i + (size_t)j];
    double t = now() - t0;
    volatile uint64_t sink = 0;
    for (int j = 0; j < 8; j++)
        sink += sum[j];
    return (double)COLD_BYTES / t * 1e-9;
}

struct shape {
    int dim, n_heads, n_kv;
};

struct attn_bench {
    struct sq_kv *kv;
    struct sq_attn a;
    struct sq_buf *qkv, *out;
    void *scratch;
    int32_t *blocks;
    size_t step_bytes; /* of cache that a decode row of one layer reads */
};

static struct attn_bench bench_new(struct shape s, enum sq_dtype t, int layers, int n_seqs, int n)
{
    struct attn_bench b = {.a = {.n_heads = s.n_heads,
                                 .n_kv_heads = s.n_kv,
                                 .head_dim = s.dim,
                                 .score_mul = 1e-3f,
                                 .out_mul = 1.0f}};
    size_t per_seq = (size_t)(n + 31) / 32;
    struct sq_kv_desc d = {(size_t)layers, (size_t)s.n_kv, (size_t)s.dim, per_seq * (size_t)n_seqs,
                           t};
    SQ_ASSERT(sq_cpu_kv_new(&d, &b.kv, NULL) == 0);
    size_t cols = (size_t)((s.n_heads + 2 * s.n_kv) * s.dim);
    enum sq_buf_kind kind = t == SQ_I8 ? SQ_BUF_S8 : SQ_BUF_F32;
    size_t rows = SQ_MAX((size_t)n, (size_t)MAX_BATCH);
    SQ_ASSERT(sq_cpu_buf_new(kind, rows, cols, &b.qkv, NULL) == 0);
    SQ_ASSERT(sq_cpu_buf_new(kind, rows, (size_t)(s.n_heads * s.dim), &b.out, NULL) == 0);
    for (size_t i = 0; i < b.qkv->max_rows * b.qkv->stride; i++) {
        if (t == SQ_I8)
            b.qkv->u[i] = (uint8_t)(1 + rand() % 255);
        else
            b.qkv->f[i] = (float)(rand() % 255) / 128.0f - 1.0f;
    }
    b.scratch = sq_cpu_alloc(sq_cpu_attn_scratch(&d));
    b.blocks = sq_new_array(int32_t, d.n_blocks);
    for (size_t i = 0; i < d.n_blocks; i++)
        b.blocks[i] = (int32_t)i;
    b.step_bytes = per_seq * (size_t)s.n_kv * b.kv->tile_bytes;
    return b;
}

static void bench_free(struct attn_bench *b)
{
    sq_cpu_kv_free(b->kv);
    sq_cpu_buf_free(b->qkv);
    sq_cpu_buf_free(b->out);
    sq_free(b->scratch);
    sq_free(b->blocks);
}

/* One layer of a step: n rows that end at position end for each of n_seqs sequences from i_seq. */
static void attend(const struct sq_cpu_ops *k, struct attn_bench *b, int layer, int i_seq,
                   int n_seqs, int n, int end)
{
    struct sq_batch_seq seq[MAX_BATCH];
    struct sq_batch batch = {.n_rows = n * n_seqs, .n_seqs = n_seqs, .seqs = seq};
    b->a.layer = layer;
    for (int i = 0; i < n_seqs; i++)
        seq[i] = (struct sq_batch_seq){.row0 = i * n,
                                       .n_rows = n,
                                       .pos0 = end - n,
                                       .blocks = b->blocks + (i_seq + i) * ((end + 31) / 32)};
    for (int i = 0; i < n_seqs; i++)
        for (int h = 0; h < b->a.n_kv_heads; h++)
            k->attend(b->kv, &b->a, &batch, b->qkv, b->out, i, h, i * n, i * n + n, b->scratch);
}

static void decode(const struct sq_cpu_ops *k, struct shape s, enum sq_dtype t, int n, int batch,
                   const uint64_t *probe)
{
    size_t one = (size_t)n * (size_t)(s.n_kv * s.dim) * 2 * sq_dtype_bytes(t);
    int layers = 12, n_seqs = (int)(COLD_BYTES / one / (size_t)layers);
    n_seqs = SQ_MAX(n_seqs / batch, 1) * batch;
    struct attn_bench b = bench_new(s, t, layers, n_seqs, n);
    double us[REPEATS], share[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        double bw = probe_read(probe), t0 = now();
        for (int layer = 0; layer < layers; layer++)
            for (int q = 0; q < n_seqs; q += batch)
                attend(k, &b, layer, q, batch, 1, n);
        us[i] = (now() - t0) * 1e6 / (layers * n_seqs);
        share[i] = (double)b.step_bytes / us[i] * 1e-3 / bw;
    }
    double u = median(us);
    printf(
        "%-12s decode  %s T=%-5d B=%-2d D=%-3d heads %d/%d: %8.1f us a row, %5.1f GB/s, %3.0f %% "
        "of read\n",
        k->name, t == SQ_I8 ? "int8 " : "float", n, batch, s.dim, s.n_heads, s.n_kv, u,
        (double)b.step_bytes / u * 1e-3, 100 * median(share));
    bench_free(&b);
}

static void prefill(const struct sq_cpu_ops *k, struct shape s, enum sq_dtype t, int n)
{
    struct attn_bench b = bench_new(s, t, 1, 1, n);
    double us[REPEATS], write_us[REPEATS];
    struct sq_batch_seq seq = {.n_rows = n, .blocks = b.blocks};
    struct sq_batch batch = {.n_rows = n, .n_seqs = 1, .seqs = &seq};
    int times = SQ_MAX(1, 512 / n);
    for (int i = 0; i < REPEATS; i++) {
        double t0 = now();
        for (int j = 0; j < times; j++)
            for (int h = 0; h < s.n_kv; h++)
                k->kv_write(b.kv, &b.a, &batch, b.qkv, 0, h);
        write_us[i] = (now() - t0) * 1e6 / times;
        t0 = now();
        for (int j = 0; j < times; j++)
            attend(k, &b, 0, 0, 1, n, n);
        us[i] = (now() - t0) * 1e6 / times;
    }
    double u = median(us), ops = 4.0 * s.n_heads * s.dim * (0.5 * n * (n + 1));
    printf("%-12s prefill %s S=%-5d D=%-3d heads %d/%d: %8.1f us, %5.0f useful GOP/s; kv_write "
           "%.1f us\n",
           k->name, t == SQ_I8 ? "int8 " : "float", n, s.dim, s.n_heads, s.n_kv, u, ops / u * 1e-3,
           median(write_us));
    bench_free(&b);
}

static void gemm_float(const struct sq_cpu_ops *k, enum sq_dtype t, size_t n_in, size_t n_out,
                       int rows, const uint64_t *probe)
{
    struct sq_linear_desc d = {.name = "w", .n_in = n_in, .n_out = n_out, .dtype = t};
    struct sq_epilogue e = {0};
    size_t bytes = n_in * n_out * sq_dtype_bytes(t);
    int n_w = rows > 4 ? 1 : (int)SQ_MAX(COLD_BYTES / bytes, (size_t)1);
    struct sq_linear *l[256];
    struct sq_buf *x = NULL, *y = NULL;
    void *zero = sq_calloc(n_in, 4);
    n_w = SQ_MIN(n_w, 256);
    for (int i = 0; i < n_w; i++) {
        SQ_ASSERT(sq_cpu_linear_new(&d, &l[i], NULL) == 0);
        for (size_t r = 0; r < n_out; r++)
            SQ_ASSERT(sq_cpu_linear_put(l[i], r, 1, zero, NULL) == 0);
        SQ_ASSERT(sq_cpu_linear_finish(l[i], &e, NULL) == 0);
    }
    SQ_ASSERT(sq_cpu_buf_new(SQ_BUF_F32, (size_t)rows, n_in, &x, NULL) == 0);
    SQ_ASSERT(sq_cpu_buf_new(SQ_BUF_F32, (size_t)rows, n_out, &y, NULL) == 0);
    double us[REPEATS], share[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        double bw = probe_read(probe), t0 = now();
        for (int j = 0; j < n_w; j++)
            k->gemm_float(l[j], x, y, 0, rows, 0, n_out);
        us[i] = (now() - t0) * 1e6 / n_w;
        share[i] = (double)bytes / us[i] * 1e-3 / bw;
    }
    double u = median(us);
    printf("%-12s float matmul %s %zux%zu M=%-3d: %8.1f us, %6.1f GFLOP/s, %3.0f %% of read\n",
           k->name,
           t == SQ_F32   ? "F32 "
           : t == SQ_F16 ? "F16 "
                         : "BF16",
           n_in, n_out, rows, u, 2.0 * rows * (double)(n_in * n_out) / u * 1e-3,
           100 * median(share));
    for (int i = 0; i < n_w; i++)
        sq_cpu_linear_free(l[i]);
    sq_cpu_buf_free(x);
    sq_cpu_buf_free(y);
    sq_free(zero);
}

static void rows(const struct sq_cpu_ops *k, size_t dim)
{
    enum { ROWS = 64 };
    float *one = sq_new_array(float, dim);
    struct sq_norm_desc d = {SQ_LAYERNORM, dim, 1e-5f, NULL, NULL, one, one};
    struct sq_norm *n = NULL;
    struct sq_buf *x = NULL, *q = NULL;
    SQ_ASSERT(sq_cpu_norm_new(&d, &n, NULL) == 0);
    SQ_ASSERT(sq_cpu_buf_new(SQ_BUF_F32, ROWS, dim, &x, NULL) == 0);
    SQ_ASSERT(sq_cpu_buf_new(SQ_BUF_S8, ROWS, dim, &q, NULL) == 0);
    double norm_us[REPEATS], quant_us[REPEATS];
    for (int i = 0; i < REPEATS; i++) {
        double t0 = now();
        for (int j = 0; j < 20; j++)
            k->norm(n, x, 0, ROWS, NULL, q);
        norm_us[i] = (now() - t0) * 1e6 / (20 * ROWS);
        t0 = now();
        for (int j = 0; j < 20; j++)
            k->quant_rows(x, 0, ROWS, 0.0f, q);
        quant_us[i] = (now() - t0) * 1e6 / (20 * ROWS);
    }
    printf("%-12s rows of %zu: LayerNorm to codes %.3f us, dynamic quantisation %.3f us\n", k->name,
           dim, median(norm_us), median(quant_us));
    sq_cpu_norm_free(n);
    sq_cpu_buf_free(x);
    sq_cpu_buf_free(q);
    sq_free(one);
}

int main(int argc, char **argv)
{
    uint64_t *probe = sq_cpu_alloc(COLD_BYTES);
    const struct shape mha = {64, 12, 12}, wide = {80, 32, 32}, gqa = {64, 32, 4};
    for (const struct sq_cpu_ops *const *v = sq_cpu_variants(); *v; v++) {
        const struct sq_cpu_ops *k = *v;
        if (argc > 1 ? strcmp(argv[1], k->name) != 0 : strcmp(k->name, "ref") == 0)
            continue;
        const int lens[] = {128, 160, 1024, 2048};
        for (int i = 0; i < 4; i++) {
            decode(k, mha, SQ_I8, lens[i], 1, probe);
            decode(k, mha, SQ_I8, lens[i], MAX_BATCH, probe);
        }
        decode(k, wide, SQ_I8, 1024, 1, probe);
        decode(k, gqa, SQ_I8, 1024, 1, probe);
        decode(k, gqa, SQ_I8, 160, MAX_BATCH, probe);
        decode(k, mha, SQ_F32, 1024, 1, probe);
        prefill(k, mha, SQ_I8, 128);
        prefill(k, mha, SQ_I8, 512);
        prefill(k, mha, SQ_I8, 2048);
        prefill(k, wide, SQ_I8, 512);
        prefill(k, mha, SQ_F32, 128);
        gemm_float(k, SQ_F16, 768, 3072, 1, probe);
        gemm_float(k, SQ_BF16, 768, 50272, 1, probe);
        gemm_float(k, SQ_F32, 768, 3072, 1, probe);
        gemm_float(k, SQ_F16, 768, 3072, 4, probe);
        gemm_float(k, SQ_F16, 768, 3072, 16, probe);
        gemm_float(k, SQ_BF16, 768, 3072, 128, probe);
        rows(k, 768);
        rows(k, 2048);
    }
    sq_free(probe);
    return 0;
}
