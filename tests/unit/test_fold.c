/* Smoothing factors and folds: the formula by hand, exactness to the last bit, and that a wrong
 * fold is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/backend_cpu.h"
#include "engine/smooth/fold.h"
#include "engine/smooth/sites.h"
#include "engine/smooth/verify.h"
#include "tests/lib/load_fixture.h"

struct world {
    struct sq_config c;
    struct sq_file_tensors l;
    struct sq_source *src;
    struct sq_backend *be;
    struct sq_passages passages;
    int32_t ids[14];
    size_t start[4];
    struct sq_stats *stats;
};

static struct sq_model *load(struct world *w, struct sq_source *src)
{
    struct sq_model *m = NULL;
    struct sq_err err = {0};
    struct sq_load_options o = {.prefix = P, .allow_surplus = true};
    if (sq_model_load(src, &w->c, w->be, &o, &m, &err))
        fail_msg("%s", err.msg);
    return m;
}

static void world_init(struct world *w, const struct sq_config *c)
{
    *w = (struct world){.c = *c, .start = {0, 1, 6, 14}};
    struct sq_err err = {0};
    for (int i = 0; i < 14; i++)
        w->ids[i] = i == 0 || i == 1 || i == 6 ? 2 : (i * 7) % 20;
    w->passages = (struct sq_passages){.n = 3, .start = w->start, .ids = w->ids};
    sq_files_fill(&w->l, c, 11);
    w->src = sq_files_source(&w->l);
    assert_int_equal(sq_cpu_open(&(struct sq_cpu_options){.n_threads = 1}, &w->be, &err), 0);
    struct sq_model *m = load(w, w->src);
    assert_int_equal(sq_calibrate(m, &w->passages, true, NULL, &w->stats, &err), 0);
    sq_model_free(m);
}

static void world_done(struct world *w)
{
    sq_stats_free(w->stats);
    sq_source_close(w->src);
    sq_files_done(&w->l);
    w->be->ops->close(w->be);
}

static struct sq_smoothing *smooth(struct world *w, double alpha, enum sq_fold_set set)
{
    struct sq_smoothing *m = NULL;
    struct sq_err err = {0};
    assert_int_equal(sq_smoothing_make(w->src, &w->c, P, w->stats, alpha, set, false, &m, &err), 0);
    return m;
}

static float *values(struct sq_source *s, const char *name, struct sq_tensor_info *t)
{
    assert_true(s->ops->find(s, name, t));
    float *v = calloc(t->n_elems, sizeof *v);
    assert_int_equal(sq_source_read_f32(s, name, 0, sq_tensor_rows(t), v, NULL), 0);
    return v;
}

static void test_stats_leave_the_first_token_out(void **state)
{
    struct world w;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_stats *all = NULL;
    struct sq_err err = {0};
    (void)state;
    world_init(&w, &c);
    assert_int_equal(w.stats->n_tokens, 0 + 4 + 7);
    struct sq_model *m = load(&w, w.src);
    assert_int_equal(sq_calibrate(m, &w.passages, false, NULL, &all, &err), 0);
    assert_int_equal(all->n_tokens, 14);
    int larger = 0;
    for (int i = 0; i < w.c.n_layers * SQ_N_SITES; i++)
        for (size_t j = 0; j < w.stats->dim[i % SQ_N_SITES]; j++) {
            assert_true(all->absmax[i][j] >= w.stats->absmax[i][j]);
            larger += all->absmax[i][j] > w.stats->absmax[i][j];
        }
    assert_true(larger > 0);
    struct sq_passages only_first = {.n = 1, .start = w.start, .ids = w.ids};
    assert_int_equal(sq_calibrate(m, &only_first, true, NULL, &all, &err), -SQ_E_FORMAT);
    sq_stats_free(all);
    sq_model_free(m);
    world_done(&w);
}

/* s of norm1 -> q, k, v from the formula, v's rows divided by its own factor first. */
static void test_formula(void **state)
{
    static const char *const readers[] = {
        L1 "self_attn.q_proj.weight", L1 "self_attn.k_proj.weight", L1 "self_attn.v_proj.weight"};
    struct world w;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_tensor_info t;
    (void)state;
    world_init(&w, &c);
    const double alpha = 0.25;
    for (int j = 0; j < 16; j++) /* small factors of v, so that its divided rows are the largest */
        w.stats->absmax[SQ_N_SITES + SQ_SITE_O_IN][j] = 1e-4f;
    struct sq_smoothing *m = smooth(&w, alpha, SQ_FOLDS_ALL);
    const float *s = sq_smoothing_in(m, SQ_R_K, 1), *s_v = sq_smoothing_out(m, SQ_R_V, 1);
    assert_ptr_equal(s, sq_smoothing_out(m, SQ_R_NORM1, 1));
    assert_ptr_not_equal(s, sq_smoothing_in(m, SQ_R_K, 0));
    float *v[3];
    for (int i = 0; i < 3; i++)
        v[i] = values(w.src, readers[i], &t);
    for (size_t j = 0; j < 16; j++) {
        double most = 1e-5;
        for (int i = 0; i < 3; i++)
            for (size_t r = 0; r < 16; r++)
                most = fmax(most, fabs((double)v[i][r * 16 + j]) / (i == 2 ? (double)s_v[r] : 1));
        double x = (double)w.stats->absmax[1 * SQ_N_SITES + SQ_SITE_QKV_IN][j];
        double want = pow(x, alpha) / pow(most, 1 - alpha);
        int e;
        assert_true(frexpf(s[j], &e) == 0.5f);                            /* a power of two ... */
        assert_true(fabs(log2(want) - log2((double)s[j])) <= 0.5 + 1e-9); /* ... and the nearest */
    }
    for (int i = 0; i < 3; i++)
        free(v[i]);
    sq_smoothing_free(m);
    world_done(&w);
}

