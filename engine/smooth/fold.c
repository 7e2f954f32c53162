#include "engine/smooth/fold.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/smooth/sites.h"

#define CLAMP 1e-5         /* of both maxima, as the authors' own code has it */
#define BLOCK_FLOATS 65536 /* weights looked at in one read */

static size_t slot(const struct sq_smoothing *m, int layer, int i_fold)
{
    return (size_t)layer * (size_t)m->family->n_folds + (size_t)i_fold;
}

const float *sq_smoothing_out(const struct sq_smoothing *m, enum sq_role from, int layer)
{
    for (int i = 0; i < m->family->n_folds; i++)
        if (m->family->folds[i].from == from)
            return m->s[slot(m, layer, i)];
    return NULL;
}

const float *sq_smoothing_in(const struct sq_smoothing *m, enum sq_role to, int layer)
{
    for (int i = 0; i < m->family->n_folds; i++)
        for (int k = 0; k < m->family->folds[i].n_to; k++)
            if (m->family->folds[i].to[k] == to)
                return m->s_in[slot(m, layer, i)];
    return NULL;
}

void sq_fold_describe(const struct sq_family *f, int i_fold, char *buf, size_t n_buf)
{
    const struct sq_fold *fold = &f->folds[i_fold];
    size_t used = 0;
    for (int i = -1; i < fold->n_to && used < n_buf; i++) {
        const char *path = f->names[i < 0 ? fold->from : fold->to[i]], *last = strrchr(path, '.');
        int n = snprintf(buf + used, n_buf - used, "%s%s", i < 0 ? "" : (i == 0 ? " -> " : ", "),
                         last ? last + 1 : path);
        used += n > 0 ? (size_t)n : 0;
    }
}

const char *sq_fold_set_text(enum sq_fold_set s)
{
    static const char *const texts[] = {
        [SQ_FOLDS_NONE] = "none", [SQ_FOLDS_PAPER] = "paper", [SQ_FOLDS_ALL] = "all"};
    return texts[s];
}

const char *sq_fold_state_text(enum sq_fold_state s)
{
    static const char *const texts[] = {
        [SQ_FOLD_APPLIED] = "applied",
        [SQ_FOLD_NOT_ASKED] = "not asked for",
        [SQ_FOLD_POST_NORM] = "skipped: this model normalises after the addition, so the norm's "
                              "output is the residual, too",
        [SQ_FOLD_NO_AFFINE] = "skipped: the norm has no weight to fold into",
    };
    return texts[s];
}

static bool is_norm(enum sq_role r)
{
    return r == SQ_R_NORM1 || r == SQ_R_NORM2;
}

static enum sq_fold_state fold_state(const struct sq_fold *f, const struct sq_config *c,
                                     enum sq_fold_set set)
{
    if (set == SQ_FOLDS_NONE || (set == SQ_FOLDS_PAPER && !f->paper))
        return SQ_FOLD_NOT_ASKED;
    if (f->needs_pre_norm && !c->pre_norm)
        return SQ_FOLD_POST_NORM;
    if (is_norm(f->from) && !c->norm_affine)
        return SQ_FOLD_NO_AFFINE;
    return SQ_FOLD_APPLIED;
}

struct maker {
    struct sq_source *src;
    const struct sq_config *config;
    const char *prefix;
    const struct sq_stats *stats;
    double alpha;
    bool per_tensor;
    struct sq_smoothing *m;
    float *rows; /* [BLOCK_FLOATS or one row] */
};

/* w[j] = max(w[j], |W[r,j]| / row_div[r]) over all rows of a linear's weight: as it will be once
 * its own outputs are folded. */
static int column_maxima(struct maker *k, enum sq_role role, int layer, double *w,
                         struct sq_err *err)
{
    const size_t n_in = sq_role_n_in(k->config, role), n_out = sq_role_n_out(k->config, role);
    const size_t step = SQ_MAX((size_t)1, BLOCK_FLOATS / n_in);
    const float *row_div = sq_smoothing_out(k->m, role, layer);
    char name[SQ_NAME_BYTES];
    sq_family_name(k->m->family, k->prefix, role, layer, ".weight", name, sizeof name);
    for (size_t r0 = 0; r0 < n_out; r0 += step) {
        size_t n = SQ_MIN(step, n_out - r0);
        int rc = sq_source_read_f32(k->src, name, r0, n, k->rows, err);
        if (rc)
            return rc;
        for (size_t r = 0; r < n; r++)
            for (size_t j = 0; j < n_in; j++) {
                double v = fabs((double)k->rows[r * n_in + j]);
                w[j] = fmax(w[j], row_div ? v / (double)row_div[r0 + r] : v);
            }
    }
    return 0;
}

/* Powers of two change exponents only. The bounds keep a smoothed F32 tensor far from overflow and
 * from subnormals. */
