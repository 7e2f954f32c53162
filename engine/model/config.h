/* config.json and generation_config.json of a model directory, checked against the C and Q rules; every refusal names file, key, expected and found. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/model/family.h"

#define SQ_MAX_EOS 16

enum sq_scheme {
    SQ_SCHEME_FLOAT,
    SQ_SCHEME_W8A8_STATIC, /* per-tensor static input scales (O3) */
    SQ_SCHEME_W8A8_DYNAMIC, /* input scales per row at run time (O1; a dynamic per-tensor checkpoint runs so, too) */
};

/* How fast each pair of dimensions turns: theta^(-2i / head_dim) by position, then stretched for contexts longer than those of the training. */
enum sq_rope_kind {
    SQ_ROPE_DEFAULT,
    SQ_ROPE_LINEAR, /* all by factor */
    SQ_ROPE_LLAMA3 /* waves longer than original / low_freq by factor, shorter than original / high_freq not at all, smoothly between */
};
struct sq_rope_config {
    enum sq_rope_kind kind;
    double theta, factor, low_freq, high_freq;
    int original; /* positions before the stretching */
};

struct sq_config {
    const struct sq_family *family;
    int n_layers, hidden, ffn, n_heads, n_kv_heads, head_dim;
    int vocab, max_positions; /* max_positions: usable context in tokens */
    int embed_dim;            /* word_embed_proj_dim; != hidden: project_in / project_out */
    float norm_eps;
    bool pre_norm;   /* OPT do_layer_norm_before; false: 350m */
    bool final_norm; /* a norm before the head (OPT: pre_norm and not _remove_final_layer_norm) */
    bool tied;       /* the head is the embedding */
    bool attn_bias, ffn_bias; /* of the linears of either part */
    bool norm_affine;
    struct sq_rope_config rope; /* of families with rotary positions */
    enum sq_dtype dtype;        /* torch_dtype / dtype, F32 if absent */
    enum sq_scheme scheme;      /* from quantization_config */
    bool custom_code;           /* auto_map is there: ignored, but worth a warning (C2) */
    uint64_t digest;            /* of config.json's bytes */
    bool head_quantized;        /* quantization_config does not ignore lm_head */
    int32_t bos, pad;           /* -1 = none */
    int32_t eos[SQ_MAX_EOS];
    int n_eos;
    /* generation_config.json, with config.json's own keys as fallback; NAN / -1 = not given */
    struct sq_gen_defaults {
        float temperature, top_p, min_p, repetition_penalty;
        int top_k, do_sample;
    } gen;
};

/* Reads both files beneath dir_fd (the second may be absent). dir_name is for messages. */
int sq_config_load(int dir_fd, const char *dir_name, struct sq_config *ret,
                   struct sq_err *err) SQ_CHECKED;
/* config.json's bytes alone: also the fuzz entry and `bench --config`. */
int sq_config_parse(const char *json, size_t n_bytes, const char *file, struct sq_config *ret,
                    struct sq_err *err) SQ_CHECKED;
