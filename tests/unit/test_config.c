/* Rules C1 to C3 and C5: config.json, its quantization_config, generation_config.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/model/config.h"
#include "tests/lib/model_files.h"

static const char base[] =
    "{\"model_type\":\"opt\",\"architectures\":[\"OPTForCausalLM\"],\"num_hidden_layers\":2,"
    "\"hidden_size\":64,\"ffn_dim\":128,\"num_attention_heads\":2,\"vocab_size\":100,"
    "\"max_position_embeddings\":32,\"eos_token_id\":2,\"bos_token_id\":2,\"pad_token_id\":1,"
    "\"torch_dtype\":\"float16\"}";

static const char static_scheme[] =
    "{\"quant_method\":\"compressed-tensors\",\"quantization_status\":\"compressed\","
    "\"format\":\"int-quantized\",\"version\":\"0.19\",\"ignore\":[\"lm_head\"],"
    "\"kv_cache_scheme\":null,\"sparsity_config\":{},\"transform_config\":{},"
    "\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"format\":\"int-quantized\","
    "\"weights\":{\"num_bits\":8,\"type\":\"int\",\"symmetric\":true,\"strategy\":\"channel\","
    "\"dynamic\":false,\"actorder\":null,\"observer\":\"memoryless_minmax\",\"group_size\":null,"
    "\"scale_dtype\":null,\"zp_dtype\":null},"
    "\"input_activations\":{\"num_bits\":8,\"type\":\"int\",\"symmetric\":true,"
    "\"strategy\":\"tensor\",\"dynamic\":false,\"scale_dtype\":null},"
    "\"output_activations\":null}}}";

/* base with the value at `path` (keys separated by '/') set to `value`, or removed if it is "-". quant: with static_scheme in it. */
static char *variant(bool quant, const char *path, const char *value)
{
    json_t *root = json_loads(base, 0, NULL), *o = root;
    if (quant)
        json_object_set_new(root, "quantization_config", json_loads(static_scheme, 0, NULL));
    char keys[128], *key = keys;
    snprintf(keys, sizeof keys, "%s", path);
    for (char *slash; (slash = strchr(key, '/')); key = slash + 1) {
        *slash = '\0';
        o = json_object_get(o, key);
        assert_non_null(o);
    }
    if (*key && strcmp(value, "-") == 0)
        json_object_del(o, key);
    else if (*key)
        json_object_set_new(o, key, json_loads(value, JSON_DECODE_ANY, NULL));
    char *text = json_dumps(root, 0);
    json_decref(root);
    assert_non_null(text);
    return text;
}

static int parse(const char *json, struct sq_config *c, struct sq_err *err)
{
    return sq_config_parse(json, strlen(json), "config.json", c, err);
}

static void check(int r, const struct sq_err *err, int code, const char *text, const char *what)
{
    if (r == -code && (!code || (strstr(err->msg, text) && strstr(err->msg, "config.json: "))))
        return;
    print_error("%.200s\n  expected %d '%s'\n  found %d '%s'\n", what, -code, text, r, err->msg);
    fail();
}

#define Q "quantization_config/"
#define G Q "config_groups/group_0/"

