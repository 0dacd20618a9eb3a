/* SPDX-License-Identifier: MIT */
/* What the warps of an attention block share: sizes of the tiles in shared memory, the ring of
 * stages that tiles pass through, and the mbarriers and metadata that lie after the tiles.
 *
 * Shared memory, in this order:
 *
 *   stages     [stages][K, V], a tile of IDEFT_TILE tokens each (tile.cuh)
 *   Q          [q_buffers], a tile of IDEFT_ROWS matrix rows each; at the end of a unit the
 *              consumers use their Q's place to exchange states and to arrange outputs
 *   control    mbarriers, metadata of units and tiles
 *
 * Producers fill a stage, its `full` completes; consumers read it, its `empty` completes. The same
 * with Q: q_full, q_empty. */
#ifndef IDEFT_SHARED_MEMORY_CUH
#define IDEFT_SHARED_MEMORY_CUH

#include "arch.cuh"
#include "state.cuh"

namespace {

constexpr int THREADS = THREADS_OF<arch>;
constexpr int MAX_STAGES = 8, MAX_Q = 2;

template <int D> struct shape {
    static constexpr int KV_BYTES = IDEFT_TILE * D * 2; /* K or V of a stage */
    static constexpr int Q_BYTES = IDEFT_ROWS * D * 2;
    static constexpr int CHUNKS = D / 8; /* of 16 bytes, in a row */
    static constexpr bool BOXES = BOXES_OF<arch, D>;
    /* Scores are computed a tile ahead. It takes three stages, which two tiles of D 256 fill. */
    static constexpr bool AHEAD = D < arch::AHEAD_BELOW;
    /* Arrivals that complete a stage. Every lane that has written something arrives for itself:
     * that is as fast as one arrival for all after __syncwarp(), and racecheck can follow it. With
     * boxes these are the lanes of K's warp, which write metadata, and one of V's; without, every
     * lane arrives twice: when it has written and when its copies have landed. */
    static constexpr int FULL_COUNT = BOXES ? 33 : arch::KV_WARPS * 64;
    /* Threads that bring Q, and the arrivals that complete it. */
    static constexpr int Q_LOADERS = BOXES ? 32 : arch::Q_WARPS * 32;
    static constexpr int Q_COUNT = BOXES || !arch::Q_COPIES_ARRIVE ? Q_LOADERS : 2 * Q_LOADERS;
};

/* Of a tile of tokens: which rows see it. */
struct tile_meta {
    uint32_t seen[IDEFT_TILE / 2]; /* a column: first query row | number of rows << 8; two a word */
    uint32_t pos[IDEFT_TILE];      /* path positions; filled when there is a window */
    uint32_t flags;                /* IDEFT_MINE ... of the tile's first copy */
};

/* Of a unit: the record and the KV head that it is made of. */
struct unit_meta {
    uint32_t n_rows, head, part, share; /* n_rows 0: no unit follows */
    ideft_cuda_row_t row[IDEFT_ROWS];
    __device__ uint32_t kind() const { return share % 4; }
    /* the number of tiles, if the warpgroups take turns at them; else 0 */
    __device__ uint32_t turns() const { return share / 4; }
};

struct control {
    uint64_t full[MAX_STAGES], empty[MAX_STAGES], q_full[MAX_Q], q_empty[MAX_Q];
    union {                         /* at the end of a unit: */
        row_sum sums[2][64];        /* to be joined: [warpgroup][row], or [8][16]: [warp][row] */
        uint4 *outputs[IDEFT_ROWS]; /* then where matrix rows are written to, NULL: nowhere */
    };
    unit_meta unit[MAX_Q];
    tile_meta tile[MAX_STAGES];
};

/* A place in the ring of stages, with the parity of the phase that its mbarriers are in. */
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
