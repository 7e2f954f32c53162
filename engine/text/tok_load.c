/* tokenizer.json from file or memory: size and depth first, then jansson with duplicates refused, then the rules one by one. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/text/tok_priv.h"

#define MAX_DEPTH 64
#define MAX_MERGES 2097152

int sq_tok_fail(const struct sq_tokenizer *t, struct sq_err *err, enum sq_code code,
                const char *rule, const char *fmt, ...)
{
    char msg[400];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return sq_fail(err, code, "%s: [%s] %s", t->name, rule, msg);
}

int sq_tok_nomem(const struct sq_tokenizer *t, struct sq_err *err)
{
    return sq_fail(err, SQ_E_NOMEM, "%s: no memory for the tokenizer", t->name);
}

struct sq_tokenizer *sq_tokenizer_free(struct sq_tokenizer *t)
{
    if (!t)
        return NULL;
    for (size_t i = 0; i < t->n_stages; i++)
        sq_split_pattern_free(t->stages[i].pattern);
    sq_tok_vocab_done(&t->vocab);
    sq_tok_merges_done(&t->merges);
    sq_tok_trie_done(&t->raw_trie);
    sq_tok_trie_done(&t->normalized_trie);
    sq_free(t->added);
    sq_free(t->name);
    sq_free(t);
    return NULL;
}

/* Brackets outside of strings nest at most MAX_DEPTH deep. Runs over broken JSON too. */
static bool shallow(const char *json, size_t n)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = json[i];
        if (in_string && c == '\\')
            i++;
        else if (c == '"')
            in_string = !in_string;
        else if (in_string)
            continue;
        else if ((c == '[' || c == '{') && ++depth > MAX_DEPTH)
            return false;
        else if (c == ']' || c == '}')
            depth--;
    }
    return true;
}

static int known_keys(const struct sq_tokenizer *t, json_t *object, const char *rule,
                      const char *const *known, size_t n, struct sq_err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        size_t k = 0;
        while (k < n && strcmp(key, known[k]) != 0)
            k++;
        if (k == n)
            return sq_tok_fail(t, err, SQ_E_NOTSUP, rule, "unknown key \"%.64s\"", key);
    }
    return 0;
}

/* --- model ------------------------------------------------------------------------------------------------------------------ */

static int load_vocab(struct sq_tokenizer *t, json_t *vocab, size_t n_added, struct sq_err *err)
{
    const char *text;
    json_t *value;
    if (!json_is_object(vocab) || !json_object_size(vocab))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T2", "model.vocab is missing or empty");
    size_t n = json_object_size(vocab);
    if (t->n_model_ids && n > t->n_model_ids)
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T2", "%zu tokens, but the model has %zu ids", n,
                           t->n_model_ids);
    if (sq_tok_vocab_init(&t->vocab, n + n_added))
        return sq_tok_nomem(t, err);
    json_int_t end = t->n_model_ids ? (json_int_t)SQ_MIN(t->n_model_ids, SQ_TOK_MAX_ID + 1)
                                    : (json_int_t)SQ_TOK_MAX_ID + 1;
    json_object_foreach(vocab, text, value)
    {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id >= end)
            return sq_tok_fail(t, err, SQ_E_FORMAT, "T2",
                               "token \"%.64s\": id is no integer from 0 to %lld", text,
                               (long long)end - 1);
        int rc = sq_tok_vocab_add(&t->vocab, text, strlen(text), (uint32_t)id, true);
        if (rc > 0)
            return sq_tok_fail(t, err, SQ_E_FORMAT, "T2", "token \"%.64s\": id %lld is taken", text,
                               (long long)id);
        if (rc == -SQ_E_LIMIT)
            return sq_tok_fail(t, err, SQ_E_LIMIT, "T2", "too many collisions in the vocabulary");
        if (rc)
            return sq_tok_nomem(t, err);
    }
    return 0;
}

