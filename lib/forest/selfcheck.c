/* SPDX-License-Identifier: MIT */
/* The statements of forest.h, executed. Owners of slots are counted anew from the nodes and
 * compared with what the spans say, so that a wrong reference count cannot hide. */
#include "config.h"

#include "forest.h"

#define HOLDS(_x)                                                                             \
    do {                                                                                      \
        if (!(_x))                                                                            \
            return ideft_fail(forest->host, DEFT_ERR_CORRUPT, "selfcheck.c:%d: %s", __LINE__, \
                              #_x);                                                           \
    } while (0)

/* A node against its parent and its children. */
static deft_status_t check_links(const ideft_forest_t *forest, uint32_t index)
{
    const ideft_node_t *node = ideft_node(forest, index);
    uint32_t kids = 0, last = 0;
    for (uint32_t kid = node->first_child; kid != 0; kid = ideft_node(forest, kid)->next) {
        const ideft_node_t *k = ideft_node(forest, kid);
        HOLDS(k->parent == index);
        HOLDS(k->prev == last);
        HOLDS(k->tree == node->tree);
        HOLDS(k->start == node->start + ideft_node_len(node));
        last = kid;
        kids++;
    }
    HOLDS(kids == node->n_children);
    HOLDS(last == node->last_child);
    HOLDS(node->gone <= node->computed);
    HOLDS(node->computed <= ideft_node_len(node));
    return DEFT_OK;
}

static deft_status_t check_dirty(const ideft_forest_t *forest, size_t dirty)
{
    uint32_t last = 0;
    for (uint32_t at = forest->dirty_first; at != 0; dirty--) {
        const ideft_node_t *node = ideft_node(forest, at);
        HOLDS(dirty > 0 && node->dirty_prev == last);
        HOLDS(node->computed < ideft_node_len(node));
        last = at;
        at = node->dirty_next;
    }
    HOLDS(dirty == 0 && forest->dirty_last == last);
    return DEFT_OK;
}

static deft_status_t check_trees(const ideft_forest_t *forest, size_t nodes)
{
    size_t trees = 0, in_trees = 0;
    for (uint32_t id = 1; id < forest->tree.n; id++) {
        const deft_tree_t *tree = forest->tree.at[id];
        if (tree == NULL)
            continue;
        const ideft_node_t *root = ideft_node(forest, tree->root);
        HOLDS(tree->id == id && root->tree == id && root->parent == 0 && root->start == 0);
        trees++;
        in_trees += tree->n_nodes;
    }
    HOLDS(trees == forest->n_trees);
    HOLDS(in_trees == nodes);
    HOLDS(trees + forest->free_id.n + 1 == forest->tree.n &&
          forest->free_id.n <= forest->free_id.cap);
    return DEFT_OK;
}

static deft_status_t check_with(const ideft_forest_t *forest, uint32_t *own)
{
    size_t nodes = 0, dirty = 0, vacant = 0, trimmed = 0;
    for (size_t c = 0; c < forest->chunk.n; c++)
        trimmed += forest->chunk.at[c] == NULL;
    HOLDS(trimmed == forest->n_trimmed);
    for (uint32_t i = 1; i < forest->next_node; i++) {
        if (forest->chunk.at[i >> IDEFT_CHUNK_BITS] == NULL)
            continue;
        const ideft_node_t *node = ideft_node(forest, i);
        if (node->tree == 0)
            continue;
        nodes++;
        dirty += node->computed < ideft_node_len(node);
        IDEFT_TRY(check_links(forest, i));
        HOLDS(ideft_runs_verify(forest->pool, &node->runs, own));
    }
    for (uint32_t i = forest->free_node; i != 0; i = ideft_node(forest, i)->parent) {
        HOLDS(ideft_node(forest, i)->tree == 0 && vacant < forest->next_node);
        vacant++;
    }
    HOLDS(nodes == forest->n_nodes);
    HOLDS(nodes + vacant + trimmed * IDEFT_CHUNK + 1 == forest->next_node);
    IDEFT_TRY(check_trees(forest, nodes));
    IDEFT_TRY(check_dirty(forest, dirty));
    const char *fault = ideft_pool_verify(forest->pool, own);
    return fault == NULL ? DEFT_OK : ideft_fail(forest->host, DEFT_ERR_CORRUPT, "%s", fault);
}

deft_status_t ideft_forest_check(ideft_forest_t *forest)
{
    const uint32_t n = ideft_pool_slots(forest->pool);
    uint32_t *own = ideft_zalloc(forest->host, n * sizeof(*own), 64, "check");
    if (own == NULL)
        return ideft_fail(forest->host, DEFT_ERR_NOMEM, "no memory to check %u slots", n);
    const deft_status_t status = check_with(forest, own);
    ideft_free(forest->host, own, n * sizeof(*own));
    return status;
}
