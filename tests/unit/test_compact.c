/* SPDX-License-Identifier: MIT */
/* deft_tree_compact(): runs come together with their KV, in calls of bounded work, and chains of
 * only children become one node. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t runs_of(const stree_t *of, const snode_t *node)
{
    deft_node_info_t info = DEFT_NODE_INFO_INIT;

    T_OK(deft_tree_node(of->tree, node->h, &info));
    return info.n_runs;
}

/* One token each, alternately: runs of one slot, and holes beside them once b goes. */
static void interleave(stree_t *ta, snode_t *a, stree_t *tb, snode_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const int32_t id = (int32_t)(100 + i);

        T_OK(s_append(w, ta, a, 1, &id));
        T_OK(s_append(w, tb, b, 1, NULL));
    }
}

/* The rest of the pool is every second slot; the others are of nodes of t2; a node that grows
 * now is made of runs of one slot. Returns how many there are. */
static size_t chequer(world_t *on, stree_t *other)
{
    const size_t n = (on->info.pool_tokens - world_info(on).live_tokens) / 2 * 2;
    const size_t first = other->root->n_kids;

    T_OK(s_fork(on, other, other->root, n));
    for (size_t i = 0; i < n; i++) {
        T_OK(s_append(on, other, s_kid(other->root, first + i), 1, NULL));
    }
    for (size_t i = 0; i < n / 2; i++) {
        T_OK(s_prune(on, other, s_kid(other->root, first + i))); /* every second */
    }
    return n / 2;
}

/* ---- runs ---- */

START_TEST(test_compact_moves_short_runs_together)
{
    size_t moved = 99, holes;

    w->check = false;
    holes = chequer(w, t2);
    T_OK(s_append(w, t, t->root, 100, NULL));
    T_OK(s_fork(w, t, t->root, 1));
    T_OK(s_append(w, t, s_kid(t->root, 0), 60, NULL));
    ck_assert_uint_ge(holes, 200);
    ck_assert_uint_ge(runs_of(t, t->root), 90);
    while (t2->root->n_kids > 0) {
        T_OK(s_prune(w, t2, s_kid(t2->root, 0)));
    }
    w->check = true;
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_MOVE, &moved));
    ck_assert_uint_le(runs_of(t, t->root), 3);
    ck_assert_uint_le(runs_of(t, s_kid(t->root, 0)), 3);
    ck_assert_uint_gt(moved, 100);
    ck_assert_uint_le(moved, 160);
    world_verify(w); /* nodes, ids and all else as before */
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_MOVE, &moved));
    ck_assert_uint_eq(moved, 0); /* nothing left to gain */
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_MOVE, NULL));
    T_OK(s_compact(w, t2, t2->root, 0, DEFT_COMPACT_CHAINS, &moved)); /* a tree of nothing */
    ck_assert_uint_eq(moved, 0);
}
END_TEST

/* Only what is at and below the node. */
START_TEST(test_compact_leaves_other_subtrees)
{
    snode_t *a, *b;
    size_t runs;

    T_OK(s_fork(w, t, t->root, 2));
    a = s_kid(t->root, 0);
    b = s_kid(t->root, 1);
    w->check = false;
    chequer(w, t2);
    T_OK(s_append(w, t, a, 50, NULL));
    T_OK(s_append(w, t, b, 50, NULL));
    world_drop(w, t2);
    t2 = t;
    runs = runs_of(t, a);
    ck_assert_uint_gt(runs, 40);
    w->check = true;
    T_OK(s_compact(w, t, b, 0, DEFT_COMPACT_MOVE, NULL));
    ck_assert_uint_eq(runs_of(t, a), runs);
    ck_assert_uint_le(runs_of(t, b), 2);
    world_verify(w);
}
END_TEST

/* Runs are moved as a whole: at most 200 tokens beyond the budget. */
START_TEST(test_compact_keeps_its_budget)
{
    size_t calls = 0, total = 0, moved = 1;

    w->check = false;
    chequer(w, t2);
    T_OK(s_append(w, t, t->root, 400, NULL));
    world_drop(w, t2);
    t2 = t;
    while (moved > 0) {
        const size_t runs = runs_of(t, t->root), budget = 1 + calls * 7 % 50;

        T_OK(s_compact(w, t, t->root, budget, DEFT_COMPACT_MOVE, &moved));
        T_CHECK(moved <= budget + 200, "%zu tokens, the budget was %zu", moved, budget);
        T_CHECK(moved == 0 || runs_of(t, t->root) < runs, "moved %zu, still %zu runs", moved, runs);
        total += moved;
        T_CHECK(++calls < 200, "it never ends");
        world_verify(w);
    }
    ck_assert_uint_gt(calls, 4);
    ck_assert_uint_le(total, 400 + 64);
    ck_assert_uint_le(runs_of(t, t->root), 3);
    T_OK(deft_tree_check(t->tree));
}
END_TEST

