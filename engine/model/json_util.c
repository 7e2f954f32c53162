#include "engine/model/json_util.h"

#include <string.h>

static int breach(const struct sq_json_where *w, enum sq_code code, const char *what, size_t found,
                  size_t limit)
{
    return sq_fail(w->err, code, "%s: %s: %s: %zu, the limit is %zu", w->file, w->rule, what, found,
                   limit);
}

/* Counts brackets and commas outside of strings. What is not JSON at all is left to jansson. */
static int scan(const char *buf, size_t n, const struct sq_json_limits *lim,
                const struct sq_json_where *w)
{
    size_t depth = 0, n_containers = 0, n_commas = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = buf[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > (size_t)lim->max_depth)
                return breach(w, SQ_E_FORMAT, "nested too deep", depth, (size_t)lim->max_depth);
            if (++n_containers > lim->max_containers)
                return breach(w, SQ_E_LIMIT, "too many objects and arrays", n_containers,
                              lim->max_containers);
        } else if (c == '}' || c == ']') {
            depth -= depth > 0;
        } else if (c == ',') {
            if (++n_commas > lim->max_commas)
                return breach(w, SQ_E_LIMIT, "too many values", n_commas, lim->max_commas);
        } else if (c == '-' && lim->plain_integers) {
            return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: a number with a sign at byte %zu", w->file,
                           w->rule, i);
        }
    }
    return 0;
}

int sq_json_load(const char *buf, size_t n_bytes, const struct sq_json_limits *lim,
                 const struct sq_json_where *w, json_t **ret)
{
    if (n_bytes > lim->max_bytes)
        return breach(w, SQ_E_LIMIT, "too many bytes", n_bytes, lim->max_bytes);
    int r = scan(buf, n_bytes, lim, w);
    if (r)
        return r;
    json_error_t e = {.text = ""};
    json_t *o = json_loadb(buf, n_bytes, JSON_REJECT_DUPLICATES, &e);
    if (!o && (!e.text[0] || json_error_code(&e) == json_error_out_of_memory))
        return sq_fail(w->err, SQ_E_NOMEM, "%s: out of memory while parsing %zu bytes of JSON",
                       w->file, n_bytes);
    if (!o) {
        bool utf8 = json_error_code(&e) == json_error_invalid_utf8 && w->utf8_rule;
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: line %d, byte %d: %s", w->file,
                       utf8 ? w->utf8_rule : w->rule, e.line, e.position, e.text);
    }
    if (!json_is_object(o)) {
        json_decref(o);
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: expected one object, found an array", w->file,
                       w->rule);
    }
    *ret = o;
    return 0;
}

const char *sq_json_type_text(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a fraction";
    case JSON_NULL:
        return "null";
    default:
        return "true or false";
    }
}

static int wrong_type(const struct sq_json_where *w, const char *key, const char *expected,
                      const json_t *v)
{
    return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%s%s': expected %s, found %s", w->file,
                   w->rule, w->path, key, expected, sq_json_type_text(v));
}

int sq_json_int(const json_t *o, const struct sq_json_where *w, const char *key, int64_t min,
                int64_t max, int64_t *ret)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return 1;
    if (!json_is_integer(v))
        return wrong_type(w, key, "an integer", v);
    int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%s%s': expected %lld to %lld, found %lld",
                       w->file, w->rule, w->path, key, (long long)min, (long long)max,
                       (long long)i);
    *ret = i;
    return 0;
}

int sq_json_real(const json_t *o, const struct sq_json_where *w, const char *key, double min,
                 double max, double *ret)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return 1;
    if (!json_is_number(v))
        return wrong_type(w, key, "a number", v);
    double d = json_number_value(v);
    if (!(d >= min && d <= max))
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%s%s': expected %g to %g, found %g",
                       w->file, w->rule, w->path, key, min, max, d);
    *ret = d;
    return 0;
}

int sq_json_bool(const json_t *o, const struct sq_json_where *w, const char *key, bool *ret)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return 1;
    if (!json_is_boolean(v))
        return wrong_type(w, key, "true or false", v);
    *ret = json_is_true(v);
    return 0;
}

int sq_json_str(const json_t *o, const struct sq_json_where *w, const char *key, const char **ret)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return 1;
    if (!json_is_string(v))
        return wrong_type(w, key, "a string", v);
    *ret = json_string_value(v);
    return 0;
}
