/* Storage of the KV cache: sizes, birth and death. The kernels are in attn.inc. */
#include "engine/cpu/attn.h"

#include "engine/base/mem.h"
#include "engine/base/num.h"

/* Fills the layout of a tile and the total; false on overflow. */
static bool layout(const struct sq_kv_desc *d, struct sq_kv *ret)
{
    const bool is_int8 = d->dtype == SQ_I8;
    size_t k_bytes, v_bytes, end, n_tiles;
    if (d->head_dim > SQ_K_MAX)
        return false;
    *ret = (struct sq_kv){.d = *d, .d_pad = sq_round_up(d->head_dim, SQ_LANES)};
    k_bytes = SQ_KV_BLOCK * d->head_dim * (is_int8 ? 1 : sizeof(float));
    v_bytes = is_int8 ? SQ_KV_BLOCK * ret->d_pad : k_bytes;
    ret->sums_off = k_bytes;
    ret->v_off = sq_round_up(k_bytes + (is_int8 ? SQ_KV_BLOCK * sizeof(int32_t) : 0), SQ_CPU_ALIGN);
    end = ret->v_off + v_bytes;
    ret->tile_bytes = sq_round_up(end, SQ_CPU_ALIGN);
    return sq_mul_size(d->n_layers, d->n_kv_heads, &n_tiles) &&
           sq_mul_size(n_tiles, d->n_blocks, &n_tiles) &&
           sq_mul_size(n_tiles, ret->tile_bytes, &ret->bytes);
}

size_t sq_cpu_kv_bytes(const struct sq_kv_desc *d)
{
    struct sq_kv kv;
    return layout(d, &kv) ? kv.bytes : SIZE_MAX;
}

int sq_cpu_kv_new(const struct sq_kv_desc *d, struct sq_kv **ret, struct sq_err *err)
{
    if (d->dtype != SQ_F32 && (d->dtype != SQ_I8 || d->head_dim % 4 != 0))
        return sq_fail(
            err, SQ_E_INVAL,
            "KV cache: needs F32, or int8 with a head dimension that is a multiple of 4, "
            "found dtype %d with head dimension %zu",
            (int)d->dtype, d->head_dim);
    struct sq_kv *kv = sq_new(struct sq_kv);
    if (!kv)
        return sq_fail(err, SQ_E_NOMEM, "KV cache: out of memory");
    if (!layout(d, kv)) {
        sq_free(kv);
        return sq_fail(err, SQ_E_LIMIT, "KV cache: %zu layers x %zu heads x %zu blocks overflow",
                       d->n_layers, d->n_kv_heads, d->n_blocks);
    }
    kv->data = sq_cpu_alloc(kv->bytes);
    if (!kv->data) {
        size_t bytes = kv->bytes;
        sq_free(kv);
        return sq_fail(err, SQ_E_NOMEM, "KV cache: cannot allocate %zu bytes for %zu blocks", bytes,
                       d->n_blocks);
    }
    *ret = kv;
    return 0;
}

void sq_cpu_kv_free(struct sq_kv *kv)
{
    if (!kv)
        return;
    sq_free(kv->data);
    sq_free(kv);
}

size_t sq_cpu_kv_used(const struct sq_kv *kv)
{
    return kv->bytes;
}

size_t sq_cpu_attn_scratch(const struct sq_kv_desc *d)
{
    size_t n_pieces = sq_div_up(d->n_blocks * SQ_KV_BLOCK, SQ_ATTN_PIECE);
    size_t d_pad = sq_round_up(d->head_dim, SQ_LANES);
    size_t piece_bytes = (d_pad + 2) * sizeof(float); /* sums, maximum, l */
    return sq_round_up(sq_attn_quads_bytes(d), SQ_CPU_ALIGN) +
           SQ_ATTN_SCORES * (sizeof(float) + 1) + SQ_ATTN_ROWS * n_pieces * piece_bytes;
}
