#include "daemon/notify.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>

void sq_notify(const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    (void)sd_notify(0, text); /* a manager that does not listen is no reason to stop serving */
}

uint64_t sq_notify_watchdog_us(void)
{
    uint64_t us = 0;
    return sd_watchdog_enabled(0, &us) > 0 ? us : 0;
}

int sq_notify_listen_fds(int *fds, char (*names)[64], int max, struct sq_err *err)
{
    char **given = NULL;
    int n = sd_listen_fds_with_names(1, &given), rc = 0;
    for (int i = 0; i < n; i++) {
        int fd = SD_LISTEN_FDS_START + i;
        if (i >= max)
            rc = sq_fail(err, SQ_E_INVAL,
                         "the service manager passed %d sockets, at most %d are taken", n, max);
        else if (sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1) <= 0)
            rc =
                sq_fail(err, SQ_E_INVAL,
                        "descriptor %d from the service manager is no listening stream socket", fd);
        else {
            fds[i] = fd;
            (void)snprintf(names[i], sizeof names[i], "%s",
                           given && given[i] ? given[i] : "unknown");
        }
    }
    for (char **g = given; g && *g; g++)
        free(*g); /* libsystemd's own malloc */
    free(given);
    return rc ? rc : n < 0 ? 0 : n;
}
