/* Inside of the split patterns, shared by their files only: the parsed form, and reading of atoms. */
#pragma once

#include <string.h>

#include "engine/text/split_pattern.h"
#include "engine/text/utf8.h"

#define SQ_SPLIT_MAX_SETS 64

/* A parsed pattern: bytes of PCRE2 syntax in which SQ_SPLIT_ATOM and a set's number (plus 1) stand for an atom. */
struct sq_split_parsed {
    struct sq_cpset sets[SQ_SPLIT_MAX_SETS]; /* tidy, all different */
    size_t n_sets;
    unsigned char *code;
    size_t n, cap;
};
#define SQ_SPLIT_ATOM 0x01
int sq_split_parse(const char *text, size_t n_bytes, bool literal, struct sq_split_parsed *out,
                   struct sq_err *err) SQ_CHECKED;
void sq_split_parsed_done(struct sq_split_parsed *p);
/* Appends an atom; takes the set, which is emptied also on failure. */
int sq_split_parsed_atom(struct sq_split_parsed *p, struct sq_cpset *set,
                         struct sq_err *err) SQ_CHECKED;

/* --- atoms: split_class.c --------------------------------------------------------------------------------------------------- */

/* Where we are in a pattern. */
struct sq_split_cursor {
    const unsigned char *s; /* [n] valid UTF-8 */
    size_t n, i;
    struct sq_err *err;
};

static inline bool sq_split_next_is(const struct sq_split_cursor *c, const char *text)
{
    size_t n = strlen(text);
    return c->n - c->i >= n && !memcmp(c->s + c->i, text, n);
}

static inline uint32_t sq_split_take_char(struct sq_split_cursor *c)
{
    unsigned n;
    uint32_t ch = sq_utf8_get(c->s + c->i, &n);
    c->i += n;
    return ch;
}

/* Fails with the words, the place, and what stands there. */
int sq_split_refuse(const struct sq_split_cursor *c, size_t at, const char *what);

/* One atom or one item of a bracket class: a set, or a single character that may begin a range. */
struct sq_split_item {
    struct sq_cpset set;
    bool single;
    uint32_t c;
};
/* After a backslash. The set is the caller's to free, also on failure; so below. */
int sq_split_read_escape(struct sq_split_cursor *c, struct sq_split_item *it,
                         bool in_class) SQ_CHECKED;
/* After an opening bracket, up to and with the closing one. */
int sq_split_read_class(struct sq_split_cursor *c, struct sq_cpset *set) SQ_CHECKED;
/* Adds what a case-insensitive match adds to ASCII letters; other sets are refused. */
int sq_split_fold(const struct sq_split_cursor *c, size_t at, struct sq_cpset *set) SQ_CHECKED;
