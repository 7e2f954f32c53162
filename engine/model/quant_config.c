#include "engine/model/quant_config.h"

#include <stdio.h>
#include <string.h>

/* One QuantizationArgs object, defaults as the library fills them in. */
struct args {
    bool there, dynamic, symmetric;
    const char *strategy; /* "tensor", "channel", "token" */
};

/* The eight-bit integer part; everything else is another format with a name of its own. */
static int check_type(const json_t *o, const struct sq_json_where *w)
{
    const char *type = "int";
    int64_t bits = 8;
    int r = sq_json_str(o, w, "type", &type);
    if (r >= 0)
        r = sq_json_int(o, w, "num_bits", 1, 64, &bits);
    if (r < 0)
        return r;
    if (strcmp(type, "float") == 0)
        return SQ_QUANT_REFUSE(w, "type: %d-bit floats (FP%d) are not supported, only int",
                               (int)bits, (int)bits);
    if (strcmp(type, "int"))
        return SQ_QUANT_REFUSE(w, "type: '%.32s' is not known", type);
    if (bits != 8)
        return SQ_QUANT_REFUSE(w, "num_bits: %d (int%d) is not supported, only 8", (int)bits,
                               (int)bits);
    return 0;
}

/* GPTQ's order of columns: only the ones that leave no trace in the file. */
static int check_actorder(const json_t *o, const struct sq_json_where *w)
{
    const json_t *v = json_object_get(o, "actorder");
    if (!v || json_is_null(v) || json_is_false(v))
        return 0;
    const char *s = json_string_value(v);
    if (s && (strcmp(s, "static") == 0 || strcmp(s, "weight") == 0))
        return 0;
    return SQ_QUANT_REFUSE(w, "actorder: '%.32s' is not supported, only 'static' and 'weight'",
                           s ? s : sq_json_type_text(v));
}

static int read_dynamic(const json_t *o, const struct sq_json_where *w, struct args *a)
{
    const char *s = json_string_value(json_object_get(o, "dynamic"));
    if (s)
        return SQ_QUANT_REFUSE(w, "dynamic: '%.32s' is not supported, only true and false", s);
    int r = sq_json_bool(o, w, "dynamic", &a->dynamic);
    return r < 0 ? r : 0;
}

/* As the library infers it: no group_size -> tensor, -1 -> channel, > 0 -> group. */
static int read_strategy(const json_t *o, const struct sq_json_where *w, struct args *a)
{
    int64_t group = 0;
    int r = sq_json_int(o, w, "group_size", -1, INT32_MAX, &group);
    if (r < 0)
        return r;
    a->strategy = group > 0 ? "group" : group < 0 ? "channel" : "tensor";
    if (a->dynamic && group == 0)
        a->strategy = "token";
    r = sq_json_str(o, w, "strategy", &a->strategy);
    if (r < 0)
        return r;
    if (group > 0 && strcmp(a->strategy, "tensor") && strcmp(a->strategy, "channel"))
        a->strategy = "group";
    return 0;
}

static int read_args(const json_t *group, const struct sq_json_where *w, const char *key,
                     struct args *a)
{
    const json_t *o = json_object_get(group, key);
    *a = (struct args){.there = o && !json_is_null(o), .symmetric = true};
    if (!a->there)
        return 0;
    if (!json_is_object(o))
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%s%s': expected an object, found %s",
                       w->file, w->rule, w->path, key, sq_json_type_text(o));
    char path[96];
    snprintf(path, sizeof path, "%s%s.", w->path, key);
    struct sq_json_where in = *w;
    in.path = path;
    int r = check_type(o, &in);
    if (!r)
        r = check_actorder(o, &in);
    if (!r)
        r = read_dynamic(o, &in, a);
    if (!r)
        r = read_strategy(o, &in, a);
    if (!r) {
        r = sq_json_bool(o, &in, "symmetric", &a->symmetric);
        r = r < 0 ? r : 0;
    }
    return r;
}

