/* SPDX-License-Identifier: MIT */
/* Every internal structure, with the algebra that check.c verifies.
 *
 * Glossary of the attention code: q k v o as everywhere; m running maximum of the scores in units
 * of log2, d denominator (sum of 2^(s-m)), both per matrix row; H query heads, Hkv KV heads,
 * G = H/Hkv; D head dim. A row is a query token; a matrix row is one of its H/Hkv heads. */
#ifndef IDEFT_TYPES_H
#define IDEFT_TYPES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "deft.h"

#define IDEFT_NONE UINT32_MAX /* no index, where 0 is one */
#define IDEFT_MAX_TOKENS ((size_t)1 << 30)
#define IDEFT_MAX_NODES ((uint32_t)1 << 30)

/* alloc.c: every byte of host memory but the stack goes through one of these. */
typedef struct ideft_alloc {
    deft_allocator_t fn;
} ideft_alloc_t;

/* A growable array that keeps its memory between steps: plans allocate nothing once warm. */
typedef struct ideft_buf {
    void *p;
    size_t bytes;
} ideft_buf_t;

/* ---- pool.c -------------------------------------------------------------------------------
 * Slots are handed out one by one, not in blocks. What a slot's entry says depends on what
 * starts there:
 *   first slot of a span (owned)   a = length, b = owners
 *   first slot of a free extent    a = length | IDEFT_FREE, b, c = neighbours in its bin
 *   last slot of a free extent     tag = first slot of the extent
 *   any slot of a span             tag = token id, -1 for none
 * edge bit(s) == s is the first or the last slot of a free extent: entries of other slots are
 *                stale and never read.
 * live + free == capacity;  live == sum of span lengths;  no two free extents adjoin. */
#define IDEFT_LONG_RUN 64u /* slots: as fast to read as any longer one */
#define IDEFT_FREE 0x80000000u
#define IDEFT_BINS 128 /* 32 powers of two, 4 steps each (TLSF, Masmano et al., ECRTS 2004) */

typedef struct ideft_slot {
    uint32_t a, b, c;
    int32_t tag;
} ideft_slot_t;

typedef struct ideft_pool {
    ideft_slot_t *slot;
    uint64_t *edge;
    uint32_t n_slots;
    uint32_t n_free;
    uint32_t bin[IDEFT_BINS]; /* first extent of each, IDEFT_NONE if empty */
    uint64_t used[IDEFT_BINS / 64];
} ideft_pool_t;

/* A run: slots [slot, slot+n), a whole number of spans. */
typedef struct ideft_run {
    uint32_t slot, n;
} ideft_run_t;

/* ---- tree.c -------------------------------------------------------------------------------
 * len == sum of runs[].n;  computed <= len;  start == parent's start + len
 * n_children == nodes on the list first_child, next, ...
 * the node is on the dirty list iff computed < len
 * a slot that several nodes own lies in a span with as many owners
 * tree == 0 iff the node is free; then parent is the next free one.
 * The first 64 bytes are what a plan reads. */
typedef struct ideft_node {
    uint32_t gen;
    uint32_t tree; /* id of its tree */
    uint32_t parent, first_child;
    uint32_t start, len, computed;
    uint32_t n_runs, run_cap; /* run_cap 0: the run is `one` */
    uint32_t mark, mark_epoch; /* plan.c: index of visit or active node, in pass mark_epoch */
    uint32_t dirty_prev, dirty_next;
    uint32_t last_child;
    union {
        ideft_run_t one;
        ideft_run_t *many;
    } run;
    uint32_t prev, next;
    uint32_t n_children;
    uint32_t last_span; /* first slot of a span near the end of the last run; valid while len > 0 */
    void *user;
} ideft_node_t;

#define IDEFT_CHUNK_BITS 12 /* nodes come in chunks that never move */
#define IDEFT_CHUNK ((uint32_t)1 << IDEFT_CHUNK_BITS)

struct deft_tree {
    deft_ctx_t *ctx;
    deft_tree_t *prev, *next; /* in order of creation */
    uint32_t id;
    uint32_t root;
    size_t n_nodes;
};

/* ---- plan.c, cut.c ------------------------------------------------------------------------
 * Rows are numbered in depth-first order of the tree, so the rows that see a node's token are
 * one interval: the node's own rows from that token on, then those of its descendants. This
 * interval is the mask of DeFT's flattened splits, in 8 bytes a run instead of a bit a pair. */
typedef struct ideft_seg { /* KV of one run (or part of it) and who sees it */
    uint32_t slot, n;
    uint32_t pos;                /* path position of its first token */
    uint32_t row_begin, row_end; /* rows that see it, up to their own position */
} ideft_seg_t;

typedef struct ideft_item { /* a group: runs of KV, rows */
    uint32_t seg_begin, seg_end;
    uint32_t row_begin, row_end;
    uint32_t part; /* partial of row r is number part + r - row_begin */
    uint32_t cost; /* of the plan's cost model */
} ideft_item_t;

typedef struct ideft_row {
    uint32_t pos;
    uint32_t token; /* index in the caller's q, k, v, o */
    uint32_t slot;
    uint32_t node;
} ideft_row_t;

