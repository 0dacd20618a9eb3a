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

/* Does the call allocate? */
enum { NEVER, MAY, MUST };

typedef struct scene {
    const char *name;
    void (*prepare)(stage_t *s);
    deft_status_t (*call)(stage_t *s);
    int allocates;
    bool hooks; /* nodes carry states, cloned through the allocator */
} scene_t;

/* ---- states of nodes ---- */

static t_mem_t *hook_mem; /* of the context that is swept */

static deft_status_t clone_state(void *arg, void *user, void **copy_p)
{
    const deft_allocator_t hook = t_mem_hook(hook_mem);
    uint64_t *copy = hook.alloc(hook.arg, sizeof(*copy), 8, "state");

    (void)arg;
    if (copy == NULL) {
        return DEFT_ERR_NOMEM;
    }
    *copy = *(uint64_t *)user;
    *copy_p = copy;
    return DEFT_OK;
}

static void free_state(void *arg, void *user)
{
    const deft_allocator_t hook = t_mem_hook(hook_mem);

    (void)arg;
    hook.free(hook.arg, user, sizeof(uint64_t));
}

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

/* Free slots are single ones. */
static void prepare_chequer(stage_t *s)
{
    prepare_tree(s);
    const size_t n = s->w->info.pool_tokens - world_info(s->w).live_tokens;

    T_OK(s_fork(s->w, s->t2, s->t2->root, n));
    for (size_t i = 0; i < n; i++) {
        T_OK(s_append(s->w, s->t2, s_kid(s->t2->root, i), 1, NULL));
    }
    for (size_t i = 0; i < n / 2; i++) {
        T_OK(s_prune(s->w, s->t2, s_kid(s->t2->root, i)));
    }
}

static void prepare_shared(stage_t *s)
{
    stree_t *copy = NULL;

    prepare_computed(s);
    T_OK(world_share(s->w, s->t, s->node, &copy));
}

/* A state on the node that the call is about; the shadow knows its pointer. */
static void prepare_states(stage_t *s)
{
    uint64_t first = 4;
    void *user = NULL;

    prepare_computed(s);
    hook_mem = &s->w->mem;
    T_OK(clone_state(NULL, &first, &user));
    T_OK(s_set_user(s->w, s->t, s->node, user));
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

static deft_status_t call_fork_append(stage_t *s)
{
    return deft_tree_fork_append(s->t->tree, s->node->h, 400, NULL, s->kids);
}

static deft_status_t call_fork_few(stage_t *s)
{
    return deft_tree_fork(s->t->tree, s->node->h, 20, s->kids);
}

static deft_status_t call_fork_at_few(stage_t *s)
{
    deft_node_t tail;

    return deft_tree_fork_at(s->t->tree, s->node->h, s->node->len / 2, 20, s->kids, &tail);
}

static deft_status_t call_evict(stage_t *s)
{
    return deft_tree_evict(s->t->tree, s->node->h, s->node->computed / 2);
}

static deft_status_t call_evict_unseen(stage_t *s)
{
    size_t freed;

    return deft_tree_evict_unseen(s->t->tree, &freed);
}

static deft_status_t call_prune(stage_t *s)
{
    return deft_tree_prune(s->t->tree, s->node->h);
}

static deft_status_t call_commit(stage_t *s)
{
    return deft_tree_commit(s->t->tree, s->node->h, DEFT_COMMIT_PATH);
}

static deft_status_t call_footprint(stage_t *s)
{
    deft_footprint_t fp = DEFT_FOOTPRINT_INIT;

    return deft_tree_footprint(s->t->tree, s->t->root->h, &fp);
}

static deft_status_t call_trim(stage_t *s)
{
    return deft_ctx_trim(s->w->ctx);
}

static deft_status_t call_compact_move(stage_t *s)
{
    return deft_tree_compact(s->t2->tree, s->t2->root->h, 30, DEFT_COMPACT_MOVE, NULL);
}

/* A scattered node between those of others: they are in its way. */
static void prepare_crowded(stage_t *s)
{
    prepare_chequer(s);
    T_OK(s_append(s->w, s->t, s->node, (s->w->info.pool_tokens - world_info(s->w).live_tokens) / 2,
                  NULL));
}

static deft_status_t call_compact_crowded(stage_t *s)
{
    return deft_tree_compact(s->t->tree, s->node->h, 100, DEFT_COMPACT_MOVE, NULL);
}

/* A chain below a branch, with tokens that wait and a node of none in it. */
static void prepare_chains(stage_t *s)
{
    prepare_chain(s);
    T_OK(s_fork(s->w, s->t2, s->t2->root, 1));
    s->node = s_last_kid(s->t2->root);
    for (size_t i = 0; i < 30; i++) {
        T_OK(s_fork(s->w, s->t2, s->node, 1));
        s->node = s_kid(s->node, 0);
        if (i % 5 != 4) {
            T_OK(s_append(s->w, s->t2, s->node, 3, NULL));
            T_OK(s_append(s->w, s->t2,
                          s_kid(s->t2->root, 0)->n_kids == 0 ? s_kid(s->t2->root, 0) : s->node, 1,
                          NULL));
        }
    }
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
        status = t_layer(s->step, layer, s->buf, s->buf, s->buf, s->buf + 1000 * 256);
    }
    if (status != DEFT_OK) {
        deft_step_abandon(s->step);
        s->step = (deft_step_t)DEFT_STEP_INIT;
    }
    return status;
}

