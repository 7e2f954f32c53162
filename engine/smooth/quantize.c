#include "engine/smooth/quantize.h"

#include <stdio.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/smooth/export.h"

static void fill_report(const struct sq_smoothed *s, struct sq_quantize_report *r)
{
    const struct sq_smoothing *m = s->smoothing;
    SQ_ASSERT(m->family->n_folds <= SQ_MAX_FOLDS);
    for (int i = 0; i < m->family->n_folds; i++) {
        sq_fold_describe(m->family, i, r->folds[i].what, sizeof r->folds[i].what);
        r->folds[i].state = m->states[i];
    }
    r->n_folds = m->family->n_folds;
    r->n_passages = s->stats->n_passages;
    r->n_cut = s->n_cut;
    r->n_tokens = s->stats->n_tokens;
    r->min_s = (double)m->min_s;
    r->max_s = (double)m->max_s;
    r->verify_diff = s->verify_diff;
    r->n_verified = s->n_verified;
}

/* What was written must be a model that the loader takes. */
static int check_written(const struct sq_outdir *out, struct sq_err *err)
{
    char path[64];
    struct sq_model_dir *dir = NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", out->fd);
    int rc = sq_model_dir_open(path, &dir, err);
    sq_model_dir_close(dir);
    return rc ? sq_fail_in(err, "checking what was written to '%s': ", out->path) : 0;
}

static int write_out(const struct sq_quantize_options *o, const struct sq_model_dir *dir,
                     const struct sq_smoothed *s, struct sq_outdir *out,
                     const struct sq_progress *progress, uint64_t *ret_bytes, struct sq_err *err)
{
    struct sq_export x = {dir, s, &o->recipe, o->shard_bytes, progress};
    int rc = sq_export(&x, out, ret_bytes, err);
    if (!rc)
        rc = check_written(out, err);
    if (!rc)
        rc = sq_progress_step(progress, "writing", 1, err);
    return rc ? rc : sq_outdir_commit(out, err);
}

int sq_quantize(const struct sq_quantize_options *o, struct sq_backend *be,
                const struct sq_progress *progress, struct sq_quantize_report *ret,
                struct sq_err *err)
{
    struct sq_model_dir *dir = NULL;
    struct sq_outdir *out = NULL;
    struct sq_smoothed *s = NULL;
    struct sq_quantize_report report = {0};
    int rc = sq_model_dir_open(o->model_dir, &dir, err);
    if (!rc)
        rc = sq_outdir_open(o->out_dir, &out, err); /* before the long work: it may be taken */
    if (!rc)
        rc = sq_smoothed_make(dir, be, &o->recipe, progress, &s, err);
    if (!rc) {
        fill_report(s, &report);
        rc = write_out(o, dir, s, out, progress, &report.bytes, err);
    }
    sq_smoothed_free(s);
    sq_outdir_close(out);
    sq_model_dir_close(dir);
    if (!rc)
        *ret = report;
    return rc;
}
