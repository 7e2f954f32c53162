#include "cuda/lt_private.h"

#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"

/* The rows of cublasLtMatmul's table of types that sqd uses. */
static const struct {
    const char *name;
    cublasComputeType_t compute;
    cudaDataType_t scale, in, out;
    int in_bytes, out_bytes;
} kinds[SQ_LT_N_KINDS] = {
    [SQ_LT_S32] = {"s32", CUBLAS_COMPUTE_32I, CUDA_R_32I, CUDA_R_8I, CUDA_R_32I, 1, 4},
    [SQ_LT_S8] = {"s8", CUBLAS_COMPUTE_32I, CUDA_R_32F, CUDA_R_8I, CUDA_R_8I, 1, 1},
    [SQ_LT_F16] = {"f16", CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16F, CUDA_R_32F, 2, 4},
    [SQ_LT_BF16] = {"bf16", CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_16BF, CUDA_R_32F, 2, 4},
    [SQ_LT_F32] = {"f32", CUBLAS_COMPUTE_32F, CUDA_R_32F, CUDA_R_32F, CUDA_R_32F, 4, 4},
};

const char *sq_lt_kind_name(int kind)
{
    return kinds[kind].name;
}

static int kind_of(const struct sq_lt_mm *m)
{
    switch (m->dtype) {
    case SQ_I8:
        return m->alpha ? SQ_LT_S8 : SQ_LT_S32;
    case SQ_F16:
        return SQ_LT_F16;
    case SQ_BF16:
        return SQ_LT_BF16;
    case SQ_F32:
        break;
    }
    return SQ_LT_F32;
}

/* --- errors --- */

int sq_lt_keep(struct sq_lt *lt, struct sq_err *err, int rc)
{
    if (err)
        *err = lt->last;
    return rc;
}

int sq_lt_cuda_status(struct sq_lt *lt, cudaError_t e, const char *what, struct sq_err *err)
{
    if (e == cudaSuccess)
        return 0;
    (void)cudaGetLastError(); /* taken, or the next launch would be blamed for it */
    enum sq_code code = e == cudaErrorMemoryAllocation ? SQ_E_NOMEM : SQ_E_DEVICE;
    return sq_lt_keep(
        lt, err,
        sq_fail(&lt->last, code, "%s: %s (%s)", what, cudaGetErrorName(e), cudaGetErrorString(e)));
}

static enum sq_code code_of(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_ALLOC_FAILED:
        return SQ_E_NOMEM;
    case CUBLAS_STATUS_NOT_SUPPORTED:
    case CUBLAS_STATUS_ARCH_MISMATCH:
    case CUBLAS_STATUS_INVALID_VALUE: /* of a shape or an alignment, not of the device */
        return SQ_E_NOTSUP;
    default:
        return SQ_E_DEVICE;
    }
}

int sq_lt_status(struct sq_lt *lt, cublasStatus_t s, const char *what, const struct sq_lt_mm *m,
                 struct sq_err *err)
{
    if (s == CUBLAS_STATUS_SUCCESS)
        return 0;
    const enum sq_code code = code_of(s);
    /* the reason behind the library's status, where the runtime has one */
    const cudaError_t under = cudaGetLastError();
    const char *why = under == cudaSuccess ? "" : cudaGetErrorName(under);
    int rc;
    if (m)
        rc = sq_fail(&lt->last, code, "%s, %s, [%d, %d] x %d rows (strides %d, %d, %d): %s%s%s",
                     what, kinds[kind_of(m)].name, m->n_out, m->k, m->n_rows, m->ldw, m->ldx,
                     m->ldy, cublasLtGetStatusName(s), *why ? ", " : "", why);
    else
        rc = sq_fail(&lt->last, code, "%s: %s%s%s", what, cublasLtGetStatusName(s),
                     *why ? ", " : "", why);
    return sq_lt_keep(lt, err, rc);
}

const char *sq_lt_last_error(const struct sq_lt *lt)
{
    return lt->last.msg;
}

/* --- one problem --- */

int sq_lt_bucket(int n_rows)
{
    if (n_rows <= 8)
        return n_rows <= 1 ? 1 : n_rows <= 2 ? 2 : n_rows <= 4 ? 4 : 8;
    int b = 16;
    while (b < n_rows && b <= INT32_MAX / 2) {
        if (b / 2 * 3 >= n_rows)
            return b / 2 * 3;
        b *= 2;
    }
    return b;
}

int sq_lt_align(const struct sq_lt_mm *m)
{
    const size_t in = (size_t)kinds[kind_of(m)].in_bytes, out = (size_t)kinds[kind_of(m)].out_bytes;
    const size_t bits = (size_t)m->w | (size_t)m->x | (size_t)m->y | (size_t)m->ldw * in |
                        (size_t)m->ldx * in | (size_t)m->ldy * out | 16;
    return (int)(bits & -bits);
}

