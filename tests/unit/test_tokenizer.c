/* The tokenizer's interface: every rule of loading with a file that breaks it, decoding of broken UTF-8, special tokens, time
 * on hostile texts, several threads at once, and no memory at every allocation. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/text/tokenizer.h"

#define GOLDEN SQD_SOURCE_DIR "/tests/golden/tokenizer/"
#define DEMO SQD_SOURCE_DIR "/tests/models/demo-opt"

static char *read_all(const char *path, size_t *ret_n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(n + 1);
    assert_int_equal(fread(text, 1, n, f), n);
    text[n] = '\0';
    fclose(f);
    *ret_n = n;
    return text;
}

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

/* --- rules of loading ------------------------------------------------------------------------------------------------------- */

/* gpt2.json with the first `find` replaced; the load must fail with this rule and these words. */
struct broken {
    const char *find, *put, *rule, *words;
};

#define TOKEN(id, text, rest)                                                                      \
    "{\"id\":" #id ",\"content\":\"" text "\",\"single_word\":false,\"lstrip\":false," rest

static const struct broken broken[] = {
    {"\"version\":\"1.0\"", "\"version\":\"1.0\",\"version\":\"1.0\"", "T1", "duplicate"},
    {"\"padding\":null", "\"padding\":", "T1", "line 1"},
    {"\"version\":\"1.0\"", "\"version\":\"2.0\"", "T5", "version \"2.0\""},
    {"\"padding\":null", "\"paddling\":null", "T5", "unknown key \"paddling\""},
    {"\"BPE\"", "\"Unigram\"", "T2", "\"Unigram\", expected BPE"},
    {"\"fuse_unk\":false", "\"fuse\":false", "T2", "unknown key \"fuse\""},
    {"\"dropout\":null", "\"dropout\":0.1", "T2", "dropout is set"},
    {"\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"", "T2", "is set"},
    {"\"!\":0", "\"!\":1", "T2", "is taken"},
    {"\"!\":0", "\"!\":-1", "T2", "no integer"},
    {"\"!\":0", "\"!\":0.0", "T2", "no integer"},
    {"\"!\":0", "\"!\":4194304", "T2", "no integer"},
    {"\"vocab\":{", "\"vocab\":[],\"x\":{", "T2", "unknown key"},
    {"\"t h\"", "\"th\"", "T3", "neither"},
    {"\"t h\"", "\"t h e\"", "T3", "neither"},
    {"\"t h\"", "[\"t\",\"h\"]", "T3", "side by side"},
    {"\"t h\"", "\"t zzz\"", "T3", "the second is not in the vocabulary"},
    {"\"t h\"", "\"zzz h\"", "T3", "the first is not in the vocabulary"},
    {"\"t h\"", "\"< h\"", "T3", "the joined text is not in the vocabulary"},
    {"\"t h\"", "\"e r\"", "T3", "twice"},
    {"\"merges\":[", "\"merges\":{},\"unk\":[", "T2", "unknown key"},
    {"\"content\":\"<pad>\"", "\"content\":\"\"", "T4", "0 bytes"},
    {"\"content\":\"<pad>\"", "\"content\":7", "T4", "no content"},
    {"\"content\":\"<pad>\"", "\"content\":\"</s>\"", "T4", "twice"},
    {"\"id\":700,", "\"id\":705,", "T4", "has id 705, expected 700"},
    {"\"lstrip\":false,", "", "T4", "lstrip is missing"},
    {"\"lstrip\":false,", "\"lstrip\":1,", "T4", "lstrip is missing or not"},
    {"\"lstrip\":false,", "\"lstrip\":false,\"mid\":0,", "T4", "unknown keys"},
    {"\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}", "T5", "\"Lowercase\""},
    {"\"pre_tokenizer\":{\"type\":\"ByteLevel\"", "\"pre_tokenizer\":{\"type\":\"Metaspace\"", "T5",
     "\"Metaspace\""},
    {"\"use_regex\":true", "\"use_regex\":1", "T5", "not a boolean"},
    {"\"use_regex\":true", "\"use_regexp\":true", "T5", "unknown keys"},
    {"\"pre_tokenizer\":{", "\"pre_tokenizer\":null,\"x\":{", "T5", "unknown key"},
    {"\"TemplateProcessing\"", "\"BertProcessing\"", "T5", "\"BertProcessing\""},
    {"{\"Sequence\":{\"id\":\"A\"", "{\"Sequence\":{\"id\":\"B\"", "T5", "just once"},
    {"\"ids\":[701]", "\"ids\":[999]", "T5", "stands for no token"},
    {"\"SpecialToken\":{\"id\":\"</s>\"", "\"SpecialToken\":{\"id\":\"<x>\"", "T5", "\"<x>\""},
    {"\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"WordPiece\"", "T5",
     "\"WordPiece\""},
    {"\"~\":", "\"~~~\":", "T6", "byte 0x7E"},
    {"\"content\":\"<pad>\"", "\"content\":\"A\"", "T4", "has id 700, expected 32"},
    {TOKEN(700, "<pad>", ""), TOKEN(32, "A", ""), "T4", "has id 701, expected 700"},
};

/* A copy with the first `find` replaced, freed with free. */
static char *replaced(const char *base, const char *find, const char *put)
{
    const char *at = strstr(base, find);
    if (!at)
        fail_msg("not there: %s", find);
    size_t n = strlen(base) - strlen(find) + strlen(put) + 1;
    char *text = malloc(n);
    snprintf(text, n, "%.*s%s%s", (int)(at - base), base, put, at + strlen(find));
    return text;
}

static int parse_replaced(const char *base, const char *find, const char *put, char *msg,
                          size_t cap)
{
    struct sq_err err = {0};
    struct sq_tokenizer *t = NULL;
    char *text = replaced(base, find, put);
    int rc = sq_tokenizer_parse(text, strlen(text), "tok.json", 0, &t, &err);
    snprintf(msg, cap, "%s", err.msg);
    free(text);
    sq_tokenizer_free(t);
    return rc;
}

static void test_rules(void **state)
{
    (void)state;
    size_t n;
    char *base = read_all(GOLDEN "gpt2.json", &n), msg[512], want[64];
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        const struct broken *b = &broken[i];
        int rc = parse_replaced(base, b->find, b->put, msg, sizeof msg);
        snprintf(want, sizeof want, "tok.json: [%s] ", b->rule);
        if (!rc || strncmp(msg, want, strlen(want)) != 0 || !strstr(msg, b->words))
            fail_msg("case %zu (%s): %d, %s", i, b->put, rc, msg);
    }
    /* what may be said otherwise */
    assert_int_equal(parse_replaced(base, "\"dropout\":null", "\"dropout\":0.0", msg, 512), 0);
    assert_int_equal(parse_replaced(base, "\"truncation\":null", "\"truncation\":{}", msg, 512), 0);
    assert_int_equal(parse_replaced(base, "\"unk_token\":null", "\"unk_token\":\"x\"", msg, 512),
                     0);
    free(base);
}

