/* What the library does to a sum before it is an int8 code, seen by a small matmul whose sums and factors are chosen.
 *
 * Weights are 127 everywhere and 1 in the last column, so that a row of inputs gives any sum that one likes, the same for all outputs; each
 * output has a factor of its own. Most products lie on or beside a tie or beyond the range; some sums do not fit a float. */
#include "cuda/lt_private.h"

#include <math.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"

enum { ROWS = 256, OUTS = 32, DEPTH = 1088, FEW_ROWS = 16, FACTORS_BYTES = 1024 };

struct sq_lt_probe {
    int32_t sums[ROWS];
    float factors[OUTS];
    int8_t w[OUTS * DEPTH], x[ROWS * DEPTH];
    int32_t y32[ROWS * OUTS];
    int8_t y8[ROWS * OUTS];
};

/* On the device, behind the library's part of the workspace. */
struct places {
    int8_t *w, *x;
    float *factors;
    void *y;
};
_Static_assert((OUTS + ROWS) * DEPTH + FACTORS_BYTES + ROWS * OUTS * 4 <= SQ_LT_PROBE_BYTES,
               "they fit");
_Static_assert(OUTS * sizeof(float) <= FACTORS_BYTES && FACTORS_BYTES % 256 == 0, "so do these");
_Static_assert((OUTS * DEPTH) % 256 == 0 && (ROWS * DEPTH) % 256 == 0, "and are aligned");

static struct places places_of(const struct sq_lt *lt)
{
    char *at = (char *)lt->workspace + lt->workspace_bytes;
    return (struct places){.w = (int8_t *)at,
                           .x = (int8_t *)at + OUTS * DEPTH,
                           .factors = (float *)(at + (OUTS + ROWS) * DEPTH),
                           .y = at + (OUTS + ROWS) * DEPTH + FACTORS_BYTES};
}

/* --- operands --- */

static void choose_factors(float f[OUTS])
{
    /* exact ties first, then their neighbours, then ordinary ones, then those that want sums beyond 2^24 */
    static const float firsts[] = {0.5f,           0.25f,         1.0f,  1.5f,        0.125f,
                                   0.75f,          0.1f,          0.3f,  0.50000006f, 0.49999997f,
                                   0.7f,           0.33333334f,   0.01f, 2.5f,        0x1p-10f,
                                   0x1p-18f,       1.7e-4f,       1e-5f, 7e-6f,       0.0f,
                                   0x1.000002p-4f, 0x1.fffffep-5f};
    for (size_t i = 0; i < OUTS; i++)
        f[i] =
            i < SQ_ARRAY_LEN(firsts) ? firsts[i] : 0.37f / (float)(1 << (i - SQ_ARRAY_LEN(firsts)));
}

/* Eight rows for each factor: its ties of either sign, its ends of the range. */
static void choose_sums(const float factors[OUTS], int32_t sums[ROWS])
{
    static const double values[] = {0.5, -1.5, 2.5, -0.5, 127.5, -128.5, 64.5, -200.0};
    const double most = (DEPTH - 1) * 127.0 * 127.0;
    for (int i = 0; i < ROWS; i++) {
        const double f = factors[i / 8] != 0.0f ? (double)factors[i / 8] : 1.0;
        const double at = rint(values[i % 8] / f);
        sums[i] = (int32_t)fmax(-most, fmin(most, at));
    }
    sums[8 * 15 + 6] += 1; /* 64.5 * 2^18 + 1: the float of it is the tie */
    sums[8 * 15 + 7] = 16777217;
}

/* 127 * (as many 127s and one smaller as needed) + rest */
static void write_row(int8_t *x, int32_t sum)
{
    int q = sum / 127;
    memset(x, 0, DEPTH);
    x[DEPTH - 1] = (int8_t)(sum - q * 127);
    for (int i = 0; i < DEPTH - 1 && q; i++) {
        x[i] = (int8_t)SQ_MAX(-127, SQ_MIN(127, q));
        q -= x[i];
    }
}

static void fill(struct sq_lt_probe *p)
{
    choose_factors(p->factors);
    choose_sums(p->factors, p->sums);
    memset(p->w, 127, sizeof p->w);
    for (int n = 0; n < OUTS; n++)
        p->w[n * DEPTH + DEPTH - 1] = 1;
    for (int i = 0; i < ROWS; i++)
        write_row(&p->x[i * DEPTH], p->sums[i]);
}