struct sq_lt_key sq_lt_key_of(const struct sq_lt_mm *m)
{
    return (struct sq_lt_key){kind_of(m), m->n_out, m->k, sq_lt_bucket(m->n_rows), sq_lt_align(m)};
}

int sq_lt_check(struct sq_lt *lt, const struct sq_lt_mm *m, struct sq_err *err)
{
    const int kind = kind_of(m), unit = m->dtype == SQ_I8 ? 4 : 1;
    const char *why = NULL;
    if (!m->w || !m->x || !m->y)
        why = "an operand is missing";
    else if (m->n_out <= 0 || m->k <= 0 || m->n_rows <= 0 || m->ldw < m->k || m->ldx < m->k ||
             m->ldy < m->n_out)
        why = "sizes must be positive and strides no smaller than rows";
    else if (m->n_out % unit || m->k % unit || m->ldw % unit || m->ldx % unit || m->ldy % unit)
        why = "int8 needs outputs, inputs and strides that are multiples of 4";
    else if (m->dtype == SQ_I8 && m->k > SQ_K_MAX + SQ_LT_BIAS_COLS)
        why = "sums of so many products may leave 32 bits";
    else if (sq_lt_align(m) < (unit == 4 ? 4 : kinds[kind].in_bytes) ||
             (uintptr_t)m->y % (uintptr_t)kinds[kind].out_bytes)
        why = "an operand is not aligned";
    if (!why)
        return 0;
    return sq_lt_keep(
        lt, err,
        sq_fail(&lt->last, SQ_E_NOTSUP, "matmul %s, [%d, %d] x %d rows (strides %d, %d, %d): %s",
                kinds[kind].name, m->n_out, m->k, m->n_rows, m->ldw, m->ldx, m->ldy, why));
}

/* Column-major for the library: w is [k, n_out], x [k, n_rows], y [n_out, n_rows]. */
cublasStatus_t sq_lt_describe(const struct sq_lt_mm *m, struct sq_lt_problem *ret)
{
    const int kind = kind_of(m);
    const uint64_t n_out = (uint64_t)m->n_out, k = (uint64_t)m->k, n_rows = (uint64_t)m->n_rows;
    ret->kind = kind;
    cublasStatus_t s = cublasLtMatrixLayoutInit(&ret->w, kinds[kind].in, k, n_out, m->ldw);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutInit(&ret->x, kinds[kind].in, k, n_rows, m->ldx);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatrixLayoutInit(&ret->y, kinds[kind].out, n_out, n_rows, m->ldy);
    return s;
}

cublasStatus_t sq_lt_launch(struct sq_lt *lt, const struct sq_lt_problem *p,
                            const struct sq_lt_mm *m, const cublasLtMatmulAlgo_t *algo)
{
    static const int32_t i_one = 1, i_zero = 0;
    static const float f_one = 1.0f, f_zero = 0.0f;
    const bool ints = p->kind == SQ_LT_S32;
    const void *alpha = p->kind == SQ_LT_S8 ? (const void *)m->alpha
                        : ints              ? (const void *)&i_one
                                            : (const void *)&f_one;
    struct sq_lt_problem d = *p; /* the library's handles are not const */
    return cublasLtMatmul(lt->handle, &lt->desc[p->kind], alpha, m->w, &d.w, m->x, &d.x,
                          ints ? (const void *)&i_zero : (const void *)&f_zero, m->y, &d.y, m->y,
                          &d.y, algo, lt->workspace, lt->workspace_bytes, lt->st);
}

/* --- which algorithms --- */

/* Partial sums of a split K may be added in the accumulator's type only: in the output's they would be rounded twice (and int8 ones cut), and
 * in place float sums would come in any order. */
static const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

static cublasStatus_t preference(cublasLtMatmulPreferenceOpaque_t *p, int kind, uint32_t align,
                                 size_t bytes)
{
    const uint64_t most = bytes;
    /* sq_lt_check has seen to it that y is aligned to its own type, the wider one */
    const uint32_t align_y = SQ_MAX(align, (uint32_t)kinds[kind].out_bytes);
    cublasStatus_t s = cublasLtMatmulPreferenceInit(p);
    const struct {
        cublasLtMatmulPreferenceAttributes_t key;
        const void *value;
        size_t n_bytes;
    } set[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align, sizeof align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align, sizeof align},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_y, sizeof align_y},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_y, sizeof align_y},
    };
    for (size_t i = 0; i < SQ_ARRAY_LEN(set) && s == CUBLAS_STATUS_SUCCESS; i++)
        s = cublasLtMatmulPreferenceSetAttribute(p, set[i].key, set[i].value, set[i].n_bytes);
    return s;
}

