/* The scheduler in a simulated world: random arrivals, cancels and credits against small pools. A
 * sequence's next token is a hash of what stands in the cells of its own blocks, so that a lost,
 * shared or stale block shows as a token that its solo run would not give. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"
#include "engine/run/sched.h"

#define MAX_LIVE 40
#define MAX_PROMPT 100
#define MAX_NEW 60
#define MAX_BLOCKS 64
#define VOCAB 1000
#define END 0 /* the token that ends a sequence */
#define PLENTY (INT_MAX / 2)

struct cell {
    int32_t token, pos;
    uint64_t owner;
};

struct client {
    struct sq_job *job; /* NULL = free slot */
    int32_t ids[MAX_PROMPT + MAX_NEW];
    int n_prompt, n_solo; /* n_solo: tokens its solo run generates, END included */
    int32_t solo[MAX_NEW];
    int n_preempted;       /* before the plan */
    uint64_t oldest_since; /* step in which it became the oldest with credit */
};

struct world {
    uint64_t rng;
    struct sq_kvpool *pool;
    struct sq_sched *sched;
    struct sq_sched_options o;
    int n_blocks, n_live;
    uint64_t end_one_in; /* how likely a sequence ends by itself */
    struct cell cells[MAX_BLOCKS][SQ_KV_BLOCK];
    struct client clients[MAX_LIVE];
    uint64_t n_steps, next_id, n_finished, n_cancelled, n_preempted;
    const struct sq_job *oldest;
};

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b + 0x7f4a7c159e3779b9u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 29);
}

static int rnd(struct world *w, int n)
{
    w->rng = mix(w->rng, 1);
    return (int)((w->rng >> 16) % (uint64_t)n);
}

static uint64_t fold(uint64_t h, int32_t token, int pos)
{
    return mix(h, (uint64_t)token * 4096 + (uint64_t)pos);
}

static int32_t token_of(const struct world *w, uint64_t h)
{
    return h % w->end_one_in == 0 ? END : (int32_t)(1 + h % (VOCAB - 1));
}

static void run_solo(const struct world *w, struct client *c, int max_tokens)
{
    uint64_t h = 7;
    for (int i = 0; i < c->n_prompt; i++)
        h = fold(h, c->ids[i], i);
    for (c->n_solo = 0; c->n_solo < max_tokens;) {
        int32_t t = token_of(w, h);
        c->solo[c->n_solo++] = t;
        if (t == END)
            return;
        h = fold(h, t, c->n_prompt + c->n_solo - 1);
    }
}

static void arrive(struct world *w)
{
    struct client *c = w->clients;
    while (c->job)
        c++;
    c->n_prompt = 1 + rnd(w, rnd(w, 3) ? 20 : MAX_PROMPT);
    for (int i = 0; i < c->n_prompt; i++)
        c->ids[i] = 1 + rnd(w, VOCAB - 1);
    struct sq_request r = {.id = ++w->next_id,
                           .ids = c->ids,
                           .n_ids = c->n_prompt,
                           .sampling = {.max_tokens = 1 + rnd(w, MAX_NEW)},
                           .credit = rnd(w, 4) ? PLENTY : rnd(w, 4)};
    run_solo(w, c, r.sampling.max_tokens);
    c->job = sq_job_new(&r);
    assert_non_null(c->job);
    sq_sched_add(w->sched, c->job);
    w->n_live++;
}

static struct client *any_client(struct world *w)
{
    int skip = rnd(w, w->n_live);
    for (struct client *c = w->clients;; c++)
        if (c->job && skip-- == 0)
            return c;
}

static void leave(struct world *w, struct client *c)
{
    w->n_preempted += (uint64_t)c->job->n_preempted;
    sq_sched_remove(w->sched, c->job);
    assert_int_equal(c->job->n_blocks, 0);
    c->job = sq_job_free(c->job);
    w->n_live--;
}

static struct client *client_of(struct world *w, const struct sq_job *j)
{
    for (int i = 0; i < MAX_LIVE; i++)
        if (w->clients[i].job == j)
            return &w->clients[i];
    fail();
    return NULL;
}

