/* SPDX-License-Identifier: MIT */
/* Bringing K, V and Q without the tensor copy engine, or where it cannot be used: by cp.async, 16
 * bytes a lane. */
#ifndef IDEFT_COPY_ROWS_CUH
#define IDEFT_COPY_ROWS_CUH

#include "metadata.cuh"

namespace {

/* All copies of a tile of K or V. Lane i has copy i. */
template <typename T, int D>
__device__ __forceinline__ void copy_rows(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c,
                                          uint32_t count, uint32_t to, uint32_t plane,
                                          uint32_t lane)
{
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t slot = __shfl_sync(~0u, c.slot, i);
        const uint32_t at = __shfl_sync(~0u, c.at & ~IDEFT_STREAM, i);
        const uint32_t n = __shfl_sync(~0u, c.n, i);
        const T *from = (const T *)a.arena + (size_t)plane * a.plane + (size_t)slot * D;
        for (uint32_t j = lane; j < n * shape<D>::CHUNKS; j += 32)
            copy_16(to + tile_chunk<D>(IDEFT_TILE, at + j / shape<D>::CHUNKS, j % shape<D>::CHUNKS),
                    from + j * 8);
    }
}

/* What this warp brings of a tile, K at `k` and V at `v`. */
template <typename T, int D>
__device__ __forceinline__ void
put_tile_rows(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c, uint32_t count, uint32_t k,
              uint32_t v, uint32_t plane, uint64_t *full, uint32_t kv, uint32_t lane)
{
    if (kv != V_ONLY)
        copy_rows<T, D>(a, c, count, k, plane, lane);
    if (kv != K_ONLY)
        copy_rows<T, D>(a, c, count, v, plane + a.Hkv, lane);
    mbarrier_arrive_after_copies(full);
    mbarrier_arrive(full);
}

/* Rows of Q of a unit: a thread has the same chunk of every so many matrix rows. */
template <typename T, int D, int LOADERS>
__device__ __forceinline__ void
put_q_rows(const ideft_cuda_attend_t &a, const uint4 h, const uint2 (&rows)[IDEFT_ROWS / LOADERS],
           control &ctl, unsigned char *q, uint32_t buf, uint32_t head, uint32_t lane)
{
    constexpr uint32_t STRIDE = LOADERS / shape<D>::CHUNKS, BATCH = 4;
    const uint32_t inverse = a.inverse, n = h.y * a.G, chunk = lane % shape<D>::CHUNKS;
    const T *from = (const T *)a.q + (size_t)head * a.G * D + chunk * 8;
    unit_meta &unit = ctl.unit[buf];
    put_unit_meta<LOADERS>(unit, h, rows, head, lane);
    for (uint32_t r = lane / shape<D>::CHUNKS; r < n && lane < STRIDE * shape<D>::CHUNKS;
         r += BATCH * STRIDE) {
        const T *at[BATCH];
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++) {
            const uint32_t row = r + i * STRIDE < n ? r + i * STRIDE : r;
            const uint32_t query = row * inverse >> 16;
            const size_t token = unit.row[query].token & ~IDEFT_DIRECT;
            at[i] = from + (token * a.H + row - query * a.G) * D;
        }
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++)
            if (r + i * STRIDE < n)
                copy_16(smem_of(q) + tile_chunk<D>(IDEFT_ROWS, r + i * STRIDE, chunk), at[i]);
    }
    if constexpr (arch::Q_COPIES_ARRIVE) {
        mbarrier_arrive_after_copies(&ctl.q_full[buf]);
    } else {
        copies_wait();
        fence_async();
    }
    mbarrier_arrive(&ctl.q_full[buf]); /* publishes rows and unit */
}

} // namespace

#endif
