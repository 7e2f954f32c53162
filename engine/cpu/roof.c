#include "engine/cpu/roof.h"

#include <stdlib.h>
#include <time.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/base/threads.h"
#include "engine/cpu/backend_cpu.h"
#include "engine/cpu/cpu.h"
#include "engine/cpu/pool.h"

#define READ_BYTES ((size_t)256 << 20)   /* what the read probe walks through, a window at a time */
#define WINDOW_BYTES ((size_t)64 << 20)  /* of one reading */
#define SLICE_BYTES ((size_t)1 << 20)    /* of one item */
#define WEIGHT_BYTES ((size_t)192 << 20) /* of copies of one matrix */
#define PIECES 4 /* of a peak probe on each thread, handed out like those of an op */
#define PIECE_NS 250000.0
#define WAKE_NS 100000.0    /* workers are at work after this */
#define SAMPLE_NS 1500000.0 /* calls of one sample take at least this */
#define N_SAMPLES 7         /* of a cell in one pass */
/* Over all cells: a neighbour on the host who is busy for a while spoils a minority of the samples of each. */
#define N_PASSES 5
#define RETRY_NS 1.0e9   /* of a cell's time at most go into taking disturbed samples again */
#define QUIET_SHARE 0.96 /* of the processors' time in a sample that we must have had ourselves */
#define FEW_ROWS 4       /* up to here bandwidth is the roof */

/* --- probes --- */

struct sq_roof_probe {
    struct sq_backend *be;
    uint8_t *mem;  /* [READ_BYTES] */
    size_t window; /* offset of the last one */
    size_t rounds; /* of int8_probe that take about PIECE_NS */
    _Atomic uint64_t sum;
};

/* Sums 64-bit words with enough independent loads in flight; SSE2 is wide enough to wait for DRAM. */
static uint64_t read_all(const uint8_t *p, size_t bytes)
{
    typedef uint64_t v2 __attribute__((vector_size(16)));
    const v2 *v = (const v2 *)p;
    v2 a = {0}, b = {0}, c = {0}, d = {0};
    for (size_t i = 0; i < bytes / sizeof *v; i += 4) {
        a += v[i];
        b += v[i + 1];
        c += v[i + 2];
        d += v[i + 3];
    }
    a += b + c + d;
    return a[0] + a[1];
}

static void read_piece(void *arg, size_t i0, size_t i1, int thread)
{
    struct sq_roof_probe *p = arg;
    (void)thread;
    p->sum += read_all(p->mem + p->window + i0 * SLICE_BYTES, (i1 - i0) * SLICE_BYTES);
}

static void int8_piece(void *arg, size_t i0, size_t i1, int thread)
{
    struct sq_roof_probe *p = arg;
    (void)thread;
    for (size_t i = i0; i < i1; i++)
        p->sum += sq_cpu_table(p->be)->int8_probe(p->rounds);
}

/* Inside a step, workers awake. */
static double read_bw(struct sq_roof_probe *p)
{
    p->window = (p->window + WINDOW_BYTES) % READ_BYTES;
    uint64_t t0 = sq_now_ns();
    sq_pool_run(sq_cpu_pool(p->be), WINDOW_BYTES / SLICE_BYTES, 1, read_piece, p);
    return (double)WINDOW_BYTES / (double)(sq_now_ns() - t0);
}

static double int8_peak(struct sq_roof_probe *p)
{
    p->sum = 0;
    uint64_t t0 = sq_now_ns();
    sq_pool_run(sq_cpu_pool(p->be), (size_t)sq_pool_n_threads(sq_cpu_pool(p->be)) * PIECES, 1,
                int8_piece, p);
    uint64_t t1 = sq_now_ns();
    return (double)p->sum / (double)(t1 - t0);
}

static void wait_piece(void *arg, size_t i0, size_t i1, int thread)
{
    const uint64_t t0 = sq_now_ns();
    (void)arg, (void)i0, (void)i1, (void)thread;
    while ((double)(sq_now_ns() - t0) < WAKE_NS)
        ;
}

