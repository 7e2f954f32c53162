/* Places for a kernel's registers.
 *
 * PTX has a register for each value, thousands of them; two that are never needed at the same instruction share a place,
 * so that what a warp works on fits the processor's caches. Lanes go their own ways, but each has its own part of a
 * place, so what is needed behind an instruction is asked of the program, not of the lanes.
 *
 * A register that may be read before it was set is needed from the entry on: its place is not shared with an earlier one
 * and is filled when a block starts. */
#include "sg_ptx_decode.h"

#include <stdlib.h>

enum { N_CLASSES = 5, NONE = -1 };

struct reg { uint32_t at, size, first, last; int32_t next_first, next_last; };

struct part { uint32_t from, to, *next, n_next; }; /* a basic block */

struct regs {
    struct decoder *d;
    struct reg *reg;
    int32_t *id; /* of the register at 4 * i, or NONE */
    uint32_t n, n_words, n_parts;
    struct part *part;
    uint32_t *part_of;      /* the part that starts at an instruction, + 1 */
    uint64_t *in, *out;     /* per part: the registers needed before and behind it */
    uint64_t *uses, *sets;  /* per part: those that it reads first; those that it sets first */
};

/* ---- registers of an instruction --------------------------------------------------------------------------------- */

static int32_t *id_at(const struct regs *r, int32_t off, bool is_own)
{
    return is_own && off >= (int32_t)r->d->first_reg ? &r->id[off / 4] : NULL;
}

static int32_t *id_of(const struct regs *r, const struct sg_opnd *o) { return id_at(r, o->off, o->kind != SG_O_SINK); }

static void number(struct regs *r, int32_t *id, int32_t off, uint32_t size)
{
    if (!id || *id != NONE)
        return;
    *id = (int32_t)r->n;
    r->reg[r->n++] = (struct reg){.at = (uint32_t)off, .size = size, .first = UINT32_MAX};
}

static void number_all(struct regs *r)
{
    for (uint32_t i = 0; i < r->d->n_instr; i++) {
        const struct sg_instr *in = &r->d->instr[i];
        number(r, id_at(r, in->guard, true), in->guard, 4);
        for (unsigned j = 0; j < in->n_ops; j++) {
            const struct sg_opnd *o = &in->op[j];
            number(r, id_of(r, o), o->off, o->kind == SG_O_PRED ? 4 : o->size * (uint32_t)SG_LANES);
        }
    }
}

