/* SPDX-License-Identifier: MIT */
/* States that nodes carry (deft_node_hooks_t): over random operations of every kind each new node
 * has a clone of the state of the node that it was made from, every state is freed once, and a
 * clone that fails leaves everything as it was. */
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TREES = 4, MAX_NODES = 120, POOL = 600, TABLE = 1 << 14, N_KINDS = 12 };

/* A state. The value is what a clone takes over. */
typedef struct state {
    uint64_t alive;
    uint64_t value;
} state_t;

#define ALIVE UINT64_C(0x57a7e57a7e57a7e5)

typedef struct hooks {
    size_t clones, frees, made, live;
    size_t fail_at; /* this clone fails, counted from 0; SIZE_MAX: none */
    deft_status_t status;
    bool none; /* clones are NULL */
} hooks_t;

static state_t *state_new(hooks_t *h, uint64_t value)
{
    state_t *s = t_alloc(sizeof(*s));

    s->alive = ALIVE;
    s->value = value;
    h->made++;
    h->live++;
    return s;
}

static deft_status_t clone_state(void *arg, void *user, void **copy_p)
{
    hooks_t *h = arg;
    const state_t *s = user;

    T_CHECK(s != NULL && s->alive == ALIVE, "a clone of what is not a state");
    if (h->clones++ == h->fail_at) {
        return h->status;
    }
    *copy_p = h->none ? NULL : state_new(h, s->value);
    return DEFT_OK;
}

static void free_state(void *arg, void *user)
{
    hooks_t *h = arg;
    state_t *s = user;

    T_CHECK(s != NULL && s->alive == ALIVE, "freed twice, or not a state");
    s->alive = 0;
    h->frees++;
    h->live--;
    free(s);
}

/* ---- the model: which value a living node has ---- */

typedef struct entry {
    deft_node_t node;
    uint64_t value; /* 0: NULL */
} entry_t;

typedef struct rig {
    deft_ctx_t *ctx;
    deft_tree_t *tree[MAX_TREES];
    size_t n_trees;
    t_mem_t mem;
    hooks_t h;
    rng_t rng;
    uint64_t values;
    size_t done[N_KINDS]; /* operations that took place, by kind */
    entry_t table[TABLE]; /* by index of the handle */
} rig_t;

static entry_t *entry_of(rig_t *r, deft_node_t node)
{
    T_CHECK((uint32_t)node < TABLE, "an index beyond the table");
    return &r->table[(uint32_t)node];
}

static uint64_t value_of(const deft_tree_t *tree, deft_node_t node)
{
    const state_t *s = deft_tree_user(tree, node);

    T_CHECK(s == NULL || s->alive == ALIVE, "a node has a state that was freed");
    return s == NULL ? 0 : s->value;
}

/* A node that was made: its state is a clone of this value. */
static void expect_new(rig_t *r, const deft_tree_t *tree, deft_node_t node, uint64_t value)
{
    T_CHECK(value_of(tree, node) == value, "a new node carries %llu, not %llu",
            (unsigned long long)value_of(tree, node), (unsigned long long)value);
    *entry_of(r, node) = (entry_t){ node, value };
}

/* Every living node has the value that it had; no two share a state; no state is without a node. */
static size_t check_all(rig_t *r)
{
    size_t nodes = 0, states = 0;

    for (size_t i = 0; i < r->n_trees; i++) {
        const deft_node_t root = deft_tree_root(r->tree[i]);

        for (deft_node_t n = deft_tree_next(r->tree[i], root, DEFT_NODE_NONE); n != DEFT_NODE_NONE;
             n = deft_tree_next(r->tree[i], root, n), nodes++) {
            const entry_t *e = entry_of(r, n);

            T_CHECK(e->node == n, "a node that no call gave out");
            T_CHECK(value_of(r->tree[i], n) == e->value, "a node carries %llu, it was %llu",
                    (unsigned long long)value_of(r->tree[i], n), (unsigned long long)e->value);
            states += e->value != 0;
        }
    }
    T_CHECK(states == r->h.live, "%zu states live, nodes carry %zu", r->h.live, states);
    T_CHECK(r->h.made - r->h.frees == r->h.live, "balance");
    return nodes;
}

