/* Fork-join: every item once, whatever the threads, the grain, and the time between regions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "engine/base/check.h"
#include "engine/base/threads.h"
#include "engine/cpu/pool.h"

#define MAX_ITEMS 1000
#define MAX_THREADS 5

struct tally {
    unsigned char hits[MAX_ITEMS]; /* plain: two threads on one item are a race that TSan sees */
    long by_thread[MAX_THREADS];
    size_t n, grain;
};

static void count(void *arg, size_t i0, size_t i1, int thread)
{
    struct tally *t = arg;
    SQ_ASSERT(i0 < i1 && i1 <= t->n && (i1 - i0 == t->grain || i1 == t->n));
    for (size_t i = i0; i < i1; i++)
        t->hits[i]++;
    t->by_thread[thread] += (long)(i1 - i0);
}

static void run_once(struct sq_pool *p, size_t n, size_t grain)
{
    struct tally t = {.n = n, .grain = grain};
    long sum = 0;
    sq_pool_run(p, n, grain, count, &t);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(t.hits[i], 1);
    for (int i = 0; i < MAX_THREADS; i++)
        sum += t.by_thread[i];
    assert_int_equal(sum, n);
}

static void pause_us(long us)
{
    const struct timespec t = {.tv_nsec = us * 1000};
    nanosleep(&t, NULL);
}

static struct sq_pool *pool_of(int n_threads)
{
    struct sq_err err = {0};
    struct sq_pool *p;
    assert_int_equal(sq_pool_new(n_threads, &p, &err), 0);
    assert_int_equal(sq_pool_n_threads(p), n_threads);
    return p;
}

static void every_item_once(void **state)
{
    static const size_t ns[] = {0, 1, 2, 3, 17, 64, 1000}, grains[] = {1, 2, 7, 64, 5000};
    (void)state;
    for (int threads = 1; threads <= MAX_THREADS; threads++) {
        struct sq_pool *p = pool_of(threads);
        for (size_t i = 0; i < SQ_ARRAY_LEN(ns); i++)
            for (size_t j = 0; j < SQ_ARRAY_LEN(grains); j++)
                run_once(p, ns[i], grains[j]); /* outside a step */
        sq_pool_step_begin(p);
        for (size_t i = 0; i < SQ_ARRAY_LEN(ns); i++)
            for (size_t j = 0; j < SQ_ARRAY_LEN(grains); j++)
                run_once(p, ns[i], grains[j]);
        sq_pool_step_end(p);
        sq_pool_free(p);
    }
}

/* Gaps below, around and beyond a worker's patience, in and out of steps. */
static void regions_after_gaps(void **state)
{
    static const long gaps_us[] = {0, 1, 50, 180, 220, 400, 3000};
    struct sq_pool *p = pool_of(3);
    (void)state;
    for (int round = 0; round < 40; round++) {
        if (round % 3)
            sq_pool_step_begin(p);
        for (size_t i = 0; i < SQ_ARRAY_LEN(gaps_us); i++) {
            if (gaps_us[i])
                pause_us(gaps_us[i]);
            run_once(p, 100, 3);
        }
        if (round % 3)
            sq_pool_step_end(p);
    }
    sq_pool_free(p);
}

static void many_short_regions(void **state)
{
    struct sq_pool *p = pool_of(2);
    const int n = 20000;
    (void)state;
    sq_pool_step_begin(p);
    const uint64_t t0 = sq_now_ns();
    for (int i = 0; i < n; i++) {
        struct tally t = {.n = 2, .grain = 1};
        sq_pool_run(p, 2, 1, count, &t);
        assert_int_equal(t.hits[0] + t.hits[1], 2);
    }
    print_message("%.0f ns for a region\n", (double)(sq_now_ns() - t0) / n);
    sq_pool_step_end(p);
    sq_pool_free(p);
}

static void comes_and_goes(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct sq_pool *p = pool_of(1 + i % MAX_THREADS);
        if (i % 2)
            sq_pool_step_begin(p);
        sq_pool_free(p); /* also in the middle of a step */
    }
    sq_pool_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_once),
        cmocka_unit_test(regions_after_gaps),
        cmocka_unit_test(many_short_regions),
        cmocka_unit_test(comes_and_goes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
