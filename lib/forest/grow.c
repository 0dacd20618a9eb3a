/* SPDX-License-Identifier: MIT */
/* What makes a tree larger: fork, fork inside a node, append, share. */
#include "config.h"

#include <string.h>

#include "forest.h"

/* Undo: the last n children of `parent`, which are leaves, go. */
static void drop_kids(deft_tree_t *tree, uint32_t parent, size_t n)
{
    while (n-- > 0) {
        const uint32_t kid = ideft_node(tree->forest, parent)->last_child;
        ideft_node_unhang(tree->forest, kid);
        ideft_node_free(tree, kid);
    }
}

/* n children of `parent`, after those that it has, with clones of `user`; room was made. All or
 * none. */
static deft_status_t make_kids(deft_tree_t *tree, uint32_t parent, void *user, size_t n)
{
    ideft_forest_t *forest = tree->forest;
    const ideft_node_t *up = ideft_node(forest, parent);
    const uint32_t start = up->start + ideft_node_len(up);
    for (size_t i = 0; i < n; i++) {
        void *clone = NULL;
        const deft_status_t status = user == NULL ? DEFT_OK
                                                  : ideft_user_clone(forest, user, &clone);
        if (status != DEFT_OK) {
            drop_kids(tree, parent, i);
            return status;
        }
        ideft_node_hang(forest, ideft_node_new(tree, start, clone), parent);
    }
    return DEFT_OK;
}

/* Handles of the last n children, in order. */
static void list_kids(const ideft_forest_t *forest, uint32_t parent, size_t n, deft_node_t *kids)
{
    for (uint32_t kid = ideft_node(forest, parent)->last_child; n > 0;
         kid = ideft_node(forest, kid)->prev)
        kids[--n] = ideft_handle(forest, kid);
}

deft_status_t ideft_tree_fork(deft_tree_t *tree, uint32_t index, size_t n, deft_node_t *kids)
{
    IDEFT_TRY(ideft_nodes_reserve(tree->forest, n));
    IDEFT_TRY(make_kids(tree, index, ideft_node(tree->forest, index)->user, n));
    list_kids(tree->forest, index, n, kids);
    tree->forest->topology++;
    return DEFT_OK;
}

/* The node keeps `offset` tokens; the new node `tail`, whose list has room, takes the rest and the
 * children. */
static void split_node(ideft_forest_t *forest, uint32_t index, uint32_t tail_index, uint32_t offset)
{
    ideft_node_t *node = ideft_node(forest, index), *tail = ideft_node(forest, tail_index);
    const bool was_dirty = node->computed < ideft_node_len(node);
    ideft_runs_divide(forest->pool, &node->runs, offset - node->gone, &tail->runs);
    tail->computed = node->computed > offset ? node->computed - offset : 0;
    tail->first_child = node->first_child;
    tail->last_child = node->last_child;
    tail->n_children = node->n_children;
    for (uint32_t kid = tail->first_child; kid != 0; kid = ideft_node(forest, kid)->next)
        ideft_node(forest, kid)->parent = tail_index;
    node->first_child = node->last_child = node->n_children = 0;
    node->computed = ideft_min(node->computed, offset);
    if (tail->computed < ideft_node_len(tail))
        ideft_dirty_link(forest, tail_index, was_dirty ? index : forest->dirty_last);
    if (was_dirty && node->computed == offset)
        ideft_dirty_unlink(forest, index);
    ideft_node_hang(forest, tail_index, index);
}

deft_status_t ideft_tree_fork_at(deft_tree_t *tree, uint32_t index, uint32_t offset, size_t n,
                                 deft_node_t *kids, deft_node_t *tail_p)
{
    ideft_forest_t *forest = tree->forest;
    const ideft_node_t *node = ideft_node(forest, index);
    ideft_runs_t room = { .n = 0 };
    deft_status_t status;
    void *clone;
    IDEFT_TRY(ideft_nodes_reserve(forest, n + 1));
    IDEFT_TRY(ideft_runs_reserve(forest->host, &room, ideft_runs_count(&node->runs)));
    IDEFT_TRY_GOTO(ideft_user_clone(forest, node->user, &clone), status, err_free_room);
    const uint32_t tail = ideft_node_new(tree, node->start + offset, clone);
    ideft_node(forest, tail)->runs = room;
    /* The children are made as those of the tail, so that they need no list of their own, and move
     * up once nothing can fail. */
    IDEFT_TRY_GOTO(make_kids(tree, tail, node->user, n), status, err_free_tail);
    const uint32_t first = ideft_node(forest, tail)->first_child;
    ideft_node(forest, tail)->first_child = ideft_node(forest, tail)->last_child = 0;
    ideft_node(forest, tail)->n_children = 0;
    split_node(forest, index, tail, offset);
    for (uint32_t kid = first, next; kid != 0; kid = next) {
        next = ideft_node(forest, kid)->next;
        ideft_node_hang(forest, kid, index);
    }
    list_kids(forest, index, n, kids);
    *tail_p = ideft_handle(forest, tail);
    forest->topology++;
    return DEFT_OK;
err_free_tail:
    ideft_node_free(tree, tail);
    return status;
err_free_room:
    ideft_runs_free(forest->host, &room);
    return status;
}

