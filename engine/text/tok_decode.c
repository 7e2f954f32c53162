/* From ids to text. Tokens are bytes; what comes out is UTF-8 in whole characters, with U+FFFD for every longest beginning of a
 * character that does not go on (as Rust's from_utf8_lossy). Decoding at once is the stream run to its end. */
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/num.h"
#include "engine/text/tok_priv.h"
#include "engine/text/utf8.h"

#define REPLACEMENT "\xEF\xBF\xBD"

size_t sq_tokenizer_n_ids(const struct sq_tokenizer *t)
{
    return t->vocab.n_ids;
}

int32_t sq_tokenizer_id(const struct sq_tokenizer *t, const char *token_text)
{
    uint32_t id = sq_tok_vocab_find(&t->vocab, token_text, strlen(token_text));
    return id == SQ_TOK_NO_ID ? -1 : (int32_t)id;
}

bool sq_tokenizer_piece(const struct sq_tokenizer *t, int32_t id, const char **ret_bytes,
                        size_t *ret_n, bool *ret_special)
{
    if (id < 0 || (size_t)id >= t->vocab.n_ids || !t->vocab.ids[id].used)
        return false;
    const struct sq_tok_entry *e = &t->vocab.ids[id];
    *ret_bytes = (const char *)t->vocab.blob + e->bytes;
    *ret_n = e->n_bytes;
    *ret_special = e->special;
    return true;
}

static int reserve(struct sq_text *t, size_t n)
{
    size_t need;
    if (!sq_add_size(t->n, n, &need) || !sq_add_size(need, 1, &need))
        return -SQ_E_NOMEM;
    if (need <= t->cap)
        return 0;
    size_t cap = need > SIZE_MAX / 2 ? need : SQ_MAX(2 * t->cap, need + 32);
    char *data = sq_realloc_array(t->data, cap, 1);
    if (!data)
        return -SQ_E_NOMEM;
    t->data = data;
    t->cap = cap;
    return 0;
}

int sq_text_append(struct sq_text *t, const char *bytes, size_t n)
{
    if (reserve(t, n))
        return -SQ_E_NOMEM;
    if (n)
        memcpy(t->data + t->n, bytes, n);
    t->n += n;
    t->data[t->n] = '\0';
    return 0;
}

void sq_text_done(struct sq_text *t)
{
    sq_free(t->data);
    *t = (struct sq_text){0};
}

void sq_detok_init(struct sq_detok *d, const struct sq_tokenizer *t, bool skip_special)
{
    *d = (struct sq_detok){.t = t, .skip_special = skip_special};
}

/* Writes p[0, n) as whole characters at out (3 * n bytes of room), returns what was written; *ret_used: bytes of p that were
 * looked at, the rest is the beginning of a character. */
static size_t sanitize(const unsigned char *p, size_t n, char *out, size_t *ret_used)
{
    size_t i = 0, n_out = 0;
    while (i < n) {
        bool cut;
        int step = sq_utf8_step(p + i, n - i, &cut);
        if (cut)
            break;
        size_t len = (size_t)(step > 0 ? step : -step);
        const char *from = step > 0 ? (const char *)p + i : REPLACEMENT;
        size_t n_from = step > 0 ? len : strlen(REPLACEMENT);
        memcpy(out + n_out, from, n_from);
        n_out += n_from;
        i += len;
    }
    *ret_used = i;
    return n_out;
}

/* The held bytes and the first ones of the piece, up to the end of the character they begin. Returns bytes written at out;
 * *ret_taken: bytes of the piece that were used. */
static size_t finish_held(struct sq_detok *d, const unsigned char *piece, size_t n, char *out,
                          size_t *ret_taken)
{
    size_t n_out = 0, taken = 0;
    while (d->n_held && taken < n) {
        size_t used;
        d->held[d->n_held++] = piece[taken++];
        n_out += sanitize(d->held, d->n_held, out + n_out, &used);
        /* a byte that does not go on with the character stands for itself, or begins the next one */
        memmove(d->held, d->held + used, d->n_held - used);
        d->n_held -= (unsigned)used;
    }
    *ret_taken = taken;
    return n_out;
}

int sq_detok_push(struct sq_detok *d, int32_t id, struct sq_text *out, struct sq_err *err)
{
    const char *piece;
    size_t n, taken, used;
    bool special;
    if (!sq_tokenizer_piece(d->t, id, &piece, &n, &special))
        return sq_fail(err, SQ_E_INVAL, "%s: there is no token %d", d->t->name, id);
    if (special && d->skip_special)
        return 0;
    if (reserve(out, 3 * (n + sizeof d->held)))
        return sq_fail(err, SQ_E_NOMEM, "no memory for the text of a token");
    const unsigned char *p = (const unsigned char *)piece;
    out->n += finish_held(d, p, n, out->data + out->n, &taken);
    out->n += sanitize(p + taken, n - taken, out->data + out->n, &used);
    out->data[out->n] = '\0';
    if (!d->n_held) {
        d->n_held = (unsigned)(n - taken - used);
        memcpy(d->held, p + taken + used, d->n_held);
    }
    SQ_ASSERT(d->n_held <= 3);
    return 0;
}

int sq_detok_finish(struct sq_detok *d, struct sq_text *out, struct sq_err *err)
{
    if (sq_text_append(out, REPLACEMENT, d->n_held ? strlen(REPLACEMENT) : 0))
        return sq_fail(err, SQ_E_NOMEM, "no memory for the end of a text");
    d->n_held = 0;
    return 0;
}

int sq_tokenizer_decode(const struct sq_tokenizer *t, const int32_t *ids, size_t n,
                        bool skip_special, char **ret_text, size_t *ret_bytes, struct sq_err *err)
{
    struct sq_detok d;
    struct sq_text text = {0};
    int rc = 0;
    sq_detok_init(&d, t, skip_special);
    for (size_t i = 0; i < n && !rc; i++)
        rc = sq_detok_push(&d, ids[i], &text, err);
    if (!rc)
        rc = sq_detok_finish(&d, &text, err);
    if (rc) {
        sq_text_done(&text);
        return rc;
    }
    *ret_text = text.data;
    *ret_bytes = text.n;
    return 0;
}