/* Query heads 0, 1 read value head 0, and 2, 3 value head 1: one factor for what they share, from the largest maxima; exact still. */
static void test_shared_value_heads(void **state)
{
    static struct sq_probe probe;
    struct world w;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_source *f = NULL;
    struct sq_tensor_info t;
    struct sq_err err = {0};
    double diff = 1;
    (void)state;
    c.n_heads = 4;
    c.n_kv_heads = 2;
    world_init(&w, &c); /* heads of 8: o_proj has 32 inputs, v_proj 16 outputs */
    float *x = w.stats->absmax[SQ_SITE_O_IN],
          *o = values(w.src, L0 "self_attn.out_proj.weight", &t);
    x[8 + 3] = 1000; /* query head 1, and so value head 0 */
    struct sq_smoothing *m = smooth(&w, 0.5, SQ_FOLDS_ALL);
    const float *s = sq_smoothing_out(m, SQ_R_V, 0), *s_in = sq_smoothing_in(m, SQ_R_O, 0);
    for (size_t j = 0; j < 32; j++)
        assert_true(s_in[j] == s[j / 16 * 8 + j % 8]);
    double most = 0;
    for (size_t r = 0; r < 16; r++)
        most = fmax(most, fmax(fabs((double)o[r * 32 + 3]), fabs((double)o[r * 32 + 8 + 3])));
    assert_true(fabs(log2(sqrt(1000 / most)) - log2((double)s[3])) <= 0.5 + 1e-9);
    assert_int_equal(sq_fold_source_open(w.src, m, P, &f, &err), 0);
    struct sq_model *was = load(&w, w.src), *now = load(&w, f);
    assert_int_equal(sq_probe_take(was, &w.passages, &probe, &err), 0);
    if (sq_probe_compare(&probe, now, w.stats, m, true, 0, &diff, &err))
        fail_msg("%s", err.msg);
    assert_true(diff == 0);
    sq_probe_done(&probe);
    sq_model_free(was);
    sq_model_free(now);
    sq_source_close(f);
    sq_smoothing_free(m);
    free(o);
    world_done(&w);
}

