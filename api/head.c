#include "api/head.h"

#include <string.h>
#include <strings.h>

#include "api/api.h"
#include "engine/base/check.h"
#include "engine/base/num.h"

/* tchar of RFC 9110 */
static bool is_token(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        bool alnum = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
        if (!alnum && (!c || !strchr("!#$%&'*+-.^_`|~", c)))
            return false;
    }
    return n > 0;
}

static bool has_control(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if ((c < 0x20 && c != '\t') || c == 0x7F)
            return true;
    }
    return false;
}

static int check_method(struct sq_head *h, struct sq_fault *f)
{
    static const struct {
        const char *word;
        enum sq_method verb;
    } words[] = {
        {"GET", SQ_METHOD_GET},         {"HEAD", SQ_METHOD_HEAD},     {"POST", SQ_METHOD_POST},
        {"OPTIONS", SQ_METHOD_OPTIONS}, {"DELETE", SQ_METHOD_DELETE}, {"PUT", SQ_METHOD_OTHER},
        {"PATCH", SQ_METHOD_OTHER},     {"TRACE", SQ_METHOD_OTHER},   {"CONNECT", SQ_METHOD_OTHER}};
    for (size_t i = 0; i < SQ_ARRAY_LEN(words); i++) {
        if (!strcmp(words[i].word, h->method)) {
            h->verb = words[i].verb;
            return 0;
        }
    }
    return sq_fault_set(f, SQ_STATUS_METHOD_UNKNOWN, NULL, "the method '%.32s' is not known",
                        h->method);
}

static int check_target(const struct sq_head *h, const struct sq_api_limits *l, struct sq_fault *f)
{
    size_t n = strlen(h->target);
    if (n > (size_t)l->max_target)
        return sq_fault_set(f, SQ_STATUS_TARGET_TOO_LONG, NULL,
                            "the request's target is %zu bytes, at most %lld are taken", n,
                            (long long)l->max_target);
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)h->target[i] <= 0x20 || (unsigned char)h->target[i] >= 0x7F)
            return sq_fault_set(f, SQ_STATUS_BAD_REQUEST, NULL,
                                "the request's target holds a byte that must be percent-encoded");
    }
    return 0;
}

static int check_size(const struct sq_head *h, const struct sq_api_limits *l, struct sq_fault *f)
{
    if (h->n_fields > (size_t)l->max_fields)
        return sq_fault_set(f, SQ_STATUS_HEAD_TOO_LARGE, NULL,
                            "the request has %zu header fields, at most %lld are taken",
                            h->n_fields, (long long)l->max_fields);
    size_t n = strlen(h->target);
    for (size_t i = 0; i < h->n_fields; i++)
        n += h->fields[i].n_name + h->fields[i].n_value + 4; /* ": " and the line's end */
    if (n > (size_t)l->max_head)
        return sq_fault_set(f, SQ_STATUS_HEAD_TOO_LARGE, NULL,
                            "the request's head is %zu bytes, at most %lld are taken", n,
                            (long long)l->max_head);
    return 0;
}

static int check_length(const struct sq_field *it, struct sq_head *h, struct sq_fault *f)
{
    if (h->content_length >= 0)
        return sq_fault_set(f, SQ_STATUS_BAD_REQUEST, NULL,
                            "duplicate Content-Length: exactly one is allowed");
    int64_t n = 0;
    for (size_t i = 0; i < it->n_value; i++) {
        if (it->value[i] < '0' || it->value[i] > '9' || it->n_value > 12)
            return sq_fault_set(f, SQ_STATUS_BAD_REQUEST, NULL,
                                "Content-Length must be a decimal number of at most 12 digits");
        n = n * 10 + (it->value[i] - '0');
    }
    if (!it->n_value)
        return sq_fault_set(f, SQ_STATUS_BAD_REQUEST, NULL, "Content-Length is empty");
    h->content_length = n;
    return 0;
}

static int check_coding(const struct sq_field *it, bool allow_chunked, struct sq_head *h,
                        struct sq_fault *f)
{
    if (allow_chunked && !h->chunked && !strcasecmp(it->value, "chunked")) {
        h->chunked = true;
        return 0;
    }
    return sq_fault_set(f, SQ_STATUS_LENGTH_REQUIRED, NULL,
                        allow_chunked ? "of Transfer-Encoding only one plain 'chunked' is taken"
                                      : "Transfer-Encoding is not taken, send a Content-Length");
}

