/* quantization_config.ignore: which linears stay in float. */
#include <string.h>

#include "engine/base/mem.h"
#include "engine/model/quant_config.h"

#define MAX_IGNORE 256

/* Literal names, and of regular expressions those that are a plain text at the beginning, at the end, or anywhere. */
struct pattern {
    char text[128];
    bool open_start, open_end;
};

static bool parse_pattern(const char *s, struct pattern *p)
{
    *p = (struct pattern){0};
    bool regex = strncmp(s, "re:", 3) == 0;
    if (regex) {
        s += 3;
        s += *s == '^';
        p->open_start = strncmp(s, ".*", 2) == 0;
        s += p->open_start ? 2 : 0;
        p->open_end = true; /* the library matches from the start, and does not ask for the end */
    }
    size_t n = 0;
    for (; *s; s++) {
        if (regex && strcmp(s, ".*") == 0)
            break;
        if (regex && strcmp(s, "$") == 0) {
            p->open_end = false;
            break;
        }
        if (regex && s[0] == '\\' && s[1] == '.')
            s++;
        else if (regex && strchr("\\*+?[](){}|^$", *s))
            return false;
        if (n == sizeof p->text - 1)
            return !regex; /* no module has a literal name so long */
        p->text[n++] = *s;
    }
    return true;
}

static bool matches(const struct pattern *p, const char *name)
{
    size_t n = strlen(name), k = strlen(p->text);
    if (k > n)
        return false;
    if (!p->open_start)
        return strncmp(name, p->text, k) == 0 && (p->open_end || k == n);
    return p->open_end ? strstr(name, p->text) != NULL : strcmp(name + n - k, p->text) == 0;
}

static bool ignored(const struct pattern *p, size_t n, const struct sq_config *c, enum sq_role role,
                    int layer, char *name, size_t n_name)
{
    for (int i = 0; c->family->prefixes[i]; i++) {
        sq_family_name(c->family, c->family->prefixes[i], role, layer, "", name, n_name);
        for (size_t k = 0; k < n; k++)
            if (matches(&p[k], name))
                return true;
    }
    return false;
}

/* The head may be left out of the quantisation, and so may project_in / project_out, which run in float anyway. The linears of a
 * layer may not: the engine runs all layers alike. */
static int apply_ignore(const struct pattern *p, size_t n, const struct sq_json_where *w,
                        struct sq_config *c)
{
    char name[160];
    c->head_quantized = !ignored(p, n, c, SQ_R_HEAD, 0, name, sizeof name);
    for (int role = 0; role < SQ_N_LAYER_ROLES; role++) {
        if (role == SQ_R_NORM1 || role == SQ_R_NORM2 || !c->family->names[role])
            continue;
        for (int layer = 0; layer < c->n_layers; layer++)
            if (ignored(p, n, c, (enum sq_role)role, layer, name, sizeof name))
                return SQ_QUANT_REFUSE(
                    w, "ignore: '%s' in float between int8 layers is not supported", name);
    }
    return 0;
}

int sq_quant_ignore_parse(const json_t *q, const struct sq_json_where *w, struct sq_config *c)
{
    const json_t *list = json_object_get(q, "ignore");
    size_t n = json_array_size(list);
    if (list && !json_is_null(list) && !json_is_array(list))
        return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%signore': expected a list", w->file,
                       w->rule, w->path);
    if (n > MAX_IGNORE)
        return sq_fail(w->err, SQ_E_LIMIT, "%s: %s: key '%signore': %zu entries, the limit is %d",
                       w->file, w->rule, w->path, n, MAX_IGNORE);
    SQ_AUTO_FREE struct pattern *p = sq_new_array(struct pattern, n);
    if (!p)
        return sq_fail(w->err, SQ_E_NOMEM, "%s: out of memory", w->file);
    for (size_t i = 0; i < n; i++) {
        const char *s = json_string_value(json_array_get(list, i));
        if (!s)
            return sq_fail(w->err, SQ_E_FORMAT, "%s: %s: key '%signore': expected strings", w->file,
                           w->rule, w->path);
        if (!parse_pattern(s, &p[i]))
            return SQ_QUANT_REFUSE(w,
                                   "ignore: the pattern '%.64s' is not supported, only names and "
                                   "'re:.*ending'",
                                   s);
    }
    return apply_ignore(p, n, w, c);
}
