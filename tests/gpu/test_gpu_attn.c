/* Cache, rotary positions and attention of the GPU against the CPU's plain C, bit for bit: mixed batches at odd positions, head sizes with
 * and without kernels of their own, grouped heads; and that the same rows give the same bits through the decode and the prefill kernel,
 * with the cache written before or by the decode kernel itself, however pieces are shared out among its blocks. */
#include "tests/gpu/test_gpu_attn.h"

/* --- the same on the device --- */

enum {
    ALL_DECODE = 1, /* each row alone, else only sequences of one row */
    ALL_TILES = 2,
    FUSED = 4,    /* the decode kernel writes (and rotates) */
    NO_PARTS = 8, /* there is no memory for partial results */
    PIECES = 16   /* times the pieces that a block may take; 0: the launcher's choice */
};

struct gpu_step {
    struct dev mem;
    struct sq_gpu_step s;
    int n_dec, n_tiles, n_pieces, n_parts;
};

static int32_t *take(struct gpu_step *g, int *at, int n, const int32_t **ret_dev)
{
    int32_t *h = (int32_t *)g->mem.h + *at;
    *ret_dev = (const int32_t *)g->mem.d + *at;
    *at += (n + 3) / 4 * 4;
    return h;
}

static void add_dec(struct gpu_step *g, int32_t *dec, int row, int pos, int blocks)
{
    const int n = row < 0 ? 0 : pos / SQ_ATTN_PIECE + 1;
    const int32_t d[] = {row, pos, blocks, g->n_parts};
    memcpy(dec + 4 * g->n_dec++, d, sizeof d);
    g->n_parts += n;
    g->n_pieces = SQ_MAX(g->n_pieces, n);
}

/* Rows, pads, and a decode row and a tile that are none in between. */
static struct gpu_step gpu_step_new(const struct world *w, bool hist, int mode)
{
    const int n = hist ? w->n_hist : w->n_rows, most = n + N_PAD + 4;
    struct gpu_step g = {.mem = dev_new(sizeof(int32_t) * (size_t)(12 * most + N_BLOCKS + 512))};
    int at = 0;
    const int32_t *dev_tiles, *dev_dec;
    int32_t *pos = take(&g, &at, most, &g.s.pos), *row_seq = take(&g, &at, most, &g.s.row_seq);
    int32_t *seq_blocks = take(&g, &at, MAX_SEQS, &g.s.seq_blocks);
    int32_t *dec = take(&g, &at, 4 * most, &dev_dec);
    int32_t *tiles = take(&g, &at, 4 * most, &dev_tiles);
    int32_t *blocks = take(&g, &at, N_BLOCKS, &g.s.blocks);
    g.s.tiles = (const int4 *)dev_tiles;
    g.s.dec = (const int4 *)dev_dec;
    memcpy(blocks, w->blocks, sizeof w->blocks);
    memcpy(seq_blocks, w->seq_blocks, sizeof w->seq_blocks);
    for (int i = 0; i < w->seqs.n; i++) {
        const int rows = hist ? w->seqs.s[i].pos0 : w->seqs.s[i].n;
        const int row0 = hist ? w->hist_row0[i] : w->row0[i], pos0 = hist ? 0 : w->seqs.s[i].pos0;
        const bool alone = (mode & ALL_DECODE) || (rows == 1 && !(mode & ALL_TILES));
        for (int r = 0; r < rows; r++) {
            pos[row0 + r] = pos0 + r;
            row_seq[row0 + r] = i;
            if (alone)
                add_dec(&g, dec, row0 + r, pos0 + r, w->seq_blocks[i]);
        }
        if (i == 1)
            add_dec(&g, dec, -1, 0, 0);
        for (int r = 0; r < rows && !alone; r += SQ_GPU_TILE_ROWS) {
            const int32_t t[] = {row0 + r, SQ_MIN(rows - r, SQ_GPU_TILE_ROWS), i, pos0 + r};
            memcpy(tiles + 4 * g.n_tiles++, t, sizeof t);
        }
    }
    for (int r = n; r < n + N_PAD; r++) {
        pos[r] = 0;
        row_seq[r] = -1;
    }
    add_dec(&g, dec, -1, 0, 0);
    dev_put(&g.mem);
    return g;
}

