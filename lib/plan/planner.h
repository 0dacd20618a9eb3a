/* SPDX-License-Identifier: MIT */
/* From the forest to a plan: host arithmetic alone. The planner reads the forest and the costs of a
 * machine; it knows no device, no bytes and no state of a step.
 *
 * plan_make.c puts the steps together. order.c finds the nodes on the paths of rows by climbing
 * from the rows, and numbers rows and nodes in depth-first order ("visits"); rows that come in
 * another order are sorted first. splits.c makes segs and groups of the visits. A plan whose leaves
 * only grew by one token since is patched (patch.c): O(rows). */
#ifndef IDEFT_PLANNER_H
#define IDEFT_PLANNER_H

#include "deft/step.h"

#include "../base/vec.h"
#include "../forest/forest.h"
#include "../format/geometry.h"
#include "cost.h"
#include "plan.h"

/* What is to be planned. */
typedef struct ideft_ask {
    const deft_rows_t *rows; /* [n_rows], or NULL: all that is not computed */
    size_t n_rows;
    deft_split_t split;
    uint32_t chunk_tokens;
    bool invariant;
} ideft_ask_t;

/* The next n tokens of a node. */
typedef struct ideft_request {
    uint32_t node, n;
    uint32_t token;  /* of the first, in the caller's order */
    uint32_t visit;  /* of the node */
    uint32_t sorted; /* the request that comes at this place in depth-first order */
} ideft_request_t;

/* A node on the path of a row, in depth-first order. */
typedef struct ideft_visit {
    uint32_t node;
    uint32_t parent;   /* visit, IDEFT_NONE for a root */
    uint32_t start, n; /* tokens that some row sees */
    uint32_t row_begin, row_end;
    uint32_t n_self, self_pos; /* own rows, path position of the first */
    uint32_t min_pos;          /* least position of a row that sees it */
    uint32_t last_seg;         /* where the node's last token is, for patching; IDEFT_NONE */
    uint32_t slot;             /* of its first token if it is one run, else IDEFT_NONE */
} ideft_visit_t;

/* A node on the path of a row, while requests are sorted: links are indices, IDEFT_NONE for
 * none. */
typedef struct ideft_active {
    uint32_t node;
    uint32_t parent, first_child, last_child, next;
    uint32_t request;
} ideft_active_t;

typedef struct ideft_planner {
    ideft_host_t *host;
    const ideft_forest_t *forest;
    const ideft_geometry_t *geometry;
    ideft_machine_t machine;
    ideft_plan_t plan; /* the finished one; points into what follows */
    IDEFT_VEC(ideft_row_t) row;
    IDEFT_VEC(ideft_seg_t) seg;
    IDEFT_VEC(ideft_group_t) group;
    IDEFT_VEC(uint32_t) order;
    IDEFT_VEC(uint32_t) part_begin;
    IDEFT_VEC(uint32_t) part_list;
    IDEFT_VEC(int32_t) positions;
    IDEFT_VEC(int32_t) ids;
    IDEFT_VEC(deft_node_t) nodes;
    /* on the way there */
    IDEFT_VEC(ideft_request_t) request;
    IDEFT_VEC(ideft_active_t) active;
    IDEFT_VEC(ideft_visit_t) visit;
    IDEFT_VEC(uint32_t) list; /* scratch: a path, the visits of a tile */
    /* by node: its visit (or active), if that is of this node. Entries of other nodes are stale
     * (Briggs and Torczon's sparse set, 1993). */
    IDEFT_VEC(uint32_t) mark;
    /* what the plan was made for */
    uint64_t topology;
    deft_split_t split;
    uint32_t chunk_tokens;
    bool ended;     /* describes the last step, which ended well: patching may build on it */
    bool one_each;  /* every request is one token of a leaf */
    bool cut_stays; /* growing leaves do not move the cuts */
    deft_planned_t planned;
    uint64_t plan_ns;
} ideft_planner_t;

void ideft_planner_init(ideft_planner_t *planner, ideft_host_t *host, const ideft_forest_t *forest,
                        const ideft_geometry_t *geometry, const ideft_machine_t *machine);
/* Free all memory; the planner can be used again. */
void ideft_planner_trim(ideft_planner_t *planner);

/* Make planner->plan. On error the next plan is made afresh; nothing else changes. */
deft_status_t ideft_plan_make(ideft_planner_t *planner, const ideft_ask_t *ask);
/* Requests of the plan have been computed: the next plan may be patched from this one. Or it must
 * not. */
void ideft_plan_ended(ideft_planner_t *planner);
void ideft_plan_forget(ideft_planner_t *planner);
/* stats.c: fill all but the size of the struct. */
void ideft_plan_stats(const ideft_planner_t *planner, deft_step_stats_t *stats);

/* ---- between the files of this folder ---- */

/* Out of memory for a plan: the status, with its text. */
static inline deft_status_t ideft_plan_nomem(const ideft_planner_t *planner)
{
    return ideft_fail(planner->host, DEFT_ERR_NOMEM, "no memory for a plan");
}

/* order.c: requests, rows and visits of what is asked for. DEFT_ERR_EMPTY, DEFT_ERR_UNCOMPUTED,
 * ... */
deft_status_t ideft_plan_order(ideft_planner_t *planner, const ideft_ask_t *ask);
/* splits.c: segs, groups, partials and order from the visits. Sets cut_stays. */
deft_status_t ideft_plan_cut(ideft_planner_t *planner);
/* patch.c: true if this plan may be made of the last one, whose leaves grew by a token. */
bool ideft_plan_can_patch(const ideft_planner_t *planner, const ideft_ask_t *ask);
/* Patch it. False: it cannot be, and is half patched: make it afresh. *cut_again_p:
 * ideft_plan_cut() has to follow. */
bool ideft_plan_patch(ideft_planner_t *planner, bool *cut_again_p);

#endif
