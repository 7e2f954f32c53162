/* engine/base: messages, checked numbers, memory and its fail-at-k hook, mailbox, lists, metrics. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <string.h>

#include "engine/base/err.h"
#include "engine/base/list.h"
#include "engine/base/mbox.h"
#include "engine/base/mem.h"
#include "engine/base/metrics.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"

static void test_messages(void **state)
{
    (void)state;
    struct sq_err err = {0};
    assert_int_equal(sq_fail(&err, SQ_E_IO, "file '%s'", "a\nb\x1b[0m"), -SQ_E_IO);
    assert_string_equal(err.msg, "file 'a?b?[0m'");
    assert_int_equal(sq_fail_in(&err, "model %d", 7), -SQ_E_IO);
    assert_string_equal(err.msg, "model 7: file 'a?b?[0m'");
    char lots[2000];
    memset(lots, 'x', sizeof lots - 1);
    lots[sizeof lots - 1] = '\0';
    sq_fail(&err, SQ_E_IO, "%s", lots);
    sq_fail_in(&err, "%s", lots);
    assert_int_equal(strlen(err.msg), sizeof err.msg - 1);
    assert_int_equal(sq_fail(NULL, SQ_E_NOMEM, "x"), -SQ_E_NOMEM);
    assert_string_equal(sq_code_text(-SQ_E_CONFIG), "configuration error");
    assert_string_equal(sq_code_text(9999), "unknown error");
}

static void test_numbers(void **state)
{
    (void)state;
    size_t n;
    assert_false(sq_mul_size(SIZE_MAX, 2, &n));
    assert_false(sq_add_size(SIZE_MAX, 1, &n));
    assert_int_equal(sq_round_up(33, 32), 64);
    int64_t i = 5;
    assert_true(sq_parse_i64("-12", -20, 0, &i) && i == -12);
    static const char *const bad_ints[] = {
        "", " 1", "+1", "1 ", "0x10", "21", "-21", "9223372036854775808", "1.0"};
    for (size_t k = 0; k < sizeof bad_ints / sizeof *bad_ints; k++)
        assert_false(sq_parse_i64(bad_ints[k], -20, 20, &i));
    assert_int_equal(i, -12); /* untouched on failure */
    double d;
    assert_true(sq_parse_double("1e-3", 0, 1, &d) && d == 1e-3);
    static const char *const bad_doubles[] = {"", "nan", "inf", "1e400", "0x1p3", "1,5", " 1", "2"};
    for (size_t k = 0; k < sizeof bad_doubles / sizeof *bad_doubles; k++)
        assert_false(sq_parse_double(bad_doubles[k], 0, 1, &d));
    uint64_t u;
    assert_true(sq_parse_bytes("64MiB", &u) && u == 64u << 20);
    assert_false(sq_parse_bytes("64MB", &u));
    assert_false(sq_parse_bytes("99999999999999TiB", &u));
    assert_true(sq_parse_ms("250ms", &u) && u == 250);
    assert_true(sq_parse_ms("3", &u) && u == 3000);
    assert_false(sq_parse_ms("-1s", &u));
}

static void test_memory(void **state)
{
    (void)state;
    assert_null(sq_calloc(SIZE_MAX, 2));
    sq_mem_fail_at(2, false);
    void *a = sq_malloc(1), *b = sq_malloc(1), *c = sq_malloc(1);
    assert_true(a && !b && c);
    sq_free(a);
    sq_free(c);
    sq_mem_fail_at(1, true);
    assert_null(sq_malloc(1));
    assert_null(sq_strdup("x"));
    sq_mem_fail_at(0, false);

    struct sq_arena arena;
    sq_arena_init(&arena, 10000);
    char *p = sq_arena_alloc(&arena, 5000);
    assert_non_null(p);
    for (int k = 0; k < 5000; k++)
        assert_int_equal(p[k], 0);
    assert_null(sq_arena_alloc(&arena, 5001));
    assert_null(sq_arena_alloc(&arena, SIZE_MAX - 3));
    assert_non_null(sq_arena_alloc(&arena, 4000));
    sq_arena_done(&arena);
}

struct item {
    struct sq_node node;
    int from, n;
};

