/* SPDX-License-Identifier: MIT */
/* Everything that reads a tree. */
#include "config.h"

#include <string.h>

#include "status_int.h"
#include "tree_int.h"

/* The node behind a handle, or NULL without touching the last error. */
static const ideft_node_t *peek(const deft_tree_t *tree, deft_node_t handle)
{
    const uint32_t index = (uint32_t)handle;
    if (tree == NULL || index == 0 || index >= tree->ctx->next_node)
        return NULL;
    const ideft_node_t *node = ideft_node(tree->ctx, index);
    return node->tree == tree->id && node->gen == (uint32_t)(handle >> 32) ? node : NULL;
}

deft_ctx_t *deft_tree_ctx(const deft_tree_t *tree)
{
    return tree == NULL ? NULL : tree->ctx;
}

deft_node_t deft_tree_root(const deft_tree_t *tree)
{
    return tree == NULL ? DEFT_NODE_NONE : ideft_handle(tree->ctx, tree->root);
}

deft_node_t deft_tree_parent(const deft_tree_t *tree, deft_node_t handle)
{
    const ideft_node_t *node = peek(tree, handle);
    return node == NULL ? DEFT_NODE_NONE : ideft_handle(tree->ctx, node->parent);
}

deft_node_t deft_tree_first_child(const deft_tree_t *tree, deft_node_t handle)
{
    const ideft_node_t *node = peek(tree, handle);
    return node == NULL ? DEFT_NODE_NONE : ideft_handle(tree->ctx, node->first_child);
}

deft_node_t deft_tree_next_sibling(const deft_tree_t *tree, deft_node_t handle)
{
    const ideft_node_t *node = peek(tree, handle);
    return node == NULL ? DEFT_NODE_NONE : ideft_handle(tree->ctx, node->next);
}

deft_node_t deft_tree_next(const deft_tree_t *tree, deft_node_t top, deft_node_t prev)
{
    if (peek(tree, top) == NULL || prev == DEFT_NODE_NONE)
        return peek(tree, top) == NULL ? DEFT_NODE_NONE : top;
    const ideft_node_t *node = peek(tree, prev);
    if (node == NULL)
        return DEFT_NODE_NONE;
    if (node->first_child != 0)
        return ideft_handle(tree->ctx, node->first_child);
    for (uint32_t at = (uint32_t)prev; at != 0 && at != (uint32_t)top; at = node->parent) {
        node = ideft_node(tree->ctx, at);
        if (node->next != 0)
            return ideft_handle(tree->ctx, node->next);
    }
    return DEFT_NODE_NONE;
}

deft_status_t deft_tree_node(const deft_tree_t *tree, deft_node_t handle, deft_node_info_t *info)
{
    uint32_t index;
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    if (info == NULL || info->struct_size < sizeof(size_t) || info->struct_size > 4096)
        return ideft_fail(tree->ctx, DEFT_ERR_INVAL, "info has no struct_size");
    IDEFT_TRY(ideft_node_get(tree, handle, &index));
    const ideft_node_t *node = ideft_node(tree->ctx, index);
    const deft_node_info_t full = {
        .struct_size = info->struct_size,
        .parent = ideft_handle(tree->ctx, node->parent),
        .first_child = ideft_handle(tree->ctx, node->first_child),
        .next_sibling = ideft_handle(tree->ctx, node->next),
        .n_children = node->n_children,
        .start = node->start,
        .len = node->len,
        .computed = node->computed,
        .n_runs = node->n_runs,
        .user = node->user,
    };
    memcpy(info, &full, info->struct_size < sizeof(full) ? info->struct_size : sizeof(full));
    return DEFT_OK;
}

void *deft_tree_user(const deft_tree_t *tree, deft_node_t handle)
{
    const ideft_node_t *node = peek(tree, handle);
    return node == NULL ? NULL : node->user;
}

size_t deft_tree_path_len(const deft_tree_t *tree, deft_node_t handle)
{
    const ideft_node_t *node = peek(tree, handle);
    return node == NULL ? 0 : (size_t)node->start + node->len;
}

deft_status_t deft_tree_path_tokens(const deft_tree_t *tree, deft_node_t handle, size_t n,
                                    int32_t *ids)
{
    uint32_t index;
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    const deft_ctx_t *ctx = tree->ctx;
    IDEFT_TRY(ideft_node_get(tree, handle, &index));
    const ideft_node_t *node = ideft_node(ctx, index);
    if (n > (size_t)node->start + node->len || (n > 0 && ids == NULL))
        return ideft_fail(ctx, DEFT_ERR_INVAL, "the path has %u tokens, not %zu",
                          node->start + node->len, n);
    while (n > 0) {
        for (uint32_t r = node->n_runs; r-- > 0 && n > 0;) {
            const ideft_run_t run = ideft_runs(node)[r];
            for (uint32_t i = run.n; i-- > 0 && n > 0;)
                ids[--n] = ctx->pool.slot[run.slot + i].tag;
        }
        node = ideft_node(ctx, node->parent);
    }
    return DEFT_OK;
}

