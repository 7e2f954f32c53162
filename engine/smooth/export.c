#include "engine/smooth/export.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/model/file.h"
#include "engine/smooth/export_config.h"
#include "engine/smooth/sites.h"
#include "engine/smooth/st_writer.h"

#define MAX_SHARDS 1024

/* Copied byte for byte where they are there; the licence's terms go where its weights go. */
static const char *const copied[] = {"generation_config.json",
                                     "tokenizer.json",
                                     "tokenizer_config.json",
                                     "special_tokens_map.json",
                                     "added_tokens.json",
                                     "vocab.json",
                                     "merges.txt",
                                     "chat_template.jinja",
                                     "LICENSE",
                                     "LICENSE.md",
                                     "LICENSE.txt",
                                     "NOTICE",
                                     "NOTICES"};

struct plan {
    const struct sq_export *x;
    struct sq_out_tensor *tensors; /* names owned */
    size_t n, cap;
    size_t *shard_end; /* [n_shards] index behind each shard's last tensor */
    size_t n_shards;
    uint64_t n_bytes;
    uint64_t shard_bytes;
};

static int add_tensor(struct plan *p, const char *name, struct sq_err *err)
{
    struct sq_out_tensor t = {0};
    struct sq_source *src = p->x->smoothed->source;
    if (!src->ops->find(src, name, &t.info))
        return 0;
    if (!sq_mul_u64(t.info.n_elems, sq_dtype_bytes(t.info.dtype), &t.n_bytes))
        return sq_fail(err, SQ_E_LIMIT, "'%s' is too large", name);
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 256;
        struct sq_out_tensor *more = sq_realloc_array(p->tensors, cap, sizeof *more);
        if (!more)
            return sq_fail(err, SQ_E_NOMEM, "out of memory for the list of tensors");
        p->tensors = more;
        p->cap = cap;
    }
    if (!(t.name = sq_strdup(name)))
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the list of tensors");
    p->tensors[p->n++] = t;
    return 0;
}

/* Everything a part may have, in the order of the decoder, so that a layer's tensors stay together
 * in one shard. */
static int add_part(struct plan *p, enum sq_role role, int layer, const char *const *suffixes,
                    struct sq_err *err)
{
    const struct sq_family *f = p->x->smoothed->config.family;
    int rc = 0;
    for (int i = 0; !rc && f->names[role] && suffixes[i]; i++) {
        char name[SQ_NAME_BYTES];
        sq_family_name(f, p->x->dir->prefix, role, layer, suffixes[i], name, sizeof name);
        rc = add_tensor(p, name, err);
    }
    return rc;
}

static int list_model(struct plan *p, struct sq_err *err)
{
    static const char *const suffixes[] = {".weight", ".weight_scale", ".input_scale", ".bias",
                                           NULL};
    static const enum sq_role before[] = {SQ_R_EMBED, SQ_R_POS, SQ_R_PROJECT_IN};
    static const enum sq_role after[] = {SQ_R_FINAL_NORM, SQ_R_PROJECT_OUT, SQ_R_HEAD};
    int rc = 0;
    for (size_t i = 0; !rc && i < SQ_ARRAY_LEN(before); i++)
        rc = add_part(p, before[i], 0, suffixes, err);
    for (int layer = 0; !rc && layer < p->x->smoothed->config.n_layers; layer++)
        for (int role = 0; !rc && role < SQ_N_LAYER_ROLES; role++)
            rc = add_part(p, (enum sq_role)role, layer, suffixes, err);
    for (size_t i = 0; !rc && i < SQ_ARRAY_LEN(after); i++)
        rc = add_part(p, after[i], 0, suffixes, err);
    return rc;
}

static int list_scales(struct plan *p, struct sq_err *err)
{
    static const char *const suffixes[] = {".output_scale", NULL};
    int rc = 0;
    for (int layer = 0; !rc && layer < p->x->smoothed->config.n_layers; layer++)
        for (int role = SQ_R_Q; !rc && role <= SQ_R_V; role++)
            rc = add_part(p, (enum sq_role)role, layer, suffixes, err);
    return rc;
}

/* Fills one shard after the other. */
static int cut_shards(struct plan *p, struct sq_err *err)
{
    uint64_t in_shard = 0;
    p->shard_end = sq_new_array(size_t, p->n + 1);
    if (!p->shard_end)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for the list of shards");
    for (size_t i = 0; i < p->n; i++) {
        uint64_t with;
        if (!sq_add_u64(in_shard, p->tensors[i].n_bytes, &with) ||
            !sq_add_u64(p->n_bytes, p->tensors[i].n_bytes, &p->n_bytes))
            return sq_fail(err, SQ_E_LIMIT, "the model is too large");
        if (in_shard && with > p->shard_bytes) {
            p->n_shards++;
            with = p->tensors[i].n_bytes;
        }
        in_shard = with;
        p->shard_end[p->n_shards] = i + 1;
    }
    p->n_shards++;
    if (p->n_shards > MAX_SHARDS)
        return sq_fail(err, SQ_E_LIMIT, "%zu shards, at most %d are allowed: make them larger",
                       p->n_shards, MAX_SHARDS);
    return 0;
}

static void plan_done(struct plan *p)
{
    for (size_t i = 0; i < p->n; i++)
        sq_free((char *)p->tensors[i].name);
    sq_free(p->tensors);
    sq_free(p->shard_end);
}

