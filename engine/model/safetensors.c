#include "engine/model/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "engine/base/num.h"
#include "engine/model/json_util.h"

#define MAX_METADATA 65536
#define MAX_DIM ((int64_t)1 << 48)

/* S7: every type of the format. */
static const struct dtype {
    const char *name;
    uint8_t bits;
    int8_t ours; /* enum sq_dtype, or -1: known, not supported */
} dtypes[] = {
    {"F32", 32, SQ_F32},    {"F16", 16, SQ_F16},    {"BF16", 16, SQ_BF16}, {"I8", 8, SQ_I8},
    {"F4", 4, -1},          {"F6_E2M3", 6, -1},     {"F6_E3M2", 6, -1},    {"BOOL", 8, -1},
    {"U8", 8, -1},          {"F8_E5M2", 8, -1},     {"F8_E4M3", 8, -1},    {"F8_E8M0", 8, -1},
    {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1}, {"I16", 16, -1},       {"U16", 16, -1},
    {"I32", 32, -1},        {"U32", 32, -1},        {"I64", 64, -1},       {"U64", 64, -1},
    {"F64", 64, -1},        {"C64", 64, -1},
};

/* One parse: what messages need, and the first tensor of an unsupported type, which is reported only if nothing worse is found. */
struct parse {
    const char *file;
    struct sq_st_header *h;
    const char *unsupported, *unsupported_dtype;
    struct sq_err *err;
};

#define BAD(p, name, fmt, ...)                                                                     \
    sq_fail((p)->err, SQ_E_FORMAT, "%s: tensor '%.100s': " fmt, (p)->file, name, ##__VA_ARGS__)

static int check_metadata(const struct parse *p, const json_t *m)
{
    if (!json_is_object(m))
        return sq_fail(p->err, SQ_E_FORMAT, "%s: S5: __metadata__: expected an object, found %s",
                       p->file, sq_json_type_text(m));
    size_t bytes = 0;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)m, key, v)
    {
        if (!json_is_string(v))
            return sq_fail(p->err, SQ_E_FORMAT,
                           "%s: S5: __metadata__ '%.64s': expected a string, found %s", p->file,
                           key, sq_json_type_text(v));
        bytes += strlen(key) + json_string_length(v);
    }
    if (bytes > MAX_METADATA)
        return sq_fail(p->err, SQ_E_LIMIT, "%s: S5: __metadata__: %zu bytes, the limit is %d",
                       p->file, bytes, MAX_METADATA);
    return 0;
}

static int check_name(const struct parse *p, const char *name)
{
    size_t n = strlen(name);
    if (n < 1 || n > SQ_ST_MAX_NAME)
        return BAD(p, name, "S6: a name of %zu bytes, expected 1 to %u", n, SQ_ST_MAX_NAME);
    for (const unsigned char *c = (const unsigned char *)name; *c; c++)
        if (*c < 0x20 || *c == 0x7f)
            return BAD(p, name, "S6: a control character in the name");
    return 0;
}

static int check_keys(const struct parse *p, const char *name, const json_t *entry)
{
    static const char *const keys[] = {"dtype", "shape", "data_offsets"};
    if (!json_is_object(entry))
        return BAD(p, name, "S6: expected an object, found %s", sq_json_type_text(entry));
    for (size_t i = 0; i < 3; i++)
        if (!json_object_get(entry, keys[i]))
            return BAD(p, name, "S6: no key '%s'", keys[i]);
    if (json_object_size(entry) == 3)
        return 0;
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)entry, key, v)
    {
        if (strcmp(key, keys[0]) && strcmp(key, keys[1]) && strcmp(key, keys[2]))
            return BAD(p, name, "S6: unknown key '%.64s'", key);
    }
    return 0;
}

static int parse_dtype(const struct parse *p, const char *name, const json_t *v,
                       const struct dtype **ret)
{
    if (!json_is_string(v))
        return BAD(p, name, "S7: dtype: expected a string, found %s", sq_json_type_text(v));
    const char *s = json_string_value(v);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dtypes[i].name, s) == 0) {
            *ret = &dtypes[i];
            return 0;
        }
    return BAD(p, name, "S7: invalid dtype '%.32s'", s);
}

/* Dimensions and the number of elements. */
static int parse_shape(const struct parse *p, const char *name, const json_t *v,
                       struct sq_tensor_info *t)
{
    if (!json_is_array(v))
        return BAD(p, name, "S8: shape: expected an array, found %s", sq_json_type_text(v));
    size_t rank = json_array_size(v), n = 1;
    if (rank > SQ_MAX_RANK)
        return BAD(p, name, "S8: rank %zu, the limit is %d", rank, SQ_MAX_RANK);
    for (size_t i = 0; i < rank; i++) {
        const json_t *d = json_array_get(v, i);
        if (!json_is_integer(d))
            return BAD(p, name, "S4: shape: expected integers, found %s", sq_json_type_text(d));
        int64_t dim = json_integer_value(d);
        if (dim < 0 || dim >= MAX_DIM)
            return BAD(p, name, "S8: dimension %lld, expected 0 to 2^48 - 1", (long long)dim);
        t->shape[i] = (size_t)dim;
        if (!sq_mul_size(n, (size_t)dim, &n))
            return BAD(p, name, "S8: the number of elements overflows");
    }
    t->rank = (int)rank;
    t->n_elems = n;
    return 0;
}