/* How many of n ids agree with a node's tokens. */
static size_t node_match(const deft_ctx_t *ctx, const ideft_node_t *node, const int32_t *ids,
                         size_t n)
{
    size_t done = 0;
    for (uint32_t r = 0; r < node->n_runs; r++) {
        const ideft_run_t run = ideft_runs(node)[r];
        for (uint32_t i = 0; i < run.n; i++, done++) {
            const int32_t id = ctx->pool.slot[run.slot + i].tag;
            if (done == n || id < 0 || id != ids[done])
                return done;
        }
    }
    return done;
}

/* Walk down while whole nodes match; among siblings the first that matches most. An empty node
 * matches with nothing: its children are tried through a stack-free depth-first walk. */
typedef struct match {
    uint32_t node;
    size_t offset, matched;
} match_t;

static void match_below(const deft_ctx_t *ctx, uint32_t index, const int32_t *ids, size_t n,
                        match_t *best)
{
    const uint32_t top = index;
    for (;;) {
        const ideft_node_t *node = ideft_node(ctx, index);
        const size_t before = node->start < n ? node->start : n;
        /* A node is met only when its whole path above matches. */
        const size_t got = node_match(ctx, node, ids + before, n - before);
        if (before + got > best->matched)
            *best = (match_t){ index, got, before + got };
        if (got == node->len && before + got < n && node->first_child != 0) {
            index = node->first_child;
            continue;
        }
        while (index != top && ideft_node(ctx, index)->next == 0)
            index = ideft_node(ctx, index)->parent;
        if (index == top)
            return;
        index = ideft_node(ctx, index)->next;
    }
}

deft_status_t deft_tree_find(const deft_tree_t *tree, const int32_t *tokens, size_t n,
                             deft_node_t *node_p, size_t *offset_p, size_t *matched_p)
{
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    if (n > 0 && tokens == NULL)
        return ideft_fail(tree->ctx, DEFT_ERR_INVAL, "tokens is NULL");
    match_t best = { tree->root, 0, 0 };
    if (n > 0)
        match_below(tree->ctx, tree->root, tokens, n, &best);
    if (node_p != NULL)
        *node_p = ideft_handle(tree->ctx, best.node);
    if (offset_p != NULL)
        *offset_p = best.offset;
    if (matched_p != NULL)
        *matched_p = best.matched;
    return DEFT_OK;
}

deft_status_t deft_tree_stats(const deft_tree_t *tree, deft_tree_stats_t *stats)
{
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    const deft_ctx_t *ctx = tree->ctx;
    if (stats == NULL || stats->struct_size < sizeof(size_t) || stats->struct_size > 4096)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "stats has no struct_size");
    deft_tree_stats_t s = { .struct_size = stats->struct_size, .n_nodes = tree->n_nodes };
    size_t depth = 1;
    for (uint32_t at = tree->root; at != 0;) {
        const ideft_node_t *node = ideft_node(ctx, at);
        const size_t path = (size_t)node->start + node->len;
        s.tokens += node->len;
        s.n_leaves += node->n_children == 0;
        s.path_tokens += node->n_children == 0 ? path : 0;
        s.max_path = path > s.max_path ? path : s.max_path;
        s.max_depth = depth > s.max_depth ? depth : s.max_depth;
        for (uint32_t r = 0; r < node->n_runs; r++) {
            const ideft_run_t run = ideft_runs(node)[r];
            for (uint32_t at_slot = run.slot; at_slot < run.slot + run.n;
                 at_slot += ctx->pool.slot[at_slot].a)
                if (ctx->pool.slot[at_slot].b > 1)
                    s.shared_tokens += ctx->pool.slot[at_slot].a;
        }
        if (node->first_child != 0) {
            at = node->first_child;
            depth++;
            continue;
        }
        while (at != 0 && ideft_node(ctx, at)->next == 0) {
            at = ideft_node(ctx, at)->parent;
            depth--;
        }
        at = at == 0 ? 0 : ideft_node(ctx, at)->next;
    }
    memcpy(stats, &s, stats->struct_size < sizeof(s) ? stats->struct_size : sizeof(s));
    return DEFT_OK;
}
