/* SPDX-License-Identifier: MIT */
/* DEFT_STEP_INVARIANT: the output bits of a row depend on its own path alone. One path of fixed
 * nodes and fixed KV is played in many surroundings (scenes): alone, among siblings, beside other
 * trees, in a fragmented pool, computed at once or piece by piece, with one thread or two. Each row
 * of the path has to come out with the same bits in all of them. */
#include "problem.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATH_MAX_NODES = 6, PATH_MAX_ROWS = 1200 };

typedef struct path {
    size_t n_nodes;
    size_t len[PATH_MAX_NODES];
    size_t n_rows;
    uint64_t seed;
} path_t;

typedef struct scene {
    world_t *w;
    rng_t rng;
    const path_t *path;
    stree_t *t;
    snode_t *at[PATH_MAX_NODES]; /* the path's nodes */
    size_t first_row[PATH_MAX_NODES];
    float *out; /* [n_rows][n_layers][Hq * D] of the path's rows */
    bool alone;
    double noise; /* how much else there is */
} scene_t;

static uint64_t row_key(const path_t *path, size_t row)
{
    return t_mix(path->seed, row + 1);
}

/* ---- surroundings ---- */

/* Which node of the path it is; PATH_MAX_NODES: none. */
static size_t on_path(const scene_t *s, const snode_t *node)
{
    size_t i = 0;

    while (i < PATH_MAX_NODES && s->at[i] != node) {
        i++;
    }
    return i;
}

static void noise_append(scene_t *s, stree_t *t, snode_t *node)
{
    if (!s->alone && node->n_kids == 0 && on_path(s, node) == PATH_MAX_NODES) {
        T_OK(s_append(s->w, t, node, rng_range(&s->rng, 1, rng_chance(&s->rng, 0.2) ? 90 : 5),
                      NULL));
    }
}

/* Other branches off the path: fork, fork_at, grow and prune, never touching the path's nodes. */
static void noise_branch(scene_t *s, stree_t *t)
{
    snode_t **list;
    const size_t n = s_nodes(t, &list);
    snode_t *node = list[rng_below(&s->rng, n)];
    const size_t pick = rng_below(&s->rng, 6);

    free(list);
    if (on_path(s, node) < PATH_MAX_NODES) {
        if (node->len == s->path->len[on_path(s, node)]) { /* forked, it could not grow any more */
            T_OK(s_fork(s->w, t, node, 1));
            noise_append(s, t, s_last_kid(node));
        }
    } else if (pick == 0 && node->parent != NULL) {
        T_OK(s_prune(s->w, t, node));
    } else if (pick == 1) {
        T_OK(s_fork_at(s->w, t, node, rng_below(&s->rng, node->len + 1), 1, NULL));
        noise_append(s, t, s_last_kid(node));
    } else if (pick == 2) {
        T_OK(s_fork(s->w, t, node, 2));
        noise_append(s, t, s_last_kid(node));
    } else {
        noise_append(s, t, node);
    }
}

static void noise(scene_t *s)
{
    while (!s->alone && rng_chance(&s->rng, s->noise)) {
        stree_t *t = s->w->trees[rng_below(&s->rng, s->w->n_trees)];

        if (s->w->n_trees < 4 && rng_chance(&s->rng, 0.2)) {
            t = world_tree(s->w);
            noise_append(s, t, t->root);
        } else {
            noise_branch(s, t);
        }
    }
}

/* ---- the path ---- */

/* In pieces with appends elsewhere between them, so that its slots lie in many runs. */
static void path_append(scene_t *s, size_t i)
{
    const path_t *path = s->path;

    while (s->at[i]->len < path->len[i]) {
        const size_t left = path->len[i] - s->at[i]->len;
        const size_t n = s->alone || rng_chance(&s->rng, 0.3) ? left : rng_range(&s->rng, 1, left);
        uint64_t keys[PATH_MAX_ROWS];

        for (size_t j = 0; j < n; j++) {
            keys[j] = row_key(path, s->first_row[i] + s->at[i]->len + j);
        }
        T_OK(s_append_keys(s->w, s->t, s->at[i], n, NULL, keys));
        noise(s);
    }
}

static void scene_store(scene_t *s, const sstep_t *ss)
{
    const size_t width = (size_t)s->w->Hq * s->w->D;

    for (size_t row = 0; row < ss->n; row++) {
        for (size_t i = 0; i < s->path->n_nodes; i++) {
            if (s->at[i] != ss->node[row]) {
                continue;
            }
            for (uint32_t layer = 0; layer < s->w->L; layer++) {
                memcpy(s->out + ((s->first_row[i] + ss->off[row]) * s->w->L + layer) * width,
                       sstep_row(s->w, ss, layer, row), width * sizeof(float));
            }
        }
    }
}

static void scene_step(scene_t *s)
{
    play_t play = { .w = s->w };
    srow_t *rows = NULL;
    size_t n = 0;
    sstep_t ss;

    if (!s->alone && rng_chance(&s->rng, 0.5)) {
        play.rng = s->rng;
        n = play_rows(&play, &rows);
        s->rng = play.rng;
    }
    if (play_uncomputed(s->w)) {
        world_step(s->w, n != 0 ? rows : NULL, n, DEFT_STEP_INVARIANT, (int)(s->rng.s[0] % 2), &ss);
        scene_store(s, &ss);
        sstep_free(&ss);
    }
    free(rows);
}

