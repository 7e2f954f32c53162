#include "tests/lib/backend_fake.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"
#include "engine/quant.h"

/* What stands for a row of any width. id and pos are those of the row's own token. */
struct cell {
    uint64_t h;
    int32_t id, pos;
};

struct sq_buf {
    enum sq_buf_kind kind;
    size_t max_rows, cols;
    struct cell *rows; /* [max_rows] */
    float *f;          /* [max_rows, cols] for view, F32 only */
};

struct sq_linear {
    struct sq_linear_desc d; /* d.name points at name */
    char name[48];
    uint64_t h;
    size_t n_put;
    bool finished;
};

struct sq_norm {
    size_t dim;
    bool has_q;
    uint64_t h;
};

struct sq_rope {
    size_t rot_dim, n_pos;
    uint64_t h;
};

struct sq_kv {
    struct sq_kv_desc d;
    struct cell *cells; /* [n_layers, n_blocks, SQ_KV_BLOCK] */
};

struct fake {
    struct sq_backend be; /* first */
    struct sq_fake_options o;
    uint64_t salt; /* of the next object */
    bool in_step;
    _Atomic uint64_t n_ops, fail_at, n_steps, n_rows, n_argmax, n_views;
    _Atomic int n_objects, max_step_rows, max_step_seqs;
    char *trace;
    size_t n_trace;
};

static struct fake *fake_of(struct sq_backend *be)
{
    return (struct fake *)be;
}

static uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t z = a * 0x9e3779b97f4a7c15u + b + 0x7f4a7c159e3779b9u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static uint64_t mix_bytes(uint64_t h, const void *p, size_t n)
{
    const unsigned char *c = p;
    for (size_t i = 0; i < n; i++)
        h = (h ^ c[i]) * 0x100000001b3u;
    return h;
}

/* Every op passes here once. */
static int op(struct fake *k)
{
    uint64_t n = atomic_fetch_add(&k->n_ops, 1) + 1, at = atomic_load(&k->fail_at);
    return at && n >= at ? -SQ_E_DEVICE : 0;
}

static void trace(struct fake *k, const char *op_name, const char *what, const char *io)
{
    if (!k->trace)
        return;
    size_t used = strlen(k->trace);
    (void)snprintf(k->trace + used, k->n_trace - used, "%s%s%s%s%s%s", used ? "; " : "", op_name,
                   *what ? " " : "", what, *io ? " " : "", io);
}

static const char *io_name(const struct sq_buf *x, const struct sq_buf *y, bool over)
{
    static const char *const names[2][3] = {{"f>f", "f>q", "f>x"}, {"q>f", "q>q", "q>x"}};
    return names[x->kind == SQ_BUF_S8][over ? 2 : y->kind == SQ_BUF_S8];
}

static void *object_new(struct fake *k, size_t size)
{
    void *p = sq_calloc(1, size);
    if (p)
        atomic_fetch_add(&k->n_objects, 1);
    return p;
}

static void object_free(struct fake *k, void *p)
{
    if (p)
        atomic_fetch_sub(&k->n_objects, 1);
    sq_free(p);
}

/* --- objects ---------------------------------------------------------------------------------- */

static void fake_close(struct sq_backend *be)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(atomic_load(&k->n_objects) == 0);
    sq_free(k);
}

static void fake_info(struct sq_backend *be, struct sq_device_info *ret)
{
    (void)be;
    *ret = (struct sq_device_info){.name = "fake", .detail = "hashes only", .n_threads = 1};
}

static void buf_free(struct sq_backend *be, struct sq_buf *b)
{
    if (!b)
        return;
    sq_free(b->rows);
    sq_free(b->f);
    object_free(fake_of(be), b);
}

static int buf_new(struct sq_backend *be, enum sq_buf_kind kind, size_t max_rows, size_t cols,
                   struct sq_buf **ret, struct sq_err *err)
{
    SQ_ASSERT(max_rows > 0 && cols > 0);
    struct sq_buf *b = object_new(fake_of(be), sizeof *b);
    if (!b)
        return sq_fail(err, SQ_E_NOMEM, "no memory for a buffer");
    *b = (struct sq_buf){.kind = kind, .max_rows = max_rows, .cols = cols};
    b->rows = sq_new_array(struct cell, max_rows);
    b->f = kind == SQ_BUF_F32 ? sq_new_array(float, max_rows *cols) : NULL;
    if (!b->rows || (kind == SQ_BUF_F32 && !b->f)) {
        buf_free(be, b);
        return sq_fail(err, SQ_E_NOMEM, "no memory for a buffer");
    }
    *ret = b;
    return 0;
}

