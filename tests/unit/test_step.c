/* SPDX-License-Identifier: MIT */
/* The step as a machine of states: what may be called when, which rows there are and in what order,
 * what the statistics count, and that nothing is allocated once warm. */
#include "fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float zeros[1000 * 64 * 2], outputs[1000 * 64 * 2];

static const deft_step_t none = DEFT_STEP_INIT;

static bool is_none(deft_step_t step)
{
    return step.ctx == NULL && step.number == 0;
}

static deft_step_t begin(void)
{
    deft_step_t step = DEFT_STEP_INIT;

    T_OK(deft_step_begin(w->ctx, NULL, 0, 0, &step));
    return step;
}

/* ---- states ---- */

START_TEST(test_step_begin_with_nothing_to_compute)
{
    deft_step_t step = DEFT_STEP_INIT;
    deft_rows_t row = { t->tree, t->root->h, 0 };

    REFUSED(deft_step_begin(w->ctx, NULL, 0, 0, &step), DEFT_ERR_EMPTY);
    REFUSED(deft_step_begin(w->ctx, &row, 1, 0, &step), DEFT_ERR_EMPTY);
    T_OK(s_append(w, t, t->root, 3, NULL));
    compute_all(w);
    REFUSED(deft_step_begin(w->ctx, NULL, 0, 0, &step), DEFT_ERR_EMPTY);
    REFUSED(deft_step_begin(w->ctx, &row, 1, 0, &step), DEFT_ERR_EMPTY);
    ck_assert(is_none(step));
}
END_TEST

START_TEST(test_step_begin_refuses_bad_arguments)
{
    deft_step_t step = DEFT_STEP_INIT;
    deft_rows_t rows[3] = { { 0 } };

    plant();
    rows[0] = (deft_rows_t){ t->tree, t->root->h, 0 };
    rows[1] = (deft_rows_t){ t->tree, s_kid(t->root, 1)->h, 0 };
    rows[2] = rows[0];
    ck_assert_int_eq(deft_step_begin(NULL, NULL, 0, 0, &step), DEFT_ERR_INVAL);
    REFUSED(deft_step_begin(w->ctx, NULL, 0, 0, NULL), DEFT_ERR_INVAL);
    REFUSED(deft_step_begin(w->ctx, NULL, 2, 0, &step), DEFT_ERR_INVAL);
    for (int bit = 1; bit < 64; bit++) {
        REFUSED(deft_step_begin(w->ctx, NULL, 0, UINT64_C(1) << bit, &step), DEFT_ERR_INVAL);
    }
    REFUSED(deft_step_begin(w->ctx, rows, 3, 0, &step), DEFT_ERR_INVAL); /* the root twice */
    rows[2] = (deft_rows_t){ other_t->tree, other_t->root->h, 0 };
    REFUSED(deft_step_begin(w->ctx, rows, 3, 0, &step), DEFT_ERR_INVAL); /* of another context */
    rows[2] = (deft_rows_t){ NULL, t->root->h, 0 };
    REFUSED(deft_step_begin(w->ctx, rows, 3, 0, &step), DEFT_ERR_INVAL);
    rows[2] = (deft_rows_t){ t->tree, t2->root->h, 0 };
    REFUSED(deft_step_begin(w->ctx, rows, 3, 0, &step), DEFT_ERR_FOREIGN);
    rows[2] = (deft_rows_t){ t->tree, DEFT_NODE_NONE, 0 };
    REFUSED(deft_step_begin(w->ctx, rows, 3, 0, &step), DEFT_ERR_STALE);
    ck_assert(is_none(step));
    /* and none of that left a step or a mark behind */
    T_OK(deft_step_begin(w->ctx, rows, 2, 0, &step));
    ck_assert_uint_eq(deft_step_tokens(step), 7);
    deft_step_abandon(step);
}
END_TEST

/* More rows than are left to compute: refused, and nothing happens. */
START_TEST(test_step_begin_refuses_too_many_rows)
{
    deft_step_t step = DEFT_STEP_INIT;
    deft_rows_t row;

    plant();
    row = (deft_rows_t){ t->tree, t->root->h, 6 };
    REFUSED(deft_step_begin(w->ctx, &row, 1, 0, &step), DEFT_ERR_STATE);
    row.n = SIZE_MAX;
    REFUSED(deft_step_begin(w->ctx, &row, 1, 0, &step), DEFT_ERR_STATE);
    row.n = 5;
    T_OK(deft_step_begin(w->ctx, &row, 1, 0, &step));
    deft_step_abandon(step);
}
END_TEST

