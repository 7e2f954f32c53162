/* Weights go up while they are read: the loader fills one pinned buffer while the other one is on its way. */
#include <string.h>

#include "cuda/cuda.h"
#include "engine/base/check.h"

int sq_cuda_stage_init(struct sq_cuda *c, struct sq_err *err)
{
    for (int i = 0; i < 2; i++) {
        cudaError_t e =
            cudaHostAlloc((void **)&c->stage.host[i], SQ_CUDA_STAGE_BYTES, cudaHostAllocDefault);
        if (e == cudaSuccess)
            e = cudaEventCreateWithFlags(&c->stage.done[i], cudaEventDisableTiming);
        if (e != cudaSuccess)
            return sq_cuda_fail(c, e, "pinned memory for uploads", err);
    }
    return 0;
}

void sq_cuda_stage_done(struct sq_cuda *c)
{
    for (int i = 0; i < 2; i++) {
        if (c->stage.done[i])
            (void)cudaEventDestroy(c->stage.done[i]);
        if (c->stage.host[i])
            (void)cudaFreeHost(c->stage.host[i]);
    }
}

/* Up to a buffer's worth of rows. */
static cudaError_t upload_part(struct sq_cuda *c, uint8_t *dst, size_t dst_pitch,
                               const uint8_t *src, size_t row_bytes, size_t n_rows)
{
    struct sq_cuda_stage *s = &c->stage;
    const int i = s->turn;
    cudaError_t e = cudaEventSynchronize(s->done[i]); /* a fresh event is done */
    if (e != cudaSuccess)
        return e;
    memcpy(s->host[i], src, n_rows * row_bytes);
    e = n_rows == 1 || dst_pitch == row_bytes
            ? cudaMemcpyAsync(dst, s->host[i], n_rows * row_bytes, cudaMemcpyHostToDevice, c->st)
            : cudaMemcpy2DAsync(dst, dst_pitch, s->host[i], row_bytes, row_bytes, n_rows,
                                cudaMemcpyHostToDevice, c->st);
    if (e != cudaSuccess)
        return e;
    s->turn = !i;
    return cudaEventRecord(s->done[i], c->st);
}

int sq_cuda_upload(struct sq_cuda *c, void *dst, size_t dst_pitch, const void *src,
                   size_t row_bytes, size_t n_rows, struct sq_err *err)
{
    if (c->o.plan || n_rows == 0)
        return 0;
    uint8_t *d = dst;
    const uint8_t *s = src;
    cudaError_t e = cudaSuccess;
    if (row_bytes > SQ_CUDA_STAGE_BYTES) { /* a row in parts */
        for (size_t r = 0; r < n_rows; r++)
            for (size_t at = 0, n; at < row_bytes && e == cudaSuccess; at += n) {
                n = SQ_MIN(row_bytes - at, SQ_CUDA_STAGE_BYTES);
                e = upload_part(c, d + r * dst_pitch + at, n, s + r * row_bytes + at, n, 1);
            }
    } else {
        const size_t most = SQ_CUDA_STAGE_BYTES / row_bytes;
        for (size_t r = 0, n; r < n_rows && e == cudaSuccess; r += n) {
            n = SQ_MIN(n_rows - r, most);
            e = upload_part(c, d + r * dst_pitch, dst_pitch, s + r * row_bytes, row_bytes, n);
        }
    }
    return sq_cuda_fail(c, e, "upload to the device", err);
}
