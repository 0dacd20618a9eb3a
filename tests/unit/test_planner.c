/* SPDX-License-Identifier: MIT */
/* Plans from a forest alone: no device, no context, no step. Over random trees, splits and machines
 * each row must meet every token of its path that it sees exactly once, and nothing else. The
 * program is linked with lib/base, lib/format, lib/forest and lib/plan only. */
#include "config.h"

#include "suite.h"
#include "util.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "plan/planner.h"

enum { SLOTS = 700, MAX_LEAVES = 64 };

typedef struct rig {
    t_mem_t mem;
    ideft_host_t host;
    ideft_forest_t forest;
    ideft_geometry_t geometry;
    ideft_planner_t planner;
    deft_tree_t *tree[2];
    rng_t rng;
    size_t plans, patched;
} rig_t;

static const ideft_machine_t machines[] = {
    { .tile_rows = 128,
      .width = 32,
      .row_cost = 5,
      .token_cost = 96,
      .min_cost = 140000 }, /* a CPU's */
    { .tile_rows = 8, .width = 4, .row_cost = 5, .token_cost = 96, .min_cost = 100 },
    { .tile_rows = 128,
      .width = 132,
      .token_cost = 4,
      .min_cost = 192,
      .item_cost = 256,
      .merge_cost = 512,
      .part_cost = 16,
      .half_cost = 3 }, /* in rounds */
    { .tile_rows = 16,
      .width = 3,
      .token_cost = 4,
      .min_cost = 16,
      .item_cost = 8,
      .merge_cost = 20,
      .part_cost = 2,
      .half_cost = 3 },
};

static void rig_open_slots(rig_t *r, uint32_t slots, uint64_t seed, size_t machine, uint32_t window)
{
    static uint32_t windows[1];
    deft_config_t cfg = DEFT_CONFIG_INIT;

    memset(r, 0, sizeof(*r));
    rng_init(&r->rng, seed);
    t_mem_init(&r->mem);
    cfg.allocator = t_mem_hook(&r->mem);
    ideft_host_init(&r->host, &cfg);
    T_OK(ideft_forest_init(&r->forest, &r->host, slots, &cfg.hooks));
    windows[0] = window;
    r->geometry = (ideft_geometry_t){ .n_layers = 1,
                                      .H = 4,
                                      .Hkv = 2,
                                      .G = 2,
                                      .D = 64,
                                      .format = ideft_format_of(DEFT_F16, 64, 64),
                                      .scale = 0.125f,
                                      .windows = windows,
                                      .max_window = window };
    ideft_planner_init(&r->planner, &r->host, &r->forest, &r->geometry, &machines[machine]);
    T_OK(ideft_tree_new(&r->forest, &r->tree[0]));
    T_OK(ideft_tree_new(&r->forest, &r->tree[1]));
}

static void rig_open(rig_t *r, uint64_t seed, size_t machine, uint32_t window)
{
    rig_open_slots(r, SLOTS, seed, machine, window);
}

static void rig_close(rig_t *r)
{
    T_OK(ideft_forest_check(&r->forest));
    ideft_planner_trim(&r->planner);
    ideft_forest_fini(&r->forest);
    t_mem_balanced(&r->mem);
}

/* ---- trees ---- */

static uint32_t any_node(rig_t *r, const deft_tree_t *tree)
{
    uint32_t at = tree->root;

    for (size_t down = rng_below(&r->rng, 7); down > 0; down--) {
        uint32_t kid = ideft_node(&r->forest, at)->first_child;

        for (size_t over = rng_below(&r->rng, 3); over > 0 && kid != 0; over--) {
            kid = ideft_node(&r->forest, kid)->next != 0 ? ideft_node(&r->forest, kid)->next : kid;
        }
        at = kid != 0 ? kid : at;
    }
    return at;
}

