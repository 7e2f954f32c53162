/* Model directories: one file or shards, the index's rules X1 to X5, notes, digests, and every allocation made to fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/model/checkpoint.h"
#include "tests/lib/model_files.h"

static const char config_text[] =
    "{\"model_type\":\"opt\",\"num_hidden_layers\":1,\"hidden_size\":16,\"ffn_dim\":24,"
    "\"num_attention_heads\":2,\"vocab_size\":20,\"max_position_embeddings\":8}";

struct fixture {
    char *dir;
    struct sq_config config;
    struct sq_file_tensors l;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    f->dir = sq_files_mkdir();
    sq_files_write_text(f->dir, "config.json", config_text);
    assert_int_equal(
        sq_config_parse(config_text, strlen(config_text), "config.json", &f->config, NULL), 0);
    sq_files_fill(&f->l, &f->config, 1);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    sq_files_done(&f->l);
    sq_files_rmdir(f->dir);
    free(f);
    return 0;
}

static void expect_error(const struct fixture *f, int code, const char *text)
{
    struct sq_model_dir *d;
    struct sq_err err = {0};
    int r = sq_model_dir_open(f->dir, &d, &err);
    if (r == -code && err.code == code && strstr(err.msg, text))
        return;
    print_error("expected %d '%s'\nfound %d '%s'\n", -code, text, r, err.msg);
    fail();
}

static struct sq_model_dir *expect_open(const struct fixture *f)
{
    struct sq_model_dir *d;
    struct sq_err err = {0};
    if (sq_model_dir_open(f->dir, &d, &err)) {
        print_error("%s\n", err.msg);
        fail();
    }
    return d;
}

/* Every tensor through the source is what the list holds. */
static void compare_all(const struct fixture *f, struct sq_source *s)
{
    size_t n = 0;
    while (s->ops->name(s, n))
        n++;
    assert_int_equal(n, f->l.n);
    for (size_t i = 0; i < f->l.n; i++) {
        const struct sq_file_tensor *t = &f->l.t[i];
        struct sq_tensor_info info;
        size_t bytes = t->info.n_elems * sq_dtype_bytes(t->info.dtype);
        char *buf = malloc(bytes);
        assert_true(s->ops->find(s, t->name, &info));
        assert_memory_equal(&info, &t->info, sizeof info);
        assert_int_equal(s->ops->read(s, t->name, 0, sq_tensor_rows(&info), buf, NULL), 0);
        assert_memory_equal(buf, t->data, bytes);
        size_t last = sq_tensor_rows(&info) - 1, row = bytes / (last + 1);
        assert_int_equal(s->ops->read(s, t->name, last, 1, buf, NULL), 0);
        assert_memory_equal(buf, (char *)t->data + last * row, row);
        assert_int_equal(s->ops->read(s, t->name, last, 2, buf, NULL), -SQ_E_INVAL);
        free(buf);
    }
    struct sq_tensor_info info;
    assert_false(s->ops->find(s, "no such tensor", &info));
    assert_int_equal(s->ops->read(s, "no such tensor", 0, 1, &info, NULL), -SQ_E_NOTFOUND);
}

static void test_one_file(void **state)
{
    struct fixture *f = *state;
    sq_files_save(&f->l, f->dir, "model.safetensors", 0, 1);
    struct sq_model_dir *d = expect_open(f);
    assert_string_equal(d->prefix, "model.decoder.");
    assert_string_equal(d->note, "");
    compare_all(f, d->source);
    sq_model_dir_close(d);
}

/* Three shards and an index; `spoil` may name a tensor whose entry is replaced by `raw` ("" leaves it out). */
static void save_shards(const struct fixture *f, const char *spoil, const char *raw,
                        const char *metadata)
{
    char *json;
    size_t n;
    FILE *m = open_memstream(&json, &n);
    fprintf(m, "{%s\"weight_map\":{", metadata);
    for (size_t i = 0, n_out = 0; i < f->l.n; i++) {
        const char *name = f->l.t[i].name;
        bool replaced = spoil && strcmp(name, spoil) == 0;
        if (replaced && !*raw)
            continue;
        fputs(n_out++ ? "," : "", m);
        if (replaced)
            fprintf(m, "\"%s\":%s", name, raw);
        else
            fprintf(m, "\"%s\":\"s%zu.safetensors\"", name, i % 3);
    }
    fputs("}}", m);
    fclose(m);
    sq_files_write_text(f->dir, "model.safetensors.index.json", json);
    free(json);
    for (size_t i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "s%zu.safetensors", i);
        sq_files_save(&f->l, f->dir, name, i, 3);
    }
}

