/* SPDX-License-Identifier: MIT */
/* deft_bench io: a recorded search, replayed through the public API, and the bytes that its steps
 * move. Attention itself is not computed: the plan of every step says what it would read.
 *
 * A .trace file holds trees of reasoning: a node appends a token in each of its iterations, then
 * its children are forked; a subtree is pruned when nothing in it will grow any more. A .spec file
 * holds a draft tree and accepted lengths: every step appends the last accepted token and the draft
 * below it, computes them, and keeps the accepted path. */
#include "bench.h"

#include <getopt.h>
#include <string.h>

enum { SPLITS = 5, MAX_NODES = 4096 };
static const char *const split_names[SPLITS] = { "auto", "node", "node-chunk", "flatten", "sequence" };

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
    totals_t sum;
    float *kv;
    size_t kv_rows;
    const options_t *opt;
} replay_t;

/* ---- a step ------------------------------------------------------------------------------------ */

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

/* Compute what is appended; count unless it is the prompt. */
static void step(replay_t *r, const deft_tree_t *tree, int count)
{
    deft_step_t *s;
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
    if (!count)
        return;
    deft_info_t info = { .struct_size = sizeof(info) };
    deft_tree_stats_t size = { .struct_size = sizeof(size) };
    BENCH_CHECK(r->ctx, deft_ctx_info(r->ctx, &info));
    BENCH_CHECK(r->ctx, deft_tree_stats(tree, &size));
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
    t->patched += st.patched != 0;
    t->live += info.live_tokens;
    t->owned += size.tokens;
    t->nodes += size.n_nodes;
}

/* ---- trees of reasoning -------------------------------------------------------------------------- */

typedef struct record {
    int parent;
    long tokens, first, last, done; /* done: the last iteration of anything below */
    deft_node_t node;
} record_t;

/* One recorded tree into rec[]; returns its nodes, 0 at the end of the file. */
static int read_tree(FILE *file, record_t *rec)
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
            if (sscanf(line, "tree %d %d", &index, &want) != 2 || want < 1 || want > MAX_NODES)
                bench_die("not a trace: %s", line);
            continue;
        }
        record_t *r = &rec[n];
        if (sscanf(line, "node %d %d %ld %ld %ld", &id, &r->parent, &r->tokens, &r->first, &r->last) != 5 ||
            id != n || r->parent >= n || (n > 0) != (r->parent >= 0) || r->tokens != r->last - r->first + 1)
            bench_die("not a node of a trace: %s", line);
        r->done = r->last;
        r->node = DEFT_NODE_NONE;
        n++;
    }
    for (int i = n - 1; i > 0; i--)
        if (rec[rec[i].parent].done < rec[i].done)
            rec[rec[i].parent].done = rec[i].done;
    return n;
}

/* Children of the nodes that ended at `iteration`, in one fork each. */
static void fork_children(replay_t *r, deft_tree_t *tree, record_t *rec, int n, long iteration)
{
    static int kid[MAX_NODES];
    static deft_node_t made[MAX_NODES];
    for (int i = 0; i < n; i++) {
        if (rec[i].last != iteration)
            continue;
        size_t kids = 0;
        for (int k = i + 1; k < n; k++)
            if (rec[k].parent == i)
                kid[kids++] = k;
        if (kids == 0)
            continue;
        BENCH_CHECK(r->ctx, deft_tree_fork(tree, rec[i].node, kids, made));
        for (size_t k = 0; k < kids; k++)
            rec[kid[k]].node = made[k];
    }
}

static void replay_tree(replay_t *r, record_t *rec, int n)
{
    deft_tree_t *tree;
    long end = 0;
    BENCH_CHECK(r->ctx, deft_tree_create(r->ctx, &tree));
    rec[0].node = deft_tree_root(tree);
    BENCH_CHECK(r->ctx, deft_tree_append(tree, rec[0].node, (size_t)rec[0].tokens, NULL));
    step(r, tree, 0);
    for (int i = 0; i < n; i++)
        end = rec[i].last > end ? rec[i].last : end;
    for (long iteration = 1; iteration <= end; iteration++) {
        fork_children(r, tree, rec, n, iteration - 1);
        int growing = 0;
        for (int i = 1; i < n; i++) {
            if (rec[i].first <= iteration && iteration <= rec[i].last) {
                BENCH_CHECK(r->ctx, deft_tree_append(tree, rec[i].node, 1, NULL));
                growing++;
            }
        }
        if (growing > 0)
            step(r, tree, 1);
        for (int i = 1; i < n; i++) {
            if (rec[i].node != DEFT_NODE_NONE && rec[i].done <= iteration && rec[rec[i].parent].done > iteration) {
                BENCH_CHECK(r->ctx, deft_tree_prune(tree, rec[i].node));
                rec[i].node = DEFT_NODE_NONE;
            }
        }
    }
    BENCH_CHECK(r->ctx, deft_tree_check(tree));
    deft_tree_destroy(tree);
}

