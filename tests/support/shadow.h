/* SPDX-License-Identifier: MIT */
/** @file shadow.h  A naive model of trees in lockstep with the library.
 *
 *  Each shadow node owns a full copy of its tokens: ids, slot numbers and the K and V of every
 *  layer (held as float after rounding to the KV type, so exactly what the pool holds; all
 *  arithmetic on them is in double). Sharing is known to the shadow only through slot numbers: one
 *  per appended token, copied along by fork_at and share. K, V and Q of a token are pure functions
 *  of its key, so the same history gives the same inputs whatever the configuration. */
#ifndef DEFT_TEST_SHADOW_H
#define DEFT_TEST_SHADOW_H

#include "util.h"

typedef struct snode {
    deft_node_t h; /* the library's handle */
    struct snode *parent;
    struct snode **kids;
    size_t n_kids;
    size_t len, cap, computed;
    size_t gone; /* first tokens that were evicted */
    int32_t *ids;
    uint64_t *slots; /* [len] serial number of the slot; S_NO_SLOT: evicted */
    uint64_t *keys;  /* [len] what its K, V and Q are made from */
    float *kv;       /* [len][n_layers][K, V][n_kv_heads][head_dim]; NULL in a world without KV */
    void *user;
    uint64_t order;   /* of the first append; 0: never */
    bool order_known; /* by the contract: false for tails and joined nodes */
} snode_t;

#define S_NO_SLOT UINT64_MAX

typedef struct stree {
    deft_tree_t *tree;
    snode_t *root;
} stree_t;

enum { W_Q = 0, W_K = 1, W_V = 2 };

typedef struct world world_t;
struct world {
    deft_ctx_t *ctx;
    deft_config_t cfg; /* with every default filled in; the arrays are ours */
    deft_info_t info;  /* as at creation */
    t_mem_t mem;
    uint32_t L, Hq, Hkv, D;
    size_t kv_floats; /* a token's, 0: structure alone */
    uint64_t seed;    /* of the keys */
    uint64_t n_slots; /* handed out so far */
    uint64_t n_order;
    stree_t **trees;
    size_t n_trees;
    float amp[3];    /* of Q, K, V */
    bool check;      /* deft_tree_check() after each operation */
    size_t misalign; /* of q, k, v, o in floats */
    /* Called after each fill with n values of one token and layer; NULL: none. */
    void (*tweak)(const world_t *w, int what, uint32_t layer, uint64_t key, float *x, size_t n);
};

/* A world over a new context. with_kv: keep K and V. The allocator hook is always on. */
world_t *world_new(const deft_config_t *config, uint64_t seed, bool with_kv);
deft_status_t world_try(const deft_config_t *config, uint64_t seed, bool with_kv, world_t **w_p);
void world_free(world_t *w); /* also checks that all memory came back */
deft_info_t world_info(const world_t *w);
stree_t *world_tree(world_t *w);
deft_status_t world_share(world_t *w, stree_t *t, snode_t *node, stree_t **t_p);
void world_drop(world_t *w, stree_t *t);
size_t world_live(const world_t *w); /* distinct slots that nodes own */
void world_verify(const world_t *w); /* the whole walking API against the shadow */

/* Mutators: the library first; on DEFT_OK the shadow follows. */
deft_status_t s_fork(world_t *w, stree_t *t, snode_t *node, size_t n);
deft_status_t s_fork_at(world_t *w, stree_t *t, snode_t *node, size_t offset, size_t n,
                        snode_t **tail_p);
deft_status_t s_append(world_t *w, stree_t *t, snode_t *node, size_t n, const int32_t *ids);
deft_status_t s_append_keys(world_t *w, stree_t *t, snode_t *node, size_t n, const int32_t *ids,
                            const uint64_t *keys);
deft_status_t s_prune(world_t *w, stree_t *t, snode_t *node);
deft_status_t s_truncate(world_t *w, stree_t *t, snode_t *node, size_t n);
deft_status_t s_commit(world_t *w, stree_t *t, snode_t *node, uint64_t flags);
deft_status_t s_fork_append(world_t *w, stree_t *t, snode_t *node, size_t n, const int32_t *ids);
/* With DEFT_COMPACT_CHAINS nodes go: of those that the caller holds, the lower ones stay. */
deft_status_t s_compact(world_t *w, stree_t *t, snode_t *top, size_t budget, uint64_t flags,
                        size_t *moved_p);
deft_status_t s_evict(world_t *w, stree_t *t, snode_t *node, size_t n);
deft_status_t s_evict_unseen(world_t *w, stree_t *t, size_t *freed_p);
deft_status_t s_set_user(world_t *w, stree_t *t, snode_t *node, void *user);

snode_t *s_kid(const snode_t *node, size_t i);
snode_t *s_last_kid(const snode_t *node);
size_t s_start(const snode_t *node);
size_t s_depth(const snode_t *node);                 /* the root is 1 */
size_t s_nodes(const stree_t *t, snode_t ***list_p); /* depth first; the caller frees the list */
bool s_is_below(const snode_t *node, const snode_t *top);

/* ---- steps ---- */

typedef struct srow {
    stree_t *t;
    snode_t *node;
    size_t n; /* 0: all */
} srow_t;

typedef struct sstep {
    deft_step_t step;
    uint64_t flags;
    size_t n;       /* rows */
    snode_t **node; /* [n] */
    stree_t **tree; /* [n] */
    size_t *off;    /* [n] offset in the node */
    t_buf_t q, k, v, o;
    float *out; /* [n_layers][n][n_q_heads][head_dim] */
    deft_step_stats_t stats;
} sstep_t;

enum { S_SPLIT_CALLS = 0, S_FUSED = 1, S_TWICE = 2 }; /* write+attend, layer(), and all repeated */

deft_status_t world_begin(world_t *w, const srow_t *rows, size_t n_rows, uint64_t flags,
                          sstep_t *ss);
void world_layer(world_t *w, sstep_t *ss, uint32_t layer, int how);
void world_end(world_t *w, sstep_t *ss);
/* begin, all layers, end; DEFT_OK required */
void world_step(world_t *w, const srow_t *rows, size_t n_rows, uint64_t flags, int how,
                sstep_t *ss);
void sstep_free(sstep_t *ss);

/* A buffer as calls of this context take it: itself, or a copy of act_type, on the device where
 * that is its place (number `which` of dev_room()). Free *host_p after the call. */
void *io_give(const world_t *w, int which, const t_buf_t *buf, uint16_t **host_p);

/* The row's output in double: [n_q_heads][head_dim]. */
void world_oracle(const world_t *w, const sstep_t *ss, uint32_t layer, size_t row, double *ref);
const float *sstep_row(const world_t *w, const sstep_t *ss, uint32_t layer, size_t row);

/* A norm of errors over many rows. */
typedef struct s_err {
    double diff2, ref2;
    size_t rows;
} s_err_t;

/* Up to max_rows rows of the step (0: all), sampled evenly, every layer, added to err. */
void world_compare(const world_t *w, const sstep_t *ss, size_t max_rows, s_err_t *err);
double s_err_norm(const s_err_t *err);
double s_tolerance(const deft_info_t *info);

#endif
