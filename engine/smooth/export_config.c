#include "engine/smooth/export_config.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"
#include "engine/model/file.h"
#include "engine/model/json_util.h"

/* The ten keys that every version of compressed-tensors knows; it refuses unknown ones. */
static json_t *args_json(const char *strategy, bool dynamic, const char *observer)
{
    return json_pack("{s:i, s:s, s:b, s:n, s:s, s:n, s:b, s:n, s:s?, s:{}}", "num_bits", 8, "type",
                     "int", "symmetric", 1, "group_size", "strategy", strategy, "block_structure",
                     "dynamic", (int)dynamic, "actorder", "observer", observer, "observer_kwargs");
}

/* Linears outside the decoder layers stay float and must be named, for "Linear" means all of them.
 * */
static json_t *ignore_json(const struct sq_model_dir *dir)
{
    static const enum sq_role roles[] = {SQ_R_PROJECT_IN, SQ_R_PROJECT_OUT, SQ_R_HEAD};
    const struct sq_config *c = &dir->config;
    json_t *list = json_array();
    for (int i = 0; list && i < 3; i++) {
        char name[SQ_NAME_BYTES];
        if (!c->family->names[roles[i]] || (roles[i] != SQ_R_HEAD && c->embed_dim == c->hidden))
            continue;
        sq_family_name(c->family, dir->prefix, roles[i], 0, "", name, sizeof name);
        if (json_array_append_new(list, json_string(name))) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *quantization_json(const struct sq_model_dir *dir, const struct sq_recipe *r)
{
    json_t *weights = args_json(r->per_tensor ? "tensor" : "channel", false, "minmax");
    json_t *inputs =
        r->dynamic ? args_json("token", true, NULL) : args_json("tensor", false, "minmax");
    /* the 'o' format takes the references over, also on failure */
    return json_pack("{s:s, s:s, s:s, s:{s:{s:[s], s:o, s:o, s:n}}, s:o, s:n}", "quant_method",
                     "compressed-tensors", "format", "int-quantized", "quantization_status",
                     "compressed", "config_groups", "group_0", "targets", "Linear", "weights",
                     weights, "input_activations", inputs, "output_activations", "ignore",
                     ignore_json(dir), "kv_cache_scheme");
}

static int read_config(const struct sq_model_dir *dir, json_t **ret, struct sq_err *err)
{
    static const struct sq_json_limits limits = {.max_bytes = (size_t)1 << 20,
                                                 .max_depth = 64,
                                                 .max_containers = 65536,
                                                 .max_commas = 262144};
    char label[512];
    size_t n;
    SQ_AUTO_FREE char *text = NULL;
    sq_file_label(label, sizeof label, dir->path, "config.json");
    int rc =
        sq_file_read_all(dir->fd, "config.json", label, "C1", limits.max_bytes, &text, &n, err);
    if (rc)
        return rc;
    struct sq_json_where where = {.file = label, .rule = "C1", .path = "", .err = err};
    return sq_json_load(text, n, &limits, &where, ret);
}

int sq_export_config(const struct sq_model_dir *dir, const struct sq_recipe *r, char **ret,
                     size_t *ret_n, struct sq_err *err)
{
    json_t *config = NULL;
    int rc = read_config(dir, &config, err);
    if (rc)
        return rc;
    char *dump = NULL;
    if (json_object_set_new(config, "quantization_config", quantization_json(dir, r)) == 0)
        dump = json_dumps(config, JSON_INDENT(2) | JSON_ENSURE_ASCII);
    json_decref(config);
    size_t n = dump ? strlen(dump) : 0;
    char *copy = dump ? sq_malloc(n + 2) : NULL;
    if (copy) {
        memcpy(copy, dump, n);
        memcpy(copy + n, "\n", 2);
    }
    free(dump); /* jansson's own */
    if (!copy)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for config.json");
    *ret = copy;
    *ret_n = n + 1;
    return 0;
}
