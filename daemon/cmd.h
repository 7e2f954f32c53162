/* The subcommands. Each gets argv with its own name first, prints results on stdout and talk on stderr, and returns the process's exit code. */
#pragma once

#include "engine/base/err.h"

enum sq_exit {
    SQ_EXIT_OK = 0,
    SQ_EXIT_RUNTIME = 1,
    SQ_EXIT_USAGE = 64,       /* command line */
    SQ_EXIT_DATA = 65,        /* a model or text file breaks a rule */
    SQ_EXIT_NO_INPUT = 66,    /* a file or directory is missing */
    SQ_EXIT_UNAVAILABLE = 69, /* the backend asked for is not there */
    SQ_EXIT_DEVICE = 70,      /* the device failed: restart may help */
    SQ_EXIT_MEMORY = 71,      /* not enough memory */
    SQ_EXIT_CONFIG = 78,      /* configuration */
};

int sq_cmd_serve(int argc, char **argv);
int sq_cmd_quantize(int argc, char **argv);
int sq_cmd_eval(int argc, char **argv);
int sq_cmd_bench(int argc, char **argv);

/* The exit code for an error that ended a command. */
enum sq_exit sq_exit_code(const struct sq_err *err);
/* Prints "sqd <command>: <message>" to stderr and returns the exit code. */
int sq_cmd_fail(const char *command, const struct sq_err *err);
/* Ends a command whose results are on stdout: SQ_EXIT_OK once they are written, SQ_EXIT_RUNTIME with a message where they cannot be. */
int sq_cmd_end(const char *command);
/* As sq_cmd_fail for a usage error, with a hint to --help. */
int sq_cmd_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
