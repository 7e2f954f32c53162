/* Files of a model directory: opened beneath it, regular, read whole or by pieces, and watched for change (rules S1, S12). */
#pragma once

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "engine/base/err.h"

/* What must stay the same between the first and the last read. */
struct sq_file_id {
    dev_t dev;
    ino_t ino;
    uint64_t size;
    struct timespec ctime;
};

/* Opens dir_fd/name for reading. `name` is one path component; a symbolic link may lead to another file beneath dir_fd only. label
 * names the file in messages. Errors: -SQ_E_NOTFOUND (no such file), -SQ_E_FORMAT (S1), -SQ_E_IO. */
int sq_file_open(int dir_fd, const char *name, const char *label, int *ret_fd,
                 struct sq_file_id *ret_id, struct sq_err *err) SQ_CHECKED;

/* Exactly n bytes at off, whatever pieces the kernel gives; then checks that the file is still `id`. */
int sq_file_read(int fd, const struct sq_file_id *id, const char *label, void *dst, size_t n,
                 uint64_t off, struct sq_err *err) SQ_CHECKED;

/* The whole file, followed by a NUL that *ret_n does not count; freed with sq_free. More than max bytes: -SQ_E_LIMIT under `rule`. */
int sq_file_read_all(int dir_fd, const char *name, const char *label, const char *rule, size_t max,
                     char **ret, size_t *ret_n, struct sq_err *err) SQ_CHECKED;

/* FNV-1a, 64 bits, continued from h. */
#define SQ_DIGEST_START 0xcbf29ce484222325u
uint64_t sq_digest(uint64_t h, const void *p, size_t n);

/* "DIR/NAME" for messages; a long DIR loses its beginning. */
void sq_file_label(char *buf, size_t n_buf, const char *dir_name, const char *name);
