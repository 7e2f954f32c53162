/* vec.h in plain C: the reference that the other forms must equal bit for bit. */
#pragma once

typedef struct {
    float f[16];
} v16;
typedef struct {
    int32_t i[16];
} i16;
typedef struct {
    int8_t b[64];
} b64;

/* r.f[l] = e for every lane */
#define V_LANES_(e)                                                                                \
    v16 r;                                                                                         \
    for (int l = 0; l < 16; l++)                                                                   \
        r.f[l] = (e);                                                                              \
    return r
#define I_LANES_(e)                                                                                \
    i16 r;                                                                                         \
    for (int l = 0; l < 16; l++)                                                                   \
        r.i[l] = (e);                                                                              \
    return r

V_INLINE v16 v_set1(float x)
{
    V_LANES_(x);
}

V_INLINE v16 v_load(const float *p)
{
    V_LANES_(p[l]);
}

V_INLINE v16 v_load_part(const float *p, size_t n)
{
    V_LANES_((size_t)l < n ? p[l] : 0.0f);
}

/* Lanes of *even = p[0], p[2], ..., p[30]; of *odd = p[1], p[3], ..., p[31] */
V_INLINE void v_load_pairs(const float *p, v16 *even, v16 *odd)
{
    for (int l = 0; l < 16; l++) {
        even->f[l] = p[2 * l];
        odd->f[l] = p[2 * l + 1];
    }
}

V_INLINE v16 v_load_f16(const uint16_t *p)
{
    V_LANES_(sq_f16_to_f32(p[l]));
}

V_INLINE v16 v_load_bf16(const uint16_t *p)
{
    V_LANES_(sq_bf16_to_f32(p[l]));
}

V_INLINE void v_store_part(float *p, v16 a, size_t n)
{
    memcpy(p, a.f, n * sizeof a.f[0]);
}

V_INLINE void v_store(float *p, v16 a)
{
    v_store_part(p, a, 16);
}

V_INLINE v16 v_add(v16 a, v16 b)
{
    V_LANES_(a.f[l] + b.f[l]);
}

V_INLINE v16 v_sub(v16 a, v16 b)
{
    V_LANES_(a.f[l] - b.f[l]);
}

V_INLINE v16 v_mul(v16 a, v16 b)
{
    V_LANES_(a.f[l] * b.f[l]);
}

V_INLINE v16 v_div(v16 a, v16 b)
{
    V_LANES_(a.f[l] / b.f[l]);
}

V_INLINE v16 v_fma(v16 a, v16 b, v16 c)
{
    V_LANES_(fmaf(a.f[l], b.f[l], c.f[l]));
}

V_INLINE v16 v_min(v16 a, v16 b)
{
    V_LANES_(a.f[l] < b.f[l] ? a.f[l] : b.f[l]);
}

V_INLINE v16 v_max(v16 a, v16 b)
{
    V_LANES_(a.f[l] > b.f[l] ? a.f[l] : b.f[l]);
}

V_INLINE v16 v_abs(v16 a)
{
    V_LANES_(fabsf(a.f[l]));
}

V_INLINE v16 v_rint(v16 a)
{
    V_LANES_(rintf(a.f[l]));
}

/* p * 2^n for integral n of a normal result */
V_INLINE v16 v_scale2(v16 p, v16 n)
{
    V_LANES_(ldexpf(p.f[l], (int)n.f[l]));
}

V_INLINE v16 v_first(v16 a, v16 b, size_t n)
{
    V_LANES_((size_t)l < n ? a.f[l] : b.f[l]);
}

V_INLINE v16 v_sel_lt(v16 a, v16 b, v16 yes, v16 no)
{
    V_LANES_(a.f[l] < b.f[l] ? yes.f[l] : no.f[l]);
}

V_INLINE v16 v_sel_nan(v16 a, v16 no)
{
    V_LANES_(a.f[l] != a.f[l] ? a.f[l] : no.f[l]);
}

V_INLINE bool v_any_nan(v16 a)
{
    for (int l = 0; l < 16; l++)
        if (a.f[l] != a.f[l])
            return true;
    return false;
}

