/* SPDX-License-Identifier: MIT */
/* What producers tell consumers of units and tiles, besides the numbers themselves (tile_meta and
 * unit_meta in shared_memory.cuh): written here, read in consume.cuh. */
#ifndef IDEFT_METADATA_CUH
#define IDEFT_METADATA_CUH

#include "named_barrier.cuh"
#include "shared_memory.cuh"

namespace {

/* Which rows see each column of a tile. Lane i has the tile's copy i; a lane works out columns lane
 * and lane + 32, with the copy that a column is of from the lane that has it. */
__device__ __forceinline__ void put_tile_meta(tile_meta &meta, const ideft_cuda_copy_t &c,
                                              uint32_t count, uint32_t used, uint32_t lane)
{
    /* a bit for each column where a copy begins: a column's copy is the number of bits up to it */
    const uint32_t begin = c.at & ~IDEFT_STREAM, bit = lane < count ? 1u << begin % 32 : 0;
    const uint32_t low = __reduce_or_sync(~0u, begin < 32 ? bit : 0);
    const uint32_t high = __reduce_or_sync(~0u, begin < 32 ? 0 : bit);
    const uint32_t before = low & (2u << lane) - 1;
    const uint32_t rows = c.lo | (uint32_t)c.hi << 8 | (uint32_t)c.edge << 16;
    uint16_t *seen = (uint16_t *)meta.seen;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t col = lane + half * 32;
        const uint32_t from =
            (half == 0 ? __popc(before) : __popc(low) + __popc(high & (2u << lane) - 1)) - 1;
        const uint32_t r = __shfl_sync(~0u, rows, from), at = __shfl_sync(~0u, begin, from);
        const uint32_t pos = __shfl_sync(~0u, c.pos, from);
        const uint32_t hi = r >> 8 & 255, edge = r >> 16, i = col - at;
        const uint32_t first = (r & 255) + (i > edge ? i - edge : 0);
        seen[col] = (uint16_t)(col < used && first < hi ? first | (hi - first) << 8 : 0);
        meta.pos[col] = pos + i;
    }
}

/* A unit, by the LOADERS threads that bring its Q. h: the record's head; rows: its query rows lane,
 * lane + LOADERS, ... All of them see the rows afterwards. */
template <int LOADERS>
__device__ __forceinline__ void put_unit_meta(unit_meta &unit, const uint4 h,
                                              const uint2 (&rows)[IDEFT_ROWS / LOADERS],
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

} // namespace

#endif