static void append(rig_t *r, deft_tree_t *tree, uint32_t node, size_t n)
{
    if (ideft_node(&r->forest, node)->n_children == 0 && n > 0 &&
        n <= ideft_pool_vacant(r->forest.pool)) {
        T_OK(ideft_tree_append(tree, node, n, NULL));
    }
}

static void change(rig_t *r)
{
    deft_tree_t *tree = r->tree[rng_below(&r->rng, 2)];
    const uint32_t node = any_node(r, tree);
    const ideft_node_t *at = ideft_node(&r->forest, node);
    const uint32_t len = ideft_node_len(at);
    deft_node_t kids[3], tail;

    switch (rng_below(&r->rng, 9)) {
    case 0:
        T_OK(ideft_tree_fork(tree, node, 2, kids));
        append(r, tree, (uint32_t)kids[0], rng_range(&r->rng, 1, 30));
        append(r, tree, (uint32_t)kids[1], rng_below(&r->rng, 3));
        break;
    case 1:
        if (len > at->gone) {
            T_OK(ideft_tree_fork_at(tree, node,
                                    at->gone + (uint32_t)rng_below(&r->rng, len - at->gone), 1,
                                    kids, &tail));
            append(r, tree, (uint32_t)kids[0], rng_range(&r->rng, 1, 9));
        }
        break;
    case 2:
        if (node != tree->root && rng_chance(&r->rng, 0.5)) {
            ideft_tree_prune(tree, node);
        }
        break;
    case 3:
        ideft_tree_evict(tree, node, (uint32_t)rng_below(&r->rng, at->computed + 1));
        break;
    case 4:
        T_OK(ideft_compact_chains(tree, node));
        break;
    default:
        append(r, tree, node,
               rng_chance(&r->rng, 0.3) ? rng_range(&r->rng, 1, 60) : rng_range(&r->rng, 1, 3));
    }
}

/* ---- what a plan says against what the tree says ---- */

static uint8_t seen[SLOTS];

/* Mark what row r meets; how many groups it is in, whose partials are counted into own[]. */
static uint32_t meet(const ideft_plan_t *plan, uint32_t r, uint8_t *own)
{
    const ideft_row_t *row = &plan->row[r];
    uint32_t groups = 0;

    for (uint32_t g = 0; g < plan->n_groups; g++) {
        const ideft_group_t *group = &plan->group[g];

        if (r < group->row_begin || r >= group->row_end) {
            continue;
        }
        groups++;
        if (plan->part_begin[r] < plan->part_begin[r + 1]) {
            T_CHECK(group->part + r - group->row_begin < plan->n_parts,
                    "a partial beyond the last");
            own[group->part + r - group->row_begin]++;
        }
        for (uint32_t s = group->seg_begin; s < group->seg_end; s++) {
            const ideft_seg_t *seg = &plan->seg[s];

            if (r < seg->row_begin || r >= seg->row_end) {
                continue;
            }
            for (uint32_t i = 0; i < seg->n && seg->pos + i <= row->pos; i++) {
                T_CHECK(seg->slot + i < SLOTS, "a slot beyond the pool");
                seen[seg->slot + i]++;
            }
        }
    }
    return groups;
}

