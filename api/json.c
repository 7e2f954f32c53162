#include "api/json.h"

#include <jansson.h>
#include <math.h>

#include "api/api.h"
#include "engine/base/err.h"

int sq_field_scan(const char *s, size_t n, const struct sq_api_limits *l, struct sq_fault *f)
{
    int64_t depth = 0, containers = 0, values = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            containers++;
            if (++depth > l->max_json_depth)
                return sq_fault_set(f, SQ_STATUS_INVALID_JSON, NULL,
                                    "the JSON body is nested deeper than %lld levels (at byte %zu)",
                                    (long long)l->max_json_depth, i);
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == ',') {
            values++;
        }
        if (containers > l->max_json_containers || values > l->max_json_values)
            return sq_fault_set(
                f, SQ_STATUS_INVALID_JSON, NULL,
                "the JSON body has more than %lld %s (at byte %zu)",
                (long long)(containers > l->max_json_containers ? l->max_json_containers
                                                                : l->max_json_values),
                containers > l->max_json_containers ? "objects and arrays" : "values", i);
    }
    return 0;
}

struct json_t *sq_field_parse(const char *s, size_t n, const struct sq_api_limits *l,
                              struct sq_fault *f)
{
    if (!n) {
        (void)sq_fault_set(f, SQ_STATUS_INVALID_JSON, NULL,
                           "the body is empty, expected a JSON object");
        return NULL;
    }
    if (sq_field_scan(s, n, l, f))
        return NULL;
    json_error_t e;
    json_t *j = json_loadb(s, n, JSON_REJECT_DUPLICATES, &e);
    if (!j && !e.text[0]) {
        (void)sq_fault_set(f, SQ_STATUS_INTERNAL, NULL, "out of memory");
    } else if (!j) {
        (void)sq_fault_set(f, SQ_STATUS_INVALID_JSON, NULL,
                           "the body is not valid JSON: line %d, column %d: %s", e.line, e.column,
                           e.text);
    } else if (!json_is_object(j)) {
        (void)sq_fault_set(f, SQ_STATUS_INVALID_JSON, NULL,
                           "the body must be a JSON object, found %s", sq_field_kind_name(j));
        json_decref(j);
        j = NULL;
    }
    return j;
}

void sq_field_free(struct json_t *j)
{
    json_decref(j);
}

enum sq_field_kind sq_field_kind(const struct json_t *v)
{
    if (!v)
        return SQ_JSON_NULL;
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return SQ_JSON_OBJECT;
    case JSON_ARRAY:
        return SQ_JSON_ARRAY;
    case JSON_STRING:
        return SQ_JSON_STRING;
    case JSON_INTEGER:
        return SQ_JSON_INT;
    case JSON_REAL:
        return SQ_JSON_REAL;
    case JSON_TRUE:
    case JSON_FALSE:
        return SQ_JSON_BOOL;
    case JSON_NULL:
        break;
    }
    return SQ_JSON_NULL;
}

const char *sq_field_kind_name(const struct json_t *v)
{
    static const char *const names[] = {"null",     "a boolean", "an integer", "a fraction",
                                        "a string", "an array",  "an object"};
    return names[sq_field_kind(v)];
}

size_t sq_field_len(const struct json_t *v)
{
    return json_is_array(v) ? json_array_size(v) : json_object_size(v);
}

const struct json_t *sq_field_at(const struct json_t *array, size_t i)
{
    return json_array_get(array, i);
}

const struct json_t *sq_field_get(const struct json_t *object, const char *key)
{
    return json_object_get(object, key);
}

bool sq_field_next(const struct json_t *object, void **it, const char **ret_key,
                   const struct json_t **ret_value)
{
    /* The library's iterators want a mutable object, but do not change it. */
    json_t *o = (json_t *)(uintptr_t)object;
    *it = *it ? json_object_iter_next(o, *it) : json_object_iter(o);
    if (!*it)
        return false;
    *ret_key = json_object_iter_key(*it);
    *ret_value = json_object_iter_value(*it);
    return true;
}

static int wrong_type(const struct json_t *v, const char *path, const char *want,
                      struct sq_fault *f)
{
    return sq_fault_set(f, SQ_STATUS_INVALID_VALUE, path, "'%s' must be %s, found %s", path, want,
                        sq_field_kind_name(v));
}

/* A whole float within 64 bits is an integer. */
static bool as_int(const struct json_t *v, int64_t *ret)
{
    if (json_is_integer(v)) {
        *ret = json_integer_value(v);
        return true;
    }
    double d = json_is_real(v) ? json_real_value(v) : 0.5;
    if (!(d >= -0x1p63 && d < 0x1p63) || d != rint(d))
        return false;
    *ret = (int64_t)d;
    return true;
}

int sq_field_int(const struct json_t *v, const char *path, int64_t min, int64_t max, int64_t *ret,
                 struct sq_fault *f)
{
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return SQ_JSON_ABSENT;
    int64_t i;
    if (!as_int(v, &i))
        return wrong_type(v, path, "an integer", f);
    if (i < min || i > max)
        return sq_fault_set(f, SQ_STATUS_INVALID_VALUE, path,
                            "'%s' must be between %lld and %lld, found %lld", path, (long long)min,
                            (long long)max, (long long)i);
    *ret = i;
    return 0;
}

int sq_field_float(const struct json_t *v, const char *path, double min, double max, float *ret,
                   struct sq_fault *f)
{
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return SQ_JSON_ABSENT;
    if (!json_is_number(v))
        return wrong_type(v, path, "a number", f);
    double d = json_number_value(v);
    float narrow = d >= -1e30 && d <= 1e30 ? (float)d : NAN;
    /* Written so that NaN fails. */
    if (!(d >= min && d <= max && (double)narrow >= min && (double)narrow <= max))
        return sq_fault_set(f, SQ_STATUS_INVALID_VALUE, path,
                            "'%s' must be between %g and %g, found %g", path, min, max, d);
    *ret = narrow;
    return 0;
}

int sq_field_bool(const struct json_t *v, const char *path, bool *ret, struct sq_fault *f)
{
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return SQ_JSON_ABSENT;
    if (!json_is_boolean(v))
        return wrong_type(v, path, "a boolean", f);
    *ret = json_is_true(v);
    return 0;
}

int sq_field_str(const struct json_t *v, const char *path, const char **ret, size_t *ret_n,
                 struct sq_fault *f)
{
    if (sq_field_kind(v) == SQ_JSON_NULL)
        return SQ_JSON_ABSENT;
    if (!json_is_string(v))
        return wrong_type(v, path, "a string", f);
    *ret = json_string_value(v);
    *ret_n = json_string_length(v);
    return 0;
}
