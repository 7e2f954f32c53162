/* Split patterns of tokenizer.json, run with PCRE2 so that they mean what the library's engine (Oniguruma) makes of them.
 *
 * Every atom of a pattern - a character, an escape, a bracket class - is computed here as a set of code points. Characters that
 * no set tells apart form one class, a pattern rarely has more than 30, and PCRE2 sees text and pattern as strings of class
 * numbers, one byte a character: no Unicode table of its own takes part, and matching costs the same in any script. Syntax on
 * which the two engines could differ is refused at load.
 *
 * A pattern is immutable after it was made: any number of threads may run it, each with its own struct sq_split_run. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/base/mem.h"
#include "engine/text/unicode.h"

struct sq_split_pattern;

/* text: a regular expression, or with `literal` the very characters to find. Errors: -SQ_E_NOTSUP where the syntax is not
 * supported (the message quotes the place), -SQ_E_FORMAT where it is broken, -SQ_E_NOMEM. */
int sq_split_pattern_new(const char *text, size_t n_bytes, bool literal,
                         struct sq_split_pattern **ret, struct sq_err *err) SQ_CHECKED;
/* One character out of the set. The set must be tidy. */
int sq_split_pattern_new_set(const struct sq_cpset *set, struct sq_split_pattern **ret,
                             struct sq_err *err) SQ_CHECKED;
struct sq_split_pattern *sq_split_pattern_free(struct sq_split_pattern *p);
SQ_AUTO_DEFINE(sq_split_pattern)

/* Buffers and the step budget of one caller, kept between the calls for one text. Zeroed memory is a good start. */
struct sq_split_run {
    unsigned char *classes; /* [cap] */
    size_t cap;
    void *match_data;    /* pcre2_match_data of pattern `of` */
    void *match_context; /* pcre2_match_context */
    const struct sq_split_pattern *of;
    uint64_t budget; /* steps that may still be charged */
};
void sq_split_run_done(struct sq_split_run *r);

/* Bytes [start, end) of a text; match: found by the pattern, otherwise what stands between. */
struct sq_span {
    uint32_t start, end;
    bool match;
};
/* A growing list. Zeroed memory is empty; sq_spans_done frees. */
struct sq_spans {
    struct sq_span *v;
    size_t n, cap;
};
int sq_spans_push(struct sq_spans *s, uint32_t start, uint32_t end, bool match) SQ_CHECKED;
void sq_spans_done(struct sq_spans *s);

/* Appends spans that cover text[from, to) without a gap, in order, none empty. The text is valid UTF-8 and below 4 GiB.
 * Time is linear in the text whatever the pattern: one that needs too many steps ends with -SQ_E_LIMIT. */
int sq_split_pattern_find(const struct sq_split_pattern *p, struct sq_split_run *run,
                          const char *text, uint32_t from, uint32_t to, struct sq_spans *out,
                          struct sq_err *err) SQ_CHECKED;
