/* From logits to a token. Pure and deterministic: the token is a function of the logits, the
 * settings, the tokens so far and the seed, whatever the batch, the chunking or a preemption. All
 * arithmetic is plain float and double in one fixed order.
 *
 * The order (penalties before temperature before the cuts, as transformers and vLLM have it):
 *   1. repetition penalty r, over prompt and generated tokens: l > 0 ? l / r : l * r, once per
 *      token
 *   2. frequency and presence, over generated tokens: l - frequency * count, then - presence
 *   3. bias; then, while fewer than min_tokens are generated, every token that would end the
 *      sequence is banned
 *   4. temperature 0 (or top_k 1, or top_p 0): the first maximum. Else w = exp((l - max) /
 *      temperature), and
 *   5. min_p: tokens with w < min_p (that is, less likely than min_p times the likeliest) are out
 *   6. top_k: the k best are left; of equals, the lower id
 *   7. top_p: of what is left, the shortest run from the best downwards whose share reaches top_p
 *   8. one number in [0,1) from (seed, index of the generated token) picks by the weights that are
 *      left, walked in order of ids (after top_k: from the best down). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"

struct sq_sampler; /* scratch for one vocabulary; one thread */

struct sq_sampler *sq_sampler_new(int vocab); /* NULL: no memory */
struct sq_sampler *sq_sampler_free(struct sq_sampler *s);

struct sq_sample_in {
    const struct sq_sampling *sampling;
    const int32_t *ids; /* [n_ids]: prompt, then generated */
    int n_prompt, n_ids;
    const int32_t *eos; /* [n_eos] the model's */
    int n_eos;
};

/* True if the next token is the first maximum of the untouched logits, so that no logits need to
 * leave the device. */
bool sq_sample_is_argmax(const struct sq_sample_in *in);
/* logits: [vocab]. -1: a logit is not finite, or no token is allowed. */
int32_t sq_sample(struct sq_sampler *s, const struct sq_sample_in *in, const float *logits);
/* Does this token end the sequence (stop id, or the model's eos unless ignored)? */
bool sq_sample_is_end(const struct sq_sample_in *in, int32_t token);

/* The i-th random number of a seed, uniform in [0,1), 53 bits. Counter-based: no state. */
double sq_sample_uniform(uint64_t seed, uint64_t i);
