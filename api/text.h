/* From token ids to text that may be shown: only whole characters, and nothing that could still become a stop string.
 *
 * Stop strings: the match that completes first wins, on a tie the longer one; text is cut before the match. While a suffix of the
 * text is a beginning of some stop string it is held back, and given out when the text ends otherwise. One pass per stop string
 * and byte (Knuth-Morris-Pratt), whatever the text. One owner, one thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/text/tokenizer.h"

struct sq_stop {
    char *s; /* owned, n bytes, n >= 1 */
    size_t n;
    uint32_t *fail; /* [n + 1] length of the longest proper border of the first i bytes */
};

struct sq_stops {
    struct sq_stop *items; /* owned */
    size_t n;
};
/* Empty strings are ignored. -SQ_E_NOMEM. */
int sq_stops_add(struct sq_stops *s, const char *text, size_t n) SQ_CHECKED;
void sq_stops_done(struct sq_stops *s);

struct sq_flow {
    struct sq_detok detok;
    const struct sq_stops *stops; /* borrowed */
    uint32_t *pos;                /* [stops->n] bytes of each stop string matched so far */
    struct sq_text held;          /* decoded, not given out yet */
    bool stopped;
};
/* t may be NULL when only sq_flow_text is used. -SQ_E_NOMEM. */
int sq_flow_init(struct sq_flow *f, const struct sq_tokenizer *t,
                 const struct sq_stops *stops) SQ_CHECKED;
void sq_flow_done(struct sq_flow *f);

#define SQ_FLOW_STOP 1
/* Appends what may be shown after one more token to out. look = false: this token's text cannot be part of a stop string
 * (min_tokens). An id without text adds nothing. 0, SQ_FLOW_STOP once a stop string is complete (nothing more may be pushed),
 * or -SQ_E_NOMEM. */
int sq_flow_push(struct sq_flow *f, int32_t token, bool look, struct sq_text *out) SQ_CHECKED;
/* The same for decoded text. */
int sq_flow_text(struct sq_flow *f, const char *s, size_t n, bool look,
                 struct sq_text *out) SQ_CHECKED;
/* The end without a stop string: what was held back, an incomplete character as U+FFFD. As sq_flow_push: its last
 * character may complete a stop string. */
int sq_flow_finish(struct sq_flow *f, struct sq_text *out) SQ_CHECKED;
