/* SPDX-License-Identifier: MIT */
/* Who owns which slot of the arena. Knows no tree and no bytes: slots are numbers. */
#ifndef IDEFT_POOL_H
#define IDEFT_POOL_H

#include "types.h"

bool ideft_pool_init(ideft_pool_t *pool, ideft_alloc_t *alloc, uint32_t n_slots);
void ideft_pool_fini(ideft_pool_t *pool, ideft_alloc_t *alloc);

/* Take up to n slots that adjoin, n if an extent has them, else the largest extent there is.
 * From 16 slots on the run starts at a multiple of 16 where that costs nothing (vector blocks).
 * Returns how many: 0 only when nothing is free. They belong to the caller, without a span. */
uint32_t ideft_pool_take(ideft_pool_t *pool, uint32_t n, uint32_t *slot_p);
/* The same from the middle of free space, so that the run can be extended in place later. */
uint32_t ideft_pool_take_apart(ideft_pool_t *pool, uint32_t n, uint32_t *slot_p);
/* Take up to n free slots that start at `slot` exactly; returns how many. */
uint32_t ideft_pool_take_at(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* How many slots are free from `slot` on, which is behind an owned one. */
uint32_t ideft_pool_room(const ideft_pool_t *pool, uint32_t slot);
/* Give slots without a span back. */
void ideft_pool_give(ideft_pool_t *pool, uint32_t slot, uint32_t n);

/* Spans of [slot, slot+n), which must be a whole number of them but for pool_cut's. */
void ideft_span_make(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* Make `at` the first slot of a span; it lies in the spans that start at `slot`. Returns the span
 * before it, or `at` where at == slot. Cost: spans passed. */
uint32_t ideft_span_cut(ideft_pool_t *pool, uint32_t slot, uint32_t at);
/* Has one of them a second owner? */
bool ideft_span_shared(const ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* First slot of the span that ends [slot, slot+n). */
uint32_t ideft_span_last(const ideft_pool_t *pool, uint32_t slot, uint32_t n);
void ideft_span_ref(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* Drop an owner; a span without one becomes free. */
void ideft_span_unref(ideft_pool_t *pool, uint32_t slot, uint32_t n);

static inline uint32_t ideft_pool_live(const ideft_pool_t *pool)
{
    return pool->n_slots - pool->n_free;
}

static inline bool ideft_pool_edge(const ideft_pool_t *pool, uint32_t slot)
{
    return pool->edge[slot >> 6] >> (slot & 63) & 1;
}

#endif