/* Opens a step and returns with every worker awake. */
static void step_open(struct sq_backend *be)
{
    struct sq_pool *pool = sq_cpu_pool(be);
    (void)be->ops->step_begin(be, NULL, NULL);
    sq_pool_run(pool, (size_t)sq_pool_n_threads(pool), 1, wait_piece, NULL);
}

double sq_roof_read_bw(struct sq_roof_probe *p)
{
    step_open(p->be);
    double v = read_bw(p);
    (void)p->be->ops->step_end(p->be);
    return v;
}

double sq_roof_int8_peak(struct sq_roof_probe *p)
{
    step_open(p->be);
    double v = int8_peak(p);
    (void)p->be->ops->step_end(p->be);
    return v;
}

int sq_roof_probe_new(struct sq_backend *be, struct sq_roof_probe **ret, struct sq_err *err)
{
    struct sq_roof_probe *p = sq_new(struct sq_roof_probe);
    if (p)
        p->mem = sq_cpu_alloc(READ_BYTES);
    if (!p || !p->mem) {
        sq_free(p);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the bandwidth probe (%zu bytes)",
                       READ_BYTES);
    }
    p->be = be;
    const size_t trial = 10000;
    (void)sq_cpu_table(be)->int8_probe(trial); /* the clock rises */
    uint64_t t0 = sq_now_ns();
    (void)sq_cpu_table(be)->int8_probe(trial);
    double ns = (double)(sq_now_ns() - t0);
    p->rounds = (size_t)((double)trial * PIECE_NS / SQ_MAX(ns, 1000.0)) + 1;
    *ret = p;
    return 0;
}

void sq_roof_probe_free(struct sq_roof_probe *p)
{
    if (!p)
        return;
    sq_free(p->mem);
    sq_free(p);
}

/* --- one shape on one number of threads --- */

struct shape {
    size_t k, n;
};
static const struct shape shapes[] = {
    {768, 768}, {768, 3072}, {3072, 768}, {2048, 8192}, {4096, 4096}};
static const struct shape quick_shapes[] = {{768, 3072}, {4096, 4096}};
static const int row_counts[] = {1, 4, 16, 64, 512};
#define MAX_ROWS 512

static const struct shape *shapes_of(const struct sq_roof_options *o)
{
    return o->quick ? quick_shapes : shapes;
}

static size_t n_shapes_of(const struct sq_roof_options *o)
{
    return o->quick ? SQ_ARRAY_LEN(quick_shapes) : SQ_ARRAY_LEN(shapes);
}

struct bench {
    struct sq_backend *be;
    struct sq_roof_probe *probe;
    struct sq_buf *x, *y;
    struct sq_linear **weights; /* [n_weights] copies of one matrix */
    size_t n_weights, next;
};

static void bench_done(struct bench *b)
{
    for (size_t i = 0; i < b->n_weights; i++)
        b->be->ops->linear_free(b->be, b->weights[i]);
    sq_free(b->weights);
    b->be->ops->buf_free(b->be, b->x);
    b->be->ops->buf_free(b->be, b->y);
    *b = (struct bench){0};
}

/* Codes without -128, by a small generator: their values do not matter for the time. */
static void fill_codes(int8_t *codes, size_t n)
{
    uint32_t s = 1;
    for (size_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        codes[i] = (int8_t)((int)(s >> 16) % 255 - 127);
    }
}

/* What a transformer does with such a shape: a wider result goes on as int8, another is added to the residual. */
static enum sq_out out_of(const struct shape *s)
{
    return s->n > s->k ? SQ_OUT_S8 : SQ_OUT_ADD;
}

