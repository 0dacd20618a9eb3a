/* SPDX-License-Identifier: MIT */
/* The forest: trees of nodes over one pool of slots. It knows slots as numbers: no bytes, layers,
 * heads or devices, and no steps.
 *
 * What holds between the fields below is verified by selfcheck.c, statement by statement.
 *
 * One thing, one name, on its way from here to the device:
 *
 *   tokens   span      consecutive slots with the same owners              pool.c
 *            run       consecutive slots of one node: whole spans          runs.h
 *            seg       a run or a part of it, and the rows that see it     ../plan/plan.h
 *            copy      a seg or a part of it in a tile of 64 tokens        ../../cuda/kernels.h
 *   work     group     segs, and the rows that meet them                   ../plan/plan.h
 *            record    a group and one tile of its rows, on the GPU        ../../cuda/kernels.h
 *            unit      a group or record for one KV head: what is taken    the devices
 *   rows     request   the next n tokens of a node, as the caller asks     ../plan/planner.h
 *            row       one query token, numbered in depth-first order      ../plan/plan.h
 *            matrix row  one query head of a row                           the devices
 *   nodes    node      of a tree                                           here
 *            visit     a node on the path of a row, in depth-first order   ../plan/planner.h
 *   results  partial   a row's attention over one group                    the devices */
#ifndef IDEFT_FOREST_H
#define IDEFT_FOREST_H

#include "../base/vec.h"
#include "move.h"
#include "runs.h"

#define IDEFT_MAX_NODES ((uint32_t)1 << 30)

/* length of the node == gone + length of its runs;  gone <= computed <= length
 * start == parent's start + parent's length
 * n_children == nodes on the list first_child, next, ..., last_child
 * the node is on the dirty list iff computed < length
 * a slot that several nodes own lies in a span with as many owners
 * tree == 0 iff the node is free; then parent is the next free one.
 * The first 64 bytes are what a plan reads. */
typedef struct ideft_node {
    uint32_t gen;      /* of its handle */
    uint32_t tree;     /* id of its tree */
    uint32_t start;    /* path position of its first token */
    uint32_t gone;     /* its first tokens that were evicted: they have no slots */
    ideft_runs_t runs; /* where the others lie */
    uint32_t computed; /* its first tokens whose KV was computed */
    uint32_t parent, first_child, last_child;
    uint32_t prev, next; /* siblings */
    uint32_t dirty_prev, dirty_next;
    uint32_t n_children;
    void *user;
} ideft_node_t;

#define IDEFT_CHUNK_BITS 12 /* nodes come in chunks that never move */
#define IDEFT_CHUNK ((uint32_t)1 << IDEFT_CHUNK_BITS)

typedef struct ideft_forest ideft_forest_t;

struct deft_tree_t {
    ideft_forest_t *forest;
    uint32_t id; /* its place in forest->tree, from 1 */
    uint32_t root;
    size_t n_nodes;
};

struct ideft_forest {
    ideft_host_t *host;
    void *owner; /* what the forest is part of: handed on, never followed */
    ideft_pool_t *pool;
    deft_node_hooks_t hooks;
    /* node i is chunk[i >> BITS][i & MASK]; NULL: trimmed. Node 0 is never used. */
    IDEFT_VEC(ideft_node_t *) chunk;
    uint32_t free_node, next_node;    /* free list; first index never used */
    uint32_t first_gen;               /* nodes of new chunks begin above it */
    size_t n_trimmed;                 /* chunks that are NULL */
    size_t n_nodes;                   /* that live */
    uint32_t dirty_first, dirty_last; /* nodes with uncomputed tokens, in order of becoming so */
    IDEFT_VEC(deft_tree_t *) tree;    /* by id; [0] and ids that are free: NULL */
    IDEFT_VEC(uint32_t) free_id;      /* with room for all of them */
    size_t n_trees;
    uint64_t topology; /* counts changes other than a leaf's growth */
};

static inline ideft_node_t *ideft_node(const ideft_forest_t *forest, uint32_t index)
{
    return &forest->chunk.at[index >> IDEFT_CHUNK_BITS][index & (IDEFT_CHUNK - 1)];
}

static inline deft_node_t ideft_handle(const ideft_forest_t *forest, uint32_t index)
{
    return index == 0 ? DEFT_NODE_NONE : (deft_node_t)ideft_node(forest, index)->gen << 32 | index;
}

/* True if the handle has a node, of any tree. */
static inline bool ideft_node_lives(const ideft_forest_t *forest, deft_node_t handle)
{
    const uint32_t index = (uint32_t)handle;
    if (index == 0 || index >= forest->next_node ||
        forest->chunk.at[index >> IDEFT_CHUNK_BITS] == NULL)
        return false;
    const ideft_node_t *node = ideft_node(forest, index);
    return node->tree != 0 && node->gen == (uint32_t)(handle >> 32);
}

/* True if the handle has a node of this tree. A lookup is a cache miss and little else, so what
 * counts is how many the processor has under way. Hence few instructions, inline, and the node's
 * index is the lower half of the handle, never a result of these tests: the next lookup begins
 * while this node comes from memory. No test for 0: node 0 is of no tree, and its chunk is
 * there. */
static inline bool ideft_tree_has(const deft_tree_t *tree, deft_node_t handle)
{
    const ideft_forest_t *forest = tree->forest;
    const uint32_t index = (uint32_t)handle;
    if (index >= forest->next_node || forest->chunk.at[index >> IDEFT_CHUNK_BITS] == NULL)
        return false;
    const ideft_node_t *node = ideft_node(forest, index);
    return node->tree == tree->id && node->gen == (uint32_t)(handle >> 32);
}

