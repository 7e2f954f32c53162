/* A step: its rows go up in one copy to fixed addresses, so that a decode step recorded as a graph can be replayed for other rows.
 *
 * Recordings are kept by (key, rows rounded up, pieces of the longest sequence rounded up). Rows that round up are no rows: sequence -1, token 0;
 * kernels compute them like the others, from initialised memory, and write nothing outside their own row. */
#include <string.h>

#include "cuda/cuda.h"
#include "engine/base/check.h"
#include "engine/base/mem.h"
#include "engine/base/num.h"

/* --- room --- */

/* Words of the step's arrays behind each other; blocks last, so that one copy takes what is used. */
static bool layout(struct sq_cuda_step *s)
{
    const size_t rows = (size_t)s->max.max_rows, seqs = (size_t)s->max.max_seqs;
    const size_t sizes[] = {rows, rows, rows, (size_t)s->max.max_out, seqs};
    size_t *const at[] = {&s->at_ids, &s->at_pos, &s->at_row_seq, &s->at_out, &s->at_seq};
    size_t words = 0, fours;
    for (size_t i = 0; i < SQ_ARRAY_LEN(at); i++) {
        *at[i] = words;
        words += sq_round_up(sizes[i], 4);
    }
    s->at_dec = words;
    if (!sq_mul_size(rows, 4, &fours) || !sq_add_size(words, fours, &s->at_tiles) ||
        !sq_add_size(s->at_tiles, fours, &words))
        return false;
    s->at_blocks = words;
    return sq_add_size(words, (size_t)s->max.max_blocks, &s->words) && s->words < SIZE_MAX / 16;
}

static void set_pointers(struct sq_cuda_step *s)
{
    const int32_t *m = s->mem;
    s->dev = (struct sq_gpu_step){.ids = m + s->at_ids,
                                  .pos = m + s->at_pos,
                                  .row_seq = m + s->at_row_seq,
                                  .out_rows = m + s->at_out,
                                  .seq_blocks = m + s->at_seq,
                                  .blocks = m + s->at_blocks,
                                  .dec = (const int4 *)(m + s->at_dec),
                                  .tiles = (const int4 *)(m + s->at_tiles)};
}

static int step_memory(struct sq_cuda *c, struct sq_err *err)
{
    struct sq_cuda_step *s = &c->step;
    void *p;
    if (!layout(s))
        return sq_fail(err, SQ_E_LIMIT, "steps of %d rows and %d blocks are too large",
                       s->max.max_rows, s->max.max_blocks);
    int rc = sq_cuda_alloc(c, SQ_CUDA_WORK, s->words * 4, "the rows of a step", &p, err);
    if (rc)
        return rc;
    s->mem = p;
    set_pointers(s);
    rc = sq_cuda_zero(c, p, s->words * 4, err);
    for (int i = 0; i < 2 && !rc && !c->o.plan; i++) {
        cudaError_t e = cudaHostAlloc((void **)&s->host[i], s->words * 4, cudaHostAllocDefault);
        if (e == cudaSuccess)
            e = cudaEventCreateWithFlags(&s->copied[i], cudaEventDisableTiming);
        rc = sq_cuda_fail(c, e, "pinned memory for the rows of a step", err);
    }
    return rc;
}

/* Partial results: one for each row that attends alone, head and piece; a piece holds 8 blocks, and each sequence rounds up once. */
static int attention_memory(struct sq_cuda *c, struct sq_err *err)
{
    const struct sq_step_limits *m = &c->step.max;
    size_t per_seq = sq_div_up((size_t)m->max_context, SQ_ATTN_PIECE);
    size_t pieces = (size_t)m->max_blocks / (SQ_ATTN_PIECE / SQ_KV_BLOCK) + (size_t)m->max_seqs, n;
    if (sq_mul_size(per_seq, (size_t)m->max_seqs, &n))
        pieces = SQ_MIN(pieces, n);
    void *p;
    if (!sq_mul_size(pieces, (size_t)m->n_heads, &n) ||
        !sq_mul_size(n, (size_t)sq_gpu_attend_part_floats(m->head_dim) * sizeof(float),
                     &c->parts_bytes) ||
        c->parts_bytes > SIZE_MAX / 2)
        return sq_fail(err, SQ_E_LIMIT, "attention over %zu pieces is too large", pieces);
    int rc =
        sq_cuda_alloc(c, SQ_CUDA_WORK, c->parts_bytes, "partial results of attention", &p, err);
    if (rc)
        return rc;
    c->parts = p;
    c->counter_bytes = (size_t)m->max_rows * (size_t)m->n_kv_heads * sizeof(int32_t);
    rc = sq_cuda_alloc(c, SQ_CUDA_WORK, c->counter_bytes, "counters of attention", &p, err);
    if (rc)
        return rc;
    c->counters = p;
    return sq_cuda_zero(c, p, c->counter_bytes, err);
}

