#include "api/work.h"

#include <uv.h>

#include "api/http.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"

struct request {
    uv_work_t uv;
    struct sq_work *w;
};

static void on_gone(void *owner)
{
    struct sq_work *w = owner;
    w->x = NULL;
    (void)uv_cancel(w->req); /* if no worker has it yet, none needs to */
}

static void on_drained(void *owner)
{
    (void)owner;
}

static void on_abort(void *owner)
{
    struct sq_work *w = owner;
    struct sq_exchange *x = w->x;
    struct sq_fault f;
    w->x = NULL;
    sq_exchange_own(x, NULL, NULL);
    (void)sq_fault_set(&f, SQ_STATUS_DRAINING, NULL, "the server is shutting down");
    f.retry_ms = 10000;
    sq_exchange_fault(x, &f);
}

static const struct sq_owner_ops ops = {on_gone, on_drained, on_abort};

void sq_work_set_init(struct sq_work_set *s, struct uv_loop_s *loop, struct sq_api *a)
{
    s->loop = loop;
    s->a = a;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->ended, NULL);
    sq_list_init(&s->works);
}

static void on_run(uv_work_t *req)
{
    struct sq_work *w = ((struct request *)req)->w;
    struct sq_work_set *s = w->set;
    w->run(w);
    pthread_mutex_lock(&s->lock);
    w->ran = true;
    pthread_cond_signal(&s->ended);
    pthread_mutex_unlock(&s->lock);
}

static void finish(struct sq_api *a, struct sq_work *w)
{
    struct sq_exchange *x = w->x;
    if (x) {
        sq_exchange_own(x, NULL, NULL);
        w->done(a, w);
    }
    w->free(w);
}

static void on_after(uv_work_t *req, int status)
{
    struct request *r = (struct request *)req;
    struct sq_work *w = r->w;
    struct sq_work_set *s = w->set;
    (void)status;
    sq_free(r);
    if (!s) { /* the API is gone */
        w->free(w);
        return;
    }
    sq_list_remove(&w->link);
    struct sq_http *http = w->x ? w->x->http : NULL;
    finish(s->a, w);
    if (http)
        sq_http_pump(http);
}

void sq_work_submit(struct sq_work_set *s, struct sq_work *w, struct sq_exchange *x, bool small)
{
    w->x = x;
    w->set = s;
    sq_list_init(&w->link);
    struct request *r = small ? NULL : sq_new(struct request);
    if (!r) {
        w->run(w);
        finish(s->a, w);
        return;
    }
    r->w = w;
    w->req = (uv_req_t *)&r->uv;
    sq_exchange_own(x, w, &ops);
    sq_list_append(&s->works, &w->link);
    int rc = uv_queue_work(s->loop, &r->uv, on_run, on_after);
    SQ_ASSERT(!rc); /* fails for a missing callback only */
}

void sq_work_set_done(struct sq_work_set *s)
{
    sq_list_each (it, &s->works) {
        struct sq_work *w = sq_list_entry(it, struct sq_work, link);
        sq_list_remove(&w->link);
        if (uv_cancel(w->req) != 0) {
            pthread_mutex_lock(&s->lock);
            while (!w->ran)
                pthread_cond_wait(&s->ended, &s->lock);
            pthread_mutex_unlock(&s->lock);
        }
        w->set = NULL;
    }
    pthread_cond_destroy(&s->ended);
    pthread_mutex_destroy(&s->lock);
}
