#include "engine/model/rope_config.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_THETA 10000.0

static int required(int r, const struct sq_json_where *w, const char *key)
{
    if (r == 1)
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: no key '%s%s'", w->file, w->rule, w->path,
                       key);
    return r;
}

static int read_theta(const json_t *o, const struct sq_json_where *w, double *ret)
{
    int r = sq_json_real(o, w, "rope_theta", 1, 1e12, ret);
    return r < 0 ? r : 0;
}

static int read_factor(const json_t *o, const struct sq_json_where *w, struct sq_rope_config *c)
{
    return required(sq_json_real(o, w, "factor", 1, 1e6, &c->factor), w, "factor");
}

static int read_llama3(const json_t *o, const struct sq_json_where *w, struct sq_rope_config *c)
{
    static const char original[] = "original_max_position_embeddings";
    int64_t n = 0;
    int r = read_factor(o, w, c);
    if (!r)
        r = required(sq_json_real(o, w, "low_freq_factor", 1e-3, 1e6, &c->low_freq), w,
                     "low_freq_factor");
    if (!r)
        r = required(sq_json_real(o, w, "high_freq_factor", 1e-3, 1e6, &c->high_freq), w,
                     "high_freq_factor");
    if (!r)
        r = required(sq_json_int(o, w, original, 1, 16777216, &n), w, original);
    if (!r && (float)c->high_freq <= (float)c->low_freq) /* as they are used */
        r = sq_fail(w->err, SQ_E_FORMAT,
                    "%s: %s: key '%shigh_freq_factor': expected more than low_freq_factor %g, "
                    "found %g",
                    w->file, w->rule, w->path, c->low_freq, c->high_freq);
    c->original = (int)n;
    return r;
}

static int read_kind(const json_t *o, const struct sq_json_where *w, struct sq_rope_config *c)
{
    const char *kind = "default";
    int r = sq_json_str(o, w, "type", &kind);
    if (r >= 0)
        r = sq_json_str(o, w, "rope_type", &kind);
    if (r < 0)
        return r;
    if (strcmp(kind, "default") == 0)
        return 0;
    if (strcmp(kind, "linear") == 0) {
        c->kind = SQ_ROPE_LINEAR;
        return read_factor(o, w, c);
    }
    if (strcmp(kind, "llama3") == 0) {
        c->kind = SQ_ROPE_LLAMA3;
        return read_llama3(o, w, c);
    }
    return sq_fail(w->err, SQ_E_NOTSUP,
                   "%s: %s: key '%srope_type': '%.32s' is not supported, only default, linear, "
                   "llama3",
                   w->file, w->rule, w->path, kind);
}

/* What both places have. */
static int read_object(const json_t *o, const struct sq_json_where *w, struct sq_rope_config *c)
{
    double partial = 1;
    int r = read_theta(o, w, &c->theta);
    if (!r)
        r = sq_json_real(o, w, "partial_rotary_factor", 0, 1, &partial);
    if (r < 0)
        return r;
    if (partial < 1)
        return sq_fail(w->err, SQ_E_NOTSUP,
                       "%s: %s: key '%spartial_rotary_factor': %g is not supported, only 1",
                       w->file, w->rule, w->path, partial);
    return 0;
}

int sq_rope_config_parse(const json_t *o, const struct sq_json_where *w, struct sq_config *c)
{
    c->rope = (struct sq_rope_config){.theta = DEFAULT_THETA, .factor = 1};
    int r = read_object(o, w, &c->rope);
    if (r)
        return r;
    const char *key = "rope_scaling";
    const json_t *s = json_object_get(o, key);
    if (!s || json_is_null(s))
        s = json_object_get(o, key = "rope_parameters");
    if (!s || json_is_null(s))
        return 0;
    if (!json_is_object(s))
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%s': expected an object, found %s",
                       w->file, w->rule, key, sq_json_type_text(s));
    char path[32];
    snprintf(path, sizeof path, "%s.", key);
    struct sq_json_where in = *w;
    in.path = path;
    r = read_object(s, &in, &c->rope);
    return r ? r : read_kind(s, &in, &c->rope);
}
