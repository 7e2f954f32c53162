/* Prompts: the four forms of the wire, token ids, and the way from text to ids within the context. */
#include <stdio.h>
#include <string.h>

#include "api/json.h"
#include "api/request.h"
#include "engine/base/mem.h"

/* --- ids and prompts --------------------------------------------------------------------- */

static int read_id(const struct json_t *v, const char *path, const struct sq_border *b,
                   int32_t *ret, struct sq_fault *f)
{
    int64_t id;
    int rc = sq_field_int(v, path, 0, b->vocab - 1, &id, f);
    if (rc == SQ_JSON_ABSENT)
        return sq_fault_set(f, SQ_STATUS_INVALID_VALUE, path, "'%s' must be a token id, found null",
                            path);
    if (!rc)
        *ret = (int32_t)id;
    return rc;
}

int sq_request_ids(const struct json_t *array, const char *path, const struct sq_border *b,
                   int32_t **ret, size_t *ret_n, struct sq_fault *f)
{
    size_t n = sq_field_len(array);
    SQ_AUTO_FREE int32_t *ids = sq_new_array(int32_t, n);
    if (!ids)
        return sq_fault_no_memory(f);
    for (size_t i = 0; i < n; i++) {
        char at[64];
        (void)snprintf(at, sizeof(at), "%s[%zu]", path, i);
        int rc = read_id(sq_field_at(array, i), at, b, &ids[i], f);
        if (rc)
            return rc;
    }
    *ret_n = n;
    *ret = sq_steal(&ids);
    return 0;
}

static int read_prompt(const struct json_t *v, const char *path, const struct sq_border *b,
                       struct sq_prompt *ret, struct sq_fault *f)
{
    if (sq_field_kind(v) == SQ_JSON_STRING) {
        const char *s;
        size_t n;
        int rc = sq_field_str(v, path, &s, &n, f);
        if (rc)
            return rc;
        ret->text = sq_memdup(s, n);
        ret->n_text = n;
        return ret->text ? 0 : sq_fault_no_memory(f);
    }
    if (!sq_field_len(v))
        return sq_fault_set(f, SQ_STATUS_INVALID_VALUE, path,
                            "'%s' must hold at least one token id, found an empty array", path);
    return sq_request_ids(v, path, b, &ret->ids, &ret->n_ids, f);
}

static int prompts_alloc(struct sq_completion *c, size_t n, const struct sq_border *b,
                         struct sq_fault *f)
{
    if (n > (size_t)b->limits.max_prompts)
        return sq_fault_set(f, SQ_STATUS_INVALID_VALUE, "prompt",
                            "'prompt' must hold at most %lld prompts, found %zu",
                            (long long)b->limits.max_prompts, n);
    c->prompts = sq_new_array(struct sq_prompt, n);
    if (!c->prompts)
        return sq_fault_no_memory(f);
    c->n_prompts = n;
    return 0;
}

int sq_prompts_read(struct sq_completion *c, const struct json_t *v, const struct sq_border *b,
                    struct sq_fault *f)
{
    enum sq_field_kind kind = sq_field_kind(v);
    enum sq_field_kind first =
        kind == SQ_JSON_ARRAY && sq_field_len(v) ? sq_field_kind(sq_field_at(v, 0)) : SQ_JSON_NULL;
    if (kind == SQ_JSON_STRING || first == SQ_JSON_INT || first == SQ_JSON_REAL) {
        int rc = prompts_alloc(c, 1, b, f);
        return rc ? rc : read_prompt(v, "prompt", b, &c->prompts[0], f);
    }
    if (kind != SQ_JSON_ARRAY || (first != SQ_JSON_STRING && first != SQ_JSON_ARRAY))
        return sq_fault_set(
            f, SQ_STATUS_INVALID_VALUE, "prompt",
            "'prompt' must be a string, an array of strings, an array of token ids or "
            "an array of such arrays, found %s",
            kind != SQ_JSON_ARRAY ? sq_field_kind_name(v)
            : sq_field_len(v)     ? "an array of something else"
                                  : "an empty array");
    size_t n = sq_field_len(v);
    int rc = prompts_alloc(c, n, b, f);
    for (size_t i = 0; i < n && !rc; i++) {
        const struct json_t *it = sq_field_at(v, i);
        char path[48];
        (void)snprintf(path, sizeof(path), "prompt[%zu]", i);
        rc = sq_field_kind(it) == first
                 ? read_prompt(it, path, b, &c->prompts[i], f)
                 : sq_fault_set(f, SQ_STATUS_INVALID_VALUE, path,
                                "'%s' must be %s like the first prompt, found %s", path,
                                sq_field_kind_name(sq_field_at(v, 0)), sq_field_kind_name(it));
    }
    return rc;
}