/* Weights per tensor or per channel, symmetric (or with zero points that turn out to be zero: Q5, at load). */
static int check_weights(const struct sq_json_where *w, const struct args *a)
{
    if (!a->there)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: no key '%sweights'", w->file, w->rule,
                       w->path);
    if (a->dynamic)
        return SQ_QUANT_REFUSE(w, "weights.dynamic: true is not supported");
    if (strcmp(a->strategy, "tensor") && strcmp(a->strategy, "channel"))
        return SQ_QUANT_REFUSE(
            w, "weights.strategy: '%.32s' is not supported, only 'tensor' and 'channel'",
            a->strategy);
    return 0;
}

static int check_inputs(const struct sq_json_where *w, const struct args *a, struct sq_config *c)
{
    bool tensor;
    if (!a->there)
        return SQ_QUANT_REFUSE(w, "input_activations: none: weight-only W8A16 is not supported");
    tensor = strcmp(a->strategy, "tensor") == 0;
    if (!tensor && (!a->dynamic || strcmp(a->strategy, "token")))
        return SQ_QUANT_REFUSE(
            w, "input_activations.strategy: '%.32s' is not supported with dynamic %s", a->strategy,
            a->dynamic ? "true" : "false");
    if (a->dynamic && !a->symmetric)
        return SQ_QUANT_REFUSE(
            w, "input_activations.symmetric: false (asymmetric, with zero points at run "
               "time) is not supported");
    c->scheme = a->dynamic ? SQ_SCHEME_W8A8_DYNAMIC : SQ_SCHEME_W8A8_STATIC;
    return 0;
}

static int check_targets(const json_t *targets, const struct sq_json_where *w)
{
    const char *s = json_string_value(json_array_get(targets, 0));
    if (!s)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%stargets': expected a list of names",
                       w->file, w->rule, w->path);
    if (json_array_size(targets) != 1 || strcmp(s, "Linear"))
        return SQ_QUANT_REFUSE(w, "targets: only [\"Linear\"] is supported, found '%.64s'%s", s,
                               json_array_size(targets) > 1 ? " and more" : "");
    return 0;
}

static int check_format(const json_t *o, const struct sq_json_where *w, bool required)
{
    const char *s = NULL;
    int r = sq_json_str(o, w, "format", &s);
    if (r < 0)
        return r;
    if (!s && required)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: no key '%sformat'", w->file, w->rule, w->path);
    if (s && strcmp(s, "int-quantized") && strcmp(s, "naive-quantized"))
        return SQ_QUANT_REFUSE(w, "format: '%.32s'%s is not supported, only 'int-quantized'", s,
                               strstr(s, "float")  ? " (FP8)"
                               : strstr(s, "pack") ? " (int4)"
                                                   : "");
    return 0;
}

static int read_group(const char *name, const json_t *g, const struct sq_json_where *outer,
                      struct sq_config *c)
{
    char path[96];
    snprintf(path, sizeof path, "%sconfig_groups.%.32s.", outer->path, name);
    struct sq_json_where w = *outer;
    w.path = path;
    if (json_is_array(g)) { /* a preset's name with its targets */
        if (strcmp(name, "W8A8") && strcmp(name, "INT8"))
            return SQ_QUANT_REFUSE(&w, " this preset is not supported, only W8A8");
        c->scheme = SQ_SCHEME_W8A8_DYNAMIC;
        return check_targets(g, &w);
    }
    if (!json_is_object(g))
        return sq_fail(w.err, SQ_E_FORMAT, "%s: %s: key '%s': expected an object, found %s", w.file,
                       w.rule, path, sq_json_type_text(g));
    struct args weights, inputs, outputs;
    int r = check_targets(json_object_get(g, "targets"), &w);
    if (!r)
        r = check_format(g, &w, false);
    if (!r)
        r = read_args(g, &w, "weights", &weights);
    if (!r)
        r = check_weights(&w, &weights);
    if (!r)
        r = read_args(g, &w, "input_activations", &inputs);
    if (!r)
        r = check_inputs(&w, &inputs, c);
    if (!r)
        r = read_args(g, &w, "output_activations", &outputs);
    if (!r && outputs.there)
        r = SQ_QUANT_REFUSE(&w, "output_activations: not supported");
    return r;
}

