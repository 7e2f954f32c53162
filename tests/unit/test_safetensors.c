/* Rules S1 to S12: one bad header or file at least for each, and the right text for it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/**/
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/mem.h"
#include "engine/model/safetensors.h"
#include "tests/lib/model_files.h"

#define F32_4(name, from, to)                                                                      \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[" #from "," #to "]}"

/* A header, the bytes of data behind it, and what must be said of it (code 0: accepted). */
static const struct sample {
    const char *json;
    uint64_t data;
    int code;
    const char *text;
} samples[] = {
    {"{}", 0, 0, ""},
    {" \r\n\t{" F32_4("a", 0, 16) "}  \n", 16, 0, ""},
    {"{" F32_4("b", 16, 32) "," F32_4("a", 0, 16) "}", 32, 0, ""},
    {"{\"__metadata__\":{\"format\":\"pt\"}," F32_4("a", 0, 16) "}", 16, 0, ""},
    {"{\"s\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[0,2]}}", 2, 0, ""},
    {"{\"e\":{\"dtype\":\"I8\",\"shape\":[0,3],\"data_offsets\":[0,0]}}", 0, 0, ""},
    {"{\"r\":{\"dtype\":\"I8\",\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[0,2]}}", 2, 0, ""},
    {"{\"\\u00e4\\\"\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 0, ""},

    {"", 0, SQ_E_FORMAT, "S3: the header does not begin"},
    {"[]", 0, SQ_E_FORMAT, "S3: the header does not begin"},
    {"\xef\xbb\xbf{}", 0, SQ_E_FORMAT, "S3: the header does not begin"},
    {"{\"a\xff\":1}", 0, SQ_E_FORMAT, "S3: "},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}", 1, SQ_E_FORMAT, "S4: line"},
    {"{} x", 0, SQ_E_FORMAT, "S4: line"},
    {"{" F32_4("a", 0, 16) "," F32_4("a", 0, 16) "}", 16, SQ_E_FORMAT, "S4: line 1"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[[1]],\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT,
     "S4: nested too deep: 4"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT,
     "'a': S4: shape: expected integers, found a fraction"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1e0],\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT, "S4: "},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[-0,1]}}", 1, SQ_E_FORMAT,
     "S4: a number with a sign at byte"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,\"1\"]}}", 1, SQ_E_FORMAT,
     "'a': S4: data_offsets"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[99999999999999999999],\"data_offsets\":[0,1]}}", 1,
     SQ_E_FORMAT, "S4: line"},
    {"{\"__metadata__\":3}", 0, SQ_E_FORMAT, "S5: __metadata__: expected an object"},
    {"{\"__metadata__\":{\"a\":1}}", 0, SQ_E_FORMAT, "S5: __metadata__ 'a': expected a string"},
    {"{\"a\":3}", 0, SQ_E_FORMAT, "'a': S6: expected an object, found an integer"},
    {"{\"a\":{}}", 0, SQ_E_FORMAT, "'a': S6: no key 'dtype'"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1]}}", 0, SQ_E_FORMAT, "'a': S6: no key 'data_offsets'"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":0}}", 1, SQ_E_FORMAT,
     "'a': S6: unknown key 'x'"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1, SQ_E_FORMAT,
     "'a': S6: data_offsets: expected two"},
    {"{\"\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT,
     "S6: a name of 0 bytes"},
    {"{\"a\\u0001\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT,
     "S6: a control character"},
    {"{\"a\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT,
     "'a': S7: dtype:"},
    {"{\"a\":{\"dtype\":\"I9\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT,
     "'a': S7: invalid dtype 'I9'"},
    {"{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, SQ_E_NOTSUP,
     "'a': S7: dtype I64 is not supported"},
    {"{\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,7]}}", 7, SQ_E_FORMAT,
     "'a': S9: "},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":3,\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT,
     "'a': S8: shape: expected an array"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1,
     SQ_E_FORMAT, "'a': S8: rank 9, the limit is 8"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[281474976710656],\"data_offsets\":[0,1]}}", 1,
     SQ_E_FORMAT, "'a': S8: dimension 281474976710656"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[281474976710655,281474976710655],\"data_offsets\":[0,1]}"
     "}",
     1, SQ_E_FORMAT, "'a': S8: the number of elements overflows"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[281474976710655,65536],\"data_offsets\":[0,1]}}", 1,
     SQ_E_FORMAT, "'a': S8: the number of bits overflows"},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, SQ_E_FORMAT,
     "'a': S8: 12 bits"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, SQ_E_FORMAT,
     "'a': S9: F32 [2] needs 8 bytes, data_offsets span 4"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, SQ_E_FORMAT,
     "'a': S9: F32 [1] needs 4 bytes, data_offsets span 8"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[2,1]}}", 2, SQ_E_FORMAT,
     "'a': S9: begins at 2"},
    {"{" F32_4("a", 16, 32) "}", 32, SQ_E_FORMAT, "'a': S10: begins at 16, expected 0: a hole"},
    {"{" F32_4("a", 0, 16) "," F32_4("b", 8, 24) "}", 24, SQ_E_FORMAT, "'b': S10: begins at 8"},
    {"{" F32_4("a", 0, 16) "," F32_4("b", 0, 16) "}", 16, SQ_E_FORMAT, "overlaps another tensor"},
    {"{" F32_4("a", 0, 16) "}", 17, SQ_E_FORMAT, "S10: the tensors end at byte 16"},
    {"{" F32_4("a", 0, 16) "}", 15, SQ_E_FORMAT, "the file is cut short"},
    {"{}", 1, SQ_E_FORMAT, "S10: the tensors end at byte 0"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"b\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
     0, SQ_E_FORMAT, "'b': S10: empty, at the place of the empty tensor 'a'"},
};

