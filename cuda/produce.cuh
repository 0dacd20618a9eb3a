/* SPDX-License-Identifier: MIT */
/* The producing warps: from records to stages full of K and V and to a tile of Q. They run ahead into
 * the next unit while the consumers still finish this one. */
#ifndef IDEFT_PRODUCE_CUH
#define IDEFT_PRODUCE_CUH

#include "block.cuh"

namespace {

/* Record and KV head of a unit. */
struct unit_of {
    uint32_t record, head;
    __device__ unit_of(const ideft_cuda_attend_t &a, uint32_t unit, uint32_t n_records, bool by_head)
        : record(by_head ? unit % n_records : unit / a.Hkv), head(by_head ? unit / n_records : unit % a.Hkv)
    {
    }
};

/* The copies of a tile, a lane each; what is behind them is not used. As they come: taking them apart
 * waits for the load. */
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

/* ---- K and V -------------------------------------------------------------------------------------- */

/* Who sees each column of a tile. A lane has columns lane and lane + 32, and asks the lane that has
 * their copy. */
__device__ __forceinline__ void put_meta(tile_meta &meta, const ideft_cuda_copy_t &c, uint32_t count, uint32_t used,
                                         uint32_t lane)
{
    const uint32_t begin = c.at & ~IDEFT_STREAM, bit = lane < count ? 1u << begin % 32 : 0; /* where copies begin */
    const uint32_t low = __reduce_or_sync(~0u, begin < 32 ? bit : 0), high = __reduce_or_sync(~0u, begin < 32 ? 0 : bit);
    const uint32_t before = low & (2u << lane) - 1, rows = c.lo | (uint32_t)c.hi << 8 | (uint32_t)c.edge << 16;
    uint16_t *seen = (uint16_t *)meta.seen;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t col = lane + half * 32;
        const uint32_t from = (half == 0 ? __popc(before) : __popc(low) + __popc(high & (2u << lane) - 1)) - 1;
        const uint32_t r = __shfl_sync(~0u, rows, from), at = __shfl_sync(~0u, begin, from);
        const uint32_t pos = __shfl_sync(~0u, c.pos, from), hi = r >> 8 & 255, edge = r >> 16, i = col - at;
        const uint32_t first = (r & 255) + (i > edge ? i - edge : 0);
        seen[col] = (uint16_t)(col < used && first < hi ? first | (hi - first) << 8 : 0);
        meta.pos[col] = pos + i;
    }
}

#if IDEFT_HOPPER
/* A box of tokens, or a whole tile with all panels. */
__device__ __forceinline__ void copy_tokens(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c, uint32_t to, uint32_t box,
                                            uint32_t slot, uint32_t panel, uint32_t plane, uint64_t *full, uint64_t policy)
{
    if (c.at & IDEFT_STREAM)
        stream_box(to, &a.box[box], slot, panel, plane, full, policy);
    else
        copy_box(to, &a.box[box], slot, panel, plane, full);
}

/* A lane's copy: a whole tile, or boxes of 32, 16, ..., 1 tokens. Of a dense tile the first lane fetches
 * everything. */
template <int D>
__device__ __forceinline__ void copy_run(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c, uint32_t to,
                                         uint32_t plane, uint64_t *full, uint64_t policy)
{
    const uint32_t first = c.at & ~IDEFT_STREAM, n = !(c.flags & IDEFT_DENSE) ? c.n : first == 0 ? c.used : 0;
    if (n == IDEFT_TILE) {
        copy_tokens(a, c, to, IDEFT_BOXES - 1, c.slot, 0, plane, full, policy);
        return;
    }
#pragma unroll 1
    for (uint32_t done = 0; done < n;) {
        const uint32_t b = 31 - __clz(n - done);
#pragma unroll
        for (int p = 0; p < D / 64; p++)
            copy_tokens(a, c, to + (p * IDEFT_TILE + first + done) * 128, b, c.slot + done, p, plane, full, policy);
        done += 1u << b;
    }
}

/* Most tiles of a long prefix: one copy, and whoever has rows sees all of it. Then one lane does everything,
 * and arrives for the lanes that have written nothing. False: it is another tile. */
