/* Calibration: what range every channel of the linears' inputs takes on sample passages, measured
 * by running the float model. */
#pragma once

#include <stdint.h>

#include "engine/model/model.h"
#include "engine/run/forward.h"
#include "engine/smooth/passages.h"
#include "engine/smooth/progress.h"

struct sq_stats {
    int n_layers, n_passages;
    size_t n_tokens;        /* seen, the left-out first ones not counted */
    size_t dim[SQ_N_SITES]; /* channels of a site */
    float **absmax;         /* [n_layers * SQ_N_SITES] of [dim[site]] */
};

/* A model and a runner of one sequence, played in chunks: what calibration and evaluation share. */
struct sq_player {
    struct sq_model *model; /* borrowed */
    struct sq_runner *runner;
    int chunk, max_tokens;
    int32_t *blocks, *pos, *rows; /* [blocks of max_tokens], [chunk], [chunk] */
};
int sq_player_init(struct sq_player *p, struct sq_model *m, int max_tokens,
                   struct sq_err *err) SQ_CHECKED;
void sq_player_done(struct sq_player *p);

/* Logits of positions pos0 .. pos0 + n_rows - 1, dense [n_rows, vocab], valid during the call. */
typedef int (*sq_logits_fn)(void *ctx, int pos0, int n_rows, const float *logits,
                            struct sq_err *err);
/* Plays ids[n] from position 0. Positions from first_out on hand their logits to sink, which may
 * be NULL only if first_out >= n. obs may be NULL. n <= max_tokens. */
int sq_player_run(struct sq_player *p, const int32_t *ids, int n, const struct sq_observer *obs,
                  int first_out, sq_logits_fn sink, void *ctx, struct sq_err *err) SQ_CHECKED;

/* Runs all passages. skip_first leaves position 0 out. Errors: -SQ_E_NOMEM, -SQ_E_DEVICE,
 * -SQ_E_INTR, and -SQ_E_FORMAT where an activation is not finite. */
int sq_calibrate(struct sq_model *m, const struct sq_passages *p, bool skip_first,
                 const struct sq_progress *progress, struct sq_stats **ret,
                 struct sq_err *err) SQ_CHECKED;
struct sq_stats *sq_stats_free(struct sq_stats *s);
int sq_stats_new(const struct sq_config *c, struct sq_stats **ret, struct sq_err *err) SQ_CHECKED;
