/* INT8 matmul for AVX512-VNNI: tiles of up to 14 rows x 32 columns in 28 accumulators, the whole K per tile.
 *
 * Accumulators are named variables, not an array, and this file is compiled with -fno-tree-pre: otherwise GCC 12 keeps a copy of
 * every accumulator on the stack. A test looks for such spills in the object. */
#include <immintrin.h>

#include "engine/cpu/gemm.h"

#define MR_MAX 14

/* X(row, pointer to the first of its three rows, row within the three) */
#define ROWS_1(X) X(0, x0, 0)
#define ROWS_2(X) ROWS_1(X) X(1, x0, 1)
#define ROWS_3(X) ROWS_2(X) X(2, x0, 2)
#define ROWS_4(X) ROWS_3(X) X(3, x3, 0)
#define ROWS_5(X) ROWS_4(X) X(4, x3, 1)
#define ROWS_6(X) ROWS_5(X) X(5, x3, 2)
#define ROWS_7(X) ROWS_6(X) X(6, x6, 0)
#define ROWS_8(X) ROWS_7(X) X(7, x6, 1)
#define ROWS_9(X) ROWS_8(X) X(8, x6, 2)
#define ROWS_10(X) ROWS_9(X) X(9, x9, 0)
#define ROWS_11(X) ROWS_10(X) X(10, x9, 1)
#define ROWS_12(X) ROWS_11(X) X(11, x9, 2)
#define ROWS_13(X) ROWS_12(X) X(12, x12, 0)
#define ROWS_14(X) ROWS_13(X) X(13, x12, 1)

#define START(r, xp, i) __m512i a##r = acc0, b##r = acc1;
#define START_ODD(r, xp, i) __m512i c##r = _mm512_setzero_si512(), d##r = c##r;
#define STEP(r, xp, i)                                                                             \
    {                                                                                              \
        const __m512i q = _mm512_set1_epi32(sq_gemm_quad(xp + i * stride));                        \
        a##r = _mm512_dpbusd_epi32(a##r, q, w0);                                                   \
        b##r = _mm512_dpbusd_epi32(b##r, q, w1);                                                   \
    }
#define STEP_ODD(r, xp, i)                                                                         \
    {                                                                                              \
        const __m512i q = _mm512_set1_epi32(sq_gemm_quad(xp + i * stride + 4));                    \
        c##r = _mm512_dpbusd_epi32(c##r, q, w2);                                                   \
        d##r = _mm512_dpbusd_epi32(d##r, q, w3);                                                   \
    }
#define JOIN_ODD(r, xp, i)                                                                         \
    a##r = _mm512_add_epi32(a##r, c##r);                                                           \
    b##r = _mm512_add_epi32(b##r, d##r);
