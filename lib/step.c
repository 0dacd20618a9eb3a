/* SPDX-License-Identifier: MIT */
/* The step: its states and its arguments. What it computes is the planner's and the device's. */
#include "config.h"

#include <string.h>

#include "context_int.h"

/* ---- states ---------------------------------------------------------------------------------- */

deft_status_t ideft_need_alive(deft_ctx_t *ctx)
{
    if (ctx->lost)
        return ideft_fail(&ctx->host, DEFT_ERR_DEVICE,
                          "the device failed before; the context is lost");
    return DEFT_OK;
}

static bool is_open(deft_step_t step)
{
    return step.ctx != NULL && step.ctx->step.open &&
           atomic_load_explicit(&step.ctx->step.stop.step, memory_order_relaxed) == step.number;
}

deft_status_t ideft_need_open(deft_step_t step)
{
    if (step.ctx == NULL)
        return DEFT_ERR_INVAL;
    if (step.number == 0)
        return ideft_fail(&step.ctx->host, DEFT_ERR_INVAL, "the handle is of no step");
    if (!is_open(step))
        return ideft_fail(&step.ctx->host, DEFT_ERR_STALE, "step %llu has ended",
                          (unsigned long long)step.number);
    return DEFT_OK;
}

deft_status_t ideft_need_running(deft_step_t step)
{
    IDEFT_TRY(ideft_need_open(step));
    IDEFT_TRY(ideft_need_alive(step.ctx));
    if (ideft_stops(&step.ctx->step.stop))
        return ideft_fail(&step.ctx->host, DEFT_ERR_CANCELLED,
                          "the step was cancelled: abandon it");
    return DEFT_OK;
}

deft_status_t ideft_heed(deft_ctx_t *ctx, deft_status_t status)
{
    if (status == DEFT_ERR_DEVICE)
        ctx->lost = true;
    return status;
}

void ideft_step_wrote(ideft_step_t *step, uint32_t layer)
{
    step->n_written += !step->written[layer];
    step->written[layer] = 1;
}

deft_status_t ideft_check_layer(const deft_ctx_t *ctx, uint32_t layer)
{
    if (layer >= ctx->geometry.n_layers)
        return ideft_fail(ctx->device->host, DEFT_ERR_INVAL, "layer %u of %u", layer,
                          ctx->geometry.n_layers);
    return DEFT_OK;
}

/* ---- beginning and ending -------------------------------------------------------------------- */

deft_status_t deft_step_begin(deft_ctx_t *ctx, const deft_rows_t *rows, size_t n_rows,
                              uint64_t flags, deft_step_t *step_p)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if (step_p == NULL || (rows == NULL) != (n_rows == 0))
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL,
                          "rows and n_rows disagree, or step_p is NULL");
    if ((flags & ~DEFT_STEP_INVARIANT) != 0)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "unknown flags %#llx",
                          (unsigned long long)flags);
    if (n_rows > IDEFT_MAX_NODES)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "%zu entries in rows", n_rows);
    IDEFT_TRY(ideft_need_alive(ctx));
    IDEFT_TRY(ideft_need_closed(ctx));
    const ideft_ask_t ask = { .rows = rows,
                              .n_rows = n_rows,
                              .split = ctx->split,
                              .chunk_tokens = ctx->asked.chunk_tokens,
                              .invariant = (flags & DEFT_STEP_INVARIANT) != 0 };
    IDEFT_TRY(ideft_plan_make(&ctx->planner, &ask));
    IDEFT_TRY(ideft_heed(ctx, ctx->device->ops->prepare(ctx->device, &ctx->planner.plan)));
    memset(ctx->step.written, 0, ctx->geometry.n_layers);
    ctx->step.n_written = 0;
    const uint64_t last = atomic_fetch_add_explicit(&ctx->step.stop.step, 1, memory_order_relaxed);
    ctx->step.open = true;
    *step_p = (deft_step_t){ ctx, last + 1 };
    return DEFT_OK;
}

