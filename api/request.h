/* The body of POST /v1/completions as a checked struct: every field of the wire once, in one table (request.c). After sq_completion_parse
 * all numbers are in range and all ids below the vocabulary; sq_completion_tokenise turns the prompts into ids and checks them
 * against the context. Both are pure: they run on the loop or on a worker, on immutable inputs. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/api.h"
#include "api/reply.h"
#include "api/text.h"
#include "engine/engine.h"
#include "engine/model/config.h"

/* What a request is checked against. Immutable while requests are parsed; strings are borrowed. */
struct sq_border {
    struct sq_api_limits limits;
    const char *const *names; /* NULL-terminated served names */
    bool strict_fields;
    const struct sq_tokenizer *tokenizer; /* NULL while no model is loaded: nothing is tokenised */
    int vocab, max_context;
    int32_t bos; /* -1 none */
    struct sq_gen_defaults gen;
};

struct sq_prompt {
    char *text; /* owned; NULL: given as ids */
    size_t n_text;
    int32_t *ids; /* owned, [n_ids] */
    size_t n_ids;
};

struct sq_completion {
    struct sq_prompt *prompts; /* owned, [n_prompts], n_prompts >= 1 */
    size_t n_prompts;
    int n; /* choices per prompt */
    struct sq_sampling
        sampling; /* stop_ids and bias point at the arrays below; max_tokens may be 0 here */
    int32_t *stop_ids;
    struct sq_token_bias *bias;
    struct sq_stops stops;
    bool has_seed, stream, include_usage;
    int n_unknown;           /* fields that were not known */
    int64_t n_prompt_tokens; /* of all prompts, each once; after tokenising */
};

/* Zeroed memory is empty. On failure *c may be half filled: sq_completion_done either way. 0 or -SQ_E_INVAL with *f filled. */
int sq_completion_parse(struct sq_completion *c, const char *body, size_t n,
                        const struct sq_border *b, struct sq_fault *f) SQ_CHECKED;
int sq_completion_tokenise(struct sq_completion *c, const struct sq_border *b,
                           struct sq_fault *f) SQ_CHECKED;
void sq_completion_done(struct sq_completion *c);

/* "model" of any body: absent, or one of the served names. */
struct json_t;
int sq_request_model(const struct json_t *value, const struct sq_border *b,
                     struct sq_fault *f) SQ_CHECKED;
/* An array of token ids below the vocabulary; *ret is freed with sq_free. path names the array. */
int sq_request_ids(const struct json_t *array, const char *path, const struct sq_border *b,
                   int32_t **ret, size_t *ret_n, struct sq_fault *f) SQ_CHECKED;
/* "prompt" in its four forms into c. */
int sq_prompts_read(struct sq_completion *c, const struct json_t *v, const struct sq_border *b,
                    struct sq_fault *f) SQ_CHECKED;
/* Text to ids with the tokenizer's errors turned into faults. */
int sq_request_encode(const struct sq_border *b, const char *text, size_t n, unsigned flags,
                      const char *path, int32_t **ret, size_t *ret_n,
                      struct sq_fault *f) SQ_CHECKED;