/* T10: neither a byte nor a merge may stand for a special token. */
static void test_special_cannot_be_spelled(void **state)
{
    (void)state;
    static const char special[] = "\"rstrip\":false,\"normalized\":false,\"special\":true},";
    size_t n;
    char *base = read_all(GOLDEN "gpt2.json", &n), msg[512], put[512];
    snprintf(put, sizeof put, "\"added_tokens\":[%s%s", TOKEN(32, "A", ""), special);
    assert_int_equal(parse_replaced(base, "\"added_tokens\":[", put, msg, 512), -SQ_E_NOTSUP);
    assert_non_null(strstr(msg, "[T10] the token of byte 0x41"));
    char *th = strstr(base, "\"th\":");
    assert_non_null(th);
    snprintf(put, sizeof put,
             "\"added_tokens\":[{\"id\":%d,\"content\":\"th\",\"single_word\":false,"
             "\"lstrip\":false,%s",
             atoi(th + 5), special);
    assert_int_equal(parse_replaced(base, "\"added_tokens\":[", put, msg, 512), -SQ_E_NOTSUP);
    assert_non_null(strstr(msg, "[T10] merge 1 joins to the special token"));
    free(base);
}

static void expect_parse(const char *text, size_t n, size_t n_model_ids, const char *words)
{
    struct sq_err err = {0};
    struct sq_tokenizer *t = NULL;
    assert_true(sq_tokenizer_parse(text, n, "tok.json", n_model_ids, &t, &err) < 0);
    if (!strstr(err.msg, words))
        fail_msg("%s", err.msg);
    assert_null(t);
}

