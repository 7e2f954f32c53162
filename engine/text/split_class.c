/* Atoms of a split pattern as sets: escapes, properties, bracket classes, and what a case-insensitive match makes of them. */
#include "engine/base/check.h"
#include "engine/text/split_priv.h"

int sq_split_refuse(const struct sq_split_cursor *p, size_t at, const char *what)
{
    size_t n = SQ_MIN(p->n - at, (size_t)12);
    while (n && at + n < p->n && (p->s[at + n] & 0xC0) == 0x80)
        n--;
    return sq_fail(p->err, SQ_E_NOTSUP, "%s at byte %zu of the pattern, \"%.*s\"", what, at, (int)n,
                   (const char *)p->s + at);
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* \xHH, \x{H...}, \uHHHH: the digits, after the letter. */
static int parse_hex(struct sq_split_cursor *p, size_t at, bool braces_ok, size_t max_digits,
                     uint32_t *ret)
{
    bool braces = braces_ok && sq_split_next_is(p, "{");
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
        return sq_split_refuse(p, at, "unusable character code");
    *ret = c;
    return 0;
}

/* \p{Lu}, \P{L}, \p{^N}: from the brace on. */
static int parse_property(struct sq_split_cursor *p, size_t at, bool negate, struct sq_cpset *set)
{
    const unsigned char *end =
        sq_split_next_is(p, "{") ? memchr(p->s + p->i, '}', SQ_MIN(p->n - p->i, (size_t)8)) : NULL;
    if (!end)
        return sq_split_refuse(p, at, "unknown property");
    const unsigned char *name = p->s + p->i + 1;
    if (*name == '^') {
        negate = !negate;
        name++;
    }
    int rc = sq_cpset_add_category(set, (const char *)name, (size_t)(end - name));
    if (rc > 0)
        return sq_split_refuse(p, at, "unknown property");
    p->i = (size_t)(end + 1 - p->s);
    return rc ? rc : negate ? sq_cpset_negate(set) : 0;
}

int sq_split_read_escape(struct sq_split_cursor *p, struct sq_split_item *it, bool in_class)
{
    static const char controls[] = "n\nr\rt\tf\fa\ae\033";
    size_t at = p->i - 1;
    if (p->i == p->n)
        return sq_split_refuse(p, at, "lone backslash");
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
        return sq_split_refuse(p, at, "unsupported escape");
    it->c = e;
    return 0;
}

int sq_split_fold(const struct sq_split_cursor *p, size_t at, struct sq_cpset *set)
{
    sq_cpset_tidy(set);
    if (set->n && set->r[set->n - 1].last >= 0x80)
        return sq_split_refuse(p, at, "case-insensitive match of more than ASCII");
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

static int parse_class(struct sq_split_cursor *p, struct sq_cpset *set, unsigned depth);

/* The next item of a bracket class, before any range is formed. */
static int parse_class_item(struct sq_split_cursor *p, struct sq_split_item *it, unsigned depth)
{
    if (p->i == p->n)
        return sq_split_refuse(p, p->n, "class without an end");
    if (sq_split_next_is(p, "&&") || sq_split_next_is(p, "[:"))
        return sq_split_refuse(p, p->i, "unsupported class");
    uint32_t c = sq_split_take_char(p);
    if (c == '[')
        return parse_class(p, &it->set, depth + 1);
    if (c == '\\')
        return sq_split_read_escape(p, it, true);
    it->single = true;
    it->c = c;
    return 0;
}

/* Adds the item at p, or the range that begins with it. */
static int parse_class_step(struct sq_split_cursor *p, struct sq_cpset *set, unsigned depth)
{
    struct sq_split_item it = {0}, to = {0};
    size_t at = p->i;
    int rc = parse_class_item(p, &it, depth);
    if (!rc && !it.single)
        rc = sq_cpset_add_set(set, &it.set);
    bool ranges = sq_split_next_is(p, "-") && p->i + 1 < p->n && p->s[p->i + 1] != ']';
    if (!rc && ranges && !it.single)
        rc = sq_split_refuse(p, at, "class that a hyphen follows");
    if (!rc && ranges) {
        p->i++;
        rc = parse_class_item(p, &to, depth);
        if (!rc && (!to.single || to.c < it.c))
            rc = sq_split_refuse(p, at, "range without order");
    }
    if (!rc && it.single)
        rc = sq_cpset_add(set, it.c, ranges ? to.c : it.c);
    if (!rc && ranges && sq_split_next_is(p, "-") && p->i + 1 < p->n && p->s[p->i + 1] != ']')
        rc = sq_split_refuse(p, p->i, "hyphen after a range");
    sq_cpset_done(&it.set);
    sq_cpset_done(&to.set);
    return rc;
}

/* After the opening bracket, up to and with the closing one. */
static int parse_class(struct sq_split_cursor *p, struct sq_cpset *set, unsigned depth)
{
    size_t at = p->i - 1;
    bool negate = sq_split_next_is(p, "^");
    p->i += negate;
    if (depth > 4 || sq_split_next_is(p, "]"))
        return sq_split_refuse(p, at, "unsupported class");
    while (!sq_split_next_is(p, "]")) {
        int rc = parse_class_step(p, set, depth);
        if (rc)
            return rc;
    }
    p->i++;
    return negate ? sq_cpset_negate(set) : 0;
}

int sq_split_read_class(struct sq_split_cursor *p, struct sq_cpset *set)
{
    return parse_class(p, set, 0);
}
