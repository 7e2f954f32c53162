#include "api/request.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "api/json.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"

/* A temperature this low cannot be told from greedy, but would overflow what it divides. */
#define TEMPERATURE_GREEDY 1e-5f

struct parse {
    struct sq_completion *c;
    const struct sq_border *b;
    struct sq_fault *f;
    bool has_repetition;
};

/* --- fields, one function each -------------------------------------------------- */

static int read_prompts(struct parse *p, const struct json_t *v)
{
    return sq_prompts_read(p->c, v, p->b, p->f);
}

static int read_model(struct parse *p, const struct json_t *v)
{
    return sq_request_model(v, p->b, p->f);
}

static int read_int(struct parse *p, const struct json_t *v, const char *path, int64_t min,
                    int64_t max, int *ret)
{
    int64_t i;
    int rc = sq_field_int(v, path, min, max, &i, p->f);
    if (!rc)
        *ret = (int)i;
    return rc;
}

static int read_max_tokens(struct parse *p, const struct json_t *v)
{
    return read_int(p, v, "max_tokens", 0, INT32_MAX, &p->c->sampling.max_tokens);
}

static int read_min_tokens(struct parse *p, const struct json_t *v)
{
    return read_int(p, v, "min_tokens", 0, INT32_MAX, &p->c->sampling.min_tokens);
}

static int read_n(struct parse *p, const struct json_t *v)
{
    return read_int(p, v, "n", 1, p->b->limits.max_n, &p->c->n);
}

static int read_top_k(struct parse *p, const struct json_t *v)
{
    int rc = read_int(p, v, "top_k", -1, INT32_MAX, &p->c->sampling.top_k);
    if (!rc && p->c->sampling.top_k < 0)
        p->c->sampling.top_k = 0;
    return rc;
}

static int read_temperature(struct parse *p, const struct json_t *v)
{
    return sq_field_float(v, "temperature", 0, 2, &p->c->sampling.temperature, p->f);
}

static int read_top_p(struct parse *p, const struct json_t *v)
{
    return sq_field_float(v, "top_p", 0, 1, &p->c->sampling.top_p, p->f);
}

static int read_min_p(struct parse *p, const struct json_t *v)
{
    return sq_field_float(v, "min_p", 0, 1, &p->c->sampling.min_p, p->f);
}

static int read_presence(struct parse *p, const struct json_t *v)
{
    return sq_field_float(v, "presence_penalty", -2, 2, &p->c->sampling.presence, p->f);
}

static int read_frequency(struct parse *p, const struct json_t *v)
{
    return sq_field_float(v, "frequency_penalty", -2, 2, &p->c->sampling.frequency, p->f);
}

static int read_repetition(struct parse *p, const struct json_t *v, const char *path)
{
    /* Above 0: the smallest value is far from what any client means, and far from dividing by zero. */
    int rc = sq_field_float(v, path, 1e-3, 2, &p->c->sampling.repetition, p->f);
    if (!rc && p->has_repetition)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, path,
                            "'repetition_penalty' and 'repeat_penalty' are the same, give one");
    p->has_repetition |= !rc;
    return rc;
}

static int read_repetition_penalty(struct parse *p, const struct json_t *v)
{
    return read_repetition(p, v, "repetition_penalty");
}

static int read_repeat_penalty(struct parse *p, const struct json_t *v)
{
    return read_repetition(p, v, "repeat_penalty");
}

static int read_seed(struct parse *p, const struct json_t *v)
{
    int64_t seed;
    int rc = sq_field_int(v, "seed", INT64_MIN, INT64_MAX, &seed, p->f);
    if (!rc) {
        p->c->sampling.seed = (uint64_t)seed;
        p->c->has_seed = true;
    }
    return rc;
}

static int read_stream(struct parse *p, const struct json_t *v)
{
    return sq_field_bool(v, "stream", &p->c->stream, p->f);
}

static int read_ignore_eos(struct parse *p, const struct json_t *v)
{
    return sq_field_bool(v, "ignore_eos", &p->c->sampling.ignore_eos, p->f);
}

