/* api/wbuf, api/json, api/head, api/route: writing and reading what stands on the wire. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "api/api.h"
#include "api/head.h"
#include "api/json.h"
#include "api/route.h"
#include "api/wbuf.h"
#include "engine/base/mem.h"

static struct sq_api_limits limits(void)
{
    struct sq_api_limits l;
    sq_api_limits_default(&l);
    return l;
}

static void expect_json(const char *in, size_t n, const char *want)
{
    struct sq_wbuf o = {0};
    sq_wbuf_json(&o, in, n);
    assert_false(o.failed);
    assert_int_equal(o.n, strlen(want));
    assert_memory_equal(o.data, want, o.n);
    sq_wbuf_done(&o);
}

static void test_escape(void **state)
{
    (void)state;
    expect_json("", 0, "\"\"");
    expect_json("a\"b\\c/", 6, "\"a\\\"b\\\\c/\"");
    expect_json("\b\f\n\r\t", 5, "\"\\b\\f\\n\\r\\t\"");
    expect_json("\0\x01\x1f\x7f", 4, "\"\\u0000\\u0001\\u001f\\u007f\"");
    expect_json("\xC3\xA9\xF0\x9F\x98\x80", 6, "\"\xC3\xA9\xF0\x9F\x98\x80\"");
    expect_json("a\xFF\xE4\xB8", 4, "\"a\xEF\xBF\xBD\xEF\xBF\xBD\"");
    expect_json("\xED\xA0\x80", 3, "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");
}

/* Whatever the bytes, what is written is a JSON string that reads back, and valid UTF-8 reads back as itself. */
static void test_escape_round_trip(void **state)
{
    (void)state;
    struct sq_api_limits l = limits();
    srand(1);
    for (int i = 0; i < 20000; i++) {
        char raw[12];
        size_t n = (size_t)rand() % sizeof(raw);
        for (size_t k = 0; k < n; k++)
            raw[k] = (char)(rand() % 3 ? rand() % 128 : rand() % 256);
        struct sq_wbuf o = {0};
        sq_wbuf_puts(&o, "{\"a\":");
        sq_wbuf_json(&o, raw, n);
        sq_wbuf_puts(&o, "}");
        struct sq_fault f = {0};
        struct json_t *j = memchr(raw, 0, n) ? NULL : sq_field_parse(o.data, o.n, &l, &f);
        if (!memchr(raw, 0, n))
            assert_non_null(j);
        sq_field_free(j);
        sq_wbuf_done(&o);
    }
}

static void test_wbuf_bounds(void **state)
{
    (void)state;
    struct sq_wbuf o = {.max = 10};
    sq_wbuf_puts(&o, "0123456789");
    assert_false(o.failed);
    sq_wbuf_puts(&o, "x");
    assert_true(o.failed);
    assert_int_equal(o.n, 10);
    sq_wbuf_done(&o);
    sq_mem_fail_at(1, true);
    sq_wbuf_puts(&o, "x");
    sq_mem_fail_at(0, false);
    assert_true(o.failed);
    sq_wbuf_done(&o);
    for (int64_t v = INT64_MIN;; v = v < 0 ? v / 7 : INT64_MAX) {
        char want[32];
        (void)snprintf(want, sizeof(want), "%lld", (long long)v);
        o = (struct sq_wbuf){0};
        sq_wbuf_int(&o, v);
        assert_int_equal(o.n, strlen(want));
        assert_memory_equal(o.data, want, o.n);
        sq_wbuf_done(&o);
        if (v == INT64_MAX)
            break;
        if (!v)
            v = 1;
    }
    struct sq_wbuf big = {0};
    sq_wbuf_printf(&big, "%600d|", 5);
    assert_int_equal(big.n, 601);
    sq_wbuf_done(&big);
}