static const struct sample {
    bool quant;
    const char *path, *value;
    int code;
    const char *text;
} samples[] = {
    {false, "", "", 0, ""},
    {false, "unknown_key", "{\"a\":[1]}", 0, ""},
    {false, "model_type", "-", SQ_E_FORMAT, "C1: no key 'model_type'"},
    {false, "model_type", "\"gpt_neox\"", SQ_E_NOTSUP, "C1: model_type 'gpt_neox'"},
    {false, "model_type", "7", SQ_E_FORMAT, "'model_type': expected a string, found an integer"},
    {false, "architectures", "-", 0, ""},
    {false, "architectures", "[\"OPTModel\"]", 0, ""},
    {false, "architectures", "[\"EvilForCausalLM\"]", SQ_E_NOTSUP, "C1: architecture 'Evil"},
    {false, "architectures", "[]", SQ_E_FORMAT, "C1: key 'architectures'"},
    {false, "auto_map", "{\"AutoModel\":\"evil.py\"}", 0, ""},
    {false, "num_hidden_layers", "-", SQ_E_FORMAT, "C3: no key 'num_hidden_layers'"},
    {false, "num_hidden_layers", "null", SQ_E_FORMAT, "C3: no key 'num_hidden_layers'"},
    {false, "num_hidden_layers", "0", SQ_E_FORMAT, "expected 1 to 1024, found 0"},
    {false, "num_hidden_layers", "1", 0, ""},
    {false, "num_hidden_layers", "1024", 0, ""},
    {false, "num_hidden_layers", "1025", SQ_E_FORMAT, "'num_hidden_layers': expected 1 to 1024"},
    {false, "num_hidden_layers", "2.0", SQ_E_FORMAT, "expected an integer, found a fraction"},
    {false, "num_hidden_layers", "\"2\"", SQ_E_FORMAT, "expected an integer, found a string"},
    {false, "num_hidden_layers", "true", SQ_E_FORMAT, "expected an integer, found true or false"},
    {false, "num_hidden_layers", "-2", SQ_E_FORMAT, "C3: "},
    {false, "num_hidden_layers", "4294967298", SQ_E_FORMAT, "C3: "},
    {false, "hidden_size", "65537", SQ_E_FORMAT, "'hidden_size': expected 1 to 65536"},
    {false, "hidden_size", "65", SQ_E_FORMAT, "hidden_size 65 is no multiple"},
    {false, "hidden_size", "66", SQ_E_FORMAT, "head size 33"},
    {false, "hidden_size", "1024", 0, ""},
    {false, "hidden_size", "1028", SQ_E_FORMAT, "head size 514"},
    {false, "ffn_dim", "131071", 0, ""},
    {false, "ffn_dim", "131072", SQ_E_FORMAT, "'ffn_dim': expected 1 to 131071"},
    {false, "num_attention_heads", "0", SQ_E_FORMAT, "'num_attention_heads'"},
    {false, "num_attention_heads", "1025", SQ_E_FORMAT, "'num_attention_heads'"},
    {false, "vocab_size", "2097153", SQ_E_FORMAT, "'vocab_size'"},
    {false, "max_position_embeddings", "16777217", SQ_E_FORMAT, "'max_position_embeddings'"},
    {false, "word_embed_proj_dim", "0", SQ_E_FORMAT, "'word_embed_proj_dim'"},
    {false, "word_embed_proj_dim", "32", 0, ""},
    {false, "do_layer_norm_before", "1", SQ_E_FORMAT, "expected true or false, found an integer"},
    {false, "activation_function", "\"gelu\"", SQ_E_NOTSUP, "'activation_function': 'gelu'"},
    {false, "torch_dtype", "\"float64\"", SQ_E_NOTSUP, "'dtype': 'float64'"},
    {false, "dtype", "\"torch.bfloat16\"", 0, ""},
    {false, "eos_token_id", "100", SQ_E_FORMAT, "'eos_token_id': expected an id below 100"},
    {false, "eos_token_id", "99", 0, ""},
    {false, "eos_token_id", "-2", SQ_E_FORMAT, "'eos_token_id'"},
    {false, "eos_token_id", "[2,\"x\"]", SQ_E_FORMAT, "'eos_token_id': expected a token id"},
    {false, "eos_token_id", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]", 0, ""},
    {false, "eos_token_id", "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]", SQ_E_FORMAT, "17 ids"},
    {false, "bos_token_id", "[1,2]", SQ_E_FORMAT, "'bos_token_id': 2 ids, the limit is 1"},
    {false, "bos_token_id", "true", SQ_E_FORMAT, "'bos_token_id'"},
    {false, "temperature", "-1", SQ_E_FORMAT, "'temperature'"},
    {false, "top_p", "1.5", SQ_E_FORMAT, "'top_p': expected 0 to 1, found 1.5"},
    {false, "top_k", "1.5", SQ_E_FORMAT, "'top_k': expected an integer"},
    {false, "quantization_config", "[]", SQ_E_FORMAT, "C5: key 'quantization_config'"},
    {false, "quantization_config", "null", 0, ""},

    {true, "", "", 0, ""},
    {true, Q "unknown", "{\"a\":1}", 0, ""},
    {true, G "weights/new_key", "\"int8\"", 0, ""},
    {true, Q "quant_method", "-", SQ_E_FORMAT, "C5: no key 'quantization_config.quant_method'"},
    {true, Q "quant_method", "\"gptq\"", SQ_E_NOTSUP, "quant_method: 'gptq'"},
    {true, Q "quant_method", "\"fp8\"", SQ_E_NOTSUP, "quant_method: 'fp8'"},
    {true, Q "quantization_status", "-", SQ_E_FORMAT, "expected 'compressed', found 'nothing'"},
    {true, Q "quantization_status", "\"frozen\"", SQ_E_FORMAT, "found 'frozen'"},
    {true, Q "format", "-", SQ_E_FORMAT, "no key 'quantization_config.format'"},
    {true, Q "format", "\"float-quantized\"", SQ_E_NOTSUP, "'float-quantized' (FP8)"},
    {true, Q "format", "\"pack-quantized\"", SQ_E_NOTSUP, "'pack-quantized' (int4)"},
    {true, Q "format", "\"marlin-24\"", SQ_E_NOTSUP, "format: 'marlin-24'"},
    {true, G "format", "\"pack-quantized\"", SQ_E_NOTSUP, "config_groups.group_0.format: 'pack"},
    {true, Q "config_groups", "-", SQ_E_FORMAT, "config_groups': expected an object"},
    {true, Q "config_groups", "{}", SQ_E_FORMAT, "config_groups': expected an object"},
    {true, Q "config_groups", "{\"W8A8\":[\"Linear\"]}", 0, ""},
    {true, Q "config_groups", "{\"W4A16\":[\"Linear\"]}", SQ_E_NOTSUP, "W4A16. this preset"},
    {true, Q "config_groups/group_1", "{}", SQ_E_NOTSUP, "2 groups (mixed precision)"},
    {true, G "targets", "[\"re:.*fc1\"]", SQ_E_NOTSUP, "targets: only [\"Linear\"]"},
    {true, G "targets", "[\"Linear\",\"Embedding\"]", SQ_E_NOTSUP, "and more"},
    {true, G "targets", "-", SQ_E_FORMAT, "group_0.targets': expected a list"},
    {true, G "weights", "null", SQ_E_FORMAT, "no key 'quantization_config.config_groups.group_0.w"},
    {true, G "weights", "8", SQ_E_FORMAT, "weights': expected an object"},
    {true, G "weights/type", "\"float\"", SQ_E_NOTSUP, "weights.type: 8-bit floats (FP8)"},
    {true, G "weights/num_bits", "4", SQ_E_NOTSUP, "weights.num_bits: 4 (int4)"},
    {true, G "weights/strategy", "\"group\"", SQ_E_NOTSUP, "weights.strategy: 'group'"},
    {true, G "weights/strategy", "\"block\"", SQ_E_NOTSUP, "weights.strategy: 'block'"},
    {true, G "weights/strategy", "\"tensor\"", 0, ""},
    {true, G "weights/strategy", "null", 0, ""},
    {true, G "weights/group_size", "128", 0, ""}, /* a stated strategy wins, as in the library */
    {true, G "weights/actorder", "\"group\"", SQ_E_NOTSUP, "weights.actorder: 'group'"},
    {true, G "weights/actorder", "true", SQ_E_NOTSUP, "weights.actorder: 'true or false'"},
    {true, G "weights/actorder", "\"static\"", 0, ""},
    {true, G "weights/actorder", "\"weight\"", 0, ""},
    {true, G "weights/dynamic", "true", SQ_E_NOTSUP, "weights.dynamic"},
    {true, G "weights/symmetric", "1", SQ_E_FORMAT, "weights.symmetric': expected true or false"},
    {true, G "input_activations", "null", SQ_E_NOTSUP, "weight-only W8A16"},
    {true, G "input_activations/dynamic", "true", 0, ""},
    {true, G "input_activations/dynamic", "\"local\"", SQ_E_NOTSUP, "dynamic: 'local'"},
    {true, G "input_activations/strategy", "\"token\"", SQ_E_NOTSUP, "'token' is not supported"},
    {true, G "input_activations/symmetric", "false", 0, ""}, /* zero points are looked at later */
    {true, G "input_activations",
     "{\"num_bits\":8,\"type\":\"int\",\"symmetric\":false,\"strategy\":\"token\",\"dynamic\":"
     "true}",
     SQ_E_NOTSUP, "asymmetric"},
    {true, G "output_activations", "{\"num_bits\":8}", SQ_E_NOTSUP, "output_activations"},
    {true, Q "transform_config", "{\"config_groups\":{\"R1\":{}}}", SQ_E_NOTSUP, "Hadamard"},
    {true, Q "transform_config", "{\"config_groups\":{}}", 0, ""},
    {true, Q "sparsity_config", "{\"format\":\"sparse-24-bitmask\"}", SQ_E_NOTSUP, "sparse-24"},
    {true, Q "sparsity_config", "{\"format\":\"dense\"}", 0, ""},
    {true, Q "kv_cache_scheme", "{\"num_bits\":8,\"type\":\"int\",\"strategy\":\"tensor\"}", 0, ""},
    {true, Q "kv_cache_scheme", "{\"num_bits\":8,\"type\":\"float\"}", SQ_E_NOTSUP,
     "kv_cache_scheme.type: 8-bit floats (FP8)"},
    {true, Q "ignore", "-", 0, ""},
    {true, Q "ignore", "[]", 0, ""},
    {true, Q "ignore", "\"lm_head\"", SQ_E_FORMAT, "ignore': expected a list"},
    {true, Q "ignore", "[3]", SQ_E_FORMAT, "ignore': expected strings"},
    {true, Q "ignore", "[\"re:.*lm_head\",\"model.decoder.project_in\"]", 0, ""},
    {true, Q "ignore", "[\"re:(a+)+b\"]", SQ_E_NOTSUP, "the pattern 're:(a+)+b'"},
    {true, Q "ignore", "[\"model.decoder.layers.1.fc1\"]", SQ_E_NOTSUP,
     "'model.decoder.layers.1.fc1' in float"},
    {true, Q "ignore", "[\"model.decoder.layers.2.fc1\"]", 0, ""}, /* there is no such layer */
    {true, Q "ignore", "[\"re:.*fc2$\"]", SQ_E_NOTSUP, "layers.0.fc2' in float"},
    {true, Q "ignore", "[\"re:.*q_proj\"]", SQ_E_NOTSUP, "layers.0.self_attn.q_proj' in float"},
};