struct gpu_world {
    struct dev k, v;
    struct sq_gpu_kv kv;
    struct sq_gpu_attn a;
    struct dev cos, sin;
    struct sq_gpu_rope rope;
};

/* A cache in which all that was never written is odd. */
static struct gpu_world gpu_world_new(const struct world *w)
{
    const size_t n = (size_t)(N_LAYERS * N_BLOCKS * w->sh.kv_heads * SQ_KV_BLOCK * w->sh.dim) *
                     (w->sh.is_f32 ? 4 : 1);
    struct gpu_world g = {.k = dev_new(n), .v = dev_new(n)};
    dev_put(&g.k);
    dev_put(&g.v);
    g.kv = (struct sq_gpu_kv){g.k.d,          g.v.d,     N_LAYERS,    N_BLOCKS,
                              w->sh.kv_heads, w->sh.dim, w->sh.is_f32};
    g.a = (struct sq_gpu_attn){LAYER,        w->sh.heads, w->sh.kv_heads, w->sh.dim, w->a.score_mul,
                               w->a.out_mul, w->a.q_inv,  w->a.k_inv,     w->a.v_inv};
    g.cos = dev_of(w->cos, 4096 * (size_t)w->sh.dim / 2 * sizeof(float));
    g.sin = dev_of(w->sin, 4096 * (size_t)w->sh.dim / 2 * sizeof(float));
    g.rope = (struct sq_gpu_rope){g.cos.d, g.sin.d, w->sh.rot_dim};
    return g;
}

static void gpu_world_free(struct gpu_world *g)
{
    struct dev *all[] = {&g->k, &g->v, &g->cos, &g->sin};
    for (size_t i = 0; i < SQ_ARRAY_LEN(all); i++)
        dev_free(all[i]);
}

/* The projection's codes or floats with pads behind, and room for rotated ones. */
static struct dev_codes gpu_codes(const struct world *w, bool hist)
{
    const int n = hist ? w->n_hist : w->n_rows;
    struct dev_codes c = dev_codes(n + N_PAD, w->cols);
    for (int r = 0; r < n; r++)
        memcpy((int8_t *)c.q.h + (size_t)r * (size_t)c.c.stride,
               (hist ? w->hist_q : w->now_q) + (size_t)r * (size_t)w->cols, (size_t)w->cols);
    dev_put(&c.q);
    return c;
}

static struct dev gpu_floats(const struct world *w, const float *x, int n)
{
    struct dev f = dev_new((size_t)(n + N_PAD) * (size_t)w->cols * sizeof(float));
    memcpy(f.h, x, (size_t)n * (size_t)w->cols * sizeof(float));
    dev_put(&f);
    return f;
}