static int read_groups(const json_t *q, const struct sq_json_where *w, struct sq_config *c)
{
    const json_t *groups = json_object_get(q, "config_groups");
    size_t n = json_object_size(groups);
    if (n == 0)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%sconfig_groups': expected an object",
                       w->file, w->rule, w->path);
    if (n > 1)
        return SQ_QUANT_REFUSE(
            w, "config_groups: %zu groups (mixed precision) are not supported, only one", n);
    void *it = json_object_iter((json_t *)groups);
    return read_group(json_object_iter_key(it), json_object_iter_value(it), w, c);
}

static bool empty(const json_t *v)
{
    return !v || json_is_null(v) || (json_is_object(v) && json_object_size(v) == 0);
}

static int check_status(const json_t *q, const struct sq_json_where *w)
{
    const char *method = NULL, *status = NULL;
    int r = sq_json_str(q, w, "quant_method", &method);
    if (r >= 0)
        r = sq_json_str(q, w, "quantization_status", &status);
    if (r < 0)
        return r;
    if (!method)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: no key '%squant_method'", w->file, w->rule,
                       w->path);
    if (strcmp(method, "compressed-tensors"))
        return SQ_QUANT_REFUSE(
            w, "quant_method: '%.32s' is not supported, only 'compressed-tensors'", method);
    if (!status || strcmp(status, "compressed"))
        return sq_fail(w->err, SQ_E_FORMAT,
                       "%s: %s: key '%squantization_status': expected 'compressed', found '%.32s'",
                       w->file, w->rule, w->path, status ? status : "nothing");
    return 0;
}

static int check_extras(const json_t *q, const struct sq_json_where *w)
{
    const json_t *transform = json_object_get(q, "transform_config");
    if (!empty(transform) &&
        !(json_object_size(transform) == 1 && empty(json_object_get(transform, "config_groups")) &&
          json_object_get(transform, "config_groups")))
        return SQ_QUANT_REFUSE(w, "transform_config: transforms (Hadamard) are not supported");
    const json_t *sparse = json_object_get(q, "sparsity_config");
    const char *format = json_string_value(json_object_get(sparse, "format"));
    if (!empty(sparse) && (!format || strcmp(format, "dense")))
        return SQ_QUANT_REFUSE(w, "sparsity_config: sparse weights ('%.32s') are not supported",
                               format ? format : "?");
    return 0;
}

/* A scheme for the KV cache is advice: sqd keeps it in float, or in int8 with its own steps. */
static int check_kv(const json_t *q, const struct sq_json_where *w)
{
    struct args kv;
    return read_args(q, w, "kv_cache_scheme", &kv);
}

int sq_quant_config_parse(const json_t *q, const char *file, struct sq_config *c,
                          struct sq_err *err)
{
    struct sq_json_where w = {
        .file = file, .rule = "C5", .path = "quantization_config.", .err = err};
    if (!json_is_object(q))
        return sq_fail(err, SQ_E_FORMAT,
                       "%s: C5: key 'quantization_config': expected an object, found %s", file,
                       sq_json_type_text(q));
    int r = check_status(q, &w);
    if (!r)
        r = check_format(q, &w, true);
    if (!r)
        r = read_groups(q, &w, c);
    if (!r)
        r = check_extras(q, &w);
    if (!r)
        r = check_kv(q, &w);
    if (!r)
        r = sq_quant_ignore_parse(q, &w, c);
    return r;
}
