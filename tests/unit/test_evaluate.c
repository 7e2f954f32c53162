/* Perplexity: the loss of one position, windows and what is scored in them, and the schemes on a
 * directory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/backend_cpu.h"
#include "engine/smooth/evaluate.h"
#include "engine/smooth/report.h"
#include "tests/lib/load_fixture.h"

#define MODEL SQD_SOURCE_DIR "/tests/golden/logits/hd64-f32"

static void test_nll(void **state)
{
    const float x[3] = {1, 2, 3}, big[2] = {3e38f, 3e38f}, nan[2] = {0, NAN},
                inf[2] = {INFINITY, 0};
    (void)state;
    double z = exp(1) + exp(2) + exp(3);
    for (size_t i = 0; i < 3; i++)
        assert_true(fabs(sq_nll(x, 3, i) - (log(z) - (double)x[i])) < 1e-12);
    assert_true(fabs(sq_nll(big, 2, 1) - log(2)) < 1e-12);
    assert_false(isfinite(sq_nll(nan, 2, 0)));
    assert_false(isfinite(sq_nll(inf, 2, 1)));
}

struct world {
    struct sq_config c;
    struct sq_file_tensors l;
    struct sq_source *src;
    struct sq_backend *be;
    struct sq_model *m;
};

static void world_init(struct world *w, int32_t bos)
{
    struct sq_err err = {0};
    struct sq_load_options o = {.prefix = P};
    *w = (struct world){.c = sq_load_config(SQ_SCHEME_FLOAT)};
    w->c.bos = bos;
    sq_files_fill(&w->l, &w->c, 5);
    w->src = sq_files_source(&w->l);
    assert_int_equal(sq_cpu_open(&(struct sq_cpu_options){.n_threads = 1}, &w->be, &err), 0);
    assert_int_equal(sq_model_load(w->src, &w->c, w->be, &o, &w->m, &err), 0);
}

static void world_done(struct world *w)
{
    sq_model_free(w->m);
    sq_source_close(w->src);
    sq_files_done(&w->l);
    w->be->ops->close(w->be);
}

struct sum {
    const int32_t *ids;
    int n;
    double nats;
    int n_tokens;
};

static int add(void *ctx, int pos0, int n_rows, const float *logits, struct sq_err *err)
{
    struct sum *s = ctx;
    (void)err;
    for (int i = 0; i < n_rows && pos0 + i + 1 < s->n; i++) {
        s->nats += sq_nll(logits + (size_t)i * 20, 20, (size_t)s->ids[pos0 + i + 1]);
        s->n_tokens++;
    }
    return 0;
}

/* Ten tokens in windows of 5: with a BOS they are 4 + 4 + 2 scored tokens, without 4 + 4 of two
 * windows. */
static void check_windows(int32_t bos, size_t n_scored)
{
    static const int32_t ids[10] = {3, 1, 4, 15, 9, 2, 6, 5, 13, 8};
    struct world w;
    struct sq_player player;
    struct sq_eval_result r = {0};
    struct sq_err err = {0};
    struct sum s = {0};
    world_init(&w, bos);
    assert_int_equal(sq_score(w.m, ids, 10, 5, NULL, &r, &err), 0);
    assert_int_equal(r.n_tokens, n_scored);
    assert_int_equal(sq_player_init(&player, w.m, 5, &err), 0);
    const int take = bos < 0 ? 5 : 4;
    for (int at = 0; at < 10; at += take) {
        int32_t window[5] = {bos};
        int n = take < 10 - at ? take : 10 - at;
        memcpy(window + (bos >= 0), ids + at, (size_t)n * sizeof *ids);
        s.ids = window;
        s.n = n + (bos >= 0);
        assert_int_equal(sq_player_run(&player, window, s.n, NULL, 0, add, &s, &err), 0);
    }
    assert_int_equal(s.n_tokens, n_scored);
    assert_true(fabs(s.nats - r.nats) < 1e-9);
    sq_player_done(&player);
    world_done(&w);
}

static void test_windows(void **state)
{
    (void)state;
    check_windows(2, 10);
    check_windows(-1, 8);
}