START_TEST(test_step_begin_refuses_uncomputed_ancestors)
{
    deft_step_t step = DEFT_STEP_INIT;
    deft_rows_t rows[3];
    const snode_t *a;

    plant();
    a = s_kid(t->root, 0);
    rows[0] = (deft_rows_t){ t->tree, s_kid(a, 1)->h, 2 };
    rows[1] = (deft_rows_t){ t->tree, t->root->h, 5 };
    rows[2] = (deft_rows_t){ t->tree, a->h, 2 }; /* one token short */
    REFUSED(deft_step_begin(w->ctx, rows, 1, 0, &step), DEFT_ERR_UNCOMPUTED);
    REFUSED(deft_step_begin(w->ctx, rows, 2, 0, &step), DEFT_ERR_UNCOMPUTED);
    REFUSED(deft_step_begin(w->ctx, rows, 3, 0, &step), DEFT_ERR_UNCOMPUTED);
    REFUSED(deft_step_begin(w->ctx, rows + 2, 1, 0, &step), DEFT_ERR_UNCOMPUTED);
    rows[2].n = 3;
    rows[1].n = 4;
    REFUSED(deft_step_begin(w->ctx, rows, 3, 0, &step), DEFT_ERR_UNCOMPUTED);
    rows[1].n = 0;
    T_OK(deft_step_begin(w->ctx, rows, 3, 0, &step)); /* in any order */
    ck_assert_uint_eq(deft_step_tokens(step), 10);
    deft_step_abandon(step);
}
END_TEST

START_TEST(test_step_open_refuses_mutators)
{
    deft_step_t step, second = DEFT_STEP_INIT;
    deft_node_t out = 5, tail = 6;
    deft_tree_t *tree = NULL;
    const snode_t *a;
    static int mark;
    size_t n = 77;

    plant();
    compute_all(w);
    T_OK(s_append(w, t, s_kid(t->root, 1), 2, NULL));
    a = s_kid(t->root, 0);
    step = begin();
    for (int i = 0; i < 2; i++) { /* the other tree as well: the step is the context's */
        stree_t *on = i == 0 ? t : t2;
        const deft_node_t node = i == 0 ? a->h : t2->root->h;

        REFUSED(deft_tree_fork(on->tree, node, 1, &out), DEFT_ERR_BUSY);
        REFUSED(deft_tree_fork_at(on->tree, node, 0, 1, &out, &tail), DEFT_ERR_BUSY);
        REFUSED(deft_tree_append(on->tree, i == 0 ? s_kid(a, 0)->h : node, 1, NULL), DEFT_ERR_BUSY);
        REFUSED(deft_tree_prune(on->tree, i == 0 ? a->h : node),
                i == 0 ? DEFT_ERR_BUSY : deft_tree_prune(on->tree, node));
        REFUSED(deft_tree_truncate(on->tree, i == 0 ? s_kid(a, 1)->h : node, 0), DEFT_ERR_BUSY);
        REFUSED(deft_tree_commit(on->tree, node, 0), DEFT_ERR_BUSY);
        REFUSED(deft_tree_fork_append(on->tree, node, 1, NULL, &out), DEFT_ERR_BUSY);
        REFUSED(deft_tree_compact(on->tree, node, 0, DEFT_COMPACT_CHAINS, &n), DEFT_ERR_BUSY);
        REFUSED(deft_tree_evict(on->tree, node, 0), DEFT_ERR_BUSY);
        REFUSED(deft_tree_evict_unseen(on->tree, &n), DEFT_ERR_BUSY);
        REFUSED(deft_tree_share(on->tree, node, &tree), DEFT_ERR_BUSY);
    }
    REFUSED(deft_tree_create(w->ctx, &tree), DEFT_ERR_BUSY);
    REFUSED(deft_step_begin(w->ctx, NULL, 0, 0, &second), DEFT_ERR_BUSY);
    REFUSED(deft_ctx_set_split(w->ctx, DEFT_SPLIT_NODE), DEFT_ERR_BUSY);
    REFUSED(deft_ctx_trim(w->ctx), DEFT_ERR_BUSY);
    ck_assert(out == 5 && tail == 6 && n == 77 && tree == NULL && is_none(second));
    /* reading is free, and so is a user pointer */
    T_OK(s_set_user(w, t, t->root, &mark));
    T_OK(deft_tree_find(t->tree, NULL, 0, NULL, NULL, &n));
    world_verify(w);
    deft_step_abandon(step);
    world_verify(w);
    T_OK(s_fork(w, t, t->root, 1));
}
END_TEST