static void rig_open(rig_t *r, uint64_t seed)
{
    deft_config_t cfg = t_config(POOL);

    memset(r, 0, sizeof(*r));
    r->h.fail_at = SIZE_MAX;
    rng_init(&r->rng, seed);
    t_mem_init(&r->mem);
    cfg.allocator = t_mem_hook(&r->mem);
    cfg.window = 40;
    cfg.hooks = (deft_node_hooks_t){ clone_state, free_state, &r->h };
    T_OK(deft_ctx_create(&cfg, &r->ctx));
}

static void rig_close(rig_t *r)
{
    deft_ctx_destroy(r->ctx); /* with trees in it */
    T_CHECK(r->h.live == 0 && r->h.made == r->h.frees, "%zu states are left", r->h.live);
    t_mem_balanced(&r->mem);
}

static deft_tree_t *add_tree(rig_t *r)
{
    deft_tree_t *tree = NULL;

    T_OK(deft_tree_create(r->ctx, &tree));
    r->tree[r->n_trees++] = tree;
    expect_new(r, tree, deft_tree_root(tree), 0);
    return tree;
}

static void set_state(rig_t *r, deft_tree_t *tree, deft_node_t node)
{
    const size_t frees = r->h.frees;
    const bool had = deft_tree_user(tree, node) != NULL;
    state_t *s = rng_chance(&r->rng, 0.2) ? NULL : state_new(&r->h, ++r->values);

    T_OK(deft_tree_set_user(tree, node, s));
    T_CHECK(r->h.frees == frees + had, "set_user() freed %zu", r->h.frees - frees);
    T_OK(deft_tree_set_user(tree, node, s)); /* the same: nothing happens */
    T_CHECK(r->h.frees == frees + had && deft_tree_user(tree, node) == s, "set_user() of the same");
    entry_of(r, node)->value = s != NULL ? s->value : 0;
}

static deft_node_t any_node(rig_t *r, const deft_tree_t *tree)
{
    deft_node_t at = deft_tree_root(tree);

    for (size_t down = rng_below(&r->rng, 9); down > 0; down--) {
        deft_node_t kid = deft_tree_first_child(tree, at);

        for (size_t over = rng_below(&r->rng, 4); over > 0 && kid != DEFT_NODE_NONE; over--) {
            const deft_node_t next = deft_tree_next_sibling(tree, kid);

            kid = next != DEFT_NODE_NONE ? next : kid;
        }
        if (kid == DEFT_NODE_NONE) {
            break;
        }
        at = kid;
    }
    return at;
}

static size_t n_nodes(const deft_tree_t *tree)
{
    deft_tree_stats_t stats = DEFT_TREE_STATS_INIT;

    T_OK(deft_tree_stats(tree, &stats));
    return stats.n_nodes;
}

static void compute(rig_t *r)
{
    static float x[POOL * 64 * 2];
    deft_step_t step = DEFT_STEP_INIT;
    const deft_status_t status = deft_step_begin(r->ctx, NULL, 0, 0, &step);

    if (status == DEFT_OK) {
        T_OK(deft_step_write(step, 0, x, x));
        T_OK(deft_step_end(step));
    } else {
        T_CHECK(status == DEFT_ERR_EMPTY, "%s", deft_status_name(status));
    }
}

/* ---- operations ---- */

enum {
    FORK,
    FORK_APPEND,
    FORK_AT,
    SHARE,
    PRUNE,
    TRUNCATE,
    COMMIT,
    COMPACT,
    EVICT,
    SET_USER,
    TREES,
    APPEND
};

