/* SPDX-License-Identifier: MIT */
/** @file deft/tree.h  The tree: nodes own runs of tokens, a path from the root is a sequence.
 *
 *  Every call that changes a tree has the strong guarantee: on error the tree, the pool and the
 *  outputs are as they were (but for DEFT_ERR_DEVICE). While a step is open (deft/step.h) each of
 *  them returns DEFT_ERR_BUSY, and with DEFT_DEBUG_CHECK set in the environment each ends in
 *  deft_tree_check(); deft_tree_destroy() alone does neither. Calls that make nodes or remove them
 *  run the hooks of the context (deft_node_hooks_t); a clone that fails makes the call fail with
 *  its status.
 *  Threads: one thread at a time a context; no call here waits, and all but deft_tree_compact() are
 *  work of the host alone. */
#ifndef DEFT_TREE_H
#define DEFT_TREE_H

#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "export.h"
#include "status.h"

DEFT_BEGIN_DECLS

/** Make a tree whose root is an empty node.
 *  @param[out] tree_p  owned by the caller (deft_tree_destroy()) and at last by the context.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_BUSY; DEFT_ERR_NOMEM; DEFT_ERR_LIMIT. Cost: O(1). */
DEFT_API deft_status_t deft_tree_create(deft_ctx_t *ctx, deft_tree_t **tree_p);

/** Free a tree, its nodes, and the spans that no other tree shares. NULL is accepted. An open step
 *  over the context is abandoned first. Cost: O(nodes). */
DEFT_API void deft_tree_destroy(deft_tree_t *tree);

/** The context of a tree. */
DEFT_API deft_ctx_t *deft_tree_ctx(const deft_tree_t *tree);

/** The root: it is never pruned and its handle never changes. */
DEFT_API deft_node_t deft_tree_root(const deft_tree_t *tree);

/** Create @p n empty children of @p node, after its present ones. No KV is copied.
 *  @param[out] kids_p  [n] new handles, first to last.
 *  @return DEFT_OK; DEFT_ERR_INVAL (n 0 or absurd); DEFT_ERR_STALE; DEFT_ERR_FOREIGN;
 *  DEFT_ERR_BUSY; DEFT_ERR_NOMEM; DEFT_ERR_LIMIT. Cost: O(n). */
DEFT_API deft_status_t deft_tree_fork(deft_tree_t *tree, deft_node_t node, size_t n,
                                      deft_node_t *kids_p);

/** A child with its first tokens: deft_tree_fork() of one and deft_tree_append() to it, both or
 *  neither.
 *  @param[in]  tokens  [n] as for deft_tree_append().
 *  @param[out] kid_p   the new handle.
 *  @return as deft_tree_fork() and deft_tree_append(). Cost: O(n). */
DEFT_API deft_status_t deft_tree_fork_append(deft_tree_t *tree, deft_node_t node, size_t n,
                                             const int32_t *tokens, deft_node_t *kid_p);

/** Branch inside a node: @p node keeps its first @p offset tokens, its user pointer and its handle;
 *  one new child, the tail, takes the other tokens and the old children; @p n new empty children
 *  follow it. No KV is copied. A prompt that is cached to its last token is computed again from the
 *  token before: fork_at() there, and append that token to a new child. With @p offset equal to the
 *  length there is nothing to take over: the same as deft_tree_fork() (nothing for n 0), *tail_p =
 *  DEFT_NODE_NONE.
 *  @param[out] kids_p  [n] new handles; n may be 0, then it may be NULL.
 *  @param[out] tail_p  the tail, or NULL if the caller does not want it.
 *  @return as deft_tree_fork(); DEFT_ERR_INVAL also where @p offset is beyond the node's length or
 *  within its evicted tokens.
 *  Cost: O(n + runs of the node + its children). */
DEFT_API deft_status_t deft_tree_fork_at(deft_tree_t *tree, deft_node_t node, size_t offset,
                                         size_t n, deft_node_t *kids_p, deft_node_t *tail_p);

/** Give @p node room for @p n more tokens. Their KV is computed by the next step that names them.
 *  @param[in] tokens  [n] ids for deft_tree_find() and printing, copied; NULL: no ids (-1).
 *  @return DEFT_OK; DEFT_ERR_INVAL (n 0 or absurd); DEFT_ERR_STALE; DEFT_ERR_FOREIGN;
 *  DEFT_ERR_STATE (the node has children); DEFT_ERR_BUSY; DEFT_ERR_NOSPACE; DEFT_ERR_NOMEM.
 *  Cost: O(n), amortised; no allocation while the node grows in place. */
DEFT_API deft_status_t deft_tree_append(deft_tree_t *tree, deft_node_t node, size_t n,
                                        const int32_t *tokens);

