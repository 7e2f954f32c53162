/* An engine on a fake model, with what came of each of its requests: for tests of the engine with
 * its thread. One test thread owns a rig. Everything here asserts with cmocka. */
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/engine.h"
#include "tests/lib/backend_fake.h"

#define RIG_REQS 64
#define RIG_TOKENS 80
#define RIG_PLENTY 1000000

/* What came of one request. */
struct outcome {
    int32_t tokens[RIG_TOKENS];
    int n;
    enum sq_finish finish; /* NONE: still open */
};

struct rig {
    struct sq_model *model;
    struct sq_engine *e;
    pthread_mutex_t lock;
    pthread_cond_t woken;
    bool is_woken;
    uint64_t n_wakes;
    struct outcome out[RIG_REQS]; /* by id */
    int n_open;
};

extern const struct sq_engine_options rig_roomy; /* 8 sequences, 64 rows, plenty of everything */
extern const struct sq_fake_options rig_fake;

void rig_open(struct rig *r, const struct sq_fake_options *fake, const struct sq_engine_options *o);
void rig_start(struct rig *r, const struct sq_fake_options *fake,
               const struct sq_engine_options *o);
void rig_close(struct rig *r);

/* Books the events that have come; every promise about a single event is checked here. */
void rig_take(struct rig *r);
/* Waits for the next wake-up, at most 10 s, and takes its events. */
void rig_wait_wake(struct rig *r);
void rig_wait_all(struct rig *r);
void rig_pause_ms(long ms);
/* Waits until the figures say that nothing is running, waiting or held. */
void rig_check_idle(struct rig *r);

/* The i-th of a family of requests: all settings occur. ids: [128], scratch of the caller. */
struct sq_request rig_request(int i, int32_t *ids);
int rig_put(struct rig *r, int i);

/* What each request of the family gives alone on rig_fake; filled by rig_make_solo, once. */
extern struct outcome rig_solo[RIG_REQS];
void rig_make_solo(void);
void rig_assert_same(const struct outcome *a, const struct outcome *b);
