/* SPDX-License-Identifier: MIT */
/* The seam between the host library and what holds KV and computes.
 *
 * A backend gets a finished plan; it never walks a tree. For every call: the context's geometry is
 * set and does not change; the plan is complete and stays as it is until the step is closed;
 * layer < n_layers; pointers are not NULL. A call that fails returns a code of deft/status.h with
 * the text set by ideft_fail(); DEFT_ERR_DEVICE means that the context is lost. */
#ifndef IDEFT_BACKEND_H
#define IDEFT_BACKEND_H

#include "deft/cuda.h"
#include "types.h"

#define IDEFT_MOVE_MAX 128u /* tokens at a time */

typedef struct ideft_move {
    uint32_t n;
    uint32_t from[IDEFT_MOVE_MAX], to[IDEFT_MOVE_MAX];
} ideft_move_t;

struct ideft_backend_ops {
    const char *name;
    /* Make ctx->backend: the arena for ctx->pool_tokens slots, threads or streams; set
     * ctx->machine, ctx->device, ctx->act_type, ctx->isa, ctx->n_threads, and ctx->pool_tokens where
     * that is DEFT_POOL_FREE. On failure nothing stays behind. */
    deft_status_t (*create)(deft_ctx_t *ctx, const deft_config_t *config);
    void (*destroy)(deft_ctx_t *ctx);
    /* The plan of a new step is ready: take what the step needs (workspace, upload). */
    deft_status_t (*prepare)(deft_ctx_t *ctx);
    /* Store K and V [n_row][Hkv][D] of the plan's rows, in the caller's order, at their slots. */
    deft_status_t (*write)(deft_ctx_t *ctx, uint32_t layer, const void *k, const void *v);
    /* o[n_row][H][D] = attention of q[n_row][H][D] over the plan's items. */
    deft_status_t (*attend)(deft_ctx_t *ctx, uint32_t layer, const void *q, void *o);
    /* Copy K and V of all layers from slots to slots, as if all were read before any is written. With
     * n 0: could it? After that it fails only with the device. */
    deft_status_t (*move)(deft_ctx_t *ctx, const ideft_move_t *move);
    /* What the instructions are called, for deft_info_t. */
    const char *(*describe)(const deft_ctx_t *ctx);
    /* deft/cuda.h; NULL in other backends. */
    deft_status_t (*set_stream)(deft_ctx_t *ctx, void *stream);
    deft_status_t (*reserve)(deft_ctx_t *ctx, size_t rows, size_t nodes);
    bool (*captured)(const deft_ctx_t *ctx);
    void (*view)(const deft_ctx_t *ctx, deft_cuda_view_t *view);
};

extern const ideft_backend_ops_t ideft_cpu_ops;
#ifdef HAVE_CUDA
extern const ideft_backend_ops_t ideft_cuda_ops; /* cuda/ */
#endif

#endif
