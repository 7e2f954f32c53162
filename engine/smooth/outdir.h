/* An output directory that appears whole or not at all: files are written into a hidden temporary
 * directory beside it, which is renamed at the end. A killed process leaves only the hidden
 * directory. One thread. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "engine/base/err.h"

struct sq_outdir {
    int parent_fd, fd; /* fd: the temporary directory */
    char *path;        /* as given, without trailing slashes */
    char name[256];    /* last component of path */
    char temp[300];    /* ".NAME.sqd-XXXXXXXXXXXXXXXX" in the same parent */
};

/* Errors: -SQ_E_STATE (path exists and is not an empty directory), -SQ_E_NOTFOUND (no parent
 * directory), -SQ_E_INVAL, -SQ_E_IO. */
int sq_outdir_open(const char *path, struct sq_outdir **ret, struct sq_err *err) SQ_CHECKED;
/* A new file in it, for writing. */
int sq_outdir_create(struct sq_outdir *d, const char *name, int *ret_fd,
                     struct sq_err *err) SQ_CHECKED;
/* fsync and close. Closes fd in any case. */
int sq_outdir_finish_file(struct sq_outdir *d, const char *name, int fd,
                          struct sq_err *err) SQ_CHECKED;
int sq_outdir_write_file(struct sq_outdir *d, const char *name, const void *data, size_t n,
                         struct sq_err *err) SQ_CHECKED;
/* Makes it durable and visible under its name. The handle must still be closed. */
int sq_outdir_commit(struct sq_outdir *d, struct sq_err *err) SQ_CHECKED;
/* Removes the temporary directory unless it was committed. */
struct sq_outdir *sq_outdir_close(struct sq_outdir *d);

/* write(2) until all is out. label is for messages. */
int sq_write_all(int fd, const char *label, const void *data, size_t n,
                 struct sq_err *err) SQ_CHECKED;
