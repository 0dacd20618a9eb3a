/* SPDX-License-Identifier: MIT */
/* Random problems: making them, playing their history. */
#include "problem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- drawing ---- */

stree_t *play_tree(play_t *play)
{
    return play->w->trees[rng_below(&play->rng, play->w->n_trees)];
}

snode_t *play_node(play_t *play, const stree_t *t)
{
    snode_t **list;
    const size_t n = s_nodes(t, &list);
    snode_t *node = list[rng_below(&play->rng, n)];

    free(list);
    return node;
}

snode_t *play_leaf(play_t *play, const stree_t *t)
{
    snode_t **list;
    const size_t n = s_nodes(t, &list);
    snode_t *node = list[rng_below(&play->rng, n)];

    free(list);
    while (node->n_kids != 0) {
        node = node->kids[rng_below(&play->rng, node->n_kids)];
    }
    return node;
}

/* Lengths that divide nothing, and those next to the usual tile sizes. */
static size_t play_len(play_t *play)
{
    static const size_t odd[] = { 1,  2,  3,  5,  7,  13,  15,  16,  17,  31, 32,
                                  33, 37, 63, 64, 65, 127, 128, 129, 191, 257 };
    const size_t pick = rng_below(&play->rng, 10);
    size_t len;

    if (pick == 0) {
        return 0;
    }
    len = pick < 4 ? 1 + rng_below(&play->rng, 4)
                   : odd[rng_below(&play->rng, sizeof(odd) / sizeof(odd[0]))];
    return len <= play->max_len ? len : 1 + rng_below(&play->rng, play->max_len);
}

void play_append(play_t *play, stree_t *t, snode_t *node, size_t n)
{
    world_t *w = play->w;
    int32_t *ids = NULL;
    deft_status_t status;

    if (n == 0 || node->n_kids != 0) {
        return;
    }
    if (rng_chance(&play->rng, 0.8)) {
        ids = t_alloc(n * sizeof(*ids));
        for (size_t i = 0; i < n; i++) {
            ids[i] = rng_chance(&play->rng, 0.02)
                         ? -1
                         : (int32_t)rng_below(&play->rng, (size_t)play->id_range);
        }
    }
    status = s_append(w, t, node, n, ids);
    free(ids);
    if (status == DEFT_ERR_NOSPACE) {
        T_CHECK(world_live(w) + n > w->cfg.pool_tokens / 2,
                "NOSPACE for %zu tokens with %zu of %zu live", n, world_live(w),
                w->cfg.pool_tokens);
    } else {
        T_OK(status);
    }
}

/* ---- building ---- */

static snode_t *build_parent(play_t *play, shape_t shape, snode_t **made, size_t n)
{
    switch (shape) {
    case SHAPE_CHAIN:
        return made[n - 1];
    case SHAPE_STAR:
        return made[0];
    case SHAPE_DEEP:
        return made[n - 1 - rng_below(&play->rng, n < 4 ? n : 4)];
    case SHAPE_LEVELS:
        return made[(n - 1) / 3];
    default:
        return made[rng_below(&play->rng, n)];
    }
}

static size_t build_len(play_t *play, shape_t shape)
{
    switch (shape) {
    case SHAPE_DRAFT:
        return 1;
    case SHAPE_EMPTY:
        return rng_chance(&play->rng, 0.7) ? 0 : play_len(play);
    default:
        return play_len(play);
    }
}

static void build_inside(play_t *play, stree_t *t, size_t n_nodes)
{
    for (size_t n = 1; n < n_nodes;) {
        snode_t *node = play_node(play, t);
        const size_t offset = rng_below(&play->rng, node->len + 1);
        const size_t kids = rng_range(&play->rng, 1, 2);

        T_OK(s_fork_at(play->w, t, node, offset, kids, NULL));
        for (size_t i = 0; i < kids; i++) {
            play_append(play, t, node->kids[node->n_kids - 1 - i], play_len(play));
        }
        n += 1 + kids;
    }
}

