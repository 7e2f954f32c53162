/* The module's door: the one symbol it exports. */
#include "cuda/cuda.h"

static const struct sq_gpu_module module = {.abi = SQ_GPU_ABI,
                                            .struct_bytes = sizeof(struct sq_gpu_module),
                                            .version = SQD_VERSION,
                                            .probe = sq_cuda_probe,
                                            .open = sq_cuda_open,
                                            .budget = sq_cuda_budget,
                                            .ceilings = sq_cuda_ceilings,
                                            .choices = sq_cuda_choices};

__attribute__((visibility("default"))) sq_gpu_module_fn sqd_gpu_module;
const struct sq_gpu_module *sqd_gpu_module(void)
{
    return &module;
}
