#include "daemon/cmd_smooth.h"

#include <stdio.h>
#include <string.h>

#include "daemon/cmd.h"
#include "engine/base/num.h"

#define MAX_PASSAGES 1000000
#define MAX_THREADS 1024

static int number(const char *command, const char *option, const char *value, int max, int *ret)
{
    int64_t n;
    if (!sq_parse_i64(value, 1, max, &n))
        return sq_cmd_usage(command, "--%s: expected a number from 1 to %d, found '%s'", option,
                            max, value);
    *ret = (int)n;
    return 0;
}

static int alpha(const char *command, const char *value, struct sq_recipe *r)
{
    if (strcmp(value, "auto") == 0)
        return sq_cmd_usage(command,
                            "--alpha auto: there is no search yet; give a number from 0 to 1 "
                            "(0.5 suits OPT)");
    if (!sq_parse_double(value, 0, 1, &r->alpha))
        return sq_cmd_usage(command, "--alpha: expected a number from 0 to 1, found '%s'", value);
    return 0;
}

/* Sets *ret to whether value is the second of the two words. */
static int choice(const char *command, const char *option, const char *value, const char *first,
                  const char *second, bool *ret)
{
    if (strcmp(value, first) && strcmp(value, second))
        return sq_cmd_usage(command, "--%s: expected %s or %s, found '%s'", option, first, second,
                            value);
    *ret = strcmp(value, second) == 0;
    return 0;
}

int sq_cmd_recipe_option(const char *command, int opt, const char *value, struct sq_recipe *r,
                         struct sq_backend_options *device)
{
    bool paper = false;
    int rc;
    switch (opt) {
    case SQ_OPT_ALPHA:
        return alpha(command, value, r);
    case SQ_OPT_FOLDS:
        rc = choice(command, "folds", value, "all", "paper", &paper);
        r->folds = paper ? SQ_FOLDS_PAPER : SQ_FOLDS_ALL;
        return rc;
    case SQ_OPT_WEIGHTS:
        return choice(command, "weights", value, "channel", "tensor", &r->per_tensor);
    case SQ_OPT_CALIBRATION:
        r->calibration = value;
        return 0;
    case SQ_OPT_PASSAGES:
        return number(command, "passages", value, MAX_PASSAGES, &r->max_passages);
    case SQ_OPT_KEEP_FIRST:
        r->keep_first = true;
        return 0;
    case SQ_OPT_THREADS:
        return number(command, "threads", value, MAX_THREADS, &device->n_threads);
    case SQ_OPT_BACKEND:
        if (!sq_backend_known(value))
            return sq_cmd_usage(command, "--backend: expected auto, cpu or cuda, found '%s'",
                                value);
        device->backend = value;
        return 0;
    }
    return sq_cmd_usage(command, "wrong option");
}

int sq_cmd_options(const char *command, const char *help_text, const struct option *options,
                   int argc, char **argv, int (*set)(void *ctx, int opt, const char *value),
                   void *ctx)
{
    int opt;
    optind = 0;
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt == SQ_OPT_HELP) {
            fputs(help_text, stdout);
            return SQ_EXIT_OK + 1;
        }
        int rc = opt == '?' ? sq_cmd_usage(command, "wrong option") : set(ctx, opt, optarg);
        if (rc)
            return rc + 1;
    }
    if (optind < argc)
        return sq_cmd_usage(command, "unexpected argument '%s'", argv[optind]) + 1;
    return 0;
}

int sq_cmd_open_backend(const char *command, const struct sq_backend_options *device,
                        struct sq_chosen_backend *ret, struct sq_err *err)
{
    int rc = sq_backend_choose(device, ret, err);
    if (!rc)
        fprintf(stderr, "sqd %s: %s\n", command, ret->why);
    return rc;
}