template <int D>
__device__ __forceinline__ bool put_whole_tile(const ideft_cuda_attend_t &a, control &ctl, const ideft_cuda_copy_t &c,
                                               uint32_t stage, uint32_t used, uint32_t to, uint32_t plane, uint32_t side,
                                               uint64_t policy, uint32_t lane)
{
    const uint32_t flags = __shfl_sync(~0u, c.flags, 0), n = __shfl_sync(~0u, c.n, 0);
    uint64_t *full = &ctl.full[stage];
    if ((side == 0 && ((flags & IDEFT_MASK * 3) != 0 || a.window != 0)) || used != IDEFT_TILE ||
        (n != IDEFT_TILE && !(flags & IDEFT_DENSE)))
        return false;
    if (lane == 0) {
        if (side == 0)
            ctl.tile[stage].flags = flags;
        mbarrier_expect(full, IDEFT_TILE * D * 2);
        if (side == 0)
            mbarrier_arrive(full, shape<D>::FULL_COUNT - 2); /* all but its own arrival and V's */
        copy_tokens(a, c, to, IDEFT_BOXES - 1, c.slot, 0, plane, full, policy);
    }
    return true;
}
#endif

/* The same where there is no copy engine, or it cannot: 16 bytes a lane. */
template <typename T, int D>
__device__ __forceinline__ void copy_rows(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c, uint32_t count,
                                          uint32_t to, uint32_t plane, uint32_t lane)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t slot = __shfl_sync(~0u, c.slot, i), at = __shfl_sync(~0u, c.at & ~IDEFT_STREAM, i), n = __shfl_sync(~0u, c.n, i);
        const T *from = (const T *)a.arena + (size_t)plane * a.plane + (size_t)slot * D;
        for (uint32_t j = lane; j < n * shape<D>::CHUNKS; j += 32)
            copy_16(to + tile_chunk<D>(IDEFT_TILE, at + j / shape<D>::CHUNKS, j % shape<D>::CHUNKS), from + j * 8);
    }
}

/* K (side 0), V (side 1) or both (side 2) of a tile. */
template <typename T, int D>
__device__ __forceinline__ void put_tile(const ideft_cuda_attend_t &a, control &ctl, unsigned char *stages,
                                         const ideft_cuda_copy_t &c, uint32_t stage, uint32_t plane, uint32_t side,
                                         uint64_t policy, uint32_t lane)
{
    const uint32_t k = smem_of(stages + (size_t)stage * 2 * shape<D>::KV_BYTES), v = k + shape<D>::KV_BYTES;
    const uint32_t count = __shfl_sync(~0u, c.count, 0), used = __shfl_sync(~0u, c.used, 0);
    uint64_t *full = &ctl.full[stage];
#if IDEFT_HOPPER
    if constexpr (shape<D>::BOXES)
        if (put_whole_tile<D>(a, ctl, c, stage, used, side == 0 ? k : v, side == 0 ? plane : plane + a.Hkv, side, policy, lane))
            return;
#endif
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
            mbarrier_expect(full, used * D * 2);
        else if (side == 0)
            mbarrier_arrive(full);
        __syncwarp();
        if (lane < count)
            copy_run<D>(a, c, side == 0 ? k : v, side == 0 ? plane : plane + a.Hkv, full, policy);
        return;
    }
#endif
    if (side != 1)
        copy_rows<T, D>(a, c, count, k, plane, lane);
    if (side != 0)
        copy_rows<T, D>(a, c, count, v, plane + a.Hkv, lane);
    mbarrier_arrive_after_copies(full);
    mbarrier_arrive(full);
}

/* ---- Q ---------------------------------------------------------------------------------------------- */

/* What the consumers need to know of a unit. rows: the record's rows lane, lane + loaders, ... */
template <int LOADERS>
__device__ __forceinline__ void put_unit(unit_meta &unit, const uint4 h, const uint2 (&rows)[IDEFT_ROWS / LOADERS],
                                         uint32_t head, uint32_t lane)
{
    if (lane == 0) {
        unit.n_rows = h.y;
        unit.head = head;
        unit.part = h.z;
        unit.share = h.w;
    }
#pragma unroll
    for (int i = 0; i < IDEFT_ROWS / LOADERS; i++)
        *(uint2 *)&unit.row[lane + i * LOADERS] = rows[i];
    if constexpr (LOADERS == 32)
        __syncwarp();
    else
        meet<named_barrier::Q_LOADERS>();
}

