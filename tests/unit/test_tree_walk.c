/* SPDX-License-Identifier: MIT */
/* Handles, walking, finding: valid, stale, foreign and forged. */
#include "fixture.h"

#include <stdlib.h>
#include <string.h>

START_TEST(test_tree_prune_makes_handles_stale)
{
    snode_t *a = (plant_deeper(), s_kid(t->root, 0));
    const deft_node_t gone[] = { a->h, s_kid(a, 0)->h, s_kid(a, 1)->h, s_kid(s_kid(a, 1), 2)->h };
    deft_node_info_t info, poison;
    int32_t id = 77;
    deft_node_t out = 88;
    deft_tree_t *tree = NULL;

    T_OK(s_prune(w, t, a));
    world_verify(w);
    T_OK(s_fork(w, t, t->root, 10)); /* their places are taken again */
    memset(&info, 0x55, sizeof(info));
    info.struct_size = sizeof(info);
    poison = info;
    for (size_t i = 0; i < 4; i++) {
        REFUSED(deft_tree_prune(t->tree, gone[i]), DEFT_ERR_STALE);
        REFUSED(deft_tree_fork(t->tree, gone[i], 1, &out), DEFT_ERR_STALE);
        REFUSED(deft_tree_fork_at(t->tree, gone[i], 0, 1, &out, NULL), DEFT_ERR_STALE);
        REFUSED(deft_tree_append(t->tree, gone[i], 1, NULL), DEFT_ERR_STALE);
        REFUSED(deft_tree_truncate(t->tree, gone[i], 0), DEFT_ERR_STALE);
        REFUSED(deft_tree_commit(t->tree, gone[i], 0), DEFT_ERR_STALE);
        REFUSED(deft_tree_fork_append(t->tree, gone[i], 1, NULL, &out), DEFT_ERR_STALE);
        REFUSED(deft_tree_compact(t->tree, gone[i], 0, 0, NULL), DEFT_ERR_STALE);
        REFUSED(deft_tree_evict(t->tree, gone[i], 0), DEFT_ERR_STALE);
        REFUSED(deft_tree_share(t->tree, gone[i], &tree), DEFT_ERR_STALE);
        REFUSED(deft_tree_set_user(t->tree, gone[i], &id), DEFT_ERR_STALE);
        REFUSED(deft_tree_node(t->tree, gone[i], &info), DEFT_ERR_STALE);
        REFUSED(deft_tree_path_tokens(t->tree, gone[i], 0, &id), DEFT_ERR_STALE);
        ck_assert_uint_eq(deft_tree_parent(t->tree, gone[i]), DEFT_NODE_NONE);
        ck_assert_uint_eq(deft_tree_first_child(t->tree, gone[i]), DEFT_NODE_NONE);
        ck_assert_uint_eq(deft_tree_next_sibling(t->tree, gone[i]), DEFT_NODE_NONE);
        ck_assert_uint_eq(deft_tree_next(t->tree, gone[i], DEFT_NODE_NONE), DEFT_NODE_NONE);
        ck_assert_uint_eq(deft_tree_next(t->tree, t->root->h, gone[i]), DEFT_NODE_NONE);
        ck_assert_uint_eq(deft_tree_path_len(t->tree, gone[i]), 0);
        ck_assert_ptr_null(deft_tree_user(t->tree, gone[i]));
        ck_assert_ptr_null(deft_ctx_tree(w->ctx, gone[i]));
    }
    ck_assert(id == 77 && out == 88 && tree == NULL);
    ck_assert_mem_eq(&info, &poison, sizeof(info));
}
END_TEST

/* A handle's generation outlives many lives of its place. */
START_TEST(test_tree_handles_are_not_reused_soon)
{
    deft_node_t seen[2000];

    for (size_t i = 0; i < 2000; i++) {
        T_OK(deft_tree_fork(t->tree, t->root->h, 1, &seen[i]));
        for (size_t j = 0; j < i; j++) {
            ck_assert_uint_ne(seen[i], seen[j]);
        }
        T_OK(deft_tree_prune(t->tree, seen[i]));
    }
}
END_TEST

