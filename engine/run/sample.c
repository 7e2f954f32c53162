#include "engine/run/sample.h"

#include <math.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"

/* Weights are in [0,1]; a bucket is what shares sign, exponent and seven bits of the fraction. */
#define BUCKET_SHIFT 16
#define N_BUCKETS ((0x3f800000u >> BUCKET_SHIFT) + 1)

#define LANES 16 /* inner loops of this length are what the compiler turns into vectors */

struct sq_sampler {
    int vocab;
    size_t padded;  /* vocab rounded up to LANES */
    float *l;       /* [padded] logits after penalties; padding -inf */
    float *w;       /* [padded] weights, the best has 1 */
    int32_t *heap;  /* [vocab] ids */
    double *mass;   /* [N_BUCKETS] sums of weights */
    int32_t *best;  /* [vocab] ids that are left, best first */
    int32_t *count; /* [vocab] all zero between calls */
};

struct sq_sampler *sq_sampler_new(int vocab)
{
    SQ_ASSERT(vocab > 0);
    struct sq_sampler *s = sq_new(struct sq_sampler);
    if (!s)
        return NULL;
    s->vocab = vocab;
    s->padded = ((size_t)vocab + LANES - 1) / LANES * LANES;
    s->l = sq_new_array(float, s->padded);
    s->w = sq_new_array(float, s->padded);
    s->heap = sq_new_array(int32_t, (size_t)vocab);
    s->best = sq_new_array(int32_t, (size_t)vocab);
    s->mass = sq_new_array(double, N_BUCKETS);
    s->count = sq_new_array(int32_t, (size_t)vocab);
    if (!s->l || !s->w || !s->heap || !s->best || !s->mass || !s->count)
        return sq_sampler_free(s);
    return s;
}

struct sq_sampler *sq_sampler_free(struct sq_sampler *s)
{
    if (!s)
        return NULL;
    sq_free(s->l);
    sq_free(s->w);
    sq_free(s->heap);
    sq_free(s->best);
    sq_free(s->mass);
    sq_free(s->count);
    sq_free(s);
    return NULL;
}

/* --- what the settings ask for ---------------------------------------------------------------- */

static bool is_greedy(const struct sq_sampling *p)
{
    return p->temperature == 0.0f || p->top_k == 1 || p->top_p <= 0.0f;
}

static bool bans_ends(const struct sq_sample_in *in)
{
    const struct sq_sampling *p = in->sampling;
    return in->n_ids - in->n_prompt < p->min_tokens &&
           (p->n_stop_ids > 0 || (in->n_eos > 0 && !p->ignore_eos));
}

bool sq_sample_is_argmax(const struct sq_sample_in *in)
{
    const struct sq_sampling *p = in->sampling;
    return is_greedy(p) && p->repetition == 1.0f && p->frequency == 0.0f && p->presence == 0.0f &&
           p->n_bias == 0 && !bans_ends(in);
}

static bool is_among(const int32_t *ids, int n, int32_t id)
{
    for (int i = 0; i < n; i++)
        if (ids[i] == id)
            return true;
    return false;
}

bool sq_sample_is_end(const struct sq_sample_in *in, int32_t token)
{
    const struct sq_sampling *p = in->sampling;
    return is_among(p->stop_ids, p->n_stop_ids, token) ||
           (!p->ignore_eos && is_among(in->eos, in->n_eos, token));
}

/* Finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection with good avalanche. */
static uint64_t scramble(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

double sq_sample_uniform(uint64_t seed, uint64_t i)
{
    /* the seed is scrambled first, so that neighbouring seeds are not shifted copies of one stream
     */
    uint64_t z = scramble(scramble(seed + 0x9e3779b97f4a7c15u) + (i + 1) * 0x9e3779b97f4a7c15u);
    return (double)(z >> 11) * 0x1p-53;
}

/* --- steps 1 to 3 ----------------------------------------------------------------------------- */

static bool all_finite(const float *l, size_t n)
{
    float lanes[LANES] = {0}, sum = 0.0f;
    size_t i = 0;
    /* x * 0 is NaN for infinities and NaN, and a sum keeps it */
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            lanes[k] += l[i + k] * 0.0f;
    for (; i < n; i++)
        sum += l[i] * 0.0f;
    for (size_t k = 0; k < LANES; k++)
        sum += lanes[k];
    return sum == 0.0f;
}

static void repetition(struct sq_sampler *s, const struct sq_sample_in *in)
{
    const float r = in->sampling->repetition;
    if (r == 1.0f)
        return;
    for (int i = 0; i < in->n_ids; i++) {
        int32_t id = in->ids[i];
        if (s->count[id]++ == 0)
            s->l[id] = s->l[id] > 0.0f ? s->l[id] / r : s->l[id] * r;
    }
    for (int i = 0; i < in->n_ids; i++)
        s->count[in->ids[i]] = 0;
}

static void frequency_and_presence(struct sq_sampler *s, const struct sq_sample_in *in)
{
    const struct sq_sampling *p = in->sampling;
    if (p->frequency == 0.0f && p->presence == 0.0f)
        return;
    for (int i = in->n_prompt; i < in->n_ids; i++)
        s->count[in->ids[i]]++;
    for (int i = in->n_prompt; i < in->n_ids; i++) {
        int32_t id = in->ids[i];
        if (s->count[id] == 0)
            continue;
        s->l[id] -= p->frequency * (float)s->count[id];
        s->l[id] -= p->presence;
        s->count[id] = 0;
    }
}

static void bias_and_bans(struct sq_sampler *s, const struct sq_sample_in *in)
{
    const struct sq_sampling *p = in->sampling;
    for (int i = 0; i < p->n_bias; i++)
        s->l[p->bias[i].id] += p->bias[i].bias;
    if (!bans_ends(in))
        return;
    for (int i = 0; i < p->n_stop_ids; i++)
        s->l[p->stop_ids[i]] = -INFINITY;
    for (int i = 0; i < in->n_eos && !p->ignore_eos; i++)
        s->l[in->eos[i]] = -INFINITY;
}

static int32_t first_max(const float *l, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (l[i] > l[best])
            best = i;
    return best;
}

/* --- steps 4 to 8 ----------------------------------------------------------------------------- */

/* exp(x) for -87 <= x <= 0 in plain multiplications and additions: the same bits on every machine,
 * which neither libm's expf nor a fused multiply-add would give. Cody-Waite reduction, Taylor to
 * degree 6; relative error about 3e-7. */
static inline float exp_plain(float x)
{
    const float magic =
        12582912.0f; /* 1.5 * 2^23: adding and subtracting it rounds to an integer */
    float n = (x * 1.44269504f + magic) - magic;
    float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    float p = 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    union {
        int32_t i;
        float f;
    } scale = {.i = ((int32_t)n + 127) << 23};
    return p * scale.f;
}

/* Weights below this are 0, so that banned tokens (whose exponent stops at -87) cannot be drawn. */
#define LEAST_WEIGHT 1e-37f

/* w[k] = exp(max(x[k], -87)), 0 where that is below least. One small loop per step: the compiler
 * makes vectors of these, and a branch of a loop that does all three. */
static void weigh_lanes(const float *restrict l, float *restrict w, float max, float temperature,
                        float least)
{
    for (size_t k = 0; k < LANES; k++) { /* subtracting first keeps tiny temperatures finite */
        float x = (l[k] - max) / temperature;
        w[k] = x < -87.0f ? -87.0f : x;
    }
    for (size_t k = 0; k < LANES; k++)
        w[k] = exp_plain(w[k]);
    for (size_t k = 0; k < LANES; k++)
        w[k] = w[k] < least ? 0.0f : w[k];
}

/* w = exp((l - max) / temperature), 0 below min_p. Returns the sum over all. */
static double weigh(struct sq_sampler *s, float max, float temperature, float min_p)
{
    const float least = SQ_MAX(min_p, LEAST_WEIGHT);
    double sum = 0.0;
    for (size_t i = 0; i < s->padded; i += LANES) {
        weigh_lanes(s->l + i, s->w + i, max, temperature, least);
        double block = 0.0;
        for (size_t k = 0; k < LANES; k++)
            block += (double)s->w[i + k];
        sum += block;
    }
    return sum;
}

/* Walks the weights in order of ids. */
static int32_t draw_all(const struct sq_sampler *s, double target)
{
    int32_t last = 0;
    double sum = 0.0;
    for (int i = 0; i < s->vocab; i++) {
        if (s->w[i] == 0.0f)
            continue;
        last = i;
        sum += (double)s->w[i];
        if (sum > target)
            return i;
    }
    return last; /* the two sums may differ in their last bits */
}

static bool is_better(const struct sq_sampler *s, int32_t a, int32_t b)
{
    return s->l[a] > s->l[b] || (s->l[a] == s->l[b] && a < b);
}

/* Restores the heap below `at`; the root is the best, or the worst of all. */
static void sift(const struct sq_sampler *s, int32_t *heap, int n, int at, bool best_first)
{
    int32_t id = heap[at];
    for (int child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && is_better(s, heap[child + 1], heap[child]) == best_first)
            child++;
        if (is_better(s, heap[child], id) != best_first)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = id;
}

static void make_heap(const struct sq_sampler *s, int32_t *heap, int n, bool best_first)
{
    for (int i = n / 2 - 1; i >= 0; i--)
        sift(s, heap, n, i, best_first);
}

/* The k best of nonzero weight into s->best, best first; returns how many. One pass over a heap
 * whose root is the worst that is kept. */
static int select_top_k(struct sq_sampler *s, int k)
{
    int n = 0;
    int32_t *heap = s->heap;
    for (int32_t i = 0; i < s->vocab; i++) {
        if (n == k && s->l[i] <= s->l[heap[0]]) /* an equal one comes later, so it is worse */
            continue;
        if (s->w[i] == 0.0f)
            continue;
        if (n < k) {
            heap[n++] = i;
            if (n == k)
                make_heap(s, heap, n, false);
        } else {
            heap[0] = i;
            sift(s, heap, n, 0, false);
        }
    }
    if (n < k)
        make_heap(s, heap, n, false);
    for (int left = n; left > 0; left--) {
        s->best[left - 1] = heap[0];
        heap[0] = heap[left - 1];
        sift(s, heap, left - 1, 0, false);
    }
    return n;
}

static unsigned bucket_of(float w)
{
    uint32_t bits;
    memcpy(&bits, &w, sizeof bits);
    return bits >> BUCKET_SHIFT;
}

/* Sets the weights of all tokens to 0 that are not in the shortest run of the best that reaches
 * need. Nothing is sorted but the few whose weight is about that of the last one: weights are
 * summed in buckets of 1/128 octave, and only the bucket in which need is reached is taken from a
 * heap. */
static void cut_top_p(struct sq_sampler *s, double need)
{
    double got = 0.0;
    int n = 0;
    unsigned last = N_BUCKETS - 1;
    memset(s->mass, 0, N_BUCKETS * sizeof *s->mass);
    for (int i = 0; i < s->vocab; i++)
        s->mass[bucket_of(s->w[i])] += (double)s->w[i];
    for (; last > 0 && got + s->mass[last] < need; last--)
        got += s->mass[last];
    for (int32_t i = 0; i < s->vocab; i++) {
        unsigned b = bucket_of(s->w[i]);
        if (b == last && last > 0)
            s->heap[n++] = i;
        else if (b < last)
            s->w[i] = 0.0f;
    }
    make_heap(s, s->heap, n, true);
    while (n > 0 && got < need) {
        got += (double)s->w[s->heap[0]];
        s->heap[0] = s->heap[--n];
        sift(s, s->heap, n, 0, true);
    }
    while (n > 0)
        s->w[s->heap[--n]] = 0.0f;
}

static double sum_of_all(const struct sq_sampler *s)
{
    double sum = 0.0;
    for (int i = 0; i < s->vocab; i++)
        sum += (double)s->w[i];
    return sum;
}

static double sum_of_best(const struct sq_sampler *s, int n)
{
    double sum = 0.0;
    for (int i = 0; i < n; i++)
        sum += (double)s->w[s->best[i]];
    return sum;
}

/* Of the n best, already in order: how many reach top_p of their sum. */
static int cut_best(const struct sq_sampler *s, int n, float top_p)
{
    double need = (double)top_p * sum_of_best(s, n), got = 0.0;
    for (int i = 0; i < n; i++) {
        got += (double)s->w[s->best[i]];
        if (got >= need)
            return i + 1;
    }
    return n;
}

static int32_t draw_best(const struct sq_sampler *s, int n, double u)
{
    double target = u * sum_of_best(s, n), sum = 0.0;
    for (int i = 0; i < n; i++) {
        sum += (double)s->w[s->best[i]];
        if (sum > target)
            return s->best[i];
    }
    return s->best[n - 1];
}

int32_t sq_sample(struct sq_sampler *s, const struct sq_sample_in *in, const float *logits)
{
    const struct sq_sampling *p = in->sampling;
    if (!all_finite(logits, (size_t)s->vocab))
        return -1;
    memcpy(s->l, logits, (size_t)s->vocab * sizeof *logits);
    for (size_t i = (size_t)s->vocab; i < s->padded; i++)
        s->l[i] = -INFINITY;
    repetition(s, in);
    frequency_and_presence(s, in);
    bias_and_bans(s, in);

    int32_t top = first_max(s->l, s->vocab);
    if (!isfinite(s->l[top]))
        return -1;
    if (is_greedy(p))
        return top;
    double sum = weigh(s, s->l[top], p->temperature, p->min_p);
    double u = sq_sample_uniform(p->seed, (uint64_t)(in->n_ids - in->n_prompt));
    if (p->top_k > 0 && p->top_k < s->vocab) {
        int n = select_top_k(s, p->top_k);
        return draw_best(s, p->top_p < 1.0f ? cut_best(s, n, p->top_p) : n, u);
    }
    if (p->top_p < 1.0f) {
        cut_top_p(s, (double)p->top_p * sum);
        sum = sum_of_all(s);
    }
    return draw_all(s, u * sum);
}