static int parse_offsets(const struct parse *p, const char *name, const json_t *v,
                         struct sq_st_tensor *t)
{
    if (!json_is_array(v) || json_array_size(v) != 2)
        return BAD(p, name, "S6: data_offsets: expected two integers");
    for (size_t i = 0; i < 2; i++) {
        const json_t *o = json_array_get(v, i);
        if (!json_is_integer(o))
            return BAD(p, name, "S4: data_offsets: expected integers, found %s",
                       sq_json_type_text(o));
        if (json_integer_value(o) < 0)
            return BAD(p, name, "S9: a negative offset");
    }
    t->begin = (uint64_t)json_integer_value(json_array_get(v, 0));
    t->end = (uint64_t)json_integer_value(json_array_get(v, 1));
    if (t->begin > t->end)
        return BAD(p, name, "S9: begins at %llu and ends before it, at %llu",
                   (unsigned long long)t->begin, (unsigned long long)t->end);
    return 0;
}

static int check_size(const struct parse *p, const struct sq_st_tensor *t, const struct dtype *d)
{
    uint64_t bits;
    if (!sq_mul_u64(t->info.n_elems, d->bits, &bits))
        return BAD(p, t->name, "S8: the number of bits overflows");
    if (bits % 8)
        return BAD(p, t->name, "S8: %llu bits are no whole bytes", (unsigned long long)bits);
    if (t->end - t->begin != bits / 8)
        return BAD(p, t->name, "S9: %s %s needs %llu bytes, data_offsets span %llu", d->name,
                   sq_shape_text(t->info.rank, t->info.shape).s, (unsigned long long)(bits / 8),
                   (unsigned long long)(t->end - t->begin));
    return 0;
}

static int parse_entry(struct parse *p, const char *name, const json_t *entry,
                       struct sq_st_tensor *t)
{
    const struct dtype *d = NULL;
    int r = check_name(p, name);
    if (!r)
        r = check_keys(p, name, entry);
    if (!r)
        r = parse_dtype(p, name, json_object_get(entry, "dtype"), &d);
    if (!r)
        r = parse_shape(p, name, json_object_get(entry, "shape"), &t->info);
    if (!r)
        r = parse_offsets(p, name, json_object_get(entry, "data_offsets"), t);
    if (r)
        return r;
    size_t n = strlen(name) + 1;
    char *copy = sq_arena_alloc(&p->h->names, n);
    if (!copy)
        return sq_fail(p->err, SQ_E_NOMEM, "%s: out of memory for tensor names", p->file);
    t->name = memcpy(copy, name, n);
    t->info.dtype = d->ours < 0 ? SQ_I8 : (enum sq_dtype)d->ours;
    if (d->ours < 0 && !p->unsupported) {
        p->unsupported = t->name;
        p->unsupported_dtype = d->name;
    }
    return check_size(p, t, d);
}

static int by_place(const void *a, const void *b)
{
    const struct sq_st_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct sq_st_tensor *)a)->name, ((const struct sq_st_tensor *)b)->name);
}

/* S10: the tensors follow each other without hole or overlap from the first to the last byte. Two empty ones may not share a place:
 * the format's own reader lets them. */
static int check_cover(const struct parse *p, uint64_t data_bytes)
{
    struct sq_st_tensor *t = p->h->tensors;
    uint64_t at = 0;
    qsort(t, p->h->n, sizeof *t, by_place);
    for (size_t i = 0; i < p->h->n; i++) {
        if (t[i].begin != at)
            return BAD(p, t[i].name, "S10: begins at %llu, expected %llu: %s",
                       (unsigned long long)t[i].begin, (unsigned long long)at,
                       t[i].begin < at ? "it overlaps another tensor" : "a hole before it");
        if (i && t[i].end == at && t[i - 1].begin == at)
            return BAD(p, t[i].name, "S10: empty, at the place of the empty tensor '%.100s'",
                       t[i - 1].name);
        at = t[i].end;
    }
    if (at != data_bytes)
        return sq_fail(p->err, SQ_E_FORMAT,
                       "%s: S10: the tensors end at byte %llu, the data at byte %llu: %s", p->file,
                       (unsigned long long)at, (unsigned long long)data_bytes,
                       at < data_bytes ? "surplus bytes" : "the file is cut short");
    qsort(t, p->h->n, sizeof *t, by_name);
    return 0;
}