void play_build(play_t *play, stree_t *t, shape_t shape, size_t n_nodes)
{
    snode_t **made = t_alloc(n_nodes * sizeof(*made));
    size_t n = 1;

    made[0] = t->root;
    play_append(play, t, t->root, shape == SHAPE_EMPTY ? 0 : play_len(play) + play->max_len / 2);
    if (shape == SHAPE_INSIDE) {
        build_inside(play, t, n_nodes);
        n = n_nodes;
    }
    while (n < n_nodes) {
        snode_t *parent = build_parent(play, shape, made, n);

        T_OK(s_fork(play->w, t, parent, 1));
        made[n] = s_last_kid(parent);
        play_append(play, t, made[n], build_len(play, shape));
        n++;
    }
    free(made);
}

/* ---- the history ---- */

static bool path_computed(const snode_t *node)
{
    while (node != NULL && node->computed == node->len) {
        node = node->parent;
    }
    return node == NULL;
}

static size_t tree_size(const stree_t *t)
{
    snode_t **list;
    const size_t n = s_nodes(t, &list);

    free(list);
    return n;
}

static void mutate_fork(play_t *play, stree_t *t)
{
    snode_t *node = play_node(play, t);
    const size_t n = rng_range(&play->rng, 1, 3);

    if (tree_size(t) + n > play->max_nodes) {
        return;
    }
    if (rng_chance(&play->rng, 0.5)) {
        T_OK(s_fork(play->w, t, node, n));
    } else {
        const size_t left = node->len - node->gone;

        T_OK(s_fork_at(play->w, t, node, node->gone + rng_below(&play->rng, left + 1), n, NULL));
    }
    for (size_t i = 0; i < n; i++) {
        play_append(play, t, node->kids[node->n_kids - 1 - i], rng_below(&play->rng, 4));
    }
}

/* Are the evicted tokens of a path its first ones? */
static bool path_dense(const snode_t *node)
{
    for (; node->parent != NULL; node = node->parent) {
        if (node->gone > 0 && node->parent->gone < node->parent->len) {
            return false;
        }
    }
    return true;
}

/* What came with version 0.2, at a node of the tree. */
static void mutate_compact(play_t *play, stree_t *t, snode_t *node)
{
    world_t *w = play->w;
    size_t n = 0;

    if (play->as_0_1) {
        return;
    }
    switch (rng_below(&play->rng, 8)) {
    case 0:
        node = rng_chance(&play->rng, 0.5) ? t->root : node;
        T_OK(s_evict(w, t, node, rng_below(&play->rng, node->computed + 1)));
        break;
    case 1:
        T_OK(s_evict_unseen(w, t, &n));
        break;
    case 2:
        if (tree_size(t) < play->max_nodes) {
            const int32_t ids[3] = { 1, -1, 2 };
            const deft_status_t status =
                s_fork_append(w, t, node, rng_range(&play->rng, 1, 3), ids);

            T_CHECK(status == DEFT_OK || status == DEFT_ERR_NOSPACE, "fork_append: %s",
                    deft_status_name(status));
        }
        break;
    default:
        T_OK(s_compact(w, t, rng_chance(&play->rng, 0.5) ? t->root : node,
                       rng_chance(&play->rng, 0.5) ? 0 : rng_range(&play->rng, 1, 200),
                       rng_chance(&play->rng, 0.5) ? DEFT_COMPACT_CHAINS : DEFT_COMPACT_MOVE, &n));
    }
}

static void mutate_share(play_t *play, stree_t *t)
{
    snode_t *node = play_node(play, t);
    stree_t *fresh = NULL;

    if (play->w->n_trees >= play->max_trees || !path_computed(node) || !path_dense(node)) {
        return;
    }
    T_OK(world_share(play->w, t, node, &fresh));
    play_append(play, fresh, fresh->root, rng_range(&play->rng, 1, 5));
}

static void mutate_trees(play_t *play, stree_t *t)
{
    if (play->w->n_trees > 1 && rng_chance(&play->rng, 0.5)) {
        world_drop(play->w, t);
    } else if (play->w->n_trees < play->max_trees) {
        stree_t *fresh = world_tree(play->w);

        play_append(play, fresh, fresh->root, rng_range(&play->rng, 1, 9));
    }
}

