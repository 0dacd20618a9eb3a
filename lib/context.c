/* SPDX-License-Identifier: MIT */
/* Making, measuring and freeing a context. */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/processors.h"
#include "context_int.h"

/* A failure before there is a context: the log is all that can tell. */
static deft_status_t refuse(const deft_config_t *config, deft_status_t status, const char *text)
{
    if (config->log != NULL)
        config->log(config->log_arg, DEFT_LOG_ERROR, text);
    return status;
}

/* The caller's struct in ours: a shorter one leaves defaults, a longer one must end in zeros. */
static deft_status_t read_config(const deft_config_t *from, deft_config_t *config)
{
    memset(config, 0, sizeof(*config));
    if (from == NULL || !ideft_is_struct_size(from->struct_size) ||
        from->struct_size < offsetof(deft_config_t, pool_tokens))
        return DEFT_ERR_INVAL; /* where its log would be is not known */
    const size_t size = from->struct_size < sizeof(*config) ? from->struct_size : sizeof(*config);
    memcpy(config, from, size);
    for (size_t i = size; i < from->struct_size; i++)
        if (((const unsigned char *)from)[i] != 0)
            return refuse(config, DEFT_ERR_INVAL,
                          "the configuration has fields that this version does not know");
    return DEFT_OK;
}

static bool has_device(deft_device_t kind)
{
    for (const ideft_device_ops_t *const *ops = ideft_devices; *ops != NULL; ops++)
        if ((*ops)->kind == kind)
            return true;
    return kind == DEFT_DEVICE_AUTO;
}

/* ---- what is accepted ------------------------------------------------------------------------ */

static deft_status_t check_enums(const deft_config_t *c)
{
    const struct {
        unsigned value, last;
        const char *text;
    } all[] = {
        { (unsigned)c->device, DEFT_DEVICE_CUDA, "device is not a deft_device_t" },
        { (unsigned)c->split, DEFT_SPLIT_SEQUENCE, "split is not a deft_split_t" },
        { (unsigned)c->isa, DEFT_ISA_AMX_BF16, "isa is not a deft_isa_t" },
        { (unsigned)c->kv_type, DEFT_BF16, "kv_type is not a deft_dtype_t" },
        { (unsigned)c->act_type, DEFT_BF16, "act_type is not a deft_dtype_t" },
        { (unsigned)c->log_level, DEFT_LOG_DEBUG, "log_level is not a deft_log_level_t" },
        { c->n_threads, IDEFT_MAX_THREADS, "n_threads is above 1024" },
    };
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        if (all[i].value > all[i].last)
            return refuse(c, DEFT_ERR_INVAL, all[i].text);
    return DEFT_OK;
}

static deft_status_t check_config(const deft_config_t *c)
{
    const uint32_t D = c->head_dim;
    if ((c->flags & ~DEFT_CTX_HUGE_PAGES) != 0)
        return refuse(c, DEFT_ERR_INVAL, "unknown flags in the configuration");
    if (c->n_layers == 0 || c->n_layers > 65535 || c->n_kv_heads == 0 || c->n_q_heads == 0 ||
        c->n_q_heads > 65535 || c->n_q_heads % c->n_kv_heads != 0)
        return refuse(c, DEFT_ERR_INVAL, "n_layers, n_q_heads or n_kv_heads is missing or absurd");
    const bool all_free = c->pool_tokens == DEFT_POOL_FREE && c->device == DEFT_DEVICE_CUDA;
    if (!all_free && (c->pool_tokens == 0 || c->pool_tokens > IDEFT_MAX_TOKENS))
        return refuse(c, DEFT_ERR_INVAL, "pool_tokens must be 1 to 2^30");
    if (!(c->scale >= 0) || !isfinite(c->scale) || !(c->softcap >= 0) || !isfinite(c->softcap))
        return refuse(c, DEFT_ERR_INVAL, "scale or softcap is negative or not a number");
    IDEFT_TRY(check_enums(c));
    if (D == 0)
        return refuse(c, DEFT_ERR_INVAL, "head_dim is missing");
    if (D != 64 && D != 80 && D != 96 && D != 128 && D != 256)
        return refuse(c, DEFT_ERR_UNSUPPORTED, "head_dim must be 64, 80, 96, 128 or 256");
    if (c->n_q_heads / c->n_kv_heads > 64)
        return refuse(c, DEFT_ERR_UNSUPPORTED, "more than 64 query heads a KV head");
    if (!has_device(c->device))
        return refuse(c, DEFT_ERR_NODEVICE, "this build lacks the device that was asked for");
    return DEFT_OK;
}

