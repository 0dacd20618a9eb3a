/* SPDX-License-Identifier: MIT */
/* Everything that changes a tree. Each operation first does all that can fail, then changes the
 * tree with what cannot: that is the strong guarantee. */
#include "config.h"

#include <string.h>

#include "alloc.h"
#include "pool.h"
#include "runs.h"
#include "status_int.h"

/* ---- handles and nodes ------------------------------------------------------------------- */

deft_status_t ideft_node_get(const deft_tree_t *tree, deft_node_t handle, uint32_t *index_p)
{
    const deft_ctx_t *ctx = tree->ctx;
    const uint32_t index = (uint32_t)handle;
    if (index == 0 || index >= ctx->next_node)
        return ideft_fail(ctx, DEFT_ERR_STALE, "no node has the handle %#llx",
                          (unsigned long long)handle);
    const ideft_node_t *node = ideft_node(ctx, index);
    if (node->tree == 0 || node->gen != (uint32_t)(handle >> 32))
        return ideft_fail(ctx, DEFT_ERR_STALE, "the node of handle %#llx has been removed",
                          (unsigned long long)handle);
    if (node->tree != tree->id)
        return ideft_fail(ctx, DEFT_ERR_FOREIGN, "the node of handle %#llx is of another tree",
                          (unsigned long long)handle);
    *index_p = index;
    return DEFT_OK;
}

/* What every mutator asks first. */
static deft_status_t mutable_node(deft_tree_t *tree, deft_node_t handle, uint32_t *index_p)
{
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    if (tree->ctx->step.open)
        return ideft_fail(tree->ctx, DEFT_ERR_BUSY, "a step is open: end or abandon it first");
    return ideft_node_get(tree, handle, index_p);
}

/* What every mutator ends in. A check that finds no memory has found no fault. */
static deft_status_t changed(deft_ctx_t *ctx)
{
    const deft_status_t status = ctx->debug_check ? ideft_check(ctx) : DEFT_OK;
    return status == DEFT_ERR_NOMEM ? DEFT_OK : status;
}

/* Make sure that n nodes can be made without a failure. */
static deft_status_t reserve_nodes(deft_ctx_t *ctx, size_t n)
{
    if (n > IDEFT_MAX_NODES - ctx->next_node)
        return ideft_fail(ctx, DEFT_ERR_LIMIT, "more than %u nodes", IDEFT_MAX_NODES);
    /* The free list may serve some of them; it is not counted, at most n nodes stay unused. */
    const uint32_t want = (uint32_t)((ctx->next_node + n + IDEFT_CHUNK - 1) >> IDEFT_CHUNK_BITS);
    if (want > ctx->chunk_cap) {
        const uint32_t cap = want + want / 2 + 64;
        ideft_node_t **chunk = ideft_malloc(&ctx->alloc, cap * sizeof(*chunk), 64, "node chunks");
        if (chunk == NULL)
            return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for %zu nodes", n);
        if (ctx->n_chunks > 0)
            memcpy(chunk, ctx->chunk, ctx->n_chunks * sizeof(*chunk));
        ideft_free(&ctx->alloc, ctx->chunk, ctx->chunk_cap * sizeof(*chunk));
        ctx->chunk = chunk;
        ctx->chunk_cap = cap;
    }
    for (; ctx->n_chunks < want; ctx->n_chunks++) {
        ideft_node_t *c =
            ideft_zalloc(&ctx->alloc, IDEFT_CHUNK * sizeof(ideft_node_t), 4096, "nodes");
        if (c == NULL)
            return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for %zu nodes", n);
        ctx->chunk[ctx->n_chunks] = c;
    }
    return DEFT_OK;
}

