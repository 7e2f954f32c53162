/* Which algorithm serves a bucket: the file's choice, else the fastest, among those that the library proposes and that round as they should. */
#include "cuda/lt_private.h"

#include <string.h>

#include "cuda/timing.h"
#include "engine/base/check.h"

enum { SAMPLES = 7 };

/* Filling the workspace first drives most of the weights out of the L2 cache: a layer's weights are cold when a step comes to them. */
static int time_once(struct sq_lt *lt, const struct sq_lt_problem *p, const struct sq_lt_mm *m,
                     const cublasLtMatmulAlgo_t *algo, float *ret_ms, struct sq_err *err)
{
    int rc = sq_lt_cuda_status(lt, cudaMemsetAsync(lt->workspace, 0, lt->workspace_bytes, lt->st),
                               "cudaMemsetAsync", err);
    if (!rc)
        rc = sq_lt_cuda_status(lt, cudaEventRecord(lt->from, lt->st), "cudaEventRecord", err);
    if (!rc)
        rc = sq_lt_status(lt, sq_lt_launch(lt, p, m, algo), "cublasLtMatmul", m, err);
    if (!rc)
        rc = sq_lt_cuda_status(lt, cudaEventRecord(lt->to, lt->st), "cudaEventRecord", err);
    if (!rc)
        rc = sq_lt_cuda_status(lt, cudaEventSynchronize(lt->to), "timing a matmul", err);
    if (!rc)
        rc = sq_lt_cuda_status(lt, cudaEventElapsedTime(ret_ms, lt->from, lt->to),
                               "cudaEventElapsedTime", err);
    return rc;
}

/* Median of a few runs; of fewer where two of them are already far behind best_ms. */
static int time_algo(struct sq_lt *lt, const struct sq_lt_problem *p, const struct sq_lt_mm *m,
                     const cublasLtMatmulAlgo_t *algo, float best_ms, float *ret_ms,
                     struct sq_err *err)
{
    float ms[SAMPLES];
    int n = 0;
    while (n < SAMPLES) {
        int rc = time_once(lt, p, m, algo, &ms[n], err);
        if (rc)
            return rc;
        n++;
        if (n == 2 && SQ_MIN(ms[0], ms[1]) > 1.5f * best_ms)
            break;
    }
    *ret_ms = sq_cuda_median(ms, (size_t)n);
    return 0;
}

/* Runs an algorithm once, which loads its kernel: that must not happen inside a capture. *ret_ok: it takes the shape. */
static int warm_up(struct sq_lt *lt, const struct sq_lt_problem *p, const struct sq_lt_mm *m,
                   const cublasLtMatmulAlgo_t *algo, bool *ret_ok, struct sq_err *err)
{
    const cublasStatus_t s = sq_lt_launch(lt, p, m, algo);
    *ret_ok = !sq_lt_is_refusal(s);
    if (!*ret_ok)
        return 0;
    int rc = sq_lt_status(lt, s, "cublasLtMatmul", m, err);
    return rc ? rc : sq_lt_cuda_status(lt, cudaStreamSynchronize(lt->st), "running a matmul", err);
}

static int choose_by_time(struct sq_lt *lt, const struct sq_lt_problem *p, const struct sq_lt_mm *m,
                          const cublasLtMatmulAlgo_t *algos, int n, struct sq_lt_saved *line,
                          int *ret_best, struct sq_err *err)
{
    float best_ms = 1e30f;
    int best = -1;
    for (int i = 0; i < n; i++) {
        float ms;
        bool ok;
        int rc = warm_up(lt, p, m, &algos[i], &ok, err);
        if (rc == 0 && ok)
            rc = time_algo(lt, p, m, &algos[i], best_ms, &ms, err);
        if (rc)
            return rc;
        lt->stats.timed += ok;
        if (ok && ms < best_ms)
            best = i, best_ms = ms;
    }
    if (best < 0)
        return sq_lt_status(lt, CUBLAS_STATUS_NOT_SUPPORTED, "every algorithm", m, err);
    sq_lt_config_of(&algos[best], &line->config);
    line->ns = (uint32_t)SQ_MIN(best_ms * 1e6f, 4e9f);
    *ret_best = best;
    return 0;
}