static void test_limits(void **state)
{
    (void)state;
    size_t n;
    char *base = read_all(GOLDEN "gpt2.json", &n), *deep = malloc(100000);
    memset(deep, '[', 100000);
    expect_parse(deep, 100000, 0, "[T1] nested deeper than 64");
    expect_parse(base, n / 2, 0, "[T1] line 1");
    expect_parse(base, n, 702, "[T2] added token \"<|im start|>\" has id 702, expected below 702");
    expect_parse(base, n, 699, "[T2] 700 tokens, but the model has 699 ids");
    expect_parse("", 0, 0, "[T1]");
    expect_parse("[]", 2, 0, "[T2]");
    expect_parse("{}", 2, 0, "[T2]");
    struct sq_tokenizer *t = NULL;
    assert_int_equal(sq_tokenizer_parse(base, n, "tok.json", 703, &t, NULL), 0);
    assert_int_equal(sq_tokenizer_n_ids(t), 703);
    sq_tokenizer_free(t);
    free(base);
    free(deep);
}

static void test_files(void **state)
{
    (void)state;
    struct sq_err err = {0};
    struct sq_tokenizer *t = NULL;
    assert_int_equal(sq_tokenizer_open(AT_FDCWD, "/nonexistent/t.json", 0, &t, &err),
                     -SQ_E_NOTFOUND);
    assert_non_null(strstr(err.msg, "/nonexistent/t.json"));
    assert_int_equal(sq_tokenizer_open(AT_FDCWD, "/dev/null", 0, &t, &err), -SQ_E_IO);
    assert_non_null(strstr(err.msg, "not a regular file"));
    char path[] = "/tmp/sqd-test-tokenizer-XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(ftruncate(fd, (off_t)SQ_TOK_MAX_FILE_BYTES + 1), 0);
    assert_int_equal(sq_tokenizer_open(AT_FDCWD, path, 0, &t, &err), -SQ_E_LIMIT);
    assert_non_null(strstr(err.msg, "[T1] 67108865 bytes"));
    unlink(path);
    close(fd);
    assert_null(t);
    assert_null(sq_tokenizer_free(NULL));
}

/* --- encoding and decoding -------------------------------------------------------------------------------------------------- */

static size_t encode(const struct sq_tokenizer *t, const char *text, unsigned flags, int32_t *ids,
                     size_t cap)
{
    int32_t *got;
    size_t n;
    struct sq_err err = {0};
    if (sq_tokenizer_encode(t, text, strlen(text), flags, &got, &n, &err))
        fail_msg("%s", err.msg);
    assert_true(n <= cap);
    memcpy(ids, got, n * sizeof *ids);
    sq_free(got);
    return n;
}

/* Text that spells a control token gives it only on demand (T10), and the template comes only on demand. */
static void test_flags(void **state)
{
    (void)state;
    struct sq_tokenizer *t = open_golden("llama3");
    int32_t ids[64], bos = sq_tokenizer_id(t, "<|begin_of_text|>"),
                     eot = sq_tokenizer_id(t, "<|eot_id|>");
    int32_t think = sq_tokenizer_id(t, "<think>");
    const char *text = "<|eot_id|><think>";
    assert_true(bos >= 0 && eot >= 0 && think >= 0);
    assert_int_equal(sq_tokenizer_id(t, "no such token"), -1);
    assert_int_equal(encode(t, text, SQ_TOK_PARSE_SPECIAL, ids, 64), 2);
    assert_int_equal(ids[0], eot);
    assert_int_equal(ids[1], think);
    size_t n = encode(t, text, SQ_TOK_ADD_SPECIAL, ids, 64);
    assert_int_equal(ids[0], bos);
    assert_int_equal(ids[n - 1], think); /* added, but not special */
    for (size_t i = 1; i < n; i++)
        assert_int_not_equal(ids[i], eot);
    assert_int_equal(encode(t, "", 0, ids, 64), 0);
    assert_int_equal(encode(t, "", SQ_TOK_ADD_SPECIAL, ids, 64), 1);
    const char *piece;
    bool special;
    assert_true(sq_tokenizer_piece(t, eot, &piece, &n, &special));
    assert_true(special && n == 10 && !memcmp(piece, "<|eot_id|>", n));
    assert_false(sq_tokenizer_piece(t, -1, &piece, &n, &special));
    for (int skip_special = 0; skip_special < 2; skip_special++) {
        char *back;
        assert_int_equal(
            sq_tokenizer_decode(t, (int32_t[]){eot, think}, 2, skip_special, &back, &n, NULL), 0);
        assert_string_equal(back, skip_special ? "<think>" : "<|eot_id|><think>");
        sq_free(back);
    }
    assert_false(sq_tokenizer_piece(t, (int32_t)sq_tokenizer_n_ids(t), &piece, &n, &special));
    sq_tokenizer_free(t);
}

