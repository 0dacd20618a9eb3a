/* SPDX-License-Identifier: MIT */
/* What each operation on a tree does, each of its error codes, and that a refused call changes
 * nothing. */
#include "fixture.h"

#include <stdlib.h>
#include <string.h>

START_TEST(test_tree_create_gives_an_empty_root)
{
    deft_node_info_t info = { .struct_size = sizeof(info) };

    T_OK(deft_tree_node(t->tree, deft_tree_root(t->tree), &info));
    ck_assert_uint_eq(info.len, 0);
    ck_assert_uint_eq(info.start, 0);
    ck_assert_uint_eq(info.computed, 0);
    ck_assert_uint_eq(info.n_children, 0);
    ck_assert_uint_eq(info.n_runs, 0);
    ck_assert_ptr_null(info.user);
    ck_assert_uint_eq(info.parent, DEFT_NODE_NONE);
    ck_assert_uint_ne(t->root->h, DEFT_NODE_NONE);
    ck_assert_uint_ne(t->root->h, t2->root->h);
    ck_assert_ptr_eq(deft_tree_ctx(t->tree), w->ctx);
    world_verify(w);
}
END_TEST

START_TEST(test_tree_create_refuses_null)
{
    deft_tree_t *tree = NULL;

    ck_assert_int_eq(deft_tree_create(NULL, &tree), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_tree_create(w->ctx, NULL), DEFT_ERR_INVAL);
    ck_assert_ptr_null(tree);
    deft_tree_destroy(NULL);
    deft_ctx_destroy(NULL);
    deft_step_abandon((deft_step_t)DEFT_STEP_INIT);
}
END_TEST

START_TEST(test_tree_fork_adds_children_after_present_ones)
{
    plant();
    world_verify(w);
    T_OK(s_fork(w, t, t->root, 3));
    ck_assert_uint_eq(t->root->n_kids, 5);
    world_verify(w);
    T_OK(s_fork(w, t, s_kid(t->root, 4), 200));
    world_verify(w);
}
END_TEST

START_TEST(test_tree_fork_refuses)
{
    deft_node_t kids[4] = { 7, 7, 7, 7 };

    plant();
    REFUSED(deft_tree_fork(t->tree, t->root->h, 0, kids), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork(t->tree, t->root->h, SIZE_MAX, kids), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork(t->tree, t->root->h, SIZE_MAX / 3, kids), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork(t->tree, t->root->h, 1, NULL), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork(t->tree, DEFT_NODE_NONE, 1, kids), DEFT_ERR_STALE);
    REFUSED(deft_tree_fork(t->tree, t2->root->h, 1, kids), DEFT_ERR_FOREIGN);
    ck_assert_int_eq(deft_tree_fork(NULL, t->root->h, 1, kids), DEFT_ERR_INVAL);
    for (int i = 0; i < 4; i++) {
        ck_assert_uint_eq(kids[i], 7);
    }
}
END_TEST

START_TEST(test_tree_fork_at_splits_anywhere)
{
    static int marks[4];

    for (size_t offset = 0; offset <= 7; offset++) {
        for (size_t n = 0; n <= 2; n++) {
            snode_t *node, *tail = NULL;

            T_OK(s_fork(w, t, t->root, 1));
            node = s_last_kid(t->root);
            T_OK(s_append(w, t, node, 7, NULL));
            T_OK(s_fork(w, t, node, 2));
            T_OK(s_append(w, t, s_kid(node, 1), 2, NULL));
            T_OK(s_set_user(w, t, node, &marks[0]));
            if (offset == 7 && n == 0) {
                continue; /* the next test */
            }
            T_OK(s_fork_at(w, t, node, offset, n, &tail));
            ck_assert_uint_eq(node->n_kids, offset < 7 ? n + 1 : n + 2);
            ck_assert((tail == NULL) == (offset == 7));
            world_verify(w);
            if (tail != NULL) { /* again, inside what was split */
                T_OK(s_fork_at(w, t, tail, tail->len / 2, 1, NULL));
                world_verify(w);
            }
        }
    }
}
END_TEST

