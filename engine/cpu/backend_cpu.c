/* The CPU backend: its objects, and the table of its ops (backend_ops.c). */
#include "engine/cpu/backend_cpu.h"

#include <stdio.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/cpu/backend_ops.h"

static struct sq_cpu *cpu_of(struct sq_backend *be)
{
    return (struct sq_cpu *)be;
}

/* --- objects --- */

static int buf_new(struct sq_backend *be, enum sq_buf_kind kind, size_t max_rows, size_t cols,
                   struct sq_buf **ret, struct sq_err *err)
{
    int rc = sq_cpu_buf_new(kind, max_rows, cols, ret, err);
    if (rc == 0)
        cpu_of(be)->used_bytes += (*ret)->bytes;
    return rc;
}

static void buf_free(struct sq_backend *be, struct sq_buf *b)
{
    cpu_of(be)->used_bytes -= b ? b->bytes : 0;
    sq_cpu_buf_free(b);
}

static int linear_new(struct sq_backend *be, const struct sq_linear_desc *d, struct sq_linear **ret,
                      struct sq_err *err)
{
    int rc = sq_cpu_linear_new_in(&cpu_of(be)->arena, d, ret, err);
    if (rc == 0)
        cpu_of(be)->used_bytes += (*ret)->bytes;
    return rc;
}

static int linear_put(struct sq_backend *be, struct sq_linear *l, size_t row0, size_t n_rows,
                      const void *rows, struct sq_err *err)
{
    (void)be;
    return sq_cpu_linear_put(l, row0, n_rows, rows, err);
}

static int linear_finish(struct sq_backend *be, struct sq_linear *l, const struct sq_epilogue *e,
                         struct sq_err *err)
{
    (void)be;
    return sq_cpu_linear_finish(l, e, err);
}

static void linear_free(struct sq_backend *be, struct sq_linear *l)
{
    cpu_of(be)->used_bytes -= l ? l->bytes : 0;
    sq_cpu_linear_free(l);
}

static int norm_new(struct sq_backend *be, const struct sq_norm_desc *d, struct sq_norm **ret,
                    struct sq_err *err)
{
    int rc = sq_cpu_norm_new(d, ret, err);
    if (rc == 0)
        cpu_of(be)->used_bytes += (*ret)->bytes;
    return rc;
}

static void norm_free(struct sq_backend *be, struct sq_norm *n)
{
    cpu_of(be)->used_bytes -= n ? n->bytes : 0;
    sq_cpu_norm_free(n);
}

static int rope_new(struct sq_backend *be, const struct sq_rope_desc *d, struct sq_rope **ret,
                    struct sq_err *err)
{
    int rc = sq_cpu_rope_new(d, ret, err);
    if (rc == 0)
        cpu_of(be)->used_bytes += (*ret)->bytes;
    return rc;
}

static void rope_free(struct sq_backend *be, struct sq_rope *r)
{
    cpu_of(be)->used_bytes -= r ? r->bytes : 0;
    sq_cpu_rope_free(r);
}

/* Grows the threads' scratch to what a cache like d needs. */
static int scratch_grow(struct sq_cpu *c, const struct sq_kv_desc *d, struct sq_err *err)
{
    size_t want = sq_round_up(sq_cpu_attn_scratch(d), 4096), all;
    if (want <= c->scratch_bytes)
        return 0;
    uint8_t *p = sq_mul_size(want, (size_t)c->n_threads, &all) ? sq_cpu_alloc(all) : NULL;
    if (!p)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the attention scratch of %d threads",
                       c->n_threads);
    sq_free(c->scratch);
    c->used_bytes += (want - c->scratch_bytes) * (size_t)c->n_threads;
    c->scratch = p;
    c->scratch_bytes = want;
    return 0;
}

static int kv_new(struct sq_backend *be, const struct sq_kv_desc *d, struct sq_kv **ret,
                  struct sq_err *err)
{
    struct sq_cpu *c = cpu_of(be);
    int rc = scratch_grow(c, d, err);
    if (rc == 0)
        rc = sq_cpu_kv_new(d, ret, err);
    if (rc == 0)
        c->used_bytes += sq_cpu_kv_used(*ret);
    return rc;
}