static int results_memory(struct sq_cuda *c, struct sq_err *err)
{
    size_t cols = 1;
    void *p;
    for (const struct sq_buf *b = c->bufs; b; b = b->next)
        if (b->kind == SQ_BUF_F32)
            cols = SQ_MAX(cols, b->cols);
    c->ids_bytes = (size_t)c->step.max.max_out * sizeof(int32_t);
    int rc = sq_cuda_alloc(c, SQ_CUDA_WORK, c->ids_bytes, "token ids", &p, err);
    if (rc)
        return rc;
    c->ids = p;
    c->best_bytes = (size_t)c->step.max.max_out * sizeof *c->best;
    rc = sq_cuda_alloc(c, SQ_CUDA_WORK, c->best_bytes, "maxima of logits", &p, err);
    if (rc)
        return rc;
    c->best = p;
    rc = sq_cuda_zero(c, p, c->best_bytes, err);
    if (rc)
        return rc;
    c->absmax_bytes = cols * sizeof(float);
    rc = sq_cuda_alloc(c, SQ_CUDA_WORK, c->absmax_bytes, "maxima of calibration", &p, err);
    if (rc)
        return rc;
    c->absmax = p;
    if (c->o.plan)
        return 0;
    return sq_cuda_fail(c, cudaHostAlloc((void **)&c->host_ids, c->ids_bytes, cudaHostAllocDefault),
                        "pinned memory for token ids", err);
}

static int matmul_memory(struct sq_cuda *c, struct sq_err *err)
{
    const size_t rows = (size_t)c->step.max.max_rows;
    size_t scratch = SQ_CUDA_ALIGN, convert = SQ_CUDA_ALIGN;
    for (const struct sq_linear *l = c->linears; l; l = l->next) {
        if (l->d.table)
            continue;
        const size_t least = sq_cuda_linear_scratch(l, 1), want = sq_cuda_linear_scratch(l, rows);
        scratch = SQ_MAX(scratch, SQ_MAX(least, SQ_MIN(want, SQ_CUDA_SCRATCH_MAX)));
        convert = SQ_MAX(convert, sq_cuda_linear_convert(l, rows));
    }
    int rc = sq_cuda_alloc(c, SQ_CUDA_WORK, scratch, "results of matmuls", &c->scratch, err);
    if (rc)
        return rc;
    c->scratch_bytes = scratch;
    rc = sq_cuda_alloc(c, SQ_CUDA_WORK, convert, "inputs of float matmuls and of trials",
                       &c->convert, err);
    if (rc)
        return rc;
    c->convert_bytes = convert;
    rc = sq_cuda_zero(c, c->convert, convert, err); /* what is timed reads zeros */
    for (struct sq_linear *l = c->linears; l && !rc && !c->o.plan; l = l->next)
        rc = l->d.table ? 0 : sq_cuda_linear_prepare(c, l, c->step.max.max_rows, err);
    if (!rc && !c->o.plan)
        (void)!sq_lt_save(c->lt, NULL); /* without the file the next start times again */
    return rc;
}

int sq_cuda_reserve(struct sq_backend *be, const struct sq_step_limits *l, struct sq_err *err)
{
    struct sq_cuda *c = sq_cuda_of(be);
    SQ_ASSERT(l->max_rows > 0 && l->max_seqs > 0 && l->max_out > 0 && l->max_blocks > 0);
    sq_cuda_step_done(c); /* a backend may be reserved again for another runner */
    c->step.max = *l;
    int rc = step_memory(c, err);
    if (!rc)
        rc = attention_memory(c, err);
    if (!rc)
        rc = results_memory(c, err);
    if (!rc)
        rc = matmul_memory(c, err);
    if (!rc && !c->o.plan)
        rc = sq_cuda_fail(c, cudaStreamSynchronize(c->st), "the device", err);
    if (rc)
        sq_cuda_step_done(c);
    return rc;
}

