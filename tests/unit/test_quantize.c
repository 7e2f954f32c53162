/* Quantising: the tensors, the directory that is written, and what is left behind when it goes
 * wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/quant.h"
#include "engine/smooth/quantize.h"
#include "engine/smooth/sites.h"
#include "tests/lib/load_fixture.h"

#define GOLDEN SQD_SOURCE_DIR "/tests/golden/logits/"
#define MODEL GOLDEN "hd64-f32" /* the one with a tokenizer */

/* --- the source --- */

struct stack {
    struct sq_config c;
    struct sq_file_tensors l;
    struct sq_source *src, *q;
    struct sq_stats *stats;
    struct sq_steps steps;
};

static void stack_init(struct stack *k, bool per_tensor, bool dynamic)
{
    struct sq_err err = {0};
    *k = (struct stack){.c = sq_load_config(SQ_SCHEME_FLOAT)};
    sq_files_fill(&k->l, &k->c, 3);
    k->src = sq_files_source(&k->l);
    float zeros[16] = {0}, *v = calloc(24 * 16, sizeof *v);
    size_t shape[2] = {24, 16};
    for (int i = 0; i < 24 * 16; i++)
        v[i] = (float)(i % 31 - 15) / 8;
    memcpy(v + 5 * 16, zeros, sizeof zeros); /* a dead unit */
    sq_files_put(&k->l, L0 "fc1.weight", SQ_F32, 2, shape, v);
    free(v);
    assert_int_equal(sq_stats_new(&k->c, &k->stats, &err), 0);
    for (int i = 0; i < k->c.n_layers * SQ_N_SITES; i++)
        for (size_t j = 0; j < k->stats->dim[i % SQ_N_SITES]; j++)
            k->stats->absmax[i][j] = (float)(1 + i) + (float)j / 64;
    assert_int_equal(sq_steps_make(k->stats, &k->c, NULL, &k->steps, &err), 0);
    assert_int_equal(sq_quant_source_open(k->src, &k->c, P, per_tensor, dynamic ? NULL : &k->steps,
                                          NULL, &k->q, &err),
                     0);
}

static void stack_done(struct stack *k)
{
    sq_source_close(k->q);
    sq_source_close(k->src);
    sq_steps_done(&k->steps);
    sq_stats_free(k->stats);
    sq_files_done(&k->l);
}

static void read_all(struct sq_source *s, const char *name, enum sq_dtype dtype, int rank,
                     void *dst)
{
    struct sq_tensor_info t;
    struct sq_err err = {0};
    assert_true(s->ops->find(s, name, &t));
    assert_int_equal(t.dtype, dtype);
    assert_int_equal(t.rank, rank);
    assert_int_equal(s->ops->read(s, name, 0, sq_tensor_rows(&t), dst, &err), 0);
}

static void check_codes(bool per_tensor)
{
    struct stack k;
    stack_init(&k, per_tensor, false);
    float w[24 * 16], scale[24];
    int8_t codes[24 * 16];
    read_all(k.src, L0 "fc1.weight", SQ_F32, 2, w);
    read_all(k.q, L0 "fc1.weight", SQ_I8, 2, codes);
    read_all(k.q, L0 "fc1.weight_scale", SQ_F32, per_tensor ? 1 : 2, scale);
    float all = 15.0f / 8 / 127;
    for (int r = 0; r < 24; r++) {
        float s = scale[per_tensor ? 0 : r], most = 0;
        assert_true(sq_scale_ok(s));
        for (int j = 0; j < 16; j++)
            most = fmaxf(most, fabsf(w[r * 16 + j]));
        if (per_tensor)
            assert_true(s == all);
        else if (most > 0)
            assert_true(s == most / 127);
        else
            assert_true(s > 0 && s < all); /* fine enough for the row's bias */
        for (int j = 0; j < 16; j++)
            assert_int_equal(codes[r * 16 + j], lrintf(w[r * 16 + j] / s));
    }
    int8_t some[2 * 16];
    assert_int_equal(k.q->ops->read(k.q, L0 "fc1.weight", 20, 2, some, NULL), 0);
    assert_memory_equal(some, codes + 20 * 16, sizeof some);
    stack_done(&k);
}

static void test_codes(void **state)
{
    (void)state;
    check_codes(false);
    check_codes(true);
}

