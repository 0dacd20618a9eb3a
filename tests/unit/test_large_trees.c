/* SPDX-License-Identifier: MIT */
/* Large trees, deep trees, and long random histories that the shadow follows. */
#include "fixture.h"

#include <stdlib.h>
#include <string.h>

START_TEST(test_tree_random_operations_follow_the_shadow)
{
    const uint64_t seed = t_seed(11);

    for (size_t i = 0; i < t_count(40); i++) {
        deft_config_t cfg = t_config(300);
        world_t *rw = world_new(&cfg, t_mix(seed, i), false);
        play_t play = { .w = rw, .max_trees = 4, .max_nodes = 40, .max_len = 30, .id_range = 4 };

        rw->check = true;
        rng_init(&play.rng, t_mix(seed, i));
        play_build(&play, world_tree(rw), (shape_t)(i % SHAPE_COUNT), 10);
        for (size_t j = 0; j < 150; j++) {
            t_note("random operations %zu.%zu seed %#llx", i, j, (unsigned long long)seed);
            if (j % 9 == 0 && play_uncomputed(rw)) {
                compute_all(rw);
            }
            play_mutate(&play);
            world_verify(rw);
        }
        world_free(rw);
    }
}
END_TEST

START_TEST(test_tree_of_a_million_nodes)
{
    const size_t n = t_count(1000000);
    deft_config_t cfg = t_config(n);
    deft_node_t *all = t_alloc((n + 1) * sizeof(*all));
    deft_tree_stats_t stats = { .struct_size = sizeof(stats) };
    world_t *mw;
    stree_t *mt;
    size_t made = 1, walked = 0;
    rng_t rng;

    t_note("a million nodes");
    cfg.n_q_heads = 1;
    cfg.kv_type = DEFT_F16;
    mw = world_new(&cfg, 1, false);
    mt = world_tree(mw);
    rng_init(&rng, 8);
    all[0] = mt->root->h;
    while (made < n) {
        const size_t kids = made + 3 <= n ? 3 : n - made;
        const deft_node_t parent =
            all[rng_below(&rng, made < 50 ? made : 50) + (made < 50 ? 0 : made - 50)];

        T_OK(deft_tree_fork(mt->tree, parent, kids, all + made));
        made += kids;
    }
    for (deft_node_t at = deft_tree_next(mt->tree, all[0], DEFT_NODE_NONE); at != DEFT_NODE_NONE;
         at = deft_tree_next(mt->tree, all[0], at)) {
        walked++;
    }
    ck_assert_uint_eq(walked, n);
    for (size_t i = 0; i < n; i++) {
        if (deft_tree_first_child(mt->tree, all[i]) == DEFT_NODE_NONE) {
            T_OK(deft_tree_append(mt->tree, all[i], 1, NULL));
        }
    }
    T_OK(deft_tree_stats(mt->tree, &stats));
    ck_assert_uint_eq(stats.n_nodes, n);
    ck_assert_uint_eq(stats.tokens, stats.n_leaves);
    T_OK(deft_tree_check(mt->tree));
    for (size_t i = n - 1; i > n / 2; i--) {
        const deft_status_t status = deft_tree_prune(mt->tree, all[i]);

        ck_assert(status == DEFT_OK || status == DEFT_ERR_STALE);
    }
    T_OK(deft_tree_check(mt->tree));
    T_OK(deft_tree_commit(mt->tree, all[n / 2], DEFT_COMMIT_PATH));
    T_OK(deft_tree_check(mt->tree));
    T_OK(deft_tree_commit(mt->tree, all[0], DEFT_COMMIT_PATH));
    ck_assert_uint_eq(world_info(mw).live_tokens, 0);
    ck_assert_uint_eq(world_info(mw).n_nodes, 1);
    world_free(mw);
    free(all);
}
END_TEST

/* A chain is as deep as it likes: nothing recurses over it. */
START_TEST(test_tree_of_a_very_deep_chain)
{
    const size_t n = t_count(200000);
    deft_config_t cfg = t_config(n);
    deft_tree_stats_t stats = { .struct_size = sizeof(stats) };
    deft_node_t at, kid;
    world_t *mw = world_new(&cfg, 1, false);
    deft_tree_t *tree = world_tree(mw)->tree;

    at = deft_tree_root(tree);
    for (size_t i = 1; i < n; i++) {
        T_OK(deft_tree_append(tree, at, 1, NULL));
        T_OK(deft_tree_fork(tree, at, 1, &kid));
        at = kid;
    }
    ck_assert_uint_eq(deft_tree_path_len(tree, at), n - 1);
    T_OK(deft_tree_stats(tree, &stats));
    ck_assert_uint_eq(stats.max_depth, n);
    T_OK(deft_tree_check(tree));
    T_OK(deft_tree_compact(tree, deft_tree_root(tree), 0, DEFT_COMPACT_CHAINS, NULL));
    ck_assert_uint_eq(deft_tree_parent(tree, at), deft_tree_root(tree));
    ck_assert_uint_eq(world_info(mw).n_nodes, n > 2 ? 2 : n);
    ck_assert_uint_eq(deft_tree_path_len(tree, at), n - 1);
    T_OK(deft_tree_check(tree));
    world_free(mw);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_tree_random_operations_follow_the_shadow,
        test_tree_of_a_million_nodes,
        test_tree_of_a_very_deep_chain,
    };

    return suite_run("large_trees", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
