/* SPDX-License-Identifier: MIT */
/* Replaying recorded searches and drafts on a tree. */
#include "bench_trace.h"

#include <string.h>

/* ---- trees of reasoning ---------------------------------------------------------------------- */

int trace_read(FILE *file, trace_node_t *nodes)
{
    char line[256];
    int n = 0, want = 0, index, id;
    while (n < want || want == 0) {
        if (fgets(line, sizeof(line), file) == NULL) {
            if (want != 0)
                bench_die("the trace ends inside a tree");
            return 0;
        }
        if (line[0] == '#' || line[0] == '\n')
            continue;
        if (want == 0) {
            if (sscanf(line, "tree %d %d", &index, &want) != 2 || want < 1 || want > TRACE_NODES)
                bench_die("not a trace: %s", line);
            continue;
        }
        trace_node_t *p = &nodes[n];
        if (sscanf(line, "node %d %d %ld %ld %ld", &id, &p->parent, &p->tokens, &p->first,
                   &p->last) != 5 ||
            id != n || p->parent >= n || (n > 0) != (p->parent >= 0) ||
            p->tokens != p->last - p->first + 1)
            bench_die("not a node of a trace: %s", line);
        p->done = p->last;
        n++;
    }
    for (int i = n - 1; i > 0; i--)
        if (nodes[nodes[i].parent].done < nodes[i].done)
            nodes[nodes[i].parent].done = nodes[i].done;
    return n;
}

/* Children of the nodes that ended at `iteration`, in one fork each. */
static void fork_ended(const trace_node_t *nodes, int n, long iteration, const trace_ops_t *ops,
                       void *arg)
{
    static int kids[TRACE_NODES];
    for (int i = 0; i < n; i++) {
        size_t n_kids = 0;
        if (nodes[i].last != iteration)
            continue;
        for (int k = i + 1; k < n; k++)
            if (nodes[k].parent == i)
                kids[n_kids++] = k;
        if (n_kids > 0)
            ops->fork(arg, i, kids, n_kids);
    }
}

/* Subtrees that are there and done, each as a whole and once: where the node above goes on. One
 * without tokens is done before it is there. */
static void prune_done(const trace_node_t *nodes, int n, long iteration, const trace_ops_t *ops,
                       void *arg)
{
    for (int i = 1; i < n; i++) {
        const trace_node_t *above = &nodes[nodes[i].parent];
        const long from = nodes[i].done > above->last ? nodes[i].done : above->last + 1;
        if (iteration == from && above->done > iteration)
            ops->prune(arg, i);
    }
}

long trace_replay(const trace_node_t *nodes, int n, const trace_ops_t *ops, void *arg)
{
    ops->append(arg, 0, (size_t)nodes[0].tokens);
    ops->step(arg, 0);
    for (long iteration = 1; iteration <= nodes[0].done; iteration++) {
        int growing = 0;
        fork_ended(nodes, n, iteration - 1, ops, arg);
        for (int i = 1; i < n; i++) {
            if (nodes[i].first <= iteration && iteration <= nodes[i].last) {
                ops->append(arg, i, 1);
                growing++;
            }
        }
        if (growing > 0)
            ops->step(arg, iteration);
        prune_done(nodes, n, iteration, ops, arg);
    }
    return nodes[0].done;
}

/* ---- in a tree of the library ---------------------------------------------------------------- */

/* splitmix64: the seed is its counter. */
static int32_t draw_id(trace_tree_t *t)
{
    uint64_t z = t->seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return (int32_t)((z ^ z >> 31) % t->vocab);
}

static void append_tokens(trace_tree_t *t, deft_node_t node, size_t n)
{
    int32_t *ids = t->vocab > 0 ? bench_alloc(n * sizeof(*ids)) : NULL;
    for (size_t i = 0; ids != NULL && i < n; i++)
        ids[i] = draw_id(t);
    BENCH_CHECK(t->ctx, deft_tree_append(t->tree, node, n, ids));
    t->waiting += n;
    free(ids);
}

static void tree_append(void *arg, int node, size_t n)
{
    trace_tree_t *t = arg;
    append_tokens(t, t->node[node], n);
}

static void tree_fork(void *arg, int parent, const int *kids, size_t n)
{
    static deft_node_t made[TRACE_NODES];
    trace_tree_t *t = arg;
    BENCH_CHECK(t->ctx, deft_tree_fork(t->tree, t->node[parent], n, made));
    for (size_t k = 0; k < n; k++)
        t->node[kids[k]] = made[k];
}

static void tree_prune(void *arg, int node)
{
    trace_tree_t *t = arg;
    BENCH_CHECK(t->ctx, deft_tree_prune(t->tree, t->node[node]));
    t->node[node] = DEFT_NODE_NONE; /* those below go stale: a replay names them no more */
}

static void tree_step(void *arg, long iteration)
{
    trace_tree_t *t = arg;
    t->step(t->arg, iteration);
    t->waiting = 0;
}

const trace_ops_t trace_tree_ops = { tree_append, tree_fork, tree_prune, tree_step };

