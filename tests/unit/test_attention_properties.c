/* SPDX-License-Identifier: MIT */
/* Attention has properties that need no oracle: constant V gives constant O, one token gives its
 * own V, equal logits give the mean; and what one branch holds, NaN included, is no other's
 * business. Each on every instruction set, KV type and split. */
#include "problem.h"
#include "suite.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the grid ---- */

typedef struct cell {
    deft_config_t cfg;
    size_t index;
    uint64_t seed;
} cell_t;

typedef void (*cell_fn)(const cell_t *cell);

static void grid(cell_fn fn)
{
    static const uint32_t dims[] = { 64, 80, 96, 128, 256 };
    static const uint32_t ratios[] = { 1, 4, 2, 8, 3 };
    cell_t cell = { .seed = t_seed(77) };
    /* Below scale 1 a sample of the cells; odd, so that it meets every split and thread count. */
    const size_t stride = t_scale() < 1 ? 2 * (size_t)(0.5 / t_scale()) + 1 : 1;

    for (int type = DEFT_F32; type <= DEFT_BF16; type++) {
        lane_t lanes[LANES_MAX];
        const size_t n = problem_lanes((deft_dtype_t)type, lanes);

        for (size_t i = 0; i < n * 5 * 2; i++, cell.index++) {
            const lane_t lane = lanes[i / 10];

            if (cell.index % stride != 0) {
                continue;
            }
            cell.cfg = t_config(700);
            cell.cfg.device = lane.device;
            cell.cfg.isa = lane.isa;
            cell.cfg.kv_type = (deft_dtype_t)type;
            cell.cfg.split = problem_splits[i % 5];
            cell.cfg.chunk_tokens = i % 10 < 5 ? 32 : 0;
            cell.cfg.n_threads = 1 + (i / 5) % 2;
            cell.cfg.n_layers = 1 + (uint32_t)(i % 3 == 0);
            cell.cfg.head_dim = dims[cell.index % 5];
            cell.cfg.n_kv_heads = 2;
            cell.cfg.n_q_heads = 2 * ratios[cell.index / 2 % 5];
            t_note("test_attention_properties cell %zu seed %#llx: %s, isa %s (device %d), "
                   "split %s, chunk %u, threads %u, D %u, heads %u/2",
                   cell.index, (unsigned long long)cell.seed, t_type_name(cell.cfg.kv_type),
                   t_isa_name(lane.isa), lane.device, t_split_name(cell.cfg.split),
                   cell.cfg.chunk_tokens, cell.cfg.n_threads, cell.cfg.head_dim,
                   cell.cfg.n_q_heads);
            fn(&cell);
        }
    }
}

/* A prompt, four branches, and a draft tree below the second: all uncomputed. */
static stree_t *small_tree(world_t *w, const cell_t *cell)
{
    play_t play = { .w = w, .max_trees = 1, .max_nodes = 40, .max_len = 40, .id_range = 9 };
    stree_t *t = world_tree(w);

    rng_init(&play.rng, t_mix(cell->seed, cell->index));
    play_append(&play, t, t->root, 50 + rng_below(&play.rng, 50));
    T_OK(s_fork(w, t, t->root, 4));
    for (size_t i = 0; i < 4; i++) {
        play_append(&play, t, s_kid(t->root, i), 1 + rng_below(&play.rng, 70));
    }
    for (size_t i = 0; i < 6; i++) {
        snode_t *node = s_kid(t->root, 1);

        while (node->n_kids != 0 && rng_chance(&play.rng, 0.7)) {
            node = s_kid(node, rng_below(&play.rng, node->n_kids));
        }
        T_OK(s_fork(w, t, node, 1));
        play_append(&play, t, s_last_kid(node), 1);
    }
    return t;
}

static double tolerance(const world_t *w)
{
    return s_tolerance(&w->info);
}

/* ---- constant V ---- */

static void tweak_constant_v(const world_t *w, int what, uint32_t layer, uint64_t key, float *x,
                             size_t n)
{
    (void)key;
    for (size_t i = 0; i < n && what == W_V; i++) {
        x[i] = (float)(i % w->D) * 0.125f - 4.0f + (float)layer; /* exact in every KV type */
    }
}