START_TEST(test_step_abandon_leaves_all_as_it_was)
{
    deft_tree_t *const both[] = { t->tree, t2->tree };
    t_bytes_t before = { 0 }, after = { 0 };

    plant();
    compute_all(w);
    T_OK(s_append(w, t, s_kid(t->root, 1), 2, NULL));
    T_OK(s_append(w, t2, t2->root, 9, NULL));
    t_snapshot(&before, w->ctx, both, 2);
    for (int i = 0; i < 5; i++) {
        deft_step_t step = begin();

        if (i > 0) {
            T_OK(deft_step_write(step, 0, zeros, zeros));
        }
        if (i > 1) {
            T_OK(deft_step_attend(step, 0, zeros, outputs));
        }
        deft_step_abandon(step);
        after.n = 0;
        t_snapshot(&after, w->ctx, both, 2);
        ck_assert(t_bytes_equal(&before, &after));
    }
    t_bytes_free(&before);
    t_bytes_free(&after);
    compute_all(w);
    world_verify(w);
}
END_TEST

/* ---- handles ---- */

/* The handle names no open step. */
static void expect_stale(deft_step_t step)
{
    deft_step_stats_t stats, poison;

    memset(&stats, 0x44, sizeof(stats));
    stats.struct_size = sizeof(stats);
    poison = stats;
    REFUSED(deft_step_write(step, 0, zeros, zeros), DEFT_ERR_STALE);
    REFUSED(deft_step_attend(step, 0, zeros, outputs), DEFT_ERR_STALE);
    REFUSED(deft_step_end(step), DEFT_ERR_STALE);
    REFUSED(deft_step_stats(step, &stats), DEFT_ERR_STALE);
    ck_assert_mem_eq(&stats, &poison, sizeof(stats));
    ck_assert_uint_eq(deft_step_tokens(step), 0);
    ck_assert_ptr_null(deft_step_positions(step));
    ck_assert_ptr_null(deft_step_ids(step));
    ck_assert_ptr_null(deft_step_nodes(step));
    deft_step_abandon(step);
    deft_step_cancel(step);
}

/* Whatever way a step has ended its handle is refused, and never taken for the next one. */
START_TEST(test_step_handles_of_ended_steps_are_refused)
{
    deft_step_t old[5] = { DEFT_STEP_INIT }, step;

    plant();
    for (int how = 0; how < 5; how++) {
        T_OK(s_append(w, t2, t2->root, 2, NULL));
        old[how] = begin();
        ck_assert_ptr_eq(old[how].ctx, w->ctx);
        ck_assert_uint_eq(old[how].number,
                          1 + (uint64_t)how + (how > 3)); /* they are counted from 1 */
        if (how == 0) {
            T_OK(deft_step_write(old[0], 0, zeros, zeros));
            deft_step_abandon(old[0]);
        } else if (how == 1) {
            deft_step_abandon(old[1]);
        } else if (how == 2) {
            deft_step_cancel(old[2]);
            deft_step_abandon(old[2]);
        } else if (how == 3) {
            deft_step_abandon(old[3]);
            compute_all(w); /* the fifth step */
        } else {
            world_drop(w, t2); /* abandons it */
            t2 = t;
        }
        for (int i = 0; i <= how; i++) {
            expect_stale(old[i]);
        }
    }
    T_OK(s_append(w, t, s_kid(t->root, 1), 2, NULL));
    step = begin();
    for (int i = 0; i < 5; i++) {
        expect_stale(old[i]);
    }
    expect_stale((deft_step_t){ w->ctx, step.number + 1 }); /* that was never given out */
    expect_stale((deft_step_t){ w->ctx, UINT64_MAX });
    ck_assert_uint_eq(deft_step_tokens(step), 2);
    T_OK(deft_step_write(step, 0, zeros, zeros));
    T_OK(deft_step_attend(step, 0, zeros, outputs));
    T_OK(deft_step_end(step));
    s_kid(t->root, 1)->computed += 2;
    expect_stale(step);
    world_verify(w);
}
END_TEST

