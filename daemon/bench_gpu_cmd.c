#include "daemon/bench_gpu_cmd.h"

#include <stdio.h>
#include <string.h>

#include "daemon/bench_shapes.h"
#include "daemon/cmd.h"
#include "daemon/gpu.h"
#include "engine/base/check.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/cpu/backend_cpu.h"

#define USUAL_LAYERS 8
#define QUICK_LAYERS 2
#define MAX_STAGES 5

static const struct sq_stage usual_stages[] = {
    {.n = 512},
    {.n = 2048},
    {.decode = true, .n = 1, .context = 1024},
    {.decode = true, .n = 16, .context = 1024},
    {.decode = true, .n = 64, .context = 1024},
};
static const struct sq_stage quick_stages[] = {
    {.n = 40}, {.decode = true, .n = 1, .context = 40}, {.decode = true, .n = 5, .context = 40}};
static const char *const usual_shapes[] = {"opt-6.7b", "opt-13b",    "opt-30b",
                                           "opt-66b",  "llama-3-8b", "llama-3-70b"};
static const char *const quick_shapes[] = {"tiny-opt", "tiny-llama"};

static int set_number(const char *option, const char *value, int64_t max, int *ret)
{
    int64_t n;
    if (!sq_parse_i64(value, 0, max, &n))
        return sq_cmd_usage("bench", "%s: expected 0 to %lld, found '%s'", option, (long long)max,
                            value);
    *ret = (int)n;
    return 0;
}

int sq_gpu_cmd_option(struct sq_gpu_cmd *c, int opt, const char *value)
{
    switch (opt) {
    case SQ_GPU_OPT_BACKEND:
        c->cuda = strcmp(value, "cuda") == 0;
        if (c->cuda || strcmp(value, "cpu") == 0)
            return 0;
        return sq_cmd_usage("bench", "--backend: expected cpu or cuda, found '%s'", value);
    case SQ_GPU_OPT_LAYER:
        c->layer = value;
        return 0;
    case SQ_GPU_OPT_TUNE:
        c->tune = true;
        return 0;
    case SQ_GPU_OPT_STAGE:
        if (sq_stage_parse(value, &c->stage))
            return 0;
        return sq_cmd_usage(
            "bench", "--stage: expected decode:ROWS:CONTEXT or prefill:ROWS, found '%s'", value);
    case SQ_GPU_OPT_SCHEME:
        c->int8 = strcmp(value, "w8a8") == 0;
        c->f16 = strcmp(value, "f16") == 0;
        if (c->int8 || c->f16)
            return 0;
        return sq_cmd_usage("bench", "--scheme: expected w8a8 or f16, found '%s'", value);
    case SQ_GPU_OPT_LAYERS:
        return set_number("--layers", value, 4096, &c->n_layers);
    case SQ_GPU_OPT_VOCABULARY:
        return set_number("--vocabulary", value, 1 << 24, &c->vocab);
    default:
        return set_number("--budget", value, 1 << 20, &c->budget_s);
    }
}

/* --- a run --- */

struct run {
    const struct sq_gpu_cmd *c;
    struct sq_gpu *gpu;
    struct sq_gpu_ceilings ceilings;
    struct sq_stage_bench bench;
    uint64_t start_ns;
    int n_printed;
};

static int open_backend(void *ctx, struct sq_backend **ret, struct sq_err *err)
{
    struct run *r = ctx;
    if (r->gpu)
        return sq_gpu_backend(r->gpu, false, ret, err);
    return sq_cpu_open(&(struct sq_cpu_options){.n_threads = r->c->n_threads}, ret, err);
}

static int measure_ceilings(struct run *r, struct sq_err *err)
{
    struct sq_backend *be;
    int rc = open_backend(r, &be, err);
    if (rc)
        return rc;
    rc = sq_gpu_module(r->gpu)->ceilings(be, r->c->quick, &r->ceilings, err);
    be->ops->close(be);
    return rc;
}

static void stage_name(const struct sq_stage *s, char *name, size_t bytes)
{
    if (s->decode)
        (void)snprintf(name, bytes, "decode B=%d at %d", s->n, s->context);
    else
        (void)snprintf(name, bytes, "prefill %d", s->n);
}

static void begin_entry(struct run *r)
{
    if (r->c->json)
        printf("%s", r->n_printed ? ",\n  " : "");
    r->n_printed++;
}

static void print_header(const struct run *r)
{
    const struct sq_gpu_ceilings *t = &r->ceilings;
    const char *name = sq_gpu_probed(r->gpu)->name;
    if (r->c->json)
        printf("{\"version\": \"%s\", \"device\": \"%s\",\n \"ceilings\": {\"read_GBps\": %.6g, "
               "\"int8_TOPS\": %.6g, \"f16_TFLOPS\": %.6g},\n \"steps\": [\n  ",
               SQD_VERSION, name, t->read_bytes_per_s / 1e9, t->int8_ops_per_s / 1e12,
               t->f16_ops_per_s / 1e12);
    else
        printf("sqd %s, %s\nCeilings, measured: %.1f GB/s read, %.2f INT8 TOPS, %.2f FP16 TFLOPS\n"
               "Whole steps with random weights; shares of the ceilings: read | operations\n\n"
               "%-12s %-18s %10s %10s  %-13s  %10s %10s  %-13s  %s\n",
               SQD_VERSION, name, t->read_bytes_per_s / 1e9, t->int8_ops_per_s / 1e12,
               t->f16_ops_per_s / 1e12, "shape", "stage", "int8 ms", "tokens/s", "share",
               "16-bit ms", "tokens/s", "share", "16-bit / int8");
}

