/* SPDX-License-Identifier: MIT */
/* deft_tree_evict() and deft_tree_evict_unseen(): what is given back is out of sight for good, the
 * rest is as if it were not missing. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void add_step(world_t *on, uint64_t flags, s_err_t *err)
{
    sstep_t ss;

    world_step(on, NULL, 0, flags, S_SPLIT_CALLS, &ss);
    world_compare(on, &ss, 0, err);
    sstep_free(&ss);
}

/* ---- structure ---- */

START_TEST(test_evict_gives_back_the_first_tokens)
{
    int32_t ids[40], back[43], want[43];
    deft_node_info_t info = DEFT_NODE_INFO_INIT;
    snode_t *kid;

    for (int i = 0; i < 40; i++) {
        ids[i] = 500 + i;
        want[i] = i < 13 ? -1 : ids[i];
    }
    T_OK(s_append(w, t, t->root, 40, ids));
    T_OK(s_fork_append(w, t, t->root, 3, ids));
    kid = s_kid(t->root, 0);
    memcpy(want + 40, ids, 3 * sizeof(*ids));
    compute_all(w);
    T_OK(s_evict(w, t, t->root, 13));
    ck_assert_uint_eq(world_info(w).live_tokens, 30);
    T_OK(deft_tree_node(t->tree, t->root->h, &info));
    ck_assert(info.len == 40 && info.evicted == 13 && info.computed == 40 && info.start == 0);
    ck_assert_uint_eq(deft_tree_path_len(t->tree, kid->h), 43); /* positions stay */
    T_OK(deft_tree_path_tokens(t->tree, kid->h, 43, back));
    ck_assert_mem_eq(back, want, sizeof(want));
    world_verify(w);
    T_OK(s_evict(w, t, t->root, 13)); /* those that went before count: nothing to do */
    T_OK(s_evict(w, t, t->root, 4));
    T_OK(s_evict(w, t, t->root, 0));
    ck_assert_uint_eq(t->root->gone, 13);
    world_verify(w);
    T_OK(s_evict(w, t, t->root, 14));
    world_verify(w);
    T_OK(s_evict(w, t, t->root, 40)); /* all of them */
    ck_assert_uint_eq(world_info(w).live_tokens, 3);
    T_OK(s_evict(w, t, kid, 3)); /* of a path of nothing */
    ck_assert_uint_eq(world_info(w).live_tokens, 0);
    world_verify(w);
    T_OK(s_append(w, t, kid, 5, ids));
    T_OK(s_fork(w, t, kid, 2));
    compute_all(w);
    world_verify(w);
}
END_TEST

START_TEST(test_evict_refuses)
{
    plant();
    compute_all(w);
    T_OK(s_append(w, t, s_kid(t->root, 1), 3, NULL)); /* 2 of 5 are computed */
    REFUSED(deft_tree_evict(t->tree, s_kid(t->root, 1)->h, 3), DEFT_ERR_INVAL);
    REFUSED(deft_tree_evict(t->tree, s_kid(t->root, 1)->h, SIZE_MAX), DEFT_ERR_INVAL);
    REFUSED(deft_tree_evict(t->tree, t->root->h, 6), DEFT_ERR_INVAL);
    REFUSED(deft_tree_evict(t->tree, t2->root->h, 0), DEFT_ERR_FOREIGN);
    REFUSED(deft_tree_evict(t->tree, DEFT_NODE_NONE, 0), DEFT_ERR_STALE);
    ck_assert_int_eq(deft_tree_evict(NULL, t->root->h, 0), DEFT_ERR_INVAL);
    T_OK(s_evict(w, t, s_kid(t->root, 1), 2));
    REFUSED(deft_tree_evict(t->tree, s_kid(t->root, 1)->h, 3), DEFT_ERR_INVAL);
    world_verify(w);
}
END_TEST

