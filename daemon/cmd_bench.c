/* sqd bench: how close kernels and whole steps come to what the machine can do. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "daemon/bench_gpu_cmd.h"
#include "daemon/bench_shapes.h"
#include "daemon/bench_steps.h"
#include "daemon/cmd.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/cpu/roof.h"
#include "engine/model/checkpoint.h"

#define MAX_THREAD_COUNTS (SQ_ROOF_THREADS_MAX - 1)
#define MAX_SHAPES 16

struct bench {
    bool roof, json, kernels, steps, quick, shapes_given;
    const char *config, *variant;
    int threads[MAX_THREAD_COUNTS], n_threads;
    const char *shapes[MAX_SHAPES]; /* n_shapes */
    int n_shapes, n_samples, n_printed;
    struct sq_gpu_cmd gpu; /* used with --backend cuda and with --layer */
};

static void help(FILE *out)
{
    fputs(
        "Measures speed as shares of the machine's own peaks, probed in the same run.\n\n"
        "Usage: sqd bench --roof|--tune [OPTIONS]\n\n"
        "  --roof                INT8 matmul kernels (M = 1, 4, 16, 64, 512) and whole steps "
        "(prefill 128, decode B = 1, 16, 32)\n"
        "  --kernels, --steps    only one of the two\n"
        "  --shapes LIST         shapes of the steps with random weights [opt-125m,opt-1.3b], of\n"
        "                        " SQ_SHAPE_NAMES "\n"
        "  --config FILE         a config.json as the only shape, with random weights\n"
        "  --threads LIST        thread counts [1,2]\n"
        "  --kernel NAME         CPU kernel variant [the best]\n"
        "  --samples N           paired samples per step figure [9]\n"
        "  --quick               fewer shapes and samples: to see that it works, not to quote\n"
        "  --json                one JSON object on stdout\n\n"
        "Operations: 2 x M x N x K for a matmul; for steps 2 x layer parameters x tokens, and "
        "the head once (all rows: for each row of the batch).\n"
        "Shares of M <= 4 and of decode B = 1 are of read bandwidth, the others of the INT8 "
        "peak.\n\n" SQ_GPU_HELP,
        out);
}

static int parse_threads(struct bench *b, char *list)
{
    b->n_threads = 0;
    for (char *save, *t = strtok_r(list, ",", &save); t; t = strtok_r(NULL, ",", &save)) {
        int64_t n;
        if (!sq_parse_i64(t, 1, 256, &n) || b->n_threads == MAX_THREAD_COUNTS)
            return sq_cmd_usage("bench",
                                "--threads: expected up to %d numbers from 1 to 256, found '%s'",
                                MAX_THREAD_COUNTS, t);
        b->threads[b->n_threads++] = (int)n;
    }
    return 0;
}

static int parse_shapes(struct bench *b, char *list)
{
    b->n_shapes = 0;
    b->shapes_given = true;
    for (char *save, *t = strtok_r(list, ",", &save); t; t = strtok_r(NULL, ",", &save)) {
        struct sq_config unused;
        struct sq_err err;
        if (sq_shape_config(t, &unused, &err))
            return sq_cmd_usage("bench", "--shapes: %s", err.msg);
        if (b->n_shapes == MAX_SHAPES)
            return sq_cmd_usage("bench", "--shapes: at most %d", MAX_SHAPES);
        b->shapes[b->n_shapes++] = t;
    }
    return 0;
}

