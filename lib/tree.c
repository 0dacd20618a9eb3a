/* SPDX-License-Identifier: MIT */
/* The calls that change a tree: arguments and states. The work is the forest's. */
#include "config.h"

#include "context_int.h"

/* What every mutator asks first. */
static deft_status_t mutable_node(deft_tree_t *tree, deft_node_t handle, uint32_t *index_p)
{
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    IDEFT_TRY(ideft_need_closed(ideft_ctx_of(tree)));
    return ideft_node_get(tree, handle, index_p);
}

/* What every mutator ends in. A check that finds no memory has found no fault. */
static deft_status_t checked(deft_ctx_t *ctx)
{
    const deft_status_t status = ctx->debug_check ? ideft_forest_check(&ctx->forest) : DEFT_OK;
    return status == DEFT_ERR_NOMEM ? DEFT_OK : status;
}

/* ---- trees ----------------------------------------------------------------------------------- */

deft_status_t deft_tree_create(deft_ctx_t *ctx, deft_tree_t **tree_p)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if (tree_p == NULL)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "tree_p is NULL");
    IDEFT_TRY(ideft_need_closed(ctx));
    IDEFT_TRY(ideft_tree_new(&ctx->forest, tree_p));
    return checked(ctx);
}

void deft_tree_destroy(deft_tree_t *tree)
{
    if (tree == NULL)
        return;
    ideft_ctx_of(tree)->step.open = false; /* abandons it */
    ideft_tree_free(tree);
}

deft_status_t deft_tree_share(deft_tree_t *tree, deft_node_t handle, deft_tree_t **tree_p)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    if (tree_p == NULL)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "tree_p is NULL");
    IDEFT_TRY(ideft_tree_share(tree, index, tree_p));
    return checked(ctx);
}

/* ---- growing --------------------------------------------------------------------------------- */

deft_status_t deft_tree_fork(deft_tree_t *tree, deft_node_t handle, size_t n, deft_node_t *kids_p)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    if (n == 0 || n > IDEFT_MAX_NODES || kids_p == NULL)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "cannot fork %zu children", n);
    IDEFT_TRY(ideft_tree_fork(tree, index, n, kids_p));
    return checked(ctx);
}

deft_status_t deft_tree_fork_at(deft_tree_t *tree, deft_node_t handle, size_t offset, size_t n,
                                deft_node_t *kids_p, deft_node_t *tail_p)
{
    uint32_t index;
    deft_node_t tail = DEFT_NODE_NONE;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    const ideft_node_t *node = ideft_node(&ctx->forest, index);
    const uint32_t len = ideft_node_len(node);
    if (offset > len)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "the node has %u tokens, not %zu", len,
                          offset);
    if (offset < node->gone)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL,
                          "the first %u tokens of the node were evicted", node->gone);
    if (n > IDEFT_MAX_NODES || (n > 0 && kids_p == NULL))
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "cannot fork %zu children", n);
    if (offset < len)
        IDEFT_TRY(ideft_tree_fork_at(tree, index, (uint32_t)offset, n, kids_p, &tail));
    else if (n > 0)
        IDEFT_TRY(ideft_tree_fork(tree, index, n, kids_p));
    if (tail_p != NULL)
        *tail_p = tail;
    return checked(ctx);
}

/* Can n tokens stand at the end of a path of so many? */
static deft_status_t check_tokens(deft_ctx_t *ctx, uint32_t path, size_t n)
{
    if (n == 0 || n > IDEFT_MAX_TOKENS)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "cannot append %zu tokens", n);
    if (n > IDEFT_MAX_TOKENS - path)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "a path of more than %zu tokens",
                          IDEFT_MAX_TOKENS);
    return DEFT_OK;
}

deft_status_t deft_tree_append(deft_tree_t *tree, deft_node_t handle, size_t n,
                               const int32_t *tokens)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    const ideft_node_t *node = ideft_node(&ctx->forest, index);
    IDEFT_TRY(check_tokens(ctx, node->start + ideft_node_len(node), n));
    if (node->n_children > 0)
        return ideft_fail(&ctx->host, DEFT_ERR_STATE, "the node has children: append to a leaf");
    IDEFT_TRY(ideft_tree_append(tree, index, n, tokens));
    return checked(ctx);
}

