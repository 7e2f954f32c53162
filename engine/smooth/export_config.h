/* config.json of the output: the input's, with quantization_config. */
#pragma once

#include <stddef.h>

#include "engine/smooth/recipe.h"

/* *ret is freed with sq_free. Errors: -SQ_E_FORMAT, -SQ_E_LIMIT, -SQ_E_NOTFOUND, -SQ_E_IO,
 * -SQ_E_NOMEM. */
int sq_export_config(const struct sq_model_dir *dir, const struct sq_recipe *r, char **ret,
                     size_t *ret_n, struct sq_err *err) SQ_CHECKED;
