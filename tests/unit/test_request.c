/* api/request: bodies to checked structs. The refusals one by one stand in tests/integration/test_http_errors.py; here are the values, the
 * bounds on both sides of every limit, and memory that runs out anywhere. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "api/request.h"
#include "engine/base/mem.h"

static const char *const names[] = {"demo", "other", NULL};
static struct sq_tokenizer *tokenizer;

static struct sq_border border(void)
{
    struct sq_border b = {.names = names,
                          .tokenizer = tokenizer,
                          .vocab = 4096,
                          .max_context = 512,
                          .bos = 2,
                          .gen = {NAN, NAN, NAN, NAN, -1, -1}};
    sq_api_limits_default(&b.limits);
    return b;
}

static struct sq_completion accept(const struct sq_border *b, const char *body)
{
    struct sq_completion c = {0};
    struct sq_fault f = {0};
    if (sq_completion_parse(&c, body, strlen(body), b, &f) || sq_completion_tokenise(&c, b, &f))
        fail_msg("%s: %s", body, f.msg);
    return c;
}

static void refuse(const struct sq_border *b, const char *body, enum sq_status status,
                   const char *param)
{
    struct sq_completion c = {0};
    struct sq_fault f = {0};
    int rc = sq_completion_parse(&c, body, strlen(body), b, &f);
    if (!rc)
        rc = sq_completion_tokenise(&c, b, &f);
    if (!rc)
        fail_msg("taken: %s", body);
    assert_int_equal(f.status, status);
    assert_string_equal(f.param, param);
    sq_completion_done(&c);
}

static void test_defaults(void **state)
{
    (void)state;
    struct sq_border b = border();
    struct sq_completion c = accept(&b, "{\"prompt\":\"a\"}");
    assert_int_equal(c.sampling.max_tokens, 16);
    assert_int_equal(c.n, 1);
    assert_true(c.sampling.temperature == 1 && c.sampling.top_p == 1 && c.sampling.min_p == 0 &&
                c.sampling.repetition == 1);
    assert_int_equal(c.sampling.top_k, 0);
    assert_false(c.stream || c.has_seed || c.sampling.ignore_eos || c.include_usage);
    sq_completion_done(&c);
    b.gen = (struct sq_gen_defaults){.temperature = 0.5f,
                                     .top_p = 0.25f,
                                     .min_p = 0.125f,
                                     .repetition_penalty = 1.5f,
                                     .top_k = 7};
    c = accept(&b, "{\"prompt\":\"a\",\"top_p\":0.75}");
    assert_true(c.sampling.temperature == 0.5f && c.sampling.top_p == 0.75f &&
                c.sampling.min_p == 0.125f && c.sampling.repetition == 1.5f);
    assert_int_equal(c.sampling.top_k, 7);
    sq_completion_done(&c);
}

static void test_values(void **state)
{
    (void)state;
    struct sq_border b = border();
    struct sq_completion c =
        accept(&b, "{\"model\":\"other\",\"prompt\":[[5,6],[7.0]],\"max_tokens\":9,\"min_tokens\":"
                   "3,\"n\":4,\"temperature\":0.5,\"top_p\":0.9,\"top_k\":-1,"
                   "\"min_p\":0.1,\"presence_penalty\":-2,\"frequency_penalty\":2,\"repetition_"
                   "penalty\":1.25,\"seed\":-1,\"stop\":[\"\",\"x\",\"yz\"],"
                   "\"stop_token_ids\":[9,10],\"logit_bias\":{\"0\":-100,\"4095\":1.5,\"7\":null},"
                   "\"ignore_eos\":true,\"stream\":true,"
                   "\"stream_options\":{\"include_usage\":true},\"user\":\"u\",\"mystery\":[{}]}");
    assert_int_equal(c.n_prompts, 2);
    assert_int_equal(c.prompts[0].n_ids, 2);
    assert_int_equal(c.prompts[1].ids[0], 7);
    assert_int_equal(c.n_prompt_tokens, 3);
    assert_int_equal(c.n, 4);
    assert_int_equal(c.sampling.max_tokens, 9);
    assert_int_equal(c.sampling.min_tokens, 3);
    assert_int_equal(c.sampling.top_k, 0);
    assert_true(c.has_seed && c.sampling.seed == UINT64_MAX);
    assert_int_equal(c.stops.n, 2);
    assert_int_equal(c.sampling.n_stop_ids, 2);
    assert_int_equal(c.sampling.stop_ids[1], 10);
    assert_int_equal(c.sampling.n_bias, 2);
    assert_true(c.sampling.bias[0].id == 0 && c.sampling.bias[0].bias == -100);
    assert_true(c.sampling.ignore_eos && c.stream && c.include_usage);
    assert_int_equal(c.n_unknown, 1);
    sq_completion_done(&c);
    c = accept(&b, "{\"prompt\":\"a\",\"temperature\":1e-9,\"repeat_penalty\":1.5}");
    assert_true(c.sampling.temperature == 0 && c.sampling.repetition == 1.5f);
    sq_completion_done(&c);
}

/* One below, on, and above each bound. */
static void test_bounds(void **state)
{
    (void)state;
    static const struct {
        const char *name, *below, *low, *high, *above;
    } rows[] = {
        {"max_tokens", "-1", "0", "500", "2147483648"},
        {"n", "0", "1", "16", "17"},
        {"temperature", "-0.0001", "0", "2", "2.0001"},
        {"top_p", "-0.0001", "0", "1", "1.0001"},
        {"min_p", "-0.0001", "0", "1", "1.0001"},
        {"top_k", "-2", "-1", "2147483647", "2147483648"},
        {"presence_penalty", "-2.0001", "-2", "2", "2.0001"},
        {"frequency_penalty", "-2.0001", "-2", "2", "2.0001"},
        {"repetition_penalty", "0", "0.01", "2", "2.0001"},
        {"seed", "-1e19", "-9223372036854775808", "9223372036854775807", "1e19"},
    };
    struct sq_border b = border();
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        const char *values[] = {rows[i].below, rows[i].low, rows[i].high, rows[i].above};
        for (int k = 0; k < 4; k++) {
            char body[128];
            (void)snprintf(body, sizeof(body), "{\"prompt\":\"a\",\"%s\":%s}", rows[i].name,
                           values[k]);
            if (k == 0 || k == 3) {
                refuse(&b, body, SQ_STATUS_INVALID_VALUE, rows[i].name);
            } else {
                struct sq_completion c = accept(&b, body);
                sq_completion_done(&c);
            }
        }
    }
}