/* Blocks: every one free or held once; what is held is enough for what is cached. */
static void check_blocks(struct world *w)
{
    bool held[MAX_BLOCKS] = {false};
    int n = 0;
    for (int i = 0; i < MAX_LIVE; i++) {
        struct sq_job *j = w->clients[i].job;
        for (int b = 0; j && b < j->n_blocks; b++, n++) {
            assert_in_range(j->blocks[b], 0, w->n_blocks - 1);
            assert_false(held[j->blocks[b]]);
            held[j->blocks[b]] = true;
        }
        assert_true(!j || (j->n_cached <= j->n_blocks * SQ_KV_BLOCK && j->n_cached <= j->n_ids));
        assert_true(!j || j->n_preempted <= SQ_PREEMPT_MAX);
        assert_true(!j || j->state == SQ_JOB_RUNNING || j->n_blocks == 0);
    }
    assert_int_equal(n + sq_kvpool_n_free(w->pool), w->n_blocks);
}

/* An empty step is right only if nobody with credit is there, or what holds the blocks is reserved
 * and waits for its client. */
static void check_progress(struct world *w, const struct sq_plan *plan)
{
    bool someone_could = false, hostage = false;
    for (int i = 0; i < MAX_LIVE; i++) {
        const struct sq_job *j = w->clients[i].job;
        someone_could |= j && j->credit > 0;
        hostage |= j && j->credit == 0 && j->n_preempted == SQ_PREEMPT_MAX && j->n_blocks > 0;
    }
    assert_true(plan->n_seqs > 0 || !someone_could || hostage);
}

static const struct sq_job *oldest_job(struct world *w, bool running_only)
{
    const struct sq_job *best = NULL;
    for (int i = 0; i < MAX_LIVE; i++) {
        const struct sq_job *j = w->clients[i].job;
        if (j && j->credit > 0 && (!running_only || j->state == SQ_JOB_RUNNING) &&
            (!best || j->seq < best->seq))
            best = j;
    }
    return best;
}

/* The oldest sequence whose client is not slow must get to its end, whatever arrives behind it. */
static void check_starvation(struct world *w)
{
    const struct sq_job *j = oldest_job(w, false);
    if (!j || j != w->oldest) {
        w->oldest = j;
        if (j)
            client_of(w, j)->oldest_since = w->n_steps;
        return;
    }
    assert_true(w->n_steps - client_of(w, j)->oldest_since < 2000);
}

static void check_plan(struct world *w, const struct sq_plan *plan)
{
    int rows = 0, outs = 0;
    assert_true(plan->n_seqs <= w->o.max_sequences && plan->n_rows <= w->o.max_step_tokens);
    for (int i = 0; i < plan->n_seqs; i++) {
        const struct sq_plan_seq *p = &plan->seqs[i];
        assert_true(p->n_rows > 0 && p->job->credit > 0 && p->job->state == SQ_JOB_RUNNING);
        /* never put back and started again in one step */
        assert_int_equal(p->job->n_preempted, client_of(w, p->job)->n_preempted);
        assert_true(!w->o.max_chunk || p->n_rows <= w->o.max_chunk);
        assert_int_equal(p->out, p->job->n_cached + p->n_rows == p->job->n_ids);
        for (int k = 0; k < i; k++)
            assert_ptr_not_equal(plan->seqs[k].job, p->job);
        rows += p->n_rows;
        outs += p->out;
    }
    assert_int_equal(rows, plan->n_rows);
    assert_int_equal(outs, plan->n_out);
}

static void write_cells(struct world *w, const struct sq_plan_seq *p)
{
    for (int pos = p->job->n_cached; pos < p->job->n_cached + p->n_rows; pos++)
        w->cells[p->job->blocks[pos / SQ_KV_BLOCK]][pos % SQ_KV_BLOCK] =
            (struct cell){.token = p->job->ids[pos], .pos = pos, .owner = p->job->id};
}

static int32_t read_token(struct world *w, const struct sq_job *j)
{
    uint64_t h = 7;
    for (int pos = 0; pos < j->n_ids; pos++) {
        const struct cell *c = &w->cells[j->blocks[pos / SQ_KV_BLOCK]][pos % SQ_KV_BLOCK];
        assert_true(c->pos == pos && c->owner == j->id);
        h = fold(h, c->token, pos);
    }
    return token_of(w, h);
}

