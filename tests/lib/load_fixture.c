#include "tests/lib/load_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <stdlib.h>

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

void sq_load_done(struct sq_load_fixture *f)
{
    sq_model_free(f->m);
    assert_int_equal(f->be.n_linears, 0);
    assert_int_equal(f->be.n_norms, 0);
    assert_int_equal(f->be.n_ropes, 0);
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