/** Remove @p node and all below it. A span goes back to the pool with its last owner. Never
 *  allocates. @return DEFT_OK; DEFT_ERR_INVAL (the root); DEFT_ERR_STALE; DEFT_ERR_FOREIGN;
 *  DEFT_ERR_BUSY. Cost: O(nodes removed and their runs). */
DEFT_API deft_status_t deft_tree_prune(deft_tree_t *tree, deft_node_t node);

/** Cut @p node back to its first @p n tokens (a rejected draft). Never allocates.
 *  @return DEFT_OK; DEFT_ERR_INVAL (n beyond the length, or within the evicted tokens);
 *  DEFT_ERR_STATE (the node has children); DEFT_ERR_STALE; DEFT_ERR_FOREIGN; DEFT_ERR_BUSY.
 *  Cost: O(runs removed). */
DEFT_API deft_status_t deft_tree_truncate(deft_tree_t *tree, deft_node_t node, size_t n);

#define DEFT_COMMIT_PATH UINT64_C(0)    /**< what is below the node goes too (an accepted draft) */
#define DEFT_COMMIT_SUBTREE UINT64_C(1) /**< what is below stays (a move that was played) */

/** Keep only the path to @p node: every branch off it is pruned. Handles on the path stay valid.
 *  Never allocates. @return DEFT_OK; DEFT_ERR_INVAL (unknown flag); DEFT_ERR_STALE;
 *  DEFT_ERR_FOREIGN; DEFT_ERR_BUSY. Cost: O(path + nodes removed). */
DEFT_API deft_status_t deft_tree_commit(deft_tree_t *tree, deft_node_t node, uint64_t flags);

/** What is at and below a node, and what deft_tree_prune() of it would free. */
typedef struct deft_footprint_t {
    size_t struct_size; /**< in: sizeof(deft_footprint_t) */
    size_t nodes;
    size_t tokens;        /**< slots that these nodes own */
    size_t freed_tokens;  /**< those that nobody else owns: slots that come free */
    uint64_t freed_bytes; /**< the same in bytes of the pool */
} deft_footprint_t;

#define DEFT_FOOTPRINT_INIT                  \
    {                                        \
        sizeof(deft_footprint_t), 0, 0, 0, 0 \
    }

/** Measure a subtree. For a root: what deft_tree_destroy() would free.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_STALE; DEFT_ERR_FOREIGN: @p footprint is untouched.
 *  Cost: O(nodes at and below @p node and their spans). */
DEFT_API deft_status_t deft_tree_footprint(const deft_tree_t *tree, deft_node_t node,
                                           deft_footprint_t *footprint);

#define DEFT_COMPACT_MOVE UINT64_C(0)   /**< nodes stay as they are */
#define DEFT_COMPACT_CHAINS UINT64_C(1) /**< a node with one child becomes part of that child */

/** Bring the tokens at and below @p node into long runs, KV and all. What is read in one run is
 *  read faster: drafts that were accepted and growth in a full pool leave runs of a token or two.
 *  Runs of fewer than 64 slots that follow each other in a node are moved to free slots that
 *  adjoin. Where the free slots of the pool lie one by one, short runs of other nodes, of any tree
 *  of the context, are moved from between them. A run with a second owner stays where it is.
 *
 *  With DEFT_COMPACT_CHAINS the chains of only children below @p node are joined first, so that
 *  long speculative runs do not collect thousands of small nodes: the last node of a chain takes
 *  over the tokens of the others and keeps its handle, its children and its user pointer; the
 *  handles of the others go stale. @p node itself stays as it is, and a node with evicted tokens is
 *  not joined to one above it that still has slots.
 *
 *  Results do not change, but for rounding: on CUDA, and with DEFT_COMPACT_CHAINS, since the
 *  planner then cuts in other places. The KV moves in the context's stream, after the steps that
 *  were ended before.
 *  @param[in]  budget   tokens to move at most, so that a call takes a bounded time; 0: any number.
 *                       Runs are moved as a whole: the last ones may add up to 200 tokens.
 *  @param[out] moved_p  tokens moved; 0: no two runs came together, and the same call would not
 *                       bring any together now. A small budget may be used up in making room: a
 *                       larger one (256 and more) may still gain. NULL is accepted.
 *  @return DEFT_OK; DEFT_ERR_INVAL (unknown flag); DEFT_ERR_STALE; DEFT_ERR_FOREIGN; DEFT_ERR_BUSY;
 *  DEFT_ERR_NOMEM and DEFT_ERR_STATE (the stream is being captured): unchanged; DEFT_ERR_DEVICE:
 *  the context is lost.
 *  Cost: O(nodes below and their runs), and the KV of the tokens moved, read and written once.
 *  Where others have to be moved: O(nodes of the context + pool) and 4 bytes of host memory a slot
 *  of the pool once a call, and O(runs of the node) a move or an attempt; without that memory they
 *  stay. */