/* A new node that hangs nowhere yet; reserve_nodes() has made room. */
static uint32_t node_new(deft_tree_t *tree, uint32_t start)
{
    deft_ctx_t *ctx = tree->ctx;
    uint32_t index = ctx->free_node;
    if (index != 0)
        ctx->free_node = ideft_node(ctx, index)->parent;
    else
        index = ctx->next_node++;
    ideft_node_t *node = ideft_node(ctx, index);
    const uint32_t gen = node->gen + 1 == 0 ? 1 : node->gen + 1;
    *node = (ideft_node_t){ .gen = gen, .tree = tree->id, .start = start };
    ctx->n_nodes++;
    tree->n_nodes++;
    return index;
}

static void hang(deft_ctx_t *ctx, uint32_t index, uint32_t parent)
{
    ideft_node_t *node = ideft_node(ctx, index), *up = ideft_node(ctx, parent);
    node->parent = parent;
    node->prev = up->last_child;
    node->next = 0;
    if (up->last_child != 0)
        ideft_node(ctx, up->last_child)->next = index;
    else
        up->first_child = index;
    up->last_child = index;
    up->n_children++;
}

static void unhang(deft_ctx_t *ctx, uint32_t index)
{
    const ideft_node_t *node = ideft_node(ctx, index);
    ideft_node_t *up = ideft_node(ctx, node->parent);
    if (node->prev != 0)
        ideft_node(ctx, node->prev)->next = node->next;
    else
        up->first_child = node->next;
    if (node->next != 0)
        ideft_node(ctx, node->next)->prev = node->prev;
    else
        up->last_child = node->prev;
    up->n_children--;
}

/* ---- the list of nodes with uncomputed tokens ------------------------------------------------ */

static void dirty_link(deft_ctx_t *ctx, uint32_t index, uint32_t after)
{
    ideft_node_t *node = ideft_node(ctx, index);
    const uint32_t next = after != 0 ? ideft_node(ctx, after)->dirty_next : ctx->dirty_first;
    node->dirty_prev = after;
    node->dirty_next = next;
    if (after != 0)
        ideft_node(ctx, after)->dirty_next = index;
    else
        ctx->dirty_first = index;
    if (next != 0)
        ideft_node(ctx, next)->dirty_prev = index;
    else
        ctx->dirty_last = index;
}

static void dirty_unlink(deft_ctx_t *ctx, const ideft_node_t *node)
{
    if (node->dirty_prev != 0)
        ideft_node(ctx, node->dirty_prev)->dirty_next = node->dirty_next;
    else
        ctx->dirty_first = node->dirty_next;
    if (node->dirty_next != 0)
        ideft_node(ctx, node->dirty_next)->dirty_prev = node->dirty_prev;
    else
        ctx->dirty_last = node->dirty_prev;
}

void ideft_node_computed(deft_ctx_t *ctx, uint32_t index, uint32_t n)
{
    ideft_node_t *node = ideft_node(ctx, index);
    node->computed += n;
    if (node->computed == node->len)
        dirty_unlink(ctx, node);
}

/* ---- removing ------------------------------------------------------------------------------ */

static void node_free(deft_tree_t *tree, uint32_t index)
{
    deft_ctx_t *ctx = tree->ctx;
    ideft_node_t *node = ideft_node(ctx, index);
    if (node->computed < node->len)
        dirty_unlink(ctx, node);
    IDEFT_ASSERT(node->first_child == 0);
    const ideft_run_t *runs = ideft_runs(node);
    for (uint32_t i = 0; i < node->n_runs; i++)
        ideft_span_unref(&ctx->pool, runs[i].slot, runs[i].n);
    ideft_runs_free(ctx, node);
    node->tree = 0;
    node->parent = ctx->free_node;
    ctx->free_node = index;
    ctx->n_nodes--;
    tree->n_nodes--;
}

/* Free a node and all below it, leaves first; it hangs nowhere any more. */
static void subtree_free(deft_tree_t *tree, uint32_t top)
{
    deft_ctx_t *ctx = tree->ctx;
    for (uint32_t index = top;;) {
        const ideft_node_t *node = ideft_node(ctx, index);
        if (node->first_child != 0) {
            index = node->first_child;
            continue;
        }
        const uint32_t parent = node->parent;
        if (index != top)
            unhang(ctx, index);
        node_free(tree, index);
        if (index == top)
            return;
        index = parent;
    }
}

