#include "engine/smooth/verify.h"

#include <math.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/smooth/sites.h"

#define PROBE_PASSAGES 4
#define PROBE_ROWS 16 /* last positions of each */

/* Exact scaling leaves the ranges exact, too; the slack is for values that leave f32's normal
 * range. */
#define RANGE_SLACK 1e-5

static int passage_length(const struct sq_passages *p, int i)
{
    return (int)(p->start[i + 1] - p->start[i]);
}

/* Runs the probe's passages in order; sink sees PROBE_ROWS rows of each (fewer of a short one), in
 * one or more pieces. */
static int play_probe(struct sq_model *m, const struct sq_passages *p,
                      const struct sq_observer *obs, sq_logits_fn sink, void *ctx,
                      struct sq_err *err)
{
    const int n = SQ_MIN(p->n, PROBE_PASSAGES);
    struct sq_player player;
    int longest = 0;
    for (int i = 0; i < n; i++)
        longest = SQ_MAX(longest, passage_length(p, i));
    int rc = sq_player_init(&player, m, longest, err);
    if (rc)
        return rc;
    for (int i = 0; !rc && i < n; i++) {
        int len = passage_length(p, i);
        rc = sq_player_run(&player, p->ids + p->start[i], len, obs, SQ_MAX(0, len - PROBE_ROWS),
                           sink, ctx, err);
    }
    sq_player_done(&player);
    return rc;
}

static int keep_rows(void *ctx, int pos0, int n_rows, const float *logits, struct sq_err *err)
{
    struct sq_probe *p = ctx;
    (void)pos0;
    (void)err;
    memcpy(p->logits + (size_t)p->n_rows * p->vocab, logits,
           (size_t)n_rows * p->vocab * sizeof(float));
    p->n_rows += n_rows;
    return 0;
}

int sq_probe_take(struct sq_model *m, const struct sq_passages *p, struct sq_probe *ret,
                  struct sq_err *err)
{
    size_t n, vocab = (size_t)m->config.vocab;
    if (!sq_mul_size(vocab, PROBE_PASSAGES * PROBE_ROWS, &n))
        return sq_fail(err, SQ_E_LIMIT, "a vocabulary of %zu is too large", vocab);
    struct sq_probe probe = {.passages = p, .vocab = vocab, .logits = sq_new_array(float, n)};
    int rc = probe.logits ? play_probe(m, p, NULL, keep_rows, &probe, err)
                          : sq_fail(err, SQ_E_NOMEM, "out of memory for logits");
    if (rc) {
        sq_probe_done(&probe);
        return rc;
    }
    *ret = probe;
    return 0;
}

void sq_probe_done(struct sq_probe *p)
{
    sq_free(p->logits);
    *p = (struct sq_probe){0};
}

struct comparison {
    const struct sq_probe *probe;
    int i_row;
    double lowest, highest, diff;
};

static int compare_rows(void *ctx, int pos0, int n_rows, const float *logits, struct sq_err *err)
{
    struct comparison *c = ctx;
    const size_t vocab = c->probe->vocab;
    const float *want = c->probe->logits + (size_t)c->i_row * vocab;
    for (size_t i = 0; i < (size_t)n_rows * vocab; i++) {
        if (!isfinite(logits[i]) || !isfinite(want[i]))
            return sq_fail(err, SQ_E_STATE,
                           "verifying the folds: the logit of token %zu at position %zu is not "
                           "finite (%g, smoothed %g)",
                           i % vocab, (size_t)pos0 + i / vocab, (double)want[i], (double)logits[i]);
        c->lowest = fmin(c->lowest, (double)want[i]);
        c->highest = fmax(c->highest, (double)want[i]);
        c->diff = fmax(c->diff, fabs((double)logits[i] - (double)want[i]));
    }
    c->i_row += n_rows;
    return 0;
}

/* The largest activation seen in the smoothed model against the range its step will be derived
 * from. */
static int compare_ranges(const struct sq_stats *seen, const struct sq_stats *stats,
                          const struct sq_smoothing *m, struct sq_err *err)
{
    for (int layer = 0; layer < stats->n_layers; layer++)
        for (int i = 0; i < SQ_N_LINEARS; i++) {
            if (!sq_has_linear(m->family, i))
                continue;
            const enum sq_site site = sq_role_site(sq_linear_roles[i]);
            const float *s = sq_smoothing_in(m, sq_linear_roles[i], layer);
            const size_t at = (size_t)layer * SQ_N_SITES + site;
            for (size_t j = 0; j < stats->dim[site]; j++) {
                double most = (double)stats->absmax[at][j] / (s ? (double)s[j] : 1.0);
                if ((double)seen->absmax[at][j] > most * (1.0 + RANGE_SLACK))
                    return sq_fail(err, SQ_E_STATE,
                                   "verifying the folds: layer %d, input of %s, channel %zu: "
                                   "expected at most %g after smoothing, found %g",
                                   layer, m->family->names[sq_linear_roles[i]], j, most,
                                   (double)seen->absmax[at][j]);
            }
        }
    return 0;
}

int sq_probe_compare(const struct sq_probe *p, struct sq_model *smoothed,
                     const struct sq_stats *stats, const struct sq_smoothing *s, bool skip_first,
                     double bound, double *ret_diff, struct sq_err *err)
{
    struct sq_stats *seen = NULL;
    struct comparison c = {.probe = p, .lowest = INFINITY, .highest = -INFINITY};
    int rc = sq_stats_new(&smoothed->config, &seen, err);
    if (!rc) {
        struct sq_observer obs = {seen->absmax, skip_first};
        rc = play_probe(smoothed, p->passages, &obs, compare_rows, &c, err);
    }
    const double range = c.highest - c.lowest, diff = range > 0 ? c.diff / range : c.diff;
    if (!rc && diff > bound)
        rc = sq_fail(err, SQ_E_STATE,
                     "verifying the folds: the smoothed model's logits differ from the original's "
                     "by %.3g of their range, at most %.3g is allowed; nothing was written",
                     diff, bound);
    if (!rc)
        rc = compare_ranges(seen, stats, s, err);
    sq_stats_free(seen);
    if (rc)
        return rc;
    *ret_diff = diff;
    return 0;
}
