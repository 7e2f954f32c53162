#include "tests/lib/model_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/model/expect.h"
#include "engine/model/model.h"

char *sq_files_mkdir(void)
{
    const char *tmp = getenv("TMPDIR");
    char path[256];
    snprintf(path, sizeof path, "%s/sqd-test-XXXXXX", tmp ? tmp : "/tmp");
    SQ_ASSERT(mkdtemp(path));
    char *copy = sq_strdup(path);
    SQ_ASSERT(copy);
    return copy;
}

void sq_files_rmdir(char *dir)
{
    DIR *d = opendir(dir);
    SQ_ASSERT(d);
    for (struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            SQ_ASSERT(unlinkat(dirfd(d), e->d_name, 0) == 0 ||
                      unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR) == 0);
    closedir(d);
    SQ_ASSERT(rmdir(dir) == 0);
    sq_free(dir);
}

static FILE *create(const char *dir, const char *name)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    SQ_ASSERT(f);
    return f;
}

void sq_files_write(const char *dir, const char *name, const void *p, size_t n)
{
    FILE *f = create(dir, name);
    SQ_ASSERT(n == 0 || fwrite(p, n, 1, f) == 1);
    SQ_ASSERT(fclose(f) == 0);
}

void sq_files_write_text(const char *dir, const char *name, const char *text)
{
    sq_files_write(dir, name, text, strlen(text));
}

static void put_length(FILE *f, uint64_t n)
{
    for (int i = 0; i < 8; i++)
        SQ_ASSERT(fputc((int)(n >> 8 * i & 0xff), f) != EOF);
}

void sq_files_write_header(const char *dir, const char *name, const char *json, size_t n_data)
{
    FILE *f = create(dir, name);
    put_length(f, strlen(json));
    SQ_ASSERT(fputs(json, f) >= 0);
    for (size_t i = 0; i < n_data; i++)
        SQ_ASSERT(fputc(0, f) == 0);
    SQ_ASSERT(fclose(f) == 0);
}

struct sq_file_tensor *sq_files_find(struct sq_file_tensors *l, const char *name)
{
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->t[i].name, name) == 0)
            return &l->t[i];
    return NULL;
}

void sq_files_drop(struct sq_file_tensors *l, const char *name)
{
    struct sq_file_tensor *t = sq_files_find(l, name);
    SQ_ASSERT(t);
    sq_free(t->name);
    sq_free(t->data);
    size_t i = (size_t)(t - l->t);
    memmove(t, t + 1, (l->n - i - 1) * sizeof *t);
    l->n--;
}

struct sq_file_tensor *sq_files_put(struct sq_file_tensors *l, const char *name,
                                    enum sq_dtype dtype, int rank, const size_t *shape,
                                    const void *data)
{
    struct sq_tensor_info info = {.dtype = dtype, .rank = rank, .n_elems = 1};
    for (int i = 0; i < rank; i++)
        info.n_elems *= info.shape[i] = shape[i];
    if (sq_files_find(l, name))
        sq_files_drop(l, name);
    l->t = sq_realloc_array(l->t, l->n + 1, sizeof *l->t);
    SQ_ASSERT(l->t);
    struct sq_file_tensor *t = &l->t[l->n++];
    *t = (struct sq_file_tensor){.name = sq_strdup(name), .info = info};
    t->data = sq_calloc(info.n_elems, sq_dtype_bytes(dtype));
    SQ_ASSERT(t->name && t->data);
    if (data)
        memcpy(t->data, data, info.n_elems * sq_dtype_bytes(dtype));
    return t;
}

static void add_layer(struct sq_file_tensors *l, const struct sq_config *c, struct sq_source *src,
                      enum sq_role role, int layer)
{
    for (int part = 0; part < SQ_N_PARTS; part++) {
        char name[SQ_NAME_BYTES];
        struct sq_tensor_info t;
        sq_family_name(c->family, c->family->prefixes[0], role, layer,
                       sq_part_suffix((enum sq_part)part), name, sizeof name);
        if (!src->ops->find(src, name, &t))
            continue;
        struct sq_file_tensor *f = sq_files_put(l, name, t.dtype, t.rank, t.shape, NULL);
        SQ_ASSERT(src->ops->read(src, name, 0, sq_tensor_rows(&t), f->data, NULL) == 0);
    }
}

