/* SPDX-License-Identifier: MIT */
/** @file bpe.h
 *  Byte-pair merges of one word. In a list of symbols, of all adjacent pairs
 *  with a merge the one of lowest rank, the leftmost of these first, is
 *  replaced by one symbol, until no pair has a merge.
 *
 *  Threads: a bpe_t is read-only after the last bpe_add(); a bpe_work_t
 *  belongs to one thread at a time. */
#ifndef ENGINE_BPE_H
#define ENGINE_BPE_H

#include <stddef.h>
#include <stdint.h>

/** No symbol; never an id. */
#define BPE_NONE UINT32_MAX

/** Probes of a hash table, here and in the tokenizer, before it is taken for
 *  one that a file was made to fill with collisions. */
#define BPE_MAX_PROBE 4096

typedef struct bpe bpe_t;

/** Buffers of bpe_apply(), kept from word to word; starts as { 0 }. */
typedef struct bpe_work {
    struct bpe_symbol *symbol; /* [room] a word */
    struct bpe_pair *heap;     /* [2 * room] candidates, lowest (rank, left) first */
    size_t room;
    size_t n_heap;
} bpe_work_t;

/** Spread the bits of @p h over all of them; for hash tables. */
uint64_t bpe_mix(uint64_t h);

/** Slots for a hash table of @p n entries: a power of two, at most half used;
 *  0 when that is too many. */
size_t bpe_table_size(size_t n);

/** Room for @p n_merges merges. @return NULL: out of memory. */
bpe_t *bpe_create(size_t n_merges);
void bpe_free(bpe_t *bpe);

/** @p left @p right becomes @p id; of two merges of one pair the first holds.
 *  At most as many calls as bpe_create() made room for.
 *  @return 0; -1: too many collisions. */
int bpe_add(bpe_t *bpe, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

/** Merge the @p n symbols @p ids in place.
 *  @param[out] n_p  how many are left, 1 to @p n (0 of 0).
 *  @return 0; -1 out of memory, with @p ids unchanged.
 *  Cost: O(n log n). */
int bpe_apply(const bpe_t *bpe, bpe_work_t *work, uint32_t *ids, size_t n, size_t *n_p);

/** Free the buffers; @p work is { 0 } again. */
void bpe_work_free(bpe_work_t *work);

#endif
