/* The sampler: each setting against a plain reference that sorts, frequencies against the
 * distribution it gives, and exact determinism. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/mem.h"
#include "engine/run/sample.h"

#define V 37 /* not a multiple of the vector length */
#define N_DRAWS 40000

static const struct sq_sampling neutral = {
    .temperature = 1.0f, .top_p = 1.0f, .repetition = 1.0f, .max_tokens = 1000000};

static double noise(uint64_t i)
{
    return sq_sample_uniform(4242, i);
}

static void random_logits(float *l, uint64_t seed)
{
    for (int i = 0; i < V; i++)
        l[i] = (float)(noise(seed * V + (uint64_t)i) * 8.0 - 4.0);
}

/* --- the reference ---------------------------------------------------------------------------- */

struct ranked {
    int id;
    double l, p;
};

static int by_rank(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->l != y->l)
        return x->l > y->l ? -1 : 1;
    return x->id - y->id;
}

static void normalise(struct ranked *r)
{
    double sum = 0.0;
    for (int i = 0; i < V; i++)
        sum += r[i].p;
    for (int i = 0; i < V; i++)
        r[i].p /= sum;
}

/* p[id]: the distribution that header steps 4 to 8 describe, by sorting, in double. */
static void reference(const float *l, const struct sq_sampling *s, double *p)
{
    struct ranked r[V];
    for (int i = 0; i < V; i++)
        r[i] = (struct ranked){i, (double)l[i], exp((double)l[i] / (double)s->temperature)};
    qsort(r, V, sizeof *r, by_rank);
    for (int i = V - 1; i >= 0; i--)
        r[i].p = r[i].p < (double)s->min_p * r[0].p ? 0.0 : r[i].p;
    for (int i = s->top_k > 0 ? s->top_k : V; i < V; i++)
        r[i].p = 0.0;
    normalise(r);
    double got = 0.0;
    for (int i = 0; i < V; i++) {
        double mine = r[i].p;
        if (i > 0 && got >= (double)s->top_p)
            r[i].p = 0.0;
        got += mine;
    }
    normalise(r);
    for (int i = 0; i < V; i++)
        p[r[i].id] = r[i].p;
}

/* Draws N_DRAWS tokens with seeds 0, 1, ...: nothing outside the reference's set, every frequency
 * within five standard deviations. */
static void check_distribution(struct sq_sampler *smp, const float *l, struct sq_sampling s)
{
    int32_t prompt = 0;
    struct sq_sample_in in = {.sampling = &s, .ids = &prompt, .n_prompt = 1, .n_ids = 1};
    int count[V] = {0};
    double p[V];
    reference(l, &s, p);
    for (int i = 0; i < N_DRAWS; i++) {
        s.seed = (uint64_t)i;
        int32_t id = sq_sample(smp, &in, l);
        assert_in_range(id, 0, V - 1);
        count[id]++;
    }
    for (int i = 0; i < V; i++) {
        double mean = p[i] * N_DRAWS, dev = sqrt(mean * (1.0 - p[i]));
        assert_true(p[i] > 0.0 || count[i] == 0);
        assert_true(fabs(count[i] - mean) <= 5.0 * dev + 1.0);
    }
}

static void frequencies_follow_the_distribution(void **state)
{
    static const struct {
        float temperature, top_p, min_p;
        int top_k;
    } cases[] = {
        {1.0f, 1.0f, 0.0f, 0},   {0.5f, 1.0f, 0.0f, 0},   {2.0f, 1.0f, 0.0f, 0},
        {1.0f, 1.0f, 0.0f, 5},   {1.0f, 0.7f, 0.0f, 0},   {1.0f, 0.2f, 0.0f, 0},
        {1.0f, 0.999f, 0.0f, 0}, {1.0f, 1.0f, 0.1f, 0},   {0.8f, 0.9f, 0.05f, 10},
        {1.5f, 0.5f, 0.2f, 3},   {1.0f, 0.6f, 0.3f, 0},   {1.0f, 1.0f, 0.4f, 4},
        {1.0f, 1.0f, 0.0f, V},   {300.0f, 0.5f, 0.0f, 0}, {300.0f, 0.9f, 0.0f, 30},
        {1.0f, 0.01f, 0.0f, 0},  {0.05f, 1.0f, 0.0f, 0},
    };
    (void)state;
    struct sq_sampler *smp = sq_sampler_new(V);
    float l[V];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct sq_sampling s = neutral;
        s.temperature = cases[i].temperature;
        s.top_p = cases[i].top_p;
        s.min_p = cases[i].min_p;
        s.top_k = cases[i].top_k;
        random_logits(l, i);
        check_distribution(smp, l, s);
    }
    sq_sampler_free(smp);
}

