/* generation_config.json: the model's own defaults for sampling, and the ids that begin and end a text. */
#pragma once

#include "engine/model/config.h"
#include "engine/model/json_util.h"

/* Overwrites what the object gives; c->vocab is there already. Also used on config.json itself, which older models write these keys into. */
int sq_gen_config_parse(const json_t *o, const char *file, const char *rule, struct sq_config *c,
                        struct sq_err *err) SQ_CHECKED;