static int parse(struct bench *b, int argc, char **argv)
{
    enum { ROOF = 1, KERNELS, STEPS, SHAPES, CONFIG, THREADS, KERNEL, SAMPLES, QUICK, JSON, HELP };
    static const struct option options[] = {
        {"roof", 0, NULL, ROOF},
        {"kernels", 0, NULL, KERNELS},
        {"steps", 0, NULL, STEPS},
        {"shapes", 1, NULL, SHAPES},
        {"config", 1, NULL, CONFIG},
        {"threads", 1, NULL, THREADS},
        {"kernel", 1, NULL, KERNEL},
        {"samples", 1, NULL, SAMPLES},
        {"quick", 0, NULL, QUICK},
        {"json", 0, NULL, JSON},
        SQ_GPU_OPTIONS,
        {"help", 0, NULL, HELP},
        {0},
    };
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
        int64_t n;
        int rc = 0;
        switch (c) {
        case ROOF:
            b->roof = true;
            break;
        case KERNELS:
            b->steps = false;
            break;
        case STEPS:
            b->kernels = false;
            break;
        case SHAPES:
            rc = parse_shapes(b, optarg);
            break;
        case CONFIG:
            b->config = optarg;
            break;
        case THREADS:
            rc = parse_threads(b, optarg);
            break;
        case KERNEL:
            b->variant = optarg;
            break;
        case SAMPLES:
            if (!sq_parse_i64(optarg, 1, 64, &n))
                return sq_cmd_usage("bench", "--samples: expected 1 to 64, found '%s'", optarg);
            b->n_samples = (int)n;
            break;
        case QUICK:
            b->quick = true;
            b->n_samples = 3;
            break;
        case JSON:
            b->json = true;
            break;
        case 'h':
        case HELP:
            help(stdout);
            return -1;
        default:
            if (c >= SQ_GPU_OPT) {
                rc = sq_gpu_cmd_option(&b->gpu, c, optarg);
                break;
            }
            return sq_cmd_usage("bench", "unknown option or missing value near '%s'",
                                argv[optind - 1]);
        }
        if (rc)
            return rc;
    }
    if (optind < argc)
        return sq_cmd_usage("bench", "unexpected argument '%s'", argv[optind]);
    if (!b->roof && !b->gpu.layer && !b->gpu.tune)
        return sq_cmd_usage("bench", "nothing to do: give --roof");
    if (!b->gpu.layer && (b->gpu.stage.n || b->gpu.vocab))
        return sq_cmd_usage("bench", "%s is of --layer",
                            b->gpu.stage.n ? "--stage" : "--vocabulary");
    if (!b->kernels && !b->steps)
        return sq_cmd_usage("bench", "--kernels and --steps exclude each other");
    return 0;
}

static void print_kernel(void *ctx, const struct sq_roof_cell *c)
{
    struct bench *b = ctx;
    const char *of = c->by_bandwidth ? "bandwidth" : "int8",
               *unit = c->by_bandwidth ? "GB/s" : "GOP/s";
    if (b->json)
        printf("%s{\"k\": %zu, \"n\": %zu, \"m\": %d, \"threads\": %d, \"us\": %.2f, \"rate\": "
               "%.2f, \"peak\": %.2f, \"unit\": \"%s\", "
               "\"share\": %.4f, \"share_min\": %.4f, \"share_max\": %.4f, \"of\": \"%s\"}",
               b->n_printed ? ",\n  " : "", c->k, c->n, c->m, c->threads, c->us, c->rate, c->probe,
               unit, c->share, c->share_min, c->share_max, of);
    else
        printf("%5zu x %-5zu  M=%-4d %d thread%s  %10.1f us %8.1f of %7.1f %-5s  %5.1f %% of %s "
               "[%.1f-%.1f]\n",
               c->k, c->n, c->m, c->threads, c->threads == 1 ? " " : "s", c->us, c->rate, c->probe,
               unit, 100 * c->share, c->by_bandwidth ? "read bandwidth" : "the INT8 peak",
               100 * c->share_min, 100 * c->share_max);
    b->n_printed++;
    fflush(stdout);
}

static void print_step(struct bench *b, const struct sq_step_figure *f)
{
    if (b->json)
        printf("%s{\"shape\": \"%s\", \"stage\": \"%s\", \"threads\": %d, \"ms\": %.3f, "
               "\"tokens_per_s\": %.1f, \"share\": %.4f, \"share_all_rows\": %.4f, \"peak\": %.4g, "
               "\"of\": \"%s\"}",
               b->n_printed ? ",\n  " : "", f->shape, f->stage, f->threads, f->ms, f->tokens_per_s,
               f->share, f->share_all_rows, f->peak, f->of_bandwidth ? "bandwidth" : "int8");
    else
        printf("%-9s %-12s %d thread%s  %9.2f ms %9.1f tokens/s   %.3f of %s (%.3f with all head "
               "rows)\n",
               f->shape, f->stage, f->threads, f->threads == 1 ? " " : "s", f->ms, f->tokens_per_s,
               f->share, f->of_bandwidth ? "read bandwidth" : "the INT8 peak", f->share_all_rows);
    b->n_printed++;
    fflush(stdout);
}

