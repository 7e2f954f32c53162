/* The public way from text to ids: added tokens first, the rest through pre-tokenizers and model, the template around it. */
#include <string.h>

#include "engine/text/tok_priv.h"
#include "engine/text/utf8.h"

static int push_all(struct sq_tok_ids *out, const uint32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (sq_tok_ids_push(out, ids[i]))
            return -SQ_E_NOMEM;
    return 0;
}

static int encode_parts(const struct sq_tokenizer *t, const char *text,
                        const struct sq_tok_parts *parts, bool parse_special,
                        struct sq_tok_scratch *s, struct sq_err *err)
{
    for (size_t i = 0; i < parts->n; i++) {
        const struct sq_tok_part *p = &parts->v[i];
        int rc = 0;
        if (p->id == SQ_TOK_NO_ID)
            rc = sq_tok_encode_part(t, text + p->start, p->end - p->start, parse_special, s, err);
        else if (sq_tok_ids_push(&s->out, p->id))
            rc = sq_fail(err, SQ_E_NOMEM, "no memory for the token ids");
        if (rc)
            return rc;
    }
    return 0;
}

int sq_tokenizer_encode(const struct sq_tokenizer *t, const char *text, size_t n_bytes,
                        unsigned flags, int32_t **ret_ids, size_t *ret_n, struct sq_err *err)
{
    bool special = flags & SQ_TOK_PARSE_SPECIAL, template = flags & SQ_TOK_ADD_SPECIAL;
    if (n_bytes > SQ_TOK_MAX_TEXT_BYTES)
        return sq_fail(err, SQ_E_LIMIT, "a text of %zu bytes, expected at most %zu", n_bytes,
                       SQ_TOK_MAX_TEXT_BYTES);
    if (!sq_utf8_valid(text, n_bytes))
        return sq_fail(err, SQ_E_INVAL, "the text is not valid UTF-8");
    struct sq_tok_parts parts = {0};
    struct sq_tok_scratch s = {0};
    int rc = sq_tok_ids_reserve(&s.out, n_bytes / 4 + 16);
    if (!rc)
        rc = sq_tok_find_added(t, text, n_bytes, special, &parts);
    if (!rc && template)
        rc = push_all(&s.out, t->prefix, t->n_prefix);
    if (rc)
        rc = sq_fail(err, SQ_E_NOMEM, "no memory to tokenise a text of %zu bytes", n_bytes);
    if (!rc)
        rc = encode_parts(t, text, &parts, special, &s, err);
    if (!rc && template && push_all(&s.out, t->suffix, t->n_suffix))
        rc = sq_fail(err, SQ_E_NOMEM, "no memory for the token ids");
    sq_tok_parts_done(&parts);
    sq_tok_scratch_done(&s);
    if (rc) {
        sq_free(s.out.v);
        return rc;
    }
    *ret_ids = s.out.v;
    *ret_n = s.out.n;
    return 0;
}