static const scene_t scenes[] = {
    { "tree_create", prepare_tree, call_tree_create, MAY, false },
    { "fork", prepare_tree, call_fork, MUST, false },
    { "fork with states", prepare_states, call_fork_few, MUST, true },
    { "fork_append", prepare_tree, call_fork_append, MAY, false },
    { "fork_append fragmented", prepare_chequer, call_fork_append, MUST, false },
    { "fork_append, a state", prepare_states, call_fork_append, MUST, true },
    { "fork_at", prepare_tree, call_fork_at, MUST, false },
    { "fork_at shared", prepare_shared, call_fork_at, MUST, false },
    { "fork_at with states", prepare_states, call_fork_at_few, MUST, true },
    { "append", prepare_tree, call_append, MAY, false },
    { "append without ids", prepare_tree, call_append_no_ids, MAY, false },
    { "append fragmented", prepare_fragmented, call_append, MUST, false },
    { "truncate", prepare_computed, call_truncate, NEVER, false },
    { "truncate shared", prepare_shared, call_truncate, NEVER, false },
    { "prune", prepare_computed, call_prune, NEVER, false },
    { "prune shared", prepare_shared, call_prune, NEVER, false },
    { "commit", prepare_shared, call_commit, NEVER, false },
    { "evict", prepare_computed, call_evict, NEVER, false },
    { "evict shared", prepare_shared, call_evict, NEVER, false },
    { "evict_unseen", prepare_shared, call_evict_unseen, NEVER, false },
    { "share", prepare_computed, call_share, MAY, false },
    { "share with a state", prepare_states, call_share, MUST, true },
    { "compact chain", prepare_chain, call_compact, MUST, false },
    { "compact chains", prepare_chains, call_compact, MUST, false },
    { "compact runs", prepare_runs, call_compact, MAY, false },
    { "compact, moving", prepare_fragmented, call_compact_move, MAY, false },
    { "compact, crowded", prepare_crowded, call_compact_crowded, MUST, false },
    { "trim", prepare_shared, call_trim, NEVER, false },
    { "footprint", prepare_shared, call_footprint, NEVER, false },
    { "find", prepare_tree, call_find, MAY, false },
    { "print", prepare_tree, call_print, NEVER, false },
    { "check", prepare_tree, call_check, MAY, false },
};

static const scene_t step_scenes[] = {
    { "step_begin cold", prepare_cold, call_step, MUST, false },
    { "step_begin", prepare_tree, call_step, MAY, false },
    { "step_begin invariant", prepare_tree, call_step_invariant, MAY, false },
    { "step_begin fragmented", prepare_fragmented, call_step, MAY, false },
    { "whole step", prepare_fragmented, call_attend, MAY, false },
};

static deft_config_t config(void)
{
    deft_config_t cfg = t_config(6000);

    cfg.n_layers = 2;
    cfg.n_threads = n_threads;
    cfg.split = split;
    cfg.chunk_tokens = 16;
    cfg.window = split == DEFT_SPLIT_AUTO ? 24 : 0;
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
    deft_config_t cfg = config();
    cfg.hooks = (deft_node_hooks_t){ scene->hooks ? clone_state : NULL,
                                     scene->hooks ? free_state : NULL, NULL };
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
        T_CHECK(n > 0 || scene->allocates != MUST, "%s never allocated", scene->name);
        T_CHECK(n == 0 || scene->allocates != NEVER, "%s allocates", scene->name);
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
            T_CHECK(done ? status == DEFT_OK : status == DEFT_ERR_NOMEM || status == DEFT_OK, "%s",
                    deft_status_name(status));
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
