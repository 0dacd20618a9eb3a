/* SPDX-License-Identifier: MIT */
/* The step: states and arguments. What it computes is the plan's and the backend's. */
#include "config.h"

#include <string.h>

#include "backend.h"
#include "plan.h"
#include "state.h"
#include "status_int.h"
#include "tree_int.h"

deft_status_t deft_step_begin(deft_ctx_t *ctx, const deft_rows_t *rows, size_t n_rows, uint64_t flags,
                              deft_step_t **step_p)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if (step_p == NULL || (rows == NULL) != (n_rows == 0))
        return ideft_fail(ctx, DEFT_ERR_INVAL, "rows and n_rows disagree, or step_p is NULL");
    if ((flags & ~DEFT_STEP_INVARIANT) != 0)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "unknown flags %#llx", (unsigned long long)flags);
    if (n_rows > IDEFT_MAX_NODES)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "%zu entries in rows", n_rows);
    deft_step_t *step = &ctx->step;
    if (ctx->lost)
        return ideft_fail(ctx, DEFT_ERR_DEVICE, "the device failed before; the context is lost");
    if (step->open)
        return ideft_fail(ctx, DEFT_ERR_BUSY, "a step is open: end or abandon it first");
    IDEFT_TRY(ideft_plan_make(ctx, rows, n_rows, flags));
    IDEFT_TRY(ctx->ops->prepare(ctx));
    memset(step->written, 0, ctx->geom.n_layers);
    step->n_written = 0;
    step->open = true;
    *step_p = step;
    return DEFT_OK;
}

static bool is_open(const deft_step_t *step)
{
    return step != NULL && step->open;
}

size_t deft_step_tokens(const deft_step_t *step)
{
    return is_open(step) ? step->ctx->plan.n_row : 0;
}

const int32_t *deft_step_positions(const deft_step_t *step)
{
    return is_open(step) ? step->ctx->plan.positions : NULL;
}

const int32_t *deft_step_ids(const deft_step_t *step)
{
    return is_open(step) ? step->ctx->plan.ids : NULL;
}

const deft_node_t *deft_step_nodes(const deft_step_t *step)
{
    return is_open(step) ? step->ctx->plan.nodes : NULL;
}

static deft_status_t check_layer(const deft_step_t *step, uint32_t layer, bool pointers)
{
    if (!is_open(step))
        return DEFT_ERR_INVAL;
    if (layer >= step->ctx->geom.n_layers)
        return ideft_fail(step->ctx, DEFT_ERR_INVAL, "layer %u of %u", layer, step->ctx->geom.n_layers);
    if (!pointers)
        return ideft_fail(step->ctx, DEFT_ERR_INVAL, "q, k, v or o is NULL");
    return DEFT_OK;
}

deft_status_t deft_step_write(deft_step_t *step, uint32_t layer, const void *k, const void *v)
{
    IDEFT_TRY(check_layer(step, layer, k != NULL && v != NULL));
    IDEFT_TRY(step->ctx->ops->write(step->ctx, layer, k, v));
    step->n_written += !step->written[layer];
    step->written[layer] = 1;
    return DEFT_OK;
}

deft_status_t deft_step_attend(deft_step_t *step, uint32_t layer, const void *q, void *o)
{
    IDEFT_TRY(check_layer(step, layer, q != NULL && o != NULL));
    if (!step->written[layer])
        return ideft_fail(step->ctx, DEFT_ERR_STATE, "K and V of layer %u are not written", layer);
    return step->ctx->ops->attend(step->ctx, layer, q, o);
}

deft_status_t deft_step_layer(deft_step_t *step, uint32_t layer, const void *q, const void *k,
                              const void *v, void *o)
{
    IDEFT_TRY(check_layer(step, layer, q != NULL && k != NULL && v != NULL && o != NULL));
    IDEFT_TRY(deft_step_write(step, layer, k, v));
    return deft_step_attend(step, layer, q, o);
}

deft_status_t deft_step_end(deft_step_t *step)
{
    if (!is_open(step))
        return DEFT_ERR_INVAL;
    deft_ctx_t *ctx = step->ctx;
    if (ctx->lost)
        return ideft_fail(ctx, DEFT_ERR_DEVICE, "the device failed before; the context is lost");
    if (step->n_written < ctx->geom.n_layers)
        return ideft_fail(ctx, DEFT_ERR_STATE, "%u of %u layers are written", step->n_written,
                          ctx->geom.n_layers);
    for (uint32_t i = 0; i < ctx->plan.n_req; i++)
        ideft_node_computed(ctx, ctx->plan.req[i].node, ctx->plan.req[i].n);
    ctx->plan.valid = true;
    step->open = false;
    return DEFT_OK;
}

