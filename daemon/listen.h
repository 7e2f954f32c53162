/* Listening sockets from addresses. */
#pragma once

#include <stddef.h>

#include "engine/base/err.h"

/* address: "HOST:PORT", "[V6]:PORT" (HOST a name or number; PORT 0 = any) or "unix:PATH" (a stale socket there is replaced, anything else refused).
 * ret_name gets the address really bound. Errors: -SQ_E_CONFIG (address not understood), -SQ_E_IO (the system's own words). */
int sq_listen(const char *address, int *ret_fd, char *ret_name, size_t n_name,
              struct sq_err *err) SQ_CHECKED;