static deft_status_t grow(rig_t *r, deft_tree_t *tree, deft_node_t node, int kind)
{
    const uint64_t value = value_of(tree, node);
    const size_t n = rng_range(&r->rng, 1, 3), clones = r->h.clones;
    deft_node_info_t info = DEFT_NODE_INFO_INIT;
    deft_node_t kids[3], tail = DEFT_NODE_NONE;
    deft_status_t status;
    size_t made = n;

    T_OK(deft_tree_node(tree, node, &info));
    if (kind == FORK) {
        status = deft_tree_fork(tree, node, n, kids);
    } else if (kind == FORK_APPEND) {
        made = 1;
        status = deft_tree_fork_append(tree, node, n, NULL, kids);
    } else {
        status = deft_tree_fork_at(tree, node,
                                   info.evicted + rng_below(&r->rng, info.len - info.evicted + 1),
                                   n, kids, &tail);
    }
    if (status == DEFT_OK) {
        for (size_t i = 0; i < made; i++) {
            expect_new(r, tree, kids[i], value);
        }
        if (tail != DEFT_NODE_NONE) {
            expect_new(r, tree, tail, value);
        }
        T_CHECK(r->h.clones - clones == (value == 0 ? 0 : made + (tail != DEFT_NODE_NONE)),
                "%zu clones", r->h.clones - clones);
    }
    return status;
}

static deft_status_t change_trees(rig_t *r)
{
    if (r->n_trees == MAX_TREES || (r->n_trees > 1 && rng_chance(&r->rng, 0.5))) {
        const size_t at = rng_below(&r->rng, r->n_trees);

        deft_tree_destroy(r->tree[at]);
        r->tree[at] = r->tree[--r->n_trees];
    } else {
        deft_tree_t *tree = add_tree(r);

        set_state(r, tree, deft_tree_root(tree));
    }
    return DEFT_OK;
}

static deft_status_t share(rig_t *r, deft_tree_t *tree, deft_node_t node)
{
    deft_tree_t *made = NULL;
    const uint64_t value = value_of(tree, node);

    if (r->n_trees == MAX_TREES) {
        return DEFT_ERR_STATE;
    }
    const deft_status_t status = deft_tree_share(tree, node, &made);

    if (status == DEFT_OK) {
        r->tree[r->n_trees++] = made;
        expect_new(r, made, deft_tree_root(made), value);
    }
    return status;
}

static deft_status_t shrink(rig_t *r, deft_tree_t *tree, deft_node_t node, int kind)
{
    deft_node_info_t info = DEFT_NODE_INFO_INIT;
    const size_t clones = r->h.clones;
    deft_status_t status;

    T_OK(deft_tree_node(tree, node, &info));
    switch (kind) {
    case PRUNE:
        status = deft_tree_prune(tree, node);
        break;
    case TRUNCATE:
        status = deft_tree_truncate(tree, node,
                                    info.evicted + rng_below(&r->rng, info.len - info.evicted + 1));
        break;
    case COMMIT:
        status = deft_tree_commit(tree, node, rng_below(&r->rng, 2));
        break;
    case COMPACT:
        status = deft_tree_compact(
            tree, node, rng_below(&r->rng, 60),
            rng_chance(&r->rng, 0.8) ? DEFT_COMPACT_CHAINS : DEFT_COMPACT_MOVE, NULL);
        break;
    default:
        status = rng_chance(&r->rng, 0.3)
                     ? deft_tree_evict_unseen(tree, NULL)
                     : deft_tree_evict(tree, node, rng_below(&r->rng, info.computed + 1));
    }
    T_CHECK(r->h.clones == clones, "a clone for no new node");
    return status;
}

