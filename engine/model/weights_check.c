/* Rule C4: the source holds what the configuration implies, all of it and nothing else. Missing and surplus names come in one message. */
#include <stdio.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/num.h"
#include "engine/model/load.h"
#include "engine/quant.h"

#define SHOWN 3

/* Names that stand in the message, and how many there are in all. */
struct names {
    char text[200];
    size_t n;
};

static void note(struct names *l, const char *name)
{
    size_t at = strlen(l->text);
    if (l->n++ < SHOWN)
        snprintf(l->text + at, sizeof l->text - at, "%s'%.60s'", at ? ", " : "", name);
}

static int check_one(struct sq_loader *ld, enum sq_role role, int layer, enum sq_part part,
                     struct names *missing)
{
    struct sq_expected e = sq_expect(ld->c, role, part);
    struct sq_tensor_info t;
    char name[SQ_NAME_BYTES];
    if (e.need == SQ_NEED_NOT)
        return 0;
    if (!sq_load_find(ld, role, layer, part, name, &t)) {
        if (e.need == SQ_NEED_MUST)
            note(missing, name);
        return 0;
    }
    if (part == SQ_P_WEIGHT && t.dtype == SQ_I8 && e.cols > SQ_K_MAX)
        return sq_fail(ld->err, SQ_E_NOTSUP,
                       "tensor '%.128s': Q6: %zu inputs, the accumulator holds at most %d", name,
                       e.cols, SQ_K_MAX);
    if (part == SQ_P_WEIGHT && e.cols)
        ld->n_total += t.n_elems;
    return sq_expect_check(&e, name, &t, ld->err);
}

static int check_expected(struct sq_loader *ld, struct names *missing)
{
    for (int role = 0; role < SQ_N_ROLES; role++) {
        int n_layers = role < SQ_N_LAYER_ROLES ? ld->c->n_layers : 1;
        if (!ld->c->family->names[role])
            continue;
        for (int layer = 0; layer < n_layers; layer++)
            for (int part = 0; part < SQ_N_PARTS; part++) {
                int r = check_one(ld, (enum sq_role)role, layer, (enum sq_part)part, missing);
                if (r)
                    return r;
            }
    }
    return 0;
}

/* Scales of a quantised KV cache (kv_cache_scheme) that another engine would use. */
static bool is_kv_scale(const struct sq_config *c, const char *name)
{
    const char *dot = strrchr(name, '.');
    return c->scheme != SQ_SCHEME_FLOAT && dot &&
           (strcmp(dot, ".k_scale") == 0 || strcmp(dot, ".v_scale") == 0);
}

/* Tables of rotations that old writers stored; they follow from the configuration. */
static bool is_rope_table(const struct sq_config *c, const char *name)
{
    static const char end[] = ".rotary_emb.inv_freq";
    size_t n = strlen(name), k = sizeof end - 1;
    return c->family->positions == SQ_POS_ROTARY && n > k && strcmp(name + n - k, end) == 0;
}

static bool wanted(struct sq_loader *ld, const char *name)
{
    enum sq_role role;
    enum sq_part part;
    int layer;
    const char *suffix;
    if (!sq_family_parse(ld->c->family, ld->prefix, name, &role, &layer, &suffix) ||
        !sq_part_find(suffix, &part))
        return is_kv_scale(ld->c, name) || is_rope_table(ld->c, name);
    if (role < SQ_N_LAYER_ROLES && layer >= ld->c->n_layers)
        return false;
    return sq_expect(ld->c, role, part).need != SQ_NEED_NOT;
}

/* A head that is quantised out of the embedding goes over those elements a second time. */
static void count_head(struct sq_loader *ld)
{
    char name[SQ_NAME_BYTES];
    struct sq_tensor_info t;
    if (ld->o->head == SQ_HEAD_INT8 && !sq_load_find(ld, SQ_R_HEAD, 0, SQ_P_WEIGHT, name, &t) &&
        sq_load_find(ld, SQ_R_EMBED, 0, SQ_P_WEIGHT, name, &t))
        ld->n_total += t.n_elems;
}

int sq_load_check(struct sq_loader *ld)
{
    struct names missing = {.n = 0}, surplus = {.n = 0};
    int r = check_expected(ld, &missing);
    if (r)
        return r;
    count_head(ld);
    const char *name;
    if (ld->src->ops->name && !ld->o->allow_surplus)
        for (size_t i = 0; (name = ld->src->ops->name(ld->src, i)); i++)
            if (!wanted(ld, name))
                note(&surplus, name);
    if (!missing.n && !surplus.n)
        return 0;
    return sq_fail(ld->err, SQ_E_FORMAT, "C4: missing tensors: %zu%s%s%s; surplus: %zu%s%s%s",
                   missing.n, missing.n ? " (" : "", missing.text,
                   missing.n > SHOWN ? ", ...)"
                   : missing.n       ? ")"
                                     : "",
                   surplus.n, surplus.n ? " (" : "", surplus.text,
                   surplus.n > SHOWN ? ", ...)"
                   : surplus.n       ? ")"
                                     : "");
}
