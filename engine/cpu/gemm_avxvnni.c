/* INT8 matmul with 256-bit vpdpbusd: AVX-VNNI, or the same instruction of AVX512-VNNI + VL.
 *
 * Up to 3 rows take all 32 columns of a panel at once (12 accumulators of 16 registers) and leave prefetching to the processor, which
 * does it better at the pace of the memory; up to 6 rows take two halves and prefetch. */
#include <immintrin.h>

#include "engine/cpu/gemm.h"

#define MR_MAX 6

#ifdef __AVXVNNI__
#define DPBUSD _mm256_dpbusd_avx_epi32
#else
#define DPBUSD _mm256_dpbusd_epi32
#endif

static inline __m256i load(const void *p)
{
    return _mm256_load_si256((const __m256i *)p);
}

#define ROWS_1(X) X(0, x0, 0)
#define ROWS_2(X) ROWS_1(X) X(1, x0, 1)
#define ROWS_3(X) ROWS_2(X) X(2, x0, 2)
#define ROWS_4(X) ROWS_3(X) X(3, x3, 0)
#define ROWS_5(X) ROWS_4(X) X(4, x3, 1)
#define ROWS_6(X) ROWS_5(X) X(5, x3, 2)

#define START4(r, xp, i) __m256i a##r = s0, b##r = s1, c##r = s2, d##r = s3;
#define QUAD(r, xp, i) const __m256i q##r = _mm256_set1_epi32(sq_gemm_quad(xp + i * stride));
#define STEP_A(r, xp, i) a##r = DPBUSD(a##r, q##r, v);
#define STEP_B(r, xp, i) b##r = DPBUSD(b##r, q##r, v);
#define STEP_C(r, xp, i) c##r = DPBUSD(c##r, q##r, v);
#define STEP_D(r, xp, i) d##r = DPBUSD(d##r, q##r, v);
#define PART(mr, step, at)                                                                         \
    do {                                                                                           \
        const __m256i v = load(w + at);                                                            \
        ROWS_##mr(step);                                                                           \
    } while (0)
#define STORE4(r, xp, i)                                                                           \
    _mm256_store_si256((__m256i *)(to + 32 * r), a##r);                                            \
    _mm256_store_si256((__m256i *)(to + 32 * r + 8), b##r);                                        \
    _mm256_store_si256((__m256i *)(to + 32 * r + 16), c##r);                                       \
    _mm256_store_si256((__m256i *)(to + 32 * r + 24), d##r);

#define TILE_WHOLE(mr)                                                                             \
    static void tile##mr(const struct sq_gemm_tile *t)                                             \
    {                                                                                              \
        const size_t stride = t->stride, nk = t->nk;                                               \
        const __m256i s0 = load(t->acc0), s1 = load(t->acc0 + 8);                                  \
        const __m256i s2 = load(t->acc0 + 16), s3 = load(t->acc0 + 24);                            \
        const uint8_t *x0 = t->x;                                                                  \
        const int8_t *w = t->w;                                                                    \
        int32_t *const to = t->c;                                                                  \
        ROWS_##mr(START4);                                                                         \
        for (size_t k = nk; k; k--) {                                                              \
            ROWS_##mr(QUAD);                                                                       \
            PART(mr, STEP_A, 0);                                                                   \
            PART(mr, STEP_B, 32);                                                                  \
            PART(mr, STEP_C, 64);                                                                  \
            PART(mr, STEP_D, 96);                                                                  \
            w += 128, x0 += 4;                                                                     \
        }                                                                                          \
        ROWS_##mr(STORE4);                                                                         \
    }

#define START2(r, xp, i) __m256i a##r = s0, b##r = s1;
#define STEP2(r, xp, i)                                                                            \
    {                                                                                              \
        const __m256i q = _mm256_set1_epi32(sq_gemm_quad(xp + i * stride));                        \
        a##r = DPBUSD(a##r, q, w0);                                                                \
        b##r = DPBUSD(b##r, q, w1);                                                                \
    }
#define STORE2(r, xp, i)                                                                           \
    _mm256_store_si256((__m256i *)(to + 32 * r), a##r);                                            \
    _mm256_store_si256((__m256i *)(to + 32 * r + 8), b##r);

#define PREFETCH                                                                                   \
    __builtin_prefetch(pf, 0, 2);                                                                  \
    __builtin_prefetch(pf + pf_off, 0, 2);                                                         \
    pf += pf_step;

#define TILE_HALVES(mr)                                                                            \
    static void tile##mr(const struct sq_gemm_tile *t)                                             \
    {                                                                                              \
        const size_t stride = t->stride, nk = t->nk;                                               \
        const char *pf = t->pf;                                                                    \
        size_t pf_off = t->pf_off, pf_step = t->pf_step;                                           \
        for (int half = 0; half < 2; half++) {                                                     \
            const __m256i s0 = load(t->acc0 + 16 * half), s1 = load(t->acc0 + 16 * half + 8);      \
            const uint8_t *x0 = t->x, *x3 = x0 + 3 * stride;                                       \
            const int8_t *w = t->w + 64 * half;                                                    \
            int32_t *const to = t->c + 16 * half;                                                  \
            ROWS_##mr(START2);                                                                     \
            for (size_t k = nk; k; k--) {                                                          \
                PREFETCH;                                                                          \
                const __m256i w0 = load(w), w1 = load(w + 32);                                     \
                ROWS_##mr(STEP2);                                                                  \
                w += 128, x0 += 4, x3 += 4;                                                        \
            }                                                                                      \
            ROWS_##mr(STORE2);                                                                     \
            pf = (const char *)t->w, pf_off = pf_step = 0; /* all fetched */                       \
        }                                                                                          \
    }

TILE_WHOLE(1)
TILE_WHOLE(2)
TILE_WHOLE(3)
TILE_HALVES(4)
TILE_HALVES(5)
TILE_HALVES(6)

static void (*const tiles[MR_MAX + 1])(const struct sq_gemm_tile *) = {NULL,  tile1, tile2, tile3,
                                                                       tile4, tile5, tile6};

#include "engine/cpu/gemm_ymm.inc"

#define ACC0(l) ((l)->acc0)
#define TILES(l) tiles
#define PROBE_VEC __m256i
#define PROBE_ONES _mm256_set1_epi8(1)
#define PROBE_DOT DPBUSD
#include "engine/cpu/gemm.inc"
