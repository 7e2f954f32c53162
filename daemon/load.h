/* Everything that serving a model needs, made in order and freed in reverse: model directory, backend, weights, tokenizer, engine. */
#pragma once

#include <stdatomic.h>

#include "daemon/backend.h"
#include "daemon/settings.h"
#include "engine/engine.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "engine/text/tokenizer.h"

struct sq_loaded {
    struct sq_model_dir *dir;
    struct sq_chosen_backend backend;
    struct sq_model *model;
    struct sq_tokenizer *tokenizer;
    struct sq_engine *engine; /* opened and warmed up, not started */
    size_t model_bytes;       /* what the backend had taken once the weights were there */
    double seconds;
};

struct sq_load_hooks {
    void (*progress)(void *ctx, double done_ratio); /* from the calling thread */
    void (*wake)(void *ctx);                        /* the engine's wake, from its thread */
    void *ctx;
    const _Atomic bool *stop;
};

/* Runs for seconds to minutes; any thread. -SQ_E_INTR when *stop was set. */
int sq_load(const struct sq_settings *s, const struct sq_load_hooks *hooks, struct sq_loaded *ret,
            struct sq_err *err) SQ_CHECKED;
/* The same objects with the same sizes, but no weights are read, no tokenizer is opened and nothing can run: to add up what a start would take.
 * On a GPU the device is not touched, so that auto takes it wherever the module can be opened, device or not. */
int sq_load_plan(const struct sq_settings *s, struct sq_loaded *ret, struct sq_err *err) SQ_CHECKED;
void sq_loaded_done(struct sq_loaded *l); /* half-built is fine */
