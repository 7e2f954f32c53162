#include "engine/model/config.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/model/file.h"
#include "engine/model/gen_config.h"
#include "engine/model/json_util.h"
#include "engine/model/quant_config.h"
#include "engine/model/rope_config.h"

#define MAX_CONFIG (1u << 20)
#define MAX_LABEL 256

static const struct sq_json_limits limits = {
    .max_bytes = MAX_CONFIG, .max_depth = 32, .max_containers = 16384, .max_commas = 65536};

/* The keys of all families. The ranges are rule C3's. */
static const struct sq_config_key common_keys[] = {
    {"num_hidden_layers", SQ_KEY_INT, offsetof(struct sq_config, n_layers), 1, 1024, true},
    {"hidden_size", SQ_KEY_INT, offsetof(struct sq_config, hidden), 1, 65536, true},
    {"num_attention_heads", SQ_KEY_INT, offsetof(struct sq_config, n_heads), 1, 1024, true},
    {"vocab_size", SQ_KEY_INT, offsetof(struct sq_config, vocab), 1, 2097152, true},
    {"max_position_embeddings", SQ_KEY_INT, offsetof(struct sq_config, max_positions), 1, 16777216,
     true},
    {"tie_word_embeddings", SQ_KEY_BOOL, offsetof(struct sq_config, tied), 0, 0, false},
};

/* 0, 1 (absent) or an error. */
static int read_key(const json_t *o, const struct sq_json_where *w, const struct sq_config_key *k,
                    void *member)
{
    int64_t n = 0;
    double d = 0;
    bool b = false;
    int r;
    if (k->kind == SQ_KEY_INT)
        r = sq_json_int(o, w, k->key, (int64_t)k->min, (int64_t)k->max, &n);
    else if (k->kind == SQ_KEY_REAL)
        r = sq_json_real(o, w, k->key, k->min, k->max, &d);
    else
        r = sq_json_bool(o, w, k->key, &b);
    if (r)
        return r;
    if (k->kind == SQ_KEY_INT)
        *(int *)member = (int)n;
    else if (k->kind == SQ_KEY_REAL)
        *(float *)member = (float)d;
    else
        *(bool *)member = b != (k->kind == SQ_KEY_NOT);
    return 0;
}

static int read_keys(const json_t *o, const struct sq_json_where *w,
                     const struct sq_config_key *keys, size_t n, struct sq_config *c)
{
    for (size_t i = 0; i < n; i++) {
        int r = read_key(o, w, &keys[i], (char *)c + keys[i].offset);
        if (r < 0)
            return r;
        if (r && keys[i].required)
            return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: no key '%s'", w->file, w->rule,
                           keys[i].key);
    }
    return 0;
}

static int read_activation(const json_t *o, const struct sq_json_where *w,
                           const struct sq_family *f)
{
    const char *act = f->act_value;
    int r = sq_json_str(o, w, f->act_key, &act);
    if (r < 0)
        return r;
    if (strcmp(act, f->act_value))
        return sq_fail(w->err, SQ_E_NOTSUP, "%s: C3: key '%s': '%.64s' is not supported, only '%s'",
                       w->file, f->act_key, act, f->act_value);
    return 0;
}

static int read_dtype(const json_t *o, const struct sq_json_where *w, struct sq_config *c)
{
    const char *s = NULL;
    int r = sq_json_str(o, w, "torch_dtype", &s);
    if (r >= 0)
        r = sq_json_str(o, w, "dtype", &s);
    if (r < 0)
        return r;
    c->dtype = SQ_F32;
    if (!s)
        return 0;
    const char *name = strncmp(s, "torch.", 6) ? s : s + 6;
    if (strcmp(name, "float16") == 0 || strcmp(name, "half") == 0)
        c->dtype = SQ_F16;
    else if (strcmp(name, "bfloat16") == 0)
        c->dtype = SQ_BF16;
    else if (strcmp(name, "float32") && strcmp(name, "float"))
        return sq_fail(w->err, SQ_E_NOTSUP,
                       "%s: C3: key 'dtype': '%.64s' is not supported, only float32, float16, "
                       "bfloat16",
                       w->file, s);
    return 0;
}

/* C1: model_type decides; architectures, where given, must name one of the family's. */
static int find_family(const json_t *o, const struct sq_json_where *w, struct sq_config *c)
{
    const char *type = NULL;
    int r = sq_json_str(o, w, "model_type", &type);
    if (r < 0)
        return r;
    if (!type)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: C1: no key 'model_type'", w->file);
    c->family = sq_family_find(type);
    if (!c->family) {
        char known[128] = "";
        for (const struct sq_family *const *f = sq_families(); *f; f++) {
            size_t n = strlen(known);
            (void)snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", (*f)->model_type);
        }
        return sq_fail(w->err, SQ_E_NOTSUP, "%s: C1: model_type '%.64s' is not supported, only %s",
                       w->file, type, known);
    }
    const json_t *list = json_object_get(o, "architectures");
    if (!list || json_is_null(list))
        return 0;
    const char *name = json_string_value(json_array_get(list, 0));
    if (!name)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: C1: key 'architectures': expected a list of names",
                       w->file);
    for (int i = 0; c->family->architectures[i]; i++)
        if (strcmp(c->family->architectures[i], name) == 0)
            return 0;
    return sq_fail(w->err, SQ_E_NOTSUP, "%s: C1: architecture '%.64s' is not supported", w->file,
                   name);
}

