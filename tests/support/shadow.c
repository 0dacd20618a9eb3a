/* SPDX-License-Identifier: MIT */
/* The naive model of trees: nodes with full copies, in step with the library. */
#include "shadow.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- nodes ---- */

static snode_t *s_new(snode_t *parent, deft_node_t handle)
{
    snode_t *node = t_alloc(sizeof(*node));

    T_CHECK(handle != DEFT_NODE_NONE, "a new node has no handle");
    node->h = handle;
    node->parent = parent;
    node->order_known = true;
    if (parent != NULL) {
        parent->kids = t_grow(parent->kids, (parent->n_kids + 1) * sizeof(*parent->kids));
        parent->kids[parent->n_kids++] = node;
    }
    return node;
}

static void s_delete(snode_t *node)
{
    for (size_t i = 0; i < node->n_kids; i++) {
        s_delete(node->kids[i]);
    }
    free(node->kids);
    free(node->ids);
    free(node->slots);
    free(node->keys);
    free(node->kv);
    free(node);
}

static void s_reserve(const world_t *w, snode_t *node, size_t cap)
{
    if (cap <= node->cap) {
        return;
    }
    node->cap = cap + cap / 4;
    node->ids = t_grow(node->ids, node->cap * sizeof(*node->ids));
    node->slots = t_grow(node->slots, node->cap * sizeof(*node->slots));
    node->keys = t_grow(node->keys, node->cap * sizeof(*node->keys));
    if (w->kv_floats != 0) {
        node->kv = t_grow(node->kv, node->cap * w->kv_floats * sizeof(*node->kv));
    }
}

/* Copy n tokens of src, from offset on, to the end of dst. */
static void s_copy(const world_t *w, snode_t *dst, const snode_t *src, size_t offset, size_t n)
{
    s_reserve(w, dst, dst->len + n);
    if (n == 0) {
        return;
    }
    memcpy(dst->ids + dst->len, src->ids + offset, n * sizeof(*dst->ids));
    memcpy(dst->slots + dst->len, src->slots + offset, n * sizeof(*dst->slots));
    memcpy(dst->keys + dst->len, src->keys + offset, n * sizeof(*dst->keys));
    if (w->kv_floats != 0) {
        memcpy(dst->kv + dst->len * w->kv_floats, src->kv + offset * w->kv_floats,
               n * w->kv_floats * sizeof(*dst->kv));
    }
    dst->len += n;
}

static void s_detach(snode_t *node)
{
    snode_t *parent = node->parent;
    size_t i = 0;

    while (parent->kids[i] != node) {
        i++;
    }
    memmove(parent->kids + i, parent->kids + i + 1,
            (parent->n_kids - i - 1) * sizeof(*parent->kids));
    parent->n_kids--;
}

snode_t *s_kid(const snode_t *node, size_t i)
{
    T_CHECK(i < node->n_kids, "no such child");
    return node->kids[i];
}

snode_t *s_last_kid(const snode_t *node)
{
    return s_kid(node, node->n_kids - 1);
}

size_t s_start(const snode_t *node)
{
    size_t start = 0;

    for (const snode_t *up = node->parent; up != NULL; up = up->parent) {
        start += up->len;
    }
    return start;
}

size_t s_depth(const snode_t *node)
{
    size_t depth = 1;

    while ((node = node->parent) != NULL) {
        depth++;
    }
    return depth;
}

bool s_is_below(const snode_t *node, const snode_t *top)
{
    while (node != NULL && node != top) {
        node = node->parent;
    }
    return node != NULL;
}

size_t s_nodes(const stree_t *t, snode_t ***list_p)
{
    size_t n = 0, cap = 64;
    snode_t **list = t_alloc(cap * sizeof(*list));
    snode_t **stack = t_alloc(cap * sizeof(*stack));
    size_t top = 0, stack_cap = cap;

    stack[top++] = t->root;
    while (top > 0) {
        snode_t *node = stack[--top];

        if (n == cap) {
            cap *= 2;
            list = t_grow(list, cap * sizeof(*list));
        }
        list[n++] = node;
        if (top + node->n_kids > stack_cap) {
            stack_cap = 2 * (top + node->n_kids);
            stack = t_grow(stack, stack_cap * sizeof(*stack));
        }
        for (size_t i = node->n_kids; i-- > 0;) {
            stack[top++] = node->kids[i];
        }
    }
    free(stack);
    *list_p = list;
    return n;
}

