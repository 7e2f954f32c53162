/* What quantize and eval print: for people, or one line of JSON. */
#pragma once

#include <stdio.h>

#include "engine/smooth/evaluate.h"
#include "engine/smooth/quantize.h"

const char *sq_eval_scheme_text(enum sq_eval_scheme s); /* "as stored", "fp", "naive", "o1", "o3" */

void sq_report_quantize(FILE *out, bool json, const struct sq_quantize_options *o,
                        const struct sq_quantize_report *r, double seconds);

/* against: another directory's result, or NULL. */
void sq_report_eval(FILE *out, bool json, const struct sq_eval_options *o,
                    const struct sq_eval_result *r, const char *against_dir,
                    const struct sq_eval_result *against);

/* A JSON string with its quotes. */
void sq_report_json_string(FILE *out, const char *s);
