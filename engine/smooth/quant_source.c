#include "engine/smooth/quant_source.h"

#include <math.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"
#include "engine/smooth/sites.h"

#define BLOCK_ROWS 16 /* rows quantised at a time */

/* A row far below its tensor's range keeps a step of at least this share of the tensor's: its
 * weights lose nothing that counts, and its bias stays representable in units of the accumulator.
 * */
#define MIN_ROW_SHARE 1e-3f

struct quant_source {
    struct sq_source base;
    struct sq_source *under; /* borrowed */
    const struct sq_steps *steps;
    struct sq_config config;
    const char *prefix;
    bool per_tensor;
    float **scale; /* [n_layers * SQ_N_LINEARS] of [n_out] or [1] */
    float *rows;   /* [BLOCK_ROWS, the longest row] */
};

enum part { PART_NONE, PART_WEIGHT, PART_WEIGHT_SCALE, PART_INPUT_SCALE, PART_OUTPUT_SCALE };

struct place {
    enum part part;
    int i_linear, layer;
};

static float step_of(double absmax)
{
    float s = (float)(absmax / 127.0);
    return sq_scale_ok(s) ? s : 1.0f; /* nothing ever seen: any step gives the code 0 */
}

/* max_j x[j] / s[j]; s NULL = 1 */
static double smoothed_max(const float *x, const float *s, size_t n)
{
    double m = 0;
    for (size_t j = 0; j < n; j++)
        m = fmax(m, (double)x[j] / (s ? (double)s[j] : 1.0));
    return m;
}

static void layer_steps(const struct sq_stats *stats, const struct sq_config *c,
                        const struct sq_smoothing *m, int layer, struct sq_steps *ret)
{
    float **x = stats->absmax + (size_t)layer * SQ_N_SITES;
    for (int i = 0; i < SQ_N_LINEARS; i++) {
        if (!sq_has_linear(c->family, i))
            continue;
        enum sq_site site = sq_role_site(sq_linear_roles[i]);
        const float *s = m ? sq_smoothing_in(m, sq_linear_roles[i], layer) : NULL;
        ret->in[(size_t)layer * SQ_N_SITES + site] =
            step_of(smoothed_max(x[site], s, stats->dim[site]));
    }
    const float *out = x[SQ_SITE_QKV_OUT];
    for (int i = 0; i < 3; i++) {
        size_t n = sq_role_n_out(c, sq_linear_roles[i]);
        const float *s = m ? sq_smoothing_out(m, sq_linear_roles[i], layer) : NULL;
        ret->out[layer * 3 + i] = step_of(smoothed_max(out, s, n));
        out += n;
    }
}

int sq_steps_make(const struct sq_stats *stats, const struct sq_config *config,
                  const struct sq_smoothing *m, struct sq_steps *ret, struct sq_err *err)
{
    struct sq_steps s = {sq_new_array(float, (size_t)config->n_layers *SQ_N_SITES),
                         sq_new_array(float, (size_t)config->n_layers * 3)};
    if (!s.in || !s.out) {
        sq_steps_done(&s);
        return sq_fail(err, SQ_E_NOMEM, "out of memory for activation steps");
    }
    for (int layer = 0; layer < config->n_layers; layer++)
        layer_steps(stats, config, m, layer, &s);
    *ret = s;
    return 0;
}

void sq_steps_done(struct sq_steps *s)
{
    sq_free(s->in);
    sq_free(s->out);
    *s = (struct sq_steps){0};
}

