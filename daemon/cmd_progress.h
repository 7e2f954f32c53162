/* Progress of long work on stderr: one line that is rewritten on a terminal, elsewhere a plain
 * line when a phase begins and every few seconds. And the
 * stop flag that SIGINT and SIGTERM set; a second signal kills. One per process, main thread. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine/smooth/progress.h"

struct sq_cmd_progress {
    struct sq_progress progress; /* hand this on */
    const char *command;
    const char *phase; /* of the last report, borrowed: phases are literals */
    uint64_t told_ns;  /* when a line was printed last */
    int columns;       /* printed on the terminal's line and not ended yet */
    bool terminal;
};

/* Installs the signal handlers, too. p must stay where it is. */
void sq_cmd_progress_init(struct sq_cmd_progress *p, const char *command);
/* Clears the terminal's line; before any other output. */
void sq_cmd_progress_end(struct sq_cmd_progress *p);
