/* The CPU backend. */
#pragma once

#include "engine/backend.h"

struct sq_cpu_options {
    int n_threads; /* 0 = as many as processors; the engine thread counts as one */
    const char *
        variant; /* NULL = the best this processor runs; else "ref", "AVX2", "AVX-VNNI" or "AVX512-VNNI" */
};

/* Errors: -SQ_E_NOTSUP when the named variant cannot run here (the message lists those that can), -SQ_E_NOMEM. */
int sq_cpu_open(const struct sq_cpu_options *o, struct sq_backend **ret,
                struct sq_err *err) SQ_CHECKED;

/* Names of the variants this processor runs, best first, NULL-terminated. */
const char *const *sq_cpu_variant_names(void);