static void deliver(struct world *w, struct sq_job *j)
{
    struct client *c = client_of(w, j);
    int at = sq_job_n_generated(j);
    int32_t t = read_token(w, j);
    assert_true(at < c->n_solo);
    assert_int_equal(t, c->solo[at]);
    if (t != END)
        sq_job_append(j, t);
    if (at + 1 == c->n_solo) {
        w->n_finished++;
        leave(w, c);
    }
}

static bool step(struct world *w)
{
    const struct sq_job *first = oldest_job(w, true);
    int first_preempted = first ? first->n_preempted : 0;
    for (int i = 0; i < MAX_LIVE; i++)
        w->clients[i].n_preempted = w->clients[i].job ? w->clients[i].job->n_preempted : 0;
    const struct sq_plan *plan = sq_sched_plan(w->sched, ++w->n_steps);
    assert_true(!first || first->n_preempted == first_preempted);
    check_plan(w, plan);
    check_blocks(w);
    check_progress(w, plan);
    for (int i = 0; i < plan->n_seqs; i++)
        write_cells(w, &plan->seqs[i]);
    sq_sched_ran(w->sched);
    bool ran = plan->n_seqs > 0;
    for (int i = 0; i < plan->n_seqs; i++)
        if (plan->seqs[i].out)
            deliver(w, plan->seqs[i].job);
    check_blocks(w);
    check_starvation(w);
    return ran;
}

static void act(struct world *w)
{
    int what = rnd(w, 100);
    if (what < 12 && w->n_live < MAX_LIVE)
        arrive(w);
    else if (what < 15 && w->n_live > 0) {
        w->n_cancelled++;
        leave(w, any_client(w));
    } else if (what < 35 && w->n_live > 0)
        sq_sched_credit(w->sched, any_client(w)->job, 1 + rnd(w, 8));
    else
        step(w);
}

static void world_init(struct world *w, uint64_t seed)
{
    static const int chunks[] = {0, 0, 1, 7, 64};
    *w = (struct world){.rng = seed};
    int least = sq_job_blocks_for(MAX_PROMPT + MAX_NEW);
    w->n_blocks = least + rnd(w, rnd(w, 2) ? 4 : MAX_BLOCKS - least);
    w->o = (struct sq_sched_options){.max_sequences = 1 + rnd(w, 10),
                                     .max_step_tokens = 1 + rnd(w, rnd(w, 2) ? 8 : 200),
                                     .max_chunk = chunks[rnd(w, 5)]};
    w->end_one_in = rnd(w, 3) ? 1000 : 23;
    w->pool = sq_kvpool_new(w->n_blocks);
    w->sched = sq_sched_new(&w->o, w->pool);
    assert_non_null(w->sched);
}

/* All clients read again: everything must end, in a bounded number of steps, none of them empty. */
static void world_end(struct world *w)
{
    for (int i = 0; i < MAX_LIVE; i++)
        if (w->clients[i].job)
            sq_sched_credit(w->sched, w->clients[i].job, PLENTY);
    for (int n = 0; w->n_live > 0; n++) {
        assert_true(n < 100000);
        assert_true(step(w));
    }
    assert_int_equal(step(w), false);
    assert_null(sq_sched_any(w->sched));
    assert_int_equal(sq_kvpool_n_free(w->pool), w->n_blocks);
    struct sq_sched_stats s = sq_sched_stats(w->sched);
    assert_true(s.n_running == 0 && s.n_waiting == 0 && s.waiting_tokens == 0);
    assert_int_equal(s.n_preemptions, w->n_preempted);
    assert_int_equal(w->n_finished + w->n_cancelled, w->next_id);
    assert_null(sq_sched_free(w->sched));
    sq_kvpool_free(w->pool);
}

