/* The one door of libsqd-cuda.so: a versioned table. Plain C without CUDA headers, so that the daemon can include it; the module is opened
 * with dlopen, and the daemon starts on machines that have neither driver nor libraries. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/base/err.h"

#define SQ_GPU_ABI 1
#define SQ_GPU_SYMBOL "sqd_gpu_module"

struct sq_gpu_options {
    int device;            /* CUDA ordinal */
    int rank, world_size;  /* several GPUs are not in this version: 0 and 1 */
    bool plan;             /* count bytes only: no call reaches the device */
    bool no_graphs;        /* never record decode steps */
    const char *cache_dir; /* where timings of matmul algorithms are kept; NULL = nowhere */
};

struct sq_gpu_probe {
    int n_devices;
    int capability; /* of device 0, 90 for 9.0 */
    char name[64];
    size_t mem_total_bytes, mem_free_bytes;
};

/* What was and will be taken of the device's memory, for the budget print; sums of the sizes asked from cudaMalloc. */
struct sq_gpu_budget {
    size_t weight_bytes, kv_bytes, activation_bytes, workspace_bytes;
    size_t held_bytes; /* what the device gives for them: each rounded up to its pages */
    size_t n_allocs;
};

/* What the device reaches at its best, measured; the yardsticks of `sqd bench --roof`. */
struct sq_gpu_ceilings {
    double read_bytes_per_s, int8_ops_per_s, f16_ops_per_s; /* a multiply-add is two operations */
};

/* Which way a matmul of few rows goes; times are 0 where nothing was timed. */
struct sq_gpu_choice {
    const char *name; /* of the first linear of its shape */
    size_t n_out, n_in;
    int n_rows;
    bool own; /* our kernel; else the library */
    double own_us, library_us;
};
typedef void sq_gpu_choice_fn(void *ctx, const struct sq_gpu_choice *choice);

struct sq_gpu_module {
    uint32_t abi, struct_bytes;
    const char *version;
    /* Is there a usable GPU? Errors say in our own words what is missing (driver, device, architecture). */
    int (*probe)(struct sq_gpu_probe *ret, struct sq_err *err);
    int (*open)(const struct sq_gpu_options *o, struct sq_backend **ret, struct sq_err *err);
    void (*budget)(struct sq_backend *be, struct sq_gpu_budget *ret);
    /* Takes 1 GiB for about a second and gives them back; between steps. quick: a few MiB, and figures that mean nothing. */
    int (*ceilings)(struct sq_backend *be, bool quick, struct sq_gpu_ceilings *ret,
                    struct sq_err *err);
    /* After reserve: every shape and bucket of rows. */
    void (*choices)(struct sq_backend *be, sq_gpu_choice_fn *each, void *ctx);
};

/* The exported function's type: const struct sq_gpu_module *sqd_gpu_module(void). */
typedef const struct sq_gpu_module *sq_gpu_module_fn(void);
