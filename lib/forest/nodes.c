/* SPDX-License-Identifier: MIT */
/* The store of nodes and trees: handles, memory of nodes, links between them, user pointers and
 * their hooks, the list of nodes with uncomputed tokens. */
#include "config.h"

#include <string.h>

#include "forest.h"

/* ---- life ------------------------------------------------------------------------------------ */

deft_status_t ideft_forest_init(ideft_forest_t *forest, ideft_host_t *host, uint32_t n_slots,
                                const deft_node_hooks_t *hooks)
{
    *forest = (ideft_forest_t){ .host = host, .hooks = *hooks, .next_node = 1 };
    forest->pool = ideft_pool_make(host, n_slots);
    if (forest->pool == NULL || !IDEFT_VEC_ROOM(host, &forest->tree, 1)) {
        ideft_pool_free(host, forest->pool);
        *forest = (ideft_forest_t){ 0 };
        return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for a pool of %u tokens", n_slots);
    }
    forest->tree.at[forest->tree.n++] = NULL; /* id 0 is none */
    return DEFT_OK;
}

void ideft_forest_fini(ideft_forest_t *forest)
{
    if (forest->host == NULL)
        return;
    ideft_host_t *host = forest->host;
    /* The pool goes as a whole: only what nodes have of their own is looked for. */
    for (size_t c = 0; c < forest->chunk.n; c++) {
        for (uint32_t i = 0; i < IDEFT_CHUNK && forest->chunk.at[c] != NULL; i++) {
            ideft_node_t *node = &forest->chunk.at[c][i];
            if (node->tree != 0) {
                ideft_user_free(forest, node->user);
                ideft_runs_free(host, &node->runs);
            }
        }
        ideft_free(host, forest->chunk.at[c], IDEFT_CHUNK * sizeof(ideft_node_t));
    }
    for (size_t t = 0; t < forest->tree.n; t++)
        ideft_free(host, forest->tree.at[t], sizeof(deft_tree_t));
    IDEFT_VEC_FREE(host, &forest->chunk);
    IDEFT_VEC_FREE(host, &forest->tree);
    IDEFT_VEC_FREE(host, &forest->free_id);
    ideft_pool_free(host, forest->pool);
    *forest = (ideft_forest_t){ 0 };
}

/* ---- user pointers --------------------------------------------------------------------------- */

deft_status_t ideft_user_clone(const ideft_forest_t *forest, void *user, void **clone_p)
{
    *clone_p = NULL;
    if (user == NULL || forest->hooks.clone == NULL)
        return DEFT_OK;
    const deft_status_t status = forest->hooks.clone(forest->hooks.arg, user, clone_p);
    if (status != DEFT_OK)
        return ideft_fail(forest->host, status, "the hook could not clone a node's state");
    return DEFT_OK;
}

void ideft_user_free(const ideft_forest_t *forest, void *user)
{
    if (user != NULL && forest->hooks.free != NULL)
        forest->hooks.free(forest->hooks.arg, user);
}

void ideft_node_set_user(ideft_forest_t *forest, uint32_t index, void *user)
{
    ideft_node_t *node = ideft_node(forest, index);
    if (node->user != user)
        ideft_user_free(forest, node->user);
    node->user = user;
}

/* ---- memory of nodes ------------------------------------------------------------------------- */

deft_status_t ideft_node_get(const deft_tree_t *tree, deft_node_t handle, uint32_t *index_p)
{
    *index_p = (uint32_t)handle;
    if (ideft_tree_has(tree, handle))
        return DEFT_OK;
    if (ideft_node_lives(tree->forest, handle))
        return ideft_fail(tree->forest->host, DEFT_ERR_FOREIGN,
                          "the node of handle %#llx is of another tree",
                          (unsigned long long)handle);
    return ideft_fail(tree->forest->host, DEFT_ERR_STALE, "no node has the handle %#llx (any more)",
                      (unsigned long long)handle);
}

static ideft_node_t *new_chunk(ideft_forest_t *forest)
{
    ideft_node_t *chunk =
        ideft_zalloc(forest->host, IDEFT_CHUNK * sizeof(ideft_node_t), 4096, "nodes");
    for (uint32_t i = 0; chunk != NULL && i < IDEFT_CHUNK && forest->first_gen > 0; i++)
        chunk[i].gen = forest->first_gen; /* above the handles that a trimmed chunk gave out */
    return chunk;
}

/* A chunk that was trimmed comes back: its nodes are free. */
static bool revive_chunk(ideft_forest_t *forest)
{
    size_t c = 0;
    while (forest->chunk.at[c] != NULL)
        c++;
    forest->chunk.at[c] = new_chunk(forest);
    if (forest->chunk.at[c] == NULL)
        return false;
    for (uint32_t i = IDEFT_CHUNK; i-- > 0;) {
        forest->chunk.at[c][i].parent = forest->free_node;
        forest->free_node = (uint32_t)(c << IDEFT_CHUNK_BITS) + i;
    }
    forest->n_trimmed--;
    return true;
}