static void test_steps(void **state)
{
    struct stack k;
    struct sq_tensor_info t;
    float q, kk, v, o;
    (void)state;
    stack_init(&k, false, false);
    read_all(k.q, L1 "self_attn.q_proj.input_scale", SQ_F32, 1, &q);
    read_all(k.q, L1 "self_attn.k_proj.input_scale", SQ_F32, 1, &kk);
    read_all(k.q, L1 "self_attn.v_proj.input_scale", SQ_F32, 1, &v);
    assert_true(q == kk && q == v);
    assert_true(fabsf(q * 127 - (6 + 15.0f / 64)) < 1e-5f);
    read_all(k.q, L1 "self_attn.v_proj.output_scale", SQ_F32, 1, &v);
    assert_true(fabsf(v * 127 - (10 + 47.0f / 64)) < 1e-5f);
    read_all(k.q, L1 "self_attn.q_proj.output_scale", SQ_F32, 1, &q);
    assert_true(fabsf(q * 127 - (10 + 15.0f / 64)) < 1e-5f);
    read_all(k.q, L1 "fc2.input_scale", SQ_F32, 1, &o);
    assert_true(fabsf(o * 127 - (9 + 23.0f / 64)) < 1e-5f);
    assert_false(k.q->ops->find(k.q, L1 "fc2.output_scale", &t));
    assert_false(k.q->ops->find(k.q, P "final_layer_norm.input_scale", &t));
    assert_true(k.q->ops->find(k.q, P "embed_tokens.weight", &t));
    assert_int_equal(t.dtype, SQ_F16);
    stack_done(&k);
    stack_init(&k, false, true);
    assert_false(k.q->ops->find(k.q, L1 "fc2.input_scale", &t));
    assert_false(k.q->ops->find(k.q, L1 "self_attn.q_proj.output_scale", &t));
    assert_true(k.q->ops->find(k.q, L1 "fc2.weight_scale", &t));
    stack_done(&k);
}

static void test_weights_that_are_not_finite(void **state)
{
    struct stack k;
    struct sq_err err = {0};
    size_t shape[2] = {16, 24};
    struct sq_source *q = NULL;
    (void)state;
    stack_init(&k, false, false);
    float v[16 * 24] = {0};
    v[30] = NAN;
    sq_files_put(&k.l, L1 "fc2.weight", SQ_F32, 2, shape, v);
    assert_int_equal(sq_quant_source_open(k.src, &k.c, P, false, NULL, NULL, &q, &err),
                     -SQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "fc2.weight"));
    assert_null(q);
    stack_done(&k);
}

/* --- the directory --- */

static const char text[] = "the quick brown fox jumps over the lazy dog\n\nand then the other one\n"
                           "jumps over the quick dog\n\nsphinx of black quartz, judge my vow\n";

struct job {
    char *tmp;
    char out[300], calibration[300];
    struct sq_quantize_options o;
    struct sq_backend *be;
    struct sq_quantize_report report;
};

static void job_init(struct job *j)
{
    struct sq_err err = {0};
    *j = (struct job){.tmp = sq_files_mkdir()};
    snprintf(j->out, sizeof j->out, "%s/out", j->tmp);
    snprintf(j->calibration, sizeof j->calibration, "%s/text", j->tmp);
    sq_files_write(j->tmp, "text", text, sizeof text - 1);
    j->o = (struct sq_quantize_options){.model_dir = MODEL,
                                        .out_dir = j->out,
                                        .recipe = {.alpha = 0.5,
                                                   .folds = SQ_FOLDS_ALL,
                                                   .calibration = j->calibration,
                                                   .max_passages = 10}};
    assert_int_equal(sq_cpu_open(&(struct sq_cpu_options){.n_threads = 1}, &j->be, &err), 0);
}

/* Entries of the temporary directory beside the text. */
static int left_behind(const struct job *j)
{
    int n = 0;
    DIR *d = opendir(j->tmp);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..") && strcmp(e->d_name, "text");
    closedir(d);
    return n;
}

static void remove_out(struct job *j)
{
    sq_files_rmdir(sq_strdup(j->out));
}

static void job_done(struct job *j)
{
    j->be->ops->close(j->be);
    sq_files_rmdir(j->tmp);
}

