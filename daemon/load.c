#include "daemon/load.h"

#include <string.h>

#include "daemon/plan.h"
#include "engine/base/threads.h"

/* What one load is made with. */
struct job {
    const struct sq_settings *s;
    const struct sq_load_hooks *hooks;
    bool plan;         /* sizes only */
    uint64_t kv_bytes; /* cap of the KV cache, 0 = none */
};

static int open_backend(struct job *j, struct sq_loaded *l, struct sq_err *err)
{
    const struct sq_settings *s = j->s;
    struct sq_backend_options o = {.backend = s->backend,
                                   .n_threads = (int)s->threads,
                                   .kernel = s->kernel[0] ? s->kernel : NULL,
                                   .plan = j->plan};
    int rc = sq_backend_choose(&o, &l->backend, err);
    if (rc)
        return rc;
    if (!l->backend.gpu)
        j->kv_bytes = s->kv_cache ? s->kv_cache : sq_backend_kv_room();
    else if (j->plan)
        j->kv_bytes = s->kv_cache;
    else /* better now than after minutes of reading weights */
        rc = sq_plan_kv(s, &l->backend, &j->kv_bytes, err);
    return rc;
}

static int open_engine(const struct job *j, struct sq_loaded *l, struct sq_err *err)
{
    const struct sq_settings *s = j->s;
    struct sq_engine_options o = {
        .model = l->model,
        .max_sequences = (int)s->max_sequences,
        .max_step_tokens = (int)s->max_step_tokens,
        .max_context = (int)s->max_context,
        .kv_bytes = j->kv_bytes,
        .max_queue = (int)s->max_queue,
        .max_queue_tokens = s->max_queue_tokens,
        .sizes_only = j->plan,
        .wake = j->hooks->wake,
        .ctx = j->hooks->ctx,
    };
    return sq_engine_open(&o, &l->engine, err);
}

static int load_model(const struct job *j, struct sq_loaded *l, struct sq_err *err)
{
    const struct sq_settings *s = j->s;
    const struct sq_config *config = &l->dir->config;
    bool int8_head = strcmp(s->head, "int8") == 0 ||
                     (strcmp(s->head, "auto") == 0 && config->scheme != SQ_SCHEME_FLOAT);
    struct sq_load_options o = {
        .head = int8_head ? SQ_HEAD_INT8 : SQ_HEAD_KEEP,
        .prefix = l->dir->prefix,
        .sizes_only = j->plan,
        .progress = j->hooks->progress,
        .ctx = j->hooks->ctx,
        .stop = j->hooks->stop,
    };
    int rc = sq_model_load(l->dir->source, config, l->backend.be, &o, &l->model, err);
    struct sq_device_info d;
    l->backend.be->ops->info(l->backend.be, &d);
    l->model_bytes = d.mem_used_bytes;
    return rc;
}

static int load(struct job *j, struct sq_loaded *l, struct sq_err *err)
{
    int rc = sq_model_dir_open(j->s->model, &l->dir, err);
    if (!rc)
        rc = open_backend(j, l, err);
    if (!rc)
        rc = load_model(j, l, err);
    if (rc)
        return rc;
    rc = j->plan ? 0
                 : sq_tokenizer_open(l->dir->fd, "tokenizer.json", (size_t)l->dir->config.vocab,
                                     &l->tokenizer, err);
    if (rc)
        return sq_fail_in(err, "%s", j->s->model);
    return open_engine(j, l, err);
}

static int load_or_undo(struct job *j, struct sq_loaded *ret, struct sq_err *err)
{
    struct sq_loaded l = {0};
    uint64_t start = sq_now_ns();
    int rc = load(j, &l, err);
    if (rc) {
        sq_loaded_done(&l);
        return rc;
    }
    l.seconds = (double)(sq_now_ns() - start) / 1e9;
    *ret = l;
    return 0;
}

int sq_load(const struct sq_settings *s, const struct sq_load_hooks *hooks, struct sq_loaded *ret,
            struct sq_err *err)
{
    struct job j = {.s = s, .hooks = hooks};
    return load_or_undo(&j, ret, err);
}

int sq_load_plan(const struct sq_settings *s, struct sq_loaded *ret, struct sq_err *err)
{
    static const struct sq_load_hooks none = {0};
    struct job j = {.s = s, .hooks = &none, .plan = true};
    return load_or_undo(&j, ret, err);
}

void sq_loaded_done(struct sq_loaded *l)
{
    sq_engine_close(l->engine);
    sq_tokenizer_free(l->tokenizer);
    sq_model_free(l->model);
    sq_backend_done(&l->backend);
    sq_model_dir_close(l->dir);
    *l = (struct sq_loaded){0};
}
