/* The engine on the fake backend, with its thread: tokens equal to the solo run in any company,
 * bounds, credit, cancelling, figures. Faults: test_engine_faults.c. */
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

/* --- same tokens in any company --------------------------------------------------------------- */

static void run_together(const struct sq_engine_options *o)
{
    struct rig r;
    rig_start(&r, &rig_fake, o);
    for (int i = 0; i < RIG_REQS; i++)
        assert_int_equal(rig_put(&r, i), 0);
    rig_wait_all(&r);
    for (int i = 0; i < RIG_REQS; i++)
        rig_assert_same(&r.out[i], &rig_solo[i]);
    rig_check_idle(&r);
    rig_close(&r);
}

static void company_and_chunks_change_no_token(void **state)
{
    (void)state;
    rig_make_solo();
    static const int chunks[] = {1, 7, 64, 0};
    for (size_t i = 0; i < SQ_ARRAY_LEN(chunks); i++) {
        struct sq_engine_options o = rig_roomy;
        o.max_chunk = chunks[i];
        o.max_sequences = 32;
        o.max_step_tokens = chunks[i] ? 48 : 10000;
        run_together(&o);
    }
}

static void a_cache_for_one_sequence_changes_no_token(void **state)
{
    (void)state;
    rig_make_solo();
    struct sq_engine_options o = rig_roomy;
    o.kv_blocks = 192 / SQ_KV_BLOCK;
    double before = sq_metric_get(SQ_M_PREEMPTIONS);
    run_together(&o);
    assert_true(sq_metric_get(SQ_M_PREEMPTIONS) > before);
}

/* --- submit ----------------------------------------------------------------------------------- */

static void bad_requests_are_refused(void **state)
{
    (void)state;
    struct rig r;
    struct sq_err err = {0};
    int32_t ids[200] = {0};
    rig_start(&r, &rig_fake, &rig_roomy);
    struct sq_request q = {.id = 1,
                           .ids = ids,
                           .n_ids = 190,
                           .sampling = {.max_tokens = 3, .top_p = 1, .repetition = 1},
                           .credit = 9};
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
    int32_t ids[15] = {5, 6, 7, 8};
    struct sq_engine_options o = rig_roomy;
    o.max_sequences = 2;
    o.max_queue = 3;
    o.max_queue_tokens = 14;
    rig_open(&r, &rig_fake, &o); /* not started: what is submitted waits */
    struct sq_request q[6];
    for (int i = 0; i < 6; i++)
        q[i] = (struct sq_request){.id = (sq_req_id)i,
                                   .ids = ids,
                                   .n_ids = 4,
                                   .sampling = {.max_tokens = 3, .top_p = 1, .repetition = 1},
                                   .credit = 9};
    assert_int_equal(sq_engine_submit(r.e, q, 6, NULL),
                     SQ_ENGINE_FULL); /* 3 + 2 that would run at once */
    struct sq_engine_stats s;
    sq_engine_stats(r.e, &s);
    assert_int_equal(s.waiting, 0);
    q[0].n_ids = 15; /* more tokens than the queue may hold: an empty one takes it nevertheless */
    q[0].id = 9;
    assert_int_equal(sq_engine_submit(r.e, q, 1, NULL), 0);
    assert_int_equal(sq_engine_submit(r.e, q + 1, 1, NULL), SQ_ENGINE_FULL);
    rig_close(&r);
    rig_open(&r, &rig_fake, &o);
    q[0].n_ids = 4;
    q[0].id = 0;
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
    rig_wait_all(&r);
    for (int i = 0; i < 4; i++)
        assert_true(r.out[i].finish == SQ_FINISH_LENGTH || r.out[i].finish == SQ_FINISH_EOS);
    rig_check_idle(&r);
    rig_close(&r);
}

