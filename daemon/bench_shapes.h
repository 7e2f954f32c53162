/* Model shapes that benchmarks know by name. Their weights are random, so no checkpoint is needed. */
#pragma once

#include "engine/base/err.h"
#include "engine/model/config.h"

#define SQ_SHAPE_NAMES                                                                             \
    "opt-125m, opt-1.3b, opt-2.7b, opt-6.7b, opt-13b, opt-30b, opt-66b, llama-3-8b, "              \
    "llama-3-70b, tiny-opt, tiny-llama"

/* A float configuration of a named shape. -SQ_E_NOTFOUND: no such shape. */
int sq_shape_config(const char *name, struct sq_config *ret, struct sq_err *err) SQ_CHECKED;
/* The configuration in a config.json, whatever it is called. -SQ_E_NOTFOUND, -SQ_E_IO, or what sq_config_parse says. */
int sq_shape_file(const char *path, struct sq_config *ret, struct sq_err *err) SQ_CHECKED;
