/* Attention and the KV cache: 256-bit vpdpbusd (AVX-VNNI, or AVX512-VNNI with VL). */
#include "engine/cpu/attn.inc"

#include "engine/cpu/attn_float.inc"
#include "engine/cpu/kv.inc"
