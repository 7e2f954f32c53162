/* Weights out of a hash: any row of any tensor can be made on its own. Entries are uniform, drawn from a table of 256 values per tensor type;
 * matrices are scaled by 1 / sqrt(inputs), so that a normalised input (standard deviation 1) gives outputs of about 1. The static steps
 * follow from that: four standard deviations where a norm or a projection writes. */
#include <math.h>
#include <string.h>

#include "engine/base/mem.h"
#include "engine/model/expect.h"
#include "engine/model/model.h"
#include "engine/quant.h"

#define UNIFORM_SD 73.6f /* standard deviation of integers spread evenly over -127..127 */
#define STEP (4.0f / 127)

struct random_source {
    struct sq_source base;
    struct sq_config c;
    const char *prefix;
    uint64_t seed;
};

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Normal numbers only, rounded towards zero: what the tables below need. */
static uint16_t f32_to_f16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    int e = (int)(u >> 23 & 0xff) - 112;
    if (e <= 0)
        return 0;
    return (uint16_t)((u >> 16 & 0x8000) | (uint32_t)e << 10 | (u >> 13 & 0x3ff));
}

static void put_float(enum sq_dtype t, float f, void *dst, size_t i)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (t == SQ_F32)
        ((float *)dst)[i] = f;
    else
        ((uint16_t *)dst)[i] = t == SQ_F16 ? f32_to_f16(f) : (uint16_t)(u >> 16);
}

/* A table of what each byte of the hash stands for: -127..127 in units of `unit`, around `middle`. */
struct table {
    enum sq_dtype type;
    union {
        float f32[256];
        uint16_t h16[256];
        int8_t i8[256];
    };
};

static void make_table(struct table *tab, enum sq_dtype type, float middle, float unit)
{
    tab->type = type;
    for (int i = 0; i < 256; i++) {
        int code = i < 255 ? i - 127 : 0;
        if (type == SQ_I8)
            tab->i8[i] = (int8_t)code;
        else
            put_float(type, middle + unit * (float)code,
                      type == SQ_F32 ? (void *)tab->f32 : tab->h16, (size_t)i);
    }
}

static void fill_row(const struct table *tab, uint64_t state, size_t n, void *dst)
{
    float *f = dst;
    uint16_t *h = dst;
    int8_t *q = dst;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t bits = mix(state + i);
        for (size_t k = i; k < i + 8 && k < n; k++, bits >>= 8) {
            if (tab->type == SQ_F32)
                f[k] = tab->f32[bits & 0xff];
            else if (tab->type == SQ_I8)
                q[k] = tab->i8[bits & 0xff];
            else
                h[k] = tab->h16[bits & 0xff];
        }
    }
}

/* Which tensor a name is; false if the configuration implies none. */
static bool identify(const struct random_source *r, const char *name, enum sq_role *role,
                     enum sq_part *part, struct sq_expected *e)
{
    int layer;
    const char *suffix;
    if (!sq_family_parse(r->c.family, r->prefix, name, role, &layer, &suffix) ||
        !sq_part_find(suffix, part) || (*role < SQ_N_LAYER_ROLES && layer >= r->c.n_layers))
        return false;
    *e = sq_expect(&r->c, *role, *part);
    if (e->need == SQ_NEED_MUST)
        return true;
    /* of what may be there: the head's scales where it is quantised, and the output steps of q, k, v */
    bool quantised_head = *role == SQ_R_HEAD && r->c.head_quantized && !r->c.tied;
    return e->need == SQ_NEED_MAY &&
           ((quantised_head && *part == SQ_P_WEIGHT_SCALE) || (*part == SQ_P_OUTPUT_SCALE));
}

static bool find(struct sq_source *s, const char *name, struct sq_tensor_info *ret)
{
    struct random_source *r = (struct random_source *)s;
    enum sq_role role;
    enum sq_part part;
    struct sq_expected e;
    if (!identify(r, name, &role, &part, &e))
        return false;
    bool codes = e.form == SQ_FORM_CODES ||
                 (e.form == SQ_FORM_FLOAT_OR_CODES && role == SQ_R_HEAD && r->c.head_quantized);
    bool one = e.form == SQ_FORM_SCALE;
    struct sq_tensor_info t = {.dtype = codes ? SQ_I8 : r->c.dtype,
                               .rank = e.cols || e.form == SQ_FORM_CHANNEL_SCALE ? 2 : 1,
                               .shape = {one ? 1 : e.rows, e.cols ? e.cols : 1}};
    if (e.form == SQ_FORM_SCALE || e.form == SQ_FORM_CHANNEL_SCALE)
        t.dtype = SQ_F32;
    t.n_elems = t.shape[0] * t.shape[1];
    *ret = t;
    return true;
}

static size_t inputs_of(const struct random_source *r, enum sq_role role)
{
    size_t rows, cols;
    sq_role_shape(&r->c, role, &rows, &cols);
    return cols ? cols : rows;
}

/* Middle and unit of a tensor's values; codes ignore both. */
static void spread(const struct random_source *r, enum sq_role role, enum sq_part part, float *mid,
                   float *unit)
{
    float w = 1 / (sqrtf((float)inputs_of(r, role)) * UNIFORM_SD);
    bool norm = role == SQ_R_NORM1 || role == SQ_R_NORM2 || role == SQ_R_FINAL_NORM;
    *mid = 0;
    *unit = w;
    if (part == SQ_P_WEIGHT_SCALE || part == SQ_P_INPUT_SCALE || part == SQ_P_OUTPUT_SCALE) {
        *mid = part == SQ_P_WEIGHT_SCALE ? w : role == SQ_R_O ? STEP / 2 : STEP;
        *unit = part == SQ_P_WEIGHT_SCALE ? w / 1270 : 0;
    } else if (part == SQ_P_BIAS) {
        *unit = 0.1f / 127;
    } else if (norm) {
        *mid = 1;
        *unit = 0.1f / 127;
    }
}

static int read_rows(struct sq_source *s, const char *name, size_t row0, size_t n_rows, void *dst,
                     struct sq_err *err)
{
    struct random_source *r = (struct random_source *)s;
    struct sq_tensor_info t;
    enum sq_role role;
    enum sq_part part;
    struct sq_expected e;
    if (!identify(r, name, &role, &part, &e) || !find(s, name, &t))
        return sq_fail(err, SQ_E_NOTFOUND, "random weights: no tensor '%.128s'", name);
    struct table tab;
    float mid, unit;
    spread(r, role, part, &mid, &unit);
    make_table(&tab, t.dtype, mid, unit);
    uint64_t state = r->seed;
    for (const char *c = name; *c; c++)
        state = mix(state ^ (unsigned char)*c);
    size_t n = t.n_elems / t.shape[0], row_bytes = n * sq_dtype_bytes(t.dtype);
    for (size_t i = 0; i < n_rows; i++)
        fill_row(&tab, mix(state ^ (row0 + i)), n, (char *)dst + i * row_bytes);
    return 0;
}

static void close_source(struct sq_source *s)
{
    sq_free(s);
}

static const struct sq_source_ops ops = {.find = find, .read = read_rows, .close = close_source};

int sq_random_source_open(const struct sq_config *config, uint64_t seed, struct sq_source **ret,
                          struct sq_err *err)
{
    struct random_source *r = sq_new(struct random_source);
    if (!r)
        return sq_fail(err, SQ_E_NOMEM, "random weights: out of memory");
    r->base.ops = &ops;
    r->c = *config;
    r->prefix = config->family->prefixes[0];
    r->seed = mix(seed);
    *ret = &r->base;
    return 0;
}