static void random_worlds_keep_every_promise(void **state)
{
    (void)state;
    static struct world w;
    uint64_t preempted = 0, finished = 0, steps = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        world_init(&w, seed);
        for (int i = 0; i < 600; i++)
            act(&w);
        world_end(&w);
        preempted += w.n_preempted;
        finished += w.n_finished;
        steps += w.n_steps;
    }
    print_message("240000 operations, %llu steps: %llu sequences finished, %llu preemptions\n",
                  (unsigned long long)steps, (unsigned long long)finished,
                  (unsigned long long)preempted);
    assert_true(preempted > 100); /* else the worlds were too roomy to show anything */
}

/* --- single situations ------------------------------------------------------------------------ */

struct small {
    struct sq_kvpool *pool;
    struct sq_sched *s;
    int32_t ids[300];
    uint64_t id;
};

static struct small small_new(int n_blocks, int max_sequences, int max_step_tokens, int max_chunk)
{
    struct small t = {.pool = sq_kvpool_new(n_blocks)};
    struct sq_sched_options o = {max_sequences, max_step_tokens, max_chunk};
    t.s = sq_sched_new(&o, t.pool);
    for (int i = 0; i < 300; i++)
        t.ids[i] = i;
    return t;
}

static struct sq_job *put(struct small *t, int n_ids, int max_tokens, int credit)
{
    struct sq_request r = {.id = ++t->id,
                           .ids = t->ids,
                           .n_ids = n_ids,
                           .sampling = {.max_tokens = max_tokens},
                           .credit = credit};
    struct sq_job *j = sq_job_new(&r);
    sq_sched_add(t->s, j);
    return j;
}

/* One step in which every output row gives token 5. */
static const struct sq_plan *tick(struct small *t)
{
    const struct sq_plan *p = sq_sched_plan(t->s, 1);
    sq_sched_ran(t->s);
    for (int i = 0; i < p->n_seqs; i++)
        if (p->seqs[i].out)
            sq_job_append(p->seqs[i].job, 5);
    return p;
}

static void small_free(struct small *t)
{
    struct sq_job *j;
    while ((j = sq_sched_any(t->s))) {
        sq_sched_remove(t->s, j);
        sq_job_free(j);
    }
    sq_sched_free(t->s);
    sq_kvpool_free(t->pool);
}

static void decode_rows_come_before_prompts(void **state)
{
    (void)state;
    struct small t = small_new(20, 8, 10, 0);
    struct sq_job *a = put(&t, 4, 20, 99);
    tick(&t);
    struct sq_job *b = put(&t, 30, 20, 99);
    const struct sq_plan *p = tick(&t);
    assert_int_equal(p->n_seqs, 2);
    assert_ptr_equal(p->seqs[0].job, a);
    assert_int_equal(p->seqs[0].n_rows, 1);
    assert_ptr_equal(p->seqs[1].job, b);
    assert_int_equal(p->seqs[1].n_rows, 9);
    assert_false(p->seqs[1].out);
    p = tick(&t); /* 9 more of b */
    assert_int_equal(b->n_cached, 18);
    small_free(&t);
}

static void chunks_are_cut(void **state)
{
    (void)state;
    struct small t = small_new(20, 8, 100, 7);
    struct sq_job *a = put(&t, 16, 4, 99);
    const int want[] = {7, 7, 2, 1};
    for (int i = 0; i < 4; i++) {
        const struct sq_plan *p = tick(&t);
        assert_int_equal(p->seqs[0].n_rows, want[i]);
        assert_int_equal(p->seqs[0].out, i >= 2);
    }
    assert_int_equal(sq_job_n_generated(a), 2);
    small_free(&t);
}

static void a_full_cache_sends_the_youngest_back(void **state)
{
    (void)state;
    struct small t = small_new(5, 4, 100, 0);
    struct sq_job *a = put(&t, 60, 64, 99), *b = put(&t, 30, 64, 99);
    tick(&t); /* a: 2 blocks; b: 1, and a margin of one block is left beside each */
    assert_int_equal(b->state, SQ_JOB_RUNNING);
    while (b->n_preempted == 0) {
        tick(&t);
        assert_int_equal(a->n_preempted, 0);
        assert_true(a->n_ids < 124);
    }
    assert_int_equal(b->state, SQ_JOB_WAITING);
    assert_int_equal(b->n_cached, 0);
    assert_true(sq_job_n_generated(b) > 0); /* its tokens stay */
    small_free(&t);
}

