/* The table of algorithms in use, and the file that remembers measured choices.
 *
 * The file is text, one line per shape: "s8 12288 4128 64 16 : 66 23 1 0 0 0 35 0 2 : 41500" = kind, n_out, k, bucket, alignment : the
 * algorithm's nine documented numbers : nanoseconds. Its bytes never reach the library: a line counts only if the library itself proposes an
 * algorithm with these numbers (lt_choose.c), so a wrong or hostile file can at worst choose a slow one. */
#include "cuda/lt_private.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"

enum { LINE_MAX_BYTES = 256, FILE_MAX_BYTES = 1 << 20, EXTENT_MAX = 1 << 24, NAME_MAX_BYTES = 64 };

static bool same_key(const struct sq_lt_key *a, const struct sq_lt_key *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

/* --- the table in use --- */

static uint32_t hash_of(const struct sq_lt_key *key)
{
    const uint32_t parts[] = {(uint32_t)key->kind, (uint32_t)key->n_out, (uint32_t)key->k,
                              (uint32_t)key->bucket, (uint32_t)key->align};
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < SQ_ARRAY_LEN(parts); i++) {
        h = (h ^ parts[i]) * 2654435761u;
        h ^= h >> 15;
    }
    return h;
}

/* Where the key is, or the free slot where it would go. Half of the slots are always free. */
static struct sq_lt_entry *slot_of(struct sq_lt *lt, const struct sq_lt_key *key)
{
    uint32_t i = hash_of(key) % SQ_LT_SLOTS;
    while (lt->entries[i].used && !same_key(&lt->entries[i].key, key))
        i = (i + 1) % SQ_LT_SLOTS;
    return &lt->entries[i];
}

struct sq_lt_entry *sq_lt_entry_find(struct sq_lt *lt, const struct sq_lt_key *key)
{
    struct sq_lt_entry *e = slot_of(lt, key);
    return e->used ? e : NULL;
}

bool sq_lt_entry_put(struct sq_lt *lt, const struct sq_lt_key *key,
                     const cublasLtMatmulAlgo_t *algo)
{
    struct sq_lt_entry *e = slot_of(lt, key);
    if (!e->used && lt->n_entries == SQ_LT_SLOTS / 2)
        return false;
    lt->n_entries += !e->used;
    *e = (struct sq_lt_entry){.used = true, .key = *key, .algo = *algo};
    return true;
}

/* --- an algorithm as numbers --- */

void sq_lt_config_of(const cublasLtMatmulAlgo_t *algo, struct sq_lt_config *ret)
{
    memset(ret, 0, sizeof *ret);
    for (int i = 0; i < SQ_LT_CONFIG_LEN; i++) {
        const bool is_short =
            i == CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID || i == CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID;
        uint16_t small = 0;
        size_t n_bytes;
        /* one that an algorithm does not have stays 0 */
        const cublasStatus_t s = cublasLtMatmulAlgoConfigGetAttribute(
            algo, (cublasLtMatmulAlgoConfigAttributes_t)i,
            is_short ? (void *)&small : (void *)&ret->v[i], is_short ? 2 : 4, &n_bytes);
        ret->v[i] = s != CUBLAS_STATUS_SUCCESS ? 0 : is_short ? small : ret->v[i];
    }
}

/* --- lines --- */

/* Cuts the next word off *at and reads it. */
static bool take_number(char **at, int64_t min, int64_t max, int64_t *ret)
{
    char *word = strsep(at, " ");
    return word && sq_parse_i64(word, min, max, ret);
}

static bool take_int(char **at, int32_t min, int32_t max, int32_t *ret)
{
    int64_t v;
    if (!take_number(at, min, max, &v))
        return false;
    *ret = (int32_t)v;
    return true;
}

static bool take_u32(char **at, uint32_t *ret)
{
    int64_t v;
    if (!take_number(at, 0, UINT32_MAX, &v))
        return false;
    *ret = (uint32_t)v;
    return true;
}

static bool take_colon(char **at)
{
    const char *word = strsep(at, " ");
    return word && strcmp(word, ":") == 0;
}

