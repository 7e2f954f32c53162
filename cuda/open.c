/* What there is of a GPU, and a backend on it. */
#include <stdio.h>

#include "cuda/cuda.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"

/* Oldest device with int8 tensor cores. */
#define MIN_CAPABILITY 75

static int capability_of(int device, struct cudaDeviceProp *p, struct sq_err *err)
{
    cudaError_t e = cudaGetDeviceProperties(p, device);
    if (e != cudaSuccess)
        return sq_fail(err, SQ_E_DEVICE, "GPU %d: %s", device, sq_cuda_words(e));
    int capability = p->major * 10 + p->minor;
    if (capability < MIN_CAPABILITY)
        return sq_fail(err, SQ_E_NOTSUP,
                       "GPU %d (%s) has compute capability %d.%d, at least %d.%d is needed", device,
                       p->name, p->major, p->minor, MIN_CAPABILITY / 10, MIN_CAPABILITY % 10);
    return capability;
}

static int count_devices(int *ret, struct sq_err *err)
{
    int n = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n == 0)
        e = cudaErrorNoDevice;
    (void)cudaGetLastError();
    if (e != cudaSuccess)
        return sq_fail(err, SQ_E_DEVICE, "%s", sq_cuda_words(e));
    *ret = n;
    return 0;
}

int sq_cuda_probe(struct sq_gpu_probe *ret, struct sq_err *err)
{
    struct sq_gpu_probe p = {0};
    struct cudaDeviceProp prop;
    int rc = count_devices(&p.n_devices, err);
    if (rc)
        return rc;
    rc = capability_of(0, &prop, err);
    if (rc < 0)
        return rc;
    p.capability = rc;
    snprintf(p.name, sizeof p.name, "%.63s", prop.name);
    cudaError_t e = cudaSetDevice(0);
    if (e == cudaSuccess)
        e = sq_gpu_has_code();
    if (e == cudaSuccess)
        e = cudaMemGetInfo(&p.mem_free_bytes, &p.mem_total_bytes);
    if (e != cudaSuccess)
        return sq_fail(err, SQ_E_DEVICE, "GPU 0 (%s): %s", p.name, sq_cuda_words(e));
    *ret = p;
    return 0;
}

static int open_device(struct sq_cuda *c, struct sq_err *err)
{
    struct cudaDeviceProp prop;
    int n = 0, rc = count_devices(&n, err);
    if (rc)
        return rc;
    if (c->o.device < 0 || c->o.device >= n)
        return sq_fail(err, SQ_E_INVAL, "GPU %d: this machine has %d", c->o.device, n);
    rc = capability_of(c->o.device, &prop, err);
    if (rc < 0)
        return rc;
    c->capability = rc;
    snprintf(c->name, sizeof c->name, "%.255s", prop.name);
    cudaError_t e = cudaSetDevice(c->o.device);
    if (e == cudaSuccess)
        e = sq_gpu_device(&c->device);
    if (e == cudaSuccess)
        e = cudaStreamCreateWithFlags(&c->st, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && e == cudaSuccess; i++)
        e = cudaEventCreate(&c->timer[i]);
    rc = sq_cuda_fail(c, e, c->name, err);
    return rc ? rc : sq_cuda_stage_init(c, err);
}

static int open_parts(struct sq_cuda *c, struct sq_err *err)
{
    int rc = c->o.plan ? 0 : open_device(c, err);
    if (!rc)
        rc = sq_cuda_alloc(c, SQ_CUDA_WORK, SQ_LT_WORKSPACE, "the workspace of cuBLASLt",
                           &c->lt_work, err);
    if (!rc && (c->small_bytes = sq_gpu_gemm_small_work()) > 0) {
        rc = sq_cuda_alloc(c, SQ_CUDA_WORK, c->small_bytes, "the workspace of decode matmuls",
                           &c->small_work, err);
        rc = rc ? rc : sq_cuda_zero(c, c->small_work, c->small_bytes, err);
    }
    if (rc || c->o.plan)
        return rc;
    const struct sq_lt_options o = {.cache_dir = c->o.cache_dir,
                                    .workspace = c->lt_work,
                                    .workspace_bytes = SQ_LT_WORKSPACE,
                                    .device_name = c->name,
                                    .capability = c->capability};
    rc = sq_lt_open(&o, c->st, &c->lt, err);
    if (!rc)
        c->is_timed = sq_lt_is_timed(c->lt);
    return rc;
}

int sq_cuda_open(const struct sq_gpu_options *o, struct sq_backend **ret, struct sq_err *err)
{
    if (o->world_size > 1 || o->rank)
        return sq_fail(err, SQ_E_NOTSUP, "rank %d of %d: several GPUs are not in this version",
                       o->rank, o->world_size);
    struct sq_cuda *c = sq_new(struct sq_cuda);
    if (!c)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the GPU backend");
    c->base.ops = &sq_cuda_ops;
    c->o = *o;
    c->plan_at = SQ_CUDA_ALIGN;
    snprintf(c->name, sizeof c->name, "plan");
    int rc = open_parts(c, err);
    if (rc) {
        c->base.ops->close(&c->base);
        return rc;
    }
    *ret = &c->base;
    return 0;
}

void sq_cuda_budget(struct sq_backend *be, struct sq_gpu_budget *ret)
{
    const struct sq_cuda *c = sq_cuda_of(be);
    *ret = (struct sq_gpu_budget){.weight_bytes = c->used_bytes[SQ_CUDA_WEIGHTS],
                                  .kv_bytes = c->used_bytes[SQ_CUDA_KV],
                                  .activation_bytes = c->used_bytes[SQ_CUDA_ACTS],
                                  .workspace_bytes = c->used_bytes[SQ_CUDA_WORK],
                                  .held_bytes = c->held_bytes,
                                  .n_allocs = c->n_allocs};
}