static void test_prompts(void **state)
{
    (void)state;
    struct sq_border b = border();
    struct sq_completion c = accept(&b, "{\"prompt\":\"\"}");
    assert_int_equal(c.prompts[0].n_ids, 1);
    assert_int_equal(c.prompts[0].ids[0], 2);
    sq_completion_done(&c);
    c = accept(&b, "{\"prompt\":[0,4095]}");
    assert_int_equal(c.n_prompts, 1);
    assert_int_equal(c.prompts[0].n_ids, 2);
    sq_completion_done(&c);
    c = accept(&b, "{\"prompt\":[\"a\",\"\"]}");
    assert_int_equal(c.n_prompts, 2);
    sq_completion_done(&c);
    refuse(&b, "{\"prompt\":[4096]}", SQ_STATUS_INVALID_VALUE, "prompt[0]");
    refuse(&b, "{\"prompt\":[[5],[5,[6]]]}", SQ_STATUS_INVALID_VALUE, "prompt[1][1]");
    refuse(&b, "{\"prompt\":\"a\",\"max_tokens\":512}", SQ_STATUS_CONTEXT, "prompt");
    refuse(&b, "{\"prompt\":[\"a\",\"b\"],\"max_tokens\":512}", SQ_STATUS_CONTEXT, "prompt[0]");
    /* text that spells a control token is text */
    c = accept(&b, "{\"prompt\":\"</s>\"}");
    assert_true(c.prompts[0].n_ids > 2);
    for (size_t i = 1; i < c.prompts[0].n_ids; i++)
        assert_true(c.prompts[0].ids[i] > 2);
    sq_completion_done(&c);
    b.limits.max_prompts = 2;
    refuse(&b, "{\"prompt\":[\"a\",\"b\",\"c\"]}", SQ_STATUS_INVALID_VALUE, "prompt");
    refuse(&b, "{\"prompt\":[\"a\",\"b\"],\"n\":2}", SQ_STATUS_INVALID_VALUE, "n");
}

static void test_strict(void **state)
{
    (void)state;
    struct sq_border b = border();
    b.strict_fields = true;
    refuse(&b, "{\"prompt\":\"a\",\"mystery\":1}", SQ_STATUS_UNKNOWN_FIELD, "mystery");
    struct sq_completion c = accept(&b, "{\"prompt\":\"a\",\"mystery\":null,\"user\":null}");
    sq_completion_done(&c);
    refuse(&b, "{\"prompt\":\"a\",\"model\":\"nope\"}", SQ_STATUS_MODEL_NOT_FOUND, "model");
}

/* Whichever allocation fails, the request is refused as our own trouble and nothing leaks. */
static void test_no_memory(void **state)
{
    (void)state;
    struct sq_border b = border();
    static const char body[] =
        "{\"prompt\":[\"some "
        "words\",\"\"],\"stop\":[\"x\",\"y\"],\"stop_token_ids\":[5],\"logit_bias\":{\"5\":1}}";
    for (uint64_t k = 1; k < 200; k++) {
        struct sq_completion c = {0};
        struct sq_fault f = {0};
        sq_mem_fail_at(k, false);
        int rc = sq_completion_parse(&c, body, sizeof(body) - 1, &b, &f);
        if (!rc)
            rc = sq_completion_tokenise(&c, &b, &f);
        uint64_t n = sq_mem_count();
        sq_mem_fail_at(0, false);
        assert_int_equal(rc != 0, k <= n);
        assert_int_equal(f.status, rc ? SQ_STATUS_INTERNAL : SQ_STATUS_OK);
        sq_completion_done(&c);
        if (!rc)
            return;
    }
    fail_msg("never succeeded");
}

static int setup(void **state)
{
    (void)state;
    struct sq_err err = {0};
    return sq_tokenizer_open(-100, SQD_SOURCE_DIR "/tests/models/demo-opt/tokenizer.json", 0,
                             &tokenizer, &err);
}

static int teardown(void **state)
{
    (void)state;
    tokenizer = sq_tokenizer_free(tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_values),
        cmocka_unit_test(test_bounds),   cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_strict),   cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