deft_status_t deft_tree_prune(deft_tree_t *tree, deft_node_t handle)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    if (index == tree->root)
        return ideft_fail(tree->ctx, DEFT_ERR_INVAL, "the root cannot be pruned, destroy the tree");
    unhang(tree->ctx, index);
    subtree_free(tree, index);
    tree->ctx->topology++;
    return changed(tree->ctx);
}

deft_status_t deft_tree_truncate(deft_tree_t *tree, deft_node_t handle, size_t n)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = tree->ctx;
    ideft_node_t *node = ideft_node(ctx, index);
    if (n > node->len)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "the node has %u tokens, not %zu", node->len, n);
    if (node->n_children > 0)
        return ideft_fail(ctx, DEFT_ERR_STATE, "the node has children");
    if (node->computed < node->len && node->computed >= n)
        dirty_unlink(ctx, node);
    ideft_runs_shrink(ctx, node, (uint32_t)n);
    if (node->computed > node->len)
        node->computed = node->len;
    ctx->topology++;
    return changed(ctx);
}

deft_status_t deft_tree_commit(deft_tree_t *tree, deft_node_t handle, uint64_t flags)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = tree->ctx;
    if ((flags & ~DEFT_COMMIT_SUBTREE) != 0)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "unknown flags %#llx", (unsigned long long)flags);
    uint32_t keep = flags & DEFT_COMMIT_SUBTREE ? IDEFT_NONE : 0;
    for (uint32_t at = index; at != 0; keep = at, at = ideft_node(ctx, at)->parent) {
        for (uint32_t kid = ideft_node(ctx, at)->first_child, next; kid != 0 && keep != IDEFT_NONE;
             kid = next) {
            next = ideft_node(ctx, kid)->next;
            if (kid != keep) {
                unhang(ctx, kid);
                subtree_free(tree, kid);
            }
        }
    }
    ctx->topology++;
    return changed(ctx);
}

/* ---- growing ------------------------------------------------------------------------------- */

deft_status_t deft_tree_fork(deft_tree_t *tree, deft_node_t handle, size_t n, deft_node_t *kids_p)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = tree->ctx;
    if (n == 0 || n > IDEFT_MAX_NODES || kids_p == NULL)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "cannot fork %zu children", n);
    IDEFT_TRY(reserve_nodes(ctx, n));
    const ideft_node_t *node = ideft_node(ctx, index);
    for (size_t i = 0; i < n; i++) {
        const uint32_t kid = node_new(tree, node->start + node->len);
        hang(ctx, kid, index);
        kids_p[i] = ideft_handle(ctx, kid);
    }
    ctx->topology++;
    return changed(ctx);
}

/* The node keeps `offset` tokens, the new node `tail` takes the rest and the children. */
static void split_node(deft_ctx_t *ctx, uint32_t index, uint32_t tail_index, uint32_t offset,
                       ideft_run_t *array, uint32_t cap)
{
    ideft_node_t *node = ideft_node(ctx, index), *tail = ideft_node(ctx, tail_index);
    const bool was_dirty = node->computed < node->len;
    ideft_runs_divide(ctx, node, offset, tail, array, cap);
    tail->len = node->len - offset;
    tail->computed = node->computed > offset ? node->computed - offset : 0;
    tail->first_child = node->first_child;
    tail->last_child = node->last_child;
    tail->n_children = node->n_children;
    for (uint32_t kid = tail->first_child; kid != 0; kid = ideft_node(ctx, kid)->next)
        ideft_node(ctx, kid)->parent = tail_index;
    node->first_child = node->last_child = node->n_children = 0;
    node->len = offset;
    if (node->computed > offset)
        node->computed = offset;
    if (tail->computed < tail->len)
        dirty_link(ctx, tail_index, was_dirty ? index : ctx->dirty_last);
    if (was_dirty && node->computed == node->len)
        dirty_unlink(ctx, node);
    ideft_runs_mark_end(ctx, node);
    ideft_runs_mark_end(ctx, tail);
    hang(ctx, tail_index, index);
}