/* Names and values clean, none of the framing fields twice. */
static int check_fields(struct sq_head *h, bool allow_chunked, size_t *ret_hosts,
                        struct sq_fault *f)
{
    for (size_t i = 0; i < h->n_fields; i++) {
        const struct sq_field *it = &h->fields[i];
        int rc = 0;
        if (!is_token(it->name, it->n_name))
            return sq_fault_set(
                f, SQ_STATUS_BAD_REQUEST, NULL,
                "the name of a header field holds a byte that is not allowed there");
        if (has_control(it->value, it->n_value))
            return sq_fault_set(f, SQ_STATUS_BAD_REQUEST, NULL,
                                "the header field '%.64s' holds a control byte", it->name);
        if (!strcasecmp(it->name, "Host"))
            *ret_hosts += 1;
        else if (!strcasecmp(it->name, "Content-Length"))
            rc = check_length(it, h, f);
        else if (!strcasecmp(it->name, "Transfer-Encoding"))
            rc = check_coding(it, allow_chunked, h, f);
        else if (!strcasecmp(it->name, "Content-Type") && !h->content_type)
            h->content_type = it->value;
        else if (!strcasecmp(it->name, "Expect") && !strcasecmp(it->value, "100-continue"))
            h->expect_continue = true;
        else if (!strcasecmp(it->name, "Expect"))
            rc = sq_fault_set(f, SQ_STATUS_EXPECTATION, NULL,
                              "of Expect only '100-continue' is known");
        else if (!strcasecmp(it->name, "X-Request-Id"))
            h->request_id = it->value;
        if (rc)
            return rc;
    }
    return 0;
}

/* The framing of the body fits the method. */
static int check_body(const struct sq_head *h, struct sq_fault *f)
{
    if (h->chunked && h->content_length >= 0)
        return sq_fault_set(f, SQ_STATUS_BAD_REQUEST, NULL,
                            "Content-Length and Transfer-Encoding exclude each other");
    bool body = h->chunked || h->content_length > 0;
    if ((h->verb == SQ_METHOD_GET || h->verb == SQ_METHOD_HEAD) && body)
        return sq_fault_set(f, SQ_STATUS_BAD_REQUEST, NULL, "a %s request must not have a body",
                            h->method);
    if (h->verb == SQ_METHOD_POST && h->content_length < 0 && !h->chunked)
        return sq_fault_set(f, SQ_STATUS_LENGTH_REQUIRED, NULL, "a POST needs a Content-Length");
    return 0;
}

static bool usable_id(const char *s)
{
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
    return n >= 1 && n <= 128 && !s[n];
}

int sq_head_check(struct sq_head *h, const struct sq_api_limits *l, bool allow_chunked,
                  struct sq_fault *f)
{
    h->verb = SQ_METHOD_OTHER;
    h->content_length = -1;
    h->chunked = h->expect_continue = false;
    h->content_type = h->request_id = NULL;
    size_t hosts = 0;
    int rc = check_target(h, l, f);
    if (!rc)
        rc = check_size(h, l, f);
    if (!rc)
        rc = check_fields(h, allow_chunked, &hosts, f);
    if (h->request_id && !usable_id(h->request_id))
        h->request_id = NULL;
    if (!rc)
        rc = check_method(h, f);
    if (!rc)
        rc = check_body(h, f);
    bool old = !strcmp(h->version, "HTTP/1.0");
    if (!rc && (hosts > 1 || (!hosts && !old)))
        rc = sq_fault_set(f, SQ_STATUS_BAD_REQUEST, NULL, "exactly one Host is needed, found %zu",
                          hosts);
    return rc;
}

bool sq_head_is_json(const char *type)
{
    static const char want[] = "application/json";
    if (!type || strncasecmp(type, want, sizeof(want) - 1) != 0)
        return false;
    type += sizeof(want) - 1;
    type += strspn(type, " \t");
    return !*type || *type == ';';
}
