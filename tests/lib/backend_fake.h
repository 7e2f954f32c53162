/* A backend without arithmetic, for tests of everything above it.
 *
 * Every row of an activation buffer is one 64-bit hash of all that went into it: token, position,
 * the weights passed, and the KV cells actually read through the block table. So a wrong block,
 * position, row or order changes the tokens, while a step costs microseconds. Shapes, kinds and the
 * batch's promises are asserted, also that a KV cell holds the position that is read from it.
 *
 * The logits of a row are pseudo-random in -4..4, a function of its hash and the options alone.
 * Threads: as backend.h; the counters and the fault switch may be used from any thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/backend.h"
#include "engine/model/model.h"

struct sq_fake_options {
    int vocab, context;     /* 0 = 256, 512 */
    int n_layers, hidden;   /* 0 = 2, 16; hidden a multiple of 8 (two heads) */
    int32_t eos;            /* a token id, or -1 = the model has none */
    unsigned eos_one_in;    /* the likeliest token is eos in about one of so many rows; 0 = never */
    unsigned step_delay_us; /* added to every step */
    int32_t nan_id;         /* rows whose input token is this one have NaN logits; 0 = off */
    /* The likeliest next token after token id at position pos; NULL = pseudo-random. Called from
     * the engine thread. */
    int32_t (*next)(void *ctx, int32_t id, int pos);
    void *ctx;
    /* The shape of the model, for tests of forward.c; all zero = float, pre-norm. */
    enum sq_scheme scheme;
    bool int8_attention, post_norm, project, head_int8;
    bool gated; /* a LLaMA block: rotary positions, SwiGLU; one KV head for both query heads */
};

/* A small model of the OPT family (or like LLaMA's) on a fake backend of its own; o may be NULL (but then eos is -1).
 * NULL: no memory. Free with sq_fake_model_free, which closes the backend, too. */
struct sq_model *sq_fake_model_new(const struct sq_fake_options *o);
struct sq_model *sq_fake_model_free(struct sq_model *m);

/* The backend alone; sq_fake_model_new calls it. o is copied. NULL: no memory. */
struct sq_backend *sq_fake_open(const struct sq_fake_options *o);

/* The k-th op from now (1-based; embed ... sync, in call order) fails with -SQ_E_DEVICE, and so
 * does every later one. 0 = off, healed. */
void sq_fake_fail_at(struct sq_backend *be, uint64_t k);

struct sq_fake_counts {
    uint64_t n_ops;           /* since open or the last sq_fake_fail_at */
    uint64_t n_steps, n_rows; /* passes through layer 0, and their rows */
    uint64_t n_argmax, n_views;
    int n_objects; /* buffers, linears, norms, rotations, caches alive */
    int max_step_rows, max_step_seqs;
};
void sq_fake_counts(struct sq_backend *be, struct sq_fake_counts *ret);

/* Records the ops of the coming steps as text ("norm f>q; linear qkv.0 q>q"). q stands for an S8
 * buffer, f for F32, x for a result added to what is there or written over its source. buf is the
 * caller's, borrowed until the next call; NULL = off. */
void sq_fake_trace(struct sq_backend *be, char *buf, size_t n_buf);
