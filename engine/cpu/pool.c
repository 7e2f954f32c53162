#include "engine/cpu/pool.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/threads.h"

#define SPIN_NS 200000    /* a worker's patience between two regions of a step */
#define SPINS_PER_LOOK 64 /* pauses between two looks at the clock */
#define N_YIELDS 20       /* then, before it sleeps */
#define OWNER_SPINS 20000 /* pauses of the owner before it yields to a preempted worker */

/* The gate of a region: its number above, then the closed bit, then the count of workers that entered. */
#define GATE_CLOSED ((uint64_t)1 << 31)

struct worker {
    struct sq_pool *pool;
    pthread_t thread;
    int id;
};

struct sq_pool {
    int n_threads;
    struct worker *workers; /* [n_threads - 1] */

    /* The region, written by the owner while the gate is closed, read by workers that entered. */
    sq_pool_fn *fn;
    void *arg;
    size_t n, grain;

    /* Spun on and slept on: the number of regions so far, doubled; the low bit flips to wake everybody without a region. */
    _Alignas(64) _Atomic uint32_t word;
    _Atomic bool in_step, stop;
    _Atomic uint32_t n_sleeping;
    _Alignas(64) _Atomic uint64_t gate;
    _Alignas(64) _Atomic size_t next; /* item */
    _Alignas(64) _Atomic uint32_t n_done;
};

static inline void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

/* The word has changed: whoever sleeps on the old one must hear of it. */
static void announce(struct sq_pool *p, uint32_t word)
{
    atomic_store(&p->word, word);
    if (atomic_load(&p->n_sleeping))
        (void)syscall(SYS_futex, &p->word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Sleeps until the word differs from `seen`. */
static void sleep_on(struct sq_pool *p, uint32_t seen)
{
    atomic_fetch_add(&p->n_sleeping, 1);
    while (atomic_load(&p->word) == seen && !atomic_load(&p->stop))
        futex_wait(&p->word, seen);
    atomic_fetch_sub(&p->n_sleeping, 1);
}

/* Returns the word once it differs from `seen`. */
static uint32_t await(struct sq_pool *p, uint32_t seen)
{
    uint64_t t0 = 0;
    uint32_t word;
    for (int i = 1, yields = 0;
         (word = atomic_load_explicit(&p->word, memory_order_acquire)) == seen; i++) {
        cpu_pause();
        if (i % SPINS_PER_LOOK)
            continue;
        uint64_t now = sq_now_ns();
        t0 = t0 ? t0 : now;
        if (!atomic_load_explicit(&p->in_step, memory_order_relaxed) || yields == N_YIELDS)
            sleep_on(p, seen);
        else if (now - t0 > SPIN_NS) {
            sched_yield();
            yields++;
        }
        if (atomic_load_explicit(&p->stop, memory_order_relaxed))
            return seen;
    }
    return word;
}

static void work(struct sq_pool *p, int thread)
{
    const size_t n = p->n, grain = p->grain;
    for (;;) {
        size_t i = atomic_fetch_add_explicit(&p->next, grain, memory_order_relaxed);
        if (i >= n)
            return;
        p->fn(p->arg, i, n - i < grain ? n : i + grain, thread);
    }
}

/* False if the region is over already. */
static bool enter(struct sq_pool *p, uint32_t region)
{
    uint64_t g = atomic_load_explicit(&p->gate, memory_order_relaxed);
    do {
        if (g >> 32 != region || g & GATE_CLOSED)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&p->gate, &g, g + 1, memory_order_acquire,
                                                    memory_order_relaxed));
    return true;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct sq_pool *p = w->pool;
    uint32_t seen = 0;
    while (!atomic_load(&p->stop)) {
        uint32_t word = await(p, seen);
        if (word >> 1 != seen >> 1 && enter(p, word >> 1)) {
            work(p, w->id);
            atomic_fetch_add_explicit(&p->n_done, 1, memory_order_release);
        }
        seen = word;
    }
    return NULL;
}

void sq_pool_run(struct sq_pool *p, size_t n, size_t grain, sq_pool_fn *fn, void *arg)
{
    SQ_ASSERT(grain > 0);
    if (p->n_threads == 1 || n <= grain) {
        for (size_t i = 0; i < n; i += grain)
            fn(arg, i, n - i < grain ? n : i + grain, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    p->n = n;
    p->grain = grain;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    const uint32_t word = atomic_load_explicit(&p->word, memory_order_relaxed) + 2;
    atomic_store_explicit(&p->gate, (uint64_t)(word >> 1) << 32, memory_order_release);
    announce(p, word);
    work(p, 0);

    const uint32_t entered =
        (uint32_t)(atomic_fetch_or_explicit(&p->gate, GATE_CLOSED, memory_order_relaxed) &
                   (GATE_CLOSED - 1));
    for (int i = 0; atomic_load_explicit(&p->n_done, memory_order_acquire) != entered; i++) {
        cpu_pause();
        if (i >= OWNER_SPINS)
            sched_yield();
    }
    atomic_store_explicit(&p->n_done, 0, memory_order_relaxed);
}

void sq_pool_step_begin(struct sq_pool *p)
{
    if (p->n_threads == 1)
        return;
    atomic_store(&p->in_step, true);
    announce(p, atomic_load_explicit(&p->word, memory_order_relaxed) ^ 1u);
}

void sq_pool_step_end(struct sq_pool *p)
{
    atomic_store(&p->in_step, false);
}

int sq_pool_n_threads(const struct sq_pool *p)
{
    return p->n_threads;
}

/* Stops the workers 0..n-1 and frees. */
static void pool_end(struct sq_pool *p, int n)
{
    atomic_store(&p->stop, true);
    announce(p, atomic_load(&p->word) ^ 1u);
    for (int i = 0; i < n; i++)
        pthread_join(p->workers[i].thread, NULL);
    sq_free(p->workers);
    sq_free(p);
}

int sq_pool_new(int n_threads, struct sq_pool **ret, struct sq_err *err)
{
    SQ_ASSERT(n_threads >= 1);
    struct sq_pool *p = sq_aligned_alloc(64, sizeof *p);
    if (!p)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a pool of %d threads", n_threads);
    *p = (struct sq_pool){.n_threads = n_threads, .gate = GATE_CLOSED};
    p->workers = sq_new_array(struct worker, (size_t)n_threads);
    if (!p->workers) {
        sq_free(p);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a pool of %d threads", n_threads);
    }
    for (int i = 0; i < n_threads - 1; i++) {
        char name[16];
        snprintf(name, sizeof name, "sqd-row%d", (i + 1) % 10000);
        p->workers[i] = (struct worker){.pool = p, .id = i + 1};
        int rc = sq_thread_start(&p->workers[i].thread, name, worker_main, &p->workers[i], err);
        if (rc) {
            pool_end(p, i);
            return rc;
        }
    }
    *ret = p;
    return 0;
}

void sq_pool_free(struct sq_pool *p)
{
    if (p)
        pool_end(p, p->n_threads - 1);
}
