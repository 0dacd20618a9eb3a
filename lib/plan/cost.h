/* SPDX-License-Identifier: MIT */
/* The planner's cost model: how many rows make a tile, and into how many parts its KV is cut. Pure
 * functions of a machine and of sizes; nothing depends on the number of threads, because results
 * must not. */
#ifndef IDEFT_COST_H
#define IDEFT_COST_H

#include <stdbool.h>
#include <stdint.h>

/* What planning has to know of a device, which fills it once.
 *
 * Devices come in two kinds. On one kind, a unit of work (a group and a KV head) goes to whichever
 * processor is free: item_cost is 0, and the model only sees to it that there are enough units. The
 * other kind takes units in rounds of `width` at a time, so that the last round may be almost
 * empty: there the model adds up the time of a whole step, for which it has four more costs. */
typedef struct ideft_machine {
    uint32_t tile_rows;  /* matrix rows that share a pass over KV */
    uint32_t width;      /* units that fill the machine well: as configured, whoever runs them */
    uint32_t row_cost;   /* of a token for one matrix row */
    uint32_t token_cost; /* of a token at least: reading it */
    uint32_t min_cost;   /* a group below it is not worth its overhead */
    uint32_t item_cost;  /* of a unit besides its tokens; 0: units go to whoever is free */
    uint32_t merge_cost; /* of having partials at all, */
    uint32_t part_cost;  /* and of each partial of a row */
    uint32_t half_cost;  /* of a token in a tile of at most half of tile_rows */
} ideft_machine_t;

/* Bounds of AUTO on a machine that works in rounds, in widths of the machine: units that smaller
 * tiles make at most, and units that cutting tiles in parts adds at most. They bound a plan's
 * size. */
enum { IDEFT_TILE_ROUNDS = 3, IDEFT_PART_ROUNDS = 2 };

/* Cuts fall on multiples of so many tokens; a device may take several such tiles at a time. */
#define IDEFT_TILE_TOKENS 64u

/* The step that is planned. */
typedef struct ideft_sizes {
    uint32_t n_rows;
    uint32_t H, Hkv, G;
} ideft_sizes_t;

static inline bool ideft_in_rounds(const ideft_machine_t *machine)
{
    return machine->item_cost != 0;
}

/* Rows of a tile at most. */
uint32_t ideft_cost_tile_rows(const ideft_machine_t *machine, const ideft_sizes_t *sizes);

/* Cost of a token that a tile of so many rows reads at least. */
uint32_t ideft_cost_token(const ideft_machine_t *machine, const ideft_sizes_t *sizes,
                          uint32_t rows);

/* True if so many tiles fill the machine well as they are. Depends on their number alone, so that
 * plans whose leaves grow keep their cut. */
bool ideft_cost_fills(const ideft_machine_t *machine, const ideft_sizes_t *sizes, uint32_t tiles);

/* Parts that the KV of a tile is cut into, when there are so many tiles. cost: of the tile; least:
 * of a token (ideft_cost_token). */
uint32_t ideft_cost_parts(const ideft_machine_t *machine, const ideft_sizes_t *sizes, uint64_t cost,
                          uint32_t tiles, uint32_t least);

/* On a machine that works in rounds: time of a step whose tiles, of `rows` rows, read `tokens`
 * tokens in all, cut into the best number of parts. */
uint64_t ideft_cost_time(const ideft_machine_t *machine, const ideft_sizes_t *sizes, uint32_t rows,
                         uint64_t tokens);

#endif
