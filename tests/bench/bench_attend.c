/* SPDX-License-Identifier: MIT */
/* deft_bench attend: attention of one layer, cold, beside its limit.
 *
 * limit = the larger of the measured time to read the unique KV bytes once with the same threads,
 * where they lie (how fast memory is depends on the pages that the system gave), and 4 * head_dim *
 * query heads * (sum of path lengths) operations at the measured peak (of the instruction set that
 * is asked for). The layers of a context together exceed the caches and take turns, so every call
 * finds its KV cold, as in a model. Every split is verified against a float64 reference over the
 * same stored K and V before it is timed. */
#include "config.h"

#include "bench_attend.h"
#include "util.h"

#include <getopt.h>
#include <math.h>
#include <string.h>

static const char *const default_trees[] = { "1,2,64/8,256,32", "1,16,64/1024,256,32",
                                             "1,20/4000,200",   "1,50/4000,200",
                                             "1,10/4000,400",   "1,1024/2048,32" };
const char *const bench_splits[SPLITS] = { "auto", "node", "node-chunk", "flatten", "sequence" };
typedef struct run {
    struct {
        void *at;
        size_t size;
    } arena;
    deft_ctx_t *ctx;
    deft_tree_t *tree;
    deft_node_t *leaves;
    size_t n_leaves;
    uint32_t layers;
    const cell_t *cell;
    float *q, *o, *k, *v;
} run_t;

/* ---- verifying ------------------------------------------------------------------------------- */

/* One query head of one leaf in double: its path from the leaf up, the KV made anew. */
static void reference(const run_t *run, size_t leaf, uint32_t layer, uint32_t h, double *out)
{
    const cell_t *c = run->cell;
    const uint32_t kv_head = h / (c->H / c->Hkv), D = c->D;
    const size_t n = (size_t)c->Hkv * D, total = deft_tree_path_len(run->tree, run->leaves[leaf]);
    const float *q = run->q + (leaf * c->H + h) * D;
    double *score = bench_alloc(total * sizeof(*score));
    float *values = bench_alloc(n * sizeof(*values)), *v = bench_alloc(total * D * sizeof(*v));
    size_t t = 0;
    for (deft_node_t node = run->leaves[leaf]; node != DEFT_NODE_NONE;
         node = deft_tree_parent(run->tree, node)) {
        deft_node_info_t info = { .struct_size = sizeof(info) };
        BENCH_CHECK(run->ctx, deft_tree_node(run->tree, node, &info));
        for (size_t i = 0; i < info.len; i++, t++) {
            score[t] = 0;
            bench_values(values, n, layer, BENCH_K, node, (int32_t)(info.start + i));
            for (uint32_t d = 0; d < D; d++)
                score[t] += (double)q[d] * t_round(values[kv_head * D + d], c->type);
            score[t] /= sqrt(D);
            bench_values(values, n, layer, BENCH_V, node, (int32_t)(info.start + i));
            for (uint32_t d = 0; d < D; d++)
                v[t * D + d] = t_round(values[kv_head * D + d], c->type);
        }
    }
    bench_softmax_v(score, v, t, D, out);
    free(score);
    free(values);
    free(v);
}

/* Largest relative norm error over a few leaves and heads; dies where anything is missing. */
static double verify(const run_t *run, uint32_t layer)
{
    const cell_t *c = run->cell;
    const size_t floats = run->n_leaves * c->H * c->D;
    for (size_t i = 0; i < floats; i++)
        if (!isfinite(run->o[i]))
            bench_die("%s: output %zu was not written", c->tree, i);
    double worst = 0, ref[256];
    for (int s = 0; s < 6; s++) {
        const size_t leaf = (size_t)s * (run->n_leaves - 1) / 5;
        const uint32_t h = (uint32_t)s * 7 % c->H;
        const float *o = run->o + (leaf * c->H + h) * c->D;
        double error = 0, norm = 0;
        reference(run, leaf, layer, h, ref);
        for (uint32_t d = 0; d < c->D; d++) {
            error += (o[d] - ref[d]) * (o[d] - ref[d]);
            norm += ref[d] * ref[d];
        }
        error = sqrt(error / norm);
        worst = error > worst ? error : worst;
    }
    return worst;
}

static double tolerance(const run_t *run)
{
    deft_info_t info = { .struct_size = sizeof(info) };
    BENCH_CHECK(run->ctx, deft_ctx_info(run->ctx, &info));
    if (info.kv_type == DEFT_BF16 && info.isa >= DEFT_ISA_AVX512_BF16)
        return 4e-3;
    return info.kv_type == DEFT_F32 ? 2e-6 : 1e-5;
}