static int read_user(struct parse *p, const struct json_t *v)
{
    const char *s;
    size_t n;
    return sq_field_str(v, "user", &s, &n, p->f);
}

static int wrong_type(struct parse *p, const struct json_t *v, const char *path, const char *want)
{
    return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, path, "'%s' must be %s, found %s", path,
                        want, sq_field_kind_name(v));
}

static int read_stream_options(struct parse *p, const struct json_t *v)
{
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return 0;
    if (sq_field_kind(v) != SQ_JSON_OBJECT)
        return wrong_type(p, v, "stream_options", "an object");
    bool ignored;
    int rc = sq_field_bool(sq_field_get(v, "include_usage"), "stream_options.include_usage",
                           &p->c->include_usage, p->f);
    if (rc >= 0)
        rc = sq_field_bool(sq_field_get(v, "include_obfuscation"),
                           "stream_options.include_obfuscation", &ignored, p->f);
    return rc;
}

static int read_one_stop(struct parse *p, const struct json_t *v, const char *path)
{
    const char *s;
    size_t n;
    int rc = sq_field_str(v, path, &s, &n, p->f);
    if (rc)
        return rc < 0 ? rc : wrong_type(p, v, path, "a string");
    if (n > (size_t)p->b->limits.max_stop_bytes)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, path,
                            "'%s' must be at most %lld bytes, found %zu", path,
                            (long long)p->b->limits.max_stop_bytes, n);
    return sq_stops_add(&p->c->stops, s, n) ? sq_fault_no_memory(p->f) : 0;
}

static int read_stop(struct parse *p, const struct json_t *v)
{
    enum sq_field_kind kind = sq_field_kind(v);
    if (kind == SQ_JSON_NULL)
        return 0;
    if (kind == SQ_JSON_STRING)
        return read_one_stop(p, v, "stop");
    if (kind != SQ_JSON_ARRAY)
        return wrong_type(p, v, "stop", "a string or an array of strings");
    size_t n = sq_field_len(v);
    if (n > (size_t)p->b->limits.max_stop)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, "stop",
                            "'stop' must hold at most %lld strings, found %zu",
                            (long long)p->b->limits.max_stop, n);
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) {
        char path[32];
        (void)snprintf(path, sizeof(path), "stop[%zu]", i);
        rc = read_one_stop(p, sq_field_at(v, i), path);
    }
    return rc;
}

static int read_stop_token_ids(struct parse *p, const struct json_t *v)
{
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return 0;
    if (sq_field_kind(v) != SQ_JSON_ARRAY)
        return wrong_type(p, v, "stop_token_ids", "an array of token ids");
    if (sq_field_len(v) > (size_t)p->b->limits.max_stop_ids)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, "stop_token_ids",
                            "'stop_token_ids' must hold at most %lld ids, found %zu",
                            (long long)p->b->limits.max_stop_ids, sq_field_len(v));
    size_t n = 0;
    int rc = sq_request_ids(v, "stop_token_ids", p->b, &p->c->stop_ids, &n, p->f);
    p->c->sampling.n_stop_ids = (int)n;
    return rc;
}

/* Canonical decimal of an id: no sign, no leading zero. */
static bool id_of_key(const char *key, int vocab, int32_t *ret)
{
    int64_t id = 0;
    if (!key[0] || (key[0] == '0' && key[1]))
        return false;
    for (const char *c = key; *c; c++) {
        if (*c < '0' || *c > '9')
            return false;
        id = id * 10 + (*c - '0');
        if (id >= vocab)
            return false;
    }
    *ret = (int32_t)id;
    return true;
}

