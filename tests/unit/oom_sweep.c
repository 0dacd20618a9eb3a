/* SPDX-License-Identifier: MIT */
/* Fails the n-th allocation of each call, for n = 0, 1, 2, ... until the call succeeds: each time
 * DEFT_ERR_NOMEM, everything as it was, deft_tree_check() content, and the same call works
 * afterwards. At the end of each scene all bytes are back. Once with a single failure, once with
 * every later allocation failing too. */
#include "problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a scene's call works on. */
typedef struct stage {
    world_t *w;
    stree_t *t, *t2;
    deft_node_t kids[9000];
    snode_t *node;
    deft_tree_t *made;
    deft_step_t step;
    float *buf;
    t_bytes_t text;
} stage_t;

typedef struct scene {
    const char *name;
    void (*prepare)(stage_t *s);
    deft_status_t (*call)(stage_t *s);
    bool may_run_dry; /* 0 allocations are fine: the call need not allocate */
} scene_t;

static uint32_t n_threads = 1;
static deft_split_t split = DEFT_SPLIT_AUTO;

static void compute(world_t *w)
{
    float *kv = t_alloc(2000 * sizeof(*kv) * w->Hkv * w->D);
    sstep_t ss;

    T_OK(world_begin(w, NULL, 0, 0, &ss));
    T_CHECK(ss.n <= 2000, "rows");
    for (uint32_t layer = 0; layer < w->L; layer++) {
        T_OK(deft_step_write(ss.step, layer, kv, kv));
    }
    world_end(w, &ss);
    sstep_free(&ss);
    free(kv);
}

/* A tree of 30 nodes, computed; 40 more tokens on a leaf. */
static void prepare_tree(stage_t *s)
{
    play_t play = { .w = s->w, .max_trees = 2, .max_nodes = 60, .max_len = 9, .id_range = 5 };

    rng_init(&play.rng, 7);
    s->t = world_tree(s->w);
    s->t2 = world_tree(s->w);
    play_build(&play, s->t, SHAPE_RANDOM, 30);
    compute(s->w);
    s->node = s->t->root;
    while (s->node->n_kids != 0) {
        s->node = s_kid(s->node, 0);
    }
    T_OK(s_append(s->w, s->t, s->node, 40, NULL));
}

/* The context's first step is yet to come. */
static void prepare_cold(stage_t *s)
{
    play_t play = { .w = s->w, .max_trees = 2, .max_nodes = 60, .max_len = 30, .id_range = 5 };

    rng_init(&play.rng, 8);
    s->t = world_tree(s->w);
    play_build(&play, s->t, SHAPE_RANDOM, 40);
}

static void prepare_computed(stage_t *s)
{
    prepare_tree(s);
    compute(s->w);
}

static void prepare_chain(stage_t *s)
{
    snode_t *grown;

    prepare_tree(s);
    grown = s->node;
    s->node = s->t2->root;
    for (size_t i = 0; i < 300; i++) { /* another node's slots between: the chain has 300 runs */
        T_OK(s_append(s->w, s->t2, s->node, 1 + i % 2, NULL));
        T_OK(s_append(s->w, s->t, grown, 1, NULL));
        T_OK(s_fork(s->w, s->t2, s->node, 1));
        s->node = s_kid(s->node, 0);
    }
}

static void prepare_fragmented(stage_t *s)
{
    prepare_tree(s);
    T_OK(s_fork(s->w, s->t2, s->t2->root, 400));
    for (size_t i = 0; i < 400; i++) {
        T_OK(s_append(s->w, s->t2, s_kid(s->t2->root, i), 2, NULL));
    }
    for (size_t i = 0; i < 200; i++) {
        T_OK(s_prune(s->w, s->t2, s_kid(s->t2->root, i)));
    }
}

static void prepare_shared(stage_t *s)
{
    stree_t *copy = NULL;

    prepare_computed(s);
    T_OK(world_share(s->w, s->t, s->node, &copy));
}

static deft_status_t call_tree_create(stage_t *s)
{
    return deft_tree_create(s->w->ctx, &s->made);
}

static deft_status_t call_fork(stage_t *s)
{
    return deft_tree_fork(s->t->tree, s->node->h, 9000, s->kids);
}

static deft_status_t call_fork_at(stage_t *s)
{
    deft_node_t tail;

    return deft_tree_fork_at(s->t->tree, s->node->h, s->node->len / 2, 9000, s->kids, &tail);
}

static deft_status_t call_append(stage_t *s)
{
    static int32_t ids[400];

    return deft_tree_append(s->t->tree, s->node->h, 400, ids);
}