static void uniform_numbers_are_uniform_and_fixed(void **state)
{
    (void)state;
    int bins[64] = {0};
    double sum = 0.0, pairs = 0.0;
    for (uint64_t i = 0; i < 64000; i++) {
        /* half of them along one seed, half across seeds */
        double u = i % 2 ? sq_sample_uniform(5, i) : sq_sample_uniform(i, 3);
        assert_true(u >= 0.0 && u < 1.0);
        bins[(int)(u * 64.0)]++;
        sum += u;
        pairs += (u - 0.5) * (sq_sample_uniform(5, i + 1) - 0.5);
    }
    double chi2 = 0.0;
    for (int i = 0; i < 64; i++)
        chi2 += (bins[i] - 1000.0) * (bins[i] - 1000.0) / 1000.0;
    assert_true(chi2 > 25.0 && chi2 < 120.0);
    assert_true(fabs(sum / 64000.0 - 0.5) < 0.005);
    assert_true(fabs(pairs / 64000.0) < 0.002);
    /* pinned: a change here would change every client's seeded output */
    assert_true(sq_sample_uniform(0, 0) == 0x1.4e0dba5e9a32fp-1);
    assert_true(sq_sample_uniform(1, 0) == 0x1.7906ac21d0e58p-2);
    assert_true(sq_sample_uniform(12345, 678) == 0x1.b191728d0026ap-1);
}

/* --- greedy, ties, penalties ------------------------------------------------------------------ */

static int32_t pick(const float *l, const struct sq_sampling *s, const int32_t *ids, int n_prompt,
                    int n_ids)
{
    static const int32_t eos[] = {2};
    struct sq_sampler *smp = sq_sampler_new(V);
    struct sq_sample_in in = {
        .sampling = s, .ids = ids, .n_prompt = n_prompt, .n_ids = n_ids, .eos = eos, .n_eos = 1};
    int32_t id = sq_sample(smp, &in, l), again = sq_sample(smp, &in, l);
    assert_int_equal(id, again); /* no scratch is left behind */
    sq_sampler_free(smp);
    return id;
}

static void equals_go_to_the_lowest_id(void **state)
{
    (void)state;
    float l[V] = {0};
    int32_t prompt[] = {0};
    l[9] = l[20] = l[5] = 3.0f;
    struct sq_sampling greedy = neutral, k1 = neutral, p0 = neutral, k2 = neutral;
    greedy.temperature = 0.0f;
    k1.top_k = 1;
    p0.top_p = 0.0f;
    k2.top_k = 2;
    struct sq_sampling half = neutral;
    half.top_p = 0.5f;
    assert_int_equal(pick(l, &greedy, prompt, 1, 1), 5);
    for (uint64_t seed = 0; seed < 50; seed++) {
        k1.seed = p0.seed = k2.seed = seed;
        assert_int_equal(pick(l, &k1, prompt, 1, 1), 5);
        assert_int_equal(pick(l, &p0, prompt, 1, 1), 5);
        int32_t id = pick(l, &k2, prompt, 1, 1);
        assert_true(id == 5 || id == 9);
    }
    for (int i = 0; i < V; i++)
        l[i] = -1.0f;
    for (half.seed = 0; half.seed < 200; half.seed++) /* 37 equals: 19 of them are half */
        assert_in_range(pick(l, &half, prompt, 1, 1), 0, 18);
}

static void penalties_hit_what_they_should(void **state)
{
    (void)state;
    float l[V] = {0};
    struct sq_sampling s = neutral;
    s.temperature = 0.0f;
    const int32_t ids[] = {3, 3, 4, 4, 6}; /* prompt: 3 3; generated: 4 4 6 */
    l[3] = 4.0f;
    l[4] = 3.5f;
    l[6] = 3.0f;
    l[7] = 1.9f;
    assert_int_equal(pick(l, &s, ids, 2, 5), 3);
    s.repetition = 2.0f; /* 2, 1.75, 1.5 */
    assert_int_equal(pick(l, &s, ids, 2, 5), 3);
    s.repetition = 2.2f; /* 1.82, each once however often it stands there */
    assert_int_equal(pick(l, &s, ids, 2, 5), 7);
    s.repetition = 1.0f;
    l[3] = 0.0f;        /* generated ones only from here on: 4 has 3.5, 6 has 3 */
    s.frequency = 0.4f; /* 2.7, 2.6 */
    assert_int_equal(pick(l, &s, ids, 2, 5), 4);
    s.frequency = 0.6f; /* 2.3, 2.4 */
    assert_int_equal(pick(l, &s, ids, 2, 5), 6);
    s.frequency = 0.0f;
    s.presence = 1.5f; /* 2, 1.5, and 7 keeps 1.9 */
    assert_int_equal(pick(l, &s, ids, 2, 5), 4);
    s.presence = 1.7f;
    assert_int_equal(pick(l, &s, ids, 2, 5), 7);
    /* a negative logit is made more negative by a repetition penalty */
    for (int i = 0; i < V; i++)
        l[i] = -5.0f;
    l[3] = -1.0f;
    l[8] = -1.5f;
    s = neutral;
    s.temperature = 0.0f;
    s.repetition = 2.0f;
    assert_int_equal(pick(l, &s, ids, 2, 5), 8);
}

