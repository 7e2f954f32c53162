/* The family descriptions; family.c lists them. */
#pragma once

#include "engine/model/family.h"

extern const struct sq_family sq_family_llama, sq_family_opt;