/* The context's memory, of which the arena is remembered. */
static void *alloc_seen(void *arg, size_t size, size_t align, const char *name)
{
    run_t *run = arg;
    void *memory = aligned_alloc(align, (size + align - 1) / align * align);
    if (strcmp(name, "KV arena") == 0) {
        run->arena.at = memory;
        run->arena.size = size;
    }
    return memory;
}

static void free_seen(void *arg, void *memory, size_t size)
{
    (void)arg;
    (void)size;
    free(memory);
}

/* ---- timing ---------------------------------------------------------------------------------- */

static deft_step_t open_step(const run_t *run, deft_split_t split, uint64_t flags)
{
    const cell_t *c = run->cell;
    const size_t kv = (size_t)c->Hkv * c->D;
    deft_step_t step;
    BENCH_CHECK(run->ctx, deft_ctx_set_split(run->ctx, split));
    BENCH_CHECK(run->ctx, deft_step_begin(run->ctx, NULL, 0, flags, &step));
    const int32_t *pos = deft_step_positions(step);
    const deft_node_t *node = deft_step_nodes(step);
    for (uint32_t l = 0; l < run->layers; l++) {
        for (size_t r = 0; r < run->n_leaves; r++) {
            bench_values(run->k + r * kv, kv, l, BENCH_K, node[r], pos[r]);
            bench_values(run->v + r * kv, kv, l, BENCH_V, node[r], pos[r]);
        }
        BENCH_CHECK(run->ctx, deft_step_write(step, l, run->k, run->v));
    }
    return step;
}

static double time_split(const run_t *run, deft_split_t split, uint64_t flags, int reps,
                         double *error, deft_step_stats_t *stats)
{
    deft_step_t step = open_step(run, split, flags);
    const size_t floats = run->n_leaves * run->cell->H * run->cell->D;
    if (stats != NULL) {
        stats->struct_size = sizeof(*stats);
        BENCH_CHECK(run->ctx, deft_step_stats(step, stats));
    }
    memset(run->o, 0xff, floats * sizeof(float));
    BENCH_CHECK(run->ctx, deft_step_attend(step, 0, run->q, run->o));
    const double e = verify(run, 0);
    *error = e > *error ? e : *error;
    if (!(e < tolerance(run)))
        bench_die("%s %s: relative error %.2e", run->cell->tree, bench_splits[split], e);
    double *t = bench_alloc((size_t)reps * sizeof(*t)), spent = 0;
    int n = 0;
    for (; n < reps && (n < 3 || spent < 2.0); n++) {
        const double begin = bench_now();
        BENCH_CHECK(run->ctx,
                    deft_step_attend(step, (uint32_t)(n + 1) % run->layers, run->q, run->o));
        t[n] = bench_now() - begin;
        spent += t[n];
    }
    const double median = bench_median(t, (size_t)n);
    free(t);
    deft_step_abandon(step);
    return median * 1e3;
}

