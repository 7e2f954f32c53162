/* The engine on the fake backend, with its thread: tokens equal to the solo run in any company, one final event per request, bounds,
 * credit, cancelling, faults at every op and at every allocation. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"
#include "engine/base/threads.h"
#include "engine/engine.h"
#include "engine/quant.h"
#include "tests/lib/backend_fake.h"

#define MAX_REQS 64
#define MAX_TOKENS 80
#define PLENTY 1000000

/* What came of one request. */
struct outcome {
    int32_t tokens[MAX_TOKENS];
    int n;
    enum sq_finish finish; /* NONE: still open */
};

struct rig {
    struct sq_model *model;
    struct sq_engine *e;
    pthread_mutex_t lock;
    pthread_cond_t woken;
    bool is_woken;
    uint64_t n_wakes;
    struct outcome out[MAX_REQS]; /* by id */
    int n_open;
};

static void wake(void *ctx)
{
    struct rig *r = ctx;
    pthread_mutex_lock(&r->lock);
    r->is_woken = true;
    r->n_wakes++;
    pthread_cond_signal(&r->woken);
    pthread_mutex_unlock(&r->lock);
}

static const struct sq_engine_options roomy = {.max_sequences = 8,
                                               .max_step_tokens = 64,
                                               .max_context = 192,
                                               .max_queue = 100,
                                               .max_queue_tokens = 100000};

static void rig_open(struct rig *r, const struct sq_fake_options *fake, const struct sq_engine_options *o)
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

static void rig_start(struct rig *r, const struct sq_fake_options *fake, const struct sq_engine_options *o)
{
    rig_open(r, fake, o);
    assert_int_equal(sq_engine_start(r->e, NULL), 0);
}

static void rig_close(struct rig *r)
{
    assert_null(sq_engine_close(r->e));
    assert_null(sq_fake_model_free(r->model));
}

