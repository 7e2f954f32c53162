/* A backend that keeps what a loader gives it, for tests that look at every byte of it. It asserts the promises of backend.h: rows put once
 * each, finish after the last, nothing freed twice. */
#pragma once

#include "engine/backend.h"

struct sq_linear {
    struct sq_linear_desc d; /* d.name owned */
    unsigned char *rows;     /* [n_out, n_in] in d.dtype */
    bool *put;               /* [n_out] */
    float *mul, *bias;       /* [n_out], NULL where none was given */
    int32_t *bias_acc;
    bool finished;
};

struct sq_norm {
    struct sq_norm_desc d; /* vectors owned */
};

struct sq_rope {
    struct sq_rope_desc d; /* tables owned */
};

struct sq_record {
    struct sq_backend base;
    int n_linears, n_norms, n_ropes; /* alive */
    int fail_at; /* the k-th call of linear_put from now fails with SQ_E_DEVICE; 0 = off */
};

void sq_record_init(struct sq_record *r);