START_TEST(test_compact_leaves_shared_runs)
{
    stree_t *copy = NULL;
    size_t moved = 7, runs;
    snode_t *other;

    T_OK(s_fork(w, t2, t2->root, 1));
    other = s_kid(t2->root, 0);
    interleave(t, t->root, t2, other, 40);
    compute_all(w);
    T_OK(s_prune(w, t2, other));
    T_OK(world_share(w, t, t->root, &copy));
    runs = runs_of(t, t->root);
    ck_assert_uint_gt(runs, 1);
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_CHAINS, &moved));
    ck_assert_uint_eq(moved, 0);
    ck_assert_uint_eq(runs_of(t, t->root), runs);
    T_OK(s_compact(w, copy, copy->root, 0, DEFT_COMPACT_CHAINS, &moved));
    ck_assert_uint_eq(moved, 0);
    world_verify(w);
    world_drop(w, copy);
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_MOVE, &moved));
    ck_assert_uint_gt(moved, 0);
    ck_assert_uint_lt(runs_of(t, t->root), runs);
    world_verify(w);
}
END_TEST

/* Where nothing is free everything stays; so does what no free slots could take. */
START_TEST(test_compact_in_a_full_pool)
{
    size_t moved = 7;
    snode_t *a;

    w->check = false;
    T_OK(s_fork(w, t, t->root, 1));
    a = s_kid(t->root, 0);
    chequer(w, t2);
    T_OK(s_append(w, t, a, w->info.pool_tokens - world_info(w).live_tokens, NULL));
    w->check = true;
    REFUSED(deft_tree_compact(t->tree, t->root->h, 0, DEFT_COMPACT_MOVE, &moved), DEFT_OK);
    ck_assert_uint_eq(moved, 0);
    T_OK(s_prune(w, t2, s_kid(t2->root, 0))); /* one slot */
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_MOVE, &moved));
    world_verify(w);
    T_OK(deft_tree_check(t->tree));
}
END_TEST

/* ---- KV ---- */

static void add_step(world_t *on, uint64_t flags, s_err_t *err)
{
    sstep_t ss;

    world_step(on, NULL, 0, flags, S_SPLIT_CALLS, &ss);
    world_compare(on, &ss, 16, err);
    sstep_free(&ss);
}

/* A node of thousands of one-token runs comes back into few in calls of bounded work, and what
 * attends to it gets the same before, between and after. */
static void scattered(deft_config_t cfg, size_t n)
{
    size_t moved = 1, calls = 0;
    world_t *was = w;
    s_err_t err = { 0 };
    stree_t *st, *other;
    snode_t *leaf;

    cfg.pool_tokens = 2 * n + 400;
    w = world_new(&cfg, 5, true);
    st = world_tree(w);
    other = world_tree(w);
    T_OK(s_fork(w, other, other->root, 2 * n));
    for (size_t i = 0; i < 2 * n; i++) {
        T_OK(s_append(w, other, s_kid(other->root, i), 1, NULL));
    }
    for (size_t i = 0; i < n; i++) {
        T_OK(s_prune(w, other, s_kid(other->root, i)));
    }
    T_OK(s_append(w, st, st->root, n + 380, NULL)); /* more than adjoins: into the holes */
    add_step(w, 0, &err);
    world_drop(w, other);
    const size_t scattered_runs = runs_of(st, st->root);
    T_CHECK(scattered_runs > n / 2, "%zu runs of %zu tokens", scattered_runs, n);
    T_OK(s_fork(w, st, st->root, 2));
    leaf = s_kid(st->root, 0);
    while (moved > 0) {
        T_OK(s_compact(w, st, st->root, 256, DEFT_COMPACT_MOVE, &moved));
        T_CHECK(moved <= 256 + 200, "%zu tokens", moved);
        if (calls++ % 8 == 0 || moved == 0) {
            T_OK(s_append(w, st, leaf, 1, NULL));
            add_step(w, calls % 16 == 1 ? DEFT_STEP_INVARIANT : 0, &err);
        }
        T_CHECK(calls < n / 64 + 10, "%zu calls, %zu runs", calls, runs_of(st, st->root));
    }
    T_CHECK(runs_of(st, st->root) <= 4 + n / 256, "%zu runs are left of %zu", runs_of(st, st->root),
            scattered_runs);
    T_CHECK(s_err_norm(&err) < s_tolerance(&w->info), "error %g", s_err_norm(&err));
    world_verify(w);
    T_OK(deft_tree_check(st->tree));
    world_free(w);
    w = was;
}