DEFT_API deft_status_t deft_tree_compact(deft_tree_t *tree, deft_node_t node, size_t budget,
                                         uint64_t flags, size_t *moved_p);

/** Give back the slots of the first @p n tokens of a node, which lives on without them: the oldest
 *  tokens of a root, for a conversation that is longer than the pool. Positions of the other tokens
 *  do not change. Rows to come do not see evicted tokens, whatever their window: the result is that
 *  of a sequence whose KV lacks them. deft_tree_find() matches nothing in this node or below it any
 *  more; ids of evicted tokens read as -1. Tokens that were evicted before count among the first
 *  @p n. Never allocates.
 *  @return DEFT_OK; DEFT_ERR_INVAL (n beyond the tokens that are computed); DEFT_ERR_STALE;
 *  DEFT_ERR_FOREIGN; DEFT_ERR_BUSY. Cost: O(spans given back + runs of the node). */
DEFT_API deft_status_t deft_tree_evict(deft_tree_t *tree, deft_node_t node, size_t n);

/** Give back every slot of the tree that no row to come can see, because every layer has a window
 *  and the token is out of all of them for what is appended to its node or below. Results do not
 *  change, but for what is computed from deft_tree_fork_at() or deft_tree_truncate() further up a
 *  node: its first rows see what is left of their window. Never allocates.
 *  @param[out] freed_p  slots that came free, 0 where a layer sees everything. NULL is accepted.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_BUSY.
 *  Cost: O(nodes + their runs + spans given back). */
DEFT_API deft_status_t deft_tree_evict_unseen(deft_tree_t *tree, size_t *freed_p);

/** Make a new tree whose root holds the path of @p node, shared by reference: the KV lives as long
 *  as either tree needs it. The new root counts as computed as far as the path is.
 *  @param[out] tree_p  the new tree, of the same context.
 *  @return DEFT_OK; DEFT_ERR_STALE; DEFT_ERR_FOREIGN; DEFT_ERR_UNCOMPUTED (a token of the path is
 *  not computed); DEFT_ERR_STATE (evicted tokens that are not the first of the path);
 *  DEFT_ERR_BUSY; DEFT_ERR_NOMEM; DEFT_ERR_LIMIT. Cost: O(spans of the path). */
DEFT_API deft_status_t deft_tree_share(deft_tree_t *tree, deft_node_t node, deft_tree_t **tree_p);

/** Find the deepest node whose path agrees with @p tokens: it matches the first *matched_p of them,
 *  the last of these at *offset_p tokens into the node (for deft_tree_fork_at()). Tokens without
 *  ids match nothing; tokens that are not computed yet do, and deft_tree_share() refuses them.
 *  Nothing matches: the root and 0. Of branches that agree equally far, the first in depth-first
 *  order.
 *  @param[out] node_p, offset_p, matched_p  each may be NULL.
 *  @return DEFT_OK; DEFT_ERR_INVAL. Cost: O(n + children of the nodes on paths that agree); where
 *  siblings begin with the same tokens, each of them is followed. */
DEFT_API deft_status_t deft_tree_find(const deft_tree_t *tree, const int32_t *tokens, size_t n,
                                      deft_node_t *node_p, size_t *offset_p, size_t *matched_p);

/** What a node is. */
typedef struct deft_node_info_t {
    size_t struct_size;      /**< in: sizeof(deft_node_info_t) */
    deft_node_t parent;      /**< DEFT_NODE_NONE for the root */
    deft_node_t first_child; /**< in order of creation */
    deft_node_t next_sibling;
    size_t n_children;
    size_t start;    /**< path position of the node's first token */
    size_t len;      /**< its tokens; start + len is the length of its sequence */
    size_t computed; /**< its first tokens whose KV was computed */
    size_t evicted;  /**< its first tokens whose slots were given back */
    size_t n_runs;   /**< contiguous runs of slots that hold the others */
    void *user;
} deft_node_info_t;

