/* What sqd tells the service manager, and what it gets from it. notify.c speaks through libsystemd, notify_none.c is built where that is missing. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/base/err.h"

void sq_notify(const char *fmt, ...)
    __attribute__((format(printf, 1, 2))); /* "READY=1\nSTATUS=..." */
/* Microseconds between watchdog pings that the manager expects, 0 = none. */
uint64_t sq_notify_watchdog_us(void);
/* Sockets handed over: up to max descriptors with their names (borrowed until the process ends). Returns their number; -SQ_E_INVAL if what came is no listening stream socket. */
int sq_notify_listen_fds(int *fds, char (*names)[64], int max, struct sq_err *err) SQ_CHECKED;
