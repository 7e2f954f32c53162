/* The pattern's syntax, read into sets and structure. What is let through means the same to Oniguruma with Ruby's syntax, which
 * the library uses, and to PCRE2; the rest is refused by name. Repeats must stay countable for split_pattern.c: a possessive
 * repeat of one atom is written as a greedy one that may not be followed by the atom, and lookarounds hold no endless repeat. */
#include "engine/text/split_pattern.h"

#include <string.h>

#include "engine/base/check.h"
#include "engine/text/utf8.h"

#define MAX_DEPTH 16
#define MAX_REPEAT 256u

enum after { AFTER_NONE, AFTER_ATOM, AFTER_GROUP, AFTER_LOOK };

struct group {
    bool look;  /* a lookaround, or inside one */
    bool self;  /* is itself a lookaround */
    bool fold;  /* (?i: */
};

struct parser {
    const unsigned char *s;
    size_t n, i;
    struct sq_split_parsed *out;
    struct group groups[MAX_DEPTH];
    size_t depth;
    enum after after;   /* what a repeat would apply to */
    uint32_t last_char; /* of a folded literal just before, else 0 */
    struct sq_err *err;
};

/* One atom or one item of a bracket class: a set, or a single character that may begin a range. */
struct item {
    struct sq_cpset set;
    bool single;
    uint32_t c;
};

static int refuse(struct parser *p, size_t at, const char *what)
{
    size_t n = SQ_MIN(p->n - at, (size_t)12);
    while (n && at + n < p->n && (p->s[at + n] & 0xC0) == 0x80)
        n--;
    return sq_fail(p->err, SQ_E_NOTSUP, "%s at byte %zu of the pattern, \"%.*s\"", what, at, (int)n,
                   (const char *)p->s + at);
}

