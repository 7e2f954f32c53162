/* Row ops and the float matmul: AVX2. */
#include "engine/cpu/rows.inc"

#include "engine/cpu/gated.inc"
#include "engine/cpu/gemm_float.inc"
