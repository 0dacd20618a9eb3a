/* SPDX-License-Identifier: MIT */
/** @file deft/step.h  A step: one forward pass of the model over a set of rows.
 *
 *      deft_step_begin(ctx, NULL, 0, 0, &step);          which tokens are computed now; plans
 *      for each layer:
 *          deft_step_write(step, layer, k, v);
 *          deft_step_attend(step, layer, q, o);
 *      deft_step_end(step);                              the tokens count as computed
 *
 *  A row is one query token. It sees every token of its path up to and including itself, and
 *  nothing else: decode at leaves, prefill, inner nodes and whole draft trees, in any number of
 *  trees, are the same to a step.
 *  On CUDA q, k, v and o are device memory, aligned to 16 bytes, and write and attend return when
 *  the work is in the stream (deft/cuda.h); the rest is host work at once.
 *  Threads: the thread that has the context, but for deft_step_cancel(); the CPU device runs its
 *  own threads beneath. */
#ifndef DEFT_STEP_H
#define DEFT_STEP_H

#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "export.h"
#include "status.h"

DEFT_BEGIN_DECLS

/** A step's handle, a value: the context and the number of the step. A context has one open step at
 *  a time. The handle of a step that has ended is refused with DEFT_ERR_STALE, never taken for a
 *  later one. */
typedef struct deft_step_t {
    deft_ctx_t *ctx;
    uint64_t number; /**< counts the steps of the context from 1 */
} deft_step_t;

/** No step: refused with DEFT_ERR_INVAL. */
#define DEFT_STEP_INIT \
    {                  \
        NULL, 0        \
    }

/** Compute the next @p n tokens of a node that are not yet computed. */
typedef struct deft_rows_t {
    deft_tree_t *tree;
    deft_node_t node;
    size_t n; /**< 0: all that are not yet computed; more than there are: DEFT_ERR_STATE */
} deft_rows_t;

/** A row's output bits depend on its own path alone (its nodes, their lengths and their KV), not on
 *  the other rows, branches and trees of the step or of the context, nor on where the pool keeps
 *  the KV (on CUDA, while 64 consecutive tokens of a node lie in at most 32 runs). Costs speed on
 *  trees of many short nodes: each node is a group of its own. */
#define DEFT_STEP_INVARIANT UINT64_C(1)

/** Open a step and plan it.
 *  @param[in] rows   [n_rows] in the order in which q, k, v and o hold them; each node at most
 *                    once. NULL with n_rows 0: every token of every tree that is not yet computed,
 *                    nodes in the order in which they were first appended to since they were
 *                    computed.
 *  @param[in] flags  0 or DEFT_STEP_INVARIANT.
 *  @param[out] step_p  ends with deft_step_end() or deft_step_abandon().
 *  @return DEFT_OK; DEFT_ERR_INVAL (a node twice, unknown flag, a tree of another context);
 *  DEFT_ERR_STATE (more rows than a node has uncomputed tokens); DEFT_ERR_EMPTY (nothing to
 *  compute, in all or for a node of the list); DEFT_ERR_UNCOMPUTED (a token above a row is neither
 *  computed nor part of the step); DEFT_ERR_STALE; DEFT_ERR_FOREIGN; DEFT_ERR_BUSY; DEFT_ERR_NOMEM;
 *  DEFT_ERR_LIMIT; on CUDA also DEFT_ERR_STATE (the stream is being captured), DEFT_ERR_LIMIT
 *  (captured graphs cannot take the plan: deft/cuda.h) and DEFT_ERR_DEVICE.
 *  Cost: O(rows + nodes above them + groups); where leaves only grew by one since the last step,
 *  O(rows). No allocation once warm. */
DEFT_API deft_status_t deft_step_begin(deft_ctx_t *ctx, const deft_rows_t *rows, size_t n_rows,
                                       uint64_t flags, deft_step_t *step_p);

/** Number of tokens (rows) of the step; 0 for a step that is not open. */
DEFT_API size_t deft_step_tokens(deft_step_t step);

/** What each row is; arrays of deft_step_tokens() entries, owned by the context, valid until the
 *  step ends, in the order of q. NULL for a step that is not open.
 *  deft_step_positions(): path positions, for rotary embedding.
 *  deft_step_ids(): token ids, -1 where none was given.
 *  deft_step_nodes(): handles of the nodes that own the rows. */
DEFT_API const int32_t *deft_step_positions(deft_step_t step);
DEFT_API const int32_t *deft_step_ids(deft_step_t step);
DEFT_API const deft_node_t *deft_step_nodes(deft_step_t step);

/** Store K and V of the step's rows. A layer may be written again: the new K and V take the place
 *  of the old.
 *  @param[in] layer  0 to n_layers-1; layers may come in any order.
 *  @param[in] k, v   [n_tokens][n_kv_heads][head_dim] of act_type, rotary embedding applied to k.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_STALE (the step has ended); DEFT_ERR_CANCELLED;
 *  DEFT_ERR_DEVICE. Cost: bytes of k and v.
 *  In KV of f16, which is the default, a value of 65520 or more in size becomes infinite. */