/* Both halves of a merge: [a, b], or "a b" with the one space that the byte-level alphabet leaves free. */
static bool merge_halves(const json_t *item, const char *half[2], size_t n_half[2])
{
    if (json_is_string(item)) {
        const char *s = json_string_value(item), *space = strchr(s, ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        half[0] = s;
        n_half[0] = (size_t)(space - s);
        half[1] = space + 1;
        n_half[1] = strlen(space + 1);
        return true;
    }
    for (size_t i = 0; i < 2; i++) {
        half[i] = json_string_value(json_array_get(item, i));
        n_half[i] = json_string_length(json_array_get(item, i));
    }
    return json_array_size(item) == 2 && half[0] && half[1];
}

static int load_merge(struct sq_tokenizer *t, const json_t *item, size_t rank, struct sq_err *err)
{
    const char *half[2];
    size_t n_half[2];
    uint32_t id[3];
    if (!merge_halves(item, half, n_half))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T3", "merge %zu is neither \"a b\" nor [a, b]",
                           rank);
    SQ_AUTO_FREE char *joined = sq_malloc(n_half[0] + n_half[1] + 1);
    if (!joined)
        return sq_tok_nomem(t, err);
    memcpy(joined, half[0], n_half[0]);
    memcpy(joined + n_half[0], half[1], n_half[1]);
    id[0] = sq_tok_vocab_find(&t->vocab, half[0], n_half[0]);
    id[1] = sq_tok_vocab_find(&t->vocab, half[1], n_half[1]);
    id[2] = sq_tok_vocab_find(&t->vocab, joined, n_half[0] + n_half[1]);
    for (size_t i = 0; i < 3; i++)
        if (id[i] == SQ_TOK_NO_ID)
            return sq_tok_fail(t, err, SQ_E_FORMAT, "T3",
                               "merge %zu, \"%.*s\" and \"%.*s\": %s is not in the vocabulary",
                               rank, (int)SQ_MIN(n_half[0], 64u), half[0],
                               (int)SQ_MIN(n_half[1], 64u), half[1],
                               i == 2 ? "the joined text"
                               : i    ? "the second"
                                      : "the first");
    int rc = sq_tok_merges_add(&t->merges, id[0], id[1], (uint32_t)rank, id[2]);
    if (rc > 0)
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T3", "merge %zu: the pair stands there twice",
                           rank);
    return rc ? sq_tok_fail(t, err, SQ_E_LIMIT, "T3", "too many collisions in the merges") : 0;
}