/* The cache's elements of all sequences' positions < n(seq) must be the CPU's. */
static void check_cache(const struct world *w, const struct gpu_world *g, bool hist)
{
    const struct sq_kv *kv = w->kv;
    const int8_t *k = dev_get(&g->k), *v = dev_get(&g->v);
    for (int i = 0; i < w->seqs.n; i++)
        for (int pos = 0; pos < w->seqs.s[i].pos0 + (hist ? 0 : w->seqs.s[i].n); pos++)
            for (int h = 0; h < w->sh.kv_heads; h++) {
                const int block = w->blocks[w->seq_blocks[i] + pos / SQ_KV_BLOCK],
                          t = pos % SQ_KV_BLOCK;
                const uint8_t *tile = sq_kv_head(kv, LAYER, h) + (size_t)block * kv->tile_bytes;
                const size_t at = (size_t)((LAYER * N_BLOCKS + block) * w->sh.kv_heads + h) *
                                  SQ_KV_BLOCK * (size_t)w->sh.dim;
                for (int d = 0; d < w->sh.dim; d++) {
                    size_t ke = at + (size_t)(t * w->sh.dim + d),
                           ve = at + (size_t)(d * SQ_KV_BLOCK + t);
                    bool same;
                    if (w->sh.is_f32)
                        same = !memcmp(k + 4 * ke, (const float *)tile + t * w->sh.dim + d, 4) &&
                               !memcmp(v + 4 * ke,
                                       (const float *)(tile + kv->v_off) + t * w->sh.dim + d, 4);
                    else
                        same = k[ke] == (int8_t)tile[(d / 4 * SQ_KV_BLOCK + t) * 4 + d % 4] &&
                               v[ve] == (int8_t)tile[kv->v_off + (size_t)(t / 4) * 4 * kv->d_pad +
                                                     (size_t)(4 * d + t % 4)];
                    if (!same)
                        fail_msg("cache: sequence %d position %d head %d dimension %d differs", i,
                                 pos, h, d);
                }
            }
}

/* The first positions, through kv_write. */
static void gpu_history(const struct world *w, const struct gpu_world *g)
{
    if (!w->n_hist)
        return;
    struct gpu_step s = gpu_step_new(w, true, 0);
    struct dev_codes q = gpu_codes(w, true);
    struct dev f = gpu_floats(w, w->hist_f, w->n_hist);
    CUDA_OK(sq_gpu_kv_write(stream, &s.s, w->n_hist + N_PAD, &g->kv, &g->a, q.c, f.d, w->cols));
    check_cache(w, g, true);
    dev_free(&s.mem);
    dev_free(&f);
    dev_codes_free(&q);
}

static void check_rope(const struct world *w, const struct gpu_world *g, const struct gpu_step *s,
                       const struct dev *x, const struct dev_codes *codes)
{
    const int n = w->n_rows + N_PAD;
    struct dev_codes y = dev_codes(n, w->cols);
    dev_put(&y.q);
    CUDA_OK(sq_gpu_rope_rows(stream, &s->s, n, &g->rope, &g->a, x->d, NULL, y.c));
    check_codes("rope", dev_get(&y.q), y.c.stride, w->rope_codes, (size_t)w->n_rows,
                (size_t)w->cols);
    struct dev other = dev_new(x->bytes), same = dev_of(x->h, x->bytes);
    dev_put(&other);
    CUDA_OK(sq_gpu_rope_rows(stream, &s->s, n, &g->rope, &g->a, x->d, other.d, y.c));
    check_floats("rope", dev_get(&other), w->rope_f, (size_t)w->n_rows, (size_t)w->cols);
    CUDA_OK(sq_gpu_rope_rows(stream, &s->s, n, &g->rope, &g->a, same.d, same.d, y.c));
    check_floats("rope in place", dev_get(&same), w->rope_f, (size_t)w->n_rows, (size_t)w->cols);
    CUDA_OK(sq_gpu_rope_rows(stream, &s->s, n, &g->rope, &g->a, x->d, NULL, codes->c));
    dev_free(&other);
    dev_free(&same);
    dev_codes_free(&y);
}

static void check_out(const struct world *w, const struct dev_codes *q, const struct dev *f,
                      int mode)
{
    char what[96];
    snprintf(what, sizeof what, "%d/%d heads of %d%s%s%s%s, %d pieces a block", w->sh.heads,
             w->sh.kv_heads, w->sh.dim, mode & ALL_DECODE ? ", all decode" : "",
             mode & ALL_TILES ? ", all tiles" : "", mode & FUSED ? ", fused" : "",
             w->sh.rot_dim ? ", rotated" : "", mode / PIECES);
    if (w->sh.out_f32)
        check_floats(what, dev_get(f), w->want, (size_t)w->n_rows, (size_t)w->out_cols);
    else
        check_codes(what, dev_get(&q->q), q->c.stride, w->want, (size_t)w->n_rows,
                    (size_t)w->out_cols);
    const uint8_t *pad =
        w->sh.out_f32 ? (const uint8_t *)dev_get(f) + (size_t)w->n_rows * (size_t)w->out_cols * 4
                      : (const uint8_t *)dev_get(&q->q) + (size_t)w->n_rows * (size_t)q->c.stride;
    for (int i = 0; i < N_PAD * w->out_cols; i++)
        if (pad[i] != PATTERN)
            fail_msg("%s: rows that are none were written", what);
}

