/* Which device does the work: what the user asked for, or the GPU where one is usable, else the CPU. */
#pragma once

#include <stdint.h>

#include "daemon/gpu.h"
#include "engine/backend.h"

struct sq_backend_options {
    const char *backend; /* auto, cpu, cuda */
    int n_threads;       /* CPU; 0 = all processors */
    const char *kernel;  /* CPU kernel variant; NULL = the best */
    bool plan;           /* GPU: struct sq_gpu_options' */
};

struct sq_chosen_backend {
    struct sq_backend *be;
    struct sq_gpu *gpu; /* NULL: the CPU */
    struct sq_device_info device;
    char why[640]; /* one line for the log: which one, and why not the other */
};

/* Whether word names a backend. */
bool sq_backend_known(const char *word);

/* -SQ_E_UNAVAIL: cuda was asked for and there is none. A GPU that is there but fails to open is an error, under auto, too: nobody wants
 * to find out by the speed. */
int sq_backend_choose(const struct sq_backend_options *o, struct sq_chosen_backend *ret,
                      struct sq_err *err) SQ_CHECKED;
void sq_backend_done(struct sq_chosen_backend *c); /* zeroed is fine */

/* Bytes that a KV cache of no given size may take at most on the CPU: half of what the machine has free now. */
uint64_t sq_backend_kv_room(void);
