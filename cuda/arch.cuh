/* SPDX-License-Identifier: MIT */
/* The two architectures behind one set of names. This file and the two that it chooses from are
 * the only ones that ask which architecture it is.
 *
 *   sm90.cuh  sm_90a: tiles come through the tensor copy engine, products are wgmma
 *   sm80.cuh  sm_80 and, from its PTX, all newer chips: cp.async and mma.sync
 *
 * Both use the same layout of shared memory, the same fragments and the same order of work.
 *
 * Each gives, besides the facts below (as arch::...):
 *
 *   wait_for_kernel_before, let_next_kernel_start   programmatic dependent launch
 *   mbarrier_wait             until the phase of this parity is complete
 *   mbarriers_publish         fence between mbarrier_init() and its use by the copy engine
 *   fence_async               fence between accesses to shared memory by threads, and those by the
 *                             copy engine and the matrix unit that follow
 *   role_of                   what a producing warp brings
 *   producer_registers, consumer_registers          registers move from producers to consumers
 *   scores, add_values        start the two products of a tile
 *   products_wait, settle     wait until all but the last N are done; make the compiler take
 *                             registers for changed only now
 *
 * A function that one of them has no need for is empty there. */
#ifndef IDEFT_ARCH_CUH
#define IDEFT_ARCH_CUH

#include "ptx.cuh"
#include "tile.cuh"

/* Two warpgroups compute. The producing warps come after them in the block. */
constexpr int CONSUMERS = 256;

/* What host code and the layout of shared memory have to know of an architecture. The host sees
 * both: which code runs is known only when the driver has chosen it. */
struct sm90_facts {
    static constexpr const char *NAME = "sm_90a";
    static constexpr bool COPY_ENGINE = true;
    static constexpr int PRODUCING_WARPS = 4; /* a whole warpgroup, as setmaxnreg wants it */
    static constexpr int KV_WARPS = 2;        /* that bring K and V: one K, one V */
    static constexpr int Q_WARPS = 2;         /* that bring Q where the copy engine does not */
    /* Whether cp.async copies of Q arrive on its mbarrier when they land. Else each loader waits
     * for its own, because wgmma may read them only after a fence. */
    static constexpr bool Q_COPIES_ARRIVE = false;
    static constexpr int AHEAD_BELOW = 256; /* below this head dim, scores are a tile ahead */
};

struct sm80_facts {
    static constexpr const char *NAME = "sm_80";
    static constexpr bool COPY_ENGINE = false;
    static constexpr int PRODUCING_WARPS = 1;
    static constexpr int KV_WARPS = 1;
    static constexpr int Q_WARPS = 1;
    static constexpr bool Q_COPIES_ARRIVE = true;
    static constexpr int AHEAD_BELOW = 0;
};

/* Threads of a block. */
template <typename ARCH> constexpr int THREADS_OF = CONSUMERS + 32 * ARCH::PRODUCING_WARPS;

/* Whether K, V and Q come by boxes of the tensor copy engine. It writes at multiples of 128 bytes,
 * which the rows of a panel narrower than 64 columns are not. */
template <typename ARCH, int D> constexpr bool BOXES_OF = ARCH::COPY_ENGINE &&D % 64 == 0;

/* What a producing warp brings of each tile, and whether it brings Q. */
enum kv_share : uint32_t { K_ONLY, V_ONLY, K_AND_V, NO_KV };

struct producer_role {
    uint32_t kv; /* kv_share */
    bool q;
    uint32_t q_lane; /* number of this thread among those that bring Q */
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
using arch = sm90_facts;
#include "sm90.cuh"
#else
using arch = sm80_facts;
#include "sm80.cuh"
#endif

#endif
