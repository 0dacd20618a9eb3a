/* SPDX-License-Identifier: MIT */
/* The pool: full to the last slot, in pieces, and dense under small nodes. */
#include "fixture.h"

#include <stdlib.h>
#include <string.h>

START_TEST(test_pool_full_refuses_then_prune_frees)
{
    const size_t pool = world_info(w).pool_tokens;

    T_OK(s_append(w, t, t->root, 10, NULL));
    T_OK(s_fork(w, t, t->root, 3));
    T_OK(s_append(w, t, s_kid(t->root, 0), 100, NULL));
    T_OK(s_append(w, t, s_kid(t->root, 1), pool - 110, NULL)); /* to the last slot */
    ck_assert_uint_eq(world_info(w).live_tokens, pool);
    for (size_t i = 1; i < 4; i++) {
        REFUSED(deft_tree_append(t->tree, s_kid(t->root, 2)->h, i, NULL), DEFT_ERR_NOSPACE);
        REFUSED(deft_tree_append(t2->tree, t2->root->h, i, NULL), DEFT_ERR_NOSPACE);
    }
    T_OK(s_fork(w, t, s_kid(t->root, 2), 2)); /* needs no slots */
    T_OK(s_prune(w, t, s_kid(t->root, 0)));
    ck_assert_uint_eq(world_info(w).live_tokens, pool - 100);
    T_OK(s_append(w, t2, t2->root, 60, NULL));
    T_OK(s_append(w, t2, t2->root, 40, NULL));
    REFUSED(deft_tree_append(t2->tree, t2->root->h, 1, NULL), DEFT_ERR_NOSPACE);
    world_verify(w);
    T_OK(s_truncate(w, t, s_kid(t->root, 0), pool - 110 - 5));
    T_OK(s_append(w, t2, t2->root, 5, NULL));
    REFUSED(deft_tree_append(t2->tree, t2->root->h, 1, NULL), DEFT_ERR_NOSPACE);
    world_verify(w);
}
END_TEST

/* Reservations of growing nodes are given back before the pool counts as full; single slots left
 * between others serve an append of many. */
START_TEST(test_pool_serves_to_the_last_slot_in_pieces)
{
    const size_t pool = world_info(w).pool_tokens;
    size_t freed = 0;

    T_OK(s_fork(w, t, t->root, pool));
    for (size_t i = 0; i < pool; i++) {
        T_OK(s_append(w, t, s_kid(t->root, i), 1, NULL));
        if (i % 97 == 0) {
            T_OK(deft_tree_check(t->tree));
        }
        w->check = false;
    }
    ck_assert_uint_eq(world_info(w).live_tokens, pool);
    for (size_t i = 0; i < t->root->n_kids; i++, freed++) {
        T_OK(s_prune(w, t, s_kid(t->root, i))); /* every second */
    }
    T_OK(s_append(w, t2, t2->root, freed, NULL));
    ck_assert_uint_eq(world_info(w).live_tokens, pool);
    world_verify(w);
    T_OK(deft_tree_check(t->tree));
}
END_TEST

/* One-token nodes of a draft tree pack densely: at most 5% of the pool is lost to rounding. */
START_TEST(test_pool_packs_small_nodes)
{
    const size_t pool = world_info(w).pool_tokens;
    rng_t rng;
    size_t at = 0;

    rng_init(&rng, t_seed(3));
    w->check = false;
    T_OK(s_fork(w, t, t->root, 2 * pool));
    for (;; at++) {
        const size_t n = rng_range(&rng, 1, 3);
        const deft_status_t status = s_append(w, t, s_kid(t->root, at), n, NULL);

        if (status == DEFT_ERR_NOSPACE) {
            break;
        }
        T_OK(status);
    }
    ck_assert_msg(world_info(w).live_tokens >= pool * 95 / 100, "full at %zu of %zu",
                  world_info(w).live_tokens, pool);
    T_OK(deft_tree_check(t->tree));
    world_verify(w);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_pool_full_refuses_then_prune_frees,
        test_pool_serves_to_the_last_slot_in_pieces,
        test_pool_packs_small_nodes,
    };

    return suite_run("pool", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
