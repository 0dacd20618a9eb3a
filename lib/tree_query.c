/* SPDX-License-Identifier: MIT */
/* The calls that read a tree. */
#include "config.h"

#include "context_int.h"

/* Has the tree a node of this handle? Leaves the last error alone. */
static inline __attribute__((always_inline)) bool has_node(const deft_tree_t *tree,
                                                           deft_node_t handle)
{
    return tree != NULL && ideft_tree_has(tree, handle);
}

static const ideft_node_t *node_of(const deft_tree_t *tree, deft_node_t handle)
{
    return ideft_node(tree->forest, (uint32_t)handle);
}

deft_ctx_t *deft_tree_ctx(const deft_tree_t *tree)
{
    return tree == NULL ? NULL : ideft_ctx_of(tree);
}

deft_node_t deft_tree_root(const deft_tree_t *tree)
{
    return tree == NULL ? DEFT_NODE_NONE : ideft_handle(tree->forest, tree->root);
}

deft_node_t deft_tree_parent(const deft_tree_t *tree, deft_node_t handle)
{
    return has_node(tree, handle) ? ideft_handle(tree->forest, node_of(tree, handle)->parent)
                                  : DEFT_NODE_NONE;
}

deft_node_t deft_tree_first_child(const deft_tree_t *tree, deft_node_t handle)
{
    return has_node(tree, handle) ? ideft_handle(tree->forest, node_of(tree, handle)->first_child)
                                  : DEFT_NODE_NONE;
}

deft_node_t deft_tree_next_sibling(const deft_tree_t *tree, deft_node_t handle)
{
    return has_node(tree, handle) ? ideft_handle(tree->forest, node_of(tree, handle)->next)
                                  : DEFT_NODE_NONE;
}

deft_node_t deft_tree_next(const deft_tree_t *tree, deft_node_t top, deft_node_t prev)
{
    if (!has_node(tree, top))
        return DEFT_NODE_NONE;
    if (prev == DEFT_NODE_NONE)
        return top;
    if (!has_node(tree, prev))
        return DEFT_NODE_NONE;
    return ideft_handle(tree->forest,
                        ideft_node_after(tree->forest, (uint32_t)top, (uint32_t)prev));
}

deft_status_t deft_tree_node(const deft_tree_t *tree, deft_node_t handle, deft_node_info_t *info)
{
    uint32_t index;
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    const ideft_forest_t *forest = tree->forest;
    IDEFT_TRY(ideft_node_get(tree, handle, &index));
    const ideft_node_t *node = ideft_node(forest, index);
    const deft_node_info_t full = {
        .parent = ideft_handle(forest, node->parent),
        .first_child = ideft_handle(forest, node->first_child),
        .next_sibling = ideft_handle(forest, node->next),
        .n_children = node->n_children,
        .start = node->start,
        .len = ideft_node_len(node),
        .computed = node->computed,
        .evicted = node->gone,
        .n_runs = ideft_runs_count(&node->runs),
        .user = node->user,
    };
    return ideft_give(forest->host, info, &full, sizeof(full), "info");
}

void *deft_tree_user(const deft_tree_t *tree, deft_node_t handle)
{
    return has_node(tree, handle) ? node_of(tree, handle)->user : NULL;
}

size_t deft_tree_path_len(const deft_tree_t *tree, deft_node_t handle)
{
    if (!has_node(tree, handle))
        return 0;
    const ideft_node_t *node = node_of(tree, handle);
    return (size_t)node->start + ideft_node_len(node);
}

deft_status_t deft_tree_path_tokens(const deft_tree_t *tree, deft_node_t handle, size_t n,
                                    int32_t *ids)
{
    uint32_t index;
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    ideft_forest_t *forest = tree->forest;
    IDEFT_TRY(ideft_node_get(tree, handle, &index));
    const ideft_node_t *node = ideft_node(forest, index);
    const uint32_t path = node->start + ideft_node_len(node);
    if (n > path || (n > 0 && ids == NULL))
        return ideft_fail(forest->host, DEFT_ERR_INVAL, "the path has %u tokens, not %zu", path, n);
    ideft_path_tokens(forest, index, n, ids);
    return DEFT_OK;
}

