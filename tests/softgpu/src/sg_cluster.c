/* Clusters: their blocks, their barrier, and addresses in another block's shared memory.
 *
 * A thread that has arrived at the barrier stands in its warp's cluster_arrived until it has waited, and in
 * cluster_done as well from when all have arrived. Threads that have ended are not waited for. */
#include "sg_exec_op.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- their blocks ------------------------------------------------------------------------------------------------ */

struct sg_cluster *sg_cluster_new(struct sg_run *r)
{
    struct sg_cluster *c = calloc(1, sizeof(*c));
    c->run = r;
    c->n = r->n_cluster;
    for (unsigned i = 0; i < c->n; i++) {
        struct sg_block *b = c->block[i] = sg_block_new(r);
        b->cluster = c;
        b->rank = i;
        for (unsigned k = 0; k < b->n_warps; k++)
            b->warps[k].clock = i * b->n_warps + k;
    }
    if (c->block[0]->shadow)
        sg_shadow_cluster_new(c);
    return c;
}

void sg_cluster_free(struct sg_cluster *c)
{
    for (unsigned i = 0; i < c->n; i++)
        sg_block_free(c->block[i]);
    free(c->clocks);
    free(c);
}

void sg_cluster_start(struct sg_cluster *c, uint64_t index)
{
    const unsigned *grid = c->run->launch->grid, *size = c->run->cluster;
    const uint64_t nx = grid[0] / size[0], ny = grid[1] / size[1];
    const uint64_t first[3] = {index % nx * size[0], index / nx % ny * size[1], index / nx / ny * size[2]};
    c->n_live = c->n_arrived = 0;
    if (c->clocks)
        sg_shadow_cluster_start(c);
    for (unsigned i = 0; i < c->n; i++) {
        struct sg_block *b = c->block[i];
        const uint64_t x = first[0] + i % size[0], y = first[1] + i / size[0] % size[1];
        const uint64_t z = first[2] + i / size[0] / size[1];
        sg_block_start(b, (z * grid[1] + y) * grid[0] + x);
        c->n_live += b->n_threads;
        for (unsigned k = 0; k < b->n_warps; k++)
            b->warps[k].cluster_arrived = b->warps[k].cluster_done = 0;
    }
}

static uint64_t cluster_of(const struct sg_run *r, uint64_t block)
{
    const unsigned *grid = r->launch->grid, *size = r->cluster;
    const uint64_t x = block % grid[0] / size[0], y = block / grid[0] % grid[1] / size[1];
    const uint64_t z = block / grid[0] / grid[1] / size[2];
    return (z * grid[1] + y) * grid[0] + x;
}

bool sg_same_cluster(const struct sg_run *r, uint64_t block, uint64_t other)
{
    return cluster_of(r, block) == cluster_of(r, other);
}

/* ---- the barrier ------------------------------------------------------------------------------------------------- */

enum { ALIGNED = 1, RELAXED = 2 }; /* in->aux */

/* These lanes have waited. */
static void pass(struct sg_warp *w, uint32_t lanes)
{
    w->cluster_arrived &= ~lanes;
    w->cluster_done &= ~lanes;
    w->block->did_cluster_acquire = true;
    if (w->block->shadow)
        sg_shadow_cluster_wait(w);
}

static void release_warp(struct sg_warp *w)
{
    w->cluster_done = w->cluster_arrived;
    for (int g = 0; g < w->n_groups; g++) {
        struct sg_group *group = &w->groups[g];
        if (group->state != SG_AT_BARRIER || group->barrier != SG_CLUSTER_BARRIER)
            continue;
        pass(w, group->mask);
        group->state = SG_READY;
        group->pc++;
    }
}

static void release_if_complete(struct sg_cluster *c)
{
    if (!c->n_arrived || c->n_arrived < c->n_live)
        return;
    c->n_arrived = 0;
    c->run->n.n_barriers += c->n;
    if (c->clocks)
        sg_shadow_cluster_complete(c);
    for (unsigned i = 0; i < c->n; i++)
        for (unsigned k = 0; k < c->block[i]->n_warps; k++)
            release_warp(&c->block[i]->warps[k]);
}

enum sg_step sg_cluster_exit(struct sg_warp *w, const struct sg_instr *in)
{
    struct sg_cluster *c = w->block->cluster;
    c->n_live -= (unsigned)__builtin_popcount(w->exec);
    c->n_arrived -= (unsigned)__builtin_popcount(w->exec & w->cluster_arrived & ~w->cluster_done);
    w->cluster_arrived &= ~w->exec;
    if (c->n > 1 && c->clocks && !w->block->n_live && sg_shadow_exit(w, in) == SG_ERROR)
        return SG_ERROR;
    release_if_complete(c);
    return SG_NEXT;
}

