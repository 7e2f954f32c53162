/* Byte-level BPE from a Hugging Face tokenizer.json: text to token ids and back, equal to the `tokenizers` library (0.23.3).
 *
 * A tokenizer is immutable after it was opened; any number of threads may use it at once. Files are checked under the rules T1
 * to T8 and T10 at load: each failure names the file, the rule in brackets, e.g. "[T3]", and the offending item. Settings that
 * are not known are refused. `truncation` and `padding` of the file are not looked at: text is never cut here.
 *
 * Where the library's behaviour is not followed, on purpose: an added token's id that differs from the one the library would
 * give it is refused at load (the library warns and renumbers); a special token that merges or a single byte could spell is
 * refused at load (rule T10); the library panics on some texts with lstrip and rstrip, here the token that would have a negative
 * length is left out; an id without a token is an error in decode (the library drops it). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/base/mem.h"

struct sq_tokenizer;

#define SQ_TOK_MAX_FILE_BYTES ((size_t)64 << 20)
#define SQ_TOK_MAX_TEXT_BYTES ((size_t)256 << 20)

enum {
    SQ_TOK_ADD_SPECIAL = 1, /* run the post-processor (beginning of sequence ...) */
    SQ_TOK_PARSE_SPECIAL =
        2, /* text may spell control tokens; off: encode_special_tokens=True of the library */
};

/* file_name in the folder dir_fd (or AT_FDCWD). n_model_ids: embedding rows of the model, all ids must be below; 0: no check.
 * Errors: -SQ_E_IO, -SQ_E_LIMIT (file too large), -SQ_E_FORMAT, -SQ_E_NOTSUP (a known or unknown setting that is not
 * supported), -SQ_E_NOMEM. */
int sq_tokenizer_open(int dir_fd, const char *file_name, size_t n_model_ids,
                      struct sq_tokenizer **ret, struct sq_err *err) SQ_CHECKED;
/* The same from memory. The name only serves messages. */
int sq_tokenizer_parse(const char *json, size_t n_bytes, const char *name_for_messages,
                       size_t n_model_ids, struct sq_tokenizer **ret,
                       struct sq_err *err) SQ_CHECKED;
struct sq_tokenizer *sq_tokenizer_free(struct sq_tokenizer *t);
SQ_AUTO_DEFINE(sq_tokenizer)

size_t
sq_tokenizer_n_ids(const struct sq_tokenizer *t); /* highest id + 1; there may be holes below */

/* *ret_ids [*ret_n], freed with sq_free; never NULL on success. The text must be valid UTF-8, else -SQ_E_INVAL; it may hold NUL.
 * -SQ_E_LIMIT: text too long, or a split pattern that needs too many steps on it. Time O(n log n). */
int sq_tokenizer_encode(const struct sq_tokenizer *t, const char *text, size_t n_bytes,
                        unsigned flags, int32_t **ret_ids, size_t *ret_n,
                        struct sq_err *err) SQ_CHECKED;

/* *ret_text is NUL-terminated, of *ret_bytes bytes (it may hold NUL), freed with sq_free. Invalid UTF-8 becomes U+FFFD, one for
 * each longest beginning of a character. -SQ_E_INVAL: an id that stands for no token. */
int sq_tokenizer_decode(const struct sq_tokenizer *t, const int32_t *ids, size_t n,
                        bool skip_special, char **ret_text, size_t *ret_bytes,
                        struct sq_err *err) SQ_CHECKED;

/* The bytes that one id adds to a decoded text; they need not be UTF-8. Borrowed. false: no such token, nothing is written. */
bool sq_tokenizer_piece(const struct sq_tokenizer *t, int32_t id, const char **ret_bytes,
                        size_t *ret_n, bool *ret_special);

/* Id of the token of exactly this text as tokenizer.json writes it (a space is "\u0120" there), or -1. */
int32_t sq_tokenizer_id(const struct sq_tokenizer *t, const char *token_text);

/* A growing text, owned by the caller; zeroed memory is empty. data is NUL-terminated once anything was appended. */
struct sq_text {
    char *data;
    size_t n, cap;
};
int sq_text_append(struct sq_text *t, const char *bytes, size_t n) SQ_CHECKED; /* -SQ_E_NOMEM */
void sq_text_done(struct sq_text *t);

/* Decoding id by id: only whole characters come out, at most 3 bytes are held back. All that was appended, together, equals
 * sq_tokenizer_decode of all the ids. One thread at a time; nothing to free. */
struct sq_detok {
    const struct sq_tokenizer *t; /* borrowed */
    bool skip_special;
    unsigned char held[8];
    unsigned n_held;
};
void sq_detok_init(struct sq_detok *d, const struct sq_tokenizer *t, bool skip_special);
/* -SQ_E_INVAL: an id without a token; -SQ_E_NOMEM. Either way nothing has changed and the next id may be pushed. */
int sq_detok_push(struct sq_detok *d, int32_t id, struct sq_text *out,
                  struct sq_err *err) SQ_CHECKED;
/* The end: an incomplete character becomes U+FFFD. */
int sq_detok_finish(struct sq_detok *d, struct sq_text *out, struct sq_err *err) SQ_CHECKED;
