/* A stand-in for the engine behind engine/engine.h, for tests of the HTTP side alone: no model, one thread, tokens from a hash of
 * (prompt, seed, position), so that a request's tokens depend on nothing else. Prompts take prefill_rows per step; prompts that begin
 * with a magic id make it misbehave on purpose. Opened through sq_engine_fake_open, closed through sq_engine_close. */
#pragma once

#include "engine/engine.h"

#define SQ_FAKE_ID_FAIL 7   /* a prompt that ends with this id fails after its third token */
#define SQ_FAKE_ID_CANCEL 8 /* ... is cancelled by the engine after its third token */
#define SQ_FAKE_ID_EOS 9    /* ... ends with eos after its fifth token */

struct sq_engine_fake {
    int vocab, first_id; /* tokens are first_id .. vocab - 1 */
    unsigned step_us, prefill_rows;
};
int sq_engine_fake_open(const struct sq_engine_options *o, const struct sq_engine_fake *f,
                        struct sq_engine **ret, struct sq_err *err) SQ_CHECKED;
