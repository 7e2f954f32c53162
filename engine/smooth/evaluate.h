/* Perplexity of a model on a text: what quantisation cost. One thread. */
#pragma once

#include "engine/smooth/recipe.h"

enum sq_eval_scheme {
    SQ_EVAL_AS_STORED,
    SQ_EVAL_FLOAT,
    SQ_EVAL_NAIVE, /* the paper's baseline: no smoothing, static, all per tensor */
    SQ_EVAL_O1,    /* smoothed, activations per token at run time */
    SQ_EVAL_O3,    /* smoothed, activations static per tensor */
};

struct sq_eval_options {
    const char *model_dir, *text;
    enum sq_eval_scheme
        scheme;              /* all but AS_STORED and FLOAT quantise a float directory in memory */
    struct sq_recipe recipe; /* of the smoothed schemes; the scheme sets what it defines */
    enum sq_head_mode head;
    int context; /* tokens of a window, its BOS included; 0 = min(512, the model's) */
};

struct sq_eval_result {
    double nats;     /* sum of -log p over all scored tokens */
    size_t n_tokens; /* scored: all but BOS */
    size_t n_bytes;  /* of the text */
    int context;
    double seconds; /* of scoring alone */
    double perplexity, bits_per_byte;
};

/* The text is one sequence of tokens cut into windows; each window starts with BOS (a model
 * without one leaves the first token of a window unscored). Errors: -SQ_E_INVAL (context beyond
 * the model's), -SQ_E_NOTSUP (a scheme on a directory that is quantised already), -SQ_E_FORMAT
 * (nothing to score; logits that are not finite), and those of loading and calibrating. */
int sq_evaluate(const struct sq_eval_options *o, struct sq_backend *be,
                const struct sq_progress *progress, struct sq_eval_result *ret,
                struct sq_err *err) SQ_CHECKED;

/* -log softmax(logits)[target]; sums in double. NAN if any logit is. */
double sq_nll(const float *logits, size_t n, size_t target);

/* Scores ids [n_ids] in windows of `context` tokens on a loaded model. Adds to ret->nats and
 * ret->n_tokens. */
int sq_score(struct sq_model *m, const int32_t *ids, size_t n_ids, int context,
             const struct sq_progress *progress, struct sq_eval_result *ret,
             struct sq_err *err) SQ_CHECKED;