static int weight_new(struct bench *b, const struct shape *s, const int8_t *row, const float *mul,
                      struct sq_err *err)
{
    const struct sq_linear_desc d = {
        .name = "roof", .n_out = s->n, .n_in = s->k, .dtype = SQ_I8, .out = out_of(s)};
    const struct sq_epilogue e = {.mul = mul};
    const struct sq_backend_ops *ops = b->be->ops;
    struct sq_linear *l;
    int rc = ops->linear_new(b->be, &d, &l, err);
    if (rc)
        return rc;
    b->weights[b->n_weights++] = l;
    for (size_t n = 0; n < s->n && rc == 0; n++)
        rc = ops->linear_put(b->be, l, n, 1, row, err);
    return rc ? rc : ops->linear_finish(b->be, l, &e, err);
}

static int bench_init(struct bench *b, struct sq_backend *be, struct sq_roof_probe *probe,
                      const struct shape *s, struct sq_err *err)
{
    const size_t n = sq_div_up(WEIGHT_BYTES, s->k * s->n);
    SQ_AUTO_FREE int8_t *row = sq_malloc(s->k);
    SQ_AUTO_FREE float *mul = sq_new_array(float, s->n);
    *b = (struct bench){.be = be, .probe = probe, .weights = sq_new_array(struct sq_linear *, n)};
    if (!row || !mul || !b->weights)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for a benchmark of %zu x %zu", s->k, s->n);
    fill_codes(row, s->k);
    for (size_t i = 0; i < s->n; i++)
        mul[i] = 1e-4f;
    int rc = be->ops->buf_new(be, SQ_BUF_S8, MAX_ROWS, s->k, &b->x, err);
    rc = rc ? rc
            : be->ops->buf_new(be, out_of(s) == SQ_OUT_S8 ? SQ_BUF_S8 : SQ_BUF_F32, MAX_ROWS, s->n,
                               &b->y, err);
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = weight_new(b, s, row, mul, err);
    for (size_t m = 0; m < MAX_ROWS && rc == 0; m++)
        memcpy(b->x->u + m * b->x->stride, row, s->k);
    return rc;
}