static int linear_new(struct sq_backend *be, const struct sq_linear_desc *d, struct sq_linear **ret,
                      struct sq_err *err)
{
    SQ_ASSERT(d->n_out > 0 && d->n_in > 0 && d->name);
    SQ_ASSERT(!d->dynamic || d->dtype == SQ_I8);
    SQ_ASSERT(d->out != SQ_OUT_S8 || (d->dtype == SQ_I8 && !d->dynamic));
    struct sq_linear *l = object_new(fake_of(be), sizeof *l);
    if (!l)
        return sq_fail(err, SQ_E_NOMEM, "no memory for %s", d->name);
    l->d = *d;
    (void)snprintf(l->name, sizeof l->name, "%s", d->name);
    l->d.name = l->name;
    l->h = mix_bytes(17, l->name, strlen(l->name));
    *ret = l;
    return 0;
}

static int linear_put(struct sq_backend *be, struct sq_linear *l, size_t row0, size_t n_rows,
                      const void *rows, struct sq_err *err)
{
    (void)be;
    (void)err;
    SQ_ASSERT(!l->finished && row0 + n_rows <= l->d.n_out);
    l->n_put += n_rows;
    /* rows may come in any order: a sum forgets it, the row's index does not */
    l->h += mix_bytes(row0, rows, n_rows * l->d.n_in * sq_dtype_bytes(l->d.dtype));
    return 0;
}

static int linear_finish(struct sq_backend *be, struct sq_linear *l, const struct sq_epilogue *e,
                         struct sq_err *err)
{
    (void)be;
    (void)e;
    (void)err;
    SQ_ASSERT(!l->finished && l->n_put == l->d.n_out);
    l->finished = true;
    return 0;
}

static void linear_free(struct sq_backend *be, struct sq_linear *l)
{
    object_free(fake_of(be), l);
}

static int norm_new(struct sq_backend *be, const struct sq_norm_desc *d, struct sq_norm **ret,
                    struct sq_err *err)
{
    struct sq_norm *n = object_new(fake_of(be), sizeof *n);
    if (!n)
        return sq_fail(err, SQ_E_NOMEM, "no memory for a norm");
    *n = (struct sq_norm){.dim = d->dim, .has_q = d->gamma_q, .h = mix(++fake_of(be)->salt, 3)};
    *ret = n;
    return 0;
}

static void norm_free(struct sq_backend *be, struct sq_norm *n)
{
    object_free(fake_of(be), n);
}

static int rope_new(struct sq_backend *be, const struct sq_rope_desc *d, struct sq_rope **ret,
                    struct sq_err *err)
{
    SQ_ASSERT(d->rot_dim > 0 && d->rot_dim % 2 == 0 && d->n_pos > 0);
    struct sq_rope *r = object_new(fake_of(be), sizeof *r);
    if (!r)
        return sq_fail(err, SQ_E_NOMEM, "no memory for the rotations");
    *r = (struct sq_rope){.rot_dim = d->rot_dim, .n_pos = d->n_pos};
    r->h = mix_bytes(5, d->cos, d->n_pos * d->rot_dim / 2 * sizeof *d->cos);
    r->h = mix_bytes(r->h, d->sin, d->n_pos * d->rot_dim / 2 * sizeof *d->sin);
    *ret = r;
    return 0;
}

static void rope_free(struct sq_backend *be, struct sq_rope *r)
{
    object_free(fake_of(be), r);
}

static size_t kv_bytes(struct sq_backend *be, const struct sq_kv_desc *d)
{
    (void)be;
    return d->n_layers * d->n_blocks * SQ_KV_BLOCK * 2 * d->n_kv_heads * d->head_dim *
           sq_dtype_bytes(d->dtype);
}

