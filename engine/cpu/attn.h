/* The KV cache of the CPU backend: tiles that the attention kernels read as they lie.
 *
 * One tile holds the keys and values of one block (SQ_KV_BLOCK positions) for one layer and one KV head; the tiles of a head lie beside
 * each other by block id, so that a sequence with neighbouring blocks is read as one stream.
 *   int8:  K codes [D/4][32][4] (quads of dimensions), s32 sums[32] = -128 * sum_d k (what vpdpbusd on q + 128 starts from),
 *          V codes [32/4][d_pad][4] (quads of keys). q . k and p . v are then both 4-byte dot products into lanes, with no shuffle.
 *   float: K [32][D], V [32][D].
 * Codes are in [-127,127], because they come from quantisation. Positions never written hold zeros or old codes; they are masked. */
#pragma once

#include "engine/cpu/cpu.h"

struct sq_kv {
    struct sq_kv_desc d;
    size_t d_pad;      /* head_dim rounded up to 16: columns of a V tile */
    size_t sums_off;   /* bytes from the start of a tile; int8 only */
    size_t v_off;      /* bytes from the start of a tile */
    size_t tile_bytes; /* a multiple of 64 */
    size_t bytes;      /* of data */
    uint8_t *data;     /* [n_layers][n_kv_heads][n_blocks] tiles, owned */
};

/* Tile of block 0; others follow at tile_bytes * id. */
static inline uint8_t *sq_kv_head(const struct sq_kv *kv, int layer, int kv_head)
{
    size_t i = (size_t)layer * kv->d.n_kv_heads + (size_t)kv_head;
    return kv->data + i * kv->d.n_blocks * kv->tile_bytes;
}

#define SQ_ATTN_ROWS 8 /* query rows that go through the keys together */

/* Scratch of one thread. The first parts have a fixed size for a cache; the last ones are laid out anew for each tile of rows, by the
 * number of pieces that its keys make. */
static inline size_t sq_attn_quads_bytes(const struct sq_kv_desc *d)
{
    return d->head_dim / 4 * SQ_ATTN_ROWS *
           8; /* [D/4][SQ_ATTN_ROWS] quads of query codes, 8 bytes at most */
}
#define SQ_ATTN_SCORES                                                                             \
    (SQ_ATTN_ROWS *                                                                                \
     SQ_ATTN_PIECE) /* scores, 4 bytes each, and as many probabilities, 1 byte each */