static void operate(rig_t *r)
{
    deft_tree_t *tree = r->tree[rng_below(&r->rng, r->n_trees)];
    const deft_node_t node = any_node(r, tree);
    int kind = (int)rng_below(&r->rng, N_KINDS);
    const size_t frees = r->h.frees;
    deft_status_t status;

    if (kind <= FORK_AT && n_nodes(tree) > MAX_NODES) {
        kind = rng_chance(&r->rng, 0.5) ? PRUNE : COMPACT;
    }
    if (kind == COMMIT && !rng_chance(&r->rng, 0.2)) {
        kind = APPEND;
    }
    switch (kind) {
    case FORK:
    case FORK_APPEND:
    case FORK_AT:
        status = grow(r, tree, node, kind);
        break;
    case SHARE:
        status = share(r, tree, node);
        break;
    case APPEND:
        status = deft_tree_append(tree, node, rng_range(&r->rng, 1, 5), NULL);
        break;
    case SET_USER:
        set_state(r, tree, node);
        status = DEFT_OK;
        break;
    case TREES:
        status = rng_chance(&r->rng, 0.2) ? change_trees(r) : DEFT_ERR_STATE;
        break;
    default:
        status = shrink(r, tree, node, kind);
    }
    r->done[kind] += status == DEFT_OK;
    T_CHECK(r->h.frees == frees || kind == PRUNE || kind == COMMIT || kind == COMPACT ||
                kind == SET_USER || kind == TREES || status == DEFT_ERR_NOSPACE,
            "operation %d freed a state", kind);
    if (rng_chance(&r->rng, 0.05)) {
        compute(r);
    }
    if (rng_chance(&r->rng, 0.0005)) {
        T_OK(deft_ctx_trim(r->ctx));
    }
}

static void random_operations(uint64_t seed)
{
    const size_t n = t_count(1000000);
    static rig_t r;
    size_t most = 0;

    rig_open(&r, seed);
    add_tree(&r);
    set_state(&r, r.tree[0], deft_tree_root(r.tree[0]));
    for (size_t i = 0; i < n; i++) {
        t_note("test_node_hooks: operation %zu of seed %#llx", i, (unsigned long long)seed);
        operate(&r);
        if (i % 200 == 0 || i + 1 == n) {
            const size_t nodes = check_all(&r);

            most = nodes > most ? nodes : most;
        }
    }
    printf("%zu operations, %zu states made, %zu at most at a time\n", n, r.h.made, most);
    for (size_t kind = 0; kind < N_KINDS; kind++) {
        T_CHECK(n < 20000 || r.done[kind] > n / 1000, "operation %zu took place %zu times", kind,
                r.done[kind]);
    }
    while (r.n_trees > 1) {
        deft_tree_destroy(r.tree[--r.n_trees]);
        check_all(&r);
    }
    rig_close(&r);
}

/* ---- which pointer stays ---- */

static void joined_nodes(void)
{
    static rig_t r;
    deft_node_t node[5];
    deft_tree_t *tree;
    void *user[5];

    t_note("joined nodes");
    rig_open(&r, 1);
    tree = add_tree(&r);
    node[0] = deft_tree_root(tree);
    for (size_t i = 0; i < 5; i++) {
        if (i > 0) {
            T_OK(deft_tree_fork_append(tree, node[i - 1], 2, NULL, &node[i]));
            *entry_of(&r, node[i]) = (entry_t){ node[i], 0 };
        }
        T_OK(deft_tree_set_user(tree, node[i], state_new(&r.h, 10 + i)));
        entry_of(&r, node[i])->value = 10 + i;
        user[i] = deft_tree_user(tree, node[i]);
    }
    const size_t frees = r.h.frees;
    T_OK(deft_tree_compact(tree, node[0], 0, DEFT_COMPACT_CHAINS, NULL));
    T_CHECK(r.h.frees == frees + 3, "%zu freed, of three nodes that were joined",
            r.h.frees - frees);
    T_CHECK(deft_tree_user(tree, node[0]) == user[0] && deft_tree_user(tree, node[4]) == user[4],
            "the pointer of the lower node, and of the node itself, stay");
    check_all(&r);
    T_OK(deft_tree_truncate(tree, node[4], 1));
    compute(&r);
    T_OK(deft_tree_evict(tree, node[4], 1));
    T_CHECK(r.h.frees == frees + 3 && deft_tree_user(tree, node[4]) == user[4], "unchanged");
    rig_close(&r);
}

