/* SPDX-License-Identifier: MIT */
/* Who owns which slot of the arena. Slots are numbers here: the pool knows no tree and no bytes.
 *
 * Slots are handed out one by one, not in blocks. A span is a piece of consecutive slots with the
 * same owners; a free extent is a maximal piece of slots without one. Entries are private to
 * pool.c. */
#ifndef IDEFT_POOL_H
#define IDEFT_POOL_H

#include "../base/host.h"

typedef struct ideft_pool ideft_pool_t;

ideft_pool_t *ideft_pool_make(ideft_host_t *host, uint32_t n_slots); /* NULL: out of memory */
void ideft_pool_free(ideft_host_t *host, ideft_pool_t *pool);

uint32_t ideft_pool_slots(const ideft_pool_t *pool);  /* in all */
uint32_t ideft_pool_vacant(const ideft_pool_t *pool); /* that nobody owns */

/* ---- free slots ---- */

/* Devices read slots in whole blocks of so many, as columns of a node: fastest where a token's slot
 * and its offset in the node agree modulo this. */
#define IDEFT_POOL_ALIGN 16u

/* Take up to n slots that adjoin, n if an extent has them, else the largest extent there is.
 * From IDEFT_POOL_ALIGN slots on the run starts at a multiple of it where that costs nothing.
 * Returns how many: 0 only when nothing is free. They belong to the caller, without a span. */
uint32_t ideft_pool_take(ideft_pool_t *pool, uint32_t n, uint32_t *slot_p);
/* The same where slot % IDEFT_POOL_ALIGN is to be that of `phase`. */
uint32_t ideft_pool_take_phase(ideft_pool_t *pool, uint32_t n, uint32_t phase, uint32_t *slot_p);
/* The same from the middle of free space, so that the run can be extended in place later. */
uint32_t ideft_pool_take_apart(ideft_pool_t *pool, uint32_t n, uint32_t *slot_p);
/* Take up to n free slots that start at `slot` exactly; returns how many. */
uint32_t ideft_pool_take_at(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* How many slots are free from `slot` on, which follows an owned one. */
uint32_t ideft_pool_room(const ideft_pool_t *pool, uint32_t slot);
/* The free extent with `slot` in it, or the next one: its first slot. IDEFT_NONE: there is none. */
uint32_t ideft_pool_next_free(const ideft_pool_t *pool, uint32_t slot);
/* Give slots that were taken back. */
void ideft_pool_give(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* Length of a large extent: at most a quarter shorter than the largest; 0 when nothing is free. */
uint32_t ideft_pool_largest(const ideft_pool_t *pool);

/* ---- spans of [slot, slot + n), a whole number of them (but for ideft_span_cut) ---- */

/* Slots that were taken become a span with one owner. */
void ideft_span_make(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* n slots that were taken at `slot`, right after spans that begin at `near`, join the last of these
 * if it has one owner, else they become a span. Returns the first slot of the last span then. */
uint32_t ideft_span_extend(ideft_pool_t *pool, uint32_t near, uint32_t slot, uint32_t n);
/* Make `at` the first slot of a span; it lies in the spans that start at `slot`. Cost: spans
 * passed. */
void ideft_span_cut(ideft_pool_t *pool, uint32_t slot, uint32_t at);
/* First slot of the span that ends [slot, slot + n). */
uint32_t ideft_span_last(const ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* Those that adjoin and have one owner, which is that of the run, become one. */
void ideft_span_merge(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* One more owner of each. */
void ideft_span_ref(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* One owner less; a span without one becomes free. */
void ideft_span_unref(ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* The largest number of owners of one of them. */
uint32_t ideft_span_owners(const ideft_pool_t *pool, uint32_t slot, uint32_t n);
/* How many of the slots have more than `owners` owners. */
uint32_t ideft_span_shared(const ideft_pool_t *pool, uint32_t slot, uint32_t n, uint32_t owners);

/* ---- token ids of owned slots, -1 where none was given ---- */

void ideft_pool_tokens(const ideft_pool_t *pool, uint32_t slot, uint32_t n, int32_t *out);
/* The same of slots that do not adjoin. */
void ideft_pool_tokens_of(const ideft_pool_t *pool, const uint32_t *slots, size_t n, int32_t *out);
/* How many of the first n tokens from `slot` on have an id and agree with ids[]. */
uint32_t ideft_pool_match(const ideft_pool_t *pool, uint32_t slot, uint32_t n, const int32_t *ids);
void ideft_pool_set_tokens(ideft_pool_t *pool, uint32_t slot, uint32_t n, const int32_t *ids);
void ideft_pool_copy_tokens(ideft_pool_t *pool, uint32_t from, uint32_t to, uint32_t n);

/* ---- for selfcheck.c ---- */

/* Count an owner of each span of the run into own[first slot]. False: the spans do not add up to
 * the run, or `last` is not one of them (IDEFT_NONE: any). */
bool ideft_pool_count_owners(const ideft_pool_t *pool, uint32_t slot, uint32_t n, uint32_t last,
                             uint32_t *own);
/* Verify everything that pool.c says of its entries against owners that were counted anew. NULL:
 * all holds; else the statement that does not. */
const char *ideft_pool_verify(const ideft_pool_t *pool, const uint32_t *own);

#endif
