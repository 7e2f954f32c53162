/* GET /v1/models and /v1/models/{id}. */
#include <string.h>

#include "api/api_priv.h"

static void write_model(struct sq_api *a, const char *name, struct sq_wbuf *o)
{
    sq_wbuf_puts(o, "{\"id\":");
    sq_wbuf_json_or_null(o, name);
    sq_wbuf_printf(o, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"sqd\"",
                   (long long)(a->t_model ? a->t_model : a->t_started));
    if (a->engine) {
        sq_wbuf_printf(o, ",\"max_model_len\":%d,\"quantization\":", a->border.max_context);
        sq_wbuf_json_or_null(o, a->quantization);
    }
    sq_wbuf_puts(o, "}");
}

void sq_models_handle(struct sq_api *a, struct sq_exchange *x)
{
    struct sq_wbuf o = {0};
    sq_wbuf_puts(&o, "{\"object\":\"list\",\"data\":[");
    for (char **it = a->names; *it; it++) {
        if (it != a->names)
            sq_wbuf_puts(&o, ",");
        write_model(a, *it, &o);
    }
    sq_wbuf_puts(&o, "]}");
    sq_api_send(x, &o);
}

void sq_model_handle(struct sq_api *a, struct sq_exchange *x)
{
    for (char **it = a->names; *it; it++) {
        if (!strcmp(*it, x->arg)) {
            struct sq_wbuf o = {0};
            write_model(a, *it, &o);
            sq_api_send(x, &o);
            return;
        }
    }
    struct sq_fault f;
    (void)sq_fault_set(&f, SQ_STATUS_MODEL_NOT_FOUND, "model",
                       "the model '%.200s' does not exist here", x->arg);
    sq_exchange_fault(x, &f);
}
