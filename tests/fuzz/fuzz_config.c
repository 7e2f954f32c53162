/* config.json with its quantization_config: a verdict, and what was accepted must be inside rule C3's ranges, however the text lied. */
#include <stdlib.h>
#include <string.h>

#include "engine/base/check.h"
#include "engine/model/config.h"
#include "engine/model/expect.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_config(const struct sq_config *c)
{
    SQ_ASSERT(c->family && c->n_layers >= 1 && c->n_layers <= 1024);
    SQ_ASSERT(c->hidden >= 1 && c->hidden <= 65536 && c->ffn >= 1 && c->ffn <= 131071);
    SQ_ASSERT(c->n_heads * c->head_dim == c->hidden && c->n_heads % c->n_kv_heads == 0);
    SQ_ASSERT(c->head_dim % 2 == 0 && c->head_dim <= 512);
    SQ_ASSERT(c->vocab >= 1 && c->max_positions >= 1 && c->embed_dim >= 1);
    SQ_ASSERT(c->n_eos >= 0 && c->n_eos <= SQ_MAX_EOS && c->bos < c->vocab && c->pad < c->vocab);
    for (int i = 0; i < c->n_eos; i++)
        SQ_ASSERT(c->eos[i] >= 0 && c->eos[i] < c->vocab);
    for (int role = 0; role < SQ_N_ROLES; role++)
        for (int part = 0; part < SQ_N_PARTS; part++) {
            struct sq_expected e = sq_expect(c, (enum sq_role)role, (enum sq_part)part);
            SQ_ASSERT(e.need == SQ_NEED_NOT || e.rows);
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sq_config c;
    struct sq_err err = {0};
    char *json = malloc(size ? size : 1);
    SQ_ASSERT(json);
    if (size)
        memcpy(json, data, size);
    if (sq_config_parse(json, size, "config.json", &c, &err) == 0)
        check_config(&c);
    else
        SQ_ASSERT(err.code > 0 && err.code < SQ_E_MAX && err.msg[0]);
    free(json);
    return 0;
}