static void kv_free(struct sq_backend *be, struct sq_kv *kv)
{
    if (!kv)
        return;
    sq_free(kv->cells);
    object_free(fake_of(be), kv);
}

static int kv_new(struct sq_backend *be, const struct sq_kv_desc *d, struct sq_kv **ret,
                  struct sq_err *err)
{
    struct sq_kv *kv = object_new(fake_of(be), sizeof *kv);
    if (!kv)
        return sq_fail(err, SQ_E_NOMEM, "no memory for the KV cache");
    kv->d = *d;
    size_t n = d->n_layers * d->n_blocks * SQ_KV_BLOCK;
    kv->cells = sq_new_array(struct cell, n);
    if (!kv->cells) {
        kv_free(be, kv);
        return sq_fail(err, SQ_E_NOMEM, "no memory for the KV cache");
    }
    for (size_t i = 0; i < n; i++)
        kv->cells[i].pos = -1;
    *ret = kv;
    return 0;
}

/* --- one step --------------------------------------------------------------------------------- */

static int reserve(struct sq_backend *be, const struct sq_step_limits *l, struct sq_err *err)
{
    (void)be;
    (void)err;
    SQ_ASSERT(l->max_rows > 0 && l->max_out > 0 && l->max_blocks > 0);
    return 0;
}

static int step_begin(struct sq_backend *be, const struct sq_batch *b, const void *key)
{
    (void)b;
    (void)key;
    SQ_ASSERT(!fake_of(be)->in_step);
    fake_of(be)->in_step = true;
    return 0;
}

static int step_end(struct sq_backend *be)
{
    SQ_ASSERT(fake_of(be)->in_step);
    fake_of(be)->in_step = false;
    return 0;
}

static void check_batch(const struct fake *k, const struct sq_batch *b)
{
    int row = 0;
    for (int i = 0; i < b->n_seqs; i++) {
        const struct sq_batch_seq *s = &b->seqs[i];
        SQ_ASSERT(s->row0 == row && s->n_rows > 0);
        for (int j = 0; j < s->n_rows; j++, row++)
            SQ_ASSERT(b->pos[row] == s->pos0 + j && b->pos[row] < k->o.context);
    }
    SQ_ASSERT(row == b->n_rows);
    for (int i = 0; i < b->n_out; i++)
        SQ_ASSERT(b->out_rows[i] < row && b->out_rows[i] >= (i ? b->out_rows[i - 1] + 1 : 0));
}

static int embed(struct sq_backend *be, const struct sq_batch *b, struct sq_linear *table,
                 struct sq_linear *pos_table, int pos_offset, struct sq_buf *x)
{
    struct fake *k = fake_of(be);
    check_batch(k, b);
    SQ_ASSERT(k->in_step && (size_t)b->n_rows <= x->max_rows && x->kind == SQ_BUF_F32);
    SQ_ASSERT(!table || (table->d.n_in == x->cols && table->d.dtype != SQ_I8));
    trace(k, "embed", table ? table->name : "", pos_table ? pos_table->name : "");
    for (int i = 0; i < b->n_rows; i++) {
        uint64_t h = 0;
        if (table) {
            SQ_ASSERT(b->ids[i] >= 0 && (size_t)b->ids[i] < table->d.n_out);
            h = mix(table->h, (uint64_t)b->ids[i]);
        }
        if (pos_table) {
            SQ_ASSERT((size_t)(b->pos[i] + pos_offset) < pos_table->d.n_out);
            h = mix(h, mix(pos_table->h, (uint64_t)(b->pos[i] + pos_offset)));
        }
        x->rows[i] = (struct cell){.h = h, .id = b->ids[i], .pos = b->pos[i]};
    }
    return op(k);
}