/* Free slots lie one by one between those of neighbours: these give way, as whole runs, with their
 * KV. shared: some of the neighbours' slots have a second owner, and stay. */
static void crowded(deft_config_t cfg, size_t n, bool shared)
{
    size_t moved = 1, calls = 0, neighbours = 0;
    world_t *was = w;
    s_err_t err = { 0 };
    stree_t *st, *other, *copy = NULL;
    snode_t *leaf;

    cfg.pool_tokens = 3 * n;
    w = world_new(&cfg, 6, true);
    st = world_tree(w);
    other = world_tree(w);
    T_OK(s_fork(w, other, other->root, 3 * n));
    for (size_t i = 0; i < 3 * n; i++) {
        T_OK(s_append(w, other, s_kid(other->root, i), 1, NULL));
    }
    add_step(w, 0, &err);
    for (size_t i = 0; i < n + n / 2; i++) { /* every second */
        T_OK(s_prune(w, other, s_kid(other->root, i)));
    }
    if (shared) {
        T_OK(world_share(w, other, s_kid(other->root, 20), &copy));
    }
    T_OK(s_append(w, st, st->root, n, NULL)); /* n/2 single slots are left */
    add_step(w, 0, &err);
    T_OK(s_fork(w, st, st->root, 1));
    leaf = s_kid(st->root, 0);
    const size_t before = runs_of(st, st->root);
    T_CHECK(before > n / 2, "%zu runs of %zu tokens", before, n);
    for (size_t i = 0; i < other->root->n_kids; i++) {
        neighbours += runs_of(other, s_kid(other->root, i));
    }
    while (moved > 0) {
        const size_t budget = calls % 3 == 2 ? 0 : 50;

        T_OK(s_compact(w, st, st->root, budget, DEFT_COMPACT_MOVE, &moved));
        T_CHECK(budget == 0 || moved <= budget + 200, "%zu tokens", moved);
        T_CHECK(++calls < n, "it never ends");
        if (calls % 4 == 1) {
            T_OK(s_append(w, st, leaf, 1, NULL));
            T_OK(s_append(w, other, s_kid(other->root, calls % other->root->n_kids), 1, NULL));
            add_step(w, calls % 8 == 1 ? DEFT_STEP_INVARIANT : 0, &err);
            T_OK(s_truncate(w, other, s_kid(other->root, calls % other->root->n_kids), 1));
        }
    }
    T_CHECK(runs_of(st, st->root) <= 4 + n / 64, "%zu runs are left of %zu", runs_of(st, st->root),
            before);
    for (size_t i = 0; i < other->root->n_kids; i++) {
        neighbours -= runs_of(other, s_kid(other->root, i));
        if (i % 4 == 0 && w->info.pool_tokens > world_info(w).live_tokens) {
            T_OK(s_append(w, other, s_kid(other->root, i), 1, NULL));
        }
    }
    T_CHECK(neighbours == 0, "the neighbours became more scattered");
    add_step(w, 0, &err); /* every fourth neighbour reads its KV where it is now */
    T_CHECK(s_err_norm(&err) < s_tolerance(&w->info), "error %g", s_err_norm(&err));
    world_verify(w);
    T_OK(deft_tree_check(st->tree));
    world_free(w);
    w = was;
}

START_TEST(test_compact_moves_neighbours_from_between)
{
    unsetenv("DEFT_DEBUG_CHECK");
    for (int type = DEFT_F32; type <= DEFT_BF16; type++) {
        lane_t lanes[LANES_MAX];
        const size_t n = problem_lanes((deft_dtype_t)type, lanes);

        for (size_t i = 0; i < n; i++) {
            deft_config_t cfg = t_config(1);

            if (t_scale() < 0.1 && i % 3 != (size_t)type % 3) {
                continue;
            }
            t_note("crowded: %s, isa %s", t_type_name((deft_dtype_t)type),
                   t_isa_name(lanes[i].isa));
            cfg.device = lanes[i].device;
            cfg.isa = lanes[i].isa;
            cfg.kv_type = (deft_dtype_t)type;
            cfg.n_layers = 2;
            cfg.split = problem_splits[(i + (size_t)type) % 5];
            crowded(cfg, i == 1 ? 800 : 200, i % 2 == 1);
        }
    }
}
END_TEST

