#include "engine/smooth/evaluate.h"

#include <math.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/threads.h"
#include "engine/text/tokenizer.h"

#define DEFAULT_CONTEXT 512

double sq_nll(const float *logits, size_t n, size_t target)
{
    double most = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++)
        most = (double)logits[i] > most ? (double)logits[i] : most;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - most);
    return log(sum) - ((double)logits[target] - most);
}

struct window {
    const int32_t *ids; /* [n], BOS included */
    int n;
    size_t vocab;
    struct sq_eval_result *r;
};

static int score_rows(void *ctx, int pos0, int n_rows, const float *logits, struct sq_err *err)
{
    struct window *w = ctx;
    for (int i = 0; i < n_rows; i++) {
        if (pos0 + i + 1 >= w->n) /* the last position predicts what the next window has */
            break;
        size_t target = (size_t)w->ids[pos0 + i + 1];
        double nll = sq_nll(logits + (size_t)i * w->vocab, w->vocab, target);
        if (!isfinite(nll))
            return sq_fail(err, SQ_E_FORMAT, "the logits at position %d of a window are not finite",
                           pos0 + i);
        w->r->nats += nll;
        w->r->n_tokens++;
    }
    return 0;
}

/* Windows of context tokens; with a BOS each takes context - 1 tokens of the text. */
static int score_windows(struct sq_player *player, const int32_t *ids, size_t n_ids,
                         int32_t *window, const struct sq_progress *progress,
                         struct sq_eval_result *r, struct sq_err *err)
{
    const struct sq_config *c = &player->model->config;
    const size_t n_bos = c->bos >= 0, step = (size_t)player->max_tokens - n_bos;
    for (size_t at = 0; at < n_ids; at += step) {
        size_t n = SQ_MIN(step, n_ids - at);
        int rc = sq_progress_step(progress, "scoring", (double)at / (double)n_ids, err);
        if (rc)
            return rc;
        window[0] = c->bos;
        memcpy(window + n_bos, ids + at, n * sizeof *ids);
        struct window w = {window, (int)(n + n_bos), (size_t)c->vocab, r};
        rc = sq_player_run(player, window, w.n, NULL, 0, score_rows, &w, err);
        if (rc)
            return rc;
    }
    return sq_progress_step(progress, "scoring", 1, err);
}

int sq_score(struct sq_model *m, const int32_t *ids, size_t n_ids, int context,
             const struct sq_progress *progress, struct sq_eval_result *ret, struct sq_err *err)
{
    struct sq_player player = {0};
    SQ_AUTO_FREE int32_t *window = sq_new_array(int32_t, (size_t)context);
    if (!window)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a window");
    int rc = sq_player_init(&player, m, context, err);
    if (!rc)
        rc = score_windows(&player, ids, n_ids, window, progress, ret, err);
    sq_player_done(&player);
    return rc;
}

static void finish_result(struct sq_eval_result *r)
{
    r->perplexity = exp(r->nats / (double)r->n_tokens);
    r->bits_per_byte = r->nats / log(2.0) / (double)r->n_bytes;
}

struct run {
    const struct sq_eval_options *o;
    struct sq_backend *be;
    const struct sq_progress *progress;
    struct sq_model_dir *dir;
    struct sq_smoothed *smoothed;
    struct sq_model *model;
    int32_t *ids;
    size_t n_ids;
    struct sq_eval_result r;
};

static void tell_loading(void *ctx, double ratio)
{
    const struct sq_progress *p = ctx;
    if (p && p->tell)
        p->tell(p->ctx, "loading", ratio);
}

static int load(struct run *k, struct sq_source *src, const struct sq_config *c, struct sq_err *err)
{
    struct sq_load_options o = {.head = k->o->head,
                                .prefix = k->dir->prefix,
                                .progress = tell_loading,
                                .ctx = (void *)k->progress,
                                .stop = k->progress ? k->progress->stop : NULL,
                                .allow_surplus = k->smoothed != NULL};
    return sq_model_load(src, c, k->be, &o, &k->model, err);
}

static struct sq_recipe recipe_of(const struct sq_eval_options *o)
{
    struct sq_recipe r = o->recipe;
    r.dynamic = o->scheme == SQ_EVAL_O1;
    if (o->scheme == SQ_EVAL_NAIVE) {
        r.folds = SQ_FOLDS_NONE;
        r.per_tensor = true;
        r.keep_first = true;
    }
    return r;
}

static int load_scheme(struct run *k, struct sq_err *err)
{
    const bool is_float = k->dir->config.scheme == SQ_SCHEME_FLOAT;
    if (k->o->scheme == SQ_EVAL_AS_STORED || (k->o->scheme == SQ_EVAL_FLOAT && is_float))
        return load(k, k->dir->source, &k->dir->config, err);
    if (!is_float)
        return sq_fail(err, SQ_E_NOTSUP,
                       "%s: is quantised already; a scheme needs the float model it was made of",
                       k->dir->path);
    struct sq_recipe r = recipe_of(k->o);
    int rc = sq_smoothed_make(k->dir, k->be, &r, k->progress, &k->smoothed, err);
    return rc ? rc : load(k, k->smoothed->source, &k->smoothed->config, err);
}

static int read_text(struct run *k, struct sq_err *err)
{
    struct sq_tokenizer *tok = NULL;
    SQ_AUTO_FREE char *text = NULL;
    int rc = sq_text_load(k->o->text, &text, &k->r.n_bytes, err);
    if (!rc)
        rc = sq_tokenizer_open(k->dir->fd, "tokenizer.json", (size_t)k->dir->config.vocab, &tok,
                               err);
    if (!rc) {
        rc = sq_tokenizer_encode(tok, text, k->r.n_bytes, 0, &k->ids, &k->n_ids, err);
        if (rc)
            sq_fail_in(err, "%s: ", k->o->text);
    }
    sq_tokenizer_free(tok);
    return rc;
}

static int choose_context(struct run *k, struct sq_err *err)
{
    const int most = k->dir->config.max_positions;
    if (k->o->context && (k->o->context < 2 || k->o->context > most))
        return sq_fail(err, SQ_E_INVAL, "context: expected 2 to %d tokens, found %d", most,
                       k->o->context);
    k->r.context = k->o->context ? k->o->context : SQ_MIN(DEFAULT_CONTEXT, most);
    return 0;
}

static int run(struct run *k, struct sq_err *err)
{
    int rc = sq_model_dir_open(k->o->model_dir, &k->dir, err);
    if (!rc)
        rc = choose_context(k, err);
    if (!rc)
        rc = read_text(k, err);
    if (!rc)
        rc = load_scheme(k, err);
    if (rc)
        return rc;
    uint64_t start = sq_now_ns();
    rc = sq_score(k->model, k->ids, k->n_ids, k->r.context, k->progress, &k->r, err);
    k->r.seconds = (double)(sq_now_ns() - start) * 1e-9;
    if (!rc && k->r.n_tokens == 0)
        rc = sq_fail(err, SQ_E_FORMAT, "%s: expected text to score, found no token", k->o->text);
    return rc;
}

int sq_evaluate(const struct sq_eval_options *o, struct sq_backend *be,
                const struct sq_progress *progress, struct sq_eval_result *ret, struct sq_err *err)
{
    struct run k = {.o = o, .be = be, .progress = progress};
    int rc = run(&k, err);
    sq_model_free(k.model);
    sq_smoothed_free(k.smoothed);
    sq_free(k.ids);
    sq_model_dir_close(k.dir);
    if (rc)
        return rc;
    finish_result(&k.r);
    *ret = k.r;
    return 0;
}