static int norm(struct sq_backend *be, struct sq_norm *n, struct sq_buf *x, int n_rows,
                struct sq_buf *y, struct sq_buf *y_q)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(k->in_step && x->kind == SQ_BUF_F32 && x->cols == n->dim && (y || y_q));
    SQ_ASSERT(!y_q || (n->has_q && y_q->kind == SQ_BUF_S8 && y_q->cols == n->dim));
    SQ_ASSERT(!y || (y->kind == SQ_BUF_F32 && y->cols == n->dim));
    trace(k, "norm", y ? io_name(x, y, y == x) : "", y_q ? "f>q" : "");
    for (int i = 0; i < n_rows; i++) {
        struct cell c = x->rows[i];
        c.h = mix(c.h, n->h);
        if (y)
            y->rows[i] = c;
        if (y_q)
            y_q->rows[i] = c;
    }
    return op(k);
}

static int quant_rows(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                      struct sq_buf *y_q)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(k->in_step && x->kind == SQ_BUF_F32 && y_q->kind == SQ_BUF_S8 &&
              x->cols == y_q->cols);
    SQ_ASSERT(inv_step >= 0.0f && (size_t)n_rows <= y_q->max_rows);
    trace(k, "quant", inv_step > 0.0f ? "static" : "rows", "");
    for (int i = 0; i < n_rows; i++) {
        y_q->rows[i] = x->rows[i];
        y_q->rows[i].h = mix(x->rows[i].h, (uint64_t)(inv_step * 1024.0f));
    }
    return op(k);
}

static int linear(struct sq_backend *be, struct sq_linear *l, struct sq_buf *x, int n_rows,
                  struct sq_buf *y)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(k->in_step && l->finished && x->cols == l->d.n_in && y->cols == l->d.n_out);
    SQ_ASSERT((x->kind == SQ_BUF_S8) == (l->d.dtype == SQ_I8));
    SQ_ASSERT((y->kind == SQ_BUF_S8) == (l->d.out == SQ_OUT_S8));
    SQ_ASSERT((size_t)n_rows <= x->max_rows && (size_t)n_rows <= y->max_rows);
    bool add = l->d.out == SQ_OUT_ADD;
    trace(k, "linear", l->name, io_name(x, y, add));
    for (int i = 0; i < n_rows; i++) {
        uint64_t h = mix(x->rows[i].h, l->h);
        struct cell c = x->rows[i];
        c.h = add ? mix(y->rows[i].h, h) : h;
        y->rows[i] = c;
    }
    return op(k);
}

static int rope(struct sq_backend *be, struct sq_rope *r, const struct sq_attn *a,
                const struct sq_batch *b, struct sq_buf *x, struct sq_buf *y)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(k->in_step && x->kind == SQ_BUF_F32 && x->cols == y->cols);
    SQ_ASSERT(x->cols == (size_t)((a->n_heads + 2 * a->n_kv_heads) * a->head_dim));
    SQ_ASSERT(r->rot_dim <= (size_t)a->head_dim && (size_t)b->n_rows <= y->max_rows);
    SQ_ASSERT(y->kind == SQ_BUF_F32 || (a->q_inv > 0 && a->k_inv > 0 && a->v_inv > 0));
    trace(k, "rope", io_name(x, y, y == x), "");
    for (int i = 0; i < b->n_rows; i++) {
        SQ_ASSERT((size_t)b->pos[i] < r->n_pos);
        struct cell c = x->rows[i];
        c.h = mix(mix(c.h, r->h), (uint64_t)b->pos[i]);
        y->rows[i] = c;
    }
    return op(k);
}

static int swiglu(struct sq_backend *be, struct sq_buf *x, int n_rows, float inv_step,
                  struct sq_buf *y)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(k->in_step && x->kind == SQ_BUF_F32 && x->cols == 2 * y->cols);
    SQ_ASSERT(inv_step >= 0.0f && (size_t)n_rows <= y->max_rows);
    const char *how = inv_step > 0.0f ? "static" : "rows";
    trace(k, "swiglu", io_name(x, y, false), y->kind == SQ_BUF_S8 ? how : "");
    for (int i = 0; i < n_rows; i++) {
        y->rows[i] = x->rows[i];
        y->rows[i].h = mix(x->rows[i].h, 7 + (uint64_t)(inv_step * 1024.0f));
    }
    return op(k);
}