START_TEST(test_compact_of_a_scattered_node)
{
    unsetenv("DEFT_DEBUG_CHECK");
    for (int type = DEFT_F32; type <= DEFT_BF16; type++) {
        lane_t lanes[LANES_MAX];
        const size_t n = problem_lanes((deft_dtype_t)type, lanes);

        for (size_t i = 0; i < n; i++) {
            deft_config_t cfg = t_config(1);

            if (t_scale() < 0.1 && i % 3 != (size_t)type % 3) {
                continue;
            }
            t_note("scattered: %s, isa %s", t_type_name((deft_dtype_t)type),
                   t_isa_name(lanes[i].isa));
            cfg.device = lanes[i].device;
            cfg.isa = lanes[i].isa;
            cfg.kv_type = (deft_dtype_t)type;
            cfg.n_layers = 2;
            cfg.split = problem_splits[(i + (size_t)type) % 5];
            cfg.n_threads = 1 + (uint32_t)i % 2;
            scattered(cfg, i == 1 ? t_count(4000) + 500 : 500);
        }
    }
}
END_TEST

/* Tokens that are not computed yet, and those behind evicted ones, keep their places. */
START_TEST(test_compact_with_uncomputed_and_evicted_tokens)
{
    deft_config_t cfg = t_config(600);
    world_t *was = w;
    s_err_t err = { 0 };
    stree_t *st, *other;
    size_t moved;
    snode_t *leaf;

    cfg.n_layers = 2;
    w = world_new(&cfg, 9, true);
    st = world_tree(w);
    other = world_tree(w);
    chequer(w, other);
    T_OK(s_append(w, st, st->root, 50, NULL));
    add_step(w, 0, &err);
    T_OK(s_evict(w, st, st->root, 17));
    T_OK(s_fork(w, st, st->root, 1));
    leaf = s_kid(st->root, 0);
    T_OK(s_append(w, st, leaf, 20, NULL));
    {
        const srow_t rows[] = { { st, leaf, 7 } };
        sstep_t ss;

        world_step(w, rows, 1, 0, S_SPLIT_CALLS, &ss);
        world_compare(w, &ss, 0, &err);
        sstep_free(&ss);
    }
    T_OK(s_append(w, st, leaf, 20, NULL)); /* 7 of 40 are computed */
    world_drop(w, other);
    ck_assert_uint_gt(runs_of(st, st->root), 20);
    ck_assert_uint_gt(runs_of(st, leaf), 20);
    T_OK(s_compact(w, st, st->root, 0, DEFT_COMPACT_MOVE, &moved));
    ck_assert_uint_gt(moved, 0);
    ck_assert_uint_eq(runs_of(st, st->root), 1);
    ck_assert_uint_le(runs_of(st, leaf), 2);
    world_verify(w);
    T_OK(s_append(w, st, leaf, 3, NULL));
    add_step(w, 0, &err);
    T_CHECK(s_err_norm(&err) < s_tolerance(&w->info), "error %g", s_err_norm(&err));
    world_verify(w);
    world_free(w);
    w = was;
}
END_TEST

/* ---- chains ---- */

START_TEST(test_compact_chains_end_in_their_last_node)
{
    static int marks[8];
    snode_t *node = t->root, *branch = NULL, *end;
    deft_node_t above[8];
    size_t moved;

    T_OK(s_append(w, t, node, 3, NULL));
    for (size_t i = 0; i < 7; i++) {
        above[i] = node->h;
        T_OK(s_set_user(w, t, node, &marks[i]));
        T_OK(s_fork(w, t, node, i == 3 ? 2 : 1)); /* one real branch in the middle */
        branch = i == 3 ? node : branch;
        node = s_last_kid(node);
        if (i != 5) {
            T_OK(s_append(w, t, node, 1 + i, NULL));
        }
    }
    end = node;
    T_OK(s_set_user(w, t, end, &marks[7]));
    compute_all(w);
    T_OK(s_fork(w, t, end, 2));
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_CHAINS, &moved));
    /* root -> branch -> (a leaf, end -> two leaves) */
    ck_assert_ptr_eq(s_kid(t->root, 0), branch);
    ck_assert_uint_eq(branch->len, 1 + 2 + 3);
    ck_assert_ptr_eq(s_kid(branch, 1), end);
    ck_assert_uint_eq(end->len, 4 + 5 + 7);
    ck_assert_uint_eq(end->n_kids, 2);
    world_verify(w); /* handles, children, user pointers, ids */
    ck_assert_ptr_eq(deft_tree_user(t->tree, branch->h), &marks[3]);
    for (size_t i = 0; i < 7; i++) {
        const bool stays = i == 0 || i == 3;

        ck_assert(stays == (deft_ctx_tree(w->ctx, above[i]) == t->tree));
        if (!stays) {
            REFUSED(deft_tree_fork(t->tree, above[i], 1, above), DEFT_ERR_STALE);
        }
    }
    REFUSED(deft_tree_compact(t->tree, t->root->h, 0, DEFT_COMPACT_CHAINS, NULL),
            DEFT_OK); /* again */
}
END_TEST

