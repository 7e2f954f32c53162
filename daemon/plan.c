#include "daemon/plan.h"

#include <stdio.h>
#include <string.h>

#include "daemon/cmd.h"
#include "engine/base/check.h"
#include "engine/base/num.h"
#include "engine/quant.h"

#define SPARE 64 /* a 64th of the device is left to recorded steps and to the allocator */
#define PAGE_BYTES ((size_t)2 << 20) /* of the device, for allocations as large as the cache */
#define FEWEST_ROWS 16               /* steps are not proposed smaller than this */

void sq_loaded_memory(const struct sq_loaded *l, struct sq_memory *ret)
{
    struct sq_engine_stats st;
    struct sq_device_info d;
    sq_engine_stats(l->engine, &st);
    struct sq_backend *be = l->backend.be;
    be->ops->info(be, &d);
    struct sq_memory m = {.kv_blocks = st.kv_blocks, .max_context = st.max_context};
    if (l->backend.gpu) {
        struct sq_gpu_budget b;
        sq_gpu_module(l->backend.gpu)->budget(be, &b);
        m.weights = b.weight_bytes;
        m.kv = b.kv_bytes;
        m.activations = b.activation_bytes;
        m.workspace = b.workspace_bytes;
        m.held = b.held_bytes;
        m.n_allocs = b.n_allocs;
    } else {
        m.weights = l->model_bytes;
        m.kv = (size_t)st.kv_bytes;
        m.activations = d.mem_used_bytes - m.weights - m.kv;
    }
    m.total = m.weights + m.kv + m.activations + m.workspace;
    m.held = SQ_MAX(m.held, m.total);
    *ret = m;
}

static int plan(const struct sq_settings *s, struct sq_memory *ret,
                struct sq_chosen_backend *ret_on, struct sq_err *err)
{
    struct sq_loaded l;
    int rc = sq_load_plan(s, &l, err);
    if (rc)
        return rc;
    sq_loaded_memory(&l, ret);
    if (ret_on)
        *ret_on = l.backend; /* its names; the objects are gone */
    sq_loaded_done(&l);
    return 0;
}

/* --- does it fit --- */

static size_t block_bytes(const struct sq_memory *m)
{
    return m->kv / (size_t)m->kv_blocks;
}

/* What the device gives for the cache. */
static size_t pages(size_t kv_bytes)
{
    return sq_round_up(kv_bytes, PAGE_BYTES);
}

/* A cache for one sequence of the longest context: less would let a request wait for ever. */
static size_t least_kv(const struct sq_memory *m)
{
    return pages(sq_div_up((size_t)m->max_context, SQ_KV_BLOCK) * block_bytes(m));
}

static double mib(size_t bytes)
{
    return (double)bytes / 1048576.0;
}

/* What all but the cache takes. */
static size_t rest_of(const struct sq_memory *m)
{
    return m->held - SQ_MIN(pages(m->kv), m->held);
}

/* What is left for the cache; less than nothing is nothing. */
static size_t left_for_kv(const struct sq_memory *m, size_t room)
{
    return (room - SQ_MIN(rest_of(m), room)) / PAGE_BYTES * PAGE_BYTES;
}

/* Everything but the cache fits, but not a cache of one longest sequence. */
static int refuse_context(const struct sq_memory *m, size_t left, struct sq_err *err)
{
    return sq_fail(err, SQ_E_LIMIT,
                   "GPU memory: beside weights (%.1f MiB) and what steps need (%.1f MiB), %.1f MiB "
                   "are left for the KV cache; one sequence of max_context %d needs %.1f MiB: set "
                   "max_context to at most %zu",
                   mib(m->weights), mib(m->activations + m->workspace), mib(left), m->max_context,
                   mib(least_kv(m)), left / block_bytes(m) * SQ_KV_BLOCK);
}