/* Tokens of a node, the evicted ones included. */
static inline uint32_t ideft_node_len(const ideft_node_t *node)
{
    return node->gone + ideft_runs_len(&node->runs);
}

/* ---- nodes.c: the store of nodes and trees --------------------------------------------------- */

deft_status_t ideft_forest_init(ideft_forest_t *forest, ideft_host_t *host, uint32_t n_slots,
                                const deft_node_hooks_t *hooks);
/* Free every tree and node; hooks run. A forest of zeros is accepted. */
void ideft_forest_fini(ideft_forest_t *forest);
/* Free chunks of nodes of which none lives. */
void ideft_forest_trim(ideft_forest_t *forest);

/* The index of a handle's node, which must be of this tree: DEFT_ERR_STALE, DEFT_ERR_FOREIGN. */
deft_status_t ideft_node_get(const deft_tree_t *tree, deft_node_t handle, uint32_t *index_p);

deft_status_t ideft_tree_new(ideft_forest_t *forest, deft_tree_t **tree_p);

/* The hook's clone of a user pointer, NULL without either; a clone that fails leaves NULL. */
deft_status_t ideft_user_clone(const ideft_forest_t *forest, void *user, void **clone_p);
void ideft_user_free(const ideft_forest_t *forest, void *user);
void ideft_node_set_user(ideft_forest_t *forest, uint32_t index, void *user);

/* Make sure that n nodes can be made without a failure. */
deft_status_t ideft_nodes_reserve(ideft_forest_t *forest, size_t n);
/* A new node that hangs nowhere yet; there is room. It owns `user`. */
uint32_t ideft_node_new(deft_tree_t *tree, uint32_t start, void *user);
/* Free a node that hangs nowhere and has no children. */
void ideft_node_free(deft_tree_t *tree, uint32_t index);
/* Put a node last among the children of `parent`; take it away from there. */
void ideft_node_hang(ideft_forest_t *forest, uint32_t index, uint32_t parent);
void ideft_node_unhang(ideft_forest_t *forest, uint32_t index);

/* The list of nodes with uncomputed tokens; after 0: first. */
void ideft_dirty_link(ideft_forest_t *forest, uint32_t index, uint32_t after);
void ideft_dirty_unlink(ideft_forest_t *forest, uint32_t index);
/* The first n uncomputed tokens of a node have been computed. */
void ideft_node_computed(ideft_forest_t *forest, uint32_t index, uint32_t n);

/* The node that follows `at` in a depth-first walk below `top`; 0 after the last. */
uint32_t ideft_node_after(const ideft_forest_t *forest, uint32_t top, uint32_t at);

/* ---- grow.c, shrink.c: what changes a tree; arguments are valid --------------------------------
 * Each first does all that can fail, then changes the forest with what cannot. */

deft_status_t ideft_tree_fork(deft_tree_t *tree, uint32_t index, size_t n, deft_node_t *kids);
deft_status_t ideft_tree_fork_at(deft_tree_t *tree, uint32_t index, uint32_t offset, size_t n,
                                 deft_node_t *kids, deft_node_t *tail_p);
/* DEFT_ERR_NOSPACE unless n slots are free. */
deft_status_t ideft_need_slots(const ideft_forest_t *forest, size_t n);
deft_status_t ideft_tree_append(deft_tree_t *tree, uint32_t index, size_t n, const int32_t *tokens);
deft_status_t ideft_tree_share(deft_tree_t *tree, uint32_t index, deft_tree_t **tree_p);

void ideft_tree_free(deft_tree_t *tree);
void ideft_tree_prune(deft_tree_t *tree, uint32_t index);
void ideft_tree_truncate(deft_tree_t *tree, uint32_t index, uint32_t n);
/* keep_below: what is below the node stays. */
void ideft_tree_commit(deft_tree_t *tree, uint32_t index, bool keep_below);
/* Give back the first n tokens of a node, as far as it has not. Returns how many slots came
 * free. */
uint32_t ideft_tree_evict(deft_tree_t *tree, uint32_t index, uint32_t n);
/* The same of every token that no row to come can see, where each sees the last `window`. */
size_t ideft_tree_evict_unseen(deft_tree_t *tree, uint32_t window);

/* ---- compact.c ------------------------------------------------------------------------------- */

/* Takes moves whose slots are disjoint; calls follow each other in order. */
typedef deft_status_t (*ideft_carry_fn)(void *arg, const ideft_move_t *moves, uint32_t n);

/* Join the chains of only children below `top`. DEFT_ERR_NOMEM: nothing was joined. */
deft_status_t ideft_compact_chains(deft_tree_t *tree, uint32_t top);
/* Bring what is at and below `top` into long runs: up to `budget` tokens and what is left of a run
 * then. The KV of computed tokens is for `carry` to move; when it fails, slots are without their
 * KV. */
deft_status_t ideft_compact_runs(deft_tree_t *tree, uint32_t top, size_t budget,
                                 ideft_carry_fn carry, void *arg, size_t *moved_p);

/* ---- lookup.c, selfcheck.c ------------------------------------------------------------------- */

/* Ids of the last n tokens of a path, oldest first. */
void ideft_path_tokens(const ideft_forest_t *forest, uint32_t index, size_t n, int32_t *ids);
/* The deepest node whose path agrees with ids: it matches the first *matched_p, the last of them at
 * *offset_p tokens into the node. */
uint32_t ideft_tree_find(const deft_tree_t *tree, const int32_t *ids, size_t n, size_t *offset_p,
                         size_t *matched_p);
/* Verify every invariant. DEFT_ERR_CORRUPT with the one that does not hold; DEFT_ERR_NOMEM. */
deft_status_t ideft_forest_check(ideft_forest_t *forest);

#endif