static void check_row(const rig_t *r, uint32_t index, uint8_t *parts)
{
    const ideft_plan_t *plan = &r->planner.plan;
    const ideft_row_t *row = &plan->row[index];
    const uint32_t window = r->geometry.max_window;
    uint8_t *own = t_alloc(plan->n_parts + 1);
    const uint32_t n = meet(plan, index, own);
    const uint32_t begin = plan->part_begin[index], end = plan->part_begin[index + 1];
    bool found = false;

    T_CHECK(n > 0, "row %u is in no group", index);
    T_CHECK(end - begin == (n == 1 ? 0 : n), "row %u is in %u groups and has %u partials", index, n,
            end - begin);
    for (uint32_t i = begin; i < end; i++) {
        T_CHECK(own[plan->part_list[i]] == 1, "partial %u is not of row %u", plan->part_list[i],
                index);
        T_CHECK(parts[plan->part_list[i]]++ == 0, "a partial of two rows");
    }
    free(own);
    for (uint32_t at = row->node; at != 0; at = ideft_node(&r->forest, at)->parent) {
        const ideft_node_t *node = ideft_node(&r->forest, at);
        uint32_t pos = node->start + node->gone;

        for (uint32_t i = 0; i < ideft_runs_count(&node->runs); i++) {
            const ideft_run_t run = ideft_runs_at(&node->runs)[i];

            for (uint32_t x = 0; x < run.n; x++, pos++) {
                if (pos > row->pos) {
                    continue;
                }
                found |= pos == row->pos && at == row->node && run.slot + x == row->slot;
                T_CHECK(seen[run.slot + x] == 1 ||
                            (window != 0 && pos + window <= row->pos && seen[run.slot + x] == 0),
                        "row %u at %u meets position %u %u times", index, row->pos, pos,
                        seen[run.slot + x]);
                seen[run.slot + x] = 0;
            }
        }
    }
    T_CHECK(found, "the slot of row %u is not that of its token", index);
    for (uint32_t s = 0; s < SLOTS; s++) {
        T_CHECK(seen[s] == 0, "row %u meets slot %u, which is not on its path", index, s);
    }
}

/* Rows by the caller's order: the requests' tokens one after the other. */
static void check_rows(const rig_t *r)
{
    const ideft_planner_t *p = &r->planner;
    const ideft_plan_t *plan = &p->plan;
    uint32_t token = 0;

    for (size_t i = 0; i < p->request.n; i++) {
        const ideft_request_t *q = &p->request.at[i];
        const ideft_node_t *node = ideft_node(&r->forest, q->node);

        T_CHECK(q->token == token && q->n > 0, "request %zu", i);
        for (uint32_t j = 0; j < q->n; j++, token++) {
            T_CHECK(plan->nodes[token] == ideft_handle(&r->forest, q->node), "node of token %u",
                    token);
            T_CHECK(plan->positions[token] == (int32_t)(node->start + node->computed + j),
                    "position of token %u", token);
            T_CHECK(plan->ids[token] == -1, "id of token %u", token);
        }
    }
    T_CHECK(token == plan->n_rows, "%u tokens, %u rows", token, plan->n_rows);
    uint8_t *met = t_alloc(token + 1);
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        const ideft_row_t *row = &plan->row[i];

        T_CHECK(row->token < token && met[row->token]++ == 0, "two rows are token %u", row->token);
        T_CHECK((int32_t)row->pos == plan->positions[row->token], "position of row %u", i);
        T_CHECK(ideft_handle(&r->forest, row->node) == plan->nodes[row->token], "node of row %u",
                i);
    }
    free(met);
}

static void check_plan(rig_t *r)
{
    const ideft_plan_t *plan = &r->planner.plan;
    uint8_t *parts = t_alloc(plan->n_parts + 1), *groups = t_alloc(plan->n_groups + 1);

    check_rows(r);
    for (uint32_t i = 0; i < plan->n_groups; i++) {
        const ideft_group_t *g = &plan->group[i];

        T_CHECK(plan->order[i] < plan->n_groups && groups[plan->order[i]]++ == 0,
                "the order of groups");
        /* most expensive first, up to a factor of two */
        T_CHECK(i == 0 || r->planner.planned == DEFT_PLANNED_PATCHED ||
                    2 * (uint64_t)plan->group[plan->order[i - 1]].cost >=
                        plan->group[plan->order[i]].cost,
                "a group of cost %u before one of %u", plan->group[plan->order[i - 1]].cost,
                plan->group[plan->order[i]].cost);
        T_CHECK(g->seg_begin < g->seg_end && g->seg_end <= plan->n_segs &&
                    g->row_begin < g->row_end && g->row_end <= plan->n_rows,
                "group %u", i);
    }
    T_CHECK(plan->part_begin[0] == 0, "partials");
    for (uint32_t i = 0; i < plan->n_rows; i++) {
        check_row(r, i, parts);
    }
    free(parts);
    free(groups);
    r->plans++;
    r->patched += r->planner.planned != DEFT_PLANNED_AFRESH;
}