static void gpu_attend(const struct world *w, const struct gpu_world *g, const struct gpu_step *s,
                       struct sq_gpu_codes q, const float *f, int mode)
{
    const int part = sq_gpu_attend_part_floats(w->sh.dim);
    const size_t n_counters = (size_t)(s->n_dec * w->sh.kv_heads);
    struct dev parts =
        dev_new((size_t)(SQ_MAX(s->n_parts, 1) * w->sh.heads * part) * sizeof(float));
    struct dev counters = dev_new(n_counters * sizeof(int32_t));
    struct dev_codes out = dev_codes(w->n_rows + N_PAD, w->out_cols);
    struct dev out_f = dev_new((size_t)((w->n_rows + N_PAD) * w->out_cols) * sizeof(float));
    memset(counters.h, 0, counters.bytes);
    dev_put(&counters);
    dev_put(&out.q);
    dev_put(&out_f);
    struct sq_gpu_attend a = {.s = &s->s,
                              .kv = &g->kv,
                              .a = g->a,
                              .n_dec = s->n_dec,
                              .n_pieces = s->n_pieces + 1,
                              .n_tiles = s->n_tiles,
                              .q = q,
                              .qf = f,
                              .ld_qf = w->cols,
                              .out = out.c,
                              .ld_out = w->out_cols,
                              .parts = mode & NO_PARTS ? NULL : parts.d,
                              .counters = counters.d,
                              .pieces_per_block = mode / PIECES,
                              .n_sms = 132,
                              .rope = g->rope};
    a.out_f = w->sh.out_f32 ? out_f.d : NULL;
    a.fused_write = (mode & FUSED) != 0;
    if (a.fused_write && w->sh.rot_dim)
        a.rope_x = f, a.ld_rope_x = w->cols, a.q.q = NULL;
    for (int twice = 0; twice < 2; twice++) {
        CUDA_OK(sq_gpu_attend(stream, &a));
        check_out(w, &out, &out_f, mode);
        const int32_t *c = dev_get(&counters);
        for (size_t i = 0; i < n_counters; i++)
            assert_int_equal(c[i], 0);
    }
    dev_free(&parts);
    dev_free(&counters);
    dev_free(&out_f);
    dev_codes_free(&out);
}

static void gpu_check(const struct world *w, int mode)
{
    struct gpu_world g = gpu_world_new(w);
    gpu_history(w, &g);
    struct gpu_step s = gpu_step_new(w, false, mode);
    struct dev_codes q = gpu_codes(w, false);
    struct dev f = gpu_floats(w, w->now_f, w->n_rows);
    if (w->sh.rot_dim && !(mode & FUSED))
        check_rope(w, &g, &s, &f, &q);
    if (!(mode & FUSED))
        CUDA_OK(sq_gpu_kv_write(stream, &s.s, w->n_rows + N_PAD, &g.kv, &g.a, q.c, f.d, w->cols));
    gpu_attend(w, &g, &s, q.c, f.d, mode);
    check_cache(w, &g, false);
    dev_free(&s.mem);
    dev_free(&f);
    dev_codes_free(&q);
    gpu_world_free(&g);
}