static int read_logit_bias(struct parse *p, const struct json_t *v)
{
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return 0;
    if (sq_field_kind(v) != SQ_JSON_OBJECT)
        return wrong_type(p, v, "logit_bias", "an object");
    size_t n = sq_field_len(v);
    if (n > (size_t)p->b->limits.max_logit_bias)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, "logit_bias",
                            "'logit_bias' must hold at most %lld entries, found %zu",
                            (long long)p->b->limits.max_logit_bias, n);
    p->c->bias = sq_new_array(struct sq_token_bias, n);
    if (!p->c->bias)
        return sq_fault_no_memory(p->f);
    void *it = NULL;
    const char *key;
    const struct json_t *value;
    while (sq_field_next(v, &it, &key, &value)) {
        char path[96];
        struct sq_token_bias *to = &p->c->bias[p->c->sampling.n_bias];
        (void)snprintf(path, sizeof(path), "logit_bias.%.80s", key);
        if (!id_of_key(key, p->b->vocab, &to->id))
            return sq_fault_set(
                p->f, SQ_STATUS_INVALID_VALUE, path,
                "keys of 'logit_bias' must be token ids from 0 to %d, found '%.80s'",
                p->b->vocab - 1, key);
        int rc = sq_field_float(value, path, -100, 100, &to->bias, p->f);
        if (rc < 0)
            return rc;
        p->c->sampling.n_bias += rc == 0;
    }
    return 0;
}

/* Fields of other servers or of OpenAI that change the result and are not supported: only their neutral value is let through, so
 * that nothing is silently ignored that a client relies on. */
static const struct neutral {
    const char *name;
    enum sq_field_kind
        kind;      /* SQ_JSON_NULL: only null; SQ_JSON_ARRAY: only null and the empty array */
    int64_t value; /* of a boolean or an integer */
} neutrals[] = {
    {"logprobs", SQ_JSON_NULL, 0},
    {"prompt_logprobs", SQ_JSON_NULL, 0},
    {"suffix", SQ_JSON_NULL, 0},
    {"truncate_prompt_tokens", SQ_JSON_NULL, 0},
    {"echo", SQ_JSON_BOOL, false},
    {"include_stop_str_in_output", SQ_JSON_BOOL, false},
    {"return_token_ids", SQ_JSON_BOOL, false},
    {"skip_special_tokens", SQ_JSON_BOOL, true},
    {"add_special_tokens", SQ_JSON_BOOL, true},
    {"best_of", SQ_JSON_INT, 1},
    {"allowed_token_ids", SQ_JSON_ARRAY, 0},
    {"bad_words", SQ_JSON_ARRAY, 0},
};

static int check_neutral(struct parse *p, const struct neutral *it, const struct json_t *v)
{
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return 0;
    bool flag = false, fine = false;
    int64_t i = 0;
    int rc = 0;
    switch (it->kind) {
    case SQ_JSON_BOOL:
        rc = sq_field_bool(v, it->name, &flag, p->f);
        fine = flag == (bool)it->value;
        break;
    case SQ_JSON_INT:
        rc = sq_field_int(v, it->name, INT64_MIN, INT64_MAX, &i, p->f);
        fine = i == it->value;
        break;
    case SQ_JSON_ARRAY:
        fine = sq_field_kind(v) == SQ_JSON_ARRAY && !sq_field_len(v);
        break;
    default:
        break;
    }
    if (rc || fine)
        return rc;
    return sq_fault_set(p->f, SQ_STATUS_UNSUPPORTED, it->name,
                        "'%s' is not supported with this value", it->name);
}

static int read_response_format(struct parse *p, const struct json_t *v)
{
    const char *type;
    size_t n;
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return 0;
    if (sq_field_kind(v) != SQ_JSON_OBJECT)
        return wrong_type(p, v, "response_format", "an object");
    int rc = sq_field_str(sq_field_get(v, "type"), "response_format.type", &type, &n, p->f);
    if (rc < 0)
        return rc;
    if (rc || strcmp(type, "text") != 0)
        return sq_fault_set(p->f, SQ_STATUS_UNSUPPORTED, "response_format.type",
                            "'response_format' is supported with type \"text\" only");
    return 0;
}

