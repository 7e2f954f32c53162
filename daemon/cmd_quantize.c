/* sqd quantize: arguments in, report out. The work is engine/smooth's. */
#include <getopt.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "daemon/cmd.h"
#include "daemon/cmd_progress.h"
#include "daemon/cmd_smooth.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/smooth/report.h"

static const char help_text[] =
    "Usage: sqd quantize --model DIR --out DIR [OPTIONS]\n\n"
    "Makes a SmoothQuant W8A8 INT8 model of a Hugging Face checkpoint: measures activations on\n"
    "sample text, moves their outliers into the weights, checks that the smoothed float model\n"
    "still gives the same logits, and writes a directory that `sqd serve` and vLLM load.\n\n"
    "  --model DIR         the float checkpoint (config.json, safetensors, tokenizer.json)\n"
    "  --out DIR           where the result goes; must not exist, or be empty\n"
    "  --level o3|o1       o3: static activation steps (default); o1: per-token steps at run time\n"
    "  --alpha A           0 to 1, how much moves from activations to weights (default 0.5)\n"
    "  --folds all|paper   all exact folds (default), or only the paper's (norms into the "
    "linears behind)\n"
    "  --weights channel|tensor   one weight scale per output channel (default) or per tensor\n"
    "  --calibration FILE  sample text, a passage a paragraph or a line\n"
    "                      (default: calibration.txt in the model's directory)\n"
    "  --passages N        use at most N passages (default 128), each cut at 512 tokens\n"
    "  --keep-first        count the first token of a passage in the statistics, too\n"
    "  --shard-bytes SIZE  of one safetensors file, e.g. 2GiB (default 4GiB)\n"
    "  --backend B         auto (default: a GPU, else the CPU), cpu or cuda\n"
    "  --threads N         of the CPU; default: all processors\n"
    "  --json              print the report as JSON\n";

enum { OPT_MODEL = 256, OPT_OUT, OPT_LEVEL, OPT_SHARD, OPT_JSON };

static const struct option long_options[] = {
    {"model", required_argument, NULL, OPT_MODEL},
    {"out", required_argument, NULL, OPT_OUT},
    {"level", required_argument, NULL, OPT_LEVEL},
    {"shard-bytes", required_argument, NULL, OPT_SHARD},
    {"json", no_argument, NULL, OPT_JSON},
    SQ_RECIPE_OPTIONS,
    {0},
};

struct args {
    struct sq_quantize_options o;
    struct sq_backend_options device;
    bool json;
};

static int set_level(struct args *a, const char *s)
{
    if (strcmp(s, "o2") == 0)
        return sq_cmd_usage("quantize",
                            "--level o2: one step for all tokens of a step depends on what else is "
                            "in the batch, so no such model is written; use o1 or o3");
    if (strcmp(s, "o1") && strcmp(s, "o3"))
        return sq_cmd_usage("quantize", "--level: expected o1 or o3, found '%s'", s);
    a->o.recipe.dynamic = strcmp(s, "o1") == 0;
    return 0;
}

static int set_option(void *ctx, int opt, const char *value)
{
    struct args *a = ctx;
    switch (opt) {
    case OPT_MODEL:
        a->o.model_dir = value;
        return 0;
    case OPT_OUT:
        a->o.out_dir = value;
        return 0;
    case OPT_LEVEL:
        return set_level(a, value);
    case OPT_SHARD:
        if (!sq_parse_bytes(value, &a->o.shard_bytes) || !a->o.shard_bytes)
            return sq_cmd_usage("quantize", "--shard-bytes: expected a size, found '%s'", value);
        return 0;
    case OPT_JSON:
        a->json = true;
        return 0;
    default:
        return sq_cmd_recipe_option("quantize", opt, value, &a->o.recipe, &a->device);
    }
}

/* 0, or the exit code + 1 when the command is over already. */
static int parse_args(int argc, char **argv, struct args *a)
{
    int rc = sq_cmd_options("quantize", help_text, long_options, argc, argv, set_option, a);
    if (rc)
        return rc;
    if (!a->o.model_dir || !a->o.out_dir)
        return sq_cmd_usage("quantize", "--%s is missing", a->o.model_dir ? "out" : "model") + 1;
    return 0;
}

int sq_cmd_quantize(int argc, char **argv)
{
    struct args a = {.o.recipe = SQ_CMD_RECIPE_DEFAULT, .device = SQ_CMD_DEVICE_DEFAULT};
    struct sq_cmd_progress progress;
    struct sq_chosen_backend backend = {0};
    struct sq_quantize_report report;
    struct sq_err err = {0};
    int rc = parse_args(argc, argv, &a);
    if (rc)
        return rc - 1;
    uint64_t start = sq_now_ns();
    rc = sq_cmd_open_backend("quantize", &a.device, &backend, &err);
    sq_cmd_progress_init(&progress, "quantize");
    if (!rc)
        rc = sq_quantize(&a.o, backend.be, &progress.progress, &report, &err);
    sq_backend_done(&backend);
    sq_cmd_progress_end(&progress);
    if (rc)
        return sq_cmd_fail("quantize", &err);
    for (int i = 0; i < report.n_folds; i++)
        if (report.folds[i].state > SQ_FOLD_NOT_ASKED)
            fprintf(stderr, "sqd quantize: fold %s %s\n", report.folds[i].what,
                    sq_fold_state_text(report.folds[i].state));
    sq_report_quantize(stdout, a.json, &a.o, &report, (double)(sq_now_ns() - start) * 1e-9);
    return sq_cmd_end("quantize");
}