/* ignore_merges takes a whole piece from the vocabulary, but not where that would spell a control token. */
static void test_ignore_merges(void **state)
{
    (void)state;
    struct sq_tokenizer *t = open_golden("llama3");
    int32_t ids[64];
    size_t n;
    assert_int_equal(encode(t, " unmergeable", 0, ids, 64), 1);
    assert_int_equal(ids[0], sq_tokenizer_id(t, "\xC4\xA0unmergeable"));
    sq_tokenizer_free(t);

    char *a = read_all(GOLDEN "gpt2.json", &n);
    char *b = replaced(a, "\"vocab\":{", "\"vocab\":{\"<pad>\":700,\"<any>\":703,");
    char *c = replaced(b, "\"use_regex\":true", "\"use_regex\":false");
    char *d = replaced(c, "\"ignore_merges\":false", "\"ignore_merges\":true");
    char *e = replaced(d, "\"id\":701", "\"id\":702"),
         *f = replaced(e, "\"id\":702,\"content\":\"<|", "\"id\":703,\"content\":\"<|");
    char *g = replaced(f, "\"<any>\":703", "\"<any>\":701"),
         *h = replaced(g, "\"ids\":[701]", "\"ids\":[702]");
    struct sq_err err = {0};
    if (sq_tokenizer_parse(h, strlen(h), "tok.json", 0, &t, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(encode(t, "<any>", 0, ids, 64), 1);
    assert_int_equal(encode(t, "<pad>", SQ_TOK_PARSE_SPECIAL, ids, 64), 1);
    assert_true(encode(t, "<pad>", 0, ids, 64) > 1);
    sq_tokenizer_free(t);
    char *all[] = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; i++)
        free(all[i]);
}

static void test_bad_input(void **state)
{
    (void)state;
    static const char *const bad[] = {"\xFF", "a\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80",
                                      "\xE2\x82"};
    struct sq_tokenizer *t = open_golden("gpt2");
    struct sq_err err = {0};
    int32_t *ids = NULL, hole[] = {5, 703};
    size_t n;
    char *text = NULL;
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(sq_tokenizer_encode(t, bad[i], strlen(bad[i]), 0, &ids, &n, &err),
                         -SQ_E_INVAL);
    assert_int_equal(sq_tokenizer_encode(t, "", SQ_TOK_MAX_TEXT_BYTES + 1, 0, &ids, &n, &err),
                     -SQ_E_LIMIT);
    assert_int_equal(sq_tokenizer_decode(t, hole, 2, false, &text, &n, &err), -SQ_E_INVAL);
    assert_non_null(strstr(err.msg, "no token 703"));
    assert_null(ids);
    assert_null(text);
    sq_tokenizer_free(t);
}

/* Bytes one by one through the stream: each longest beginning of a character that does not go on is one U+FFFD. */
static void test_lossy(void **state)
{
    (void)state;
#define R "\xEF\xBF\xBD"
    static const struct {
        const char *bytes, *want;
    } cases[] = {
        {"\x80", R},
        {"\xC3\xA9", "\xC3\xA9"},
        {"\xC3", R},
        {"\xE2\x82", R},
        {"\xE2\x82\x41", R "A"},
        {"\xE2\x41\x82", R "A" R},
        {"\xF0\x9F\x98\x80", "\xF0\x9F\x98\x80"},
        {"\xF0\x9F\x98", R},
        {"\xF0\x9F\xC3\xA9", R "\xC3\xA9"},
        {"\xF0\x80\x80\x80", R R R R},
        {"\xED\xA0\x80", R R R},
        {"\xF4\x90\x80", R R R},
        {"\xF5\xC0\xAF\xFE", R R R R},
        {"\xF0\x9F\xF0\x9F\x98\x80", R "\xF0\x9F\x98\x80"},
    };
    struct sq_tokenizer *t = open_golden("gpt2");
    int32_t of_byte[256];
    for (int32_t id = 0; id < (int32_t)sq_tokenizer_n_ids(t); id++) {
        const char *p;
        size_t n;
        bool special;
        if (sq_tokenizer_piece(t, id, &p, &n, &special) && n == 1)
            of_byte[(unsigned char)p[0]] = id;
    }
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t ids[8];
        size_t n = strlen(cases[i].bytes), n_text;
        char *text;
        for (size_t k = 0; k < n; k++)
            ids[k] = of_byte[(unsigned char)cases[i].bytes[k]];
        assert_int_equal(sq_tokenizer_decode(t, ids, n, false, &text, &n_text, NULL), 0);
        assert_string_equal(text, cases[i].want);
        sq_free(text);
    }
    sq_tokenizer_free(t);
}