deft_status_t ideft_nodes_reserve(ideft_forest_t *forest, size_t n)
{
    ideft_host_t *host = forest->host;
    size_t have = forest->next_node - 1 - forest->n_nodes - forest->n_trimmed * IDEFT_CHUNK;
    for (; have < n && forest->n_trimmed > 0; have += IDEFT_CHUNK)
        if (!revive_chunk(forest))
            return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for %zu nodes", n);
    if (n > IDEFT_MAX_NODES - forest->next_node)
        return ideft_fail(host, DEFT_ERR_LIMIT, "more than %u nodes", IDEFT_MAX_NODES);
    /* The free list may serve some of them; it is not counted, at most n nodes stay unused. */
    const size_t want = (forest->next_node + n + IDEFT_CHUNK - 1) >> IDEFT_CHUNK_BITS;
    if (!IDEFT_VEC_ROOM(host, &forest->chunk, want))
        return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for %zu nodes", n);
    while (forest->chunk.n < want) {
        ideft_node_t *chunk = new_chunk(forest);
        if (chunk == NULL)
            return ideft_fail(host, DEFT_ERR_NOMEM, "no memory for %zu nodes", n);
        forest->chunk.at[forest->chunk.n++] = chunk;
    }
    return DEFT_OK;
}

uint32_t ideft_node_new(deft_tree_t *tree, uint32_t start, void *user)
{
    ideft_forest_t *forest = tree->forest;
    uint32_t index = forest->free_node;
    if (index != 0)
        forest->free_node = ideft_node(forest, index)->parent;
    else
        index = forest->next_node++;
    ideft_node_t *node = ideft_node(forest, index);
    /* Field by field: for a struct of this size gcc takes a string instruction, which is slower
     * than all the rest of a fork. */
    node->gen = node->gen + 1 == 0 ? 1 : node->gen + 1;
    node->tree = tree->id;
    node->start = start;
    node->gone = 0;
    node->runs = (ideft_runs_t){ .n = 0 };
    node->computed = 0;
    node->parent = node->first_child = node->last_child = 0;
    node->prev = node->next = 0;
    node->dirty_prev = node->dirty_next = 0;
    node->n_children = 0;
    node->user = user;
    forest->n_nodes++;
    tree->n_nodes++;
    return index;
}

void ideft_node_free(deft_tree_t *tree, uint32_t index)
{
    ideft_forest_t *forest = tree->forest;
    ideft_node_t *node = ideft_node(forest, index);
    IDEFT_ASSERT(node->first_child == 0);
    if (node->computed < ideft_node_len(node))
        ideft_dirty_unlink(forest, index);
    ideft_runs_release(forest->pool, &node->runs);
    ideft_runs_free(forest->host, &node->runs);
    ideft_user_free(forest, node->user);
    node->tree = 0;
    node->parent = forest->free_node;
    forest->free_node = index;
    forest->n_nodes--;
    tree->n_nodes--;
}

static bool chunk_lives(const ideft_node_t *chunk)
{
    for (uint32_t i = 0; i < IDEFT_CHUNK; i++)
        if (chunk[i].tree != 0)
            return true;
    return false;
}

/* Indices above the last living chunk are forgotten. A dead chunk below it is freed and keeps its
 * place; it comes back when nodes are wanted. The first chunk always stays. */
void ideft_forest_trim(ideft_forest_t *forest)
{
    size_t n = forest->chunk.n;
    while (n > 1 && (forest->chunk.at[n - 1] == NULL || !chunk_lives(forest->chunk.at[n - 1])))
        n--;
    forest->n_trimmed = 0;
    for (size_t c = 1; c < forest->chunk.n; c++) {
        ideft_node_t *chunk = forest->chunk.at[c];
        if (chunk != NULL && (c >= n || !chunk_lives(chunk))) {
            for (uint32_t i = 0; i < IDEFT_CHUNK; i++)
                forest->first_gen = ideft_max(forest->first_gen, chunk[i].gen);
            ideft_free(forest->host, chunk, IDEFT_CHUNK * sizeof(ideft_node_t));
            forest->chunk.at[c] = NULL;
        }
        forest->n_trimmed += c < n && forest->chunk.at[c] == NULL;
    }
    forest->chunk.n = n;
    forest->next_node =
        ideft_min(forest->next_node, ideft_max((uint32_t)(n << IDEFT_CHUNK_BITS), 1));
    forest->free_node = 0;
    for (uint32_t i = forest->next_node; i-- > 1;) { /* low indices will be used first */
        if (forest->chunk.at[i >> IDEFT_CHUNK_BITS] == NULL || ideft_node(forest, i)->tree != 0)
            continue;
        ideft_node(forest, i)->parent = forest->free_node;
        forest->free_node = i;
    }
}