/* The node itself stays as it is, also where it is part of a chain; so does what is above it. */
START_TEST(test_compact_chains_only_below_the_node)
{
    snode_t *node[6] = { t->root };

    for (size_t i = 1; i < 6; i++) {
        T_OK(s_fork_append(w, t, node[i - 1], i, NULL));
        node[i] = s_kid(node[i - 1], 0);
    }
    T_OK(s_compact(w, t, node[2], 0, DEFT_COMPACT_CHAINS, NULL));
    ck_assert_ptr_eq(s_kid(node[0], 0), node[1]);
    ck_assert_ptr_eq(s_kid(node[1], 0), node[2]);
    ck_assert_ptr_eq(s_kid(node[2], 0), node[5]);
    ck_assert_uint_eq(node[2]->len, 2);
    ck_assert_uint_eq(node[5]->len, 3 + 4 + 5);
    world_verify(w);
    T_OK(s_compact(w, t, node[5], 0, DEFT_COMPACT_CHAINS, NULL));
    T_OK(s_compact(w, t, node[2], 0, DEFT_COMPACT_CHAINS, NULL)); /* a chain of one */
    ck_assert_uint_eq(world_info(w).n_nodes, 4 + 1);
    world_verify(w);
    T_OK(s_compact(w, t, node[1], 0, DEFT_COMPACT_MOVE, NULL)); /* no flag: no chains */
    ck_assert_uint_eq(world_info(w).n_nodes, 4 + 1);
}
END_TEST

/* Where the upper node waits to be computed its place in the order of rows is the joined node's;
 * else the lower one's own. */
START_TEST(test_compact_chains_keep_the_order_of_rows)
{
    for (int first = 0; first < 2; first++) {
        snode_t *a, *b, *x;
        sstep_t ss;

        T_OK(s_fork(w, t, t->root, 2)); /* a chain a -> b, and x beside it */
        a = s_kid(t->root, t->root->n_kids - 2);
        x = s_last_kid(t->root);
        T_OK(s_append(w, t, a, 4, NULL));
        if (first == 0) {
            compute_all(w);
            T_OK(s_append(w, t, a, 2, NULL)); /* 4 of 6 are computed */
        } else {
            compute_all(w);
        }
        T_OK(s_append(w, t, x, 1, NULL));
        T_OK(s_fork_append(w, t, a, 3, NULL));
        b = s_kid(a, 0);
        T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_CHAINS, NULL));
        ck_assert_uint_eq(b->len, first == 0 ? 9 : 7);
        ck_assert_uint_eq(b->computed, 4);
        T_OK(world_begin(w, NULL, 0, 0, &ss));
        ck_assert_uint_eq(ss.n, first == 0 ? 6 : 4);
        ck_assert_ptr_eq(ss.node[0], first == 0 ? b : x);
        ck_assert_ptr_eq(ss.node[ss.n - 1], first == 0 ? x : b);
        deft_step_abandon(ss.step);
        sstep_free(&ss);
        compute_all(w);
        world_verify(w);
    }
}
END_TEST

/* Between the slots of one node no evicted tokens lie: such a node is not joined to one with
 * slots. */
START_TEST(test_compact_chains_around_evicted_tokens)
{
    snode_t *a, *b, *c;

    T_OK(s_append(w, t, t->root, 2, NULL));
    T_OK(s_fork_append(w, t, t->root, 5, NULL));
    a = s_kid(t->root, 0);
    T_OK(s_fork_append(w, t, a, 6, NULL));
    b = s_kid(a, 0);
    T_OK(s_fork_append(w, t, b, 7, NULL));
    c = s_kid(b, 0);
    compute_all(w);
    T_OK(s_evict(w, t, b, 2));
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_CHAINS, NULL));
    ck_assert_ptr_eq(s_kid(t->root, 0), a); /* b, which has a hole, stays apart from a */
    ck_assert_ptr_eq(s_kid(a, 0), c);
    ck_assert_uint_eq(c->len, 13);
    ck_assert_uint_eq(c->gone, 2);
    world_verify(w);
    T_OK(s_evict(w, t, a, 5)); /* nothing of a is left: there is no hole between them */
    T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_CHAINS, NULL));
    ck_assert_ptr_eq(s_kid(t->root, 0), c);
    ck_assert_uint_eq(c->gone, 7);
    world_verify(w);
    T_OK(s_append(w, t, c, 2, NULL));
    compute_all(w);
    world_verify(w);
}
END_TEST

