#include "engine/smooth/calibrate.h"

#include <math.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/quant.h"
#include "engine/smooth/sites.h"

/* Rows per step: enough for full speed, few enough that logits of a large vocabulary fit. */
#define CHUNK 128

int sq_player_init(struct sq_player *p, struct sq_model *m, int max_tokens, struct sq_err *err)
{
    const int chunk = SQ_MIN(CHUNK, max_tokens);
    const int n_blocks = (int)sq_div_up((size_t)max_tokens, SQ_KV_BLOCK);
    struct sq_runner_options o = {.max_rows = chunk, .max_out = chunk, .n_kv_blocks = n_blocks};
    *p = (struct sq_player){.model = m,
                            .chunk = chunk,
                            .max_tokens = max_tokens,
                            .blocks = sq_new_array(int32_t, (size_t)n_blocks),
                            .pos = sq_new_array(int32_t, (size_t)chunk),
                            .rows = sq_new_array(int32_t, (size_t)chunk)};
    int rc = p->blocks && p->pos && p->rows
                 ? sq_runner_new(m, &o, &p->runner, err)
                 : sq_fail(err, SQ_E_NOMEM, "out of memory for a sequence");
    if (rc) {
        sq_player_done(p);
        return rc;
    }
    for (int i = 0; i < n_blocks; i++)
        p->blocks[i] = i;
    return 0;
}

void sq_player_done(struct sq_player *p)
{
    sq_runner_free(p->runner);
    sq_free(p->blocks);
    sq_free(p->pos);
    sq_free(p->rows);
    *p = (struct sq_player){0};
}

int sq_player_run(struct sq_player *p, const int32_t *ids, int n, const struct sq_observer *obs,
                  int first_out, sq_logits_fn sink, void *ctx, struct sq_err *err)
{
    SQ_ASSERT(n > 0 && n <= p->max_tokens && (sink || first_out >= n));
    for (int at = 0; at < n; at += p->chunk) {
        const int rows = SQ_MIN(p->chunk, n - at), out0 = SQ_MAX(0, first_out - at);
        struct sq_batch_seq seq = {.n_rows = rows, .pos0 = at, .blocks = p->blocks};
        struct sq_batch b = {.n_rows = rows,
                             .n_seqs = 1,
                             .ids = ids + at,
                             .pos = p->pos,
                             .seqs = &seq,
                             .out_rows = p->rows};
        for (int i = 0; i < rows; i++)
            p->pos[i] = at + i;
        for (int i = out0; i < rows; i++)
            p->rows[b.n_out++] = i;
        int rc = sq_forward(p->runner, &b, obs, err);
        const float *logits;
        if (!rc && b.n_out)
            rc = sq_runner_logits(p->runner, b.n_out, &logits, err);
        if (!rc && b.n_out)
            rc = sink(ctx, at + out0, b.n_out, logits, err);
        if (rc)
            return rc;
    }
    return 0;
}

int sq_stats_new(const struct sq_config *c, struct sq_stats **ret, struct sq_err *err)
{
    struct sq_stats *s = sq_new(struct sq_stats);
    if (!s)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for statistics");
    s->n_layers = c->n_layers;
    s->absmax = sq_new_array(float *, (size_t)c->n_layers *SQ_N_SITES);
    bool ok = s->absmax != NULL;
    for (int site = 0; site < SQ_N_SITES; site++)
        s->dim[site] = sq_site_dim(c, (enum sq_site)site);
    for (int i = 0; ok && i < c->n_layers * SQ_N_SITES; i++)
        ok = (s->absmax[i] = sq_new_array(float, s->dim[i % SQ_N_SITES])) != NULL;
    if (!ok) {
        sq_stats_free(s);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for statistics");
    }
    *ret = s;
    return 0;
}

struct sq_stats *sq_stats_free(struct sq_stats *s)
{
    if (!s)
        return NULL;
    for (int i = 0; s->absmax && i < s->n_layers * SQ_N_SITES; i++)
        sq_free(s->absmax[i]);
    sq_free(s->absmax);
    sq_free(s);
    return NULL;
}

/* A maximum over NaN says nothing, so this only finds what overflowed; the logits' check finds the
 * rest. */
static int check_finite(const struct sq_stats *s, struct sq_err *err)
{
    static const char *const names[SQ_N_SITES] = {
        "input of q, k, v", "input of the attention output",
        "input of the first feed-forward linear", "input of the second feed-forward linear",
        "q, k, v"};
    for (int i = 0; i < s->n_layers * SQ_N_SITES; i++)
        for (size_t j = 0; j < s->dim[i % SQ_N_SITES]; j++)
            if (!isfinite(s->absmax[i][j]))
                return sq_fail(err, SQ_E_FORMAT,
                               "calibration: layer %d, %s, channel %zu is not finite",
                               i / SQ_N_SITES, names[i % SQ_N_SITES], j);
    return 0;
}

static int play_all(struct sq_player *player, const struct sq_passages *p,
                    const struct sq_observer *obs, const struct sq_progress *progress,
                    struct sq_stats *s, struct sq_err *err)
{
    for (int i = 0; i < p->n; i++) {
        const size_t n = p->start[i + 1] - p->start[i];
        int rc = sq_progress_step(progress, "calibrating", (double)i / p->n, err);
        if (!rc)
            rc = sq_player_run(player, p->ids + p->start[i], (int)n, obs, (int)n, NULL, NULL, err);
        if (rc)
            return rc;
        s->n_tokens += n - (obs->skip_first ? 1 : 0);
    }
    s->n_passages = p->n;
    if (s->n_tokens == 0)
        return sq_fail(err, SQ_E_FORMAT, "calibration: no passage is longer than its first token");
    return sq_progress_step(progress, "calibrating", 1, err);
}

int sq_calibrate(struct sq_model *m, const struct sq_passages *p, bool skip_first,
                 const struct sq_progress *progress, struct sq_stats **ret, struct sq_err *err)
{
    struct sq_stats *s = NULL;
    struct sq_player player = {0};
    size_t longest = 0;
    for (int i = 0; i < p->n; i++)
        longest = SQ_MAX(longest, p->start[i + 1] - p->start[i]);
    int rc = sq_stats_new(&m->config, &s, err);
    if (!rc)
        rc = sq_player_init(&player, m, (int)longest, err);
    if (!rc) {
        struct sq_observer obs = {s->absmax, skip_first};
        rc = play_all(&player, p, &obs, progress, s, err);
    }
    if (!rc)
        rc = check_finite(s, err);
    sq_player_done(&player);
    if (rc) {
        sq_stats_free(s);
        return rc;
    }
    *ret = s;
    return 0;
}