deft_status_t deft_tree_fork_at(deft_tree_t *tree, deft_node_t handle, size_t offset, size_t n,
                                deft_node_t *kids_p, deft_node_t *tail_p)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = tree->ctx;
    ideft_node_t *node = ideft_node(ctx, index);
    if (offset > node->len)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "the node has %u tokens, not %zu", node->len, offset);
    if (n > IDEFT_MAX_NODES || (n > 0 && kids_p == NULL))
        return ideft_fail(ctx, DEFT_ERR_INVAL, "cannot fork %zu children", n);
    if (offset == node->len) {
        if (n > 0)
            IDEFT_TRY(deft_tree_fork(tree, handle, n, kids_p));
        if (tail_p != NULL)
            *tail_p = DEFT_NODE_NONE;
        return DEFT_OK;
    }
    ideft_run_t *array;
    uint32_t cap;
    IDEFT_TRY(reserve_nodes(ctx, n + 1));
    IDEFT_TRY(ideft_runs_alloc(ctx, node->n_runs, &array, &cap));
    const uint32_t tail = node_new(tree, node->start + (uint32_t)offset);
    split_node(ctx, index, tail, (uint32_t)offset, array, cap);
    for (size_t i = 0; i < n; i++) {
        const uint32_t kid = node_new(tree, node->start + (uint32_t)offset);
        hang(ctx, kid, index);
        kids_p[i] = ideft_handle(ctx, kid);
    }
    if (tail_p != NULL)
        *tail_p = ideft_handle(ctx, tail);
    ctx->topology++;
    return changed(ctx);
}

deft_status_t deft_tree_append(deft_tree_t *tree, deft_node_t handle, size_t n,
                               const int32_t *tokens)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = tree->ctx;
    ideft_node_t *node = ideft_node(ctx, index);
    if (n == 0 || n > IDEFT_MAX_TOKENS)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "cannot append %zu tokens", n);
    if (node->n_children > 0)
        return ideft_fail(ctx, DEFT_ERR_STATE, "the node has children: append to a leaf");
    if (n > IDEFT_MAX_TOKENS - node->start - node->len)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "a path of more than %zu tokens", IDEFT_MAX_TOKENS);
    if (n > ctx->pool.n_free)
        return ideft_fail(ctx, DEFT_ERR_NOSPACE, "%zu tokens asked, %u of %u slots free", n,
                          ctx->pool.n_free, ctx->pool.n_slots);
    const uint32_t len = node->len;
    const bool was_dirty = node->computed < len;
    IDEFT_TRY(ideft_runs_append(ctx, node, (uint32_t)n, tokens));
    if (!was_dirty)
        dirty_link(ctx, index, ctx->dirty_last);
    return changed(ctx);
}

/* ---- merging, moving, sharing --------------------------------------------------------------- */

/* The only child of a node becomes part of it; `array` has room for the runs of both. */
static void absorb_child(deft_tree_t *tree, uint32_t index)
{
    deft_ctx_t *ctx = tree->ctx;
    ideft_node_t *node = ideft_node(ctx, index);
    const uint32_t kid_index = node->first_child;
    ideft_node_t *kid = ideft_node(ctx, kid_index);
    const bool was_dirty = node->computed < node->len, kid_dirty = kid->computed < kid->len;
    node->n_runs = ideft_runs_collect(kid, ideft_runs_of(node), node->n_runs);
    if (kid->n_runs > 0)
        node->last_span = kid->last_span;
    if (!was_dirty) {
        node->computed = node->len + kid->computed;
        if (kid_dirty)
            dirty_link(ctx, index, kid_index);
    }
    node->len += kid->len;
    node->user = kid->user;
    node->first_child = kid->first_child;
    node->last_child = kid->last_child;
    node->n_children = kid->n_children;
    for (uint32_t k = kid->first_child; k != 0; k = ideft_node(ctx, k)->next)
        ideft_node(ctx, k)->parent = index;
    kid->first_child = 0;
    kid->n_runs = 0; /* its spans have a new owner */
    node_free(tree, kid_index);
}