/* Books what has come. Every promise about a single event is checked here. */
static void take(struct rig *r)
{
    struct sq_event *first = sq_engine_take_events(r->e);
    for (struct sq_event *ev = first; ev; ev = (struct sq_event *)ev->node.next) {
        struct outcome *o = &r->out[ev->id % MAX_REQS];
        assert_int_equal(o->finish, SQ_FINISH_NONE);
        bool has_token = ev->finish == SQ_FINISH_NONE || ev->finish == SQ_FINISH_LENGTH;
        if (has_token) {
            assert_true(ev->token >= 0 && o->n < MAX_TOKENS);
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
static void wait_wake(struct rig *r)
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
    take(r);
}

static void wait_all(struct rig *r)
{
    while (r->n_open > 0)
        wait_wake(r);
}

static void pause_ms(long ms)
{
    struct timespec t = {.tv_nsec = ms * 1000000};
    (void)nanosleep(&t, NULL);
}

/* The i-th of a family of requests: all settings occur. ids is scratch of the caller. */
static struct sq_request request(int i, int32_t *ids)
{
    static const int32_t stops[] = {77};
    static const struct sq_token_bias bias[] = {{5, 3.0f}, {9, -3.0f}};
    struct sq_request r = {.id = (sq_req_id)i, .ids = ids, .n_ids = 1 + i * 13 % 90, .credit = PLENTY};
    for (int k = 0; k < r.n_ids; k++)
        ids[k] = (i * 31 + k * 7) % 250 + 3;
    r.sampling = (struct sq_sampling){.top_p = 1.0f, .repetition = 1.0f, .seed = (uint64_t)i, .max_tokens = 5 + i * 7 % 60};
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

static int put(struct rig *r, int i)
{
    int32_t ids[128];
    struct sq_request q = request(i, ids);
    int rc = sq_engine_submit(r->e, &q, 1, NULL);
    r->n_open += rc == 0;
    return rc;
}

static void check_idle(struct rig *r)
{
    /* the figures are published after the events of a step */
    struct sq_engine_stats s;
    for (int i = 0; i < 1000; i++) {
        sq_engine_stats(r->e, &s);
        if (s.running == 0 && s.waiting == 0 && s.kv_used == 0 && s.waiting_tokens == 0)
            return;
        pause_ms(1);
    }
    fail_msg("%d running, %d waiting, %d blocks used", s.running, s.waiting, s.kv_used);
}

static const struct sq_fake_options fake_model = {.vocab = 256, .context = 192, .eos = 2, .eos_one_in = 40};

/* --- same tokens in any company ------------------------------------------------------------------ */

static struct outcome solo[MAX_REQS];

static void make_solo(void)
{
    static bool is_made;
    struct rig r;
    if (is_made)
        return;
    rig_start(&r, &fake_model, &roomy);
    for (int i = 0; i < MAX_REQS; i++) {
        assert_int_equal(put(&r, i), 0);
        wait_all(&r);
        solo[i] = r.out[i];
        assert_true(solo[i].finish == SQ_FINISH_EOS || solo[i].finish == SQ_FINISH_LENGTH);
    }
    rig_close(&r);
    is_made = true;
}

static void assert_same(const struct outcome *a, const struct outcome *b)
{
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->tokens, b->tokens, (size_t)a->n * 4);
}

static void run_together(const struct sq_engine_options *o)
{
    struct rig r;
    rig_start(&r, &fake_model, o);
    for (int i = 0; i < MAX_REQS; i++)
        assert_int_equal(put(&r, i), 0);
    wait_all(&r);
    for (int i = 0; i < MAX_REQS; i++)
        assert_same(&r.out[i], &solo[i]);
    check_idle(&r);
    rig_close(&r);
}

static void company_and_chunks_change_no_token(void **state)
{
    (void)state;
    make_solo();
    static const int chunks[] = {1, 7, 64, 0};
    for (size_t i = 0; i < SQ_ARRAY_LEN(chunks); i++) {
        struct sq_engine_options o = roomy;
        o.max_chunk = chunks[i];
        o.max_sequences = 32;
        o.max_step_tokens = chunks[i] ? 48 : 10000;
        run_together(&o);
    }
}

static void a_cache_for_one_sequence_changes_no_token(void **state)
{
    (void)state;
    make_solo();
    struct sq_engine_options o = roomy;
    o.kv_blocks = 192 / SQ_KV_BLOCK;
    double before = sq_metric_get(SQ_M_PREEMPTIONS);
    run_together(&o);
    assert_true(sq_metric_get(SQ_M_PREEMPTIONS) > before);
}

/* --- submit --------------------------------------------------------------------------------------- */

static void bad_requests_are_refused(void **state)
{
    (void)state;
    struct rig r;
    struct sq_err err = {0};
    int32_t ids[200] = {0};
    rig_start(&r, &fake_model, &roomy);
    struct sq_request q = {.id = 1, .ids = ids, .n_ids = 190, .sampling = {.max_tokens = 3, .top_p = 1, .repetition = 1}, .credit = 9};
    assert_int_equal(sq_engine_submit(r.e, &q, 1, &err), -SQ_E_LIMIT);
    assert_non_null(strstr(err.msg, "192"));
    q.n_ids = 0;
    assert_int_equal(sq_engine_submit(r.e, &q, 1, &err), -SQ_E_LIMIT);
    q.n_ids = 2;
    ids[1] = 256;
    assert_int_equal(sq_engine_submit(r.e, &q, 1, &err), -SQ_E_INVAL);
    ids[1] = -1;
    assert_int_equal(sq_engine_submit(r.e, &q, 1, &err), -SQ_E_INVAL);
    rig_close(&r);
}

static void the_queue_is_bounded_and_groups_go_whole(void **state)
{
    (void)state;
    struct rig r;
    int32_t ids[4] = {5, 6, 7, 8};
    struct sq_engine_options o = roomy;
    o.max_sequences = 2;
    o.max_queue = 3;
    o.max_queue_tokens = 14;
    rig_open(&r, &fake_model, &o); /* not started: what is submitted waits */
    struct sq_request q[6];
    for (int i = 0; i < 6; i++)
        q[i] = (struct sq_request){
            .id = (sq_req_id)i, .ids = ids, .n_ids = 4, .sampling = {.max_tokens = 3, .top_p = 1, .repetition = 1}, .credit = 9};
    assert_int_equal(sq_engine_submit(r.e, q, 6, NULL), SQ_ENGINE_FULL); /* 3 + 2 that would run at once */
    struct sq_engine_stats s;
    sq_engine_stats(r.e, &s);
    assert_int_equal(s.waiting, 0);
    assert_int_equal(sq_engine_submit(r.e, q, 3, NULL), 0);
    assert_int_equal(sq_engine_submit(r.e, q + 3, 1, NULL), SQ_ENGINE_FULL); /* 16 tokens */
    q[3].n_ids = 2;
    assert_int_equal(sq_engine_submit(r.e, q + 3, 1, NULL), 0);
    sq_engine_stats(r.e, &s);
    assert_int_equal(s.waiting, 4);
    assert_int_equal(s.waiting_tokens, 14);
    sq_engine_drain(r.e);
    assert_int_equal(sq_engine_submit(r.e, q + 4, 1, NULL), SQ_ENGINE_DRAINING);
    r.n_open = 4; /* draining finishes what is there */
    assert_int_equal(sq_engine_start(r.e, NULL), 0);
    wait_all(&r);
    for (int i = 0; i < 4; i++)
        assert_true(r.out[i].finish == SQ_FINISH_LENGTH || r.out[i].finish == SQ_FINISH_EOS);
    check_idle(&r);
    rig_close(&r);
}

static void options_that_cannot_work_are_refused(void **state)
{
    (void)state;
    struct sq_err err = {0};
    struct sq_engine *e = NULL;
    struct sq_model *m = sq_fake_model_new(&fake_model);
    struct sq_engine_options o = roomy;
    o.model = m;
    o.max_context = 193;
    assert_int_equal(sq_engine_open(&o, &e, &err), -SQ_E_LIMIT);
    o.max_context = 192;
    o.kv_blocks = 5;
    assert_int_equal(sq_engine_open(&o, &e, &err), -SQ_E_LIMIT);
    assert_non_null(strstr(err.msg, "at most 160"));
    o.kv_blocks = 0;
    o.kv_bytes = 1000;
    assert_int_equal(sq_engine_open(&o, &e, &err), -SQ_E_LIMIT);
    o.kv_bytes = 0;
    o.max_sequences = 0;
    assert_int_equal(sq_engine_open(&o, &e, &err), -SQ_E_INVAL);
    assert_null(e);
    struct sq_fake_counts c;
    o.max_sequences = 3;
    assert_int_equal(sq_engine_open(&o, &e, &err), 0);
    struct sq_engine_stats s;
    sq_engine_stats(e, &s);
    assert_int_equal(s.kv_blocks, 18); /* 3 x 6 */
    assert_true(s.max_context == 192 && s.vocab == 256 && s.kv_bytes > 0);
    sq_fake_counts(m->be, &c);
    assert_true(c.n_steps == 1); /* warm already */
    sq_engine_close(e);
    sq_fake_model_free(m);
}

/* --- cancel and credit ------------------------------------------------------------------------------- */

static void cancel_works_in_every_state(void **state)
{
    (void)state;
    struct rig r;
    struct sq_fake_options f = fake_model;
    struct sq_engine_options o = roomy;
    f.step_delay_us = 2000;
    f.eos_one_in = 0;
    o.max_sequences = 2;
    o.max_chunk = 1; /* so that prefill lasts */
    rig_start(&r, &f, &o);
    int32_t ids[100];
    for (int i = 0; i < 100; i++)
        ids[i] = 3 + i;
    struct sq_request q = {.ids = ids, .n_ids = 100, .sampling = {.max_tokens = 60, .top_p = 1, .repetition = 1}, .credit = PLENTY};
    for (q.id = 0; q.id < 4; q.id++)
        assert_int_equal(sq_engine_submit(r.e, &q, 1, NULL), 0);
    q.n_ids = 1;
    r.n_open = 4;
    sq_engine_cancel(r.e, 3); /* waiting */
    sq_engine_cancel(r.e, 3);
    sq_engine_cancel(r.e, 12345); /* nobody */
    while (r.out[3].finish == SQ_FINISH_NONE)
        wait_wake(&r);
    pause_ms(10);
    sq_engine_cancel(r.e, 0); /* prefill */
    while (r.out[0].finish == SQ_FINISH_NONE)
        wait_wake(&r);
    assert_int_equal(r.out[0].n, 0);
    while (r.out[1].n < 3) /* decoding */
        wait_wake(&r);
    sq_engine_cancel(r.e, 1);
    sq_engine_cancel(r.e, 2);
    int n = r.out[1].n;
    wait_all(&r);
    assert_true(r.out[1].n <= n + 2);
    for (int i = 0; i < 4; i++)
        assert_int_equal(r.out[i].finish, SQ_FINISH_CANCELLED);
    sq_engine_cancel(r.e, 1); /* gone */
    sq_engine_credit(r.e, 1, 5);
    check_idle(&r);
    rig_close(&r);
}

static void credit_parks_and_unparks(void **state)
{
    (void)state;
    struct rig r;
    int32_t ids[128];
    make_solo();
    rig_start(&r, &fake_model, &roomy);
    struct sq_request q = request(22, ids), other;
    q.credit = 2;
    assert_true(solo[22].n > 6);
    assert_int_equal(sq_engine_submit(r.e, &q, 1, NULL), 0);
    r.n_open = 1;
    while (r.out[22].n < 2)
        wait_wake(&r);
    other = request(23, ids);
    assert_int_equal(sq_engine_submit(r.e, &other, 1, NULL), 0); /* others go on meanwhile */
    while (r.out[23].finish == SQ_FINISH_NONE)
        wait_wake(&r);
    r.n_open = 1;
    assert_int_equal(r.out[22].n, 2);
    sq_engine_credit(r.e, 22, 1);
    while (r.out[22].n < 3)
        wait_wake(&r);
    pause_ms(20);
    take(&r);
    assert_int_equal(r.out[22].n, 3);
    struct sq_engine_stats s;
    sq_engine_stats(r.e, &s);
    assert_int_equal(s.running, 1);
    sq_engine_credit(r.e, 22, PLENTY);
    sq_engine_credit(r.e, 22, 2147483647);
    wait_all(&r);
    assert_same(&r.out[22], &solo[22]);
    assert_same(&r.out[23], &solo[23]);
    rig_close(&r);
}

/* --- faults ----------------------------------------------------------------------------------------- */

/* After a device error: no token any more, every request one failed end, later ones refused. */
static bool run_with_fault(uint64_t k)
{
    struct rig r;
    rig_start(&r, &fake_model, &roomy);
    sq_fake_fail_at(r.model->be, k);
    for (int i = 1; i < 4; i++)
        if (put(&r, i))
            r.out[i].finish = SQ_FINISH_FAILED;
    wait_all(&r);
    struct sq_engine_stats s;
    sq_engine_stats(r.e, &s);
    bool any_failed = false;
    for (int i = 1; i < 4; i++) {
        const struct outcome *o = &r.out[i];
        assert_true(o->finish != SQ_FINISH_NONE && o->finish != SQ_FINISH_CANCELLED);
        assert_true(o->n <= solo[i].n && memcmp(o->tokens, solo[i].tokens, (size_t)o->n * 4) == 0);
        any_failed |= o->finish == SQ_FINISH_FAILED;
    }
    assert_int_equal(s.fault, any_failed);
    if (any_failed)
        assert_int_equal(put(&r, 9), SQ_ENGINE_FAULT);
    check_idle(&r);
    rig_close(&r);
    return any_failed;
}

static void a_fault_at_every_op_ends_all_requests(void **state)
{
    (void)state;
    make_solo();
    uint64_t k = 1;
    while (run_with_fault(k))
        k++;
    print_message("%llu ops, each failed once\n", (unsigned long long)k - 1);
    assert_true(k > 100);
}

static void a_fault_in_warm_up_fails_open(void **state)
{
    (void)state;
    int rc = -1;
    for (uint64_t k = 1; rc; k++) {
        struct sq_err err = {0};
        struct sq_engine *e;
        struct sq_engine_options o = roomy;
        o.model = sq_fake_model_new(&fake_model);
        sq_fake_fail_at(o.model->be, k);
        rc = sq_engine_open(&o, &e, &err);
        assert_true(rc == 0 || rc == -SQ_E_DEVICE);
        if (!rc)
            sq_engine_close(e);
        sq_fake_model_free(o.model); /* asserts that every object came back */
    }
}

static void a_nan_ends_its_own_sequence_only(void **state)
{
    (void)state;
    struct rig r;
    struct sq_fake_options f = fake_model;
    int32_t good[] = {5, 6}, bad[] = {5, 250};
    f.nan_id = 250;
    f.eos_one_in = 0;
    rig_start(&r, &f, &roomy);
    double before = sq_metric_get(SQ_M_NAN_LOGITS);
    /* greedy and sampled take different ways */
    for (int i = 0; i < 4; i++) {
        struct sq_request q = {.id = (sq_req_id)i,
                               .ids = i < 2 ? bad : good,
                               .n_ids = 2,
                               .sampling = {.max_tokens = 1, .top_p = 1, .repetition = 1, .temperature = (float)(i % 2)},
                               .credit = 9};
        assert_int_equal(sq_engine_submit(r.e, &q, 1, NULL), 0);
        r.n_open++;
    }
    wait_all(&r);
    for (int i = 0; i < 4; i++)
        assert_int_equal(r.out[i].finish, i < 2 ? SQ_FINISH_FAILED : SQ_FINISH_LENGTH);
    assert_true(sq_metric_get(SQ_M_NAN_LOGITS) == before + 2.0);
    struct sq_engine_stats s;
    sq_engine_stats(r.e, &s);
    assert_false(s.fault);
    rig_close(&r);
}

/* The whole life of an engine with two requests; every allocation is made to fail once, then from there on. */
static bool life(bool *ret_any_failed)
{
    struct sq_model *m = sq_fake_model_new(&fake_model);
    struct sq_engine *e = NULL;
    struct sq_engine_options o = roomy;
    int32_t ids[128];
    int open = 0, n_final = 0;
    o.model = m;
    *ret_any_failed = true;
    if (!m)
        return false;
    int rc = sq_engine_open(&o, &e, NULL);
    assert_true(rc == 0 || rc == -SQ_E_NOMEM);
    for (int i = 1; e && i < 3; i++) {
        struct sq_request q = request(i, ids);
        rc = sq_engine_submit(e, &q, 1, NULL);
        assert_true(rc == 0 || rc == -SQ_E_NOMEM);
        open += rc == 0;
    }
    bool failed = open < 2;
    if (e && sq_engine_start(e, NULL) == 0)
        while (n_final < open) {
            struct sq_event *first = sq_engine_take_events(e);
            for (struct sq_event *ev = first; ev; ev = (struct sq_event *)ev->node.next) {
                n_final += ev->finish != SQ_FINISH_NONE;
                failed |= ev->finish == SQ_FINISH_FAILED;
            }
            sq_events_free(first);
            if (!first)
                pause_ms(1);
        }
    sq_engine_close(e);
    sq_fake_model_free(m);
    *ret_any_failed = failed;
    return true;
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    for (int forever = 0; forever < 2; forever++) {
        bool failed = true;
        uint64_t k;
        for (k = 1; failed; k++) {
            sq_mem_fail_at(k, forever);
            life(&failed);
            sq_mem_fail_at(0, false);
        }
        assert_true(k > 40);
    }
}

/* --- threads ------------------------------------------------------------------------------------------ */

struct crowd {
    struct rig *r;
    int first;
};

static void *submit_cancel_credit(void *arg)
{
    struct crowd *c = arg;
    int32_t ids[128];
    for (int i = c->first; i < MAX_REQS; i += 4) {
        struct sq_request q = request(i, ids);
        q.credit = 1;
        if (sq_engine_submit(c->r->e, &q, 1, NULL))
            return (void *)1;
        for (int k = 0; k < 10; k++)
            sq_engine_credit(c->r->e, (sq_req_id)(i - k), 2);
        if (i % 5 == 0)
            sq_engine_cancel(c->r->e, (sq_req_id)i);
        struct sq_engine_stats s;
        sq_engine_stats(c->r->e, &s);
    }
    for (int i = 0; i < MAX_REQS; i++)
        sq_engine_credit(c->r->e, (sq_req_id)i, PLENTY);
    return NULL;
}

static void many_threads_at_once(void **state)
{
    (void)state;
    make_solo();
    struct rig r;
    struct crowd crowd[4];
    pthread_t threads[4];
    struct sq_engine_options o = roomy;
    o.kv_blocks = 14;
    rig_start(&r, &fake_model, &o);
    for (int i = 0; i < 4; i++) {
        crowd[i] = (struct crowd){&r, i};
        assert_int_equal(pthread_create(&threads[i], NULL, submit_cancel_credit, &crowd[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *bad;
        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
    for (int i = 0; i < MAX_REQS; i++)
        sq_engine_credit(r.e, (sq_req_id)i, PLENTY);
    r.n_open = MAX_REQS;
    wait_all(&r);
    for (int i = 0; i < MAX_REQS; i++)
        if (r.out[i].finish != SQ_FINISH_CANCELLED)
            assert_same(&r.out[i], &solo[i]);
        else
            assert_true(i % 5 == 0 && memcmp(r.out[i].tokens, solo[i].tokens, (size_t)r.out[i].n * 4) == 0);
    check_idle(&r);
    rig_close(&r);
}

static void closing_in_the_middle_leaks_nothing(void **state)
{
    (void)state;
    for (int n = 0; n < 20; n++) {
        struct rig r;
        rig_start(&r, &fake_model, &roomy);
        for (int i = 0; i < n; i++) {
            assert_int_equal(put(&r, i), 0);
            sq_engine_credit(r.e, (sq_req_id)i, 3);
        }
        rig_close(&r);
    }
}

static void one_wake_per_step_and_none_when_idle(void **state)
{
    (void)state;
    struct rig r;
    rig_start(&r, &fake_model, &roomy);
    for (int i = 1; i < 8; i++)
        assert_int_equal(put(&r, i), 0);
    wait_all(&r);
    struct sq_fake_counts c;
    sq_fake_counts(r.model->be, &c);
    assert_true(r.n_wakes <= c.n_steps);
    struct sq_engine_stats a, b;
    sq_engine_stats(r.e, &a);
    struct timespec cpu0, cpu1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu0);
    pause_ms(100);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu1);
    sq_engine_stats(r.e, &b);
    assert_int_equal(a.n_steps, b.n_steps);
    assert_true(b.tokens_per_s > 0.0 && b.last_step_ns > 0);
    double busy_s = (double)(cpu1.tv_sec - cpu0.tv_sec) + (double)(cpu1.tv_nsec - cpu0.tv_nsec) * 1e-9;
    assert_true(busy_s < 0.03);
    rig_close(&r);
}

static void the_books_balance(void **state)
{
    (void)state;
    make_solo();
    struct rig r;
    double gen = sq_metric_get(SQ_M_GEN_TOKENS), prompt = sq_metric_get(SQ_M_PROMPT_TOKENS);
    int want_gen = 0, want_prompt = 0;
    int32_t ids[128];
    struct sq_engine_options o = roomy;
    o.kv_blocks = 7; /* with preemptions, which must not count twice */
    rig_start(&r, &fake_model, &o);
    for (int i = 0; i < 32; i++) {
        assert_int_equal(put(&r, i), 0);
        want_gen += solo[i].n;
        want_prompt += request(i, ids).n_ids;
    }
    wait_all(&r);
    assert_true(sq_metric_get(SQ_M_GEN_TOKENS) - gen == want_gen);
    assert_true(sq_metric_get(SQ_M_PROMPT_TOKENS) - prompt == want_prompt);
    check_idle(&r);
    assert_true(sq_metric_get(SQ_M_KV_USED) == 0.0 && sq_metric_get(SQ_M_KV_FREE) == 7.0);
    rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(company_and_chunks_change_no_token),
        cmocka_unit_test(a_cache_for_one_sequence_changes_no_token),
        cmocka_unit_test(bad_requests_are_refused),
        cmocka_unit_test(the_queue_is_bounded_and_groups_go_whole),
        cmocka_unit_test(options_that_cannot_work_are_refused),
        cmocka_unit_test(cancel_works_in_every_state),
        cmocka_unit_test(credit_parks_and_unparks),
        cmocka_unit_test(a_fault_at_every_op_ends_all_requests),
        cmocka_unit_test(a_fault_in_warm_up_fails_open),
        cmocka_unit_test(a_nan_ends_its_own_sequence_only),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(many_threads_at_once),
        cmocka_unit_test(closing_in_the_middle_leaks_nothing),
        cmocka_unit_test(one_wake_per_step_and_none_when_idle),
        cmocka_unit_test(the_books_balance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