static const struct {
    const char *name;
    int (*read)(struct parse *p, const struct json_t *v);
} fields[] = {
    {"model", read_model},
    {"prompt", read_prompts},
    {"max_tokens", read_max_tokens},
    {"min_tokens", read_min_tokens},
    {"n", read_n},
    {"temperature", read_temperature},
    {"top_p", read_top_p},
    {"top_k", read_top_k},
    {"min_p", read_min_p},
    {"presence_penalty", read_presence},
    {"frequency_penalty", read_frequency},
    {"repetition_penalty", read_repetition_penalty},
    {"repeat_penalty", read_repeat_penalty},
    {"seed", read_seed},
    {"stop", read_stop},
    {"stop_token_ids", read_stop_token_ids},
    {"logit_bias", read_logit_bias},
    {"ignore_eos", read_ignore_eos},
    {"stream", read_stream},
    {"stream_options", read_stream_options},
    {"response_format", read_response_format},
    {"user", read_user},
};

static int read_field(struct parse *p, const char *key, const struct json_t *v)
{
    for (size_t i = 0; i < SQ_ARRAY_LEN(fields); i++) {
        if (!strcmp(fields[i].name, key))
            return fields[i].read(p, v);
    }
    for (size_t i = 0; i < SQ_ARRAY_LEN(neutrals); i++) {
        if (!strcmp(neutrals[i].name, key))
            return check_neutral(p, &neutrals[i], v);
    }
    p->c->n_unknown++;
    if (!p->b->strict_fields)
        return 0;
    return sq_fault_set(p->f, SQ_STATUS_UNKNOWN_FIELD, key, "'%.100s' is not a known field", key);
}

static void defaults(struct sq_completion *c, const struct sq_gen_defaults *g)
{
    struct sq_sampling *s = &c->sampling;
    c->n = 1;
    s->max_tokens = 16;
    s->temperature = isfinite(g->temperature) ? g->temperature : 1;
    s->top_p = isfinite(g->top_p) ? g->top_p : 1;
    s->min_p = isfinite(g->min_p) ? g->min_p : 0;
    s->repetition = isfinite(g->repetition_penalty) ? g->repetition_penalty : 1;
    s->top_k = g->top_k > 0 ? g->top_k : 0;
}

/* What no single field can say. */
static int check_together(struct parse *p)
{
    struct sq_completion *c = p->c;
    if (!c->n_prompts)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, "prompt", "'prompt' is missing");
    if ((int64_t)c->n_prompts * c->n > p->b->limits.max_prompts)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, "n",
                            "prompts times 'n' must be at most %lld, found %zu times %d",
                            (long long)p->b->limits.max_prompts, c->n_prompts, c->n);
    if (c->include_usage && !c->stream)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, "stream_options.include_usage",
                            "'stream_options.include_usage' needs 'stream'");
    if (c->sampling.min_tokens > c->sampling.max_tokens)
        return sq_fault_set(p->f, SQ_STATUS_INVALID_VALUE, "min_tokens",
                            "'min_tokens' must be at most 'max_tokens' (%d), found %d",
                            c->sampling.max_tokens, c->sampling.min_tokens);
    return 0;
}

int sq_completion_parse(struct sq_completion *c, const char *body, size_t n,
                        const struct sq_border *b, struct sq_fault *f)
{
    struct parse p = {.c = c, .b = b, .f = f};
    defaults(c, &b->gen);
    struct json_t *root = sq_field_parse(body, n, &b->limits, f);
    if (!root)
        return -SQ_E_INVAL;
    void *it = NULL;
    const char *key;
    const struct json_t *v;
    int rc = 0;
    while (rc >= 0 && sq_field_next(root, &it, &key, &v)) {
        if (sq_field_kind(v) != SQ_JSON_NULL) /* null equals absent, for every field */
            rc = read_field(&p, key, v);
    }
    sq_field_free(root);
    if (rc >= 0)
        rc = check_together(&p);
    if (c->sampling.temperature < TEMPERATURE_GREEDY)
        c->sampling.temperature = 0;
    c->sampling.stop_ids = c->stop_ids;
    c->sampling.bias = c->bias;
    return rc;
}

void sq_completion_done(struct sq_completion *c)
{
    for (size_t i = 0; i < c->n_prompts; i++) {
        sq_free(c->prompts[i].text);
        sq_free(c->prompts[i].ids);
    }
    sq_free(c->prompts);
    sq_free(c->stop_ids);
    sq_free(c->bias);
    sq_stops_done(&c->stops);
    *c = (struct sq_completion){0};
}