/* ---- worlds ---- */

static void *w_copy(const void *data, size_t n)
{
    void *copy = NULL;

    if (data != NULL) {
        copy = t_alloc(n);
        memcpy(copy, data, n);
    }
    return copy;
}

deft_status_t world_try(const deft_config_t *config, uint64_t seed, bool with_kv, world_t **w_p)
{
    world_t *w = t_alloc(sizeof(*w));
    deft_config_t *cfg = &w->cfg;
    deft_status_t status;

    *cfg = *config;
    cfg->windows = w_copy(config->windows, config->n_layers * sizeof(*config->windows));
    cfg->sinks = w_copy(config->sinks, config->n_q_heads * sizeof(*config->sinks));
    t_mem_init(&w->mem);
    cfg->allocator = t_mem_hook(&w->mem);
    status = deft_ctx_create(cfg, &w->ctx);
    if (status != DEFT_OK) {
        t_mem_balanced(&w->mem);
        free((void *)(uintptr_t)cfg->windows);
        free((void *)(uintptr_t)cfg->sinks);
        free(w);
        return status;
    }
    w->info = world_info(w);
    cfg->kv_type = w->info.kv_type;
    cfg->scale = cfg->scale != 0 ? cfg->scale : (float)(1.0 / sqrt(cfg->head_dim));
    w->L = cfg->n_layers;
    w->Hq = cfg->n_q_heads;
    w->Hkv = cfg->n_kv_heads;
    w->D = cfg->head_dim;
    w->kv_floats = with_kv ? (size_t)w->L * 2 * w->Hkv * w->D : 0;
    w->seed = seed;
    w->amp[W_Q] = w->amp[W_K] = w->amp[W_V] = 1;
    *w_p = w;
    return DEFT_OK;
}

world_t *world_new(const deft_config_t *config, uint64_t seed, bool with_kv)
{
    world_t *w = NULL;

    T_OK(world_try(config, seed, with_kv, &w));
    return w;
}

void world_free(world_t *w)
{
    if (w == NULL) {
        return;
    }
    for (size_t i = 0; i < w->n_trees; i++) {
        s_delete(w->trees[i]->root);
        free(w->trees[i]);
    }
    deft_ctx_destroy(w->ctx); /* takes the trees with it */
    t_mem_balanced(&w->mem);
    free(w->trees);
    free((void *)(uintptr_t)w->cfg.windows);
    free((void *)(uintptr_t)w->cfg.sinks);
    free(w);
}

deft_info_t world_info(const world_t *w)
{
    deft_info_t info = { .struct_size = sizeof(info) };

    T_OK(deft_ctx_info(w->ctx, &info));
    return info;
}

static stree_t *world_add(world_t *w, deft_tree_t *tree)
{
    stree_t *t = t_alloc(sizeof(*t));

    t->tree = tree;
    t->root = s_new(NULL, deft_tree_root(tree));
    w->trees = t_grow(w->trees, (w->n_trees + 1) * sizeof(*w->trees));
    w->trees[w->n_trees++] = t;
    return t;
}

stree_t *world_tree(world_t *w)
{
    deft_tree_t *tree = NULL;

    T_OK(deft_tree_create(w->ctx, &tree));
    T_CHECK(deft_tree_ctx(tree) == w->ctx, "a tree of another context");
    return world_add(w, tree);
}

deft_status_t world_share(world_t *w, stree_t *t, snode_t *node, stree_t **t_p)
{
    deft_tree_t *tree = NULL;
    const deft_status_t status = deft_tree_share(t->tree, node->h, &tree);

    if (status == DEFT_OK) {
        stree_t *fresh = world_add(w, tree);
        snode_t *up[4096];
        size_t depth = 0;

        for (snode_t *at = node; at != NULL; at = at->parent) {
            T_CHECK(depth < 4096, "path too deep for the shadow");
            up[depth++] = at;
        }
        while (depth-- > 0) {
            s_copy(w, fresh->root, up[depth], 0, up[depth]->len);
            fresh->root->gone += up[depth]->gone;
        }
        fresh->root->computed = fresh->root->len;
        fresh->root->order_known = false;
        *t_p = fresh;
        if (w->check) {
            T_OK(deft_tree_check(tree));
        }
    }
    return status;
}

