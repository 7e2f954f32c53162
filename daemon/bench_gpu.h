/* Whole engine steps of a model shape with random weights, on any backend, as shares of ceilings measured on the same device.
 *
 * Models of many layers are not built whole: one build has n_layers, another one layer, and a step of the whole model is
 * t(1) + (t(n) - t(1)) / (n - 1) * (layers - 1): layers are alike, and so many that do not fit the caches cost alike. */
#pragma once

#include <stdbool.h>

#include "cuda/module.h"
#include "engine/backend.h"
#include "engine/base/err.h"
#include "engine/model/config.h"

struct sq_stage {
    bool decode;
    int n;       /* decode: sequences, one row each; else rows of one prompt */
    int context; /* decode: tokens in each sequence's cache before the step */
};
/* "decode:64:1024" or "prefill:2048". False: neither. */
bool sq_stage_parse(const char *s, struct sq_stage *ret);

/* What a step of the whole model must move and do: weights and cache once, each multiply-add as two operations. */
struct sq_stage_work {
    double bytes, ops;
};
struct sq_stage_work sq_stage_work(const struct sq_config *c, const struct sq_stage *s, bool int8);

struct sq_stage_figure {
    struct sq_stage stage;
    bool
        int8; /* W8A8 O3 with int8 head and cache; else weights in the configuration's float type */
    int n_layers, n_measured; /* of the model; of the larger build */
    double ms, tokens_per_s;
    double read_share, ops_share; /* of the ceilings, 0 where there is none */
};

struct sq_stage_bench {
    int (*open)(void *ctx, struct sq_backend **ret, struct sq_err *err); /* a fresh backend */
    void *ctx;
    const struct sq_gpu_ceilings *ceilings;
    const struct sq_stage *stages; /* [n_stages] */
    int n_stages;
    int n_layers; /* to build: at least 2 of sq_bench_stages, which takes less as all */
    int n_samples;
    int vocab; /* of sq_bench_repeat's build, at most; 0 = the configuration's */
    bool
        fill_cache; /* decode reads keys and values that a prefill wrote, not what the memory held */
};

/* ret: [n_stages]. Errors: -SQ_E_NOMEM and -SQ_E_LIMIT where it does not fit the device, -SQ_E_DEVICE. */
int sq_bench_stages(const struct sq_stage_bench *b, const struct sq_config *config, bool int8,
                    struct sq_stage_figure *ret, struct sq_err *err) SQ_CHECKED;

/* Which way each matmul of few rows goes on this device, of a build of one layer; the first stage says how many rows at most. */
int sq_bench_choices(const struct sq_stage_bench *b, const struct sq_config *config,
                     const struct sq_gpu_module *m, sq_gpu_choice_fn *each, void *ctx,
                     struct sq_err *err) SQ_CHECKED;

/* Runs the first stage n_samples times on a build of n_layers, for whoever counts what the device does. */
int sq_bench_repeat(const struct sq_stage_bench *b, const struct sq_config *config, bool int8,
                    struct sq_err *err) SQ_CHECKED;
