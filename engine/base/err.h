/* Error codes and messages.
 *
 * Functions return 0 on success, -SQ_E_* when something unexpected happened (forward it, adding a message if you know more than
 * your caller), and a positive value for an outcome that the function documents and its caller handles.
 * `struct sq_err *err` comes last wherever the outside can be wrong; NULL is allowed. Outputs named ret_x are written on success only. */
#pragma once

enum sq_code {
    SQ_E_OK = 0,
#define X(code, text) SQ_E_##code,
#include "engine/base/err.def"
#undef X
    SQ_E_MAX
};

struct sq_err {
    int code;      /* positive SQ_E_*, 0 while unset */
    char msg[512]; /* one line, names the thing, the expected and the found */
};

#define SQ_CHECKED __attribute__((warn_unused_result))

/* Writes code and message and returns -code, so that `return sq_fail(err, SQ_E_IO, ...)` reads well. */
int sq_fail(struct sq_err *err, enum sq_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4), cold));

/* Puts text before a message that is already there: context added on the way up. Returns -err->code (or -SQ_E_INVAL if unset). */
int sq_fail_in(struct sq_err *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3), cold));

/* Static text of a code, sign ignored. */
const char *sq_code_text(int code);