typedef struct ideft_visit { /* an active node, in depth-first order */
    uint32_t node;
    uint32_t parent; /* visit index, IDEFT_NONE for a root */
    uint32_t start, n; /* tokens that some row sees */
    uint32_t row_begin, row_end;
    uint32_t n_self, self_pos; /* own rows, path position of the first */
    uint32_t min_pos;          /* least position of a row that sees it */
    uint32_t last_seg;         /* where the node's last token is, for patching; IDEFT_NONE */
    uint32_t slot;             /* of its first token if it is one run, else IDEFT_NONE */
} ideft_visit_t;

typedef struct ideft_active { /* a node on the path of a row, while rows are brought into order */
    uint32_t parent, first_child, last_child, next; /* active indices, IDEFT_NONE */
    uint32_t request;
} ideft_active_t;

typedef struct ideft_request { /* the next n tokens of a node */
    uint32_t node, n;
    uint32_t token; /* of the first, in the caller's order */
    uint32_t visit;
    uint32_t sorted; /* the request that is [this] in depth-first order */
} ideft_request_t;

/* What the cutter has to know of the machine; a backend fills it once. Nothing in it depends on
 * the number of threads: results must not. */
typedef struct ideft_machine {
    uint32_t tile_rows;  /* matrix rows that share a pass over KV */
    uint32_t width;      /* (group, KV head) units that fill the machine well */
    uint32_t row_cost;   /* cost of a token for one matrix row */
    uint32_t token_cost; /* least cost of a token: reading it */
    uint32_t min_cost;   /* an item below it is not worth its overhead */
    /* A machine that takes units in rounds of `width` says what an item costs beside its tokens, what
     * having partials at all does and each of a row's, and a token in a tile of half the rows. 0: units
     * go to whoever is free. */
    uint32_t item_cost, merge_cost, part_cost, half_cost;
} ideft_machine_t;

/* Units that AUTO makes of smaller tiles at most, and adds by cutting tiles in parts, in widths of such
 * a machine. They bound the size of a plan. */
enum { IDEFT_TILE_ROUNDS = 3, IDEFT_PART_ROUNDS = 2 };

typedef struct ideft_plan {
    ideft_alloc_t *alloc;
    ideft_buf_t req_b, act_b, list_b, visit_b, row_b, seg_b, item_b, order_b, part_b, begin_b, pos_b, id_b,
        node_b;
    ideft_request_t *req;
    ideft_active_t *act;
    uint32_t *list; /* scratch: a path, the visits of a tile */
    ideft_visit_t *visit;
    ideft_row_t *row;
    ideft_seg_t *seg;
    ideft_item_t *item;
    uint32_t *order;      /* [n_items] most expensive first */
    uint32_t *part_begin; /* [n_rows + 1] */
    uint32_t *part_list;  /* partials of row r: part_list[part_begin[r] .. part_begin[r+1]) */
    int32_t *positions, *ids; /* [n_rows] in the caller's order */
    deft_node_t *nodes;
    uint32_t n_req, n_act, n_visit, n_row, n_seg, n_item, n_part;
    uint32_t epoch; /* number of the last pass over the tree */
    /* what the plan was made for */
    uint64_t topology;
    uint64_t flags;
    deft_split_t split;
    bool valid;      /* describes the last step that ended well */
    bool one_each;   /* every request is one token of a leaf */
    bool cut_stays;  /* growing leaves do not move the cuts */
    int patched;
    uint64_t plan_ns;
} ideft_plan_t;

typedef struct ideft_geom {
    uint32_t n_layers, H, Hkv, G, D;
    deft_dtype_t kv_type;
    uint32_t elem; /* bytes of a KV element */
    float scale, softcap;
    uint32_t *windows; /* [n_layers] */
    uint32_t max_window; /* 0: some layer sees everything */
    float *sinks;      /* [H] or NULL */
} ideft_geom_t;

typedef struct ideft_backend_ops ideft_backend_ops_t;
typedef struct ideft_backend ideft_backend_t;

struct deft_step {
    deft_ctx_t *ctx;
    bool open;
    uint32_t n_written;
    uint8_t *written; /* [n_layers] */
};

struct deft_ctx {
    ideft_alloc_t alloc;
    ideft_geom_t geom;
    ideft_machine_t machine;
    ideft_pool_t pool;
    deft_device_t device;
    deft_dtype_t act_type;
    int32_t device_index;
    deft_isa_t isa;
    uint32_t n_threads;
    deft_split_t split;
    uint32_t chunk_tokens;
    size_t pool_tokens;
    deft_log_fn log;
    void *log_arg;
    bool debug_check;
    bool lost; /* the device failed: steps are refused */

    ideft_node_t **chunk; /* node i is chunk[i >> BITS][i & MASK]; node 0 is never used */
    uint32_t n_chunks, chunk_cap;
    uint32_t free_node, next_node; /* free list; first index never used */
    size_t n_nodes;
    uint32_t dirty_first, dirty_last;
    deft_tree_t *tree_first, *tree_last;
    uint32_t next_tree;
    size_t n_trees;
    uint64_t topology; /* counts changes other than a leaf's growth */

    ideft_plan_t plan;
    deft_step_t step;
    const ideft_backend_ops_t *ops;
    ideft_backend_t *backend;
    char error[256];
};

static inline uint32_t ideft_min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline uint32_t ideft_max(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

#endif
