#include "daemon/load.h"

#include <stdio.h>
#include <string.h>

#include "engine/base/threads.h"
#include "engine/cpu/backend_cpu.h"

/* What the kernel thinks it can give without swapping, or 0. */
static uint64_t available_bytes(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib * 1024;
}

static int open_backend(const struct sq_settings *s, struct sq_loaded *l, struct sq_err *err)
{
    if (strcmp(s->backend, "cuda") == 0)
        return sq_fail(err, SQ_E_NOTSUP,
                       "backend cuda: this build has no GPU module; use --backend cpu or auto");
    struct sq_cpu_options o = {.n_threads = (int)s->threads,
                               .variant = s->kernel[0] ? s->kernel : NULL};
    int rc = sq_cpu_open(&o, &l->be, err);
    if (rc)
        return rc;
    l->be->ops->info(l->be, &l->device);
    (void)snprintf(l->backend_why, sizeof l->backend_why, "backend %.20s (%.80s)%s", l->device.name,
                   l->device.detail,
                   strcmp(s->backend, "auto") == 0 ? ": this build has no GPU module"
                                                   : " as configured");
    return 0;
}

static int open_engine(const struct sq_settings *s, const struct sq_load_hooks *hooks,
                       struct sq_loaded *l, struct sq_err *err)
{
    struct sq_engine_options o = {
        .model = l->model,
        .max_sequences = (int)s->max_sequences,
        .max_step_tokens = (int)s->max_step_tokens,
        .max_context = (int)s->max_context,
        .kv_bytes = s->kv_cache ? s->kv_cache : available_bytes() / 2,
        .max_queue = (int)s->max_queue,
        .max_queue_tokens = s->max_queue_tokens,
        .wake = hooks->wake,
        .ctx = hooks->ctx,
    };
    return sq_engine_open(&o, &l->engine, err);
}

static int load(const struct sq_settings *s, const struct sq_load_hooks *hooks, struct sq_loaded *l,
                struct sq_err *err)
{
    int rc = sq_model_dir_open(s->model, &l->dir, err);
    if (rc)
        return rc;
    rc = open_backend(s, l, err);
    if (rc)
        return rc;
    const struct sq_config *config = &l->dir->config;
    bool int8_head = strcmp(s->head, "int8") == 0 ||
                     (strcmp(s->head, "auto") == 0 && config->scheme != SQ_SCHEME_FLOAT);
    struct sq_load_options o = {
        .head = int8_head ? SQ_HEAD_INT8 : SQ_HEAD_KEEP,
        .prefix = l->dir->prefix,
        .progress = hooks->progress,
        .ctx = hooks->ctx,
        .stop = hooks->stop,
    };
    rc = sq_model_load(l->dir->source, config, l->be, &o, &l->model, err);
    if (rc)
        return rc;
    rc = sq_tokenizer_open(l->dir->fd, "tokenizer.json", (size_t)config->vocab, &l->tokenizer, err);
    if (rc)
        return sq_fail_in(err, "%s", s->model);
    return open_engine(s, hooks, l, err);
}

int sq_load(const struct sq_settings *s, const struct sq_load_hooks *hooks, struct sq_loaded *ret,
            struct sq_err *err)
{
    struct sq_loaded l = {0};
    uint64_t start = sq_now_ns();
    int rc = load(s, hooks, &l, err);
    if (rc) {
        sq_loaded_done(&l);
        return rc;
    }
    l.seconds = (double)(sq_now_ns() - start) / 1e9;
    *ret = l;
    return 0;
}

void sq_loaded_done(struct sq_loaded *l)
{
    sq_engine_close(l->engine);
    sq_tokenizer_free(l->tokenizer);
    sq_model_free(l->model);
    if (l->be)
        l->be->ops->close(l->be);
    sq_model_dir_close(l->dir);
    *l = (struct sq_loaded){0};
}