static void cell_constant_v(const cell_t *cell)
{
    world_t *w = world_new(&cell->cfg, cell->seed, true);
    const double scale = cell->cfg.kv_type == DEFT_BF16 ? 4e-3 : tolerance(w);
    sstep_t ss;

    w->tweak = tweak_constant_v;
    small_tree(w, cell);
    world_step(w, NULL, 0, 0, S_FUSED, &ss);
    for (uint32_t layer = 0; layer < w->L; layer++) {
        for (size_t i = 0; i < ss.o.n; i++) {
            const double want =
                (double)t_round((float)(i % w->D) * 0.125f - 4.0f + (float)layer, w->cfg.kv_type);
            const double got = (double)ss.out[layer * ss.o.n + i];

            T_CHECK(fabs(got - want) <= scale * (fabs(want) + 1), "row %zu: %g, not %g",
                    i / (w->Hq * w->D), got, want);
        }
    }
    sstep_free(&ss);
    world_free(w);
}

START_TEST(test_attn_constant_v_gives_constant_o)
{
    grid(cell_constant_v);
}
END_TEST

/* ---- one token ---- */

static void cell_single(const cell_t *cell)
{
    world_t *w = world_new(&cell->cfg, cell->seed, true);
    stree_t *t = world_tree(w);
    const size_t group = w->Hq / w->Hkv;
    sstep_t ss;

    T_OK(s_fork(w, t, t->root, 1)); /* below an empty root */
    T_OK(s_append(w, t, s_kid(t->root, 0), 1, NULL));
    world_step(w, NULL, 0, 0, S_TWICE, &ss);
    for (uint32_t layer = 0; layer < w->L; layer++) {
        const float *v = s_kid(t->root, 0)->kv + ((size_t)layer * 2 + 1) * w->Hkv * w->D;

        for (size_t i = 0; i < ss.o.n; i++) {
            const double want = (double)v[i / w->D / group * w->D + i % w->D];
            const double got = (double)ss.out[layer * ss.o.n + i];

            T_CHECK(fabs(got - want) <= 1e-6 * fabs(want), "output %zu: %g, not V's %g", i, got,
                    want);
        }
    }
    sstep_free(&ss);
    world_free(w);
}

START_TEST(test_attn_single_token_gives_its_v)
{
    grid(cell_single);
}
END_TEST

/* ---- equal logits ---- */

static void tweak_zero_q(const world_t *w, int what, uint32_t layer, uint64_t key, float *x,
                         size_t n)
{
    (void)w;
    (void)layer;
    (void)key;
    if (what == W_Q) {
        memset(x, 0, n * sizeof(*x));
    }
}

static void tweak_same_k(const world_t *w, int what, uint32_t layer, uint64_t key, float *x,
                         size_t n)
{
    (void)w;
    (void)key;
    if (what == W_K) {
        t_fill(layer + 5, 1, x, n);
    }
}

static void tweak_huge_q(const world_t *w, int what, uint32_t layer, uint64_t key, float *x,
                         size_t n)
{
    (void)w;
    (void)layer;
    (void)key;
    for (size_t i = 0; i < n && what == W_Q; i++) {
        x[i] *= 1000;
    }
}

static void equal_logits(const cell_t *cell, bool same_k)
{
    world_t *w = world_new(&cell->cfg, cell->seed, true);
    s_err_t err = { 0 };
    sstep_t ss;

    w->tweak = same_k ? tweak_same_k : tweak_zero_q;
    small_tree(w, cell);
    world_step(w, NULL, 0, 0, S_SPLIT_CALLS, &ss);
    world_compare(w, &ss, 40, &err);
    T_CHECK(s_err_norm(&err) < tolerance(w), "error %g", s_err_norm(&err));
    sstep_free(&ss);
    world_free(w);
}

static void cell_equal(const cell_t *cell)
{
    equal_logits(cell, cell->index % 2 == 0);
}

START_TEST(test_attn_equal_logits_give_the_mean)
{
    grid(cell_equal);
}
END_TEST

