/* Named threads and the monotonic clock. */
#pragma once

#include <pthread.h>
#include <stdint.h>

#include "engine/base/err.h"

/* Starts a thread with a name of at most 15 bytes and all signals blocked (the loop thread owns signals). */
int sq_thread_start(pthread_t *ret, const char *name, void *(*run)(void *), void *arg,
                    struct sq_err *err) SQ_CHECKED;

/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t sq_now_ns(void);

/* Processors this process may run on (affinity mask), at least 1. */
int sq_n_cpus(void);
