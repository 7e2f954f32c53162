#include "api/route.h"

#include <stdbool.h>
#include <string.h>

#include "api/api.h"
#include "engine/base/check.h"
#include "engine/text/utf8.h"

static const struct sq_route routes[] = {
#define ROUTE(id, path, methods, handler, flags) {path, methods, handler, flags},
#include "api/routes.def"
#undef ROUTE
};

const struct sq_route *sq_route_get(enum sq_route_id id)
{
    return id < SQ_ROUTE_NONE ? &routes[id] : NULL;
}

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* One segment: not empty, valid UTF-8 without control bytes after decoding. A decoded slash is part of the name. */
static bool decode(const char *s, size_t n, char *to, size_t to_bytes)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (c == '%') {
            if (i + 2 >= n || hex(s[i + 1]) < 0 || hex(s[i + 2]) < 0)
                return false;
            c = (char)(hex(s[i + 1]) << 4 | hex(s[i + 2]));
            i += 2;
        }
        if (k + 1 >= to_bytes || ((unsigned char)c < 0x20) || c == 0x7F)
            return false;
        to[k++] = c;
    }
    to[k] = 0;
    return k && sq_utf8_valid(to, k);
}

enum sq_route_id sq_route_find(const char *target, char *ret_arg, size_t arg_bytes)
{
    size_t n = strcspn(target, "?");
    for (int i = 0; i < SQ_ROUTE_NONE; i++) {
        const char *path = routes[i].path;
        const char *segment = strchr(path, '{');
        size_t n_path = segment ? (size_t)(segment - path) : strlen(path);
        if (n < n_path || memcmp(target, path, n_path) != 0 || (!segment && n > n_path))
            continue;
        if (!segment || (!memchr(target + n_path, '/', n - n_path) &&
                         decode(target + n_path, n - n_path, ret_arg, arg_bytes)))
            return (enum sq_route_id)i;
    }
    return SQ_ROUTE_NONE;
}

static const char *allow(unsigned methods)
{
    return methods == SQ_METHOD_POST ? "POST" : methods & SQ_METHOD_HEAD ? "GET, HEAD" : "GET";
}

int sq_route_check(enum sq_route_id id, const struct sq_head *h, const struct sq_api_limits *l,
                   struct sq_fault *f)
{
    const struct sq_route *r = sq_route_get(id);
    if (!r)
        return sq_fault_set(f, SQ_STATUS_NOT_FOUND, NULL, "no such route: %.200s", h->target);
    if (!(r->methods & h->verb)) {
        int rc = sq_fault_set(f, SQ_STATUS_METHOD, NULL, "%s is not possible on %s, only %s",
                              h->method, r->path, allow(r->methods));
        f->allow = allow(r->methods);
        return rc;
    }
    if ((r->flags & SQ_ROUTE_BODY) && !sq_head_is_json(h->content_type))
        return sq_fault_set(f, SQ_STATUS_MEDIA_TYPE, NULL,
                            "Content-Type must be application/json, found '%.100s'",
                            h->content_type ? h->content_type : "none");
    if (h->content_length > l->max_body)
        return sq_fault_set(f, SQ_STATUS_BODY_TOO_LARGE, NULL,
                            "the body is %lld bytes, at most %lld are taken",
                            (long long)h->content_length, (long long)l->max_body);
    return 0;
}
