/* What gemm_lt.c, lt_choose.c, lt_algos.c and lt_probe.c share: the library's descriptors on our side, algorithms as numbers, the tables. */
#pragma once

#include <cublasLt.h>

#include "cuda/gemm_lt.h"

/* Types in and out. The names are in the cache's file. */
enum sq_lt_kind { SQ_LT_S32, SQ_LT_S8, SQ_LT_F16, SQ_LT_BF16, SQ_LT_F32, SQ_LT_N_KINDS };
const char *sq_lt_kind_name(int kind);

#define SQ_LT_CANDIDATES 16

/* One matmul as the library sees it; lives on the stack. */
struct sq_lt_problem {
    int kind;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

/* align: bytes that all pointers and leading dimensions are multiples of; 2, 4, 8 or 16 */
struct sq_lt_key {
    int32_t kind, n_out, k, bucket, align;
};

/* The documented attributes of an algorithm, in the order of cublasLtMatmulAlgoConfigAttributes_t. */
#define SQ_LT_CONFIG_LEN 9
struct sq_lt_config {
    uint32_t v[SQ_LT_CONFIG_LEN];
};

/* --- lt_algos.c: what runs for a key, and what the file says --- */

struct sq_lt_entry {
    bool used;
    struct sq_lt_key key;
    cublasLtMatmulAlgo_t algo;
};
#define SQ_LT_SLOTS 2048 /* a power of two; at most half of them are used */
#define SQ_LT_SAVED 1024
struct sq_lt_saved {
    struct sq_lt_key key;
    struct sq_lt_config config;
    uint32_t ns; /* for whoever reads the file */
};
struct sq_lt_file {
    char *path; /* NULL: nothing is kept */
    char head[192];
    struct sq_lt_saved lines[SQ_LT_SAVED];
    int n, next; /* lines in use; the one that is replaced when all are */
    bool dirty;
};

void sq_lt_config_of(const cublasLtMatmulAlgo_t *algo, struct sq_lt_config *ret);

/* path and head from the library's version and the device; then the file, if there is one. */
int sq_lt_file_open(struct sq_lt_file *f, const struct sq_lt_options *o, struct sq_lt_stats *stats,
                    struct sq_err *err) SQ_CHECKED;
void sq_lt_file_done(struct sq_lt_file *f);
const struct sq_lt_saved *sq_lt_file_find(const struct sq_lt_file *f, const struct sq_lt_key *key);
void sq_lt_file_put(struct sq_lt_file *f, const struct sq_lt_saved *line);
int sq_lt_file_save(struct sq_lt_file *f, struct sq_err *err) SQ_CHECKED;

/* --- lt_probe.c --- */

struct sq_lt_probe; /* operands on the host */
#define SQ_LT_PROBE_BYTES ((size_t)512 << 10)

struct sq_lt {
    cublasLtHandle_t handle;
    cudaStream_t st;
    cudaEvent_t from, to;
    cublasLtMatmulDescOpaque_t desc[SQ_LT_N_KINDS];
    void *workspace;
    size_t workspace_bytes; /* the library's part; the probe's matrices are behind it */
    bool is_timed;
    enum sq_lt_round round;
    struct sq_lt_probe *probe;
    struct sq_lt_entry entries[SQ_LT_SLOTS];
    int n_entries;
    struct sq_lt_file file;
    struct sq_lt_stats stats;
    struct sq_err last;
};

/* NULL if it is not there. */
struct sq_lt_entry *sq_lt_entry_find(struct sq_lt *lt, const struct sq_lt_key *key);
/* Replaces or adds; false: the table is full. */
bool sq_lt_entry_put(struct sq_lt *lt, const struct sq_lt_key *key,
                     const cublasLtMatmulAlgo_t *algo);

/* --- gemm_lt.c --- */

/* Hands on what is in lt->last. */
int sq_lt_keep(struct sq_lt *lt, struct sq_err *err, int rc);
/* 0 or -SQ_E_*: the text goes to lt->last and err. what: the call; m may be NULL. */
int sq_lt_cuda_status(struct sq_lt *lt, cudaError_t e, const char *what, struct sq_err *err);
int sq_lt_status(struct sq_lt *lt, cublasStatus_t s, const char *what, const struct sq_lt_mm *m,
                 struct sq_err *err);
/* Whether a shape is refused, which another algorithm may not do; not a fault of the device. */
bool sq_lt_is_refusal(cublasStatus_t s);
/* Refuses what no algorithm could take; the library would say so in fewer words. */
int sq_lt_check(struct sq_lt *lt, const struct sq_lt_mm *m, struct sq_err *err) SQ_CHECKED;
struct sq_lt_key sq_lt_key_of(const struct sq_lt_mm *m);
cublasStatus_t sq_lt_describe(const struct sq_lt_mm *m, struct sq_lt_problem *ret);
int sq_lt_align(const struct sq_lt_mm *m);
/* Usable ones, the favourite first: they fit into the workspace and sum in the accumulator's type. */
cublasStatus_t sq_lt_candidates(struct sq_lt *lt, const struct sq_lt_problem *p, int align,
                                cublasLtMatmulAlgo_t ret_algos[SQ_LT_CANDIDATES], int *ret_n);
cublasStatus_t sq_lt_launch(struct sq_lt *lt, const struct sq_lt_problem *p,
                            const struct sq_lt_mm *m, const cublasLtMatmulAlgo_t *algo);

/* lt_probe.c: sets lt->probe and lt->round; checks the sums. */
int sq_lt_probe_open(struct sq_lt *lt, struct sq_err *err) SQ_CHECKED;
void sq_lt_probe_free(struct sq_lt_probe *p);
/* Does an algorithm for s8 output round as lt->round says? One that does not take the probe's shape counts as one that does. */
int sq_lt_probe_agrees(struct sq_lt *lt, const cublasLtMatmulAlgo_t *algo, bool *ret,
                       struct sq_err *err) SQ_CHECKED;
