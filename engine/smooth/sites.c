#include "engine/smooth/sites.h"

#include "engine/base/check.h"

const enum sq_role sq_linear_roles[SQ_N_LINEARS] = {SQ_R_Q,    SQ_R_K,  SQ_R_V,   SQ_R_O,
                                                    SQ_R_GATE, SQ_R_UP, SQ_R_DOWN};

bool sq_has_linear(const struct sq_family *f, int i_linear)
{
    return f->names[sq_linear_roles[i_linear]] != NULL;
}

size_t sq_role_n_in(const struct sq_config *c, enum sq_role r)
{
    switch (r) {
    case SQ_R_O:
        return (size_t)c->n_heads * (size_t)c->head_dim;
    case SQ_R_DOWN:
        return (size_t)c->ffn;
    default:
        return (size_t)c->hidden;
    }
}

size_t sq_role_n_out(const struct sq_config *c, enum sq_role r)
{
    switch (r) {
    case SQ_R_Q:
        return (size_t)c->n_heads * (size_t)c->head_dim;
    case SQ_R_K:
    case SQ_R_V:
        return (size_t)c->n_kv_heads * (size_t)c->head_dim;
    case SQ_R_GATE:
    case SQ_R_UP:
        return (size_t)c->ffn;
    default:
        return (size_t)c->hidden;
    }
}

enum sq_site sq_role_site(enum sq_role r)
{
    switch (r) {
    case SQ_R_Q:
    case SQ_R_K:
    case SQ_R_V:
        return SQ_SITE_QKV_IN;
    case SQ_R_O:
        return SQ_SITE_O_IN;
    case SQ_R_GATE:
    case SQ_R_UP:
        return SQ_SITE_UP_IN;
    default:
        SQ_ASSERT(r == SQ_R_DOWN);
        return SQ_SITE_DOWN_IN;
    }
}

size_t sq_site_dim(const struct sq_config *c, enum sq_site s)
{
    switch (s) {
    case SQ_SITE_O_IN:
        return sq_role_n_in(c, SQ_R_O);
    case SQ_SITE_DOWN_IN:
        return sq_role_n_in(c, SQ_R_DOWN);
    case SQ_SITE_QKV_OUT:
        return sq_role_n_out(c, SQ_R_Q) + 2 * sq_role_n_out(c, SQ_R_K);
    default:
        return (size_t)c->hidden;
    }
}
