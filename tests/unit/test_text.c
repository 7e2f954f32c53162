/* api/text: stop strings against a plain search over the whole text, and the tokens' own characters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/text.h"
#include "engine/base/mem.h"

#define TEXT_MAX 64

/* By definition: at every end in order, the longest stop string that ends there; the text before it. */
static size_t naive(const char *text, size_t n, const char *const *stops, bool *ret_stopped)
{
    for (size_t end = 1; end <= n; end++) {
        size_t best = 0;
        for (const char *const *s = stops; *s; s++) {
            size_t len = strlen(*s);
            if (len && len <= end && len > best && !memcmp(text + end - len, *s, len))
                best = len;
        }
        if (best) {
            *ret_stopped = true;
            return end - best;
        }
    }
    *ret_stopped = false;
    return n;
}

/* Feeds the text in pieces; true if a stop string ended it. */
static bool feed(const char *text, size_t n, const char *const *stops, size_t piece_max,
                 struct sq_text *out)
{
    struct sq_stops set = {0};
    struct sq_flow f;
    for (const char *const *s = stops; *s; s++)
        assert_int_equal(sq_stops_add(&set, *s, strlen(*s)), 0);
    assert_int_equal(sq_flow_init(&f, NULL, &set), 0);
    int rc = 0;
    for (size_t i = 0; i < n && !rc;) {
        size_t piece = 1 + (size_t)rand() % piece_max;
        piece = piece < n - i ? piece : n - i;
        rc = sq_flow_text(&f, text + i, piece, true, out);
        i += piece;
    }
    if (!rc)
        rc = sq_flow_finish(&f, out);
    assert_true(rc >= 0);
    sq_flow_done(&f);
    sq_stops_done(&set);
    return rc == SQ_FLOW_STOP;
}

static void expect(const char *text, const char *const *stops, const char *want, bool want_stop)
{
    for (size_t piece = 1; piece < 5; piece++) {
        struct sq_text out = {0};
        assert_int_equal(feed(text, strlen(text), stops, piece, &out), want_stop);
        assert_int_equal(out.n, strlen(want));
        assert_memory_equal(out.n ? out.data : "", want, out.n);
        sq_text_done(&out);
    }
}

static void test_rules(void **state)
{
    (void)state;
    expect("hello", (const char *const[]){NULL}, "hello", false);
    expect("hello", (const char *const[]){"", NULL}, "hello", false);
    expect("hello world", (const char *const[]){"o w", NULL}, "hell", true);
    expect("abc", (const char *const[]){"abc", NULL}, "", true);
    /* first to complete wins, not first to begin */
    expect("abcdef", (const char *const[]){"abcde", "cd", NULL}, "ab", true);
    /* on a tie the longer one, in any order */
    expect("xabcd", (const char *const[]){"cd", "abcd", NULL}, "x", true);
    expect("xabcd", (const char *const[]){"abcd", "cd", NULL}, "x", true);
    /* held back, then given out */
    expect("aab", (const char *const[]){"aac", NULL}, "aab", false);
    expect("aaaab", (const char *const[]){"aaab", NULL}, "a", true);
    expect("aaaa", (const char *const[]){"aaaab", NULL}, "aaaa", false);
}

static void test_against_naive(void **state)
{
    (void)state;
    srand(7);
    for (int round = 0; round < 30000; round++) {
        char text[TEXT_MAX], words[4][6];
        const char *stops[5] = {NULL};
        size_t n = (size_t)rand() % TEXT_MAX, n_stops = (size_t)rand() % 5;
        for (size_t i = 0; i < n; i++)
            text[i] = (char)('a' + rand() % 2);
        for (size_t s = 0; s < n_stops && s < 4; s++) {
            size_t len = 1 + (size_t)rand() % 5;
            for (size_t i = 0; i < len; i++)
                words[s][i] = (char)('a' + rand() % 2);
            words[s][len] = 0;
            stops[s] = words[s];
        }
        bool want_stop;
        size_t want = naive(text, n, stops, &want_stop);
        struct sq_text out = {0};
        assert_int_equal(feed(text, n, stops, 3, &out), want_stop);
        assert_int_equal(out.n, want);
        assert_memory_equal(out.n ? out.data : "", text, want);
        sq_text_done(&out);
    }
}

