/* Device memory: counted by what it is for. A plan counts and takes nothing. */
#include <stdio.h>

#include "cuda/cuda.h"
#include "engine/base/check.h"
#include "engine/base/num.h"

static const char *const class_names[] = {"weights", "KV cache", "activations", "workspace"};

static int no_room(struct sq_cuda *c, enum sq_cuda_class k, size_t bytes, const char *what,
                   struct sq_err *err)
{
    size_t free_bytes = 0, total = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&free_bytes, &total);
    return sq_fail(err, SQ_E_LIMIT,
                   "device memory: %s (%s) needs %zu bytes, %zu of %zu are free; taken so far: "
                   "weights %zu, KV cache %zu, activations %zu, workspace %zu",
                   what, class_names[k], bytes, free_bytes, total, c->used_bytes[SQ_CUDA_WEIGHTS],
                   c->used_bytes[SQ_CUDA_KV], c->used_bytes[SQ_CUDA_ACTS],
                   c->used_bytes[SQ_CUDA_WORK]);
}

/* What the device gives for an allocation: large ones in pages of 2 MiB. */
static size_t held(size_t bytes)
{
    return sq_round_up(bytes, bytes >= (size_t)1 << 20 ? (size_t)2 << 20 : 512);
}

int sq_cuda_alloc(struct sq_cuda *c, enum sq_cuda_class k, size_t bytes, const char *what,
                  void **ret, struct sq_err *err)
{
    SQ_ASSERT(bytes > 0);
    if (c->o.plan) {
        *ret = (void *)c->plan_at;
        c->plan_at += sq_round_up(bytes, SQ_CUDA_ALIGN);
    } else {
        void *p;
        cudaError_t e = cudaMalloc(&p, bytes);
        if (e == cudaErrorMemoryAllocation)
            return no_room(c, k, bytes, what, err);
        if (e != cudaSuccess)
            return sq_cuda_fail(c, e, what, err);
#ifdef SQ_GPU_POISON
        e = cudaMemsetAsync(p, 0xff, bytes, c->st);
        if (e != cudaSuccess) {
            (void)cudaFree(p);
            return sq_cuda_fail(c, e, what, err);
        }
#endif
        *ret = p;
    }
    c->used_bytes[k] += bytes;
    c->held_bytes += held(bytes);
    c->n_allocs++;
    return 0;
}

void sq_cuda_free(struct sq_cuda *c, enum sq_cuda_class k, void *p, size_t bytes)
{
    if (!p)
        return;
    c->used_bytes[k] -= bytes;
    c->held_bytes -= held(bytes);
    c->n_allocs--;
    if (!c->o.plan)
        (void)cudaFree(p); /* after a sticky error it fails; the process ends anyway */
}

int sq_cuda_zero(struct sq_cuda *c, void *p, size_t bytes, struct sq_err *err)
{
    if (c->o.plan)
        return 0;
    return sq_cuda_fail(c, cudaMemsetAsync(p, 0, bytes, c->st), "clearing device memory", err);
}
