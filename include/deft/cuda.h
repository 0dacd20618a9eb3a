/* SPDX-License-Identifier: MIT */
/** @file deft/cuda.h  What a context on CUDA (deft_config_t.device) has besides: a
 *  stream, device pointers, and captured graphs. Needs no CUDA header. In a build without CUDA and
 *  on contexts on other devices every call here returns DEFT_ERR_UNSUPPORTED, once its arguments
 *  are found right.
 *
 *  deft_step_begin() uploads the plan by one asynchronous copy. deft_step_write() and _attend()
 *  launch kernels. deft_tree_compact() launches some that move KV. All of it goes to the context's
 *  stream, in order. A slot that was given back is written again only by what comes later in the
 *  stream, so after the kernels that read it; whoever reads the pool in another stream waits for
 *  this one.
 *
 *  A forward pass can be captured once and replayed for later steps:
 *
 *      deft_step_begin(ctx, NULL, 0, 0, &step);        outside the capture, before every replay
 *      first time:  capture the stream while the layers are launched; instantiate the graph
 *      later:       cudaGraphLaunch(graph, stream); deft_cuda_replayed(step);
 *      deft_step_end(step);
 *
 *  Tree, rows and groups may change between replays. What a graph is bound to are the buffers of
 *  plans and partials; from the first capture on they do not move, and deft_step_begin() returns
 *  DEFT_ERR_LIMIT for a plan that they cannot hold, or that has partials where the one that the
 *  graph was captured with had none. deft_cuda_reserve() sizes them beforehand, for any plan.
 *  q, k, v and o of a captured pass are the caller's, for as many rows as will come. */
#ifndef DEFT_CUDA_H
#define DEFT_CUDA_H

#include <stddef.h>
#include <stdint.h>

#include "context.h"
#include "export.h"
#include "status.h"
#include "step.h"

DEFT_BEGIN_DECLS

struct CUstream_st; /* a cudaStream_t points to one */

/** Work of later calls goes to @p stream; before the first call: the default stream. The caller
 *  orders the old stream before the new one where it matters, and keeps the stream alive as long
 *  as the context uses it.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_UNSUPPORTED; DEFT_ERR_BUSY (a step is open):
 *  unchanged.
 *  Cost: O(1). */
DEFT_API deft_status_t deft_cuda_set_stream(deft_ctx_t *ctx, struct CUstream_st *stream);

/** Device memory for plans of up to @p rows rows over @p nodes nodes (of all trees, those above the
 *  rows included; a node counts once for each of its runs, deft_node_info_t.n_runs) with
 *  DEFT_SPLIT_AUTO, so that steps within these bounds allocate nothing. Other splits and
 *  DEFT_STEP_INVARIANT can need more. Graphs captured before are void: capture again. Both 0:
 *  graphs captured from now on are for plans like the one that they are captured with.
 *  @return DEFT_OK; DEFT_ERR_INVAL (0 or absurd); DEFT_ERR_UNSUPPORTED; DEFT_ERR_BUSY;
 *  DEFT_ERR_NOMEM (graphs are void all the same, the rest is as before); DEFT_ERR_DEVICE.
 *  Cost: allocations; may wait for the device. */
DEFT_API deft_status_t deft_cuda_reserve(deft_ctx_t *ctx, size_t rows, size_t nodes);

/** The caller has launched a graph that was captured from all layers of an earlier step: every
 *  layer counts as written, and the step can end.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_UNSUPPORTED; DEFT_ERR_STALE; DEFT_ERR_CANCELLED;
 *  DEFT_ERR_DEVICE; DEFT_ERR_STATE (nothing was captured on this context since the last
 *  deft_cuda_reserve()). Cost: O(layers). */
DEFT_API deft_status_t deft_cuda_replayed(deft_step_t step);

/** The caller has launched a kernel of its own, in the context's stream, that stores K and V of the
 *  step's rows in the pool where deft_cuda_view() says: in place of deft_step_write(), so that one
 *  kernel rotates K and stores it. What such a kernel stores elsewhere damages other branches.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_UNSUPPORTED; DEFT_ERR_STALE; DEFT_ERR_CANCELLED;
 *  DEFT_ERR_DEVICE. Cost: O(1). */
DEFT_API deft_status_t deft_cuda_written(deft_step_t step, uint32_t layer);

/** Where things are on the device, for kernels of the caller. Valid until the context is destroyed;
 *  `positions`, `ids`, `slots` and `n_rows` until its buffers move, which they do not once a
 *  deft_step_write() or deft_step_attend() has been captured, or within deft_cuda_reserve(). */
typedef struct deft_cuda_view_t {
    size_t struct_size; /**< in: sizeof(deft_cuda_view_t) */
    struct CUstream_st *stream;
    void *pool; /**< [n_layers][K, V][n_kv_heads][pool_tokens][head_dim] */
    size_t pool_tokens;
    const uint32_t *n_rows;   /**< rows of the step */
    const int32_t *positions; /**< [*n_rows] as deft_step_positions() */
    const int32_t *ids;       /**< [*n_rows] as deft_step_ids() */
    const uint32_t *slots;    /**< [*n_rows] the slot of each row's K and V */
    size_t max_rows;          /**< room of positions, ids and slots */
} deft_cuda_view_t;

#define DEFT_CUDA_VIEW_INIT                                                \
    {                                                                      \
        sizeof(deft_cuda_view_t), NULL, NULL, 0, NULL, NULL, NULL, NULL, 0 \
    }

/** Fill @p view up to its struct_size.
 *  @return DEFT_OK; DEFT_ERR_INVAL; DEFT_ERR_UNSUPPORTED: @p view is untouched. Cost: O(1). */
DEFT_API deft_status_t deft_cuda_view(const deft_ctx_t *ctx, deft_cuda_view_t *view);

DEFT_END_DECLS

#endif