/* Logits of tens of thousands: nothing overflows, the largest wins. */
static void cell_huge(const cell_t *cell)
{
    world_t *w = world_new(&cell->cfg, cell->seed, true);
    s_err_t err = { 0 };
    sstep_t ss;

    w->tweak = tweak_huge_q;
    small_tree(w, cell);
    world_step(w, NULL, 0, 0, S_SPLIT_CALLS, &ss);
    world_compare(w, &ss, 40, &err);
    T_CHECK(w->info.isa >= DEFT_ISA_AVX512_BF16 || s_err_norm(&err) < 2e-2, "error %g",
            s_err_norm(&err));
    sstep_free(&ss);
    world_free(w);
}

START_TEST(test_attn_huge_logits_stay_finite)
{
    grid(cell_huge);
}
END_TEST

/* ---- NaN and Inf stay where they are ---- */

static uint64_t bad_key;
static int bad_what;
static float bad_value;

static void tweak_bad(const world_t *w, int what, uint32_t layer, uint64_t key, float *x, size_t n)
{
    (void)w;
    (void)layer;
    for (size_t i = 0; i < n && what == bad_what && key == bad_key; i++) {
        x[i] = bad_value;
    }
}

static bool row_sees(const sstep_t *ss, size_t row, const snode_t *bad, size_t offset)
{
    return s_is_below(ss->node[row], bad) && (ss->node[row] != bad || ss->off[row] >= offset);
}

static void cell_bad(const cell_t *cell)
{
    static const float values[] = { NAN, INFINITY, -INFINITY };
    world_t *w[2];
    stree_t *t[2];
    sstep_t ss[2];
    snode_t *bad;
    size_t offset;

    bad_what = 1 + (int)(cell->index / 2 % 2);
    bad_value = values[cell->index % 3];
    for (int i = 0; i < 2; i++) {
        w[i] = world_new(&cell->cfg, cell->seed, true);
        t[i] = small_tree(w[i], cell);
    }
    bad = s_kid(t[1]->root, cell->index % 4);
    offset = bad->len / 2;
    bad_key = bad->keys[offset];
    w[1]->tweak = tweak_bad;
    for (int round = 0; round < 2; round++) { /* prefill, then decode */
        for (int i = 0; i < 2; i++) {
            world_step(w[i], NULL, 0, 0, S_FUSED, &ss[i]);
        }
        ck_assert_uint_eq(ss[0].n, ss[1].n);
        for (size_t at = 0; at < w[0]->L * ss[0].n; at++) {
            const size_t row = at % ss[0].n, width = (size_t)w[0]->Hq * w[0]->D;
            const float *good = ss[0].out + at * width, *o = ss[1].out + at * width;
            bool finite = true;

            for (size_t i = 0; i < width; i++) {
                finite = finite && isfinite(o[i]);
            }
            if (!row_sees(&ss[1], row, bad, offset)) {
                T_CHECK(memcmp(good, o, width * sizeof(*o)) == 0,
                        "row %zu (node len %zu, offset "
                        "%zu) does not see the %g in %s, yet it changed (finite: %d)",
                        row, ss[1].node[row]->len, ss[1].off[row], (double)bad_value,
                        bad_what == W_K ? "K" : "V", finite);
            } else if (bad_what == W_V || isnan(bad_value)) {
                T_CHECK(!finite, "row %zu sees a %g in %s and shows nothing of it", row,
                        (double)bad_value, bad_what == W_K ? "K" : "V");
            }
        }
        for (int i = 0; i < 2; i++) {
            sstep_free(&ss[i]);
            for (size_t k = 0; k < 4 && round == 0; k++) {
                snode_t *kid = s_kid(t[i]->root, k);

                if (kid->n_kids == 0) {
                    T_OK(s_append(w[i], t[i], kid, 1, NULL));
                }
            }
            if (round == 0) {
                T_OK(s_fork(w[i], t[i], s_kid(t[i]->root, 1), 1));
                T_OK(s_append(w[i], t[i], s_last_kid(s_kid(t[i]->root, 1)), 2, NULL));
            }
        }
    }
    world_free(w[0]);
    world_free(w[1]);
}

START_TEST(test_attn_nan_touches_only_rows_that_see_it)
{
    grid(cell_bad);
}
END_TEST

