/* Compiled once per instruction set: its table. */
#include "engine/cpu/cpu.h"

const struct sq_cpu_ops SQ_CPU_FN(sq_cpu_ops) = {
    .name = SQ_CPU_NAME,
    .gemm_s8 = SQ_CPU_FN(sq_gemm_s8),
    .int8_probe = SQ_CPU_FN(sq_int8_probe),
    .gemm_float = SQ_CPU_FN(sq_gemm_float),
    .norm = SQ_CPU_FN(sq_norm),
    .quant_rows = SQ_CPU_FN(sq_quant_rows),
    .embed = SQ_CPU_FN(sq_embed),
    .rope = SQ_CPU_FN(sq_rope),
    .swiglu = SQ_CPU_FN(sq_swiglu),
    .observe = SQ_CPU_FN(sq_observe),
    .argmax = SQ_CPU_FN(sq_argmax),
    .kv_write = SQ_CPU_FN(sq_kv_write),
    .attend = SQ_CPU_FN(sq_attend),
};
