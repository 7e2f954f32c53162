#include "engine/model/index.h"

#include <stdlib.h>
#include <string.h>

#include "engine/model/file.h"
#include "engine/model/json_util.h"

#define MAX_INDEX (16u << 20)
#define MAX_SHARDS 1024
#define MAX_TENSORS 262144

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct sq_index_tensor *)a)->name,
                  ((const struct sq_index_tensor *)b)->name);
}

/* X2: one path component that cannot be mistaken for anything else. */
static bool shard_name_ok(const char *s)
{
    static const char end[] = ".safetensors";
    size_t n = strlen(s), k = sizeof end - 1;
    if (n <= k || n > 255 || s[0] == '.' || strcmp(s + n - k, end))
        return false;
    return strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

static char *copy_text(struct sq_arena *a, const char *s)
{
    size_t n = strlen(s) + 1;
    char *p = sq_arena_alloc(a, n);
    return p ? memcpy(p, s, n) : NULL;
}

/* The place of s in the sorted list; it is put there if it is new. */
static int add_shard(struct sq_index *x, const char *s, const struct sq_json_where *w)
{
    size_t lo = 0, hi = x->n_shards;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        int d = strcmp(x->shards[mid], s);
        if (d == 0)
            return 0;
        if (d < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (x->n_shards == MAX_SHARDS)
        return sq_fail(w->err, SQ_E_LIMIT, "%s: X3: more than %d shards", w->file, MAX_SHARDS);
    char *copy = copy_text(&x->text, s);
    if (!copy)
        return sq_fail(w->err, SQ_E_NOMEM, "%s: out of memory", w->file);
    memmove(x->shards + lo + 1, x->shards + lo, (x->n_shards - lo) * sizeof *x->shards);
    x->shards[lo] = copy;
    x->n_shards++;
    return 0;
}

static int check_map(const json_t *map, struct sq_index *x, const struct sq_json_where *w)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)map, name, v)
    {
        const char *s = json_string_value(v);
        if (!s)
            return sq_fail(w->err, SQ_E_FORMAT,
                           "%s: tensor '%.100s': X1: expected a shard's name, found %s", w->file,
                           name, sq_json_type_text(v));
        if (!shard_name_ok(s))
            return sq_fail(w->err, SQ_E_FORMAT,
                           "%s: tensor '%.100s': X2: '%.100s' is no plain name that ends in "
                           ".safetensors",
                           w->file, name, s);
        int r = add_shard(x, s, w);
        if (r)
            return r;
    }
    return 0;
}

static int fill_tensors(const json_t *map, struct sq_index *x, const struct sq_json_where *w)
{
    const char *name;
    json_t *v;
    json_object_foreach((json_t *)map, name, v)
    {
        const char *s = json_string_value(v);
        char **shard = bsearch(&s, x->shards, x->n_shards, sizeof *x->shards, by_text);
        char *copy = copy_text(&x->text, name);
        if (!copy)
            return sq_fail(w->err, SQ_E_NOMEM, "%s: out of memory", w->file);
        x->tensors[x->n_tensors++] =
            (struct sq_index_tensor){.name = copy, .shard = (size_t)(shard - x->shards)};
    }
    qsort(x->tensors, x->n_tensors, sizeof *x->tensors, by_name);
    return 0;
}

static int parse_object(const json_t *o, struct sq_index *x, struct sq_json_where *w)
{
    const json_t *map = json_object_get(o, "weight_map");
    size_t n = json_object_size(map);
    if (!n)
        return sq_fail(w->err, SQ_E_FORMAT,
                       "%s: X1: key 'weight_map': expected an object with "
                       "the tensors",
                       w->file);
    if (n > MAX_TENSORS)
        return sq_fail(w->err, SQ_E_LIMIT, "%s: X1: %zu tensors, the limit is %d", w->file, n,
                       MAX_TENSORS);
    w->rule = "X5";
    w->path = "metadata.";
    int r =
        sq_json_int(json_object_get(o, "metadata"), w, "total_size", 0, INT64_MAX, &x->total_size);
    if (r < 0)
        return r;
    x->shards = sq_new_array(char *, MAX_SHARDS);
    x->tensors = sq_new_array(struct sq_index_tensor, n);
    if (!x->shards || !x->tensors)
        return sq_fail(w->err, SQ_E_NOMEM, "%s: out of memory for %zu tensors", w->file, n);
    r = check_map(map, x, w);
    return r ? r : fill_tensors(map, x, w);
}

int sq_index_parse(const char *json, size_t n_bytes, const char *file, struct sq_index *ret,
                   struct sq_err *err)
{
    static const struct sq_json_limits limits = {.max_bytes = MAX_INDEX,
                                                 .max_depth = 8,
                                                 .max_containers = 1024,
                                                 .max_commas = MAX_TENSORS + 4096};
    struct sq_json_where w = {.file = file, .rule = "X1", .path = "", .err = err};
    struct sq_index x = {.total_size = -1};
    json_t *o;
    int r = sq_json_load(json, n_bytes, &limits, &w, &o);
    if (r)
        return r;
    sq_arena_init(&x.text, 0);
    r = parse_object(o, &x, &w);
    json_decref(o);
    if (r)
        sq_index_done(&x);
    else
        *ret = x;
    return r;
}

int sq_index_load(int dir_fd, const char *name, const char *dir_name, struct sq_index *ret,
                  struct sq_err *err)
{
    char label[256];
    SQ_AUTO_FREE char *json = NULL;
    size_t n;
    sq_file_label(label, sizeof label, dir_name, name);
    int r = sq_file_read_all(dir_fd, name, label, "X1", MAX_INDEX, &json, &n, err);
    return r ? r : sq_index_parse(json, n, label, ret, err);
}

const struct sq_index_tensor *sq_index_find(const struct sq_index *index, const char *name)
{
    struct sq_index_tensor key = {.name = name};
    return bsearch(&key, index->tensors, index->n_tensors, sizeof key, by_name);
}

void sq_index_done(struct sq_index *index)
{
    sq_free(index->shards);
    sq_free(index->tensors);
    sq_arena_done(&index->text);
    *index = (struct sq_index){.total_size = -1};
}