void world_drop(world_t *w, stree_t *t)
{
    size_t i = 0;

    while (w->trees[i] != t) {
        i++;
    }
    deft_tree_destroy(t->tree);
    w->trees[i] = w->trees[--w->n_trees];
    s_delete(t->root);
    free(t);
}

size_t world_live(const world_t *w)
{
    unsigned char *seen = t_alloc(w->n_slots + 1);
    size_t live = 0;

    for (size_t i = 0; i < w->n_trees; i++) {
        snode_t **list;
        const size_t n = s_nodes(w->trees[i], &list);

        for (size_t j = 0; j < n; j++) {
            for (size_t k = list[j]->gone; k < list[j]->len; k++) {
                live += seen[list[j]->slots[k]] == 0;
                seen[list[j]->slots[k]] = 1;
            }
        }
        free(list);
    }
    free(seen);
    return live;
}

/* ---- mutators ---- */

static deft_status_t w_checked(const world_t *w, const stree_t *t, deft_status_t status)
{
    if (w->check) {
        const deft_status_t check = deft_tree_check(t->tree);

        T_CHECK(check == DEFT_OK, "deft_tree_check(): %s: %s", deft_status_name(check),
                deft_last_error(w->ctx));
    }
    return status;
}

deft_status_t s_fork(world_t *w, stree_t *t, snode_t *node, size_t n)
{
    deft_node_t *kids = t_alloc(n * sizeof(*kids));
    const deft_status_t status = deft_tree_fork(t->tree, node->h, n, kids);

    for (size_t i = 0; i < n && status == DEFT_OK; i++) {
        s_new(node, kids[i]);
    }
    free(kids);
    return w_checked(w, t, status);
}

deft_status_t s_fork_at(world_t *w, stree_t *t, snode_t *node, size_t offset, size_t n,
                        snode_t **tail_p)
{
    deft_node_t *kids = t_alloc(n * sizeof(*kids));
    deft_node_t tail_handle = UINT64_MAX;
    const deft_status_t status =
        deft_tree_fork_at(t->tree, node->h, offset, n, n != 0 ? kids : NULL, &tail_handle);
    snode_t *tail = NULL;

    if (status == DEFT_OK && offset == node->len) {
        T_CHECK(tail_handle == DEFT_NODE_NONE, "a tail of nothing");
    } else if (status == DEFT_OK) {
        tail = t_alloc(sizeof(*tail));
        tail->h = tail_handle;
        tail->parent = node;
        s_copy(w, tail, node, offset, node->len - offset);
        tail->computed = node->computed > offset ? node->computed - offset : 0;
        tail->kids = node->kids;
        tail->n_kids = node->n_kids;
        for (size_t i = 0; i < tail->n_kids; i++) {
            tail->kids[i]->parent = tail;
        }
        node->kids = t_alloc(sizeof(*node->kids));
        node->kids[0] = tail;
        node->n_kids = 1;
        node->len = offset;
        node->computed = node->computed < offset ? node->computed : offset;
    }
    for (size_t i = 0; i < n && status == DEFT_OK; i++) {
        s_new(node, kids[i]);
    }
    free(kids);
    if (status == DEFT_OK && tail_p != NULL) {
        *tail_p = tail;
    }
    return w_checked(w, t, status);
}

/* n tokens at the end of a node whose library call has succeeded. */
static void s_grow(world_t *w, snode_t *node, size_t n, const int32_t *ids, const uint64_t *keys)
{
    s_reserve(w, node, node->len + n);
    for (size_t i = 0; i < n; i++) {
        const uint64_t slot = w->n_slots++;

        node->ids[node->len] = ids != NULL ? ids[i] : -1;
        node->slots[node->len] = slot;
        node->keys[node->len] = keys != NULL ? keys[i] : t_mix(w->seed, slot);
        node->len++;
    }
    if (node->order == 0) {
        node->order = ++w->n_order;
    }
}

deft_status_t s_fork_append(world_t *w, stree_t *t, snode_t *node, size_t n, const int32_t *ids)
{
    deft_node_t kid = UINT64_MAX;
    const deft_status_t status = deft_tree_fork_append(t->tree, node->h, n, ids, &kid);

    T_CHECK(status == DEFT_OK || kid == UINT64_MAX, "a failed call set its output");
    if (status == DEFT_OK) {
        s_grow(w, s_new(node, kid), n, ids, NULL);
    }
    return w_checked(w, t, status);
}

