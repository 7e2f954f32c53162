/* One decoder block, as the paper's figure 6 draws it (int8 tensors marked _q; W8A8 static,
 * pre-norm):
 *
 *   h_q   = norm1(x)
 *   qkv_q = Wqkv h_q
 *   cache <- k_q, v_q;  a_q = attend(q_q, cache)
 *   x    += Wo a_q
 *   h_q   = norm2(x)
 *   f_q   = relu(Wup h_q)
 *   x    += Wdown f_q
 *
 * Only x, the residual, is f32. Families with rotary positions turn q and k on the way to their
 * codes, gated ones multiply by a gate on the way to f_q; both need real numbers between:
 *
 *   qkv   = Wqkv h_q;  qkv_q = rope(qkv)
 *   gu    = Wgate_up h_q;  f_q = swiglu(gu)
 *
 * The other schemes differ in how a linear gets its input (see `input`): float linears take the f32
 * tensor itself, dynamic ones the same tensor quantised row by row. Post-norm models (OPT-350m)
 * have norm1 after the first addition and norm2 after the second; both replace x. */
#include "engine/run/forward.h"

#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/quant.h"

/* Activations of one step. T = max_rows, R = max_out; NULL where the model has no use for the
 * buffer. */
struct acts {
    struct sq_buf *e;           /* [T, embed_dim]: embedding before project_in */
    struct sq_buf *x;           /* [T, hidden]: the residual */
    struct sq_buf *h, *h_q;     /* [T, hidden]: a norm's output */
    struct sq_buf *qkv, *qkv_q; /* [T, (n_heads + 2 n_kv_heads) * D]; qkv_q: int8 attention */
    struct sq_buf *a, *a_q;     /* [T, n_heads * D]: what attention leaves */
    struct sq_buf *gu;          /* [T, 2 ffn]: gate and up in turn */
    struct sq_buf *f, *f_q;     /* [T, ffn] */
    struct sq_buf *last,
        *last_e;           /* [R, hidden], [R, embed_dim]: the rows that go through the head */
    struct sq_buf *last_q; /* [R, embed_dim]: int8 head */
    struct sq_buf *logits; /* [R, vocab] */
};
#define N_ACTS (sizeof(struct acts) / sizeof(struct sq_buf *))

struct sq_runner {
    struct sq_model *m; /* borrowed */
    struct sq_runner_options o;
    struct acts act;
    struct sq_kv *kv;
};

/* The state of one pass. After the first error every further call is skipped, so that the block
 * reads as a list. */
struct pass {
    const struct sq_runner *r;
    const struct sq_model *m;
    const struct sq_backend_ops *ops;
    struct sq_backend *be;
    const struct sq_batch *b;
    const struct sq_observer *obs;
    int rc;
};

struct act_shape {
    struct sq_buf **slot;
    size_t rows, cols;
    enum sq_buf_kind kind;
    bool wanted;
};

static bool is_gated(const struct sq_model *m)
{
    return m->config.family->names[SQ_R_GATE];
}