START_TEST(test_evicted_tokens_bound_fork_at_and_truncate)
{
    deft_node_t kid = 7, tail = 9;
    snode_t *made = NULL;

    T_OK(s_append(w, t, t->root, 30, NULL));
    compute_all(w);
    T_OK(s_append(w, t, t->root, 5, NULL));
    T_OK(s_evict(w, t, t->root, 10));
    for (size_t at = 0; at < 10; at++) {
        REFUSED(deft_tree_fork_at(t->tree, t->root->h, at, 1, &kid, &tail), DEFT_ERR_INVAL);
        REFUSED(deft_tree_truncate(t->tree, t->root->h, at), DEFT_ERR_INVAL);
    }
    ck_assert(kid == 7 && tail == 9);
    T_OK(s_fork_at(w, t, t->root, 20, 1, &made));
    ck_assert(t->root->gone == 10 && made->gone == 0);
    world_verify(w);
    T_OK(s_fork_at(w, t, t->root, 10, 1, &made)); /* all that it keeps is gone */
    ck_assert(t->root->len == 10 && t->root->gone == 10 && made->len == 10);
    world_verify(w);
    T_OK(s_append(w, t2, t2->root, 8, NULL));
    compute_all(w);
    T_OK(s_evict(w, t2, t2->root, 6));
    T_OK(s_truncate(w, t2, t2->root, 7));
    T_OK(s_truncate(w, t2, t2->root, 6));
    world_verify(w);
    ck_assert_uint_eq(t2->root->computed, 6);
    T_OK(s_append(w, t2, t2->root, 2, NULL));
    compute_all(w);
    world_verify(w);
}
END_TEST

START_TEST(test_evict_and_share)
{
    deft_tree_t *none = NULL;
    stree_t *copy = NULL, *again = NULL;
    snode_t *a, *b;

    T_OK(s_append(w, t, t->root, 20, NULL));
    T_OK(s_fork_append(w, t, t->root, 10, NULL));
    a = s_kid(t->root, 0);
    T_OK(s_fork_append(w, t, a, 5, NULL));
    b = s_kid(a, 0);
    compute_all(w);
    T_OK(s_evict(w, t, a, 4)); /* a hole behind the root's tokens */
    REFUSED(deft_tree_share(t->tree, a->h, &none), DEFT_ERR_STATE);
    REFUSED(deft_tree_share(t->tree, b->h, &none), DEFT_ERR_STATE);
    ck_assert_ptr_null(none);
    T_OK(world_share(w, t, t->root, &copy)); /* above the hole */
    T_OK(s_evict(w, t, t->root, 19));
    REFUSED(deft_tree_share(t->tree, b->h, &none), DEFT_ERR_STATE);
    ck_assert_uint_eq(world_info(w).live_tokens, 20 + 6 + 5); /* the copy owns the root's still */
    T_OK(s_evict(w, t, t->root, 20));
    T_OK(world_share(w, t, b, &again)); /* now they are the first of the path */
    ck_assert(again->root->gone == 24 && again->root->len == 35 && again->root->computed == 35);
    world_verify(w);
    T_OK(s_evict(w, copy, copy->root, 20)); /* the last owner */
    ck_assert_uint_eq(world_info(w).live_tokens, 6 + 5);
    T_OK(s_evict(w, t, a, 10));
    ck_assert_uint_eq(world_info(w).live_tokens, 6 + 5); /* `again` has them */
    world_drop(w, again);
    ck_assert_uint_eq(world_info(w).live_tokens, 5);
    world_verify(w);
}
END_TEST

START_TEST(test_find_does_not_match_evicted_tokens)
{
    static const int32_t q[] = { 1, 2, 3, 4, 5, 11, 12, 13 };
    deft_node_t h;
    size_t offset, matched;

    plant();
    compute_all(w);
    T_OK(s_evict(w, t, s_kid(t->root, 0), 1)); /* a: 11 is gone */
    T_OK(deft_tree_find(t->tree, q, 8, &h, &offset, &matched));
    ck_assert(h == t->root->h && offset == 5 && matched == 5);
    T_OK(s_evict(w, t, t->root, 1));
    T_OK(deft_tree_find(t->tree, q, 8, &h, &offset, &matched));
    ck_assert(h == t->root->h && offset == 0 && matched == 0);
    T_OK(deft_tree_find(t->tree, q + 1, 7, &h, &offset, &matched));
    ck_assert(h == t->root->h && offset == 0 && matched == 0);
}
END_TEST

START_TEST(test_evict_never_allocates)
{
    size_t calls, freed;
    deft_config_t cfg = t_config(1000);

    unsetenv("DEFT_DEBUG_CHECK");
    cfg.window = 8;
    world_free(w);
    w = world_new(&cfg, 1, false);
    t = world_tree(w);
    t2 = world_tree(w);
    plant_deeper();
    for (size_t i = 0; i < 100; i++) {
        T_OK(s_append(w, t, s_kid(t->root, 1), 1, NULL));
        T_OK(s_append(w, t2, t2->root, 1, NULL));
    }
    compute_all(w);
    calls = w->mem.calls;
    T_OK(s_evict(w, t, t->root, 3));
    T_OK(s_evict(w, t2, t2->root, 50));
    T_OK(s_evict_unseen(w, t, &freed));
    T_OK(s_evict_unseen(w, t2, NULL));
    ck_assert_uint_gt(freed, 0);
    ck_assert_uint_eq(w->mem.calls, calls);
}
END_TEST