START_TEST(test_step_handles_of_other_contexts)
{
    deft_step_t step, other = DEFT_STEP_INIT;

    plant();
    step = begin();
    T_STATUS(deft_step_end((deft_step_t){ other_w->ctx, step.number }), DEFT_ERR_STALE);
    T_OK(s_append(other_w, other_t, other_t->root, 3, NULL));
    T_OK(deft_step_begin(other_w->ctx, NULL, 0, 0, &other));
    ck_assert_uint_eq(other.number, step.number);
    ck_assert_uint_eq(deft_step_tokens(other), 3);
    ck_assert_uint_eq(deft_step_tokens(step), 14);
    deft_step_abandon(other);
    ck_assert_uint_eq(deft_step_tokens(step), 14);
    T_OK(deft_step_write(step, 0, zeros, zeros));
    deft_step_abandon(step);
}
END_TEST

/* A listed node without uncomputed tokens is nothing to compute. */
START_TEST(test_step_begin_with_an_empty_entry)
{
    deft_step_t step = DEFT_STEP_INIT;
    deft_rows_t rows[2];

    plant();
    compute_all(w);
    T_OK(s_append(w, t, s_kid(t->root, 1), 1, NULL));
    rows[0] = (deft_rows_t){ t->tree, s_kid(t->root, 1)->h, 0 };
    rows[1] = (deft_rows_t){ t->tree, s_kid(t->root, 0)->h, 0 };
    REFUSED(deft_step_begin(w->ctx, rows, 2, 0, &step), DEFT_ERR_EMPTY);
    rows[1].n = 1;
    REFUSED_OR(deft_step_begin(w->ctx, rows, 2, 0, &step), DEFT_ERR_STATE, DEFT_ERR_EMPTY);
    ck_assert(is_none(step));
    T_OK(deft_step_begin(w->ctx, rows, 1, 0, &step));
    deft_step_abandon(step);
}
END_TEST

START_TEST(test_step_destroying_a_tree_abandons_it)
{
    plant();
    T_OK(s_append(w, t2, t2->root, 4, NULL));
    begin();
    world_drop(w, t2);
    t2 = t;
    world_verify(w);
    T_OK(s_fork(w, t, t->root, 1)); /* not busy any more */
    compute_all(w);
}
END_TEST