DEFT_API deft_status_t deft_step_write(deft_step_t step, uint32_t layer, const void *k,
                                       const void *v);

/** Attention of every row over its path. A layer may be attended to again: the same q and KV give
 *  the same bits.
 *  @param[in]  q  [n_tokens][n_q_heads][head_dim] of act_type; query heads of one KV head adjoin.
 *  @param[out] o  the same shape; must not overlap q.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_STATE (the layer was not written in this step);
 *  DEFT_ERR_STALE (the step has ended); DEFT_ERR_CANCELLED (o is incomplete);
 *  DEFT_ERR_DEVICE. Cost: unique KV bytes of the plan, or 4 * head_dim operations a query head and
 *  token seen, whichever takes longer. Tokens out of a window count as seen, but for two cases.
 *  Where every layer has a window, the plan leaves out pieces of nodes that the largest one hides
 *  from all rows. On the CPU a layer leaves out tiles, which are 64 or 128 tokens in adjoining
 *  slots, that its own window hides from all rows of a pass.
 *  CPU, act_type f16 or bf16: the calling thread converts q and o, and k and v in
 *  deft_step_write(); deft_step_begin() allocates 2 * n_tokens * n_q_heads * head_dim floats for
 *  it. */
DEFT_API deft_status_t deft_step_attend(deft_step_t step, uint32_t layer, const void *q, void *o);

/** Close the step: its tokens count as computed.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_STALE (it has ended before); DEFT_ERR_STATE (a layer
 *  was never written): the step stays open, write what is missing or abandon it;
 *  DEFT_ERR_CANCELLED, DEFT_ERR_DEVICE: abandon it. */
DEFT_API deft_status_t deft_step_end(deft_step_t step);

/** Close the step without effect: its tokens stay uncomputed, everything else is as before
 *  deft_step_begin(). A step that is not open is accepted: nothing happens. */
DEFT_API void deft_step_abandon(deft_step_t step);

/** Stop the step, from any thread: an attend that is running on the CPU returns
 *  DEFT_ERR_CANCELLED soon, and every later write, attend and end returns it at once. The attend
 *  stops between passes of up to 128 matrix rows (rows times query heads of a KV head) over the KV
 *  of a group, and every few rows where partials are joined. A write that is running ends first.
 *  On CUDA, what is in the stream runs out. The step stays open: the thread that has the
 *  context abandons it. A step that is not open any more is accepted: nothing happens. The context
 *  must exist.
 *  Threads: any. Cost: O(1). */
DEFT_API void deft_step_cancel(deft_step_t step);

/** How deft_step_begin() came to its plan. */
typedef enum deft_planned_t {
    DEFT_PLANNED_AFRESH = 0,  /**< from the tree */
    DEFT_PLANNED_PATCHED = 1, /**< from the last plan, whose leaves grew by one token */
    DEFT_PLANNED_RECUT = 2    /**< the same, with its groups cut again */
} deft_planned_t;

/** What a step's plan moves, for one layer. */
typedef struct deft_step_stats_t {
    size_t struct_size; /**< in: sizeof(deft_step_stats_t) */
    deft_split_t split; /**< the split that made the plan; NODE_CHUNK for an invariant step */
    deft_planned_t planned;
    uint64_t plan_ns; /**< time of deft_step_begin() spent on it */
    size_t rows;
    size_t groups;             /**< groups a KV head */
    size_t partials;           /**< (row, group) pairs that the reduction merges */
    uint64_t kv_unique_bytes;  /**< KV that some row sees, once a tree: what has to be read */
    uint64_t kv_logical_bytes; /**< KV over the rows, each its path: sequence attention's reads */
    uint64_t kv_read_bytes;    /**< KV over the groups of this plan: what they ask the caches for */
    uint64_t partial_bytes;    /**< partial results written and read again, as if in 32 bits */
    uint64_t mask_bytes;       /**< row intervals that say who sees what, read once */
    uint64_t unfused_bytes;    /**< what an unfused tree attention would move for QK^T and softmax,
                                   which never leave the core here: QK^T, mask and softmax over rows
                                   x tree tokens, each written and read once */
} deft_step_stats_t;

#define DEFT_STEP_STATS_INIT                                                                     \
    {                                                                                            \
        sizeof(deft_step_stats_t), DEFT_SPLIT_AUTO, DEFT_PLANNED_AFRESH, 0, 0, 0, 0, 0, 0, 0, 0, \
            0, 0                                                                                 \
    }

/** Fill @p stats up to its struct_size. @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_STALE.
 *  Cost: O(rows + nodes above them + runs of KV in the groups). */
DEFT_API deft_status_t deft_step_stats(deft_step_t step, deft_step_stats_t *stats);

DEFT_END_DECLS

#endif