/* An id without a token leaves the stream as it was. */
static void test_stream_error(void **state)
{
    (void)state;
    struct sq_tokenizer *t = open_golden("gpt2");
    struct sq_text out = {0};
    struct sq_detok d;
    int32_t ids[8], pad = sq_tokenizer_id(t, "<pad>");
    size_t n = encode(t, "\xF0\x9F\xA6\x80", 0, ids, 8); /* a crab: not in the training text */
    assert_true(n > 1);
    sq_detok_init(&d, t, true);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(sq_detok_push(&d, 99999, &out, NULL), -SQ_E_INVAL);
        assert_int_equal(sq_detok_push(&d, pad, &out, NULL),
                         0); /* special: nothing, and no break */
        assert_int_equal(out.n, 0);
        assert_int_equal(sq_detok_push(&d, ids[i], &out, NULL), 0);
    }
    assert_string_equal(out.data, "\xF0\x9F\xA6\x80");
    assert_int_equal(sq_detok_finish(&d, &out, NULL), 0);
    assert_string_equal(out.data, "\xF0\x9F\xA6\x80");
    sq_text_done(&out);
    sq_tokenizer_free(t);
}

/* --- time, threads, memory -------------------------------------------------------------------------------------------------- */

#define MIB ((size_t)1 << 20)

static double cpu_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

/* 1 MiB of one string over and over. The bound is far above what it takes (0.02 to 0.3 s) and far below anything quadratic. */
static void check_time(const struct sq_tokenizer *t, const char *name, const char *unit)
{
    size_t n_unit = strlen(unit), n = MIB / n_unit * n_unit, n_ids;
    int32_t *ids;
    char *text = malloc(n);
    struct sq_err err = {0};
    for (size_t i = 0; i < n; i += n_unit)
        memcpy(text + i, unit, n_unit);
    double start = cpu_s();
    if (sq_tokenizer_encode(t, text, n, SQ_TOK_PARSE_SPECIAL, &ids, &n_ids, &err))
        fail_msg("%s, \"%.20s\": %s", name, unit, err.msg);
    double took = cpu_s() - start;
    if (took > 10.0)
        fail_msg("%s, \"%.20s\": %.1f s for 1 MiB", name, unit, took);
    sq_free(ids);
    free(text);
}

static void test_time(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2", "flags", "o200k"};
    static const char *const units[] = {"a",
                                        "A",
                                        " ",
                                        "\n",
                                        "7",
                                        "=",
                                        "a1",
                                        "\xE6\x97\xA5",
                                        "<mask> ",
                                        "  word",
                                        "\xF0\x9F\x91\xA9\xE2\x80\x8D",
                                        "<r>  \n",
                                        " \n",
                                        "\xC3\xA9\xCC\x81",
                                        "<|eot_id|"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct sq_tokenizer *t = open_golden(names[i]);
        for (size_t k = 0; k < sizeof units / sizeof units[0]; k++)
            check_time(t, names[i], units[k]);
        sq_tokenizer_free(t);
    }
}

