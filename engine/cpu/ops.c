/* Dispatch: what this processor and its operating system can run. */
#include "engine/cpu/backend_cpu.h"
#include "engine/cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* The compiler's __builtin_cpu_supports does not know AVX-VNNI everywhere, so the leaves are read here. */
struct features {
    bool avx2, avx_vnni, avx512_vnni;
};

/* Which register states the operating system saves. */
static uint64_t xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

static bool has(uint32_t reg, uint32_t bits)
{
    return (reg & bits) == bits;
}

static struct features detect(void)
{
    const uint32_t f16c = 1u << 29, fma = 1u << 12, avx = 1u << 28, osxsave = 1u << 27;
    const uint32_t avx2 = 1u << 5, avx512_fdqbwvl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const uint32_t avx512_vnni = 1u << 11, avx_vnni = 1u << 4;
    const uint64_t ymm_state = 0x6, zmm_state = 0xe6;
    struct features f = {0};
    uint32_t a, b, c, d, a1 = 0, b1, c1, d1;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, f16c | fma | avx | osxsave) ||
        (xcr0() & ymm_state) != ymm_state)
        return f;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return f;
    f.avx2 = has(b, avx2);
    if (a >= 1 && __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1))
        f.avx_vnni = f.avx2 && has(a1, avx_vnni);
    f.avx512_vnni = f.avx2 && has(b, avx512_fdqbwvl) && has(c, avx512_vnni) &&
                    (xcr0() & zmm_state) == zmm_state;
    return f;
}
#endif

#if defined(__x86_64__)
/* Every processor with AVX512-VNNI runs the 256-bit code, too, if need be in the encoding of AVX-512 (evexvnni). So what a
 * processor runs is always the end of one chain. */
static const struct sq_cpu_ops *const vex_chain[] = {&sq_cpu_ops_avx512vnni, &sq_cpu_ops_avxvnni,
                                                     &sq_cpu_ops_avx2, &sq_cpu_ops_ref, NULL};
static const struct sq_cpu_ops *const evex_chain[] = {&sq_cpu_ops_avx512vnni, &sq_cpu_ops_evexvnni,
                                                      &sq_cpu_ops_avx2, &sq_cpu_ops_ref, NULL};
static const char *const name_chain[] = {"AVX512-VNNI", "AVX-VNNI", "AVX2", "ref", NULL};

static int chain_start(struct features f)
{
    return f.avx512_vnni ? 0 : f.avx_vnni ? 1 : f.avx2 ? 2 : 3;
}

const struct sq_cpu_ops *const *sq_cpu_variants(void)
{
    const struct features f = detect();
    return (f.avx512_vnni && !f.avx_vnni ? evex_chain : vex_chain) + chain_start(f);
}

const char *const *sq_cpu_variant_names(void)
{
    return name_chain + chain_start(detect());
}
#else
static const struct sq_cpu_ops *const ref_chain[] = {&sq_cpu_ops_ref, NULL};
static const char *const name_chain[] = {"ref", NULL};

const struct sq_cpu_ops *const *sq_cpu_variants(void)
{
    return ref_chain;
}

const char *const *sq_cpu_variant_names(void)
{
    return name_chain;
}
#endif

const struct sq_cpu_ops *sq_cpu_variant(const char *name)
{
    for (const struct sq_cpu_ops *const *v = sq_cpu_variants(); *v; v++) {
        if (!name || strcmp(name, (*v)->name) == 0)
            return *v;
    }
    return NULL;
}