static int check_heads(const struct sq_json_where *w, struct sq_config *c)
{
    if (!c->head_dim && c->hidden % c->n_heads)
        return sq_fail(w->err, SQ_E_FORMAT,
                       "%s: C3: hidden_size %d is no multiple of num_attention_heads %d", w->file,
                       c->hidden, c->n_heads);
    if (!c->head_dim)
        c->head_dim = c->hidden / c->n_heads;
    if (!c->n_kv_heads)
        c->n_kv_heads = c->n_heads;
    if (c->n_heads % c->n_kv_heads)
        return sq_fail(w->err, SQ_E_FORMAT,
                       "%s: C3: num_attention_heads %d is no multiple of num_key_value_heads %d",
                       w->file, c->n_heads, c->n_kv_heads);
    if (c->head_dim % 2 || c->head_dim > 512)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: C3: head size %d, expected an even one up to 512",
                       w->file, c->head_dim);
    return 0;
}

static int parse_object(const json_t *o, const char *file, struct sq_config *c, struct sq_err *err)
{
    struct sq_json_where w = {.file = file, .rule = "C3", .path = "", .err = err};
    int r = find_family(o, &w, c);
    if (r)
        return r;
    const struct sq_family *f = c->family;
    *c = (struct sq_config){.family = f,
                            .pre_norm = true,
                            .final_norm = true,
                            .tied = f->tied_by_default,
                            .attn_bias = f->bias_by_default,
                            .ffn_bias = f->bias_by_default,
                            .norm_affine = true,
                            .norm_eps = f->default_eps,
                            .bos = -1,
                            .pad = -1,
                            .gen = {NAN, NAN, NAN, NAN, -1, -1}};
    r = read_keys(o, &w, common_keys, SQ_ARRAY_LEN(common_keys), c);
    if (!r)
        r = read_keys(o, &w, f->keys, (size_t)f->n_keys, c);
    if (!r)
        r = read_activation(o, &w, f);
    if (!r)
        r = read_dtype(o, &w, c);
    if (!r)
        r = check_heads(&w, c);
    if (!r && f->positions == SQ_POS_ROTARY)
        r = sq_rope_config_parse(o, &w, c);
    if (!r)
        r = sq_gen_config_parse(o, file, "C3", c, err);
    if (r)
        return r;
    c->final_norm &= c->pre_norm;
    if (!c->embed_dim)
        c->embed_dim = c->hidden;
    c->custom_code = json_object_get(o, "auto_map") != NULL;
    const json_t *q = json_object_get(o, "quantization_config");
    return q && !json_is_null(q) ? sq_quant_config_parse(q, file, c, err) : 0;
}

int sq_config_parse(const char *json, size_t n_bytes, const char *file, struct sq_config *ret,
                    struct sq_err *err)
{
    struct sq_json_where w = {.file = file, .rule = "C1", .path = "", .err = err};
    struct sq_config c = {0};
    json_t *o;
    int r = sq_json_load(json, n_bytes, &limits, &w, &o);
    if (r)
        return r;
    r = parse_object(o, file, &c, err);
    json_decref(o);
    if (r)
        return r;
    c.digest = sq_digest(SQ_DIGEST_START, json, n_bytes);
    *ret = c;
    return 0;
}

static int load_generation(int dir_fd, const char *dir_name, struct sq_config *c,
                           struct sq_err *err)
{
    char label[MAX_LABEL];
    SQ_AUTO_FREE char *json = NULL;
    size_t n;
    sq_file_label(label, sizeof label, dir_name, "generation_config.json");
    int r =
        sq_file_read_all(dir_fd, "generation_config.json", label, "C1", MAX_CONFIG, &json, &n, err);
    if (r)
        return r == -SQ_E_NOTFOUND ? 0 : r;
    struct sq_json_where w = {.file = label, .rule = "C1", .path = "", .err = err};
    json_t *o;
    r = sq_json_load(json, n, &limits, &w, &o);
    if (r)
        return r;
    r = sq_gen_config_parse(o, label, "C3", c, err);
    json_decref(o);
    return r;
}

int sq_config_load(int dir_fd, const char *dir_name, struct sq_config *ret, struct sq_err *err)
{
    char label[MAX_LABEL];
    SQ_AUTO_FREE char *json = NULL;
    size_t n;
    struct sq_config c;
    sq_file_label(label, sizeof label, dir_name, "config.json");
    int r = sq_file_read_all(dir_fd, "config.json", label, "C1", MAX_CONFIG, &json, &n, err);
    if (!r)
        r = sq_config_parse(json, n, label, &c, err);
    if (!r)
        r = load_generation(dir_fd, dir_name, &c, err);
    if (!r)
        *ret = c;
    return r;
}