deft_status_t s_append_keys(world_t *w, stree_t *t, snode_t *node, size_t n, const int32_t *ids,
                            const uint64_t *keys)
{
    const deft_status_t status = deft_tree_append(t->tree, node->h, n, ids);

    if (status == DEFT_OK) {
        s_grow(w, node, n, ids, keys);
    }
    return w_checked(w, t, status);
}

deft_status_t s_append(world_t *w, stree_t *t, snode_t *node, size_t n, const int32_t *ids)
{
    return s_append_keys(w, t, node, n, ids, NULL);
}

deft_status_t s_prune(world_t *w, stree_t *t, snode_t *node)
{
    const deft_status_t status = deft_tree_prune(t->tree, node->h);

    if (status == DEFT_OK) {
        s_detach(node);
        s_delete(node);
    }
    return w_checked(w, t, status);
}

deft_status_t s_truncate(world_t *w, stree_t *t, snode_t *node, size_t n)
{
    const deft_status_t status = deft_tree_truncate(t->tree, node->h, n);

    if (status == DEFT_OK) {
        node->len = n;
        node->computed = node->computed < n ? node->computed : n;
    }
    return w_checked(w, t, status);
}

deft_status_t s_commit(world_t *w, stree_t *t, snode_t *node, uint64_t flags)
{
    const deft_status_t status = deft_tree_commit(t->tree, node->h, flags);

    if (status == DEFT_OK) {
        if ((flags & DEFT_COMMIT_SUBTREE) == 0) {
            for (size_t i = 0; i < node->n_kids; i++) {
                s_delete(node->kids[i]);
            }
            node->n_kids = 0;
        }
        for (snode_t *at = node; at->parent != NULL; at = at->parent) {
            snode_t *up = at->parent;

            for (size_t i = 0; i < up->n_kids; i++) {
                if (up->kids[i] != at) {
                    s_delete(up->kids[i]);
                }
            }
            up->kids[0] = at;
            up->n_kids = 1;
        }
    }
    return w_checked(w, t, status);
}

/* The parent's tokens become the node's first, and the node takes its place. */
static void s_join_up(world_t *w, snode_t *node)
{
    snode_t *up = node->parent, whole = { .len = 0 };

    s_copy(w, &whole, up, 0, up->len);
    s_copy(w, &whole, node, 0, node->len);
    free(node->ids);
    free(node->slots);
    free(node->keys);
    free(node->kv);
    node->computed = up->computed < up->len ? up->computed : up->len + node->computed;
    node->gone = node->gone == 0 ? up->gone : up->len + node->gone;
    node->ids = whole.ids;
    node->slots = whole.slots;
    node->keys = whole.keys;
    node->kv = whole.kv;
    node->len = whole.len;
    node->cap = whole.cap;
    node->order_known = false;
    node->parent = up->parent;
    for (size_t i = 0; i < up->parent->n_kids; i++) {
        if (up->parent->kids[i] == up) {
            up->parent->kids[i] = node;
        }
    }
    up->n_kids = 0;
    s_delete(up);
}

deft_status_t s_compact(world_t *w, stree_t *t, snode_t *top, size_t budget, uint64_t flags,
                        size_t *moved_p)
{
    const deft_status_t status = deft_tree_compact(t->tree, top->h, budget, flags, moved_p);

    if (status == DEFT_OK && (flags & DEFT_COMPACT_CHAINS) != 0) {
        /* from the leaves up, so that a chain ends in its last node */
        snode_t **list;
        const size_t n = s_nodes(t, &list);
        bool *inside = t_alloc(n * sizeof(*inside));

        for (size_t i = 0; i < n; i++) {
            inside[i] = s_is_below(list[i], top);
        }
        for (size_t i = n; i-- > 0;) {
            snode_t *node = list[i];

            /* a node that joined one below is gone: its place in the list is cleared then */
            while (node != NULL && inside[i] && node != top && node->parent != top &&
                   node->parent->n_kids == 1 &&
                   (node->gone == 0 || node->parent->gone == node->parent->len)) {
                const snode_t *up = node->parent;

                for (size_t j = 0; j < n; j++) {
                    list[j] = list[j] == up ? NULL : list[j];
                }
                s_join_up(w, node);
            }
        }
        free(inside);
        free(list);
    }
    return w_checked(w, t, status);
}

static size_t s_drop_front(snode_t *node, size_t n)
{
    const size_t before = node->gone;

    for (; node->gone < n; node->gone++) {
        node->slots[node->gone] = S_NO_SLOT;
        node->ids[node->gone] = -1;
    }
    return node->gone - before;
}