START_TEST(test_tree_fork_at_shares_spans)
{
    size_t before;

    T_OK(s_append(w, t, t->root, 100, NULL));
    before = world_info(w).live_tokens;
    for (size_t i = 0; i < 20; i++) {
        T_OK(s_fork_at(w, t, t->root, t->root->len - i % 3, 1, NULL));
        ck_assert_uint_eq(world_info(w).live_tokens, before);
    }
    T_OK(s_prune(w, t, s_kid(t->root, 0)));
    world_verify(w); /* only the tail's slots went */
}
END_TEST

START_TEST(test_tree_fork_at_refuses)
{
    deft_node_t kids[2] = { 7, 7 }, tail = 9;

    plant();
    REFUSED(deft_tree_fork_at(t->tree, t->root->h, 6, 1, kids, &tail), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork_at(t->tree, t->root->h, SIZE_MAX, 1, kids, &tail), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork_at(t->tree, t->root->h, 2, SIZE_MAX, kids, &tail), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork_at(t->tree, t->root->h, 2, SIZE_MAX - 1, kids, &tail), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork_at(t->tree, t->root->h, 2, 1, NULL, &tail), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork_at(t->tree, t2->root->h, 0, 1, kids, &tail), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_fork_at(t->tree, DEFT_NODE_NONE, 0, 1, kids, &tail), DEFT_ERR_STALE);
    ck_assert_int_eq(deft_tree_fork_at(NULL, t->root->h, 2, 1, kids, &tail), DEFT_ERR_INVAL);
    ck_assert(kids[0] == 7 && kids[1] == 7 && tail == 9);

    /* Nothing to take over and no children wanted: it may refuse, it may not change the tree. */
    REFUSED_OR(deft_tree_fork_at(t->tree, t->root->h, 5, 0, NULL, &tail), DEFT_OK, DEFT_ERR_INVAL);
    T_OK(deft_tree_fork_at(t->tree, s_kid(t->root, 1)->h, 1, 0, NULL, NULL)); /* no outputs */
    /* the shadow follows by hand */
    world_drop(w, t);
}
END_TEST

START_TEST(test_tree_fork_at_splits_uncomputed_tokens)
{
    snode_t *tail;

    T_OK(s_append(w, t, t->root, 6, NULL));
    compute_all(w);
    T_OK(s_append(w, t, t->root, 4, NULL));
    T_OK(s_fork_at(w, t, t->root, 8, 1, &tail));
    ck_assert_uint_eq(t->root->computed, 6);
    ck_assert_uint_eq(tail->computed, 0);
    T_OK(s_fork_at(w, t, t->root, 4, 1, &tail));
    ck_assert_uint_eq(tail->computed, 2);
    world_verify(w);
    compute_all(w);
    world_verify(w);
}
END_TEST

START_TEST(test_tree_append_grows_and_keeps_ids)
{
    int32_t ids[300];

    for (size_t i = 0; i < 300; i++) {
        ids[i] = (int32_t)(i * 7919);
    }
    for (size_t i = 0; i < 40; i++) {
        T_OK(s_append(w, t, t->root, 1 + i % 3, ids + i));
        T_OK(s_append(w, t2, t2->root, 2, i % 2 != 0 ? NULL : ids + 100));
    }
    T_OK(s_append(w, t, t->root, 300, ids));
    world_verify(w);
}
END_TEST

START_TEST(test_tree_append_refuses)
{

    plant();
    REFUSED(deft_tree_append(t->tree, s_kid(t->root, 1)->h, 0, NULL), DEFT_ERR_INVAL);
    REFUSED(deft_tree_append(t->tree, t->root->h, 1, NULL), DEFT_ERR_STATE);
    REFUSED(deft_tree_append(t->tree, t2->root->h, 1, NULL), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_append(t->tree, DEFT_NODE_NONE, 1, NULL), DEFT_ERR_STALE);
    ck_assert_int_eq(deft_tree_append(NULL, t->root->h, 1, NULL), DEFT_ERR_INVAL);

    static const size_t absurd[] = { SIZE_MAX, SIZE_MAX - 4, SIZE_MAX / 2, UINT32_MAX,
                                     (size_t)UINT32_MAX + 1 };

    for (size_t i = 0; i < 5; i++) {
        REFUSED_OR(deft_tree_append(t->tree, s_kid(t->root, 1)->h, absurd[i], NULL), DEFT_ERR_INVAL,
                   DEFT_ERR_NOSPACE);
    }
    REFUSED(deft_tree_append(t->tree, s_kid(t->root, 1)->h, world_info(w).pool_tokens, NULL),
            DEFT_ERR_NOSPACE);
}
END_TEST