static deft_status_t call_append_no_ids(stage_t *s)
{
    return deft_tree_append(s->t->tree, s->node->h, 3000, NULL);
}

static deft_status_t call_truncate(stage_t *s)
{
    return deft_tree_truncate(s->t->tree, s->node->h, s->node->len / 2);
}

static deft_status_t call_share(stage_t *s)
{
    return deft_tree_share(s->t->tree, s->node->h, &s->made);
}

static deft_status_t call_compact(stage_t *s)
{
    return deft_tree_compact(s->t2->tree, s->t2->root->h, 0, DEFT_COMPACT_CHAINS, NULL);
}

/* A node that ends in three short runs, where a branch was between them. */
static void prepare_runs(stage_t *s)
{
    prepare_tree(s);
    s->node = s->t2->root;
    for (size_t i = 0; i < 3; i++) {
        T_OK(s_fork(s->w, s->t2, s->node, 2));
        T_OK(s_append(s->w, s->t2, s_kid(s->node, 0), 20, NULL));
        T_OK(s_append(s->w, s->t2, s_kid(s->node, 1), 1, NULL));
        s->node = s_kid(s->node, 0);
    }
    T_OK(s_commit(s->w, s->t2, s->node, DEFT_COMMIT_PATH));
    T_OK(s_compact(s->w, s->t2, s->t2->root, 1, DEFT_COMPACT_CHAINS, NULL));
}

static deft_status_t call_find(stage_t *s)
{
    static const int32_t ids[] = { 1, 2, 3, 4, 0, 1, 2, 3, 4 };

    return deft_tree_find(s->t->tree, ids, 9, NULL, NULL, NULL);
}

static deft_status_t call_print(stage_t *s)
{
    deft_print_t print = { .struct_size = sizeof(print), .write = t_write, .arg = &s->text };

    return deft_tree_print(s->t->tree, &print);
}

static deft_status_t call_check(stage_t *s)
{
    return deft_tree_check(s->t->tree);
}

static deft_status_t call_step(stage_t *s)
{
    return deft_step_begin(s->w->ctx, NULL, 0, 0, &s->step);
}

static deft_status_t call_step_invariant(stage_t *s)
{
    return deft_step_begin(s->w->ctx, NULL, 0, DEFT_STEP_INVARIANT, &s->step);
}

static deft_status_t call_attend(stage_t *s)
{
    deft_status_t status = deft_step_begin(s->w->ctx, NULL, 0, 0, &s->step);

    if (status != DEFT_OK) {
        return status;
    }
    if (s->buf == NULL) {
        s->buf = t_alloc(2000 * 256 * sizeof(*s->buf));
    }
    for (uint32_t layer = 0; layer < s->w->L && status == DEFT_OK; layer++) {
        status = t_layer(s->step, layer, s->buf, s->buf, s->buf,
                                 s->buf + 1000 * 256);
    }
    if (status != DEFT_OK) {
        deft_step_abandon(s->step);
        s->step = (deft_step_t)DEFT_STEP_INIT;
    }
    return status;
}

static const scene_t scenes[] = {
    { "tree_create", prepare_tree, call_tree_create, true },
    { "fork", prepare_tree, call_fork, false },
    { "fork_at", prepare_tree, call_fork_at, false },
    { "fork_at shared", prepare_shared, call_fork_at, false },
    { "append", prepare_tree, call_append, true },
    { "append without ids", prepare_tree, call_append_no_ids, true },
    { "append fragmented", prepare_fragmented, call_append, false },
    { "truncate", prepare_computed, call_truncate, true },
    { "truncate shared", prepare_shared, call_truncate, true },
    { "share", prepare_computed, call_share, true },
    { "compact chain", prepare_chain, call_compact, false },
    { "compact runs", prepare_runs, call_compact, true },
    { "find", prepare_tree, call_find, true },
    { "print", prepare_tree, call_print, true },
    { "check", prepare_tree, call_check, true },
};

static const scene_t step_scenes[] = {
    { "step_begin cold", prepare_cold, call_step, false },
    { "step_begin", prepare_tree, call_step, true },
    { "step_begin invariant", prepare_tree, call_step_invariant, true },
    { "step_begin fragmented", prepare_fragmented, call_step, true },
    { "whole step", prepare_fragmented, call_attend, true },
};

static deft_config_t config(void)
{
    deft_config_t cfg = t_config(6000);

    cfg.n_layers = 2;
    cfg.n_threads = n_threads;
    cfg.split = split;
    cfg.chunk_tokens = 16;
    return cfg;
}

