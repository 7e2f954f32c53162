/* Character classes exactly as the Hugging Face tokenizers library has them (Unicode 16 for the most part), and sets of code
 * points. The table is generated (scripts/make-unicode); nothing here depends on the C library's locale or on PCRE2's tables.
 *
 * All functions are pure or work on the caller's set; any thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

#define SQ_UNICODE_MAX 0x10FFFFu

/* General categories, in the order of the generated table. CN: unassigned, and the surrogates. */
enum sq_gc {
    SQ_GC_CN,
    SQ_GC_LU,
    SQ_GC_LL,
    SQ_GC_LT,
    SQ_GC_LM,
    SQ_GC_LO,
    SQ_GC_MN,
    SQ_GC_MC,
    SQ_GC_ME,
    SQ_GC_ND,
    SQ_GC_NL,
    SQ_GC_NO,
    SQ_GC_PC,
    SQ_GC_PD,
    SQ_GC_PS,
    SQ_GC_PE,
    SQ_GC_PI,
    SQ_GC_PF,
    SQ_GC_PO,
    SQ_GC_SM,
    SQ_GC_SC,
    SQ_GC_SK,
    SQ_GC_SO,
    SQ_GC_ZS,
    SQ_GC_ZL,
    SQ_GC_ZP,
    SQ_GC_CC,
    SQ_GC_CF,
    SQ_GC_CO,
    SQ_GC_MAX
};

struct sq_range {
    uint32_t first, last; /* both inside */
};

struct sq_gc_row {
    uint32_t first;
    uint8_t gc;
};

enum sq_gc sq_unicode_gc(uint32_t c);
bool sq_unicode_is_space(uint32_t c); /* \s */
bool sq_unicode_is_word(uint32_t c);  /* \w as the single_word rule of added tokens has it */

/* A set of code points: sorted disjoint ranges after sq_cpset_tidy. Zeroed memory is the empty set; sq_cpset_done frees.
 * Errors of all that return int: -SQ_E_NOMEM. */
struct sq_cpset {
    struct sq_range *r;
    size_t n, cap;
};
void sq_cpset_done(struct sq_cpset *s);
int sq_cpset_add(struct sq_cpset *s, uint32_t first, uint32_t last) SQ_CHECKED;
int sq_cpset_add_set(struct sq_cpset *s, const struct sq_cpset *other) SQ_CHECKED;
/* name: a general category, "Lu", or its first letter, "L". Returns 1 if there is no such category. */
int sq_cpset_add_category(struct sq_cpset *s, const char *name, size_t n) SQ_CHECKED;
int sq_cpset_add_space(struct sq_cpset *s) SQ_CHECKED;
/* \w as Split patterns have it: alone it has six numbers of Latin-1 (superscripts, fractions) that it lacks in a bracket class. */
int sq_cpset_add_word(struct sq_cpset *s, bool in_class) SQ_CHECKED;
int sq_cpset_add_digits(struct sq_cpset *s)
    SQ_CHECKED; /* what the Digits pre-tokenizer sets apart */
void sq_cpset_tidy(struct sq_cpset *s);
int sq_cpset_negate(struct sq_cpset *s) SQ_CHECKED;                      /* tidies first */
bool sq_cpset_has(const struct sq_cpset *s, uint32_t c);                 /* of a tidied set */
bool sq_cpset_equal(const struct sq_cpset *a, const struct sq_cpset *b); /* both tidied */