/* --- tokenising ----------------------------------------------------------------------------- */

int sq_request_model(const struct json_t *value, const struct sq_border *b, struct sq_fault *f)
{
    const char *name;
    size_t n;
    int rc = sq_field_str(value, "model", &name, &n, f);
    if (rc)
        return rc < 0 ? rc : 0;
    for (const char *const *it = b->names; *it; it++) {
        if (!strcmp(*it, name))
            return 0;
    }
    return sq_fault_set(f, SQ_STATUS_MODEL_NOT_FOUND, "model",
                        "the model '%.200s' does not exist here", name);
}

int sq_request_encode(const struct sq_border *b, const char *text, size_t n, unsigned flags,
                      const char *path, int32_t **ret, size_t *ret_n, struct sq_fault *f)
{
    struct sq_err err = {0};
    int rc = sq_tokenizer_encode(b->tokenizer, text, n, flags, ret, ret_n, &err);
    if (!rc)
        return 0;
    if (rc == -SQ_E_NOMEM)
        return sq_fault_no_memory(f);
    return sq_fault_set(f, SQ_STATUS_INVALID_VALUE, path, "'%s' cannot be tokenised: %.300s", path,
                        err.msg);
}

/* A text may come out as no token at all: it then stands for the beginning of the sequence alone. */
static int encode_prompt(struct sq_prompt *p, const char *path, const struct sq_border *b,
                         struct sq_fault *f)
{
    int rc =
        sq_request_encode(b, p->text, p->n_text, SQ_TOK_ADD_SPECIAL, path, &p->ids, &p->n_ids, f);
    if (rc || p->n_ids)
        return rc;
    if (b->bos < 0)
        return sq_fault_set(f, SQ_STATUS_INVALID_VALUE, path,
                            "'%s' is empty, and this model has no beginning-of-sequence token",
                            path);
    int32_t *ids = sq_realloc_array(p->ids, 1, sizeof(*ids));
    if (!ids)
        return sq_fault_no_memory(f);
    ids[0] = b->bos;
    p->ids = ids;
    p->n_ids = 1;
    return 0;
}

int sq_completion_tokenise(struct sq_completion *c, const struct sq_border *b, struct sq_fault *f)
{
    for (size_t i = 0; i < c->n_prompts; i++) {
        struct sq_prompt *p = &c->prompts[i];
        char path[48] = "prompt";
        if (c->n_prompts > 1)
            (void)snprintf(path, sizeof(path), "prompt[%zu]", i);
        int rc = p->text ? encode_prompt(p, path, b, f) : 0;
        if (rc)
            return rc;
        int64_t n = (int64_t)p->n_ids;
        if (n + c->sampling.max_tokens > b->max_context) {
            rc = sq_fault_set(
                f, SQ_STATUS_CONTEXT, path,
                "this model's context is %d tokens, but the request needs %lld: %lld of "
                "'%s' and %d of 'max_tokens'",
                b->max_context, (long long)(n + c->sampling.max_tokens), (long long)n, path,
                c->sampling.max_tokens);
            f->counts[0] = n;
            f->counts[1] = c->sampling.max_tokens;
            f->counts[2] = b->max_context;
            return rc;
        }
        c->n_prompt_tokens += n;
    }
    return 0;
}