static float round_to_power(double s)
{
    double e = rint(log2(s));
    return (float)exp2(fmin(fmax(e, -20.0), 20.0));
}

/* s_j before rounding, in place of w. */
static void choose(const struct maker *k, const float *x, size_t dim, bool rows_count, double *w)
{
    double sum_log = 0;
    for (size_t j = 0; j < dim; j++) {
        w[j] = pow(fmax((double)x[j], CLAMP), k->alpha) / pow(fmax(w[j], CLAMP), 1.0 - k->alpha);
        sum_log += log(w[j]);
    }
    const double floor = rows_count ? exp(sum_log / (double)dim) : 0;
    for (size_t j = 0; j < dim; j++)
        w[j] = fmax(w[j], floor);
}

/* Which of from's outputs arrives at input j of `to`: of the value head that j's query head reads. */
static size_t origin(const struct sq_config *c, enum sq_role from, size_t j)
{
    const size_t dim = (size_t)c->head_dim, share = (size_t)(c->n_heads / c->n_kv_heads);
    return from == SQ_R_V ? j / dim / share * dim + j % dim : j;
}

/* Maxima over the inputs of `to` into maxima over from's outputs, w_in[n_in] -> w, x_in -> x. */
static void gather_maxima(const struct sq_config *c, enum sq_role from, size_t n_in,
                          const double *w_in, const float *x_in, double *w, float *x)
{
    for (size_t j = 0; j < n_in; j++) {
        size_t o = origin(c, from, j);
        w[o] = fmax(w[o], w_in[j]);
        x[o] = SQ_MAX(x[o], x_in[j]);
    }
}

/* Room for one fold's factors, as outputs and as inputs. False: no memory. */
static bool make_room(struct sq_smoothing *m, size_t i, size_t n_out, size_t n_in)
{
    m->s[i] = sq_new_array(float, n_out);
    m->s_in[i] = n_out == n_in ? m->s[i] : sq_new_array(float, n_in);
    return m->s[i] && m->s_in[i];
}

static int make_one(struct maker *k, int layer, int i_fold, struct sq_err *err)
{
    const struct sq_fold *f = &k->m->family->folds[i_fold];
    const enum sq_site site = sq_role_site(f->to[0]);
    const size_t n_in = sq_site_dim(k->config, site), i_slot = slot(k->m, layer, i_fold);
    const size_t n_out = f->from == SQ_R_V ? sq_role_n_out(k->config, SQ_R_V) : n_in;
    SQ_AUTO_FREE double *w_in = sq_new_array(double, n_in), *w = sq_new_array(double, n_out);
    SQ_AUTO_FREE float *x = sq_new_array(float, n_out);
    if (!w_in || !w || !x || !make_room(k->m, i_slot, n_out, n_in))
        return sq_fail(err, SQ_E_NOMEM, "out of memory for smoothing factors");
    for (int i = 0; i < f->n_to; i++) {
        int rc = column_maxima(k, f->to[i], layer, w_in, err);
        if (rc)
            return rc;
    }
    gather_maxima(k->config, f->from, n_in, w_in,
                  k->stats->absmax[(size_t)layer * SQ_N_SITES + site], w, x);
    choose(k, x, n_out, k->per_tensor && !is_norm(f->from), w);
    float *s = k->m->s[i_slot], *s_in = k->m->s_in[i_slot];
    for (size_t j = 0; j < n_out; j++) {
        s[j] = round_to_power(w[j]);
        k->m->min_s = SQ_MIN(k->m->min_s, s[j]);
        k->m->max_s = SQ_MAX(k->m->max_s, s[j]);
    }
    for (size_t j = 0; s_in != s && j < n_in; j++)
        s_in[j] = s[origin(k->config, f->from, j)];
    return 0;
}

/* Folds between linears first: they divide rows of the very weights whose columns the norms' folds
 * then look at. */
static int make_all(struct maker *k, struct sq_err *err)
{
    for (int layer = 0; layer < k->m->n_layers; layer++)
        for (int norms = 0; norms < 2; norms++)
            for (int i = 0; i < k->m->family->n_folds; i++) {
                if (k->m->states[i] != SQ_FOLD_APPLIED ||
                    is_norm(k->m->family->folds[i].from) != (norms == 1))
                    continue;
                int rc = make_one(k, layer, i, err);
                if (rc)
                    return rc;
            }
    return 0;
}