static void test_scan(void **state)
{
    (void)state;
    struct sq_api_limits l = limits();
    struct sq_fault f = {0};
    char deep[200];
    memset(deep, '[', 100);
    assert_int_equal(sq_field_scan(deep, 32, &l, &f), 0);
    assert_int_not_equal(sq_field_scan(deep, 33, &l, &f), 0);
    assert_int_equal(f.status, SQ_STATUS_INVALID_JSON);
    static const char quoted[] = "{\"a\":\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\"[[[[\"}";
    assert_int_equal(sq_field_scan(quoted, sizeof(quoted) - 1, &l, &f), 0);
    l.max_json_values = 2;
    assert_int_equal(sq_field_scan("[1,2,3]", 7, &l, &f), 0);
    assert_int_not_equal(sq_field_scan("[1,2,3,4]", 9, &l, &f), 0);
    l.max_json_containers = 2;
    assert_int_not_equal(sq_field_scan("[[],[]]", 7, &l, &f), 0);
    assert_int_equal(sq_field_scan("\"\\", 2, &l, &f), 0); /* an escape that the end cuts */
}

static void test_getters(void **state)
{
    (void)state;
    struct sq_api_limits l = limits();
    struct sq_fault f = {0};
    static const char text[] = "{\"i\":5,\"w\":7.0,\"r\":1.5,\"t\":true,\"s\":\"x\",\"n\":null,"
                               "\"a\":[],\"o\":{},\"huge\":1e300,\"edge\":9.3e18}";
    struct json_t *j = sq_field_parse(text, sizeof(text) - 1, &l, &f);
    assert_non_null(j);
    int64_t i = 0;
    float x = 0;
    bool b = false;
    const char *s = NULL;
    size_t n = 0;
#define V(key) sq_field_get(j, key)
    assert_int_equal(sq_field_int(V("i"), "i", 0, 5, &i, &f), 0);
    assert_int_equal(i, 5);
    assert_int_equal(sq_field_int(V("w"), "w", 0, 9, &i, &f), 0);
    assert_int_equal(i, 7);
    assert_int_equal(sq_field_int(V("n"), "n", 0, 9, &i, &f), SQ_JSON_ABSENT);
    assert_int_equal(sq_field_int(V("missing"), "m", 0, 9, &i, &f), SQ_JSON_ABSENT);
    assert_int_equal(i, 7);
    static const char *const not_int[] = {"r", "t", "s", "a", "o", "huge", "edge"};
    for (size_t k = 0; k < sizeof(not_int) / sizeof(*not_int); k++) {
        f = (struct sq_fault){0};
        assert_true(sq_field_int(V(not_int[k]), "path", INT64_MIN, INT64_MAX, &i, &f) < 0);
        assert_string_equal(f.param, "path");
        assert_int_equal(f.status, SQ_STATUS_INVALID_VALUE);
    }
    assert_true(sq_field_int(V("i"), "i", 6, 9, &i, &f) < 0);
    assert_int_equal(sq_field_float(V("r"), "r", 0, 2, &x, &f), 0);
    assert_true(x == 1.5f);
    assert_true(sq_field_float(V("huge"), "h", 0, (double)INFINITY, &x, &f) < 0);
    assert_true(sq_field_float(V("t"), "t", 0, 2, &x, &f) < 0);
    assert_true(sq_field_float(V("i"), "i", 0, 2, &x, &f) < 0);
    assert_int_equal(sq_field_bool(V("t"), "t", &b, &f), 0);
    assert_true(b);
    assert_true(sq_field_bool(V("i"), "i", &b, &f) < 0);
    assert_int_equal(sq_field_str(V("s"), "s", &s, &n, &f), 0);
    assert_int_equal(n, 1);
    assert_true(sq_field_str(V("i"), "i", &s, &n, &f) < 0);
#undef V
    sq_field_free(j);
}

static void expect_head(const char *method, const char *target, const struct sq_field *fields,
                        size_t n, enum sq_status want)
{
    struct sq_api_limits l = limits();
    struct sq_fault f = {0};
    static struct sq_head h;
    h = (struct sq_head){
        .method = method, .version = "HTTP/1.1", .target = target, .n_fields = n + 1};
    h.fields[0] = (struct sq_field){"Host", "x", 4, 1};
    for (size_t i = 0; i < n; i++)
        h.fields[i + 1] = fields[i];
    int rc = sq_head_check(&h, &l, false, &f);
    assert_int_equal(f.status, want);
    assert_int_equal(rc != 0, want != SQ_STATUS_OK);
}

#define FIELD(n, v)                                                                                \
    {                                                                                              \
        n, v, sizeof(n) - 1, sizeof(v) - 1                                                         \
    }