#define STORE(r, xp, i)                                                                            \
    _mm512_store_si512(c_out + 32 * r, a##r);                                                      \
    _mm512_store_si512(c_out + 32 * r + 16, b##r);

#define TILE_BEGIN                                                                                 \
    const size_t stride = t->stride, pf_off = t->pf_off, pf_step = t->pf_step;                     \
    const int8_t *w = t->w;                                                                        \
    const char *pf = t->pf;                                                                        \
    const uint8_t *x0 = t->x, *x3 = x0 + 3 * stride, *x6 = x3 + 3 * stride;                        \
    const uint8_t *x9 = x6 + 3 * stride, *x12 = x9 + 3 * stride;                                   \
    const __m512i acc0 = _mm512_load_si512(t->acc0), acc1 = _mm512_load_si512(t->acc0 + 16);       \
    int32_t *const c_out = t->c;                                                                   \
    size_t k = t->nk;                                                                              \
    (void)x3, (void)x6, (void)x9, (void)x12, (void)pf, (void)pf_off, (void)pf_step;

#define PREFETCH                                                                                   \
    __builtin_prefetch(pf, 0, 2);                                                                  \
    __builtin_prefetch(pf + pf_off, 0, 2);                                                         \
    pf += pf_step;

#define ADVANCE(n) w += 128 * n, x0 += 4 * n, x3 += 4 * n, x6 += 4 * n, x9 += 4 * n, x12 += 4 * n;

#define STEP_ALL(mr)                                                                               \
    do {                                                                                           \
        const __m512i w0 = _mm512_load_si512(w), w1 = _mm512_load_si512(w + 64);                   \
        ROWS_##mr(STEP);                                                                           \
    } while (0)

#define TILE(mr)                                                                                   \
    static void tile##mr(const struct sq_gemm_tile *t)                                             \
    {                                                                                              \
        TILE_BEGIN;                                                                                \
        ROWS_##mr(START);                                                                          \
        for (; k; k--) {                                                                           \
            PREFETCH;                                                                              \
            STEP_ALL(mr);                                                                          \
            ADVANCE(1);                                                                            \
        }                                                                                          \
        ROWS_##mr(STORE);                                                                          \
    }

/* Few rows keep a second set of accumulators for odd k: one set alone would wait for the latency of vpdpbusd. They go at the pace of
 * the memory, where the processor's own prefetcher does well alone but stops at each page: one or two rows gain by being told 2 KiB
 * ahead, three and more lose what the prefetches cost them. */
#define STREAM_AHEAD                                                                               \
    __builtin_prefetch(w + 2048, 0, 2);                                                            \
    __builtin_prefetch(w + 2048 + 64, 0, 2);                                                       \
    __builtin_prefetch(w + 2048 + 128, 0, 2);                                                      \
    __builtin_prefetch(w + 2048 + 192, 0, 2)
#define STREAM_ALONE (void)0

#define TILE_TWICE(mr, STREAM)                                                                     \
    static void tile##mr(const struct sq_gemm_tile *t)                                             \
    {                                                                                              \
        TILE_BEGIN;                                                                                \
        ROWS_##mr(START);                                                                          \
        ROWS_##mr(START_ODD);                                                                      \
        for (; k > 1; k -= 2) {                                                                    \
            STREAM;                                                                                \
            const __m512i w2 = _mm512_load_si512(w + 128), w3 = _mm512_load_si512(w + 192);        \
            STEP_ALL(mr);                                                                          \
            ROWS_##mr(STEP_ODD);                                                                   \
            ADVANCE(2);                                                                            \
        }                                                                                          \
        if (k)                                                                                     \
            STEP_ALL(mr);                                                                          \
        ROWS_##mr(JOIN_ODD);                                                                       \
        ROWS_##mr(STORE);                                                                          \
    }

TILE_TWICE(1, STREAM_AHEAD)
TILE_TWICE(2, STREAM_AHEAD)
TILE_TWICE(3, STREAM_ALONE)
TILE_TWICE(4, STREAM_ALONE)
TILE_TWICE(5, STREAM_ALONE)
TILE(6)
TILE(7)
TILE(8)
TILE(9)
TILE(10)
TILE(11)
TILE(12)
TILE(13)
TILE(14)

static void (*const tiles[MR_MAX + 1])(const struct sq_gemm_tile *) = {
    NULL,  tile1, tile2,  tile3,  tile4,  tile5,  tile6, tile7,
    tile8, tile9, tile10, tile11, tile12, tile13, tile14};

/* Stores one vector of 16 results; n columns of it exist. Formulas: engine/quant.h. */
struct epi {
    __m512 mul, bias, lo;
    __mmask16 mask;
};

static inline __m512i codes(__m512i acc, const struct epi *e)
{
    __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), e->mul);
    v = _mm512_max_ps(_mm512_min_ps(_mm512_set1_ps(127.0f), v), e->lo);
    return _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(128));
}

static inline __m512 reals(__m512i acc, __m512 row_scale, const struct epi *e, bool relu)
{
    __m512 y = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), row_scale), e->mul, e->bias);
    return relu ? _mm512_max_ps(_mm512_setzero_ps(), y) : y;
}

static void epilogue(const struct sq_gemm *g, int m, int mr, size_t p, const int32_t *c)
{
    const struct sq_linear *l = g->l;
    const struct sq_buf *y = g->y;
    const bool relu = l->d.act == SQ_ACT_RELU;
    for (size_t n = p * SQ_PANEL; n < (p + 1) * SQ_PANEL && n < l->d.n_out; n += 16, c += 16) {
        const size_t left = l->d.n_out - n;
        const struct epi e = {
            .mul = _mm512_load_ps(l->mul + n),
            .bias = _mm512_load_ps(l->bias + n),
            .lo = _mm512_set1_ps(relu ? 0.0f : -127.0f),
            .mask = (__mmask16)(left < 16 ? (1u << left) - 1 : 0xffff),
        };
        for (int r = 0; r < mr; r++) {
            const __m512i acc = _mm512_load_si512(c + r * SQ_PANEL);
            const size_t at = (size_t)(m + r) * y->stride + n;
            if (l->d.out == SQ_OUT_S8) {
                _mm_store_si128((__m128i *)(y->u + at), _mm512_cvtepi32_epi8(codes(acc, &e)));
                continue;
            }
            __m512 s = _mm512_set1_ps(l->d.dynamic ? g->x->row_scale[m + r] : 1.0f);
            __m512 v = reals(acc, s, &e, relu);
            if (l->d.out == SQ_OUT_ADD)
                v = _mm512_add_ps(_mm512_maskz_loadu_ps(e.mask, y->f + at), v);
            _mm512_mask_storeu_ps(y->f + at, e.mask, v);
        }
    }
}

#define ACC0(l) ((l)->acc0)
#define TILES(l) tiles
#define PROBE_VEC __m512i
#define PROBE_ONES _mm512_set1_epi8(1)
#define PROBE_DOT _mm512_dpbusd_epi32
#include "engine/cpu/gemm.inc"
