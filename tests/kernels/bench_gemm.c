/* Prints the roofline table: bench_gemm [variant [threads...]]; "quick" as the first argument for a short one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/roof.h"

static void print_cell(void *arg, const struct sq_roof_cell *c)
{
    (void)arg;
    printf("%d thread%s  %5zu x %-5zu M %-3d  %9.1f us  %7.1f of %7.1f %s  %5.1f %% [%.1f - %.1f] "
           "%d/%d quiet\n",
           c->threads, c->threads == 1 ? " " : "s", c->k, c->n, c->m, c->us, c->rate, c->probe,
           c->by_bandwidth ? "GB/s " : "GOP/s", 100 * c->share, 100 * c->share_min,
           100 * c->share_max, c->n_quiet, c->n_samples);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct sq_roof_options o = {0};
    struct sq_err err = {0};
    int i = 1, n = 0;
    if (i < argc && strcmp(argv[i], "quick") == 0) {
        o.quick = true;
        i++;
    }
    if (i < argc)
        o.variant = argv[i++];
    for (; i < argc && n < SQ_ROOF_THREADS_MAX; i++)
        o.threads[n++] = atoi(argv[i]);
    if (sq_roof_run(&o, print_cell, NULL, &err)) {
        fprintf(stderr, "bench_gemm: %s\n", err.msg);
        return 1;
    }
    return 0;
}
