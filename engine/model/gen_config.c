#include "engine/model/gen_config.h"

/* An id or a list of ids; -1 in old files means none. */
static int get_id(const json_t *v, const struct sq_json_where *w, const char *key, int vocab,
                  int32_t *ret)
{
    if (!json_is_integer(v))
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%s': expected a token id, found %s",
                       w->file, w->rule, key, sq_json_type_text(v));
    int64_t id = json_integer_value(v);
    if (id < -1 || id >= vocab)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%s': expected an id below %d, found %lld",
                       w->file, w->rule, key, vocab, (long long)id);
    *ret = (int32_t)id;
    return 0;
}

static int get_ids(const json_t *o, const struct sq_json_where *w, const char *key, int vocab,
                   int32_t *ret, int max, int *ret_n)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return 0;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > (size_t)max)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%s': %zu ids, the limit is %d", w->file,
                       w->rule, key, n, max);
    int n_ids = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *e = json_is_array(v) ? json_array_get(v, i) : v;
        int r = get_id(e, w, key, vocab, &ret[n_ids]);
        if (r)
            return r;
        n_ids += ret[n_ids] >= 0;
    }
    *ret_n = n_ids;
    return 0;
}

static int get_one(const json_t *o, const struct sq_json_where *w, const char *key, int vocab,
                   int32_t *ret)
{
    int n = -1;
    int32_t id = -1;
    int r = get_ids(o, w, key, vocab, &id, 1, &n);
    if (!r && n >= 0)
        *ret = n ? id : -1;
    return r;
}

static int get_float(const json_t *o, const struct sq_json_where *w, const char *key, double min,
                     double max, float *ret)
{
    double d;
    int r = sq_json_real(o, w, key, min, max, &d);
    if (r == 0)
        *ret = (float)d;
    return r < 0 ? r : 0;
}

int sq_gen_config_parse(const json_t *o, const char *file, const char *rule, struct sq_config *c,
                        struct sq_err *err)
{
    struct sq_json_where w = {.file = file, .rule = rule, .path = "", .err = err};
    int64_t top_k;
    bool sample;
    int r = get_ids(o, &w, "eos_token_id", c->vocab, c->eos, SQ_MAX_EOS, &c->n_eos);
    if (!r)
        r = get_one(o, &w, "bos_token_id", c->vocab, &c->bos);
    if (!r)
        r = get_one(o, &w, "pad_token_id", c->vocab, &c->pad);
    if (!r)
        r = get_float(o, &w, "temperature", 0, 100, &c->gen.temperature);
    if (!r)
        r = get_float(o, &w, "top_p", 0, 1, &c->gen.top_p);
    if (!r)
        r = get_float(o, &w, "min_p", 0, 1, &c->gen.min_p);
    if (!r)
        r = get_float(o, &w, "repetition_penalty", 1e-3, 100, &c->gen.repetition_penalty);
    if (r)
        return r;
    r = sq_json_int(o, &w, "top_k", -1, INT32_MAX, &top_k);
    if (r == 0)
        c->gen.top_k = (int)top_k;
    if (r < 0)
        return r;
    r = sq_json_bool(o, &w, "do_sample", &sample);
    if (r == 0)
        c->gen.do_sample = sample;
    return r < 0 ? r : 0;
}