START_TEST(test_tree_fork_append_is_fork_and_append)
{
    static const int32_t ids[] = { 7, -1, 9 };
    snode_t *kid;

    plant();
    T_OK(s_fork_append(w, t, t->root, 3, ids)); /* a node with children */
    kid = s_last_kid(t->root);
    world_verify(w); /* it is the last child, and has the tokens */
    ck_assert_uint_eq(kid->n_kids, 0);
    ck_assert_uint_eq(kid->len, 3);
    T_OK(s_fork_append(w, t, kid, 2, NULL));
    T_OK(s_fork_append(w, t2, t2->root, 1, ids)); /* below an empty node */
    world_verify(w);
    T_OK(s_append(w, t, s_last_kid(kid), 1, ids + 2)); /* it grows on like any leaf */
    compute_all(w);
    world_verify(w);
}
END_TEST

START_TEST(test_tree_fork_append_refuses)
{
    static const size_t absurd[] = { 0, SIZE_MAX, SIZE_MAX / 2, (size_t)UINT32_MAX + 1,
                                     (size_t)1 << 30 };
    deft_node_t out = 7;
    size_t left;

    plant();
    for (size_t i = 0; i < 5; i++) {
        REFUSED(deft_tree_fork_append(t->tree, t->root->h, absurd[i], NULL, &out), DEFT_ERR_INVAL);
    }
    REFUSED(deft_tree_fork_append(t->tree, t->root->h, 1, NULL, NULL), DEFT_ERR_INVAL);
    REFUSED(deft_tree_fork_append(t->tree, t2->root->h, 1, NULL, &out), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_fork_append(t->tree, DEFT_NODE_NONE, 1, NULL, &out), DEFT_ERR_STALE);
    ck_assert_int_eq(deft_tree_fork_append(NULL, t->root->h, 1, NULL, &out), DEFT_ERR_INVAL);
    left = world_info(w).pool_tokens - world_info(w).live_tokens;
    REFUSED(deft_tree_fork_append(t->tree, t->root->h, left + 1, NULL, &out), DEFT_ERR_NOSPACE);
    ck_assert_uint_eq(out, 7);
    T_OK(s_fork_append(w, t, t->root, left, NULL)); /* to the last slot */
    REFUSED(deft_tree_fork_append(t->tree, t->root->h, 1, NULL, &out), DEFT_ERR_NOSPACE);
    ck_assert_uint_eq(out, 7);
}
END_TEST

/* ---- footprint ---- */

static void measure_below(const snode_t *node, size_t *nodes, size_t *tokens)
{
    ++*nodes;
    *tokens += node->len - node->gone;
    for (size_t i = 0; i < node->n_kids; i++) {
        measure_below(node->kids[i], nodes, tokens);
    }
}

/* What it says is what goes when the node is pruned, or the tree destroyed. */
static void check_footprint(stree_t *of, snode_t *node)
{
    deft_footprint_t fp = DEFT_FOOTPRINT_INIT;
    const deft_info_t before = world_info(w);
    size_t nodes = 0, tokens = 0;

    measure_below(node, &nodes, &tokens);
    T_OK(deft_tree_footprint(of->tree, node->h, &fp));
    T_CHECK(fp.nodes == nodes, "%zu nodes, not %zu", fp.nodes, nodes);
    T_CHECK(fp.tokens == tokens, "%zu tokens, not %zu", fp.tokens, tokens);
    T_CHECK(fp.freed_bytes == fp.freed_tokens * w->info.token_bytes, "%zu tokens are %llu bytes",
            fp.freed_tokens, (unsigned long long)fp.freed_bytes);
    if (node == of->root) {
        world_drop(w, of);
    } else {
        T_OK(s_prune(w, of, node));
    }
    T_CHECK(before.live_tokens - world_info(w).live_tokens == fp.freed_tokens,
            "%zu slots came free, not %zu", before.live_tokens - world_info(w).live_tokens,
            fp.freed_tokens);
    T_CHECK(before.n_nodes - world_info(w).n_nodes == nodes, "nodes");
}