static void check_shape(struct shape sh, struct seqs seqs, float spread, const int *modes)
{
    rng_state = (uint64_t)(sh.dim * 1000 + sh.heads);
    struct world w = world_new(sh, seqs, spread);
    for (; *modes >= 0; modes++)
        gpu_check(&w, *modes);
    world_free(&w);
}

/* --- tests --- */

static const struct seqs mixed = {
    .n = 8, .s = {{0, 1}, {700, 1}, {30, 141}, {256, 1}, {0, 290}, {251, 9}, {31, 1}, {254, 1}}};
/* every row alone in its sequence */
static const struct seqs alone = {
    .n = 9,
    .s = {{0, 1}, {30, 1}, {31, 1}, {32, 1}, {254, 1}, {255, 1}, {256, 1}, {699, 1}, {1499, 1}}};
static const int by_kind[] = {0, -1};
static const int both_kernels[] = {0, ALL_DECODE, ALL_TILES, -1};
static const int fused_too[] = {0, FUSED, -1};

static void test_mixed(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{1, 1, 128, 0, 0, 0}, {4, 4, 64, 0, 0, 0},
                                          {8, 2, 80, 0, 0, 0},  {7, 1, 96, 0, 0, 0},
                                          {4, 4, 16, 0, 0, 0},  {2, 1, 36, 0, 0, 0}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(shapes); i++)
        check_shape(shapes[i], mixed, 4.0f, i < 4 ? both_kernels : by_kind);
}

static void test_decode(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {2, 2, 128, 0, 0, 0}, {8, 2, 64, 0, 0, 1}, {7, 1, 80, 0, 0, 0}, {1, 1, 96, 0, 0, 0},
        {12, 1, 64, 0, 0, 0}, {4, 2, 48, 0, 0, 0}, {2, 1, 200, 0, 0, 0}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(shapes); i++)
        check_shape(shapes[i], alone, 3.0f, fused_too);
}

static void test_rotated(void **state)
{
    (void)state;
    static const struct shape shapes[] = {
        {8, 2, 128, 128, 0, 0}, {4, 4, 64, 32, 0, 0}, {2, 1, 80, 20, 0, 0}, {2, 2, 16, 12, 0, 0}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(shapes); i++) {
        check_shape(shapes[i], alone, 3.0f, fused_too);
        check_shape(shapes[i], mixed, 3.0f, by_kind);
    }
}

static void test_float(void **state)
{
    (void)state;
    static const struct shape shapes[] = {{2, 2, 128, 0, 1, 1},
                                          {4, 1, 64, 0, 1, 1},
                                          {2, 1, 80, 0, 1, 1},
                                          {2, 2, 16, 0, 1, 1},
                                          {2, 1, 7, 0, 1, 1}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(shapes); i++) {
        check_shape(shapes[i], mixed, 3.0f, by_kind);
        check_shape(shapes[i], alone, 3.0f, fused_too);
    }
}

/* Scores so far apart that one key takes all, and so near that all do; in between, floats show each single probability that the prefill
 * kernel's approximation would get wrong, with maxima in each of its ranges. */
static void test_spread(void **state)
{
    (void)state;
    const struct shape sh = {2, 1, 128, 0, 0, 0}, fine = {1, 1, 64, 0, 0, 1};
    static const struct seqs rows = {.n = 1, .s = {{0, 900}}};
    static const float spreads[] = {4000.0f, 1e-3f}, fine_spreads[] = {1.0f, 6.0f, 14.0f, 25.0f};
    for (size_t i = 0; i < SQ_ARRAY_LEN(spreads); i++)
        check_shape(sh, mixed, spreads[i], both_kernels);
    for (size_t i = 0; i < SQ_ARRAY_LEN(fine_spreads); i++)
        check_shape(fine, rows, fine_spreads[i], by_kind);
}

/* The constants of the prefill kernel's approximation (cuda/attn_s8_prefill.cu), in C: 127 times the exponential may be this far from the
 * definition where the maximum is m. Of the device's 2^x its documented error is added. */