START_TEST(test_step_calls_check_their_order)
{
    deft_config_t cfg = t_config(100);
    world_t *lw;
    stree_t *lt;
    deft_step_t step = DEFT_STEP_INIT;

    cfg.n_layers = 3;
    lw = world_new(&cfg, 1, false);
    lt = world_tree(lw);
    T_OK(s_append(lw, lt, lt->root, 5, NULL));
    T_OK(deft_step_begin(lw->ctx, NULL, 0, 0, &step));
    T_STATUS(deft_step_attend(step, 0, zeros, outputs), DEFT_ERR_STATE);
    T_OK(deft_step_write(step, 1, zeros, zeros));
    T_STATUS(deft_step_attend(step, 0, zeros, outputs), DEFT_ERR_STATE);
    T_OK(deft_step_attend(step, 1, zeros, outputs));
    T_STATUS(deft_step_end(step), DEFT_ERR_STATE);
    T_OK(t_layer(step, 2, zeros, zeros, zeros, outputs));
    T_STATUS(deft_step_end(step), DEFT_ERR_STATE); /* layer 0 is missing; the step stays open */
    T_STATUS(deft_tree_append(lt->tree, lt->root->h, 1, NULL), DEFT_ERR_BUSY);
    T_STATUS(deft_step_write(step, 3, zeros, zeros), DEFT_ERR_INVAL);
    T_STATUS(deft_step_write(step, UINT32_MAX, zeros, zeros), DEFT_ERR_INVAL);
    T_STATUS(deft_step_attend(step, 3, zeros, outputs), DEFT_ERR_INVAL);
    T_STATUS(t_layer(step, 3, zeros, zeros, zeros, outputs), DEFT_ERR_INVAL);
    T_STATUS(deft_step_write(step, 0, NULL, zeros), DEFT_ERR_INVAL);
    T_STATUS(deft_step_write(step, 0, zeros, NULL), DEFT_ERR_INVAL);
    T_STATUS(deft_step_attend(step, 1, NULL, outputs), DEFT_ERR_INVAL);
    T_STATUS(deft_step_attend(step, 1, zeros, NULL), DEFT_ERR_INVAL);
    T_STATUS(deft_step_end(step), DEFT_ERR_STATE);
    T_OK(deft_step_write(step, 0, zeros, zeros)); /* writing is enough, attending is the caller's */
    T_OK(deft_step_end(step));
    lt->root->computed = 5;
    world_verify(lw);
    T_STATUS(deft_step_end(none), DEFT_ERR_INVAL);
    T_STATUS(deft_step_write(none, 0, zeros, zeros), DEFT_ERR_INVAL);
    T_STATUS(deft_step_write((deft_step_t){ lw->ctx, 0 }, 0, zeros, zeros), DEFT_ERR_INVAL);
    ck_assert_ptr_nonnull(strstr(deft_last_error(lw->ctx), "of no step"));
    T_STATUS(deft_step_attend(none, 0, zeros, outputs), DEFT_ERR_INVAL);
    T_STATUS(deft_step_stats(none, &(deft_step_stats_t){ .struct_size = 8 }), DEFT_ERR_INVAL);
    ck_assert_uint_eq(deft_step_tokens(none), 0);
    deft_step_cancel(none);
    deft_step_abandon(none);
    world_free(lw);
}
END_TEST

/* ---- rows ---- */

START_TEST(test_step_rows_null_follows_first_append)
{
    static const size_t appended[] = { 2, 0, 3, 1 }; /* which child first */
    snode_t *kid;
    sstep_t ss;
    size_t at = 0;

    T_OK(s_fork(w, t, t->root, 4));
    T_OK(s_append(w, t2, t2->root, 2, NULL));
    for (size_t i = 0; i < 4; i++) {
        T_OK(s_append(w, t, s_kid(t->root, appended[i]), 1 + i, NULL));
    }
    T_OK(s_append(w, t2, t2->root, 2, NULL)); /* its place is that of its first append */
    T_OK(world_begin(w, NULL, 0, 0, &ss));
    ck_assert_uint_eq(ss.n, 4 + 10);
    for (; at < 4; at++) {
        ck_assert_ptr_eq(ss.node[at], t2->root);
    }
    for (size_t i = 0; i < 4; i++) {
        kid = s_kid(t->root, appended[i]);
        for (size_t j = 0; j < 1 + i; j++, at++) {
            ck_assert_ptr_eq(ss.node[at], kid);
            ck_assert_uint_eq(ss.off[at], j);
        }
    }
    deft_step_abandon(ss.step);
    sstep_free(&ss);
    compute_all(w);
    for (size_t i = 4; i-- > 0;) { /* once computed, it is the order of this round */
        T_OK(s_append(w, t, s_kid(t->root, i), 1, NULL));
    }
    T_OK(world_begin(w, NULL, 0, 0, &ss));
    for (size_t i = 0; i < 4; i++) {
        ck_assert_ptr_eq(ss.node[i], s_kid(t->root, 3 - i));
    }
    deft_step_abandon(ss.step);
    sstep_free(&ss);
}
END_TEST

