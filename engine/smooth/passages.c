#include "engine/smooth/passages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/check.h"
#include "engine/base/mem.h"

#define MAX_TEXT_BYTES ((size_t)256 << 20)

static int read_all(int fd, const char *path, char *buf, size_t n, struct sq_err *err)
{
    for (size_t got = 0; got < n;) {
        ssize_t k = read(fd, buf + got, n - got);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return sq_fail(err, SQ_E_IO, "%s: %s", path,
                           k < 0 ? strerror(errno) : "became shorter while it was read");
        got += (size_t)k;
    }
    buf[n] = '\0';
    return 0;
}

int sq_text_load(const char *path, char **ret, size_t *ret_n, struct sq_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return sq_fail(err, errno == ENOENT || errno == ENOTDIR ? SQ_E_NOTFOUND : SQ_E_IO, "%s: %s",
                       path, strerror(errno));
    struct stat st;
    int rc = 0;
    char *buf = NULL;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        rc = sq_fail(err, SQ_E_IO, "%s: not a regular file", path);
    else if ((uintmax_t)st.st_size > MAX_TEXT_BYTES)
        rc = sq_fail(err, SQ_E_LIMIT, "%s: %jd bytes, at most %zu are read", path,
                     (intmax_t)st.st_size, MAX_TEXT_BYTES);
    else if (!(buf = sq_malloc((size_t)st.st_size + 1)))
        rc = sq_fail(err, SQ_E_NOMEM, "%s: out of memory", path);
    else
        rc = read_all(fd, path, buf, (size_t)st.st_size, err);
    close(fd);
    if (rc) {
        sq_free(buf);
        return rc;
    }
    *ret = buf;
    *ret_n = (size_t)st.st_size;
    return 0;
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Bounds of the line at pos; the next one starts behind its newline. */
static size_t line_end(const char *text, size_t n, size_t pos)
{
    const char *nl = memchr(text + pos, '\n', n - pos);
    return nl ? (size_t)(nl - text) : n;
}

static bool blank(const char *text, size_t begin, size_t end)
{
    while (begin < end && is_space(text[begin]))
        begin++;
    return begin == end;
}

bool sq_passages_by_paragraph(const char *text, size_t n_text)
{
    bool seen_text = false, seen_blank = false;
    for (size_t pos = 0; pos < n_text;) {
        size_t end = line_end(text, n_text, pos);
        bool is_blank = blank(text, pos, end);
        if (!is_blank && seen_blank)
            return true;
        seen_text |= !is_blank;
        seen_blank |= is_blank && seen_text;
        pos = end + 1;
    }
    return false;
}

bool sq_passage_next(const char *text, size_t n_text, bool by_paragraph, size_t *pos,
                     size_t *ret_begin, size_t *ret_end)
{
    size_t at = *pos, begin, end;
    while (at < n_text && blank(text, at, line_end(text, n_text, at)))
        at = line_end(text, n_text, at) + 1;
    if (at >= n_text) {
        *pos = n_text;
        return false;
    }
    begin = at;
    do {
        end = line_end(text, n_text, at);
        at = end + 1;
    } while (by_paragraph && at < n_text && !blank(text, at, line_end(text, n_text, at)));
    *pos = SQ_MIN(at, n_text);
    while (is_space(text[begin]))
        begin++;
    while (is_space(text[end - 1]))
        end--;
    *ret_begin = begin;
    *ret_end = end;
    return true;
}

struct filling {
    struct sq_passages *p;
    const struct sq_tokenizer *tok;
    int32_t bos;
    size_t max_tokens;
};

static int add_passage(struct filling *f, const char *text, size_t n, struct sq_err *err)
{
    struct sq_passages *p = f->p;
    SQ_AUTO_FREE int32_t *ids = NULL;
    size_t n_ids, n_bos = f->bos >= 0, used = p->start[p->n];
    int rc = sq_tokenizer_encode(f->tok, text, n, 0, &ids, &n_ids, err);
    if (rc)
        return rc;
    p->n_cut += n_ids + n_bos > f->max_tokens;
    n_ids = SQ_MIN(n_ids, f->max_tokens - n_bos);
    int32_t *all = sq_realloc_array(p->ids, used + n_bos + n_ids, sizeof *all);
    if (!all)
        return sq_fail(err, SQ_E_NOMEM, "out of memory for passages");
    p->ids = all;
    if (n_bos)
        all[used] = f->bos;
    memcpy(all + used + n_bos, ids, n_ids * sizeof *ids);
    p->start[++p->n] = used + n_bos + n_ids;
    return 0;
}

static int fill(struct filling *f, const char *path, int max_passages, struct sq_err *err)
{
    SQ_AUTO_FREE char *text = NULL;
    size_t n, pos = 0, begin, end;
    int rc = sq_text_load(path, &text, &n, err);
    if (rc)
        return rc;
    bool by_paragraph = sq_passages_by_paragraph(text, n);
    while (!rc && f->p->n < max_passages &&
           sq_passage_next(text, n, by_paragraph, &pos, &begin, &end)) {
        rc = add_passage(f, text + begin, end - begin, err);
        if (rc)
            sq_fail_in(err, "%s, passage at byte %zu: ", path, begin);
    }
    if (!rc && f->p->n == 0)
        rc = sq_fail(err, SQ_E_FORMAT, "%s: expected passages of text, found none", path);
    return rc;
}

int sq_passages_load(const char *path, const struct sq_tokenizer *tok, int32_t bos,
                     int max_passages, int max_tokens, struct sq_passages **ret, struct sq_err *err)
{
    SQ_ASSERT(max_passages > 0 && max_tokens > 1);
    struct sq_passages *p = sq_new(struct sq_passages);
    if (p)
        p->start = sq_new_array(size_t, (size_t)max_passages + 1);
    struct filling f = {p, tok, bos, (size_t)max_tokens};
    int rc = p && p->start ? fill(&f, path, max_passages, err)
                           : sq_fail(err, SQ_E_NOMEM, "out of memory for passages");
    if (rc) {
        sq_passages_free(p);
        return rc;
    }
    *ret = p;
    return 0;
}

struct sq_passages *sq_passages_free(struct sq_passages *p)
{
    if (p) {
        sq_free(p->start);
        sq_free(p->ids);
        sq_free(p);
    }
    return NULL;
}