/* The node that a chain of only children down to `index` hangs from, and its length. */
static uint32_t chain_top(const deft_ctx_t *ctx, uint32_t index, uint32_t *depth_p)
{
    *depth_p = 0;
    for (uint32_t up; (up = ideft_node(ctx, index)->parent) != 0; index = up, (*depth_p)++)
        if (ideft_node(ctx, up)->n_children != 1)
            break;
    return index;
}

deft_status_t deft_tree_merge(deft_tree_t *tree, deft_node_t handle, deft_node_t *node_p)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = tree->ctx;
    /* Room first, in the topmost node of every chain: it stays as spare room if a later one fails. */
    uint32_t runs = 0;
    for (uint32_t at = index; at != 0; at = ideft_node(ctx, at)->parent) {
        ideft_node_t *node = ideft_node(ctx, at);
        const uint32_t parent = node->parent;
        runs += node->n_runs;
        if (parent == 0 || ideft_node(ctx, parent)->n_children != 1) {
            if (runs > node->n_runs)
                IDEFT_TRY(ideft_runs_reserve(ctx, node, runs));
            runs = 0;
        }
    }
    uint32_t depth, end = chain_top(ctx, index, &depth);
    for (uint32_t i = 0; i < depth; i++)
        absorb_child(tree, end);
    for (uint32_t at = ideft_node(ctx, end)->parent; at != 0; at = ideft_node(ctx, at)->parent) {
        at = chain_top(ctx, at, &depth);
        for (uint32_t i = 0; i < depth; i++)
            absorb_child(tree, at);
    }
    ctx->topology++;
    if (node_p != NULL)
        *node_p = ideft_handle(ctx, end);
    return changed(ctx);
}

deft_status_t deft_tree_defrag(deft_tree_t *tree, deft_node_t handle)
{
    uint32_t index;
    bool moved;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    const deft_status_t status = ideft_runs_join(tree->ctx, ideft_node(tree->ctx, index), &moved);
    tree->ctx->topology += moved;
    return status == DEFT_OK ? changed(tree->ctx) : status;
}

static deft_status_t tree_new(deft_ctx_t *ctx, deft_tree_t **tree_p)
{
    if (ctx->next_tree == UINT32_MAX)
        return ideft_fail(ctx, DEFT_ERR_LIMIT, "tree numbers are used up");
    IDEFT_TRY(reserve_nodes(ctx, 1));
    deft_tree_t *tree = ideft_zalloc(&ctx->alloc, sizeof(*tree), 64, "tree");
    if (tree == NULL)
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for a tree");
    tree->ctx = ctx;
    tree->id = ctx->next_tree++;
    tree->root = node_new(tree, 0);
    tree->prev = ctx->tree_last;
    if (ctx->tree_last != NULL)
        ctx->tree_last->next = tree;
    else
        ctx->tree_first = tree;
    ctx->tree_last = tree;
    ctx->n_trees++;
    ctx->topology++;
    *tree_p = tree;
    return DEFT_OK;
}

deft_status_t deft_tree_create(deft_ctx_t *ctx, deft_tree_t **tree_p)
{
    if (ctx == NULL)
        return DEFT_ERR_INVAL;
    if (tree_p == NULL)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "tree_p is NULL");
    if (ctx->step.open)
        return ideft_fail(ctx, DEFT_ERR_BUSY, "a step is open: end or abandon it first");
    IDEFT_TRY(tree_new(ctx, tree_p));
    return changed(ctx);
}