void trace_tree_begin(trace_tree_t *t, deft_ctx_t *ctx, uint32_t vocab, uint64_t seed,
                      void (*step)(void *arg, long iteration), void *arg)
{
    memset(t, 0, sizeof(*t));
    t->ctx = ctx;
    t->vocab = vocab;
    t->seed = seed;
    t->step = step;
    t->arg = arg;
    BENCH_CHECK(ctx, deft_tree_create(ctx, &t->tree));
    t->node[0] = deft_tree_root(t->tree);
}

void trace_tree_end(trace_tree_t *t)
{
    BENCH_CHECK(t->ctx, deft_tree_check(t->tree));
    deft_tree_destroy(t->tree);
    t->tree = NULL;
}

/* ---- speculative decoding -------------------------------------------------------------------- */

/* Token 0 is the last accepted token, 1 to n are the draft. Where a token hangs: it is the at-th
 * of its node, counted from 1; token 0, whose node holds the path, has 0. */
typedef struct draft {
    int n;
    int parent[TRACE_NODES], first_child[TRACE_NODES], kids[TRACE_NODES];
    deft_node_t node[TRACE_NODES];
    size_t at[TRACE_NODES];
} draft_t;

static void add_token(draft_t *d, const char *line)
{
    int id, parent;
    if (sscanf(line, "token %d %d", &id, &parent) != 2 || id != d->n + 1 || parent < 0 ||
        parent >= id || id >= TRACE_NODES)
        bench_die("not a token of a draft tree: %s", line);
    d->n = id;
    d->parent[id] = parent;
    if (d->kids[parent]++ == 0)
        d->first_child[parent] = id;
}

/* A node for each child of token `top`. A node's tokens come before its children, so it gets its
 * whole chain of only children now. */
static void fork_draft(trace_tree_t *t, draft_t *d, int top)
{
    static deft_node_t made[TRACE_NODES];
    BENCH_CHECK(t->ctx, deft_tree_fork(t->tree, d->node[top], (size_t)d->kids[top], made));
    for (int k = top + 1, i = 0; k <= d->n; k++) {
        size_t len = 1;
        if (d->parent[k] != top)
            continue;
        d->node[k] = made[i++];
        d->at[k] = 1;
        for (int c = k; d->kids[c] == 1; c = d->first_child[c])
            len++;
        append_tokens(t, d->node[k], len);
    }
}

/* Hang the draft below d->node[0]. */
static void grow_draft(trace_tree_t *t, draft_t *d)
{
    d->at[0] = 0;
    for (int i = 0; i <= d->n; i++) {
        const int child = d->first_child[i];
        if (i != 0 && d->kids[i] == 1) { /* goes on in the same node */
            d->node[child] = d->node[i];
            d->at[child] = d->at[i] + 1;
        } else if (d->kids[i] > 0) {
            fork_draft(t, d, i);
        }
    }
}

/* One decode step that accepts `accepted` tokens, the new one included. d->node[0] is the path's
 * end before and after. */
static void accept_draft(trace_tree_t *t, draft_t *d, long iteration, long accepted)
{
    append_tokens(t, d->node[0], 1);
    grow_draft(t, d);
    tree_step(t, iteration);
    int last = 0;
    for (long i = 1; i < accepted && d->kids[last] > 0; i++)
        last = d->first_child[last];
    BENCH_CHECK(t->ctx, deft_tree_commit(t->tree, d->node[last], DEFT_COMMIT_PATH));
    if (last != 0)
        BENCH_CHECK(t->ctx, deft_tree_truncate(t->tree, d->node[last], d->at[last]));
    d->node[0] = d->node[last];
    BENCH_CHECK(t->ctx, deft_tree_compact(t->tree, deft_tree_root(t->tree), 128,
                                          DEFT_COMPACT_CHAINS, NULL));
}

static void replay_record(trace_tree_t *t, draft_t *d, const char *line, size_t prompt, long steps)
{
    char *at;
    long n = strtol(line + strlen("record"), &at, 10);
    size_t expect = prompt;
    if (steps > 0 && n > steps)
        n = steps;
    trace_tree_begin(t, t->ctx, t->vocab, t->seed, t->step, t->arg);
    d->node[0] = deft_tree_root(t->tree);
    append_tokens(t, d->node[0], prompt);
    tree_step(t, 0);
    for (long iteration = 1; iteration <= n; iteration++) {
        char *end;
        const long accepted = strtol(at, &end, 10);
        if (end == at)
            bench_die("a record is too short");
        at = end;
        accept_draft(t, d, iteration, accepted);
        expect += (size_t)accepted;
        if (deft_tree_path_len(t->tree, d->node[0]) > expect)
            bench_die("%zu tokens kept, %zu accepted", deft_tree_path_len(t->tree, d->node[0]),
                      expect);
    }
    trace_tree_end(t);
}

uint32_t trace_speculate(trace_tree_t *t, FILE *file, size_t prompt, uint32_t records, long steps)
{
    static char line[65536];
    static draft_t d;
    uint32_t done = 0;
    memset(&d, 0, sizeof(d));
    while ((records == 0 || done < records) && fgets(line, sizeof(line), file) != NULL) {
        if (strncmp(line, "token", 5) == 0)
            add_token(&d, line);
        else if (strncmp(line, "record", 6) == 0)
            replay_record(t, &d, line, prompt, steps), done++;
        else if (line[0] != '#' && line[0] != '\n')
            bench_die("not a line of a draft record: %s", line);
    }
    return done;
}