static int upload(struct sq_lt *lt, struct sq_err *err)
{
    const struct places at = places_of(lt);
    const struct sq_lt_probe *p = lt->probe;
    const struct {
        void *to;
        const void *from;
        size_t n_bytes;
    } copies[] = {{at.w, p->w, sizeof p->w},
                  {at.x, p->x, sizeof p->x},
                  {at.factors, p->factors, sizeof p->factors}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(copies); i++) {
        int rc = sq_lt_cuda_status(lt,
                                   cudaMemcpyAsync(copies[i].to, copies[i].from, copies[i].n_bytes,
                                                   cudaMemcpyHostToDevice, lt->st),
                                   "uploading the rounding probe", err);
        if (rc)
            return rc;
    }
    return 0;
}

static struct sq_lt_mm problem_of(const struct sq_lt *lt, bool to_s8, int n_rows)
{
    const struct places at = places_of(lt);
    return (struct sq_lt_mm){.w = at.w,
                             .x = at.x,
                             .ldw = DEPTH,
                             .ldx = DEPTH,
                             .ldy = OUTS,
                             .n_out = OUTS,
                             .k = DEPTH,
                             .n_rows = n_rows,
                             .dtype = SQ_I8,
                             .y = at.y,
                             .alpha = to_s8 ? at.factors : NULL};
}

/* --- comparing --- */

static int8_t code_by(enum sq_lt_round r, float v)
{
    v = r == SQ_LT_RNE ? rintf(v) : r == SQ_LT_RZ ? truncf(v) : roundf(v);
    return (int8_t)(v > 127.0f ? 127.0f : v < -128.0f ? -128.0f : v);
}

static enum sq_lt_round rule_of(const struct sq_lt_probe *p, int n_rows)
{
    bool fits[SQ_LT_OTHER] = {true, true, true};
    for (int i = 0; i < n_rows * OUTS; i++)
        for (int r = 0; r < SQ_LT_OTHER; r++)
            if (p->y8[i] !=
                code_by((enum sq_lt_round)r, p->factors[i % OUTS] * (float)p->sums[i / OUTS]))
                fits[r] = false;
    for (int r = 0; r < SQ_LT_OTHER; r++)
        if (fits[r])
            return (enum sq_lt_round)r;
    return SQ_LT_OTHER;
}

/* Runs one algorithm and brings y back. *ret_ok is false where the algorithm does not take the shape. */
static int multiply(struct sq_lt *lt, bool to_s8, int n_rows, const cublasLtMatmulAlgo_t *algo,
                    bool *ret_ok, struct sq_err *err)
{
    const struct sq_lt_mm m = problem_of(lt, to_s8, n_rows);
    const size_t n_bytes = (size_t)n_rows * OUTS * (to_s8 ? 1 : 4);
    struct sq_lt_problem p;
    int rc =
        sq_lt_cuda_status(lt, cudaMemsetAsync(m.y, 0x55, n_bytes, lt->st), "cudaMemsetAsync", err);
    *ret_ok = false;
    if (rc)
        return rc;
    cublasStatus_t s = sq_lt_describe(&m, &p);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = sq_lt_launch(lt, &p, &m, algo);
    *ret_ok = s == CUBLAS_STATUS_SUCCESS;
    if (sq_lt_is_refusal(s))
        return 0;
    rc = sq_lt_status(lt, s, "rounding probe", &m, err);
    if (!rc)
        rc = sq_lt_cuda_status(lt,
                               cudaMemcpyAsync(to_s8 ? (void *)lt->probe->y8 : lt->probe->y32, m.y,
                                               n_bytes, cudaMemcpyDeviceToHost, lt->st),
                               "rounding probe", err);
    if (!rc)
        rc = sq_lt_cuda_status(lt, cudaStreamSynchronize(lt->st), "rounding probe", err);
    return rc;
}

/* Finds the algorithms for the probe's shape. *ret_n is 0 where the library has none. */
static int find_algos(struct sq_lt *lt, bool to_s8, int n_rows,
                      cublasLtMatmulAlgo_t algos[SQ_LT_CANDIDATES], int *ret_n, struct sq_err *err)
{
    const struct sq_lt_mm m = problem_of(lt, to_s8, n_rows);
    struct sq_lt_problem p;
    cublasStatus_t s = sq_lt_describe(&m, &p);
    *ret_n = 0;
    if (s == CUBLAS_STATUS_SUCCESS)
        s = sq_lt_candidates(lt, &p, sq_lt_align(&m), algos, ret_n);
    if (to_s8 && s == CUBLAS_STATUS_NOT_SUPPORTED)
        return 0;
    return sq_lt_status(lt, s, "int8 matmul", &m, err);
}

