/* SPDX-License-Identifier: MIT */
/* What the warps of an attention block share: who they are, their ring of stages, what they tell each
 * other about tiles and units. */
#ifndef IDEFT_BLOCK_CUH
#define IDEFT_BLOCK_CUH

#include "named_barrier.cuh"
#include "state.cuh"

#include <math.h>
#include <string.h>

namespace {

/* Two warpgroups compute, the warps behind them bring what they need. On Hopper one streams K, one V,
 * one or two gather Q; elsewhere a single one does all of it. */
constexpr int THREADS = IDEFT_HOPPER ? 384 : 288;
constexpr int MAX_STAGES = 8, MAX_Q = 2;

template <int D> struct shape {
    static constexpr int KV_BYTES = IDEFT_TILE * D * 2; /* K or V of a stage */
    static constexpr int Q_BYTES = IDEFT_ROWS * D * 2;
    static constexpr int CHUNKS = D / 8; /* of 16 bytes, in a row */
    /* The copy engine writes at multiples of 128 bytes, which rows of a narrow panel are not. */
    static constexpr bool BOXES = IDEFT_HOPPER && D % 64 == 0;
    /* Scores are computed a tile ahead. It takes three stages, which two tiles of D 256 fill. */
    static constexpr bool AHEAD = IDEFT_HOPPER && D < 256;
    /* Arrivals that complete a stage. Every lane that has written something arrives for itself: that
     * is as fast as one for all behind __syncwarp(), and racecheck can follow it. So the lanes of K, one
     * of V; without boxes all lanes, once when they have written and once when copies have landed. */
    static constexpr int FULL_COUNT = BOXES ? 33 : IDEFT_HOPPER ? 128 : 64;
    /* Who gathers Q: one warp, with the copy engine or for want of others; else two. */
    static constexpr int Q_LOADERS = IDEFT_HOPPER && !BOXES ? 64 : 32;
    static constexpr int Q_COUNT = BOXES ? 32 : 64;
};

struct tile_meta {
    uint32_t seen[IDEFT_TILE / 2]; /* a column: first query row | number of rows << 8; two a word */
    uint32_t pos[IDEFT_TILE];      /* with a window */
    uint32_t flags;
};

struct unit_meta {
    uint32_t n_rows, head, part, share; /* n_rows 0: no unit follows */
    ideft_cuda_row_t row[IDEFT_ROWS];
    __device__ uint32_t kind() const { return share % 4; }
    __device__ uint32_t turns() const { return share / 4; } /* tiles taken by turns, else 0 */
};

/* What is behind the tiles in shared memory. */
struct control {
    uint64_t full[MAX_STAGES], empty[MAX_STAGES], q_full[MAX_Q], q_empty[MAX_Q];
    union {
        row_sum sums[2][64];      /* to be joined: [warpgroup][row], or [8][16]: [warp][row] */
        uint4 *place[IDEFT_ROWS]; /* then where matrix rows are written to, NULL: nowhere */
    };
    unit_meta unit[MAX_Q];
    tile_meta tile[MAX_STAGES];
};

struct ring {
    uint32_t stage, parity;
    __device__ void next(uint32_t n)
    {
        if (++stage == n) {
            stage = 0;
            parity ^= 1;
        }
    }
};

} // namespace

#endif