deft_status_t deft_tree_find(const deft_tree_t *tree, const int32_t *tokens, size_t n,
                             deft_node_t *node_p, size_t *offset_p, size_t *matched_p)
{
    size_t offset, matched;
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    if (n > 0 && tokens == NULL)
        return ideft_fail(tree->forest->host, DEFT_ERR_INVAL, "tokens is NULL");
    const uint32_t best = ideft_tree_find(tree, tokens, n, &offset, &matched);
    if (node_p != NULL)
        *node_p = ideft_handle(tree->forest, best);
    if (offset_p != NULL)
        *offset_p = offset;
    if (matched_p != NULL)
        *matched_p = matched;
    return DEFT_OK;
}

/* Slots of a node that have more than so many owners. */
static size_t owned_by_more(const ideft_forest_t *forest, const ideft_node_t *node, uint32_t owners)
{
    size_t n = 0;
    for (uint32_t r = 0; r < ideft_runs_count(&node->runs); r++) {
        const ideft_run_t run = ideft_runs_at(&node->runs)[r];
        n += ideft_span_shared(forest->pool, run.slot, run.n, owners);
    }
    return n;
}

deft_status_t deft_tree_footprint(const deft_tree_t *tree, deft_node_t handle,
                                  deft_footprint_t *footprint)
{
    uint32_t index;
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    const ideft_forest_t *forest = tree->forest;
    const ideft_geometry_t *g = &ideft_ctx_of(tree)->geometry;
    IDEFT_TRY(ideft_node_get(tree, handle, &index));
    deft_footprint_t full = { .nodes = 0 };
    for (uint32_t at = index; at != 0; at = ideft_node_after(forest, index, at)) {
        const ideft_node_t *node = ideft_node(forest, at);
        full.nodes++;
        full.tokens += ideft_runs_len(&node->runs);
        full.freed_tokens += ideft_runs_len(&node->runs) - owned_by_more(forest, node, 1);
    }
    full.freed_bytes = (uint64_t)full.freed_tokens * g->n_layers * g->Hkv *
                       ideft_format_token_bytes(&g->format);
    return ideft_give(forest->host, footprint, &full, sizeof(full), "footprint");
}

deft_status_t deft_tree_stats(const deft_tree_t *tree, deft_tree_stats_t *stats)
{
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    const ideft_forest_t *forest = tree->forest;
    deft_tree_stats_t s = { .n_nodes = tree->n_nodes };
    size_t depth = 1;
    for (uint32_t at = tree->root; at != 0;) {
        const ideft_node_t *node = ideft_node(forest, at);
        const size_t path = (size_t)node->start + ideft_node_len(node);
        s.tokens += ideft_node_len(node);
        s.evicted_tokens += node->gone;
        s.n_leaves += node->n_children == 0;
        s.path_tokens += node->n_children == 0 ? path : 0;
        s.max_path = path > s.max_path ? path : s.max_path;
        s.max_depth = depth > s.max_depth ? depth : s.max_depth;
        s.shared_tokens += owned_by_more(forest, node, 1);
        if (node->first_child != 0) {
            at = node->first_child;
            depth++;
            continue;
        }
        while (at != 0 && ideft_node(forest, at)->next == 0) {
            at = ideft_node(forest, at)->parent;
            depth--;
        }
        at = at == 0 ? 0 : ideft_node(forest, at)->next;
    }
    return ideft_give(forest->host, stats, &s, sizeof(s), "stats");
}

deft_status_t deft_tree_check(const deft_tree_t *tree)
{
    return tree == NULL ? DEFT_ERR_INVAL : ideft_forest_check(tree->forest);
}