static void measure(cell_t *c, const options_t *opt)
{
    bench_spec_t spec;
    bench_parse(c->tree, &spec);
    const size_t tokens = bench_spec_tokens(&spec), elem = c->type == DEFT_F32 ? 4 : 2;
    const size_t layer_bytes = tokens * c->Hkv * c->D * 2 * elem;
    size_t layers = ((size_t)1 << 30) / layer_bytes + 1;
    layers = layers < 2 ? 2 : layers > 48 ? 48 : layers;
    deft_config_t config = DEFT_CONFIG_INIT;
    config.n_layers = (uint32_t)layers;
    config.n_q_heads = c->H;
    config.n_kv_heads = c->Hkv;
    config.head_dim = c->D;
    config.kv_type = c->type;
    config.pool_tokens = tokens + 64;
    config.n_threads = opt->threads;
    config.isa = opt->isa;
    config.flags = DEFT_CTX_HUGE_PAGES;
    run_t run = { .layers = (uint32_t)layers, .cell = c };
    config.allocator = (deft_allocator_t){ alloc_seen, free_seen, &run };
    BENCH_CHECK(NULL, deft_ctx_create(&config, &run.ctx));
    run.tree = bench_grow(run.ctx, &spec, &run.leaves, &run.n_leaves);
    const size_t kv = (size_t)c->Hkv * c->D, qo = (size_t)c->H * c->D;
    bench_fill(run.ctx, run.tree, run.layers, kv);
    run.k = bench_alloc(run.n_leaves * kv * sizeof(float));
    run.v = bench_alloc(run.n_leaves * kv * sizeof(float));
    run.q = bench_alloc(run.n_leaves * qo * sizeof(float));
    run.o = bench_alloc(run.n_leaves * qo * sizeof(float));
    for (size_t r = 0; r < run.n_leaves; r++)
        bench_values(run.q + r * qo, qo, 0, BENCH_Q, run.leaves[r], 0);
    c->ms[0] = time_split(&run, DEFT_SPLIT_AUTO, 0, opt->reps, &c->worst_error, &c->stats);
    for (int s = 1; s < SPLITS && !opt->only_auto; s++)
        c->ms[s] = time_split(&run, (deft_split_t)s, 0, opt->reps, &c->worst_error, NULL);
    if (!opt->only_auto)
        c->invariant_ms = time_split(&run, DEFT_SPLIT_AUTO, DEFT_STEP_INVARIANT, opt->reps,
                                     &c->worst_error, NULL);
    const double again = time_split(&run, DEFT_SPLIT_AUTO, 0, opt->reps, &c->worst_error, NULL);
    c->ms[0] = again < c->ms[0] ? again : c->ms[0];
    /* the limit, measured right after, with the same threads */
    const double bytes = (double)c->stats.kv_unique_bytes;
    const double sum_paths = (double)c->stats.kv_logical_bytes / (double)(2 * kv * elem);
    if (run.arena.at == NULL)
        bench_die("no arena was allocated");
    c->read_ms =
        bytes /
        (bench_read_gbs(run.arena.at, run.arena.size, (size_t)bytes, (int)opt->threads) * 1e9) *
        1e3;
    c->compute_ms = 4.0 * c->D * c->H * sum_paths /
                    (bench_peak_gflops((int)opt->threads, c->type == DEFT_BF16, opt->isa) * 1e9) *
                    1e3;
    c->limit_ms = c->read_ms > c->compute_ms ? c->read_ms : c->compute_ms;
    deft_ctx_destroy(run.ctx);
    free(run.leaves);
    free(run.k);
    free(run.v);
    free(run.q);
    free(run.o);
}

/* ---- the table ------------------------------------------------------------------------------- */

static const char *type_name(deft_dtype_t type)
{
    return type == DEFT_F32 ? "f32" : type == DEFT_F16 ? "f16" : "bf16";
}

/* ---- the table on a GPU: microseconds, and beside the best of others ---- */

static const char *share_of_peer(const cell_t *c, char text[16])
{
    if (c->peer_us > 0)
        snprintf(text, 16, "%.2f", c->ms[0] * 1e3 / c->peer_us);
    else
        strcpy(text, "-");
    return text;
}

static void print_gpu_cell(const cell_t *c, const options_t *opt)
{
    char heads[24], share[16];
    snprintf(heads, sizeof(heads), "%u/%u", c->H, c->Hkv);
    printf("%-58s %5s %4u %-5s %5zu %7.1f %7.1f%c %7.1f %6.2f %6s %7.1f", c->tree, heads, c->D,
           type_name(c->type), c->n_leaves, (double)c->stats.kv_unique_bytes / (1 << 20),
           c->limit_ms * 1e3, c->read_ms > c->compute_ms ? 'r' : 'c', c->ms[0] * 1e3,
           c->ms[0] / c->limit_ms, share_of_peer(c, share), c->plan_us);
    if (!opt->only_auto)
        printf(" %8.1f %8.1f %8.1f %8.1f %8.1f", c->ms[1] * 1e3, c->ms[2] * 1e3, c->ms[3] * 1e3,
               c->ms[4] * 1e3, c->invariant_ms * 1e3);
    printf("  %4zu %6zu  %.1e\n", c->stats.groups, c->stats.partials, c->worst_error);
    fflush(stdout);
}

static void print_gpu_head(const options_t *opt)
{
    printf("microseconds a layer, cold L2, graph replay; limit: (r)eading or (c)omputing; peer: "
           "auto over the best of others\n"
           "%-58s %5s %4s %-5s %5s %7s %8s %7s %6s %6s %7s",
           "tree", "heads", "dim", "kv", "rows", "MiB", "limit", "auto", "ratio", "peer", "plan");
    if (!opt->only_auto)
        printf(" %8s %8s %8s %8s %8s", "node", "chunk", "flatten", "sequence", "invar");
    printf("  %4s %6s  error\n", "grps", "parts");
}

