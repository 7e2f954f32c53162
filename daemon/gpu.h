/* Opens the GPU module (cuda/module.h) where there is one and a GPU that it can use, and otherwise says in plain words what is missing. */
#pragma once

#include "cuda/module.h"
#include "engine/base/err.h"

struct sq_gpu;

/* Looks for the module at $SQD_GPU_MODULE (and nowhere else if that is set), in the build folder this program lies in, where it was installed.
 * plan: only plans will be made with it, so the device is not looked at, and need not be there. -SQ_E_UNAVAIL: no module, no CUDA libraries,
 * another version, no driver, no device, or one that is too old. */
int sq_gpu_open(bool plan, struct sq_gpu **ret, struct sq_err *err) SQ_CHECKED;
/* A backend on device 0; plan as in struct sq_gpu_options. It borrows g. */
int sq_gpu_backend(struct sq_gpu *g, bool plan, struct sq_backend **ret,
                   struct sq_err *err) SQ_CHECKED;
/* After its backends are closed. The module stays in memory: threads of the CUDA libraries may still run. NULL is fine. */
void sq_gpu_close(struct sq_gpu *g);

const struct sq_gpu_module *sq_gpu_module(const struct sq_gpu *g);
const struct sq_gpu_probe *
sq_gpu_probed(const struct sq_gpu *g); /* as of sq_gpu_open; zeroed for a plan */
