/* Inside of the tokenizer, shared by its files only. */
#pragma once

#include <jansson.h>

#include "engine/text/split_pattern.h"
#include "engine/text/tokenizer.h"

#define SQ_TOK_MAX_ID 0x3FFFFFu
#define SQ_TOK_NO_ID UINT32_MAX

/* A token. Its text as tokenizer.json has it, and the bytes it stands for: the same range of the blob where they are equal. */
struct sq_tok_entry {
    uint32_t text, n_text;
    uint32_t bytes, n_bytes;
    bool used;  /* false: a hole in the ids */
    bool vocab; /* stands in the model's vocabulary */
    bool added; /* is an added token */
    bool special;
};

/* --- vocabulary: tok_vocab.c ------------------------------------------------------------------------------------------------ */

struct sq_tok_vocab {
    struct sq_tok_entry *ids; /* [cap_ids] */
    size_t n_ids, cap_ids;    /* n_ids: highest id + 1 */
    size_t n_vocab;           /* entries of the model's vocabulary */
    unsigned char *blob;      /* texts and bytes of all tokens */
    size_t n_blob, cap_blob;
    uint32_t *slots; /* [n_slots], a power of two: text -> id; SQ_TOK_NO_ID: empty */
    size_t n_slots;
    uint32_t byte_id[256]; /* token of a single byte */
    size_t max_text;       /* longest text in the model's vocabulary, bytes */
};

/* Room for this many tokens in all; once, before the first add. */
int sq_tok_vocab_init(struct sq_tok_vocab *v, size_t n_tokens) SQ_CHECKED;
void sq_tok_vocab_done(struct sq_tok_vocab *v);
/* Outcomes: 0; 1: the text is there already; 2: the id is taken; -SQ_E_LIMIT: made to collide; -SQ_E_NOMEM. */
int sq_tok_vocab_add(struct sq_tok_vocab *v, const char *text, size_t n, uint32_t id,
                     bool in_model) SQ_CHECKED;
uint32_t sq_tok_vocab_find(const struct sq_tok_vocab *v, const char *text, size_t n);

/* The byte-level alphabet: one printable character for each byte. */
uint32_t sq_tok_byte_char(unsigned char byte);
int sq_tok_char_byte(uint32_t c); /* -1: not in the alphabet */

/* --- merges: tok_merges.c --------------------------------------------------------------------------------------------------- */

struct sq_tok_merge {
    uint32_t a, b;
    uint32_t rank, to; /* to: id of the joined token; a is SQ_TOK_NO_ID in an empty slot */
};
struct sq_tok_merges {
    struct sq_tok_merge *slots; /* [n_slots], a power of two */
    size_t n_slots;
};
int sq_tok_merges_init(struct sq_tok_merges *m, size_t n) SQ_CHECKED;
void sq_tok_merges_done(struct sq_tok_merges *m);
/* Outcomes: 0; 1: the pair is there already; -SQ_E_LIMIT: made to collide. */
int sq_tok_merges_add(struct sq_tok_merges *m, uint32_t a, uint32_t b, uint32_t rank,
                      uint32_t to) SQ_CHECKED;
const struct sq_tok_merge *sq_tok_merges_find(const struct sq_tok_merges *m, uint32_t a,
                                              uint32_t b);

/* A list of ids that grows. */
struct sq_tok_ids {
    int32_t *v;
    size_t n, cap;
};
int sq_tok_ids_reserve(struct sq_tok_ids *ids, size_t n_more) SQ_CHECKED;
static inline int sq_tok_ids_push(struct sq_tok_ids *ids, uint32_t id)
{
    if (ids->n == ids->cap && sq_tok_ids_reserve(ids, 1))
        return -SQ_E_NOMEM;
    ids->v[ids->n++] = (int32_t)id;
    return 0;
}

/* Buffers for one word, kept between words. */
struct sq_tok_word {
    uint32_t *id, *prev, *next; /* [cap] linked symbols, prev and next are indices + 1, 0: none */
    uint64_t *heap;             /* [2 cap] rank << 32 | position */
    size_t cap;
};
void sq_tok_word_done(struct sq_tok_word *w);
/* Appends the ids of the n > 0 raw bytes at p: pairs are joined in the order of their ranks, leftmost first. O(n log n). */
int sq_tok_merge_word(const struct sq_tokenizer *t, struct sq_tok_word *w, const unsigned char *p,
                      size_t n, struct sq_tok_ids *out) SQ_CHECKED;

/* --- added tokens: tok_added.c, tok_trie.c ---------------------------------------------------------------------------------------------- */