static void check(int r, const struct sq_err *err, int code, const char *text, const char *what)
{
    if (r == -code && (!code || (err->code == code && strstr(err->msg, text))))
        return;
    print_error("%.300s\n  expected %d '%s'\n  found %d '%s'\n", what, -code, text, r, err->msg);
    fail();
}

static void test_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof samples[0]; i++) {
        const struct sample *s = &samples[i];
        struct sq_st_header h;
        struct sq_err err = {0};
        int r = sq_st_parse(s->json, strlen(s->json), s->data, "m.safetensors", &h, &err);
        check(r, &err, s->code, s->text, s->json);
        if (r == 0)
            sq_st_header_done(&h);
        else
            assert_ptr_equal(strstr(err.msg, "m.safetensors: "), err.msg);
    }
}

static void test_content(void **state)
{
    (void)state;
    const char *json = "{" F32_4("b", 16, 32) "," F32_4("a", 0, 16) "}";
    struct sq_st_header h;
    assert_int_equal(sq_st_parse(json, strlen(json), 32, "m", &h, NULL), 0);
    assert_int_equal(h.n, 2);
    assert_string_equal(h.tensors[0].name, "a");
    assert_int_equal(h.tensors[1].begin, 16);
    assert_int_equal(h.tensors[1].end, 32);
    assert_int_equal(h.tensors[1].info.rank, 2);
    assert_int_equal(h.tensors[1].info.n_elems, 4);
    assert_int_equal(h.tensors[1].info.dtype, SQ_F32);
    sq_st_header_done(&h);
}

