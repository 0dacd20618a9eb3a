/* SPDX-License-Identifier: MIT */
/* What makes a tree smaller: prune, truncate, commit, evict, and its end. None of it allocates,
 * none can fail. */
#include "config.h"

#include "forest.h"

/* Free a node and all below it, leaves first; it hangs nowhere any more. */
static void free_subtree(deft_tree_t *tree, uint32_t top)
{
    ideft_forest_t *forest = tree->forest;
    for (uint32_t index = top;;) {
        const ideft_node_t *node = ideft_node(forest, index);
        if (node->first_child != 0) {
            index = node->first_child;
            continue;
        }
        const uint32_t parent = node->parent;
        if (index != top)
            ideft_node_unhang(forest, index);
        ideft_node_free(tree, index);
        if (index == top)
            return;
        index = parent;
    }
}

void ideft_tree_prune(deft_tree_t *tree, uint32_t index)
{
    if (index != tree->root)
        ideft_node_unhang(tree->forest, index);
    free_subtree(tree, index);
    tree->forest->topology++;
}

void ideft_tree_truncate(deft_tree_t *tree, uint32_t index, uint32_t n)
{
    ideft_forest_t *forest = tree->forest;
    ideft_node_t *node = ideft_node(forest, index);
    if (node->computed < ideft_node_len(node) && node->computed >= n)
        ideft_dirty_unlink(forest, index);
    ideft_runs_shrink(forest->pool, &node->runs, n - node->gone);
    node->computed = ideft_min(node->computed, n);
    forest->topology++;
}

void ideft_tree_commit(deft_tree_t *tree, uint32_t index, bool keep_below)
{
    ideft_forest_t *forest = tree->forest;
    uint32_t kept = 0; /* the child of `at` that stays */
    for (uint32_t at = index; at != 0; kept = at, at = ideft_node(forest, at)->parent) {
        if (at == index && keep_below)
            continue;
        for (uint32_t kid = ideft_node(forest, at)->first_child, next; kid != 0; kid = next) {
            next = ideft_node(forest, kid)->next;
            if (kid != kept) {
                ideft_node_unhang(forest, kid);
                free_subtree(tree, kid);
            }
        }
    }
    forest->topology++;
}

uint32_t ideft_tree_evict(deft_tree_t *tree, uint32_t index, uint32_t n)
{
    ideft_forest_t *forest = tree->forest;
    ideft_node_t *node = ideft_node(forest, index);
    const uint32_t vacant = ideft_pool_vacant(forest->pool);
    if (n <= node->gone)
        return 0;
    ideft_runs_drop(forest->pool, &node->runs, n - node->gone);
    node->gone = n;
    forest->topology++;
    return ideft_pool_vacant(forest->pool) - vacant;
}

size_t ideft_tree_evict_unseen(deft_tree_t *tree, uint32_t window)
{
    const ideft_forest_t *forest = tree->forest;
    size_t freed = 0;
    for (uint32_t at = tree->root; at != 0; at = ideft_node_after(forest, tree->root, at)) {
        /* The first row to come at or below the node follows its computed tokens, and sees window -
         * 1 of them. */
        const uint32_t computed = ideft_node(forest, at)->computed;
        if (computed >= window)
            freed += ideft_tree_evict(tree, at, computed - window + 1);
    }
    return freed;
}

void ideft_tree_free(deft_tree_t *tree)
{
    ideft_forest_t *forest = tree->forest;
    ideft_tree_prune(tree, tree->root);
    forest->tree.at[tree->id] = NULL;
    forest->free_id.at[forest->free_id.n++] = tree->id;
    forest->n_trees--;
    forest->topology++;
    ideft_free(forest->host, tree, sizeof(*tree));
}
