/* vec.h on AVX2 with FMA and F16C: a v16 is two ymm. The dot products are vpdpbusd where the set has it (AVX-VNNI, or AVX512-VNNI in
 * its 256-bit form), else vpmaddubsw with the sign moved to the signed operand. */
#pragma once

#include <immintrin.h>

typedef struct {
    __m256 a, b; /* lanes 0-7, 8-15 */
} v16;
typedef struct {
    __m256i a, b;
} i16;
typedef i16 b64;

/* n lanes of ones start at v_lane_window + 16 - n. */
static const int32_t v_lane_window[32] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1};

V_INLINE i16 v_mask(size_t n)
{
    const int32_t *w = v_lane_window + 16 - n;
    return (i16){_mm256_loadu_si256((const __m256i *)w),
                 _mm256_loadu_si256((const __m256i *)(w + 8))};
}

V_INLINE v16 v_set1(float x)
{
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

V_INLINE v16 v_load(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

V_INLINE v16 v_load_part(const float *p, size_t n)
{
    i16 m = v_mask(n);
    return (v16){_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}

/* Eight pairs: lanes 0 2 4 6 | 1 3 5 7 of each half beside each other, then the halves in order. */
V_INLINE __m256 v_pairs_half(const float *p, bool odd)
{
    __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + 8);
    __m256 c = odd ? _mm256_shuffle_ps(a, b, 0xdd) : _mm256_shuffle_ps(a, b, 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(c), 0xd8));
}

/* Lanes of *even = p[0], p[2], ..., p[30]; of *odd = p[1], p[3], ..., p[31] */
V_INLINE void v_load_pairs(const float *p, v16 *even, v16 *odd)
{
    *even = (v16){v_pairs_half(p, false), v_pairs_half(p + 16, false)};
    *odd = (v16){v_pairs_half(p, true), v_pairs_half(p + 16, true)};
}

V_INLINE v16 v_load_f16(const uint16_t *p)
{
    const __m128i *q = (const __m128i *)p;
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}

V_INLINE __m256 v_bf16_half(const uint16_t *p)
{
    __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}

V_INLINE v16 v_load_bf16(const uint16_t *p)
{
    return (v16){v_bf16_half(p), v_bf16_half(p + 8)};
}

V_INLINE void v_store(float *p, v16 x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

V_INLINE void v_store_part(float *p, v16 x, size_t n)
{
    i16 m = v_mask(n);
    _mm256_maskstore_ps(p, m.a, x.a);
    _mm256_maskstore_ps(p + 8, m.b, x.b);
}

V_INLINE v16 v_add(v16 x, v16 y)
{
    return (v16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}

V_INLINE v16 v_sub(v16 x, v16 y)
{
    return (v16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}

V_INLINE v16 v_mul(v16 x, v16 y)
{
    return (v16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}

V_INLINE v16 v_div(v16 x, v16 y)
{
    return (v16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}

V_INLINE v16 v_fma(v16 x, v16 y, v16 z)
{
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

V_INLINE v16 v_min(v16 x, v16 y)
{
    return (v16){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}

V_INLINE v16 v_max(v16 x, v16 y)
{
    return (v16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}

V_INLINE v16 v_abs(v16 x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}

#define V_ROUND_ (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
V_INLINE v16 v_rint(v16 x)
{
    return (v16){_mm256_round_ps(x.a, V_ROUND_), _mm256_round_ps(x.b, V_ROUND_)};
}

V_INLINE __m256 v_scale2_half(__m256 p, __m256 n)
{
    __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(e, 23)));
}

/* p * 2^n for integral n of a normal result */
V_INLINE v16 v_scale2(v16 p, v16 n)
{
    return (v16){v_scale2_half(p.a, n.a), v_scale2_half(p.b, n.b)};
}

V_INLINE v16 v_first(v16 x, v16 y, size_t n)
{
    i16 m = v_mask(n);
    return (v16){_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(m.a)),
                 _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(m.b))};
}

V_INLINE v16 v_sel_lt(v16 x, v16 y, v16 yes, v16 no)
{
    return (v16){_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
                 _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}

V_INLINE v16 v_sel_nan(v16 x, v16 no)
{
    return (v16){_mm256_blendv_ps(no.a, x.a, _mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q)),
                 _mm256_blendv_ps(no.b, x.b, _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))};
}

V_INLINE bool v_any_nan(v16 x)
{
    __m256 m =
        _mm256_or_ps(_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q));
    return _mm256_movemask_ps(m) != 0;
}

/* Bit l is set where lane l is equal. */
V_INLINE unsigned v_eq_bits(v16 x, v16 y)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_EQ_OQ)) |
           (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_EQ_OQ)) << 8;
}

/* The first two steps of the tree: lanes l+8, then l+4. */
V_INLINE __m128 v_fold(v16 x)
{
    __m256 b = _mm256_add_ps(x.a, x.b);
    return _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
}

