/* SPDX-License-Identifier: MIT */
/* deft_bench plan: time of deft_step_begin(), afresh and patched, single-threaded. Every pair of a
 * patched and a fresh plan is compared by its statistics first. */
#include "bench.h"

#include <getopt.h>
#include <string.h>

static const struct {
    const char *name, *tree; /* name: of the summary's keys */
} cases[] = {
    { "50", "1,50/4000,200" },
    { "1000", "1,10,100,1000,1000,1000,1000,1000,1000,1000,1000,1000,1000/"
              "500,100,50,16,16,8,8,4,4,2,2,1,16" },
    { NULL, "1,2,64/8,256,32" },
    { NULL, "1,1024/2048,32" },
    { NULL, "1,2,4,8,16,32,64,128,1024/16,16,16,16,16,16,16,16,16" },
};
enum { CASES = sizeof(cases) / sizeof(*cases) };
static const char *const split_names[] = { "auto", "node", "node-chunk", "flatten", "sequence" };

typedef struct result {
    double fresh_us, patched_us;
    size_t groups, partials, patched, cut_again;
} result_t;

static void one_step(deft_ctx_t *ctx, float *kv, deft_step_stats_t *st)
{
    deft_step_t step;
    st->struct_size = sizeof(*st);
    BENCH_CHECK(ctx, deft_step_begin(ctx, NULL, 0, 0, &step));
    BENCH_CHECK(ctx, deft_step_stats(step, st));
    BENCH_CHECK(ctx, deft_step_write(step, 0, kv, kv));
    BENCH_CHECK(ctx, deft_step_end(step));
}

static result_t run(const char *tree_text, int split, uint32_t H, uint32_t Hkv, int steps)
{
    enum { D = 64 };
    bench_spec_t spec;
    bench_parse(tree_text, &spec);
    deft_config_t config = DEFT_CONFIG_INIT;
    config.n_layers = 1;
    config.n_q_heads = H;
    config.n_kv_heads = Hkv;
    config.head_dim = D;
    const size_t leaves_spec = spec.nodes[spec.levels - 1];
    config.pool_tokens = bench_spec_tokens(&spec) + leaves_spec * (size_t)(2 * steps + 4) * 2;
    config.n_threads = 1;
    config.flags = DEFT_CTX_HUGE_PAGES;
    config.split = (deft_split_t)split;
    deft_ctx_t *ctx;
    deft_node_t *leaves;
    size_t n;
    BENCH_CHECK(NULL, deft_ctx_create(&config, &ctx));
    deft_tree_t *tree = bench_grow(ctx, &spec, &leaves, &n);
    bench_fill(ctx, tree, 1, (size_t)Hkv * D);
    float *kv = bench_alloc(n * Hkv * D * sizeof(float));
    memset(kv, 0, n * Hkv * D * sizeof(float));
    double *fresh = bench_alloc((size_t)steps * sizeof(double)),
           *patched = bench_alloc((size_t)steps * sizeof(double));
    result_t r = { 0 };
    deft_step_stats_t st;
    one_step(ctx, kv, &st);
    for (int i = 0; i < steps; i++) {
        /* leaves grow by one: patched; the same tree again: afresh */
        for (size_t l = 0; l < n; l++)
            BENCH_CHECK(ctx, deft_tree_append(tree, leaves[l], 1, NULL));
        deft_step_stats_t p = { .struct_size = sizeof(p) };
        deft_step_t step;
        BENCH_CHECK(ctx, deft_step_begin(ctx, NULL, 0, 0, &step));
        BENCH_CHECK(ctx, deft_step_stats(step, &p));
        deft_step_abandon(step);
        one_step(ctx, kv, &st);
        if (p.planned == 0 || st.planned != 0)
            bench_die("%s: a plan that should be patched is not, or the other way round",
                      tree_text);
        if (p.kv_unique_bytes != st.kv_unique_bytes || p.kv_logical_bytes != st.kv_logical_bytes ||
            p.kv_read_bytes != st.kv_read_bytes || p.groups != st.groups ||
            p.partials != st.partials)
            bench_die("%s: patched and fresh plans differ", tree_text);
        patched[i] = (double)p.plan_ns * 1e-3;
        fresh[i] = (double)st.plan_ns * 1e-3;
        r.patched++;
        r.cut_again += p.planned == 2;
    }
    r.groups = st.groups;
    r.partials = st.partials;
    r.fresh_us = bench_median(fresh, (size_t)steps);
    r.patched_us = bench_median(patched, (size_t)steps);
    free(fresh);
    free(patched);
    free(kv);
    free(leaves);
    deft_ctx_destroy(ctx);
    return r;
}

static int usage(int status)
{
    fprintf(status == 0 ? stdout : stderr,
            "usage: deft_bench plan [--heads 32/8] [--steps 200] [--json]\n"
            "Microseconds to plan a step: afresh, and patched after leaves grew by one token.\n");
    return status;
}

int bench_plan(int argc, char **argv)
{
    static const struct option longs[] = { { "heads", 1, 0, 'H' },
                                           { "steps", 1, 0, 's' },
                                           { "json", 0, 0, 'j' },
                                           { "help", 0, 0, 'h' },
                                           { 0, 0, 0, 0 } };
    uint32_t H = 32, Hkv = 8;
    int steps = 200, json = 0;
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'H' && sscanf(optarg, "%u/%u", &H, &Hkv) == 2)
            continue;
        else if (c == 's')
            steps = atoi(optarg);
        else if (c == 'j')
            json = 1;
        else
            return usage(c == 'h' ? 0 : 2);
    }
    if (steps < 1 || Hkv == 0 || H % Hkv != 0)
        return usage(2);
    char summary[256] = "";
    if (!json)
        printf("heads %u/%u, median of %d steps\n%-56s %-10s %8s %8s %9s %9s %7s\n", H, Hkv, steps,
               "tree", "split", "fresh us", "patched", "groups", "partials", "cut");
    for (int i = 0; i < CASES; i++) {
        for (int split = 0; split < 5; split++) {
            const result_t r = run(cases[i].tree, split, H, Hkv, steps);
            printf(json ? "{\"tree\":\"%s\",\"split\":\"%s\",\"fresh_us\":%.2f,\"patched_us\":%.2f,"
                          "\"groups\":%zu,\"partials\":%zu,\"cut_again\":%zu}\n"
                        : "%-56s %-10s %8.2f %8.2f %9zu %9zu %6zu%%\n",
                   cases[i].tree, split_names[split], r.fresh_us, r.patched_us, r.groups,
                   r.partials, json ? r.cut_again : 100 * r.cut_again / r.patched);
            fflush(stdout);
            const size_t at = strlen(summary);
            if (split == 0 && cases[i].name != NULL)
                snprintf(summary + at, sizeof(summary) - at, "%sfresh%s_us=%.2f patched%s_us=%.2f",
                         at > 0 ? " " : "", cases[i].name, r.fresh_us, cases[i].name, r.patched_us);
        }
    }
    printf("%s\n", summary);
    return 0;
}
