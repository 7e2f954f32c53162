/* A source that makes large matrices of another source's in no time: one block of rows per width and type is drawn, then repeated. */
#pragma once

#include "engine/model/source.h"

/* inner is borrowed and must outlive the result. Values stay in the inner source's range, but rows repeat: for speed, not for accuracy. */
int sq_block_source_open(struct sq_source *inner, struct sq_source **ret,
                         struct sq_err *err) SQ_CHECKED;