static void print_cell(const cell_t *c, const options_t *opt)
{
    const double ratio = c->ms[0] / c->limit_ms;
    if (opt->cuda && !opt->json) {
        print_gpu_cell(c, opt);
    } else if (opt->json) {
        printf("{\"tree\":\"%s\",\"heads\":\"%u/"
               "%u\",\"dim\":%u,\"kv\":\"%s\",\"limit_ms\":%.4f,\"read_ms\":%.4f,"
               "\"compute_ms\":%.4f,\"auto_ms\":%.4f,\"node_ms\":%.4f,\"chunk_ms\":%.4f,\"flatten_"
               "ms\":%.4f,"
               "\"sequence_ms\":%.4f,\"invariant_ms\":%.4f,\"ratio\":%.3f,\"error\":%.2e}\n",
               c->tree, c->H, c->Hkv, c->D, type_name(c->type), c->limit_ms, c->read_ms,
               c->compute_ms, c->ms[0], c->ms[1], c->ms[2], c->ms[3], c->ms[4], c->invariant_ms,
               ratio, c->worst_error);
    } else {
        printf("%-22s %5u/%-3u %4u %-5s %8.2f%c %8.2f %6.2f", c->tree, c->H, c->Hkv, c->D,
               type_name(c->type), c->limit_ms, c->read_ms > c->compute_ms ? 'r' : 'c', c->ms[0],
               ratio);
        if (!opt->only_auto)
            printf(" %8.2f %8.2f %8.2f %8.2f %8.2f", c->ms[1], c->ms[2], c->ms[3], c->ms[4],
                   c->invariant_ms);
        printf("  %.1e\n", c->worst_error);
    }
    fflush(stdout);
}

static void print_head(const options_t *opt)
{
    if (opt->json)
        return;
    if (opt->cuda) {
        print_gpu_head(opt);
        return;
    }
    printf("milliseconds a layer, %u threads, cold; limit: (r)eading or (c)omputing\n",
           opt->threads);
    printf("%-22s %9s %4s %-5s %9s %8s %6s", "tree", "heads", "dim", "kv", "limit", "auto",
           "ratio");
    if (!opt->only_auto)
        printf(" %8s %8s %8s %8s %8s", "node", "chunk", "flatten", "sequence", "invar");
    printf("  error\n");
}

static void summary(const cell_t *cells, int n, const options_t *opt)
{
    double log_sum = 0, worst = 0, over = 0;
    int known = 0, faster = 0;
    for (int i = 0; i < n; i++) {
        const double ratio = cells[i].ms[0] / cells[i].limit_ms;
        double best = cells[i].ms[0];
        log_sum += log(ratio);
        known += cells[i].peer_us > 0;
        faster += cells[i].peer_us > 0 && cells[i].ms[0] * 1e3 < cells[i].peer_us;
        worst = ratio > worst ? ratio : worst;
        for (int s = 1; s < SPLITS && !opt->only_auto; s++)
            best = cells[i].ms[s] < best ? cells[i].ms[s] : best;
        over = cells[i].ms[0] / best - 1 > over ? cells[i].ms[0] / best - 1 : over;
    }
    if (!opt->only_auto)
        printf("geomean=%.3f worst=%.3f auto_over_best=%.3f", exp(log_sum / n), worst, over);
    else
        printf("geomean=%.3f worst=%.3f", exp(log_sum / n), worst);
    if (known > 0)
        printf(" faster_than_peers=%d/%d", faster, known);
    putchar('\n');
}

static int add_cell(cell_t *cells, int n, const char *tree, const char *heads, uint32_t dim,
                    const char *kv, double peer_us)
{
    cell_t *c = &cells[n];
    if (n == MAX_CELLS)
        bench_die("more than %d cells", MAX_CELLS);
    memset(c, 0, sizeof(*c));
    snprintf(c->tree, sizeof(c->tree), "%s", tree);
    if (sscanf(heads, "%u/%u", &c->H, &c->Hkv) != 2 || c->Hkv == 0 || c->H % c->Hkv != 0)
        bench_die("heads \"%s\": write them as 32/8", heads);
    c->D = dim != 0 ? dim : c->H == 9 ? 64 : 128;
    c->type = bench_type(kv);
    c->peer_us = peer_us;
    return n + 1;
}

/* A table file: a line a cell, "TREE HEADS [DIM [KV [MICROSECONDS]]]", the last the best time of
 * others. */
static int read_table(const char *path, cell_t *cells, int n)
{
    char line[256], tree[96], heads[32], kv[8];
    FILE *file = fopen(path, "r");
    if (file == NULL)
        bench_die("cannot read %s", path);
    while (fgets(line, sizeof(line), file) != NULL) {
        unsigned dim = 0;
        double peer_us = 0;
        strcpy(kv, "f32");
        if (line[0] != '#' &&
            sscanf(line, "%95s %31s %u %7s %lf", tree, heads, &dim, kv, &peer_us) >= 2)
            n = add_cell(cells, n, tree, heads, dim, kv, peer_us);
    }
    fclose(file);
    return n;
}

