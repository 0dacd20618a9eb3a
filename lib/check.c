/* SPDX-License-Identifier: MIT */
/* The comments of types.h, executed. Owners of slots are counted anew from the nodes and compared
 * with what the spans say, so a wrong reference count cannot hide. */
#include "config.h"

#include <string.h>

#include "alloc.h"
#include "pool.h"
#include "status_int.h"
#include "tree_int.h"

#define HOLDS(_ctx, _x)                                                                  \
    do {                                                                                 \
        if (!(_x))                                                                       \
            return ideft_fail(_ctx, DEFT_ERR_CORRUPT, "%s:%d: %s", __FILE__, __LINE__, #_x); \
    } while (0)

/* A node beside its parent and its children. */
static deft_status_t check_links(const deft_ctx_t *ctx, uint32_t index)
{
    const ideft_node_t *node = ideft_node(ctx, index);
    uint32_t kids = 0, last = 0;
    for (uint32_t kid = node->first_child; kid != 0; kid = ideft_node(ctx, kid)->next) {
        const ideft_node_t *k = ideft_node(ctx, kid);
        HOLDS(ctx, k->parent == index);
        HOLDS(ctx, k->prev == last);
        HOLDS(ctx, k->tree == node->tree);
        HOLDS(ctx, k->start == node->start + node->len);
        last = kid;
        kids++;
    }
    HOLDS(ctx, kids == node->n_children);
    HOLDS(ctx, last == node->last_child);
    return DEFT_OK;
}

/* A node's runs: counts owners into own[slot]. */
static deft_status_t check_runs(const deft_ctx_t *ctx, const ideft_node_t *node, uint32_t *own)
{
    const ideft_pool_t *pool = &ctx->pool;
    const ideft_run_t *runs = ideft_runs(node);
    uint32_t len = 0;
    HOLDS(ctx, node->n_runs <= (node->run_cap == 0 ? 1 : node->run_cap));
    for (uint32_t r = 0; r < node->n_runs; r++) {
        const uint32_t end = runs[r].slot + runs[r].n;
        HOLDS(ctx, runs[r].n > 0 && end > runs[r].slot && end <= pool->n_slots);
        bool last_known = false;
        for (uint32_t at = runs[r].slot; at < end; at += pool->slot[at].a) {
            HOLDS(ctx, pool->slot[at].a > 0 && pool->slot[at].a <= end - at);
            last_known = last_known || at == node->last_span;
            own[at]++;
        }
        HOLDS(ctx, r + 1 < node->n_runs || last_known);
        len += runs[r].n;
    }
    HOLDS(ctx, len == node->len);
    HOLDS(ctx, node->computed <= node->len);
    return DEFT_OK;
}

/* Spans have as many owners as nodes say; free extents are maximal, linked and counted. */
static deft_status_t check_pool(const deft_ctx_t *ctx, const uint32_t *own)
{
    const ideft_pool_t *pool = &ctx->pool;
    uint32_t live = 0, free_slots = 0;
    for (uint32_t at = 0; at < pool->n_slots;) {
        const uint32_t n = pool->slot[at].a & ~IDEFT_FREE;
        if (own[at] > 0) {
            HOLDS(ctx, pool->slot[at].b == own[at]);
            live += pool->slot[at].a;
            at += pool->slot[at].a;
        } else {
            HOLDS(ctx, ideft_pool_edge(pool, at));
            HOLDS(ctx, (pool->slot[at].a & IDEFT_FREE) != 0 && n <= pool->n_slots - at);
            HOLDS(ctx, pool->slot[at + n - 1].tag == (int32_t)at && ideft_pool_edge(pool, at + n - 1));
            HOLDS(ctx, at + n == pool->n_slots || !ideft_pool_edge(pool, at + n));
            free_slots += n;
            at += n;
        }
    }
    HOLDS(ctx, free_slots == pool->n_free);
    HOLDS(ctx, live == ideft_pool_live(pool));
    uint32_t binned = 0;
    for (uint32_t b = 0; b < IDEFT_BINS; b++) {
        HOLDS(ctx, (pool->bin[b] != IDEFT_NONE) == (pool->used[b >> 6] >> (b & 63) & 1));
        for (uint32_t at = pool->bin[b]; at != IDEFT_NONE; at = pool->slot[at].b)
            binned += pool->slot[at].a & ~IDEFT_FREE;
    }
    HOLDS(ctx, binned == pool->n_free);
    return DEFT_OK;
}

static deft_status_t check_dirty(const deft_ctx_t *ctx, size_t dirty)
{
    uint32_t last = 0;
    for (uint32_t at = ctx->dirty_first; at != 0; at = ideft_node(ctx, at)->dirty_next, dirty--) {
        HOLDS(ctx, dirty > 0 && ideft_node(ctx, at)->dirty_prev == last);
        HOLDS(ctx, ideft_node(ctx, at)->computed < ideft_node(ctx, at)->len);
        last = at;
    }
    HOLDS(ctx, dirty == 0 && ctx->dirty_last == last);
    return DEFT_OK;
}

static deft_status_t check_with(const deft_ctx_t *ctx, uint32_t *own)
{
    size_t nodes = 0, dirty = 0, in_trees = 0;
    uint32_t free_nodes = 0;
    for (uint32_t i = 1; i < ctx->next_node; i++) {
        const ideft_node_t *node = ideft_node(ctx, i);
        if (node->tree == 0)
            continue;
        nodes++;
        dirty += node->computed < node->len;
        IDEFT_TRY(check_links(ctx, i));
        IDEFT_TRY(check_runs(ctx, node, own));
    }
    for (uint32_t i = ctx->free_node; i != 0; i = ideft_node(ctx, i)->parent) {
        HOLDS(ctx, ideft_node(ctx, i)->tree == 0 && free_nodes < ctx->next_node);
        free_nodes++;
    }
    HOLDS(ctx, nodes == ctx->n_nodes);
    HOLDS(ctx, nodes + free_nodes + 1 == ctx->next_node);
    for (const deft_tree_t *tree = ctx->tree_first; tree != NULL; tree = tree->next) {
        const ideft_node_t *root = ideft_node(ctx, tree->root);
        HOLDS(ctx, root->tree == tree->id && root->parent == 0 && root->start == 0);
        in_trees += tree->n_nodes;
    }
    HOLDS(ctx, in_trees == nodes);
    IDEFT_TRY(check_dirty(ctx, dirty));
    return check_pool(ctx, own);
}

deft_status_t ideft_check(deft_ctx_t *ctx)
{
    const size_t bytes = ctx->pool.n_slots * sizeof(uint32_t);
    uint32_t *own = ideft_zalloc(&ctx->alloc, bytes, 64, "check");
    if (own == NULL)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory to check %u slots", ctx->pool.n_slots);
    const deft_status_t status = check_with(ctx, own);
    ideft_free(&ctx->alloc, own, bytes);
    return status;
}

deft_status_t deft_tree_check(const deft_tree_t *tree)
{
    return tree == NULL ? DEFT_ERR_INVAL : ideft_check(tree->ctx);
}