static void print_side(const char *key, const struct sq_stage_figure *f)
{
    printf(", \"%s\": {\"ms\": %.4f, \"tokens_per_s\": %.1f, \"read_share\": %.4f, \"ops_share\": "
           "%.4f, \"layers_measured\": %d}",
           key, f->ms, f->tokens_per_s, f->read_share, f->ops_share, f->n_measured);
}

/* One stage of one shape; a side that was not measured is NULL. */
static void print_stage(struct run *r, const char *shape, const struct sq_stage_figure *int8,
                        const struct sq_stage_figure *f16)
{
    const struct sq_stage_figure *any = int8 ? int8 : f16;
    char name[40];
    stage_name(&any->stage, name, sizeof name);
    begin_entry(r);
    if (r->c->json) {
        printf("{\"shape\": \"%s\", \"stage\": \"%s\", \"layers\": %d", shape, name, any->n_layers);
        if (int8)
            print_side("int8", int8);
        if (f16)
            print_side("f16", f16);
        if (int8 && f16)
            printf(", \"f16_over_int8\": %.4g", f16->ms / int8->ms);
        printf("}");
    } else {
        const struct sq_stage_figure *sides[] = {int8, f16};
        printf("%-12s %-18s", shape, name);
        for (int i = 0; i < 2; i++)
            if (sides[i])
                printf(" %10.3f %10.0f  %5.3f | %5.3f ", sides[i]->ms, sides[i]->tokens_per_s,
                       sides[i]->read_share, sides[i]->ops_share);
            else
                printf(" %10s %10s  %13s ", "-", "-", "");
        if (int8 && f16)
            printf("  %.2f", f16->ms / int8->ms);
        if (any->n_measured < any->n_layers)
            printf("  (%d of %d layers timed)", any->n_measured, any->n_layers);
        printf("\n");
    }
    fflush(stdout);
}

static void print_note(struct run *r, const char *shape, const char *side, const char *why)
{
    begin_entry(r);
    if (r->c->json)
        printf("{\"shape\": \"%s\", \"side\": \"%s\", \"left_out\": \"%s\"}", shape, side, why);
    else
        printf("%-12s %s left out: %s\n", shape, side, why);
    fflush(stdout);
}

/* 0 with *ret_there false where the shape does not fit: the others may. */
static int measure_side(struct run *r, const char *shape, const struct sq_config *config, bool int8,
                        struct sq_stage_figure *f, bool *ret_there, struct sq_err *err)
{
    *ret_there = false;
    if (int8 ? r->c->f16 : r->c->int8)
        return 0;
    int rc = sq_bench_stages(&r->bench, config, int8, f, err);
    if (rc == -SQ_E_LIMIT || rc == -SQ_E_NOMEM) {
        print_note(r, shape, int8 ? "int8" : "f16", err->msg);
        *err = (struct sq_err){0};
        return 0;
    }
    *ret_there = rc == 0;
    return rc;
}

static void print_choice(void *ctx, const struct sq_gpu_choice *t)
{
    struct run *r = ctx;
    const char *way = t->own ? "own" : "library";
    begin_entry(r);
    if (r->c->json)
        printf(
            "{\"linear\": \"%s\", \"n_out\": %zu, \"n_in\": %zu, \"rows\": %d, \"own_us\": %.3f, "
            "\"library_us\": %.3f, \"taken\": \"%s\"}",
            t->name, t->n_out, t->n_in, t->n_rows, t->own_us, t->library_us, way);
    else if (t->own_us > 0)
        printf("%-28s %6zu x %-6zu %3d rows  own %9.2f us  library %9.2f us  %s\n", t->name,
               t->n_out, t->n_in, t->n_rows, t->own_us, t->library_us, way);
    else
        printf("%-28s %6zu x %-6zu %3d rows  not timed on this device  %s\n", t->name, t->n_out,
               t->n_in, t->n_rows, way);
}

static int run_shape(struct run *r, const char *shape, const struct sq_config *config,
                     struct sq_err *err)
{
    struct sq_stage_figure int8[MAX_STAGES], f16[MAX_STAGES];
    bool has_int8 = false, has_f16 = false;
    const double spent_s = (double)(sq_now_ns() - r->start_ns) / 1e9;
    if (r->c->tune)
        return sq_bench_choices(&r->bench, config, sq_gpu_module(r->gpu), print_choice, r, err);
    if (r->c->budget_s && spent_s > r->c->budget_s) {
        print_note(r, shape, "all", "no time left");
        return 0;
    }
    int rc = measure_side(r, shape, config, true, int8, &has_int8, err);
    if (!rc)
        rc = measure_side(r, shape, config, false, f16, &has_f16, err);
    for (int i = 0; i < r->bench.n_stages && !rc && (has_int8 || has_f16); i++)
        print_stage(r, shape, has_int8 ? &int8[i] : NULL, has_f16 ? &f16[i] : NULL);
    return rc;
}