/* ---- making one ------------------------------------------------------------------------------ */

static deft_status_t set_geometry(deft_ctx_t *ctx, const deft_config_t *c)
{
    ideft_geometry_t *g = &ctx->geometry;
    const deft_dtype_t kv_type = c->kv_type == DEFT_DTYPE_DEFAULT ? DEFT_F16 : c->kv_type;
    *g = (ideft_geometry_t){
        .n_layers = c->n_layers,
        .H = c->n_q_heads,
        .Hkv = c->n_kv_heads,
        .G = c->n_q_heads / c->n_kv_heads,
        .D = c->head_dim,
        .format = ideft_format_of(kv_type, c->head_dim, c->head_dim),
        .scale = c->scale > 0 ? c->scale : (float)(1 / sqrt((double)c->head_dim)),
        .softcap = c->softcap,
    };
    g->windows = ideft_zalloc(&ctx->host, g->n_layers * sizeof(*g->windows), 64, "windows");
    ctx->step.written = ideft_zalloc(&ctx->host, g->n_layers, 64, "layers");
    if (c->sinks != NULL)
        g->sinks = ideft_zalloc(&ctx->host, g->H * sizeof(*g->sinks), 64, "sinks");
    if (g->windows == NULL || ctx->step.written == NULL || (c->sinks != NULL && g->sinks == NULL))
        return ideft_fail(&ctx->host, DEFT_ERR_NOMEM, "no memory for a context");
    if (c->sinks != NULL)
        memcpy(g->sinks, c->sinks, g->H * sizeof(*g->sinks));
    bool all = true;
    for (uint32_t l = 0; l < g->n_layers; l++) {
        const uint32_t window = c->windows != NULL ? c->windows[l] : c->window;
        g->windows[l] = window < IDEFT_MAX_TOKENS ? window : 0; /* no path is longer */
        all = all && g->windows[l] != 0;
        g->max_window = ideft_max(g->max_window, g->windows[l]);
    }
    g->max_window = all ? g->max_window : 0;
    return DEFT_OK;
}

/* True if another device may serve in place of one that cannot be made. */
static bool is_wanting(deft_status_t status)
{
    return status == DEFT_ERR_NODEVICE || status == DEFT_ERR_UNSUPPORTED;
}

/* Try a device that AUTO could do without: that it cannot be had is no error then. */
static deft_status_t try_device(deft_ctx_t *ctx, const ideft_device_ops_t *ops,
                                const deft_config_t *c)
{
    char text[sizeof(ctx->host.error) + 64];
    const deft_log_fn log = ctx->host.log;
    ctx->host.log = NULL;
    const deft_status_t status =
        ops->create(&ctx->host, &ctx->geometry, c, &ctx->device, &ctx->facts);
    ctx->host.log = log;
    if (is_wanting(status)) {
        snprintf(text, sizeof(text), "going on without %s: %s", ops->name, ctx->host.error);
        ideft_log(&ctx->host, DEFT_LOG_WARN, text);
        ctx->host.error[0] = '\0';
    } else if (status != DEFT_OK) {
        ideft_log(&ctx->host, DEFT_LOG_ERROR, ctx->host.error);
    }
    return status;
}

/* The device that the configuration names; AUTO: the first that suits it and can be made. */
static deft_status_t make_device(deft_ctx_t *ctx, const deft_config_t *c)
{
    for (const ideft_device_ops_t *const *ops = ideft_devices; *ops != NULL; ops++) {
        const bool named = c->device == (*ops)->kind, last = ops[1] == NULL;
        if (!named && (c->device != DEFT_DEVICE_AUTO || !(*ops)->suits(c)))
            continue;
        if (named || last)
            return (*ops)->create(&ctx->host, &ctx->geometry, c, &ctx->device, &ctx->facts);
        const deft_status_t status = try_device(ctx, *ops, c);
        if (!is_wanting(status))
            return status;
    }
    return DEFT_ERR_NODEVICE; /* the last one suits everything */
}

static void log_facts(deft_ctx_t *ctx)
{
    char text[160];
    snprintf(text, sizeof(text), "libdeft %s: %s, %u threads, a pool of %zu tokens", DEFT_VERSION,
             ctx->facts.name, ctx->facts.n_threads, ctx->facts.pool_tokens);
    ideft_log(&ctx->host, DEFT_LOG_INFO, text);
}