static int usage(int status)
{
    fprintf(status == 0 ? stdout : stderr,
            "usage: deft_bench attend [--tree 1,20/4000,200]... [--heads 32/8]... [--dim N] [--kv "
            "f32|f16|bf16]...\n"
            "                         [--table FILE] [--backend cpu|cuda] [--threads N] [--isa "
            "avx2]\n"
            "                         [--reps N] [--auto] [--prefill] [--json]\n"
            "Time of one layer's tree attention beside its limit, every split verified first.\n");
    return status;
}

static void begin(const options_t *opt)
{
    if (!opt->cuda) {
        bench_peak_gflops((int)opt->threads, 1, opt->isa);
        return;
    }
#ifdef HAVE_CUDA
    bench_cuda_begin();
#else
    bench_die("this build has no CUDA");
#endif
}

static void measure_gpu(cell_t *c, const options_t *opt)
{
#ifdef HAVE_CUDA
    bench_cuda_cell(c, opt);
#else
    (void)c;
    (void)opt;
#endif
}

int bench_attend(int argc, char **argv)
{
    static const struct option longs[] = { { "tree", 1, 0, 't' },    { "heads", 1, 0, 'H' },
                                           { "dim", 1, 0, 'd' },     { "kv", 1, 0, 'k' },
                                           { "table", 1, 0, 'f' },   { "threads", 1, 0, 'n' },
                                           { "isa", 1, 0, 'i' },     { "reps", 1, 0, 'r' },
                                           { "backend", 1, 0, 'b' }, { "prefill", 0, 0, 'p' },
                                           { "auto", 0, 0, 'a' },    { "json", 0, 0, 'j' },
                                           { "help", 0, 0, 'h' },    { 0, 0, 0, 0 } };
    static cell_t cells[MAX_CELLS];
    const char *trees[64], *heads[16], *kvs[4], *table = NULL;
    int n_trees = 0, n_heads = 0, n_kvs = 0, n = 0;
    uint32_t dim = 0;
    options_t opt = { .threads = 2, .reps = 15 };
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 't' && n_trees < 64)
            trees[n_trees++] = optarg;
        else if (c == 'H' && n_heads < 16)
            heads[n_heads++] = optarg;
        else if (c == 'k' && n_kvs < 4)
            kvs[n_kvs++] = optarg;
        else if (c == 'd')
            dim = (uint32_t)atoi(optarg);
        else if (c == 'f')
            table = optarg;
        else if (c == 'n')
            opt.threads = (uint32_t)atoi(optarg);
        else if (c == 'i')
            opt.isa = bench_isa(optarg);
        else if (c == 'r')
            opt.reps = atoi(optarg);
        else if (c == 'b' && (strcmp(optarg, "cpu") == 0 || strcmp(optarg, "cuda") == 0))
            opt.cuda = optarg[1] == 'u';
        else if (c == 'p')
            opt.prefill = 1;
        else if (c == 'a')
            opt.only_auto = 1;
        else if (c == 'j')
            opt.json = 1;
        else
            return usage(c == 'h' ? 0 : 2);
    }
    if (opt.threads == 0 || opt.reps < 1 || (opt.prefill && !opt.cuda))
        return usage(2);
    if (n_heads == 0)
        heads[n_heads++] = "32/8", heads[n_heads++] = "32/32", heads[n_heads++] = "9/3";
    if (n_kvs == 0)
        kvs[n_kvs++] = opt.cuda ? "f16" : "f32", kvs[n_kvs++] = "bf16";
    for (; n_trees == 0 && n < 6; n++)
        trees[n] = default_trees[n];
    n_trees += n;
    n = 0;
    if (table != NULL)
        n = read_table(table, cells, 0);
    else
        for (int t = 0; t < n_trees; t++)
            for (int h = 0; h < n_heads; h++)
                for (int k = 0; k < n_kvs; k++)
                    n = add_cell(cells, n, trees[t], heads[h], dim, kvs[k], 0);
    begin(&opt);
    print_head(&opt);
    for (int i = 0; i < n; i++) {
        (opt.cuda ? measure_gpu : measure)(&cells[i], &opt);
        print_cell(&cells[i], &opt);
    }
    summary(cells, n, &opt);
    return 0;
}