static void order_of_arrival_is_kept(void **state)
{
    (void)state;
    struct small t = small_new(4, 8, 1000, 0);
    struct sq_job *a = put(&t, 70, 2, 99), *big = put(&t, 100, 2, 99), *tiny = put(&t, 1, 2, 99);
    const struct sq_plan *p = tick(&t);
    assert_int_equal(p->n_seqs, 1); /* tiny would fit, but big was there first */
    sq_sched_remove(t.s, a);
    sq_job_free(a);
    tick(&t);
    assert_int_equal(big->state, SQ_JOB_RUNNING);
    assert_int_equal(tiny->state, SQ_JOB_WAITING);
    small_free(&t);
}

static void without_credit_a_sequence_is_parked(void **state)
{
    (void)state;
    struct small t = small_new(8, 1, 100, 0);
    struct sq_job *a = put(&t, 4, 20, 1), *b = put(&t, 4, 20, 99);
    tick(&t);
    assert_int_equal(a->credit, 0);
    /* it keeps its block, and the only place in the step is free for b */
    const struct sq_plan *p = tick(&t);
    assert_int_equal(p->n_seqs, 1);
    assert_ptr_equal(p->seqs[0].job, b);
    assert_int_equal(a->n_blocks, 1);
    sq_sched_credit(t.s, a, 1);
    p = tick(&t);
    assert_ptr_equal(p->seqs[0].job, a);
    small_free(&t);
}

static void parked_sequences_do_not_hold_the_cache_against_others(void **state)
{
    (void)state;
    struct small t = small_new(4, 4, 100, 0);
    struct sq_job *a = put(&t, 32, 20, 1), *b = put(&t, 32, 20, 1);
    tick(&t);
    assert_true(a->credit == 0 && b->credit == 0);
    struct sq_job *c = put(&t, 96, 20, 99);
    const struct sq_plan *p = tick(&t);
    assert_int_equal(p->n_seqs, 1);
    assert_ptr_equal(p->seqs[0].job, c);
    assert_int_equal(a->n_preempted + b->n_preempted, 2);
    small_free(&t);
}

static void often_preempted_means_reserved(void **state)
{
    (void)state;
    struct small t = small_new(4, 4, 100, 0);
    struct sq_job *a = put(&t, 4, 60, 0);
    sq_sched_credit(t.s, a, 1);
    a->n_preempted = SQ_PREEMPT_MAX;
    tick(&t);
    assert_int_equal(a->n_blocks, sq_job_worst_blocks(4, 60));
    struct sq_job *b = put(&t, 96, 2, 99); /* a is parked, but no victim */
    assert_int_equal(tick(&t)->n_seqs, 0);
    assert_int_equal(a->n_blocks, 2);
    sq_sched_remove(t.s, a);
    sq_job_free(a);
    assert_ptr_equal(tick(&t)->seqs[0].job, b);
    small_free(&t);
}

static void out_of_memory_is_told(void **state)
{
    (void)state;
    struct sq_kvpool *pool = sq_kvpool_new(2);
    struct sq_sched_options o = {1, 1, 0};
    int32_t id = 1;
    struct sq_request r = {.id = 1, .ids = &id, .n_ids = 1, .sampling = {.max_tokens = 1}};
    for (uint64_t k = 1; k <= 2; k++) {
        sq_mem_fail_at(k, false);
        assert_null(sq_sched_new(&o, pool));
    }
    for (uint64_t k = 1; k <= 6; k++) {
        sq_mem_fail_at(k, false);
        assert_null(sq_job_new(&r));
    }
    sq_mem_fail_at(0, false);
    sq_kvpool_free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_rows_come_before_prompts),
        cmocka_unit_test(chunks_are_cut),
        cmocka_unit_test(a_full_cache_sends_the_youngest_back),
        cmocka_unit_test(order_of_arrival_is_kept),
        cmocka_unit_test(without_credit_a_sequence_is_parked),
        cmocka_unit_test(parked_sequences_do_not_hold_the_cache_against_others),
        cmocka_unit_test(often_preempted_means_reserved),
        cmocka_unit_test(out_of_memory_is_told),
        cmocka_unit_test(random_worlds_keep_every_promise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
