/* Inside of sq_model_load: what its parts (load.c, weights_*.c) share during one load. */
#pragma once

#include "engine/base/mem.h"
#include "engine/model/expect.h"
#include "engine/model/model.h"

#define SQ_STAGE_BYTES (2u << 20)

struct sq_loader {
    struct sq_source *src;
    const struct sq_config *c;
    struct sq_backend *be;
    const struct sq_load_options *o;
    const char *prefix;
    struct sq_model *m;
    unsigned char *stage;     /* [SQ_STAGE_BYTES] rows on their way; 64-aligned */
    uint64_t n_total, n_done; /* elements of matrices, for progress */
    struct sq_err *err;
};

/* One (fused) linear to be made: the rows of its roles one after the other. */
struct sq_linear_plan {
    const char *name; /* of the module, for messages */
    enum sq_role roles[3];
    int n_roles, layer;
    bool pairs; /* two roles, row by row in turn */
    bool table; /* rows are only looked up */
    enum sq_out out;
    enum sq_act act;
    float in_step;     /* static input step; 0: float weights, or input scales per row */
    float out_step[3]; /* per role, for SQ_OUT_S8 */
};

/* weights_check.c: rule C4 over all tensors, before anything is made on the backend; sets n_total. */
int sq_load_check(struct sq_loader *ld) SQ_CHECKED;

/* weights_scales.c: per-tensor steps of all layers into m->layers and attn. out_steps: [n_layers][3], for q, k, v, 0 without int8 attention. */
int sq_load_steps(struct sq_loader *ld, float (*out_steps)[3]) SQ_CHECKED;
/* Weight scales of a role, expanded to one per row. Rules Q2 to Q5. */
int sq_load_weight_scales(struct sq_loader *ld, enum sq_role role, int layer, float *dst,
                          size_t n_rows) SQ_CHECKED;

/* weights_linear.c: any linear by plan; int8 if its stored weights are. */
int sq_load_linear(struct sq_loader *ld, const struct sq_linear_plan *p,
                   struct sq_linear **ret) SQ_CHECKED;
/* weights_head.c: m->head, for every combination of tied or not, stored float or int8, kept or quantised here. */
int sq_load_head(struct sq_loader *ld) SQ_CHECKED;

/* weights_norm.c: step > 0: with an int8 output for a consumer of that static step. */
int sq_load_norm(struct sq_loader *ld, enum sq_role role, int layer, float step,
                 struct sq_norm **ret) SQ_CHECKED;
/* weights_rope.c: m->rope, for all positions of the configuration. */
int sq_load_rope(struct sq_loader *ld) SQ_CHECKED;
/* Radians per position of each pair, [head_dim / 2], in float32 as transformers has them (modeling_rope_utils). */
void sq_rope_frequencies(const struct sq_config *c, float *ret);
/* A vector of n floats, all finite (Q8). */
int sq_load_vector(struct sq_loader *ld, const char *name, float *dst, size_t n) SQ_CHECKED;

/* --- helpers ------------------------------------------------------------------------------------------------------ */

/* Name of a part into buf[SQ_NAME_BYTES]; true and *ret_t filled if the source has it. */
bool sq_load_find(struct sq_loader *ld, enum sq_role role, int layer, enum sq_part part, char *buf,
                  struct sq_tensor_info *ret_t);
/* Called after n elements have arrived. */
void sq_load_progress(struct sq_loader *ld, size_t n_elems);
/* -SQ_E_INTR once somebody asked the load to stop. */
int sq_load_stopped(struct sq_loader *ld) SQ_CHECKED;
/* Rows [row0, row0 + n) into ld->stage, all finite where they are floats. */
int sq_load_rows(struct sq_loader *ld, const char *name, const struct sq_tensor_info *t,
                 size_t row0, size_t n) SQ_CHECKED;
/* Rows of t that fit into the stage when widened to f32 or not. */
size_t sq_load_rows_at_once(const struct sq_tensor_info *t, bool widened);
