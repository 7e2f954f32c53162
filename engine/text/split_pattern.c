/* From sets to classes, from classes to PCRE2, and the search.
 *
 * Linear time. PCRE2 counts its backtracking steps and can be told to stop; every call is anchored, so one call's count covers
 * one start only. A call begins with a small limit that is not charged; where it does not suffice, it is repeated with larger
 * ones, and those are charged to a budget proportional to the text. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/text/split_pattern.h"

#include <pcre2.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/num.h"
#include "engine/text/split_priv.h"

#define MAX_PATTERN_BYTES 4096
#define MAX_CLASSES 250
#define N_PAGES ((SQ_UNICODE_MAX >> 8) + 1)
#define FREE_STEPS 256u
#define BUDGET_BASE 1000000u
#define BUDGET_PER_CHAR 256u
#define HEAP_KIB 65536u

struct sq_split_pattern {
    pcre2_code *code;
    bool one_atom;               /* the pattern is one character of set 0: needs no engine */
    const uint8_t *first;        /* bit c set: a match can begin with class c; NULL: any */
    uint64_t masks[MAX_CLASSES]; /* [n_classes]: bit k set: the class belongs to set k */
    size_t n_classes;
    uint16_t page_of[N_PAGES];   /* c >> 8 -> page */
    unsigned char (*pages)[256]; /* [n_pages] classes of 256 code points */
    size_t n_pages;
};

/* --- building --------------------------------------------------------------------------------------------------------------- */

struct sq_split_pattern *sq_split_pattern_free(struct sq_split_pattern *p)
{
    if (p) {
        pcre2_code_free(p->code);
        sq_free(p->pages);
        sq_free(p);
    }
    return NULL;
}

/* Number of the class whose members belong to just these sets; -1: too many classes. */
static int class_of_mask(struct sq_split_pattern *p, uint64_t mask)
{
    size_t i = 0;
    while (i < p->n_classes && p->masks[i] != mask)
        i++;
    if (i == MAX_CLASSES)
        return -1;
    if (i == p->n_classes)
        p->masks[p->n_classes++] = mask;
    return (int)i;
}

/* Where the sets are walked side by side: from code point to code point, each with the range it is in or before. */
struct walk {
    const struct sq_split_parsed *parsed;
    size_t at[SQ_SPLIT_MAX_SETS];
};

/* The sets that c belongs to; *ret_next: the next code point where that changes. c never goes down from call to call. */
static uint64_t sets_at(struct walk *w, uint32_t c, uint32_t *ret_next)
{
    uint64_t mask = 0;
    *ret_next = SQ_UNICODE_MAX + 1;
    for (size_t k = 0; k < w->parsed->n_sets; k++) {
        const struct sq_cpset *s = &w->parsed->sets[k];
        while (w->at[k] < s->n && s->r[w->at[k]].last < c)
            w->at[k]++;
        if (w->at[k] == s->n)
            continue;
        const struct sq_range *r = &s->r[w->at[k]];
        bool inside = r->first <= c;
        mask |= (uint64_t)inside << k;
        *ret_next = SQ_MIN(*ret_next, inside ? r->last + 1 : r->first);
    }
    return mask;
}

/* A page to be filled; NULL: no memory. */
static unsigned char *new_page(struct sq_split_pattern *p, size_t *cap)
{
    if (p->n_pages == *cap) {
        size_t grown = *cap ? 2 * *cap : 64;
        void *pages = sq_realloc_array(p->pages, grown, sizeof *p->pages);
        if (!pages)
            return NULL;
        p->pages = pages;
        *cap = grown;
    }
    return p->pages[p->n_pages++];
}

/* The class of every code point. Most pages are of one class throughout: there is one such page a class. */
static int fill_pages(struct sq_split_pattern *p, const struct sq_split_parsed *parsed)
{
    struct walk w = {.parsed = parsed};
    uint16_t uniform[MAX_CLASSES] = {0}; /* page + 1, 0: not made yet */
    size_t cap = 0;
    uint32_t next = 0;
    int cls = 0;
    for (uint32_t page = 0; page < N_PAGES; page++) {
        uint32_t start = page << 8, end = start + 256;
        for (uint32_t c = start; c < end; c = SQ_MIN(next, end)) {
            if (c >= next)
                cls = class_of_mask(p, sets_at(&w, c, &next));
            if (cls < 0)
                return -SQ_E_NOTSUP;
            bool whole = c == start && next >= end;
            if (whole && uniform[cls]) {
                p->page_of[page] = (uint16_t)(uniform[cls] - 1);
                continue;
            }
            unsigned char *out = c == start ? new_page(p, &cap) : p->pages[p->n_pages - 1];
            if (!out)
                return -SQ_E_NOMEM;
            memset(out + (c - start), cls, SQ_MIN(next, end) - c);
            p->page_of[page] = (uint16_t)(p->n_pages - 1);
            if (whole)
                uniform[cls] = (uint16_t)p->n_pages;
        }
    }
    return 0;
}

