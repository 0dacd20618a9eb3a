/* SPDX-License-Identifier: MIT */
/* Nodes from handles, and what the planner and the checker need of the tree. */
#ifndef IDEFT_TREE_INT_H
#define IDEFT_TREE_INT_H

#include "types.h"

static inline ideft_node_t *ideft_node(const deft_ctx_t *ctx, uint32_t index)
{
    return &ctx->chunk[index >> IDEFT_CHUNK_BITS][index & (IDEFT_CHUNK - 1)];
}

static inline deft_node_t ideft_handle(const deft_ctx_t *ctx, uint32_t index)
{
    return index == 0 ? DEFT_NODE_NONE : (deft_node_t)ideft_node(ctx, index)->gen << 32 | index;
}

static inline const ideft_run_t *ideft_runs(const ideft_node_t *node)
{
    return node->run_cap == 0 ? &node->run.one : node->run.many;
}

/* The slot behind a node's last run. */
static inline uint32_t ideft_runs_end(const ideft_node_t *node)
{
    const ideft_run_t *last = &ideft_runs(node)[node->n_runs - 1];
    return last->slot + last->n;
}

/* tree.c */

/* The index behind a handle. DEFT_ERR_STALE or DEFT_ERR_FOREIGN with the text set. */
deft_status_t ideft_node_get(const deft_tree_t *tree, deft_node_t handle, uint32_t *index_p);
/* The first n uncomputed tokens of a node have been computed. */
void ideft_node_computed(deft_ctx_t *ctx, uint32_t index, uint32_t n);
/* Free every tree and node of a context that is going away. */
void ideft_trees_fini(deft_ctx_t *ctx);

/* check.c */
deft_status_t ideft_check(deft_ctx_t *ctx);

#endif