static bool take_kind(char **at, int32_t *ret)
{
    const char *word = strsep(at, " ");
    for (int i = 0; word && i < SQ_LT_N_KINDS; i++)
        if (strcmp(word, sq_lt_kind_name(i)) == 0) {
            *ret = i;
            return true;
        }
    return false;
}

static bool read_key(char **at, struct sq_lt_key *ret)
{
    return take_kind(at, &ret->kind) && take_int(at, 1, EXTENT_MAX, &ret->n_out) &&
           take_int(at, 1, EXTENT_MAX, &ret->k) && take_int(at, 1, EXTENT_MAX, &ret->bucket) &&
           take_int(at, 1, 16, &ret->align) && sq_lt_bucket(ret->bucket) == ret->bucket &&
           (ret->align & (ret->align - 1)) == 0;
}

/* Spoils the line. */
static bool read_line(char *line, struct sq_lt_saved *ret)
{
    char *at = line;
    memset(ret, 0, sizeof *ret);
    if (!read_key(&at, &ret->key) || !take_colon(&at))
        return false;
    for (int i = 0; i < SQ_LT_CONFIG_LEN; i++)
        if (!take_u32(&at, &ret->config.v[i]))
            return false;
    return take_colon(&at) && take_u32(&at, &ret->ns) && at == NULL;
}

static bool write_line(FILE *f, const struct sq_lt_saved *l)
{
    bool ok = fprintf(f, "%s %d %d %d %d :", sq_lt_kind_name(l->key.kind), l->key.n_out, l->key.k,
                      l->key.bucket, l->key.align) > 0;
    for (int i = 0; i < SQ_LT_CONFIG_LEN; i++)
        ok = fprintf(f, " %u", l->config.v[i]) > 0 && ok;
    return fprintf(f, " : %u\n", l->ns) > 0 && ok;
}

/* --- lines in memory --- */

/* f->n: there is none. */
static int find_line(const struct sq_lt_file *f, const struct sq_lt_key *key)
{
    int i = 0;
    while (i < f->n && !same_key(&f->lines[i].key, key))
        i++;
    return i;
}

const struct sq_lt_saved *sq_lt_file_find(const struct sq_lt_file *f, const struct sq_lt_key *key)
{
    const int i = find_line(f, key);
    return i < f->n ? &f->lines[i] : NULL;
}

void sq_lt_file_put(struct sq_lt_file *f, const struct sq_lt_saved *line)
{
    int i = find_line(f, &line->key);
    if (i == SQ_LT_SAVED) { /* other models' shapes of long ago make room */
        i = f->next;
        f->next = (f->next + 1) % SQ_LT_SAVED;
    }
    f->n = SQ_MAX(f->n, i + 1);
    f->lines[i] = *line;
    f->dirty = true;
}

/* --- reading the file --- */

static void keep_line(struct sq_lt_file *f, char *line, struct sq_lt_stats *stats)
{
    struct sq_lt_saved l;
    if (strlen(line) >= LINE_MAX_BYTES || !read_line(line, &l) || find_line(f, &l.key) < f->n ||
        f->n == SQ_LT_SAVED) {
        stats->file_bad_lines++;
        return;
    }
    f->lines[f->n++] = l;
    stats->file_lines++;
}

/* text: NUL-terminated, n_bytes without it. A NUL inside ends its line early, which then is no line of the format. */
static void read_text(struct sq_lt_file *f, char *text, size_t n_bytes, struct sq_lt_stats *stats)
{
    char *at = text, *end = text + n_bytes;
    bool is_head = true;
    while (at < end) {
        char *stop = memchr(at, '\n', (size_t)(end - at));
        if (stop)
            *stop = '\0';
        if (is_head && (!stop || strcmp(at, f->head) != 0)) {
            stats->file_foreign = 1;
            return;
        }
        if (!is_head && !stop) /* cut off */
            stats->file_bad_lines++;
        else if (!is_head && strlen(at) != (size_t)(stop - at))
            stats->file_bad_lines++;
        else if (!is_head)
            keep_line(f, at, stats);
        is_head = false;
        at = stop ? stop + 1 : end;
    }
    stats->file_foreign = is_head;
}

