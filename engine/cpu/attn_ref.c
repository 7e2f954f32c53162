/* Attention and the KV cache: plain C. */
#include "engine/cpu/attn.inc"

#include "engine/cpu/attn_float.inc"
#include "engine/cpu/kv.inc"