/* A node of no tokens joins the one below it, and may then have evicted tokens in front. */
START_TEST(test_compact_chains_around_an_empty_node)
{
    for (size_t n_empty = 1; n_empty <= 3; n_empty++) {
        snode_t *a, *b, *node;

        T_OK(s_fork_append(w, t, t->root, 5, NULL));
        node = a = s_last_kid(t->root);
        for (size_t i = 0; i < n_empty; i++) {
            T_OK(s_fork(w, t, node, 1));
            node = s_kid(node, 0);
        }
        T_OK(s_fork_append(w, t, node, 6, NULL));
        b = s_kid(node, 0);
        compute_all(w);
        T_OK(s_evict(w, t, b, 2));
        T_OK(s_compact(w, t, t->root, 0, DEFT_COMPACT_CHAINS, NULL));
        ck_assert_ptr_eq(s_kid(a, 0), b); /* the empty ones are part of it, a is not */
        ck_assert(b->len == 6 && b->gone == 2);
        world_verify(w);
        T_OK(s_append(w, t, b, 1, NULL));
        compute_all(w);
        world_verify(w);
    }
}
END_TEST

/* A plan that was made before is not patched into one of a joined tree; results are right. */
START_TEST(test_compact_chains_between_decode_steps)
{
    for (size_t i = 0; i < 5; i++) {
        deft_config_t cfg = t_config(900);
        world_t *was = w;
        s_err_t err = { 0 };
        stree_t *st;
        snode_t *leaf, *beside;

        t_note("decode with chains, split %s", t_split_name(problem_splits[i]));
        cfg.split = problem_splits[i];
        cfg.chunk_tokens = 16;
        w = world_new(&cfg, 3, true);
        st = world_tree(w);
        T_OK(s_append(w, st, st->root, 40, NULL));
        T_OK(s_fork(w, st, st->root, 2));
        leaf = s_kid(st->root, 0);
        beside = s_kid(st->root, 1);
        for (size_t j = 0; j < 60; j++) {
            if (j % 3 == 2) {
                T_OK(s_fork_append(w, st, leaf, 1, NULL));
                leaf = s_kid(leaf, 0);
            } else {
                T_OK(s_append(w, st, leaf, 1, NULL));
            }
            T_OK(s_append(w, st, beside, 1, NULL));
            if (j % 7 == 6) { /* with the new tokens uncomputed */
                T_OK(s_compact(w, st, st->root, j % 2 == 0 ? 0 : 10, DEFT_COMPACT_CHAINS, NULL));
                ck_assert_ptr_eq(leaf->parent, st->root);
            }
            add_step(w, 0, &err);
            if (j % 7 == 3) {
                T_OK(s_compact(w, st, st->root, 0, DEFT_COMPACT_CHAINS, NULL));
            }
        }
        T_CHECK(s_err_norm(&err) < s_tolerance(&w->info), "error %g", s_err_norm(&err));
        world_verify(w);
        world_free(w);
        w = was;
    }
}
END_TEST

/* A pool whose every slot has a node of its own, in order: node i has slot i. */
static stree_t *slot_by_slot(const deft_config_t *cfg)
{
    stree_t *walls;

    w = world_new(cfg, 1, false);
    w->check = false;
    walls = world_tree(w);
    T_OK(s_fork(w, walls, walls->root, cfg->pool_tokens));
    for (size_t i = 0; i < cfg->pool_tokens; i++) {
        T_OK(s_append(w, walls, s_kid(walls->root, i), 1, NULL));
    }
    return walls;
}

static void empty_slots(stree_t *walls, size_t from, size_t n)
{
    for (size_t i = from; i < from + n; i++) {
        T_OK(s_truncate(w, walls, s_kid(walls->root, i), 0));
    }
}

/* The node grows into exactly these slots. */
static void put_at(stree_t *walls, stree_t *st, snode_t *node, size_t from, size_t n)
{
    empty_slots(walls, from, n);
    T_OK(s_append(w, st, node, n, NULL));
}

/* A run leaves the slots right before the place where the search for windows goes on: that place is
 * inside a free extent then. */