static void end_plan(rig_t *r)
{
    for (size_t i = 0; i < r->planner.request.n; i++) {
        ideft_node_computed(&r->forest, r->planner.request.at[i].node, r->planner.request.at[i].n);
    }
    ideft_plan_ended(&r->planner);
}

/* Some of what waits, in any order, none of it below what does not join in full. */
static size_t some_rows(rig_t *r, deft_rows_t *rows)
{
    size_t n = 0;

    for (int i = 0; i < 2; i++) {
        for (uint32_t at = r->tree[i]->root; at != 0;
             at = ideft_node_after(&r->forest, r->tree[i]->root, at)) {
            const ideft_node_t *node = ideft_node(&r->forest, at);
            const uint32_t left = ideft_node_len(node) - node->computed;
            bool allowed = left > 0 && n < MAX_LEAVES && rng_chance(&r->rng, 0.8);

            for (uint32_t up = node->parent; up != 0 && allowed;
                 up = ideft_node(&r->forest, up)->parent) {
                const ideft_node_t *u = ideft_node(&r->forest, up);

                allowed = u->computed == ideft_node_len(u);
                for (size_t j = 0; j < n && !allowed; j++) {
                    allowed = rows[j].node == ideft_handle(&r->forest, up) && rows[j].n == 0;
                }
            }
            if (allowed) {
                rows[n++] =
                    (deft_rows_t){ r->tree[i], ideft_handle(&r->forest, at),
                                   rng_chance(&r->rng, 0.6) ? 0 : rng_range(&r->rng, 1, left) };
            }
        }
    }
    for (size_t i = n; i > 1; i--) {
        const size_t j = rng_below(&r->rng, i);
        const deft_rows_t row = rows[j];

        rows[j] = rows[i - 1];
        rows[i - 1] = row;
    }
    return n;
}

static void play(rig_t *r, deft_split_t split, uint32_t chunk, bool invariant)
{
    for (int step = 0; step < 14; step++) {
        ideft_ask_t ask = { .split = split, .chunk_tokens = chunk, .invariant = invariant };
        deft_rows_t rows[MAX_LEAVES];

        if (step % 4 < 2) { /* else leaves grow by one: plans are patched */
            for (size_t i = 2 + rng_below(&r->rng, 8); i > 0; i--) {
                change(r);
            }
        } else {
            for (int i = 0; i < 2; i++) {
                for (uint32_t at = r->tree[i]->root; at != 0;
                     at = ideft_node_after(&r->forest, r->tree[i]->root, at)) {
                    append(r, r->tree[i], at, 1);
                }
            }
        }
        if (step % 4 == 1) {
            ask.n_rows = some_rows(r, rows);
            ask.rows = ask.n_rows > 0 ? rows : NULL;
        }
        if (r->forest.dirty_first == 0) {
            T_STATUS(ideft_plan_make(&r->planner, &ask), DEFT_ERR_EMPTY);
            continue;
        }
        T_OK(ideft_plan_make(&r->planner, &ask));
        check_plan(r);
        end_plan(r);
        if (step == 9) {
            ideft_planner_trim(&r->planner); /* it can be used again */
        }
    }
}

START_TEST(test_planner_rows_meet_their_paths_once)
{
    const uint64_t seed = t_seed(77);
    size_t plans = 0, patched = 0;

    for (size_t i = 0; i < t_count(600); i++) {
        static rig_t r;
        const uint32_t window = i % 6 == 5 ? 1 + (uint32_t)(i * 7 % 60) : 0;
        const deft_split_t split = (deft_split_t)(i % 5);

        t_note("test_planner %zu seed %#llx: split %s, window %u, machine %zu", i,
               (unsigned long long)seed, t_split_name(split), window, i / 5 % 4);
        rig_open(&r, t_mix(seed, i), i / 5 % 4, window);
        append(&r, r.tree[0], r.tree[0]->root, rng_range(&r.rng, 1, 120));
        append(&r, r.tree[1], r.tree[1]->root, rng_range(&r.rng, 1, 9));
        play(&r, split, i % 3 == 0 ? 512 : 16, i % 7 == 6);
        plans += r.plans;
        patched += r.patched;
        rig_close(&r);
    }
    printf("%zu plans, %zu patched\n", plans, patched);
    fflush(stdout);
    T_CHECK(patched > plans / 50, "only %zu of %zu plans were patched", patched, plans);
}
END_TEST

