/* Which tensors a configuration implies, and of what shape and type (rule C4). One table for the loader's check, for the random source, and
 * for whoever writes checkpoints. */
#pragma once

#include "engine/model/config.h"
#include "engine/model/source.h"

/* What may belong to one role. */
enum sq_part {
    SQ_P_WEIGHT,
    SQ_P_BIAS,
    SQ_P_WEIGHT_SCALE,
    SQ_P_INPUT_SCALE,
    SQ_P_WEIGHT_ZERO,
    SQ_P_INPUT_ZERO,
    SQ_P_OUTPUT_SCALE,
    SQ_N_PARTS
};

enum sq_need { SQ_NEED_NOT, SQ_NEED_MAY, SQ_NEED_MUST };

enum sq_form {
    SQ_FORM_FLOAT,          /* F32, F16 or BF16 of exactly this shape */
    SQ_FORM_CODES,          /* I8 of exactly this shape */
    SQ_FORM_FLOAT_OR_CODES, /* either */
    SQ_FORM_SCALE,          /* float, one element: [], [1] or [1, 1] */
    SQ_FORM_CHANNEL_SCALE,  /* float, as SCALE, or [rows], or [rows, 1] */
    SQ_FORM_ZERO            /* I8, as CHANNEL_SCALE */
};

struct sq_expected {
    enum sq_need need;
    enum sq_form form;
    size_t rows, cols; /* cols 0: a vector */
};

const char *sq_part_suffix(enum sq_part part);
/* False if suffix is none of the parts'. */
bool sq_part_find(const char *suffix, enum sq_part *ret);

struct sq_expected sq_expect(const struct sq_config *c, enum sq_role role, enum sq_part part);

/* [rows, cols] of a matrix role; the length as rows and cols 0 for norms. rows 0: this configuration has no such role. */
void sq_role_shape(const struct sq_config *c, enum sq_role role, size_t *ret_rows,
                   size_t *ret_cols);

/* 0, or -SQ_E_FORMAT with the expected and the found. */
int sq_expect_check(const struct sq_expected *e, const char *name, const struct sq_tensor_info *t,
                    struct sq_err *err) SQ_CHECKED;