/* Nothing that could still be part of a match is ever given out early. */
static void test_hold_back(void **state)
{
    (void)state;
    struct sq_stops set = {0};
    struct sq_flow f;
    struct sq_text out = {0};
    assert_int_equal(sq_stops_add(&set, "END", 3), 0);
    assert_int_equal(sq_flow_init(&f, NULL, &set), 0);
    assert_int_equal(sq_flow_text(&f, "abE", 3, true, &out), 0);
    assert_int_equal(out.n, 2);
    assert_int_equal(sq_flow_text(&f, "N", 1, true, &out), 0);
    assert_int_equal(out.n, 2);
    assert_int_equal(sq_flow_text(&f, "X", 1, true, &out), 0);
    assert_int_equal(out.n, 5);
    assert_int_equal(sq_flow_text(&f, "END", 3, false, &out),
                     0); /* below min_tokens nothing matches */
    assert_int_equal(out.n, 8);
    assert_int_equal(sq_flow_text(&f, "EN", 2, true, &out), 0);
    assert_int_equal(sq_flow_text(&f, "DX", 2, true, &out), SQ_FLOW_STOP);
    assert_int_equal(out.n, 8);
    sq_flow_done(&f);
    sq_stops_done(&set);
    sq_text_done(&out);
}

static void test_tokens(void **state)
{
    (void)state;
    struct sq_tokenizer *t = NULL;
    struct sq_err err = {0};
    if (sq_tokenizer_open(-100, SQD_SOURCE_DIR "/tests/models/demo-opt/tokenizer.json", 0, &t,
                          &err))
        fail_msg("%s", err.msg);
    static const char text[] = "na\xC3\xAFve \xF0\x9F\x98\x80 and \xE4\xB8\xAD";
    int32_t *ids;
    size_t n;
    assert_int_equal(sq_tokenizer_encode(t, text, sizeof(text) - 1, 0, &ids, &n, &err), 0);
    struct sq_stops set = {0};
    struct sq_flow f;
    struct sq_text out = {0};
    assert_int_equal(sq_stops_add(&set, "\xE4\xB8\xAD", 3), 0);
    assert_int_equal(sq_flow_init(&f, t, &set), 0);
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++)
        rc = sq_flow_push(&f, ids[i], true, &out);
    assert_int_equal(rc, SQ_FLOW_STOP);
    assert_int_equal(out.n, sizeof(text) - 1 - 3);
    assert_memory_equal(out.data, text, out.n);
    sq_flow_done(&f);
    /* the end cuts a character: U+FFFD; an id without a token: nothing */
    out.n = 0;
    struct sq_stops none = {0};
    assert_int_equal(sq_flow_init(&f, t, &none), 0);
    assert_int_equal(sq_flow_push(&f, 1000000, true, &out), 0);
    assert_int_equal(out.n, 0);
    for (size_t i = 0; i + 1 < n; i++)
        assert_int_equal(sq_flow_push(&f, ids[i], true, &out), 0);
    assert_int_equal(sq_flow_finish(&f, &out), 0);
    assert_true(out.n >= 3 && !memcmp(out.data + out.n - 3, "\xEF\xBF\xBD", 3));
    sq_flow_done(&f);
    sq_free(ids);
    sq_stops_done(&set);
    sq_text_done(&out);
    sq_tokenizer_free(t);
}

static void test_no_memory(void **state)
{
    (void)state;
    for (uint64_t k = 1; k < 12; k++) {
        struct sq_stops set = {0};
        struct sq_flow f = {0};
        struct sq_text out = {0};
        sq_mem_fail_at(k, false);
        int rc = sq_stops_add(&set, "abc", 3);
        if (!rc)
            rc = sq_flow_init(&f, NULL, &set);
        if (!rc)
            rc = sq_flow_text(&f, "xxab", 4, true, &out);
        if (!rc)
            rc = sq_flow_finish(&f, &out);
        sq_mem_fail_at(0, false);
        assert_true(rc == 0 || rc == -SQ_E_NOMEM);
        sq_flow_done(&f);
        sq_stops_done(&set);
        sq_text_done(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules), cmocka_unit_test(test_against_naive),
        cmocka_unit_test(test_hold_back), cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_no_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
