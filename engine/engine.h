/* The engine seam: what api/ and daemon/ see of the running model.
 *
 * The engine owns one thread. Requests are named by 64-bit ids that are never reused, and everything handed in is copied: no pointer of the
 * caller stays inside. submit, cancel, credit, drain and stats may be called from the loop thread; they never block on a step.
 * Results come as events: after each step all events go out under one lock, then wake(ctx) is called once (any thread); the loop then calls
 * take_events. Every accepted request gets exactly one event with finish != SQ_FINISH_NONE, its last. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/base/err.h"
#include "engine/base/mbox.h"

struct sq_engine;
struct sq_model;
typedef uint64_t sq_req_id;

struct sq_token_bias {
    int32_t id;
    float bias; /* -100..100, added to the logit */
};

/* Neutral values in brackets. The border has checked ranges; ids are < vocabulary. */
struct sq_sampling {
    float temperature;         /* 0 = greedy */
    float top_p, min_p;        /* [1], [0]; top_p 0 keeps the most likely token only */
    int top_k;                 /* [0] = off */
    float presence, frequency; /* [0], over generated tokens */
    float repetition;          /* [1], over prompt and generated tokens */
    uint64_t seed;
    int max_tokens, min_tokens; /* >= 1, >= 0 */
    bool ignore_eos;
    const int32_t *stop_ids; /* [n_stop_ids], beside the model's eos */
    int n_stop_ids;
    const struct sq_token_bias *bias; /* [n_bias] */
    int n_bias;
};

struct sq_request {
    sq_req_id id;
    const int32_t *ids; /* [n_ids] prompt, n_ids >= 1; n_ids + max_tokens <= context */
    int n_ids;
    struct sq_sampling sampling;
    int credit; /* tokens the engine may send before more credit comes; a sequence without credit is parked, not dropped */
};

enum sq_finish {
    SQ_FINISH_NONE,
    SQ_FINISH_EOS, /* end-of-sequence or stop id; the token itself is not part of the text */
    SQ_FINISH_LENGTH,
    SQ_FINISH_CANCELLED,
    SQ_FINISH_FAILED, /* device error or non-finite logits */
};

struct sq_event {
    struct sq_node node; /* first member: a chain of events */
    sq_req_id id;
    int32_t token; /* -1: none (cancelled, failed) */
    enum sq_finish finish;
    int n_generated;        /* so far, this token included; an eos token is not counted */
    uint64_t t_ns;          /* when the step ended, sq_now_ns */
    uint64_t t_admitted_ns; /* when the sequence first entered a step */
};

struct sq_engine_options {
    struct sq_model *model; /* borrowed, must outlive the engine */
    int max_sequences;      /* running at once */
    int max_step_tokens;    /* rows per step: decode rows first, then chunks of prompts */
    int max_chunk; /* rows of one sequence per step; 0 = no bound. No effect on any token: for tests and for latency */
    int max_context; /* <= the model's; 0 = the model's */
    int kv_blocks; /* of SQ_KV_BLOCK tokens; 0 = enough for max_sequences * max_context, capped by kv_bytes */
    uint64_t kv_bytes; /* cap, 0 = none */
    int max_queue;     /* waiting sequences, beside those that could start at once */
    int64_t
        max_queue_tokens; /* prompt tokens of waiting sequences; an empty queue takes any one submit */
    bool sizes_only;      /* no warm-up: the model's matrices may be empty, nothing is ever run */
    void (*wake)(void *ctx); /* called from the engine thread without locks; may be NULL */
    void *ctx;
};

/* Allocates everything and warms up; no thread yet. Errors: -SQ_E_NOMEM, -SQ_E_LIMIT (the message names the smallest setting that fits),
 * -SQ_E_INVAL (a size that is not positive), -SQ_E_DEVICE. */
int sq_engine_open(const struct sq_engine_options *o, struct sq_engine **ret,
                   struct sq_err *err) SQ_CHECKED;
int sq_engine_start(struct sq_engine *e, struct sq_err *err) SQ_CHECKED;
/* Cancels what is left, joins the thread, asserts that every KV block came back. Untaken events are freed. */
struct sq_engine *sq_engine_close(struct sq_engine *e);

#define SQ_ENGINE_FULL 1     /* queue bound reached: 429 */
#define SQ_ENGINE_DRAINING 2 /* 503 */
#define SQ_ENGINE_FAULT 3    /* the device failed: 503 */
/* All n requests or none. 0, one of the outcomes above, or -SQ_E_NOMEM; -SQ_E_LIMIT or -SQ_E_INVAL where a request breaks its promise
 * (longer than the context, an id outside the vocabulary). */
int sq_engine_submit(struct sq_engine *e, const struct sq_request *reqs, int n,
                     struct sq_err *err) SQ_CHECKED;
void sq_engine_cancel(
    struct sq_engine *e,
    sq_req_id id); /* idempotent; unknown ids are fine; takes effect at the next step boundary */
void sq_engine_credit(struct sq_engine *e, sq_req_id id, int n_tokens);
void sq_engine_drain(struct sq_engine *e); /* refuse new work, finish what is there */
struct sq_event *sq_engine_take_events(
    struct sq_engine *e); /* chain, oldest first, or NULL; free with sq_events_free */
void sq_events_free(struct sq_event *first);

struct sq_engine_stats { /* a snapshot from atomics: never waits for the engine thread */
    int running, waiting;
    int64_t waiting_tokens;
    int kv_blocks, kv_used;
    uint64_t kv_bytes;
    uint64_t n_steps;
    uint64_t last_step_ns; /* sq_now_ns at the end of the last step, 0 = none yet */
    double tokens_per_s;   /* measured drain rate of rows, smoothed; 0 = unknown yet */
    bool fault;
    int max_context, vocab;
};
void sq_engine_stats(struct sq_engine *e, struct sq_engine_stats *ret);
/* What broke, once the stats say fault; "" before. Valid until close. */
const char *sq_engine_fault_text(const struct sq_engine *e);