static void test_samples(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) {
        const struct sample *s = &samples[i];
        char *json = variant(s->quant, s->path, s->value), what[200];
        snprintf(what, sizeof what, "%s = %s", s->path, s->value);
        struct sq_config c;
        struct sq_err err = {0};
        check(parse(json, &c, &err), &err, s->code, s->text, what);
        free(json);
    }
}

static void test_raw(void **state)
{
    (void)state;
    static const struct {
        const char *json, *text;
    } cases[] = {
        {"", "C1: line"},
        {"[]", "C1: expected one object"},
        {"{\"model_type\":\"opt\",\"model_type\":\"opt\"}", "C1: line 1"},
        {"{\"model_type\":\"opt\"} x", "C1: line 1"},
        {"{\"a\":NaN}", "C1: line 1"},
        {"{\"a\":1e400}", "C1: line 1"},
        {"{\"a\":\"\xff\"}", "C1: line 1"},
    };
    struct sq_config c;
    struct sq_err err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check(parse(cases[i].json, &c, &err), &err, SQ_E_FORMAT, cases[i].text, cases[i].json);

    char *deep = malloc(100001);
    memset(deep, '[', 100000);
    deep[100000] = '\0';
    check(parse(deep, &c, &err), &err, SQ_E_FORMAT, "C1: nested too deep: 33, the limit is 32",
          "[[");
    free(deep);
    char *long_one = malloc((1 << 20) + 2);
    memset(long_one, ' ', (1 << 20) + 1);
    long_one[(1 << 20) + 1] = '\0';
    check(parse(long_one, &c, &err), &err, SQ_E_LIMIT, "C1: too many bytes: 1048577", "1 MiB + 1");
    free(long_one);
}

