/* SPDX-License-Identifier: MIT */
/* deft_bench tree: what an operation costs when a tree has a million nodes. */
#include "bench.h"

#include <getopt.h>
#include <string.h>

typedef struct timing {
    const char *name;
    size_t n;
    double seconds;
} timing_t;

enum { KIDS = 10 };

static uint32_t random_below(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 32) * n >> 32);
}

typedef struct forest {
    deft_ctx_t *ctx;
    deft_tree_t *tree;
    deft_node_t *node;
    size_t n;
} forest_t;

/* Fork level after level until there are enough nodes. */
static void grow(forest_t *f, size_t want, timing_t *t)
{
    size_t forks = 0;
    f->node = bench_alloc((want + KIDS) * sizeof(*f->node));
    f->node[0] = deft_tree_root(f->tree);
    f->n = 1;
    const double begin = bench_now();
    for (size_t at = 0; f->n < want; at++, forks++) {
        BENCH_CHECK(f->ctx, deft_tree_fork(f->tree, f->node[at], KIDS, f->node + f->n));
        f->n += KIDS;
    }
    *t = (timing_t){ "fork, a child", f->n - 1, bench_now() - begin };
}

static void verify(const forest_t *f, size_t nodes, size_t tokens)
{
    deft_tree_stats_t s = { .struct_size = sizeof(s) };
    BENCH_CHECK(f->ctx, deft_tree_stats(f->tree, &s));
    if (s.n_nodes != nodes || s.tokens != tokens)
        bench_die("%zu nodes and %zu tokens, not %zu and %zu", s.n_nodes, s.tokens, nodes, tokens);
    BENCH_CHECK(f->ctx, deft_tree_check(f->tree));
}

static int usage(int status)
{
    fprintf(status == 0 ? stdout : stderr,
            "usage: deft_bench tree [--nodes 1000000] [--json]\n"
            "Nanoseconds an operation on a large tree, nodes taken at random.\n");
    return status;
}

int bench_tree(int argc, char **argv)
{
    static const struct option longs[] = {
        { "nodes", 1, 0, 'n' }, { "json", 0, 0, 'j' }, { "help", 0, 0, 'h' }, { 0, 0, 0, 0 }
    };
    size_t want = 1000000;
    int json = 0, n_timings = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'n')
            want = strtoul(optarg, NULL, 10);
        else if (c == 'j')
            json = 1;
        else
            return usage(c == 'h' ? 0 : 2);
    }
    if (want < 100 || want > 100000000)
        return usage(2);
    timing_t t[16];
    forest_t f = { 0 };
    deft_config_t config = DEFT_CONFIG_INIT;
    config.n_layers = config.n_q_heads = config.n_kv_heads = 1;
    config.head_dim = 64;
    config.pool_tokens = 4 * want;
    config.n_threads = 1;
    config.device = DEFT_DEVICE_CPU;
    config.isa = DEFT_ISA_SCALAR;
    BENCH_CHECK(NULL, deft_ctx_create(&config, &f.ctx));
    BENCH_CHECK(f.ctx, deft_tree_create(f.ctx, &f.tree));
    grow(&f, want, &t[n_timings++]);
    const size_t leaves_from = (f.n - 1) / KIDS, n_leaves = f.n - leaves_from;
    uint64_t seed = 1;
    double begin = bench_now();
    for (size_t i = leaves_from; i < f.n; i++)
        BENCH_CHECK(f.ctx, deft_tree_append(f.tree, f.node[i], 1, NULL));
    t[n_timings++] = (timing_t){ "append a token, first", n_leaves, bench_now() - begin };
    begin = bench_now();
    for (size_t i = 0; i < n_leaves; i++)
        BENCH_CHECK(f.ctx,
                    deft_tree_append(f.tree, f.node[f.n - 1 - random_below(&seed, 100)], 1, NULL));
    t[n_timings++] = (timing_t){ "append a token, to hot leaves", n_leaves, bench_now() - begin };
    verify(&f, f.n, 2 * n_leaves);
    size_t sum = 0;
    begin = bench_now();
    for (size_t i = 0; i < want; i++)
        sum += deft_tree_path_len(f.tree, f.node[random_below(&seed, (uint32_t)f.n)]);
    t[n_timings++] = (timing_t){ "look a handle up, at random", want, bench_now() - begin };
    const deft_node_t root = deft_tree_root(f.tree);
    begin = bench_now();
    for (deft_node_t at = root; at != DEFT_NODE_NONE; at = deft_tree_next(f.tree, root, at))
        sum++;
    t[n_timings++] = (timing_t){ "walk to the next node", f.n, bench_now() - begin };
    /* one by one, then the inner nodes with all below them */
    const size_t pruned = n_leaves / 2;
    begin = bench_now();
    for (size_t i = 0; i < pruned; i++)
        BENCH_CHECK(f.ctx, deft_tree_prune(f.tree, f.node[f.n - 1 - i]));
    t[n_timings++] = (timing_t){ "prune a leaf", pruned, bench_now() - begin };
    deft_tree_stats_t s = { .struct_size = sizeof(s) };
    BENCH_CHECK(f.ctx, deft_tree_stats(f.tree, &s));
    verify(&f, f.n - pruned, s.tokens);
    begin = bench_now();
    for (size_t i = 1; i <= KIDS; i++)
        BENCH_CHECK(f.ctx, deft_tree_prune(f.tree, f.node[i]));
    t[n_timings++] = (timing_t){ "prune a subtree, a node", f.n - pruned - 1, bench_now() - begin };
    verify(&f, 1, 0);
    double worst = 0;
    if (!json)
        printf("%zu nodes (%zu looked at)\n%-32s %10s\n", f.n, sum, "operation", "ns");
    for (int i = 0; i < n_timings; i++) {
        const double ns = t[i].seconds / (double)t[i].n * 1e9;
        worst = ns > worst ? ns : worst;
        printf(json ? "{\"operation\":\"%s\",\"ns\":%.1f}\n" : "%-32s %10.1f\n", t[i].name, ns);
    }
    printf("worst_ns=%.1f\n", worst);
    deft_ctx_destroy(f.ctx);
    free(f.node);
    return 0;
}
