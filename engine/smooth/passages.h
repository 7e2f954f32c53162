/* Texts as token ids: sample passages for calibration, and one long text for evaluation. Immutable
 * after load. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/text/tokenizer.h"

struct sq_passages {
    int n;         /* at least 1 */
    size_t *start; /* [n + 1] into ids */
    int32_t *ids;  /* each passage begins with bos where the model has one */
    int n_cut;     /* passages that were longer than the limit */
};

/* A whole file. *ret is NUL-terminated and freed with sq_free. Errors: -SQ_E_NOTFOUND, -SQ_E_IO,
 * -SQ_E_LIMIT (256 MiB), -SQ_E_NOMEM. */
int sq_text_load(const char *path, char **ret, size_t *ret_n, struct sq_err *err) SQ_CHECKED;

/* The passages of a plain text file: paragraphs if the file has blank lines between them, else
 * lines. At most max_passages of at most max_tokens tokens each, bos (-1 = none) included; longer
 * ones are cut. Errors: those of sq_text_load, -SQ_E_FORMAT (no passage). */
int sq_passages_load(const char *path, const struct sq_tokenizer *tok, int32_t bos,
                     int max_passages, int max_tokens, struct sq_passages **ret,
                     struct sq_err *err) SQ_CHECKED;
struct sq_passages *sq_passages_free(struct sq_passages *p);

/* The next passage of text at *pos: its bounds without surrounding white space. False at the end.
 * */
bool sq_passage_next(const char *text, size_t n_text, bool by_paragraph, size_t *pos,
                     size_t *ret_begin, size_t *ret_end);
/* True if a blank line stands between two others that are not. */
bool sq_passages_by_paragraph(const char *text, size_t n_text);
