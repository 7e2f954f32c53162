#include "engine/run/job.h"

#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"

int sq_job_blocks_for(int n_tokens)
{
    return (n_tokens + SQ_KV_BLOCK - 1) / SQ_KV_BLOCK;
}

int sq_job_worst_blocks(int n_prompt, int max_tokens)
{
    return sq_job_blocks_for(n_prompt + max_tokens - 1);
}

static bool copy_sampling(struct sq_job *j, const struct sq_sampling *s)
{
    j->sampling = *s;
    j->sampling.stop_ids = sq_memdup(s->stop_ids, (size_t)s->n_stop_ids * sizeof *s->stop_ids);
    j->sampling.bias = sq_memdup(s->bias, (size_t)s->n_bias * sizeof *s->bias);
    return j->sampling.stop_ids && j->sampling.bias;
}

struct sq_job *sq_job_new(const struct sq_request *r)
{
    SQ_ASSERT(r->n_ids >= 1 && r->sampling.max_tokens >= 1 && r->credit >= 0);
    struct sq_job *j = sq_new(struct sq_job);
    if (!j)
        return NULL;
    sq_list_init(&j->link);
    j->inbox.added = (struct sq_job_msg){.job = j, .is_new = true};
    j->inbox.changed = (struct sq_job_msg){.job = j};
    j->id = r->id;
    j->credit = r->credit;
    j->n_prompt = j->n_ids = r->n_ids;
    j->max_blocks = sq_job_worst_blocks(r->n_ids, r->sampling.max_tokens);
    j->ids = sq_new_array(int32_t, (size_t)r->n_ids + (size_t)r->sampling.max_tokens);
    j->blocks = sq_new_array(int32_t, (size_t)j->max_blocks);
    j->last = sq_new(struct sq_event);
    if (!copy_sampling(j, &r->sampling) || !j->ids || !j->blocks || !j->last)
        return sq_job_free(j);
    memcpy(j->ids, r->ids, (size_t)r->n_ids * sizeof *r->ids);
    return j;
}

struct sq_job *sq_job_free(struct sq_job *j)
{
    if (!j)
        return NULL;
    SQ_ASSERT(j->n_blocks == 0 && sq_list_empty(&j->link));
    sq_free((void *)j->sampling.stop_ids);
    sq_free((void *)j->sampling.bias);
    sq_free(j->ids);
    sq_free(j->blocks);
    sq_free(j->last);
    sq_free(j);
    return NULL;
}

void sq_job_append(struct sq_job *j, int32_t token)
{
    SQ_ASSERT(sq_job_n_generated(j) < j->sampling.max_tokens && j->credit > 0);
    j->ids[j->n_ids++] = token;
    j->credit--;
}