static struct place place_of(const struct quant_source *q, const char *name)
{
    static const struct {
        const char *suffix;
        enum part part;
    } parts[] = {{".weight", PART_WEIGHT},
                 {".weight_scale", PART_WEIGHT_SCALE},
                 {".input_scale", PART_INPUT_SCALE},
                 {".output_scale", PART_OUTPUT_SCALE}};
    struct place p = {0};
    enum sq_role role;
    const char *suffix;
    if (!sq_family_parse(q->config.family, q->prefix, name, &role, &p.layer, &suffix) ||
        p.layer >= q->config.n_layers)
        return (struct place){0};
    while (p.i_linear < SQ_N_LINEARS && sq_linear_roles[p.i_linear] != role)
        p.i_linear++;
    for (size_t i = 0; p.i_linear < SQ_N_LINEARS && i < SQ_ARRAY_LEN(parts); i++)
        if (strcmp(suffix, parts[i].suffix) == 0)
            p.part = parts[i].part;
    bool is_qkv = p.i_linear < 3;
    if ((p.part == PART_INPUT_SCALE && !q->steps) ||
        (p.part == PART_OUTPUT_SCALE && !(q->steps && is_qkv)))
        p.part = PART_NONE;
    return p;
}

static float *scale_of(const struct quant_source *q, struct place p)
{
    return q->scale[p.layer * SQ_N_LINEARS + p.i_linear];
}

static bool quant_find(struct sq_source *s, const char *name, struct sq_tensor_info *ret)
{
    struct quant_source *q = (struct quant_source *)s;
    struct place p = place_of(q, name);
    switch (p.part) {
    case PART_NONE:
        return q->under->ops->find(q->under, name, ret);
    case PART_WEIGHT:
        if (!q->under->ops->find(q->under, name, ret))
            return false;
        ret->dtype = SQ_I8;
        return true;
    default:
        *ret = (struct sq_tensor_info){.dtype = SQ_F32, .rank = 1, .shape = {1}, .n_elems = 1};
        if (p.part == PART_WEIGHT_SCALE && !q->per_tensor) {
            size_t n = sq_role_n_out(&q->config, sq_linear_roles[p.i_linear]);
            *ret =
                (struct sq_tensor_info){.dtype = SQ_F32, .rank = 2, .shape = {n, 1}, .n_elems = n};
        }
        return true;
    }
}

/* Any number of rows through the block of a few rows that the source owns. */
static int read_codes(struct quant_source *q, struct place p, const char *name, size_t row0,
                      size_t n_rows, int8_t *dst, struct sq_err *err)
{
    const size_t n_in = sq_role_n_in(&q->config, sq_linear_roles[p.i_linear]);
    const float *scale = scale_of(q, p);
    for (size_t done = 0; done < n_rows; done += BLOCK_ROWS) {
        size_t n = SQ_MIN((size_t)BLOCK_ROWS, n_rows - done);
        int rc = sq_source_read_f32(q->under, name, row0 + done, n, q->rows, err);
        if (rc)
            return rc;
        for (size_t r = 0; r < n; r++) {
            float s = scale[q->per_tensor ? 0 : row0 + done + r];
            for (size_t j = 0; j < n_in; j++)
                dst[(done + r) * n_in + j] = sq_sat_s8(q->rows[r * n_in + j] / s);
        }
    }
    return 0;
}

static int quant_read(struct sq_source *s, const char *name, size_t row0, size_t n_rows, void *dst,
                      struct sq_err *err)
{
    struct quant_source *q = (struct quant_source *)s;
    struct place p = place_of(q, name);
    switch (p.part) {
    case PART_NONE:
        return q->under->ops->read(q->under, name, row0, n_rows, dst, err);
    case PART_WEIGHT:
        return read_codes(q, p, name, row0, n_rows, dst, err);
    case PART_WEIGHT_SCALE:
        memcpy(dst, scale_of(q, p) + row0, n_rows * sizeof(float));
        return 0;
    case PART_INPUT_SCALE:
        memcpy(dst,
               &q->steps->in[p.layer * SQ_N_SITES + (int)sq_role_site(sq_linear_roles[p.i_linear])],
               sizeof(float));
        return 0;
    case PART_OUTPUT_SCALE:
        memcpy(dst, &q->steps->out[p.layer * 3 + p.i_linear], sizeof(float));
        return 0;
    }
    return sq_fail(err, SQ_E_NOTFOUND, "no tensor '%s'", name);
}

static void quant_close(struct sq_source *s)
{
    struct quant_source *q = (struct quant_source *)s;
    for (int i = 0; q->scale && i < q->config.n_layers * SQ_N_LINEARS; i++)
        sq_free(q->scale[i]);
    sq_free(q->scale);
    sq_free(q->rows);
    sq_free(q);
}

