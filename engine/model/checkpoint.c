#include "engine/model/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/num.h"
#include "engine/model/index.h"
#include "engine/model/safetensors.h"

#define MAIN_FILE "model.safetensors"
#define INDEX_FILE "model.safetensors.index.json"
#define SCALES_FILE "sqd_scales.safetensors"

struct shard {
    char *name, *label;
    struct sq_file_id id;
    struct sq_st_header header;
};

struct entry {
    const struct sq_st_tensor *t;
    size_t shard;
};

struct checkpoint {
    struct sq_source base;
    int dir_fd; /* borrowed from the sq_model_dir */
    const char *dir_name;
    struct shard *shards; /* [n_shards] */
    size_t n_shards;
    struct entry *entries; /* [n_entries], by name */
    size_t n_entries;
    int fd; /* of shards[open_shard]; -1 = none. One at a time: there may be more shards than descriptors */
    size_t open_shard;
    uint64_t digest;
};

static struct checkpoint *checkpoint_of(struct sq_source *s)
{
    return (struct checkpoint *)s;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct entry *)a)->t->name, ((const struct entry *)b)->t->name);
}

static const struct entry *find_entry(const struct checkpoint *c, const char *name)
{
    struct sq_st_tensor t = {.name = name};
    struct entry key = {.t = &t};
    return bsearch(&key, c->entries, c->n_entries, sizeof key, by_name);
}

static bool find(struct sq_source *s, const char *name, struct sq_tensor_info *ret)
{
    const struct entry *e = find_entry(checkpoint_of(s), name);
    if (e)
        *ret = e->t->info;
    return e != NULL;
}

/* Makes c->fd the shard's file. S12: it must be the one whose header was read. */
static int open_shard(struct checkpoint *c, size_t i, struct sq_err *err)
{
    if (c->fd >= 0 && c->open_shard == i)
        return 0;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    struct shard *s = &c->shards[i];
    struct sq_file_id id;
    int fd, r = sq_file_open(c->dir_fd, s->name, s->label, &fd, &id, err);
    if (r)
        return r;
    if (id.dev != s->id.dev || id.ino != s->id.ino || id.size != s->id.size ||
        memcmp(&id.ctime, &s->id.ctime, sizeof id.ctime)) {
        close(fd);
        return sq_fail(err, SQ_E_FORMAT, "%s: S12: the file was replaced while it was read",
                       s->label);
    }
    c->fd = fd;
    c->open_shard = i;
    return 0;
}

static int read_rows(struct sq_source *s, const char *name, size_t row0, size_t n_rows, void *dst,
                     struct sq_err *err)
{
    struct checkpoint *c = checkpoint_of(s);
    const struct entry *e = find_entry(c, name);
    if (!e)
        return sq_fail(err, SQ_E_NOTFOUND, "%s: no tensor '%.128s'", c->dir_name, name);
    const struct shard *sh = &c->shards[e->shard];
    size_t rows = sq_tensor_rows(&e->t->info), end;
    if (!sq_add_size(row0, n_rows, &end) || end > rows)
        return sq_fail(err, SQ_E_INVAL, "%s: tensor '%.128s': rows %zu to %zu of %zu", sh->label,
                       name, row0, end, rows);
    if (!n_rows)
        return 0;
    /* fits: begin..end is inside the file */
    size_t row_bytes = (size_t)(e->t->end - e->t->begin) / rows;
    int r = open_shard(c, e->shard, err);
    if (!r)
        r = sq_file_read(c->fd, &sh->id, sh->label, dst, n_rows * row_bytes,
                         sh->header.data_off + e->t->begin + row0 * row_bytes, err);
    return r;
}

static void close_source(struct sq_source *s)
{
    struct checkpoint *c = checkpoint_of(s);
    if (c->fd >= 0)
        close(c->fd);
    for (size_t i = 0; i < c->n_shards; i++) {
        sq_st_header_done(&c->shards[i].header);
        sq_free(c->shards[i].name);
        sq_free(c->shards[i].label);
    }
    sq_free(c->shards);
    sq_free(c->entries);
    sq_free(c);
}

static const char *name_at(struct sq_source *s, size_t i)
{
    const struct checkpoint *c = checkpoint_of(s);
    return i < c->n_entries ? c->entries[i].t->name : NULL;
}

static uint64_t digest(struct sq_source *s)
{
    return checkpoint_of(s)->digest;
}