/* ---- links between nodes --------------------------------------------------------------------- */

void ideft_node_hang(ideft_forest_t *forest, uint32_t index, uint32_t parent)
{
    ideft_node_t *node = ideft_node(forest, index), *up = ideft_node(forest, parent);
    node->parent = parent;
    node->prev = up->last_child;
    node->next = 0;
    if (up->last_child != 0)
        ideft_node(forest, up->last_child)->next = index;
    else
        up->first_child = index;
    up->last_child = index;
    up->n_children++;
}

void ideft_node_unhang(ideft_forest_t *forest, uint32_t index)
{
    const ideft_node_t *node = ideft_node(forest, index);
    ideft_node_t *up = ideft_node(forest, node->parent);
    if (node->prev != 0)
        ideft_node(forest, node->prev)->next = node->next;
    else
        up->first_child = node->next;
    if (node->next != 0)
        ideft_node(forest, node->next)->prev = node->prev;
    else
        up->last_child = node->prev;
    up->n_children--;
}

uint32_t ideft_node_after(const ideft_forest_t *forest, uint32_t top, uint32_t at)
{
    const ideft_node_t *node = ideft_node(forest, at);
    if (node->first_child != 0)
        return node->first_child;
    while (at != 0 && at != top) {
        if (node->next != 0)
            return node->next;
        at = node->parent;
        node = ideft_node(forest, at); /* node 0 is not used, but it is there */
    }
    return 0;
}

/* ---- the list of nodes with uncomputed tokens ------------------------------------------------ */

void ideft_dirty_link(ideft_forest_t *forest, uint32_t index, uint32_t after)
{
    ideft_node_t *node = ideft_node(forest, index);
    const uint32_t next = after != 0 ? ideft_node(forest, after)->dirty_next : forest->dirty_first;
    node->dirty_prev = after;
    node->dirty_next = next;
    if (after != 0)
        ideft_node(forest, after)->dirty_next = index;
    else
        forest->dirty_first = index;
    if (next != 0)
        ideft_node(forest, next)->dirty_prev = index;
    else
        forest->dirty_last = index;
}

void ideft_dirty_unlink(ideft_forest_t *forest, uint32_t index)
{
    const ideft_node_t *node = ideft_node(forest, index);
    if (node->dirty_prev != 0)
        ideft_node(forest, node->dirty_prev)->dirty_next = node->dirty_next;
    else
        forest->dirty_first = node->dirty_next;
    if (node->dirty_next != 0)
        ideft_node(forest, node->dirty_next)->dirty_prev = node->dirty_prev;
    else
        forest->dirty_last = node->dirty_prev;
}

void ideft_node_computed(ideft_forest_t *forest, uint32_t index, uint32_t n)
{
    ideft_node_t *node = ideft_node(forest, index);
    node->computed += n;
    if (node->computed == ideft_node_len(node))
        ideft_dirty_unlink(forest, index);
}

/* ---- trees ----------------------------------------------------------------------------------- */

/* An id that no tree has, with room to give it back later. 0: out of memory. */
static uint32_t take_id(ideft_forest_t *forest)
{
    if (forest->free_id.n > 0)
        return forest->free_id.at[--forest->free_id.n];
    const size_t n = forest->tree.n + 1;
    if (n > UINT32_MAX || !IDEFT_VEC_ROOM(forest->host, &forest->tree, n) ||
        !IDEFT_VEC_ROOM(forest->host, &forest->free_id, n))
        return 0;
    forest->tree.at[forest->tree.n] = NULL;
    return (uint32_t)forest->tree.n++;
}

deft_status_t ideft_tree_new(ideft_forest_t *forest, deft_tree_t **tree_p)
{
    IDEFT_TRY(ideft_nodes_reserve(forest, 1));
    deft_tree_t *tree = ideft_zalloc(forest->host, sizeof(*tree), 64, "tree");
    const uint32_t id = tree == NULL ? 0 : take_id(forest);
    if (id == 0) {
        ideft_free(forest->host, tree, sizeof(*tree));
        return ideft_fail(forest->host, DEFT_ERR_NOMEM, "no memory for a tree");
    }
    tree->forest = forest;
    tree->id = id;
    tree->root = ideft_node_new(tree, 0, NULL);
    forest->tree.at[id] = tree;
    forest->n_trees++;
    forest->topology++;
    *tree_p = tree;
    return DEFT_OK;
}