/* An aligned one is for all lanes of the warp at once. */
static enum sg_step check_alignment(struct sg_warp *w, const struct sg_instr *in)
{
    if (!(in->aux & ALIGNED) || w->exec == w->live)
        return SG_NEXT;
    if (w->exec != w->active)
        return sg_fail(w, in, -1, "barrier.cluster in divergent code: only lanes %08x of this warp execute it",
                       w->exec);
    for (int i = 0; i < w->n_groups; i++) {
        const struct sg_instr *other = &w->code->instr[w->groups[i].pc];
        if (w->groups[i].state == SG_AT_SYNC && (other->fn == sg_x_cluster_arrive || other->fn == sg_x_cluster_wait))
            return sg_fail(w, in, -1, "barrier.cluster in divergent code: lanes %08x of this warp are at line %d",
                           w->groups[i].mask, other->line);
    }
    return SG_WAIT;
}

SG_FN(sg_x_cluster_arrive)
{
    struct sg_cluster *c = w->block->cluster;
    const enum sg_step step = check_alignment(w, in);
    const uint32_t again = w->exec & w->cluster_arrived;
    if (step != SG_NEXT)
        return step;
    if (again)
        return sg_fail(w, in, __builtin_ctz(again), "the cluster's barrier: arrives again, but has not waited since it "
                       "arrived");
    w->cluster_arrived |= w->exec;
    c->n_arrived += (unsigned)__builtin_popcount(w->exec);
    if (w->block->shadow)
        sg_shadow_cluster_arrive(w, in->aux & RELAXED);
    release_if_complete(c);
    return SG_NEXT;
}

SG_FN(sg_x_cluster_wait)
{
    const enum sg_step step = check_alignment(w, in);
    const uint32_t never = w->exec & ~w->cluster_arrived, done = w->exec & w->cluster_done, waits = w->exec & ~done;
    if (step != SG_NEXT)
        return step;
    if (never)
        return sg_fail(w, in, __builtin_ctz(never), "the cluster's barrier: waits, but has not arrived");
    if (done)
        pass(w, done);
    if (!waits)
        return SG_NEXT;
    sg_add_group(w, w->active & ~waits, w->pc + 1, SG_READY);
    sg_add_group(w, waits, w->pc, SG_AT_BARRIER);
    w->groups[w->n_groups - 1].barrier = SG_CLUSTER_BARRIER;
    w->active = 0;
    return SG_PICK;
}

bool sg_decode_cluster(struct sg_stmt *s)
{
    struct sg_instr *in = &s->in;
    if (sg_take_mod(s, "arrive")) {
        in->fn = sg_x_cluster_arrive;
        in->aux = sg_take_mod(s, "relaxed") ? RELAXED : 0;
        sg_take_mod(s, "release");
    } else if (sg_take_mod(s, "wait")) {
        in->fn = sg_x_cluster_wait;
        sg_take_mod(s, "acquire");
    }
    if (sg_take_mod(s, "aligned"))
        in->aux |= ALIGNED;
    return in->fn;
}

/* ---- shared memory of its blocks --------------------------------------------------------------------------------- */

struct sg_block *sg_shared_owner(const struct sg_block *b, uint64_t address)
{
    const struct sg_cluster *c = b->cluster;
    for (unsigned i = 0; i < c->n; i++)
        if (sg_in_shared(c->block[i], address))
            return c->block[i];
    return NULL;
}

uint8_t *sg_peer_at(struct sg_warp *w, const struct sg_instr *in, int lane, uint64_t rank, uint64_t offset, uint64_t n)
{
    const struct sg_cluster *c = w->block->cluster;
    if (rank >= c->n) {
        sg_fail(w, in, lane, "shared access in block %llu of a cluster of %u blocks", (unsigned long long)rank, c->n);
        return NULL;
    }
    const struct sg_block *b = c->block[rank];
    if (!b->n_live)
        sg_fail(w, in, lane, "access to shared memory of block %u of the cluster, (%u,%u,%u), which has exited",
                b->rank, b->ctaid[0], b->ctaid[1], b->ctaid[2]);
    else if (offset < b->shared_first)
        sg_fail(w, in, lane, "shared access of %llu bytes at %llu bytes below the start of shared memory of block %u of "
                "the cluster", (unsigned long long)n, (unsigned long long)(SG_SHARED_FIRST - offset), b->rank);
    else if (offset > b->shared_end || n > b->shared_end - offset)
        sg_fail(w, in, lane, "shared access of %llu bytes at offset %llu in block %u of the cluster, but the block has "
                "%u bytes", (unsigned long long)n, (unsigned long long)(offset - SG_SHARED_FIRST), b->rank,
                b->shared_end - SG_SHARED_FIRST);
    else
        return b->shared + offset;
    return NULL;
}