START_TEST(test_step_rows_subset_computes_in_parts)
{
    srow_t rows[3];
    sstep_t ss;

    plant();
    T_OK(s_append(w, t2, t2->root, 10, NULL));
    rows[0] = (srow_t){ t2, t2->root, 4 };
    rows[1] = (srow_t){ t, t->root, 2 };
    T_OK(world_begin(w, rows, 2, 0, &ss)); /* checks order, positions, ids */
    T_OK(deft_step_write(ss.step, 0, zeros, zeros));
    world_end(w, &ss);
    sstep_free(&ss);
    world_verify(w);
    ck_assert_uint_eq(t2->root->computed, 4);
    rows[0] = (srow_t){ t, s_kid(t->root, 1), 1 };
    rows[1] = (srow_t){ t, t->root, 0 };
    rows[2] = (srow_t){ t2, t2->root, 1 };
    T_OK(world_begin(w, rows, 3, 0, &ss));
    ck_assert_uint_eq(ss.n, 1 + 3 + 1);
    ck_assert_int_eq(deft_step_positions(ss.step)[0], 5);
    ck_assert_int_eq(deft_step_ids(ss.step)[0], 21);
    ck_assert_int_eq(deft_step_ids(ss.step)[4], -1);
    ck_assert_int_eq(deft_step_positions(ss.step)[4], 4);
    T_OK(deft_step_write(ss.step, 0, zeros, zeros));
    world_end(w, &ss);
    sstep_free(&ss);
    world_verify(w);
    compute_all(w);
    world_verify(w);
}
END_TEST

/* ---- statistics ---- */

/* Counted by hand: the distinct slots that rows see, and how many each of them sees. */
static void count_kv(const world_t *cw, const sstep_t *ss, uint64_t *unique, uint64_t *logical)
{
    unsigned char *seen = t_alloc(cw->n_slots + 1);

    *unique = *logical = 0;
    for (size_t row = 0; row < ss->n; row++) {
        const size_t path = s_start(ss->node[row]) + ss->off[row] + 1;
        const size_t sees = cw->cfg.window != 0 && cw->cfg.window < path ? cw->cfg.window : path;
        const snode_t *node = ss->node[row];
        size_t off = ss->off[row] + 1, left = sees;

        while (left > 0) {
            for (; off > 0 && left > 0; left--) {
                const uint64_t slot = node->slots[--off];

                if (off >= node->gone) {
                    *unique += seen[slot] == 0;
                    ++*logical;
                    seen[slot] = 1;
                }
            }
            node = node->parent;
            off = node != NULL ? node->len : 0;
        }
    }
    free(seen);
}

static void check_stats(const world_t *cw, const sstep_t *ss)
{
    const deft_step_stats_t *s = &ss->stats;
    const uint64_t layer_bytes = cw->info.token_bytes / cw->L;
    uint64_t unique, logical;
    bool decode = true;

    count_kv(cw, ss, &unique, &logical);
    T_CHECK(s->rows == ss->n, "%zu rows, not %zu", s->rows, ss->n);
    T_CHECK(s->kv_unique_bytes == unique * layer_bytes, "unique: %llu bytes, not %llu",
            (unsigned long long)s->kv_unique_bytes, (unsigned long long)(unique * layer_bytes));
    T_CHECK(s->kv_logical_bytes == logical * layer_bytes, "logical: %llu bytes, not %llu",
            (unsigned long long)s->kv_logical_bytes, (unsigned long long)(logical * layer_bytes));
    T_CHECK(s->kv_read_bytes >= s->kv_unique_bytes, "read %llu of %llu unique bytes",
            (unsigned long long)s->kv_read_bytes, (unsigned long long)s->kv_unique_bytes);
    T_CHECK(s->groups > 0 && (unsigned)s->planned <= DEFT_PLANNED_RECUT, "groups %zu, planned %d",
            s->groups, (int)s->planned);
    for (size_t row = 1; row < ss->n; row++) {
        decode = decode && ss->node[row] != ss->node[row - 1];
    }
    /* Rows of one node share a read; a plan serves layers of several windows, and may read more. */
    if (s->split == DEFT_SPLIT_SEQUENCE && decode && cw->cfg.window == 0) {
        T_CHECK(s->kv_read_bytes == s->kv_logical_bytes, "sequence attention reads %llu, not %llu",
                (unsigned long long)s->kv_read_bytes, (unsigned long long)s->kv_logical_bytes);
    }
}