/* ---- attention ---- */

typedef void (*evict_fn)(world_t *on, stree_t *st, rng_t *rng, uint64_t flags);

static void on_lanes(evict_fn fn, uint32_t window)
{
    world_t *was = w;
    rng_t rng;

    unsetenv("DEFT_DEBUG_CHECK");
    rng_init(&rng, t_seed(17));
    for (int type = DEFT_F32; type <= DEFT_BF16; type++) {
        lane_t lanes[LANES_MAX];
        const size_t n = problem_lanes((deft_dtype_t)type, lanes);

        for (size_t i = 0; i < n * 5; i++) {
            deft_config_t cfg = t_config(700);
            const lane_t lane = lanes[i / 5];

            if (t_scale() < 0.1 && i % 4 != (size_t)type % 4) {
                continue;
            }
            t_note("evict: %s, isa %s, split %s, window %u", t_type_name((deft_dtype_t)type),
                   t_isa_name(lane.isa), t_split_name(problem_splits[i % 5]), window);
            cfg.device = lane.device;
            cfg.isa = lane.isa;
            cfg.kv_type = (deft_dtype_t)type;
            cfg.split = problem_splits[i % 5];
            cfg.chunk_tokens = 32;
            cfg.n_layers = 2;
            cfg.window = window;
            cfg.n_threads = 1 + (uint32_t)i % 2;
            w = world_new(&cfg, 100 + i, true);
            fn(w, world_tree(w), &rng, i % 3 == 2 ? DEFT_STEP_INVARIANT : 0);
            world_verify(w);
            world_free(w);
        }
    }
    w = was;
}

/* Holes at the root and further down; decode, prefill and forks beside and below them. */
static void evict_and_decode(world_t *on, stree_t *st, rng_t *rng, uint64_t flags)
{
    s_err_t err = { 0 };
    snode_t *a, *b, *c;

    T_OK(s_append(on, st, st->root, 60 + rng_below(rng, 60), NULL));
    T_OK(s_fork(on, st, st->root, 2));
    a = s_kid(st->root, 0);
    b = s_kid(st->root, 1);
    T_OK(s_append(on, st, a, 30, NULL));
    T_OK(s_append(on, st, b, 3, NULL));
    add_step(on, flags, &err);
    T_OK(s_evict(on, st, st->root, 1 + rng_below(rng, 50)));
    T_OK(s_append(on, st, a, 1, NULL));
    T_OK(s_append(on, st, b, 9, NULL));
    add_step(on, flags, &err);
    T_OK(s_evict(on, st, a, 1 + rng_below(rng, 30)));
    T_OK(s_fork(on, st, a, 2));
    c = s_kid(a, 1);
    for (size_t i = 0; i < 6; i++) {
        T_OK(s_append(on, st, s_kid(a, 0), 1, NULL));
        T_OK(s_append(on, st, c, 1 + (i == 0) * 20, NULL));
        T_OK(s_append(on, st, b, 1, NULL));
        add_step(on, flags, &err);
        if (i == 3) {
            T_OK(s_evict(on, st, st->root, st->root->len)); /* nothing is left of it */
        }
    }
    T_OK(s_evict(on, st, b, b->len)); /* a row that sees itself alone */
    T_OK(s_append(on, st, b, 1, NULL));
    add_step(on, flags, &err);
    T_CHECK(s_err_norm(&err) < s_tolerance(&on->info), "error %g", s_err_norm(&err));
}

START_TEST(test_evicted_tokens_are_not_seen)
{
    on_lanes(evict_and_decode, 0);
    on_lanes(evict_and_decode, 40);
}
END_TEST

