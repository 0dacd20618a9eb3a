/* SPDX-License-Identifier: MIT */
/* Named barriers (bar.sync, bar.arrive): who meets where. The hardware has 16 in a block, and 0 is
 * __syncthreads(). */
#ifndef IDEFT_NAMED_BARRIER_CUH
#define IDEFT_NAMED_BARRIER_CUH

#include "arch.cuh"

/* Of the attention kernel; threads_at() is how many threads meet. */
enum class named_barrier : uint32_t {
    CONSUMERS = 1, /* all computing threads, when they exchange states or reuse the place of Q */
    Q_LOADERS = 2, /* the two warps that bring Q without the copy engine: a unit's rows are known */
    STAGGER = 3,   /* the first warpgroup arrives when its first scores are there; the second waits
                    * for it, so that one computes weights while the other multiplies */
    FIRST_Q = 4    /* the warps of K, V and Q, once: Q is asked for before any K and V */
};

__host__ __device__ constexpr uint32_t threads_at(named_barrier b)
{
    switch (b) {
    case named_barrier::CONSUMERS:
        return CONSUMERS;
    case named_barrier::Q_LOADERS:
        return 2 * 32;
    case named_barrier::STAGGER:
        return CONSUMERS;
    case named_barrier::FIRST_Q:
        return 3 * 32;
    }
    return 0;
}

/* Wait for all of them. */
template <named_barrier B> __device__ __forceinline__ void meet()
{
    constexpr uint32_t ID = (uint32_t)B, THREADS = threads_at(B);
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

/* Be counted and go on. */
template <named_barrier B> __device__ __forceinline__ void announce()
{
    constexpr uint32_t ID = (uint32_t)B, THREADS = threads_at(B);
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

/* Of the merge kernel, which has up to 8 teams of warps: barrier 1 + team. */
__device__ __forceinline__ void meet_team(uint32_t team, uint32_t threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "r"(threads) : "memory");
}

#endif
