#include "tests/lib/load_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/mem.h"

static const struct sq_config tiny = {.n_layers = 2,
                                      .hidden = 16,
                                      .ffn = 24,
                                      .n_heads = 2,
                                      .n_kv_heads = 2,
                                      .head_dim = 8,
                                      .vocab = 20,
                                      .max_positions = 8,
                                      .embed_dim = 16,
                                      .norm_eps = 1e-5f,
                                      .pre_norm = true,
                                      .final_norm = true,
                                      .tied = true,
                                      .attn_bias = true,
                                      .ffn_bias = true,
                                      .norm_affine = true,
                                      .dtype = SQ_F16};

struct sq_config sq_load_config(enum sq_scheme scheme)
{
    struct sq_config c = tiny;
    c.family = sq_family_find("opt");
    c.scheme = scheme;
    return c;
}

struct sq_config sq_load_llama_config(enum sq_scheme scheme)
{
    struct sq_config c = tiny;
    c.family = sq_family_find("llama");
    c.ffn = 12;
    c.n_heads = 4;
    c.max_positions = 9;
    c.tied = c.attn_bias = c.ffn_bias = false;
    c.rope = (struct sq_rope_config){.theta = 10000, .factor = 1};
    c.dtype = SQ_BF16;
    c.scheme = scheme;
    return c;
}

void sq_load_init(struct sq_load_fixture *f, const struct sq_config *c)
{
    *f = (struct sq_load_fixture){.c = *c};
    sq_files_fill(&f->l, c, 7);
    sq_record_init(&f->be);
    f->src = sq_files_source(&f->l);
}

int sq_load_try(struct sq_load_fixture *f, const struct sq_load_options *o, struct sq_err *err)
{
    return sq_model_load(f->src, &f->c, &f->be.base, o, &f->m, err);
}

void sq_load_must(struct sq_load_fixture *f, const struct sq_load_options *o)
{
    struct sq_err err = {0};
    if (sq_load_try(f, o, &err)) {
        print_error("%s\n", err.msg);
        fail();
    }
}

void sq_load_fails(struct sq_load_fixture *f, int code, const char *text)
{
    struct sq_err err = {0};
    int r = sq_load_try(f, NULL, &err);
    if (r != -code || !strstr(err.msg, text))
        fail_msg("expected %d '%s'\nfound %d '%s'", -code, text, r, err.msg);
}

static void check_nothing_left(const struct sq_load_fixture *f)
{
    assert_int_equal(f->be.n_linears, 0);
    assert_int_equal(f->be.n_norms, 0);
    assert_int_equal(f->be.n_ropes, 0);
}

void sq_load_starved(struct sq_load_fixture *f, const struct sq_load_options *o)
{
    int r = -1;
    for (uint64_t k = 1; r; k++)
        for (int forever = 1; forever >= 0; forever--) {
            sq_mem_fail_at(k, forever);
            r = sq_load_try(f, o, NULL);
            sq_mem_fail_at(0, false);
            if (r) {
                assert_int_equal(r, -SQ_E_NOMEM);
                check_nothing_left(f);
            } else if (forever)
                f->m = sq_model_free(f->m);
        }
}

void sq_load_done(struct sq_load_fixture *f)
{
    sq_model_free(f->m);
    check_nothing_left(f);
    sq_source_close(f->src);
    sq_files_done(&f->l);
}

float *sq_load_values(struct sq_load_fixture *f, const char *name)
{
    struct sq_file_tensor *t = sq_files_find(&f->l, name);
    assert_non_null(t);
    float *v = calloc(t->info.n_elems, sizeof *v);
    assert_int_equal(sq_source_read_f32(f->src, name, 0, sq_tensor_rows(&t->info), v, NULL), 0);
    return v;
}

void sq_load_set_floats(struct sq_load_fixture *f, const char *name, int rank, size_t rows,
                        size_t cols, const float *v)
{
    size_t shape[2] = {rows, cols};
    sq_files_put(&f->l, name, SQ_F32, rank, shape, v);
}

void sq_load_set_scale(struct sq_load_fixture *f, const char *name, float v)
{
    sq_load_set_floats(f, name, 1, 1, 0, &v);
}

void sq_load_drop_all(struct sq_load_fixture *f, const char *suffix)
{
    const size_t n = strlen(suffix);
    for (size_t i = f->l.n; i-- > 0;) {
        const char *name = f->l.t[i].name;
        if (strlen(name) >= n && strcmp(name + strlen(name) - n, suffix) == 0)
            sq_files_drop(&f->l, name);
    }
}

void sq_load_check_linear(const struct sq_linear *l, size_t n_out, size_t n_in, enum sq_dtype dtype,
                          bool dynamic, enum sq_out out, enum sq_act act)
{
    assert_true(l && l->finished);
    assert_int_equal(l->d.n_out, n_out);
    assert_int_equal(l->d.n_in, n_in);
    assert_int_equal(l->d.dtype, dtype);
    assert_int_equal(l->d.dynamic, dynamic);
    assert_int_equal(l->d.out, out);
    assert_int_equal(l->d.act, act);
    assert_int_equal(l->mul != NULL, dtype == SQ_I8);
    assert_int_equal(l->bias_acc != NULL && l->bias == NULL, out == SQ_OUT_S8 && l->bias_acc);
}