static void test_per_tensor_never_grows_rows(void **state)
{
    struct world w;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_smoothing *m = NULL;
    struct sq_err err = {0};
    (void)state;
    world_init(&w, &c);
    w.stats->absmax[SQ_SITE_DOWN_IN][3] = 0; /* a unit that never fired */
    struct sq_smoothing *free_rows = smooth(&w, 0.5, SQ_FOLDS_ALL);
    assert_int_equal(sq_smoothing_make(w.src, &w.c, P, w.stats, 0.5, SQ_FOLDS_ALL, true, &m, &err),
                     0);
    const float *a = sq_smoothing_out(free_rows, SQ_R_UP, 0), *b = sq_smoothing_out(m, SQ_R_UP, 0);
    double mean = 0;
    for (int j = 0; j < w.c.ffn; j++)
        mean += log2((double)a[j]) / w.c.ffn;
    assert_true(log2((double)a[3]) < mean - 2);
    for (int j = 0; j < w.c.ffn; j++)
        assert_true(log2((double)b[j]) >= mean - 1.5);
    sq_smoothing_free(free_rows);
    sq_smoothing_free(m);
    world_done(&w);
}

static void test_folded_tensors(void **state)
{
    struct world w;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_tensor_info t, t0;
    struct sq_source *f = NULL;
    struct sq_err err = {0};
    (void)state;
    world_init(&w, &c);
    struct sq_smoothing *m = smooth(&w, 0.5, SQ_FOLDS_ALL);
    assert_int_equal(sq_fold_source_open(w.src, m, P, &f, &err), 0);
    float *was = values(w.src, L0 "self_attn.v_proj.weight", &t0);
    float *now = values(f, L0 "self_attn.v_proj.weight", &t), row[16];
    assert_int_equal(t0.dtype, SQ_F16);
    assert_int_equal(t.dtype, SQ_F32);
    const float *div = sq_smoothing_out(m, SQ_R_V, 0), *mul = sq_smoothing_in(m, SQ_R_V, 0);
    for (size_t r = 0; r < 16; r++)
        for (size_t j = 0; j < 16; j++)
            assert_true(now[r * 16 + j] == was[r * 16 + j] / div[r] * mul[j]);
    assert_int_equal(f->ops->read(f, L0 "self_attn.v_proj.weight", 5, 1, row, &err), 0);
    assert_memory_equal(row, now + 5 * 16, sizeof row);
    free(was);
    free(now);
    was = values(w.src, L0 "fc1.bias", &t0);
    now = values(f, L0 "fc1.bias", &t);
    for (int j = 0; j < w.c.ffn; j++)
        assert_true(now[j] == was[j] / sq_smoothing_out(m, SQ_R_UP, 0)[j]);
    free(was);
    free(now);
    static const char *const untouched[] = {P "embed_tokens.weight", P "final_layer_norm.weight",
                                            L0 "fc2.bias", L0 "self_attn.q_proj.bias"};
    for (size_t i = 0; i < sizeof untouched / sizeof *untouched; i++) {
        assert_true(f->ops->find(f, untouched[i], &t));
        assert_int_equal(t.dtype, SQ_F16);
    }
    assert_false(f->ops->find(f, L0 "no_such.weight", &t));
    sq_source_close(f);
    sq_smoothing_free(m);
    world_done(&w);
}

/* Logits of the original against those of the folded model; the spoilt tensor, if any, is changed
 * in between. */
static int compare(struct world *w, enum sq_fold_set set, const char *spoilt, double *ret_diff,
                   struct sq_err *err)
{
    struct sq_source *f = NULL;
    struct sq_probe probe;
    struct sq_smoothing *m = smooth(w, 0.5, set);
    struct sq_model *model = load(w, w->src);
    assert_int_equal(sq_probe_take(model, &w->passages, &probe, err), 0);
    assert_int_equal(probe.n_rows, 14);
    sq_model_free(model);
    if (spoilt) {
        struct sq_tensor_info t;
        float *v = values(w->src, spoilt, &t);
        v[t.n_elems / 2] += 0.05f;
        sq_files_put(&w->l, spoilt, SQ_F32, t.rank, t.shape, v);
        free(v);
    }
    assert_int_equal(sq_fold_source_open(w->src, m, P, &f, err), 0);
    model = load(w, f);
    int rc = sq_probe_compare(&probe, model, w->stats, m, true, 1e-6, ret_diff, err);
    sq_model_free(model);
    sq_probe_done(&probe);
    sq_source_close(f);
    sq_smoothing_free(m);
    return rc;
}

