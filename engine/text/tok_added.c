/* Added tokens: found in the text before anything else happens to it, the longest one at the leftmost place, first those that are
 * matched as they stand, then the `normalized` ones in what is left (the normaliser is always null here, so both see the same
 * text). Flags then widen or discard a match; a discarded match is still consumed. All as the library does it. */
#include <stdlib.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/text/tok_priv.h"
#include "engine/text/utf8.h"

#define MAX_ADDED_BYTES 256

void sq_tok_parts_done(struct sq_tok_parts *p)
{
    sq_free(p->v);
    *p = (struct sq_tok_parts){0};
}

/* Parts without length are dropped, tokens too: the library does so. */
static int push_part(struct sq_tok_parts *p, size_t start, size_t end, uint32_t id)
{
    if (start >= end)
        return 0;
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 16;
        struct sq_tok_part *v = sq_realloc_array(p->v, cap, sizeof *v);
        if (!v)
            return -SQ_E_NOMEM;
        p->v = v;
        p->cap = cap;
    }
    p->v[p->n++] = (struct sq_tok_part){(uint32_t)start, (uint32_t)end, id};
    return 0;
}

static uint32_t char_before(const unsigned char *s, size_t at, size_t *ret_start)
{
    unsigned n;
    do
        at--;
    while ((s[at] & 0xC0) == 0x80);
    *ret_start = at;
    return sq_utf8_get(s + at, &n);
}

/* One search in text[from, to). */
struct search {
    const unsigned char *s;
    size_t from, to;
    size_t done; /* up to here parts were pushed */
    size_t space_start,
        space_end; /* the run of white space measured last: no run is walked twice */
};

/* End of the white space that begins at `at`. */
static size_t skip_space(struct search *f, size_t at)
{
    if (at >= f->space_start && at < f->space_end)
        return f->space_end;
    size_t end = at;
    unsigned n;
    while (end < f->to && sq_unicode_is_space(sq_utf8_get(f->s + end, &n)))
        end += n;
    if (end > at) {
        f->space_start = at;
        f->space_end = end;
    }
    return end;
}

/* Start of the white space that ends at `at`, but not before `limit`. */
static size_t skip_space_back(const struct search *f, size_t at, size_t limit)
{
    size_t before;
    while (at > limit && sq_unicode_is_space(char_before(f->s, at, &before)))
        at = before;
    return at;
}

static bool beside_word(const struct search *f, size_t start, size_t end)
{
    size_t before;
    unsigned n;
    return (start > f->from && sq_unicode_is_word(char_before(f->s, start, &before))) ||
           (end < f->to && sq_unicode_is_word(sq_utf8_get(f->s + end, &n)));
}

static int take_match(const struct sq_tok_added *a, struct search *f, size_t start, size_t end,
                      bool parse_special, struct sq_tok_parts *out)
{
    if (a->special && !parse_special)
        return 0;
    if (a->single_word && beside_word(f, start, end))
        return 0;
    /* `done` may lie beyond start here, after a match that took white space in which this one stands */
    if (a->lstrip)
        start = f->done > start ? f->done : skip_space_back(f, start, f->done);
    if (a->rstrip)
        end = skip_space(f, end);
    int rc = push_part(out, f->done, start, SQ_TOK_NO_ID);
    rc = rc ? rc : push_part(out, start, end, a->id);
    f->done = end;
    return rc;
}

static int search(const struct sq_tokenizer *t, const struct sq_tok_trie *trie,
                  const unsigned char *s, size_t from, size_t to, bool parse_special,
                  struct sq_tok_parts *out)
{
    struct search f = {.s = s, .from = from, .to = to, .done = from};
    for (size_t i = from; i < to && trie->n_nodes;) {
        size_t n = 0;
        int32_t k = trie->starts[s[i]] ? sq_tok_trie_longest(trie, s + i, to - i, &n) : -1;
        if (k < 0) {
            i++;
            continue;
        }
        if (take_match(&t->added[k], &f, i, i + n, parse_special, out))
            return -SQ_E_NOMEM;
        i += n;
    }
    return push_part(out, f.done, to, SQ_TOK_NO_ID);
}

int sq_tok_find_added(const struct sq_tokenizer *t, const char *text, size_t n, bool parse_special,
                      struct sq_tok_parts *out)
{
    const unsigned char *s = (const unsigned char *)text;
    struct sq_tok_parts first = {0};
    int rc = search(t, &t->raw_trie, s, 0, n, parse_special, &first);
    for (size_t i = 0; i < first.n && !rc; i++) {
        const struct sq_tok_part *p = &first.v[i];
        if (p->id != SQ_TOK_NO_ID)
            rc = push_part(out, p->start, p->end, p->id);
        else
            rc = search(t, &t->normalized_trie, s, p->start, p->end, parse_special, out);
    }
    sq_tok_parts_done(&first);
    return rc;
}

/* --- loading ---------------------------------------------------------------------------------------------------------------- */

