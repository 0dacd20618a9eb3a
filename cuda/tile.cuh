/* SPDX-License-Identifier: MIT */
/* How a tile of Q, K or V lies in shared memory, the same on every architecture.
 *
 * A tile of D columns is made of panels: D / 64 of 64 columns and, if there is a rest, one of
 * D % 64. A panel is [rows][columns]; the 16-byte chunks of its rows are swizzled as the tensor
 * copy engine does it (by 128, 64 or 32 bytes, the width of the panel), so that neither reading
 * eight rows at once nor writing a row hits a bank twice. A chunk is 8 elements of 16 bits. */
#ifndef IDEFT_TILE_CUH
#define IDEFT_TILE_CUH

#include "kernels.h"

/* Up to this head dim a computing warp keeps its rows of Q in registers. */
template <int D> constexpr bool Q_IN_REGISTERS = D <= 128;

template <int D> __device__ __host__ constexpr int panel_width(int p)
{
    return D % 64 != 0 && p == D / 64 ? D % 64 : 64;
}

/* Byte of a chunk in a panel W columns wide. */
template <int W> __device__ __forceinline__ uint32_t chunk_at(uint32_t row, uint32_t chunk)
{
    if constexpr (W == 64)
        return row * 128 + ((chunk ^ (row & 7)) << 4);
    else if constexpr (W == 32)
        return row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
    else
        return row * 32 + ((chunk ^ (row >> 2 & 1)) << 4);
}

/* Byte of a chunk in a tile of `rows` rows. */
template <int D>
__device__ __forceinline__ uint32_t tile_chunk(uint32_t rows, uint32_t row, uint32_t chunk)
{
    const uint32_t p = chunk / 8, base = p * rows * 128;
    if (D % 64 == 0 || p < D / 64)
        return base + chunk_at<64>(row, chunk % 8);
    return base + chunk_at<panel_width<D>(D / 64)>(row, chunk % 8);
}

#endif
