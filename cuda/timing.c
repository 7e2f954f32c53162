#include "cuda/timing.h"

#include <stdlib.h>

#include "cuda/cuda.h"
#include "engine/base/check.h"

enum { WARM_UP = 2 };

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

float sq_cuda_median(float *v, size_t n)
{
    qsort(v, n, sizeof *v, by_value);
    return v[n / 2];
}

/* From event to event. */
static int sample(struct sq_cuda *c, int (*call)(void *ctx), void *ctx, int n_calls, float *ret_ms)
{
    int rc = sq_cuda_check(c, cudaEventRecord(c->timer[0], c->st), "timing");
    for (int i = 0; i < n_calls && !rc; i++)
        rc = call(ctx);
    if (!rc)
        rc = sq_cuda_check(c, cudaEventRecord(c->timer[1], c->st), "timing");
    if (!rc)
        rc = sq_cuda_check(c, cudaEventSynchronize(c->timer[1]), "timing");
    if (!rc)
        rc = sq_cuda_check(c, cudaEventElapsedTime(ret_ms, c->timer[0], c->timer[1]), "timing");
    return rc;
}

int sq_cuda_time(struct sq_cuda *c, int (*call)(void *ctx), void *ctx, int n_samples, int n_calls,
                 float *ret_ms)
{
    float ms[SQ_CUDA_SAMPLES_MAX];
    int rc = 0;
    SQ_ASSERT(n_samples > 0 && n_samples <= SQ_CUDA_SAMPLES_MAX && n_calls > 0);
    for (int i = 0; i < WARM_UP && !rc; i++)
        rc = call(ctx);
    for (int i = 0; i < n_samples && !rc; i++)
        rc = sample(c, call, ctx, n_calls, &ms[i]);
    if (!rc)
        *ret_ms = sq_cuda_median(ms, (size_t)n_samples) / (float)n_calls;
    return rc;
}