void play_mutate(play_t *play)
{
    world_t *w = play->w;
    stree_t *t = play_tree(play);
    const size_t pick = rng_below(&play->rng, 20);
    snode_t *node;

    if (pick < 5) {
        play_append(play, t, play_leaf(play, t), rng_range(&play->rng, 1, 8));
    } else if (pick < 9) {
        mutate_fork(play, t);
    } else if (pick < 12) {
        node = play_node(play, t);
        if (node != t->root) {
            T_OK(s_prune(w, t, node));
        }
    } else if (pick < 14) {
        node = play_leaf(play, t);
        T_OK(
            s_truncate(w, t, node, node->gone + rng_below(&play->rng, node->len - node->gone + 1)));
    } else if (pick < 15) {
        T_OK(s_commit(w, t, play_node(play, t),
                      rng_chance(&play->rng, 0.7) ? DEFT_COMMIT_SUBTREE : DEFT_COMMIT_PATH));
    } else if (pick < 17) {
        node = play_node(play, t);
        mutate_compact(play, t, rng_chance(&play->rng, 0.5) ? node : play_node(play, t));
    } else if (pick < 19) {
        mutate_share(play, t);
    } else {
        mutate_trees(play, t);
    }
}

bool play_uncomputed(const world_t *w)
{
    bool found = false;

    for (size_t i = 0; i < w->n_trees && !found; i++) {
        snode_t **list;
        const size_t n = s_nodes(w->trees[i], &list);

        for (size_t j = 0; j < n && !found; j++) {
            found = list[j]->computed < list[j]->len;
        }
        free(list);
    }
    return found;
}

/* A node may join where all above it is computed or joins in full. */
static bool row_allowed(const snode_t *node, const srow_t *rows, size_t n)
{
    for (const snode_t *up = node->parent; up != NULL; up = up->parent) {
        bool full = up->computed == up->len;

        for (size_t i = 0; i < n && !full; i++) {
            full = rows[i].node == up && (rows[i].n == 0 || up->computed + rows[i].n == up->len);
        }
        if (!full) {
            return false;
        }
    }
    return true;
}

size_t play_rows(play_t *play, srow_t **rows_p)
{
    const world_t *w = play->w;
    srow_t *rows = NULL;
    size_t n = 0;

    for (size_t i = 0; i < w->n_trees; i++) {
        snode_t **list;
        const size_t n_nodes = s_nodes(w->trees[i], &list);

        for (size_t j = 0; j < n_nodes; j++) {
            const size_t left = list[j]->len - list[j]->computed;

            if (left == 0 || rng_chance(&play->rng, 0.25) || !row_allowed(list[j], rows, n)) {
                continue;
            }
            rows = t_grow(rows, (n + 1) * sizeof(*rows));
            rows[n++] =
                (srow_t){ w->trees[i], list[j],
                          rng_chance(&play->rng, 0.7) ? 0 : rng_range(&play->rng, 1, left) };
        }
        free(list);
    }
    for (size_t i = n; i > 1; i--) { /* any order will do */
        const size_t j = rng_below(&play->rng, i);
        const srow_t row = rows[j];

        rows[j] = rows[i - 1];
        rows[i - 1] = row;
    }
    *rows_p = rows;
    return n;
}

static void history_step(play_t *play, const variant_t *v, bool list, problem_step_fn on_step,
                         void *arg, size_t step)
{
    world_t *w = play->w;
    srow_t *rows = NULL;
    size_t n = 0;
    sstep_t ss;

    if (list) {
        n = play_rows(play, &rows);
    }
    if (v->fresh) {
        T_OK(deft_ctx_set_split(w->ctx, v->split == DEFT_SPLIT_NODE ? DEFT_SPLIT_FLATTEN
                                                                    : DEFT_SPLIT_NODE));
        T_OK(deft_ctx_set_split(w->ctx, v->split));
    }
    world_step(w, n != 0 ? rows : NULL, n, v->flags, v->how, &ss);
    on_step(arg, w, &ss, step);
    sstep_free(&ss);
    free(rows);
}

/* Leaves grow by one, all or nearly all: what a patched plan is for. */
static void history_decode(play_t *play, double p)
{
    const world_t *w = play->w;

    for (size_t i = 0; i < w->n_trees; i++) {
        snode_t **list;
        const size_t n = s_nodes(w->trees[i], &list);

        for (size_t j = 0; j < n; j++) {
            if (list[j]->n_kids == 0 && rng_chance(&play->rng, p)) {
                play_append(play, w->trees[i], list[j], 1);
            }
        }
        free(list);
    }
}

