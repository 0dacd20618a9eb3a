/* SPDX-License-Identifier: MIT */
/* The forest without a context: what the public calls do not show. The program is linked with
 * lib/base and lib/forest only. */
#include "config.h"

#include "suite.h"
#include "util.h"

#include "forest/forest.h"

typedef struct rig {
    t_mem_t mem;
    ideft_host_t host;
    ideft_forest_t forest;
    deft_tree_t *tree;
} rig_t;

static void rig_open(rig_t *r, uint32_t slots)
{
    deft_config_t cfg = DEFT_CONFIG_INIT;

    t_mem_init(&r->mem);
    cfg.allocator = t_mem_hook(&r->mem);
    ideft_host_init(&r->host, &cfg);
    T_OK(ideft_forest_init(&r->forest, &r->host, slots, &cfg.hooks));
    T_OK(ideft_tree_new(&r->forest, &r->tree));
}

static void rig_close(rig_t *r)
{
    ideft_forest_fini(&r->forest);
    t_mem_balanced(&r->mem);
}

/* Spans in the runs of a node. */
static size_t spans_of(const rig_t *r, uint32_t index)
{
    const ideft_runs_t *runs = &ideft_node(&r->forest, index)->runs;
    size_t n = 0;

    for (uint32_t i = 0; i < ideft_runs_count(runs); i++) {
        const ideft_run_t run = ideft_runs_at(runs)[i];

        for (uint32_t end = run.n; end > 0; n++) {
            end = ideft_span_last(r->forest.pool, run.slot, end) - run.slot;
        }
    }
    return n;
}

/* Nodes of one token, one below the other, in adjoining slots. When they are joined, so are their
 * spans: what walks the spans of a node (truncate, evict, share) would else take as long as there
 * were nodes. A span with a second owner stays apart: that owner has no more than it. */
START_TEST(test_forest_joined_nodes_have_few_spans)
{
    enum { DEPTH = 500, SHARED = 200 };
    static rig_t r;
    deft_tree_t *copy;
    deft_node_t kid = DEFT_NODE_NONE;
    uint32_t at;

    rig_open(&r, 2 * DEPTH);
    at = r.tree->root;
    for (uint32_t i = 0; i < DEPTH; i++) {
        T_OK(ideft_tree_fork(r.tree, at, 1, &kid));
        at = (uint32_t)kid;
        T_OK(ideft_tree_append(r.tree, at, 1, NULL));
        ideft_node_computed(&r.forest, at, 1);
        if (i + 1 == SHARED) {
            T_OK(ideft_tree_share(r.tree, at, &copy));
        }
    }
    T_OK(ideft_compact_chains(r.tree, r.tree->root));
    ck_assert_uint_eq(ideft_node_len(ideft_node(&r.forest, at)), DEPTH);
    ck_assert_uint_eq(ideft_runs_count(&ideft_node(&r.forest, at)->runs), 1);
    ck_assert_uint_eq(spans_of(&r, at), SHARED + 1);
    T_OK(ideft_forest_check(&r.forest));
    ideft_tree_truncate(r.tree, at, DEPTH - 7); /* cuts the last span, which begins elsewhere now */
    T_OK(ideft_tree_append(r.tree, at, 3, NULL));
    T_OK(ideft_forest_check(&r.forest));
    ideft_tree_free(copy);
    T_OK(ideft_forest_check(&r.forest));
    rig_close(&r);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_forest_joined_nodes_have_few_spans,
    };

    return suite_run("forest", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