/* Does the instruction set its operand j in all lanes that come here, whatever was there before? */
static bool is_set(const struct sg_instr *in, unsigned j)
{
    return in->sets_first && in->guard < 0 && j < in->count[0] && in->op[j].kind != SG_O_ADDR;
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */

static bool is_call(const struct sg_instr *in) { return in->fn == sg_x_call || in->fn == sg_x_call_pointer; }

static bool ends_part(const struct sg_instr *in)
{
    return in->fn == sg_x_bra || in->fn == sg_x_brx || in->fn == sg_x_exit || in->fn == sg_x_ret || is_call(in);
}

/* Tells with about each place to which an instruction that ends a part may send lanes. */
static void for_each_target(struct regs *r, const struct sg_instr *in, void (*with)(struct regs *r, uint32_t to))
{
    const struct decoder *d = r->d;
    const struct sg_branch_table *table = in->fn == sg_x_brx ? in->ext : NULL;
    if (in->fn == sg_x_bra || in->fn == sg_x_call)
        with(r, in->target);
    for (uint32_t i = 0; table && i < table->n; i++)
        with(r, table->target[i]);
    for (uint32_t i = 0; in->fn == sg_x_call_pointer && i < d->code->n_targets; i++)
        with(r, d->code->targets[i].entry);
    for (uint32_t i = 0; in->fn == sg_x_ret && i < d->n_instr; i++) /* behind any call */
        if (is_call(&d->instr[i]))
            with(r, i + 1);
}

static void mark_start(struct regs *r, uint32_t at) { r->part_of[at] = 1; }

static void mark_starts(struct regs *r)
{
    mark_start(r, 0);
    mark_start(r, r->d->f->entry);
    for (uint32_t i = 0; i < r->d->n_instr; i++)
        if (ends_part(&r->d->instr[i])) {
            for_each_target(r, &r->d->instr[i], mark_start);
            mark_start(r, i + 1);
        }
}

static void add_next(struct regs *r, uint32_t at)
{
    struct part *part = &r->part[r->n_parts - 1];
    part->next = realloc(part->next, (part->n_next + 1) * sizeof(*part->next));
    part->next[part->n_next++] = r->part_of[at] - 1;
}

static void find_parts(struct regs *r)
{
    const struct decoder *d = r->d;
    uint32_t n = 0;
    mark_starts(r);
    for (uint32_t i = 0; i < d->n_instr; i++)
        if (r->part_of[i])
            r->part_of[i] = ++n;
    r->part = calloc(n, sizeof(*r->part));
    for (uint32_t i = 0; i < d->n_instr; i++) {
        const struct sg_instr *in = &d->instr[i];
        if (r->part_of[i])
            r->part[r->n_parts++].from = i;
        r->part[r->n_parts - 1].to = i + 1;
        if (ends_part(in))
            for_each_target(r, in, add_next);
        if (i + 1 < d->n_instr && r->part_of[i + 1] && (!ends_part(in) || in->guard >= 0))
            add_next(r, i + 1);
    }
}

/* ---- what is needed where ---------------------------------------------------------------------------------------- */

static void put(uint64_t *set, int32_t i) { set[i / 64] |= 1ull << i % 64; }
static bool has(const uint64_t *set, int32_t i) { return set[i / 64] >> i % 64 & 1; }

static void use(struct regs *r, uint32_t p, const int32_t *id)
{
    if (id && !has(r->sets + (size_t)p * r->n_words, *id))
        put(r->uses + (size_t)p * r->n_words, *id);
}

static void sum_up_part(struct regs *r, uint32_t p)
{
    uint64_t *sets = r->sets + (size_t)p * r->n_words;
    for (uint32_t i = r->part[p].from; i < r->part[p].to; i++) {
        const struct sg_instr *in = &r->d->instr[i];
        use(r, p, id_at(r, in->guard, true));
        for (unsigned j = 0; j < in->n_ops; j++)
            if (!is_set(in, j))
                use(r, p, id_of(r, &in->op[j]));
        for (unsigned j = 0; j < in->n_ops; j++)
            if (is_set(in, j) && id_of(r, &in->op[j]))
                put(sets, *id_of(r, &in->op[j]));
    }
}

static bool update_part(struct regs *r, uint32_t p)
{
    const struct part *part = &r->part[p];
    const size_t at = (size_t)p * r->n_words;
    bool changed = false;
    for (uint32_t j = 0; j < part->n_next; j++)
        for (uint32_t i = 0; i < r->n_words; i++)
            r->out[at + i] |= r->in[(size_t)part->next[j] * r->n_words + i];
    for (uint32_t i = 0; i < r->n_words; i++) {
        const uint64_t in = r->uses[at + i] | (r->out[at + i] & ~r->sets[at + i]);
        changed = changed || in != r->in[at + i];
        r->in[at + i] = in;
    }
    return changed;
}

static void find_needs(struct regs *r)
{
    bool changed = true;
    for (uint32_t p = 0; p < r->n_parts; p++)
        sum_up_part(r, p);
    while (changed) {
        changed = false;
        for (uint32_t p = r->n_parts; p-- > 0;)
            changed = update_part(r, p) || changed;
    }
}

/* ---- from where to where a register is needed -------------------------------------------------------------------- */

static void extend(struct regs *r, const int32_t *id, uint32_t i)
{
    if (!id)
        return;
    struct reg *reg = &r->reg[*id];
    reg->first = i < reg->first ? i : reg->first;
    reg->last = i > reg->last ? i : reg->last;
}

static void extend_all(struct regs *r, const uint64_t *set, uint32_t i)
{
    for (uint32_t w = 0; w < r->n_words; w++)
        for (uint64_t left = set[w]; left; left &= left - 1) {
            const int32_t id = (int32_t)(w * 64) + __builtin_ctzll(left);
            extend(r, &id, i);
        }
}

static void find_ranges(struct regs *r)
{
    for (uint32_t i = 0; i < r->d->n_instr; i++) {
        const struct sg_instr *in = &r->d->instr[i];
        extend(r, id_at(r, in->guard, true), i);
        for (unsigned j = 0; j < in->n_ops; j++)
            extend(r, id_of(r, &in->op[j]), i);
    }
    for (uint32_t p = 0; p < r->n_parts; p++) {
        extend_all(r, r->in + (size_t)p * r->n_words, r->part[p].from);
        extend_all(r, r->out + (size_t)p * r->n_words, r->part[p].to - 1);
    }
}

/* ---- places ------------------------------------------------------------------------------------------------------ */

struct places { uint32_t *free[N_CLASSES]; uint32_t n_free[N_CLASSES]; };

static int class_of(const struct reg *reg) { return reg->size == 4 ? 0 : __builtin_ctz(reg->size) - 5; }

static void take_place(struct regs *r, struct places *p, struct reg *reg)
{
    const int c = class_of(reg);
    reg->at = p->n_free[c] ? p->free[c][--p->n_free[c]] : sg_d_take_regs(r->d, reg->size);
}

static void give_places(struct regs *r)
{
    const uint32_t n = r->d->n_instr;
    const uint64_t *at_entry = r->in + (size_t)(r->part_of[r->d->f->entry] - 1) * r->n_words;
    struct places p = {0};
    int32_t *first = malloc(n * sizeof(*first)), *last = malloc(n * sizeof(*last));
    memset(first, 0xFF, n * sizeof(*first));
    memset(last, 0xFF, n * sizeof(*last));
    for (int c = 0; c < N_CLASSES; c++)
        p.free[c] = malloc((r->n + 1) * sizeof(uint32_t));
    r->d->regs = r->d->regs_max = r->d->first_reg;
    for (uint32_t i = 0; i < r->n; i++) {
        struct reg *reg = &r->reg[i];
        if (has(at_entry, (int32_t)i)) {
            take_place(r, &p, reg);
        } else {
            reg->next_first = first[reg->first];
            first[reg->first] = (int32_t)i;
        }
        reg->next_last = last[reg->last];
        last[reg->last] = (int32_t)i;
    }
    r->d->code->clear_to = r->d->regs;
    for (uint32_t i = 0; i < n; i++) {
        for (int32_t j = first[i]; j != NONE; j = r->reg[j].next_first)
            take_place(r, &p, &r->reg[j]);
        for (int32_t j = last[i]; j != NONE; j = r->reg[j].next_last)
            p.free[class_of(&r->reg[j])][p.n_free[class_of(&r->reg[j])]++] = r->reg[j].at;
    }
    for (int c = 0; c < N_CLASSES; c++)
        free(p.free[c]);
    free(first);
    free(last);
}

static void rewrite(struct regs *r)
{
    for (uint32_t i = 0; i < r->d->n_instr; i++) {
        struct sg_instr *in = &r->d->instr[i];
        const int32_t *id = id_at(r, in->guard, true);
        if (id)
            in->guard = (int32_t)r->reg[*id].at;
        for (unsigned j = 0; j < in->n_ops; j++)
            if ((id = id_of(r, &in->op[j])))
                in->op[j].off = (int32_t)r->reg[*id].at;
    }
}

void sg_d_share_regs(struct decoder *d)
{
    struct regs r = {.d = d};
    const size_t n_ids = d->regs_max / 4 + 1;
    r.id = malloc(n_ids * sizeof(*r.id));
    memset(r.id, 0xFF, n_ids * sizeof(*r.id));
    r.reg = malloc(n_ids * sizeof(*r.reg));
    number_all(&r);
    r.n_words = r.n / 64 + 1;
    r.part_of = calloc(d->n_instr + 1, sizeof(*r.part_of));
    find_parts(&r);
    const size_t n_set = (size_t)r.n_parts * r.n_words;
    r.in = calloc(4 * n_set, sizeof(*r.in));
    r.out = r.in + n_set;
    r.uses = r.out + n_set;
    r.sets = r.uses + n_set;
    find_needs(&r);
    find_ranges(&r);
    give_places(&r);
    rewrite(&r);
    free(r.id);
    free(r.reg);
    free(r.part_of);
    for (uint32_t i = 0; i < r.n_parts; i++)
        free(r.part[i].next);
    free(r.part);
    free(r.in);
}