static struct cell *kv_cell(struct sq_kv *kv, int layer, const struct sq_batch_seq *s, int pos)
{
    int32_t block = s->blocks[pos / SQ_KV_BLOCK];
    SQ_ASSERT(block >= 0 && (size_t)block < kv->d.n_blocks && (size_t)layer < kv->d.n_layers);
    return &kv->cells[((size_t)layer * kv->d.n_blocks + (size_t)block) * SQ_KV_BLOCK +
                      (size_t)(pos % SQ_KV_BLOCK)];
}

static void max_to(_Atomic int *p, int v)
{
    if (v > atomic_load(p))
        atomic_store(p, v);
}

static void count_step(struct fake *k, const struct sq_batch *b)
{
    atomic_fetch_add(&k->n_steps, 1);
    atomic_fetch_add(&k->n_rows, (uint64_t)b->n_rows);
    max_to(&k->max_step_rows, b->n_rows);
    max_to(&k->max_step_seqs, b->n_seqs);
    if (k->o.step_delay_us) {
        struct timespec t = {.tv_sec = k->o.step_delay_us / 1000000,
                             .tv_nsec = (long)(k->o.step_delay_us % 1000000) * 1000};
        (void)nanosleep(&t, NULL);
    }
}

static int kv_write(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                    const struct sq_batch *b, struct sq_buf *qkv)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(k->in_step && (qkv->kind == SQ_BUF_S8) == (kv->d.dtype == SQ_I8));
    SQ_ASSERT(qkv->cols == (size_t)((a->n_heads + 2 * a->n_kv_heads) * a->head_dim));
    trace(k, "kv_write", io_name(qkv, qkv, false), "");
    if (a->layer == 0)
        count_step(k, b);
    for (int i = 0; i < b->n_seqs; i++) {
        const struct sq_batch_seq *s = &b->seqs[i];
        for (int j = 0; j < s->n_rows; j++) {
            struct cell c = qkv->rows[s->row0 + j];
            c.pos = s->pos0 + j;
            *kv_cell(kv, a->layer, s, c.pos) = c;
        }
    }
    return op(k);
}

static int attend(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                  const struct sq_batch *b, struct sq_buf *qkv, struct sq_buf *out)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(k->in_step && qkv->kind == out->kind &&
              out->cols == (size_t)(a->n_heads * a->head_dim));
    trace(k, "attend", io_name(qkv, out, false), "");
    for (int i = 0; i < b->n_seqs; i++) {
        const struct sq_batch_seq *s = &b->seqs[i];
        uint64_t h = (uint64_t)a->layer;
        int last = s->pos0 + s->n_rows - 1;
        for (int pos = 0; pos <= last; pos++) {
            const struct cell *c = kv_cell(kv, a->layer, s, pos);
            SQ_ASSERT(c->pos == pos); /* a block that was never written, or someone else's */
            h = mix(h, c->h);
            if (pos >= s->pos0) {
                struct cell y = qkv->rows[s->row0 + pos - s->pos0];
                y.h = mix(h, y.h);
                out->rows[s->row0 + pos - s->pos0] = y;
            }
        }
    }
    return op(k);
}

static int gather(struct sq_backend *be, const struct sq_batch *b, struct sq_buf *x,
                  struct sq_buf *y)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(k->in_step && x->cols == y->cols && (size_t)b->n_out <= y->max_rows);
    trace(k, "gather", "", "");
    for (int i = 0; i < b->n_out; i++)
        y->rows[i] = x->rows[b->out_rows[i]];
    return op(k);
}

/* The logits as view and argmax both see them. */
static void fill_row(const struct fake *k, struct sq_buf *x, int row)
{
    const struct cell *c = &x->rows[row];
    float *f = x->f + (size_t)row * x->cols;
    const struct sq_fake_options *o = &k->o;
    for (size_t i = 0; i < x->cols; i++)
        f[i] = (float)(mix(c->h, i) >> 40) * (8.0f / 16777216.0f) - 4.0f;
    if (o->eos >= 0 && (size_t)o->eos < x->cols)
        f[o->eos] = o->eos_one_in && mix(c->h, 99) % o->eos_one_in == 0 ? 30.0f : -30.0f;
    if (o->next)
        f[(size_t)o->next(o->ctx, c->id, c->pos) % x->cols] = 40.0f;
    if (o->nan_id && c->id == o->nan_id)
        f[x->cols / 2] = NAN;
}

