/* The pattern's syntax, read into sets and structure. What is let through means the same to Oniguruma with Ruby's syntax, which
 * the library uses, and to PCRE2; the rest is refused by name. Repeats must stay countable for split_pattern.c: a possessive
 * repeat of one atom is written as a greedy one that may not be followed by the atom, and lookarounds hold no endless repeat. */
#include <string.h>

#include "engine/base/check.h"
#include "engine/text/split_priv.h"

#define MAX_DEPTH 16
#define MAX_REPEAT 256u

enum after { AFTER_NONE, AFTER_ATOM, AFTER_GROUP, AFTER_LOOK };

struct group {
    bool look; /* a lookaround, or inside one */
    bool self; /* is itself a lookaround */
    bool fold; /* (?i: */
};

struct parser {
    struct sq_split_cursor in;
    struct sq_split_parsed *out;
    struct group groups[MAX_DEPTH];
    size_t depth;
    enum after after;   /* what a repeat would apply to */
    uint32_t last_char; /* of a folded literal just before, else 0 */
};

static int emit(struct parser *p, const char *bytes, size_t n)
{
    struct sq_split_parsed *o = p->out;
    if (o->n + n > o->cap) {
        size_t cap = 2 * o->cap + n + 64;
        unsigned char *code = sq_realloc_array(o->code, cap, 1);
        if (!code)
            return sq_fail(p->in.err, SQ_E_NOMEM, "no memory for a split pattern");
        o->code = code;
        o->cap = cap;
    }
    memcpy(o->code + o->n, bytes, n);
    o->n += n;
    return 0;
}

static int emit_text(struct parser *p, const char *text)
{
    return emit(p, text, strlen(text));
}

int sq_split_parsed_atom(struct sq_split_parsed *out, struct sq_cpset *set, struct sq_err *err)
{
    struct parser p = {.in = {.err = err}, .out = out};
    size_t k = 0;
    sq_cpset_tidy(set);
    while (k < out->n_sets && !sq_cpset_equal(&out->sets[k], set))
        k++;
    if (k == SQ_SPLIT_MAX_SETS) {
        sq_cpset_done(set);
        return sq_fail(err, SQ_E_NOTSUP, "a split pattern has more than %d different classes",
                       SQ_SPLIT_MAX_SETS);
    }
    if (k == out->n_sets) {
        out->sets[out->n_sets++] = *set;
        *set = (struct sq_cpset){0};
    }
    sq_cpset_done(set);
    char code[2] = {SQ_SPLIT_ATOM, (char)(k + 1)};
    return emit(&p, code, sizeof code);
}

void sq_split_parsed_done(struct sq_split_parsed *p)
{
    for (size_t i = 0; i < p->n_sets; i++)
        sq_cpset_done(&p->sets[i]);
    sq_free(p->code);
    *p = (struct sq_split_parsed){0};
}

/* Under (?i: two letters may also match one ligature: such pairs are refused. */
static bool folds_together(uint32_t a, uint32_t b)
{
    a |= 0x20;
    b |= 0x20;
    return (a == 's' && (b == 's' || b == 't')) || (a == 'f' && (b == 'f' || b == 'i' || b == 'l'));
}

/* A character, an escape, a class or the dot. */
static int parse_atom(struct parser *p)
{
    struct sq_split_item it = {0};
    size_t at = p->in.i;
    bool folded = p->groups[p->depth].fold;
    int rc = 0;
    uint32_t c = sq_split_take_char(&p->in);
    if (c == '[') {
        rc = folded && sq_split_next_is(&p->in, "^")
                 ? sq_split_refuse(&p->in, at, "case-insensitive negated class")
                 : sq_split_read_class(&p->in, &it.set);
    } else if (c == '\\') {
        rc = sq_split_read_escape(&p->in, &it, false);
    } else if (c == '.') {
        rc = sq_cpset_add(&it.set, '\n', '\n');
        rc = rc ? rc : sq_cpset_negate(&it.set);
    } else {
        it.single = true;
        it.c = c;
    }
    if (!rc && it.single)
        rc = sq_cpset_add(&it.set, it.c, it.c);
    if (!rc && folded && it.single && folds_together(p->last_char, it.c))
        rc = sq_split_refuse(&p->in, at, "case-insensitive pair that has a ligature");
    if (!rc && folded)
        rc = sq_split_fold(&p->in, at, &it.set);
    p->last_char = folded && it.single ? it.c : 0;
    p->after = AFTER_ATOM;
    if (!rc)
        return sq_split_parsed_atom(p->out, &it.set, p->in.err);
    sq_cpset_done(&it.set);
    return rc == -SQ_E_NOMEM ? sq_fail(p->in.err, SQ_E_NOMEM, "no memory for a split pattern") : rc;
}

static int parse_group(struct parser *p)
{
    static const struct {
        const char *in, *out;
        bool look, fold;
    } kinds[] = {{"(?:", "(?:", false, false},  {"(?i:", "(?:", false, true},
                 {"(?=", "(?=", true, false},   {"(?!", "(?!", true, false},
                 {"(?<=", "(?<=", true, false}, {"(?<!", "(?<!", true, false}};
    size_t at = p->in.i, k = 0;
    if (p->depth + 1 == MAX_DEPTH)
        return sq_split_refuse(&p->in, at, "group nested too deep");
    struct group g = p->groups[p->depth];
    g.self = false;
    p->after = AFTER_NONE;
    p->last_char = 0;
    while (k < SQ_ARRAY_LEN(kinds) && !sq_split_next_is(&p->in, kinds[k].in))
        k++;
    if (k == SQ_ARRAY_LEN(kinds)) {
        if (sq_split_next_is(&p->in, "(?") || sq_split_next_is(&p->in, "(*"))
            return sq_split_refuse(&p->in, at, "unsupported group");
        p->in.i++;
        p->groups[++p->depth] = g;
        return emit_text(p, "(?:");
    }
    g.look |= kinds[k].look;
    g.self = kinds[k].look;
    g.fold |= kinds[k].fold;
    p->groups[++p->depth] = g;
    p->in.i += strlen(kinds[k].in);
    return emit_text(p, kinds[k].out);
}

