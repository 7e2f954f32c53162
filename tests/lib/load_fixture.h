/* A tiny model in memory with a recording backend, for tests of the loader. Asserts with cmocka. */
#pragma once

#include "engine/model/model.h"
#include "tests/lib/backend_record.h"
#include "tests/lib/model_files.h"

#define P "model.decoder."
#define L0 P "layers.0."
#define L1 P "layers.1."

struct sq_load_fixture {
    struct sq_config c;
    struct sq_file_tensors l;
    struct sq_record be;
    struct sq_source *src;
    struct sq_model *m;
};

/* Two layers of 16 channels, two heads, 20 tokens; F16 but for codes and scales. */
struct sq_config sq_load_config(enum sq_scheme scheme);
/* Two layers of 16 channels, four heads on two of keys and values, 20 tokens; BF16 but for codes and scales. */
struct sq_config sq_load_llama_config(enum sq_scheme scheme);
void sq_load_init(struct sq_load_fixture *f, const struct sq_config *c);
int sq_load_try(struct sq_load_fixture *f, const struct sq_load_options *o, struct sq_err *err);
void sq_load_must(struct sq_load_fixture *f, const struct sq_load_options *o);
/* Loading fails with this code and a message that has this text. */
void sq_load_fails(struct sq_load_fixture *f, int code, const char *text);
/* Loads with every allocation failing once, alone and with all behind it: nothing stays on the backend. Ends with a model. */
void sq_load_starved(struct sq_load_fixture *f, const struct sq_load_options *o);
/* Frees it all; nothing may be left on the backend. */
void sq_load_done(struct sq_load_fixture *f);

/* The tensor's values as f32; freed by the caller. */
float *sq_load_values(struct sq_load_fixture *f, const char *name);
/* Puts an F32 tensor in its place. */
void sq_load_set_floats(struct sq_load_fixture *f, const char *name, int rank, size_t rows,
                        size_t cols, const float *v);
void sq_load_set_scale(struct sq_load_fixture *f, const char *name, float v);
/* Takes every tensor out whose name ends so. */
void sq_load_drop_all(struct sq_load_fixture *f, const char *suffix);

/* What a finished linear was made and finished with. */
void sq_load_check_linear(const struct sq_linear *l, size_t n_out, size_t n_in, enum sq_dtype dtype,
                          bool dynamic, enum sq_out out, enum sq_act act);
