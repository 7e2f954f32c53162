/* Row ops and the float matmul: AVX512-VNNI. */
#include "engine/cpu/rows.inc"

#include "engine/cpu/gated.inc"
#include "engine/cpu/gemm_float.inc"