static int check_sums(struct sq_lt *lt, int n_rows, struct sq_err *err)
{
    cublasLtMatmulAlgo_t algos[SQ_LT_CANDIDATES];
    const struct sq_lt_mm m = problem_of(lt, false, n_rows);
    const struct sq_lt_probe *p = lt->probe;
    int n, n_taken = 0;
    bool ok;
    int rc = find_algos(lt, false, n_rows, algos, &n, err);
    for (int a = 0; a < n && !rc; a++) {
        rc = multiply(lt, false, n_rows, &algos[a], &ok, err);
        n_taken += ok;
        for (int i = 0; i < n_rows * OUTS && ok && !rc; i++)
            if (p->y32[i] != p->sums[i / OUTS]) {
                rc = sq_fail(&lt->last, SQ_E_DEVICE,
                             "int8 matmul, algorithm %d of %d at %d rows: a sum is %d, expected %d",
                             a, n, n_rows, p->y32[i], p->sums[i / OUTS]);
                rc = sq_lt_keep(lt, err, rc);
            }
    }
    if (!rc && !n_taken)
        rc = sq_lt_status(lt, CUBLAS_STATUS_NOT_SUPPORTED, "int8 matmul", &m, err);
    return rc;
}

/* The one rule of all algorithms for n_rows; joins *rule (*seen: how many gave it so far). */
static int find_rule(struct sq_lt *lt, int n_rows, enum sq_lt_round *rule, int *seen,
                     struct sq_err *err)
{
    cublasLtMatmulAlgo_t algos[SQ_LT_CANDIDATES];
    int n;
    int rc = find_algos(lt, true, n_rows, algos, &n, err);
    for (int a = 0; a < n && !rc; a++) {
        bool ok;
        rc = multiply(lt, true, n_rows, &algos[a], &ok, err);
        if (rc || !ok)
            continue;
        const enum sq_lt_round r = rule_of(lt->probe, n_rows);
        *rule = *seen == 0 || *rule == r ? r : SQ_LT_OTHER;
        ++*seen;
    }
    return rc;
}

int sq_lt_probe_open(struct sq_lt *lt, struct sq_err *err)
{
    static const int sizes[] = {ROWS, FEW_ROWS};
    enum sq_lt_round rule = SQ_LT_OTHER;
    int seen = 0;
    lt->probe = sq_new(struct sq_lt_probe);
    if (!lt->probe)
        return sq_fail(err, SQ_E_NOMEM, "no memory for the rounding probe");
    fill(lt->probe);
    int rc = upload(lt, err);
    for (size_t i = 0; i < SQ_ARRAY_LEN(sizes) && !rc; i++) {
        rc = check_sums(lt, sizes[i], err);
        if (!rc)
            rc = find_rule(lt, sizes[i], &rule, &seen, err);
    }
    if (!rc)
        lt->round = rule;
    return rc;
}

void sq_lt_probe_free(struct sq_lt_probe *p)
{
    sq_free(p);
}

int sq_lt_probe_agrees(struct sq_lt *lt, const cublasLtMatmulAlgo_t *algo, bool *ret,
                       struct sq_err *err)
{
    const struct sq_lt_mm m = problem_of(lt, true, ROWS);
    cublasLtMatmulHeuristicResult_t found;
    struct sq_lt_problem p;
    *ret = true;
    if (sq_lt_describe(&m, &p) != CUBLAS_STATUS_SUCCESS)
        return 0;
    const cublasStatus_t s = cublasLtMatmulAlgoCheck(lt->handle, &lt->desc[p.kind], &p.w, &p.x,
                                                     &p.y, &p.y, algo, &found);
    if (s != CUBLAS_STATUS_SUCCESS || found.workspaceSize > lt->workspace_bytes)
        return 0;
    bool ok;
    int rc = multiply(lt, true, ROWS, algo, &ok, err);
    if (!rc && ok)
        *ret = rule_of(lt->probe, ROWS) == lt->round;
    return rc;
}
