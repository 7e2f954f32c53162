#include "engine/smooth/outdir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/mem.h"

/* Parent directory and last component of d->path. */
static int open_parent(struct sq_outdir *d, struct sq_err *err)
{
    char *slash = strrchr(d->path, '/');
    const char *name = slash ? slash + 1 : d->path;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strlen(name) >= 250)
        return sq_fail(err, SQ_E_INVAL,
                       "output directory '%s': expected a path that ends in a name", d->path);
    snprintf(d->name, sizeof d->name, "%s", name);
    SQ_AUTO_FREE char *parent =
        slash ? sq_strndup(d->path, (size_t)(slash - d->path) + (slash == d->path))
              : sq_strdup(".");
    if (!parent)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    d->parent_fd = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (d->parent_fd < 0)
        return sq_fail(err, errno == ENOENT ? SQ_E_NOTFOUND : SQ_E_IO,
                       "output directory '%s': parent '%s': %s", d->path, parent, strerror(errno));
    return 0;
}

static bool is_dots(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Nothing there, or an empty directory. */
static int check_free(const struct sq_outdir *d, struct sq_err *err)
{
    int fd = openat(d->parent_fd, d->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd < 0)
        return sq_fail(err, SQ_E_STATE, "output directory '%s': exists and is not a directory (%s)",
                       d->path, strerror(errno));
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return sq_fail(err, SQ_E_IO, "output directory '%s': %s", d->path, strerror(errno));
    }
    struct dirent *e = readdir(dir);
    while (e && is_dots(e->d_name))
        e = readdir(dir);
    int rc = e ? sq_fail(err, SQ_E_STATE,
                         "output directory '%s': exists and is not empty (it holds '%.100s'); "
                         "nothing was written",
                         d->path, e->d_name)
               : 0;
    closedir(dir);
    return rc;
}

static int make_temp(struct sq_outdir *d, struct sq_err *err)
{
    for (int tries = 0; tries < 100; tries++) {
        uint64_t r;
        if (getrandom(&r, sizeof r, 0) != (ssize_t)sizeof r)
            return sq_fail(err, SQ_E_IO, "getrandom: %s", strerror(errno));
        snprintf(d->temp, sizeof d->temp, ".%s.sqd-%016jx", d->name, (uintmax_t)r);
        if (mkdirat(d->parent_fd, d->temp, 0777) == 0) {
            d->fd = openat(d->parent_fd, d->temp, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
            if (d->fd >= 0)
                return 0;
            unlinkat(d->parent_fd, d->temp, AT_REMOVEDIR);
            break;
        }
        if (errno != EEXIST)
            break;
    }
    d->temp[0] = '\0';
    return sq_fail(err, SQ_E_IO, "output directory '%s': no temporary directory beside it: %s",
                   d->path, strerror(errno));
}

int sq_outdir_open(const char *path, struct sq_outdir **ret, struct sq_err *err)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/')
        n--;
    struct sq_outdir *d = sq_new(struct sq_outdir);
    if (!d)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    d->parent_fd = d->fd = -1;
    d->path = sq_strndup(path, n);
    int rc = d->path ? open_parent(d, err) : sq_fail(err, SQ_E_NOMEM, "out of memory");
    if (!rc)
        rc = check_free(d, err);
    if (!rc)
        rc = make_temp(d, err);
    if (rc) {
        sq_outdir_close(d);
        return rc;
    }
    *ret = d;
    return 0;
}

int sq_outdir_create(struct sq_outdir *d, const char *name, int *ret_fd, struct sq_err *err)
{
    int fd = openat(d->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return sq_fail(err, SQ_E_IO, "%s/%s: %s", d->path, name, strerror(errno));
    *ret_fd = fd;
    return 0;
}

int sq_outdir_finish_file(struct sq_outdir *d, const char *name, int fd, struct sq_err *err)
{
    int bad = fsync(fd) ? errno : 0;
    if (close(fd) && !bad)
        bad = errno;
    return bad ? sq_fail(err, SQ_E_IO, "%s/%s: %s", d->path, name, strerror(bad)) : 0;
}

int sq_write_all(int fd, const char *label, const void *data, size_t n, struct sq_err *err)
{
    const char *p = data;
    while (n) {
        ssize_t k = write(fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return sq_fail(err, SQ_E_IO, "%s: %s", label, strerror(errno));
        p += k;
        n -= (size_t)k;
    }
    return 0;
}

int sq_outdir_write_file(struct sq_outdir *d, const char *name, const void *data, size_t n,
                         struct sq_err *err)
{
    int fd, rc = sq_outdir_create(d, name, &fd, err);
    if (rc)
        return rc;
    rc = sq_write_all(fd, name, data, n, err);
    if (rc) {
        close(fd);
        return rc;
    }
    return sq_outdir_finish_file(d, name, fd, err);
}

int sq_outdir_commit(struct sq_outdir *d, struct sq_err *err)
{
    /* rename replaces an empty directory, and fails on one that has been filled meanwhile */
    if (fsync(d->fd) || renameat(d->parent_fd, d->temp, d->parent_fd, d->name))
        return sq_fail(err, SQ_E_IO, "output directory '%s': %s", d->path, strerror(errno));
    d->temp[0] = '\0';
    if (fsync(d->parent_fd))
        return sq_fail(err, SQ_E_IO, "directory of '%s': %s", d->path, strerror(errno));
    return 0;
}

/* Only plain files were made in it. */
static void remove_temp(struct sq_outdir *d)
{
    DIR *dir = fdopendir(d->fd);
    if (!dir)
        return;
    d->fd = -1; /* closedir closes it */
    for (struct dirent *e; (e = readdir(dir));)
        if (!is_dots(e->d_name))
            unlinkat(dirfd(dir), e->d_name, 0);
    closedir(dir);
    unlinkat(d->parent_fd, d->temp, AT_REMOVEDIR);
}

struct sq_outdir *sq_outdir_close(struct sq_outdir *d)
{
    if (!d)
        return NULL;
    if (d->temp[0] && d->fd >= 0)
        remove_temp(d);
    if (d->fd >= 0)
        close(d->fd);
    if (d->parent_fd >= 0)
        close(d->parent_fd);
    sq_free(d->path);
    sq_free(d);
    return NULL;
}
