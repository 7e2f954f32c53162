#include "daemon/backend.h"

#include <stdio.h>
#include <string.h>

#include "engine/cpu/backend_cpu.h"

bool sq_backend_known(const char *word)
{
    return strcmp(word, "auto") == 0 || strcmp(word, "cpu") == 0 || strcmp(word, "cuda") == 0;
}

static int open_cpu(const struct sq_backend_options *o, struct sq_chosen_backend *c,
                    struct sq_err *err)
{
    struct sq_cpu_options cpu = {.n_threads = o->n_threads, .variant = o->kernel};
    return sq_cpu_open(&cpu, &c->be, err);
}

int sq_backend_choose(const struct sq_backend_options *o, struct sq_chosen_backend *ret,
                      struct sq_err *err)
{
    struct sq_chosen_backend c = {0};
    struct sq_err no_gpu = {0};
    bool is_auto = strcmp(o->backend, "auto") == 0;
    if (is_auto || strcmp(o->backend, "cuda") == 0) {
        int rc = sq_gpu_open(o->plan, &c.gpu, &no_gpu);
        if (rc && !is_auto)
            return sq_fail(err, (enum sq_code)no_gpu.code, "backend cuda: %.400s", no_gpu.msg);
    }
    int rc = c.gpu ? sq_gpu_backend(c.gpu, o->plan, &c.be, err) : open_cpu(o, &c, err);
    if (rc) {
        sq_backend_done(&c);
        return rc;
    }
    c.be->ops->info(c.be, &c.device);
    (void)snprintf(c.why, sizeof c.why, "backend %s (%s)%s%.400s", c.device.name, c.device.detail,
                   is_auto ? ": " : " as configured",
                   !is_auto ? ""
                   : c.gpu  ? "a usable GPU comes before the CPU"
                            : no_gpu.msg);
    *ret = c;
    return 0;
}

void sq_backend_done(struct sq_chosen_backend *c)
{
    if (c->be)
        c->be->ops->close(c->be);
    sq_gpu_close(c->gpu);
    *c = (struct sq_chosen_backend){0};
}

/* What the kernel thinks it can give without swapping, or 0. */
static uint64_t available_bytes(void)
{
    FILE *f = fopen("/proc/meminfo", "re");
    char line[128];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib * 1024;
}

uint64_t sq_backend_kv_room(void)
{
    return available_bytes() / 2;
}
