#include "engine/base/threads.h"

#include <sched.h>
#include <signal.h>
#include <string.h>
#include <time.h>

int sq_thread_start(pthread_t *ret, const char *name, void *(*run)(void *), void *arg,
                    struct sq_err *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(ret, NULL, run, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc)
        return sq_fail(err, SQ_E_NOMEM, "cannot start thread '%s': %s", name, strerror(rc));
    (void)pthread_setname_np(*ret, name);
    return 0;
}

uint64_t sq_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int sq_n_cpus(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set))
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}
