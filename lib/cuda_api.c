/* SPDX-License-Identifier: MIT */
/* deft/cuda.h: arguments and states. The work is the device's; builds without CUDA have these calls
 * too, so that programs link against any build. */
#include "config.h"

#include <string.h>

#include "context_int.h"

/* The device has a stream. */
static deft_status_t check_stream(const deft_ctx_t *ctx)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if (ctx->device->ops->stream == NULL)
        return ideft_fail(ctx->device->host, DEFT_ERR_UNSUPPORTED, "the context is not on CUDA");
    return DEFT_OK;
}

deft_status_t deft_cuda_set_stream(deft_ctx_t *ctx, struct CUstream_st *stream)
{
    IDEFT_TRY(check_stream(ctx));
    IDEFT_TRY(ideft_need_closed(ctx));
    ctx->device->ops->stream->set_stream(ctx->device, stream);
    return DEFT_OK;
}

deft_status_t deft_cuda_reserve(deft_ctx_t *ctx, size_t rows, size_t nodes)
{
    IDEFT_TRY(check_stream(ctx));
    IDEFT_TRY(ideft_need_closed(ctx));
    if ((rows == 0) != (nodes == 0) || rows > IDEFT_MAX_TOKENS || nodes > IDEFT_MAX_NODES)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "%zu rows, %zu nodes", rows, nodes);
    IDEFT_TRY(ideft_need_alive(ctx));
    return ideft_heed(ctx, ctx->device->ops->stream->reserve(ctx->device, rows, nodes));
}

deft_status_t deft_cuda_replayed(deft_step_t step)
{
    IDEFT_TRY(ideft_need_running(step));
    deft_ctx_t *ctx = step.ctx;
    IDEFT_TRY(check_stream(ctx));
    if (!ctx->device->ops->stream->captured(ctx->device))
        return ideft_fail(&ctx->host, DEFT_ERR_STATE, "no pass of this context was captured");
    for (uint32_t layer = 0; layer < ctx->geometry.n_layers; layer++)
        ideft_step_wrote(&ctx->step, layer);
    return DEFT_OK;
}

deft_status_t deft_cuda_written(deft_step_t step, uint32_t layer)
{
    IDEFT_TRY(ideft_need_running(step));
    IDEFT_TRY(check_stream(step.ctx));
    IDEFT_TRY(ideft_check_layer(step.ctx, layer));
    ideft_step_wrote(&step.ctx->step, layer);
    return DEFT_OK;
}

deft_status_t deft_cuda_view(const deft_ctx_t *ctx, deft_cuda_view_t *view)
{
    deft_cuda_view_t full = { .struct_size = 0 };
    IDEFT_TRY(check_stream(ctx));
    ctx->device->ops->stream->view(ctx->device, &full);
    return ideft_give(ctx->device->host, view, &full, sizeof(full), "view");
}