/* As many of max bytes as there are; -1 if they cannot be read. */
static ssize_t read_all(int fd, char *to, size_t max)
{
    size_t n = 0;
    while (n < max) {
        const ssize_t got = read(fd, to + n, max - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        n += (size_t)got;
    }
    return (ssize_t)n;
}

static int load(struct sq_lt_file *f, struct sq_lt_stats *stats, struct sq_err *err)
{
    struct stat st;
    stats->file_foreign = 1;
    const int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return 0;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > FILE_MAX_BYTES) {
        close(fd);
        return 0;
    }
    SQ_AUTO_FREE char *text = sq_malloc((size_t)st.st_size + 1);
    const ssize_t n = text ? read_all(fd, text, (size_t)st.st_size) : -1;
    close(fd);
    if (!text)
        return sq_fail(err, SQ_E_NOMEM, "no memory to read %s", f->path);
    if (n >= 0) {
        text[n] = '\0';
        read_text(f, text, (size_t)n, stats);
    }
    return 0;
}

/* --- opening and saving --- */

/* Letters and digits of a device's name, the rest as '_': part of a file's name and of one line. */
static void plain_name(const char *name, char ret[NAME_MAX_BYTES])
{
    size_t n = 0;
    for (; name[n] && n < NAME_MAX_BYTES - 1; n++)
        ret[n] = isalnum((unsigned char)name[n]) || name[n] == '-' ? name[n] : '_';
    ret[n] = '\0';
}

int sq_lt_file_open(struct sq_lt_file *f, const struct sq_lt_options *o, struct sq_lt_stats *stats,
                    struct sq_err *err)
{
    char device[NAME_MAX_BYTES], name[NAME_MAX_BYTES + 64];
    const size_t version = cublasLtGetVersion();
    if (!o->cache_dir)
        return 0;
    plain_name(o->device_name, device);
    snprintf(f->head, sizeof f->head,
             "sqd matmul algorithms, format 1, cuBLAS %zu, capability %d, device %s", version,
             o->capability, device);
    snprintf(name, sizeof name, "cublaslt-%zu-%s.txt", version, device);
    const size_t n = strlen(o->cache_dir) + strlen(name) + 2;
    f->path = sq_malloc(n);
    if (!f->path)
        return sq_fail(err, SQ_E_NOMEM, "no memory for the name of the algorithms' file");
    snprintf(f->path, n, "%s/%s", o->cache_dir, name);
    return load(f, stats, err);
}

void sq_lt_file_done(struct sq_lt_file *f)
{
    sq_free(f->path);
    f->path = NULL;
}

static bool write_text(const struct sq_lt_file *f, int fd)
{
    FILE *to = fdopen(fd, "w");
    if (!to) {
        close(fd);
        return false;
    }
    bool ok = fprintf(to, "%s\n", f->head) > 0;
    for (int i = 0; i < f->n; i++)
        ok = write_line(to, &f->lines[i]) && ok;
    ok = fflush(to) == 0 && fsync(fileno(to)) == 0 && ok;
    return fclose(to) == 0 && ok;
}

int sq_lt_file_save(struct sq_lt_file *f, struct sq_err *err)
{
    if (!f->path || !f->dirty)
        return 0;
    f->dirty = false; /* one try, whatever comes of it: close must not repeat a failure */
    const size_t n = strlen(f->path) + sizeof ".XXXXXX";
    SQ_AUTO_FREE char *temp = sq_malloc(n);
    if (!temp)
        return sq_fail(err, SQ_E_NOMEM, "no memory to save %s", f->path);
    snprintf(temp, n, "%s.XXXXXX", f->path);
    const int fd = mkostemp(temp, O_CLOEXEC);
    if (fd < 0)
        return sq_fail(err, SQ_E_IO, "%s: %s", temp, strerror(errno));
    if (!write_text(f, fd) || rename(temp, f->path)) {
        const int code = errno;
        (void)unlink(temp);
        return sq_fail(err, SQ_E_IO, "%s: %s", f->path, strerror(code));
    }
    return 0;
}