static int load_merges(struct sq_tokenizer *t, const json_t *merges, struct sq_err *err)
{
    size_t n = json_array_size(merges), i;
    const json_t *item;
    if (!json_is_array(merges))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T3", "model.merges is missing or not a list");
    if (n > MAX_MERGES)
        return sq_tok_fail(t, err, SQ_E_LIMIT, "T3", "%zu merges, expected at most %d", n,
                           MAX_MERGES);
    if (sq_tok_merges_init(&t->merges, n))
        return sq_tok_nomem(t, err);
    bool strings = json_is_string(json_array_get(merges, 0));
    json_array_foreach(merges, i, item)
    {
        if (json_is_string(item) != strings)
            return sq_tok_fail(t, err, SQ_E_FORMAT, "T3",
                               "merge %zu: strings and pairs stand side by side", i);
        /* the head of a merges.txt, which the library skips too */
        if (strings && strncmp(json_string_value(item), "#version", 8) == 0)
            continue;
        int rc = load_merge(t, item, i, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* Keys of the model that must have one value, or do not matter for a vocabulary that holds every byte. */
static int check_model(const struct sq_tokenizer *t, json_t *model, struct sq_err *err)
{
    static const char *const known[] = {"type",
                                        "dropout",
                                        "unk_token",
                                        "continuing_subword_prefix",
                                        "end_of_word_suffix",
                                        "fuse_unk",
                                        "byte_fallback",
                                        "ignore_merges",
                                        "vocab",
                                        "merges"};
    const char *type = json_string_value(json_object_get(model, "type")), *key;
    json_t *value;
    if (!json_is_object(model) || (type && strcmp(type, "BPE") != 0))
        return sq_tok_fail(t, err, SQ_E_NOTSUP, "T2", "model type \"%.40s\", expected BPE",
                           type ? type : "(none)");
    int rc = known_keys(t, model, "T2", known, SQ_ARRAY_LEN(known), err);
    if (rc)
        return rc;
    json_object_foreach(model, key, value)
    {
        bool affix =
            strcmp(key, "continuing_subword_prefix") == 0 || strcmp(key, "end_of_word_suffix") == 0;
        bool dropout = strcmp(key, "dropout") == 0;
        if ((affix && !json_is_null(value) && json_string_length(value)) ||
            (dropout && !json_is_null(value) && json_number_value(value) != 0.0))
            return sq_tok_fail(t, err, SQ_E_NOTSUP, "T2", "model: %s is set, expected null", key);
    }
    return 0;
}

/* T6, and T10 as far as the model alone could break it: neither a byte nor a merge may stand for a special token. */
static int check_reachable(const struct sq_tokenizer *t, struct sq_err *err)
{
    for (unsigned b = 0; b < 256; b++) {
        uint32_t id = t->vocab.byte_id[b];
        if (id == SQ_TOK_NO_ID)
            return sq_tok_fail(t, err, SQ_E_FORMAT, "T6", "no token for byte 0x%02X", b);
        if (t->vocab.ids[id].special)
            return sq_tok_fail(t, err, SQ_E_NOTSUP, "T10",
                               "the token of byte 0x%02X is special: any text could spell it", b);
    }
    for (size_t i = 0; i < t->merges.n_slots; i++) {
        const struct sq_tok_merge *m = &t->merges.slots[i];
        if (m->a != SQ_TOK_NO_ID && t->vocab.ids[m->to].special)
            return sq_tok_fail(t, err, SQ_E_NOTSUP, "T10",
                               "merge %u joins to the special token %u: any text could spell it",
                               m->rank, m->to);
    }
    return 0;
}

static int load_all(struct sq_tokenizer *t, json_t *root, struct sq_err *err)
{
    static const char *const known[] = {"version",        "truncation", "padding",
                                        "added_tokens",   "normalizer", "pre_tokenizer",
                                        "post_processor", "decoder",    "model"};
    json_t *model = json_object_get(root, "model");
    const json_t *added = json_object_get(root, "added_tokens");
    const char *version = json_string_value(json_object_get(root, "version"));
    if (version && strcmp(version, "1.0") != 0)
        return sq_tok_fail(t, err, SQ_E_NOTSUP, "T5", "version \"%.40s\", expected \"1.0\"",
                           version);
    int rc = known_keys(t, root, "T5", known, SQ_ARRAY_LEN(known), err);
    if (!rc)
        rc = check_model(t, model, err);
    if (!rc)
        rc = load_vocab(t, json_object_get(model, "vocab"), json_array_size(added), err);
    if (!rc)
        rc = load_merges(t, json_object_get(model, "merges"), err);
    if (rc)
        return rc;
    t->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    rc = sq_tok_load_added(t, added, err);
    if (!rc)
        rc = check_reachable(t, err);
    return rc ? rc : sq_tok_load_pipeline(t, root, err);
}

/* --- reading ---------------------------------------------------------------------------------------------------------------- */

static int parse_json(const struct sq_tokenizer *t, const char *json, size_t n, json_t **ret,
                      struct sq_err *err)
{
    json_error_t why;
    if (n > SQ_TOK_MAX_FILE_BYTES)
        return sq_tok_fail(t, err, SQ_E_LIMIT, "T1", "%zu bytes, expected at most %zu", n,
                           SQ_TOK_MAX_FILE_BYTES);
    if (!shallow(json, n))
        return sq_tok_fail(t, err, SQ_E_FORMAT, "T1", "nested deeper than %d", MAX_DEPTH);
    *ret = json_loadb(json, n, JSON_REJECT_DUPLICATES, &why);
    if (*ret)
        return 0;
    if (json_error_code(&why) == json_error_out_of_memory)
        return sq_tok_nomem(t, err);
    return sq_tok_fail(t, err, SQ_E_FORMAT, "T1", "line %d, column %d: %s", why.line, why.column,
                       why.text);
}

int sq_tokenizer_parse(const char *json, size_t n_bytes, const char *name, size_t n_model_ids,
                       struct sq_tokenizer **ret, struct sq_err *err)
{
    json_t *root;
    SQ_AUTO(sq_tokenizer) struct sq_tokenizer *t = sq_new(struct sq_tokenizer);
    if (t)
        t->name = sq_strdup(name);
    if (!t || !t->name)
        return sq_fail(err, SQ_E_NOMEM, "%s: no memory for the tokenizer", name);
    t->n_model_ids = n_model_ids;
    int rc = parse_json(t, json, n_bytes, &root, err);
    if (rc)
        return rc;
    rc = load_all(t, root, err);
    json_decref(root);
    if (rc)
        return rc;
    *ret = sq_steal(&t);
    return 0;
}

/* The whole file, or a message. */
static int read_file(int fd, const char *name, char **ret, size_t *ret_n, struct sq_err *err)
{
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        return sq_fail(err, SQ_E_IO, "%s: not a regular file", name);
    if ((uint64_t)st.st_size > SQ_TOK_MAX_FILE_BYTES)
        return sq_fail(err, SQ_E_LIMIT, "%s: [T1] %lld bytes, expected at most %zu", name,
                       (long long)st.st_size, SQ_TOK_MAX_FILE_BYTES);
    size_t size = (size_t)st.st_size, n = 0;
    SQ_AUTO_FREE char *text = sq_malloc(size);
    if (!text)
        return sq_fail(err, SQ_E_NOMEM, "%s: no memory for %zu bytes", name, size);
    while (n < size) {
        ssize_t got = pread(fd, text + n, size - n, (off_t)n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return sq_fail(err, SQ_E_IO, "%s: %s after %zu of %zu bytes", name,
                           got ? strerror(errno) : "the file ends", n, size);
        n += (size_t)got;
    }
    *ret = sq_steal(&text);
    *ret_n = n;
    return 0;
}

int sq_tokenizer_open(int dir_fd, const char *file_name, size_t n_model_ids,
                      struct sq_tokenizer **ret, struct sq_err *err)
{
    SQ_AUTO_FREE char *text = NULL;
    size_t n = 0;
    int fd = openat(dir_fd, file_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return sq_fail(err, errno == ENOENT ? SQ_E_NOTFOUND : SQ_E_IO, "%s: %s", file_name,
                       strerror(errno));
    int rc = read_file(fd, file_name, &text, &n, err);
    close(fd);
    return rc ? rc : sq_tokenizer_parse(text, n, file_name, n_model_ids, ret, err);
}