static int parse_object(struct parse *p, const json_t *root, uint64_t data_bytes)
{
    size_t n = json_object_size(root);
    if (n > SQ_ST_MAX_TENSORS)
        return sq_fail(p->err, SQ_E_LIMIT, "%s: S6: %zu tensors, the limit is %u", p->file, n,
                       SQ_ST_MAX_TENSORS);
    p->h->tensors = sq_new_array(struct sq_st_tensor, n);
    if (!p->h->tensors)
        return sq_fail(p->err, SQ_E_NOMEM, "%s: out of memory for %zu tensors", p->file, n);
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)root, key, v)
    {
        int r = strcmp(key, "__metadata__") == 0
                    ? check_metadata(p, v)
                    : parse_entry(p, key, v, &p->h->tensors[p->h->n++]);
        if (r)
            return r;
    }
    int r = check_cover(p, data_bytes);
    if (!r && p->unsupported)
        r = sq_fail(p->err, SQ_E_NOTSUP,
                    "%s: tensor '%.100s': S7: dtype %s is not supported, only F32, F16, BF16, I8",
                    p->file, p->unsupported, p->unsupported_dtype);
    return r;
}

/* S3, as far as jansson does not see to it. */
static int check_text(const char *json, size_t n, const char *file, struct sq_err *err)
{
    size_t i = 0;
    while (i < n && (json[i] == ' ' || json[i] == '\t' || json[i] == '\n' || json[i] == '\r'))
        i++;
    if (i == n || json[i] != '{')
        return sq_fail(err, SQ_E_FORMAT, "%s: S3: the header does not begin with '{'", file);
    if (memchr(json, 0, n))
        return sq_fail(err, SQ_E_FORMAT, "%s: S3: a NUL byte in the header", file);
    return 0;
}

int sq_st_parse(const char *json, size_t n_bytes, uint64_t data_bytes, const char *file,
                struct sq_st_header *ret, struct sq_err *err)
{
    /* an entry has at most 8 + 2 values and 3 keys; the metadata's keys take 6 bytes and more */
    static const struct sq_json_limits limits = {.max_bytes = SQ_ST_MAX_HEADER,
                                                 .max_depth = 3,
                                                 .max_containers = 3 * SQ_ST_MAX_TENSORS + 16,
                                                 .max_commas = 12 * SQ_ST_MAX_TENSORS,
                                                 .plain_integers = true};
    struct sq_json_where w = {
        .file = file, .rule = "S4", .utf8_rule = "S3", .path = "", .err = err};
    struct sq_st_header h = {.digest = sq_digest(SQ_DIGEST_START, json, n_bytes)};
    json_t *root = NULL;
    int r = check_text(json, n_bytes, file, err);
    if (!r)
        r = sq_json_load(json, n_bytes, &limits, &w, &root);
    if (r)
        return r;
    sq_arena_init(&h.names, 0);
    struct parse p = {.file = file, .h = &h, .err = err};
    r = parse_object(&p, root, data_bytes);
    json_decref(root);
    if (r) {
        sq_st_header_done(&h);
        return r;
    }
    *ret = h;
    return 0;
}

int sq_st_read_header(int fd, const struct sq_file_id *id, const char *file,
                      struct sq_st_header *ret, struct sq_err *err)
{
    if (id->size < 8)
        return sq_fail(err, SQ_E_FORMAT, "%s: S2: %llu bytes, expected at least 8", file,
                       (unsigned long long)id->size);
    unsigned char head[8];
    int r = sq_file_read(fd, id, file, head, sizeof head, 0, err);
    if (r)
        return r;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | head[i];
    if (n < 2 || n > id->size - 8)
        return sq_fail(err, SQ_E_FORMAT,
                       "%s: S2: a header of %llu bytes, expected 2 to %llu: is the file cut short, "
                       "or no safetensors file?",
                       file, (unsigned long long)n, (unsigned long long)(id->size - 8));
    if (n > SQ_ST_MAX_HEADER)
        return sq_fail(err, SQ_E_LIMIT, "%s: S2: a header of %llu bytes, the limit is %u", file,
                       (unsigned long long)n, SQ_ST_MAX_HEADER);
    SQ_AUTO_FREE char *json = sq_malloc((size_t)n);
    if (!json)
        return sq_fail(err, SQ_E_NOMEM, "%s: out of memory for a header of %llu bytes", file,
                       (unsigned long long)n);
    r = sq_file_read(fd, id, file, json, (size_t)n, 8, err);
    if (!r)
        r = sq_st_parse(json, (size_t)n, id->size - 8 - n, file, ret, err);
    if (!r)
        ret->data_off = 8 + n;
    return r;
}

void sq_st_header_done(struct sq_st_header *h)
{
    sq_free(h->tensors);
    sq_arena_done(&h->names);
    *h = (struct sq_st_header){0};
}