static void replay_trace(replay_t *r, const char *path)
{
    static record_t rec[MAX_NODES];
    FILE *file = fopen(path, "r");
    if (file == NULL)
        bench_die("cannot read %s", path);
    uint32_t trees = 0;
    for (int n; (r->opt->trees == 0 || trees < r->opt->trees) && (n = read_tree(file, rec)) > 0; trees++)
        replay_tree(r, rec, n);
    fclose(file);
}

/* ---- speculative decoding ------------------------------------------------------------------------- */

typedef struct draft {
    int parent[MAX_NODES]; /* of token i; 0 is the last accepted token */
    int n;                 /* tokens 1..n */
    int first_child[MAX_NODES], kids[MAX_NODES];
} draft_t;

static void add_token(draft_t *d, const char *line)
{
    int id, parent;
    if (sscanf(line, "token %d %d", &id, &parent) != 2 || id != d->n + 1 || parent < 0 || parent >= id ||
        id >= MAX_NODES)
        bench_die("not a token of a draft tree: %s", line);
    d->n = id;
    d->parent[id] = parent;
    if (d->kids[parent]++ == 0)
        d->first_child[parent] = id;
}

/* Hang the draft below `top`: a chain of only children becomes one node. node_of[t] is the node of
 * token t, at[t] how many tokens of it end with t. */
static void grow_draft(replay_t *r, deft_tree_t *tree, const draft_t *d, deft_node_t top, deft_node_t *node_of,
                       size_t *at)
{
    node_of[0] = top;
    at[0] = 0;
    for (int t = 0; t <= d->n; t++) {
        static deft_node_t kids[MAX_NODES];
        if (d->kids[t] == 0)
            continue;
        if (t != 0 && d->kids[t] == 1) { /* goes on in the same node */
            node_of[d->first_child[t]] = node_of[t];
            at[d->first_child[t]] = at[t] + 1;
            continue;
        }
        BENCH_CHECK(r->ctx, deft_tree_fork(tree, node_of[t], (size_t)d->kids[t], kids));
        for (int k = t + 1, i = 0; k <= d->n; k++) {
            if (d->parent[k] == t) {
                node_of[k] = kids[i++];
                at[k] = 1;
            }
        }
        /* a node's tokens come before its children: append the whole chain now */
        for (int k = t + 1; k <= d->n; k++) {
            size_t len = 1;
            if (d->parent[k] != t)
                continue;
            for (int c = k; d->kids[c] == 1; c = d->first_child[c])
                len++;
            BENCH_CHECK(r->ctx, deft_tree_append(tree, node_of[k], len, NULL));
        }
    }
}

/* One decode step that accepts `accepted` tokens, the new one included. Returns the path's end. */
static deft_node_t speculate(replay_t *r, deft_tree_t *tree, const draft_t *d, deft_node_t top, long accepted)
{
    static deft_node_t node_of[MAX_NODES];
    static size_t at[MAX_NODES];
    BENCH_CHECK(r->ctx, deft_tree_append(tree, top, 1, NULL));
    grow_draft(r, tree, d, top, node_of, at);
    step(r, tree, 1);
    int last = 0;
    for (long i = 1; i < accepted && d->kids[last] > 0; i++)
        last = d->first_child[last];
    BENCH_CHECK(r->ctx, deft_tree_commit(tree, node_of[last], DEFT_COMMIT_PATH));
    if (last != 0)
        BENCH_CHECK(r->ctx, deft_tree_truncate(tree, node_of[last], at[last]));
    BENCH_CHECK(r->ctx, deft_tree_merge(tree, node_of[last], &top));
    return top;
}

static void replay_record(replay_t *r, const draft_t *d, char *line)
{
    deft_tree_t *tree;
    char *at = line + strlen("record");
    long n = strtol(at, &at, 10), expect = r->opt->prompt;
    BENCH_CHECK(r->ctx, deft_tree_create(r->ctx, &tree));
    deft_node_t top = deft_tree_root(tree);
    BENCH_CHECK(r->ctx, deft_tree_append(tree, top, r->opt->prompt, NULL));
    step(r, tree, 0);
    for (; n > 0; n--) {
        char *end;
        const long accepted = strtol(at, &end, 10);
        if (end == at)
            bench_die("a record is too short");
        at = end;
        top = speculate(r, tree, d, top, accepted);
        expect += accepted;
        if (deft_tree_path_len(tree, top) > (size_t)expect)
            bench_die("%zu tokens kept, %ld accepted", deft_tree_path_len(tree, top), expect);
    }
    BENCH_CHECK(r->ctx, deft_tree_check(tree));
    deft_tree_destroy(tree);
}

static void replay_spec(replay_t *r, const char *path)
{
    static char line[65536];
    static draft_t d;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        bench_die("cannot read %s", path);
    memset(&d, 0, sizeof(d));
    uint32_t records = 0;
    while (fgets(line, sizeof(line), file) != NULL && (r->opt->trees == 0 || records < r->opt->trees)) {
        if (strncmp(line, "token", 5) == 0)
            add_token(&d, line);
        else if (strncmp(line, "record", 6) == 0)
            replay_record(r, &d, line), records++;
        else if (line[0] != '#' && line[0] != '\n')
            bench_die("not a line of a draft record: %s", line);
    }
    fclose(file);
    if (records == 0)
        bench_die("%s holds no record", path);
}