/* Bit l is set where lane l is equal. */
V_INLINE unsigned v_eq_bits(v16 a, v16 b)
{
    unsigned bits = 0;
    for (int l = 0; l < 16; l++)
        bits |= (unsigned)(a.f[l] == b.f[l]) << l;
    return bits;
}

V_INLINE float v_sum(v16 a)
{
    return sq_sum16(a.f);
}

/* ret[i] = v_sum(x[i]) */
V_INLINE void v_sum4(float *ret, const v16 *x)
{
    for (int i = 0; i < 4; i++)
        ret[i] = v_sum(x[i]);
}

V_INLINE float v_max_lanes(v16 a)
{
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++)
            a.f[l] = a.f[l] > a.f[l + half] ? a.f[l] : a.f[l + half];
    return a.f[0];
}

V_INLINE i16 i_set1(int32_t x)
{
    I_LANES_(x);
}

V_INLINE i16 i_load(const int32_t *p)
{
    I_LANES_(p[l]);
}

V_INLINE void i_store(int32_t *p, i16 a)
{
    memcpy(p, a.i, sizeof a.i);
}

V_INLINE i16 i_add(i16 a, i16 b)
{
    I_LANES_(a.i[l] + b.i[l]);
}

V_INLINE i16 i_max(i16 a, i16 b)
{
    I_LANES_(a.i[l] > b.i[l] ? a.i[l] : b.i[l]);
}

V_INLINE i16 i_first(i16 a, i16 b, size_t n)
{
    I_LANES_((size_t)l < n ? a.i[l] : b.i[l]);
}

V_INLINE int32_t i_max_lanes(i16 a)
{
    int32_t m = a.i[0];
    for (int l = 1; l < 16; l++)
        m = a.i[l] > m ? a.i[l] : m;
    return m;
}

V_INLINE int32_t i_sum_lanes(i16 a)
{
    int32_t s = 0;
    for (int l = 0; l < 16; l++)
        s += a.i[l];
    return s;
}

V_INLINE v16 v_from_i(i16 a)
{
    V_LANES_((float)a.i[l]);
}

V_INLINE i16 i_rne(v16 a)
{
    I_LANES_((int32_t)lrintf(a.f[l]));
}

V_INLINE void i_store_u8_part(uint8_t *p, i16 a, size_t n)
{
    for (size_t l = 0; l < n; l++)
        p[l] = (uint8_t)a.i[l];
}

/* Lanes 0..255 as bytes. */
V_INLINE void i_store_u8(uint8_t *p, i16 a)
{
    i_store_u8_part(p, a, 16);
}

V_INLINE b64 b_load(const int8_t *p)
{
    b64 b;
    memcpy(b.b, p, sizeof b.b);
    return b;
}

#define I_QK_START(sums) ((void)(sums), i_set1(0))
struct q_quad {
    int8_t code[4];
};

V_INLINE struct q_quad q_quad(const uint8_t *u)
{
    struct q_quad q;
    for (int i = 0; i < 4; i++)
        q.code[i] = (int8_t)(u[i] - 128);
    return q;
}

V_INLINE i16 i_dot_q(i16 acc, struct q_quad q, b64 b)
{
    for (int l = 0; l < 16; l++)
        for (int i = 0; i < 4; i++)
            acc.i[l] += q.code[i] * b.b[4 * l + i];
    return acc;
}

V_INLINE i16 i_dot_p(i16 acc, uint32_t p, b64 b)
{
    struct q_quad q;
    memcpy(q.code, &p, 4);
    return i_dot_q(acc, q, b);
}

/* Puts byte l of u[16] (codes + 128, as s8) into byte i of quad l. */
V_INLINE void b_put_byte(int8_t *p, const uint8_t *u, int i)
{
    for (int l = 0; l < 16; l++)
        p[4 * l + i] = (int8_t)(u[l] - 128);
}

/* p[16][4] = bytes l of four rows u[i][16] (codes + 128, as s8) beside each other. */
V_INLINE void b_put_quads(int8_t *p, const uint8_t *const u[4])
{
    for (int i = 0; i < 4; i++)
        b_put_byte(p, u[i], i);
}
