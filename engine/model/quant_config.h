/* quantization_config of config.json: compressed-tensors, int8 weights and int8 activations (rule C5). */
#pragma once

#include "engine/model/config.h"
#include "engine/model/json_util.h"

/* Sets c's scheme and head_quantized; c->family and the sizes are there already. Errors: -SQ_E_FORMAT; -SQ_E_NOTSUP for a variant that
 * compressed-tensors knows and sqd does not, named. */
int sq_quant_config_parse(const json_t *q, const char *file, struct sq_config *c,
                          struct sq_err *err) SQ_CHECKED;

/* Its `ignore` list alone (quant_ignore.c): sets head_quantized. */
int sq_quant_ignore_parse(const json_t *q, const struct sq_json_where *w,
                          struct sq_config *c) SQ_CHECKED;

/* A variant that is known, but not supported: "config.json: C5: quantization_config." and what the caller says about it. */
#define SQ_QUANT_REFUSE(w, fmt, ...)                                                               \
    sq_fail((w)->err, SQ_E_NOTSUP, "%s: %s: %s" fmt, (w)->file, (w)->rule, (w)->path, ##__VA_ARGS__)