void sq_cuda_step_done(struct sq_cuda *c)
{
    struct sq_cuda_step *s = &c->step;
    for (int i = 0; i < s->n_rec; i++)
        (void)cudaGraphExecDestroy(s->rec[i].exec);
    for (int i = 0; i < 2; i++) {
        if (s->copied[i])
            (void)cudaEventDestroy(s->copied[i]);
        if (s->host[i])
            (void)cudaFreeHost(s->host[i]);
    }
    if (c->host_ids)
        (void)cudaFreeHost(c->host_ids);
    sq_cuda_free(c, SQ_CUDA_WORK, s->mem, s->words * 4);
    sq_cuda_free(c, SQ_CUDA_WORK, c->parts, c->parts_bytes);
    sq_cuda_free(c, SQ_CUDA_WORK, c->counters, c->counter_bytes);
    sq_cuda_free(c, SQ_CUDA_WORK, c->ids, c->ids_bytes);
    sq_cuda_free(c, SQ_CUDA_WORK, c->best, c->best_bytes);
    sq_cuda_free(c, SQ_CUDA_WORK, c->absmax, c->absmax_bytes);
    sq_cuda_free(c, SQ_CUDA_WORK, c->scratch, c->scratch_bytes);
    sq_cuda_free(c, SQ_CUDA_WORK, c->convert, c->convert_bytes);
    *s = (struct sq_cuda_step){0};
    c->host_ids = NULL;
    c->parts = NULL;
    c->counters = NULL;
    c->ids = NULL;
    c->best = NULL;
    c->absmax = NULL;
    c->scratch = c->convert = NULL;
}

/* --- the rows of a step --- */

static int round_rows(int n)
{
    return sq_lt_bucket(n);
}

static int round_pieces(int n)
{
    int p = 1;
    while (p < n)
        p *= 2;
    return p;
}

static int pieces_of(const struct sq_batch_seq *s)
{
    return (s->pos0 + s->n_rows - 1) / SQ_ATTN_PIECE + 1;
}

/* Rows of its own kernel, or tiles. */
static void split_attention(struct sq_cuda_step *s, int32_t *h)
{
    const struct sq_batch *b = s->b;
    int32_t parts = 0, *dec = h + s->at_dec, *tile = h + s->at_tiles;
    s->n_dec = s->n_tiles = 0;
    s->n_pieces = 1;
    for (int i = 0; i < b->n_seqs; i++) {
        const struct sq_batch_seq *q = &b->seqs[i];
        if (q->n_rows == 1) {
            dec[0] = q->row0;
            dec[1] = q->pos0;
            dec[2] = h[s->at_seq + (size_t)i];
            dec[3] = parts;
            dec += 4, s->n_dec++;
            parts += pieces_of(q);
            s->n_pieces = SQ_MAX(s->n_pieces, pieces_of(q));
            continue;
        }
        for (int r = 0; r < q->n_rows; r += SQ_GPU_TILE_ROWS, tile += 4, s->n_tiles++) {
            tile[0] = q->row0 + r;
            tile[1] = SQ_MIN(q->n_rows - r, SQ_GPU_TILE_ROWS);
            tile[2] = i;
            tile[3] = q->pos0 + r;
        }
    }
}

/* Writes the arrays; returns the words in use. */
static size_t fill(struct sq_cuda_step *s, int32_t *h)
{
    const struct sq_batch *b = s->b;
    size_t n = 0;
    memcpy(h + s->at_ids, b->ids, (size_t)b->n_rows * 4);
    memcpy(h + s->at_pos, b->pos, (size_t)b->n_rows * 4);
    if (b->n_out)
        memcpy(h + s->at_out, b->out_rows, (size_t)b->n_out * 4);
    for (int i = 0; i < b->n_seqs; i++) {
        const struct sq_batch_seq *q = &b->seqs[i];
        const size_t n_blocks = sq_div_up((size_t)(q->pos0 + q->n_rows), SQ_KV_BLOCK);
        for (int r = 0; r < q->n_rows; r++)
            h[s->at_row_seq + (size_t)(q->row0 + r)] = i;
        SQ_ASSERT(n + n_blocks <= (size_t)s->max.max_blocks);
        h[s->at_seq + (size_t)i] = (int32_t)n;
        memcpy(h + s->at_blocks + n, q->blocks, n_blocks * 4);
        n += n_blocks;
    }
    split_attention(s, h);
    return s->at_blocks + n;
}

/* Rows beyond the batch's, up to n. */
static void pad(struct sq_cuda_step *s, int32_t *h, int n)
{
    for (int r = s->b->n_rows; r < n; r++) {
        const size_t i = (size_t)r;
        h[s->at_ids + i] = h[s->at_pos + i] = 0;
        h[s->at_row_seq + i] = -1;
        h[s->at_out + i] = 0;
        memcpy(h + s->at_dec + 4 * i, (const int32_t[]){-1, 0, 0, 0}, 16);
    }
}