static deft_status_t fill(deft_ctx_t *ctx, const deft_config_t *c)
{
    ctx->asked = *c;
    ctx->asked.windows = NULL;
    ctx->asked.sinks = NULL;
    ctx->asked.chunk_tokens = c->chunk_tokens == 0 ? 512 : c->chunk_tokens;
    ctx->split = c->split;
    ctx->debug_check = getenv("DEFT_DEBUG_CHECK") != NULL;
    IDEFT_TRY(set_geometry(ctx, c));
    IDEFT_TRY(make_device(ctx, c));
    IDEFT_TRY(
        ideft_forest_init(&ctx->forest, &ctx->host, (uint32_t)ctx->facts.pool_tokens, &c->hooks));
    ctx->forest.owner = ctx;
    ideft_planner_init(&ctx->planner, &ctx->host, &ctx->forest, &ctx->geometry,
                       &ctx->facts.machine);
    log_facts(ctx);
    return DEFT_OK;
}

deft_status_t deft_ctx_create(const deft_config_t *config, deft_ctx_t **ctx_p)
{
    deft_config_t c;
    ideft_host_t host;
    if (ctx_p == NULL || read_config(config, &c) != DEFT_OK)
        return DEFT_ERR_INVAL;
    IDEFT_TRY(check_config(&c));
    ideft_host_init(&host, &c);
    deft_ctx_t *ctx = ideft_zalloc(&host, sizeof(*ctx), 64, "context");
    if (ctx == NULL)
        return refuse(&c, DEFT_ERR_NOMEM, "no memory for a context");
    ctx->host = host;
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
    ideft_host_t host = ctx->host;
    if (ctx->device != NULL)
        ctx->device->ops->destroy(ctx->device);
    ideft_planner_trim(&ctx->planner);
    ideft_forest_fini(&ctx->forest);
    ideft_free(&host, ctx->geometry.windows,
               ctx->geometry.n_layers * sizeof(*ctx->geometry.windows));
    ideft_free(&host, ctx->geometry.sinks, ctx->geometry.H * sizeof(*ctx->geometry.sinks));
    ideft_free(&host, ctx->step.written, ctx->geometry.n_layers);
    ideft_free(&host, ctx, sizeof(*ctx));
}

/* ---- asking and setting ---------------------------------------------------------------------- */

deft_status_t deft_ctx_info(const deft_ctx_t *ctx, deft_info_t *info)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    const ideft_geometry_t *g = &ctx->geometry;
    const ideft_pool_t *pool = ctx->forest.pool;
    const deft_info_t full = {
        .device = ctx->device->ops->kind,
        .isa = ctx->facts.isa,
        .backend = ctx->facts.name,
        .n_threads = ctx->facts.n_threads,
        .kv_type = g->format.element,
        .act_type = ctx->facts.act_type,
        .device_index = ctx->asked.device_index,
        .token_bytes = (size_t)g->n_layers * g->Hkv * ideft_format_token_bytes(&g->format),
        .pool_tokens = ctx->facts.pool_tokens,
        .live_tokens = ideft_pool_slots(pool) - ideft_pool_vacant(pool),
        .n_trees = ctx->forest.n_trees,
        .n_nodes = ctx->forest.n_nodes,
    };
    return ideft_give(ctx->device->host, info, &full, sizeof(full), "info");
}

deft_status_t deft_ctx_set_split(deft_ctx_t *ctx, deft_split_t split)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if ((unsigned)split > DEFT_SPLIT_SEQUENCE)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "unknown split %d", (int)split);
    IDEFT_TRY(ideft_need_closed(ctx));
    ctx->split = split;
    ideft_plan_forget(&ctx->planner);
    return DEFT_OK;
}

deft_tree_t *deft_ctx_tree(const deft_ctx_t *ctx, deft_node_t node)
{
    if (ctx == NULL || !ideft_node_lives(&ctx->forest, node))
        return NULL;
    return ctx->forest.tree.at[ideft_node(&ctx->forest, (uint32_t)node)->tree];
}

deft_status_t deft_ctx_trim(deft_ctx_t *ctx)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    IDEFT_TRY(ideft_need_closed(ctx));
    ideft_forest_trim(&ctx->forest);
    ideft_planner_trim(&ctx->planner);
    if (ctx->device->ops->trim != NULL)
        ctx->device->ops->trim(ctx->device);
    return DEFT_OK;
}

const char *deft_last_error(const deft_ctx_t *ctx)
{
    return ctx == NULL ? "" : ctx->host.error;
}

const char *deft_version(void)
{
    return DEFT_VERSION;
}