START_TEST(test_planner_refuses_what_cannot_be_planned)
{
    static rig_t r;
    deft_rows_t rows[2];
    ideft_ask_t ask = { .rows = rows, .n_rows = 1, .chunk_tokens = 512 };
    deft_node_t kid;

    rig_open(&r, 1, 0, 0);
    append(&r, r.tree[0], r.tree[0]->root, 5);
    T_OK(ideft_tree_fork(r.tree[0], r.tree[0]->root, 1, &kid));
    append(&r, r.tree[0], (uint32_t)kid, 2);
    rows[0] = (deft_rows_t){ r.tree[0], kid, 0 };
    T_STATUS(ideft_plan_make(&r.planner, &ask), DEFT_ERR_UNCOMPUTED);
    rows[0] = (deft_rows_t){ r.tree[0], ideft_handle(&r.forest, r.tree[0]->root), 6 };
    T_STATUS(ideft_plan_make(&r.planner, &ask), DEFT_ERR_STATE);
    rows[0] = (deft_rows_t){ r.tree[1], ideft_handle(&r.forest, r.tree[1]->root), 0 };
    T_STATUS(ideft_plan_make(&r.planner, &ask), DEFT_ERR_EMPTY);
    rows[0] = (deft_rows_t){ r.tree[1], kid, 0 };
    T_STATUS(ideft_plan_make(&r.planner, &ask), DEFT_ERR_FOREIGN);
    rows[0] = (deft_rows_t){ r.tree[0], kid + ((uint64_t)1 << 32), 0 };
    T_STATUS(ideft_plan_make(&r.planner, &ask), DEFT_ERR_STALE);
    rows[0] = rows[1] = (deft_rows_t){ r.tree[0], ideft_handle(&r.forest, r.tree[0]->root), 0 };
    ask.n_rows = 2;
    T_STATUS(ideft_plan_make(&r.planner, &ask), DEFT_ERR_INVAL);
    ask.n_rows = 1;
    T_OK(ideft_plan_make(&r.planner, &ask));
    check_plan(&r);
    ck_assert_uint_eq(r.planner.plan.n_rows, 5);
    rig_close(&r);
}
END_TEST

/* Each of 94,000 rows of one node meets a group for every token before its own: 4.4e9 partials, and
 * 2^32 can be numbered. In fewer groups the same rows are planned. */
START_TEST(test_planner_refuses_more_partials_than_it_can_number)
{
    enum { ROWS = 94000 };
    static rig_t r;
    ideft_ask_t ask = { .split = DEFT_SPLIT_NODE_CHUNK, .chunk_tokens = 1 };

    rig_open_slots(&r, ROWS, 1, 0, 0);
    append(&r, r.tree[0], r.tree[0]->root, ROWS);
    T_STATUS(ideft_plan_make(&r.planner, &ask), DEFT_ERR_LIMIT);
    ck_assert_ptr_nonnull(strstr(r.host.error, "partials"));
    ask.chunk_tokens = ROWS;
    T_OK(ideft_plan_make(&r.planner, &ask));
    ck_assert_uint_eq(r.planner.plan.n_parts, 0);
    rig_close(&r);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_planner_rows_meet_their_paths_once,
        test_planner_refuses_what_cannot_be_planned,
        test_planner_refuses_more_partials_than_it_can_number,
    };

    return suite_run("planner", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