/* Time of n calls, in ns. */
static double run_calls(struct bench *b, int m, size_t n)
{
    uint64_t t0 = sq_now_ns();
    for (size_t i = 0; i < n; i++) {
        (void)b->be->ops->linear(b->be, b->weights[b->next], b->x, m, b->y);
        b->next = (b->next + 1) % b->n_weights;
    }
    return (double)(sq_now_ns() - t0);
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double sq_roof_median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n & 1 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/* CPU time of the whole process; inside a step every thread of the pool is always running. */
static double cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

struct sample {
    double ns, probe; /* of one call; GB/s or GOP/s */
    bool quiet;
};

static struct sample take_sample(struct bench *b, const struct sq_roof_cell *c, size_t n_calls)
{
    struct sample s;
    const double cpu0 = cpu_ns();
    const uint64_t t0 = sq_now_ns();
    s.probe = c->by_bandwidth ? read_bw(b->probe) : int8_peak(b->probe);
    s.ns = run_calls(b, c->m, n_calls) / (double)n_calls;
    const double wall = (double)(sq_now_ns() - t0) * c->threads;
    s.quiet = cpu_ns() - cpu0 >= QUIET_SHARE * wall;
    return s;
}

/* A cell and its samples of all passes. */
struct cell {
    struct sq_roof_cell c;
    double ns[N_PASSES * N_SAMPLES], probe[N_PASSES * N_SAMPLES];
};

static void measure(struct bench *b, struct cell *e)
{
    struct sq_roof_cell *c = &e->c;
    step_open(b->be);
    const size_t n_calls = (size_t)(SAMPLE_NS / run_calls(b, c->m, 1)) + 1;
    const uint64_t t0 = sq_now_ns();
    for (int i = 0; i < N_SAMPLES; i++, c->n_samples++) {
        struct sample s = take_sample(b, c, n_calls);
        while (!s.quiet && (double)(sq_now_ns() - t0) < RETRY_NS)
            s = take_sample(b, c, n_calls);
        c->n_quiet += s.quiet;
        e->ns[c->n_samples] = s.ns;
        e->probe[c->n_samples] = s.probe;
    }
    (void)b->be->ops->step_end(b->be);
}

static void conclude(struct cell *e)
{
    struct sq_roof_cell *c = &e->c;
    const double work =
        c->by_bandwidth ? (double)c->k * (double)c->n : 2.0 * c->m * (double)c->k * (double)c->n;
    double rate[N_PASSES * N_SAMPLES], share[N_PASSES * N_SAMPLES];
    const int n = c->n_samples;
    for (int i = 0; i < n; i++) {
        rate[i] = work / e->ns[i];
        share[i] = e->probe[i] > 0 ? rate[i] / e->probe[i] : 0;
    }
    c->us = sq_roof_median(e->ns, n) / 1e3;
    c->rate = sq_roof_median(rate, n);
    c->probe = sq_roof_median(e->probe, n);
    c->share = sq_roof_median(share, n); /* sorts */
    c->share_min = share[0];
    c->share_max = share[n - 1];
}

/* All row counts of one shape, once; their cells lie side by side. */
static int run_shape(struct sq_backend *be, struct sq_roof_probe *probe, const struct shape *s,
                     int threads, struct cell *cells, struct sq_err *err)
{
    struct bench b;
    int rc = bench_init(&b, be, probe, s, err);
    for (size_t i = 0; i < SQ_ARRAY_LEN(row_counts) && rc == 0; i++) {
        struct sq_roof_cell *c = &cells[i].c;
        c->threads = threads;
        c->m = row_counts[i];
        c->k = s->k;
        c->n = s->n;
        c->by_bandwidth = row_counts[i] <= FEW_ROWS;
        measure(&b, &cells[i]);
    }
    bench_done(&b);
    return rc;
}

/* All shapes on one number of threads, once. */
static int run_threads(const struct sq_roof_options *o, int threads, struct cell *cells,
                       struct sq_err *err)
{
    const struct sq_cpu_options cpu = {.n_threads = threads, .variant = o->variant};
    const struct shape *s = shapes_of(o);
    struct sq_backend *be;
    struct sq_roof_probe *probe = NULL;
    int rc = sq_cpu_open(&cpu, &be, err);
    if (rc)
        return rc;
    rc = sq_roof_probe_new(be, &probe, err);
    for (size_t i = 0; i < n_shapes_of(o) && rc == 0; i++)
        rc = run_shape(be, probe, &s[i], threads, cells + i * SQ_ARRAY_LEN(row_counts), err);
    sq_roof_probe_free(probe);
    be->ops->close(be);
    return rc;
}

int sq_roof_run(const struct sq_roof_options *o, sq_roof_fn *fn, void *arg, struct sq_err *err)
{
    static const int usual[] = {1, 2, 0};
    const int *threads = o->threads[0] ? o->threads : usual;
    const size_t each = n_shapes_of(o) * SQ_ARRAY_LEN(row_counts);
    size_t n = 0;
    for (; n < SQ_ROOF_THREADS_MAX && threads[n]; n++)
        if (threads[n] < 0 || threads[n] > 4096)
            return sq_fail(err, SQ_E_INVAL, "%d threads: expected 1 to 4096", threads[n]);
    SQ_AUTO_FREE struct cell *cells = sq_new_array(struct cell, n * each);
    if (!cells)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for samples");
    int rc = 0;
    for (int pass = 0; pass < (o->quick ? 1 : N_PASSES); pass++)
        for (size_t i = 0; i < n && rc == 0; i++)
            rc = run_threads(o, threads[i], cells + i * each, err);
    for (size_t i = 0; i < n * each && rc == 0; i++) {
        conclude(&cells[i]);
        fn(arg, &cells[i].c);
    }
    return rc;
}
