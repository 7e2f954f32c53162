/* quantization_config of config.json: compressed-tensors, int8 weights and int8 activations (rule C5). */
#pragma once

#include "engine/model/config.h"
#include "engine/model/json_util.h"

/* Sets c's scheme and head_quantized; c->family and the sizes are there already. Errors: -SQ_E_FORMAT; -SQ_E_NOTSUP for a variant that
 * compressed-tensors knows and sqd does not, named. */
int sq_quant_config_parse(const json_t *q, const char *file, struct sq_config *c,
                          struct sq_err *err) SQ_CHECKED;