/* Writes NaN to all that is uncomputed; attention is not asked. */
static void fill_with_nan(world_t *w)
{
    t_buf_t buf;
    uint16_t *host;
    deft_step_t step = DEFT_STEP_INIT;

    t_buf_init(&buf, w->cfg.pool_tokens * w->Hkv * w->D, 0);
    for (size_t i = 0; i < buf.n; i++) {
        buf.p[i] = NAN;
    }
    void *const kv = io_give(w, 1, &buf, &host);
    T_OK(deft_step_begin(w->ctx, NULL, 0, 0, &step));
    T_CHECK(deft_step_tokens(step) <= w->cfg.pool_tokens, "rows");
    for (uint32_t layer = 0; layer < w->L; layer++) {
        T_OK(deft_step_write(step, layer, kv, kv));
    }
    T_OK(deft_step_end(step));
    free(host);
    t_buf_free(&buf);
}

/* NaN left in freed slots, and behind the end of nodes that now lie there, is never seen. */
static void cell_left_behind(const cell_t *cell)
{
    world_t *w = world_new(&cell->cfg, cell->seed, true);
    stree_t *t = world_tree(w);
    s_err_t err = { 0 };
    sstep_t ss;

    T_OK(s_append(w, t, t->root, w->cfg.pool_tokens, NULL)); /* the whole pool */
    fill_with_nan(w);
    world_drop(w, t);
    t = small_tree(w, cell);
    for (int round = 0; round < 3; round++) {
        world_step(w, NULL, 0, 0, S_FUSED, &ss);
        world_compare(w, &ss, 30, &err); /* every output is finite */
        T_CHECK(s_err_norm(&err) < tolerance(w), "error %g", s_err_norm(&err));
        sstep_free(&ss);
        for (size_t i = 0; i < 4; i++) {
            snode_t *kid = s_kid(t->root, i);

            if (kid->n_kids == 0) {
                T_OK(s_append(w, t, kid, 1 + i, NULL));
            } else if (kid->n_kids > 1) {
                T_OK(s_prune(w, t, s_kid(kid, 0)));
            }
        }
    }
    world_free(w);
}

START_TEST(test_attn_freed_slots_are_never_seen)
{
    grid(cell_left_behind);
}
END_TEST

/* ---- sharing does not show ---- */

/* A tree of shared spans and the same sequence appended afresh agree with the oracle alike; under
 * the SEQUENCE split, where a row reads its own path alone, to a rounding. */
static void cell_shared(const cell_t *cell)
{
    world_t *w = world_new(&cell->cfg, cell->seed, true);
    stree_t *t = small_tree(w, cell), *copy = NULL;
    snode_t *node = s_kid(t->root, 2);
    s_err_t err = { 0 };
    sstep_t ss;

    world_step(w, NULL, 0, 0, S_FUSED, &ss);
    sstep_free(&ss);
    T_OK(world_share(w, t, node, &copy));
    if (cell->index % 2 == 0) {
        world_drop(w, t); /* the prefix lives on */
    }
    T_OK(s_append(w, copy, copy->root, 3, NULL));
    world_step(w, NULL, 0, 0, S_FUSED, &ss);
    world_compare(w, &ss, 0, &err);
    T_CHECK(s_err_norm(&err) < tolerance(w), "error %g", s_err_norm(&err));
    sstep_free(&ss);
    world_verify(w);
    world_free(w);
}

START_TEST(test_attn_shared_prefix_outlives_its_tree)
{
    grid(cell_shared);
}
END_TEST

/* ---- accepted drafts ---- */

/* Of the whole path. */
static size_t n_runs(const stree_t *t, const snode_t *node)
{
    size_t n = 0;

    for (; node != NULL; node = node->parent) {
        deft_node_info_t info = DEFT_NODE_INFO_INIT;

        T_OK(deft_tree_node(t->tree, node->h, &info));
        n += info.n_runs;
    }
    return n;
}

