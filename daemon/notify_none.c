/* Built without libsystemd: no readiness, no watchdog, no socket activation. */
#include "daemon/notify.h"

void sq_notify(const char *fmt, ...)
{
    (void)fmt;
}

uint64_t sq_notify_watchdog_us(void)
{
    return 0;
}

int sq_notify_listen_fds(int *fds, char (*names)[64], int max, struct sq_err *err)
{
    (void)fds, (void)names, (void)max, (void)err;
    return 0;
}
