/* One part of the text through the pre-tokenizers, and each piece through the model.
 *
 * Until the byte-level step the pieces are ranges of the text. That step turns bytes into the alphabet's characters; since it
 * mostly comes last, the turn is only made where another step follows, and the model is always fed with raw bytes. */
#include <string.h>

#include "engine/base/check.h"
#include "engine/text/tok_priv.h"
#include "engine/text/utf8.h"

void sq_tok_scratch_done(struct sq_tok_scratch *s)
{
    sq_split_run_done(&s->run);
    sq_spans_done(&s->spans);
    sq_spans_done(&s->next);
    sq_spans_done(&s->found);
    sq_tok_word_done(&s->word);
    sq_free(s->prefixed.v);
    sq_free(s->mapped.v);
    sq_free(s->piece.v);
}

static int reserve(struct sq_tok_buf *b, size_t n)
{
    if (n <= b->cap)
        return 0;
    unsigned char *v = sq_realloc_array(b->v, n, 1);
    if (!v)
        return -SQ_E_NOMEM;
    b->v = v;
    b->cap = n;
    return 0;
}

static void swap_spans(struct sq_tok_scratch *s)
{
    struct sq_spans old = s->spans;
    s->spans = s->next;
    s->next = old;
    s->next.n = 0;
}

/* A space before every piece that does not begin with one. */
static int prefix_spaces(struct sq_tok_scratch *s, const char **text)
{
    size_t need = 0, at = 0;
    for (size_t i = 0; i < s->spans.n; i++)
        need += s->spans.v[i].end - s->spans.v[i].start + 1u;
    if (need > UINT32_MAX || reserve(&s->prefixed, need))
        return -SQ_E_NOMEM;
    for (size_t i = 0; i < s->spans.n; i++) {
        struct sq_span *p = &s->spans.v[i];
        size_t n = p->end - p->start, start = at;
        if ((*text)[p->start] != ' ')
            s->prefixed.v[at++] = ' ';
        memcpy(s->prefixed.v + at, *text + p->start, n);
        at += n;
        *p = (struct sq_span){(uint32_t)start, (uint32_t)at, false};
    }
    *text = (const char *)s->prefixed.v;
    return 0;
}

/* The pieces in the byte-level alphabet. */
static int map_bytes(struct sq_tok_scratch *s, const char **text)
{
    size_t need = 0, at = 0;
    for (size_t i = 0; i < s->spans.n; i++)
        need += 2 * (size_t)(s->spans.v[i].end - s->spans.v[i].start);
    if (need > UINT32_MAX || reserve(&s->mapped, need))
        return -SQ_E_NOMEM;
    for (size_t i = 0; i < s->spans.n; i++) {
        struct sq_span *p = &s->spans.v[i];
        size_t start = at;
        for (size_t k = p->start; k < p->end; k++)
            at += sq_utf8_put(s->mapped.v + at, sq_tok_byte_char((unsigned char)(*text)[k]));
        *p = (struct sq_span){(uint32_t)start, (uint32_t)at, false};
    }
    *text = (const char *)s->mapped.v;
    return 0;
}

/* Appends what the pattern found to s->next, joined or dropped as the behavior says. */
static int apply_behavior(const struct sq_tok_stage *stage, struct sq_tok_scratch *s)
{
    size_t base = s->next.n, n = s->found.n;
    bool backwards = stage->behavior == SQ_TOK_MERGED_WITH_NEXT, before = false;
    for (size_t k = 0; k < n; k++) {
        const struct sq_span *f = &s->found.v[backwards ? n - 1 - k : k];
        bool match = f->match != stage->invert, joins = false;
        if (stage->behavior == SQ_TOK_REMOVED && match)
            continue;
        if (stage->behavior == SQ_TOK_CONTIGUOUS)
            joins = match == before;
        else if (stage->behavior >= SQ_TOK_MERGED_WITH_PREVIOUS)
            joins = match && !before;
        before = match;
        if (!joins || s->next.n == base) {
            if (sq_spans_push(&s->next, f->start, f->end, false))
                return -SQ_E_NOMEM;
        } else if (backwards) {
            s->next.v[s->next.n - 1].start = f->start;
        } else {
            s->next.v[s->next.n - 1].end = f->end;
        }
    }
    for (size_t i = base, j = s->next.n; backwards && i + 1 < j; i++) {
        struct sq_span swap = s->next.v[i];
        s->next.v[i] = s->next.v[--j];
        s->next.v[j] = swap;
    }
    return 0;
}

