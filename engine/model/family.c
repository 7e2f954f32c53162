#include "engine/model/family.h"

#include <stdio.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/model/families.h"
#include "engine/model/source.h"

static const struct sq_family *const families[] = {&sq_family_llama, &sq_family_opt, NULL};

const struct sq_family *const *sq_families(void)
{
    return families;
}

const struct sq_family *sq_family_find(const char *model_type)
{
    for (int i = 0; families[i]; i++)
        if (strcmp(families[i]->model_type, model_type) == 0)
            return families[i];
    return NULL;
}

/* The head stands beside the decoder, so no prefix applies to it. */
static const char *prefix_of(const char *prefix, enum sq_role role)
{
    return role == SQ_R_HEAD ? "" : prefix;
}

void sq_family_name(const struct sq_family *f, const char *prefix, enum sq_role role, int layer,
                    const char *suffix, char *buf, size_t n_buf)
{
    const char *path = f->names[role];
    SQ_ASSERT(path);
    const char *number = strstr(path, "%d");
    int n;
    if (number)
        n = snprintf(buf, n_buf, "%s%.*s%d%s%s", prefix_of(prefix, role), (int)(number - path),
                     path, layer, number + 2, suffix);
    else
        n = snprintf(buf, n_buf, "%s%s%s", prefix_of(prefix, role), path, suffix);
    SQ_ASSERT(n >= 0 && (size_t)n < n_buf);
}

static const char *skip(const char *s, const char *head, size_t n)
{
    return s && strncmp(s, head, n) == 0 ? s + n : NULL;
}

/* A decimal layer number as sq_family_name writes it: no sign, no leading zero, at most 6 digits. */
static const char *skip_number(const char *s, int *ret)
{
    int v = 0, n = 0;
    while (s && s[n] >= '0' && s[n] <= '9' && n < 7)
        v = v * 10 + (s[n++] - '0');
    if (!n || n > 6 || (n > 1 && s[0] == '0'))
        return NULL;
    *ret = v;
    return s + n;
}

/* The rest of name behind the role's module path, NULL if it is another one. */
static const char *match(const char *path, const char *name, int *ret_layer)
{
    const char *number = strstr(path, "%d");
    *ret_layer = 0;
    if (number) {
        name = skip_number(skip(name, path, (size_t)(number - path)), ret_layer);
        path = number + 2;
    }
    name = skip(name, path, strlen(path));
    return name && *name == '.' ? name : NULL;
}

bool sq_family_parse(const struct sq_family *f, const char *prefix, const char *name,
                     enum sq_role *ret_role, int *ret_layer, const char **ret_suffix)
{
    for (int role = 0; role < SQ_N_ROLES; role++) {
        if (!f->names[role])
            continue;
        const char *head = prefix_of(prefix, (enum sq_role)role);
        int layer;
        const char *rest = skip(name, head, strlen(head));
        rest = rest ? match(f->names[role], rest, &layer) : NULL;
        if (!rest)
            continue;
        *ret_role = (enum sq_role)role;
        *ret_layer = layer;
        *ret_suffix = rest;
        return true;
    }
    return false;
}

const char *sq_family_prefix(const struct sq_family *f, struct sq_source *src)
{
    char name[SQ_NAME_BYTES];
    struct sq_tensor_info t;
    for (int i = 0; f->prefixes[i]; i++) {
        sq_family_name(f, f->prefixes[i], SQ_R_EMBED, 0, ".weight", name, sizeof name);
        if (src->ops->find(src, name, &t))
            return f->prefixes[i];
    }
    return NULL;
}
