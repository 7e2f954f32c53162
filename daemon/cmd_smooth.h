/* Options that quantize and eval share: how a model is smoothed and quantised, and on which device. */
#pragma once

#include <getopt.h>

#include "daemon/backend.h"
#include "engine/smooth/recipe.h"

enum {
    SQ_OPT_ALPHA = 512,
    SQ_OPT_FOLDS,
    SQ_OPT_WEIGHTS,
    SQ_OPT_CALIBRATION,
    SQ_OPT_PASSAGES,
    SQ_OPT_KEEP_FIRST,
    SQ_OPT_THREADS,
    SQ_OPT_BACKEND,
    SQ_OPT_HELP,
};

/* Rows of a table of struct option. */
#define SQ_RECIPE_OPTIONS                                                                          \
    {"alpha", required_argument, NULL, SQ_OPT_ALPHA},                                              \
        {"folds", required_argument, NULL, SQ_OPT_FOLDS},                                          \
        {"weights", required_argument, NULL, SQ_OPT_WEIGHTS},                                      \
        {"calibration", required_argument, NULL, SQ_OPT_CALIBRATION},                              \
        {"passages", required_argument, NULL, SQ_OPT_PASSAGES},                                    \
        {"keep-first", no_argument, NULL, SQ_OPT_KEEP_FIRST},                                      \
        {"threads", required_argument, NULL, SQ_OPT_THREADS},                                      \
        {"backend", required_argument, NULL, SQ_OPT_BACKEND},                                      \
    {                                                                                              \
        "help", no_argument, NULL, SQ_OPT_HELP                                                     \
    }

#define SQ_CMD_RECIPE_DEFAULT                                                                      \
    {                                                                                              \
        .alpha = 0.5, .folds = SQ_FOLDS_ALL, .max_passages = 128                                   \
    }

#define SQ_CMD_DEVICE_DEFAULT                                                                      \
    {                                                                                              \
        .backend = "auto"                                                                          \
    }

/* 0, or the exit code after a message. */
int sq_cmd_recipe_option(const char *command, int opt, const char *value, struct sq_recipe *r,
                         struct sq_backend_options *device);

/* Walks the command line: --help prints help_text, every other option goes to set (0, or the exit code after a message).
 * 0, or the exit code + 1 when the command is over already. */
int sq_cmd_options(const char *command, const char *help_text, const struct option *options,
                   int argc, char **argv, int (*set)(void *ctx, int opt, const char *value),
                   void *ctx);

/* Opens the device and says on stderr which one it is. */
int sq_cmd_open_backend(const char *command, const struct sq_backend_options *device,
                        struct sq_chosen_backend *ret, struct sq_err *err) SQ_CHECKED;