struct sender {
    struct sq_mbox *box;
    int from;
};

#define PER_SENDER 2000

static void *send_items(void *arg)
{
    struct sender *s = arg;
    for (int n = 0; n < PER_SENDER; n++) {
        struct item *it = sq_new(struct item);
        it->from = s->from;
        it->n = n;
        if (!sq_mbox_push(s->box, &it->node))
            sq_free(it);
    }
    return NULL;
}

/* Two senders: nothing is lost, and each sender's order is kept. */
static void test_mailbox(void **state)
{
    (void)state;
    struct sq_mbox box;
    struct sq_err err;
    sq_mbox_init(&box);
    assert_null(sq_mbox_wait(&box, 1));
    pthread_t threads[2];
    struct sender senders[2] = {{&box, 0}, {&box, 1}};
    for (int i = 0; i < 2; i++)
        assert_int_equal(sq_thread_start(&threads[i], "sender", send_items, &senders[i], &err), 0);
    int next[2] = {0, 0};
    while (next[0] + next[1] < 2 * PER_SENDER) {
        struct sq_node *chain = sq_mbox_wait(&box, 1000);
        assert_non_null(chain);
        while (chain) {
            struct item *it = (struct item *)chain;
            chain = chain->next;
            assert_int_equal(it->n, next[it->from]);
            next[it->from]++;
            sq_free(it);
        }
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    sq_mbox_close(&box);
    struct item late;
    assert_false(sq_mbox_push(&box, &late.node));
    assert_null(sq_mbox_wait(&box, 10000)); /* closed: returns at once */
    sq_mbox_done(&box);
}

static void test_list(void **state)
{
    (void)state;
    struct sq_list head, a, b, c;
    sq_list_init(&head);
    assert_true(sq_list_empty(&head));
    sq_list_append(&head, &b);
    sq_list_append(&head, &c);
    sq_list_prepend(&head, &a);
    struct sq_list *want[] = {&a, &b, &c};
    int n = 0;
    sq_list_each (it, &head) {
        assert_ptr_equal(it, want[n]);
        n++;
        sq_list_remove(it); /* removal while walking */
        sq_list_remove(it); /* and twice */
    }
    assert_int_equal(n, 3);
    assert_true(sq_list_empty(&head));
}

static void test_metrics(void **state)
{
    (void)state;
    sq_metrics_reset();
    sq_metric_add(SQ_M_REQ_ACCEPTED, 3);
    sq_metric_set(SQ_M_REQ_RUNNING, 2.5);
    assert_true(sq_metric_get(SQ_M_REQ_ACCEPTED) == 3);
    assert_true(sq_metric_row(SQ_M_REQ_RUNNING).value == 2.5);
    static const double seen[] = {0.001, 0.0011, 1e9, -1, 0.0 / 1.0};
    for (size_t i = 0; i < 5; i++)
        sq_metric_observe(SQ_H_TTFT, seen[i]);
    struct sq_histogram_row h;
    sq_histogram_row(SQ_H_TTFT, &h);
    assert_int_equal(h.counts[0], 3); /* an edge belongs to its own bucket */
    assert_int_equal(h.counts[1], 1);
    assert_int_equal(h.counts[h.n_edges], 1);
    /* families stand together and edges ascend: the text format demands both */
    for (int i = 1; i < SQ_M_MAX; i++)
        for (int j = 0; j + 1 < i; j++)
            if (strcmp(sq_metric_row((enum sq_metric)i).family,
                       sq_metric_row((enum sq_metric)j).family) == 0)
                assert_string_equal(sq_metric_row((enum sq_metric)i).family,
                                    sq_metric_row((enum sq_metric)(i - 1)).family);
    for (int i = 0; i < SQ_H_MAX; i++) {
        sq_histogram_row((enum sq_histogram)i, &h);
        assert_true(h.n_edges < sizeof h.counts / sizeof *h.counts);
        for (size_t k = 1; k < h.n_edges; k++)
            assert_true(h.edges[k] > h.edges[k - 1]);
    }
    sq_metrics_reset();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages), cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_memory),   cmocka_unit_test(test_mailbox),
        cmocka_unit_test(test_list),     cmocka_unit_test(test_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