deft_status_t deft_step_end(deft_step_t step)
{
    IDEFT_TRY(ideft_need_running(step));
    deft_ctx_t *ctx = step.ctx;
    const ideft_planner_t *planner = &ctx->planner;
    if (ctx->step.n_written < ctx->geometry.n_layers)
        return ideft_fail(&ctx->host, DEFT_ERR_STATE, "%u of %u layers are written",
                          ctx->step.n_written, ctx->geometry.n_layers);
    for (size_t i = 0; i < planner->request.n; i++)
        ideft_node_computed(&ctx->forest, planner->request.at[i].node, planner->request.at[i].n);
    ideft_plan_ended(&ctx->planner);
    ctx->step.open = false;
    return DEFT_OK;
}

void deft_step_abandon(deft_step_t step)
{
    if (is_open(step))
        step.ctx->step.open = false; /* the plan has not ended well: nothing is built on it */
}

void deft_step_cancel(deft_step_t step)
{
    if (step.ctx == NULL)
        return;
    ideft_stop_t *stop = &step.ctx->step.stop;
    uint64_t last = atomic_load_explicit(&stop->cancelled, memory_order_relaxed);
    if (step.number > atomic_load_explicit(&stop->step, memory_order_relaxed))
        return; /* not a step of this context */
    while (step.number > last &&
           !atomic_compare_exchange_weak_explicit(&stop->cancelled, &last, step.number,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

/* ---- rows and layers ------------------------------------------------------------------------- */

size_t deft_step_tokens(deft_step_t step)
{
    return is_open(step) ? step.ctx->planner.plan.n_rows : 0;
}

const int32_t *deft_step_positions(deft_step_t step)
{
    return is_open(step) ? step.ctx->planner.plan.positions : NULL;
}

const int32_t *deft_step_ids(deft_step_t step)
{
    return is_open(step) ? step.ctx->planner.plan.ids : NULL;
}

const deft_node_t *deft_step_nodes(deft_step_t step)
{
    return is_open(step) ? step.ctx->planner.plan.nodes : NULL;
}

/* An operation on a layer, with two buffers of the caller's. */
static deft_status_t check_operation(deft_step_t step, uint32_t layer, const void *a, const void *b)
{
    IDEFT_TRY(ideft_need_running(step));
    IDEFT_TRY(ideft_check_layer(step.ctx, layer));
    if (a == NULL || b == NULL)
        return ideft_fail(&step.ctx->host, DEFT_ERR_INVAL, "q, k, v or o is NULL");
    return DEFT_OK;
}

deft_status_t deft_step_write(deft_step_t step, uint32_t layer, const void *k, const void *v)
{
    IDEFT_TRY(check_operation(step, layer, k, v));
    deft_ctx_t *ctx = step.ctx;
    IDEFT_TRY(
        ideft_heed(ctx, ctx->device->ops->write(ctx->device, &ctx->planner.plan, layer, k, v)));
    ideft_step_wrote(&ctx->step, layer);
    return DEFT_OK;
}

deft_status_t deft_step_attend(deft_step_t step, uint32_t layer, const void *q, void *o)
{
    IDEFT_TRY(check_operation(step, layer, q, o));
    deft_ctx_t *ctx = step.ctx;
    if (!ctx->step.written[layer])
        return ideft_fail(&ctx->host, DEFT_ERR_STATE, "K and V of layer %u are not written", layer);
    return ideft_heed(ctx, ctx->device->ops->attend(ctx->device, &ctx->planner.plan, layer, q, o,
                                                    &ctx->step.stop));
}

deft_status_t deft_step_stats(deft_step_t step, deft_step_stats_t *stats)
{
    deft_step_stats_t full;
    IDEFT_TRY(ideft_need_open(step));
    ideft_plan_stats(&step.ctx->planner, &full);
    return ideft_give(&step.ctx->host, stats, &full, sizeof(full), "stats");
}