static void *encode_many(void *arg)
{
    const struct sq_tokenizer *t = arg;
    int32_t first[64], ids[64];
    const char *text = "The same tokenizer, 4 threads: caf\xC3\xA9 <|eot_id|> unmergeable";
    size_t n = encode(t, text, 3, first, 64);
    for (int i = 0; i < 200; i++)
        if (encode(t, text, 3, ids, 64) != n || memcmp(first, ids, n * sizeof *ids) != 0)
            return "differs";
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct sq_tokenizer *t = open_golden("llama3");
    pthread_t threads[4];
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, encode_many, t), 0);
    for (size_t i = 0; i < 4; i++) {
        void *what = NULL;
        pthread_join(threads[i], &what);
        assert_null(what);
    }
    sq_tokenizer_free(t);
}

/* Load, encode and decode once; 0, or the first error. */
static int whole_way(const char *json, size_t n_json)
{
    struct sq_tokenizer *t = NULL;
    struct sq_err err = {0};
    int32_t *ids = NULL;
    char *text = NULL;
    size_t n_ids, n_text;
    const char *in = "One <r>  word 12 \xC3\xA9t\xC3\xA9<mask>";
    int rc = sq_tokenizer_parse(json, n_json, "tok.json", 0, &t, &err);
    if (!rc)
        rc = sq_tokenizer_encode(t, in, strlen(in), 3, &ids, &n_ids, &err);
    if (!rc)
        rc = sq_tokenizer_decode(t, ids, n_ids, false, &text, &n_text, &err);
    if (rc)
        assert_int_equal(err.code, -rc);
    sq_free(ids);
    sq_free(text);
    sq_tokenizer_free(t);
    return rc;
}

/* Every allocation fails once, most of the merges' left out; each time the error comes out and nothing is lost (ASan looks). */
static void test_no_memory(void **state)
{
    (void)state;
    size_t n;
    char *json = read_all(GOLDEN "flags.json", &n);
    sq_mem_fail_at(0, false);
    assert_int_equal(whole_way(json, n), 0);
    uint64_t all = sq_mem_count();
    assert_true(all > 100);
    for (uint64_t k = 1; k <= all; k += k > 40 && k + 60 < all ? 7 : 1) {
        sq_mem_fail_at(k, false);
        int rc = whole_way(json, n);
        sq_mem_fail_at(0, false);
        if (rc && rc != -SQ_E_NOMEM)
            fail_msg("allocation %d: %d", (int)k, rc);
    }
    sq_mem_fail_at(1, true);
    assert_int_equal(whole_way(json, n), -SQ_E_NOMEM);
    sq_mem_fail_at(0, false);
    free(json);
}

static void test_demo(void **state)
{
    (void)state;
    int dir = open(DEMO, O_RDONLY | O_DIRECTORY);
    if (dir < 0)
        skip();
    struct sq_tokenizer *t = NULL;
    struct sq_err err = {0};
    if (sq_tokenizer_open(dir, "tokenizer.json", 0, &t, &err))
        fail_msg("%s", err.msg);
    size_t n, n_ids, n_text;
    char *text = read_all(DEMO "/heldout.txt", &n), *back;
    int32_t *ids;
    assert_int_equal(sq_tokenizer_encode(t, text, n, 0, &ids, &n_ids, &err), 0);
    assert_true(n_ids < n / 2);
    assert_int_equal(sq_tokenizer_decode(t, ids, n_ids, false, &back, &n_text, &err), 0);
    assert_int_equal(n_text, n);
    assert_memory_equal(back, text, n);
    sq_free(ids);
    sq_free(back);
    free(text);
    sq_tokenizer_free(t);
    close(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules),        cmocka_unit_test(test_special_cannot_be_spelled),
        cmocka_unit_test(test_limits),       cmocka_unit_test(test_files),
        cmocka_unit_test(test_flags),        cmocka_unit_test(test_ignore_merges),
        cmocka_unit_test(test_bad_input),    cmocka_unit_test(test_lossy),
        cmocka_unit_test(test_stream_error), cmocka_unit_test(test_time),
        cmocka_unit_test(test_threads),      cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_demo),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
