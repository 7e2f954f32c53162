/* A trie over the bytes of added tokens, built breadth first from sorted keys. */
#include "engine/text/tok_priv.h"

void sq_tok_trie_done(struct sq_tok_trie *trie)
{
    sq_free(trie->nodes);
    sq_free(trie->edges);
    *trie = (struct sq_tok_trie){0};
}

/* The keys below a node whose edges are still to be made. */
struct open_node {
    size_t lo, hi, depth;
};

/* Makes the edges of node i, whose keys share their first `depth` bytes. */
static void expand(struct sq_tok_trie *trie, const struct sq_tok_trie_key *keys,
                   struct open_node *open, size_t i)
{
    struct sq_tok_trie_node *node = &trie->nodes[i];
    size_t lo = open[i].lo, hi = open[i].hi, depth = open[i].depth;
    node->added = -1;
    node->first_edge = (uint32_t)trie->n_edges;
    if (lo < hi && keys[lo].n == depth)
        node->added = keys[lo++].added;
    while (lo < hi) {
        size_t end = lo + 1;
        while (end < hi && keys[end].text[depth] == keys[lo].text[depth])
            end++;
        open[trie->n_nodes] = (struct open_node){lo, end, depth + 1};
        trie->edges[trie->n_edges++] =
            (struct sq_tok_trie_edge){keys[lo].text[depth], (uint32_t)trie->n_nodes++};
        lo = end;
    }
    node->n_edges = (uint16_t)(trie->n_edges - node->first_edge);
}

int sq_tok_trie_build(struct sq_tok_trie *trie, const struct sq_tok_trie_key *keys, size_t n)
{
    size_t max_nodes = 1;
    for (size_t i = 0; i < n; i++) {
        max_nodes += keys[i].n;
        trie->starts[keys[i].text[0]] = true;
    }
    trie->nodes = sq_new_array(struct sq_tok_trie_node, max_nodes);
    trie->edges = sq_new_array(struct sq_tok_trie_edge, max_nodes);
    SQ_AUTO_FREE struct open_node *open = sq_new_array(struct open_node, max_nodes);
    if (!trie->nodes || !trie->edges || !open)
        return -SQ_E_NOMEM;
    trie->n_nodes = 1;
    open[0] = (struct open_node){0, n, 0};
    for (size_t i = 0; i < trie->n_nodes; i++)
        expand(trie, keys, open, i);
    return 0;
}

int32_t sq_tok_trie_longest(const struct sq_tok_trie *trie, const unsigned char *text, size_t n,
                            size_t *ret_n)
{
    const struct sq_tok_trie_node *node = trie->nodes;
    int32_t best = -1;
    for (size_t i = 0; i < n; i++) {
        const struct sq_tok_trie_edge *e = trie->edges + node->first_edge;
        const struct sq_tok_trie_edge *end = e + node->n_edges;
        while (e < end && e->byte != text[i])
            e++;
        if (e == end)
            break;
        node = &trie->nodes[e->node];
        if (node->added >= 0) {
            best = node->added;
            *ret_n = i + 1;
        }
    }
    return best;
}