/* A draft below `end`, of which a branch of 1 to 5 tokens is accepted; returns the new end. */
static snode_t *speculate(world_t *w, stree_t *t, snode_t *end, rng_t *rng, const cell_t *cell)
{
    play_t play = {
        .w = w, .max_trees = 1, .max_nodes = 40, .max_len = 40, .id_range = 9, .rng = *rng
    };
    snode_t *last = end;
    s_err_t err = { 0 };
    sstep_t ss;

    play_append(&play, t, end, 1);
    for (size_t i = 0, depth = 1 + rng_below(rng, 5); i < depth; i++) {
        T_OK(s_fork(w, t, last, 1 + rng_below(rng, 3)));
        for (size_t k = 0; k < last->n_kids; k++) {
            play_append(&play, t, s_kid(last, k), 1 + rng_below(rng, 2));
        }
        last = s_kid(last, rng_below(rng, last->n_kids));
    }
    world_step(w, NULL, 0, 0, S_FUSED, &ss);
    world_compare(w, &ss, 0, &err);
    T_CHECK(s_err_norm(&err) < tolerance(w), "cell %zu: error %g", cell->index, s_err_norm(&err));
    sstep_free(&ss);
    *rng = play.rng;
    T_OK(s_commit(w, t, last, DEFT_COMMIT_PATH));
    return last;
}

/* Two texts grow by drafts in one pool. One is compacted after each step and stays in few runs and
 * two nodes; the results of both are right all the time. */
static void cell_drafts(const cell_t *cell)
{
    world_t *w = world_new(&cell->cfg, cell->seed, true);
    play_t play = { .w = w, .max_trees = 2, .max_nodes = 40, .max_len = 40, .id_range = 9 };
    stree_t *t[2], *copy = NULL;
    snode_t *end[2];
    size_t most[2] = { 0, 0 };

    rng_init(&play.rng, t_mix(cell->seed, cell->index));
    for (int i = 0; i < 2; i++) {
        t[i] = world_tree(w);
        play_append(&play, t[i], t[i]->root, 30 + rng_below(&play.rng, 60));
        end[i] = t[i]->root;
    }
    for (size_t step = 0; step < 8; step++) {
        for (int i = 0; i < 2; i++) {
            end[i] = speculate(w, t[i], end[i], &play.rng, cell);
            if (i == 0) {
                T_OK(s_compact(w, t[i], t[i]->root, 0, DEFT_COMPACT_CHAINS, NULL));
                T_CHECK(s_depth(end[i]) == 2, "%zu nodes", s_depth(end[i]));
                world_verify(w);
            }
            most[i] = n_runs(t[i], end[i]) > most[i] ? n_runs(t[i], end[i]) : most[i];
        }
    }
    T_CHECK(most[0] <= 3 && most[1] > most[0], "%zu runs, %zu not compacted", most[0], most[1]);
    if (cell->index % 2 == 0) { /* what another tree owns stays where it is */
        const size_t before = n_runs(t[1], end[1]);
        size_t moved = 1;

        T_OK(world_share(w, t[1], end[1], &copy));
        T_OK(s_compact(w, t[1], t[1]->root, 0, DEFT_COMPACT_MOVE, &moved));
        T_CHECK(n_runs(t[1], end[1]) == before && moved == 0, "shared runs were moved");
    } else {
        T_OK(s_append(w, t[1], end[1], 3, NULL)); /* not computed yet: slots alone */
        T_OK(s_compact(w, t[1], t[1]->root, 0, DEFT_COMPACT_CHAINS, NULL));
        T_CHECK(n_runs(t[1], end[1]) <= 3, "%zu runs", n_runs(t[1], end[1]));
    }
    world_verify(w);
    speculate(w, t[1], end[1], &play.rng, cell);
    world_free(w);
}

START_TEST(test_attn_accepted_drafts_lie_together)
{
    grid(cell_drafts);
}
END_TEST

/* A step that is attended twice gives the same bits: what was computed before does not change the
 * order in which a row is summed up. Leaves of a star, few to many, so that the device's ways of
 * taking its KV are all met. */
