/* `sqd bench --roof --backend cuda` and `sqd bench --layer`: options, and what is printed. */
#pragma once

#include "daemon/bench_gpu.h"

struct sq_gpu_cmd {
    bool cuda;             /* --backend cuda; else the CPU, for --layer */
    bool tune;             /* which way matmuls of few rows go */
    const char *layer;     /* shape, or NULL: the roof */
    struct sq_stage stage; /* with layer; n 0 = not given */
    bool int8, f16;        /* --scheme; both false: both */
    int n_layers;          /* to build, 0 = all; -1 = not given */
    int vocab;             /* with layer: at most so many tokens; 0 = the shape's own */
    int budget_s;          /* shapes that would begin later are left out; 0 = no bound */
    /* of the options that all benchmarks have */
    const char *const *shapes; /* [n_shapes]; n_shapes 0: the usual ones */
    int n_shapes;
    const char *config; /* a config.json instead */
    int n_samples, n_threads;
    bool quick, json;
};

/* Long options of this part; their values begin at SQ_GPU_OPT. */
#define SQ_GPU_OPT 256
enum {
    SQ_GPU_OPT_BACKEND = SQ_GPU_OPT,
    SQ_GPU_OPT_LAYER,
    SQ_GPU_OPT_TUNE,
    SQ_GPU_OPT_STAGE,
    SQ_GPU_OPT_SCHEME,
    SQ_GPU_OPT_LAYERS,
    SQ_GPU_OPT_VOCABULARY,
    SQ_GPU_OPT_BUDGET
};
#define SQ_GPU_OPTIONS                                                                             \
    {"tune", 0, NULL, SQ_GPU_OPT_TUNE}, {"backend", 1, NULL, SQ_GPU_OPT_BACKEND},                  \
        {"layer", 1, NULL, SQ_GPU_OPT_LAYER}, {"stage", 1, NULL, SQ_GPU_OPT_STAGE},                \
        {"scheme", 1, NULL, SQ_GPU_OPT_SCHEME}, {"layers", 1, NULL, SQ_GPU_OPT_LAYERS},            \
        {"vocabulary", 1, NULL, SQ_GPU_OPT_VOCABULARY},                                            \
    {                                                                                              \
        "budget", 1, NULL, SQ_GPU_OPT_BUDGET                                                       \
    }
#define SQ_GPU_HELP                                                                                \
    "With --backend cuda, steps of prompts and decoding on the GPU beside ceilings measured in\n"  \
    "the same run, INT8 beside 16-bit weights:\n"                                                  \
    "  --backend cpu|cuda    [cpu]\n"                                                              \
    "  --scheme w8a8|f16     only one of the two\n"                                                \
    "  --layers N            layers, 2 or more, that are built and timed, the rest follows;\n"     \
    "                        0 = all [8]\n"                                                        \
    "  --budget SECONDS      shapes that would begin later are left out\n"                         \
    "  --tune                instead: times our kernel against the library for matmuls of few\n"   \
    "                        rows, as every start on a GPU does, and prints what is taken\n"       \
    "  --layer SHAPE         no figures: runs --stage (decode:ROWS:CONTEXT, prefill:ROWS)\n"       \
    "                        --samples times on a build of --layers [1], for tools that count\n"   \
    "  --vocabulary N        with --layer: at most so many tokens\n"

/* 0, or an exit code. */
int sq_gpu_cmd_option(struct sq_gpu_cmd *c, int opt, const char *value);
int sq_gpu_cmd_run(const struct sq_gpu_cmd *c); /* the exit code */
