#include "engine/run/kvpool.h"

#include "engine/base/check.h"
#include "engine/base/mem.h"

struct sq_kvpool {
    int n_blocks, n_free;
    int32_t *free;  /* [n_blocks] a stack; [0, n_free) are free */
    uint32_t *refs; /* [n_blocks] 0 = free */
};

struct sq_kvpool *sq_kvpool_new(int n_blocks)
{
    SQ_ASSERT(n_blocks > 0);
    struct sq_kvpool *p = sq_new(struct sq_kvpool);
    if (!p)
        return NULL;
    p->n_blocks = p->n_free = n_blocks;
    p->free = sq_new_array(int32_t, (size_t)n_blocks);
    p->refs = sq_new_array(uint32_t, (size_t)n_blocks);
    if (!p->free || !p->refs)
        return sq_kvpool_free(p);
    for (int i = 0; i < n_blocks; i++)
        p->free[i] = n_blocks - 1 - i;
    return p;
}

struct sq_kvpool *sq_kvpool_free(struct sq_kvpool *p)
{
    if (!p)
        return NULL;
    SQ_ASSERT(p->n_free == p->n_blocks);
    sq_free(p->free);
    sq_free(p->refs);
    sq_free(p);
    return NULL;
}

int sq_kvpool_size(const struct sq_kvpool *p)
{
    return p->n_blocks;
}

int sq_kvpool_n_free(const struct sq_kvpool *p)
{
    return p->n_free;
}

int32_t sq_kvpool_take(struct sq_kvpool *p)
{
    if (p->n_free == 0)
        return -1;
    int32_t block = p->free[--p->n_free];
    SQ_ASSERT(p->refs[block] == 0);
    p->refs[block] = 1;
    return block;
}

static void check_held(const struct sq_kvpool *p, int32_t block)
{
    SQ_ASSERT(block >= 0 && block < p->n_blocks && p->refs[block] > 0);
}

void sq_kvpool_ref(struct sq_kvpool *p, int32_t block)
{
    check_held(p, block);
    p->refs[block]++;
    SQ_ASSERT(p->refs[block] != 0);
}

void sq_kvpool_put(struct sq_kvpool *p, int32_t block)
{
    check_held(p, block);
    if (--p->refs[block] == 0)
        p->free[p->n_free++] = block;
}
