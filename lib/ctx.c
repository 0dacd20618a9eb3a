/* SPDX-License-Identifier: MIT */
#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"
#include "backend.h"
#include "plan.h"
#include "pool.h"
#include "status_int.h"
#include "tree_int.h"

/* A failure before there is a context: the log is all that can tell. */
static deft_status_t refuse(const deft_config_t *config, deft_status_t status, const char *text)
{
    if (config != NULL && config->log != NULL)
        config->log(config->log_arg, 1, text);
    return status;
}

/* The caller's struct in ours: a shorter one leaves defaults, a longer one must be zero behind. */
static deft_status_t read_config(const deft_config_t *from, deft_config_t *config)
{
    if (from == NULL || from->struct_size < offsetof(deft_config_t, pool_tokens) ||
        from->struct_size > 65536)
        return DEFT_ERR_INVAL;
    const size_t size = from->struct_size < sizeof(*config) ? from->struct_size : sizeof(*config);
    memset(config, 0, sizeof(*config));
    memcpy(config, from, size);
    for (size_t i = size; i < from->struct_size; i++)
        if (((const unsigned char *)from)[i] != 0)
            return DEFT_ERR_INVAL;
    return DEFT_OK;
}

static deft_status_t check_config(const deft_config_t *c)
{
    if (c->flags != 0)
        return refuse(c, DEFT_ERR_INVAL, "unknown flags in the configuration");
    if (c->n_layers == 0 || c->n_layers > 65535 || c->n_kv_heads == 0 || c->n_q_heads == 0 ||
        c->n_q_heads > 65535 || c->n_q_heads % c->n_kv_heads != 0)
        return refuse(c, DEFT_ERR_INVAL, "n_layers, n_q_heads or n_kv_heads is missing or absurd");
    const bool all_free = c->pool_tokens == DEFT_POOL_FREE && c->device == DEFT_DEVICE_CUDA;
    if (!all_free && (c->pool_tokens == 0 || c->pool_tokens > IDEFT_MAX_TOKENS))
        return refuse(c, DEFT_ERR_INVAL, "pool_tokens must be 1 to 2^30");
    if (!(c->scale >= 0) || !isfinite(c->scale) || !(c->softcap >= 0) || !isfinite(c->softcap))
        return refuse(c, DEFT_ERR_INVAL, "scale or softcap is negative or not a number");
    if ((unsigned)c->split > DEFT_SPLIT_SEQUENCE || (unsigned)c->device > DEFT_DEVICE_CUDA ||
        (unsigned)c->isa > DEFT_ISA_AMX_BF16 || (unsigned)c->kv_type > DEFT_BF16 ||
        (unsigned)c->act_type > DEFT_BF16 || c->n_threads > 1024)
        return refuse(c, DEFT_ERR_INVAL, "an enum or n_threads is out of range");
    const uint32_t D = c->head_dim;
    if (D == 0)
        return refuse(c, DEFT_ERR_INVAL, "head_dim is missing");
    if (D != 64 && D != 80 && D != 96 && D != 128 && D != 256)
        return refuse(c, DEFT_ERR_UNSUPPORTED, "head_dim must be 64, 80, 96, 128 or 256");
    if (c->n_q_heads / c->n_kv_heads > 64)
        return refuse(c, DEFT_ERR_UNSUPPORTED, "more than 64 query heads a KV head");
#ifndef HAVE_CUDA
    if (c->device == DEFT_DEVICE_CUDA)
        return refuse(c, DEFT_ERR_NODEVICE, "this build has no CUDA backend");
#endif
    return DEFT_OK;
}

static deft_status_t set_geometry(deft_ctx_t *ctx, const deft_config_t *c)
{
    ideft_geom_t *g = &ctx->geom;
    *g = (ideft_geom_t){
        .n_layers = c->n_layers,
        .H = c->n_q_heads,
        .Hkv = c->n_kv_heads,
        .G = c->n_q_heads / c->n_kv_heads,
        .D = c->head_dim,
        .kv_type = c->kv_type == DEFT_DTYPE_DEFAULT ? DEFT_F16 : c->kv_type,
        .scale = c->scale > 0 ? c->scale : (float)(1 / sqrt((double)c->head_dim)),
        .softcap = c->softcap,
    };
    g->elem = g->kv_type == DEFT_F32 ? 4 : 2;
    g->windows = ideft_zalloc(&ctx->alloc, g->n_layers * sizeof(*g->windows), 64, "windows");
    ctx->step.written = ideft_zalloc(&ctx->alloc, g->n_layers, 64, "layers");
    if (c->sinks != NULL)
        g->sinks = ideft_zalloc(&ctx->alloc, g->H * sizeof(*g->sinks), 64, "sinks");
    if (g->windows == NULL || ctx->step.written == NULL || (c->sinks != NULL && g->sinks == NULL))
        return DEFT_ERR_NOMEM;
    if (c->sinks != NULL)
        memcpy(g->sinks, c->sinks, g->H * sizeof(*g->sinks));
    bool all = true;
    for (uint32_t l = 0; l < g->n_layers; l++) {
        g->windows[l] = c->windows != NULL ? c->windows[l] : c->window;
        all = all && g->windows[l] != 0;
        g->max_window = ideft_max(g->max_window, g->windows[l]);
    }
    g->max_window = all ? g->max_window : 0;
    return DEFT_OK;
}

/* The backend that the configuration asks for. AUTO tries CUDA where the types say that the caller
 * is prepared for it, and says why it went on without. */