START_TEST(test_tree_refuses_forged_handles)
{
    const size_t n = t_count(20000);
    deft_tree_t *const trees_[] = { t->tree, t2->tree };
    t_bytes_t before = { 0 }, after = { 0 };
    rng_t rng;

    plant_deeper();
    rng_init(&rng, t_seed(99));
    t_snapshot(&before, w->ctx, trees_, 2);
    for (size_t i = 0; i < n; i++) {
        uint64_t h = rng_u64(&rng);
        deft_node_t out;
        deft_status_t status;

        if (i % 4 == 1) {
            h &= 0xf0000000fULL; /* small generation and index */
        } else if (i % 4 == 2) {
            h = t->root->h ^ (UINT64_C(1) << rng_below(&rng, 64));
        } else if (i % 4 == 3) {
            h = (h << 32) | (uint32_t)play_node(&(play_t){ .w = w, .rng = rng }, t)->h;
        }
        status = deft_tree_set_user(t->tree, h, NULL); /* harmless if it hits */
        if (status == DEFT_OK) {
            continue;
        }
        ck_assert_msg(status == DEFT_ERR_STALE || status == DEFT_ERR_FOREIGN, "%#llx: %s",
                      (unsigned long long)h, deft_status_name(status));
        ck_assert_int_eq(deft_tree_fork(t->tree, h, 1, &out), status);
        ck_assert_int_eq(deft_tree_append(t->tree, h, 1, NULL), status);
        ck_assert_int_eq(deft_tree_prune(t->tree, h), status);
        ck_assert_int_eq(deft_tree_commit(t->tree, h, 0), status);
        ck_assert_uint_eq(deft_tree_path_len(t->tree, h), 0);
        ck_assert_uint_eq(deft_tree_next(t->tree, h, DEFT_NODE_NONE), DEFT_NODE_NONE);
    }
    t_snapshot(&after, w->ctx, trees_, 2);
    ck_assert(t_bytes_equal(&before, &after));
    t_bytes_free(&before);
    t_bytes_free(&after);
}
END_TEST

/* Handles of another context, and of a tree that is gone, are refused too. */
START_TEST(test_tree_refuses_handles_of_other_contexts)
{
    deft_node_t kids[40];
    const deft_node_t lost = t2->root->h;
    deft_status_t status;

    T_OK(deft_tree_fork(other_t->tree, other_t->root->h, 40, kids));
    for (size_t i = 10; i < 40; i++) {
        status = deft_tree_prune(t->tree, kids[i]);
        ck_assert_msg(status == DEFT_ERR_STALE || status == DEFT_ERR_FOREIGN, "kid %zu: %s", i,
                      deft_status_name(status));
    }
    T_OK(deft_tree_prune(other_t->tree, kids[0]));
    for (size_t i = 1; i < 40; i++) {
        T_OK(deft_tree_prune(other_t->tree, kids[i]));
    }
    world_drop(w, t2);
    status = deft_tree_append(t->tree, lost, 1, NULL);
    ck_assert(status == DEFT_ERR_STALE || status == DEFT_ERR_FOREIGN);
}
END_TEST

static void expect_find(const int32_t *tokens, size_t n, const snode_t *node, size_t offset,
                        size_t matched)
{
    deft_node_t h = 0;
    size_t o = 99, m = 99;

    T_OK(deft_tree_find(t->tree, tokens, n, &h, &o, &m));
    T_CHECK(m == matched && o == offset && h == node->h,
            "matched %zu at %zu in %#llx, not %zu at "
            "%zu in %#llx",
            m, o, (unsigned long long)h, matched, offset, (unsigned long long)node->h);
    T_OK(deft_tree_find(t->tree, tokens, n, NULL, NULL, NULL));
}