/* ---- clones that fail ---- */

typedef deft_status_t (*clone_fn)(rig_t *r, deft_node_t *out);

static deft_status_t do_fork(rig_t *r, deft_node_t *out)
{
    return deft_tree_fork(r->tree[0], deft_tree_root(r->tree[0]), 5, out);
}

static deft_status_t do_fork_append(rig_t *r, deft_node_t *out)
{
    return deft_tree_fork_append(r->tree[0], deft_tree_root(r->tree[0]), 3, NULL, out);
}

static deft_status_t do_fork_at(rig_t *r, deft_node_t *out)
{
    return deft_tree_fork_at(r->tree[0], deft_tree_root(r->tree[0]), 4, 4, out, out + 4);
}

static deft_status_t do_fork_at_end(rig_t *r, deft_node_t *out)
{
    return deft_tree_fork_at(r->tree[0], deft_tree_root(r->tree[0]), 10, 4, out, NULL);
}

static deft_status_t do_share(rig_t *r, deft_node_t *out)
{
    deft_tree_t *made = NULL;
    const deft_status_t status = deft_tree_share(
        r->tree[0], deft_tree_first_child(r->tree[0], deft_tree_root(r->tree[0])), &made);

    if (status == DEFT_OK) {
        r->tree[r->n_trees++] = made;
        *out = deft_tree_root(made);
    }
    T_CHECK(status == DEFT_OK || made == NULL, "an output was set");
    return status;
}

/* Each clone of a call fails in turn, with any status: the call returns it, nothing has changed, no
 * state and no byte stays behind, and then the same call works. */
static void failing_clones(const char *name, clone_fn call, size_t n_clones)
{
    static const deft_status_t statuses[] = { DEFT_ERR_NOMEM, DEFT_ERR_LIMIT, DEFT_ERR_STATE,
                                              (deft_status_t)-1234, (deft_status_t)7 };

    for (size_t at = 0; at < n_clones; at++) {
        static rig_t r;
        deft_node_t out[5], kids[2];
        deft_tree_t *tree;
        size_t bytes = 0, live;

        t_note("test_node_hooks: %s, clone %zu fails", name, at);
        rig_open(&r, 1);
        tree = add_tree(&r);
        T_OK(deft_tree_append(tree, deft_tree_root(tree), 10, NULL));
        T_OK(deft_tree_fork(tree, deft_tree_root(tree), 2, kids));
        T_OK(deft_tree_append(tree, kids[0], 3, NULL));
        T_OK(deft_tree_append(tree, kids[1], 3, NULL));
        compute(&r);
        T_OK(deft_tree_set_user(tree, deft_tree_root(tree), state_new(&r.h, 77)));
        T_OK(deft_tree_set_user(tree, kids[0], state_new(&r.h, 77)));
        live = r.h.live;
        for (size_t i = 0; i < sizeof(statuses) / sizeof(*statuses); i++) {
            memset(out, 0x5a, sizeof(out));
            r.h.fail_at = r.h.clones + at;
            r.h.status = statuses[i];
            T_UNCHANGED(r.ctx, &tree, 1, call(&r, out), statuses[i], statuses[i]);
            T_CHECK(r.h.clones == r.h.fail_at + 1, "clones after the one that failed");
            T_CHECK(r.h.live == live, "%zu states were left behind", r.h.live - live);
            T_CHECK(i == 0 || r.mem.live_bytes == bytes, "bytes were left behind");
            for (size_t j = 0; j < sizeof(out); j++) {
                T_CHECK(((unsigned char *)out)[j] == 0x5a, "an output was set");
            }
            bytes = r.mem.live_bytes;
            T_OK(deft_tree_check(tree));
        }
        r.h.fail_at = SIZE_MAX;
        T_OK(call(&r, out));
        T_CHECK(r.h.live == live + n_clones, "%zu clones", r.h.live - live);
        T_OK(deft_tree_check(tree));
        rig_close(&r);
    }
}