V_INLINE float v_max_lanes(v16 x)
{
    __m256 b = _mm256_max_ps(x.a, x.b);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

V_INLINE i16 i_set1(int32_t x)
{
    return (i16){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

V_INLINE i16 i_load(const int32_t *p)
{
    const __m256i *q = (const __m256i *)p;
    return (i16){_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}

V_INLINE void i_store(int32_t *p, i16 x)
{
    _mm256_storeu_si256((__m256i *)p, x.a);
    _mm256_storeu_si256((__m256i *)p + 1, x.b);
}

V_INLINE i16 i_add(i16 x, i16 y)
{
    return (i16){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}

V_INLINE i16 i_max(i16 x, i16 y)
{
    return (i16){_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}

V_INLINE i16 i_first(i16 x, i16 y, size_t n)
{
    i16 m = v_mask(n);
    return (i16){_mm256_blendv_epi8(y.a, x.a, m.a), _mm256_blendv_epi8(y.b, x.b, m.b)};
}

V_INLINE int32_t i_max_lanes(i16 x)
{
    __m256i a = _mm256_max_epi32(x.a, x.b);
    __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}

V_INLINE int32_t i_sum_lanes(i16 x)
{
    __m256i a = _mm256_add_epi32(x.a, x.b);
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}

V_INLINE v16 v_from_i(i16 x)
{
    return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}

V_INLINE i16 i_rne(v16 x)
{
    return (i16){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}

/* Lanes 0..255 as bytes. */
V_INLINE void i_store_u8(uint8_t *p, i16 x)
{
    __m256i w = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xd8);
    __m128i b = _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_si128((__m128i *)p, b);
}

V_INLINE void i_store_u8_part(uint8_t *p, i16 x, size_t n)
{
    uint8_t b[16];
    i_store_u8(b, x);
    memcpy(p, b, n);
}

V_INLINE b64 b_load(const int8_t *p)
{
    const __m256i *q = (const __m256i *)p;
    return (b64){_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#ifdef __AVX512VNNI__
#define DPBUSD_ _mm256_dpbusd_epi32
#else
#define DPBUSD_ _mm256_dpbusd_avx_epi32
#endif

#define I_QK_START(sums) i_load(sums)
struct q_quad {
    uint32_t u;
};

V_INLINE struct q_quad q_quad(const uint8_t *u)
{
    struct q_quad q;
    memcpy(&q.u, u, 4);
    return q;
}

V_INLINE i16 i_dot_p(i16 acc, uint32_t p, b64 b)
{
    __m256i u = _mm256_set1_epi32((int)p);
    return (i16){DPBUSD_(acc.a, u, b.a), DPBUSD_(acc.b, u, b.b)};
}

V_INLINE i16 i_dot_q(i16 acc, struct q_quad q, b64 b)
{
    return i_dot_p(acc, q.u, b);
}
#else
/* The pair sums of vpmaddubsw saturate at 32767: safe with unsigned operands up to 127 (2 * 127 * 127 = 32258). So a query code is
 * split into its magnitude and its sign, and the sign goes to the key; no offset, hence accumulators start at zero. */
#define I_QK_START(sums) ((void)(sums), i_set1(0))
struct q_quad {
    uint32_t magnitude, sign; /* four bytes each; sign holds the code itself */
};

V_INLINE struct q_quad q_quad(const uint8_t *u)
{
    struct q_quad q;
    memcpy(&q.sign, u, 4);
    q.sign ^= 0x80808080u;
    q.magnitude = (uint32_t)_mm_cvtsi128_si32(_mm_abs_epi8(_mm_cvtsi32_si128((int)q.sign)));
    return q;
}

V_INLINE __m256i i_dot_half(__m256i acc, __m256i u, __m256i s)
{
    __m256i pairs = _mm256_maddubs_epi16(u, s);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

V_INLINE i16 i_dot_p(i16 acc, uint32_t p, b64 b)
{
    __m256i u = _mm256_set1_epi32((int)p);
    return (i16){i_dot_half(acc.a, u, b.a), i_dot_half(acc.b, u, b.b)};
}

V_INLINE i16 i_dot_q(i16 acc, struct q_quad q, b64 b)
{
    __m256i u = _mm256_set1_epi32((int)q.magnitude), s = _mm256_set1_epi32((int)q.sign);
    return (i16){i_dot_half(acc.a, u, _mm256_sign_epi8(b.a, s)),
                 i_dot_half(acc.b, u, _mm256_sign_epi8(b.b, s))};
}
#endif

/* Puts byte l of u[16] (codes + 128, as s8) into byte i of quad l. */
V_INLINE void b_put_byte(int8_t *p, const uint8_t *u, int i)
{
    __m256i *q = (__m256i *)p;
    __m128i count = _mm_cvtsi32_si128(8 * i);
    __m256i keep = _mm256_set1_epi32((int)~(0xffu << (8 * i))), flip = _mm256_set1_epi32(0x80);
    V_UNROLL
    for (int h = 0; h < 2; h++) {
        __m256i w = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(u + 8 * h)));
        w = _mm256_sll_epi32(_mm256_xor_si256(w, flip), count);
        w = _mm256_or_si256(w, _mm256_and_si256(_mm256_loadu_si256(q + h), keep));
        _mm256_storeu_si256(q + h, w);
    }
}

#include "engine/cpu/vec_sse.h"