deft_status_t ideft_need_slots(const ideft_forest_t *forest, size_t n)
{
    const uint32_t vacant = ideft_pool_vacant(forest->pool);
    if (n > vacant)
        return ideft_fail(forest->host, DEFT_ERR_NOSPACE, "%zu tokens asked, %u of %u slots free",
                          n, vacant, ideft_pool_slots(forest->pool));
    return DEFT_OK;
}

deft_status_t ideft_tree_append(deft_tree_t *tree, uint32_t index, size_t n, const int32_t *tokens)
{
    ideft_forest_t *forest = tree->forest;
    ideft_node_t *node = ideft_node(forest, index);
    IDEFT_TRY(ideft_need_slots(forest, n));
    IDEFT_TRY(ideft_runs_append(forest->host, forest->pool, &node->runs, (uint32_t)n, tokens));
    if (node->computed + n == ideft_node_len(node)) /* no token was uncomputed */
        ideft_dirty_link(forest, index, forest->dirty_last);
    return DEFT_OK;
}

/* Runs of the path to a node, and its evicted tokens, which must be the first of the path. */
static deft_status_t measure_path(const ideft_forest_t *forest, uint32_t index, uint32_t *runs_p,
                                  uint32_t *gone_p)
{
    *runs_p = *gone_p = 0;
    for (uint32_t at = index; at != 0; at = ideft_node(forest, at)->parent) {
        const ideft_node_t *node = ideft_node(forest, at);
        if (node->computed < ideft_node_len(node))
            return ideft_fail(forest->host, DEFT_ERR_UNCOMPUTED,
                              "a token of the path is not computed yet");
        if (*gone_p > 0 && ideft_runs_len(&node->runs) > 0)
            return ideft_fail(forest->host, DEFT_ERR_STATE,
                              "tokens in the middle of the path were evicted");
        *runs_p += ideft_runs_count(&node->runs);
        *gone_p += node->gone;
    }
    return DEFT_OK;
}

deft_status_t ideft_tree_share(deft_tree_t *tree, uint32_t index, deft_tree_t **tree_p)
{
    ideft_forest_t *forest = tree->forest;
    ideft_runs_t runs = { .n = 0 };
    deft_tree_t *made;
    deft_status_t status;
    uint32_t n, gone;
    void *clone;
    IDEFT_TRY(measure_path(forest, index, &n, &gone));
    IDEFT_TRY(ideft_runs_reserve(forest->host, &runs, n));
    IDEFT_TRY_GOTO(ideft_user_clone(forest, ideft_node(forest, index)->user, &clone), status,
                   err_free_runs);
    IDEFT_TRY_GOTO(ideft_tree_new(forest, &made), status, err_free_clone);
    ideft_runs_open(&runs, n);
    for (uint32_t at = index; at != 0; at = ideft_node(forest, at)->parent) {
        const ideft_runs_t *from = &ideft_node(forest, at)->runs;
        n = ideft_runs_put(&runs, n, from);
        for (uint32_t i = 0; i < ideft_runs_count(from); i++)
            ideft_span_ref(forest->pool, ideft_runs_at(from)[i].slot, ideft_runs_at(from)[i].n);
    }
    ideft_node_t *root = ideft_node(forest, made->root);
    root->user = clone;
    root->runs = runs;
    root->gone = gone;
    root->computed = ideft_node_len(root);
    *tree_p = made;
    return DEFT_OK;
err_free_clone:
    ideft_user_free(forest, clone);
err_free_runs:
    ideft_runs_free(forest->host, &runs);
    return status;
}