/* Smaller steps need less for activations: the largest that fit, found by halving. */
static int refuse_steps(const struct sq_settings *s, const struct sq_memory *m, size_t room,
                        struct sq_err *err)
{
    struct sq_settings t = *s;
    while (t.max_step_tokens > FEWEST_ROWS) {
        struct sq_memory small;
        t.max_step_tokens = SQ_MAX(t.max_step_tokens / 2, FEWEST_ROWS);
        t.max_sequences = SQ_MIN(t.max_sequences, t.max_step_tokens);
        int rc = plan(&t, &small, NULL, err);
        if (rc)
            return rc;
        if (left_for_kv(&small, room) >= least_kv(&small))
            return sq_fail(err, SQ_E_LIMIT,
                           "GPU memory: weights (%.1f MiB), what steps of %lld tokens need (%.1f "
                           "MiB) and a KV cache for one sequence (%.1f MiB) exceed the %.1f MiB "
                           "that are free: set max_step_tokens to at most %lld and max_sequences "
                           "to at most %lld",
                           mib(m->weights), (long long)s->max_step_tokens,
                           mib(m->activations + m->workspace), mib(least_kv(m)), mib(room),
                           (long long)t.max_step_tokens, (long long)t.max_sequences);
    }
    return sq_fail(err, SQ_E_LIMIT,
                   "GPU memory: the model does not fit: %.1f MiB are free, weights take %.1f MiB, "
                   "the smallest steps and KV cache come on top; no setting makes it fit",
                   mib(room), mib(m->weights));
}

static int refuse(const struct sq_settings *s, const struct sq_memory *m, size_t room,
                  struct sq_err *err)
{
    const size_t left = left_for_kv(m, room);
    if (left >= least_kv(m))
        return sq_fail(err, SQ_E_LIMIT,
                       "GPU memory: a KV cache of %zu bytes does not fit beside weights (%.1f MiB) "
                       "and what steps need (%.1f MiB) into the %.1f MiB that are free: set "
                       "kv_cache to at most %zu",
                       m->kv, mib(m->weights), mib(m->activations + m->workspace), mib(room), left);
    if (left >= block_bytes(m))
        return refuse_context(m, left, err);
    return refuse_steps(s, m, room, err);
}

int sq_plan_kv(const struct sq_settings *s, const struct sq_chosen_backend *on,
               uint64_t *ret_kv_bytes, struct sq_err *err)
{
    struct sq_memory m;
    struct sq_gpu_budget taken;
    struct sq_device_info d;
    int rc = plan(s, &m, NULL, err);
    if (rc)
        return rc;
    on->be->ops->info(on->be, &d);
    sq_gpu_module(on->gpu)->budget(on->be, &taken);
    /* the plan counts what the open backend has taken already */
    const size_t had = d.mem_free_bytes + taken.held_bytes;
    const size_t room = had - had / SPARE, left = left_for_kv(&m, room);
    if (m.held <= room)
        *ret_kv_bytes = m.kv;
    else if (s->kv_cache == 0 && left >= least_kv(&m))
        *ret_kv_bytes = left;
    else
        return refuse(s, &m, room, err);
    return 0;
}

/* --- the command --- */

static void print_json(const struct sq_memory *m, const char *backend)
{
    printf("{\"backend\": \"%s\", \"weights_bytes\": %zu, \"kv_bytes\": %zu, "
           "\"activation_bytes\": %zu, \"workspace_bytes\": %zu, \"total_bytes\": %zu, "
           "\"held_bytes\": %zu, \"allocations\": %zu, \"kv_blocks\": %d, \"max_context\": %d}\n",
           backend, m->weights, m->kv, m->activations, m->workspace, m->total, m->held, m->n_allocs,
           m->kv_blocks, m->max_context);
}

static void print_table(const struct sq_memory *m, const char *backend)
{
    const struct {
        const char *name;
        size_t bytes;
    } rows[] = {{"weights", m->weights},
                {"KV cache", m->kv},
                {"activations", m->activations},
                {"workspace", m->workspace},
                {"total", m->total}};
    printf("Memory that `sqd serve` would take on backend %s:\n\n", backend);
    for (size_t i = 0; i < SQ_ARRAY_LEN(rows); i++)
        printf("  %-12s %16zu bytes %12.1f MiB\n", rows[i].name, rows[i].bytes, mib(rows[i].bytes));
    printf("\nKV cache: %d blocks of %d tokens; the longest context is %d tokens.\n", m->kv_blocks,
           SQ_KV_BLOCK, m->max_context);
    if (m->n_allocs)
        printf("%zu allocations, for which the device gives %.1f MiB. Where the free memory is "
               "less, a cache of no configured size "
               "takes what is left.\n",
               m->n_allocs, mib(m->held));
}

int sq_plan_print(const struct sq_settings *s, bool json)
{
    struct sq_memory m;
    struct sq_chosen_backend on;
    struct sq_err err = {0};
    if (plan(s, &m, &on, &err))
        return sq_cmd_fail("serve", &err);
    (json ? print_json : print_table)(&m, on.device.name);
    return sq_cmd_end("serve");
}
