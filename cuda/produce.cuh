/* SPDX-License-Identifier: MIT */
/* The producing warps: from records to stages full of K and V and to a tile of Q. They run ahead into
 * the next unit while the consumers still finish this one. */
#ifndef IDEFT_PRODUCE_CUH
#define IDEFT_PRODUCE_CUH

#include "block.cuh"

namespace {

__device__ __forceinline__ const ideft_cuda_record_t *record_of(const ideft_cuda_attend_t &a, uint32_t unit)
{
    return (const ideft_cuda_record_t *)(a.records + (size_t)(unit / a.Hkv) * a.record_bytes);
}

/* The copies of a tile, a lane each; what is behind them is not used. */
__device__ __forceinline__ ideft_cuda_copy_t fetch_copy(const ideft_cuda_copy_t *copies, uint32_t i)
{
    const uint4 w = __ldg((const uint4 *)(copies + i));
    ideft_cuda_copy_t c;
    memcpy(&c, &w, sizeof(c));
    return c;
}

/* ---- K and V -------------------------------------------------------------------------------------- */

/* Who sees a copy's column i. */
__device__ __forceinline__ uint16_t column_seen(uint32_t lo, uint32_t hi, uint32_t edge, uint32_t i)
{
    const uint32_t first = lo + (i > edge ? i - edge : 0);
    return (uint16_t)(first | (first < hi ? hi - first : 0) << 8);
}

__device__ __forceinline__ void put_meta(tile_meta &meta, const ideft_cuda_copy_t &c, uint32_t count, uint32_t used,
                                         uint32_t lane)
{
    uint16_t *seen = (uint16_t *)meta.seen;
    if (count == 1) {
        const uint32_t n = __shfl_sync(~0u, c.n, 0), lo = __shfl_sync(~0u, c.lo, 0), hi = __shfl_sync(~0u, c.hi, 0);
        const uint32_t edge = __shfl_sync(~0u, c.edge, 0), pos = __shfl_sync(~0u, c.pos, 0);
        for (uint32_t i = lane; i < n; i += 32) {
            seen[i] = column_seen(lo, hi, edge, i);
            meta.pos[i] = pos + i;
        }
    } else if (lane < count) {
#pragma unroll 1
        for (uint32_t i = 0; i < c.n; i++) {
            seen[c.at + i] = column_seen(c.lo, c.hi, c.edge, i);
            meta.pos[c.at + i] = c.pos + i;
        }
    }
    for (uint32_t i = used + lane; i < IDEFT_TILE; i += 32) {
        seen[i] = 0;
        meta.pos[i] = 0;
    }
}

#if IDEFT_HOPPER
/* A lane's copy: all panels at once if it is a whole tile, else as boxes of 32, 16, ..., 1 tokens. */
template <int D>
__device__ __forceinline__ void copy_run(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c, uint32_t to,
                                         uint32_t plane, uint64_t *full)
{
    if (c.n == IDEFT_TILE) {
        copy_box(to, &a.box[IDEFT_BOXES - 1], c.slot, 0, plane, full);
        return;
    }
#pragma unroll 1
    for (uint32_t done = 0; done < c.n;) {
        const uint32_t b = 31 - __clz(c.n - done);
#pragma unroll
        for (int p = 0; p < D / 64; p++)
            copy_box(to + (p * IDEFT_TILE + c.at + done) * 128, &a.box[b], c.slot + done, p, plane, full);
        done += 1u << b;
    }
}
#endif

/* The same where there is no copy engine, or it cannot: 16 bytes a lane. */
template <typename T, int D>
__device__ __forceinline__ void copy_rows(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c, uint32_t count,
                                          uint32_t to, uint32_t plane, uint32_t lane)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t slot = __shfl_sync(~0u, c.slot, i), at = __shfl_sync(~0u, c.at, i), n = __shfl_sync(~0u, c.n, i);
        const T *from = (const T *)a.arena + (size_t)plane * a.plane + (size_t)slot * D;
        for (uint32_t j = lane; j < n * shape<D>::CHUNKS; j += 32)
            copy_16(to + tile_chunk<D>(IDEFT_TILE, at + j / shape<D>::CHUNKS, j % shape<D>::CHUNKS), from + j * 8);
    }
}

