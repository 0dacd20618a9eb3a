/* SPDX-License-Identifier: MIT */
/* Where a node's tokens lie: runs of slots, in the node itself (one) or in an array. Knows the pool and no
 * other node. */
#ifndef IDEFT_RUNS_H
#define IDEFT_RUNS_H

#include "tree_int.h"

static inline ideft_run_t *ideft_runs_of(ideft_node_t *node)
{
    return node->run_cap == 0 ? &node->run.one : node->run.many;
}

/* An array for n runs; cap 0 where one run fits the node itself. */
deft_status_t ideft_runs_alloc(deft_ctx_t *ctx, uint32_t n, ideft_run_t **runs_p, uint32_t *cap_p);
void ideft_runs_free(deft_ctx_t *ctx, ideft_node_t *node);
/* Put n runs into a node whose array (or place for one) has room; takes the array. */
void ideft_runs_set(ideft_node_t *node, const ideft_run_t *from, uint32_t n, ideft_run_t *array, uint32_t cap);
/* Room for n runs in all. */
deft_status_t ideft_runs_reserve(deft_ctx_t *ctx, ideft_node_t *node, uint32_t n);
/* Runs were set by hand: find the last span again. */
void ideft_runs_mark_end(deft_ctx_t *ctx, ideft_node_t *node);

/* n more tokens at the end; n slots are free. On failure the node is as it was. */
deft_status_t ideft_runs_append(deft_ctx_t *ctx, ideft_node_t *node, uint32_t n, const int32_t *tokens);
/* Cut a node back to its first `len` tokens. */
void ideft_runs_shrink(deft_ctx_t *ctx, ideft_node_t *node, uint32_t len);
/* The node keeps its first `offset` tokens (the last run cut), the rest goes to `tail`, which has room. */
void ideft_runs_divide(deft_ctx_t *ctx, ideft_node_t *node, uint32_t offset, ideft_node_t *tail, ideft_run_t *array,
                       uint32_t cap);
/* Append the runs of `from` to those in `out`, joining runs that adjoin. Returns their number. */
uint32_t ideft_runs_collect(const ideft_node_t *from, ideft_run_t *out, uint32_t n);
/* Move the short runs at the end together, KV and all: deft_tree_defrag(). *moved_p is set if there was
 * something to move; then a failure is the device's. */
deft_status_t ideft_runs_join(deft_ctx_t *ctx, ideft_node_t *node, bool *moved_p);

#endif