static int split(const struct sq_tok_stage *stage, struct sq_tok_scratch *s, const char *text,
                 struct sq_err *err)
{
    for (size_t i = 0; i < s->spans.n; i++) {
        const struct sq_span *p = &s->spans.v[i];
        s->found.n = 0;
        int rc =
            sq_split_pattern_find(stage->pattern, &s->run, text, p->start, p->end, &s->found, err);
        if (rc)
            return rc;
        if (apply_behavior(stage, s))
            return sq_fail(err, SQ_E_NOMEM, "no memory to split the text");
    }
    swap_spans(s);
    return 0;
}

/* Runs the steps over *text, leaves the pieces in s->spans; *text and *mapped say where and how they stand. */
static int run_stages(const struct sq_tokenizer *t, struct sq_tok_scratch *s, const char **text,
                      bool *mapped, struct sq_err *err)
{
    *mapped = false;
    for (size_t i = 0; i < t->n_stages; i++) {
        const struct sq_tok_stage *stage = &t->stages[i];
        if (stage->add_prefix_space && prefix_spaces(s, text))
            return sq_fail(err, SQ_E_NOMEM, "no memory to split the text");
        int rc = stage->pattern ? split(stage, s, *text, err) : 0;
        if (rc)
            return rc;
        if (!stage->byte_level || i + 1 == t->n_stages)
            continue;
        if (map_bytes(s, text))
            return sq_fail(err, SQ_E_NOMEM, "no memory to split the text");
        *mapped = true;
    }
    return 0;
}

/* The token of a whole piece, for ignore_merges. SQ_TOK_NO_ID: there is none. */
static uint32_t whole_piece(const struct sq_tokenizer *t, struct sq_tok_scratch *s,
                            const unsigned char *p, size_t n, bool parse_special)
{
    size_t n_text = 0;
    if (n > t->vocab.max_text)
        return SQ_TOK_NO_ID;
    for (size_t i = 0; i < n; i++)
        n_text += sq_utf8_put(s->piece.v + n_text, sq_tok_byte_char(p[i]));
    uint32_t id = sq_tok_vocab_find(&t->vocab, (const char *)s->piece.v, n_text);
    /* T10: not even a piece that is a control token's text to the letter */
    if (id == SQ_TOK_NO_ID || !t->vocab.ids[id].vocab ||
        (t->vocab.ids[id].special && !parse_special))
        return SQ_TOK_NO_ID;
    return id;
}

/* Characters of the alphabet back into bytes, in place. Returns the number of bytes. */
static size_t unmap(unsigned char *p, size_t n)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n;) {
        unsigned len;
        int byte = sq_tok_char_byte(sq_utf8_get(p + i, &len));
        SQ_ASSERT(byte >= 0);
        p[n_out++] = (unsigned char)byte;
        i += len;
    }
    return n_out;
}

static int encode_pieces(const struct sq_tokenizer *t, struct sq_tok_scratch *s, const char *text,
                         bool mapped, bool parse_special)
{
    if (t->ignore_merges && reserve(&s->piece, 2 * t->vocab.max_text + 2))
        return -SQ_E_NOMEM;
    for (size_t i = 0; i < s->spans.n; i++) {
        unsigned char *p =
            (unsigned char *)text + s->spans.v[i].start; /* ours to change if mapped */
        size_t n = s->spans.v[i].end - s->spans.v[i].start;
        if (mapped)
            n = unmap(p, n);
        uint32_t id = t->ignore_merges ? whole_piece(t, s, p, n, parse_special) : SQ_TOK_NO_ID;
        int rc = id != SQ_TOK_NO_ID ? sq_tok_ids_push(&s->out, id)
                                    : sq_tok_merge_word(t, &s->word, p, n, &s->out);
        if (rc)
            return rc;
    }
    return 0;
}

int sq_tok_encode_part(const struct sq_tokenizer *t, const char *text, size_t n, bool parse_special,
                       struct sq_tok_scratch *s, struct sq_err *err)
{
    bool mapped;
    s->spans.n = 0;
    s->next.n = 0;
    if (sq_spans_push(&s->spans, 0, (uint32_t)n, false))
        return sq_fail(err, SQ_E_NOMEM, "no memory to split the text");
    int rc = run_stages(t, s, &text, &mapped, err);
    if (rc)
        return rc;
    if (encode_pieces(t, s, text, mapped, parse_special))
        return sq_fail(err, SQ_E_NOMEM, "no memory for the token ids");
    return 0;
}
