/* Split patterns: what is understood, what is refused, and that no text makes one run away. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/split_pattern.h"
#include "engine/text/utf8.h"

/* The pieces of a text as "a|b|c", matches in brackets. */
static void split(const char *pattern, bool literal, const char *text, char *out, size_t cap)
{
    struct sq_split_pattern *p = NULL;
    struct sq_split_run run = {0};
    struct sq_spans spans = {0};
    struct sq_err err = {0};
    size_t n = 0;
    if (sq_split_pattern_new(pattern, strlen(pattern), literal, &p, &err))
        fail_msg("%s: %s", pattern, err.msg);
    assert_int_equal(sq_split_pattern_find(p, &run, text, 0, (uint32_t)strlen(text), &spans, &err),
                     0);
    for (size_t i = 0; i < spans.n; i++) {
        const struct sq_span *s = &spans.v[i];
        int len = (int)(s->end - s->start);
        n += (size_t)snprintf(out + n, cap - n, s->match ? "[%.*s]" : "%.*s", len, text + s->start);
    }
    sq_spans_done(&spans);
    sq_split_run_done(&run);
    sq_split_pattern_free(p);
}

static void test_meaning(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *text, *want;
    } cases[] = {
        {"\\p{L}+", "ab1\xC3\xA9", "[ab]1[\xC3\xA9]"},
        {"[^\\s\\p{L}]+", "a12 b", "a[12] b"},
        {"\\p{^L}", "a1", "a[1]"},
        {"[a-c]x?", "axbd", "[ax][b]d"},
        {"a{2,3}", "aaaaaa", "[aaa][aaa]"},
        {"a{2,}", "aaaaab", "[aaaaa]b"},
        {"(?i:ab)c", "ABcabC", "[ABc]abC"},
        {"(?i:'s)", "'\xC5\xBF", "['\xC5\xBF]"},
        {"\\s+(?!\\S)|\\s+", "a   b", "a[  ][ ]b"},
        {"(?<=a)b", "abb", "a[b]b"},
        {"a++b?", "aaab", "[aaab]"},
        {"a*+b|a", "aac", "[a][a]c"},
        {"[a[bc]]+", "abcd", "[abc]d"},
        {"[-a]+", "-a-b", "[-a-]b"},
        {".", "a\nb", "[a]\n[b]"},
        {"\\x{e9}|\\x41|\\u0042",
         "\xC3\xA9"
         "ABC",
         "[\xC3\xA9][A][B]C"},
        {"(a|b)c", "acbcc", "[ac][bc]c"},
        {"a+?b", "aab", "[aab]"},
        {"\\w", "a\xC2\xB2-", "[a][\xC2\xB2]-"},
        {"[\\w-]", "a\xC2\xB2-", "[a]\xC2\xB2[-]"}, /* the engine's own oddity */
    };
    char got[256];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        split(cases[i].pattern, false, cases[i].text, got, sizeof got);
        if (strcmp(got, cases[i].want) != 0)
            fail_msg("%s on %s: %s", cases[i].pattern, cases[i].text, got);
    }
    split("a.b*", true, "aab*a.b*", got, sizeof got);
    assert_string_equal(got, "aab*[a.b*]");
}

static void test_refused(void **state)
{
    (void)state;
    static const char *const patterns[] = {"",
                                           "a*",
                                           "a|",
                                           "(a",
                                           "a)",
                                           "*a",
                                           "a**",
                                           "a{2}+",
                                           "a{2}?",
                                           "a{300}",
                                           "a{3,2}",
                                           "a{",
                                           "[",
                                           "[a",
                                           "[]a]",
                                           "[b-a]",
                                           "[a-c-e]",
                                           "[\\s-a]",
                                           "[a&&b]",
                                           "[[:alpha:]]",
                                           "\\b",
                                           "^a",
                                           "a$",
                                           "\\p{Han}",
                                           "\\pL",
                                           "\\x80",
                                           "\\x{110000}",
                                           "\\q",
                                           "\\",
                                           "(?>a)",
                                           "(?<n>a)",
                                           "(?i)a",
                                           "(?i:\xC3\xA9)",
                                           "(?i:[^a])",
                                           "(?i:ss)",
                                           "(a)++",
                                           "(?=a*)b",
                                           "(?!a+)b",
                                           "\\1a",
                                           "(?#x)a",
                                           "a\xFF",
                                           "\\u12",
                                           "((((((((((((((((((a))))))))))))))))))",
                                           "(*FAIL)a",
                                           "\\Aa",
                                           "[a",
                                           "[[[[[[[a]]]]]]]"};
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        struct sq_split_pattern *p = NULL;
        struct sq_err err = {0};
        int rc = sq_split_pattern_new(patterns[i], strlen(patterns[i]), false, &p, &err);
        if (!rc)
            fail_msg("accepted: %s", patterns[i]);
        assert_true(rc == -SQ_E_NOTSUP || rc == -SQ_E_FORMAT);
        assert_true(err.msg[0]);
        assert_null(p);
    }
}