/* A first clone that is NULL: the others are clones of the node's all the same. */
static void clones_of_the_node(void)
{
    static rig_t r;
    deft_node_t out[5];

    t_note("clones are NULL");
    rig_open(&r, 1);
    add_tree(&r);
    T_OK(deft_tree_append(r.tree[0], deft_tree_root(r.tree[0]), 10, NULL));
    T_OK(deft_tree_set_user(r.tree[0], deft_tree_root(r.tree[0]), state_new(&r.h, 77)));
    r.h.none = true;
    T_OK(do_fork_at(&r, out));
    T_CHECK(r.h.clones == 5, "%zu clones of the node for five new ones", r.h.clones);
    T_CHECK(r.h.live == 1, "states");
    rig_close(&r);
}

/* A call that lacks slots has cloned nothing. */
static void full_pool(void)
{
    static rig_t r;
    deft_node_t out[5];

    t_note("a full pool");
    rig_open(&r, 1);
    add_tree(&r);
    T_OK(deft_tree_append(r.tree[0], deft_tree_root(r.tree[0]), POOL - 2, NULL));
    T_OK(deft_tree_set_user(r.tree[0], deft_tree_root(r.tree[0]), state_new(&r.h, 77)));
    T_UNCHANGED(r.ctx, &r.tree[0], 1, do_fork_append(&r, out), DEFT_ERR_NOSPACE, DEFT_ERR_NOSPACE);
    T_CHECK(r.h.clones == 0 && r.h.live == 1, "%zu clones", r.h.clones);
    rig_close(&r);
}

/* ---- parts of the hooks ---- */

static void partial_hooks(void)
{
    static hooks_t h = { .fail_at = SIZE_MAX };
    deft_node_t kid;

    for (int which = 0; which < 3; which++) {
        deft_config_t cfg = t_config(10);
        deft_ctx_t *ctx = NULL;
        deft_tree_t *tree = NULL;
        state_t *s = state_new(&h, 5);
        const size_t frees = h.frees, clones = h.clones;

        t_note("partial hooks %d", which);
        cfg.hooks = (deft_node_hooks_t){ which == 1 ? clone_state : NULL,
                                         which == 2 ? free_state : NULL, &h };
        T_OK(deft_ctx_create(&cfg, &ctx));
        T_OK(deft_tree_create(ctx, &tree));
        T_OK(deft_tree_set_user(tree, deft_tree_root(tree), s));
        T_OK(deft_tree_fork(tree, deft_tree_root(tree), 1, &kid));
        state_t *copy = deft_tree_user(tree, kid);
        T_CHECK((copy != NULL) == (which == 1) && copy != s,
                "without a clone hook a new pointer is NULL");
        T_OK(deft_tree_prune(tree, kid));
        T_CHECK(h.frees == frees && h.clones == clones + (which == 1), "calls of hooks");
        T_OK(deft_tree_set_user(tree, deft_tree_root(tree), NULL));
        T_CHECK(h.frees == frees + (which == 2), "without a free hook nothing is freed");
        deft_ctx_destroy(ctx);
        if (which != 2) {
            free_state(&h, s);
        }
        if (copy != NULL) {
            free_state(&h, copy);
        }
    }
    T_CHECK(h.live == 0, "states");
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    unsetenv("DEFT_DEBUG_CHECK");
    joined_nodes();
    failing_clones("fork", do_fork, 5);
    failing_clones("fork_append", do_fork_append, 1);
    failing_clones("fork_at", do_fork_at, 5);
    failing_clones("fork_at at the end", do_fork_at_end, 4);
    failing_clones("share", do_share, 1);
    partial_hooks();
    random_operations(t_seed(4711));
    clones_of_the_node();
    full_pool();
    return 0;
}