static void scene_play(scene_t *s)
{
    s->t = s->w->n_trees != 0 && !s->alone ? NULL : world_tree(s->w);
    if (s->t == NULL) {
        noise(s);
        s->t = world_tree(s->w);
    }
    s->at[0] = s->t->root;
    for (size_t i = 0; i < s->path->n_nodes; i++) {
        if (i != 0) {
            const size_t before = s->alone ? 0 : rng_below(&s->rng, 3);

            T_OK(s_fork(s->w, s->t, s->at[i - 1], 1 + before));
            s->at[i] = s_last_kid(s->at[i - 1]);
            for (size_t k = 0; k < before; k++) {
                noise_append(s, s->t, s_kid(s->at[i - 1], k));
            }
        }
        path_append(s, i);
        noise(s);
        if (!s->alone && rng_chance(&s->rng, 0.5)) {
            scene_step(s);
        }
    }
    while (play_uncomputed(s->w)) {
        scene_step(s);
    }
}

/* The outputs of the path's rows in one scene. */
static float *scene_run(const deft_config_t *cfg, const path_t *path, uint64_t seed, bool alone)
{
    scene_t s = { .path = path, .alone = alone };
    size_t first = 0;

    s.w = world_new(cfg, seed, true);
    rng_init(&s.rng, seed);
    s.noise = 0.2 + 0.1 * (double)rng_below(&s.rng, 6);
    for (size_t i = 0; i < path->n_nodes; i++) {
        s.first_row[i] = first;
        first += path->len[i];
    }
    s.out = t_alloc(path->n_rows * s.w->L * s.w->Hq * s.w->D * sizeof(*s.out));
    if (!alone && rng_chance(&s.rng, 0.6)) { /* holes in the pool, another tree first */
        stree_t *t = world_tree(s.w);

        noise_append(&s, t, t->root);
        noise(&s);
    }
    scene_play(&s);
    world_free(s.w);
    return s.out;
}

static void path_make(path_t *path, rng_t *rng, uint64_t seed)
{
    static const size_t lens[] = { 1, 2, 3, 5, 16, 17, 31, 37, 64, 65, 100, 130 };

    path->seed = seed;
    path->n_rows = 0;
    path->n_nodes = rng_range(rng, 1, PATH_MAX_NODES);
    for (size_t i = 0; i < path->n_nodes; i++) {
        path->len[i] = rng_chance(rng, 0.1) ? 0 : lens[rng_below(rng, 12)];
        if (i == 0 && rng_chance(rng, 0.15)) {
            path->len[i] = 530; /* beyond a chunk */
        }
        path->n_rows += path->len[i];
    }
    if (path->n_rows == 0) {
        path->len[0] = path->n_rows = 7;
    }
}

static void compare_scenes(const deft_config_t *cfg, const path_t *path, const float *want,
                           uint64_t seed)
{
    const size_t per_row = (size_t)cfg->n_layers * cfg->n_q_heads * cfg->head_dim;
    float *out = scene_run(cfg, path, seed, false);
    size_t row = 0, node = 0, end = path->len[0];

    for (; row < path->n_rows; row++) {
        while (row >= end) {
            end += path->len[++node];
        }
        T_CHECK(memcmp(out + row * per_row, want + row * per_row, per_row * sizeof(*out)) == 0,
                "row %zu of %zu (in node %zu of %zu, len %zu): other bits in this scene: %.9g, "
                "alone %.9g",
                row, path->n_rows, node, path->n_nodes, path->len[node], (double)out[row * per_row],
                (double)want[row * per_row]);
    }
    free(out);
}

static void run_type(deft_dtype_t type)
{
    static const uint32_t dims[] = { 64, 80, 96, 128, 256 };
    static const uint32_t ratios[] = { 1, 2, 3, 4, 8 };
    const uint64_t seed = t_seed(4711);
    const size_t n = t_count(60);
    lane_t lanes[LANES_MAX];
    const size_t n_lanes = problem_lanes(type, lanes);

    for (size_t i = 0; i < n && n_lanes > 0; i++) {
        deft_config_t cfg = t_config(20000);
        path_t path;
        float *want;
        rng_t rng;

        rng_init(&rng, t_mix(seed, i));
        path_make(&path, &rng, t_mix(seed, i ^ 0x100000));
        cfg.device = lanes[i % n_lanes].device;
        cfg.isa = lanes[i % n_lanes].isa;
        cfg.split = problem_splits[i / n_lanes % 5];
        cfg.kv_type = type;
        cfg.head_dim = dims[rng_below(&rng, 5)];
        cfg.n_kv_heads = 1 + (uint32_t)rng_below(&rng, 2);
        cfg.n_q_heads = cfg.n_kv_heads * ratios[rng_below(&rng, 5)];
        cfg.window = rng_chance(&rng, 0.2) ? 1 + (uint32_t)rng_below(&rng, 90) : 0;
        cfg.softcap = rng_chance(&rng, 0.2) ? 20 : 0;
        t_note(
            "test_batch_invariance %zu seed %#llx: %s, isa %s (device %d), split %s, D %u, heads "
            "%u/%u, window %u",
            i, (unsigned long long)seed, t_type_name(type), t_isa_name(cfg.isa), cfg.device,
            t_split_name(cfg.split), cfg.head_dim, cfg.n_q_heads, cfg.n_kv_heads, cfg.window);
        want = scene_run(&cfg, &path, 1, true);
        for (size_t k = 0; k < 4; k++) {
            cfg.n_threads = 1 + (uint32_t)(k % 2);
            compare_scenes(&cfg, &path, want, t_mix(seed, i * 16 + k));
        }
        free(want);
    }
}

START_TEST(test_attn_invariant_f32)
{
    run_type(DEFT_F32);
}
END_TEST

START_TEST(test_attn_invariant_f16)
{
    run_type(DEFT_F16);
}
END_TEST

START_TEST(test_attn_invariant_bf16)
{
    run_type(DEFT_BF16);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_attn_invariant_f32,
        test_attn_invariant_f16,
        test_attn_invariant_bf16,
    };

    return suite_run("batch_invariance", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