START_TEST(test_compact_searches_on_inside_a_free_extent)
{
    deft_config_t cfg = t_config(1);
    world_t *was = w;
    stree_t *walls, *st, *copy;
    snode_t *a;

    cfg.device = DEFT_DEVICE_CPU;
    cfg.pool_tokens = 273;
    walls = slot_by_slot(&cfg);
    st = world_tree(w);
    T_OK(s_fork(w, st, st->root, 3));
    a = s_kid(st->root, 0);
    put_at(walls, st, a, 16, 1);
    put_at(walls, st, a, 108, 40);
    put_at(walls, st, a, 149, 40);
    put_at(walls, st, a, 190, 20);
    put_at(walls, st, s_kid(st->root, 1), 47, 30);
    put_at(walls, st, s_kid(st->root, 2), 77, 30);
    ck_assert_uint_eq(runs_of(st, a), 4);
    compute_all(w);
    empty_slots(walls, 17, 30);
    empty_slots(walls, 211, 30);
    empty_slots(walls, 242, 30);
    T_OK(world_share(w, walls, walls->root, &copy)); /* the others cannot move */
    for (size_t i = 0; i < walls->root->n_kids; i++) {
        if (s_kid(walls->root, i)->len > 0) {
            T_OK(world_share(w, walls, s_kid(walls->root, i), &copy));
        }
    }
    T_OK(s_compact(w, st, a, 0, DEFT_COMPACT_MOVE, NULL));
    T_OK(deft_tree_check(st->tree));
    world_verify(w);
    world_free(w);
    w = was;
}
END_TEST

/* Making room for two runs moves the second one right after the first: they are a long run then,
 * and nothing is left to move into the window. */
START_TEST(test_compact_joins_its_own_runs_while_it_makes_room)
{
    static const size_t lens[6] = { 48, 32, 64, 48, 32, 64 };
    deft_config_t cfg = t_config(1);
    world_t *was = w;
    stree_t *st;

    cfg.device = DEFT_DEVICE_CPU;
    cfg.pool_tokens = 288;
    w = world_new(&cfg, 1, false);
    st = world_tree(w);
    T_OK(s_fork(w, st, st->root, 6));
    for (size_t i = 0; i < 6; i++) {
        T_OK(s_append(w, st, s_kid(st->root, i), lens[i], NULL));
    }
    T_OK(s_truncate(w, st, s_kid(st->root, 4), 0));
    T_OK(s_append(w, st, s_kid(st->root, 0), 32, NULL));
    ck_assert_uint_eq(runs_of(st, s_kid(st->root, 0)), 2);
    T_OK(s_truncate(w, st, s_kid(st->root, 1), 0));
    T_OK(s_truncate(w, st, s_kid(st->root, 3), 0));
    T_OK(s_compact(w, st, s_kid(st->root, 0), 0, DEFT_COMPACT_MOVE, NULL));
    T_OK(deft_tree_check(st->tree));
    ck_assert_uint_eq(runs_of(st, s_kid(st->root, 0)), 1);
    world_verify(w);
    world_free(w);
    w = was;
}
END_TEST

/* Runs of 40 to 63 slots, two of which are more than a short run: the window for them may be as
 * large as all free room, what is moved may not. */
START_TEST(test_compact_keeps_its_budget_in_a_window)
{
    deft_config_t cfg = t_config(1);
    world_t *was = w;

    cfg.device = DEFT_DEVICE_CPU;
    for (size_t run = 40; run < 64; run += 11) {
        enum { RUNS = 16 };
        stree_t *walls, *st;
        size_t moved = 1;

        cfg.pool_tokens = 1000 + RUNS * 2 * run;
        walls = slot_by_slot(&cfg);
        st = world_tree(w);
        for (size_t i = 0; i < RUNS; i++) {
            put_at(walls, st, st->root, 1000 + 2 * i * run, run);
        }
        ck_assert_uint_eq(runs_of(st, st->root), RUNS);
        empty_slots(walls, 0, 500);
        for (size_t i = 500; i < 1000; i++) { /* and a chequered part, to be cleared */
            empty_slots(walls, i, i % 2);
        }
        for (size_t calls = 0; moved > 0; calls++) {
            const size_t budget = 1 + calls * 97 % 400;

            T_OK(s_compact(w, st, st->root, budget, DEFT_COMPACT_MOVE, &moved));
            T_CHECK(moved <= budget + 200, "%zu tokens, budget %zu", moved, budget);
            T_OK(deft_tree_check(st->tree));
        }
        ck_assert_uint_lt(runs_of(st, st->root), RUNS);
        world_verify(w);
        world_free(w);
    }
    w = was;
}
END_TEST

