/* Attention and the KV cache: AVX512-VNNI. */
#include "engine/cpu/attn.inc"

#include "engine/cpu/attn_float.inc"
#include "engine/cpu/kv.inc"
