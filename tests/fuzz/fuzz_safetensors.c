/* A safetensors header, or an index, through its parser: a verdict, and what was accepted must keep the promises of safetensors.h.
 * Byte 0 chooses: '0' = an index; else the header of a file whose data has as many bytes as the last tensor says (so that S10 can be met). */
#include <stdlib.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/model/index.h"
#include "engine/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_header(const struct sq_st_header *h, uint64_t data_bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < h->n; i++) {
        const struct sq_st_tensor *t = &h->tensors[i];
        size_t n = 1;
        for (int k = 0; k < t->info.rank; k++)
            n *= t->info.shape[k];
        SQ_ASSERT(t->info.rank <= SQ_MAX_RANK && n == t->info.n_elems);
        SQ_ASSERT(t->begin <= t->end && t->end <= data_bytes);
        SQ_ASSERT(t->end - t->begin == n * sq_dtype_bytes(t->info.dtype));
        SQ_ASSERT(!i || strcmp(t[-1].name, t->name) < 0);
        sum += t->end - t->begin;
    }
    SQ_ASSERT(sum == data_bytes);
}

/* The largest number in the text: nearly always the end of the last tensor. */
static uint64_t largest_number(const char *s, size_t n)
{
    uint64_t best = 0, v = 0;
    for (size_t i = 0; i < n; i++) {
        v = s[i] >= '0' && s[i] <= '9' && v < 1u << 30 ? v * 10 + (uint64_t)(s[i] - '0') : 0;
        best = v > best ? v : best;
    }
    return best;
}

static void try_header(const char *json, size_t n)
{
    struct sq_err err = {0};
    uint64_t sizes[] = {0, largest_number(json, n)};
    for (int i = 0; i < 2; i++) {
        struct sq_st_header h;
        if (sq_st_parse(json, n, sizes[i], "fuzz.safetensors", &h, &err) == 0) {
            check_header(&h, sizes[i]);
            sq_st_header_done(&h);
        } else {
            SQ_ASSERT(err.code > 0 && err.code < SQ_E_MAX && err.msg[0]);
        }
    }
}

static void try_index(const char *json, size_t n)
{
    struct sq_index x;
    struct sq_err err = {0};
    if (sq_index_parse(json, n, "fuzz.index.json", &x, &err)) {
        SQ_ASSERT(err.code > 0 && err.code < SQ_E_MAX && err.msg[0]);
        return;
    }
    for (size_t i = 0; i < x.n_tensors; i++) {
        SQ_ASSERT(x.tensors[i].shard < x.n_shards);
        SQ_ASSERT(sq_index_find(&x, x.tensors[i].name) == &x.tensors[i]);
    }
    for (size_t i = 0; i < x.n_shards; i++)
        SQ_ASSERT(!strchr(x.shards[i], '/') && x.shards[i][0] != '.');
    sq_index_done(&x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    /* a copy of the exact length, so that reading beyond it is seen */
    char *json = malloc(size - 1 ? size - 1 : 1);
    SQ_ASSERT(json);
    memcpy(json, data + 1, size - 1);
    if (data[0] == '0')
        try_index(json, size - 1);
    else
        try_header(json, size - 1);
    free(json);
    return 0;
}
