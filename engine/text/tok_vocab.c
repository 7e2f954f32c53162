/* The table of tokens: by id, and by text in an open-addressed hash. Also the byte-level alphabet: bytes that print in Latin-1
 * stand for themselves, the other 68 are numbered from U+0100 on. */
#include <string.h>

#include "engine/base/num.h"
#include "engine/text/tok_priv.h"
#include "engine/text/utf8.h"

#define MAX_PROBES                                                                                 \
    1024 /* a half-empty table needs far fewer, unless the file was made to collide */

static bool prints(unsigned b)
{
    return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
}

uint32_t sq_tok_byte_char(unsigned char byte)
{
    if (prints(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100u + byte;
    return byte == 0xAD ? 0x143u : 0x121u + (byte - 0x7Fu);
}

int sq_tok_char_byte(uint32_t c)
{
    if (c < 0x100)
        return prints(c) ? (int)c : -1;
    if (c <= 0x120)
        return (int)(c - 0x100);
    if (c <= 0x142)
        return (int)(c - 0x121 + 0x7F);
    return c == 0x143 ? 0xAD : -1;
}

static uint64_t hash_text(const char *text, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)text[i]) * 0x100000001b3u;
    return h ^ h >> 29;
}

int sq_tok_vocab_init(struct sq_tok_vocab *v, size_t n_tokens)
{
    size_t n_slots = 16;
    while (n_slots < 2 * n_tokens)
        n_slots *= 2;
    v->slots = sq_new_array(uint32_t, n_slots);
    if (!v->slots)
        return -SQ_E_NOMEM;
    v->n_slots = n_slots;
    memset(v->slots, 0xFF, n_slots * sizeof *v->slots);
    memset(v->byte_id, 0xFF, sizeof v->byte_id);
    return 0;
}

void sq_tok_vocab_done(struct sq_tok_vocab *v)
{
    sq_free(v->ids);
    sq_free(v->blob);
    sq_free(v->slots);
    *v = (struct sq_tok_vocab){0};
}

/* The slot of this text, or the empty one where it would go; NULL: too many collisions. */
static uint32_t *slot_of(const struct sq_tok_vocab *v, const char *text, size_t n)
{
    size_t at = hash_text(text, n) & (v->n_slots - 1);
    for (size_t probes = 0; probes < MAX_PROBES; probes++) {
        uint32_t id = v->slots[at];
        if (id == SQ_TOK_NO_ID)
            return &v->slots[at];
        const struct sq_tok_entry *e = &v->ids[id];
        if (e->n_text == n && (!n || !memcmp(v->blob + e->text, text, n)))
            return &v->slots[at];
        at = (at + 1) & (v->n_slots - 1);
    }
    return NULL;
}

uint32_t sq_tok_vocab_find(const struct sq_tok_vocab *v, const char *text, size_t n)
{
    const uint32_t *slot = slot_of(v, text, n);
    return slot ? *slot : SQ_TOK_NO_ID;
}

static int reserve(struct sq_tok_vocab *v, size_t n_bytes, uint32_t id)
{
    if (v->n_blob + n_bytes > v->cap_blob) {
        size_t cap = 2 * v->cap_blob + n_bytes + 4096;
        unsigned char *blob = sq_realloc_array(v->blob, cap, 1);
        if (!blob)
            return -SQ_E_NOMEM;
        v->blob = blob;
        v->cap_blob = cap;
    }
    if (id >= v->cap_ids) {
        size_t cap = 2 * v->cap_ids > id ? 2 * v->cap_ids : (size_t)id + 256;
        struct sq_tok_entry *ids = sq_realloc_array(v->ids, cap, sizeof *ids);
        if (!ids)
            return -SQ_E_NOMEM;
        memset(ids + v->cap_ids, 0, (cap - v->cap_ids) * sizeof *ids);
        v->ids = ids;
        v->cap_ids = cap;
    }
    return 0;
}

/* What the token stands for: its characters as bytes if all are in the alphabet, else its text. Returns the length. */
static size_t raw_bytes(const unsigned char *text, size_t n, unsigned char *out)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n;) {
        unsigned len;
        int byte = sq_tok_char_byte(sq_utf8_get(text + i, &len));
        if (byte < 0) {
            memmove(out, text, n);
            return n;
        }
        out[n_out++] = (unsigned char)byte;
        i += len;
    }
    return n_out;
}

int sq_tok_vocab_add(struct sq_tok_vocab *v, const char *text, size_t n, uint32_t id, bool in_model)
{
    uint32_t *slot = slot_of(v, text, n);
    if (!slot)
        return -SQ_E_LIMIT;
    if (*slot != SQ_TOK_NO_ID)
        return 1;
    if (id < v->n_ids && v->ids[id].used)
        return 2;
    if (reserve(v, 2 * n, id))
        return -SQ_E_NOMEM;
    struct sq_tok_entry *e = &v->ids[id];
    unsigned char *p = v->blob + v->n_blob;
    if (n)
        memcpy(p, text, n);
    *e = (struct sq_tok_entry){.text = (uint32_t)v->n_blob, .n_text = (uint32_t)n, .used = true};
    e->vocab = in_model;
    e->n_bytes = (uint32_t)raw_bytes(p, n, p + n);
    e->bytes = e->text;
    if (e->n_bytes != n || memcmp(p, p + n, n) != 0) {
        e->bytes = (uint32_t)(v->n_blob + n);
        v->n_blob += e->n_bytes;
    }
    v->n_blob += n;
    *slot = id;
    v->n_ids = id >= v->n_ids ? (size_t)id + 1 : v->n_ids;
    if (in_model) {
        v->n_vocab++;
        v->max_text = n > v->max_text ? n : v->max_text;
    }
    unsigned len;
    if (in_model && e->n_bytes == 1 && sq_tok_char_byte(sq_utf8_get(p, &len)) >= 0)
        v->byte_id[v->blob[e->bytes]] = id;
    return 0;
}