/* Limits, both sides of each. */
static void test_limits(void **state)
{
    (void)state;
    static const struct {
        size_t n_name, n_meta;
        int code;
        const char *text;
    } cases[] = {
        {512, 1, 0, ""},
        {513, 1, SQ_E_FORMAT, "S6: a name of 513 bytes"},
        {1, 65535, 0, ""},
        {1, 65536, SQ_E_LIMIT, "S5: __metadata__: 65537 bytes, the limit is 65536"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *name = calloc(1, cases[i].n_name + 1), *meta = calloc(1, cases[i].n_meta + 1), *json;
        memset(name, 'n', cases[i].n_name);
        memset(meta, 'm', cases[i].n_meta);
        assert_true(asprintf(&json,
                             "{\"__metadata__\":{\"k\":\"%s\"},\"%s\":{\"dtype\":\"I8\","
                             "\"shape\":[1],\"data_offsets\":[0,1]}}",
                             meta, name) > 0);
        struct sq_st_header h;
        struct sq_err err = {0};
        int r = sq_st_parse(json, strlen(json), 1, "m", &h, &err);
        check(r, &err, cases[i].code, cases[i].text, json);
        if (r == 0)
            sq_st_header_done(&h);
        free(json);
        free(meta);
        free(name);
    }
}

static void test_nul(void **state)
{
    (void)state;
    struct sq_st_header h;
    struct sq_err err = {0};
    check(sq_st_parse("{}\0\0", 4, 0, "m", &h, &err), &err, SQ_E_FORMAT, "S3: a NUL byte", "{}\\0");
}

/* Cheap input must stay cheap: shapes and commas beyond what tensors can need are refused before jansson sees them. */
static void test_bombs(void **state)
{
    (void)state;
    static const struct {
        const char *head, *item, *text;
    } cases[] = {
        {"{\"a\":[", "{},", "S4: too many objects and arrays"},
        {"{\"a\":[", "1,", "S4: too many values"},
        {"", "{\"a\":", "S4: nested too deep"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t n = 15u << 20, at = strlen(cases[i].head), k = strlen(cases[i].item);
        char *json = malloc(n);
        memcpy(json, cases[i].head, at);
        for (; at + k <= n; at += k)
            memcpy(json + at, cases[i].item, k);
        struct sq_st_header h;
        struct sq_err err = {0};
        int r = sq_st_parse(json, at, 0, "m", &h, &err);
        assert_true(r < 0 && strstr(err.msg, cases[i].text));
        free(json);
    }
}

/* --- files --------------------------------------------------------------------------------------------------------- */

static int open_file(const char *dir, const char *name, struct sq_err *err)
{
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY), fd;
    struct sq_file_id id;
    struct sq_st_header h;
    int r = sq_file_open(dir_fd, name, name, &fd, &id, err);
    close(dir_fd);
    if (r)
        return r;
    r = sq_st_read_header(fd, &id, name, &h, err);
    close(fd);
    if (r == 0)
        sq_st_header_done(&h);
    return r;
}

static void test_lengths(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        int code;
        const char *text;
    } cases[] = {
        {"", 0, SQ_E_FORMAT, "S2: 0 bytes, expected at least 8"},
        {"\2\0\0\0\0\0\0", 7, SQ_E_FORMAT, "S2: 7 bytes"},
        {"\0\0\0\0\0\0\0\0", 8, SQ_E_FORMAT, "S2: a header of 0 bytes"},
        {"\1\0\0\0\0\0\0\0{}", 10, SQ_E_FORMAT, "S2: a header of 1 bytes"},
        {"\3\0\0\0\0\0\0\0{}", 10, SQ_E_FORMAT, "S2: a header of 3 bytes, expected 2 to 2"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, SQ_E_FORMAT, "S2: a header of 184467"},
        {"\2\0\0\0\0\0\0\0{}", 10, 0, ""},
    };
    char *dir = sq_files_mkdir();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct sq_err err = {0};
        sq_files_write(dir, "m", cases[i].bytes, cases[i].n);
        check(open_file(dir, "m", &err), &err, cases[i].code, cases[i].text, "a short file");
    }
    sq_files_rmdir(dir);
}

/* A header longer than the limit, in a sparse file. */
static void test_long_header(void **state)
{
    (void)state;
    char *dir = sq_files_mkdir(), path[300];
    sq_files_write(dir, "m", "\1\0\0\1\0\0\0\0", 8);
    snprintf(path, sizeof path, "%s/m", dir);
    assert_int_equal(truncate(path, 32 << 20), 0);
    struct sq_err err = {0};
    check(open_file(dir, "m", &err), &err, SQ_E_LIMIT, "S2: a header of 16777217 bytes, the limit",
          "a long header");
    sq_files_rmdir(dir);
}

