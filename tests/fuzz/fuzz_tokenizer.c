/* tokenizer.json and a text from one input: the file up to the first byte 0xFF (which no JSON holds), the text after it. A file
 * that is refused is replaced by a small good one if the input begins with '+', so that texts get their share.
 *
 * Must hold: whatever loads, encodes any valid UTF-8 or says why not; ids have tokens; without leave there are no special ones;
 * decoding is UTF-8, and the same at once and id by id; what lost nothing to a pre-tokenizer comes back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The whole byte alphabet, three merges, added tokens with every flag. Freed with free. */
static char *small_json(void)
{
    static const char head[] =
        "{\"version\":\"1.0\",\"added_tokens\":["
        "{\"id\":259,\"content\":\"<s>\",\"single_word\":false,\"lstrip\":true,\"rstrip\":true,"
        "\"normalized\":false,\"special\":true},"
        "{\"id\":260,\"content\":\"  \",\"single_word\":false,\"lstrip\":false,\"rstrip\":true,"
        "\"normalized\":false,\"special\":false},"
        "{\"id\":261,\"content\":\"wx\",\"single_word\":true,\"lstrip\":true,\"rstrip\":false,"
        "\"normalized\":true,\"special\":false}],"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":"
        "true},"
        "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true},"
        "\"model\":{\"type\":\"BPE\",\"merges\":[\"a b\",\"ab a\",\"b b\"],\"vocab\":{\"ab\":256,"
        "\"aba\":257,\"bb\":258";
    char *json = malloc(8192);
    size_t n = (size_t)(stpcpy(json, head) - json);
    unsigned other = 0x100;
    for (unsigned b = 0; b < 256; b++) {
        bool prints = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        n += (size_t)snprintf(json + n, 8192 - n, ",\"\\u%04x\":%u", prints ? b : other++, b);
    }
    strcpy(json + n, "}}}");
    return json;
}

static void check_ids(const struct sq_tokenizer *t, const int32_t *ids, size_t n, bool special_ok)
{
    for (size_t i = 0; i < n; i++) {
        const char *piece;
        size_t n_piece;
        bool special;
        SQ_ASSERT(sq_tokenizer_piece(t, ids[i], &piece, &n_piece, &special));
        SQ_ASSERT(!special || special_ok);
    }
}

static void check_decode(const struct sq_tokenizer *t, const int32_t *ids, size_t n, bool skip)
{
    char *text;
    size_t n_text;
    struct sq_detok d;
    struct sq_text stream = {0};
    SQ_ASSERT(sq_tokenizer_decode(t, ids, n, skip, &text, &n_text, NULL) == 0);
    SQ_ASSERT(sq_utf8_valid(text, n_text));
    sq_detok_init(&d, t, skip);
    for (size_t i = 0; i < n; i++) {
        size_t before = stream.n;
        SQ_ASSERT(sq_detok_push(&d, ids[i], &stream, NULL) == 0);
        SQ_ASSERT(d.n_held <= 3);
        if (stream.n > before)
            SQ_ASSERT(sq_utf8_valid(stream.data + before, stream.n - before));
    }
    SQ_ASSERT(sq_detok_finish(&d, &stream, NULL) == 0);
    SQ_ASSERT(stream.n == n_text && !memcmp(stream.data, text, n_text));
    sq_text_done(&stream);
    sq_free(text);
}

static void try_text(const struct sq_tokenizer *t, const char *text, size_t n, bool whole)
{
    for (unsigned flags = 0; flags < 4; flags++) {
        int32_t *ids = NULL;
        size_t n_ids;
        struct sq_err err = {0};
        int rc = sq_tokenizer_encode(t, text, n, flags, &ids, &n_ids, &err);
        SQ_ASSERT(rc == 0 || err.code == -rc);
        SQ_ASSERT(rc == 0 || rc == -SQ_E_LIMIT || (rc == -SQ_E_INVAL && !sq_utf8_valid(text, n)));
        if (rc)
            continue;
        check_ids(t, ids, n_ids, flags != 0);
        check_decode(t, ids, n_ids, flags & 1);
        char *back;
        size_t n_back;
        if (whole && !flags && !memchr(text, ' ', n) && !memchr(text, 'w', n)) {
            SQ_ASSERT(sq_tokenizer_decode(t, ids, n_ids, false, &back, &n_back, NULL) == 0);
            SQ_ASSERT(n_back == n && !memcmp(back, text, n));
            sq_free(back);
        }
        sq_free(ids);
    }
}

/* Made once, for speed; reachable to the end. */
static const struct sq_tokenizer *small(void)
{
    static struct sq_tokenizer *t;
    if (!t) {
        char *json = small_json();
        SQ_ASSERT(sq_tokenizer_parse(json, strlen(json), "small", 262, &t, NULL) == 0);
        free(json);
    }
    return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sq_tokenizer *t = NULL;
    struct sq_err err = {0};
    const uint8_t *mark = size ? memchr(data, 0xFF, size) : NULL;
    size_t n_json = mark ? (size_t)(mark - data) : size;
    const char *text = mark ? (const char *)mark + 1 : "A text, 123 of it.";
    size_t n_text = mark ? size - n_json - 1 : strlen(text);
    if (size && data[0] == '+') {
        try_text(small(), (const char *)data + 1, size - 1, true);
    } else if (sq_tokenizer_parse((const char *)data, n_json, "fuzz", 0, &t, &err) == 0) {
        try_text(t, text, n_text, false);
    } else {
        SQ_ASSERT(err.code && err.msg[0]);
    }
    sq_tokenizer_free(t);
    return 0;
}
