/* How long work on a stream takes, by events: medians, since a run that something else delays says nothing of the work. */
#pragma once

#include <stddef.h>

struct sq_cuda;

/* Sorts v; n > 0. */
float sq_cuda_median(float *v, size_t n);

#define SQ_CUDA_SAMPLES_MAX 8

/* Milliseconds of one call of `call`, which enqueues on c's stream: the median of n_samples (at most SQ_CUDA_SAMPLES_MAX), each of n_calls,
 * after some that warm up. Waits for the stream. 0, or the sticky -SQ_E_* of a call or of the runtime. */
int sq_cuda_time(struct sq_cuda *c, int (*call)(void *ctx), void *ctx, int n_samples, int n_calls,
                 float *ret_ms);