static const struct sq_source_ops ops = {
    .find = find, .read = read_rows, .close = close_source, .name = name_at, .digest = digest};

/* --- opening ----------------------------------------------------------------------------------------------------- */

/* Reads one file's header into the next shard. -SQ_E_NOTFOUND passes without a shard added. */
static int add_shard(struct checkpoint *c, const char *name, struct sq_err *err)
{
    struct shard *grown = sq_realloc_array(c->shards, c->n_shards + 1, sizeof *grown);
    if (!grown)
        return sq_fail(err, SQ_E_NOMEM, "%s: out of memory", c->dir_name);
    c->shards = grown;
    struct shard *s = &c->shards[c->n_shards];
    *s = (struct shard){0};
    char label[256];
    sq_file_label(label, sizeof label, c->dir_name, name);
    int fd, r = sq_file_open(c->dir_fd, name, label, &fd, &s->id, err);
    if (r)
        return r;
    c->n_shards++;
    s->name = sq_strdup(name);
    s->label = sq_strdup(label);
    if (!s->name || !s->label)
        r = sq_fail(err, SQ_E_NOMEM, "%s: out of memory", label);
    else
        r = sq_st_read_header(fd, &s->id, s->label, &s->header, err);
    close(fd);
    return r;
}

static int add_indexed(struct checkpoint *c, struct sq_index *index, struct sq_err *err)
{
    for (size_t i = 0; i < index->n_shards; i++) {
        int r = add_shard(c, index->shards[i], err);
        if (r == -SQ_E_NOTFOUND)
            return sq_fail(err, SQ_E_NOTFOUND, "%s/%s: X3: shard '%.128s' does not exist",
                           c->dir_name, INDEX_FILE, index->shards[i]);
        if (r)
            return r;
    }
    return 0;
}

static int add_main(struct checkpoint *c, struct sq_index *index, struct sq_err *err)
{
    int r = add_shard(c, MAIN_FILE, err);
    if (r != -SQ_E_NOTFOUND)
        return r;
    r = sq_index_load(c->dir_fd, INDEX_FILE, c->dir_name, index, err);
    if (r == -SQ_E_NOTFOUND) {
        bool pickled = faccessat(c->dir_fd, "pytorch_model.bin", F_OK, 0) == 0;
        return sq_fail(
            err, SQ_E_NOTFOUND, "%s: neither " MAIN_FILE " nor " INDEX_FILE "%s", c->dir_name,
            pickled ? " (pytorch_model.bin may run code and is not read: convert it)" : "");
    }
    return r ? r : add_indexed(c, index, err);
}

/* All tensors of all shards in one table by name. */
static int merge(struct checkpoint *c, struct sq_err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < c->n_shards; i++)
        n += c->shards[i].header.n;
    c->entries = sq_new_array(struct entry, n);
    if (!c->entries)
        return sq_fail(err, SQ_E_NOMEM, "%s: out of memory for %zu tensors", c->dir_name, n);
    for (size_t i = 0; i < c->n_shards; i++)
        for (size_t k = 0; k < c->shards[i].header.n; k++)
            c->entries[c->n_entries++] = (struct entry){&c->shards[i].header.tensors[k], i};
    qsort(c->entries, n, sizeof *c->entries, by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(c->entries[i - 1].t->name, c->entries[i].t->name) == 0)
            return sq_fail(err, SQ_E_FORMAT,
                           "%s: tensor '%.128s': X4: in two files, %.64s and %.64s", c->dir_name,
                           c->entries[i].t->name, c->shards[c->entries[i - 1].shard].name,
                           c->shards[c->entries[i].shard].name);
    return 0;
}

/* X4: the index and the shards say the same. X5: so do their sizes, or it is worth a note. */
static int check_index(struct checkpoint *c, const struct sq_index *index, struct sq_model_dir *d,
                       struct sq_err *err)
{
    size_t n_listed = 0;
    uint64_t bytes = 0;
    for (size_t i = 0; i < index->n_tensors; i++) {
        const struct sq_index_tensor *t = &index->tensors[i];
        const struct entry *e = find_entry(c, t->name);
        if (!e || e->shard != t->shard)
            return sq_fail(err, SQ_E_FORMAT,
                           "%s/" INDEX_FILE ": tensor '%.128s': X4: not in shard '%.64s'%s%.64s",
                           c->dir_name, t->name, index->shards[t->shard], e ? ", but in " : "",
                           e ? c->shards[e->shard].name : "");
        n_listed++;
        bytes += e->t->end - e->t->begin;
    }
    for (size_t i = 0; n_listed < c->n_entries && i < c->n_entries; i++)
        if (!sq_index_find(index, c->entries[i].t->name))
            return sq_fail(err, SQ_E_FORMAT, "%s: tensor '%.128s': X4: the index does not list it",
                           c->shards[c->entries[i].shard].label, c->entries[i].t->name);
    if (index->total_size >= 0 && (uint64_t)index->total_size != bytes)
        snprintf(d->note, sizeof d->note,
                 INDEX_FILE ": X5: metadata.total_size is %lld, the tensors have %llu bytes",
                 (long long)index->total_size, (unsigned long long)bytes);
    return 0;
}

