/* SPDX-License-Identifier: MIT */
/* Which instruction sets the processor has, and which of them computes a KV type. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#endif

#include "kernel.h"

/* Linux gives tile registers only to a process that asks for them. */
static bool amx_permitted(void)
{
#if defined(__linux__) && defined(__x86_64__)
    const long request = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tile_data = 18;
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}

static bool has_isa(deft_isa_t isa)
{
#if defined(__x86_64__) || defined(__i386__)
    switch (isa) {
    case DEFT_ISA_AVX2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
    case DEFT_ISA_AVX512:
        return has_isa(DEFT_ISA_AVX2) && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
    case DEFT_ISA_AVX512_BF16:
        return has_isa(DEFT_ISA_AVX512) && __builtin_cpu_supports("avx512bf16");
    case DEFT_ISA_AMX_BF16:
#if defined(__x86_64__)
    {
        unsigned a, b, c, d;
        __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
        return has_isa(DEFT_ISA_AVX512) && (d >> 22 & 1) && (d >> 24 & 1) && amx_permitted();
    }
#endif
    default:
        return isa == DEFT_ISA_SCALAR;
    }
#else
    return isa == DEFT_ISA_SCALAR;
#endif
}

static const ideft_kernel_t *const kernels[] = {
    &ideft_kernel_scalar,
#ifdef HAVE_AVX2
    &ideft_kernel_avx2,
#endif
#ifdef HAVE_AVX512
    &ideft_kernel_avx512,
#endif
#ifdef HAVE_AVX512_BF16
    &ideft_kernel_avx512_bf16,
#endif
#ifdef HAVE_AMX_BF16
    &ideft_kernel_amx_bf16,
#endif
};

/* DEFT_ISA=scalar|avx2|avx512|avx512_bf16|amx_bf16 in the environment; BEST if unset or unknown. */
static deft_isa_t isa_from_environment(void)
{
    const char *name = getenv("DEFT_ISA");
    for (size_t i = 0; name != NULL && i < sizeof(kernels) / sizeof(*kernels); i++)
        if (strcmp(name, kernels[i]->name) == 0)
            return kernels[i]->isa;
    return DEFT_ISA_BEST;
}

/* vdpbf16ps has half the throughput of an f32 FMA on Intel's cores, twice on AMD's: without being
 * asked for, it is taken only on the latter. */
static bool worth_it(deft_isa_t isa)
{
#if defined(__x86_64__) || defined(__i386__)
    return isa != DEFT_ISA_AVX512_BF16 || __builtin_cpu_is("amd");
#else
    (void)isa;
    return true;
#endif
}

/* The last set of the table that this processor has and that computes the type, up to the one that
 * is asked for. */
deft_status_t ideft_kernel_choose(ideft_host_t *host, deft_isa_t asked, deft_dtype_t type,
                                  const ideft_kernel_t **kernel_p)
{
    const deft_isa_t want = asked == DEFT_ISA_BEST ? isa_from_environment() : asked;
    const ideft_kernel_t *best = NULL;
    for (size_t i = 0; i < sizeof(kernels) / sizeof(*kernels); i++) {
        const ideft_kernel_t *kernel = kernels[i];
        if (kernel->isa == want && !has_isa(kernel->isa))
            break;
        if ((want != DEFT_ISA_BEST && kernel->isa > want) || !has_isa(kernel->isa) ||
            kernel->group[type] == NULL || (kernel->isa != want && !worth_it(kernel->isa)))
            continue;
        best = kernel;
    }
    const bool named = asked != DEFT_ISA_BEST;
    if (best == NULL || (named && !has_isa(asked)))
        return ideft_fail(host, DEFT_ERR_UNSUPPORTED,
                          "this processor or build lacks the instructions");
    *kernel_p = best;
    return DEFT_OK;
}
