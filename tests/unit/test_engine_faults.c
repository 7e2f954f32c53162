/* The engine when things go wrong: a device error at every op, a failing allocation at every place,
 * NaN, many threads at once, an end in the middle. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"
#include "engine/quant.h"
#include "tests/lib/engine_rig.h"

/* --- faults ----------------------------------------------------------------------------------- */

/* After a device error: no token any more, every request one failed end, later ones refused. */
static bool run_with_fault(uint64_t k)
{
    struct rig r;
    rig_start(&r, &rig_fake, &rig_roomy);
    sq_fake_fail_at(r.model->be, k);
    for (int i = 1; i < 4; i++)
        if (rig_put(&r, i))
            r.out[i].finish = SQ_FINISH_FAILED;
    rig_wait_all(&r);
    struct sq_engine_stats s;
    sq_engine_stats(r.e, &s);
    bool any_failed = false;
    for (int i = 1; i < 4; i++) {
        const struct outcome *o = &r.out[i];
        assert_true(o->finish != SQ_FINISH_NONE && o->finish != SQ_FINISH_CANCELLED);
        assert_true(o->n <= rig_solo[i].n &&
                    memcmp(o->tokens, rig_solo[i].tokens, (size_t)o->n * 4) == 0);
        any_failed |= o->finish == SQ_FINISH_FAILED;
    }
    assert_int_equal(s.fault, any_failed);
    if (any_failed)
        assert_int_equal(rig_put(&r, 9), SQ_ENGINE_FAULT);
    rig_check_idle(&r);
    rig_close(&r);
    return any_failed;
}

static void a_fault_at_every_op_ends_all_requests(void **state)
{
    (void)state;
    rig_make_solo();
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
        struct sq_engine_options o = rig_roomy;
        o.model = sq_fake_model_new(&rig_fake);
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
    struct sq_fake_options f = rig_fake;
    int32_t good[] = {5, 6}, bad[] = {5, 250};
    f.nan_id = 250;
    f.eos_one_in = 0;
    rig_start(&r, &f, &rig_roomy);
    double before = sq_metric_get(SQ_M_NAN_LOGITS);
    /* greedy and sampled take different ways */
    for (int i = 0; i < 4; i++) {
        struct sq_request q = {.id = (sq_req_id)i,
                               .ids = i < 2 ? bad : good,
                               .n_ids = 2,
                               .sampling = {.max_tokens = 1,
                                            .top_p = 1,
                                            .repetition = 1,
                                            .temperature = (float)(i % 2)},
                               .credit = 9};
        assert_int_equal(sq_engine_submit(r.e, &q, 1, NULL), 0);
        r.n_open++;
    }
    rig_wait_all(&r);
    for (int i = 0; i < 4; i++)
        assert_int_equal(r.out[i].finish, i < 2 ? SQ_FINISH_FAILED : SQ_FINISH_LENGTH);
    assert_true(sq_metric_get(SQ_M_NAN_LOGITS) == before + 2.0);
    struct sq_engine_stats s;
    sq_engine_stats(r.e, &s);
    assert_false(s.fault);
    rig_close(&r);
}

/* The whole life of an engine with two requests; every allocation is made to fail once, then from
 * there on. */
static bool life(bool *ret_any_failed)
{
    struct sq_model *m = sq_fake_model_new(&rig_fake);
    struct sq_engine *e = NULL;
    struct sq_engine_options o = rig_roomy;
    int32_t ids[128];
    int open = 0, n_final = 0;
    o.model = m;
    *ret_any_failed = true;
    if (!m)
        return false;
    int rc = sq_engine_open(&o, &e, NULL);
    assert_true(rc == 0 || rc == -SQ_E_NOMEM);
    for (int i = 1; e && i < 3; i++) {
        struct sq_request q = rig_request(i, ids);
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
                rig_pause_ms(1);
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

/* --- threads ---------------------------------------------------------------------------------- */

struct crowd {
    struct rig *r;
    int first;
};

static void *submit_cancel_credit(void *arg)
{
    struct crowd *c = arg;
    int32_t ids[128];
    for (int i = c->first; i < RIG_REQS; i += 4) {
        struct sq_request q = rig_request(i, ids);
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
    for (int i = 0; i < RIG_REQS; i++)
        sq_engine_credit(c->r->e, (sq_req_id)i, RIG_PLENTY);
    return NULL;
}

static void many_threads_at_once(void **state)
{
    (void)state;
    rig_make_solo();
    struct rig r;
    struct crowd crowd[4];
    pthread_t threads[4];
    struct sq_engine_options o = rig_roomy;
    o.kv_blocks = 14;
    rig_start(&r, &rig_fake, &o);
    for (int i = 0; i < 4; i++) {
        crowd[i] = (struct crowd){&r, i};
        assert_int_equal(pthread_create(&threads[i], NULL, submit_cancel_credit, &crowd[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *bad;
        pthread_join(threads[i], &bad);
        assert_null(bad);
    }
    for (int i = 0; i < RIG_REQS; i++)
        sq_engine_credit(r.e, (sq_req_id)i, RIG_PLENTY);
    r.n_open = RIG_REQS;
    rig_wait_all(&r);
    for (int i = 0; i < RIG_REQS; i++)
        if (r.out[i].finish != SQ_FINISH_CANCELLED)
            rig_assert_same(&r.out[i], &rig_solo[i]);
        else
            assert_true(i % 5 == 0 &&
                        memcmp(r.out[i].tokens, rig_solo[i].tokens, (size_t)r.out[i].n * 4) == 0);
    rig_check_idle(&r);
    rig_close(&r);
}

static void closing_in_the_middle_leaks_nothing(void **state)
{
    (void)state;
    for (int n = 0; n < 20; n++) {
        struct rig r;
        rig_start(&r, &rig_fake, &rig_roomy);
        for (int i = 0; i < n; i++) {
            assert_int_equal(rig_put(&r, i), 0);
            sq_engine_credit(r.e, (sq_req_id)i, 3);
        }
        rig_close(&r);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fault_at_every_op_ends_all_requests),
        cmocka_unit_test(a_fault_in_warm_up_fails_open),
        cmocka_unit_test(a_nan_ends_its_own_sequence_only),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(many_threads_at_once),
        cmocka_unit_test(closing_in_the_middle_leaks_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
