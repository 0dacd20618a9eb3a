/* SPDX-License-Identifier: MIT */
/* deft_bench io: a recorded search (bench_trace.h), replayed through the public API, and the bytes
 * that its steps move. Attention itself is not computed: the plan of every step says what it would
 * read. */
#include "bench_trace.h"

#include <getopt.h>
#include <string.h>

enum { SPLITS = 5 };
static const char *const split_names[SPLITS] = { "auto", "node", "node-chunk", "flatten",
                                                 "sequence" };

typedef struct totals {
    uint64_t steps, rows, unique, logical, read, partial, mask, unfused, plan_ns, patched;
    uint64_t live, owned, runs, nodes; /* sums over steps: slots taken, tokens in trees, ... */
} totals_t;

typedef struct options {
    uint32_t H, Hkv, D, prompt, trees;
    deft_dtype_t type;
    int json;
} options_t;

typedef struct replay {
    deft_ctx_t *ctx;
    trace_tree_t tree;
    totals_t sum;
    float *kv;
    size_t kv_rows;
    const options_t *opt;
} replay_t;

/* ---- a step ---------------------------------------------------------------------------------- */

static void open_context(replay_t *r, size_t pool, int split, const options_t *opt)
{
    deft_config_t config = DEFT_CONFIG_INIT;
    config.n_layers = 1;
    config.n_q_heads = opt->H;
    config.n_kv_heads = opt->Hkv;
    config.head_dim = opt->D;
    config.kv_type = opt->type;
    config.pool_tokens = pool;
    config.n_threads = 1;
    config.split = (deft_split_t)split;
    memset(r, 0, sizeof(*r));
    r->opt = opt;
    BENCH_CHECK(NULL, deft_ctx_create(&config, &r->ctx));
}

static void close_context(replay_t *r)
{
    deft_ctx_destroy(r->ctx);
    free(r->kv);
}

/* A replay's step: compute what is appended; count unless it is the prompt. */
static void step(void *arg, long iteration)
{
    replay_t *r = arg;
    deft_step_t s;
    deft_step_stats_t st = { .struct_size = sizeof(st) };
    BENCH_CHECK(r->ctx, deft_step_begin(r->ctx, NULL, 0, 0, &s));
    const size_t rows = deft_step_tokens(s);
    if (rows > r->kv_rows) {
        free(r->kv);
        r->kv_rows = rows;
        r->kv = bench_alloc(rows * r->opt->Hkv * r->opt->D * sizeof(float));
        memset(r->kv, 0, rows * r->opt->Hkv * r->opt->D * sizeof(float));
    }
    BENCH_CHECK(r->ctx, deft_step_stats(s, &st));
    BENCH_CHECK(r->ctx, deft_step_write(s, 0, r->kv, r->kv));
    BENCH_CHECK(r->ctx, deft_step_end(s));
    if (iteration == 0)
        return;
    deft_info_t info = { .struct_size = sizeof(info) };
    deft_tree_stats_t size = { .struct_size = sizeof(size) };
    BENCH_CHECK(r->ctx, deft_ctx_info(r->ctx, &info));
    BENCH_CHECK(r->ctx, deft_tree_stats(r->tree.tree, &size));
    totals_t *t = &r->sum;
    t->steps++;
    t->rows += st.rows;
    t->unique += st.kv_unique_bytes;
    t->logical += st.kv_logical_bytes;
    t->read += st.kv_read_bytes;
    t->partial += st.partial_bytes;
    t->mask += st.mask_bytes;
    t->unfused += st.unfused_bytes;
    t->plan_ns += st.plan_ns;
    t->patched += st.planned != 0;
    t->live += info.live_tokens;
    t->owned += size.tokens;
    t->nodes += size.n_nodes;
}

/* ---- a file ---------------------------------------------------------------------------------- */

static void replay_trace(replay_t *r, FILE *file)
{
    static trace_node_t nodes[TRACE_NODES];
    uint32_t trees = 0;
    for (int n; (r->opt->trees == 0 || trees < r->opt->trees) && (n = trace_read(file, nodes)) > 0;
         trees++) {
        trace_tree_begin(&r->tree, r->ctx, 0, 0, step, r);
        trace_replay(nodes, n, &trace_tree_ops, &r->tree);
        trace_tree_end(&r->tree);
    }
}

static uint32_t replay_spec(replay_t *r, FILE *file)
{
    r->tree.ctx = r->ctx;
    r->tree.step = step;
    r->tree.arg = r;
    return trace_speculate(&r->tree, file, r->opt->prompt, r->opt->trees, 0);
}

static void replay_file(replay_t *r, const char *path)
{
    const char *dot = strrchr(path, '.');
    FILE *file = fopen(path, "r");
    if (file == NULL)
        bench_die("cannot read %s", path);
    if (dot == NULL || strcmp(dot, ".spec") != 0)
        replay_trace(r, file);
    else if (replay_spec(r, file) == 0)
        bench_die("%s holds no record", path);
    fclose(file);
}

/* ---- the table ------------------------------------------------------------------------------- */