#define DEFT_NODE_INFO_INIT                                       \
    {                                                             \
        sizeof(deft_node_info_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL \
    }

/** Fill @p info up to its struct_size. @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_STALE;
 *  DEFT_ERR_FOREIGN: @p info is untouched. Cost: O(1). */
DEFT_API deft_status_t deft_tree_node(const deft_tree_t *tree, deft_node_t node,
                                      deft_node_info_t *info);

/** Walking. DEFT_NODE_NONE where there is none, and for a stale or foreign handle. Cost: O(1). */
DEFT_API deft_node_t deft_tree_parent(const deft_tree_t *tree, deft_node_t node);
DEFT_API deft_node_t deft_tree_first_child(const deft_tree_t *tree, deft_node_t node);
DEFT_API deft_node_t deft_tree_next_sibling(const deft_tree_t *tree, deft_node_t node);

/** Depth-first cursor over the subtree of @p top: DEFT_NODE_NONE starts it, and ends it.
 *  Parents come before children, children in order. @p prev is at or below @p top; from anywhere
 *  else the walk goes on to the end of the tree. A node may be removed once the cursor has moved on
 *  from it. Cost: O(1) amortised. */
DEFT_API deft_node_t deft_tree_next(const deft_tree_t *tree, deft_node_t top, deft_node_t prev);

/** Attach or read a pointer of the caller's; the library never follows it. With hooks
 *  (deft_node_hooks_t) the pointer that was there is freed, unless it is the same.
 *  @return deft_tree_set_user(): DEFT_OK; DEFT_ERR_STALE; DEFT_ERR_FOREIGN.
 *  deft_tree_user(): the pointer, NULL by default and for a bad handle. Cost: O(1). */
DEFT_API deft_status_t deft_tree_set_user(deft_tree_t *tree, deft_node_t node, void *user);
DEFT_API void *deft_tree_user(const deft_tree_t *tree, deft_node_t node);

/** Length of the sequence that ends with @p node, in tokens; 0 for a bad handle. Cost: O(1). */
DEFT_API size_t deft_tree_path_len(const deft_tree_t *tree, deft_node_t node);

/** Copy the token ids of the last @p n tokens of the path of @p node into @p ids, oldest first;
 *  -1 where no id was given. @return DEFT_OK; DEFT_ERR_INVAL (n beyond the path); DEFT_ERR_STALE;
 *  DEFT_ERR_FOREIGN. Cost: O(n + nodes met). */
DEFT_API deft_status_t deft_tree_path_tokens(const deft_tree_t *tree, deft_node_t node, size_t n,
                                             int32_t *ids);

/** Size of a tree. */
typedef struct deft_tree_stats_t {
    size_t struct_size; /**< in: sizeof(deft_tree_stats_t) */
    size_t n_nodes;
    size_t n_leaves;
    size_t tokens;         /**< over nodes: each shared prefix counted once */
    size_t path_tokens;    /**< over leaves: what a copy of the prefix a sequence would hold */
    size_t shared_tokens;  /**< tokens whose slots another tree owns too */
    size_t max_depth;      /**< in nodes, the root alone is 1 */
    size_t max_path;       /**< longest sequence, in tokens */
    size_t evicted_tokens; /**< of `tokens`: those whose slots were given back */
} deft_tree_stats_t;

#define DEFT_TREE_STATS_INIT                              \
    {                                                     \
        sizeof(deft_tree_stats_t), 0, 0, 0, 0, 0, 0, 0, 0 \
    }

/** Measure a tree. @return DEFT_OK; DEFT_ERR_INVAL. Cost: O(nodes + runs). */
DEFT_API deft_status_t deft_tree_stats(const deft_tree_t *tree, deft_tree_stats_t *stats);

/** Verify every invariant of the tree and of the context's pool (for tests and for bug reports).
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_CORRUPT, with the reason in deft_last_error();
 *  DEFT_ERR_NOMEM. Cost: O(nodes of the context + pool). */
DEFT_API deft_status_t deft_tree_check(const deft_tree_t *tree);

/** Takes @p n bytes of text. Non-zero stops the printing. */
typedef int (*deft_write_fn)(void *arg, const char *text, size_t n);

/** Writes a node's label into @p buf (NUL-terminated, at most @p size bytes). */
typedef void (*deft_label_fn)(void *arg, const deft_tree_t *tree, deft_node_t node, char *buf,
                              size_t size);

typedef enum deft_picture_t {
    DEFT_PICTURE_TEXT = 0, /**< one line a node, drawn with lines */
    DEFT_PICTURE_DOT = 1   /**< Graphviz */
} deft_picture_t;

/** How to draw a tree. */
typedef struct deft_print_t {
    size_t struct_size; /**< sizeof(deft_print_t) */
    deft_picture_t picture;
    deft_write_fn write; /**< required */
    void *arg;           /**< of write */
    deft_label_fn label; /**< NULL: tokens, path length, sharing and uncomputed rows alone */
    void *label_arg;
    size_t max_nodes; /**< stop with a line that says how many are left; 0: all */
    int ascii;        /**< lines as |, +, - instead of box characters (UTF-8) */
} deft_print_t;

#define DEFT_PRINT_INIT                                                       \
    {                                                                         \
        sizeof(deft_print_t), DEFT_PICTURE_TEXT, NULL, NULL, NULL, NULL, 0, 0 \
    }

/** Draw @p tree. Each node shows its tokens, where its path ends, how many rows wait to be computed
 *  and how many owners its spans have. Does not allocate.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_STATE (write stopped it). Cost: O(nodes * depth). */
DEFT_API deft_status_t deft_tree_print(const deft_tree_t *tree, const deft_print_t *print);

DEFT_END_DECLS

#endif