/* Which candidate the file names: -1 if none. So the file only ever chooses among what the library itself proposes. */
static int find_config(const cublasLtMatmulAlgo_t *algos, int n, const struct sq_lt_config *want)
{
    for (int i = 0; i < n; i++) {
        struct sq_lt_config c;
        sq_lt_config_of(&algos[i], &c);
        if (memcmp(&c, want, sizeof c) == 0)
            return i;
    }
    return -1;
}

static int choose(struct sq_lt *lt, const struct sq_lt_problem *p, const struct sq_lt_mm *m,
                  const cublasLtMatmulAlgo_t *algos, int n, int *ret_best, struct sq_err *err)
{
    struct sq_lt_saved line = {.key = sq_lt_key_of(m)};
    const struct sq_lt_saved *saved = sq_lt_file_find(&lt->file, &line.key);
    bool ok = false;
    *ret_best = saved ? find_config(algos, n, &saved->config) : -1;
    if (*ret_best >= 0 && lt->is_timed) {
        int rc = warm_up(lt, p, m, &algos[*ret_best], &ok, err);
        if (rc)
            return rc;
    }
    if (*ret_best >= 0 && (ok || !lt->is_timed)) {
        lt->stats.from_file++;
        return 0;
    }
    lt->stats.stale += saved != NULL;
    *ret_best = 0;
    if (!lt->is_timed)
        return 0;
    int rc = choose_by_time(lt, p, m, algos, n, &line, ret_best, err);
    if (!rc)
        sq_lt_file_put(&lt->file, &line);
    return rc;
}

/* Leaves those that round as the probe found, if it found a rule that callers build upon. */
static int keep_agreeing(struct sq_lt *lt, cublasLtMatmulAlgo_t *algos, int *n, struct sq_err *err)
{
    int n_kept = 0;
    if (lt->round == SQ_LT_OTHER)
        return 0;
    for (int i = 0; i < *n; i++) {
        bool agrees;
        int rc = sq_lt_probe_agrees(lt, &algos[i], &agrees, err);
        if (rc)
            return rc;
        if (agrees)
            algos[n_kept++] = algos[i];
    }
    lt->stats.misrounding += *n - n_kept;
    *n = n_kept;
    return 0;
}

int sq_lt_prepare(struct sq_lt *lt, const struct sq_lt_mm *m, struct sq_err *err)
{
    cublasLtMatmulAlgo_t algos[SQ_LT_CANDIDATES];
    struct sq_lt_problem p;
    int n = 0, best = 0;
    int rc = sq_lt_check(lt, m, err);
    if (rc)
        return rc;
    const struct sq_lt_key key = sq_lt_key_of(m);
    cublasStatus_t s = sq_lt_describe(m, &p);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = sq_lt_candidates(lt, &p, key.align, algos, &n);
    rc = sq_lt_status(lt, s, "cublasLtMatmulAlgoGetHeuristic", m, err);
    if (!rc && p.kind == SQ_LT_S8)
        rc = keep_agreeing(lt, algos, &n, err);
    if (!rc && n == 0)
        rc = sq_lt_status(lt, CUBLAS_STATUS_NOT_SUPPORTED, "rounding", m, err);
    if (!rc)
        rc = choose(lt, &p, m, algos, n, &best, err);
    if (rc)
        return rc;
    if (!sq_lt_entry_put(lt, &key, &algos[best]))
        return sq_lt_keep(
            lt, err, sq_fail(&lt->last, SQ_E_LIMIT, "more than %d matmul shapes", SQ_LT_SLOTS / 2));
    lt->stats.prepared++;
    return 0;
}