START_TEST(test_tree_footprint_is_what_goes)
{
    play_t play = { .w = w, .max_trees = 5, .max_nodes = 30, .max_len = 9, .id_range = 3 };

    rng_init(&play.rng, t_seed(91));
    plant_deeper();
    for (size_t i = 0; i < t_count(400); i++) {
        for (size_t j = 0; j < 12; j++) {
            play_mutate(&play);
        }
        if (play_uncomputed(w)) {
            compute_all(w);
        }
        stree_t *of = play_tree(&play);
        snode_t *node = play_node(&play, of);

        t_note("footprint %zu", i);
        if (node != of->root || w->n_trees > 1) {
            check_footprint(of, node);
        }
    }
    world_verify(w);
}
END_TEST

START_TEST(test_tree_footprint_counts_shared_slots_with_their_last_owner)
{
    deft_footprint_t fp = DEFT_FOOTPRINT_INIT;
    stree_t *copy = NULL;

    plant();
    compute_all(w);
    T_OK(world_share(w, t, s_kid(t->root, 0), &copy)); /* 5 + 3 */
    T_OK(s_append(w, copy, copy->root, 2, NULL));
    T_OK(deft_tree_footprint(t->tree, s_kid(t->root, 0)->h, &fp));
    ck_assert(fp.nodes == 3 && fp.tokens == 7 && fp.freed_tokens == 4);
    T_OK(deft_tree_footprint(copy->tree, copy->root->h, &fp));
    ck_assert(fp.nodes == 1 && fp.tokens == 10 && fp.freed_tokens == 2);
    T_OK(s_prune(w, t, s_kid(t->root, 0)));
    T_OK(deft_tree_footprint(copy->tree, copy->root->h, &fp));
    ck_assert(fp.tokens == 10 && fp.freed_tokens == 5);
    T_OK(s_evict(w, copy, copy->root, 6)); /* evicted tokens are not owned */
    T_OK(deft_tree_footprint(copy->tree, copy->root->h, &fp));
    ck_assert(fp.tokens == 4 && fp.freed_tokens == 4);
}
END_TEST