/* A conversation of many times the pool: the oldest tokens make room. */
START_TEST(test_evict_lets_a_text_outgrow_the_pool)
{
    deft_config_t cfg = t_config(96);
    world_t *was = w;
    s_err_t err = { 0 };
    stree_t *st;

    cfg.n_layers = 2;
    w = world_new(&cfg, 4, true);
    st = world_tree(w);
    for (size_t i = 0; i < t_count(600); i++) {
        const size_t n = 1 + i % 3;
        deft_status_t status = s_append(w, st, st->root, n, NULL);

        if (status == DEFT_ERR_NOSPACE) {
            T_OK(s_evict(w, st, st->root, st->root->gone + 20));
            status = s_append(w, st, st->root, n, NULL);
        }
        T_OK(status);
        add_step(w, 0, &err);
        ck_assert_uint_eq(deft_tree_path_len(st->tree, st->root->h), st->root->len);
    }
    T_CHECK(t_scale() < 1 || st->root->len > 10 * 96, "%zu tokens", st->root->len);
    T_CHECK(s_err_norm(&err) < s_tolerance(&w->info), "error %g", s_err_norm(&err));
    world_verify(w);
    T_OK(deft_tree_check(st->tree));
    world_free(w);
    w = was;
}
END_TEST

/* ---- windows ---- */

START_TEST(test_evict_unseen_without_windows_frees_nothing)
{
    static const uint32_t windows[] = { 4, 0 };
    deft_config_t cfg = t_config(200);
    world_t *was = w;
    size_t freed = 7;

    plant();
    compute_all(w);
    REFUSED(deft_tree_evict_unseen(t->tree, &freed), DEFT_OK);
    ck_assert_uint_eq(freed, 0);
    ck_assert_int_eq(deft_tree_evict_unseen(NULL, &freed), DEFT_ERR_INVAL);
    cfg.n_layers = 2;
    cfg.windows = windows; /* a layer that sees everything */
    w = world_new(&cfg, 1, false);
    stree_t *st = world_tree(w);
    T_OK(s_append(w, st, st->root, 50, NULL));
    compute_all(w);
    freed = 7;
    T_OK(s_evict_unseen(w, st, &freed));
    ck_assert_uint_eq(freed, 0);
    ck_assert_uint_eq(st->root->gone, 0);
    world_verify(w);
    world_free(w);
    w = was;
}
END_TEST

START_TEST(test_evict_unseen_frees_what_is_out_of_all_windows)
{
    static const uint32_t windows[] = { 4, 16 };
    deft_config_t cfg = t_config(300);
    world_t *was = w;
    stree_t *st, *copy = NULL;
    snode_t *kid;
    size_t freed = 7;

    cfg.n_layers = 2;
    cfg.windows = windows;
    w = world_new(&cfg, 1, false);
    st = world_tree(w);
    T_OK(s_append(w, st, st->root, 50, NULL));
    T_OK(s_fork_append(w, st, st->root, 20, NULL));
    kid = s_kid(st->root, 0);
    compute_all(w);
    T_OK(s_append(w, st, kid, 30, NULL)); /* not computed: they will see 15 before them */
    T_OK(s_evict_unseen(w, st, &freed));
    ck_assert_uint_eq(st->root->gone, 35); /* what a new child of the root would see stays */
    ck_assert_uint_eq(kid->gone, 5);
    ck_assert_uint_eq(freed, 40);
    world_verify(w);
    T_OK(s_evict_unseen(w, st, &freed));
    ck_assert_uint_eq(freed, 0);
    compute_all(w);
    T_OK(s_evict_unseen(w, st, NULL));
    ck_assert_uint_eq(kid->gone, 35);
    world_verify(w);
    T_OK(world_share(w, st, st->root, &copy)); /* shared slots do not come free */
    T_OK(s_append(w, st, kid, 10, NULL));
    compute_all(w);
    T_OK(s_evict_unseen(w, st, &freed));
    ck_assert_uint_eq(freed, 10);
    T_OK(s_evict_unseen(w, copy, &freed));
    ck_assert_uint_eq(freed, 0);
    world_verify(w);
    world_free(w);
    w = was;
}
END_TEST

typedef struct bits {
    uint64_t hash;
    size_t steps, freed;
    bool evicts;
    play_t play;
} bits_t;

/* The same history with and without deft_tree_evict_unseen(); what is grown is grown at ends
 * alone. */