/* The one table of buffers: sizes, kinds and who needs them. */
static void act_shapes(const struct sq_model *m, const struct sq_runner_options *o, struct acts *a,
                       struct act_shape s[N_ACTS])
{
    const struct sq_config *c = &m->config;
    const bool quant = m->scheme != SQ_SCHEME_FLOAT, stat = m->scheme == SQ_SCHEME_W8A8_STATIC;
    const bool float_attn = !m->int8_attention, gated = is_gated(m);
    const size_t rows = (size_t)o->max_rows, outs = (size_t)o->max_out;
    const size_t hidden = (size_t)c->hidden, embed = (size_t)c->embed_dim, ffn = (size_t)c->ffn;
    const size_t heads = (size_t)c->n_heads * (size_t)c->head_dim;
    const size_t qkv = heads + 2 * (size_t)c->n_kv_heads * (size_t)c->head_dim;
    const struct act_shape all[] = {
        {&a->e, rows, embed, SQ_BUF_F32, m->project_in != NULL},
        {&a->x, rows, hidden, SQ_BUF_F32, true},
        {&a->h, rows, hidden, SQ_BUF_F32, c->pre_norm && !stat},
        {&a->h_q, rows, hidden, SQ_BUF_S8, quant},
        {&a->qkv, rows, qkv, SQ_BUF_F32, float_attn || m->rope},
        {&a->qkv_q, rows, qkv, SQ_BUF_S8, !float_attn},
        {&a->a, rows, heads, SQ_BUF_F32, float_attn},
        {&a->a_q, rows, heads, SQ_BUF_S8, quant},
        {&a->gu, rows, 2 * ffn, SQ_BUF_F32, gated},
        {&a->f, rows, ffn, SQ_BUF_F32, gated ? !quant : !stat},
        {&a->f_q, rows, ffn, SQ_BUF_S8, quant},
        {&a->last, outs, hidden, SQ_BUF_F32, true},
        {&a->last_e, outs, embed, SQ_BUF_F32, m->project_out != NULL},
        {&a->last_q, outs, embed, SQ_BUF_S8, m->head_int8},
        {&a->logits, outs, (size_t)c->vocab, SQ_BUF_F32, true},
    };
    _Static_assert(SQ_ARRAY_LEN(all) == N_ACTS, "every buffer has its row");
    for (size_t i = 0; i < N_ACTS; i++)
        s[i] = all[i];
}

static struct sq_kv_desc kv_desc(const struct sq_model *m, int n_blocks)
{
    const struct sq_config *c = &m->config;
    return (struct sq_kv_desc){.n_layers = (size_t)c->n_layers,
                               .n_kv_heads = (size_t)c->n_kv_heads,
                               .head_dim = (size_t)c->head_dim,
                               .n_blocks = (size_t)n_blocks,
                               .dtype = m->int8_attention ? SQ_I8 : SQ_F32};
}

void sq_runner_bytes(struct sq_model *m, const struct sq_runner_options *o, size_t *ret_activations,
                     size_t *ret_kv)
{
    struct acts a;
    struct act_shape s[N_ACTS];
    size_t bytes = 0;
    act_shapes(m, o, &a, s);
    for (size_t i = 0; i < N_ACTS; i++) {
        size_t row =
            s[i].kind == SQ_BUF_F32 ? s[i].cols * sizeof(float) : s[i].cols + sizeof(float);
        bytes += s[i].wanted ? s[i].rows * row : 0;
    }
    struct sq_kv_desc kv = kv_desc(m, o->n_kv_blocks);
    *ret_activations = bytes;
    *ret_kv = m->be->ops->kv_bytes(m->be, &kv);
}

static int make_buffers(struct sq_runner *r, struct sq_err *err)
{
    struct sq_backend *be = r->m->be;
    struct act_shape s[N_ACTS];
    act_shapes(r->m, &r->o, &r->act, s);
    for (size_t i = 0; i < N_ACTS; i++) {
        int rc =
            s[i].wanted ? be->ops->buf_new(be, s[i].kind, s[i].rows, s[i].cols, s[i].slot, err) : 0;
        if (rc)
            return rc;
    }
    struct sq_kv_desc kv = kv_desc(r->m, r->o.n_kv_blocks);
    int rc = be->ops->kv_new(be, &kv, &r->kv, err);
    const struct sq_step_limits l = {.max_rows = r->o.max_rows,
                                     .max_seqs = r->o.max_rows,
                                     .max_out = r->o.max_out,
                                     .max_blocks = r->o.n_kv_blocks,
                                     .max_context = r->m->config.max_positions,
                                     .n_heads = r->m->config.n_heads,
                                     .n_kv_heads = r->m->config.n_kv_heads,
                                     .head_dim = r->m->config.head_dim};
    return rc ? rc : be->ops->reserve(be, &l, err);
}