START_TEST(test_tree_find_matches_into_nodes)
{
    static const int32_t q[] = { 1, 2, 3, 4, 5, 11, 12, 13, 31, 32, 33, 34, 99 };
    static const int32_t b[] = { 1, 2, 3, 4, 5, 21, 22, 1 };
    const snode_t *a, *d;

    expect_find(q, 3, t->root, 0, 0); /* an empty tree */
    plant();
    a = s_kid(t->root, 0);
    d = s_kid(a, 1);
    expect_find(q, 0, t->root, 0, 0);
    expect_find(NULL, 0, t->root, 0, 0);
    expect_find(q + 1, 5, t->root, 0, 0);
    expect_find(q, 1, t->root, 1, 1);
    expect_find(q, 5, t->root, 5, 5);
    expect_find(q, 6, a, 1, 6);
    expect_find(q, 8, a, 3, 8);
    expect_find(q, 9, d, 1, 9);
    expect_find(q, 12, d, 4, 12);
    expect_find(q, 13, d, 4, 12);
    expect_find(b, 8, s_kid(t->root, 1), 2, 7);
    ck_assert_int_eq(deft_tree_find(t->tree, NULL, 3, NULL, NULL, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_tree_find(NULL, q, 3, NULL, NULL, NULL), DEFT_ERR_INVAL);
}
END_TEST

START_TEST(test_tree_find_never_matches_tokens_without_ids)
{
    static const int32_t ids[] = { 1, -1, 3 }, none[] = { -1, -1, -1 };

    T_OK(s_append(w, t, t->root, 3, ids));
    expect_find(ids, 3, t->root, 1, 1);
    T_OK(s_fork(w, t, t->root, 1));
    T_OK(s_append(w, t2, t2->root, 3, NULL));
    expect_find(none, 3, t->root, 0, 0);
}
END_TEST

/* Through empty nodes, and where siblings begin alike the longest agreement wins. */
START_TEST(test_tree_find_takes_the_deepest)
{
    static const int32_t q[] = { 1, 2, 3, 4 };
    snode_t *empty, *deep;

    T_OK(s_append(w, t, t->root, 1, q));
    T_OK(s_fork(w, t, t->root, 3));
    T_OK(s_append(w, t, s_kid(t->root, 0), 1, q + 1)); /* 1 2 */
    T_OK(s_append(w, t, s_kid(t->root, 2), 2, q + 1)); /* 1 2 3 */
    empty = s_kid(t->root, 1);
    T_OK(s_fork(w, t, empty, 2));
    deep = s_kid(empty, 1);
    T_OK(s_append(w, t, deep, 3, q + 1)); /* 1 2 3 4, below an empty node */
    expect_find(q, 4, deep, 3, 4);
    T_OK(s_prune(w, t, empty));
    expect_find(q, 4, s_kid(t->root, 1), 2, 3);
}
END_TEST

static size_t find_best(const snode_t *node, const int32_t *q, size_t n, size_t at)
{
    size_t best = at;

    for (size_t i = 0; i < node->len; i++, at++) {
        if (at == n || node->ids[i] != q[at] || q[at] == -1) {
            return at;
        }
        best = at + 1;
    }
    for (size_t i = 0; i < node->n_kids; i++) {
        const size_t got = find_best(node->kids[i], q, n, at);

        best = got > best ? got : best;
    }
    return best;
}

START_TEST(test_tree_find_agrees_with_the_shadow)
{
    play_t play = { .w = w, .max_trees = 1, .max_nodes = 60, .max_len = 4, .id_range = 3 };
    const uint64_t seed = t_seed(5);

    rng_init(&play.rng, seed);
    w->check = false;
    for (size_t i = 0; i < t_count(2000); i++) {
        int32_t q[30], path[30];
        const size_t n = rng_below(&play.rng, 30);
        size_t offset, matched, best;
        deft_node_t h;

        t_note("find %zu seed %#llx", i, (unsigned long long)seed);
        if (i % 50 == 0) {
            world_drop(w, t);
            t = world_tree(w);
            play_build(&play, t, (shape_t)(i / 50 % SHAPE_COUNT), 1 + rng_below(&play.rng, 40));
        }
        for (size_t j = 0; j < n; j++) {
            q[j] = (int32_t)rng_below(&play.rng, 3) - (rng_chance(&play.rng, 0.02) ? 3 : 0);
        }
        best = find_best(t->root, q, n, 0);
        T_OK(deft_tree_find(t->tree, q, n, &h, &offset, &matched));
        T_CHECK(matched == best, "matched %zu, the shadow %zu", matched, best);
        /* What it names really is that prefix. */
        deft_node_info_t info = { .struct_size = sizeof(info) };

        T_OK(deft_tree_node(t->tree, h, &info));
        T_CHECK(info.start + offset == matched && offset <= info.len, "position");
        T_CHECK((matched == 0) == (offset == 0), "the last match is not in the node");
        if (matched != 0) {
            int32_t *all = t_alloc((info.start + info.len) * sizeof(*all));

            T_OK(deft_tree_path_tokens(t->tree, h, info.start + info.len, all));
            memcpy(path, all, matched * sizeof(*path));
            T_CHECK(memcmp(path, q, matched * sizeof(*path)) == 0, "another prefix");
            free(all);
        }
    }
}
END_TEST

START_TEST(test_tree_next_walks_subtrees_in_order)
{
    const snode_t *a, *d;
    deft_node_t at = DEFT_NODE_NONE;

    plant_deeper();
    a = s_kid(t->root, 0);
    d = s_kid(a, 1);
    const deft_node_t want[] = { a->h,           s_kid(a, 0)->h, d->h,          s_kid(d, 0)->h,
                                 s_kid(d, 1)->h, s_kid(d, 2)->h, DEFT_NODE_NONE };

    for (size_t i = 0; i < 7; i++) {
        at = deft_tree_next(t->tree, a->h, at);
        ck_assert_uint_eq(at, want[i]);
    }
    ck_assert_uint_eq(deft_tree_next(t->tree, s_kid(a, 0)->h, DEFT_NODE_NONE), s_kid(a, 0)->h);
    ck_assert_uint_eq(deft_tree_next(t->tree, s_kid(a, 0)->h, s_kid(a, 0)->h), DEFT_NODE_NONE);
    ck_assert_uint_eq(deft_tree_next(t->tree, t2->root->h, DEFT_NODE_NONE), DEFT_NODE_NONE);
    world_verify(w);
}
END_TEST

START_TEST(test_tree_node_fills_up_to_struct_size)
{
    deft_node_info_t info;

    plant();
    memset(&info, 0x33, sizeof(info));
    info.struct_size = offsetof(deft_node_info_t, start);
    T_OK(deft_tree_node(t->tree, t->root->h, &info));
    ck_assert_uint_eq(info.n_children, 2);
    ck_assert_uint_eq(info.start, (size_t)UINT64_C(0x3333333333333333));
    info.struct_size = 0;
    ck_assert_int_eq(deft_tree_node(t->tree, t->root->h, &info), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_tree_node(t->tree, t->root->h, NULL), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_tree_node(NULL, t->root->h, &info), DEFT_ERR_INVAL);
    info.struct_size = sizeof(info);
    ck_assert_int_eq(deft_tree_node(t->tree, t2->root->h, &info), DEFT_ERR_FOREIGN);
}
END_TEST

START_TEST(test_tree_path_tokens_crosses_nodes)
{
    static const int32_t want[] = { 1, 2, 3, 4, 5, 11, 12, 13, 31, 32, 33, 34 };
    int32_t got[13];
    const snode_t *d;

    plant();
    d = s_kid(s_kid(t->root, 0), 1);
    for (size_t n = 0; n <= 12; n++) {
        got[n] = 4444;
        T_OK(deft_tree_path_tokens(t->tree, d->h, n, n != 0 ? got : NULL));
        ck_assert_int_eq(got[n], 4444);
        ck_assert(n == 0 || memcmp(got, want + 12 - n, n * sizeof(*got)) == 0);
    }
    REFUSED(deft_tree_path_tokens(t->tree, d->h, 13, got), DEFT_ERR_INVAL);
    REFUSED(deft_tree_path_tokens(t->tree, d->h, SIZE_MAX, got), DEFT_ERR_INVAL);
    REFUSED(deft_tree_path_tokens(t->tree, d->h, 3, NULL), DEFT_ERR_INVAL);
    REFUSED(deft_tree_path_tokens(t->tree, t2->root->h, 0, got), DEFT_ERR_FOREIGN);
    ck_assert_mem_eq(got, want, 12 * sizeof(*got));
}
END_TEST

START_TEST(test_tree_user_pointers_stay)
{
    static int marks[2];

    plant();
    T_OK(s_set_user(w, t, t->root, &marks[0]));
    T_OK(s_set_user(w, t, s_kid(t->root, 0), &marks[1]));
    world_verify(w);
    T_OK(s_fork(w, t, s_kid(t->root, 0), 100));
    T_OK(s_set_user(w, t, t->root, NULL));
    world_verify(w);
    REFUSED(deft_tree_set_user(t->tree, t2->root->h, marks), DEFT_ERR_FOREIGN);
    ck_assert_ptr_null(deft_tree_user(t2->tree, t->root->h));
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_tree_prune_makes_handles_stale,    test_tree_handles_are_not_reused_soon,
        test_tree_refuses_forged_handles,       test_tree_refuses_handles_of_other_contexts,
        test_tree_find_matches_into_nodes,      test_tree_find_never_matches_tokens_without_ids,
        test_tree_find_takes_the_deepest,       test_tree_find_agrees_with_the_shadow,
        test_tree_next_walks_subtrees_in_order, test_tree_node_fills_up_to_struct_size,
        test_tree_path_tokens_crosses_nodes,    test_tree_user_pointers_stay,
    };

    return suite_run("tree_walk", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
