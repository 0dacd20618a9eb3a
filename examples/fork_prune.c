/* SPDX-License-Identifier: MIT */
/* The tree KV cache without a model: a prompt, three branches, one of them pruned.
 *
 * Run:    fork_prune
 * Prints: the tree with its branches, the tree without one of them, and what a step over it reads
 *         compared with a copy of the prompt for each branch. */
#include "common.h"

enum { LAYERS = 2, Q_HEADS = 4, KV_HEADS = 2, HEAD_DIM = 64, PROMPT = 200, ROWS = 256 };

/* Compute whatever waits to be computed. A model would supply q, k and v, and use o. */
static deft_step_stats_t step(deft_ctx_t *ctx)
{
    static float q[ROWS * Q_HEADS * HEAD_DIM], o[ROWS * Q_HEADS * HEAD_DIM];
    static float k[ROWS * KV_HEADS * HEAD_DIM], v[ROWS * KV_HEADS * HEAD_DIM];
    deft_step_stats_t stats = DEFT_STEP_STATS_INIT;
    deft_step_t s;

    for (size_t i = 0; i < sizeof(q) / sizeof(*q); i++)
        q[i] = (float)(i % 17) / 17.0f - 0.5f;
    for (size_t i = 0; i < sizeof(k) / sizeof(*k); i++) {
        k[i] = (float)(i % 13) / 13.0f - 0.5f;
        v[i] = (float)(i % 11) / 11.0f - 0.5f;
    }
    CHECK(ctx, deft_step_begin(ctx, NULL, 0, 0, &s));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        CHECK(ctx, deft_step_write(s, layer, k, v));
        CHECK(ctx, deft_step_attend(s, layer, q, o));
    }
    CHECK(ctx, deft_step_stats(s, &stats));
    CHECK(ctx, deft_step_end(s));
    return stats;
}

int main(void)
{
    deft_config_t config = DEFT_CONFIG_INIT;
    deft_print_t print = { .struct_size = sizeof(print), .write = write_file, .arg = stdout };
    deft_ctx_t *ctx = NULL;
    deft_tree_t *tree;
    deft_node_t kids[3];

    config.n_layers = LAYERS;
    config.n_q_heads = Q_HEADS;
    config.n_kv_heads = KV_HEADS;
    config.head_dim = HEAD_DIM;
    config.pool_tokens = 4096;
    CHECK(ctx, deft_ctx_create(&config, &ctx));
    CHECK(ctx, deft_tree_create(ctx, &tree));

    CHECK(ctx, deft_tree_append(tree, deft_tree_root(tree), PROMPT, NULL));
    (void)step(ctx); /* the prompt, once */
    CHECK(ctx, deft_tree_fork(tree, deft_tree_root(tree), 3, kids));
    for (int i = 0; i < 3; i++)
        CHECK(ctx, deft_tree_append(tree, kids[i], (size_t)i + 1, NULL));
    deft_step_stats_t stats = step(ctx); /* all branches together */
    printf("three branches:\n");
    CHECK(ctx, deft_tree_print(tree, &print));

    CHECK(ctx, deft_tree_prune(tree, kids[1]));
    printf("\none pruned:\n");
    CHECK(ctx, deft_tree_print(tree, &print));
    printf("\nthe step of %zu rows saw %llu bytes of KV a layer; with a copy a row: %llu\n",
           stats.rows, (unsigned long long)stats.kv_unique_bytes,
           (unsigned long long)stats.kv_logical_bytes);
    deft_ctx_destroy(ctx); /* and its trees */
    return 0;
}
