#include "daemon/gpu.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/base/mem.h"

#define MODULE "libsqd-cuda.so"

struct sq_gpu {
    void *lib;
    const struct sq_gpu_module *module;
    struct sq_gpu_probe probe;
    char cache_dir[512]; /* borrowed by backends */
};

/* Path of a module beside this program in its build folder, <build>/daemon/sqd; false elsewhere. */
static bool build_path(char *path, size_t bytes)
{
    char exe[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return false;
    exe[n] = 0;
    char *slash = strrchr(exe, '/');
    if (!slash)
        return false;
    *slash = 0;
    slash = strrchr(exe, '/');
    if (!slash || strcmp(slash, "/daemon") != 0)
        return false;
    *slash = 0;
    return (size_t)snprintf(path, bytes, "%s/cuda/" MODULE, exe) < bytes;
}

static int find(char *path, size_t bytes, struct sq_err *err)
{
    const char *named = getenv("SQD_GPU_MODULE");
    if (named) {
        if ((size_t)snprintf(path, bytes, "%s", named) < bytes && access(path, F_OK) == 0)
            return 0;
        return sq_fail(err, SQ_E_UNAVAIL, "no GPU module at %.300s (SQD_GPU_MODULE)", named);
    }
    if (build_path(path, bytes) && access(path, F_OK) == 0)
        return 0;
    (void)snprintf(path, bytes, "%s/" MODULE, SQD_MODULE_DIR);
    if (access(path, F_OK) == 0)
        return 0;
    return sq_fail(err, SQ_E_UNAVAIL, "no GPU module is installed (%.300s)", path);
}

/* The loader's text begins with the name of what it could not find. */
static int explain(const char *path, const char *text, struct sq_err *err)
{
    text = text ? text : "no reason given";
    bool cuda_lib = strncmp(text, "libcudart", 9) == 0 || strncmp(text, "libcublas", 9) == 0;
    if (cuda_lib && strstr(text, "cannot open shared object file"))
        return sq_fail(err, SQ_E_UNAVAIL, "CUDA libraries not found (%.*s)",
                       (int)strcspn(text, ":"), text);
    return sq_fail(err, SQ_E_UNAVAIL, "the GPU module %.200s cannot be loaded: %.200s", path, text);
}

static int open_library(const char *path, struct sq_gpu *g, struct sq_err *err)
{
    g->lib = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!g->lib)
        return explain(path, dlerror(), err);
    void *symbol = dlsym(g->lib, SQ_GPU_SYMBOL);
    sq_gpu_module_fn *door;
    _Static_assert(sizeof door == sizeof symbol, "POSIX: dlsym serves for functions, too");
    memcpy(&door, &symbol, sizeof door);
    g->module = symbol ? door() : NULL;
    if (!g->module)
        return sq_fail(err, SQ_E_UNAVAIL, "%.300s is no GPU module of sqd", path);
    if (g->module->abi != SQ_GPU_ABI || g->module->struct_bytes != sizeof *g->module)
        return sq_fail(err, SQ_E_UNAVAIL,
                       "the GPU module %.300s does not fit this program: interface %u of %zu "
                       "bytes, expected %u of %zu",
                       path, g->module->abi, (size_t)g->module->struct_bytes, SQ_GPU_ABI,
                       sizeof *g->module);
    return 0;
}

int sq_gpu_open(bool plan, struct sq_gpu **ret, struct sq_err *err)
{
    char path[PATH_MAX];
    int rc = find(path, sizeof path, err);
    if (rc)
        return rc;
    struct sq_gpu *g = sq_new(struct sq_gpu);
    if (!g)
        return sq_fail(err, SQ_E_NOMEM, "out of memory");
    rc = open_library(path, g, err);
    if (!rc && !plan) {
        struct sq_err e = {0};
        rc = g->module->probe(&g->probe, &e);
        if (rc) /* whatever the reason: there is none to use */
            rc = sq_fail(err, SQ_E_UNAVAIL, "%s", e.msg[0] ? e.msg : sq_code_text(rc));
    }
    if (rc) {
        sq_gpu_close(g);
        return rc;
    }
    *ret = g;
    return 0;
}

/* Where timings of matmul algorithms are kept: the service's cache, or the user's; made if need be. Empty: nowhere. */
static void find_cache(char *path, size_t bytes)
{
    const char *service = getenv("CACHE_DIRECTORY"), /* systemd: CacheDirectory= */
        *user = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    int n = 0;
    if (service && *service == '/')
        n = snprintf(path, bytes, "%s", service);
    else if (user && *user == '/')
        n = snprintf(path, bytes, "%s/sqd", user);
    else if (home && *home == '/') {
        n = snprintf(path, bytes, "%s/.cache", home);
        if (n > 0 && (size_t)n < bytes)
            (void)mkdir(path, 0700);
        n = snprintf(path, bytes, "%s/.cache/sqd", home);
    }
    if (n <= 0 || (size_t)n >= bytes || (mkdir(path, 0700) != 0 && access(path, W_OK) != 0))
        *path = 0;
}

int sq_gpu_backend(struct sq_gpu *g, bool plan, struct sq_backend **ret, struct sq_err *err)
{
    if (!plan)
        find_cache(g->cache_dir, sizeof g->cache_dir);
    struct sq_gpu_options o = {
        .world_size = 1, .plan = plan, .cache_dir = g->cache_dir[0] ? g->cache_dir : NULL};
    return g->module->open(&o, ret, err);
}

void sq_gpu_close(struct sq_gpu *g)
{
    if (!g)
        return;
    if (g->lib)
        (void)dlclose(g->lib);
    sq_free(g);
}

const struct sq_gpu_module *sq_gpu_module(const struct sq_gpu *g)
{
    return g->module;
}

const struct sq_gpu_probe *sq_gpu_probed(const struct sq_gpu *g)
{
    return &g->probe;
}