/* A set as PCRE2 writes it: [\x03\x05], or (?!) where it is empty. Returns the bytes written, at most 4 * MAX_CLASSES + 2. */
static size_t write_set(const struct sq_split_pattern *p, size_t set, char *out)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;
    out[n++] = '[';
    for (size_t c = 0; c < p->n_classes; c++) {
        if (!(p->masks[c] >> set & 1))
            continue;
        out[n++] = '\\';
        out[n++] = 'x';
        out[n++] = hex[c >> 4];
        out[n++] = hex[c & 15];
    }
    if (n == 1)
        return (size_t)(stpcpy(out, "(?!)") - out);
    out[n++] = ']';
    return n;
}

static int compile_text(struct sq_split_pattern *p, const char *text, size_t n, struct sq_err *err)
{
    int code;
    size_t at;
    uint32_t empty = 1;
    uint32_t flags = PCRE2_ANCHORED | PCRE2_NO_AUTO_POSSESS | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP |
                     PCRE2_NO_AUTO_CAPTURE;
    p->code = pcre2_compile((PCRE2_SPTR)text, n, flags, &code, &at, NULL);
    if (!p->code) {
        unsigned char why[160] = "";
        pcre2_get_error_message(code, why, sizeof why);
        return sq_fail(err, SQ_E_FORMAT, "broken split pattern: %s", (char *)why);
    }
    pcre2_pattern_info(p->code, PCRE2_INFO_MATCHEMPTY, &empty);
    if (empty)
        return sq_fail(err, SQ_E_NOTSUP, "a split pattern that may match nothing");
    pcre2_pattern_info(p->code, PCRE2_INFO_FIRSTBITMAP, (void *)&p->first);
    return 0;
}

static int compile(struct sq_split_pattern *p, const struct sq_split_parsed *parsed,
                   struct sq_err *err)
{
    size_t cap = parsed->n * (4 * MAX_CLASSES + 8) + 1, n = 0;
    SQ_AUTO_FREE char *text = sq_malloc(cap);
    if (!text)
        return sq_fail(err, SQ_E_NOMEM, "no memory for a split pattern");
    for (size_t i = 0; i < parsed->n; i++) {
        if (parsed->code[i] == SQ_SPLIT_ATOM)
            n += write_set(p, parsed->code[++i] - 1u, text + n);
        else
            text[n++] = (char)parsed->code[i];
    }
    return compile_text(p, text, n, err);
}

static int build(const struct sq_split_parsed *parsed, struct sq_split_pattern **ret,
                 struct sq_err *err)
{
    SQ_AUTO(sq_split_pattern) struct sq_split_pattern *p = sq_new(struct sq_split_pattern);
    if (!p)
        return sq_fail(err, SQ_E_NOMEM, "no memory for a split pattern");
    int rc = fill_pages(p, parsed);
    if (rc == -SQ_E_NOTSUP)
        return sq_fail(err, SQ_E_NOTSUP, "a split pattern tells more than %d classes apart",
                       MAX_CLASSES);
    if (rc)
        return sq_fail(err, SQ_E_NOMEM, "no memory for a split pattern");
    p->one_atom = parsed->n == 2 && parsed->code[0] == SQ_SPLIT_ATOM;
    rc = compile(p, parsed, err);
    if (rc)
        return rc;
    *ret = sq_steal(&p);
    return 0;
}

int sq_split_pattern_new(const char *text, size_t n, bool literal, struct sq_split_pattern **ret,
                         struct sq_err *err)
{
    if (!n || n > MAX_PATTERN_BYTES || !sq_utf8_valid(text, n))
        return sq_fail(err, SQ_E_NOTSUP, "a split pattern has %zu bytes, expected 1 to %d of UTF-8",
                       n, MAX_PATTERN_BYTES);
    struct sq_split_parsed parsed = {0};
    int rc = sq_split_parse(text, n, literal, &parsed, err);
    if (!rc)
        rc = build(&parsed, ret, err);
    sq_split_parsed_done(&parsed);
    return rc;
}

int sq_split_pattern_new_set(const struct sq_cpset *set, struct sq_split_pattern **ret,
                             struct sq_err *err)
{
    struct sq_split_parsed parsed = {0};
    struct sq_cpset copy = {0};
    int rc = sq_cpset_add_set(&copy, set);
    if (rc) {
        sq_cpset_done(&copy);
        return sq_fail(err, SQ_E_NOMEM, "no memory for a split pattern");
    }
    rc = sq_split_parsed_atom(&parsed, &copy, err);
    if (!rc)
        rc = build(&parsed, ret, err);
    sq_split_parsed_done(&parsed);
    return rc;
}

/* --- running ---------------------------------------------------------------------------------------------------------------- */

void sq_split_run_done(struct sq_split_run *r)
{
    sq_free(r->classes);
    pcre2_match_data_free(r->match_data);
    pcre2_match_context_free(r->match_context);
    *r = (struct sq_split_run){0};
}

int sq_spans_push(struct sq_spans *s, uint32_t start, uint32_t end, bool match)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        struct sq_span *v = sq_realloc_array(s->v, cap, sizeof *v);
        if (!v)
            return -SQ_E_NOMEM;
        s->v = v;
        s->cap = cap;
    }
    s->v[s->n++] = (struct sq_span){start, end, match};
    return 0;
}