int sq_runner_new(struct sq_model *m, const struct sq_runner_options *o, struct sq_runner **ret,
                  struct sq_err *err)
{
    SQ_ASSERT(o->max_rows > 0 && o->max_out > 0 && o->n_kv_blocks > 0);
    struct sq_runner *r = sq_new(struct sq_runner);
    if (!r)
        return sq_fail(err, SQ_E_NOMEM, "no memory for the runner");
    r->m = m;
    r->o = *o;
    int rc = make_buffers(r, err);
    if (rc) {
        sq_runner_free(r);
        return rc;
    }
    *ret = r;
    return 0;
}

struct sq_runner *sq_runner_free(struct sq_runner *r)
{
    if (!r)
        return NULL;
    struct sq_backend *be = r->m->be;
    struct act_shape s[N_ACTS];
    act_shapes(r->m, &r->o, &r->act, s);
    for (size_t i = 0; i < N_ACTS; i++)
        be->ops->buf_free(be, *s[i].slot);
    be->ops->kv_free(be, r->kv);
    sq_free(r);
    return NULL;
}

/* --- the vocabulary of a block ---------------------------------------------------------------- */

static void embed(struct pass *p, struct sq_linear *table, struct sq_linear *pos, struct sq_buf *y)
{
    int offset = p->m->config.family->pos_offset;
    if (!p->rc)
        p->rc = p->ops->embed(p->be, p->b, table, pos, offset, y);
}

static void norm(struct pass *p, struct sq_norm *n, struct sq_buf *x, int n_rows, struct sq_buf *y,
                 struct sq_buf *y_q)
{
    if (!p->rc)
        p->rc = p->ops->norm(p->be, n, x, n_rows, y, y_q);
}

/* 0 stands for a step of each row. */
static float inverse(float step)
{
    return step > 0.0f ? 1.0f / step : 0.0f;
}

static void quant(struct pass *p, struct sq_buf *x, int n_rows, float step, struct sq_buf *y_q)
{
    if (!p->rc)
        p->rc = p->ops->quant_rows(p->be, x, n_rows, inverse(step), y_q);
}

static void linear(struct pass *p, struct sq_linear *l, struct sq_buf *x, int n_rows,
                   struct sq_buf *y)
{
    if (!p->rc)
        p->rc = p->ops->linear(p->be, l, x, n_rows, y);
}

/* What a linear with this input step reads, given the f32 tensor: that tensor, or its codes. */
static struct sq_buf *input(struct pass *p, struct sq_buf *x, struct sq_buf *x_q, float step)
{
    if (p->m->scheme == SQ_SCHEME_FLOAT)
        return x;
    quant(p, x, p->b->n_rows, step, x_q);
    return x_q;
}

/* norm(x) as the input of a linear; x stays. */
static struct sq_buf *pre_normed(struct pass *p, struct sq_norm *n)
{
    const struct acts *a = &p->r->act;
    if (p->m->scheme == SQ_SCHEME_W8A8_STATIC) {
        norm(p, n, a->x, p->b->n_rows, NULL, a->h_q);
        return a->h_q;
    }
    norm(p, n, a->x, p->b->n_rows, a->h, NULL);
    return input(p, a->h, a->h_q, 0.0f);
}

/* x = norm(x), and the input of the linear that follows. The very last norm has no such linear
 * (last = true). */
static struct sq_buf *post_normed(struct pass *p, struct sq_norm *n, bool last)
{
    const struct acts *a = &p->r->act;
    if (p->m->scheme == SQ_SCHEME_W8A8_STATIC) {
        norm(p, n, a->x, p->b->n_rows, a->x, last ? NULL : a->h_q);
        return a->h_q;
    }
    norm(p, n, a->x, p->b->n_rows, a->x, NULL);
    return last ? a->x : input(p, a->x, a->h_q, 0.0f);
}

/* q, k and v of the linear's input h, turned where positions are rotary: what attention reads. */
static struct sq_buf *projections(struct pass *p, const struct sq_layer *l, struct sq_buf *h)
{
    const struct acts *a = &p->r->act;
    struct sq_buf *qkv = p->m->int8_attention ? a->qkv_q : a->qkv;
    if (!p->m->rope) {
        linear(p, l->qkv, h, p->b->n_rows, qkv);
        return qkv;
    }
    linear(p, l->qkv, h, p->b->n_rows, a->qkv);
    if (!p->rc)
        p->rc = p->ops->rope(p->be, p->m->rope, &l->attn, p->b, a->qkv, qkv);
    return qkv;
}

