/* SPDX-License-Identifier: MIT */
/* The producing warps: from the plan's records to stages full of K and V, and to tiles of Q. They
 * run ahead into the next unit while the consumers still finish this one. */
#ifndef IDEFT_PRODUCE_CUH
#define IDEFT_PRODUCE_CUH

#include "copy_boxes.cuh"
#include "copy_rows.cuh"

#include <string.h>

namespace {

/* What the producers need of the image's head. */
struct unit_list {
    uint32_t n_units, n_records, by_head;
    const ideft_cuda_copy_t *copies;
};

__device__ __forceinline__ unit_list read_units(const ideft_cuda_attend_t &a,
                                                const ideft_cuda_head_t *head)
{
    return { __ldg(&head->n_units), __ldg(&head->n_records), __ldg(&head->by_head),
             (const ideft_cuda_copy_t *)(a.image + __ldg(&head->copies)) };
}

/* Record and KV head of a unit (kernels.h). */
struct unit_index {
    uint32_t record, head;
    __device__ unit_index(const ideft_cuda_attend_t &a, uint32_t unit, uint32_t n_records,
                          bool by_head)
        : record(by_head ? unit % n_records : unit / a.Hkv),
          head(by_head ? unit / n_records : unit % a.Hkv)
    {
    }
};

/* ---- reading the plan ---- */

/* Copy i, as it comes from memory: to take it apart is to wait for it. */
__device__ __forceinline__ uint4 fetch_copy(const ideft_cuda_copy_t *copies, uint32_t i)
{
    return __ldg((const uint4 *)(copies + i));
}

__device__ __forceinline__ ideft_cuda_copy_t copy_of(const uint4 w)
{
    ideft_cuda_copy_t c;
    memcpy(&c, &w, sizeof(c));
    return c;
}

/* What a producing thread has loaded of a unit's record. */
template <int D> struct unit_loads {
    uint4 h; /* the record's head */
    uint4 c; /* copies of the first tile, a lane each; lanes past the last have what nobody uses */
    uint2 rows[IDEFT_ROWS / shape<D>::Q_LOADERS]; /* query rows */
};

/* For the first unit this is done before anything is known of the plan, the unit's existence
 * included: an image is never too short to read from. */
template <int D>
__device__ __forceinline__ void fetch_unit(const ideft_cuda_attend_t &a, unit_loads<D> &u,
                                           uint32_t record, const producer_role &role,
                                           uint32_t lane)
{
    const unsigned char *rec = a.records + (size_t)record * a.record_bytes;
    u.h = __ldg((const uint4 *)rec);
    if (role.kv < NO_KV)
        u.c = fetch_copy((const ideft_cuda_copy_t *)(rec + a.record_bytes) - IDEFT_INLINE,
                         lane % IDEFT_INLINE);
#pragma unroll
    for (int i = 0; i < IDEFT_ROWS / shape<D>::Q_LOADERS && role.q; i++) {
        const uint32_t r = role.q_lane + i * shape<D>::Q_LOADERS, most = IDEFT_ROWS / a.G - 1;
        u.rows[i] =
            __ldg((const uint2 *)(rec + sizeof(ideft_cuda_record_t)) + (r < most ? r : most));
    }
}

/* ---- filling shared memory ---- */

/* What this warp brings of a tile, and the tile's metadata by the warp that brings K. plane: K's; V
 * has the one Hkv further. */
template <typename T, int D>
__device__ __forceinline__ void put_tile(const ideft_cuda_attend_t &a, control &ctl,
                                         unsigned char *stages, const ideft_cuda_copy_t &c,
                                         uint32_t stage, uint32_t plane, uint32_t kv,
                                         uint64_t policy, uint32_t lane)
{
    const uint32_t k = smem_of(stages + (size_t)stage * 2 * shape<D>::KV_BYTES);
    const uint32_t v = k + shape<D>::KV_BYTES;
    const uint32_t count = __shfl_sync(~0u, c.count, 0), used = __shfl_sync(~0u, c.used, 0);
    uint64_t *full = &ctl.full[stage];
    if constexpr (shape<D>::BOXES)
        if (put_whole_tile<D>(a, ctl, c, stage, used, kv == K_ONLY ? k : v,
                              kv == K_ONLY ? plane : plane + a.Hkv, kv, policy, lane))
            return;
    if (kv != V_ONLY) {
        const uint32_t flags = __shfl_sync(~0u, c.flags, 0);
        if (lane == 0)
            ctl.tile[stage].flags = flags;
        if ((flags & (IDEFT_MASK * 3)) != 0 || a.window != 0)
            put_tile_meta(ctl.tile[stage], c, count, used, lane);
        __syncwarp();
    }
    if constexpr (shape<D>::BOXES)
        put_tile_boxes<D>(a, c, count, used, k, v, plane, full, kv, policy, lane);
    else
        put_tile_rows<T, D>(a, c, count, k, v, plane, full, kv, lane);
}

/* In place of a unit: none follows. */
template <int D> __device__ __forceinline__ void put_stop(control &ctl, uint32_t buf, uint32_t lane)
{
    if (lane == 0)
        ctl.unit[buf].n_rows = 0;
    if constexpr (arch::Q_COPIES_ARRIVE)
        mbarrier_arrive_after_copies(&ctl.q_full[buf]);
    mbarrier_arrive(&ctl.q_full[buf]);
}

/* ---- the warps ---- */

/* A producing warp, from its first unit to the last. u: the first unit's record, fetched. */
template <typename T, int D>
__device__ __forceinline__ void produce(const ideft_cuda_attend_t &a, control &ctl,
                                        unsigned char *stages, unsigned char *q, unit_loads<D> &u,
                                        const unit_list &units, const producer_role &role)
{
    const uint32_t lane = threadIdx.x % 32;
    uint64_t policy = 0;
    if constexpr (shape<D>::BOXES)
        policy = evict_first();
    ring at = { 0, 0 };
    uint32_t k = 0;
    for (uint32_t unit = blockIdx.x; unit < units.n_units; unit += gridDim.x, k++) {
        const unit_index index(a, unit, units.n_records, units.by_head != 0);
        const uint32_t kv_head = index.head, buf = k % a.q_buffers;
        if (k > 0 || units.by_head)
            fetch_unit<D>(a, u, index.record, role, lane);
        if (role.q) {
            mbarrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
            unsigned char *to = q + (size_t)buf * shape<D>::Q_BYTES;
            if constexpr (shape<D>::BOXES)
                put_q_boxes<D>(a, u.h, u.rows, ctl, to, buf, kv_head, role.q_lane);
            else
                put_q_rows<T, D, shape<D>::Q_LOADERS>(a, u.h, u.rows, ctl, to, buf, kv_head,
                                                      role.q_lane);
        }
        /* Q first: after as many stages of K and V as there are it would come late */
        if (shape<D>::BOXES && k == 0)
            meet<named_barrier::FIRST_Q>();
        if (role.kv == NO_KV)
            continue;
        uint32_t next = u.h.x;
        if (__shfl_sync(~0u, copy_of(u.c).count, 0) > IDEFT_INLINE)
            u.c = fetch_copy(units.copies, next + lane);
        for (bool last = false; !last; at.next(a.stages)) {
            const ideft_cuda_copy_t now = copy_of(u.c);
            last = (__shfl_sync(~0u, now.flags, 0) & IDEFT_LAST) != 0;
            next += __shfl_sync(~0u, now.count, 0);
            mbarrier_wait(&ctl.empty[at.stage], at.parity);
            if (!last) /* comes while this tile is brought, or while the next stage is waited for */
                u.c = fetch_copy(units.copies, next + lane);
            put_tile<T, D>(a, ctl, stages, now, at.stage, a.first_plane + kv_head, role.kv, policy,
                           lane);
        }
    }
    if (role.q) {
        const uint32_t buf = k % a.q_buffers;
        mbarrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
        put_stop<D>(ctl, buf, role.q_lane);
    }
    if (!shape<D>::BOXES)
        copies_wait();
}

} // namespace

#endif