static int run_kernels(struct bench *b, struct sq_err *err)
{
    struct sq_roof_options o = {.variant = b->variant, .quick = b->quick};
    for (int i = 0; i < b->n_threads; i++)
        o.threads[i] = b->threads[i];
    return sq_roof_run(&o, print_kernel, b, err);
}

static int run_shape(struct bench *b, const char *name, struct sq_config *config,
                     struct sq_err *err)
{
    config->scheme = SQ_SCHEME_W8A8_STATIC;
    int rc = 0;
    for (int i = 0; i < b->n_threads && !rc; i++) {
        struct sq_step_figure f[SQ_N_STEP_FIGURES];
        struct sq_step_options o = {.name = name,
                                    .config = config,
                                    .threads = b->threads[i],
                                    .variant = b->variant,
                                    .n_samples = b->n_samples};
        rc = sq_bench_steps(&o, f, err);
        for (int k = 0; k < SQ_N_STEP_FIGURES && !rc; k++)
            print_step(b, &f[k]);
    }
    return rc;
}

static int run_steps(struct bench *b, struct sq_err *err)
{
    struct sq_config config;
    int rc = 0;
    b->n_printed = 0;
    if (b->config) {
        rc = sq_shape_file(b->config, &config, err);
        return rc ? rc : run_shape(b, "config", &config, err);
    }
    for (int i = 0; i < b->n_shapes && !rc; i++) {
        rc = sq_shape_config(b->shapes[i], &config, err);
        if (!rc)
            rc = run_shape(b, b->shapes[i], &config, err);
    }
    return rc;
}

static int run_gpu(const struct bench *b)
{
    struct sq_gpu_cmd c = b->gpu;
    c.shapes = b->shapes;
    c.n_shapes = b->shapes_given ? b->n_shapes : 0;
    c.config = b->config;
    c.n_samples = b->n_samples;
    c.n_threads = b->threads[0];
    c.quick = b->quick;
    c.json = b->json;
    return sq_gpu_cmd_run(&c);
}

int sq_cmd_bench(int argc, char **argv)
{
    struct bench b = {.kernels = true,
                      .steps = true,
                      .threads = {1, 2},
                      .n_threads = 2,
                      .n_samples = 9,
                      .shapes = {"opt-125m", "opt-1.3b"},
                      .n_shapes = 2,
                      .gpu = {.n_layers = -1}};
    int code = parse(&b, argc, argv);
    if (code)
        return code < 0 ? SQ_EXIT_OK : code;
    if (b.gpu.cuda || b.gpu.layer || b.gpu.tune)
        return run_gpu(&b);
    struct sq_err err = {0};
    const char *best = b.variant ? b.variant : sq_cpu_variant_names()[0];
    int rc = 0;
    printf(b.json ? "{\"version\": \"%s\", \"kernel\": \"%s\", \"cpus\": %d"
                  : "sqd %s, kernel %s, %d processors\n\n",
           SQD_VERSION, best, sq_n_cpus());
    if (b.kernels) {
        printf("%s", b.json ? ",\n \"kernels\": [\n  " : "INT8 matmuls, int8 out:\n");
        rc = run_kernels(&b, &err);
        printf("%s", b.json ? "]" : "\n");
    }
    if (b.steps && !rc) {
        printf("%s", b.json ? ",\n \"steps\": [\n  "
                            : "Steps, W8A8 O3 with an int8 head, context 128 to 160:\n");
        rc = run_steps(&b, &err);
        printf("%s", b.json ? "]" : "");
    }
    printf("%s", b.json ? "}\n" : "");
    return rc ? sq_cmd_fail("bench", &err) : sq_cmd_end("bench");
}