struct files {
    char *dir, text[300], calibration[300];
    struct sq_backend *be;
    struct sq_eval_options o;
};

static void files_init(struct files *f)
{
    struct sq_err err = {0};
    *f = (struct files){.dir = sq_files_mkdir()};
    sq_files_write_text(f->dir, "text", "the quick brown fox jumps over the lazy dog");
    sq_files_write_text(f->dir, "calibration", "and then the other one\njumps over the fox\n");
    snprintf(f->text, sizeof f->text, "%s/text", f->dir);
    snprintf(f->calibration, sizeof f->calibration, "%s/calibration", f->dir);
    f->o = (struct sq_eval_options){
        .model_dir = MODEL,
        .text = f->text,
        .recipe = {
            .alpha = 0.5, .folds = SQ_FOLDS_ALL, .calibration = f->calibration, .max_passages = 8}};
    assert_int_equal(sq_cpu_open(&(struct sq_cpu_options){.n_threads = 1}, &f->be, &err), 0);
}

static void files_done(struct files *f)
{
    f->be->ops->close(f->be);
    sq_files_rmdir(f->dir);
}

static void test_schemes(void **state)
{
    static const enum sq_eval_scheme schemes[] = {SQ_EVAL_AS_STORED, SQ_EVAL_FLOAT, SQ_EVAL_NAIVE,
                                                  SQ_EVAL_O1, SQ_EVAL_O3};
    struct files f;
    struct sq_eval_result r[5] = {0};
    (void)state;
    files_init(&f);
    for (size_t i = 0; i < 5; i++) {
        struct sq_err err = {0};
        f.o.scheme = schemes[i];
        if (sq_evaluate(&f.o, f.be, NULL, &r[i], &err))
            fail_msg("%s: %s", sq_eval_scheme_text(schemes[i]), err.msg);
        assert_int_equal(r[i].n_bytes, 43);
        assert_int_equal(r[i].context, 128);
        assert_int_equal(r[i].n_tokens, r[0].n_tokens);
        assert_true(fabs(r[i].perplexity - exp(r[i].nats / (double)r[i].n_tokens)) < 1e-9);
        assert_true(fabs(r[i].nats / r[0].nats - 1) < 0.05);
    }
    assert_true(r[0].nats == r[1].nats);
    for (size_t i = 2; i < 5; i++)
        assert_true(r[i].nats != r[0].nats);
    files_done(&f);
}

static void test_refusals(void **state)
{
    struct files f;
    struct sq_err err = {0};
    struct sq_eval_result r = {.n_tokens = 77};
    (void)state;
    files_init(&f);
    f.o.context = 129;
    assert_int_equal(sq_evaluate(&f.o, f.be, NULL, &r, &err), -SQ_E_INVAL);
    assert_non_null(strstr(err.msg, "2 to 128"));
    f.o.context = 0;
    sq_files_write_text(f.dir, "text", "");
    assert_int_equal(sq_evaluate(&f.o, f.be, NULL, &r, &err), -SQ_E_FORMAT);
    f.o.text = "/no/such/text";
    assert_int_equal(sq_evaluate(&f.o, f.be, NULL, &r, &err), -SQ_E_NOTFOUND);
    assert_int_equal(r.n_tokens, 77);
    files_done(&f);
}

static void test_report(void **state)
{
    char *text = NULL;
    size_t n;
    struct sq_eval_options o = {.model_dir = "a \"b\"\n", .scheme = SQ_EVAL_O3};
    struct sq_eval_result r = {.perplexity = 3, .n_tokens = 5}, against = {.perplexity = 2};
    (void)state;
    FILE *f = open_memstream(&text, &n);
    sq_report_eval(f, true, &o, &r, "dir", &against);
    fclose(f);
    assert_non_null(strstr(text, "\"model\": \"a \\\"b\\\"\\u000a\", \"perplexity\": 3"));
    assert_non_null(strstr(text, "\"scheme\": \"o3\""));
    assert_non_null(strstr(text, "\"ratio\": 1.5}"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nll),     cmocka_unit_test(test_windows),
        cmocka_unit_test(test_schemes), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_report),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