static void test_head(void **state)
{
    (void)state;
    static const struct sq_field length[] = {FIELD("content-length", "5"),
                                             FIELD("Content-Length", "5")};
    static const struct sq_field coding = FIELD("transfer-encoding", "chunked"),
                                 blank = FIELD("X-A ", "b"), nul = FIELD("X-A", "a\0b"),
                                 sign = FIELD("Content-Length", "+5"),
                                 none = FIELD("Content-Length", ""), host = FIELD("host", "y"),
                                 expect = FIELD("Expect", "100-Continue"),
                                 tab = FIELD("X-A", "a\tb"), utf8 = FIELD("X-A", "\xC3\xA9");
    expect_head("POST", "/x", length, 1, SQ_STATUS_OK);
    expect_head("POST", "/x", length, 2, SQ_STATUS_BAD_REQUEST);
    expect_head("POST", "/x", NULL, 0, SQ_STATUS_LENGTH_REQUIRED);
    expect_head("POST", "/x", &coding, 1, SQ_STATUS_LENGTH_REQUIRED);
    expect_head("GET", "/x", &blank, 1, SQ_STATUS_BAD_REQUEST);
    expect_head("GET", "/x", &nul, 1, SQ_STATUS_BAD_REQUEST);
    expect_head("GET", "/x", &tab, 1, SQ_STATUS_OK);
    expect_head("GET", "/x", &utf8, 1, SQ_STATUS_OK);
    expect_head("POST", "/x", &sign, 1, SQ_STATUS_BAD_REQUEST);
    expect_head("POST", "/x", &none, 1, SQ_STATUS_BAD_REQUEST);
    expect_head("GET", "/x", &host, 1, SQ_STATUS_BAD_REQUEST);
    expect_head("GET", "/x", &expect, 1, SQ_STATUS_OK);
    expect_head("GET", "/x", length, 1, SQ_STATUS_BAD_REQUEST);
    expect_head("get", "/x", NULL, 0, SQ_STATUS_METHOD_UNKNOWN);
    expect_head("GETT", "/x", NULL, 0, SQ_STATUS_METHOD_UNKNOWN);
    expect_head("PUT", "/x", NULL, 0, SQ_STATUS_OK);
    expect_head("GET", "/\x80", NULL, 0, SQ_STATUS_BAD_REQUEST);
    assert_true(sq_head_is_json("application/json"));
    assert_true(sq_head_is_json("Application/JSON ; charset=utf-8"));
    assert_false(sq_head_is_json("application/json-patch"));
    assert_false(sq_head_is_json("text/plain"));
    assert_false(sq_head_is_json(NULL));
}

static void test_route(void **state)
{
    (void)state;
    char arg[16];
    assert_int_equal(sq_route_find("/v1/completions", arg, sizeof(arg)), SQ_ROUTE_COMPLETIONS);
    assert_int_equal(sq_route_find("/v1/completions?x=1", arg, sizeof(arg)), SQ_ROUTE_COMPLETIONS);
    assert_int_equal(sq_route_find("/v1/models", arg, sizeof(arg)), SQ_ROUTE_MODELS);
    assert_int_equal(sq_route_find("/v1/models/a%2Fb%20c?q", arg, sizeof(arg)), SQ_ROUTE_MODEL);
    assert_string_equal(arg, "a/b c");
    static const char *const none[] = {"",
                                       "/",
                                       "/v1/models/",
                                       "/v1/models/a/b",
                                       "/v1/models/%0",
                                       "/v1/models/%00",
                                       "/v1/models/%C3",
                                       "/v1/models/%",
                                       "/V1/models",
                                       "/v1/completionsx",
                                       "/v1/models/0123456789abcdef",
                                       "*",
                                       "?"};
    for (size_t i = 0; i < sizeof(none) / sizeof(*none); i++)
        assert_int_equal(sq_route_find(none[i], arg, sizeof(arg)), SQ_ROUTE_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_escape),      cmocka_unit_test(test_escape_round_trip),
        cmocka_unit_test(test_wbuf_bounds), cmocka_unit_test(test_scan),
        cmocka_unit_test(test_getters),     cmocka_unit_test(test_head),
        cmocka_unit_test(test_route),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
