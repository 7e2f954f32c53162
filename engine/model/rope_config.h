/* Rotary positions in config.json: `rope_theta` and `rope_scaling` as transformers 4 writes them, or `rope_parameters` as 5 does. */
#pragma once

#include "engine/model/config.h"
#include "engine/model/json_util.h"

/* Sets c->rope. Errors: -SQ_E_FORMAT, -SQ_E_NOTSUP (a kind of stretching that is not known, by name). */
int sq_rope_config_parse(const json_t *o, const struct sq_json_where *w,
                         struct sq_config *c) SQ_CHECKED;
