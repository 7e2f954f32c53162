/* The serving daemon: composes loop, API, loader and engine, and takes them down in reverse order. */
#pragma once

#include "daemon/settings.h"
#include "engine/base/err.h"

/* Re-reads the settings as the command line did at start; for SIGHUP. */
typedef int (*sq_reload_fn)(void *ctx, struct sq_settings *ret, struct sq_err *err);

/* Serves until SIGTERM/SIGINT or a fatal error. Returns the process's exit code (cmd.h); what went wrong has been logged. */
int sq_app_run(const struct sq_settings *s, sq_reload_fn reload, void *ctx);