START_TEST(test_step_stats_count_the_kv)
{
    const uint64_t seed = t_seed(31);

    for (size_t i = 0; i < t_count(300); i++) {
        deft_config_t cfg = t_config(3000);
        play_t play = { .max_trees = 3, .max_nodes = 60, .max_len = 70, .id_range = 4 };
        world_t *sw;

        t_note("step stats %zu seed %#llx", i, (unsigned long long)seed);
        rng_init(&play.rng, t_mix(seed, i));
        cfg.n_layers = 2;
        cfg.split = problem_splits[i % 5];
        cfg.chunk_tokens = i % 3 == 0 ? 16 : 0;
        cfg.n_threads = 1 + i % 2;
        cfg.window = i % 7 == 6 ? 1 + (uint32_t)rng_below(&play.rng, 100) : 0;
        cfg.kv_type = (deft_dtype_t)(1 + i % 3);
        play.w = sw = world_new(&cfg, t_mix(seed, i), false);
        play_build(&play, world_tree(sw), (shape_t)(i % SHAPE_COUNT), 1 + i % 30);
        for (size_t j = 0; j < 6; j++) {
            srow_t *rows = NULL;
            size_t n = 0;
            sstep_t ss;

            while (!play_uncomputed(sw)) {
                play_mutate(&play);
            }
            if (j % 2 == 1) {
                n = play_rows(&play, &rows);
            }
            T_OK(world_begin(sw, n != 0 ? rows : NULL, n, j % 3 == 2 ? DEFT_STEP_INVARIANT : 0,
                             &ss));
            if (cfg.split != DEFT_SPLIT_AUTO && ss.flags == 0) {
                T_CHECK(ss.stats.split == cfg.split, "split %s", t_split_name(ss.stats.split));
            }
            check_stats(sw, &ss);
            for (uint32_t layer = 0; layer < sw->L; layer++) {
                float *kv = t_alloc(ss.n * sw->Hkv * sw->D * sizeof(*kv));

                T_OK(deft_step_write(ss.step, layer, kv, kv));
                free(kv);
            }
            world_end(sw, &ss);
            sstep_free(&ss);
            free(rows);
        }
        world_free(sw);
    }
}
END_TEST

START_TEST(test_step_stats_fill_up_to_struct_size)
{
    deft_step_stats_t stats;
    deft_step_t step;

    plant();
    step = begin();
    memset(&stats, 0x44, sizeof(stats));
    stats.struct_size = offsetof(deft_step_stats_t, groups);
    T_OK(deft_step_stats(step, &stats));
    ck_assert_uint_eq(stats.rows, 14);
    ck_assert_uint_eq(stats.groups, (size_t)UINT64_C(0x4444444444444444));
    stats.struct_size = 0;
    ck_assert_int_eq(deft_step_stats(step, &stats), DEFT_ERR_INVAL);
    ck_assert_int_eq(deft_step_stats(step, NULL), DEFT_ERR_INVAL);
    deft_step_abandon(step);
}
END_TEST

/* ---- warm ---- */

/* Returns whether the plan was patched; counts what the step's calls allocate. */
static size_t run_step(world_t *sw, float *q, float *o, size_t *allocated)
{
    const size_t calls = sw->mem.calls;
    deft_step_stats_t stats = DEFT_STEP_STATS_INIT;
    deft_step_t step = DEFT_STEP_INIT;

    T_OK(deft_step_begin(sw->ctx, NULL, 0, 0, &step));
    T_OK(deft_step_stats(step, &stats));
    for (uint32_t layer = 0; layer < sw->L; layer++) {
        T_OK(t_layer(step, layer, q, zeros, zeros, o));
    }
    T_OK(deft_step_end(step));
    *allocated += sw->mem.calls - calls;
    return stats.planned != DEFT_PLANNED_AFRESH;
}

/* Fifty leaves that decode for a thousand steps, pruned back, forked and grown again: after a first
 * round that warms up, no call of a step reaches the allocator. */
static void warm_round(world_t *sw, stree_t *st, size_t n_steps, size_t *patched, size_t *allocated)
{
    static float q[1000 * 64 * 2], o[1000 * 64 * 2];
    deft_node_t kids[50];

    T_OK(deft_tree_fork(st->tree, st->root->h, 50, kids));
    for (size_t step = 0; step < n_steps; step++) {
        for (size_t i = 0; i < 50; i++) {
            T_OK(deft_tree_append(st->tree, kids[i], 1, NULL));
        }
        *patched += run_step(sw, q, o, allocated);
        if (step % 40 == 39) { /* the worst five give way */
            for (size_t i = step % 45; i < step % 45 + 5; i++) {
                T_OK(deft_tree_prune(st->tree, kids[i]));
                T_OK(deft_tree_fork(st->tree, st->root->h, 1, &kids[i]));
            }
        }
    }
    T_OK(deft_tree_commit(st->tree, st->root->h, DEFT_COMMIT_PATH));
}