static size_t total_bytes(const struct fixture *f)
{
    size_t n = 0;
    for (size_t i = 0; i < f->l.n; i++)
        n += f->l.t[i].info.n_elems * sq_dtype_bytes(f->l.t[i].info.dtype);
    return n;
}

static void test_shards(void **state)
{
    struct fixture *f = *state;
    char metadata[64];
    snprintf(metadata, sizeof metadata, "\"metadata\":{\"total_size\":%zu},", total_bytes(f));
    save_shards(f, NULL, NULL, metadata);
    struct sq_model_dir *d = expect_open(f);
    assert_string_equal(d->note, "");
    compare_all(f, d->source);
    sq_model_dir_close(d);
}

static void test_index_rules(void **state)
{
    struct fixture *f = *state;
    const char *first = f->l.t[0].name;
    static const struct {
        const char *raw, *metadata;
        int code;
        const char *text;
    } cases[] = {
        {"3", "", SQ_E_FORMAT, "X1: expected a shard's name, found an integer"},
        {"\"../s0.safetensors\"", "", SQ_E_FORMAT, "X2: '../s0.safetensors'"},
        {"\"/etc/passwd\"", "", SQ_E_FORMAT, "X2: '/etc/passwd'"},
        {"\".s.safetensors\"", "", SQ_E_FORMAT, "X2: "},
        {"\".safetensors\"", "", SQ_E_FORMAT, "X2: "},
        {"\"s0.safetensors.bin\"", "", SQ_E_FORMAT, "X2: "},
        {"\"s 0.safetensors\"", "", SQ_E_FORMAT, "X2: "},
        {"\"s9.safetensors\"", "", SQ_E_NOTFOUND, "X3: shard 's9.safetensors' does not exist"},
        {"\"s1.safetensors\"", "", SQ_E_FORMAT, "X4: not in shard 's1.safetensors', but in s0"},
        {"", "", SQ_E_FORMAT, "X4: the index does not list it"},
        {"\"s0.safetensors\",\"ghost\":\"s1.safetensors\"", "", SQ_E_FORMAT,
         "tensor 'ghost': X4: not in shard 's1.safetensors'"},
        {"\"s0.safetensors\"", "\"metadata\":{\"total_size\":\"x\"},", SQ_E_FORMAT,
         "X5: key 'metadata.total_size': expected an integer"},
        {"\"s0.safetensors\"", "\"metadata\":{\"total_size\":-1},", SQ_E_FORMAT, "X5: "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        save_shards(f, first, cases[i].raw, cases[i].metadata);
        expect_error(f, cases[i].code, cases[i].text);
    }
    save_shards(f, NULL, NULL, "\"metadata\":{\"total_size\":7},");
    struct sq_model_dir *d = expect_open(f);
    assert_non_null(strstr(d->note, "X5: metadata.total_size is 7"));
    sq_model_dir_close(d);
}

static void test_index_text(void **state)
{
    struct fixture *f = *state;
    static const char *const cases[][2] = {
        {"[]", "X1: expected one object"},
        {"{}", "X1: key 'weight_map'"},
        {"{\"weight_map\":{}}", "X1: key 'weight_map'"},
        {"{\"weight_map\":{\"a\":\"s.safetensors\",\"a\":\"s.safetensors\"}}", "X1: line 1"},
        {"{\"weight_map\":[[[[[[[[[[]]]]]]]]]]}", "X1: nested too deep"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        sq_files_write_text(f->dir, "model.safetensors.index.json", cases[i][0]);
        expect_error(f, SQ_E_FORMAT, cases[i][1]);
    }
    char *many = malloc(64 * 1025 + 64), *p = many;
    p += sprintf(p, "{\"weight_map\":{");
    for (int i = 0; i < 1025; i++)
        p += sprintf(p, "%s\"t%d\":\"s%d.safetensors\"", i ? "," : "", i, i);
    sprintf(p, "}}");
    sq_files_write_text(f->dir, "model.safetensors.index.json", many);
    free(many);
    expect_error(f, SQ_E_LIMIT, "X3: more than 1024 shards");
    char path[300];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", f->dir);
    assert_int_equal(truncate(path, (16 << 20) + 1), 0);
    expect_error(f, SQ_E_LIMIT, "X1: too many bytes: 16777217");
}

static void test_two_shards_one_name(void **state)
{
    struct fixture *f = *state;
    save_shards(f, NULL, NULL, "");
    struct sq_file_tensors twice = {0};
    size_t shape[] = {1};
    for (size_t i = 1; i < f->l.n; i += 3)
        sq_files_put(&twice, f->l.t[i].name, f->l.t[i].info.dtype, f->l.t[i].info.rank,
                     f->l.t[i].info.shape, f->l.t[i].data);
    sq_files_put(&twice, f->l.t[0].name, SQ_F32, 1, shape, NULL);
    sq_files_save(&twice, f->dir, "s1.safetensors", 0, 1);
    sq_files_done(&twice);
    expect_error(f, SQ_E_FORMAT, "X4: in two files");
}

static void test_nothing_there(void **state)
{
    struct fixture *f = *state;
    expect_error(f, SQ_E_NOTFOUND, "neither model.safetensors nor model.safetensors.index.json");
    sq_files_write_text(f->dir, "pytorch_model.bin", "");
    expect_error(f, SQ_E_NOTFOUND, "pytorch_model.bin may run code");
    struct sq_model_dir *d;
    struct sq_err err = {0};
    assert_int_equal(sq_model_dir_open("/no/such/place", &d, &err), -SQ_E_NOTFOUND);
    assert_non_null(strstr(err.msg, "/no/such/place: model directory"));
}

static void test_prefixes(void **state)
{
    struct fixture *f = *state;
    for (size_t i = 0; i < f->l.n; i++)
        memmove(f->l.t[i].name, f->l.t[i].name + 6, strlen(f->l.t[i].name + 6) + 1);
    sq_files_save(&f->l, f->dir, "model.safetensors", 0, 1);
    struct sq_model_dir *d = expect_open(f);
    assert_string_equal(d->prefix, "decoder.");
    sq_model_dir_close(d);
    sq_files_drop(&f->l, "decoder.embed_tokens.weight");
    sq_files_save(&f->l, f->dir, "model.safetensors", 0, 1);
    expect_error(f, SQ_E_NOTFOUND, "C4: no tensor 'model.decoder.embed_tokens.weight'");
}

/* sqd_scales.safetensors joins the lookup, counts in the digest with its values, and may not hide another tensor. */
static void test_scales(void **state)
{
    struct fixture *f = *state;
    sq_files_save(&f->l, f->dir, "model.safetensors", 0, 1);
    struct sq_model_dir *d = expect_open(f);
    uint64_t without = d->digest, with[2];
    sq_model_dir_close(d);
    struct sq_file_tensors extra = {0};
    size_t one[] = {1};
    for (int i = 0; i < 2; i++) {
        float v = 0.5f + (float)i, back;
        sq_files_put(&extra, "x.output_scale", SQ_F32, 1, one, &v);
        sq_files_save(&extra, f->dir, "sqd_scales.safetensors", 0, 1);
        d = expect_open(f);
        assert_int_equal(sq_source_read_f32(d->source, "x.output_scale", 0, 1, &back, NULL), 0);
        assert_true(back == v);
        with[i] = d->digest;
        sq_model_dir_close(d);
    }
    assert_true(with[0] != without && with[1] != without && with[0] != with[1]);
    sq_files_put(&extra, f->l.t[0].name, SQ_F32, 1, one, NULL);
    sq_files_save(&extra, f->dir, "sqd_scales.safetensors", 0, 1);
    sq_files_done(&extra);
    expect_error(f, SQ_E_FORMAT, "X4: in two files");
}

/* S12: replaced or cut between two reads. */
static void test_changes(void **state)
{
    struct fixture *f = *state;
    const char *name = f->l.t[0].name;
    char path[300], buf[4096];
    snprintf(path, sizeof path, "%s/model.safetensors", f->dir);
    sq_files_save(&f->l, f->dir, "model.safetensors", 0, 1);
    struct sq_model_dir *d = expect_open(f);
    struct sq_err err = {0};
    assert_int_equal(unlink(path), 0);
    sq_files_save(&f->l, f->dir, "model.safetensors", 0, 1);
    assert_int_equal(d->source->ops->read(d->source, name, 0, 1, buf, &err), -SQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "S12: the file was replaced"));
    sq_model_dir_close(d);
    d = expect_open(f);
    assert_int_equal(d->source->ops->read(d->source, name, 0, 1, buf, &err), 0);
    assert_int_equal(truncate(path, 100), 0);
    assert_int_equal(d->source->ops->read(d->source, name, 0, 1, buf, &err), -SQ_E_FORMAT);
    assert_non_null(strstr(err.msg, "S12: the file "));
    sq_model_dir_close(d);
    expect_error(f, SQ_E_FORMAT, "S2: ");
}

static void test_truncated_shard(void **state)
{
    struct fixture *f = *state;
    char path[300];
    save_shards(f, NULL, NULL, "");
    snprintf(path, sizeof path, "%s/s1.safetensors", f->dir);
    FILE *file = fopen(path, "r+b");
    fseek(file, 0, SEEK_END);
    assert_int_equal(ftruncate(fileno(file), ftell(file) - 4), 0);
    fclose(file);
    expect_error(f, SQ_E_FORMAT, "s1.safetensors: S10: the tensors end at byte");
}

/* Every type to f32, over more elements than are converted at a time, and no byte beyond them. */
static void test_widening(void **state)
{
    (void)state;
    static const size_t shape[] = {5, 1001};
    static const enum sq_dtype types[] = {SQ_F32, SQ_F16, SQ_BF16, SQ_I8};
    struct sq_file_tensors l = {0};
    struct sq_source *s = sq_files_source(&l);
    float *dst = malloc(5006 * sizeof *dst);
    for (int i = 0; i < 4; i++) {
        struct sq_file_tensor *t = sq_files_put(&l, "t", types[i], 2, shape, NULL);
        uint16_t *h = t->data;
        for (int k = 0; k < 5005; k++) {
            float v = (float)(k % 120 - 60); /* exact in all four */
            uint32_t u;
            memcpy(&u, &v, sizeof u);
            if (types[i] == SQ_F32)
                ((float *)t->data)[k] = v;
            else if (types[i] == SQ_I8)
                ((int8_t *)t->data)[k] = (int8_t)v;
            else if (types[i] == SQ_BF16)
                h[k] = (uint16_t)(u >> 16);
            else
                h[k] = v == 0
                           ? 0
                           : (uint16_t)((u >> 16 & 0x8000) | (((u >> 13) - (112u << 10)) & 0x7fff));
        }
        dst[5005] = 7;
        assert_int_equal(sq_source_read_f32(s, "t", 0, 5, dst, NULL), 0);
        for (int k = 0; k < 5005; k++)
            assert_true(dst[k] == (float)(k % 120 - 60));
        assert_true(dst[5005] == 7);
        assert_int_equal(sq_source_read_f32(s, "t", 3, 1, dst, NULL), 0);
        assert_true(dst[0] == (float)(3003 % 120 - 60) && dst[1000] == (float)(4003 % 120 - 60));
    }
    assert_int_equal(sq_source_read_f32(s, "none", 0, 1, dst, NULL), -SQ_E_NOTFOUND);
    free(dst);
    sq_source_close(s);
    sq_files_done(&l);
}

static void test_custom_code(void **state)
{
    struct fixture *f = *state;
    char text[512];
    snprintf(text, sizeof text, "{\"auto_map\":{\"AutoModel\":\"m.M\"},%s", config_text + 1);
    sq_files_write_text(f->dir, "config.json", text);
    sq_files_save(&f->l, f->dir, "model.safetensors", 0, 1);
    struct sq_model_dir *d = expect_open(f);
    assert_non_null(strstr(d->note, "C2: auto_map is ignored"));
    sq_model_dir_close(d);
}

static void test_out_of_memory(void **state)
{
    struct fixture *f = *state;
    save_shards(f, NULL, NULL, "\"metadata\":{\"total_size\":1},");
    struct sq_file_tensors extra = {0};
    size_t one[] = {1};
    sq_files_put(&extra, "x.output_scale", SQ_F32, 1, one, NULL);
    sq_files_save(&extra, f->dir, "sqd_scales.safetensors", 0, 1);
    sq_files_done(&extra);
    for (int forever = 0; forever < 2; forever++) {
        int r = -1;
        uint64_t k;
        for (k = 1; r; k++) {
            struct sq_model_dir *d;
            struct sq_err err = {0};
            sq_mem_fail_at(k, forever);
            r = sq_model_dir_open(f->dir, &d, &err);
            sq_mem_fail_at(0, false);
            if (r == 0)
                sq_model_dir_close(d);
            else
                assert_int_equal(r, -SQ_E_NOMEM);
        }
        assert_true(k > 20);
    }
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_one_file),        T(test_shards),        T(test_index_rules),
        T(test_index_text),      T(test_nothing_there), T(test_two_shards_one_name),
        T(test_prefixes),        T(test_scales),        T(test_changes),
        T(test_truncated_shard), T(test_custom_code),   cmocka_unit_test(test_widening),
        T(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