/* Attention of all rows; returns the input of the output projection. */
static struct sq_buf *attention(struct pass *p, const struct sq_layer *l, struct sq_buf *qkv)
{
    const struct acts *a = &p->r->act;
    struct sq_buf *out = p->m->int8_attention ? a->a_q : a->a;
    if (!p->rc)
        p->rc = p->ops->kv_write(p->be, p->r->kv, &l->attn, p->b, qkv);
    if (!p->rc)
        p->rc = p->ops->attend(p->be, p->r->kv, &l->attn, p->b, qkv, out);
    return p->m->int8_attention ? out : input(p, a->a, a->a_q, l->o_step);
}

/* The wide middle of the feed-forward part; returns the input of its second linear. */
static struct sq_buf *widened(struct pass *p, const struct sq_layer *l, struct sq_buf *h)
{
    const struct acts *a = &p->r->act;
    const bool stat = p->m->scheme == SQ_SCHEME_W8A8_STATIC;
    struct sq_buf *f = p->m->scheme == SQ_SCHEME_FLOAT ? a->f : a->f_q;
    if (is_gated(p->m)) {
        linear(p, l->up, h, p->b->n_rows, a->gu);
        if (!p->rc)
            p->rc = p->ops->swiglu(p->be, a->gu, p->b->n_rows, inverse(l->down_step), f);
        return f;
    }
    linear(p, l->up, h, p->b->n_rows, stat ? f : a->f);
    return stat ? f : input(p, a->f, a->f_q, 0.0f);
}

/* Shows columns of x to calibration, without each sequence's first token where asked so. */
static void see(struct pass *p, int layer, enum sq_site site, struct sq_buf *x, size_t cols)
{
    for (int i = 0; p->obs && !p->rc && i < p->b->n_seqs; i++) {
        const struct sq_batch_seq *s = &p->b->seqs[i];
        int skip = p->obs->skip_first && s->pos0 == 0 ? 1 : 0;
        float *absmax = p->obs->absmax[layer * SQ_N_SITES + (int)site];
        if (s->n_rows > skip)
            p->rc = p->ops->observe(p->be, x, s->row0 + skip, s->n_rows - skip, 0, cols, absmax);
    }
}

/* One block. h is the input of qkv (post-norm: left by the block before); returns the next h. */
static struct sq_buf *block(struct pass *p, int i, struct sq_buf *h)
{
    const struct sq_config *c = &p->m->config;
    const struct sq_layer *l = &p->m->layers[i];
    const struct acts *a = &p->r->act;
    const int n_rows = p->b->n_rows;
    const size_t heads = (size_t)c->n_heads * (size_t)c->head_dim;
    const size_t kv_heads = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    struct sq_buf *qkv, *o, *f;

    if (c->pre_norm)
        h = pre_normed(p, l->norm1);
    see(p, i, SQ_SITE_QKV_IN, h, (size_t)c->hidden);
    qkv = projections(p, l, h);
    see(p, i, SQ_SITE_QKV_OUT, qkv, heads + 2 * kv_heads);
    o = attention(p, l, qkv);
    see(p, i, SQ_SITE_O_IN, o, heads);
    linear(p, l->o, o, n_rows, a->x);

    h = c->pre_norm ? pre_normed(p, l->norm2) : post_normed(p, l->norm1, false);
    see(p, i, SQ_SITE_UP_IN, h, (size_t)c->hidden);
    f = widened(p, l, h);
    see(p, i, SQ_SITE_DOWN_IN, f, (size_t)c->ffn);
    linear(p, l->down, f, n_rows, a->x);
    return c->pre_norm ? NULL : post_normed(p, l->norm2, i + 1 == c->n_layers);
}

/* x = token embedding + position embedding. With project_in the token's part is narrower than x, so
 * that x starts as the position's part and the projection adds to it. */
