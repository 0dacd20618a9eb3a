/* SPDX-License-Identifier: MIT */
/* The cost model of cost.h. */
#include "config.h"

#include "cost.h"

uint32_t ideft_cost_tile_rows(const ideft_machine_t *machine, const ideft_sizes_t *sizes)
{
    const uint32_t rows = machine->tile_rows / sizes->G;
    return rows == 0 ? 1 : rows;
}

uint32_t ideft_cost_token(const ideft_machine_t *machine, const ideft_sizes_t *sizes, uint32_t rows)
{
    const bool half = ideft_in_rounds(machine) && 2 * rows * sizes->G <= machine->tile_rows;
    return half ? machine->half_cost : machine->token_cost;
}

/* Of a machine that works in rounds: the number of parts with the shortest time for the whole step,
 * which goes to *time_p. units: tiles and heads. */
static uint32_t parts_in_rounds(const ideft_machine_t *machine, const ideft_sizes_t *sizes,
                                uint64_t cost, uint64_t units, uint32_t least, uint64_t *time_p)
{
    const uint64_t most = cost / machine->min_cost, tile = (uint64_t)least * IDEFT_TILE_TOKENS;
    const uint64_t limit = IDEFT_PART_ROUNDS * (uint64_t)machine->width;
    /* a partial of every row and head: a row's are joined one after the other, and all of them
     * share the memory */
    const uint64_t a_part = machine->part_cost +
                            2 * (uint64_t)sizes->n_rows * sizes->H / machine->width;
    uint32_t parts = 1;
    *time_p = UINT64_MAX;
    for (uint64_t n = 1; n == 1 || (n <= most && units * (n - 1) < limit); n++) {
        const uint64_t rounds = (units * n + machine->width - 1) / machine->width;
        const uint64_t part = ((cost + n - 1) / n + tile - 1) / tile * tile;
        const uint64_t time = rounds * (part + machine->item_cost) +
                              (n > 1 ? machine->merge_cost + n * a_part : 0);
        if (time < *time_p) {
            *time_p = time;
            parts = (uint32_t)n;
        }
    }
    return parts;
}

uint32_t ideft_cost_parts(const ideft_machine_t *machine, const ideft_sizes_t *sizes, uint64_t cost,
                          uint32_t tiles, uint32_t least)
{
    const uint64_t units = (uint64_t)tiles * sizes->Hkv;
    uint64_t time;
    if (ideft_in_rounds(machine))
        return parts_in_rounds(machine, sizes, cost, units, least, &time);
    const uint64_t by_width = (machine->width + units / 2) / units;
    const uint64_t by_cost = cost / machine->min_cost;
    const uint64_t parts = by_cost < by_width ? by_cost : by_width;
    return parts == 0 ? 1 : (uint32_t)parts;
}

bool ideft_cost_fills(const ideft_machine_t *machine, const ideft_sizes_t *sizes, uint32_t tiles)
{
    const uint64_t units = (uint64_t)tiles * sizes->Hkv;
    if (!ideft_in_rounds(machine))
        return ideft_cost_parts(machine, sizes, UINT64_MAX, tiles, machine->token_cost) == 1;
    const uint64_t rounds = (units + machine->width - 1) / machine->width;
    return units * 5 >= rounds * machine->width * 4; /* at most a fifth of the last round is idle */
}

uint64_t ideft_cost_time(const ideft_machine_t *machine, const ideft_sizes_t *sizes, uint32_t rows,
                         uint64_t tokens)
{
    const uint32_t tiles = (sizes->n_rows + rows - 1) / rows;
    const uint32_t even = (sizes->n_rows + tiles - 1) / tiles;
    const uint32_t least = ideft_cost_token(machine, sizes, even);
    uint64_t time;
    parts_in_rounds(machine, sizes, tokens * least / tiles, (uint64_t)tiles * sizes->Hkv, least,
                    &time);
    return time;
}
