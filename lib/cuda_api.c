/* SPDX-License-Identifier: MIT */
/* deft/cuda.h: arguments and states. The work is the backend's; builds without CUDA have these too,
 * so that programs link against any build. */
#include "config.h"

#include <string.h>

#include "backend.h"
#include "status_int.h"

/* A context on CUDA without an open step. */
static deft_status_t check(const deft_ctx_t *ctx)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if (ctx->ops->view == NULL)
        return ideft_fail(ctx, DEFT_ERR_UNSUPPORTED, "the context is not on CUDA");
    return DEFT_OK;
}

static deft_status_t check_closed(const deft_ctx_t *ctx)
{
    IDEFT_TRY(check(ctx));
    if (ctx->step.open)
        return ideft_fail(ctx, DEFT_ERR_BUSY, "a step is open: end or abandon it first");
    return DEFT_OK;
}

deft_status_t deft_cuda_set_stream(deft_ctx_t *ctx, struct CUstream_st *stream)
{
    IDEFT_TRY(check_closed(ctx));
    return ctx->ops->set_stream(ctx, stream);
}

deft_status_t deft_cuda_reserve(deft_ctx_t *ctx, size_t rows, size_t nodes)
{
    IDEFT_TRY(check_closed(ctx));
    if ((rows == 0) != (nodes == 0) || rows > IDEFT_MAX_TOKENS || nodes > IDEFT_MAX_NODES)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "%zu rows, %zu nodes", rows, nodes);
    return ctx->ops->reserve(ctx, rows, nodes);
}

deft_status_t deft_cuda_replayed(deft_step_t *step)
{
    if (step == NULL || !step->open)
        return DEFT_ERR_INVAL;
    deft_ctx_t *ctx = step->ctx;
    IDEFT_TRY(check(ctx));
    if (!ctx->ops->captured(ctx))
        return ideft_fail(ctx, DEFT_ERR_STATE, "no pass of this context was captured");
    memset(step->written, 1, ctx->geom.n_layers);
    step->n_written = ctx->geom.n_layers;
    return DEFT_OK;
}

deft_status_t deft_cuda_written(deft_step_t *step, uint32_t layer)
{
    if (step == NULL || !step->open)
        return DEFT_ERR_INVAL;
    deft_ctx_t *ctx = step->ctx;
    IDEFT_TRY(check(ctx));
    if (layer >= ctx->geom.n_layers)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "layer %u of %u", layer, ctx->geom.n_layers);
    step->n_written += !step->written[layer];
    step->written[layer] = 1;
    return DEFT_OK;
}

deft_status_t deft_cuda_view(const deft_ctx_t *ctx, deft_cuda_view_t *view)
{
    IDEFT_TRY(check(ctx));
    if (view == NULL || view->struct_size < sizeof(size_t) || view->struct_size > 4096)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "view has no struct_size");
    deft_cuda_view_t full = { .struct_size = view->struct_size };
    ctx->ops->view(ctx, &full);
    memcpy(view, &full, view->struct_size < sizeof(full) ? view->struct_size : sizeof(full));
    return DEFT_OK;
}