START_TEST(test_attn_same_bits_whatever_came_before)
{
    enum { ROOT = 400, LEAF = 70, LEAVES = 40, H = 4, HKV = 2, D = 64 };
    static float k[ROOT * HKV * D], q[LEAVES * H * D], o[2][LEAVES * H * D];
    static const deft_dtype_t types[] = { DEFT_F32, DEFT_F16, DEFT_BF16 };

    t_fill(t_seed(81), 1, k, sizeof(k) / sizeof(*k));
    t_fill(t_seed(82), 1, q, sizeof(q) / sizeof(*q));
    for (int isa = DEFT_ISA_VECTOR; isa <= DEFT_ISA_AMX_BF16; isa++)
        for (size_t type = 0; type < 3; type++)
            for (uint32_t leaves = 1; leaves <= LEAVES; leaves += 3) {
                deft_config_t cfg = t_config(ROOT + LEAVES * LEAF + 16);
                deft_node_t leaf[LEAVES];
                deft_ctx_t *ctx;
                deft_tree_t *tree;
                deft_step_t step;

                cfg.isa = (deft_isa_t)isa;
                cfg.kv_type = types[type];
                cfg.n_layers = 1;
                cfg.n_q_heads = H;
                cfg.n_kv_heads = HKV;
                cfg.head_dim = D;
                cfg.n_threads = 1;
                if (deft_ctx_create(&cfg, &ctx) != DEFT_OK)
                    continue; /* this processor lacks the set */
                T_OK(deft_tree_create(ctx, &tree));
                const deft_node_t root = deft_tree_root(tree);
                T_OK(deft_tree_append(tree, root, ROOT, NULL));
                T_OK(deft_tree_fork(tree, root, leaves, leaf));
                const deft_rows_t all = { tree, root, ROOT };
                T_OK(deft_step_begin(ctx, &all, 1, 0, &step));
                T_OK(deft_step_write(step, 0, k, k));
                T_OK(deft_step_end(step));
                for (uint32_t i = 0; i < leaves; i++) {
                    T_OK(deft_tree_append(tree, leaf[i], LEAF, NULL));
                    const deft_rows_t most = { tree, leaf[i], LEAF - 1 };
                    T_OK(deft_step_begin(ctx, &most, 1, 0, &step));
                    T_OK(deft_step_write(step, 0, k + i, k + i));
                    T_OK(deft_step_end(step));
                }
                T_OK(deft_step_begin(ctx, NULL, 0, 0, &step));
                T_OK(deft_step_write(step, 0, k, k));
                for (int i = 0; i < 2; i++)
                    T_OK(deft_step_attend(step, 0, q, o[i]));
                T_CHECK(memcmp(o[0], o[1], leaves * H * D * sizeof(float)) == 0,
                        "other bits the second time: set %d, type %d, %u leaves", isa,
                        (int)types[type], leaves);
                deft_ctx_destroy(ctx);
            }
}
END_TEST

/* ---- where the pool keeps tokens ---- */

enum { PLACED_NODES = 13, PLACED_MOST = 400, PLACED_H = 4, PLACED_HKV = 2, PLACED_D = 64 };

/* A tree of three levels, 1, 4 and 8 nodes, of which every second one is small. */
typedef struct placed {
    uint32_t length[PLACED_NODES], window;
    const float *kv; /* of a token: after as many as its node's number and its place in it */
    const float *q;
} placed_t;

/* Append n tokens to a node and compute them. */
static void placed_append(deft_ctx_t *ctx, deft_tree_t *tree, deft_node_t node, size_t n,
                          const float *kv)
{
    const deft_rows_t rows = { tree, node, n };
    deft_step_t step;

    T_OK(deft_tree_append(tree, node, n, NULL));
    T_OK(deft_step_begin(ctx, &rows, 1, 0, &step));
    for (uint32_t layer = 0; layer < 2; layer++)
        T_OK(deft_step_write(step, layer, kv, kv));
    T_OK(deft_step_end(step));
}

/* Nodes [begin, end), which are siblings of one level: whole, one after the other, or in chunks of
 * random size by turns, with tokens of another tree between them. */
static void placed_level(deft_ctx_t *ctx, deft_tree_t *tree, deft_node_t other,
                         const deft_node_t *node, const placed_t *p, uint32_t begin, uint32_t end,
                         rng_t *scatter)
{
    uint32_t done[PLACED_NODES] = { 0 };

    for (bool more = true; more;) {
        more = false;
        for (uint32_t i = begin; i < end; i++) {
            const uint32_t left = p->length[i] - done[i];
            const uint32_t n = scatter == NULL ? left
                                               : (uint32_t)rng_range(scatter, 1, 1 + left / 2);

            if (left == 0)
                continue;
            placed_append(ctx, tree, node[i], n < left ? n : left,
                          p->kv + (size_t)(i + done[i]) * PLACED_HKV * PLACED_D);
            done[i] += n < left ? n : left;
            more = true;
            if (scatter != NULL)
                T_OK(deft_tree_append(tree, other, 1, NULL));
        }
    }
}