static void bias_and_min_tokens(void **state)
{
    (void)state;
    float l[V] = {0};
    const int32_t ids[] = {1, 1, 1}, stops[] = {11, 12};
    const struct sq_token_bias bias[] = {{30, 100.0f}, {2, -100.0f}};
    struct sq_sampling s = neutral;
    s.temperature = 0.0f;
    l[2] = 9.0f; /* the model's eos */
    l[11] = 8.0f;
    l[12] = 7.0f;
    l[20] = 6.0f;
    s.stop_ids = stops;
    s.n_stop_ids = 2;
    assert_int_equal(pick(l, &s, ids, 1, 3), 2);
    s.min_tokens = 3; /* two are there */
    assert_int_equal(pick(l, &s, ids, 1, 3), 20);
    s.min_tokens = 2;
    assert_int_equal(pick(l, &s, ids, 1, 3), 2);
    s.min_tokens = 3;
    s.ignore_eos = true; /* then eos is a token like others */
    assert_int_equal(pick(l, &s, ids, 1, 3), 2);
    s.bias = bias;
    s.n_bias = 2;
    assert_int_equal(pick(l, &s, ids, 1, 3), 30);
}

static void only_plain_requests_leave_logits_on_the_device(void **state)
{
    (void)state;
    const int32_t ids[] = {1, 1}, eos[] = {2}, stops[] = {3};
    const struct sq_token_bias bias = {1, 1.0f};
    struct sq_sampling s = neutral;
    struct sq_sample_in in = {
        .sampling = &s, .ids = ids, .n_prompt = 1, .n_ids = 2, .eos = eos, .n_eos = 1};
    assert_false(sq_sample_is_argmax(&in));
    s.temperature = 0.0f;
    assert_true(sq_sample_is_argmax(&in));
    s.min_tokens = 1; /* there already */
    assert_true(sq_sample_is_argmax(&in));
    s.min_tokens = 2;
    assert_false(sq_sample_is_argmax(&in));
    s.ignore_eos = true;
    assert_true(sq_sample_is_argmax(&in));
    s.stop_ids = stops;
    s.n_stop_ids = 1;
    assert_false(sq_sample_is_argmax(&in));
    s.min_tokens = 0;
    s.repetition = 1.1f;
    assert_false(sq_sample_is_argmax(&in));
    s.repetition = 1.0f;
    s.presence = 0.1f;
    assert_false(sq_sample_is_argmax(&in));
    s.presence = 0.0f;
    s.bias = &bias;
    s.n_bias = 1;
    assert_false(sq_sample_is_argmax(&in));
    assert_true(sq_sample_is_end(&in, 3));
    assert_false(sq_sample_is_end(&in, 2));
    s.ignore_eos = false;
    assert_true(sq_sample_is_end(&in, 2));
}

static void what_is_not_finite_is_refused(void **state)
{
    (void)state;
    float l[V];
    int32_t prompt[] = {0}, all[V];
    struct sq_sampling s = neutral;
    for (int at = 0; at < V; at++)
        for (int bad = 0; bad < 3; bad++) {
            random_logits(l, 1);
            l[at] = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
            assert_int_equal(pick(l, &s, prompt, 1, 1), -1);
        }
    random_logits(l, 1);
    for (int i = 0; i < V; i++)
        all[i] = i;
    s.stop_ids = all;
    s.n_stop_ids = V;
    s.min_tokens = 1; /* nothing is left to choose */
    assert_int_equal(pick(l, &s, prompt, 1, 1), -1);
    s = neutral;
    s.temperature = 1e-38f; /* tiny, but not greedy */
    l[7] = 50.0f;
    assert_int_equal(pick(l, &s, prompt, 1, 1), 7);
}

static void the_same_seed_gives_the_same_token(void **state)
{
    (void)state;
    float l[V];
    int32_t ids[64] = {0}, first[32];
    struct sq_sampling s = neutral;
    int same = 0;
    random_logits(l, 3);
    s.seed = 77;
    s.top_p = 0.95f;
    for (int i = 0; i < 32; i++)
        first[i] = pick(l, &s, ids, 1, 1 + i);
    for (int i = 31; i >= 0; i--) /* in any order */
        assert_int_equal(pick(l, &s, ids, 1, 1 + i), first[i]);
    for (int i = 1; i < 32; i++)
        same += first[i] == first[0];
    assert_true(same < 25); /* the index counts */
    /* the index is that of the generated token, so a longer prompt does not shift it */
    for (int i = 0; i < 32; i++)
        assert_int_equal(pick(l, &s, ids, 20, 20 + i), first[i]);
}

static void out_of_memory_is_told(void **state)
{
    (void)state;
    for (uint64_t k = 1; k <= 7; k++) {
        sq_mem_fail_at(k, false);
        assert_null(sq_sampler_new(V));
    }
    sq_mem_fail_at(0, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(uniform_numbers_are_uniform_and_fixed),
        cmocka_unit_test(frequencies_follow_the_distribution),
        cmocka_unit_test(equals_go_to_the_lowest_id),
        cmocka_unit_test(penalties_hit_what_they_should),
        cmocka_unit_test(bias_and_min_tokens),
        cmocka_unit_test(only_plain_requests_leave_logits_on_the_device),
        cmocka_unit_test(what_is_not_finite_is_refused),
        cmocka_unit_test(the_same_seed_gives_the_same_token),
        cmocka_unit_test(out_of_memory_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