deft_status_t s_evict(world_t *w, stree_t *t, snode_t *node, size_t n)
{
    const deft_status_t status = deft_tree_evict(t->tree, node->h, n);

    if (status == DEFT_OK) {
        s_drop_front(node, n);
    }
    return w_checked(w, t, status);
}

deft_status_t s_evict_unseen(world_t *w, stree_t *t, size_t *freed_p)
{
    const deft_status_t status = deft_tree_evict_unseen(t->tree, freed_p);
    size_t window = w->cfg.windows != NULL ? w->cfg.windows[0] : w->cfg.window;

    for (uint32_t l = 0; w->cfg.windows != NULL && l < w->L; l++) {
        window = window == 0 || w->cfg.windows[l] == 0 ? 0
                 : w->cfg.windows[l] > window          ? w->cfg.windows[l]
                                                       : window;
    }
    if (status == DEFT_OK && window != 0) {
        snode_t **list;
        const size_t n = s_nodes(t, &list);

        for (size_t i = 0; i < n; i++) {
            if (list[i]->computed >= window) {
                s_drop_front(list[i], list[i]->computed - window + 1);
            }
        }
        free(list);
    }
    return w_checked(w, t, status);
}

deft_status_t s_set_user(world_t *w, stree_t *t, snode_t *node, void *user)
{
    const deft_status_t status = deft_tree_set_user(t->tree, node->h, user);

    if (status == DEFT_OK) {
        node->user = user;
    }
    return w_checked(w, t, status);
}

/* ---- verification ---- */

static void verify_node(const stree_t *t, const snode_t *node, size_t start, size_t index)
{
    deft_node_info_t info = { .struct_size = sizeof(info) };
    const snode_t *up = node->parent;
    deft_node_t next = DEFT_NODE_NONE;
    int32_t *ids = t_alloc(node->len * sizeof(*ids));

    T_OK(deft_tree_node(t->tree, node->h, &info));
    if (up != NULL && index + 1 < up->n_kids) {
        next = up->kids[index + 1]->h;
    }
    T_CHECK(info.parent == (up != NULL ? up->h : DEFT_NODE_NONE), "parent");
    T_CHECK(info.first_child == (node->n_kids != 0 ? node->kids[0]->h : DEFT_NODE_NONE), "child");
    T_CHECK(info.next_sibling == next, "sibling");
    T_CHECK(info.n_children == node->n_kids, "%zu children, not %zu", info.n_children,
            node->n_kids);
    T_CHECK(info.start == start, "start %zu, not %zu", info.start, start);
    T_CHECK(info.len == node->len, "len %zu, not %zu", info.len, node->len);
    T_CHECK(info.computed == node->computed, "computed %zu, not %zu", info.computed,
            node->computed);
    T_CHECK(info.user == node->user, "user pointer");
    T_CHECK(info.evicted == node->gone, "%zu evicted, not %zu", info.evicted, node->gone);
    T_CHECK((info.n_runs == 0) == (info.len == info.evicted) &&
                info.n_runs <= info.len - info.evicted,
            "%zu runs of %zu", info.n_runs, info.len);
    T_CHECK(deft_tree_parent(t->tree, node->h) == info.parent, "parent()");
    T_CHECK(deft_tree_first_child(t->tree, node->h) == info.first_child, "first_child()");
    T_CHECK(deft_tree_next_sibling(t->tree, node->h) == info.next_sibling, "next_sibling()");
    T_CHECK(deft_tree_user(t->tree, node->h) == node->user, "user()");
    T_CHECK(deft_tree_path_len(t->tree, node->h) == start + node->len, "path_len()");
    T_CHECK(deft_ctx_tree(deft_tree_ctx(t->tree), node->h) == t->tree, "ctx_tree()");
    T_OK(deft_tree_path_tokens(t->tree, node->h, node->len, ids));
    T_CHECK(node->len == 0 || memcmp(ids, node->ids, node->len * sizeof(*ids)) == 0, "ids");
    free(ids);
}

typedef struct walk {
    size_t tokens, leaves, path_tokens, max_path, max_depth, evicted;
    deft_node_t at;
    size_t n;
} walk_t;