struct sq_tok_added {
    uint32_t id;
    bool single_word, lstrip, rstrip, normalized, special;
};
/* A trie over bytes; node 0 is the root. Children of a node are a sorted run of edges. */
struct sq_tok_trie {
    struct sq_tok_trie_node {
        uint32_t first_edge;
        uint16_t n_edges;
        int32_t added; /* index of the added token that ends here, -1: none */
    } * nodes;
    struct sq_tok_trie_edge {
        unsigned char byte;
        uint32_t node;
    } * edges;
    size_t n_nodes, n_edges;
    bool starts[256]; /* bytes with which a token begins */
};
/* texts sorted by bytes, all different, none empty; `added` goes into the node where the text ends. */
struct sq_tok_trie_key {
    const unsigned char *text;
    size_t n;
    int32_t added;
};
int sq_tok_trie_build(struct sq_tok_trie *trie, const struct sq_tok_trie_key *keys,
                      size_t n) SQ_CHECKED;
void sq_tok_trie_done(struct sq_tok_trie *trie);
/* The longest key that text[0, n) begins with: its `added`, and its length in *ret_n; -1: none, nothing is written. */
int32_t sq_tok_trie_longest(const struct sq_tok_trie *trie, const unsigned char *text, size_t n,
                            size_t *ret_n);

/* A part of the text: text for the model (id SQ_TOK_NO_ID) or an added token. Never empty. */
struct sq_tok_part {
    uint32_t start, end;
    uint32_t id;
};
struct sq_tok_parts {
    struct sq_tok_part *v;
    size_t n, cap;
};
void sq_tok_parts_done(struct sq_tok_parts *p);
int sq_tok_find_added(const struct sq_tokenizer *t, const char *text, size_t n, bool parse_special,
                      struct sq_tok_parts *out) SQ_CHECKED;

/* --- pipeline: tok_pipeline.c, tok_pretok.c --------------------------------------------------------------------------------- */

enum sq_tok_behavior {
    SQ_TOK_REMOVED,
    SQ_TOK_ISOLATED,
    SQ_TOK_MERGED_WITH_PREVIOUS,
    SQ_TOK_MERGED_WITH_NEXT,
    SQ_TOK_CONTIGUOUS,
};
/* One pre-tokenizer after another. The byte-level one also turns text into its alphabet. */
struct sq_tok_stage {
    bool byte_level;
    bool add_prefix_space;            /* byte_level only */
    struct sq_split_pattern *pattern; /* owned; NULL: no split */
    enum sq_tok_behavior behavior;
    bool invert;
};
#define SQ_TOK_MAX_STAGES 16
#define SQ_TOK_MAX_TEMPLATE 32

/* A buffer of bytes. */
struct sq_tok_buf {
    unsigned char *v;
    size_t cap;
};
/* Buffers of one encode call. */
struct sq_tok_scratch {
    struct sq_split_run run;
    struct sq_spans spans, next, found;
    struct sq_tok_word word;
    struct sq_tok_buf prefixed, mapped, piece;
    struct sq_tok_ids out;
};
void sq_tok_scratch_done(struct sq_tok_scratch *s); /* all but out */
/* Appends the ids of text[0, n), a part without added tokens. */
int sq_tok_encode_part(const struct sq_tokenizer *t, const char *text, size_t n, bool parse_special,
                       struct sq_tok_scratch *s, struct sq_err *err) SQ_CHECKED;
int sq_tok_load_pipeline(struct sq_tokenizer *t, const json_t *root, struct sq_err *err) SQ_CHECKED;
int sq_tok_load_added(struct sq_tokenizer *t, const json_t *list, struct sq_err *err) SQ_CHECKED;

/* Messages: "NAME: [T3] what". */
int sq_tok_fail(const struct sq_tokenizer *t, struct sq_err *err, enum sq_code code,
                const char *rule, const char *fmt, ...) __attribute__((format(printf, 5, 6), cold));
int sq_tok_nomem(const struct sq_tokenizer *t, struct sq_err *err) __attribute__((cold));

struct sq_tokenizer {
    char *name;
    size_t n_model_ids; /* 0: not checked */
    struct sq_tok_vocab vocab;
    struct sq_tok_merges merges;
    bool ignore_merges;
    struct sq_tok_added *added; /* [n_added] */
    size_t n_added;
    struct sq_tok_trie raw_trie, normalized_trie; /* added tokens by their `normalized` */
    struct sq_tok_stage stages[SQ_TOK_MAX_STAGES];
    size_t n_stages;
    uint32_t prefix[SQ_TOK_MAX_TEMPLATE], suffix[SQ_TOK_MAX_TEMPLATE]; /* of the post-processor */
    size_t n_prefix, n_suffix;
};