#if IDEFT_HOPPER
/* n query rows, from the record's row `at` on, which follow each other in q: one box for each power
 * of two. */
template <int D>
__device__ __forceinline__ void copy_queries(const ideft_cuda_attend_t &a, uint32_t to, uint32_t at, uint32_t n,
                                             uint32_t token, uint32_t head, uint64_t *full)
{
#pragma unroll 1
    while (n > 0) {
        const uint32_t b = 31 - __clz(n);
#pragma unroll
        for (int p = 0; p < D / 64; p++)
            copy_box(to + (p * IDEFT_ROWS + at * a.G) * 128, &a.q_box[b], head * a.G, p, token, full);
        at += 1u << b;
        token += 1u << b;
        n -= 1u << b;
    }
}
#endif

/* Rows of Q of a unit, through the copy engine: all at once where they follow each other, as they do
 * in a step over everything, else one query row after the other. */
template <typename T, int D>
__device__ __forceinline__ void put_rows(const ideft_cuda_attend_t &a, const uint4 h, const uint2 (&rows)[4],
                                         control &ctl, unsigned char *q, uint32_t buf, uint32_t head, uint32_t lane)
{
#if IDEFT_HOPPER
    unit_meta &unit = ctl.unit[buf];
    put_unit<32>(unit, h, rows, head, lane);
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
            copy_queries<D>(a, smem_of(q), i, 1, unit.row[i].token & ~IDEFT_DIRECT, head, &ctl.q_full[buf]);
    else if (lane == 0)
        copy_queries<D>(a, smem_of(q), 0, h.y, token, head, &ctl.q_full[buf]);
#endif
}

/* The same where there is no copy engine, or it cannot: each loader has one chunk of 16 bytes in every
 * so many matrix rows. */
template <typename T, int D, int LOADERS>
__device__ __forceinline__ void put_rows_16(const ideft_cuda_attend_t &a, const uint4 h,
                                            const uint2 (&rows)[IDEFT_ROWS / LOADERS], control &ctl, unsigned char *q,
                                            uint32_t buf, uint32_t head, uint32_t lane)
{
    constexpr uint32_t STRIDE = LOADERS / shape<D>::CHUNKS, BATCH = 4;
    const uint32_t inverse = a.inverse, n = h.y * a.G, chunk = lane % shape<D>::CHUNKS;
    const T *from = (const T *)a.q + (size_t)head * a.G * D + chunk * 8;
    unit_meta &unit = ctl.unit[buf];
    put_unit<LOADERS>(unit, h, rows, head, lane);
    for (uint32_t r = lane / shape<D>::CHUNKS; r < n && lane < STRIDE * shape<D>::CHUNKS; r += BATCH * STRIDE) {
        const T *at[BATCH];
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++) {
            const uint32_t row = r + i * STRIDE < n ? r + i * STRIDE : r, query = row * inverse >> 16;
            at[i] = from + ((size_t)(unit.row[query].token & ~IDEFT_DIRECT) * a.H + row - query * a.G) * D;
        }
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++)
            if (r + i * STRIDE < n)
                copy_16(smem_of(q) + tile_chunk<D>(IDEFT_ROWS, r + i * STRIDE, chunk), at[i]);
    }
#if IDEFT_HOPPER
    copies_wait();
    fence_async();
#else
    mbarrier_arrive_after_copies(&ctl.q_full[buf]);
#endif
    mbarrier_arrive(&ctl.q_full[buf]); /* publishes rows and unit */
}

template <int D> __device__ __forceinline__ void put_stop(control &ctl, uint32_t buf, uint32_t lane)
{
    if (lane == 0)
        ctl.unit[buf].n_rows = 0;
#if !IDEFT_HOPPER
    mbarrier_arrive_after_copies(&ctl.q_full[buf]);
#endif
    mbarrier_arrive(&ctl.q_full[buf]);
}

/* ---- the warps --------------------------------------------------------------------------------------- */

