/* SPDX-License-Identifier: MIT */
/* Recorded searches, read and replayed.
 *
 * A .trace file holds trees of reasoning: a node appends a token in each of its iterations, then
 * its children are forked; a subtree is pruned when nothing in it will grow any more. A .spec file
 * holds a draft tree and accepted lengths: every step appends the last accepted token and the draft
 * below it, computes them, and keeps the accepted path. */
#ifndef BENCH_TRACE_H
#define BENCH_TRACE_H

#include "bench.h"

enum { TRACE_NODES = 4096 }; /* most nodes of a tree, most tokens of a draft */

/* A node of a recorded tree. Parents come before children; node 0, the root, is the prompt: its
 * parent is -1 and it ends at iteration 0. */
typedef struct trace_node {
    int parent;
    long tokens, first, last; /* tokens == last - first + 1; it may be 0 */
    long done;                /* last iteration of anything below, at least `last` */
} trace_node_t;

/* What a replay does. Node numbers are the trace's, arg is the caller's. */
typedef struct trace_ops {
    void (*append)(void *arg, int node, size_t n);
    /* Make all children of a node, in order. */
    void (*fork)(void *arg, int parent, const int *kids, size_t n);
    /* The node and all below it go. */
    void (*prune)(void *arg, int node);
    /* Compute everything appended since the last step. Iteration 0 is the prompt. */
    void (*step)(void *arg, long iteration);
} trace_ops_t;

/* The next tree of a .trace file into nodes[TRACE_NODES]. Returns how many nodes it has, 0 at the
 * end of the file; dies of a bad one. */
int trace_read(FILE *file, trace_node_t *nodes);

/* Replay a tree of n nodes: the prompt and its step, then each iteration forks, appends, steps (if
 * a node grows in it) and prunes. Returns the last iteration. */
long trace_replay(const trace_node_t *nodes, int n, const trace_ops_t *ops, void *arg);

/* A search in one tree of the library, the current one. */
typedef struct trace_tree {
    deft_ctx_t *ctx;
    deft_tree_t *tree;                       /* NULL between searches */
    uint32_t vocab;                          /* token ids are below it; 0: none are attached */
    uint64_t seed;                           /* of the ids; moves on with each that is drawn */
    size_t waiting;                          /* tokens appended since the last step */
    deft_node_t node[TRACE_NODES];           /* of the trace's nodes; DEFT_NODE_NONE: not there */
    void (*step)(void *arg, long iteration); /* called with arg; computes what is appended */
    void *arg;
} trace_tree_t;

/* Operations whose arg is a trace_tree_t. The n-th id that is appended depends on n and the seed
 * alone. */
extern const trace_ops_t trace_tree_ops;

void trace_tree_begin(trace_tree_t *t, deft_ctx_t *ctx, uint32_t vocab, uint64_t seed,
                      void (*step)(void *arg, long iteration), void *arg);
void trace_tree_end(trace_tree_t *t); /* deft_tree_check(), then destroy */

/* Replay up to `records` records of a .spec file, up to `steps` steps of each (0: all), each record
 * in a tree of its own that begins with `prompt` tokens (iteration 0). The caller sets ctx, vocab,
 * seed, step and arg of t and does not begin it; ids go on from record to record. Returns how many
 * records were replayed; dies of a bad file. */
uint32_t trace_speculate(trace_tree_t *t, FILE *file, size_t prompt, uint32_t records, long steps);

#endif