/* ---- the table ------------------------------------------------------------------------------------ */

static void print_row(const char *name, const totals_t *t, const options_t *opt)
{
    const double mib = 1.0 / (1 << 20);
    if (opt->json)
        printf("{\"split\":\"%s\",\"steps\":%llu,\"rows\":%llu,\"unique\":%llu,\"logical\":%llu,\"read\":%llu,"
               "\"partials\":%llu,\"masks\":%llu,\"scores\":0,\"unfused\":%llu,\"plan_us\":%.3f,\"patched\":%.3f}\n",
               name, (unsigned long long)t->steps, (unsigned long long)t->rows, (unsigned long long)t->unique,
               (unsigned long long)t->logical, (unsigned long long)t->read, (unsigned long long)t->partial,
               (unsigned long long)t->mask, (unsigned long long)t->unfused,
               (double)t->plan_ns / (double)t->steps * 1e-3, (double)t->patched / (double)t->steps);
    else
        printf("%-11s %12.0f %12.0f %9.1f%% %9.2f%% %8.2f %9.0f%%\n", name, (double)t->read * mib,
               (double)t->partial * mib, 100.0 * (double)t->partial / (double)t->unique,
               100.0 * (double)t->mask / (double)t->unique, (double)t->plan_ns / (double)t->steps * 1e-3,
               100.0 * (double)t->patched / (double)t->steps);
    fflush(stdout);
}

static void print_common(const char *path, const totals_t *t, const options_t *opt)
{
    const double mib = 1.0 / (1 << 20);
    if (opt->json)
        return;
    printf("%s: %llu steps, %.1f rows a step, heads %u/%u of %u; bytes of one layer, all steps\n", path,
           (unsigned long long)t->steps, (double)t->rows / (double)t->steps, opt->H, opt->Hkv, opt->D);
    printf("  KV that sequence attention reads   %12.0f MiB\n", (double)t->logical * mib);
    printf("  KV of the trees, read once         %12.0f MiB   %.2f times less\n", (double)t->unique * mib,
           (double)t->logical / (double)t->unique);
    printf("  QK^T, mask, softmax, unfused       %12.0f MiB   %.0f%% of the sequence's KV; ours: 0\n",
           (double)t->unfused * mib, 100.0 * (double)t->unfused / (double)t->logical);
    printf("%-11s %12s %12s %10s %10s %8s %10s\n", "split", "KV asked MiB", "partials MiB", "of KV", "masks", "plan us",
           "patched");
}

static int usage(int status)
{
    fprintf(status == 0 ? stdout : stderr,
            "usage: deft_bench io FILE.trace|FILE.spec [--heads 32/8] [--dim 128] [--kv f16] [--prompt 1000]\n"
            "                     [--trees N] [--json]\n"
            "Replays a recorded search and adds up what its steps move. --prompt is for .spec files.\n");
    return status;
}

int bench_io(int argc, char **argv)
{
    static const struct option longs[] = { { "heads", 1, 0, 'H' }, { "dim", 1, 0, 'd' },   { "kv", 1, 0, 'k' },
                                           { "prompt", 1, 0, 'p' }, { "trees", 1, 0, 't' }, { "json", 0, 0, 'j' },
                                           { "help", 0, 0, 'h' },   { 0, 0, 0, 0 } };
    options_t opt = { .H = 32, .Hkv = 8, .D = 128, .prompt = 1000, .type = DEFT_F16 };
    for (int c; (c = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        if (c == 'H' && sscanf(optarg, "%u/%u", &opt.H, &opt.Hkv) == 2) continue;
        else if (c == 'd') opt.D = (uint32_t)atoi(optarg);
        else if (c == 'p') opt.prompt = (uint32_t)atoi(optarg);
        else if (c == 't') opt.trees = (uint32_t)atoi(optarg);
        else if (c == 'k') opt.type = strcmp(optarg, "f32") == 0 ? DEFT_F32 : strcmp(optarg, "bf16") == 0 ? DEFT_BF16 : DEFT_F16;
        else if (c == 'j') opt.json = 1;
        else return usage(c == 'h' ? 0 : 2);
    }
    if (optind + 1 != argc || opt.prompt == 0)
        return usage(2);
    const char *path = argv[optind], *dot = strrchr(path, '.');
    const int spec = dot != NULL && strcmp(dot, ".spec") == 0;
    totals_t first = { 0 };
    for (int split = 0; split < SPLITS; split++) {
        replay_t r;
        open_context(&r, 1 << 17, split, &opt);
        (spec ? replay_spec : replay_trace)(&r, path);
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
    printf("reduction=%.3f waste=%.4f unfused_share=%.3f plan_us=%.2f\n", (double)first.logical / (double)first.unique,
           (double)(first.live - first.owned) / (double)first.live, (double)first.unfused / (double)first.logical,
           (double)first.plan_ns / (double)first.steps * 1e-3);
    return 0;
}
