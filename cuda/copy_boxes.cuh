/* SPDX-License-Identifier: MIT */
/* Bringing K, V and Q by the tensor copy engine (cp.async.bulk.tensor): one instruction of one lane
 * copies a box of rows that follow each other in memory. Only where shape<D>::BOXES. */
#ifndef IDEFT_COPY_BOXES_CUH
#define IDEFT_COPY_BOXES_CUH

#include "metadata.cuh"

namespace {

/* Arrive, and let the phase also wait for so many bytes of copies. */
__device__ __forceinline__ void mbarrier_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_of(b)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void prefetch_map(const ideft_cuda_map_t *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* For copies of what nobody will read again: it leaves the L2 first. */
__device__ __forceinline__ uint64_t evict_first()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* A box of a tensor [plane][panel][row][64 columns]; its size is the map's. */
__device__ __forceinline__ void copy_box(uint32_t to, const ideft_cuda_map_t *map, uint32_t row,
                                         uint32_t panel, uint32_t plane, uint64_t *b)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
                 "l"(map), "r"(0), "r"(row), "r"(panel), "r"(plane), "r"(smem_of(b))
                 : "memory");
}

__device__ __forceinline__ void stream_box(uint32_t to, const ideft_cuda_map_t *map, uint32_t row,
                                           uint32_t panel, uint32_t plane, uint64_t *b,
                                           uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
                 "l"(map), "r"(0), "r"(row), "r"(panel), "r"(plane), "r"(smem_of(b)), "l"(policy)
                 : "memory");
}

/* ---- K and V ---- */

/* A box of tokens in one panel, or a whole tile with all panels. */
__device__ __forceinline__ void copy_tokens(const ideft_cuda_attend_t &a,
                                            const ideft_cuda_copy_t &c, uint32_t to, uint32_t box,
                                            uint32_t slot, uint32_t panel, uint32_t plane,
                                            uint64_t *full, uint64_t policy)
{
    if (c.at & IDEFT_STREAM)
        stream_box(to, &a.box[box], slot, panel, plane, full, policy);
    else
        copy_box(to, &a.box[box], slot, panel, plane, full);
}

/* What one lane copies: its run of the tile, as one box if it is the whole tile, else by boxes of
 * 32, 16, ..., 1 tokens. If all slots of the tile follow each other, the first lane copies them
 * all. */
template <int D>
__device__ __forceinline__ void copy_run(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c,
                                         uint32_t to, uint32_t plane, uint64_t *full,
                                         uint64_t policy)
{
    const uint32_t first = c.at & ~IDEFT_STREAM;
    const uint32_t n = !(c.flags & IDEFT_DENSE) ? c.n : first == 0 ? c.used : 0;
    if (n == IDEFT_TILE) {
        copy_tokens(a, c, to, IDEFT_BOXES - 1, c.slot, 0, plane, full, policy);
        return;
    }
#pragma unroll 1
    for (uint32_t done = 0; done < n;) {
        const uint32_t b = 31 - __clz(n - done);
#pragma unroll
        for (int p = 0; p < D / 64; p++)
            copy_tokens(a, c, to + (p * IDEFT_TILE + first + done) * 128, b, c.slot + done, p,
                        plane, full, policy);
        done += 1u << b;
    }
}

/* Most tiles of a long prefix are one copy, and every row of the record sees all of it. One lane
 * then does everything, and arrives for the lanes that have nothing to write. Returns false, having
 * done nothing, if this is another tile. */