static world_t *problem_world(const problem_t *p, const variant_t *v)
{
    deft_config_t cfg = t_config(p->pool_tokens);
    float sinks[64];
    world_t *w;
    rng_t rng;

    rng_init(&rng, p->seed ^ 0x51);
    for (size_t i = 0; i < 64; i++) {
        t_fill(rng_u64(&rng), 2, &sinks[i], 1);
    }
    cfg.device = v->device;
    cfg.n_layers = p->n_layers;
    cfg.n_kv_heads = p->n_kv_heads;
    cfg.n_q_heads = p->n_kv_heads * p->ratio;
    cfg.head_dim = p->head_dim;
    cfg.kv_type = p->kv_type;
    cfg.act_type = v->device == DEFT_DEVICE_CUDA ? p->kv_type : p->act_type;
    cfg.n_threads = v->threads;
    cfg.isa = v->isa;
    cfg.split = v->split;
    cfg.chunk_tokens = v->chunk;
    cfg.scale = p->scale;
    cfg.softcap = p->softcap;
    cfg.window = p->window;
    cfg.windows = p->use_windows ? p->windows : NULL;
    cfg.sinks = p->use_sinks ? sinks : NULL;
    w = world_new(&cfg, p->seed, true);
    w->amp[W_Q] = p->amp_q;
    w->misalign = p->seed % 3 == 0 ? 0 : p->seed % 16;
    return w;
}

void problem_run(const problem_t *p, const variant_t *v, problem_step_fn on_step, void *arg)
{
    play_t play = { .max_trees = 4,
                    .max_nodes = p->n_nodes + 40,
                    .max_len = p->max_len,
                    .id_range = 5,
                    .as_0_1 = p->as_0_1 };
    world_t *w = problem_world(p, v);
    size_t step = 0, decodes = 0;

    play.w = w;
    rng_init(&play.rng, p->seed);
    for (size_t i = 0; i < p->n_trees; i++) {
        play_build(&play, world_tree(w),
                   i == 0 ? p->shape : (shape_t)rng_below(&play.rng, SHAPE_COUNT),
                   i == 0 ? p->n_nodes : 1 + rng_below(&play.rng, 6));
        if (!p->one_prefill && play_uncomputed(w)) {
            history_step(&play, v, false, on_step, arg, step++);
        }
    }
    while (step < p->n_steps) {
        if (decodes == 0 && rng_chance(&play.rng, 0.5)) {
            decodes = 1 + rng_below(&play.rng, 4);
        }
        const bool decode = decodes > 0;

        if (decode) {
            history_decode(&play, rng_chance(&play.rng, 0.8) ? 1.0 : 0.7);
            decodes--;
        } else {
            for (size_t i = 1 + rng_below(&play.rng, 5); i > 0; i--) {
                play_mutate(&play);
            }
        }
        if (!play_uncomputed(w)) {
            stree_t *t = play_tree(&play);

            play_append(&play, t, play_leaf(&play, t), 1);
            if (!play_uncomputed(w)) { /* the pool is full */
                T_OK(s_commit(w, t, play_leaf(&play, t), DEFT_COMMIT_PATH));
                continue;
            }
        }
        history_step(&play, v, rng_chance(&play.rng, decode ? 0.1 : 0.4), on_step, arg, step++);
    }
    T_OK(deft_tree_check(w->trees[0]->tree));
    world_free(w);
}

/* ---- making ---- */

const deft_split_t problem_splits[5] = { DEFT_SPLIT_AUTO, DEFT_SPLIT_NODE, DEFT_SPLIT_NODE_CHUNK,
                                         DEFT_SPLIT_FLATTEN, DEFT_SPLIT_SEQUENCE };

size_t problem_lanes(deft_dtype_t type, lane_t *lanes)
{
    const char *device = getenv("DEFT_TEST_DEVICE");
    size_t n = 0;

    if (device != NULL && strcmp(device, "cuda") == 0) {
        for (; type != DEFT_F32 && n < 2; n++) {
            lanes[n] = (lane_t){ DEFT_DEVICE_CUDA, DEFT_ISA_BEST };
        }
        return n;
    }
    lanes[n++] = (lane_t){ DEFT_DEVICE_CPU, DEFT_ISA_SCALAR };
    for (int isa = DEFT_ISA_VECTOR; isa <= DEFT_ISA_AMX_BF16; isa++) {
        deft_config_t cfg = t_config(64);
        world_t *w = NULL;
        deft_status_t status;

        cfg.kv_type = type;
        cfg.isa = (deft_isa_t)isa;
        status = world_try(&cfg, 1, false, &w);
        T_CHECK(status == DEFT_OK || status == DEFT_ERR_UNSUPPORTED, "isa %s: %s",
                t_isa_name((deft_isa_t)isa), deft_status_name(status));
        if (status == DEFT_OK) {
            T_CHECK((int)w->info.isa <= isa, "asked for %s, got %s", t_isa_name((deft_isa_t)isa),
                    t_isa_name(w->info.isa));
            lanes[n++] = (lane_t){ DEFT_DEVICE_CPU, (deft_isa_t)isa };
            world_free(w);
        }
    }
    return n;
}

