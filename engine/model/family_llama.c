/* LLaMA 1, 2 and 3 (transformers: modeling_llama): RMSNorm before both parts, rotary positions, SwiGLU, from LLaMA 2-70B on fewer
 * key and value heads than query heads. */
#include <stddef.h>

#include "engine/base/check.h"
#include "engine/model/config.h"
#include "engine/model/families.h"
#include "engine/quant.h"

static const char *const architectures[] = {"LlamaForCausalLM", NULL};
static const char *const prefixes[] = {"model.", "", NULL};

static const struct sq_config_key keys[] = {
    {"intermediate_size", SQ_KEY_INT, offsetof(struct sq_config, ffn), 1, SQ_K_MAX, true},
    {"num_key_value_heads", SQ_KEY_INT, offsetof(struct sq_config, n_kv_heads), 1, 1024, false},
    {"head_dim", SQ_KEY_INT, offsetof(struct sq_config, head_dim), 1, 512, false},
    {"rms_norm_eps", SQ_KEY_REAL, offsetof(struct sq_config, norm_eps), 0, 1, false},
    {"attention_bias", SQ_KEY_BOOL, offsetof(struct sq_config, attn_bias), 0, 0, false},
    {"mlp_bias", SQ_KEY_BOOL, offsetof(struct sq_config, ffn_bias), 0, 0, false},
};

/* norm -> linears are the paper's. v -> o and up -> down are exact, too: attention mixes positions, not channels, and SwiGLU is linear
 * in `up`. */
static const struct sq_fold folds[] = {
    {.from = SQ_R_NORM1,
     .to = {SQ_R_Q, SQ_R_K, SQ_R_V},
     .n_to = 3,
     .paper = true,
     .needs_pre_norm = true},
    {.from = SQ_R_NORM2,
     .to = {SQ_R_GATE, SQ_R_UP},
     .n_to = 2,
     .paper = true,
     .needs_pre_norm = true},
    {.from = SQ_R_V, .to = {SQ_R_O}, .n_to = 1},
    {.from = SQ_R_UP, .to = {SQ_R_DOWN}, .n_to = 1},
};

const struct sq_family sq_family_llama = {
    .model_type = "llama",
    .architectures = architectures,
    .prefixes = prefixes,
    .names =
        {
            [SQ_R_NORM1] = "layers.%d.input_layernorm",
            [SQ_R_Q] = "layers.%d.self_attn.q_proj",
            [SQ_R_K] = "layers.%d.self_attn.k_proj",
            [SQ_R_V] = "layers.%d.self_attn.v_proj",
            [SQ_R_O] = "layers.%d.self_attn.o_proj",
            [SQ_R_NORM2] = "layers.%d.post_attention_layernorm",
            [SQ_R_GATE] = "layers.%d.mlp.gate_proj",
            [SQ_R_UP] = "layers.%d.mlp.up_proj",
            [SQ_R_DOWN] = "layers.%d.mlp.down_proj",
            [SQ_R_EMBED] = "embed_tokens",
            [SQ_R_FINAL_NORM] = "norm",
            [SQ_R_HEAD] = "lm_head",
        },
    .norm = SQ_RMSNORM,
    .positions = SQ_POS_ROTARY,
    .act = SQ_ACT_NONE,
    .act_key = "hidden_act",
    .act_value = "silu",
    .keys = keys,
    .n_keys = SQ_ARRAY_LEN(keys),
    .default_eps = 1e-6f,
    .folds = folds,
    .n_folds = SQ_ARRAY_LEN(folds),
};
