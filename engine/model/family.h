/* A model family as a description: what its tensors are called, what its block is made of, and which smoothing folds are exact for it.
 * A new model of a known shape is a new table (one file family_<name>.c), its golden vectors, and nothing else. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/backend.h"

/* The parts of a decoder. Layer parts come first. */
enum sq_role {
    SQ_R_NORM1, /* before (or, post-norm, after) attention */
    SQ_R_Q,
    SQ_R_K,
    SQ_R_V,
    SQ_R_O,
    SQ_R_NORM2, /* before (or after) the feed-forward part */
    SQ_R_GATE,  /* of a gated feed-forward part; it goes with SQ_R_UP */
    SQ_R_UP,    /* OPT: fc1 */
    SQ_R_DOWN,  /* OPT: fc2 */
    SQ_N_LAYER_ROLES,
    SQ_R_EMBED = SQ_N_LAYER_ROLES,
    SQ_R_POS,
    SQ_R_PROJECT_IN,
    SQ_R_PROJECT_OUT,
    SQ_R_FINAL_NORM,
    SQ_R_HEAD,
    SQ_N_ROLES
};

enum sq_positions { SQ_POS_LEARNED, SQ_POS_ROTARY };

/* A key of config.json that not all families have, or not under this name, and the member of struct sq_config it fills. */
enum sq_key_kind {
    SQ_KEY_INT,
    SQ_KEY_REAL, /* a float */
    SQ_KEY_BOOL,
    SQ_KEY_NOT /* a bool that the key negates */
};
struct sq_config_key {
    const char *key;
    enum sq_key_kind kind;
    size_t offset;
    double min, max; /* rule C3; of numbers */
    bool required;
};

/* An exact rescale: `from`'s output channels are divided by s, the input channels of `to` multiplied. */
struct sq_fold {
    enum sq_role from;
    enum sq_role to[4];
    int n_to;
    bool paper;          /* one of the paper's own; the others are exact too, but ours */
    bool needs_pre_norm; /* from is a norm: its output must not be the residual */
};

struct sq_family {
    const char *model_type;           /* config.json model_type: "opt" */
    const char *const *architectures; /* NULL-terminated allow-list */
    const char *const *
        prefixes; /* tried in this order before every name: "model.decoder.", "decoder." ; NULL-terminated */
    const char *names
        [SQ_N_ROLES]; /* module path without ".weight"/".bias"; layer parts hold one %d. NULL = the family has no such part */
    enum sq_norm_kind norm;
    enum sq_positions positions;
    int pos_offset;                   /* OPT: 2 */
    enum sq_act act;                  /* of UP; where there is a GATE, SwiGLU takes its place */
    const char *act_key, *act_value;  /* config.json's word for the activation */
    const struct sq_config_key *keys; /* n_keys */
    int n_keys;
    bool tied_by_default, bias_by_default;
    float default_eps;           /* of norms */
    const struct sq_fold *folds; /* n_folds */
    int n_folds;
};

/* NULL if no family has this model_type. */
const struct sq_family *sq_family_find(const char *model_type);
/* All families, NULL-terminated; for messages. */
const struct sq_family *const *sq_families(void);

struct sq_source;
/* The first of f's prefixes under which the source holds the embedding; NULL if none does. */
const char *sq_family_prefix(const struct sq_family *f, struct sq_source *src);

/* The reverse of sq_family_name: true if `name` is one of f's under `prefix`; suffix points into name, at the dot. layer is 0 outside layers. */
bool sq_family_parse(const struct sq_family *f, const char *prefix, const char *name,
                     enum sq_role *ret_role, int *ret_layer, const char **ret_suffix);

/* Writes "model.decoder.layers.3.self_attn.q_proj" + suffix (".weight", ".bias", ".input_scale" ...) into buf. layer is ignored for parts outside layers. */
void sq_family_name(const struct sq_family *f, const char *prefix, enum sq_role role, int layer,
                    const char *suffix, char *buf, size_t n_buf);