static void kv_free(struct sq_backend *be, struct sq_kv *kv)
{
    cpu_of(be)->used_bytes -= kv ? sq_cpu_kv_used(kv) : 0;
    sq_cpu_kv_free(kv);
}

static size_t kv_bytes(struct sq_backend *be, const struct sq_kv_desc *d)
{
    (void)be;
    return sq_cpu_kv_bytes(d);
}

/* --- the backend --- */

static int reserve(struct sq_backend *be, const struct sq_step_limits *l, struct sq_err *err)
{
    (void)be;
    (void)l;
    (void)err;
    return 0;
}

/* The workers are awake in a step, spinning. */
static int step_begin(struct sq_backend *be, const struct sq_batch *b, const void *key)
{
    (void)b;
    (void)key;
    sq_pool_step_begin(cpu_of(be)->pool);
    return 0;
}

static int step_end(struct sq_backend *be)
{
    sq_pool_step_end(cpu_of(be)->pool);
    return 0;
}

static void info(struct sq_backend *be, struct sq_device_info *ret)
{
    const struct sq_cpu *c = cpu_of(be);
    *ret = (struct sq_device_info){
        .name = "cpu", .mem_used_bytes = c->used_bytes, .n_threads = c->n_threads};
    snprintf(ret->detail, sizeof ret->detail, "%s, %d thread%s", c->k->name, c->n_threads,
             c->n_threads == 1 ? "" : "s");
}

static void close_cpu(struct sq_backend *be)
{
    struct sq_cpu *c = cpu_of(be);
    sq_pool_free(c->pool);
    sq_cpu_arena_done(&c->arena);
    sq_free(c->scratch);
    sq_free(c);
}

/* Nothing can break. */
static const char *fault(struct sq_backend *be)
{
    (void)be;
    return "";
}

static const struct sq_backend_ops cpu_ops = {
    .close = close_cpu,
    .info = info,
    .buf_new = buf_new,
    .buf_free = buf_free,
    .linear_new = linear_new,
    .linear_put = linear_put,
    .linear_finish = linear_finish,
    .linear_free = linear_free,
    .norm_new = norm_new,
    .norm_free = norm_free,
    .kv_new = kv_new,
    .kv_free = kv_free,
    .kv_bytes = kv_bytes,
    .rope_new = rope_new,
    .rope_free = rope_free,
    .reserve = reserve,
    .step_begin = step_begin,
    .step_end = step_end,
    .embed = sq_cpu_embed,
    .norm = sq_cpu_norm,
    .quant_rows = sq_cpu_quant_rows,
    .linear = sq_cpu_linear,
    .rope = sq_cpu_rope,
    .swiglu = sq_cpu_swiglu,
    .kv_write = sq_cpu_kv_write,
    .attend = sq_cpu_attend,
    .gather = sq_cpu_gather,
    .argmax = sq_cpu_argmax,
    .observe = sq_cpu_observe,
    .view = sq_cpu_view,
    .sync = sq_cpu_sync,
    .fault = fault,
};

static int no_variant(const char *name, struct sq_err *err)
{
    char list[128] = "";
    size_t n = 0;
    for (const char *const *v = sq_cpu_variant_names(); *v && n < sizeof list; v++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", *v);
    return sq_fail(err, SQ_E_NOTSUP, "CPU kernels '%s' cannot run on this processor; it runs: %s",
                   name, list);
}

int sq_cpu_open(const struct sq_cpu_options *o, struct sq_backend **ret, struct sq_err *err)
{
    SQ_ASSERT(o->n_threads >= 0);
    const struct sq_cpu_ops *k = sq_cpu_variant(o->variant);
    if (!k)
        return no_variant(o->variant, err);
    struct sq_cpu *c = sq_new(struct sq_cpu);
    if (!c)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the CPU backend");
    c->base.ops = &cpu_ops;
    c->k = k;
    c->n_threads = o->n_threads ? o->n_threads : sq_n_cpus();
    int rc = sq_pool_new(c->n_threads, &c->pool, err);
    if (rc) {
        sq_free(c);
        return rc;
    }
    *ret = &c->base;
    return 0;
}

struct sq_pool *sq_cpu_pool(struct sq_backend *be)
{
    return cpu_of(be)->pool;
}

const struct sq_cpu_ops *sq_cpu_table(struct sq_backend *be)
{
    return cpu_of(be)->k;
}