void deft_tree_destroy(deft_tree_t *tree)
{
    if (tree == NULL)
        return;
    deft_ctx_t *ctx = tree->ctx;
    ctx->step.open = false; /* abandons it */
    subtree_free(tree, tree->root);
    if (tree->prev != NULL)
        tree->prev->next = tree->next;
    else
        ctx->tree_first = tree->next;
    if (tree->next != NULL)
        tree->next->prev = tree->prev;
    else
        ctx->tree_last = tree->prev;
    ctx->n_trees--;
    ctx->topology++;
    ideft_free(&ctx->alloc, tree, sizeof(*tree));
}

void ideft_trees_fini(deft_ctx_t *ctx)
{
    /* The pool goes as a whole: only what nodes allocated themselves is looked for. */
    for (uint32_t i = 1; i < ctx->next_node; i++)
        if (ideft_node(ctx, i)->tree != 0)
            ideft_runs_free(ctx, ideft_node(ctx, i));
    for (deft_tree_t *tree = ctx->tree_first, *next; tree != NULL; tree = next) {
        next = tree->next;
        ideft_free(&ctx->alloc, tree, sizeof(*tree));
    }
    for (uint32_t i = 0; i < ctx->n_chunks; i++)
        ideft_free(&ctx->alloc, ctx->chunk[i], IDEFT_CHUNK * sizeof(ideft_node_t));
    ideft_free(&ctx->alloc, ctx->chunk, ctx->chunk_cap * sizeof(*ctx->chunk));
}

deft_status_t deft_tree_share(deft_tree_t *tree, deft_node_t handle, deft_tree_t **tree_p)
{
    uint32_t index;
    IDEFT_TRY(mutable_node(tree, handle, &index));
    deft_ctx_t *ctx = tree->ctx;
    if (tree_p == NULL)
        return ideft_fail(ctx, DEFT_ERR_INVAL, "tree_p is NULL");
    uint32_t n = 0;
    for (uint32_t at = index; at != 0; at = ideft_node(ctx, at)->parent) {
        const ideft_node_t *node = ideft_node(ctx, at);
        if (node->computed < node->len)
            return ideft_fail(ctx, DEFT_ERR_STATE, "a token of the path is not computed yet");
        n += node->n_runs;
    }
    ideft_run_t *array;
    uint32_t cap;
    IDEFT_TRY(ideft_runs_alloc(ctx, n, &array, &cap));
    deft_tree_t *made;
    const deft_status_t status = tree_new(ctx, &made);
    if (status != DEFT_OK) {
        ideft_free(&ctx->alloc, array, cap * sizeof(*array));
        return status;
    }
    ideft_node_t *root = ideft_node(ctx, made->root);
    ideft_runs_set(root, NULL, 0, array, cap);
    root->n_runs = n;
    for (uint32_t at = index; at != 0; at = ideft_node(ctx, at)->parent) {
        const ideft_node_t *node = ideft_node(ctx, at);
        n -= node->n_runs;
        if (node->n_runs > 0)
            memcpy(ideft_runs_of(root) + n, ideft_runs(node), node->n_runs * sizeof(ideft_run_t));
        for (uint32_t i = 0; i < node->n_runs; i++)
            ideft_span_ref(&ctx->pool, ideft_runs(node)[i].slot, ideft_runs(node)[i].n);
        root->len += node->len;
    }
    root->computed = root->len;
    ideft_runs_mark_end(ctx, root);
    *tree_p = made;
    return changed(ctx);
}

deft_status_t deft_tree_set_user(deft_tree_t *tree, deft_node_t handle, void *user)
{
    uint32_t index;
    if (tree == NULL)
        return DEFT_ERR_INVAL;
    IDEFT_TRY(ideft_node_get(tree, handle, &index));
    ideft_node(tree->ctx, index)->user = user;
    return DEFT_OK;
}