/* Quadratic or exponential patterns end with an error, and soon. */
static void test_limits(void **state)
{
    (void)state;
    static const char *const patterns[] = {"(?:a+)+b|a", "a*b|a", "a*+b|a", "(?:a|a)*b|a",
                                           "a+a+a+b|a"};
    enum { N = 300000 };
    char *text = malloc(N);
    memset(text, 'a', N);
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
        struct sq_split_pattern *p = NULL;
        struct sq_split_run run = {0};
        struct sq_spans spans = {0};
        struct sq_err err = {0};
        assert_int_equal(sq_split_pattern_new(patterns[i], strlen(patterns[i]), false, &p, &err),
                         0);
        assert_int_equal(sq_split_pattern_find(p, &run, text, 0, N, &spans, &err), -SQ_E_LIMIT);
        assert_non_null(strstr(err.msg, "too many steps"));
        sq_spans_done(&spans);
        sq_split_run_done(&run);
        sq_split_pattern_free(p);
    }
    free(text);
}

static void test_classes(void **state)
{
    (void)state;
    assert_int_equal(sq_unicode_gc('A'), SQ_GC_LU);
    assert_int_equal(sq_unicode_gc(0x1CCF0), SQ_GC_ND); /* of Unicode 16 */
    assert_int_equal(sq_unicode_gc(0xD800), SQ_GC_CN);
    assert_int_equal(sq_unicode_gc(SQ_UNICODE_MAX), SQ_GC_CN);
    assert_true(sq_unicode_is_space(0x3000) && sq_unicode_is_space(0x85));
    assert_false(sq_unicode_is_space(0x180E) || sq_unicode_is_space(0x200B));
    assert_true(sq_unicode_is_word(0x200D) && sq_unicode_is_word('_') && sq_unicode_is_word(0x301));
    assert_false(sq_unicode_is_word('-') || sq_unicode_is_word(0xB2));
}

/* Every sequence of up to three bytes out of the telling ones, against a decoder written another way. */
static bool valid_slow(const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n;) {
        unsigned c = p[i], len = c < 0x80       ? 1
                                 : c >> 5 == 6  ? 2
                                 : c >> 4 == 14 ? 3
                                 : c >> 3 == 30 ? 4
                                                : 0;
        if (!len || i + len > n)
            return false;
        unsigned v = len == 1 ? c : c & (0x7Fu >> len);
        for (unsigned k = 1; k < len; k++) {
            if (p[i + k] >> 6 != 2)
                return false;
            v = v << 6 | (p[i + k] & 0x3Fu);
        }
        static const unsigned min[] = {0, 0, 0x80, 0x800, 0x10000};
        if (v < min[len] || v > 0x10FFFF || (v >= 0xD800 && v < 0xE000))
            return false;
        i += len;
    }
    return true;
}

static void test_utf8(void **state)
{
    (void)state;
    static const unsigned char b[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                      0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
                                      0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
    enum { B = sizeof b };
    for (unsigned i = 0; i < B * B * B * B; i++) {
        unsigned char s[4] = {b[i % B], b[i / B % B], b[i / B / B % B], b[i / B / B / B]};
        for (size_t n = 0; n <= 4; n++)
            assert_int_equal(sq_utf8_valid((const char *)s, n), valid_slow(s, n));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_meaning), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_limits),  cmocka_unit_test(test_classes),
        cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
