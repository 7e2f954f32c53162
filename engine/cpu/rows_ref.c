/* Row ops and the float matmul: plain C. */
#include "engine/cpu/rows.inc"

#include "engine/cpu/gated.inc"
#include "engine/cpu/gemm_float.inc"