START_TEST(test_tree_footprint_refuses)
{
    deft_footprint_t fp, poison;

    plant();
    memset(&fp, 0x66, sizeof(fp));
    fp.struct_size = sizeof(fp);
    poison = fp;
    REFUSED(deft_tree_footprint(t->tree, t2->root->h, &fp), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_footprint(t->tree, DEFT_NODE_NONE, &fp), DEFT_ERR_STALE);
    REFUSED(deft_tree_footprint(t->tree, t->root->h, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_tree_footprint(NULL, t->root->h, &fp), DEFT_ERR_INVAL);
    ck_assert_mem_eq(&fp, &poison, sizeof(fp));
    fp.struct_size = 0;
    REFUSED(deft_tree_footprint(t->tree, t->root->h, &fp), DEFT_ERR_INVAL);
    fp.struct_size = offsetof(deft_footprint_t, freed_tokens); /* an older caller's */
    T_OK(deft_tree_footprint(t->tree, t->root->h, &fp));
    ck_assert(fp.nodes == 5 && fp.tokens == 14 && fp.freed_tokens == poison.freed_tokens);
}
END_TEST

START_TEST(test_tree_prune_releases_shared_spans_once)
{
    stree_t *copy = NULL;
    snode_t *tail;

    T_OK(s_append(w, t, t->root, 64, NULL));
    compute_all(w);
    T_OK(s_fork_at(w, t, t->root, 20, 2, &tail));
    T_OK(world_share(w, t, tail, &copy));
    ck_assert_uint_eq(world_info(w).live_tokens, 64);
    T_OK(s_prune(w, t, tail));
    ck_assert_uint_eq(world_info(w).live_tokens, 64); /* the copy holds them */
    world_verify(w);
    T_OK(s_truncate(w, copy, copy->root, 30));
    ck_assert_uint_eq(world_info(w).live_tokens, 30);
    world_verify(w);
    world_drop(w, copy);
    ck_assert_uint_eq(world_info(w).live_tokens, 20);
    world_verify(w);
}
END_TEST

START_TEST(test_tree_prune_refuses)
{

    plant();
    REFUSED(deft_tree_prune(t->tree, t->root->h), DEFT_ERR_INVAL);
    REFUSED(deft_tree_prune(t->tree, t2->root->h), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_prune(t->tree, DEFT_NODE_NONE), DEFT_ERR_STALE);
    ck_assert_int_eq(deft_tree_prune(NULL, t->root->h), DEFT_ERR_INVAL);
}
END_TEST

/* Prune, commit, truncate of unshared spans and destroy never allocate. */
START_TEST(test_tree_removal_never_allocates)
{
    size_t calls;

    fixture_teardown();
    fixture_quiet = true;
    fixture_setup();
    plant_deeper();
    calls = w->mem.calls;
    w->check = false;
    T_OK(s_truncate(w, t, s_kid(t->root, 1), 1));
    T_OK(s_prune(w, t, s_kid(s_kid(s_kid(t->root, 0), 1), 0)));
    T_OK(s_commit(w, t, s_kid(t->root, 0), DEFT_COMMIT_SUBTREE));
    T_OK(s_commit(w, t, t->root, DEFT_COMMIT_PATH));
    world_drop(w, t);
    ck_assert_uint_eq(w->mem.calls, calls);
}
END_TEST

START_TEST(test_tree_truncate_cuts_back)
{

    plant();
    T_OK(s_truncate(w, t, s_kid(t->root, 1), 2)); /* nothing */
    T_OK(s_truncate(w, t, s_kid(t->root, 1), 1));
    world_verify(w);
    T_OK(s_truncate(w, t, s_kid(t->root, 1), 0));
    T_OK(s_truncate(w, t, s_kid(t->root, 1), 0));
    world_verify(w);
    T_OK(s_append(w, t, s_kid(t->root, 1), 4, NULL));
    compute_all(w);
    T_OK(s_append(w, t, s_kid(t->root, 1), 3, NULL));
    T_OK(s_truncate(w, t, s_kid(t->root, 1), 5));
    ck_assert_uint_eq(s_kid(t->root, 1)->computed, 4);
    T_OK(s_truncate(w, t, s_kid(t->root, 1), 3));
    ck_assert_uint_eq(s_kid(t->root, 1)->computed, 3);
    world_verify(w);
    REFUSED(deft_tree_truncate(t->tree, s_kid(t->root, 1)->h, 4), DEFT_ERR_INVAL);
    REFUSED(deft_tree_truncate(t->tree, s_kid(t->root, 1)->h, SIZE_MAX), DEFT_ERR_INVAL);
    REFUSED(deft_tree_truncate(t->tree, t->root->h, 2), DEFT_ERR_STATE);
    REFUSED(deft_tree_truncate(t->tree, t2->root->h, 0), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_truncate(t->tree, DEFT_NODE_NONE, 0), DEFT_ERR_STALE);
    ck_assert_int_eq(deft_tree_truncate(NULL, t->root->h, 0), DEFT_ERR_INVAL);
}
END_TEST

START_TEST(test_tree_truncate_of_a_shared_span)
{
    stree_t *copy = NULL;

    T_OK(s_append(w, t, t->root, 50, NULL));
    compute_all(w);
    T_OK(world_share(w, t, t->root, &copy));
    T_OK(s_truncate(w, t, t->root, 20));
    world_verify(w);
    ck_assert_uint_eq(world_info(w).live_tokens, 50);
    T_OK(s_append(w, t, t->root, 10, NULL)); /* must not grow into the other's slots */
    T_OK(s_append(w, copy, copy->root, 10, NULL));
    world_verify(w);
    ck_assert_uint_eq(world_info(w).live_tokens, 70);
    T_OK(s_truncate(w, copy, copy->root, 20));
    world_verify(w);
    ck_assert_uint_eq(world_info(w).live_tokens, 30);
}
END_TEST

START_TEST(test_tree_commit_keeps_the_path)
{
    snode_t *d;

    plant_deeper();
    d = s_kid(s_kid(t->root, 0), 1);
    T_OK(s_commit(w, t, d, DEFT_COMMIT_SUBTREE));
    ck_assert_uint_eq(d->n_kids, 3);
    world_verify(w);
    T_OK(s_commit(w, t, d, DEFT_COMMIT_SUBTREE)); /* again: nothing */
    world_verify(w);
    T_OK(s_commit(w, t, d, DEFT_COMMIT_PATH));
    ck_assert_uint_eq(d->n_kids, 0);
    world_verify(w);
    T_OK(s_commit(w, t, t->root, DEFT_COMMIT_PATH));
    world_verify(w);
    ck_assert_uint_eq(world_info(w).live_tokens, 5);
}
END_TEST

START_TEST(test_tree_commit_refuses)
{

    plant();
    for (int bit = 1; bit < 64; bit++) {
        REFUSED(deft_tree_commit(t->tree, s_kid(t->root, 0)->h, UINT64_C(1) << bit),
                DEFT_ERR_INVAL);
    }
    REFUSED(deft_tree_commit(t->tree, t2->root->h, 0), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_commit(t->tree, DEFT_NODE_NONE, 0), DEFT_ERR_STALE);
    ck_assert_int_eq(deft_tree_commit(NULL, t->root->h, 0), DEFT_ERR_INVAL);
}
END_TEST

START_TEST(test_tree_share_holds_the_prefix)
{
    stree_t *copies[3] = { 0 };
    snode_t *d;

    plant_deeper();
    compute_all(w);
    d = s_kid(s_kid(s_kid(t->root, 0), 1), 1);
    for (int i = 0; i < 3; i++) {
        T_OK(world_share(w, i == 2 ? copies[0] : t, i == 2 ? copies[0]->root : d, &copies[i]));
        T_OK(s_append(w, copies[i], copies[i]->root, 2, NULL));
        T_OK(s_truncate(w, copies[i], copies[i]->root, copies[i]->root->len - 2));
        world_verify(w);
    }
    ck_assert_uint_eq(copies[2]->root->len, 5 + 3 + 4 + 2);
    ck_assert_uint_eq(copies[2]->root->computed, 5 + 3 + 4 + 2);
    world_drop(w, t);
    world_verify(w);
    ck_assert_uint_eq(world_info(w).live_tokens, 14);
    T_OK(s_fork_at(w, copies[1], copies[1]->root, 6, 2, NULL));
    T_OK(s_append(w, copies[1], s_kid(copies[1]->root, 1), 3, NULL));
    world_drop(w, copies[0]);
    world_drop(w, copies[2]);
    world_verify(w);
    ck_assert_uint_eq(world_info(w).live_tokens, 17);
    world_drop(w, copies[1]);
    ck_assert_uint_eq(world_info(w).live_tokens, 0);
}
END_TEST

START_TEST(test_tree_share_refuses)
{
    deft_tree_t *tree = NULL;

    plant();
    REFUSED(deft_tree_share(t->tree, t->root->h, &tree), DEFT_ERR_UNCOMPUTED);
    compute_all(w);
    T_OK(s_append(w, t, s_kid(t->root, 1), 1, NULL));
    REFUSED(deft_tree_share(t->tree, s_kid(t->root, 1)->h, &tree), DEFT_ERR_UNCOMPUTED);
    REFUSED(deft_tree_share(t->tree, t2->root->h, &tree), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_share(t->tree, DEFT_NODE_NONE, &tree), DEFT_ERR_STALE);
    REFUSED(deft_tree_share(t->tree, t->root->h, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_tree_share(NULL, t->root->h, &tree), DEFT_ERR_INVAL);
    ck_assert_ptr_null(tree);
}
END_TEST

START_TEST(test_tree_share_of_an_empty_path)
{
    stree_t *copy = NULL;

    T_OK(world_share(w, t, t->root, &copy));
    ck_assert_uint_eq(copy->root->len, 0);
    T_OK(s_append(w, copy, copy->root, 3, NULL));
    world_verify(w);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_tree_create_gives_an_empty_root,
        test_tree_create_refuses_null,
        test_tree_fork_adds_children_after_present_ones,
        test_tree_fork_refuses,
        test_tree_fork_at_splits_anywhere,
        test_tree_fork_at_shares_spans,
        test_tree_fork_at_refuses,
        test_tree_fork_at_splits_uncomputed_tokens,
        test_tree_append_grows_and_keeps_ids,
        test_tree_append_refuses,
        test_tree_fork_append_is_fork_and_append,
        test_tree_fork_append_refuses,
        test_tree_footprint_is_what_goes,
        test_tree_footprint_counts_shared_slots_with_their_last_owner,
        test_tree_footprint_refuses,
        test_tree_prune_releases_shared_spans_once,
        test_tree_prune_refuses,
        test_tree_removal_never_allocates,
        test_tree_truncate_cuts_back,
        test_tree_truncate_of_a_shared_span,
        test_tree_commit_keeps_the_path,
        test_tree_commit_refuses,
        test_tree_share_holds_the_prefix,
        test_tree_share_refuses,
        test_tree_share_of_an_empty_path,
    };

    return suite_run("tree", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
