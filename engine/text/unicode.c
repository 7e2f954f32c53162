/* The generated table, searched; and sets as sorted lists of ranges. */
#include "engine/text/unicode.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/text/unicode_table.h"

static const char gc_names[SQ_GC_MAX][3] = {
    "Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps",
    "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co"};

enum sq_gc sq_unicode_gc(uint32_t c)
{
    size_t lo = 0, hi = SQ_ARRAY_LEN(gc_rows);
    while (hi - lo > 1) {
        size_t mid = lo + (hi - lo) / 2;
        if (gc_rows[mid].first <= c)
            lo = mid;
        else
            hi = mid;
    }
    return (enum sq_gc)gc_rows[lo].gc;
}

static bool in_ranges(const struct sq_range *r, size_t n, uint32_t c)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (r[mid].last < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < n && r[lo].first <= c;
}

bool sq_unicode_is_space(uint32_t c)
{
    return in_ranges(space_ranges, SQ_ARRAY_LEN(space_ranges), c);
}

static bool word_category(enum sq_gc gc)
{
    return (gc >= SQ_GC_LU && gc <= SQ_GC_NL) || gc == SQ_GC_PC;
}

bool sq_unicode_is_word(uint32_t c)
{
    return word_category(sq_unicode_gc(c)) || c == 0x200C || c == 0x200D ||
           in_ranges(word_extra_ranges, SQ_ARRAY_LEN(word_extra_ranges), c);
}

void sq_cpset_done(struct sq_cpset *s)
{
    sq_free(s->r);
    *s = (struct sq_cpset){0};
}

int sq_cpset_add(struct sq_cpset *s, uint32_t first, uint32_t last)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 16;
        struct sq_range *r = sq_realloc_array(s->r, cap, sizeof *r);
        if (!r)
            return -SQ_E_NOMEM;
        s->r = r;
        s->cap = cap;
    }
    s->r[s->n++] = (struct sq_range){first, last};
    return 0;
}

static int add_ranges(struct sq_cpset *s, const struct sq_range *r, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int rc = sq_cpset_add(s, r[i].first, r[i].last);
        if (rc)
            return rc;
    }
    return 0;
}

int sq_cpset_add_set(struct sq_cpset *s, const struct sq_cpset *other)
{
    return add_ranges(s, other->r, other->n);
}

/* wanted: bit g set for general category g */
static int add_categories(struct sq_cpset *s, uint32_t wanted)
{
    for (size_t i = 0; i < SQ_ARRAY_LEN(gc_rows); i++) {
        if (!(wanted >> gc_rows[i].gc & 1))
            continue;
        bool ends = i + 1 == SQ_ARRAY_LEN(gc_rows);
        int rc =
            sq_cpset_add(s, gc_rows[i].first, ends ? SQ_UNICODE_MAX : gc_rows[i + 1].first - 1);
        if (rc)
            return rc;
    }
    return 0;
}

int sq_cpset_add_category(struct sq_cpset *s, const char *name, size_t n)
{
    uint32_t wanted = 0;
    for (unsigned g = 0; g < SQ_GC_MAX && (n == 1 || n == 2); g++)
        if (!strncmp(gc_names[g], name, n))
            wanted |= 1u << g;
    return wanted ? add_categories(s, wanted) : 1;
}

int sq_cpset_add_space(struct sq_cpset *s)
{
    return add_ranges(s, space_ranges, SQ_ARRAY_LEN(space_ranges));
}

int sq_cpset_add_word(struct sq_cpset *s, bool in_class)
{
    static const struct sq_range latin1[] = {{0xB2, 0xB3}, {0xB9, 0xB9}, {0xBC, 0xBE}};
    uint32_t wanted = 0;
    for (unsigned g = 0; g < SQ_GC_MAX; g++)
        if (word_category((enum sq_gc)g))
            wanted |= 1u << g;
    int rc = add_categories(s, wanted);
    if (!rc && !in_class)
        rc = add_ranges(s, latin1, SQ_ARRAY_LEN(latin1));
    return rc ? rc : add_ranges(s, word_extra_ranges, SQ_ARRAY_LEN(word_extra_ranges));
}

int sq_cpset_add_digits(struct sq_cpset *s)
{
    int rc = sq_cpset_add_category(s, "N", 1);
    return rc ? rc : add_ranges(s, digits_extra_ranges, SQ_ARRAY_LEN(digits_extra_ranges));
}

static int by_first(const void *a, const void *b)
{
    const struct sq_range *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

void sq_cpset_tidy(struct sq_cpset *s)
{
    if (!s->n)
        return;
    qsort(s->r, s->n, sizeof *s->r, by_first);
    size_t n = 0;
    for (size_t i = 1; i < s->n; i++) {
        if (s->r[i].first <= s->r[n].last + 1)
            s->r[n].last = SQ_MAX(s->r[n].last, s->r[i].last);
        else
            s->r[++n] = s->r[i];
    }
    s->n = n + 1;
}

int sq_cpset_negate(struct sq_cpset *s)
{
    sq_cpset_tidy(s);
    struct sq_cpset out = {0};
    uint32_t next = 0;
    for (size_t i = 0; i < s->n; i++) {
        if (s->r[i].first > next && sq_cpset_add(&out, next, s->r[i].first - 1)) {
            sq_cpset_done(&out);
            return -SQ_E_NOMEM;
        }
        next = s->r[i].last + 1;
    }
    if (next <= SQ_UNICODE_MAX && sq_cpset_add(&out, next, SQ_UNICODE_MAX)) {
        sq_cpset_done(&out);
        return -SQ_E_NOMEM;
    }
    sq_cpset_done(s);
    *s = out;
    return 0;
}

bool sq_cpset_has(const struct sq_cpset *s, uint32_t c)
{
    return in_ranges(s->r, s->n, c);
}

bool sq_cpset_equal(const struct sq_cpset *a, const struct sq_cpset *b)
{
    return a->n == b->n && (!a->n || !memcmp(a->r, b->r, a->n * sizeof *a->r));
}