static void shard_name(const struct plan *p, size_t i, char *buf, size_t n_buf)
{
    if (p->n_shards == 1)
        snprintf(buf, n_buf, "model.safetensors");
    else
        snprintf(buf, n_buf, "model-%05zu-of-%05zu.safetensors", i + 1, p->n_shards);
}

static int write_index(const struct plan *p, struct sq_outdir *out, struct sq_err *err)
{
    json_t *map = json_object();
    json_t *index = json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)p->n_bytes,
                              "weight_map", map);
    bool ok = index != NULL;
    for (size_t i = 0, shard = 0; ok && i < p->n; i++) {
        char name[64];
        while (i >= p->shard_end[shard])
            shard++;
        shard_name(p, shard, name, sizeof name);
        ok = json_object_set_new(map, p->tensors[i].name, json_string(name)) == 0;
    }
    char *text = ok ? json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS) : NULL;
    int rc =
        text ? sq_outdir_write_file(out, "model.safetensors.index.json", text, strlen(text), err)
             : sq_fail(err, SQ_E_NOMEM, "out of memory for the index");
    free(text); /* jansson's own */
    json_decref(map);
    json_decref(index);
    return rc;
}

static int write_shards(struct plan *p, struct sq_outdir *out, const char *single,
                        struct sq_err *err)
{
    const struct sq_recipe *r = p->x->recipe;
    char alpha[32];
    snprintf(alpha, sizeof alpha, "%g", r->alpha);
    const char *metadata[][2] = {{"format", "pt"},
                                 {"producer", "sqd " SQD_VERSION},
                                 {"smoothquant_alpha", alpha},
                                 {"smoothquant_folds", sq_fold_set_text(r->folds)}};
    struct sq_write_job job = {.out = out,
                               .source = p->x->smoothed->source,
                               .metadata = metadata,
                               .n_meta = (int)SQ_ARRAY_LEN(metadata),
                               .progress = p->x->progress,
                               .total_bytes = SQ_MAX(p->n_bytes, (uint64_t)1)};
    int rc = 0;
    for (size_t i = 0, begin = 0; !rc && i < p->n_shards; begin = p->shard_end[i++]) {
        char name[64];
        shard_name(p, i, name, sizeof name);
        rc = sq_st_write(&job, single ? single : name, p->tensors + begin, p->shard_end[i] - begin,
                         err);
    }
    return rc;
}

static int write_model(const struct sq_export *x, struct sq_outdir *out, uint64_t *ret_bytes,
                       struct sq_err *err)
{
    struct plan p = {.x = x, .shard_bytes = x->shard_bytes ? x->shard_bytes : SQ_SHARD_BYTES};
    int rc = list_model(&p, err);
    if (!rc)
        rc = cut_shards(&p, err);
    if (!rc && p.n_shards > 1)
        rc = write_index(&p, out, err);
    if (!rc)
        rc = write_shards(&p, out, NULL, err);
    *ret_bytes = p.n_bytes;
    plan_done(&p);
    return rc;
}

/* The steps of q, k and v stand in a file of their own: other loaders stumble over tensors they do
 * not know. */
static int write_scales(const struct sq_export *x, struct sq_outdir *out, struct sq_err *err)
{
    struct plan p = {.x = x, .shard_bytes = UINT64_MAX};
    int rc = list_scales(&p, err);
    if (!rc && p.n)
        rc = cut_shards(&p, err);
    if (!rc && p.n)
        rc = write_shards(&p, out, "sqd_scales.safetensors", err);
    plan_done(&p);
    return rc;
}

static int copy_file(const struct sq_export *x, struct sq_outdir *out, const char *name,
                     struct sq_err *err)
{
    char label[512], block[16384];
    struct sq_file_id id;
    int in, fd;
    if (faccessat(x->dir->fd, name, F_OK, 0))
        return 0;
    sq_file_label(label, sizeof label, x->dir->path, name);
    int rc = sq_file_open(x->dir->fd, name, label, &in, &id, err);
    if (rc)
        return rc;
    rc = sq_outdir_create(out, name, &fd, err);
    for (uint64_t at = 0; !rc && at < id.size; at += sizeof block) {
        size_t n = (size_t)SQ_MIN((uint64_t)sizeof block, id.size - at);
        rc = sq_file_read(in, &id, label, block, n, at, err);
        if (!rc)
            rc = sq_write_all(fd, name, block, n, err);
        if (rc)
            close(fd);
    }
    close(in);
    return rc ? rc : sq_outdir_finish_file(out, name, fd, err);
}

int sq_export(const struct sq_export *x, struct sq_outdir *out, uint64_t *ret_bytes,
              struct sq_err *err)
{
    SQ_AUTO_FREE char *config = NULL;
    size_t n;
    uint64_t n_bytes = 0;
    int rc = sq_export_config(x->dir, x->recipe, &config, &n, err);
    if (!rc)
        rc = sq_outdir_write_file(out, "config.json", config, n, err);
    for (size_t i = 0; !rc && i < SQ_ARRAY_LEN(copied); i++)
        rc = copy_file(x, out, copied[i], err);
    if (!rc)
        rc = write_model(x, out, &n_bytes, err);
    if (!rc)
        rc = write_scales(x, out, err);
    if (!rc)
        *ret_bytes = n_bytes;
    return rc;
}