static int read_flags(const struct sq_tokenizer *t, const json_t *item, const char *content,
                      struct sq_tok_added *a, struct sq_err *err)
{
    struct {
        const char *key;
        bool *to;
    } flags[] = {{"single_word", &a->single_word},
                 {"lstrip", &a->lstrip},
                 {"rstrip", &a->rstrip},
                 {"normalized", &a->normalized},
                 {"special", &a->special}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(flags); i++) {
        const json_t *v = json_object_get(item, flags[i].key);
        if (!json_is_boolean(v))
            return sq_tok_fail(t, err, SQ_E_FORMAT, "T4",
                               "added token \"%.64s\": %s is missing or not a boolean", content,
                               flags[i].key);
        *flags[i].to = json_is_true(v);
    }
    if (json_object_size(item) != SQ_ARRAY_LEN(flags) + 2)
        return sq_tok_fail(t, err, SQ_E_NOTSUP, "T4", "added token \"%.64s\" has unknown keys",
                           content);
    return 0;
}

/* The library numbers added tokens itself: those that stand in the vocabulary keep its id, the others follow the number of
 * vocabulary entries. A file that says otherwise means ids that the library would not give. */
static int place(struct sq_tokenizer *t, const char *text, size_t n, struct sq_tok_added *a,
                 json_int_t declared, uint32_t *next_id, struct sq_err *err)
{
    struct sq_tok_vocab *v = &t->vocab;
    uint32_t id = sq_tok_vocab_find(v, text, n);
    bool known = id != SQ_TOK_NO_ID;
    if (known && v->ids[id].added)
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T4", "added token \"%.64s\" stands there twice",
                           text);
    if (!known)
        id = (*next_id)++;
    if (declared != (json_int_t)id)
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T4",
                           "added token \"%.64s\" has id %lld, expected %u", text,
                           (long long)declared, id);
    if (id > SQ_TOK_MAX_ID || (t->n_model_ids && id >= t->n_model_ids))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T2",
                           "added token \"%.64s\" has id %u, expected below %zu", text, id,
                           t->n_model_ids ? t->n_model_ids : (size_t)SQ_TOK_MAX_ID + 1);
    int rc = known ? 0 : sq_tok_vocab_add(v, text, n, id, false);
    if (rc == 2)
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T2", "added token \"%.64s\": id %u is taken", text,
                           id);
    if (rc)
        return rc == -SQ_E_LIMIT ? sq_tok_fail(t, err, SQ_E_LIMIT, "T2", "too many collisions")
                                 : sq_tok_nomem(t, err);
    v->ids[id].added = true;
    v->ids[id].special = a->special;
    a->id = id;
    return 0;
}

static int read_added(struct sq_tokenizer *t, const json_t *item, uint32_t *next_id,
                      struct sq_err *err)
{
    const json_t *content = json_object_get(item, "content"), *id = json_object_get(item, "id");
    const char *text = json_string_value(content);
    size_t n = json_string_length(content);
    if (!text || !json_is_integer(id))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T4", "added token %zu has no content or no id",
                           t->n_added);
    if (!n || n > MAX_ADDED_BYTES)
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T4",
                           "added token %zu, \"%.64s\", has %zu bytes, expected 1 to %d",
                           t->n_added, text, n, MAX_ADDED_BYTES);
    struct sq_tok_added *a = &t->added[t->n_added];
    int rc = read_flags(t, item, text, a, err);
    if (!rc)
        rc = place(t, text, n, a, json_integer_value(id), next_id, err);
    t->n_added += !rc;
    return rc;
}

static int by_text(const void *pa, const void *pb)
{
    const struct sq_tok_trie_key *a = pa, *b = pb;
    int c = memcmp(a->text, b->text, SQ_MIN(a->n, b->n));
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

static int build_tries(struct sq_tokenizer *t)
{
    SQ_AUTO_FREE struct sq_tok_trie_key *keys = sq_new_array(struct sq_tok_trie_key, t->n_added);
    if (!keys)
        return -SQ_E_NOMEM;
    for (int normalized = 0; normalized < 2; normalized++) {
        size_t n = 0;
        for (size_t i = 0; i < t->n_added; i++) {
            const struct sq_tok_entry *e = &t->vocab.ids[t->added[i].id];
            if (t->added[i].normalized == normalized)
                keys[n++] =
                    (struct sq_tok_trie_key){t->vocab.blob + e->text, e->n_text, (int32_t)i};
        }
        if (!n)
            continue;
        qsort(keys, n, sizeof *keys, by_text);
        if (sq_tok_trie_build(normalized ? &t->normalized_trie : &t->raw_trie, keys, n))
            return -SQ_E_NOMEM;
    }
    return 0;
}

int sq_tok_load_added(struct sq_tokenizer *t, const json_t *list, struct sq_err *err)
{
    size_t n = json_array_size(list), i;
    uint32_t next_id = (uint32_t)t->vocab.n_vocab;
    const json_t *item;
    if (!list || json_is_null(list))
        return 0;
    if (!json_is_array(list))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T4", "added_tokens is not a list");
    t->added = sq_new_array(struct sq_tok_added, n);
    if (!t->added)
        return sq_tok_nomem(t, err);
    json_array_foreach(list, i, item)
    {
        int rc = read_added(t, item, &next_id, err);
        if (rc)
            return rc;
    }
    return build_tries(t) ? sq_tok_nomem(t, err) : 0;
}
