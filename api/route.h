/* The table of routes: path and method to handler. Paths are matched exactly on the raw bytes; percent-encoding is decoded in a route's
 * last segment only, after routing. */
#pragma once

#include <stddef.h>

#include "api/head.h"
#include "api/reply.h"

struct sq_api;
struct sq_exchange;

enum sq_route_id {
#define ROUTE(id, path, methods, handler, flags) SQ_ROUTE_##id,
#include "api/routes.def"
#undef ROUTE
    SQ_ROUTE_NONE, /* no such route */
    SQ_ROUTE_MAX
};

#define SQ_ROUTE_BODY 1
#define SQ_ROUTE_PROBE 2

/* Answers through the exchange, now or later. */
typedef void sq_handler(struct sq_api *a, struct sq_exchange *x);
#define ROUTE(id, path, methods, handler, flags) sq_handler handler;
#include "api/routes.def"
#undef ROUTE

struct sq_route {
    const char *path;
    unsigned methods; /* of enum sq_method */
    sq_handler *handle;
    unsigned flags;
};
const struct sq_route *sq_route_get(enum sq_route_id id); /* NULL for SQ_ROUTE_NONE */

/* The route of a raw target (a query is cut off). ret_arg receives the decoded last segment where the route takes one; a segment that is not
 * valid, or does not fit, is no route. */
enum sq_route_id sq_route_find(const char *target, char *ret_arg, size_t arg_bytes);

/* Route, method, content type and length, in this order. 0 or -SQ_E_INVAL with *f filled. */
int sq_route_check(enum sq_route_id id, const struct sq_head *h, const struct sq_api_limits *l,
                   struct sq_fault *f);
