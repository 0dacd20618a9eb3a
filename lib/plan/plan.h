/* SPDX-License-Identifier: MIT */
/* A finished plan: flat arrays, all that a device reads of a step. It can be made by the planner
 * (planner.h) or by hand.
 *
 * Rows are numbered in depth-first order of the tree, so the rows that see a node's token are one
 * interval: the node's own rows from that token on, then those of its descendants. This interval is
 * the mask of DeFT's flattened splits, in 8 bytes a run instead of a bit a pair. */
#ifndef IDEFT_PLAN_H
#define IDEFT_PLAN_H

#include "../base/host.h"

/* A query token. */
typedef struct ideft_row {
    uint32_t pos;   /* on its path */
    uint32_t token; /* index in the caller's q, k, v, o */
    uint32_t slot;  /* where its K and V go */
    uint32_t node;
} ideft_row_t;

/* KV of one run, or of a part of it, and who sees it. */
typedef struct ideft_seg {
    uint32_t slot, n;
    uint32_t pos;                /* path position of its first token */
    uint32_t row_begin, row_end; /* rows that see it, each up to its own position */
} ideft_seg_t;

/* Segs and the rows that meet them: what one partial attention is computed over. */
typedef struct ideft_group {
    uint32_t seg_begin, seg_end;
    uint32_t row_begin, row_end;
    uint32_t part; /* the partial of row r is number part + r - row_begin */
    uint32_t cost; /* of the planner's cost model */
} ideft_group_t;

/* What always holds: every row is in a group. A row in one group alone has no partial: its output
 * is what that group gives. Of the others, partials of row r are
 * part_list[part_begin[r] .. part_begin[r + 1]), in the order in which they are joined. */
typedef struct ideft_plan {
    uint32_t n_rows, n_segs, n_groups, n_parts;
    const ideft_row_t *row;
    const ideft_seg_t *seg; /* seg[].n may be 0: room for a leaf to grow */
    const ideft_group_t *group;
    const uint32_t *order;      /* [n_groups] most expensive first */
    const uint32_t *part_begin; /* [n_rows + 1] */
    const uint32_t *part_list;
    const int32_t *positions, *ids; /* [n_rows] in the caller's order */
    const deft_node_t *nodes;
    uint64_t n_tokens; /* of KV that some row sees, each node once */
    bool invariant;    /* a row's bits may depend on its own path alone */
} ideft_plan_t;

#endif
