/* SPDX-License-Identifier: MIT */
/* Token ids: those of a path, and the path that agrees with given ones. */
#include "config.h"

#include "forest.h"

void ideft_path_tokens(const ideft_forest_t *forest, uint32_t index, size_t n, int32_t *ids)
{
    for (uint32_t at = index; n > 0; at = ideft_node(forest, at)->parent) {
        const ideft_node_t *node = ideft_node(forest, at);
        for (uint32_t r = ideft_runs_count(&node->runs); r-- > 0 && n > 0;) {
            const ideft_run_t run = ideft_runs_at(&node->runs)[r];
            const uint32_t take = n < run.n ? (uint32_t)n : run.n;
            n -= take;
            ideft_pool_tokens(forest->pool, run.slot + run.n - take, take, ids + n);
        }
        for (uint32_t i = node->gone; i-- > 0 && n > 0;)
            ids[--n] = -1;
    }
}

/* How many of n ids agree with a node's tokens. */
static size_t match_node(const ideft_forest_t *forest, const ideft_node_t *node, const int32_t *ids,
                         size_t n)
{
    size_t done = 0;
    for (uint32_t r = 0; r < ideft_runs_count(&node->runs) && node->gone == 0; r++) {
        const ideft_run_t run = ideft_runs_at(&node->runs)[r];
        const uint32_t most = n - done < run.n ? (uint32_t)(n - done) : run.n;
        const uint32_t got = ideft_pool_match(forest->pool, run.slot, most, ids + done);
        done += got;
        if (got < run.n)
            break;
    }
    return done;
}

uint32_t ideft_tree_find(const deft_tree_t *tree, const int32_t *ids, size_t n, size_t *offset_p,
                         size_t *matched_p)
{
    const ideft_forest_t *forest = tree->forest;
    uint32_t best = tree->root;
    *offset_p = *matched_p = 0;
    for (uint32_t at = tree->root; n > 0;) {
        const ideft_node_t *node = ideft_node(forest, at);
        const size_t before = node->start < n ? node->start : n;
        /* A node is met only when its whole path above matches. */
        const size_t got = match_node(forest, node, ids + before, n - before);
        if (before + got > *matched_p) {
            best = at;
            *offset_p = got;
            *matched_p = before + got;
        }
        if (got == ideft_node_len(node) && before + got < n && node->first_child != 0) {
            at = node->first_child;
            continue;
        }
        while (at != tree->root && ideft_node(forest, at)->next == 0)
            at = ideft_node(forest, at)->parent;
        if (at == tree->root)
            break;
        at = ideft_node(forest, at)->next;
    }
    return best;
}