/* Outputs of both layers for a token of each leaf. False: the processor lacks the set. */
static bool placed_outputs(const deft_config_t *cfg, const placed_t *p, rng_t *scatter,
                           float o[2][8 * PLACED_H * PLACED_D])
{
    deft_node_t node[PLACED_NODES], other;
    deft_rows_t rows[8];
    deft_ctx_t *ctx;
    deft_tree_t *tree;
    deft_step_t step;

    if (deft_ctx_create(cfg, &ctx) != DEFT_OK)
        return false;
    T_OK(deft_tree_create(ctx, &tree));
    node[0] = deft_tree_root(tree);
    T_OK(deft_tree_fork(tree, node[0], 1, &other));
    T_OK(deft_tree_fork(tree, node[0], 1, &node[1]));
    node[0] = node[1]; /* the root is empty: `other` grows beside all of it */
    placed_level(ctx, tree, other, node, p, 0, 1, scatter);
    T_OK(deft_tree_fork(tree, node[0], 4, node + 1));
    placed_level(ctx, tree, other, node, p, 1, 5, scatter);
    for (uint32_t i = 0; i < 4; i++)
        T_OK(deft_tree_fork(tree, node[1 + i], 2, node + 5 + 2 * i));
    placed_level(ctx, tree, other, node, p, 5, 13, scatter);
    for (uint32_t i = 0; i < 8; i++) {
        T_OK(deft_tree_append(tree, node[5 + i], 1, NULL));
        rows[i] = (deft_rows_t){ tree, node[5 + i], 1 };
    }
    T_OK(deft_step_begin(ctx, rows, 8, 0, &step));
    for (uint32_t layer = 0; layer < 2; layer++) {
        memset(o[layer], 0xff, sizeof(o[layer]));
        T_OK(deft_step_write(step, layer, p->kv, p->kv));
        T_OK(deft_step_attend(step, layer, p->q, o[layer]));
    }
    T_OK(deft_step_end(step));
    deft_ctx_destroy(ctx);
    return true;
}