void deft_step_abandon(deft_step_t *step)
{
    if (is_open(step))
        step->open = false; /* the plan is not valid: nothing was built on it */
}

/* ---- statistics -------------------------------------------------------------------------------- */

typedef struct tokens {
    uint64_t unique, logical, read, pairs;
} tokens_t;

static tokens_t count_tokens(const deft_ctx_t *ctx)
{
    const ideft_plan_t *plan = &ctx->plan;
    const uint32_t window = ctx->geom.max_window;
    tokens_t t = { 0, 0, 0, 0 };
    for (uint32_t i = 0, root = 0; i < plan->n_visit; i++) {
        const ideft_visit_t *v = &plan->visit[i];
        const uint32_t end = v->start + v->n;
        const uint32_t first = window != 0 && v->min_pos >= window ? v->min_pos - window + 1 : 0;
        t.unique += end <= first ? 0 : first <= v->start ? v->n : end - first;
        root = v->parent == IDEFT_NONE ? i : root;
        t.pairs += (uint64_t)v->n * (plan->visit[root].row_end - plan->visit[root].row_begin);
    }
    for (uint32_t r = 0; r < plan->n_row; r++) {
        const uint32_t seen = plan->row[r].pos + 1;
        t.logical += window != 0 && window < seen ? window : seen;
    }
    for (uint32_t i = 0; i < plan->n_seg; i++)
        t.read += plan->seg[i].n;
    return t;
}

/* Longest thread over mean when items go, in order, to whoever is free. */
static double balance_of(const deft_ctx_t *ctx)
{
    enum { MOST = 256 };
    const ideft_plan_t *plan = &ctx->plan;
    const uint32_t n = ctx->n_threads < MOST ? ctx->n_threads : MOST;
    double load[MOST] = { 0 }, sum = 0, longest = 0;
    for (uint32_t i = 0; i < plan->n_item; i++) {
        for (uint32_t h = 0; h < ctx->geom.Hkv; h++) {
            uint32_t least = 0;
            for (uint32_t t = 1; t < n; t++)
                least = load[t] < load[least] ? t : least;
            load[least] += plan->item[plan->order[i]].cost;
        }
    }
    for (uint32_t t = 0; t < n; t++) {
        sum += load[t];
        longest = load[t] > longest ? load[t] : longest;
    }
    return sum > 0 ? longest * n / sum : 1;
}

deft_status_t deft_step_stats(const deft_step_t *step, deft_step_stats_t *stats)
{
    if (!is_open(step))
        return DEFT_ERR_INVAL;
    const deft_ctx_t *ctx = step->ctx;
    const ideft_plan_t *plan = &ctx->plan;
    const ideft_geom_t *g = &ctx->geom;
    if (stats == NULL || stats->struct_size < sizeof(size_t) || stats->struct_size > 4096)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "stats has no struct_size");
    const tokens_t t = count_tokens(ctx);
    const uint64_t token = 2 * (uint64_t)g->Hkv * g->D * g->elem;
    const uint64_t part = (uint64_t)plan->n_part * g->H * (g->D + 2) * sizeof(float);
    const deft_step_stats_t full = {
        .struct_size = stats->struct_size,
        .split = plan->flags != 0 ? DEFT_SPLIT_NODE_CHUNK : plan->split,
        .patched = plan->patched,
        .plan_ns = plan->plan_ns,
        .rows = plan->n_row,
        .groups = plan->n_item,
        .partials = plan->part_begin[plan->n_row],
        .kv_unique_bytes = t.unique * token,
        .kv_logical_bytes = t.logical * token,
        .kv_read_bytes = t.read * token,
        .partial_bytes = 2 * part,
        .mask_bytes = (uint64_t)plan->n_seg * 2 * sizeof(uint32_t),
        .score_bytes = 0,
        /* QK^T and softmax of every head written and read, one mask read */
        .unfused_bytes = t.pairs * (4 * (uint64_t)g->H + 1) * g->elem,
        .balance = balance_of(ctx),
    };
    memcpy(stats, &full, stats->struct_size < sizeof(full) ? stats->struct_size : sizeof(full));
    return DEFT_OK;
}