static size_t snapshot_trees(const stage_t *s, deft_tree_t **trees)
{
    for (size_t i = 0; i < s->w->n_trees; i++) {
        trees[i] = s->w->trees[i]->tree;
    }
    return s->w->n_trees;
}

/* One failure at call n. Returns false where the call no longer reaches it. */
static bool sweep_one(const scene_t *scene, size_t n, bool sticky)
{
    const deft_config_t cfg = config();
    stage_t s = { .w = world_new(&cfg, 5, false) };
    t_bytes_t before = { 0 }, after = { 0 };
    deft_tree_t *trees[8];
    deft_status_t status;
    size_t n_trees;
    bool reached;

    t_note("oom_sweep: %s, allocation %zu%s, split %s, %u threads", scene->name, n,
           sticky ? " and all later" : "", t_split_name(split), n_threads);
    scene->prepare(&s);
    n_trees = snapshot_trees(&s, trees);
    t_snapshot(&before, s.w->ctx, trees, n_trees);
    s.w->mem.fail_at = s.w->mem.calls + n;
    s.w->mem.sticky = sticky;
    s.w->mem.failed = 0;
    status = scene->call(&s);
    reached = s.w->mem.failed != 0;
    s.w->mem.fail_at = SIZE_MAX;
    s.w->mem.sticky = false;
    if (status != DEFT_OK) {
        T_CHECK(reached, "%s without a failed allocation: %s", deft_status_name(status),
                deft_last_error(s.w->ctx));
        T_CHECK(status == DEFT_ERR_NOMEM, "%s, not NOMEM", deft_status_name(status));
        T_CHECK(s.made == NULL && s.step.ctx == NULL, "an output was set");
        t_snapshot(&after, s.w->ctx, trees, n_trees);
        T_CHECK(t_bytes_equal(&before, &after), "the failure changed something");
        T_OK(deft_tree_check(s.t->tree));
        world_verify(s.w);
        s.text.n = 0;
        T_OK(scene->call(&s)); /* now it works */
    }
    T_OK(deft_tree_check(s.t->tree));
    world_free(s.w); /* with a step open, if it opened one; balance is checked */
    t_bytes_free(&before);
    t_bytes_free(&after);
    t_bytes_free(&s.text);
    free(s.buf);
    return reached;
}

static void sweep(const scene_t *scene)
{
    for (int sticky = 0; sticky < 2; sticky++) {
        size_t n = 0;

        while (sweep_one(scene, n, sticky != 0)) {
            n++;
            T_CHECK(n < 10000, "%s never stops allocating", scene->name);
        }
        if (sticky == 0) {
            printf("%-24s %3zu allocations (split %s, %u threads)\n", scene->name, n,
                   t_split_name(split), n_threads);
        }
        T_CHECK(n > 0 || scene->may_run_dry, "%s never allocated", scene->name);
    }
}

static void sweep_ctx_create(void)
{
    for (int sticky = 0; sticky < 2; sticky++) {
        size_t n = 0;
        bool done = false;

        while (!done) {
            deft_config_t cfg = config();
            deft_ctx_t *ctx = NULL;
            deft_status_t status;
            t_mem_t mem;

            t_note("oom_sweep: ctx_create, allocation %zu, %u threads", n, n_threads);
            t_mem_init(&mem);
            mem.fail_at = n++;
            mem.sticky = sticky != 0;
            cfg.allocator = t_mem_hook(&mem);
            status = deft_ctx_create(&cfg, &ctx);
            done = mem.failed == 0;
            T_CHECK(done ? status == DEFT_OK : status == DEFT_ERR_NOMEM || status == DEFT_OK,
                    "%s", deft_status_name(status));
            T_CHECK((ctx != NULL) == (status == DEFT_OK), "the output");
            deft_ctx_destroy(ctx);
            t_mem_balanced(&mem);
        }
        if (sticky == 0) {
            printf("%-24s %3zu allocations (%u threads)\n", "ctx_create", n - 1, n_threads);
        }
        T_CHECK(n > 1, "ctx_create never asked the hook");
    }
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    unsetenv("DEFT_DEBUG_CHECK"); /* it would allocate inside the calls */
    for (n_threads = 1; n_threads <= 2; n_threads++) {
        sweep_ctx_create();
        for (size_t i = 0; i < 5; i++) {
            split = problem_splits[i];
            for (size_t j = 0; j < sizeof(step_scenes) / sizeof(step_scenes[0]); j++) {
                sweep(&step_scenes[j]);
            }
        }
    }
    n_threads = 1;
    split = DEFT_SPLIT_AUTO;
    for (size_t i = 0; i < sizeof(scenes) / sizeof(scenes[0]); i++) {
        sweep(&scenes[i]);
    }
    return 0;
}