/* The steps that O3 needs beyond the standard format; few and small, so the digest covers their values. */
static int add_scales(struct checkpoint *c, struct sq_err *err)
{
    int r = add_shard(c, SCALES_FILE, err);
    if (r)
        return r == -SQ_E_NOTFOUND ? 0 : r;
    char *all, label[256];
    size_t n;
    sq_file_label(label, sizeof label, c->dir_name, SCALES_FILE);
    r = sq_file_read_all(c->dir_fd, SCALES_FILE, label, "S13", 64u << 20, &all, &n, err);
    if (r)
        return r;
    c->digest = sq_digest(c->digest, all, n);
    sq_free(all);
    return 0;
}

static int fill(struct checkpoint *c, struct sq_model_dir *d, struct sq_err *err)
{
    struct sq_index index = {.total_size = -1};
    int r = add_main(c, &index, err);
    if (!r && index.n_shards) {
        r = merge(c, err);
        if (!r)
            r = check_index(c, &index, d, err);
        sq_free(c->entries);
        c->entries = NULL;
        c->n_entries = 0;
    }
    sq_index_done(&index);
    c->digest = d->config.digest;
    for (size_t i = 0; i < c->n_shards; i++)
        c->digest = sq_digest(c->digest, &c->shards[i].header.digest, sizeof(uint64_t));
    if (!r)
        r = add_scales(c, err);
    return r ? r : merge(c, err);
}

static int open_tensors(struct sq_model_dir *d, struct sq_err *err)
{
    struct checkpoint *c = sq_new(struct checkpoint);
    if (!c)
        return sq_fail(err, SQ_E_NOMEM, "%s: out of memory", d->path);
    c->base.ops = &ops;
    c->dir_fd = d->fd;
    c->dir_name = d->path;
    c->fd = -1;
    d->source = &c->base;
    int r = fill(c, d, err);
    if (r)
        return r;
    d->digest = c->digest;
    d->prefix = sq_family_prefix(d->config.family, d->source);
    if (!d->prefix)
        return sq_fail(err, SQ_E_NOTFOUND,
                       "%s: C4: no tensor '%s%s.weight', nor with another prefix", d->path,
                       d->config.family->prefixes[0], d->config.family->names[SQ_R_EMBED]);
    return 0;
}

int sq_model_dir_open(const char *path, struct sq_model_dir **ret, struct sq_err *err)
{
    struct sq_model_dir *d = sq_new(struct sq_model_dir);
    if (!d)
        return sq_fail(err, SQ_E_NOMEM, "%s: out of memory", path);
    d->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int r = 0;
    if (d->fd < 0)
        r = sq_fail(err, errno == ENOENT || errno == ENOTDIR ? SQ_E_NOTFOUND : SQ_E_IO,
                    "%s: model directory: %s", path, strerror(errno));
    else if (!(d->path = sq_strdup(path)))
        r = sq_fail(err, SQ_E_NOMEM, "%s: out of memory", path);
    if (!r)
        r = sq_config_load(d->fd, path, &d->config, err);
    if (!r && d->config.custom_code)
        snprintf(d->note, sizeof d->note,
                 "config.json: C2: auto_map is ignored: no code of a "
                 "model directory is ever run");
    if (!r)
        r = open_tensors(d, err);
    if (r) {
        sq_model_dir_close(d);
        return r;
    }
    *ret = d;
    return 0;
}

struct sq_model_dir *sq_model_dir_close(struct sq_model_dir *d)
{
    if (!d)
        return NULL;
    sq_source_close(d->source);
    if (d->fd >= 0)
        close(d->fd);
    sq_free(d->path);
    sq_free(d);
    return NULL;
}
