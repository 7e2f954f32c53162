/* sqd eval: arguments in, figures out. The work is engine/smooth's. */
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "daemon/cmd.h"
#include "daemon/cmd_progress.h"
#include "daemon/cmd_smooth.h"
#include "engine/base/num.h"
#include "engine/smooth/report.h"

static const char help_text[] =
    "Usage: sqd eval --model DIR --text FILE [OPTIONS]\n\n"
    "Measures the perplexity of a model on a text, or what quantising it would cost.\n\n"
    "  --model DIR         a float or a quantised directory\n"
    "  --text FILE         UTF-8 text to score\n"
    "  --against DIR       score this directory, too, and print the ratio of the perplexities\n"
    "  --scheme S          default: as stored. fp: float. On a float directory, in memory:\n"
    "                      naive (no smoothing, static, all per tensor), o1 (smoothed, per-token\n"
    "                      activations), o3 (smoothed, static activations)\n"
    "  --context N         tokens of a window, BOS included (default 512 or the model's)\n"
    "  --head keep|int8    output head as stored (default) or INT8 per channel\n"
    "  --alpha, --folds, --weights, --calibration, --passages, --keep-first\n"
    "                      as for `sqd quantize`, for the schemes o1 and o3\n"
    "  --backend B         auto (default: a GPU, else the CPU), cpu or cuda\n"
    "  --threads N         of the CPU; default: all processors\n"
    "  --json              print the figures as JSON\n";

enum { OPT_MODEL = 256, OPT_TEXT, OPT_AGAINST, OPT_SCHEME, OPT_CONTEXT, OPT_HEAD, OPT_JSON };

static const struct option long_options[] = {
    {"model", required_argument, NULL, OPT_MODEL},
    {"text", required_argument, NULL, OPT_TEXT},
    {"against", required_argument, NULL, OPT_AGAINST},
    {"scheme", required_argument, NULL, OPT_SCHEME},
    {"context", required_argument, NULL, OPT_CONTEXT},
    {"head", required_argument, NULL, OPT_HEAD},
    {"json", no_argument, NULL, OPT_JSON},
    SQ_RECIPE_OPTIONS,
    {0},
};

struct args {
    struct sq_eval_options o;
    const char *against;
    struct sq_backend_options device;
    bool json;
};

static int set_scheme(struct args *a, const char *s)
{
    static const struct {
        const char *name;
        enum sq_eval_scheme scheme;
    } schemes[] = {
        {"fp", SQ_EVAL_FLOAT}, {"naive", SQ_EVAL_NAIVE}, {"o1", SQ_EVAL_O1}, {"o3", SQ_EVAL_O3}};
    if (strcmp(s, "o2") == 0)
        return sq_cmd_usage("eval", "--scheme o2: one dynamic step for a whole passage is not "
                                    "supported yet; o1 is finer, o3 is static");
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        if (strcmp(s, schemes[i].name) == 0) {
            a->o.scheme = schemes[i].scheme;
            return 0;
        }
    return sq_cmd_usage("eval", "--scheme: expected fp, naive, o1 or o3, found '%s'", s);
}

static int set_option(void *ctx, int opt, const char *value)
{
    struct args *a = ctx;
    int64_t n;
    switch (opt) {
    case OPT_MODEL:
        a->o.model_dir = value;
        return 0;
    case OPT_TEXT:
        a->o.text = value;
        return 0;
    case OPT_AGAINST:
        a->against = value;
        return 0;
    case OPT_SCHEME:
        return set_scheme(a, value);
    case OPT_CONTEXT:
        if (!sq_parse_i64(value, 2, 1 << 24, &n))
            return sq_cmd_usage("eval", "--context: expected a number from 2, found '%s'", value);
        a->o.context = (int)n;
        return 0;
    case OPT_HEAD:
        if (strcmp(value, "keep") && strcmp(value, "int8"))
            return sq_cmd_usage("eval", "--head: expected keep or int8, found '%s'", value);
        a->o.head = strcmp(value, "int8") ? SQ_HEAD_KEEP : SQ_HEAD_INT8;
        return 0;
    case OPT_JSON:
        a->json = true;
        return 0;
    default:
        return sq_cmd_recipe_option("eval", opt, value, &a->o.recipe, &a->device);
    }
}

/* 0, or the exit code + 1 when the command is over already. */
static int parse_args(int argc, char **argv, struct args *a)
{
    int rc = sq_cmd_options("eval", help_text, long_options, argc, argv, set_option, a);
    if (rc)
        return rc;
    if (!a->o.model_dir || !a->o.text)
        return sq_cmd_usage("eval", "--%s is missing", a->o.model_dir ? "text" : "model") + 1;
    return 0;
}

int sq_cmd_eval(int argc, char **argv)
{
    struct args a = {.o.recipe = SQ_CMD_RECIPE_DEFAULT, .device = SQ_CMD_DEVICE_DEFAULT};
    struct sq_cmd_progress progress;
    struct sq_chosen_backend backend = {0};
    struct sq_eval_result result, against;
    struct sq_err err = {0};
    int rc = parse_args(argc, argv, &a);
    if (rc)
        return rc - 1;
    rc = sq_cmd_open_backend("eval", &a.device, &backend, &err);
    sq_cmd_progress_init(&progress, "eval");
    if (!rc)
        rc = sq_evaluate(&a.o, backend.be, &progress.progress, &result, &err);
    if (!rc && a.against) {
        struct sq_eval_options o = {.model_dir = a.against,
                                    .text = a.o.text,
                                    .recipe = a.o.recipe,
                                    .context = result.context};
        rc = sq_evaluate(&o, backend.be, &progress.progress, &against, &err);
    }
    sq_backend_done(&backend);
    sq_cmd_progress_end(&progress);
    if (rc)
        return sq_cmd_fail("eval", &err);
    sq_report_eval(stdout, a.json, &a.o, &result, a.against, a.against ? &against : NULL);
    return sq_cmd_end("eval");
}