static void verify_below(const stree_t *t, const snode_t *node, size_t start, size_t index,
                         size_t depth, walk_t *walk)
{
    const size_t end = start + node->len;

    walk->at = deft_tree_next(t->tree, t->root->h, walk->at);
    T_CHECK(walk->at == node->h, "deft_tree_next() out of order");
    verify_node(t, node, start, index);
    walk->n++;
    walk->tokens += node->len;
    walk->evicted += node->gone;
    walk->max_path = end > walk->max_path ? end : walk->max_path;
    walk->max_depth = depth > walk->max_depth ? depth : walk->max_depth;
    if (node->n_kids == 0) {
        walk->leaves++;
        walk->path_tokens += end;
    }
    for (size_t i = 0; i < node->n_kids; i++) {
        verify_below(t, node->kids[i], end, i, depth + 1, walk);
    }
}

/* How many of the trees own each slot. */
static void verify_owners(const world_t *w, unsigned char *owners, uint32_t *last)
{
    for (size_t i = 0; i < w->n_trees; i++) {
        snode_t **list;
        const size_t n = s_nodes(w->trees[i], &list);

        for (size_t j = 0; j < n; j++) {
            for (size_t k = list[j]->gone; k < list[j]->len; k++) {
                const uint64_t slot = list[j]->slots[k];

                if (last[slot] != i + 1) {
                    last[slot] = (uint32_t)i + 1;
                    owners[slot] += owners[slot] < 255;
                }
            }
        }
        free(list);
    }
}

static size_t verify_shared(const stree_t *t, const unsigned char *owners)
{
    size_t shared = 0;
    snode_t **list;
    const size_t n = s_nodes(t, &list);

    for (size_t j = 0; j < n; j++) {
        for (size_t k = list[j]->gone; k < list[j]->len; k++) {
            shared += owners[list[j]->slots[k]] > 1;
        }
    }
    free(list);
    return shared;
}

void world_verify(const world_t *w)
{
    unsigned char *owners = t_alloc(w->n_slots + 1);
    uint32_t *last = t_alloc((w->n_slots + 1) * sizeof(*last));
    const deft_info_t info = world_info(w);
    size_t n_nodes = 0;

    verify_owners(w, owners, last);
    for (size_t i = 0; i < w->n_trees; i++) {
        const stree_t *t = w->trees[i];
        deft_tree_stats_t stats = { .struct_size = sizeof(stats) };
        walk_t walk = { 0 };

        T_CHECK(deft_tree_root(t->tree) == t->root->h, "the root's handle changed");
        verify_below(t, t->root, 0, 0, 1, &walk);
        T_CHECK(deft_tree_next(t->tree, t->root->h, walk.at) == DEFT_NODE_NONE, "nodes behind");
        T_OK(deft_tree_stats(t->tree, &stats));
        T_CHECK(stats.n_nodes == walk.n, "stats: %zu nodes, not %zu", stats.n_nodes, walk.n);
        T_CHECK(stats.n_leaves == walk.leaves, "stats: %zu leaves, not %zu", stats.n_leaves,
                walk.leaves);
        T_CHECK(stats.tokens == walk.tokens, "stats: %zu tokens, not %zu", stats.tokens,
                walk.tokens);
        T_CHECK(stats.evicted_tokens == walk.evicted, "stats: %zu evicted, not %zu",
                stats.evicted_tokens, walk.evicted);
        T_CHECK(stats.path_tokens == walk.path_tokens, "stats: %zu path tokens, not %zu",
                stats.path_tokens, walk.path_tokens);
        T_CHECK(stats.max_depth == walk.max_depth, "stats: depth %zu, not %zu", stats.max_depth,
                walk.max_depth);
        T_CHECK(stats.max_path == walk.max_path, "stats: path %zu, not %zu", stats.max_path,
                walk.max_path);
        T_CHECK(stats.shared_tokens == verify_shared(t, owners), "stats: %zu shared, not %zu",
                stats.shared_tokens, verify_shared(t, owners));
        n_nodes += walk.n;
    }
    T_CHECK(info.n_trees == w->n_trees, "info: %zu trees, not %zu", info.n_trees, w->n_trees);
    T_CHECK(info.n_nodes == n_nodes, "info: %zu nodes, not %zu", info.n_nodes, n_nodes);
    T_CHECK(info.live_tokens == world_live(w), "info: %zu live tokens, not %zu", info.live_tokens,
            world_live(w));
    T_CHECK(info.live_tokens <= info.pool_tokens, "info: %zu of %zu", info.live_tokens,
            info.pool_tokens);
    free(owners);
    free(last);
}
