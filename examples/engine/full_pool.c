/* SPDX-License-Identifier: MIT */
#include "full_pool.h"

/* Is it `node`, or on the way from the root to it? */
static int leads_to(const deft_tree_t *tree, deft_node_t top, deft_node_t node)
{
    while (node != DEFT_NODE_NONE && node != top)
        node = deft_tree_parent(tree, node);
    return node == top;
}

/* KV that another tree shares stays where it is: pruning such a node would gain nothing. */
static int frees_slots(const victims_t *v, deft_node_t node)
{
    deft_footprint_t f = DEFT_FOOTPRINT_INIT;

    return deft_tree_footprint(v->tree, node, &f) == DEFT_OK && f.freed_tokens > 0;
}

static int may_go(const victims_t *v, deft_node_t node, deft_node_t keep)
{
    double worth;

    if (node == keep)
        return 1; /* it would go first: so nothing else goes for it */
    if (node == deft_tree_root(v->tree) || leads_to(v->tree, node, keep))
        return 0;
    for (deft_node_t n = node; (n = deft_tree_next(v->tree, node, n)) != DEFT_NODE_NONE;)
        if (v->worth(v->arg, n, &worth))
            return 0;
    return frees_slots(v, node);
}

/* Prune what is worth least, for `keep`. 0: there is nothing, or it is `keep` itself. */
static int drop_least(const victims_t *v, deft_node_t keep)
{
    const deft_node_t root = deft_tree_root(v->tree);
    deft_node_t least = DEFT_NODE_NONE;
    double worth, least_worth = 0;

    for (deft_node_t n = root; n != DEFT_NODE_NONE; n = deft_tree_next(v->tree, root, n))
        if (v->worth(v->arg, n, &worth) && (least == DEFT_NODE_NONE || worth < least_worth) &&
            may_go(v, n, keep)) {
            least = n;
            least_worth = worth;
        }
    if (least == DEFT_NODE_NONE || least == keep)
        return 0;
    v->gone(v->arg, least);
    return deft_tree_prune(v->tree, least) == DEFT_OK;
}

deft_status_t full_pool_append(const victims_t *v, deft_tree_t *tree, deft_node_t node, size_t n,
                               const int32_t *tokens)
{
    deft_status_t status;

    do
        status = deft_tree_append(tree, node, n, tokens);
    while (status == DEFT_ERR_NOSPACE && drop_least(v, node));
    return status;
}

deft_status_t full_pool_reserve(const deft_ctx_t *ctx, const size_t *need,
                                int (*give_up)(void *arg), void *arg)
{
    deft_info_t info = DEFT_INFO_INIT;

    for (;;) {
        const deft_status_t status = deft_ctx_info(ctx, &info);
        if (status != DEFT_OK || *need <= info.pool_tokens - info.live_tokens)
            return status;
        if (!give_up(arg))
            return DEFT_ERR_NOSPACE;
    }
}