static bool is_usable(const cublasLtMatmulHeuristicResult_t *r, size_t workspace_bytes)
{
    struct sq_lt_config c;
    if (r->state != CUBLAS_STATUS_SUCCESS || r->workspaceSize > workspace_bytes)
        return false;
    sq_lt_config_of(&r->algo, &c);
    return (c.v[CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME] & ~reductions) == 0;
}

cublasStatus_t sq_lt_candidates(struct sq_lt *lt, const struct sq_lt_problem *p, int align,
                                cublasLtMatmulAlgo_t ret_algos[SQ_LT_CANDIDATES], int *ret_n)
{
    cublasLtMatmulHeuristicResult_t found[SQ_LT_CANDIDATES];
    cublasLtMatmulPreferenceOpaque_t pref;
    struct sq_lt_problem d = *p;
    int n = 0, n_kept = 0;
    cublasStatus_t s = preference(&pref, p->kind, (uint32_t)align, lt->workspace_bytes);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulAlgoGetHeuristic(lt->handle, &lt->desc[p->kind], &d.w, &d.x, &d.y, &d.y,
                                           &pref, SQ_LT_CANDIDATES, found, &n);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    for (int i = 0; i < n && i < SQ_LT_CANDIDATES; i++)
        if (is_usable(&found[i], lt->workspace_bytes))
            ret_algos[n_kept++] = found[i].algo;
    *ret_n = n_kept;
    return n_kept ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

/* --- running --- */

bool sq_lt_is_refusal(cublasStatus_t s)
{
    return s == CUBLAS_STATUS_NOT_SUPPORTED || s == CUBLAS_STATUS_INVALID_VALUE ||
           s == CUBLAS_STATUS_ARCH_MISMATCH;
}

/* Asks for the exact shape. The answer is kept only where the bucket had none. */
static cublasStatus_t ask_and_launch(struct sq_lt *lt, const struct sq_lt_problem *p,
                                     const struct sq_lt_mm *m, const struct sq_lt_key *key,
                                     bool is_new)
{
    cublasLtMatmulAlgo_t algos[SQ_LT_CANDIDATES];
    int n;
    cublasStatus_t s = sq_lt_candidates(lt, p, key->align, algos, &n);
    if (s != CUBLAS_STATUS_SUCCESS)
        return s;
    lt->stats.asked_late++;
    for (int i = 0; i < n; i++) {
        s = sq_lt_launch(lt, p, m, &algos[i]);
        if (s == CUBLAS_STATUS_SUCCESS && is_new)
            sq_lt_entry_put(lt, key, &algos[i]);
        if (!sq_lt_is_refusal(s))
            break;
    }
    return s;
}

int sq_lt_matmul(struct sq_lt *lt, const struct sq_lt_mm *m)
{
    struct sq_lt_problem p;
    if (m->n_rows == 0)
        return 0;
    int rc = sq_lt_check(lt, m, NULL);
    if (rc)
        return rc;
    const struct sq_lt_key key = sq_lt_key_of(m);
    const struct sq_lt_entry *e = sq_lt_entry_find(lt, &key);
    cublasStatus_t s = sq_lt_describe(m, &p);
    if (s == CUBLAS_STATUS_SUCCESS && e)
        s = sq_lt_launch(lt, &p, m, &e->algo);
    if (!e || sq_lt_is_refusal(s))
        s = ask_and_launch(lt, &p, m, &key, !e);
    return sq_lt_status(lt, s, "cublasLtMatmul", m, NULL);
}

/* --- opening --- */

static cublasStatus_t describe_kinds(struct sq_lt *lt)
{
    const int32_t turned = CUBLAS_OP_T,
                  vector = CUBLASLT_POINTER_MODE_ALPHA_DEVICE_VECTOR_BETA_HOST;
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;
    for (int i = 0; i < SQ_LT_N_KINDS && s == CUBLAS_STATUS_SUCCESS; i++) {
        s = cublasLtMatmulDescInit(&lt->desc[i], kinds[i].compute, kinds[i].scale);
        if (s == CUBLAS_STATUS_SUCCESS)
            s = cublasLtMatmulDescSetAttribute(&lt->desc[i], CUBLASLT_MATMUL_DESC_TRANSA, &turned,
                                               sizeof turned);
        if (s == CUBLAS_STATUS_SUCCESS && i == SQ_LT_S8)
            s = cublasLtMatmulDescSetAttribute(&lt->desc[i], CUBLASLT_MATMUL_DESC_POINTER_MODE,
                                               &vector, sizeof vector);
    }
    return s;
}

static bool ends_with(const char *s, const char *tail)
{
    const size_t n = strlen(s), m = strlen(tail);
    return n >= m && strcmp(s + n - m, tail) == 0;
}

static int open_parts(struct sq_lt *lt, const struct sq_lt_options *o, struct sq_err *err)
{
    int rc = sq_lt_file_open(&lt->file, o, &lt->stats, err);
    if (!rc)
        rc = sq_lt_status(lt, cublasLtCreate(&lt->handle), "cublasLtCreate", NULL, err);
    if (!rc)
        rc = sq_lt_status(lt, describe_kinds(lt), "describing matmuls", NULL, err);
    if (!rc)
        rc = sq_lt_cuda_status(lt, cudaEventCreate(&lt->from), "cudaEventCreate", err);
    if (!rc)
        rc = sq_lt_cuda_status(lt, cudaEventCreate(&lt->to), "cudaEventCreate", err);
    return rc ? rc : sq_lt_probe_open(lt, err);
}

int sq_lt_open(const struct sq_lt_options *o, cudaStream_t st, struct sq_lt **ret,
               struct sq_err *err)
{
    SQ_ASSERT(o->workspace && (uintptr_t)o->workspace % 256 == 0);
    SQ_ASSERT(o->workspace_bytes >= SQ_LT_WORKSPACE);
    struct sq_lt *lt = sq_new(struct sq_lt);
    if (!lt)
        return sq_fail(err, SQ_E_NOMEM, "no memory for the table of matmul algorithms");
    lt->st = st;
    lt->workspace = o->workspace;
    lt->workspace_bytes = (o->workspace_bytes - SQ_LT_PROBE_BYTES) / 256 * 256;
    lt->is_timed = !ends_with(o->device_name, "(softgpu)");
    int rc = open_parts(lt, o, err);
    if (rc) {
        sq_lt_close(lt);
        return rc;
    }
    *ret = lt;
    return 0;
}

int sq_lt_save(struct sq_lt *lt, struct sq_err *err)
{
    return sq_lt_file_save(&lt->file, err);
}

void sq_lt_close(struct sq_lt *lt)
{
    if (!lt)
        return;
    /* nobody is left to be told of a failure, and what failed may be the device: everything is given back all the same */
    int unsaved = sq_lt_file_save(&lt->file, NULL);
    (void)unsaved;
    if (lt->to)
        (void)cudaEventDestroy(lt->to);
    if (lt->from)
        (void)cudaEventDestroy(lt->from);
    if (lt->handle)
        (void)cublasLtDestroy(lt->handle);
    sq_lt_probe_free(lt->probe);
    sq_lt_file_done(&lt->file);
    sq_free(lt);
}

enum sq_lt_round sq_lt_rounding(const struct sq_lt *lt)
{
    return lt->round;
}

const char *sq_lt_round_name(enum sq_lt_round r)
{
    static const char *const names[] = {"rne", "rz", "rna", "other"};
    return names[r];
}

bool sq_lt_is_timed(const struct sq_lt *lt)
{
    return lt->is_timed;
}

void sq_lt_get_stats(const struct sq_lt *lt, struct sq_lt_stats *ret)
{
    *ret = lt->stats;
}

/* --- a bias along K --- */

bool sq_lt_bias_fits(int64_t bias, int k)
{
    const int64_t size = bias < 0 ? -bias : bias;
    return size <= SQ_LT_BIAS_MAX && (int64_t)k * 128 * 128 + size <= INT32_MAX;
}

void sq_lt_bias_digits(int32_t bias, int8_t digits[SQ_LT_BIAS_COLS])
{
    enum { HIGH = SQ_LT_BIAS_COLS - 1 };
    SQ_ASSERT(bias >= -SQ_LT_BIAS_MAX && bias <= SQ_LT_BIAS_MAX);
    int q = bias / 127; /* towards zero: the rest has the bias's sign */
    if (q > HIGH * 127 || q < -HIGH * 127)
        q = q > 0 ? HIGH * 127 : -HIGH * 127;
    digits[HIGH] = (int8_t)(bias - q * 127);
    for (int i = 0; i < HIGH; i++) {
        digits[i] = (int8_t)SQ_MAX(-127, SQ_MIN(127, q));
        q -= digits[i];
    }
}

void sq_lt_bias_ones(int8_t ones[SQ_LT_BIAS_COLS])
{
    memset(ones, 127, SQ_LT_BIAS_COLS - 1);
    ones[SQ_LT_BIAS_COLS - 1] = 1;
}