void problem_make(problem_t *p, uint64_t seed, size_t index, deft_dtype_t type)
{
    static const uint32_t dims[] = { 64, 80, 96, 128, 256 };
    static const uint32_t ratios[] = { 1, 2, 3, 4, 8 };
    rng_t rng;

    memset(p, 0, sizeof(*p));
    p->seed = t_mix(seed, index);
    rng_init(&rng, p->seed ^ 0x9e37);
    p->kv_type = type;
    p->act_type = type != DEFT_F32 && index % 7 == 3 ? type : DEFT_F32;
    p->head_dim = dims[index % 5];
    p->ratio = ratios[index / 5 % 5];
    p->shape = (shape_t)(index / 3 % SHAPE_COUNT);
    p->n_kv_heads = 1 + (uint32_t)rng_below(&rng, p->ratio <= 2 ? 3 : 2);
    p->n_layers = 1 + (uint32_t)rng_chance(&rng, 0.3);
    p->n_trees = rng_chance(&rng, 0.3) ? 2 + rng_below(&rng, 2) : 1;
    p->one_prefill = rng_chance(&rng, 0.4);
    p->amp_q = rng_chance(&rng, 0.5) ? 1.0f : rng_chance(&rng, 0.5) ? 0.25f : 2.0f;
    p->pool_tokens = 1500;
    p->n_steps = 3 + rng_below(&rng, 6);
    p->max_rows = 24;
    if (index % 50 == 49) { /* large: a few hundred to two thousand short nodes */
        const bool deep = p->shape == SHAPE_CHAIN || p->shape == SHAPE_DEEP ||
                          p->shape == SHAPE_INSIDE;

        p->n_nodes = 200 + rng_below(&rng, deep ? 100 : index % 100 == 99 ? 1800 : 300);
        p->max_len = 4;
        p->pool_tokens = 12000;
        p->head_dim = dims[index / 50 % 3];
        p->ratio = 1 + (uint32_t)rng_below(&rng, 3);
        p->n_kv_heads = 1;
        p->n_layers = 1;
        p->n_trees = 1;
        p->n_steps = 4;
    } else if (index % 10 == 7) { /* long nodes */
        p->n_nodes = 1 + rng_below(&rng, 4);
        p->max_len = 260;
        p->pool_tokens = 4000;
        p->n_layers = 1;
    } else {
        p->n_nodes = 1 + rng_below(&rng, index % 4 == 0 ? 60 : 12);
        p->max_len = p->n_nodes > 20 ? 9 : p->n_nodes > 6 ? 34 : 66;
    }
    if (p->n_kv_heads * p->ratio * p->head_dim > 1024) {
        p->n_kv_heads = 1;
    }
    if (rng_chance(&rng, 0.2)) { /* logits of a usual size: large ones cost float its digits */
        p->scale = (0.5f + 0.1f * (float)rng_below(&rng, 10)) / sqrtf((float)p->head_dim);
    }
    if (rng_chance(&rng, 0.2)) {
        p->softcap = 2.0f + (float)rng_below(&rng, 30);
    }
    p->window = rng_chance(&rng, 0.15) ? 1 + (uint32_t)rng_below(&rng, 70) : 0;
    p->use_windows = rng_chance(&rng, 0.15);
    p->windows[0] = rng_chance(&rng, 0.5) ? 0 : 1 + (uint32_t)rng_below(&rng, 40);
    p->windows[1] = rng_chance(&rng, 0.5) ? 0 : 1 + (uint32_t)rng_below(&rng, 200);
    p->use_sinks = rng_chance(&rng, 0.2);
}
