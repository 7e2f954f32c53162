/* Merges: a hash of pairs, and the loop that joins the symbols of one word.
 *
 * The loop keeps the word as a linked list and the joinable neighbours in a heap ordered by (rank, position), so a word of n
 * bytes takes O(n log n) whatever it is. An entry of the heap is stale once one of its two symbols was joined with another; it is
 * recognised when it surfaces, since the pair that stands there then has another rank or none. */
#include <string.h>

#include "engine/base/check.h"
#include "engine/text/tok_priv.h"

#define MAX_PROBES 1024

static size_t hash_pair(uint32_t a, uint32_t b)
{
    uint64_t h = ((uint64_t)a << 32 | b) * 0x9E3779B97F4A7C15u;
    return (size_t)((h ^ h >> 32) * 0xD6E8FEB86659FD93u >> 20);
}

int sq_tok_merges_init(struct sq_tok_merges *m, size_t n)
{
    size_t n_slots = 16;
    while (n_slots < 2 * n)
        n_slots *= 2;
    m->slots = sq_new_array(struct sq_tok_merge, n_slots);
    if (!m->slots)
        return -SQ_E_NOMEM;
    m->n_slots = n_slots;
    for (size_t i = 0; i < n_slots; i++)
        m->slots[i].a = SQ_TOK_NO_ID;
    return 0;
}

void sq_tok_merges_done(struct sq_tok_merges *m)
{
    sq_free(m->slots);
    *m = (struct sq_tok_merges){0};
}

int sq_tok_merges_add(struct sq_tok_merges *m, uint32_t a, uint32_t b, uint32_t rank, uint32_t to)
{
    size_t at = hash_pair(a, b) & (m->n_slots - 1);
    for (size_t probes = 0; probes < MAX_PROBES; probes++) {
        struct sq_tok_merge *s = &m->slots[at];
        if (s->a == a && s->b == b)
            return 1;
        if (s->a == SQ_TOK_NO_ID) {
            *s = (struct sq_tok_merge){a, b, rank, to};
            return 0;
        }
        at = (at + 1) & (m->n_slots - 1);
    }
    return -SQ_E_LIMIT;
}

const struct sq_tok_merge *sq_tok_merges_find(const struct sq_tok_merges *m, uint32_t a, uint32_t b)
{
    for (size_t at = hash_pair(a, b) & (m->n_slots - 1);; at = (at + 1) & (m->n_slots - 1)) {
        const struct sq_tok_merge *s = &m->slots[at];
        if (s->a == a && s->b == b)
            return s;
        if (s->a == SQ_TOK_NO_ID)
            return NULL;
    }
}

int sq_tok_ids_reserve(struct sq_tok_ids *ids, size_t n_more)
{
    if (ids->cap - ids->n >= n_more)
        return 0;
    size_t cap = 2 * ids->cap + n_more + 16;
    int32_t *v = sq_realloc_array(ids->v, cap, sizeof *v);
    if (!v)
        return -SQ_E_NOMEM;
    ids->v = v;
    ids->cap = cap;
    return 0;
}

void sq_tok_word_done(struct sq_tok_word *w)
{
    sq_free(w->id);
    sq_free(w->prev);
    sq_free(w->next);
    sq_free(w->heap);
    *w = (struct sq_tok_word){0};
}

static int grow_word(struct sq_tok_word *w, size_t n)
{
    if (n <= w->cap)
        return 0;
    n = SQ_MAX(n, (size_t)64);
    sq_tok_word_done(w);
    w->id = sq_new_array(uint32_t, n);
    w->prev = sq_new_array(uint32_t, n);
    w->next = sq_new_array(uint32_t, n);
    w->heap = sq_new_array(uint64_t, 2 * n);
    if (!w->id || !w->prev || !w->next || !w->heap)
        return -SQ_E_NOMEM;
    w->cap = n;
    return 0;
}

/* The heap has four children a node: half the depth of a binary one, and a node's children share a cache line. */
static void sift_up(uint64_t *heap, size_t i, uint64_t v)
{
    for (; i && heap[(i - 1) / 4] > v; i = (i - 1) / 4)
        heap[i] = heap[(i - 1) / 4];
    heap[i] = v;
}

static uint64_t pop(uint64_t *heap, size_t *n)
{
    uint64_t top = heap[0], v = heap[--*n];
    size_t i = 0;
    for (size_t child; (child = 4 * i + 1) < *n; i = child) {
        size_t end = SQ_MIN(child + 4, *n);
        for (size_t k = child + 1; k < end; k++)
            child = heap[k] < heap[child] ? k : child;
        if (heap[child] >= v)
            break;
        heap[i] = heap[child];
    }
    heap[i] = v;
    return top;
}

/* Adds the pair that begins at symbol i to the heap if it can be joined. */
static void offer(const struct sq_tokenizer *t, struct sq_tok_word *w, uint32_t i, size_t *n_heap)
{
    const struct sq_tok_merge *m = sq_tok_merges_find(&t->merges, w->id[i], w->id[w->next[i] - 1]);
    if (m)
        sift_up(w->heap, (*n_heap)++, (uint64_t)m->rank << 32 | i);
}

/* Joins symbol i with its right neighbour into `to`. */
static void join(struct sq_tok_word *w, uint32_t i, uint32_t to)
{
    uint32_t right = w->next[i] - 1;
    w->id[i] = to;
    w->id[right] = SQ_TOK_NO_ID;
    w->next[i] = w->next[right];
    if (w->next[right])
        w->prev[w->next[right] - 1] = i + 1;
}

static void join_all(const struct sq_tokenizer *t, struct sq_tok_word *w, size_t n)
{
    size_t n_heap = 0;
    for (uint32_t i = 0; i + 1 < n; i++)
        offer(t, w, i, &n_heap);
    while (n_heap) {
        uint64_t top = pop(w->heap, &n_heap);
        uint32_t i = (uint32_t)top;
        if (w->id[i] == SQ_TOK_NO_ID || !w->next[i])
            continue;
        const struct sq_tok_merge *m =
            sq_tok_merges_find(&t->merges, w->id[i], w->id[w->next[i] - 1]);
        if (!m || m->rank != top >> 32)
            continue;
        join(w, i, m->to);
        /* room: a join takes one entry off the heap and one symbol off the word, and adds two entries */
        if (w->prev[i])
            offer(t, w, w->prev[i] - 1, &n_heap);
        if (w->next[i])
            offer(t, w, i, &n_heap);
    }
}

int sq_tok_merge_word(const struct sq_tokenizer *t, struct sq_tok_word *w, const unsigned char *p,
                      size_t n, struct sq_tok_ids *out)
{
    if (n == 1)
        return sq_tok_ids_push(out, t->vocab.byte_id[p[0]]);
    if (grow_word(w, n))
        return -SQ_E_NOMEM;
    for (size_t i = 0; i < n; i++) {
        w->id[i] = t->vocab.byte_id[p[i]];
        w->prev[i] = (uint32_t)i;
        w->next[i] = i + 1 < n ? (uint32_t)i + 2 : 0;
    }
    join_all(t, w, n);
    for (uint32_t at = 1; at; at = w->next[at - 1])
        if (sq_tok_ids_push(out, w->id[at - 1]))
            return -SQ_E_NOMEM;
    return 0;
}
