/* A loaded model: weights on a backend, immutable after load. forward.c runs it, whatever the family.
 *
 * load reads every tensor row-block by row-block from the source straight into the backend's packed place; beside the weights it
 * holds one staging buffer. Rules C4 (shapes, missing and surplus tensors together) and Q (scales, biases, norms) are checked here. */
#pragma once

#include <stdatomic.h>

#include "engine/backend.h"
#include "engine/base/err.h"
#include "engine/model/config.h"
#include "engine/model/source.h"

/* What forward.c expects of the linears' results: qkv S8 with int8_attention, but F32 where positions are rotary (rope makes the codes),
 * else F32; o and down ADD (the residual); up S8 (down's step) when static, else F32, with the family's activation in either case, but
 * of gated families F32 without one; project_in ADD (x holds the position embedding already);
 * project_out and head F32. Norms have gamma_q where the scheme is static and their next consumer has a step (post-norm: norm1 -> up,
 * norm2 -> the next layer's qkv, none on the last). */
struct sq_layer {
    struct sq_norm *norm1, *norm2;
    struct sq_linear *qkv; /* [q | k | v] fused: n_heads*D + 2 * n_kv_heads*D outputs */
    struct sq_linear *o, *down;
    struct sq_linear
        *up; /* gated: gate and up, [2 ffn, hidden] with rows 2i = gate i, 2i + 1 = up i */
    /* static input steps of the four linears, 0 where the scheme has none */
    float qkv_step, o_step, up_step, down_step;
    struct sq_attn attn; /* layer index, heads and multipliers ready for kv_write / attend */
};

struct sq_model {
    struct sq_config config;
    struct sq_backend *be; /* borrowed */
    enum sq_scheme scheme;
    bool
        int8_attention; /* q/k/v leave the projection as int8 and the KV cache is int8 (O3 with its extra steps); else both are f32 */
    struct sq_linear *embed, *pos; /* float tables; pos NULL where positions are rotary */
    struct sq_rope *rope;          /* NULL where they are not */
    struct sq_linear *project_in, *project_out; /* float; NULL for most */
    struct sq_norm *final_norm;                 /* NULL where the family has none */
    struct sq_linear *head;                     /* == embed when tied and kept; else its own */
    bool head_int8;                             /* int8 per channel, input rows quantised per row */
    struct sq_layer *layers;                    /* [config.n_layers] */
    size_t weight_bytes;                        /* on the backend */
    uint64_t fingerprint; /* of config, scales and weights' headers; 0 for random weights */
};

enum sq_head_mode {
    SQ_HEAD_KEEP /* as stored */,
    SQ_HEAD_INT8 /* quantise at load: per channel weights, per row inputs */
};

struct sq_load_options {
    enum sq_head_mode head;
    const char *prefix;                             /* of tensor names, see sq_model_dir */
    void (*progress)(void *ctx, double done_ratio); /* may be NULL */
    void *ctx;
    const _Atomic bool *stop; /* may be NULL; checked between tensors: -SQ_E_INTR */
    bool allow_surplus;       /* tensors that nothing asks for are fine (stacked sources) */
    bool
        sizes_only; /* matrices are made but neither read nor finished: to add up memory, not to run */
};

/* config is copied. On failure everything made on the backend is freed again. */
int sq_model_load(struct sq_source *src, const struct sq_config *config, struct sq_backend *be,
                  const struct sq_load_options *o, struct sq_model **ret,
                  struct sq_err *err) SQ_CHECKED;
struct sq_model *sq_model_free(struct sq_model *m);

/* A source of pseudo-random weights (and, for the W8A8 schemes, scales that keep activations in range) of any config: benchmarks need no checkpoint.
 * Deterministic in the seed, O(1) memory. */
int sq_random_source_open(const struct sq_config *config, uint64_t seed, struct sq_source **ret,
                          struct sq_err *err) SQ_CHECKED;