void sq_files_fill(struct sq_file_tensors *l, const struct sq_config *config, uint64_t seed)
{
    struct sq_source *src;
    SQ_ASSERT(sq_random_source_open(config, seed, &src, NULL) == 0);
    for (int role = 0; role < SQ_N_ROLES; role++)
        for (int layer = 0; layer < (role < SQ_N_LAYER_ROLES ? config->n_layers : 1); layer++)
            if (config->family->names[role])
                add_layer(l, config, src, (enum sq_role)role, layer);
    sq_source_close(src);
}

void sq_files_done(struct sq_file_tensors *l)
{
    for (size_t i = 0; i < l->n; i++) {
        sq_free(l->t[i].name);
        sq_free(l->t[i].data);
    }
    sq_free(l->t);
    *l = (struct sq_file_tensors){0};
}

static size_t bytes_of(const struct sq_file_tensor *t)
{
    return t->info.n_elems * sq_dtype_bytes(t->info.dtype);
}

void sq_files_save(const struct sq_file_tensors *l, const char *dir, const char *name, size_t first,
                   size_t step)
{
    char *json;
    size_t n_json, at = 0;
    FILE *m = open_memstream(&json, &n_json);
    SQ_ASSERT(m);
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", m);
    for (size_t i = first; i < l->n; i += step) {
        const struct sq_file_tensor *t = &l->t[i];
        fprintf(m, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}", t->name,
                sq_dtype_name(t->info.dtype), sq_shape_text(t->info.rank, t->info.shape).s, at,
                at + bytes_of(t));
        at += bytes_of(t);
    }
    fputs("}", m);
    SQ_ASSERT(fclose(m) == 0);
    FILE *f = create(dir, name);
    put_length(f, n_json);
    SQ_ASSERT(fwrite(json, n_json, 1, f) == 1);
    free(json);
    for (size_t i = first; i < l->n; i += step)
        SQ_ASSERT(!bytes_of(&l->t[i]) || fwrite(l->t[i].data, bytes_of(&l->t[i]), 1, f) == 1);
    SQ_ASSERT(fclose(f) == 0);
}

/* --- the list as a source ------------------------------------------------------------------------------------------ */

struct list_source {
    struct sq_source base;
    struct sq_file_tensors *l;
};

static struct sq_file_tensor *in_source(struct sq_source *s, const char *name)
{
    return sq_files_find(((struct list_source *)s)->l, name);
}

static bool find(struct sq_source *s, const char *name, struct sq_tensor_info *ret)
{
    struct sq_file_tensor *t = in_source(s, name);
    if (t)
        *ret = t->info;
    return t != NULL;
}

static int read_rows(struct sq_source *s, const char *name, size_t row0, size_t n_rows, void *dst,
                     struct sq_err *err)
{
    struct sq_file_tensor *t = in_source(s, name);
    if (!t)
        return sq_fail(err, SQ_E_NOTFOUND, "no tensor '%s'", name);
    size_t rows = sq_tensor_rows(&t->info), row_bytes = bytes_of(t) / rows;
    SQ_ASSERT(row0 + n_rows <= rows);
    memcpy(dst, (const char *)t->data + row0 * row_bytes, n_rows * row_bytes);
    return 0;
}

static void close_source(struct sq_source *s)
{
    sq_free(s);
}

static const char *name_at(struct sq_source *s, size_t i)
{
    const struct sq_file_tensors *l = ((struct list_source *)s)->l;
    return i < l->n ? l->t[i].name : NULL;
}

static const struct sq_source_ops ops = {
    .find = find, .read = read_rows, .close = close_source, .name = name_at};

struct sq_source *sq_files_source(struct sq_file_tensors *l)
{
    struct list_source *s = sq_new(struct list_source);
    SQ_ASSERT(s);
    s->base.ops = &ops;
    s->l = l;
    return &s->base;
}
