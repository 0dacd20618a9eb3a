/* SPDX-License-Identifier: MIT */
/* Long random histories against the shadow, over a pool that is nearly full most of the time.
 *
 *     stress_tree [seed [scale [iterations]]]
 *
 * Every token carries a cookie in its V: one value over a KV head's lanes that tells which token it
 * is. Now and then rows attend, and the oracle's answer shows whether each sees its own cookies.
 * The walking API is compared with the shadow all the time, deft_tree_check() runs after each
 * operation while the trees are small. */
#include "problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tally {
    size_t ops, steps, rows, full;
    double worst;
} tally_t;

static void tweak_cookie(const world_t *w, int what, uint32_t layer, uint64_t key, float *x,
                         size_t n)
{
    if (what == W_V) {
        const float cookie = (float)(t_mix(key, layer) % 1024) / 512.0f - 1.0f;

        for (size_t i = 0; i < n; i++) {
            x[i] = t_round(cookie + (float)(i / w->D), w->cfg.kv_type);
        }
    }
}

static void step(play_t *play, tally_t *tally)
{
    world_t *w = play->w;
    srow_t *rows = NULL;
    size_t n = 0;
    s_err_t err = { 0 };
    sstep_t ss;

    if (!play_uncomputed(w)) {
        return;
    }
    if (rng_chance(&play->rng, 0.3)) {
        n = play_rows(play, &rows);
    }
    if (rng_chance(&play->rng, 0.1)) { /* begun, written and given up: nothing must change */
        T_OK(world_begin(w, n != 0 ? rows : NULL, n, 0, &ss));
        world_layer(w, &ss, 0, S_SPLIT_CALLS);
        deft_step_abandon(ss.step);
        sstep_free(&ss);
        world_verify(w);
    }
    world_step(w, n != 0 ? rows : NULL, n, rng_chance(&play->rng, 0.1) ? DEFT_STEP_INVARIANT : 0,
               (int)rng_below(&play->rng, 3), &ss);
    world_compare(w, &ss, 16, &err);
    T_CHECK(s_err_norm(&err) < s_tolerance(&w->info), "step %zu: error %g", tally->steps,
            s_err_norm(&err));
    tally->worst = s_err_norm(&err) > tally->worst ? s_err_norm(&err) : tally->worst;
    tally->steps++;
    tally->rows += ss.n;
    sstep_free(&ss);
    free(rows);
}

/* Something large, so that the pool fills; and when it is full, something goes. */
static void press(play_t *play, tally_t *tally)
{
    world_t *w = play->w;
    stree_t *t = play_tree(play);
    snode_t *leaf = play_leaf(play, t);
    const size_t live = world_live(w), pool = w->cfg.pool_tokens;

    if (live < pool * 9 / 10) {
        play_append(play, t, leaf, 1 + rng_below(&play->rng, (pool - live) / 4 + 1));
    } else {
        snode_t *node = play_node(play, t);

        tally->full++;
        play_append(play, t, leaf, 1 + rng_below(&play->rng, pool - live + 2));
        if (node->parent != NULL) {
            T_OK(s_prune(w, t, node));
        } else if (w->n_trees > 1 && rng_chance(&play->rng, 0.5)) {
            world_drop(w, t);
        } else {
            leaf = play_leaf(play, t);
            T_OK(s_truncate(w, t, leaf, leaf->len / 2));
        }
    }
}

static void round_of(uint64_t seed, size_t index, double scale, size_t iterations, tally_t *tally)
{
    deft_config_t cfg =
        t_config((size_t)(200 * scale) + rng_below(&(rng_t){ { seed, index, 3, 4 } }, 400));
    play_t play = {
        .max_trees = 5, .max_nodes = (size_t)(60 * scale) + 20, .max_len = 20, .id_range = 6
    };

    rng_init(&play.rng, t_mix(seed, index));
    cfg.kv_type = (deft_dtype_t)(1 + index % 3);
    cfg.split = problem_splits[index % 5];
    cfg.chunk_tokens = index % 2 == 0 ? 16 : 0;
    cfg.n_threads = 1 + (index / 2) % 2;
    cfg.n_q_heads = 4;
    cfg.n_kv_heads = 2;
    cfg.window = index % 6 == 5 ? 40 : 0;
    play.w = world_new(&cfg, t_mix(seed, index), true);
    play.w->tweak = tweak_cookie;
    play.w->check = scale <= 1;
    play_build(&play, world_tree(play.w), (shape_t)(index % SHAPE_COUNT), 8);
    for (size_t i = 0; i < iterations; i++) {
        t_note("stress_tree %#llx %g %zu: round %zu, operation %zu", (unsigned long long)seed,
               scale, iterations, index, i);
        if (i % 7 == 6) {
            step(&play, tally);
        } else if (i % 3 == 2) {
            press(&play, tally);
        } else {
            play_mutate(&play);
        }
        tally->ops++;
        if (i % 5 == 0) {
            world_verify(play.w);
        }
    }
    T_OK(deft_tree_check(play.w->trees[0]->tree));
    world_free(play.w);
}

int main(int argc, char **argv)
{
    const uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : t_seed(123);
    const double scale = argc > 2 ? strtod(argv[2], NULL) : 1;
    const size_t iterations = argc > 3 ? (size_t)strtoull(argv[3], NULL, 0) : t_count(300);
    tally_t tally = { 0 };

    for (size_t i = 0; i < 20; i++) {
        round_of(seed, i, scale, iterations, &tally);
    }
    printf("seed %#llx: %zu operations, %zu steps, %zu rows, pool full %zu times, max error %.3g\n",
           (unsigned long long)seed, tally.ops, tally.steps, tally.rows, tally.full, tally.worst);
    return 0;
}
