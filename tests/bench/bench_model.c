/* SPDX-License-Identifier: MIT */
/* deft_bench model: decode steps of a real model over a shared prompt. */
#include "bench.h"

#include <getopt.h>
#include <string.h>

#include "model.h"

enum { STEPS = 32, MAX_LEAVES = 50 };

static const size_t prompts[] = { 1, 1000, 4000 }, leaves[] = { 1, 8, 20, 50 };

typedef struct cell {
    double step, matmul, attention, plan, rest, floor; /* milliseconds, medians */
} cell_t;

/* Grow n leaves below the root by STEPS tokens each, and prune them again. */
static cell_t measure(engine_t *e, deft_tree_t *tree, size_t n, float *logits, double gbs)
{
    double t[6][STEPS];
    deft_node_t kids[MAX_LEAVES];
    deft_ctx_t *ctx = engine_ctx(e);

    BENCH_CHECK(ctx, deft_tree_fork(tree, deft_tree_root(tree), n, kids));
    for (size_t i = 0; i < STEPS; i++) {
        for (size_t k = 0; k < n; k++) {
            int32_t id = (int32_t)(1000 + 37 * k + i);
            BENCH_CHECK(ctx, deft_tree_append(tree, kids[k], 1, &id));
        }
        engine_reset_times(e);
        double start = bench_now();
        if (engine_step(e, NULL, 0, 0, &(engine_output_t){ .n = n, .logits = logits }) != 0)
            bench_die("%s", engine_error(e));
        const engine_times_t *x = engine_times(e);
        t[0][i] = 1e3 * (bench_now() - start);
        t[1][i] = 1e3 * x->matmul;
        t[2][i] = 1e3 * x->attention;
        t[3][i] = 1e3 * x->plan;
        t[4][i] = 1e3 * x->rest;
        t[5][i] = ((double)engine_weight_bytes(e) + (double)x->kv_unique_bytes) / gbs * 1e-6;
    }
    for (size_t k = 0; k < n; k++)
        BENCH_CHECK(ctx, deft_tree_prune(tree, kids[k]));
    return (cell_t){ bench_median(t[0], STEPS), bench_median(t[1], STEPS),
                     bench_median(t[2], STEPS), bench_median(t[3], STEPS),
                     bench_median(t[4], STEPS), bench_median(t[5], STEPS) };
}

static void run(engine_t *e, int threads, int json)
{
    enum { READ = 256 << 20 };
    void *pages = bench_pages((size_t)4 * READ);
    double gbs = bench_read_gbs(pages, (size_t)4 * READ, READ, threads), last = 0;
    double peak = bench_peak_gflops(threads, 0, DEFT_ISA_BEST), prefill = 0;
    free(pages);
    float *logits = bench_alloc(MAX_LEAVES * sizeof(float) * engine_vocab(e));
    int32_t ids[4000];

    for (size_t i = 0; i < 4000; i++)
        ids[i] = (int32_t)(100 + i * 7919 % 40000 % engine_vocab(e));
    if (!json)
        printf(
            "read %.1f GB/s, f32 peak %.0f GFLOP/s, weights %.1f MB\n"
            "prompt leaves  step ms  matmul  attention   plan   rest  floor: bytes  operations\n",
            gbs, peak, 1e-6 * (double)engine_weight_bytes(e));
    for (size_t p = 0; p < 3; p++) {
        deft_tree_t *tree;
        BENCH_CHECK(engine_ctx(e), deft_tree_create(engine_ctx(e), &tree));
        double start = bench_now();
        if (engine_prefill(e, tree, deft_tree_root(tree), ids, prompts[p], 0, NULL) != 0)
            bench_die("%s", engine_error(e));
        prefill = bench_now() - start;
        for (size_t l = 0; l < 4; l++) {
            cell_t c = measure(e, tree, leaves[l], logits, gbs);
            double ops = engine_operations(e) * (double)leaves[l] / peak * 1e-6;
            if (json)
                printf(
                    "{\"prompt\":%zu,\"leaves\":%zu,\"step_ms\":%.3f,\"matmul_ms\":%.3f,"
                    "\"attention_ms\":%.3f,\"plan_ms\":%.4f,\"rest_ms\":%.3f,\"floor_ms\":%.3f}\n",
                    prompts[p], leaves[l], c.step, c.matmul, c.attention, c.plan, c.rest, c.floor);
            else
                printf("%6zu %6zu %8.2f %7.2f %10.2f %6.3f %6.2f %13.2f %11.2f\n", prompts[p],
                       leaves[l], c.step, c.matmul, c.attention, c.plan, c.rest, c.floor, ops);
            last = c.step;
        }
        if (!json)
            printf("prefill of %zu: %.3f s\n", prompts[p], prefill);
        deft_tree_destroy(tree);
    }
    free(logits);
    printf("prefill_4000_s=%.3f step_4000x50_ms=%.2f read_gbs=%.1f peak_gflops=%.0f\n", prefill,
           last, gbs, peak);
}

int bench_model(int argc, char **argv)
{
    static const struct option longs[] = { { "threads", 1, NULL, 't' },
                                           { "kv", 1, NULL, 'k' },
                                           { "json", 0, NULL, 'j' },
                                           { "help", 0, NULL, 'h' },
                                           { NULL, 0, NULL, 0 } };
    engine_options_t o = { .device = DEFT_DEVICE_CPU, .n_threads = 2, .pool_tokens = 8192 };
    const char *model = getenv("DEFT_TEST_MODEL");
    engine_t *e;
    char err[256];
    int c, json = 0;

    optind = 1;
    while ((c = getopt_long(argc, argv, "m:", longs, NULL)) != -1) {
        if (c == 'm')
            model = optarg;
        else if (c == 't')
            o.n_threads = (uint32_t)strtoul(optarg, NULL, 10);
        else if (c == 'k')
            o.kv_type = bench_type(optarg);
        else if (c == 'j')
            json = 1;
        else {
            fprintf(
                c == 'h' ? stdout : stderr,
                "usage: deft_bench model -m MODEL [--threads N] [--kv f16|bf16|f32] [--json]\n");
            return c == 'h' ? 0 : 2;
        }
    }
    if (!model || o.n_threads == 0)
        bench_die("model: -m MODEL is required, --threads from 1");
    if (engine_open(model, &o, &e, err, sizeof(err)) != 0)
        bench_die("%s: %s", model, err);
    run(e, (int)o.n_threads, json);
    engine_close(e);
    return 0;
}