deft_status_t deft_tree_fork_append(deft_tree_t *tree, deft_node_t handle, size_t n,
                                    const int32_t *tokens, deft_node_t *kid_p)
{
    uint32_t index;
    deft_node_t kid;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    const ideft_node_t *node = ideft_node(&ctx->forest, index);
    if (kid_p == NULL)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "kid_p is NULL");
    IDEFT_TRY(check_tokens(ctx, node->start + ideft_node_len(node), n));
    IDEFT_TRY(ideft_need_slots(&ctx->forest, n)); /* before a hook clones anything */
    IDEFT_TRY(ideft_tree_fork(tree, index, 1, &kid));
    const deft_status_t status = ideft_tree_append(tree, (uint32_t)kid, n, tokens);
    if (status != DEFT_OK) {
        ideft_tree_prune(tree, (uint32_t)kid);
        return status;
    }
    *kid_p = kid;
    return checked(ctx);
}

/* ---- shrinking ------------------------------------------------------------------------------- */

deft_status_t deft_tree_prune(deft_tree_t *tree, deft_node_t handle)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    if (index == tree->root)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL,
                          "the root cannot be pruned, destroy the tree");
    ideft_tree_prune(tree, index);
    return checked(ctx);
}

deft_status_t deft_tree_truncate(deft_tree_t *tree, deft_node_t handle, size_t n)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    const ideft_node_t *node = ideft_node(&ctx->forest, index);
    if (n > ideft_node_len(node))
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "the node has %u tokens, not %zu",
                          ideft_node_len(node), n);
    if (n < node->gone)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL,
                          "the first %u tokens of the node were evicted", node->gone);
    if (node->n_children > 0)
        return ideft_fail(&ctx->host, DEFT_ERR_STATE, "the node has children");
    ideft_tree_truncate(tree, index, (uint32_t)n);
    return checked(ctx);
}

deft_status_t deft_tree_commit(deft_tree_t *tree, deft_node_t handle, uint64_t flags)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    if ((flags & ~DEFT_COMMIT_SUBTREE) != 0)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "unknown flags %#llx",
                          (unsigned long long)flags);
    ideft_tree_commit(tree, index, (flags & DEFT_COMMIT_SUBTREE) != 0);
    return checked(ctx);
}

deft_status_t deft_tree_evict(deft_tree_t *tree, deft_node_t handle, size_t n)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    const ideft_node_t *node = ideft_node(&ctx->forest, index);
    if (n > node->computed)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "%u tokens of the node are computed, not %zu",
                          node->computed, n);
    ideft_tree_evict(tree, index, (uint32_t)n);
    return checked(ctx);
}

deft_status_t deft_tree_evict_unseen(deft_tree_t *tree, size_t *freed_p)
{
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    IDEFT_TRY(ideft_need_closed(ctx));
    const uint32_t window = ctx->geometry.max_window;
    const size_t freed = window == 0 ? 0 : ideft_tree_evict_unseen(tree, window);
    if (freed_p != NULL)
        *freed_p = freed;
    return checked(ctx);
}

/* ---- compacting ------------------------------------------------------------------------------ */

static deft_status_t carry(void *arg, const ideft_move_t *moves, uint32_t n)
{
    ideft_device_t *device = arg;
    return device->ops->move(device, moves, n);
}

deft_status_t deft_tree_compact(deft_tree_t *tree, deft_node_t handle, size_t budget,
                                uint64_t flags, size_t *moved_p)
{
    uint32_t index;
    size_t moved;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = ideft_ctx_of(tree);
    if ((flags & ~DEFT_COMPACT_CHAINS) != 0)
        return ideft_fail(&ctx->host, DEFT_ERR_INVAL, "unknown flags %#llx",
                          (unsigned long long)flags);
    IDEFT_TRY(ideft_need_alive(ctx));
    IDEFT_TRY(ideft_heed(ctx, ctx->device->ops->can_move(ctx->device)));
    if ((flags & DEFT_COMPACT_CHAINS) != 0)
        IDEFT_TRY(ideft_compact_chains(tree, index));
    if (ideft_compact_runs(tree, index, budget == 0 ? SIZE_MAX : budget, carry, ctx->device,
                           &moved) != DEFT_OK) {
        ctx->lost = true; /* slots without their KV */
        return ideft_fail(&ctx->host, DEFT_ERR_DEVICE,
                          "the device failed to move tokens; the context is lost");
    }
    if (moved_p != NULL)
        *moved_p = moved;
    return checked(ctx);
}

deft_status_t deft_tree_set_user(deft_tree_t *tree, deft_node_t handle, void *user)
{
    uint32_t index;
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    IDEFT_TRY(ideft_node_get(tree, handle, &index));
    ideft_node_set_user(tree->forest, index, user);
    return DEFT_OK;
}