int sq_smoothing_make(struct sq_source *src, const struct sq_config *config, const char *prefix,
                      const struct sq_stats *stats, double alpha, enum sq_fold_set set,
                      bool per_tensor, struct sq_smoothing **ret, struct sq_err *err)
{
    size_t row = SQ_MAX(sq_role_n_in(config, SQ_R_Q),
                        SQ_MAX(sq_role_n_in(config, SQ_R_O), sq_role_n_in(config, SQ_R_DOWN)));
    SQ_AUTO_FREE float *rows = sq_new_array(float, SQ_MAX((size_t)BLOCK_FLOATS, row));
    struct sq_smoothing *m = sq_new(struct sq_smoothing);
    if (m) {
        *m = (struct sq_smoothing){
            .family = config->family, .n_layers = config->n_layers, .min_s = 1, .max_s = 1};
        m->s = sq_new_array(float *, (size_t)m->n_layers *(size_t)m->family->n_folds);
        m->s_in = sq_new_array(float *, (size_t)m->n_layers *(size_t)m->family->n_folds);
        m->states = sq_new_array(enum sq_fold_state, (size_t)m->family->n_folds);
    }
    int rc = 0;
    if (!rows || !m || !m->s || !m->s_in || !m->states) {
        rc = sq_fail(err, SQ_E_NOMEM, "out of memory for smoothing factors");
    } else {
        for (int i = 0; i < m->family->n_folds; i++)
            m->states[i] = fold_state(&m->family->folds[i], config, set);
        struct maker k = {src, config, prefix, stats, alpha, per_tensor, m, rows};
        rc = make_all(&k, err);
    }
    if (rc) {
        sq_smoothing_free(m);
        return rc;
    }
    *ret = m;
    return 0;
}

struct sq_smoothing *sq_smoothing_free(struct sq_smoothing *m)
{
    if (!m)
        return NULL;
    const size_t n = m->s && m->s_in ? (size_t)m->n_layers * (size_t)m->family->n_folds : 0;
    for (size_t i = 0; i < n; i++) {
        if (m->s_in[i] != m->s[i])
            sq_free(m->s_in[i]);
        sq_free(m->s[i]);
    }
    sq_free(m->s);
    sq_free(m->s_in);
    sq_free(m->states);
    sq_free(m);
    return NULL;
}

struct fold_source {
    struct sq_source base;
    struct sq_source *under; /* borrowed, as all here */
    const struct sq_smoothing *m;
    const char *prefix;
};

/* What a fold does to the tensor: value[r,c] / row_div[r] * col_mul[c]; both NULL where it is not
 * touched. */
struct touch {
    const float *row_div, *col_mul;
};

static struct touch touch_of(const struct fold_source *f, const char *name)
{
    struct touch t = {0};
    enum sq_role role;
    int layer;
    const char *suffix;
    if (!sq_family_parse(f->m->family, f->prefix, name, &role, &layer, &suffix) ||
        role >= SQ_N_LAYER_ROLES || layer >= f->m->n_layers)
        return t;
    bool weight = strcmp(suffix, ".weight") == 0;
    if (weight || strcmp(suffix, ".bias") == 0)
        t.row_div = sq_smoothing_out(f->m, role, layer);
    if (weight)
        t.col_mul = sq_smoothing_in(f->m, role, layer);
    return t;
}

static bool fold_find(struct sq_source *s, const char *name, struct sq_tensor_info *ret)
{
    struct fold_source *f = (struct fold_source *)s;
    struct sq_tensor_info info;
    if (!f->under->ops->find(f->under, name, &info))
        return false;
    struct touch t = touch_of(f, name);
    if (t.row_div || t.col_mul)
        info.dtype = SQ_F32;
    *ret = info;
    return true;
}

static int fold_read(struct sq_source *s, const char *name, size_t row0, size_t n_rows, void *dst,
                     struct sq_err *err)
{
    struct fold_source *f = (struct fold_source *)s;
    struct touch t = touch_of(f, name);
    if (!t.row_div && !t.col_mul)
        return f->under->ops->read(f->under, name, row0, n_rows, dst, err);
    float *v = dst;
    struct sq_tensor_info info;
    int rc = sq_source_read_f32(f->under, name, row0, n_rows, v, err);
    if (rc)
        return rc;
    SQ_ASSERT(f->under->ops->find(f->under, name, &info));
    size_t n_cols = info.n_elems / info.shape[0];
    for (size_t r = 0; r < n_rows; r++)
        for (size_t c = 0; c < n_cols; c++) {
            float x = v[r * n_cols + c];
            x = t.row_div ? x / t.row_div[row0 + r] : x;
            v[r * n_cols + c] = t.col_mul ? x * t.col_mul[c] : x;
        }
    return 0;
}

static void fold_close(struct sq_source *s)
{
    sq_free(s);
}

int sq_fold_source_open(struct sq_source *under, const struct sq_smoothing *m, const char *prefix,
                        struct sq_source **ret, struct sq_err *err)
{
    static const struct sq_source_ops ops = {
        .find = fold_find, .read = fold_read, .close = fold_close};
    struct fold_source *f = sq_new(struct fold_source);
    if (!f)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the smoothed model");
    *f = (struct fold_source){{&ops}, under, m, prefix};
    *ret = &f->base;
    return 0;
}