static int emit(struct parser *p, const char *bytes, size_t n)
{
    struct sq_split_parsed *o = p->out;
    if (o->n + n > o->cap) {
        size_t cap = 2 * o->cap + n + 64;
        unsigned char *code = sq_realloc_array(o->code, cap, 1);
        if (!code)
            return sq_fail(p->err, SQ_E_NOMEM, "no memory for a split pattern");
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
    struct parser p = {.out = out, .err = err};
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

static uint32_t take_char(struct parser *p)
{
    unsigned n;
    uint32_t c = sq_utf8_get(p->s + p->i, &n);
    p->i += n;
    return c;
}

static bool next_is(const struct parser *p, const char *text)
{
    size_t n = strlen(text);
    return p->n - p->i >= n && !memcmp(p->s + p->i, text, n);
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* \xHH, \x{H...}, \uHHHH: the digits, after the letter. */
static int parse_hex(struct parser *p, size_t at, bool braces_ok, size_t max_digits, uint32_t *ret)
{
    bool braces = braces_ok && next_is(p, "{");
    uint32_t c = 0;
    size_t n = 0;
    if (braces) {
        p->i++;
        max_digits = 6;
    }
    for (; n < max_digits && p->i < p->n && hex_digit(p->s[p->i]) >= 0; n++)
        c = c << 4 | (uint32_t)hex_digit(p->s[p->i++]);
    bool closed = !braces || (p->i < p->n && p->s[p->i++] == '}');
    /* two digits above 7F are a byte, not a character, to the library's engine */
    if (!n || !closed || c > SQ_UNICODE_MAX || (c >= 0xD800 && c < 0xE000) ||
        (!braces && max_digits == 2 && c >= 0x80) || (max_digits == 4 && n != 4))
        return refuse(p, at, "unusable character code");
    *ret = c;
    return 0;
}

/* \p{Lu}, \P{L}, \p{^N}: from the brace on. */
static int parse_property(struct parser *p, size_t at, bool negate, struct sq_cpset *set)
{
    const unsigned char *end =
        next_is(p, "{") ? memchr(p->s + p->i, '}', SQ_MIN(p->n - p->i, (size_t)8)) : NULL;
    if (!end)
        return refuse(p, at, "unknown property");
    const unsigned char *name = p->s + p->i + 1;
    if (*name == '^') {
        negate = !negate;
        name++;
    }
    int rc = sq_cpset_add_category(set, (const char *)name, (size_t)(end - name));
    if (rc > 0)
        return refuse(p, at, "unknown property");
    p->i = (size_t)(end + 1 - p->s);
    return rc ? rc : negate ? sq_cpset_negate(set) : 0;
}

/* After a backslash. */
static int parse_escape(struct parser *p, struct item *it, bool in_class)
{
    static const char controls[] = "n\nr\rt\tf\fa\ae\033";
    size_t at = p->i - 1;
    if (p->i == p->n)
        return refuse(p, at, "lone backslash");
    unsigned char e = p->s[p->i++];
    bool negate = e >= 'A' && e <= 'Z';
    int rc;
    switch (e | 0x20) {
    case 'p':
        return parse_property(p, at, negate, &it->set);
    case 's':
        rc = sq_cpset_add_space(&it->set);
        return rc ? rc : negate ? sq_cpset_negate(&it->set) : 0;
    case 'd':
        rc = sq_cpset_add_category(&it->set, "Nd", 2);
        return rc ? rc : negate ? sq_cpset_negate(&it->set) : 0;
    case 'w':
        rc = sq_cpset_add_word(&it->set, in_class);
        return rc ? rc : negate ? sq_cpset_negate(&it->set) : 0;
    }
    it->single = true;
    if (e == 'x' || e == 'u')
        return parse_hex(p, at, e == 'x', e == 'x' ? 2 : 4, &it->c);
    for (const char *c = controls; *c; c += 2)
        if (e == (unsigned char)*c) {
            it->c = (unsigned char)c[1];
            return 0;
        }
    if (e >= 0x80 || hex_digit(e) >= 0 || ((e | 0x20) >= 'a' && (e | 0x20) <= 'z'))
        return refuse(p, at, "unsupported escape");
    it->c = e;
    return 0;
}

/* Adds what a case-insensitive match adds to ASCII letters; other sets are refused. */
static int fold(struct parser *p, size_t at, struct sq_cpset *set)
{
    sq_cpset_tidy(set);
    if (set->n && set->r[set->n - 1].last >= 0x80)
        return refuse(p, at, "case-insensitive match of more than ASCII");
    for (uint32_t c = 'a'; c <= 'z'; c++) {
        if (!sq_cpset_has(set, c) && !sq_cpset_has(set, c - 32))
            continue;
        int rc = sq_cpset_add(set, c, c);
        if (!rc)
            rc = sq_cpset_add(set, c - 32, c - 32);
        if (!rc && c == 's')
            rc = sq_cpset_add(set, 0x17F, 0x17F); /* long s */
        if (!rc && c == 'k')
            rc = sq_cpset_add(set, 0x212A, 0x212A); /* Kelvin sign */
        if (rc)
            return rc;
        sq_cpset_tidy(set);
    }
    return 0;
}

static int parse_class(struct parser *p, struct sq_cpset *set, unsigned depth);

/* The next item of a bracket class, before any range is formed. */
static int parse_class_item(struct parser *p, struct item *it, unsigned depth)
{
    if (p->i == p->n)
        return refuse(p, p->n, "class without an end");
    if (next_is(p, "&&") || next_is(p, "[:"))
        return refuse(p, p->i, "unsupported class");
    uint32_t c = take_char(p);
    if (c == '[')
        return parse_class(p, &it->set, depth + 1);
    if (c == '\\')
        return parse_escape(p, it, true);
    it->single = true;
    it->c = c;
    return 0;
}

/* Adds the item at p, or the range that begins with it. */
static int parse_class_step(struct parser *p, struct sq_cpset *set, unsigned depth)
{
    struct item it = {0}, to = {0};
    size_t at = p->i;
    int rc = parse_class_item(p, &it, depth);
    if (!rc && !it.single)
        rc = sq_cpset_add_set(set, &it.set);
    bool ranges = next_is(p, "-") && p->i + 1 < p->n && p->s[p->i + 1] != ']';
    if (!rc && ranges && !it.single)
        rc = refuse(p, at, "class that a hyphen follows");
    if (!rc && ranges) {
        p->i++;
        rc = parse_class_item(p, &to, depth);
        if (!rc && (!to.single || to.c < it.c))
            rc = refuse(p, at, "range without order");
    }
    if (!rc && it.single)
        rc = sq_cpset_add(set, it.c, ranges ? to.c : it.c);
    if (!rc && ranges && next_is(p, "-") && p->i + 1 < p->n && p->s[p->i + 1] != ']')
        rc = refuse(p, p->i, "hyphen after a range");
    sq_cpset_done(&it.set);
    sq_cpset_done(&to.set);
    return rc;
}

/* After the opening bracket, up to and with the closing one. */
static int parse_class(struct parser *p, struct sq_cpset *set, unsigned depth)
{
    size_t at = p->i - 1;
    bool negate = next_is(p, "^");
    p->i += negate;
    if (depth > 4 || next_is(p, "]"))
        return refuse(p, at, "unsupported class");
    while (!next_is(p, "]")) {
        int rc = parse_class_step(p, set, depth);
        if (rc)
            return rc;
    }
    p->i++;
    if (negate && p->groups[p->depth].fold)
        return refuse(p, at, "case-insensitive negated class");
    return negate ? sq_cpset_negate(set) : 0;
}

/* Under (?i: two letters may also match one ligature: such pairs are refused. */
static bool folds_together(uint32_t a, uint32_t b)
{
    a |= 0x20;
    b |= 0x20;
    return (a == 's' && (b == 's' || b == 't')) ||
           (a == 'f' && (b == 'f' || b == 'i' || b == 'l'));
}

/* A character, an escape, a class or the dot. */
static int parse_atom(struct parser *p)
{
    struct item it = {0};
    size_t at = p->i;
    bool folded = p->groups[p->depth].fold;
    int rc = 0;
    uint32_t c = take_char(p);
    if (c == '[') {
        rc = parse_class(p, &it.set, 0);
    } else if (c == '\\') {
        rc = parse_escape(p, &it, false);
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
        rc = refuse(p, at, "case-insensitive pair that has a ligature");
    if (!rc && folded)
        rc = fold(p, at, &it.set);
    p->last_char = folded && it.single ? it.c : 0;
    p->after = AFTER_ATOM;
    if (!rc)
        return sq_split_parsed_atom(p->out, &it.set, p->err);
    sq_cpset_done(&it.set);
    return rc == -SQ_E_NOMEM ? sq_fail(p->err, SQ_E_NOMEM, "no memory for a split pattern") : rc;
}

static int parse_group(struct parser *p)
{
    static const struct {
        const char *in, *out;
        bool look, fold;
    } kinds[] = {{"(?:", "(?:", false, false},  {"(?i:", "(?:", false, true},
                 {"(?=", "(?=", true, false},   {"(?!", "(?!", true, false},
                 {"(?<=", "(?<=", true, false}, {"(?<!", "(?<!", true, false}};
    size_t at = p->i, k = 0;
    if (p->depth + 1 == MAX_DEPTH)
        return refuse(p, at, "group nested too deep");
    struct group g = p->groups[p->depth];
    g.self = false;
    p->after = AFTER_NONE;
    p->last_char = 0;
    while (k < SQ_ARRAY_LEN(kinds) && !next_is(p, kinds[k].in))
        k++;
    if (k == SQ_ARRAY_LEN(kinds)) {
        if (next_is(p, "(?") || next_is(p, "(*"))
            return refuse(p, at, "unsupported group");
        p->i++;
        p->groups[++p->depth] = g;
        return emit_text(p, "(?:");
    }
    g.look |= kinds[k].look;
    g.self = kinds[k].look;
    g.fold |= kinds[k].fold;
    p->groups[++p->depth] = g;
    p->i += strlen(kinds[k].in);
    return emit_text(p, kinds[k].out);
}

static int parse_group_end(struct parser *p)
{
    if (!p->depth)
        return refuse(p, p->i, "unmatched )");
    p->after = p->groups[p->depth--].self ? AFTER_LOOK : AFTER_GROUP;
    p->last_char = 0;
    p->i++;
    return emit_text(p, ")");
}

/* {n} {n,} {n,m}. *ret_endless: no upper bound. */
static int parse_bounds(struct parser *p, bool *ret_endless)
{
    size_t at = p->i++, k = 0;
    uint32_t bound[2] = {0, 0};
    bool digits[2] = {false, false};
    for (; p->i < p->n && p->s[p->i] != '}'; p->i++) {
        unsigned char c = p->s[p->i];
        if (c == ',' && k == 0 && digits[0]) {
            k = 1;
            continue;
        }
        if (c < '0' || c > '9' || bound[k] > MAX_REPEAT)
            return refuse(p, at, "unsupported repeat");
        bound[k] = bound[k] * 10 + (uint32_t)(c - '0');
        digits[k] = true;
    }
    *ret_endless = k == 1 && !digits[1];
    if (p->i == p->n || !digits[0] || bound[0] > MAX_REPEAT || bound[1] > MAX_REPEAT ||
        (digits[1] && bound[1] < bound[0]))
        return refuse(p, at, "unsupported repeat");
    p->i++;
    /* {n,m}+ and {n}? mean other things to the two engines */
    if (p->i < p->n && strchr("?+*{", p->s[p->i]))
        return refuse(p, at, "repeat of a repeat");
    return emit(p, (const char *)p->s + at, p->i - at);
}

static int parse_repeat(struct parser *p)
{
    size_t at = p->i;
    bool endless = false;
    if (p->after != AFTER_ATOM && p->after != AFTER_GROUP)
        return refuse(p, at, "repeat of nothing");
    bool atom = p->after == AFTER_ATOM;
    unsigned char set = atom ? p->out->code[p->out->n - 1] : 0;
    int rc;
    p->after = AFTER_NONE;
    p->last_char = 0;
    if (p->s[at] == '{') {
        rc = parse_bounds(p, &endless);
    } else {
        endless = p->s[at] != '?';
        rc = emit(p, (const char *)p->s + p->i++, 1);
        bool lazy = next_is(p, "?"), possessive = next_is(p, "+");
        p->i += lazy || possessive;
        if (!rc && possessive && endless) {
            char ahead[] = {'(', '?', '!', SQ_SPLIT_ATOM, (char)set, ')'};
            rc = atom ? emit(p, ahead, sizeof ahead)
                      : refuse(p, at, "possessive repeat of a group");
        } else if (!rc && (lazy || possessive)) {
            rc = emit_text(p, lazy ? "?" : "+");
        }
        if (!rc && p->i < p->n && strchr("?+*{", p->s[p->i]))
            rc = refuse(p, at, "repeat of a repeat");
    }
    if (!rc && endless && p->groups[p->depth].look)
        rc = refuse(p, at, "endless repeat in a lookaround");
    return rc;
}

static int parse_step(struct parser *p)
{
    switch (p->s[p->i]) {
    case '(':
        return parse_group(p);
    case ')':
        return parse_group_end(p);
    case '|':
        p->i++;
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
        return refuse(p, p->i, "unsupported anchor");
    default:
        return parse_atom(p);
    }
}

int sq_split_parse(const char *text, size_t n, bool literal, struct sq_split_parsed *out,
                   struct sq_err *err)
{
    struct parser p = {.s = (const unsigned char *)text, .n = n, .out = out, .err = err};
    while (p.i < p.n) {
        struct sq_cpset set = {0};
        int rc;
        if (literal) {
            uint32_t c = take_char(&p);
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
        return refuse(&p, n, "group without an end");
    return 0;
}
