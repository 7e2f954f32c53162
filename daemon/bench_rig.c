#include "daemon/bench_rig.h"

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/model/expect.h"
#include "engine/quant.h"

static int make_arrays(struct sq_bench_rig *r, struct sq_err *err)
{
    const size_t rows = (size_t)r->max_rows, seqs = (size_t)r->max_seqs;
    const size_t n_blocks = seqs * (size_t)r->seq_blocks;
    r->ids = sq_new_array(int32_t, rows);
    r->pos = sq_new_array(int32_t, rows);
    r->out_rows = sq_new_array(int32_t, seqs);
    r->best = sq_new_array(int32_t, seqs);
    r->blocks = sq_new_array(int32_t, n_blocks);
    r->seqs = sq_new_array(struct sq_batch_seq, seqs);
    if (!r->ids || !r->pos || !r->out_rows || !r->best || !r->blocks || !r->seqs)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    for (size_t i = 0; i < n_blocks; i++)
        r->blocks[i] = (int32_t)i;
    return 0;
}

int sq_bench_rig_init(struct sq_bench_rig *r, const struct sq_config *c, int max_rows, int max_seqs,
                      int max_tokens, struct sq_err *err)
{
    *r = (struct sq_bench_rig){
        .max_rows = max_rows,
        .max_seqs = max_seqs,
        .seq_blocks = (int)sq_div_up((size_t)max_tokens, SQ_KV_BLOCK),
    };
    int rc = max_tokens > c->max_positions
                 ? sq_fail(err, SQ_E_LIMIT, "a stage of %d tokens, the shape has %d positions",
                           max_tokens, c->max_positions)
                 : make_arrays(r, err);
    if (rc)
        sq_bench_rig_done(r);
    return rc;
}

int sq_bench_rig_build(struct sq_bench_rig *r, struct sq_source *src, const struct sq_config *c,
                       enum sq_head_mode head, struct sq_err *err)
{
    struct sq_load_options lo = {.head = head, .prefix = c->family->prefixes[0]};
    int rc = sq_model_load(src, c, r->be, &lo, &r->model, err);
    if (rc)
        return rc;
    struct sq_runner_options ro = {.max_rows = r->max_rows,
                                   .max_out = r->max_seqs,
                                   .n_kv_blocks = r->max_seqs * r->seq_blocks};
    return sq_runner_new(r->model, &ro, &r->runner, err);
}

void sq_bench_rig_done(struct sq_bench_rig *r)
{
    sq_runner_free(r->runner);
    sq_model_free(r->model);
    if (r->be)
        r->be->ops->close(r->be);
    sq_free(r->ids);
    sq_free(r->pos);
    sq_free(r->out_rows);
    sq_free(r->best);
    sq_free(r->blocks);
    sq_free(r->seqs);
    *r = (struct sq_bench_rig){0};
}

static struct sq_batch batch(struct sq_bench_rig *r, int n_rows, int n_seqs)
{
    return (struct sq_batch){.n_rows = n_rows,
                             .n_seqs = n_seqs,
                             .n_out = n_seqs,
                             .ids = r->ids,
                             .pos = r->pos,
                             .seqs = r->seqs,
                             .out_rows = r->out_rows};
}

struct sq_batch sq_bench_prompt(struct sq_bench_rig *r, int seq, int pos0, int n)
{
    for (int i = 0; i < n; i++) {
        r->ids[i] = (i * 37 + 11 + pos0) % r->model->config.vocab;
        r->pos[i] = pos0 + i;
    }
    r->out_rows[0] = n - 1;
    r->seqs[0] = (struct sq_batch_seq){
        .n_rows = n, .pos0 = pos0, .blocks = r->blocks + (ptrdiff_t)seq * r->seq_blocks};
    return batch(r, n, 1);
}

struct sq_batch sq_bench_decode(struct sq_bench_rig *r, int n, int pos)
{
    for (int i = 0; i < n; i++) {
        r->ids[i] = (i * 101 + pos) % r->model->config.vocab;
        r->pos[i] = pos;
        r->out_rows[i] = i;
        r->seqs[i] = (struct sq_batch_seq){.row0 = i,
                                           .n_rows = 1,
                                           .pos0 = pos,
                                           .blocks = r->blocks + (ptrdiff_t)i * r->seq_blocks};
    }
    return batch(r, n, n);
}

int sq_bench_step(struct sq_bench_rig *r, const struct sq_batch *b, double *ret_s,
                  struct sq_err *err)
{
    uint64_t start = sq_now_ns();
    int rc = sq_forward(r->runner, b, NULL, err);
    if (!rc)
        rc = sq_runner_argmax(r->runner, b->n_out, r->best, err);
    if (!rc)
        *ret_s = (double)(sq_now_ns() - start) / 1e9;
    return rc;
}

double sq_bench_layer_params(const struct sq_config *c)
{
    double layer = 0;
    for (int role = 0; role < SQ_N_LAYER_ROLES; role++) {
        size_t rows, cols; /* of norms, cols is 0 */
        sq_role_shape(c, (enum sq_role)role, &rows, &cols);
        layer += (double)rows * (double)cols;
    }
    return c->n_layers * layer;
}
