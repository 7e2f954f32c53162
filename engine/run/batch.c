#include "engine/run/batch.h"

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"

int sq_batch_init(struct sq_batch_space *s, int max_rows, int max_seqs, struct sq_err *err)
{
    SQ_ASSERT(max_rows > 0 && max_seqs > 0);
    *s = (struct sq_batch_space){.max_rows = max_rows, .max_seqs = max_seqs};
    s->ids = sq_new_array(int32_t, (size_t)max_rows);
    s->pos = sq_new_array(int32_t, (size_t)max_rows);
    s->out_rows = sq_new_array(int32_t, (size_t)max_seqs);
    s->seqs = sq_new_array(struct sq_batch_seq, (size_t)max_seqs);
    if (s->ids && s->pos && s->out_rows && s->seqs)
        return 0;
    sq_batch_done(s);
    return sq_fail(err, SQ_E_NOMEM, "no memory for steps of %d rows", max_rows);
}

void sq_batch_done(struct sq_batch_space *s)
{
    sq_free(s->ids);
    sq_free(s->pos);
    sq_free(s->out_rows);
    sq_free(s->seqs);
    *s = (struct sq_batch_space){0};
}

static void put_rows(struct sq_batch_space *s, const struct sq_plan_seq *p, int row0)
{
    const struct sq_job *j = p->job;
    SQ_ASSERT(j->n_cached + p->n_rows <= j->n_blocks * SQ_KV_BLOCK);
    for (int i = 0; i < p->n_rows; i++) {
        s->ids[row0 + i] = j->ids[j->n_cached + i];
        s->pos[row0 + i] = j->n_cached + i;
    }
}

void sq_batch_build(struct sq_batch_space *s, const struct sq_plan *plan)
{
    SQ_ASSERT(plan->n_rows > 0 && plan->n_rows <= s->max_rows && plan->n_seqs <= s->max_seqs);
    int row = 0, n_out = 0;
    for (int i = 0; i < plan->n_seqs; i++) {
        const struct sq_plan_seq *p = &plan->seqs[i];
        s->seqs[i] = (struct sq_batch_seq){
            .row0 = row, .n_rows = p->n_rows, .pos0 = p->job->n_cached, .blocks = p->job->blocks};
        put_rows(s, p, row);
        row += p->n_rows;
        if (p->out)
            s->out_rows[n_out++] = row - 1;
    }
    SQ_ASSERT(row == plan->n_rows && n_out == plan->n_out);
    s->b = (struct sq_batch){.n_rows = row,
                             .n_seqs = plan->n_seqs,
                             .n_out = n_out,
                             .ids = s->ids,
                             .pos = s->pos,
                             .seqs = s->seqs,
                             .out_rows = s->out_rows};
}
