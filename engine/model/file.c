#include "engine/model/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/base/mem.h"

#define OPEN_FLAGS (O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK) /* a fifo must not hang us */

/* Where the kernel (or a sandbox) has no openat2, links are not followed at all. */
static int open_beneath(int dir_fd, const char *name)
{
    struct open_how how = {.flags = OPEN_FLAGS, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
    int fd = (int)syscall(SYS_openat2, dir_fd, name, &how, sizeof how);
    if (fd < 0 && (errno == ENOSYS || errno == EPERM))
        fd = openat(dir_fd, name, OPEN_FLAGS | O_NOFOLLOW);
    return fd;
}

static int open_failed(const char *label, int e, struct sq_err *err)
{
    if (e == EXDEV || e == ELOOP)
        return sq_fail(err, SQ_E_FORMAT,
                       "%s: S1: a symbolic link that leaves the model's directory, as in a Hugging "
                       "Face cache; copy the model with 'cp -rL', or download it with 'hf download "
                       "--local-dir'",
                       label);
    return sq_fail(err, e == ENOENT ? SQ_E_NOTFOUND : SQ_E_IO, "%s: %s", label, strerror(e));
}

static struct sq_file_id id_of(const struct stat *st)
{
    return (struct sq_file_id){
        .dev = st->st_dev, .ino = st->st_ino, .size = (uint64_t)st->st_size, .ctime = st->st_ctim};
}

int sq_file_open(int dir_fd, const char *name, const char *label, int *ret_fd,
                 struct sq_file_id *ret_id, struct sq_err *err)
{
    int fd = open_beneath(dir_fd, name);
    if (fd < 0)
        return open_failed(label, errno, err);
    struct stat st;
    if (fstat(fd, &st) < 0) {
        int e = errno;
        close(fd);
        return open_failed(label, e, err);
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        return sq_fail(err, SQ_E_FORMAT, "%s: S1: expected a regular file, found %s", label,
                       S_ISDIR(st.st_mode) ? "a directory" : "a device, socket or fifo");
    }
    *ret_fd = fd;
    *ret_id = id_of(&st);
    return 0;
}

static int check_same(int fd, const struct sq_file_id *id, const char *label, struct sq_err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return open_failed(label, errno, err);
    struct sq_file_id now = id_of(&st);
    if (now.dev == id->dev && now.ino == id->ino && now.size == id->size &&
        now.ctime.tv_sec == id->ctime.tv_sec && now.ctime.tv_nsec == id->ctime.tv_nsec)
        return 0;
    return sq_fail(err, SQ_E_FORMAT,
                   "%s: S12: the file changed while it was read (%llu bytes before, %llu now)",
                   label, (unsigned long long)id->size, (unsigned long long)now.size);
}

int sq_file_read(int fd, const struct sq_file_id *id, const char *label, void *dst, size_t n,
                 uint64_t off, struct sq_err *err)
{
    char *p = dst;
    while (n) {
        ssize_t got = pread(fd, p, n, (off_t)off);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return sq_fail(err, SQ_E_IO, "%s: reading %zu bytes at %llu: %s", label, n,
                           (unsigned long long)off, strerror(errno));
        if (got == 0)
            return sq_fail(err, SQ_E_FORMAT,
                           "%s: S12: the file ends at byte %llu, %zu bytes too early", label,
                           (unsigned long long)off, n);
        p += got;
        off += (uint64_t)got;
        n -= (size_t)got;
    }
    return check_same(fd, id, label, err);
}

int sq_file_read_all(int dir_fd, const char *name, const char *label, const char *rule, size_t max,
                     char **ret, size_t *ret_n, struct sq_err *err)
{
    int fd;
    struct sq_file_id id;
    int r = sq_file_open(dir_fd, name, label, &fd, &id, err);
    if (r)
        return r;
    char *buf = NULL;
    if (id.size > max)
        r = sq_fail(err, SQ_E_LIMIT, "%s: %s: too many bytes: %llu, the limit is %zu", label, rule,
                    (unsigned long long)id.size, max);
    else if (!(buf = sq_malloc((size_t)id.size + 1)))
        r = sq_fail(err, SQ_E_NOMEM, "%s: out of memory for %llu bytes", label,
                    (unsigned long long)id.size);
    else
        r = sq_file_read(fd, &id, label, buf, (size_t)id.size, 0, err);
    close(fd);
    if (r) {
        sq_free(buf);
        return r;
    }
    buf[id.size] = '\0';
    *ret = buf;
    *ret_n = (size_t)id.size;
    return 0;
}

uint64_t sq_digest(uint64_t h, const void *p, size_t n)
{
    const unsigned char *b = p;
    for (size_t i = 0; i < n; i++)
        h = (h ^ b[i]) * 0x100000001b3u;
    return h;
}

void sq_file_label(char *buf, size_t n_buf, const char *dir_name, const char *name)
{
    size_t n = strlen(dir_name), room = n_buf / 2;
    while (n > 1 && dir_name[n - 1] == '/')
        n--;
    if (n > room)
        snprintf(buf, n_buf, "...%.*s/%s", (int)room, dir_name + (n - room), name);
    else
        snprintf(buf, n_buf, "%.*s/%s", (int)n, dir_name, name);
}
