/* SPDX-License-Identifier: MIT */
/* Where a node's tokens lie: a list of runs of slots, in the node itself (one) or in an array. The
 * list knows the pool and no other node. Its fields are private to runs.[ch]. */
#ifndef IDEFT_RUNS_H
#define IDEFT_RUNS_H

#include "pool.h"

/* Slots [slot, slot + n), a whole number of spans. */
typedef struct ideft_run {
    uint32_t slot, n;
} ideft_run_t;

/* len == sum of the runs' n.  cap 0: `one` is the run, else `many` has room for cap of them. */
typedef struct ideft_runs {
    uint32_t len, n, cap;
    uint32_t last_span; /* first slot of a span near the end of the last run; valid while len > 0 */
    union {
        ideft_run_t one;
        ideft_run_t *many;
    };
} ideft_runs_t;

static inline const ideft_run_t *ideft_runs_at(const ideft_runs_t *runs)
{
    return runs->cap == 0 ? &runs->one : runs->many;
}

static inline uint32_t ideft_runs_count(const ideft_runs_t *runs)
{
    return runs->n;
}

/* Tokens. */
static inline uint32_t ideft_runs_len(const ideft_runs_t *runs)
{
    return runs->len;
}

/* The slot after the last run; there is one. */
static inline uint32_t ideft_runs_end(const ideft_runs_t *runs)
{
    const ideft_run_t *last = &ideft_runs_at(runs)[runs->n - 1];
    return last->slot + last->n;
}

/* Room for n runs in all. */
deft_status_t ideft_runs_reserve(ideft_host_t *host, ideft_runs_t *runs, uint32_t n);
/* Free the array; what the runs name stays owned. */
void ideft_runs_free(ideft_host_t *host, ideft_runs_t *runs);

/* n more tokens at the end; n slots are free. On failure everything is as it was.
 * tokens: [n] ids, or NULL. */
deft_status_t ideft_runs_append(ideft_host_t *host, ideft_pool_t *pool, ideft_runs_t *runs,
                                uint32_t n, const int32_t *tokens);
/* Give back every token. */
void ideft_runs_release(ideft_pool_t *pool, ideft_runs_t *runs);
/* Give back all but the first `len` tokens. */
void ideft_runs_shrink(ideft_pool_t *pool, ideft_runs_t *runs, uint32_t len);
/* Give back the first n tokens. */
void ideft_runs_drop(ideft_pool_t *pool, ideft_runs_t *runs, uint32_t n);
/* Keep the first `offset` tokens; the others go to `tail`, which is empty and has room. */
void ideft_runs_divide(ideft_pool_t *pool, ideft_runs_t *runs, uint32_t offset, ideft_runs_t *tail);

/* Filling a list from the end of a path to its beginning. _open(): n runs in all, for which there
 * is room; those that the list has stand last. _put(): copies of the runs of `from` before place
 * `at`, at first n less those that the list had; returns the place before which the next ones go.
 * Owners of spans do not change. */
void ideft_runs_open(ideft_runs_t *runs, uint32_t n);
uint32_t ideft_runs_put(ideft_runs_t *runs, uint32_t at, const ideft_runs_t *from);
/* The tokens belong to another list now. */
void ideft_runs_forget(ideft_runs_t *runs);
/* One run of those that adjoin, in as few spans as can be. */
void ideft_runs_join(ideft_pool_t *pool, ideft_runs_t *runs);

/* Runs [begin, end) of the list become one, of the tokens at [slot, slot + n), which are owned. It
 * becomes part of the run before where it adjoins. */
void ideft_runs_replace(ideft_runs_t *runs, uint32_t begin, uint32_t end, uint32_t slot,
                        uint32_t n);

/* For selfcheck.c: count owners into own[]. False: the list is not what this file says. */
bool ideft_runs_verify(const ideft_pool_t *pool, const ideft_runs_t *runs, uint32_t *own);

#endif
