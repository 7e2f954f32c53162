/* The header of a safetensors file: what the file holds and where. Rules S2 to S10, each with its own message
 * "FILE: tensor 'NAME': S9: ...". Zero dimensions pass here; whoever needs the tensor compares its shape. */
#pragma once

#include <stdint.h>

#include "engine/base/err.h"
#include "engine/base/mem.h"
#include "engine/model/file.h"
#include "engine/model/source.h"

#define SQ_ST_MAX_HEADER                                                                           \
    (16u << 20) /* the format allows 100 MB; jansson needs 15 times as much memory */
#define SQ_ST_MAX_TENSORS 262144u
#define SQ_ST_MAX_NAME 512u

struct sq_st_tensor {
    const char *name; /* in the header's arena */
    struct sq_tensor_info info;
    uint64_t begin, end; /* bytes behind the header */
};

struct sq_st_header {
    struct sq_st_tensor *tensors; /* [n], sorted by name */
    size_t n;
    uint64_t data_off; /* in the file; 0 after parsing alone */
    uint64_t digest;   /* of the header's bytes */
    struct sq_arena names;
};

/* JSON of the header alone, with data_bytes of tensors behind it. Errors: -SQ_E_FORMAT, -SQ_E_LIMIT, -SQ_E_NOMEM, and -SQ_E_NOTSUP
 * for a sound file that has a tensor of a type that sqd does not compute with (S7). */
int sq_st_parse(const char *json, size_t n_bytes, uint64_t data_bytes, const char *file,
                struct sq_st_header *ret, struct sq_err *err) SQ_CHECKED;

/* Length, header and cover of an open file. */
int sq_st_read_header(int fd, const struct sq_file_id *id, const char *file,
                      struct sq_st_header *ret, struct sq_err *err) SQ_CHECKED;

void sq_st_header_done(struct sq_st_header *h);
