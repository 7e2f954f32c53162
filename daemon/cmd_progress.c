#include "daemon/cmd_progress.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/base/threads.h"

#define TERMINAL_NS ((uint64_t)100 * 1000 * 1000)
#define PLAIN_NS ((uint64_t)5 * 1000 * 1000 * 1000)

/* A signal handler has no argument to reach its flag by. */
static _Atomic bool stop_asked;

static void ask_stop(int sig)
{
    (void)sig;
    atomic_store_explicit(&stop_asked, true, memory_order_relaxed);
}

static void tell(void *ctx, const char *phase, double ratio)
{
    struct sq_cmd_progress *p = ctx;
    const int percent = (int)(ratio * 100);
    const uint64_t now = sq_now_ns();
    const bool same = p->phase && strcmp(p->phase, phase) == 0;
    if (same && now - p->told_ns < (p->terminal ? TERMINAL_NS : PLAIN_NS))
        return;
    if (p->terminal) {
        char line[128];
        int n = snprintf(line, sizeof line, "sqd %s: %s %d %%", p->command, phase, percent);
        fprintf(stderr, "\r%-*s", p->columns, line);
        p->columns = n;
    } else {
        fprintf(stderr, "sqd %s: %s %d %%\n", p->command, phase, percent);
    }
    p->phase = phase;
    p->told_ns = now;
}

void sq_cmd_progress_init(struct sq_cmd_progress *p, const char *command)
{
    *p = (struct sq_cmd_progress){.progress = {tell, p, &stop_asked},
                                  .command = command,
                                  .terminal = isatty(STDERR_FILENO) == 1};
    struct sigaction sa = {.sa_handler = ask_stop, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGTERM, &sa, NULL);
}

void sq_cmd_progress_end(struct sq_cmd_progress *p)
{
    if (p->columns)
        fprintf(stderr, "\r%*s\r", p->columns, "");
    p->columns = 0;
}