/* Many small pools, nearly full, with nodes of up to 80 tokens and shared runs: windows that are
 * cleared for a node meet its own runs, walls and the ends of the pool. */
static void small_pool(rng_t *rng)
{
    enum { KIDS = 9 };
    deft_config_t cfg = t_config(1);
    world_t *was = w;
    stree_t *st, *copy = NULL;

    cfg.n_layers = cfg.n_q_heads = cfg.n_kv_heads = 1;
    cfg.device = DEFT_DEVICE_CPU;
    cfg.pool_tokens = 100 + rng_below(rng, 400);
    w = world_new(&cfg, 1, false);
    st = world_tree(w);
    T_OK(s_fork(w, st, st->root, KIDS));
    for (int op = 0; op < 120; op++) {
        const size_t k = rng_below(rng, KIDS), what = rng_below(rng, 10);
        const size_t room = w->info.pool_tokens - world_info(w).live_tokens;
        snode_t *kid = s_kid(st->root, k);

        if (what < 5 && room > 0) {
            size_t n = 1 + rng_below(rng, what < 2 ? 80 : 20);

            n = n < room ? n : room;
            T_OK(s_append(w, st, kid, n, NULL));
        } else if (what == 5) {
            T_OK(s_prune(w, st, kid));
            T_OK(s_fork(w, st, st->root, 1));
        } else if (what == 6 && kid->len > kid->gone) {
            T_OK(s_truncate(w, st, kid, kid->len - 1 - rng_below(rng, kid->len - kid->gone)));
        } else if (what == 7 && copy == NULL) {
            if (room > 0) {
                T_OK(s_append(w, st, kid, 1, NULL));
                compute_all(w);
            }
            if (kid->computed == kid->len) {
                T_OK(world_share(w, st, kid, &copy));
            }
        } else if (what == 7) {
            world_drop(w, copy);
            copy = NULL;
        } else {
            const size_t budget = rng_below(rng, 3) == 0 ? 0 : 1 + rng_below(rng, 600);
            size_t moved = 0;

            T_OK(s_compact(w, st, rng_below(rng, 4) == 0 ? st->root : kid, budget,
                           DEFT_COMPACT_MOVE, &moved));
            T_CHECK(budget == 0 || moved <= budget + 200, "%zu tokens, budget %zu", moved, budget);
        }
        T_OK(deft_tree_check(st->tree));
    }
    world_verify(w);
    world_free(w);
    w = was;
}

START_TEST(test_compact_in_small_pools)
{
    rng_t rng;

    rng_init(&rng, t_seed(41));
    unsetenv("DEFT_DEBUG_CHECK");

    for (size_t i = 0; i < t_count(4000); i++) {
        t_note("small pool %zu", i);
        small_pool(&rng);
    }
}
END_TEST

START_TEST(test_compact_refuses)
{
    size_t moved = 5;

    plant();
    for (int bit = 1; bit < 64; bit++) {
        REFUSED(deft_tree_compact(t->tree, t->root->h, 0, UINT64_C(1) << bit, &moved),
                DEFT_ERR_INVAL);
        REFUSED(deft_tree_compact(t->tree, t->root->h, 0, UINT64_C(1) << bit | DEFT_COMPACT_CHAINS,
                                  &moved),
                DEFT_ERR_INVAL);
    }
    REFUSED(deft_tree_compact(t->tree, t2->root->h, 0, 0, &moved), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_compact(t->tree, DEFT_NODE_NONE, 0, 0, &moved), DEFT_ERR_STALE);
    ck_assert_int_eq(deft_tree_compact(NULL, t->root->h, 0, 0, &moved), DEFT_ERR_INVAL);
    ck_assert_uint_eq(moved, 5);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_compact_moves_short_runs_together,
        test_compact_leaves_other_subtrees,
        test_compact_keeps_its_budget,
        test_compact_leaves_shared_runs,
        test_compact_in_a_full_pool,
        test_compact_moves_neighbours_from_between,
        test_compact_of_a_scattered_node,
        test_compact_with_uncomputed_and_evicted_tokens,
        test_compact_chains_end_in_their_last_node,
        test_compact_chains_only_below_the_node,
        test_compact_chains_keep_the_order_of_rows,
        test_compact_chains_around_evicted_tokens,
        test_compact_chains_around_an_empty_node,
        test_compact_chains_between_decode_steps,
        test_compact_searches_on_inside_a_free_extent,
        test_compact_joins_its_own_runs_while_it_makes_room,
        test_compact_keeps_its_budget_in_a_window,
        test_compact_in_small_pools,
        test_compact_refuses,
    };

    return suite_run("compact", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