static void test_exact(void **state)
{
    struct world w;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_err err = {0};
    double diff = 1;
    (void)state;
    world_init(&w, &c);
    assert_int_equal(compare(&w, SQ_FOLDS_PAPER, NULL, &diff, &err), 0);
    assert_true(diff == 0);
    assert_int_equal(compare(&w, SQ_FOLDS_ALL, NULL, &diff, &err), 0);
    assert_true(diff == 0);
    world_done(&w);
}

static void test_wrong_fold_is_found(void **state)
{
    static const char *const names[] = {L0 "self_attn_layer_norm.weight",
                                        L0 "self_attn.k_proj.weight", L1 "self_attn.v_proj.bias",
                                        L1 "fc2.weight"};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct world w;
        struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
        struct sq_err err = {0};
        double diff = -1;
        world_init(&w, &c);
        assert_int_equal(compare(&w, SQ_FOLDS_ALL, names[i], &diff, &err), -SQ_E_STATE);
        assert_non_null(strstr(err.msg, "verifying the folds"));
        assert_true(diff == -1);
        world_done(&w);
    }
}

static void test_range_beyond_the_statistics_is_found(void **state)
{
    struct world w;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_err err = {0};
    double diff;
    (void)state;
    world_init(&w, &c);
    w.stats->absmax[SQ_N_SITES + SQ_SITE_DOWN_IN][1] = 0;
    w.stats->absmax[SQ_N_SITES + SQ_SITE_UP_IN][2] *= 0.5f;
    assert_int_equal(compare(&w, SQ_FOLDS_ALL, NULL, &diff, &err), -SQ_E_STATE);
    assert_non_null(strstr(err.msg, "channel 2"));
    world_done(&w);
}

static void test_post_norm_and_no_affine(void **state)
{
    struct world w;
    struct sq_config c = sq_load_config(SQ_SCHEME_FLOAT);
    struct sq_err err = {0};
    double diff = 1;
    char text[128];
    (void)state;
    c.pre_norm = c.final_norm = false;
    world_init(&w, &c);
    struct sq_smoothing *m = smooth(&w, 0.5, SQ_FOLDS_ALL);
    assert_int_equal(m->states[0], SQ_FOLD_POST_NORM);
    assert_int_equal(m->states[1], SQ_FOLD_POST_NORM);
    assert_int_equal(m->states[2], SQ_FOLD_APPLIED);
    assert_null(sq_smoothing_in(m, SQ_R_Q, 0));
    sq_fold_describe(m->family, 0, text, sizeof text);
    assert_string_equal(text, "self_attn_layer_norm -> q_proj, k_proj, v_proj");
    sq_smoothing_free(m);
    assert_int_equal(compare(&w, SQ_FOLDS_ALL, NULL, &diff, &err), 0);
    assert_true(diff == 0);
    world_done(&w);

    c = sq_load_config(SQ_SCHEME_FLOAT);
    c.norm_affine = false;
    world_init(&w, &c);
    m = smooth(&w, 0.5, SQ_FOLDS_ALL);
    assert_int_equal(m->states[0], SQ_FOLD_NO_AFFINE);
    assert_int_equal(m->states[3], SQ_FOLD_APPLIED);
    sq_smoothing_free(m);
    m = smooth(&w, 0.5, SQ_FOLDS_NONE);
    assert_int_equal(m->states[3], SQ_FOLD_NOT_ASKED);
    sq_smoothing_free(m);
    world_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stats_leave_the_first_token_out),
        cmocka_unit_test(test_formula),
        cmocka_unit_test(test_shared_value_heads),
        cmocka_unit_test(test_per_tensor_never_grows_rows),
        cmocka_unit_test(test_folded_tensors),
        cmocka_unit_test(test_exact),
        cmocka_unit_test(test_wrong_fold_is_found),
        cmocka_unit_test(test_range_beyond_the_statistics_is_found),
        cmocka_unit_test(test_post_norm_and_no_affine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