static void print_row(const char *name, const totals_t *t, const options_t *opt)
{
    const double mib = 1.0 / (1 << 20);
    if (opt->json)
        printf("{\"split\":\"%s\",\"steps\":%llu,\"rows\":%llu,\"unique\":%llu,\"logical\":%llu,"
               "\"read\":%llu,"
               "\"partials\":%llu,\"masks\":%llu,\"scores\":0,\"unfused\":%llu,\"plan_us\":%.3f,"
               "\"patched\":%.3f}\n",
               name, (unsigned long long)t->steps, (unsigned long long)t->rows,
               (unsigned long long)t->unique, (unsigned long long)t->logical,
               (unsigned long long)t->read, (unsigned long long)t->partial,
               (unsigned long long)t->mask, (unsigned long long)t->unfused,
               (double)t->plan_ns / (double)t->steps * 1e-3, (double)t->patched / (double)t->steps);
    else
        printf("%-11s %12.0f %12.0f %9.1f%% %9.2f%% %8.2f %9.0f%%\n", name, (double)t->read * mib,
               (double)t->partial * mib, 100.0 * (double)t->partial / (double)t->unique,
               100.0 * (double)t->mask / (double)t->unique,
               (double)t->plan_ns / (double)t->steps * 1e-3,
               100.0 * (double)t->patched / (double)t->steps);
    fflush(stdout);
}

static void print_common(const char *path, const totals_t *t, const options_t *opt)
{
    const double mib = 1.0 / (1 << 20);
    if (opt->json)
        return;
    printf("%s: %llu steps, %.1f rows a step, heads %u/%u of %u; bytes of one layer, all steps\n",
           path, (unsigned long long)t->steps, (double)t->rows / (double)t->steps, opt->H, opt->Hkv,
           opt->D);
    printf("  KV that sequence attention reads   %12.0f MiB\n", (double)t->logical * mib);
    printf("  KV of the trees, read once         %12.0f MiB   %.2f times less\n",
           (double)t->unique * mib, (double)t->logical / (double)t->unique);
    printf(
        "  QK^T, mask, softmax, unfused       %12.0f MiB   %.0f%% of the sequence's KV; ours: 0\n",
        (double)t->unfused * mib, 100.0 * (double)t->unfused / (double)t->logical);
    printf("%-11s %12s %12s %10s %10s %8s %10s\n", "split", "KV asked MiB", "partials MiB", "of KV",
           "masks", "plan us", "patched");
}

static int usage(int status)
{
    fprintf(status == 0 ? stdout : stderr, "usage: deft_bench io FILE.trace|FILE.spec [--heads "
                                           "32/8] [--dim 128] [--kv f16] [--prompt 1000]\n"
                                           "                     [--trees N] [--json]\n"
                                           "Replays a recorded search and adds up what its steps "
                                           "move. --prompt is for .spec files.\n");
    return status;
}

int bench_io(int argc, char **argv)
{
    static const struct option longs[] = { { "heads", 1, 0, 'H' }, { "dim", 1, 0, 'd' },
                                           { "kv", 1, 0, 'k' },    { "prompt", 1, 0, 'p' },
                                           { "trees", 1, 0, 't' }, { "json", 0, 0, 'j' },
                                           { "help", 0, 0, 'h' },  { 0, 0, 0, 0 } };
    options_t opt = { .H = 32, .Hkv = 8, .D = 128, .prompt = 1000, .type = DEFT_F16 };
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'H' && sscanf(optarg, "%u/%u", &opt.H, &opt.Hkv) == 2)
            continue;
        else if (c == 'd')
            opt.D = (uint32_t)atoi(optarg);
        else if (c == 'p')
            opt.prompt = (uint32_t)atoi(optarg);
        else if (c == 't')
            opt.trees = (uint32_t)atoi(optarg);
        else if (c == 'k')
            opt.type = strcmp(optarg, "f32") == 0    ? DEFT_F32
                       : strcmp(optarg, "bf16") == 0 ? DEFT_BF16
                                                     : DEFT_F16;
        else if (c == 'j')
            opt.json = 1;
        else
            return usage(c == 'h' ? 0 : 2);
    }
    if (optind + 1 != argc || opt.prompt == 0)
        return usage(2);
    const char *path = argv[optind];
    totals_t first = { 0 };
    for (int split = 0; split < SPLITS; split++) {
        replay_t r;
        open_context(&r, 1 << 17, split, &opt);
        replay_file(&r, path);
        if (r.sum.steps == 0)
            bench_die("%s holds no step", path);
        if (split == 0) {
            first = r.sum;
            print_common(path, &first, &opt);
        } else if (r.sum.unique != first.unique || r.sum.logical != first.logical) {
            bench_die("%s: the splits disagree about what is seen", split_names[split]);
        }
        print_row(split_names[split], &r.sum, &opt);
        close_context(&r);
    }
    printf("reduction=%.3f waste=%.4f unfused_share=%.3f plan_us=%.2f\n",
           (double)first.logical / (double)first.unique,
           (double)(first.live - first.owned) / (double)first.live,
           (double)first.unfused / (double)first.logical,
           (double)first.plan_ns / (double)first.steps * 1e-3);
    return 0;
}