static void test_approximation(void **state)
{
    (void)state;
    const double near = 32.0 / 65536.0, of_exp2 = 127.0 * 0x1p-22 + 0x1p-17;
    rng_state = 1;
    for (int i = 0; i < 2000000; i++) {
        const double range = i % 2 ? 24.0 : 56.0;
        const int best = (int)(rng() % 2000000) + 1000;
        const float mul = (float)(range * (double)(rng() % 1000 + 1) / 1000.0 / best);
        const int below = (int)((double)(rng() % 10000) / 10000.0 * 6.0 / (double)mul);
        if (below > 4000000)
            continue;
        const float m = (float)best * mul, x = (float)(best - below) * mul - m;
        const float log2_y = fmaf((float)-below, mul * 1.44269504f, 6.98868469f);
        const double off = fabs(exp2((double)log2_y) - (double)(127.0f * sq_exp(x)));
        if (off + of_exp2 > (i % 2 ? near : 2 * near))
            fail_msg("maximum %g, score %d of %d: off by %g", (double)m, best - below, best, off);
    }
}

/* More pieces than the prefill kernel keeps maxima of, and than a warp merges at once. */
static void test_long(void **state)
{
    (void)state;
    static const struct seqs seqs = {.n = 2, .s = {{8520, 40}, {700, 1}}};
    check_shape((struct shape){1, 1, 64, 0, 0, 0}, seqs, 3.0f, by_kind);
    static const struct seqs one = {.n = 1, .s = {{8800, 1}}};
    check_shape((struct shape){2, 1, 64, 0, 0, 0}, one, 3.0f, fused_too);
}

/* Blocks that take several pieces: rows that end within a block's pieces, with them and in the next block's, odd ones and whole ones; the
 * row's own key in the first, a middle and the last piece of a block; all pieces in one block; more than its shared memory takes. */
static void test_pieces(void **state)
{
    (void)state;
    static const struct seqs rows = {.n = 9,
                                     .s = {{5, 1},
                                           {255, 1},
                                           {256, 1},
                                           {511, 1},
                                           {600, 1},
                                           {767, 1},
                                           {1000, 1},
                                           {1024, 1},
                                           {1601, 1}}};
    static const int modes[] = {FUSED + 1 * PIECES,
                                FUSED + 2 * PIECES,
                                3 * PIECES,
                                FUSED + 4 * PIECES,
                                NO_PARTS + FUSED + 20 * PIECES,
                                -1};
    static const int clipped[] = {FUSED + 20 * PIECES, -1};
    check_shape((struct shape){4, 1, 128, 128, 0, 0}, rows, 3.0f, modes);
    check_shape((struct shape){2, 2, 64, 0, 0, 1}, rows, 3.0f, modes);
    check_shape((struct shape){3, 1, 80, 0, 0, 0}, rows, 3.0f, modes);
    check_shape((struct shape){2, 2, 96, 32, 0, 0}, rows, 3.0f, modes);
    check_shape((struct shape){12, 1, 64, 24, 0, 0}, rows, 3.0f, clipped);
}

/* With rows enough to fill any device, one block takes all pieces of a row. */
static void test_many_rows(void **state)
{
    (void)state;
    static const int modes[] = {FUSED + NO_PARTS, -1};
    struct seqs rows = {.n = MAX_SEQS};
    for (int i = 0; i < MAX_SEQS; i++)
        rows.s[i].pos0 = i == 40 ? 900 : i % 5, rows.s[i].n = 1;
    check_shape((struct shape){8, 8, 64, 0, 0, 0}, rows, 3.0f, modes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mixed),        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_rotated),      cmocka_unit_test(test_float),
        cmocka_unit_test(test_spread),       cmocka_unit_test(test_long),
        cmocka_unit_test(test_pieces),       cmocka_unit_test(test_many_rows),
        cmocka_unit_test(test_approximation)};
    return cmocka_run_group_tests(tests, gpu_setup, gpu_teardown);
}
