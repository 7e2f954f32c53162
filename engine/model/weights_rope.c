/* The tables of rotations. Frequencies and angles are float32, as transformers computes them; sines and cosines of those angles are
 * right to the last bit but one. */
#include <math.h>

#include "engine/base/num.h"
#include "engine/model/load.h"

/* Frequency f of LLaMA 3.1's stretching: slow waves by factor, fast ones as they are, and between the two a mixture. */
static float llama3(const struct sq_rope_config *c, float f)
{
    const float two_pi = 6.28318530717958648f, original = (float)c->original;
    const float low = (float)c->low_freq, high = (float)c->high_freq, factor = (float)c->factor;
    const float wave = two_pi / f;
    if (wave < original / high)
        return f;
    if (wave > original / low)
        return f / factor;
    float smooth = (original / wave - low) / (high - low);
    return (1.0f - smooth) * f / factor + smooth * f;
}

void sq_rope_frequencies(const struct sq_config *c, float *ret)
{
    const struct sq_rope_config *r = &c->rope;
    for (int i = 0; i < c->head_dim / 2; i++) {
        float exponent = (float)(2 * i) / (float)c->head_dim;
        float f = 1.0f / (float)pow((double)(float)r->theta, (double)exponent);
        ret[i] = r->kind == SQ_ROPE_LLAMA3   ? llama3(r, f)
                 : r->kind == SQ_ROPE_LINEAR ? f / (float)r->factor
                                             : f;
    }
}

int sq_load_rope(struct sq_loader *ld)
{
    const size_t n_pos = (size_t)ld->c->max_positions, half = (size_t)ld->c->head_dim / 2;
    size_t n, with_freq;
    float *cos_t = NULL;
    if (sq_mul_size(n_pos, half, &n) && sq_mul_size(n, 2, &with_freq) &&
        sq_add_size(with_freq, half, &with_freq))
        cos_t = sq_new_array(float, with_freq);
    if (!cos_t)
        return sq_fail(ld->err, SQ_E_NOMEM, "out of memory for the rotations of %zu positions",
                       n_pos);
    float *sin_t = cos_t + n, *freq = sin_t + n;
    sq_rope_frequencies(ld->c, freq);
    for (size_t pos = 0; pos < n_pos; pos++)
        for (size_t i = 0; i < half; i++) {
            float angle = (float)pos * freq[i];
            cos_t[pos * half + i] = (float)cos((double)angle);
            sin_t[pos * half + i] = (float)sin((double)angle);
        }
    struct sq_rope_desc d = {.rot_dim = 2 * half, .n_pos = n_pos, .cos = cos_t, .sin = sin_t};
    int r = ld->be->ops->rope_new(ld->be, &d, &ld->m->rope, ld->err);
    sq_free(cos_t);
    if (!r)
        ld->m->weight_bytes += 2 * n * sizeof *cos_t;
    return r;
}