static double placed_error(const float *a, const float *b)
{
    double diff = 0, norm = 0;

    for (size_t i = 0; i < (size_t)8 * PLACED_H * PLACED_D; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return norm > 0 && diff == diff ? sqrt(diff / norm) : INFINITY;
}

/* The same bits whether a node is one run of slots or many, for small nodes and for large ones, and
 * in a layer with a window as well, where what no row sees any more is left out: compared with the
 * scalar path. */
START_TEST(test_attn_same_bits_wherever_kv_lies)
{
    static float kv[(PLACED_NODES + PLACED_MOST) * PLACED_HKV * PLACED_D];
    static float q[8 * PLACED_H * PLACED_D], want[2][8 * PLACED_H * PLACED_D];
    static float whole[2][8 * PLACED_H * PLACED_D], cut[2][8 * PLACED_H * PLACED_D];
    rng_t rng;

    rng_init(&rng, t_seed(83));
    t_fill(t_seed(84), 1, kv, sizeof(kv) / sizeof(*kv));
    t_fill(t_seed(85), 1, q, sizeof(q) / sizeof(*q));
    for (size_t round = 0; round < t_count(24); round++) {
        placed_t p = { .window = (uint32_t)rng_range(&rng, 1, 300), .kv = kv, .q = q };
        uint32_t windows[2] = { 0, p.window };
        deft_config_t cfg = t_config(2 * PLACED_NODES * PLACED_MOST);

        for (uint32_t i = 0; i < PLACED_NODES; i++)
            p.length[i] =
                (uint32_t)rng_range(&rng, 1, rng_range(&rng, 0, 1) == 0 ? 25 : PLACED_MOST);
        cfg.n_layers = 2;
        cfg.n_q_heads = PLACED_H;
        cfg.n_kv_heads = PLACED_HKV;
        cfg.head_dim = PLACED_D;
        cfg.n_threads = 1;
        cfg.windows = windows;
        cfg.split = problem_splits[round % 5];
        for (int type = DEFT_F32; type <= DEFT_BF16; type++) {
            cfg.kv_type = (deft_dtype_t)type;
            cfg.isa = DEFT_ISA_SCALAR;
            ck_assert(placed_outputs(&cfg, &p, NULL, want));
            for (int isa = DEFT_ISA_VECTOR; isa <= DEFT_ISA_AMX_BF16; isa++) {
                cfg.isa = (deft_isa_t)isa;
                if (!placed_outputs(&cfg, &p, NULL, whole))
                    continue;
                ck_assert(placed_outputs(&cfg, &p, &rng, cut));
                T_CHECK(memcmp(whole, cut, sizeof(whole)) == 0, "%s, %s, %s, window %u: other bits",
                        t_type_name(cfg.kv_type), t_isa_name(cfg.isa), t_split_name(cfg.split),
                        p.window);
                for (int layer = 0; layer < 2; layer++) {
                    const double error = placed_error(whole[layer], want[layer]);

                    T_CHECK(error < (type == DEFT_BF16 ? 6e-3 : 2e-6),
                            "%s, %s, %s, layer %d, window %u: error %g", t_type_name(cfg.kv_type),
                            t_isa_name(cfg.isa), t_split_name(cfg.split), layer, p.window, error);
                }
            }
        }
    }
}
END_TEST

/* A window as long as any path, or longer, is none: numbers that do not fit int32_t among them. */
START_TEST(test_attn_window_without_end)
{
    static float kv[(PLACED_NODES + PLACED_MOST) * PLACED_HKV * PLACED_D];
    static float q[8 * PLACED_H * PLACED_D];
    static float want[2][8 * PLACED_H * PLACED_D], got[2][8 * PLACED_H * PLACED_D];
    static const uint32_t ends[] = { 1u << 30, INT32_MAX, INT32_MAX + 1u, 0xc0000000u, UINT32_MAX };
    placed_t p = { .kv = kv, .q = q };

    t_fill(t_seed(86), 1, kv, sizeof(kv) / sizeof(*kv));
    t_fill(t_seed(87), 1, q, sizeof(q) / sizeof(*q));
    for (uint32_t i = 0; i < PLACED_NODES; i++)
        p.length[i] = 10 + 20 * i;
    for (int isa = DEFT_ISA_SCALAR; isa <= DEFT_ISA_AMX_BF16; isa++)
        for (int split = 0; split < 5; split++) {
            deft_config_t cfg = t_config(2 * PLACED_NODES * PLACED_MOST);

            cfg.n_layers = 2;
            cfg.n_q_heads = PLACED_H;
            cfg.n_kv_heads = PLACED_HKV;
            cfg.head_dim = PLACED_D;
            cfg.kv_type = DEFT_BF16;
            cfg.isa = (deft_isa_t)isa;
            cfg.split = problem_splits[split];
            if (!placed_outputs(&cfg, &p, NULL, want))
                continue;
            for (size_t i = 0; i < sizeof(ends) / sizeof(*ends); i++) {
                const uint32_t windows[2] = { 0, ends[i] };

                cfg.window = ends[i];
                cfg.windows = NULL;
                ck_assert(placed_outputs(&cfg, &p, NULL, got));
                T_CHECK(memcmp(want, got, sizeof(want)) == 0, "window %u", ends[i]);
                cfg.windows = windows;
                ck_assert(placed_outputs(&cfg, &p, NULL, got));
                T_CHECK(memcmp(want, got, sizeof(want)) == 0, "windows[1] %u", ends[i]);
            }
        }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = {
        test_attn_constant_v_gives_constant_o,
        test_attn_single_token_gives_its_v,
        test_attn_equal_logits_give_the_mean,
        test_attn_huge_logits_stay_finite,
        test_attn_nan_touches_only_rows_that_see_it,
        test_attn_freed_slots_are_never_seen,
        test_attn_shared_prefix_outlives_its_tree,
        test_attn_accepted_drafts_lie_together,
        test_attn_same_bits_whatever_came_before,
        test_attn_same_bits_wherever_kv_lies,
        test_attn_window_without_end,
    };

    return suite_run("attention_properties", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