START_TEST(test_step_allocates_nothing_once_warm)
{
    for (size_t i = 0; i < 6; i++) {
        const size_t n_steps = t_count(i == 0 ? 1000 : 200);
        deft_config_t cfg = t_config(70000);
        world_t *sw;
        stree_t *st;
        size_t patched = 0, allocated = 0;

        t_note("warm steps, split %s, threads %zu", t_split_name(problem_splits[i % 5]), 1 + i / 5);
        unsetenv("DEFT_DEBUG_CHECK");
        cfg.n_q_heads = cfg.n_kv_heads = 1;
        cfg.split = problem_splits[i % 5];
        cfg.n_threads = 1 + (uint32_t)(i / 5);
        sw = world_new(&cfg, 1, false);
        st = world_tree(sw);
        T_OK(deft_tree_append(st->tree, st->root->h, 100, NULL));
        run_step(sw, zeros, outputs, &allocated);
        warm_round(sw, st, n_steps, &patched, &allocated);
        T_CHECK(allocated > 0, "the hook serves nothing");
        patched = allocated = 0;
        warm_round(sw, st, n_steps, &patched, &allocated);
        T_CHECK(allocated == 0, "%zu allocations in warm steps", allocated);
        printf("%s: %zu of %zu warm decode steps were patched\n",
               t_split_name(problem_splits[i % 5]), patched, n_steps);
        T_CHECK(n_steps < 20 || patched > n_steps / 2, "only %zu of %zu steps patched", patched,
                n_steps);
        fflush(stdout);
        world_free(sw);
    }
}
END_TEST

START_TEST(test_step_patches_growing_leaves)
{
    deft_step_stats_t stats = DEFT_STEP_STATS_INIT;
    size_t patched = 0;

    plant_deeper();
    compute_all(w);
    for (int i = 0; i < 20; i++) {
        deft_step_t step;
        snode_t **list;
        const size_t n = s_nodes(t, &list);

        for (size_t j = 0; j < n; j++) {
            if (list[j]->n_kids == 0) {
                T_OK(s_append(w, t, list[j], 1, NULL));
            }
        }
        free(list);
        step = begin();
        T_OK(deft_step_stats(step, &stats));
        patched += stats.planned != DEFT_PLANNED_AFRESH;
        T_CHECK(i != 0 || stats.planned == DEFT_PLANNED_AFRESH,
                "patched although the rows are others");
        deft_step_abandon(step);
        compute_all(w);
    }
    ck_assert_msg(patched >= 10, "%zu of 20 patched", patched);
    T_OK(deft_ctx_set_split(w->ctx, DEFT_SPLIT_NODE));
    T_OK(s_append(w, t, s_kid(t->root, 1), 1, NULL));
    T_OK(deft_step_stats(begin(), &stats));
    ck_assert_int_eq(stats.planned, DEFT_PLANNED_AFRESH);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_step_begin_with_nothing_to_compute,
        test_step_begin_refuses_bad_arguments,
        test_step_begin_refuses_too_many_rows,
        test_step_begin_refuses_uncomputed_ancestors,
        test_step_open_refuses_mutators,
        test_step_abandon_leaves_all_as_it_was,
        test_step_handles_of_ended_steps_are_refused,
        test_step_handles_of_other_contexts,
        test_step_begin_with_an_empty_entry,
        test_step_destroying_a_tree_abandons_it,
        test_step_calls_check_their_order,
        test_step_rows_null_follows_first_append,
        test_step_rows_subset_computes_in_parts,
        test_step_stats_count_the_kv,
        test_step_stats_fill_up_to_struct_size,
        test_step_allocates_nothing_once_warm,
        test_step_patches_growing_leaves,
    };

    return suite_run("step", fixture_setup, fixture_teardown, tests,
                     sizeof(tests) / sizeof(tests[0]));
}
