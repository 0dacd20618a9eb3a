/* SPDX-License-Identifier: MIT */
/** @file problem.h  Random problems: a geometry, trees of some shape, and a history of operations
 *  and steps, all drawn from one seed. The history does not depend on the variant (instruction set,
 *  split, threads) that runs it, so outputs of variants can be compared step by step. */
#ifndef DEFT_TEST_PROBLEM_H
#define DEFT_TEST_PROBLEM_H

#include "shadow.h"

typedef enum shape {
    SHAPE_RANDOM, /* parents anywhere */
    SHAPE_CHAIN,
    SHAPE_STAR,
    SHAPE_DEEP,   /* parents near the end */
    SHAPE_INSIDE, /* grown by fork_at */
    SHAPE_DRAFT,  /* one-token nodes under a prompt */
    SHAPE_EMPTY,  /* most nodes empty */
    SHAPE_LEVELS, /* b children each */
    SHAPE_COUNT
} shape_t;

typedef struct problem {
    uint64_t seed;
    shape_t shape;
    size_t n_nodes; /* of the first tree, before the history */
    size_t n_trees;
    size_t n_steps;
    size_t max_len;  /* of an ordinary node */
    size_t max_rows; /* compared a step */
    size_t pool_tokens;
    bool one_prefill; /* the whole first tree in one step */
    bool as_0_1;      /* only operations that version 0.1 has too: bits can be compared with it */
    uint32_t n_layers, n_kv_heads, ratio, head_dim;
    deft_dtype_t kv_type, act_type; /* act_type: CPU only */
    float scale, softcap, amp_q;
    uint32_t window;
    uint32_t windows[2];
    bool use_windows, use_sinks;
} problem_t;

/* Devices and instruction sets that contexts accept here, the reference device first. With
 * DEFT_TEST_DEVICE=cuda in the environment the GPU alone, twice; none for types that it lacks. */
enum { LANES_MAX = 8 };
typedef struct lane {
    deft_device_t device;
    deft_isa_t isa;
} lane_t;
size_t problem_lanes(deft_dtype_t type, lane_t *lanes);

extern const deft_split_t problem_splits[5];

/* index spreads head dims, ratios, shapes and sizes; the rest comes from the seed. */
void problem_make(problem_t *p, uint64_t seed, size_t index, deft_dtype_t type);

typedef struct variant {
    deft_device_t device;
    deft_isa_t isa;
    deft_split_t split;
    uint32_t chunk;
    uint32_t threads;
    bool fresh;     /* no plan is patched */
    int how;        /* S_SPLIT_CALLS ... */
    uint64_t flags; /* of every step */
} variant_t;

typedef void (*problem_step_fn)(void *arg, const world_t *w, const sstep_t *ss, size_t step);

/* Make the context, play the history, show each closed step to on_step. */
void problem_run(const problem_t *p, const variant_t *v, problem_step_fn on_step, void *arg);

/* For other programs: one random operation on a random tree of the world. */
typedef struct play {
    world_t *w;
    rng_t rng;
    size_t max_trees, max_nodes;
    size_t max_len;
    int32_t id_range; /* ids are drawn from 0 to id_range-1, and some are -1 */
    bool as_0_1;
} play_t;

void play_build(play_t *play, stree_t *t, shape_t shape, size_t n_nodes);
void play_mutate(play_t *play);
void play_append(play_t *play, stree_t *t, snode_t *node, size_t n); /* NOSPACE: nothing happens */
stree_t *play_tree(play_t *play);
snode_t *play_node(play_t *play, const stree_t *t);
snode_t *play_leaf(play_t *play, const stree_t *t);
bool play_uncomputed(const world_t *w);
/* A random list of rows that may be one step, *rows_p NULL: everything. */
size_t play_rows(play_t *play, srow_t **rows_p);

#endif
