/* Rotation, cache and attention. In steps of decode rows the three become one launch. */
#include "cuda/cuda.h"
#include "engine/base/check.h"

static struct sq_gpu_attn numbers(const struct sq_attn *a)
{
    return (struct sq_gpu_attn){.layer = a->layer,
                                .n_heads = a->n_heads,
                                .n_kv_heads = a->n_kv_heads,
                                .head_dim = a->head_dim,
                                .score_mul = a->score_mul,
                                .out_mul = a->out_mul,
                                .q_inv = a->q_inv,
                                .k_inv = a->k_inv,
                                .v_inv = a->v_inv};
}

static int rope_now(struct sq_cuda *c, struct sq_rope *r, const struct sq_attn *a, int n_rows,
                    struct sq_buf *x, struct sq_buf *y)
{
    const struct sq_gpu_attn n = numbers(a);
    return sq_cuda_check(c,
                         sq_gpu_rope_rows(c->st, &c->step.dev, n_rows, &r->r, &n, x->f,
                                          y->kind == SQ_BUF_F32 ? y->f : NULL, y->code),
                         "rope");
}

static int write_now(struct sq_cuda *c, struct sq_kv *kv, const struct sq_attn *a, int n_rows,
                     struct sq_buf *qkv)
{
    const struct sq_gpu_attn n = numbers(a);
    return sq_cuda_check(c,
                         sq_gpu_kv_write(c->st, &c->step.dev, n_rows, &kv->kv, &n, qkv->code,
                                         qkv->f, (int)qkv->cols),
                         "kv_write");
}

int sq_cuda_attention_now(struct sq_cuda *c, const struct sq_cuda_wait *w)
{
    int rc = w->rope ? rope_now(c, w->rope, w->a, w->n_rows, w->x, w->y) : 0;
    if (!rc && w->kind == SQ_PEND_KV)
        rc = write_now(c, w->kv, w->a, w->n_rows, w->y);
    return rc;
}

int sq_cuda_rope(struct sq_backend *be, struct sq_rope *r, const struct sq_attn *a,
                 const struct sq_batch *b, struct sq_buf *x, struct sq_buf *y)
{
    struct sq_cuda *c = sq_cuda_of(be);
    const int rows = sq_cuda_rows(c, b->n_rows);
    SQ_ASSERT(c->step.b == b && x->kind == SQ_BUF_F32 && x->cols == y->cols);
    int rc = c->fault[0] ? -SQ_E_DEVICE : sq_cuda_flush(c);
    if (rc || rows == 0)
        return rc;
    if (y->kind == SQ_BUF_S8 && c->step.n_tiles == 0) {
        c->wait = (struct sq_cuda_wait){
            .kind = SQ_PEND_ROPE, .rope = r, .a = a, .x = x, .y = y, .n_rows = rows};
        return 0;
    }
    return rope_now(c, r, a, rows, x, y);
}

int sq_cuda_kv_write(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                     const struct sq_batch *b, struct sq_buf *qkv)
{
    struct sq_cuda *c = sq_cuda_of(be);
    const int rows = sq_cuda_rows(c, b->n_rows);
    SQ_ASSERT(c->step.b == b && (qkv->kind == SQ_BUF_F32) == (kv->kv.is_f32 != 0));
    if (c->fault[0])
        return -SQ_E_DEVICE;
    struct sq_cuda_wait *w = &c->wait;
    if (w->kind == SQ_PEND_ROPE && w->y == qkv && w->a == a) {
        w->kind = SQ_PEND_KV;
        w->kv = kv;
        return 0;
    }
    int rc = sq_cuda_flush(c);
    if (rc || rows == 0)
        return rc;
    if (c->step.n_tiles == 0) {
        *w = (struct sq_cuda_wait){.kind = SQ_PEND_KV, .kv = kv, .a = a, .y = qkv, .n_rows = rows};
        return 0;
    }
    return write_now(c, kv, a, rows, qkv);
}

int sq_cuda_attend(struct sq_backend *be, struct sq_kv *kv, const struct sq_attn *a,
                   const struct sq_batch *b, struct sq_buf *qkv, struct sq_buf *out)
{
    struct sq_cuda *c = sq_cuda_of(be);
    SQ_ASSERT(c->step.b == b);
    if (c->fault[0])
        return -SQ_E_DEVICE;
    const struct sq_cuda_wait w = c->wait;
    const bool fused = w.kind == SQ_PEND_KV && w.y == qkv && w.kv == kv && w.a == a;
    int rc = fused ? 0 : sq_cuda_flush(c);
    c->wait.kind = SQ_PEND_NONE;
    if (rc || b->n_rows == 0)
        return rc;
    struct sq_gpu_attend g = {.s = &c->step.dev,
                              .kv = &kv->kv,
                              .a = numbers(a),
                              .n_dec = c->step.n_dec,
                              .n_pieces = c->step.n_pieces,
                              .n_tiles = c->step.n_tiles,
                              .q = qkv->code,
                              .qf = qkv->f,
                              .ld_qf = (int)qkv->cols,
                              .out = out->code,
                              .out_f = out->f,
                              .ld_out = (int)out->cols,
                              .fused_write = fused,
                              .parts = c->parts,
                              .counters = c->counters,
                              .n_sms = c->device.n_sms};
    if (fused && w.rope) {
        g.rope_x = w.x->f;
        g.ld_rope_x = (int)w.x->cols;
        g.rope = w.rope->r;
    }
    return sq_cuda_check(c, sq_gpu_attend(c->st, &g), "attention");
}