static void options_that_cannot_work_are_refused(void **state)
{
    (void)state;
    struct sq_err err = {0};
    struct sq_engine *e = NULL;
    struct sq_model *m = sq_fake_model_new(&rig_fake);
    struct sq_engine_options o = rig_roomy;
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

/* --- cancel and credit ------------------------------------------------------------------------ */

static void cancel_works_in_every_state(void **state)
{
    (void)state;
    struct rig r;
    struct sq_fake_options f = rig_fake;
    struct sq_engine_options o = rig_roomy;
    f.step_delay_us = 2000;
    f.eos_one_in = 0;
    o.max_sequences = 2;
    o.max_chunk = 1; /* so that prefill lasts */
    rig_start(&r, &f, &o);
    int32_t ids[100];
    for (int i = 0; i < 100; i++)
        ids[i] = 3 + i;
    struct sq_request q = {.ids = ids,
                           .n_ids = 100,
                           .sampling = {.max_tokens = 60, .top_p = 1, .repetition = 1},
                           .credit = RIG_PLENTY};
    for (q.id = 0; q.id < 4; q.id++)
        assert_int_equal(sq_engine_submit(r.e, &q, 1, NULL), 0);
    q.n_ids = 1;
    r.n_open = 4;
    sq_engine_cancel(r.e, 3); /* waiting */
    sq_engine_cancel(r.e, 3);
    sq_engine_cancel(r.e, 12345); /* nobody */
    while (r.out[3].finish == SQ_FINISH_NONE)
        rig_wait_wake(&r);
    rig_pause_ms(10);
    sq_engine_cancel(r.e, 0); /* prefill */
    while (r.out[0].finish == SQ_FINISH_NONE)
        rig_wait_wake(&r);
    assert_int_equal(r.out[0].n, 0);
    while (r.out[1].n < 3) /* decoding */
        rig_wait_wake(&r);
    sq_engine_cancel(r.e, 1);
    sq_engine_cancel(r.e, 2);
    int n = r.out[1].n;
    rig_wait_all(&r);
    assert_true(r.out[1].n <= n + 2);
    for (int i = 0; i < 4; i++)
        assert_int_equal(r.out[i].finish, SQ_FINISH_CANCELLED);
    sq_engine_cancel(r.e, 1); /* gone */
    sq_engine_credit(r.e, 1, 5);
    rig_check_idle(&r);
    rig_close(&r);
}

static void credit_parks_and_unparks(void **state)
{
    (void)state;
    struct rig r;
    int32_t ids[128];
    rig_make_solo();
    rig_start(&r, &rig_fake, &rig_roomy);
    struct sq_request q = rig_request(22, ids), other;
    q.credit = 2;
    assert_true(rig_solo[22].n > 6);
    assert_int_equal(sq_engine_submit(r.e, &q, 1, NULL), 0);
    r.n_open = 1;
    while (r.out[22].n < 2)
        rig_wait_wake(&r);
    other = rig_request(23, ids);
    assert_int_equal(sq_engine_submit(r.e, &other, 1, NULL), 0); /* others go on meanwhile */
    while (r.out[23].finish == SQ_FINISH_NONE)
        rig_wait_wake(&r);
    r.n_open = 1;
    assert_int_equal(r.out[22].n, 2);
    sq_engine_credit(r.e, 22, 1);
    while (r.out[22].n < 3)
        rig_wait_wake(&r);
    rig_pause_ms(20);
    rig_take(&r);
    assert_int_equal(r.out[22].n, 3);
    struct sq_engine_stats s;
    sq_engine_stats(r.e, &s);
    assert_int_equal(s.running, 1);
    sq_engine_credit(r.e, 22, RIG_PLENTY);
    sq_engine_credit(r.e, 22, 2147483647);
    rig_wait_all(&r);
    rig_assert_same(&r.out[22], &rig_solo[22]);
    rig_assert_same(&r.out[23], &rig_solo[23]);
    rig_close(&r);
}

/* --- steps and figures ------------------------------------------------------------------------ */

static void one_wake_per_step_and_none_when_idle(void **state)
{
    (void)state;
    struct rig r;
    rig_start(&r, &rig_fake, &rig_roomy);
    for (int i = 1; i < 8; i++)
        assert_int_equal(rig_put(&r, i), 0);
    rig_wait_all(&r);
    struct sq_fake_counts c;
    sq_fake_counts(r.model->be, &c);
    assert_true(r.n_wakes <= c.n_steps);
    struct sq_engine_stats a, b;
    sq_engine_stats(r.e, &a);
    struct timespec cpu0, cpu1;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu0);
    rig_pause_ms(200);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu1);
    sq_engine_stats(r.e, &b);
    assert_int_equal(a.n_steps, b.n_steps);
    assert_true(b.tokens_per_s > 0.0 && b.last_step_ns > 0);
    double busy_s =
        (double)(cpu1.tv_sec - cpu0.tv_sec) + (double)(cpu1.tv_nsec - cpu0.tv_nsec) * 1e-9;
    assert_true(busy_s < 0.005); /* even an eighth of a processor spinning would be 0.025 */
    rig_close(&r);
}

static void the_books_balance(void **state)
{
    (void)state;
    rig_make_solo();
    struct rig r;
    double gen = sq_metric_get(SQ_M_GEN_TOKENS), prompt = sq_metric_get(SQ_M_PROMPT_TOKENS);
    int want_gen = 0, want_prompt = 0;
    int32_t ids[128];
    struct sq_engine_options o = rig_roomy;
    o.kv_blocks = 7; /* with preemptions, which must not count twice */
    rig_start(&r, &rig_fake, &o);
    for (int i = 0; i < 32; i++) {
        assert_int_equal(rig_put(&r, i), 0);
        want_gen += rig_solo[i].n;
        want_prompt += rig_request(i, ids).n_ids;
    }
    rig_wait_all(&r);
    assert_true(sq_metric_get(SQ_M_GEN_TOKENS) - gen == want_gen);
    assert_true(sq_metric_get(SQ_M_PROMPT_TOKENS) - prompt == want_prompt);
    rig_check_idle(&r);
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
        cmocka_unit_test(one_wake_per_step_and_none_when_idle),
        cmocka_unit_test(the_books_balance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
