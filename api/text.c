#include "api/text.h"

#include <string.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"

int sq_stops_add(struct sq_stops *s, const char *text, size_t n)
{
    if (!n)
        return 0;
    struct sq_stop *items = sq_realloc_array(s->items, s->n + 1, sizeof(*items));
    if (!items)
        return -SQ_E_NOMEM;
    s->items = items;
    struct sq_stop *it = &items[s->n];
    it->s = sq_memdup(text, n);
    it->fail = sq_new_array(uint32_t, n + 1);
    it->n = n;
    if (!it->s || !it->fail) {
        sq_free(it->s);
        sq_free(it->fail);
        return -SQ_E_NOMEM;
    }
    s->n++;
    for (size_t i = 1, k = 0; i < n; i++) {
        while (k && text[k] != text[i])
            k = it->fail[k];
        k += text[k] == text[i];
        it->fail[i + 1] = (uint32_t)k;
    }
    return 0;
}

void sq_stops_done(struct sq_stops *s)
{
    for (size_t i = 0; i < s->n; i++) {
        sq_free(s->items[i].s);
        sq_free(s->items[i].fail);
    }
    sq_free(s->items);
    *s = (struct sq_stops){0};
}

int sq_flow_init(struct sq_flow *f, const struct sq_tokenizer *t, const struct sq_stops *stops)
{
    *f = (struct sq_flow){.stops = stops};
    sq_detok_init(&f->detok, t, true);
    f->pos = sq_new_array(uint32_t, stops->n);
    return f->pos ? 0 : -SQ_E_NOMEM;
}

void sq_flow_done(struct sq_flow *f)
{
    sq_free(f->pos);
    sq_text_done(&f->held);
    *f = (struct sq_flow){0};
}

/* Advances every stop string by one byte; the length of the longest one that this byte completes, or 0. */
static size_t step(struct sq_flow *f, char c)
{
    size_t hit = 0;
    for (size_t i = 0; i < f->stops->n; i++) {
        const struct sq_stop *s = &f->stops->items[i];
        uint32_t k = f->pos[i];
        while (k && s->s[k] != c)
            k = s->fail[k];
        k += s->s[k] == c;
        f->pos[i] = k;
        if (k == s->n)
            hit = SQ_MAX(hit, s->n);
    }
    return hit;
}

/* Gives out the first n held bytes. */
static int release(struct sq_flow *f, size_t n, struct sq_text *out)
{
    if (!n)
        return 0;
    int rc = sq_text_append(out, f->held.data, n);
    if (rc)
        return rc;
    f->held.n -= n;
    memmove(f->held.data, f->held.data + n, f->held.n);
    return 0;
}

/* Looks at the held bytes from `from` on, which are new. */
static int settle(struct sq_flow *f, size_t from, bool look, struct sq_text *out)
{
    if (!look) {
        memset(f->pos, 0, f->stops->n * sizeof(*f->pos));
        return release(f, f->held.n, out);
    }
    for (size_t i = from; i < f->held.n; i++) {
        size_t hit = step(f, f->held.data[i]);
        if (hit) {
            f->stopped = true;
            int rc = release(f, i + 1 - hit, out);
            f->held.n = 0;
            return rc ? rc : SQ_FLOW_STOP;
        }
    }
    size_t keep = 0;
    for (size_t i = 0; i < f->stops->n; i++)
        keep = SQ_MAX(keep, f->pos[i]);
    return release(f, f->held.n - keep, out);
}

int sq_flow_text(struct sq_flow *f, const char *s, size_t n, bool look, struct sq_text *out)
{
    SQ_ASSERT(!f->stopped);
    size_t from = f->held.n;
    int rc = sq_text_append(&f->held, s, n);
    return rc ? rc : settle(f, from, look, out);
}

int sq_flow_push(struct sq_flow *f, int32_t token, bool look, struct sq_text *out)
{
    SQ_ASSERT(!f->stopped);
    size_t from = f->held.n;
    int rc = sq_detok_push(&f->detok, token, &f->held, NULL);
    if (rc && rc != -SQ_E_INVAL)
        return rc;
    return settle(f, from, look, out);
}

int sq_flow_finish(struct sq_flow *f, struct sq_text *out)
{
    SQ_ASSERT(!f->stopped);
    size_t from = f->held.n;
    int rc = f->detok.t ? sq_detok_finish(&f->detok, &f->held, NULL) : 0;
    if (!rc)
        rc = settle(f, from, true, out);
    return rc ? rc : release(f, f->held.n, out);
}