static void must(struct job *j)
{
    struct sq_err err = {0};
    if (sq_quantize(&j->o, j->be, NULL, &j->report, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(left_behind(j), 1);
}

static char *slurp(const char *dir, const char *name, size_t *ret_n)
{
    char path[600], *data = NULL;
    struct sq_err err = {0};
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_int_equal(sq_text_load(path, &data, ret_n, &err), 0);
    return data;
}

static void same_file(const char *a, const char *b, const char *name)
{
    size_t n, m;
    char *x = slurp(a, name, &n), *y = slurp(b, name, &m);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    sq_free(x);
    sq_free(y);
}

/* Every tensor of a is in b with the same bytes. */
static void same_tensors(const char *a, const char *b)
{
    struct sq_model_dir *x = NULL, *y = NULL;
    struct sq_err err = {0};
    assert_int_equal(sq_model_dir_open(a, &x, &err), 0);
    assert_int_equal(sq_model_dir_open(b, &y, &err), 0);
    const char *name;
    size_t n = 0;
    for (; (name = x->source->ops->name(x->source, n)); n++) {
        struct sq_tensor_info s, t;
        assert_true(x->source->ops->find(x->source, name, &s));
        assert_true(y->source->ops->find(y->source, name, &t));
        assert_int_equal(s.dtype, t.dtype);
        assert_int_equal(s.n_elems, t.n_elems);
        size_t bytes = s.n_elems * sq_dtype_bytes(s.dtype);
        char *p = malloc(bytes), *q = malloc(bytes);
        assert_int_equal(x->source->ops->read(x->source, name, 0, sq_tensor_rows(&s), p, &err), 0);
        assert_int_equal(y->source->ops->read(y->source, name, 0, sq_tensor_rows(&t), q, &err), 0);
        assert_memory_equal(p, q, bytes);
        free(p);
        free(q);
    }
    assert_null(y->source->ops->name(y->source, n));
    sq_model_dir_close(x);
    sq_model_dir_close(y);
}

static void load_must(const char *dir, enum sq_scheme scheme, bool int8_attention,
                      struct sq_backend *be)
{
    struct sq_model_dir *d = NULL;
    struct sq_model *m = NULL;
    struct sq_err err = {0};
    assert_int_equal(sq_model_dir_open(dir, &d, &err), 0);
    assert_int_equal(d->config.scheme, scheme);
    struct sq_load_options o = {.prefix = d->prefix};
    if (sq_model_load(d->source, &d->config, be, &o, &m, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(m->int8_attention, int8_attention);
    sq_model_free(m);
    sq_model_dir_close(d);
}

static void test_directory(void **state)
{
    struct job j, parts;
    size_t n;
    (void)state;
    job_init(&j);
    must(&j);
    assert_true(j.report.verify_diff == 0);
    assert_int_equal(j.report.n_passages, 3);
    assert_int_equal(j.report.n_folds, 4);
    load_must(j.out, SQ_SCHEME_W8A8_STATIC, true, j.be);
    same_file(MODEL, j.out, "tokenizer.json");
    same_file(MODEL, j.out, "generation_config.json");
    char *config = slurp(j.out, "config.json", &n);
    assert_non_null(strstr(config, "\"quantization_status\": \"compressed\""));
    assert_non_null(strstr(config, "\"word_embed_proj_dim\": 64"));
    sq_free(config);

    job_init(&parts); /* the same model in several files, into an empty directory */
    parts.o.shard_bytes = 50000;
    assert_int_equal(mkdir(parts.out, 0777), 0);
    must(&parts);
    sq_free(slurp(parts.out, "model.safetensors.index.json", &n));
    same_tensors(j.out, parts.out);
    remove_out(&parts);
    job_done(&parts);
    remove_out(&j);

    j.o.recipe.dynamic = j.o.recipe.per_tensor = true;
    must(&j);
    load_must(j.out, SQ_SCHEME_W8A8_DYNAMIC, false, j.be);
    remove_out(&j);
    job_done(&j);
}

#define N_IDS 60
#define MAX_LOGITS (N_IDS * 512)

struct logits {
    float v[MAX_LOGITS];
    size_t n;
};

static int keep_logits(void *ctx, int pos0, int n_rows, const float *logits, struct sq_err *err)
{
    struct logits *l = ctx;
    size_t vocab = l->n; /* of one row, as the caller left it there */
    (void)err;
    assert_true((size_t)(pos0 + n_rows) * vocab <= MAX_LOGITS);
    memcpy(l->v + (size_t)pos0 * vocab, logits, (size_t)n_rows * vocab * sizeof *logits);
    return 0;
}

static void run_model(const char *dir, struct sq_backend *be, struct logits *ret)
{
    struct sq_model_dir *d = NULL;
    struct sq_model *m = NULL;
    struct sq_player p;
    struct sq_err err = {0};
    int32_t ids[N_IDS];
    for (int i = 0; i < N_IDS; i++)
        ids[i] = i ? 4 + i * i * 7 % 250 : 2;
    assert_int_equal(sq_model_dir_open(dir, &d, &err), 0);
    struct sq_load_options o = {.prefix = d->prefix};
    assert_int_equal(sq_model_load(d->source, &d->config, be, &o, &m, &err), 0);
    assert_int_equal(sq_player_init(&p, m, N_IDS, &err), 0);
    ret->n = (size_t)d->config.vocab;
    assert_int_equal(sq_player_run(&p, ids, N_IDS, NULL, 0, keep_logits, ret, &err), 0);
    ret->n *= N_IDS;
    sq_player_done(&p);
    sq_model_free(m);
    sq_model_dir_close(d);
}

/* Int8 from end to end computes about what the float model does: a wrong scale, pair or rotation anywhere does not. */
static void check_close(const char *model, const char *quantised, struct sq_backend *be)
{
    static struct logits a, b;
    double ab = 0, aa = 0, bb = 0;
    run_model(model, be, &a);
    run_model(quantised, be, &b);
    for (size_t i = 0; i < a.n; i++) {
        ab += (double)a.v[i] * (double)b.v[i];
        aa += (double)a.v[i] * (double)a.v[i];
        bb += (double)b.v[i] * (double)b.v[i];
    }
    print_message("    correlation %.5f\n", ab / sqrt(aa * bb));
    if (!(ab / sqrt(aa * bb) > 0.97))
        fail_msg("logits correlate by %g only", ab / sqrt(aa * bb));
}

static void test_other_shapes(void **state)
{
    static const char *const names[] = {
        "hd80-f16",      "postnorm-f16",        "sharded-bf16",     "untied-nobias-f16",
        "llama-d16-f32", "llama-d64-tied-bf16", "llama-scaled-f16", "llama-linear-bias-f16"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct job j;
        char model[300], copy[2000];
        job_init(&j);
        /* a copy of the directory with a tokenizer whose ids are below every vocabulary here */
        snprintf(model, sizeof model, "%s/model", j.tmp);
        assert_int_equal(mkdir(model, 0777), 0);
        snprintf(copy, sizeof copy,
                 "cp " GOLDEN "%s/*.json " GOLDEN "%s/*.safetensors %s/ && "
                 "cp " GOLDEN "bytes-tokenizer.json %s/tokenizer.json",
                 names[i], names[i], model, model);
        assert_int_equal(system(copy), 0);
        j.o.model_dir = model;
        struct sq_err err = {0};
        if (sq_quantize(&j.o, j.be, NULL, &j.report, &err))
            fail_msg("%s: %s", names[i], err.msg);
        assert_true(j.report.verify_diff == 0);
        load_must(j.out, SQ_SCHEME_W8A8_STATIC, true, j.be);
        if (strcmp(names[i], "postnorm-f16") == 0) {
            assert_int_equal(j.report.folds[0].state, SQ_FOLD_POST_NORM);
            size_t n;
            char *config = slurp(j.out, "config.json", &n);
            assert_non_null(strstr(config, "\"model.decoder.project_in\""));
            sq_free(config);
        }
        print_message("%s\n", names[i]);
        check_close(model, j.out, j.be);
        if (strncmp(names[i], "llama", 5) == 0) {
            assert_int_equal(j.report.folds[1].state, SQ_FOLD_APPLIED);
            assert_string_equal(j.report.folds[1].what,
                                "post_attention_layernorm -> gate_proj, up_proj");
            assert_int_equal(j.report.folds[2].state, SQ_FOLD_APPLIED);
            assert_int_equal(j.report.folds[3].state, SQ_FOLD_APPLIED);
        }
        remove_out(&j);
        sq_files_rmdir(sq_strdup(model));
        job_done(&j);
    }
}

static void refused(struct job *j, int code, const char *word)
{
    struct sq_err err = {0};
    assert_int_equal(sq_quantize(&j->o, j->be, NULL, &j->report, &err), -code);
    if (!strstr(err.msg, word))
        fail_msg("expected '%s' in: %s", word, err.msg);
}

static void test_refusals(void **state)
{
    struct job j;
    char file[400];
    (void)state;
    job_init(&j);
    assert_int_equal(mkdir(j.out, 0777), 0);
    sq_files_write_text(j.out, "mine", "precious");
    refused(&j, SQ_E_STATE, "not empty");
    size_t n;
    char *mine = slurp(j.out, "mine", &n);
    assert_string_equal(mine, "precious");
    sq_free(mine);
    remove_out(&j);
    j.o.recipe.calibration = NULL; /* the model has no calibration.txt */
    refused(&j, SQ_E_NOTFOUND, "--calibration");
    j.o.recipe.calibration = file;
    snprintf(file, sizeof file, "%s/none", j.tmp);
    refused(&j, SQ_E_NOTFOUND, "none");
    sq_files_write_text(j.tmp, "empty", " \n\n");
    snprintf(file, sizeof file, "%s/empty", j.tmp);
    refused(&j, SQ_E_FORMAT, "found none");
    unlink(file);
    j.o.recipe.calibration = j.calibration;
    snprintf(file, sizeof file, "%s/no/such/out", j.tmp);
    j.o.out_dir = file;
    refused(&j, SQ_E_NOTFOUND, "parent");
    j.o.out_dir = "/";
    refused(&j, SQ_E_INVAL, "ends in a name");
    assert_int_equal(left_behind(&j), 0);
    j.o.out_dir = j.out;
    must(&j);
    j.o.model_dir = j.out; /* quantised already */
    snprintf(file, sizeof file, "%s/again", j.tmp);
    j.o.out_dir = file;
    refused(&j, SQ_E_NOTSUP, "already");
    assert_int_equal(left_behind(&j), 1);
    remove_out(&j);
    job_done(&j);
}

struct interruption {
    const char *phase;
    _Atomic bool stop;
    bool kill;
};

static void interrupt(void *ctx, const char *phase, double ratio)
{
    struct interruption *i = ctx;
    if (strcmp(phase, i->phase) || ratio > 0.9)
        return;
    i->stop = true;
    if (i->kill)
        kill(getpid(), SIGKILL);
}

static void test_interrupted(void **state)
{
    static const char *const phases[] = {"loading",   "calibrating",     "smoothing",
                                         "verifying", "reading weights", "writing"};
    (void)state;
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
        struct job j;
        struct sq_err err = {0};
        struct interruption x = {.phase = phases[i]};
        struct sq_progress p = {interrupt, &x, &x.stop};
        job_init(&j);
        int rc = sq_quantize(&j.o, j.be, &p, &j.report, &err);
        if (rc != -SQ_E_INTR || left_behind(&j))
            fail_msg("%s: %d, %d left", phases[i], rc, left_behind(&j));
        job_done(&j);
    }
}

static void test_killed(void **state)
{
    struct job j;
    struct stat st;
    (void)state;
    job_init(&j);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct interruption x = {.phase = "writing", .kill = true};
        struct sq_progress p = {interrupt, &x, NULL};
        struct sq_err err = {0};
        _exit(sq_quantize(&j.o, j.be, &p, &j.report, &err) ? 2 : 0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(stat(j.out, &st), -1);
    assert_int_equal(left_behind(&j), 1); /* the hidden temporary directory */
    DIR *d = opendir(j.tmp);
    for (struct dirent *e; (e = readdir(d));)
        if (strncmp(e->d_name, ".out.sqd-", 9) == 0) {
            char path[600];
            snprintf(path, sizeof path, "%s/%s", j.tmp, e->d_name);
            sq_files_rmdir(sq_strdup(path));
        }
    closedir(d);
    assert_int_equal(left_behind(&j), 0);
    must(&j); /* nothing stands in the way of the next run */
    remove_out(&j);
    job_done(&j);
}

static void test_memory_runs_out(void **state)
{
    struct job j;
    struct sq_err err = {0};
    int failures = 0;
    (void)state;
    job_init(&j);
    sq_mem_fail_at(0, false);
    must(&j);
    const uint64_t n = sq_mem_count();
    remove_out(&j);
    for (uint64_t k = 1; k <= n; k += 1 + n / 150) {
        sq_mem_fail_at(k, false);
        int rc = sq_quantize(&j.o, j.be, NULL, &j.report, &err);
        sq_mem_fail_at(0, false);
        if (rc) {
            failures++;
            if (rc != -SQ_E_NOMEM || left_behind(&j))
                fail_msg("allocation %zu: %d (%s), %d left", (size_t)k, rc, err.msg,
                         left_behind(&j));
        } else {
            remove_out(&j);
        }
    }
    assert_true(failures > 50);
    job_done(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codes),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_weights_that_are_not_finite),
        cmocka_unit_test(test_directory),
        cmocka_unit_test(test_other_shapes),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_interrupted),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_memory_runs_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