/* Decode rows only, all of them wanted: what may be recorded. */
static bool recordable(const struct sq_cuda *c, const struct sq_batch *b)
{
    if (c->o.no_graphs || b->n_rows != b->n_seqs || b->n_out != b->n_rows)
        return false;
    for (int i = 0; i < b->n_seqs; i++)
        if (b->seqs[i].n_rows != 1)
            return false;
    return true;
}

static struct sq_cuda_recording *find(struct sq_cuda_step *s, const void *key)
{
    for (int i = 0; i < s->n_rec; i++)
        if (s->rec[i].key == key && s->rec[i].n_rows == s->n_rows &&
            s->rec[i].n_pieces == s->n_pieces)
            return &s->rec[i];
    return NULL;
}

static int send_rows(struct sq_cuda *c, bool padded)
{
    struct sq_cuda_step *s = &c->step;
    const int i = s->turn;
    int32_t *h = s->host[i];
    int rc = sq_cuda_check(c, cudaEventSynchronize(s->copied[i]), "the rows of a step");
    if (rc)
        return rc;
    size_t words = fill(s, h);
    s->n_rows = s->b->n_rows;
    if (padded) {
        s->n_rows = SQ_MIN(round_rows(s->n_rows), SQ_MIN(s->max.max_rows, s->max.max_out));
        s->n_pieces = round_pieces(s->n_pieces);
        pad(s, h, s->n_rows);
        s->n_dec = s->n_rows;
    }
    rc = sq_cuda_check(c, cudaMemcpyAsync(s->mem, h, words * 4, cudaMemcpyHostToDevice, c->st),
                       "the rows of a step");
    s->turn = !i;
    return rc ? rc : sq_cuda_check(c, cudaEventRecord(s->copied[i], c->st), "the rows of a step");
}

int sq_cuda_step_begin(struct sq_backend *be, const struct sq_batch *b, const void *key)
{
    struct sq_cuda *c = sq_cuda_of(be);
    struct sq_cuda_step *s = &c->step;
    if (c->fault[0])
        return -SQ_E_DEVICE;
    s->b = b;
    if (!b || b->n_rows == 0)
        return 0;
    SQ_ASSERT(b->n_rows <= s->max.max_rows && b->n_seqs <= s->max.max_seqs &&
              b->n_out <= s->max.max_out);
    const bool record = key && recordable(c, b);
    int rc = send_rows(c, record);
    if (rc || !record)
        return rc;
    const struct sq_cuda_recording *r = find(s, key);
    if (r) {
        rc = sq_cuda_check(c, cudaGraphLaunch(r->exec, c->st), "a recorded step");
        return rc ? rc : SQ_STEP_REPLAYED;
    }
    if (s->n_rec == SQ_CUDA_MAX_RECORDINGS)
        return 0; /* runs like any other step, with rows rounded up */
    rc = sq_cuda_check(c, cudaStreamBeginCapture(c->st, cudaStreamCaptureModeThreadLocal),
                       "recording a step");
    if (rc)
        return rc;
    s->rec[s->n_rec] =
        (struct sq_cuda_recording){.key = key, .n_rows = s->n_rows, .n_pieces = s->n_pieces};
    s->recording = true;
    return 0;
}

/* Ends the capture in any case; keeps and launches what was recorded if all went well. */
static int end_recording(struct sq_cuda *c, int rc)
{
    struct sq_cuda_step *s = &c->step;
    struct sq_cuda_recording *r = &s->rec[s->n_rec];
    cudaGraph_t graph = NULL;
    s->recording = false;
    int end = sq_cuda_check(c, cudaStreamEndCapture(c->st, &graph), "recording a step");
    rc = rc ? rc : end;
    if (!rc)
        rc = sq_cuda_check(c, cudaGraphInstantiate(&r->exec, graph, 0), "recording a step");
    if (!rc)
        s->n_rec++;
    if (graph)
        (void)cudaGraphDestroy(graph);
    return rc ? rc : sq_cuda_check(c, cudaGraphLaunch(r->exec, c->st), "a recorded step");
}

int sq_cuda_step_end(struct sq_backend *be)
{
    struct sq_cuda *c = sq_cuda_of(be);
    int rc = c->fault[0] ? -SQ_E_DEVICE : sq_cuda_flush(c);
    c->wait.kind = SQ_PEND_NONE;
    if (c->step.recording)
        rc = end_recording(c, rc);
    c->step.b = NULL;
    return rc;
}

int sq_cuda_rows(const struct sq_cuda *c, int n)
{
    const struct sq_cuda_step *s = &c->step;
    return s->b && n == s->b->n_rows ? s->n_rows : n;
}