static int32_t first_max(const float *f, size_t n)
{
    size_t best = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(f[i]))
            return -1;
        best = f[i] > f[best] ? i : best;
    }
    return (int32_t)best;
}

static int argmax(struct sq_backend *be, struct sq_buf *x, int n_rows, int32_t *ids)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(x->kind == SQ_BUF_F32 && (size_t)n_rows <= x->max_rows);
    atomic_fetch_add(&k->n_argmax, 1);
    int rc = op(k);
    for (int i = 0; !rc && i < n_rows; i++) {
        fill_row(k, x, i);
        ids[i] = first_max(x->f + (size_t)i * x->cols, x->cols);
    }
    return rc;
}

static int observe(struct sq_backend *be, struct sq_buf *x, int row0, int n_rows, size_t col0,
                   size_t n_cols, float *absmax)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(x->kind == SQ_BUF_F32 && col0 + n_cols <= x->cols && n_rows > 0);
    trace(k, "observe", "", "");
    (void)row0;
    /* counts rows, so that a test sees which were shown */
    for (size_t c = 0; c < n_cols; c++)
        absmax[c] += (float)n_rows;
    return op(k);
}

static int view(struct sq_backend *be, struct sq_buf *x, int n_rows, const float **ret)
{
    struct fake *k = fake_of(be);
    SQ_ASSERT(x->kind == SQ_BUF_F32 && (size_t)n_rows <= x->max_rows);
    atomic_fetch_add(&k->n_views, 1);
    for (int i = 0; i < n_rows; i++)
        fill_row(k, x, i);
    *ret = x->f;
    return op(k);
}

static int sync_all(struct sq_backend *be)
{
    return op(fake_of(be));
}

static const char *fault(struct sq_backend *be)
{
    (void)be;
    return "";
}

static const struct sq_backend_ops fake_ops = {
    .close = fake_close,
    .info = fake_info,
    .buf_new = buf_new,
    .buf_free = buf_free,
    .linear_new = linear_new,
    .linear_put = linear_put,
    .linear_finish = linear_finish,
    .linear_free = linear_free,
    .norm_new = norm_new,
    .norm_free = norm_free,
    .kv_new = kv_new,
    .kv_free = kv_free,
    .kv_bytes = kv_bytes,
    .rope_new = rope_new,
    .rope_free = rope_free,
    .reserve = reserve,
    .step_begin = step_begin,
    .step_end = step_end,
    .embed = embed,
    .norm = norm,
    .quant_rows = quant_rows,
    .linear = linear,
    .rope = rope,
    .swiglu = swiglu,
    .kv_write = kv_write,
    .attend = attend,
    .gather = gather,
    .argmax = argmax,
    .observe = observe,
    .view = view,
    .sync = sync_all,
    .fault = fault,
};

struct sq_backend *sq_fake_open(const struct sq_fake_options *o)
{
    struct fake *k = sq_new(struct fake);
    if (!k)
        return NULL;
    k->be.ops = &fake_ops;
    k->o = *o;
    return &k->be;
}

void sq_fake_fail_at(struct sq_backend *be, uint64_t n)
{
    atomic_store(&fake_of(be)->n_ops, 0);
    atomic_store(&fake_of(be)->fail_at, n);
}

void sq_fake_counts(struct sq_backend *be, struct sq_fake_counts *ret)
{
    struct fake *k = fake_of(be);
    *ret = (struct sq_fake_counts){
        .n_ops = atomic_load(&k->n_ops),
        .n_steps = atomic_load(&k->n_steps),
        .n_rows = atomic_load(&k->n_rows),
        .n_argmax = atomic_load(&k->n_argmax),
        .n_views = atomic_load(&k->n_views),
        .n_objects = atomic_load(&k->n_objects),
        .max_step_rows = atomic_load(&k->max_step_rows),
        .max_step_seqs = atomic_load(&k->max_step_seqs),
    };
}

void sq_fake_trace(struct sq_backend *be, char *buf, size_t n_buf)
{
    struct fake *k = fake_of(be);
    k->trace = buf;
    k->n_trace = n_buf;
    if (buf)
        buf[0] = '\0';
}
