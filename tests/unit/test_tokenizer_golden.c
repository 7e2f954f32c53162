/* What the Hugging Face library made of two thousand texts (tests/golden/make_tokenizer.py), replayed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/tokenizer.h"

#define GOLDEN SQD_SOURCE_DIR "/tests/golden/tokenizer/"

static struct sq_tokenizer *open_golden(const char *name)
{
    char path[512];
    struct sq_err err = {0};
    struct sq_tokenizer *t = NULL;
    snprintf(path, sizeof path, GOLDEN "%s.json", name);
    if (sq_tokenizer_open(AT_FDCWD, path, 0, &t, &err))
        fail_msg("%s", err.msg);
    return t;
}

/* \xHH back into bytes, in place; returns the length. */
static size_t unescape(char *s)
{
    char *out = s;
    for (char *p = s; *p; p++) {
        unsigned byte;
        if (*p == '\\' && sscanf(p, "\\x%2x", &byte) == 1) {
            *out++ = (char)byte;
            p += 3;
        } else {
            *out++ = *p;
        }
    }
    *out = '\0';
    return (size_t)(out - s);
}

/* Differences in base 36 back into ids; returns their number. */
static size_t read_ids(const char *s, int32_t *ids, size_t cap)
{
    size_t n = 0;
    int32_t last = 0;
    while (*s && *s != ' ') {
        char *end;
        assert_true(n < cap);
        last += (int32_t)strtol(s, &end, 36);
        assert_true(end > s);
        ids[n++] = last;
        s = *end == ',' ? end + 1 : end;
    }
    return n;
}

/* A line without its end; NULL at the end of the file. */
static char *read_line(FILE *f, char **line, size_t *cap)
{
    ssize_t n = getline(line, cap, f);
    if (n <= 0)
        return NULL;
    if ((*line)[n - 1] == '\n')
        (*line)[n - 1] = '\0';
    return *line;
}

static void check_text(const struct sq_tokenizer *t, const char *name, int line, const char *text,
                       size_t n_text, const char *vec)
{
    static int32_t want[4096];
    struct sq_err err = {0};
    int32_t *got;
    size_t n_got;
    unsigned flags = (unsigned)(vec[0] - '0');
    if (sq_tokenizer_encode(t, text, n_text, flags, &got, &n_got, &err))
        fail_msg("%s, line %d: %s", name, line, err.msg);
    if (vec[2] != '!') { /* where the library panics, ours need only survive */
        size_t n_want = read_ids(vec + 2, want, 4096);
        if (n_want != n_got || memcmp(want, got, n_got * sizeof *got) != 0)
            fail_msg("%s, line %d, flags %u: the ids differ", name, line, flags);
    }
    sq_free(got);
}

static void replay(const char *name, int at_least)
{
    char path[512], *text = NULL, *vec = NULL;
    size_t cap_text = 0, cap_vec = 0;
    int line = 0, n = 0;
    struct sq_tokenizer *t = open_golden(name);
    snprintf(path, sizeof path, GOLDEN "%s.vec", name);
    FILE *texts = fopen(GOLDEN "texts.txt", "r"), *vecs = fopen(path, "r");
    assert_non_null(texts);
    assert_non_null(vecs);
    while (read_line(texts, &text, &cap_text) && read_line(vecs, &vec, &cap_vec)) {
        line++;
        if (!vec[0])
            continue;
        check_text(t, name, line, text, unescape(text), vec);
        n++;
    }
    assert_true(n >= at_least);
    fclose(texts);
    fclose(vecs);
    free(text);
    free(vec);
    sq_tokenizer_free(t);
}

static void test_encode(void **state)
{
    (void)state;
    static const char *const all[] = {"gpt2", "flags", "llama3"};
    static const char *const some[] = {"o200k", "bloom", "falcon", "behaviors", "deepseek"};
    for (size_t i = 0; i < 3; i++)
        replay(all[i], 2000);
    for (size_t i = 0; i < 5; i++)
        replay(some[i], 500);
}

/* Decoding at once and id by id give what the library gives; the stream never holds back more than three bytes. */
static void check_decode(const struct sq_tokenizer *t, const int32_t *ids, size_t n, bool skip,
                         const char *want, size_t n_want)
{
    struct sq_err err = {0};
    struct sq_detok d;
    struct sq_text stream = {0};
    char *text;
    size_t n_text;
    assert_int_equal(sq_tokenizer_decode(t, ids, n, skip, &text, &n_text, &err), 0);
    assert_int_equal(n_text, n_want);
    assert_memory_equal(text, want, n_want);
    sq_detok_init(&d, t, skip);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(sq_detok_push(&d, ids[i], &stream, &err), 0);
        assert_true(d.n_held <= 3);
    }
    assert_int_equal(sq_detok_finish(&d, &stream, &err), 0);
    assert_int_equal(stream.n, n_want);
    assert_memory_equal(stream.data, want, n_want);
    sq_text_done(&stream);
    sq_free(text);
}

static void test_decode(void **state)
{
    (void)state;
    FILE *f = fopen(GOLDEN "decode.vec", "r");
    char *line = NULL, name[32];
    size_t cap = 0;
    int n_lines = 0, skip, ids_at, text_at;
    int32_t ids[16];
    assert_non_null(f);
    while (read_line(f, &line, &cap)) {
        assert_int_equal(sscanf(line, "%31s %d %n%*s%n", name, &skip, &ids_at, &text_at), 2);
        struct sq_tokenizer *t = open_golden(name);
        size_t n = read_ids(line + ids_at, ids, 16);
        char *text = line + text_at + 1;
        check_decode(t, ids, n, skip, text, unescape(text));
        sq_tokenizer_free(t);
        n_lines++;
    }
    assert_true(n_lines >= 240);
    free(line);
    fclose(f);
}

/* decode(encode(text)) is the text where no pre-tokenizer adds or drops anything (rule T7). */
static void test_round_trip(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2", "llama3", "falcon"};
    for (size_t i = 0; i < 3; i++) {
        struct sq_tokenizer *t = open_golden(names[i]);
        FILE *f = fopen(GOLDEN "texts.txt", "r");
        char *line = NULL, *text;
        size_t cap = 0, n_ids, n_text;
        int32_t *ids;
        assert_non_null(f);
        while (read_line(f, &line, &cap)) {
            size_t n = unescape(line);
            assert_int_equal(sq_tokenizer_encode(t, line, n, 0, &ids, &n_ids, NULL), 0);
            assert_int_equal(sq_tokenizer_decode(t, ids, n_ids, false, &text, &n_text, NULL), 0);
            assert_int_equal(n_text, n);
            assert_memory_equal(text, line, n);
            sq_free(ids);
            sq_free(text);
        }
        free(line);
        fclose(f);
        sq_tokenizer_free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_encode),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
