/* INT8 matmul for AVX2, which can multiply u8 x s8 only into saturating s16 pairs (vpmaddubsw). Two exact ways around it:
 *
 *   sign:  a * w = |a| * sign(w, a); at most 2 * 128 * 127 per pair. Wrong for w = -128 only (its negation does not exist).
 *   split: u = a + 128 = 2 * (u >> 1) + (u & 1); at most 2 * 127 * 128 per pair. Right for every weight, half as fast.
 *
 * Up to 2 rows take all 32 columns of a panel at once and leave prefetching to the processor, which does it better at the pace of the
 * memory; up to 4 rows take two halves and prefetch. */
#include <immintrin.h>

#include "engine/cpu/gemm.h"

#define MR_MAX 4

static inline __m256i load(const void *p)
{
    return _mm256_load_si256((const __m256i *)p);
}

static inline __m256i quads(const uint8_t *x)
{
    return _mm256_set1_epi32(sq_gemm_quad(x));
}

/* A way defines: ROW, what it keeps of a row's quad, and its product with 32 weights, pairs summed into s32. */
struct sign_row {
    __m256i a, abs;
};

static inline struct sign_row sign_row(__m256i u)
{
    const __m256i a = _mm256_xor_si256(u, _mm256_set1_epi8((char)0x80));
    return (struct sign_row){a, _mm256_abs_epi8(a)};
}

static inline __m256i sign_dot(__m256i acc, struct sign_row q, __m256i w)
{
    const __m256i s = _mm256_maddubs_epi16(q.abs, _mm256_sign_epi8(w, q.a));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(s, _mm256_set1_epi16(1)));
}

struct split_row {
    __m256i half, odd;
};

static inline struct split_row split_row(__m256i u)
{
    return (struct split_row){_mm256_and_si256(_mm256_srli_epi16(u, 1), _mm256_set1_epi8(0x7f)),
                              _mm256_and_si256(u, _mm256_set1_epi8(1))};
}

static inline __m256i split_dot(__m256i acc, struct split_row q, __m256i w)
{
    const __m256i h = _mm256_madd_epi16(_mm256_maddubs_epi16(q.half, w), _mm256_set1_epi16(2));
    const __m256i o = _mm256_madd_epi16(_mm256_maddubs_epi16(q.odd, w), _mm256_set1_epi16(1));
    return _mm256_add_epi32(acc, _mm256_add_epi32(h, o));
}

#define ROWS_1(X, way) X(0, way)
#define ROWS_2(X, way) ROWS_1(X, way) X(1, way)
#define ROWS_3(X, way) ROWS_2(X, way) X(2, way)
#define ROWS_4(X, way) ROWS_3(X, way) X(3, way)

#define START4(r, way) __m256i a##r = s0, b##r = s1, c##r = s2, d##r = s3;
#define STEP4(r, way)                                                                              \
    {                                                                                              \
        const struct way##_row q = way##_row(quads(x + r * stride));                               \
        a##r = way##_dot(a##r, q, load(w));                                                        \
        b##r = way##_dot(b##r, q, load(w + 32));                                                   \
        c##r = way##_dot(c##r, q, load(w + 64));                                                   \
        d##r = way##_dot(d##r, q, load(w + 96));                                                   \
    }
#define STORE4(r, way)                                                                             \
    _mm256_store_si256((__m256i *)(to + 32 * r), a##r);                                            \
    _mm256_store_si256((__m256i *)(to + 32 * r + 8), b##r);                                        \
    _mm256_store_si256((__m256i *)(to + 32 * r + 16), c##r);                                       \
    _mm256_store_si256((__m256i *)(to + 32 * r + 24), d##r);

#define TILE_WHOLE(mr, way)                                                                        \
    static void way##mr(const struct sq_gemm_tile *t)                                              \
    {                                                                                              \
        const size_t stride = t->stride, nk = t->nk;                                               \
        const __m256i s0 = load(t->acc0), s1 = load(t->acc0 + 8);                                  \
        const __m256i s2 = load(t->acc0 + 16), s3 = load(t->acc0 + 24);                            \
        const uint8_t *x = t->x;                                                                   \
        const int8_t *w = t->w;                                                                    \
        int32_t *const to = t->c;                                                                  \
        ROWS_##mr(START4, way);                                                                    \
        for (size_t k = nk; k; k--) {                                                              \
            ROWS_##mr(STEP4, way);                                                                 \
            w += 128, x += 4;                                                                      \
        }                                                                                          \
        ROWS_##mr(STORE4, way);                                                                    \
    }

#define START2(r, way) __m256i a##r = s0, b##r = s1;
#define STEP2(r, way)                                                                              \
    {                                                                                              \
        const struct way##_row q = way##_row(quads(x + r * stride));                               \
        a##r = way##_dot(a##r, q, w0);                                                             \
        b##r = way##_dot(b##r, q, w1);                                                             \
    }
#define STORE2(r, way)                                                                             \
    _mm256_store_si256((__m256i *)(to + 32 * r), a##r);                                            \
    _mm256_store_si256((__m256i *)(to + 32 * r + 8), b##r);

#define PREFETCH                                                                                   \
    __builtin_prefetch(pf, 0, 2);                                                                  \
    __builtin_prefetch(pf + pf_off, 0, 2);                                                         \
    pf += pf_step;

#define TILE_HALVES(mr, way)                                                                       \
    static void way##mr(const struct sq_gemm_tile *t)                                              \
    {                                                                                              \
        const size_t stride = t->stride, nk = t->nk;                                               \
        const char *pf = t->pf;                                                                    \
        size_t pf_off = t->pf_off, pf_step = t->pf_step;                                           \
        for (int half = 0; half < 2; half++) {                                                     \
            const __m256i s0 = load(t->acc0 + 16 * half), s1 = load(t->acc0 + 16 * half + 8);      \
            const uint8_t *x = t->x;                                                               \
            const int8_t *w = t->w + 64 * half;                                                    \
            int32_t *const to = t->c + 16 * half;                                                  \
            ROWS_##mr(START2, way);                                                                \
            for (size_t k = nk; k; k--) {                                                          \
                PREFETCH;                                                                          \
                const __m256i w0 = load(w), w1 = load(w + 32);                                     \
                ROWS_##mr(STEP2, way);                                                             \
                w += 128, x += 4;                                                                  \
            }                                                                                      \
            ROWS_##mr(STORE2, way);                                                                \
            pf = (const char *)t->w, pf_off = pf_step = 0; /* all fetched */                       \
        }                                                                                          \
    }

#define WAY(way)                                                                                   \
    TILE_WHOLE(1, way)                                                                             \
    TILE_WHOLE(2, way)                                                                             \
    TILE_HALVES(3, way)                                                                            \
    TILE_HALVES(4, way)                                                                            \
    static void (*const way##_tiles[MR_MAX + 1])(const struct sq_gemm_tile *) = {                  \
        NULL, way##1, way##2, way##3, way##4};
WAY(sign)
WAY(split)

/* The three instructions that every way needs: the ceiling that both are measured against. */
static inline __m256i plain_dot(__m256i acc, __m256i a, __m256i w)
{
    return _mm256_add_epi32(acc,
                            _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1)));
}

#include "engine/cpu/gemm_ymm.inc"

#define ACC0(l) ((l)->has_min ? (l)->acc0 : (l)->acc0_s)
#define TILES(l) ((l)->has_min ? split_tiles : sign_tiles)
#define PROBE_VEC __m256i
#define PROBE_ONES _mm256_set1_epi8(1)
#define PROBE_DOT plain_dot
#include "engine/cpu/gemm.inc"
