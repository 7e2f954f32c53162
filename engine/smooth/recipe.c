#include "engine/smooth/recipe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/smooth/verify.h"

struct making {
    struct sq_model_dir *dir;
    struct sq_backend *be;
    const struct sq_recipe *r;
    const struct sq_progress *progress;
    struct sq_smoothed *s;
    struct sq_passages *passages;
    struct sq_probe probe;
};

static int load_passages(struct making *k, struct sq_err *err)
{
    char path[4096];
    const char *file = k->r->calibration;
    if (!file) {
        if (faccessat(k->dir->fd, "calibration.txt", F_OK, 0))
            return sq_fail(err, SQ_E_NOTFOUND,
                           "no calibration text: %s has no calibration.txt, so name a file with "
                           "--calibration",
                           k->dir->path);
        int n = snprintf(path, sizeof path, "%s/calibration.txt", k->dir->path);
        if (n < 0 || (size_t)n >= sizeof path)
            return sq_fail(err, SQ_E_LIMIT, "%s: path too long", k->dir->path);
        file = path;
    }
    struct sq_tokenizer *tok = NULL;
    const struct sq_config *c = &k->dir->config;
    int rc = sq_tokenizer_open(k->dir->fd, "tokenizer.json", (size_t)c->vocab, &tok, err);
    if (!rc)
        rc = sq_passages_load(file, tok, c->bos, k->r->max_passages,
                              SQ_MIN(SQ_CALIBRATION_TOKENS, c->max_positions), &k->passages, err);
    if (!rc)
        k->s->n_cut = k->passages->n_cut;
    sq_tokenizer_free(tok);
    return rc;
}

struct phase {
    const struct sq_progress *progress;
    const char *name;
};

static void tell_phase(void *ctx, double ratio)
{
    const struct phase *p = ctx;
    if (p->progress && p->progress->tell)
        p->progress->tell(p->progress->ctx, p->name, ratio);
}

static int load_float(struct making *k, struct sq_source *src, const char *phase,
                      struct sq_model **ret, struct sq_err *err)
{
    struct phase p = {k->progress, phase};
    struct sq_load_options o = {.prefix = k->dir->prefix,
                                .progress = tell_phase,
                                .ctx = &p,
                                .stop = k->progress ? k->progress->stop : NULL,
                                .allow_surplus = true};
    return sq_model_load(src, &k->dir->config, k->be, &o, ret, err);
}

static bool anything_folded(const struct sq_smoothing *m)
{
    for (int i = 0; i < m->family->n_folds; i++)
        if (m->states[i] == SQ_FOLD_APPLIED)
            return true;
    return false;
}

static int measure(struct making *k, struct sq_err *err)
{
    struct sq_model *m = NULL;
    int rc = load_float(k, k->dir->source, "loading", &m, err);
    if (!rc)
        rc = sq_calibrate(m, k->passages, !k->r->keep_first, k->progress, &k->s->stats, err);
    if (!rc && k->r->folds != SQ_FOLDS_NONE)
        rc = sq_probe_take(m, k->passages, &k->probe, err);
    sq_model_free(m);
    return rc;
}

static int verify(struct making *k, struct sq_err *err)
{
    struct sq_model *m = NULL;
    int rc = load_float(k, k->s->folded, "verifying", &m, err);
    if (!rc)
        rc = sq_probe_compare(&k->probe, m, k->s->stats, k->s->smoothing, !k->r->keep_first,
                              SQ_FOLD_BOUND, &k->s->verify_diff, err);
    if (!rc)
        k->s->n_verified = k->probe.n_rows;
    sq_model_free(m);
    return rc;
}

static int smooth(struct making *k, struct sq_err *err)
{
    struct sq_smoothed *s = k->s;
    const struct sq_config *c = &k->dir->config;
    int rc = sq_progress_step(k->progress, "smoothing", 0, err);
    if (!rc)
        rc = sq_smoothing_make(k->dir->source, c, k->dir->prefix, s->stats, k->r->alpha,
                               k->r->folds, k->r->per_tensor, &s->smoothing, err);
    if (!rc)
        rc = sq_fold_source_open(k->dir->source, s->smoothing, k->dir->prefix, &s->folded, err);
    if (!rc && anything_folded(s->smoothing))
        rc = verify(k, err);
    if (!rc)
        rc = sq_steps_make(s->stats, c, s->smoothing, &s->steps, err);
    if (!rc)
        rc = sq_quant_source_open(s->folded, c, k->dir->prefix, k->r->per_tensor,
                                  k->r->dynamic ? NULL : &s->steps, k->progress, &s->source, err);
    if (rc)
        return rc;
    s->config = *c;
    s->config.scheme = k->r->dynamic ? SQ_SCHEME_W8A8_DYNAMIC : SQ_SCHEME_W8A8_STATIC;
    s->config.head_quantized = false;
    return 0;
}

int sq_smoothed_make(struct sq_model_dir *dir, struct sq_backend *be, const struct sq_recipe *r,
                     const struct sq_progress *progress, struct sq_smoothed **ret,
                     struct sq_err *err)
{
    if (dir->config.scheme != SQ_SCHEME_FLOAT)
        return sq_fail(err, SQ_E_NOTSUP,
                       "%s: expected a float model, found one that is quantised already",
                       dir->path);
    struct making k = {
        .dir = dir, .be = be, .r = r, .progress = progress, .s = sq_new(struct sq_smoothed)};
    if (!k.s)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    int rc = load_passages(&k, err);
    if (!rc)
        rc = measure(&k, err);
    if (!rc)
        rc = smooth(&k, err);
    sq_probe_done(&k.probe);
    sq_passages_free(k.passages);
    if (rc) {
        sq_smoothed_free(k.s);
        return rc;
    }
    *ret = k.s;
    return 0;
}

struct sq_smoothed *sq_smoothed_free(struct sq_smoothed *s)
{
    if (!s)
        return NULL;
    sq_source_close(s->source);
    sq_source_close(s->folded);
    sq_steps_done(&s->steps);
    sq_smoothing_free(s->smoothing);
    sq_stats_free(s->stats);
    sq_free(s);
    return NULL;
}