static void test_kinds(void **state)
{
    (void)state;
    char *dir = sq_files_mkdir(), *other = sq_files_mkdir(), path[300], target[300];
    struct sq_err err = {0};
    snprintf(path, sizeof path, "%s/sub", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    check(open_file(dir, "sub", &err), &err, SQ_E_FORMAT,
          "S1: expected a regular file, found a dir", "a directory");
    snprintf(path, sizeof path, "%s/fifo", dir);
    assert_int_equal(mkfifo(path, 0600), 0);
    check(open_file(dir, "fifo", &err), &err, SQ_E_FORMAT, "S1: expected a regular file", "a fifo");
    check(open_file(dir, "none", &err), &err, SQ_E_NOTFOUND, "none: ", "no file");

    sq_files_write(other, "blob", "\2\0\0\0\0\0\0\0{}", 10);
    snprintf(target, sizeof target, "%s/blob", other);
    snprintf(path, sizeof path, "%s/out", dir);
    assert_int_equal(symlink(target, path), 0);
    check(open_file(dir, "out", &err), &err, SQ_E_FORMAT, "S1: a symbolic link that leaves",
          "a link out, absolute");
    snprintf(target, sizeof target, "..%s/blob", strrchr(other, '/'));
    snprintf(path, sizeof path, "%s/up", dir);
    assert_int_equal(symlink(target, path), 0);
    check(open_file(dir, "up", &err), &err, SQ_E_FORMAT, "cp -rL", "a link out, relative");
    sq_files_write(dir, "real", "\2\0\0\0\0\0\0\0{}", 10);
    snprintf(path, sizeof path, "%s/inside", dir);
    assert_int_equal(symlink("real", path), 0);
    check(open_file(dir, "inside", &err), &err, 0, "", "a link that stays inside");
    sq_files_rmdir(other);
    sq_files_rmdir(dir);
}

static void test_changes(void **state)
{
    (void)state;
    char *dir = sq_files_mkdir(), path[300], buf[16];
    sq_files_write(dir, "m", "0123456789abcdef", 16);
    snprintf(path, sizeof path, "%s/m", dir);
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY), fd;
    struct sq_file_id id;
    struct sq_err err = {0};
    assert_int_equal(sq_file_open(dir_fd, "m", "m", &fd, &id, NULL), 0);
    assert_int_equal(sq_file_read(fd, &id, "m", buf, 16, 0, &err), 0);
    assert_memory_equal(buf, "0123456789abcdef", 16);
    assert_int_equal(truncate(path, 8), 0);
    check(sq_file_read(fd, &id, "m", buf, 16, 0, &err), &err, SQ_E_FORMAT,
          "S12: the file ends at byte 8", "a shorter file");
    check(sq_file_read(fd, &id, "m", buf, 8, 0, &err), &err, SQ_E_FORMAT, "S12: the file changed",
          "a changed file");
    close(fd);
    close(dir_fd);
    sq_files_rmdir(dir);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    const char *json =
        "{\"__metadata__\":{\"a\":\"b\"}," F32_4("a", 0, 16) "," F32_4("b", 16, 32) "}";
    int r = -1;
    for (uint64_t k = 1; r; k++) {
        struct sq_st_header h;
        struct sq_err err = {0};
        sq_mem_fail_at(k, false);
        r = sq_st_parse(json, strlen(json), 32, "m", &h, &err);
        sq_mem_fail_at(0, false);
        if (r)
            assert_int_equal(r, -SQ_E_NOMEM);
        else
            sq_st_header_done(&h);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers),     cmocka_unit_test(test_content),
        cmocka_unit_test(test_limits),      cmocka_unit_test(test_nul),
        cmocka_unit_test(test_bombs),       cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_long_header), cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_changes),     cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