static void embeddings(struct pass *p)
{
    const struct sq_model *m = p->m;
    const struct acts *a = &p->r->act;
    if (!m->project_in) {
        embed(p, m->embed, m->pos, a->x);
        return;
    }
    embed(p, m->embed, NULL, a->e);
    embed(p, NULL, m->pos, a->x);
    linear(p, m->project_in, a->e, p->b->n_rows, a->x);
}

/* Logits of the rows that are wanted; nothing after the last block runs for the others. */
static void head(struct pass *p)
{
    const struct sq_model *m = p->m;
    const struct acts *a = &p->r->act;
    const int n_out = p->b->n_out;
    struct sq_buf *y = a->last;
    if (!p->rc)
        p->rc = p->ops->gather(p->be, p->b, a->x, y);
    if (m->final_norm)
        norm(p, m->final_norm, y, n_out, y, NULL);
    if (m->project_out) {
        linear(p, m->project_out, y, n_out, a->last_e);
        y = a->last_e;
    }
    if (m->head_int8) {
        quant(p, y, n_out, 0.0f, a->last_q);
        y = a->last_q;
    }
    linear(p, m->head, y, n_out, a->logits);
}

static int device_failed(struct sq_backend *be, int rc, struct sq_err *err)
{
    if (!rc)
        return 0;
    const char *why = be->ops->fault(be);
    return sq_fail(err, SQ_E_DEVICE, "the backend failed in a step: %s",
                   why[0] ? why : sq_code_text(rc));
}

static void check_batch(const struct sq_runner *r, const struct sq_batch *b)
{
    SQ_ASSERT(b->n_rows > 0 && b->n_rows <= r->o.max_rows);
    SQ_ASSERT(b->n_seqs > 0 && b->n_seqs <= b->n_rows);
    SQ_ASSERT(b->n_out >= 0 && b->n_out <= r->o.max_out && b->n_out <= b->n_rows);
}

/* The whole pass. The list depends on the model, n_out > 0 and obs alone: what a device records. */
static void pass_ops(struct pass *p)
{
    struct sq_buf *h = NULL;
    embeddings(p);
    if (!p->m->config.pre_norm)
        h = input(p, p->r->act.x, p->r->act.h_q, p->m->layers[0].qkv_step);
    for (int i = 0; i < p->m->config.n_layers; i++)
        h = block(p, i, h);
    if (p->b->n_out > 0)
        head(p);
}

int sq_forward(struct sq_runner *r, const struct sq_batch *b, const struct sq_observer *obs,
               struct sq_err *err)
{
    check_batch(r, b);
    SQ_ASSERT(!obs || r->m->scheme == SQ_SCHEME_FLOAT);
    struct pass p = {.r = r, .m = r->m, .ops = r->m->be->ops, .be = r->m->be, .b = b, .obs = obs};
    p.rc = p.ops->step_begin(p.be, b, obs ? NULL : r);
    if (p.rc == SQ_STEP_REPLAYED)
        p.rc = 0;
    else
        pass_ops(&p);
    int rc = p.ops->step_end(p.be);
    return device_failed(p.be, p.rc ? p.rc : rc, err);
}

int sq_runner_logits(struct sq_runner *r, int n_out, const float **ret, struct sq_err *err)
{
    SQ_ASSERT(n_out > 0 && n_out <= r->o.max_out);
    struct sq_backend *be = r->m->be;
    return device_failed(be, be->ops->view(be, r->act.logits, n_out, ret), err);
}

int sq_runner_argmax(struct sq_runner *r, int n_out, int32_t *ids, struct sq_err *err)
{
    SQ_ASSERT(n_out > 0 && n_out <= r->o.max_out);
    struct sq_backend *be = r->m->be;
    int rc = be->ops->step_begin(be, NULL, NULL);
    rc = rc ? rc : be->ops->argmax(be, r->act.logits, n_out, ids);
    int end = be->ops->step_end(be);
    return device_failed(be, rc ? rc : end, err);
}