static void windowed_history(bits_t *b, deft_config_t cfg, uint64_t seed)
{
    stree_t *st;
    size_t n;

    w = world_new(&cfg, seed, true);
    b->play = (play_t){ .w = w, .max_trees = 1, .max_nodes = 40, .max_len = 60, .id_range = 4 };
    rng_init(&b->play.rng, seed);
    st = world_tree(w);
    play_build(&b->play, st, (shape_t)(seed % SHAPE_COUNT), 1 + seed % 9);
    for (size_t i = 0; i < 25; i++) {
        s_err_t err = { 0 };
        sstep_t ss;

        if (play_uncomputed(w)) {
            world_step(w, NULL, 0, 0, S_SPLIT_CALLS, &ss);
            b->hash = t_hash(b->hash, ss.out, w->L * ss.o.n * sizeof(*ss.out));
            world_compare(w, &ss, 0, &err);
            T_CHECK(s_err_norm(&err) < s_tolerance(&w->info), "error %g", s_err_norm(&err));
            sstep_free(&ss);
            b->steps++;
        }
        if (b->evicts) {
            T_OK(s_evict_unseen(w, st, &n));
            b->freed += n;
        }
        if (i % 5 == 4 && w->trees[0]->root->n_kids < 6) {
            snode_t *node = play_node(&b->play, st);

            T_OK(s_fork(w, st, node, 1));
            play_append(&b->play, st, s_last_kid(node), 1 + i);
        }
        play_append(&b->play, st, play_leaf(&b->play, st), rng_range(&b->play.rng, 1, 9));
    }
    world_verify(w);
    world_free(w);
}

START_TEST(test_evict_unseen_changes_no_bit)
{
    world_t *was = w;
    const uint64_t seed = t_seed(23);
    size_t freed = 0;

    unsetenv("DEFT_DEBUG_CHECK");
    for (size_t i = 0; i < t_count(60); i++) {
        bits_t with = { .evicts = true }, without = { .evicts = false };
        deft_config_t cfg = t_config(3000);
        const uint32_t windows[] = { 1 + (uint32_t)i % 7, 1 + (uint32_t)(i * 13 % 90) };

        t_note("unseen %zu seed %#llx", i, (unsigned long long)seed);
        cfg.isa = DEFT_ISA_SCALAR;
        cfg.n_layers = 2;
        cfg.windows = windows;
        cfg.split = problem_splits[i % 5];
        cfg.chunk_tokens =
            4096; /* chunks begin elsewhere when something in front of them is gone */
        cfg.kv_type = (deft_dtype_t)(1 + i % 3);
        windowed_history(&without, cfg, t_mix(seed, i) % 10000);
        windowed_history(&with, cfg, t_mix(seed, i) % 10000);
        T_CHECK(with.steps == without.steps && with.hash == without.hash,
                "other bits, split %s, windows %u %u", t_split_name(cfg.split), windows[0],
                windows[1]);
        freed += with.freed;
    }
    T_CHECK(freed > 0, "nothing was ever evicted");
    printf("%zu slots came free\n", freed);
    fflush(stdout);
    w = was;
}
END_TEST

/* From further up a node the first rows see what is left of their window, and no more. */
static void step_back(world_t *on, stree_t *st, rng_t *rng, uint64_t flags)
{
    s_err_t err = { 0 };
    size_t freed;

    T_OK(s_append(on, st, st->root, 100, NULL));
    add_step(on, flags, &err);
    T_OK(s_evict_unseen(on, st, &freed));
    ck_assert_uint_eq(freed, 61);
    T_OK(s_fork_at(on, st, st->root, 70 + rng_below(rng, 20), 1, NULL));
    T_OK(s_append(on, st, s_kid(st->root, 1), 15, NULL));
    add_step(on, flags, &err);
    T_OK(s_truncate(on, st, s_kid(st->root, 1), 4));
    T_OK(s_append(on, st, s_kid(st->root, 1), 3, NULL));
    add_step(on, flags, &err);
    T_CHECK(s_err_norm(&err) < s_tolerance(&on->info), "error %g", s_err_norm(&err));
}

START_TEST(test_evict_unseen_then_further_up)
{
    on_lanes(step_back, 40);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_evict_gives_back_the_first_tokens,
        test_evict_refuses,
        test_evicted_tokens_bound_fork_at_and_truncate,
        test_evict_and_share,
        test_find_does_not_match_evicted_tokens,
        test_evict_never_allocates,
        test_evicted_tokens_are_not_seen,
        test_evict_lets_a_text_outgrow_the_pool,
        test_evict_unseen_without_windows_frees_nothing,
        test_evict_unseen_frees_what_is_out_of_all_windows,
        test_evict_unseen_changes_no_bit,
        test_evict_unseen_then_further_up,
    };

    return suite_run("evict", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
