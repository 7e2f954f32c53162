/* Live jobs by id, for the calls that name a request. Not locked: the engine's lock guards it. */
#pragma once

#include "engine/run/job.h"

struct sq_registry {
    struct sq_job **buckets; /* [n_buckets], owned; chains through hash_next */
    size_t n_buckets;        /* a power of two */
};

int sq_registry_init(struct sq_registry *r, size_t n_expected, struct sq_err *err) SQ_CHECKED;
void sq_registry_done(struct sq_registry *r); /* asserts that it is empty; fine on a zeroed one */

void sq_registry_put(struct sq_registry *r, struct sq_job *j); /* asserts that the id is new */
struct sq_job *sq_registry_find(const struct sq_registry *r, sq_req_id id); /* NULL = not there */
void sq_registry_remove(struct sq_registry *r, struct sq_job *j);