static deft_status_t make_backend(deft_ctx_t *ctx, const deft_config_t *c)
{
#ifdef HAVE_CUDA
    if (c->device == DEFT_DEVICE_CUDA ||
        (c->device == DEFT_DEVICE_AUTO && (c->act_type == DEFT_F16 || c->act_type == DEFT_BF16))) {
        ctx->ops = &ideft_cuda_ops;
        const deft_status_t status = ctx->ops->create(ctx, c);
        if (c->device == DEFT_DEVICE_CUDA || (status != DEFT_ERR_NODEVICE && status != DEFT_ERR_UNSUPPORTED))
            return status;
        if (c->log != NULL)
            c->log(c->log_arg, 2, "going on with the CPU");
        ctx->lost = false;
        ctx->act_type = c->act_type;
        ctx->error[0] = '\0';
    }
#endif
    ctx->ops = &ideft_cpu_ops;
    return ctx->ops->create(ctx, c);
}

static deft_status_t fill(deft_ctx_t *ctx, const deft_config_t *c)
{
    ctx->device = c->device;
    ctx->device_index = c->device_index;
    ctx->act_type = c->act_type;
    ctx->isa = c->isa;
    ctx->n_threads = c->n_threads;
    ctx->split = c->split;
    ctx->chunk_tokens = c->chunk_tokens == 0 ? 512 : c->chunk_tokens;
    ctx->pool_tokens = c->pool_tokens;
    ctx->log = c->log;
    ctx->log_arg = c->log_arg;
    ctx->debug_check = getenv("DEFT_DEBUG_CHECK") != NULL;
    ctx->next_node = 1;
    ctx->next_tree = 1;
    ctx->plan.alloc = &ctx->alloc;
    ctx->step.ctx = ctx;
    if (set_geometry(ctx, c) != DEFT_OK)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for a context");
    IDEFT_TRY(make_backend(ctx, c));
    if (!ideft_pool_init(&ctx->pool, &ctx->alloc, (uint32_t)ctx->pool_tokens))
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for a context of %zu tokens", ctx->pool_tokens);
    return DEFT_OK;
}

deft_status_t deft_ctx_create(const deft_config_t *config, deft_ctx_t **ctx_p)
{
    deft_config_t c;
    if (ctx_p == NULL || read_config(config, &c) != DEFT_OK)
        return DEFT_ERR_INVAL;
    IDEFT_TRY(check_config(&c));
    ideft_alloc_t alloc;
    ideft_alloc_init(&alloc, &c.allocator);
    deft_ctx_t *ctx = ideft_zalloc(&alloc, sizeof(*ctx), 64, "context");
    if (ctx == NULL)
        return refuse(&c, DEFT_ERR_NOMEM, "no memory for a context");
    ctx->alloc = alloc;
    const deft_status_t status = fill(ctx, &c);
    if (status != DEFT_OK) {
        deft_ctx_destroy(ctx);
        return status;
    }
    *ctx_p = ctx;
    return DEFT_OK;
}

void deft_ctx_destroy(deft_ctx_t *ctx)
{
    if (ctx == NULL)
        return;
    ideft_alloc_t alloc = ctx->alloc;
    if (ctx->backend != NULL)
        ctx->ops->destroy(ctx);
    ideft_trees_fini(ctx);
    ideft_plan_fini(&ctx->plan);
    ideft_pool_fini(&ctx->pool, &alloc);
    ideft_free(&alloc, ctx->geom.windows, ctx->geom.n_layers * sizeof(*ctx->geom.windows));
    ideft_free(&alloc, ctx->geom.sinks, ctx->geom.H * sizeof(*ctx->geom.sinks));
    ideft_free(&alloc, ctx->step.written, ctx->geom.n_layers);
    ideft_free(&alloc, ctx, sizeof(*ctx));
}

deft_status_t deft_ctx_info(const deft_ctx_t *ctx, deft_info_t *info)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if (info == NULL || info->struct_size < sizeof(size_t) || info->struct_size > 4096)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "info has no struct_size");
    const ideft_geom_t *g = &ctx->geom;
    const deft_info_t full = {
        .struct_size = info->struct_size,
        .device = ctx->device,
        .isa = ctx->isa,
        .backend = ctx->ops->describe(ctx),
        .n_threads = ctx->n_threads,
        .kv_type = g->kv_type,
        .token_bytes = (size_t)g->n_layers * 2 * g->Hkv * g->D * g->elem,
        .pool_tokens = ctx->pool_tokens,
        .live_tokens = ideft_pool_live(&ctx->pool),
        .n_trees = ctx->n_trees,
        .n_nodes = ctx->n_nodes,
        .act_type = ctx->act_type,
        .device_index = ctx->device_index,
    };
    memcpy(info, &full, info->struct_size < sizeof(full) ? info->struct_size : sizeof(full));
    return DEFT_OK;
}

deft_status_t deft_ctx_set_split(deft_ctx_t *ctx, deft_split_t split)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if ((unsigned)split > DEFT_SPLIT_SEQUENCE)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "unknown split %d", (int)split);
    if (ctx->step.open)
        return ideft_fail(ctx, DEFT_ERR_BUSY, "a step is open: end or abandon it first");
    ctx->split = split;
    ctx->plan.valid = false;
    return DEFT_OK;
}

const char *deft_last_error(const deft_ctx_t *ctx)
{
    return ctx == NULL ? "" : ctx->error;
}