/* K (side 0), V (side 1) or both (side 2) of a tile. */
template <typename T, int D>
__device__ __forceinline__ void put_tile(const ideft_cuda_attend_t &a, control &ctl, unsigned char *stages,
                                         const ideft_cuda_copy_t &c, uint32_t stage, uint32_t plane, uint32_t side,
                                         uint32_t lane)
{
    const uint32_t k = smem_of(stages + (size_t)stage * 2 * shape<D>::KV_BYTES), v = k + shape<D>::KV_BYTES;
    const uint32_t count = __shfl_sync(~0u, c.count, 0), used = __shfl_sync(~0u, c.used, 0);
    uint64_t *full = &ctl.full[stage];
    if (side != 1) {
        const uint32_t flags = __shfl_sync(~0u, c.flags, 0);
        if (lane == 0)
            ctl.tile[stage].flags = flags;
        if ((flags & (IDEFT_MASK * 3)) != 0 || a.window != 0)
            put_meta(ctl.tile[stage], c, count, used, lane);
        __syncwarp();
    }
#if IDEFT_HOPPER
    if constexpr (shape<D>::BOXES) {
        if (lane == 0) /* publishes the meta data */
            barrier_expect(full, used * D * 2);
        __syncwarp();
        if (lane < count)
            copy_run<D>(a, c, side == 0 ? k : v, side == 0 ? plane : plane + a.Hkv, full);
        return;
    }
#endif
    if (side != 1)
        copy_rows<T, D>(a, c, count, k, plane, lane);
    if (side != 0)
        copy_rows<T, D>(a, c, count, v, plane + a.Hkv, lane);
    barrier_arrive_after_copies(full);
    barrier_arrive(full);
}

/* ---- Q ---------------------------------------------------------------------------------------------- */

/* Those who gather Q wait for each other. */
__device__ __forceinline__ void loaders_meet()
{
    if (IDEFT_HOPPER)
        asm volatile("bar.sync 2, 64;" ::: "memory");
    else
        __syncwarp();
}

constexpr int ROWS_A_LOADER = IDEFT_ROWS / Q_LOADERS;

/* Rows of Q of a unit, and what the consumers need to know of it. `lane` counts the loaders: each has
 * one chunk of 16 bytes in every so many matrix rows. rows: the record's rows lane, lane + loaders... */
template <typename T, int D>
__device__ __forceinline__ void put_rows(const ideft_cuda_attend_t &a, const uint4 h, const uint2 (&rows)[ROWS_A_LOADER],
                                         control &ctl, unsigned char *q, uint32_t buf, uint32_t head, uint32_t lane)
{
    constexpr uint32_t STRIDE = Q_LOADERS / shape<D>::CHUNKS, BATCH = 4;
    const uint32_t inverse = row_inverse(a.G), n = h.y * a.G;
    unit_meta &unit = ctl.unit[buf];
    if (lane == 0) {
        unit.n_rows = h.y;
        unit.head = head;
        unit.part = h.z;
        unit.share = h.w;
    }
#pragma unroll
    for (int i = 0; i < ROWS_A_LOADER; i++)
        *(uint2 *)&unit.row[lane + i * Q_LOADERS] = rows[i];
    loaders_meet(); /* publishes unit.row */
    if (lane < STRIDE * shape<D>::CHUNKS) {
        const uint32_t chunk = lane % shape<D>::CHUNKS;
        const T *from = (const T *)a.q + (size_t)head * a.G * D + chunk * 8;
        for (uint32_t r = lane / shape<D>::CHUNKS; r < n; r += BATCH * STRIDE) {
            const T *at[BATCH];
#pragma unroll
            for (uint32_t i = 0; i < BATCH; i++) {
                const uint32_t row = r + i * STRIDE, query = (row < n ? row : r) * inverse >> 16;
                const uint32_t token = unit.row[query].token & ~IDEFT_DIRECT;
                at[i] = from + ((size_t)token * a.H + row - query * a.G) * D;
            }
#pragma unroll
            for (uint32_t i = 0; i < BATCH; i++)
                if (r + i * STRIDE < n)
                    copy_16(smem_of(q) + tile_chunk<D>(IDEFT_ROWS, r + i * STRIDE, chunk), at[i]);
        }
    }
#if IDEFT_HOPPER
    copies_wait();
    fence_async();
#else
    barrier_arrive_after_copies(&ctl.q_full[buf]);
#endif
    barrier_arrive(&ctl.q_full[buf]); /* publishes rows and unit */
}

