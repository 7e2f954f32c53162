#include "tests/lib/engine_rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

const struct sq_engine_options rig_roomy = {.max_sequences = 8,
                                            .max_step_tokens = 64,
                                            .max_context = 192,
                                            .max_queue = 100,
                                            .max_queue_tokens = 100000};

const struct sq_fake_options rig_fake = {.vocab = 256, .context = 192, .eos = 2, .eos_one_in = 40};

static void wake(void *ctx)
{
    struct rig *r = ctx;
    pthread_mutex_lock(&r->lock);
    r->is_woken = true;
    r->n_wakes++;
    pthread_cond_signal(&r->woken);
    pthread_mutex_unlock(&r->lock);
}

void rig_open(struct rig *r, const struct sq_fake_options *fake, const struct sq_engine_options *o)
{
    struct sq_err err = {0};
    *r = (struct rig){.lock = PTHREAD_MUTEX_INITIALIZER, .woken = PTHREAD_COND_INITIALIZER};
    r->model = sq_fake_model_new(fake);
    assert_non_null(r->model);
    struct sq_engine_options all = *o;
    all.model = r->model;
    all.wake = wake;
    all.ctx = r;
    assert_int_equal(sq_engine_open(&all, &r->e, &err), 0);
}

void rig_start(struct rig *r, const struct sq_fake_options *fake, const struct sq_engine_options *o)
{
    rig_open(r, fake, o);
    assert_int_equal(sq_engine_start(r->e, NULL), 0);
}

void rig_close(struct rig *r)
{
    assert_null(sq_engine_close(r->e));
    assert_null(sq_fake_model_free(r->model));
}

/* Books what has come. Every promise about a single event is checked here. */
void rig_take(struct rig *r)
{
    struct sq_event *first = sq_engine_take_events(r->e);
    for (struct sq_event *ev = first; ev; ev = (struct sq_event *)ev->node.next) {
        struct outcome *o = &r->out[ev->id % RIG_REQS];
        assert_int_equal(o->finish, SQ_FINISH_NONE);
        bool has_token = ev->finish == SQ_FINISH_NONE || ev->finish == SQ_FINISH_LENGTH;
        if (has_token) {
            assert_true(ev->token >= 0 && o->n < RIG_TOKENS);
            o->tokens[o->n++] = ev->token;
        }
        assert_int_equal(ev->n_generated, o->n);
        assert_true(ev->t_ns >= ev->t_admitted_ns);
        o->finish = ev->finish;
        r->n_open -= ev->finish != SQ_FINISH_NONE;
    }
    sq_events_free(first);
}

/* Waits for the next wake-up, at most 10 s. */
void rig_wait_wake(struct rig *r)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    pthread_mutex_lock(&r->lock);
    while (!r->is_woken)
        if (pthread_cond_timedwait(&r->woken, &r->lock, &until)) {
            pthread_mutex_unlock(&r->lock);
            fail_msg("the engine sent nothing for 10 s");
        }
    r->is_woken = false;
    pthread_mutex_unlock(&r->lock);
    rig_take(r);
}

void rig_wait_all(struct rig *r)
{
    while (r->n_open > 0)
        rig_wait_wake(r);
}

void rig_pause_ms(long ms)
{
    struct timespec t = {.tv_nsec = ms * 1000000};
    (void)nanosleep(&t, NULL);
}

/* The i-th of a family of requests: all settings occur. ids is scratch of the caller. */
struct sq_request rig_request(int i, int32_t *ids)
{
    static const int32_t stops[] = {77};
    static const struct sq_token_bias bias[] = {{5, 3.0f}, {9, -3.0f}};
    struct sq_request r = {
        .id = (sq_req_id)i, .ids = ids, .n_ids = 1 + i * 13 % 90, .credit = RIG_PLENTY};
    for (int k = 0; k < r.n_ids; k++)
        ids[k] = (i * 31 + k * 7) % 250 + 3;
    r.sampling = (struct sq_sampling){
        .top_p = 1.0f, .repetition = 1.0f, .seed = (uint64_t)i, .max_tokens = 5 + i * 7 % 60};
    r.sampling.temperature = i % 3 ? (float)(i % 3) * 0.7f : 0.0f;
    r.sampling.top_k = i % 5 == 1 ? 20 : 0;
    r.sampling.top_p = i % 4 == 1 ? 0.8f : 1.0f;
    r.sampling.repetition = i % 6 == 2 ? 1.2f : 1.0f;
    r.sampling.presence = i % 7 == 3 ? 0.5f : 0.0f;
    r.sampling.min_tokens = i % 8 == 4 ? 9 : 0;
    r.sampling.stop_ids = stops;
    r.sampling.n_stop_ids = i % 9 == 5;
    r.sampling.bias = bias;
    r.sampling.n_bias = i % 10 == 6 ? 2 : 0;
    return r;
}

int rig_put(struct rig *r, int i)
{
    int32_t ids[128];
    struct sq_request q = rig_request(i, ids);
    int rc = sq_engine_submit(r->e, &q, 1, NULL);
    r->n_open += rc == 0;
    return rc;
}

void rig_check_idle(struct rig *r)
{
    /* the figures are published after the events of a step */
    struct sq_engine_stats s;
    for (int i = 0; i < 1000; i++) {
        sq_engine_stats(r->e, &s);
        if (s.running == 0 && s.waiting == 0 && s.kv_used == 0 && s.waiting_tokens == 0)
            return;
        rig_pause_ms(1);
    }
    fail_msg("%d running, %d waiting, %d blocks used", s.running, s.waiting, s.kv_used);
}

struct outcome rig_solo[RIG_REQS];

void rig_make_solo(void)
{
    static bool is_made;
    struct rig r;
    if (is_made)
        return;
    rig_start(&r, &rig_fake, &rig_roomy);
    for (int i = 0; i < RIG_REQS; i++) {
        assert_int_equal(rig_put(&r, i), 0);
        rig_wait_all(&r);
        rig_solo[i] = r.out[i];
        assert_true(rig_solo[i].finish == SQ_FINISH_EOS || rig_solo[i].finish == SQ_FINISH_LENGTH);
    }
    rig_close(&r);
    is_made = true;
}

void rig_assert_same(const struct outcome *a, const struct outcome *b)
{
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->tokens, b->tokens, (size_t)a->n * 4);
}