/* What a producer knows of a unit. The first is asked for before it is known to exist, at the very
 * beginning: the image is never shorter. */
template <int D> struct order {
    uint4 h;             /* the record's head */
    uint4 c;             /* copies of the first tile, a lane each */
    uint2 rows[IDEFT_ROWS / shape<D>::Q_LOADERS]; /* query rows */
};

template <int D>
__device__ __forceinline__ void fetch_order(const ideft_cuda_attend_t &a, order<D> &o, uint32_t record, bool kv, bool q,
                                            uint32_t q_lane, uint32_t lane)
{
    const unsigned char *rec = a.records + (size_t)record * a.record_bytes;
    o.h = __ldg((const uint4 *)rec);
    if (kv)
        o.c = fetch_copy((const ideft_cuda_copy_t *)(rec + a.record_bytes) - IDEFT_INLINE, lane % IDEFT_INLINE);
#pragma unroll
    for (int i = 0; i < IDEFT_ROWS / shape<D>::Q_LOADERS && q; i++) {
        const uint32_t r = q_lane + i * shape<D>::Q_LOADERS, most = IDEFT_ROWS / a.G - 1;
        o.rows[i] = __ldg((const uint2 *)(rec + sizeof(ideft_cuda_record_t)) + (r < most ? r : most));
    }
}

/* What the producers need of the image's head. */
struct job_t {
    uint32_t n_units, n_records, by_head;
    const ideft_cuda_copy_t *copies;
};

/* A producing warp's life. side: what of K and V it brings, 3: nothing. */
template <typename T, int D>
__device__ __forceinline__ void produce(const ideft_cuda_attend_t &a, control &ctl, unsigned char *stages, unsigned char *q,
                                        order<D> &o, const job_t &job, uint32_t side, bool does_q, uint32_t q_lane)
{
    const uint32_t lane = threadIdx.x % 32;
#if IDEFT_HOPPER
    const uint64_t policy = evict_first();
#else
    const uint64_t policy = 0;
#endif
    ring at = { 0, 0 };
    uint32_t k = 0;
    for (uint32_t unit = blockIdx.x; unit < job.n_units; unit += gridDim.x, k++) {
        const unit_of u(a, unit, job.n_records, job.by_head != 0);
        const uint32_t kv_head = u.head, buf = k % a.q_buffers;
        if (k > 0 || job.by_head)
            fetch_order<D>(a, o, u.record, side < 3, does_q, q_lane, lane);
        if (does_q) {
            mbarrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
            unsigned char *to = q + (size_t)buf * shape<D>::Q_BYTES;
            if constexpr (shape<D>::BOXES)
                put_rows<T, D>(a, o.h, o.rows, ctl, to, buf, kv_head, q_lane);
            else
                put_rows_16<T, D, shape<D>::Q_LOADERS>(a, o.h, o.rows, ctl, to, buf, kv_head, q_lane);
        }
        /* Q first: behind six stages of K and V it would come late */
        if (shape<D>::BOXES && k == 0)
            meet<named_barrier::FIRST_Q>();
        if (side == 3)
            continue;
        uint32_t next = o.h.x;
        if (__shfl_sync(~0u, copy_of(o.c).count, 0) > IDEFT_INLINE)
            o.c = fetch_copy(job.copies, next + lane);
        for (bool last = false; !last; at.next(a.stages)) {
            const ideft_cuda_copy_t now = copy_of(o.c);
            last = (__shfl_sync(~0u, now.flags, 0) & IDEFT_LAST) != 0;
            next += __shfl_sync(~0u, now.count, 0);
            mbarrier_wait(&ctl.empty[at.stage], at.parity);
            if (!last) /* arrives while this tile is brought, or while a stage is waited for */
                o.c = fetch_copy(job.copies, next + lane);
            put_tile<T, D>(a, ctl, stages, now, at.stage, a.first_plane + kv_head, side, policy, lane);
        }
    }
    if (does_q) {
        const uint32_t buf = k % a.q_buffers;
        mbarrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
        put_stop<D>(ctl, buf, q_lane);
    }
    if (!shape<D>::BOXES)
        copies_wait();
}

} // namespace

#endif
