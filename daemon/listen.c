#include "daemon/listen.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "engine/base/num.h"

#define BACKLOG 4096

static int open_unix(const char *address, int *ret_fd, char *ret_name, size_t n_name,
                     struct sq_err *err)
{
    const char *path = address + strlen("unix:");
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    if (!*path || strlen(path) >= sizeof sa.sun_path)
        return sq_fail(err, SQ_E_CONFIG, "listen address '%s': expected a path of 1 to %zu bytes",
                       address, sizeof sa.sun_path - 1);
    (void)snprintf(sa.sun_path, sizeof sa.sun_path, "%s", path);
    struct stat st;
    if (lstat(path, &st) == 0) {
        if (!S_ISSOCK(st.st_mode))
            return sq_fail(err, SQ_E_CONFIG,
                           "listen address '%s': the path exists and is no socket", address);
        (void)unlink(path);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&sa, sizeof sa) || listen(fd, BACKLOG)) {
        int rc = sq_fail(err, SQ_E_IO, "listen address '%s': %s", address, strerror(errno));
        if (fd >= 0)
            close(fd);
        return rc;
    }
    (void)chmod(path,
                0660); /* whoever shares the group may connect; the umask would decide by chance */
    (void)snprintf(ret_name, n_name, "%s", address);
    *ret_fd = fd;
    return 0;
}

static int try_bind(const struct addrinfo *ai)
{
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
    if (fd < 0)
        return -1;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (ai->ai_family == AF_INET6)
        (void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (bind(fd, ai->ai_addr, ai->ai_addrlen) || listen(fd, BACKLOG)) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

static void bound_name(int fd, char *ret, size_t n)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof sa;
    char host[64] = "?", port[16] = "?";
    if (getsockname(fd, (struct sockaddr *)&sa, &len) == 0)
        (void)getnameinfo((struct sockaddr *)&sa, len, host, sizeof host, port, sizeof port,
                          NI_NUMERICHOST | NI_NUMERICSERV);
    (void)snprintf(ret, n, sa.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

int sq_listen(const char *address, int *ret_fd, char *ret_name, size_t n_name, struct sq_err *err)
{
    if (strncmp(address, "unix:", 5) == 0)
        return open_unix(address, ret_fd, ret_name, n_name, err);
    char host[256];
    const char *colon = strrchr(address, ':');
    int64_t port;
    if (!colon || (size_t)(colon - address) >= sizeof host ||
        !sq_parse_i64(colon + 1, 0, 65535, &port))
        return sq_fail(err, SQ_E_CONFIG,
                       "listen address '%s': expected HOST:PORT, [V6]:PORT or unix:PATH", address);
    (void)snprintf(host, sizeof host, "%.*s", (int)(colon - address), address);
    char *h = host;
    size_t n = strlen(host);
    if (n >= 2 && host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        h = host + 1;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list = NULL;
    int gai = getaddrinfo(*h ? h : NULL, colon + 1, &hints, &list);
    if (gai)
        return sq_fail(err, SQ_E_CONFIG, "listen address '%s': %s", address, gai_strerror(gai));
    int fd = -1;
    for (struct addrinfo *ai = list; ai && fd < 0; ai = ai->ai_next)
        fd = try_bind(ai);
    int saved = errno;
    freeaddrinfo(list);
    if (fd < 0)
        return sq_fail(err, SQ_E_IO, "listen address '%s': %s", address, strerror(saved));
    bound_name(fd, ret_name, n_name);
    *ret_fd = fd;
    return 0;
}