static int parse_group_end(struct parser *p)
{
    if (!p->depth)
        return sq_split_refuse(&p->in, p->in.i, "unmatched )");
    p->after = p->groups[p->depth--].self ? AFTER_LOOK : AFTER_GROUP;
    p->last_char = 0;
    p->in.i++;
    return emit_text(p, ")");
}

/* {n} {n,} {n,m}. *ret_endless: no upper bound. */
static int parse_bounds(struct parser *p, bool *ret_endless)
{
    size_t at = p->in.i++, k = 0;
    uint32_t bound[2] = {0, 0};
    bool digits[2] = {false, false};
    for (; p->in.i < p->in.n && p->in.s[p->in.i] != '}'; p->in.i++) {
        unsigned char c = p->in.s[p->in.i];
        if (c == ',' && k == 0 && digits[0]) {
            k = 1;
            continue;
        }
        if (c < '0' || c > '9' || bound[k] > MAX_REPEAT)
            return sq_split_refuse(&p->in, at, "unsupported repeat");
        bound[k] = bound[k] * 10 + (uint32_t)(c - '0');
        digits[k] = true;
    }
    *ret_endless = k == 1 && !digits[1];
    if (p->in.i == p->in.n || !digits[0] || bound[0] > MAX_REPEAT || bound[1] > MAX_REPEAT ||
        (digits[1] && bound[1] < bound[0]))
        return sq_split_refuse(&p->in, at, "unsupported repeat");
    p->in.i++;
    /* {n,m}+ and {n}? mean other things to the two engines */
    if (p->in.i < p->in.n && strchr("?+*{", p->in.s[p->in.i]))
        return sq_split_refuse(&p->in, at, "repeat of a repeat");
    return emit(p, (const char *)p->in.s + at, p->in.i - at);
}

static int parse_repeat(struct parser *p)
{
    size_t at = p->in.i;
    bool endless = false;
    if (p->after != AFTER_ATOM && p->after != AFTER_GROUP)
        return sq_split_refuse(&p->in, at, "repeat of nothing");
    bool atom = p->after == AFTER_ATOM;
    unsigned char set = atom ? p->out->code[p->out->n - 1] : 0;
    int rc;
    p->after = AFTER_NONE;
    p->last_char = 0;
    if (p->in.s[at] == '{') {
        rc = parse_bounds(p, &endless);
    } else {
        endless = p->in.s[at] != '?';
        rc = emit(p, (const char *)p->in.s + p->in.i++, 1);
        bool lazy = sq_split_next_is(&p->in, "?"), possessive = sq_split_next_is(&p->in, "+");
        p->in.i += lazy || possessive;
        if (!rc && possessive && endless) {
            char ahead[] = {'(', '?', '!', SQ_SPLIT_ATOM, (char)set, ')'};
            rc = atom ? emit(p, ahead, sizeof ahead)
                      : sq_split_refuse(&p->in, at, "possessive repeat of a group");
        } else if (!rc && (lazy || possessive)) {
            rc = emit_text(p, lazy ? "?" : "+");
        }
        if (!rc && p->in.i < p->in.n && strchr("?+*{", p->in.s[p->in.i]))
            rc = sq_split_refuse(&p->in, at, "repeat of a repeat");
    }
    if (!rc && endless && p->groups[p->depth].look)
        rc = sq_split_refuse(&p->in, at, "endless repeat in a lookaround");
    return rc;
}

static int parse_step(struct parser *p)
{
    switch (p->in.s[p->in.i]) {
    case '(':
        return parse_group(p);
    case ')':
        return parse_group_end(p);
    case '|':
        p->in.i++;
        p->after = AFTER_NONE;
        p->last_char = 0;
        return emit_text(p, "|");
    case '*':
    case '+':
    case '?':
    case '{':
        return parse_repeat(p);
    case '^':
    case '$':
        return sq_split_refuse(&p->in, p->in.i, "unsupported anchor");
    default:
        return parse_atom(p);
    }
}

int sq_split_parse(const char *text, size_t n, bool literal, struct sq_split_parsed *out,
                   struct sq_err *err)
{
    struct parser p = {.in = {.s = (const unsigned char *)text, .n = n, .err = err}, .out = out};
    while (p.in.i < p.in.n) {
        struct sq_cpset set = {0};
        int rc;
        if (literal) {
            uint32_t c = sq_split_take_char(&p.in);
            rc = sq_cpset_add(&set, c, c);
            rc = rc ? sq_fail(err, SQ_E_NOMEM, "no memory for a split pattern")
                    : sq_split_parsed_atom(out, &set, err);
        } else {
            rc = parse_step(&p);
        }
        if (rc)
            return rc;
    }
    if (p.depth)
        return sq_split_refuse(&p.in, n, "group without an end");
    return 0;
}
