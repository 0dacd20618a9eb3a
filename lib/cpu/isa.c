/* SPDX-License-Identifier: MIT */
/* Which instruction sets the processor has, and which of them computes a KV type. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "kernel.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* ---- what the processor has ------------------------------------------------------------------ */

#define MAYBE __attribute__((unused)) /* a compiler that cannot make a set leaves its test unused */

#if defined(__x86_64__) || defined(__i386__)
/* Bit `bit` of ecx (word 2) or edx (word 3) of a leaf of cpuid. */
static bool has_bit(unsigned leaf, int word, int bit)
{
    unsigned r[4] = { 0 };
    return __get_cpuid_count(leaf, 0, &r[0], &r[1], &r[2], &r[3]) != 0 && (r[word] >> bit & 1) != 0;
}

MAYBE static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_bit(1, 2, 29);
}

MAYBE static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

MAYBE static bool has_avx512_bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

#if defined(__x86_64__)
MAYBE static bool has_amx_bf16(void)
{
    return has_avx512_bf16() && has_bit(7, 3, 22) && has_bit(7, 3, 24);
}

/* Linux gives tile registers only to a process that asks for them. From then on it refuses signal
 * stacks that have no room for them, so that only who computes with them asks. */
MAYBE static bool may_use_amx(void)
{
#ifdef __linux__
    const long request = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tile_data = 18;
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}
#endif

static bool always(void)
{
    return true;
}

#if defined(__x86_64__) || defined(__i386__)
/* vdpbf16ps does two products a lane where an FMA does one. Intel's cores begin half as many of
 * them a clock, so that nothing is gained, AMD's as many: without being asked for, it is taken only
 * on the latter. */
MAYBE static bool is_amd(void)
{
    return __builtin_cpu_is("amd");
}
#endif

/* ---- the table ------------------------------------------------------------------------------- */

/* From the least to the best. */
static const struct {
    const ideft_kernel_t *kernel;
    bool (*there)(void);    /* the processor has it */
    bool (*worth_it)(void); /* without being asked for */
    bool (*may_use)(void);  /* asks the system; last, and only if it will be used */
} sets[] = {
    { &ideft_kernel_scalar, always, always, always },
    { &ideft_kernel_vector, always, always, always },
#ifdef HAVE_AVX2
    { &ideft_kernel_avx2, has_avx2, always, always },
#endif
#ifdef HAVE_AVX512
    { &ideft_kernel_avx512, has_avx512, always, always },
#endif
#ifdef HAVE_AVX512_BF16
    { &ideft_kernel_avx512_bf16, has_avx512_bf16, is_amd, always },
#endif
#ifdef HAVE_AMX_BF16
    { &ideft_kernel_amx_bf16, has_amx_bf16, always, may_use_amx },
#endif
};

#define SETS (sizeof(sets) / sizeof(*sets))

/* DEFT_ISA=scalar|vector|neon|avx2|avx512|avx512_bf16|amx_bf16 in the environment; BEST if unset,
 * or if this build has no such set. */
static deft_isa_t isa_from_environment(ideft_host_t *host)
{
    const char *name = getenv("DEFT_ISA");
    if (name == NULL || *name == '\0')
        return DEFT_ISA_BEST;
    if (strcmp(name, "vector") == 0 || strcmp(name, "neon") == 0)
        return DEFT_ISA_VECTOR;
    for (size_t i = 0; i < SETS; i++)
        if (strcmp(name, sets[i].kernel->name) == 0)
            return sets[i].kernel->isa;
    ideft_log(host, DEFT_LOG_WARN, "DEFT_ISA names no instruction set of this build: ignored");
    return DEFT_ISA_BEST;
}

/* The last set of the table that this processor has and that computes the type, up to the one that
 * is asked for. */
deft_status_t ideft_kernel_choose(ideft_host_t *host, deft_isa_t asked, deft_dtype_t type,
                                  const ideft_kernel_t **kernel_p)
{
    const deft_isa_t want = asked == DEFT_ISA_BEST ? isa_from_environment(host) : asked;
    const ideft_kernel_t *best = NULL;
    bool last = false, there = false, refused = false;
    for (size_t i = 0; i < SETS && !last; i++) {
        const ideft_kernel_t *kernel = sets[i].kernel;
        last = kernel->isa == want;
        there = sets[i].there();
        if (there && kernel->group[type] != NULL && (last || sets[i].worth_it())) {
            refused = !sets[i].may_use();
            there = !refused;
            best = there ? kernel : best;
        }
    }
    if (refused)
        ideft_log(host, DEFT_LOG_WARN,
                  "the system refuses AMX (a signal stack without room for its registers?)");
    if (best == NULL || (asked != DEFT_ISA_BEST && !(last && there)))
        return ideft_fail(host, DEFT_ERR_UNSUPPORTED,
                          "this processor or build lacks the instructions");
    *kernel_p = best;
    return DEFT_OK;
}
