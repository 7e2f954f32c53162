/* vec.h on AVX-512 (F, BW, VL, DQ, VNNI): a v16 is one zmm. */
#pragma once

#include <immintrin.h>

typedef __m512 v16;
typedef __m512i i16;
typedef __m512i b64;

V_INLINE __mmask16 v_mask(size_t n)
{
    return (__mmask16)((1u << n) - 1u);
}

V_INLINE v16 v_set1(float x)
{
    return _mm512_set1_ps(x);
}

V_INLINE v16 v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

V_INLINE v16 v_load_part(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps(v_mask(n), p);
}

/* Lanes of *even = p[0], p[2], ..., p[30]; of *odd = p[1], p[3], ..., p[31] */
V_INLINE void v_load_pairs(const float *p, v16 *even, v16 *odd)
{
    const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    v16 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
    *even = _mm512_permutex2var_ps(a, at, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(at, _mm512_set1_epi32(1)), b);
}

V_INLINE v16 v_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

V_INLINE v16 v_load_bf16(const uint16_t *p)
{
    __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}

V_INLINE void v_store(float *p, v16 a)
{
    _mm512_storeu_ps(p, a);
}

V_INLINE void v_store_part(float *p, v16 a, size_t n)
{
    _mm512_mask_storeu_ps(p, v_mask(n), a);
}

V_INLINE v16 v_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}

V_INLINE v16 v_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}

V_INLINE v16 v_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}

V_INLINE v16 v_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}

V_INLINE v16 v_fma(v16 a, v16 b, v16 c)
{
    return _mm512_fmadd_ps(a, b, c);
}

V_INLINE v16 v_min(v16 a, v16 b)
{
    return _mm512_min_ps(a, b);
}

V_INLINE v16 v_max(v16 a, v16 b)
{
    return _mm512_max_ps(a, b);
}

V_INLINE v16 v_abs(v16 a)
{
    return _mm512_abs_ps(a);
}

V_INLINE v16 v_rint(v16 a)
{
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/* p * 2^n for integral n of a normal result */
V_INLINE v16 v_scale2(v16 p, v16 n)
{
    return _mm512_scalef_ps(p, n);
}

V_INLINE v16 v_first(v16 a, v16 b, size_t n)
{
    return _mm512_mask_mov_ps(b, v_mask(n), a);
}

V_INLINE v16 v_sel_lt(v16 a, v16 b, v16 yes, v16 no)
{
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}

V_INLINE v16 v_sel_nan(v16 a, v16 no)
{
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a);
}

V_INLINE bool v_any_nan(v16 a)
{
    return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) != 0;
}

/* Bit l is set where lane l is equal. */
V_INLINE unsigned v_eq_bits(v16 a, v16 b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}

/* The first two steps of the tree: lanes l+8, then l+4. */
V_INLINE __m128 v_fold(v16 a)
{
    __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    return _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
}

V_INLINE float v_max_lanes(v16 a)
{
    __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

V_INLINE i16 i_set1(int32_t x)
{
    return _mm512_set1_epi32(x);
}

V_INLINE i16 i_load(const int32_t *p)
{
    return _mm512_loadu_si512(p);
}

V_INLINE void i_store(int32_t *p, i16 a)
{
    _mm512_storeu_si512(p, a);
}

V_INLINE i16 i_add(i16 a, i16 b)
{
    return _mm512_add_epi32(a, b);
}

V_INLINE i16 i_max(i16 a, i16 b)
{
    return _mm512_max_epi32(a, b);
}

V_INLINE i16 i_first(i16 a, i16 b, size_t n)
{
    return _mm512_mask_mov_epi32(b, v_mask(n), a);
}

V_INLINE int32_t i_max_lanes(i16 a)
{
    return _mm512_reduce_max_epi32(a);
}

V_INLINE int32_t i_sum_lanes(i16 a)
{
    return _mm512_reduce_add_epi32(a);
}

V_INLINE v16 v_from_i(i16 a)
{
    return _mm512_cvtepi32_ps(a);
}

V_INLINE i16 i_rne(v16 a)
{
    return _mm512_cvtps_epi32(a);
}

/* Lanes 0..255 as bytes. */
V_INLINE void i_store_u8(uint8_t *p, i16 a)
{
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a));
}

V_INLINE void i_store_u8_part(uint8_t *p, i16 a, size_t n)
{
    _mm512_mask_cvtepi32_storeu_epi8(p, v_mask(n), a);
}

V_INLINE b64 b_load(const int8_t *p)
{
    return _mm512_loadu_si512(p);
}

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

V_INLINE i16 i_dot_q(i16 acc, struct q_quad q, b64 b)
{
    return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32((int)q.u), b);
}

V_INLINE i16 i_dot_p(i16 acc, uint32_t p, b64 b)
{
    return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32((int)p), b);
}

/* Puts byte l of u[16] (codes + 128, as s8) into byte i of quad l. */
V_INLINE void b_put_byte(int8_t *p, const uint8_t *u, int i)
{
    __m512i w = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)u));
    w = _mm512_xor_si512(w, _mm512_set1_epi32(0x80));
    w = _mm512_sll_epi32(w, _mm_cvtsi32_si128(8 * i));
    __m512i keep = _mm512_set1_epi32((int)~(0xffu << (8 * i)));
    w = _mm512_or_si512(w, _mm512_and_si512(_mm512_loadu_si512(p), keep));
    _mm512_storeu_si512(p, w);
}

#include "engine/cpu/vec_sse.h"
