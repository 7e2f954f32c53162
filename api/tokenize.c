/* POST /v1/tokenize and /v1/detokenize. */
#include "api/api_priv.h"
#include "api/json.h"
#include "engine/base/mem.h"

struct job {
    struct sq_work work; /* first */
    const struct sq_border *border;
    struct sq_wbuf body, answer;
    struct sq_fault fault;
};

/* {content | prompt, add_special, parse_special} */
static int tokenize(struct job *j, const struct json_t *root)
{
    const char *text = NULL, *name = sq_field_get(root, "content") ? "content" : "prompt";
    size_t n = 0, n_ids = 0;
    bool add = false, parse = false;
    int32_t *ids;
    int rc = sq_field_str(sq_field_get(root, name), name, &text, &n, &j->fault);
    if (rc == SQ_JSON_ABSENT)
        rc = sq_fault_set(&j->fault, SQ_STATUS_INVALID_VALUE, "content", "'content' is missing");
    if (!rc)
        rc = sq_field_bool(sq_field_get(root, "add_special"), "add_special", &add, &j->fault);
    if (rc >= 0)
        rc = sq_field_bool(sq_field_get(root, "parse_special"), "parse_special", &parse, &j->fault);
    if (rc < 0)
        return rc;
    unsigned flags = (add ? SQ_TOK_ADD_SPECIAL : 0u) | (parse ? SQ_TOK_PARSE_SPECIAL : 0u);
    rc = sq_request_encode(j->border, text, n, flags, name, &ids, &n_ids, &j->fault);
    if (rc)
        return rc;
    sq_wbuf_puts(&j->answer, "{\"tokens\":[");
    for (size_t i = 0; i < n_ids; i++) {
        if (i)
            sq_wbuf_puts(&j->answer, ",");
        sq_wbuf_int(&j->answer, ids[i]);
    }
    sq_wbuf_printf(&j->answer, "],\"count\":%zu}", n_ids);
    sq_free(ids);
    return 0;
}

/* {tokens} */
static int detokenize(struct job *j, const struct json_t *root)
{
    const struct json_t *tokens = sq_field_get(root, "tokens");
    SQ_AUTO_FREE int32_t *ids = NULL;
    SQ_AUTO_FREE char *text = NULL;
    size_t n, n_text;
    struct sq_err err = {0};
    if (sq_field_kind(tokens) != SQ_JSON_ARRAY)
        return sq_fault_set(&j->fault, SQ_STATUS_INVALID_VALUE, "tokens",
                            "'tokens' must be an array of token ids, found %s",
                            sq_field_kind_name(tokens));
    int rc = sq_request_ids(tokens, "tokens", j->border, &ids, &n, &j->fault);
    if (rc)
        return rc;
    rc = sq_tokenizer_decode(j->border->tokenizer, ids, n, false, &text, &n_text, &err);
    if (rc)
        return sq_fault_set(&j->fault,
                            rc == -SQ_E_NOMEM ? SQ_STATUS_INTERNAL : SQ_STATUS_INVALID_VALUE,
                            "tokens", "'tokens' cannot be decoded: %.300s", err.msg);
    sq_wbuf_puts(&j->answer, "{\"content\":");
    sq_wbuf_json(&j->answer, text, n_text);
    sq_wbuf_puts(&j->answer, "}");
    return 0;
}

static void run(struct job *j, int (*what)(struct job *j, const struct json_t *root))
{
    const struct sq_border *b = j->border;
    struct json_t *root = sq_field_parse(j->body.data, j->body.n, &b->limits, &j->fault);
    if (!root)
        return;
    if (!sq_request_model(sq_field_get(root, "model"), b, &j->fault))
        (void)what(j, root);
    sq_field_free(root);
}

static void run_tokenize(struct sq_work *w)
{
    run((struct job *)w, tokenize);
}

static void run_detokenize(struct sq_work *w)
{
    run((struct job *)w, detokenize);
}

static void done(struct sq_api *a, struct sq_work *w)
{
    struct job *j = (struct job *)w;
    (void)a;
    if (j->fault.status)
        sq_exchange_fault(w->x, &j->fault);
    else
        sq_api_send(w->x, &j->answer);
}

static void job_free(struct sq_work *w)
{
    struct job *j = (struct job *)w;
    sq_wbuf_done(&j->body);
    sq_wbuf_done(&j->answer);
    sq_free(j);
}

static void handle(struct sq_api *a, struct sq_exchange *x, void (*work)(struct sq_work *w))
{
    struct sq_fault f;
    struct job *j = a->engine ? sq_new(struct job) : NULL;
    if (!j) {
        (void)sq_fault_set(&f, a->engine ? SQ_STATUS_INTERNAL : SQ_STATUS_LOADING, NULL,
                           a->engine ? "out of memory" : "the model is still loading");
        f.retry_ms = 5000;
        sq_exchange_fault(x, &f);
        return;
    }
    j->work.run = work;
    j->work.done = done;
    j->work.free = job_free;
    j->border = &a->border;
    j->body = x->body;
    x->body = (struct sq_wbuf){0};
    sq_work_submit(&a->works, &j->work, x, j->body.n <= (size_t)a->border.limits.offload_body);
}

void sq_tokenize_handle(struct sq_api *a, struct sq_exchange *x)
{
    handle(a, x, run_tokenize);
}

void sq_detokenize_handle(struct sq_api *a, struct sq_exchange *x)
{
    handle(a, x, run_detokenize);
}
