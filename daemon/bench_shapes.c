#include "daemon/bench_shapes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"

/* kv_heads 0: the OPT family, which has as many as heads. */
struct shape {
    const char *name;
    int layers, hidden, ffn, heads, kv_heads, vocab;
};
static const struct shape shapes[] = {
    {"opt-125m", 12, 768, 3072, 12, 0, 50272},       {"opt-1.3b", 24, 2048, 8192, 32, 0, 50272},
    {"opt-2.7b", 32, 2560, 10240, 32, 0, 50272},     {"opt-6.7b", 32, 4096, 16384, 32, 0, 50272},
    {"opt-13b", 40, 5120, 20480, 40, 0, 50272},      {"opt-30b", 48, 7168, 28672, 56, 0, 50272},
    {"opt-66b", 64, 9216, 36864, 72, 0, 50272},      {"llama-3-8b", 32, 4096, 14336, 32, 8, 128256},
    {"llama-3-70b", 80, 8192, 28672, 64, 8, 128256}, {"tiny-opt", 6, 256, 1024, 4, 0, 512},
    {"tiny-llama", 6, 256, 512, 4, 2, 512},
};

static const char opt_keys[] = "\"model_type\": \"opt\", \"architectures\": [\"OPTForCausalLM\"], "
                               "\"max_position_embeddings\": 2048, \"do_layer_norm_before\": true, "
                               "\"activation_function\": \"relu\", \"torch_dtype\": \"float16\", "
                               "\"bos_token_id\": 2, \"eos_token_id\": 2, \"pad_token_id\": 1";
static const char llama_keys[] =
    "\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], "
    "\"max_position_embeddings\": 8192, \"rope_theta\": 500000.0, \"rms_norm_eps\": 1e-05, "
    "\"hidden_act\": \"silu\", \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", "
    "\"bos_token_id\": 1, \"eos_token_id\": 2";

/* The sizes under both families' names: each reads its own and passes over the other's. */
static int config_of(const struct shape *s, struct sq_config *ret, struct sq_err *err)
{
    char json[1024];
    int n = snprintf(json, sizeof json,
                     "{%s, \"num_hidden_layers\": %d, \"hidden_size\": %d, \"vocab_size\": %d, "
                     "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, "
                     "\"ffn_dim\": %d, \"intermediate_size\": %d}",
                     s->kv_heads ? llama_keys : opt_keys, s->layers, s->hidden, s->vocab, s->heads,
                     s->kv_heads, s->ffn, s->ffn);
    return sq_config_parse(json, (size_t)n, s->name, ret, err);
}

int sq_shape_config(const char *name, struct sq_config *ret, struct sq_err *err)
{
    for (size_t i = 0; i < SQ_ARRAY_LEN(shapes); i++)
        if (strcmp(shapes[i].name, name) == 0)
            return config_of(&shapes[i], ret, err);
    return sq_fail(err, SQ_E_NOTFOUND, "unknown shape '%s'; known: " SQ_SHAPE_NAMES, name);
}

int sq_shape_file(const char *path, struct sq_config *ret, struct sq_err *err)
{
    const size_t max =
        (1 << 20) + 1; /* one byte more than a config.json may have: that is refused */
    SQ_AUTO_FREE char *json = sq_malloc(max);
    if (!json)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    FILE *f = fopen(path, "re");
    if (!f)
        return sq_fail(err, errno == ENOENT ? SQ_E_NOTFOUND : SQ_E_IO, "%s: %s", path,
                       strerror(errno));
    size_t n = fread(json, 1, max, f);
    int failed = ferror(f) ? errno : 0;
    fclose(f);
    if (failed)
        return sq_fail(err, SQ_E_IO, "%s: %s", path, strerror(failed));
    return sq_config_parse(json, n, path, ret, err);
}
