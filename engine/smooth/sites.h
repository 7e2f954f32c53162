/* The linears of a decoder layer: their shapes, and the places where calibration watches their
 * inputs. */
#pragma once

#include "engine/model/config.h"
#include "engine/run/forward.h"

#define SQ_N_LINEARS 7
extern const enum sq_role sq_linear_roles[SQ_N_LINEARS];
/* Not every family has all of them. */
bool sq_has_linear(const struct sq_family *f, int i_linear);

/* Inputs and outputs of a layer's linear; of a norm, its channels. */
size_t sq_role_n_in(const struct sq_config *c, enum sq_role r);
size_t sq_role_n_out(const struct sq_config *c, enum sq_role r);
/* Where the input of a linear is observed. */
enum sq_site sq_role_site(enum sq_role r);
size_t sq_site_dim(const struct sq_config *c, enum sq_site s);