void sq_spans_done(struct sq_spans *s)
{
    sq_free(s->v);
    *s = (struct sq_spans){0};
}

static int prepare(const struct sq_split_pattern *p, struct sq_split_run *run, size_t n)
{
    if (run->cap < n) {
        unsigned char *classes = sq_realloc_array(run->classes, n, 1);
        if (!classes)
            return -SQ_E_NOMEM;
        run->classes = classes;
        run->cap = n;
    }
    if (!run->match_context) {
        run->match_context = pcre2_match_context_create(NULL);
        if (!run->match_context)
            return -SQ_E_NOMEM;
        pcre2_set_heap_limit(run->match_context, HEAP_KIB);
        run->budget = BUDGET_BASE;
    }
    if (run->of != p) {
        pcre2_match_data_free(run->match_data);
        run->match_data = pcre2_match_data_create(1, NULL);
        run->of = run->match_data ? p : NULL;
    }
    return run->match_data ? 0 : -SQ_E_NOMEM;
}

/* Returns the number of characters. */
static size_t classify(const struct sq_split_pattern *p, const unsigned char *text, size_t n_bytes,
                       unsigned char *classes)
{
    size_t n = 0;
    for (size_t i = 0; i < n_bytes;) {
        unsigned bytes;
        uint32_t c = sq_utf8_get(text + i, &bytes);
        classes[n++] = p->pages[p->page_of[c >> 8]][c & 255];
        i += bytes;
    }
    return n;
}

/* Length of the match at character `at`, in characters; 0: none; or an error. */
static int64_t match_at(const struct sq_split_pattern *p, struct sq_split_run *run, size_t n,
                        size_t at)
{
    if (p->one_atom)
        return (int64_t)(p->masks[run->classes[at]] & 1);
    for (uint64_t limit = FREE_STEPS;; limit *= 16) {
        if (limit > FREE_STEPS) {
            if (run->budget < limit)
                return -SQ_E_LIMIT;
            run->budget -= limit;
        }
        pcre2_set_match_limit(run->match_context, (uint32_t)SQ_MIN(limit, UINT32_MAX));
        int rc = pcre2_match(p->code, run->classes, n, at, 0, run->match_data, run->match_context);
        if (rc == PCRE2_ERROR_NOMATCH)
            return 0;
        if (rc >= 0)
            return (int64_t)(pcre2_get_ovector_pointer(run->match_data)[1] - at);
        if (rc == PCRE2_ERROR_NOMEMORY)
            return -SQ_E_NOMEM;
        if (rc != PCRE2_ERROR_MATCHLIMIT || limit > UINT32_MAX)
            return -SQ_E_LIMIT;
    }
}

static bool may_begin(const struct sq_split_pattern *p, unsigned char cls)
{
    return !p->first || (p->first[cls >> 3] >> (cls & 7) & 1);
}

/* Bytes of n_chars characters at p. */
static uint32_t chars_bytes(const unsigned char *p, size_t n_chars)
{
    const unsigned char *s = p;
    for (; n_chars; n_chars--)
        s += *s < 0x80 ? 1 : *s < 0xE0 ? 2 : *s < 0xF0 ? 3 : 4;
    return (uint32_t)(s - p);
}

static int find_failed(int64_t rc, uint32_t at, struct sq_err *err)
{
    if (rc == -SQ_E_NOMEM)
        return sq_fail(err, SQ_E_NOMEM, "no memory to split the text");
    return sq_fail(err, SQ_E_LIMIT,
                   "the tokenizer's split pattern needs too many steps at byte %u of the text", at);
}

int sq_split_pattern_find(const struct sq_split_pattern *p, struct sq_split_run *run,
                          const char *text, uint32_t from, uint32_t to, struct sq_spans *out,
                          struct sq_err *err)
{
    if (prepare(p, run, to - from))
        return find_failed(-SQ_E_NOMEM, from, err);
    const unsigned char *s = (const unsigned char *)text;
    size_t n = classify(p, s + from, to - from, run->classes);
    run->budget += (uint64_t)n * BUDGET_PER_CHAR;
    uint32_t gap = from, pos = from; /* bytes: where the unmatched part begins, where we are */
    for (size_t i = 0; i < n;) {
        int64_t len = may_begin(p, run->classes[i]) ? match_at(p, run, n, i) : 0;
        if (len < 0)
            return find_failed(len, pos, err);
        if (!len) {
            pos += chars_bytes(s + pos, 1);
            i++;
            continue;
        }
        uint32_t end = pos + chars_bytes(s + pos, (size_t)len);
        if ((gap < pos && sq_spans_push(out, gap, pos, false)) ||
            sq_spans_push(out, pos, end, true))
            return find_failed(-SQ_E_NOMEM, pos, err);
        gap = pos = end;
        i += (size_t)len;
    }
    if (gap < to && sq_spans_push(out, gap, to, false))
        return find_failed(-SQ_E_NOMEM, gap, err);
    return 0;
}