static int run_shapes(struct run *r, struct sq_err *err)
{
    const struct sq_gpu_cmd *c = r->c;
    const char *const *shapes = c->n_shapes ? c->shapes : c->quick ? quick_shapes : usual_shapes;
    int n = c->n_shapes ? c->n_shapes
            : c->quick  ? (int)SQ_ARRAY_LEN(quick_shapes)
                        : (int)SQ_ARRAY_LEN(usual_shapes);
    struct sq_config config;
    int rc = 0;
    if (c->config) {
        rc = sq_shape_file(c->config, &config, err);
        return rc ? rc : run_shape(r, "config", &config, err);
    }
    for (int i = 0; i < n && !rc; i++) {
        rc = sq_shape_config(shapes[i], &config, err);
        if (!rc)
            rc = run_shape(r, shapes[i], &config, err);
    }
    return rc;
}

static int run_roof(struct run *r, struct sq_err *err)
{
    const struct sq_gpu_cmd *c = r->c;
    r->bench.ceilings = &r->ceilings;
    r->bench.stages = c->quick ? quick_stages : usual_stages;
    r->bench.n_stages =
        c->quick ? (int)SQ_ARRAY_LEN(quick_stages) : (int)SQ_ARRAY_LEN(usual_stages);
    r->bench.n_layers = c->n_layers >= 0 ? c->n_layers : c->quick ? QUICK_LAYERS : USUAL_LAYERS;
    r->bench.fill_cache = true;
    int rc = measure_ceilings(r, err);
    if (rc)
        return rc;
    print_header(r);
    rc = run_shapes(r, err);
    printf("%s", c->json ? "]}\n" : "");
    return rc;
}

static int run_tune(struct run *r, struct sq_err *err)
{
    static const struct sq_stage rows = {.decode = true, .n = 64, .context = 1};
    r->bench.stages = &rows;
    r->bench.n_stages = 1;
    r->bench.n_layers = 1;
    const char *name = sq_gpu_probed(r->gpu)->name;
    if (r->c->json)
        printf("{\"version\": \"%s\", \"device\": \"%s\",\n \"matmuls\": [\n  ", SQD_VERSION, name);
    else
        printf("sqd %s, %s\n", SQD_VERSION, name);
    int rc = run_shapes(r, err);
    printf("%s", r->c->json ? "]}\n" : "");
    return rc;
}

/* A layer's launches are what two runs of this differ by, with one layer and with two. */
static int run_layer(struct run *r, struct sq_err *err)
{
    struct sq_config config;
    int rc = sq_shape_config(r->c->layer, &config, err);
    r->bench.stages = &r->c->stage;
    r->bench.n_stages = 1;
    r->bench.vocab = r->c->vocab;
    if (!rc) {
        r->bench.n_layers = r->c->n_layers < 0 ? 1
                            : r->c->n_layers   ? r->c->n_layers
                                               : config.n_layers;
        rc = sq_bench_repeat(&r->bench, &config, !r->c->f16, err);
    }
    if (!rc)
        printf("{\"shape\": \"%s\", \"layers\": %d, \"hidden\": %d, \"ffn\": %d, \"heads\": %d, "
               "\"kv_heads\": %d, \"head_dim\": %d, \"gated\": %s, \"model_layers\": %d, "
               "\"vocab\": %d}\n",
               r->c->layer, r->bench.n_layers, config.hidden, config.ffn, config.n_heads,
               config.n_kv_heads, config.head_dim,
               config.family->names[SQ_R_GATE] ? "true" : "false", config.n_layers, config.vocab);
    return rc;
}

int sq_gpu_cmd_run(const struct sq_gpu_cmd *c)
{
    struct run r = {.c = c, .start_ns = sq_now_ns()};
    struct sq_err err = {0};
    if (c->layer && !c->stage.n)
        return sq_cmd_usage("bench", "--layer needs --stage");
    if (c->tune && (!c->cuda || c->layer))
        return sq_cmd_usage("bench", "--tune is of --backend cuda, and a run of its own");
    if (!c->layer && c->n_layers == 1)
        return sq_cmd_usage("bench", "--layers: expected 0 or at least 2, found 1: the cost of a "
                                     "layer is what two builds differ by");
    r.bench = (struct sq_stage_bench){.open = open_backend, .ctx = &r, .n_samples = c->n_samples};
    int rc = c->cuda ? sq_gpu_open(false, &r.gpu, &err) : 0;
    if (!rc)
        rc = c->layer ? run_layer(&r, &err) : c->tune ? run_tune(&r, &err) : run_roof(&r, &err);
    sq_gpu_close(r.gpu);
    if (rc)
        return sq_cmd_fail("bench", &err);
    return sq_cmd_end("bench");
}