static void test_values(void **state)
{
    (void)state;
    struct sq_config c;
    assert_int_equal(parse(base, &c, NULL), 0);
    assert_string_equal(c.family->model_type, "opt");
    assert_int_equal(c.n_layers, 2);
    assert_int_equal(c.hidden, 64);
    assert_int_equal(c.ffn, 128);
    assert_int_equal(c.n_heads, 2);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.vocab, 100);
    assert_int_equal(c.max_positions, 32);
    assert_int_equal(c.embed_dim, 64);
    assert_true(c.pre_norm && c.final_norm && c.tied && c.attn_bias && c.ffn_bias && c.norm_affine);
    assert_int_equal(c.dtype, SQ_F16);
    assert_int_equal(c.scheme, SQ_SCHEME_FLOAT);
    assert_int_equal(c.bos, 2);
    assert_int_equal(c.pad, 1);
    assert_int_equal(c.n_eos, 1);
    assert_int_equal(c.eos[0], 2);
    assert_true(isnan(c.gen.temperature) && c.gen.top_k == -1 && c.gen.do_sample == -1);
    assert_false(c.custom_code);
}

static struct sq_config with(bool quant, const char *path, const char *value)
{
    struct sq_config c;
    char *json = variant(quant, path, value);
    assert_int_equal(parse(json, &c, NULL), 0);
    free(json);
    return c;
}

