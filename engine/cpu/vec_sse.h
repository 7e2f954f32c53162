/* What the 256- and 512-bit forms of vec.h share: ends of reductions and byte shuffles, on xmm. */
#pragma once

V_INLINE float v_sum(v16 x)
{
    __m128 b = v_fold(x);
    b = _mm_add_ps(b, _mm_movehl_ps(b, b)); /* b0+b2, b1+b3 */
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* ret[i] = v_sum(x[i]) */
V_INLINE void v_sum4(float *ret, const v16 *x)
{
    __m128 b0 = v_fold(x[0]), b1 = v_fold(x[1]), b2 = v_fold(x[2]), b3 = v_fold(x[3]);
    _MM_TRANSPOSE4_PS(b0, b1, b2, b3);
    _mm_storeu_ps(ret, _mm_add_ps(_mm_add_ps(b0, b2), _mm_add_ps(b1, b3)));
}

/* p[16][4] = bytes l of four rows u[i][16] (codes + 128, as s8) beside each other. */
V_INLINE void b_put_quads(int8_t *p, const uint8_t *const u[4])
{
    __m128i r[4], flip = _mm_set1_epi8((char)0x80);
    V_UNROLL
    for (int i = 0; i < 4; i++)
        r[i] = _mm_xor_si128(_mm_loadu_si128((const __m128i *)u[i]), flip);
    __m128i lo01 = _mm_unpacklo_epi8(r[0], r[1]), hi01 = _mm_unpackhi_epi8(r[0], r[1]);
    __m128i lo23 = _mm_unpacklo_epi8(r[2], r[3]), hi23 = _mm_unpackhi_epi8(r[2], r[3]);
    __m128i *q = (__m128i *)p;
    _mm_storeu_si128(q + 0, _mm_unpacklo_epi16(lo01, lo23));
    _mm_storeu_si128(q + 1, _mm_unpackhi_epi16(lo01, lo23));
    _mm_storeu_si128(q + 2, _mm_unpacklo_epi16(hi01, hi23));
    _mm_storeu_si128(q + 3, _mm_unpackhi_epi16(hi01, hi23));
}