__device__ __forceinline__ void put_stop(control &ctl, uint32_t buf, uint32_t lane)
{
    if (lane == 0)
        ctl.unit[buf].n_rows = 0;
#if !IDEFT_HOPPER
    barrier_arrive_after_copies(&ctl.q_full[buf]);
#endif
    barrier_arrive(&ctl.q_full[buf]);
}

/* ---- the warps --------------------------------------------------------------------------------------- */

/* What a producer knows of a unit. The first is asked for before it is known to exist, at the very
 * beginning: the image is never shorter. */
struct order {
    uint4 h;                   /* the record's head */
    ideft_cuda_copy_t c;       /* of the first tile, a lane each */
    uint2 rows[ROWS_A_LOADER]; /* query rows */
};

template <bool FIRST>
__device__ __forceinline__ void fetch_order(const ideft_cuda_attend_t &a, order &o, uint32_t unit, bool kv, bool q,
                                            uint32_t q_lane, uint32_t lane)
{
    const unsigned char *rec = (const unsigned char *)record_of(a, unit);
    o.h = __ldg((const uint4 *)rec);
    if (FIRST && kv)
        o.c = fetch_copy((const ideft_cuda_copy_t *)(rec + a.record_bytes) - IDEFT_INLINE, lane % IDEFT_INLINE);
#pragma unroll
    for (int i = 0; i < ROWS_A_LOADER && q; i++) {
        const uint32_t r = q_lane + i * Q_LOADERS, most = IDEFT_ROWS / a.G - 1;
        o.rows[i] = __ldg((const uint2 *)(rec + sizeof(ideft_cuda_record_t)) + (r < most ? r : most));
    }
}

/* A producing warp's life. side: what of K and V it brings, 3: nothing. */
template <typename T, int D>
__device__ __forceinline__ void produce(const ideft_cuda_attend_t &a, control &ctl, unsigned char *stages, unsigned char *q,
                                        order &o, uint32_t n_units, const ideft_cuda_copy_t *copies, uint32_t side,
                                        bool does_q, uint32_t q_lane)
{
    const uint32_t lane = threadIdx.x % 32;
    ring at = { 0, 0 };
    uint32_t k = 0;
    for (uint32_t unit = blockIdx.x; unit < n_units; unit += gridDim.x, k++) {
        const uint32_t kv_head = unit % a.Hkv, buf = k % a.q_buffers;
        if (k > 0)
            fetch_order<false>(a, o, unit, side < 3, does_q, q_lane, lane);
        if (does_q) {
            barrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
            put_rows<T, D>(a, o.h, o.rows, ctl, q + (size_t)buf * shape<D>::Q_BYTES, buf, kv_head, q_lane);
        }
        if (side == 3)
            continue;
        uint32_t next = o.h.x;
        if (k > 0 || __shfl_sync(~0u, o.c.count, 0) > IDEFT_INLINE)
            o.c = fetch_copy(copies, next + lane);
        for (bool last = false; !last; at.next(a.stages)) {
            const ideft_cuda_copy_t now = o.c;
            last = (__shfl_sync(~0u, now.flags, 0) & IDEFT_LAST) != 0;
            next += __shfl_sync(~0u, now.count, 0);
            if (!last)
                o.c = fetch_copy(copies, next + lane);
            barrier_wait(&ctl.empty[at.stage], at.parity);
            put_tile<T, D>(a, ctl, stages, now, at.stage, a.first_plane + kv_head, side, lane);
        }
    }
    if (does_q) {
        const uint32_t buf = k % a.q_buffers;
        barrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
        put_stop(ctl, buf, q_lane);
    }
    if (!shape<D>::BOXES)
        copies_wait();
}

} // namespace

#endif
