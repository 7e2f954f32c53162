/* OPT: 125m to 175b (transformers: modeling_opt). Pre-norm but for 350m, which is post-norm, has no final norm, and has embeddings of
 * 512 that project_in / project_out widen to 1024 and back; neither has a bias. */
#include <stddef.h>

#include "engine/base/check.h"
#include "engine/model/config.h"
#include "engine/model/families.h"
#include "engine/quant.h"

static const char *const architectures[] = {"OPTForCausalLM", "OPTModel", NULL};
static const char *const prefixes[] = {"model.decoder.", "decoder.", NULL};

static const struct sq_config_key keys[] = {
    {"ffn_dim", SQ_KEY_INT, offsetof(struct sq_config, ffn), 1, SQ_K_MAX, true},
    {"word_embed_proj_dim", SQ_KEY_INT, offsetof(struct sq_config, embed_dim), 1, 65536, false},
    {"do_layer_norm_before", SQ_KEY_BOOL, offsetof(struct sq_config, pre_norm), 0, 0, false},
    {"_remove_final_layer_norm", SQ_KEY_NOT, offsetof(struct sq_config, final_norm), 0, 0, false},
    {"enable_bias", SQ_KEY_BOOL, offsetof(struct sq_config, attn_bias), 0, 0, false},
    {"enable_bias", SQ_KEY_BOOL, offsetof(struct sq_config, ffn_bias), 0, 0, false},
    {"layer_norm_elementwise_affine", SQ_KEY_BOOL, offsetof(struct sq_config, norm_affine), 0, 0,
     false},
};

/* norm -> linears are the paper's. v -> o and up -> down are exact, too: attention mixes positions, not channels, and ReLU commutes
 * with positive factors. */
static const struct sq_fold folds[] = {
    {.from = SQ_R_NORM1,
     .to = {SQ_R_Q, SQ_R_K, SQ_R_V},
     .n_to = 3,
     .paper = true,
     .needs_pre_norm = true},
    {.from = SQ_R_NORM2, .to = {SQ_R_UP}, .n_to = 1, .paper = true, .needs_pre_norm = true},
    {.from = SQ_R_V, .to = {SQ_R_O}, .n_to = 1},
    {.from = SQ_R_UP, .to = {SQ_R_DOWN}, .n_to = 1},
};

const struct sq_family sq_family_opt = {
    .model_type = "opt",
    .architectures = architectures,
    .prefixes = prefixes,
    .names =
        {
            [SQ_R_NORM1] = "layers.%d.self_attn_layer_norm",
            [SQ_R_Q] = "layers.%d.self_attn.q_proj",
            [SQ_R_K] = "layers.%d.self_attn.k_proj",
            [SQ_R_V] = "layers.%d.self_attn.v_proj",
            [SQ_R_O] = "layers.%d.self_attn.out_proj",
            [SQ_R_NORM2] = "layers.%d.final_layer_norm",
            [SQ_R_UP] = "layers.%d.fc1",
            [SQ_R_DOWN] = "layers.%d.fc2",
            [SQ_R_EMBED] = "embed_tokens",
            [SQ_R_POS] = "embed_positions",
            [SQ_R_PROJECT_IN] = "project_in",
            [SQ_R_PROJECT_OUT] = "project_out",
            [SQ_R_FINAL_NORM] = "final_layer_norm",
            [SQ_R_HEAD] = "lm_head",
        },
    .norm = SQ_LAYERNORM,
    .positions = SQ_POS_LEARNED,
    .pos_offset = 2,
    .act = SQ_ACT_RELU,
    .act_key = "activation_function",
    .act_value = "relu",
    .keys = keys,
    .n_keys = SQ_ARRAY_LEN(keys),
    .tied_by_default = true,
    .bias_by_default = true,
    .default_eps = 1e-5f, /* there is no key for it */
    .folds = folds,
    .n_folds = SQ_ARRAY_LEN(folds),
};
