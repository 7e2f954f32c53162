/* Bytes to a completion request, with no tokenizer. What comes out must be refused with a whole fault, or be within every limit. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "api/json.h"
#include "api/request.h"
#include "engine/base/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(const struct sq_completion *c, const struct sq_border *b)
{
    const struct sq_sampling *s = &c->sampling;
    SQ_ASSERT(c->n_prompts >= 1 && c->n >= 1 && c->n <= b->limits.max_n);
    SQ_ASSERT((int64_t)c->n_prompts * c->n <= b->limits.max_prompts);
    SQ_ASSERT(s->temperature >= 0 && s->temperature <= 2 && s->top_p >= 0 && s->top_p <= 1 &&
              s->min_p >= 0 && s->min_p <= 1);
    SQ_ASSERT(fabsf(s->presence) <= 2 && fabsf(s->frequency) <= 2 && s->repetition > 0 &&
              s->repetition <= 2);
    SQ_ASSERT(s->top_k >= 0 && s->max_tokens >= 0 && s->min_tokens >= 0 &&
              s->min_tokens <= s->max_tokens);
    SQ_ASSERT(c->stops.n <= (size_t)b->limits.max_stop && s->n_stop_ids <= b->limits.max_stop_ids &&
              s->n_bias <= b->limits.max_logit_bias);
    SQ_ASSERT(!c->include_usage || c->stream);
    for (size_t i = 0; i < c->n_prompts; i++) {
        const struct sq_prompt *p = &c->prompts[i];
        SQ_ASSERT(p->text || p->n_ids);
        for (size_t k = 0; k < p->n_ids; k++)
            SQ_ASSERT(p->ids[k] >= 0 && p->ids[k] < b->vocab);
    }
    for (int i = 0; i < s->n_bias; i++)
        SQ_ASSERT(s->bias[i].id >= 0 && s->bias[i].id < b->vocab && fabsf(s->bias[i].bias) <= 100);
    for (int i = 0; i < s->n_stop_ids; i++)
        SQ_ASSERT(s->stop_ids[i] >= 0 && s->stop_ids[i] < b->vocab);
    for (size_t i = 0; i < c->stops.n; i++)
        SQ_ASSERT(c->stops.items[i].n >= 1 &&
                  c->stops.items[i].n <= (size_t)b->limits.max_stop_bytes);
}

/* The fault is JSON that our own reader takes. */
static void check_fault(const struct sq_fault *f, const struct sq_border *b)
{
    struct sq_reply r;
    struct sq_fault inner = {0};
    SQ_ASSERT(f->status && f->msg[0]);
    sq_reply_fault(&r, f);
    SQ_ASSERT(r.http >= 400 && !r.body.failed);
    struct json_t *j = sq_field_parse(r.body.data, r.body.n, &b->limits, &inner);
    SQ_ASSERT(j);
    sq_field_free(j);
    sq_wbuf_done(&r.body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char *const names[] = {"demo", NULL};
    struct sq_border b = {.names = names,
                          .vocab = 1000,
                          .max_context = 512,
                          .bos = -1,
                          .gen = {NAN, NAN, NAN, NAN, -1, -1}};
    struct sq_completion c = {0};
    struct sq_fault f = {0};
    sq_api_limits_default(&b.limits);
    b.limits.max_json_containers = 200;
    b.limits.max_json_values = 2000;
    b.strict_fields = n && data[n - 1] == ' ';
    if (sq_completion_parse(&c, (const char *)data, n, &b, &f))
        check_fault(&f, &b);
    else
        check(&c, &b);
    sq_completion_done(&c);
    return 0;
}