/* Row maxima of one weight into absmax[n_out], the tensor's into *ret_max. */
static int row_maxima(struct quant_source *q, const char *name, size_t n_out, size_t n_in,
                      float *absmax, float *ret_max, struct sq_err *err)
{
    float all = 0;
    for (size_t r0 = 0; r0 < n_out; r0 += BLOCK_ROWS) {
        size_t n = SQ_MIN((size_t)BLOCK_ROWS, n_out - r0);
        int rc = sq_source_read_f32(q->under, name, r0, n, q->rows, err);
        if (rc)
            return rc;
        for (size_t r = 0; r < n; r++) {
            float m = 0;
            for (size_t j = 0; j < n_in; j++) {
                float v = fabsf(q->rows[r * n_in + j]);
                if (!isfinite(v))
                    return sq_fail(err, SQ_E_FORMAT, "'%s': row %zu, column %zu is not finite",
                                   name, r0 + r, j);
                m = SQ_MAX(m, v);
            }
            absmax[r0 + r] = m;
            all = SQ_MAX(all, m);
        }
    }
    *ret_max = all;
    return 0;
}

static int make_scales(struct quant_source *q, int layer, int i_linear, struct sq_err *err)
{
    const enum sq_role role = sq_linear_roles[i_linear];
    const size_t n_out = sq_role_n_out(&q->config, role), n_in = sq_role_n_in(&q->config, role);
    char name[SQ_NAME_BYTES];
    sq_family_name(q->config.family, q->prefix, role, layer, ".weight", name, sizeof name);
    float all = 0, *scale = sq_new_array(float, n_out);
    q->scale[layer * SQ_N_LINEARS + i_linear] = scale;
    if (!scale)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for weight scales");
    int rc = row_maxima(q, name, n_out, n_in, scale, &all, err);
    if (rc)
        return rc;
    const float tensor = step_of((double)all);
    for (size_t r = 0; r < (q->per_tensor ? 1 : n_out); r++)
        scale[r] = q->per_tensor ? tensor : SQ_MAX(scale[r] / 127.0f, tensor * MIN_ROW_SHARE);
    return 0;
}

static int make_all_scales(struct quant_source *q, const struct sq_progress *progress,
                           struct sq_err *err)
{
    for (int layer = 0; layer < q->config.n_layers; layer++) {
        int rc =
            sq_progress_step(progress, "reading weights", (double)layer / q->config.n_layers, err);
        for (int i = 0; !rc && i < SQ_N_LINEARS; i++)
            rc = sq_has_linear(q->config.family, i) ? make_scales(q, layer, i, err) : 0;
        if (rc)
            return rc;
    }
    return sq_progress_step(progress, "reading weights", 1, err);
}

int sq_quant_source_open(struct sq_source *under, const struct sq_config *config,
                         const char *prefix, bool per_tensor, const struct sq_steps *steps,
                         const struct sq_progress *progress, struct sq_source **ret,
                         struct sq_err *err)
{
    static const struct sq_source_ops ops = {
        .find = quant_find, .read = quant_read, .close = quant_close};
    size_t row = 0;
    for (int i = 0; i < SQ_N_LINEARS; i++)
        row = SQ_MAX(row, sq_role_n_in(config, sq_linear_roles[i]));
    struct quant_source *q = sq_new(struct quant_source);
    if (!q)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the quantised model");
    *q = (struct quant_source){{&ops},
                               under,
                               steps,
                               *config,
                               prefix,
                               per_tensor,
                               sq_new_array(float *, (size_t)config->n_layers *SQ_N_LINEARS),
                               sq_new_array(float, BLOCK_ROWS *row)};
    int rc = q->scale && q->rows
                 ? make_all_scales(q, progress, err)
                 : sq_fail(err, SQ_E_NOMEM, "out of memory for the quantised model");
    if (rc) {
        quant_close(&q->base);
        return rc;
    }
    *ret = &q->base;
    return 0;
}