static void test_variants(void **state)
{
    (void)state;
    struct sq_config c = with(false, "do_layer_norm_before", "false");
    assert_false(c.pre_norm || c.final_norm);
    c = with(false, "_remove_final_layer_norm", "true");
    assert_true(c.pre_norm && !c.final_norm);
    assert_false(with(false, "enable_bias", "false").attn_bias);
    assert_false(with(false, "enable_bias", "false").ffn_bias);
    assert_false(with(false, "layer_norm_elementwise_affine", "false").norm_affine);
    assert_false(with(false, "tie_word_embeddings", "false").tied);
    assert_true(with(false, "auto_map", "{}").custom_code);
    assert_int_equal(with(false, "word_embed_proj_dim", "32").embed_dim, 32);
    assert_int_equal(with(false, "dtype", "\"bfloat16\"").dtype, SQ_BF16);
    assert_int_equal(with(false, "torch_dtype", "-").dtype, SQ_F32);
    assert_int_equal(with(false, "pad_token_id", "-1").pad, -1);
    c = with(false, "eos_token_id", "[5,7]");
    assert_true(c.n_eos == 2 && c.eos[0] == 5 && c.eos[1] == 7);
    assert_int_equal(with(false, "eos_token_id", "null").n_eos, 0);
    c = with(true, "", "");
    assert_true(c.scheme == SQ_SCHEME_W8A8_STATIC && !c.head_quantized);
    assert_int_equal(with(true, G "input_activations/dynamic", "true").scheme,
                     SQ_SCHEME_W8A8_DYNAMIC);
    assert_int_equal(with(true, Q "config_groups", "{\"W8A8\":[\"Linear\"]}").scheme,
                     SQ_SCHEME_W8A8_DYNAMIC);
    assert_true(with(true, Q "ignore", "[]").head_quantized);
    assert_false(with(true, Q "ignore", "[\"re:.*lm_head$\"]").head_quantized);
    assert_false(with(true, Q "ignore", "[\"re:^lm_.*\"]").head_quantized);
}

/* generation_config.json wins over config.json's own keys; a bad one is refused under its own name. */
static void test_generation(void **state)
{
    (void)state;
    char *dir = sq_files_mkdir();
    int fd = open(dir, O_RDONLY | O_DIRECTORY);
    struct sq_config c;
    struct sq_err err = {0};
    assert_int_equal(sq_config_load(fd, dir, &c, &err), -SQ_E_NOTFOUND);
    assert_non_null(strstr(err.msg, "config.json: No such file"));
    sq_files_write_text(dir, "config.json", base);
    assert_int_equal(sq_config_load(fd, dir, &c, &err), 0);
    assert_int_equal(c.n_eos, 1);
    sq_files_write_text(dir, "generation_config.json",
                        "{\"eos_token_id\":[3,4],\"temperature\":0.5,\"top_k\":40,\"top_p\":0.9,"
                        "\"min_p\":0.1,\"repetition_penalty\":1.1,\"do_sample\":true,\"x\":[{}]}");
    assert_int_equal(sq_config_load(fd, dir, &c, &err), 0);
    assert_true(c.n_eos == 2 && c.eos[0] == 3 && c.eos[1] == 4 && c.bos == 2);
    assert_true(c.gen.temperature == 0.5f && c.gen.top_k == 40 && c.gen.top_p == 0.9f);
    assert_true(c.gen.min_p == 0.1f && c.gen.repetition_penalty == 1.1f && c.gen.do_sample == 1);
    sq_files_write_text(dir, "generation_config.json", "{\"eos_token_id\":1000}");
    assert_int_equal(sq_config_load(fd, dir, &c, &err), -SQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "generation_config.json: C3: key 'eos_token_id'"));
    close(fd);
    sq_files_rmdir(dir);
}

static void test_ignore_limit(void **state)
{
    (void)state;
    for (int n = 256; n <= 257; n++) {
        char list[8 * 257 + 8] = "[", *json;
        for (int i = 0; i < n; i++)
            strcat(list, i ? ",\"abc\"" : "\"abc\"");
        strcat(list, "]");
        json = variant(true, Q "ignore", list);
        struct sq_config c;
        struct sq_err err = {0};
        check(parse(json, &c, &err), &err, n > 256 ? SQ_E_LIMIT : 0,
              "C5: key 'quantization_config.ignore': 257 entries, the limit is 256", "a long list");
        free(json);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples),    cmocka_unit_test(test_raw),
        cmocka_unit_test(test_values),     cmocka_unit_test(test_variants),
        cmocka_unit_test(test_generation), cmocka_unit_test(test_ignore_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
