/* Row ops and the float matmul: 256-bit vpdpbusd (AVX-VNNI, or AVX512-VNNI with VL). */
#include "engine/cpu/rows.inc"

#include "engine/cpu/gated.inc"
#include "engine/cpu/gemm_float.inc"
