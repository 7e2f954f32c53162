#include "engine/run/registry.h"

#include "engine/base/check.h"
#include "engine/base/mem.h"

int sq_registry_init(struct sq_registry *r, size_t n_expected, struct sq_err *err)
{
    size_t n = 16;
    while (n < n_expected && n < 65536)
        n *= 2;
    r->n_buckets = n;
    r->buckets = sq_new_array(struct sq_job *, n);
    return r->buckets ? 0 : sq_fail(err, SQ_E_NOMEM, "no memory for %zu requests", n_expected);
}

void sq_registry_done(struct sq_registry *r)
{
    for (size_t i = 0; r->buckets && i < r->n_buckets; i++)
        SQ_ASSERT(!r->buckets[i]);
    sq_free(r->buckets);
    *r = (struct sq_registry){0};
}

/* Ids count upwards or are random; either way the multiplier spreads them over the high bits. */
static struct sq_job **bucket(const struct sq_registry *r, sq_req_id id)
{
    return &r->buckets[(id * 0x9e3779b97f4a7c15u >> 40) & (r->n_buckets - 1)];
}

struct sq_job *sq_registry_find(const struct sq_registry *r, sq_req_id id)
{
    struct sq_job *j = *bucket(r, id);
    while (j && j->id != id)
        j = j->hash_next;
    return j;
}

void sq_registry_put(struct sq_registry *r, struct sq_job *j)
{
    struct sq_job **b = bucket(r, j->id);
    SQ_ASSERT(!sq_registry_find(r, j->id));
    j->hash_next = *b;
    *b = j;
}

void sq_registry_remove(struct sq_registry *r, struct sq_job *j)
{
    struct sq_job **at = bucket(r, j->id);
    while (*at && *at != j)
        at = &(*at)->hash_next;
    SQ_ASSERT(*at);
    *at = j->hash_next;
    j->hash_next = NULL;
}