template <int D>
__device__ __forceinline__ bool put_whole_tile(const ideft_cuda_attend_t &a, control &ctl,
                                               const ideft_cuda_copy_t &c, uint32_t stage,
                                               uint32_t used, uint32_t to, uint32_t plane,
                                               uint32_t kv, uint64_t policy, uint32_t lane)
{
    const uint32_t flags = __shfl_sync(~0u, c.flags, 0), n = __shfl_sync(~0u, c.n, 0);
    uint64_t *full = &ctl.full[stage];
    if ((kv == K_ONLY && ((flags & IDEFT_MASK * 3) != 0 || a.window != 0)) || used != IDEFT_TILE ||
        (n != IDEFT_TILE && !(flags & IDEFT_DENSE)))
        return false;
    if (lane == 0) {
        if (kv == K_ONLY)
            ctl.tile[stage].flags = flags;
        mbarrier_expect(full, IDEFT_TILE * D * 2);
        if (kv == K_ONLY)
            mbarrier_arrive(full, shape<D>::FULL_COUNT - 2); /* all but its own arrival and V's */
        copy_tokens(a, c, to, IDEFT_BOXES - 1, c.slot, 0, plane, full, policy);
    }
    return true;
}

/* Any other tile, K at `k` or V at `v`: a lane each of its copies. */
template <int D>
__device__ __forceinline__ void
put_tile_boxes(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c, uint32_t count,
               uint32_t used, uint32_t k, uint32_t v, uint32_t plane, uint64_t *full, uint32_t kv,
               uint64_t policy, uint32_t lane)
{
    if (lane == 0) /* publishes the metadata */
        mbarrier_expect(full, used * D * 2);
    else if (kv == K_ONLY)
        mbarrier_arrive(full);
    __syncwarp();
    if (count > lane)
        copy_run<D>(a, c, kv == K_ONLY ? k : v, kv == K_ONLY ? plane : plane + a.Hkv, full, policy);
}

/* ---- Q ---- */

/* n query rows, from the record's row `at` on, that follow each other in q: a box for each power of
 * two in n. */
template <int D>
__device__ __forceinline__ void copy_queries(const ideft_cuda_attend_t &a, uint32_t to, uint32_t at,
                                             uint32_t n, uint32_t token, uint32_t head,
                                             uint64_t *full)
{
#pragma unroll 1
    while (n > 0) {
        const uint32_t b = 31 - __clz(n);
#pragma unroll
        for (int p = 0; p < D / 64; p++)
            copy_box(to + (p * IDEFT_ROWS + at * a.G) * 128, &a.q_box[b], head * a.G, p, token,
                     full);
        at += 1u << b;
        token += 1u << b;
        n -= 1u << b;
    }
}

/* Rows of Q of a unit: all by one lane if they follow each other in q, as they do in a step over
 * the whole tree, else one query row after the other. */
template <int D>
__device__ __forceinline__ void put_q_boxes(const ideft_cuda_attend_t &a, const uint4 h,
                                            const uint2 (&rows)[4], control &ctl, unsigned char *q,
                                            uint32_t buf, uint32_t head, uint32_t lane)
{
    unit_meta &unit = ctl.unit[buf];
    put_unit_meta<32>(unit, h, rows, head, lane);
    const uint32_t token = __shfl_sync(~0u, rows[0].x, 0) & ~IDEFT_DIRECT;
    bool follow = true;
#pragma unroll
    for (int i = 0; i < 4; i++)
        follow &= lane + i * 32 >= h.y || (rows[i].x & ~IDEFT_DIRECT) == token + lane + i * 32;
    follow = __all_sync(~0u, follow);
    if (lane == 0) /* publishes the unit */
        mbarrier_expect(&ctl.q_full[buf], h.y * a.G * D * 2);
    else
        mbarrier_arrive(&ctl.q_full[buf]);
    __syncwarp();
    if (!follow)
        for (uint32_t i = lane; i < h.y; i += 32)
            copy_queries<D>(a, smem_of(q), i, 1, unit.row[i].token & ~IDEFT_DIRECT, head,
                            &ctl.q_full[buf]);
    else if (lane == 0)
        copy_queries<D>(a, smem_of(q), 0, h.y, token, head, &ctl.q_full[buf]);
}

} // namespace

#endif
