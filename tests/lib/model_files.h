/* Model directories for tests, made of the random source's weights: whole, or spoilt in one place. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/model/config.h"
#include "engine/model/source.h"

/* A new empty directory under $TMPDIR; remove it (one level deep) with sq_files_rmdir. Both assert that the system plays along. */
char *sq_files_mkdir(void);
void sq_files_rmdir(char *dir);

void sq_files_write(const char *dir, const char *name, const void *p, size_t n);
void sq_files_write_text(const char *dir, const char *name, const char *text);
/* A safetensors file with this header as it stands and so many zero bytes behind it. */
void sq_files_write_header(const char *dir, const char *name, const char *json, size_t n_data);

/* Tensors in memory: a growing list, and a source over it. */
struct sq_file_tensor {
    char *name;
    struct sq_tensor_info info;
    void *data;
};
struct sq_file_tensors {
    struct sq_file_tensor *t;
    size_t n;
};

/* All that config implies, with values from sq_random_source_open(config, seed). */
void sq_files_fill(struct sq_file_tensors *l, const struct sq_config *config, uint64_t seed);
/* Adds, or replaces one of this name; data is copied, n_elems worked out. data NULL: zeros. */
struct sq_file_tensor *sq_files_put(struct sq_file_tensors *l, const char *name,
                                    enum sq_dtype dtype, int rank, const size_t *shape,
                                    const void *data);
struct sq_file_tensor *sq_files_find(struct sq_file_tensors *l, const char *name);
void sq_files_drop(struct sq_file_tensors *l, const char *name);
void sq_files_done(struct sq_file_tensors *l);

/* Those tensors whose name's place in the list is first, first + step, ...: several files of one model are several steps. */
void sq_files_save(const struct sq_file_tensors *l, const char *dir, const char *name, size_t first,
                   size_t step);
/* Borrows the list. */
struct sq_source *sq_files_source(struct sq_file_tensors *l);
