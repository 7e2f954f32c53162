/* What the device reaches at its best: read bandwidth, and the library's matmuls of a size that suits it. */
#include "cuda/cuda.h"
#include "cuda/timing.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"

#define READ_BYTES ((size_t)1 << 30) /* far more than any L2 holds */
#define SIDE 8192 /* of the square matmuls: whole waves of tiles on every device */
#define QUICK_BYTES ((size_t)4 << 20)
#define QUICK_SIDE 256
#define SAMPLES 7
#define CALLS 4 /* per sample */

struct probe {
    struct sq_cuda *c;
    uint8_t *mem; /* everything: what is read, or w, x and y */
    size_t bytes;
    size_t read_bytes;
    int side, n_blocks;
    struct sq_lt_mm mm;
};

static int read_call(void *ctx)
{
    const struct probe *p = ctx;
    cudaError_t e =
        sq_gpu_read_all(p->c->st, p->mem, p->read_bytes, p->n_blocks, (uint32_t *)(void *)p->mem);
    return sq_cuda_check(p->c, e, "measuring read bandwidth");
}

static int matmul_call(void *ctx)
{
    const struct probe *p = ctx;
    return sq_cuda_check_lt(p->c, sq_lt_matmul(p->c->lt, &p->mm), "measuring matmuls");
}

/* Seconds of one call. */
static int time_calls(struct probe *p, int (*call)(void *ctx), double *ret_s, struct sq_err *err)
{
    float ms;
    int rc = sq_cuda_time(p->c, call, p, SAMPLES, CALLS, &ms);
    if (rc) {
        (void)sq_fail(err, SQ_E_DEVICE, "measuring the device: %s", p->c->fault);
        return rc;
    }
    *ret_s = (double)SQ_MAX(ms, 1e-6f) / 1e3;
    return 0;
}

/* Square matmul; int8 to s32, or f16 to f32. The bits do not matter to the time, but zeros would draw less power than data. */
static int time_matmul(struct probe *p, enum sq_dtype dtype, double *ret_ops, struct sq_err *err)
{
    const int n = p->side;
    const size_t matrix = (size_t)n * (size_t)n * sq_dtype_bytes(dtype);
    double s;
    p->mm = (struct sq_lt_mm){.w = p->mem,
                              .x = p->mem + matrix,
                              .y = p->mem + 2 * matrix,
                              .ldw = n,
                              .ldx = n,
                              .ldy = n,
                              .n_out = n,
                              .k = n,
                              .n_rows = n,
                              .dtype = dtype};
    int rc = sq_lt_prepare(p->c->lt, &p->mm, err);
    if (!rc)
        rc = time_calls(p, matmul_call, &s, err);
    if (rc)
        return rc;
    *ret_ops = 2.0 * n * n * n / s;
    return 0;
}

/* A byte pattern without order, small enough as f16 and as int8, through the upload's own path. */
static int fill(struct probe *p, struct sq_err *err)
{
    static const size_t chunk = 1 << 16;
    const size_t data = 2 * 2 * (size_t)p->side * (size_t)p->side; /* w and x in 16 bits */
    uint32_t state = 1;
    uint16_t *h = sq_malloc(chunk);
    int rc = h ? 0 : sq_fail(err, SQ_E_NOMEM, "out of memory");
    for (size_t i = 0; i < chunk / 2 && !rc; i++) {
        state = state * 1664525u + 1013904223u;
        h[i] = (uint16_t)(0x2c00 | (state >> 16 & 0x83ff)); /* +-0.0625 to 0.125 */
    }
    for (size_t at = 0; at < data && !rc; at += chunk)
        rc = sq_cuda_upload(p->c, p->mem + at, chunk, h, SQ_MIN(chunk, data - at), 1, err);
    sq_free(h);
    return rc;
}

static int run(struct probe *p, struct sq_gpu_ceilings *ret, struct sq_err *err)
{
    struct sq_gpu_ceilings r;
    double s;
    int n_sms;
    cudaError_t e = cudaDeviceGetAttribute(&n_sms, cudaDevAttrMultiProcessorCount, p->c->o.device);
    if (e == cudaSuccess)
        e = cudaMemsetAsync(p->mem, 0x11, p->bytes, p->c->st);
    int rc = sq_cuda_fail(p->c, e, "measuring the device", err);
    if (rc)
        return rc;
    p->n_blocks = 8 * n_sms;
    rc = time_calls(p, read_call, &s, err);
    if (rc)
        return rc;
    r.read_bytes_per_s = (double)p->read_bytes / s;
    rc = fill(p, err);
    rc = rc ? rc : time_matmul(p, SQ_I8, &r.int8_ops_per_s, err);
    rc = rc ? rc : time_matmul(p, SQ_F16, &r.f16_ops_per_s, err);
    if (!rc)
        *ret = r;
    return rc;
}

int sq_cuda_ceilings(struct sq_backend *be, bool quick, struct sq_gpu_ceilings *ret,
                     struct sq_err *err)
{
    struct probe p = {.c = sq_cuda_of(be),
                      .read_bytes = quick ? QUICK_BYTES : READ_BYTES,
                      .side = quick ? QUICK_SIDE : SIDE};
    void *mem;
    p.bytes = SQ_MAX(p.read_bytes, 8 * (size_t)p.side * (size_t)p.side); /* two f16, one f32 */
    int rc = sq_cuda_alloc(p.c, SQ_CUDA_WORK, p.bytes, "measuring the device", &mem, err);
    if (rc)
        return rc;
    p.mem = mem;
    rc = run(&p, ret, err);
    (void)cudaStreamSynchronize(p.c->st); /* it still reads what is freed now */
    sq_cuda_free(p.c, SQ_CUDA_WORK, mem, p.bytes);
    return rc;
}
