/* SPDX-License-Identifier: MIT */
/* deft_bench replay: a recorded search, or a shape, decoded end to end by a model on the GPU,
 * against baselines in the same engine.
 *
 * What each mode does with the same search:
 *   auto, node, node-chunk, flatten   libdeft's splits, the KV of a shared prefix read once
 *   sequence   flash-decoding over each leaf's path, the KV shared in memory: paged and radix
 *   engines copies     the same, each leaf's path a copy of its own: an engine without sharing. At
 *   a fork the
 *              prefix is written again, outside of what is timed
 *   unfused    tree attention by cuBLAS: QK^T over the tree, mask, softmax, PV (bench_unfused.cu)
 *
 * Times are the device's, from the start of a step's graph to its end, candidates of all rows
 * included; `gap` is what lies between two steps. The floor of a step is the products alone, in a
 * graph, at its rows, measured when that many come first and again in the middle, and the attention
 * limit of bench_attend_cuda.cu for each layer. */
#include "bench.h"

#include <cuda_runtime_api.h>
#include <getopt.h>
#include <string.h>

#include "bench_attend.h"
#include "bench_trace.h"
#include "bench_unfused.h"
#include "forward_kernels.h"
#include "model.h"

enum {
    SEQUENCE = 4,
    COPIES = 5,
    UNFUSED = 6,
    MODES = 7,
    TOP = 8,
    MAX_ROWS = 2048,
    KEPT_STEPS = 48,
    CURVE_EVERY = 8
};
static const char *const mode_names[MODES] = { "auto",     "node",   "node-chunk", "flatten",
                                               "sequence", "copies", "unfused" };

typedef struct replay_options {
    const char *model, *geometry, *trace, *spec, *curve, *name;
    long leaves, prompt, tokens, steps;
    uint32_t trees;
    uint64_t seed;
    unsigned modes;
    deft_dtype_t type;
} replay_options_t;

typedef struct totals {
    uint64_t steps, begun, rows, digest; /* steps: whose time is known */
    double device_ms, wall_s, gap_ms, plan_us, products_ms, limit_ms, prefill_s;
    double unique, logical, unfused; /* bytes */
    double parts[3];            /* seconds of products, attention, rest in the middle of a search */
    double used_gib, moved_mib; /* device memory at the end; how much of it came after the start, */
    double own_gib;             /* without this: graphs of parts, captured to measure them */
    double difference;          /* of log probabilities from those of the first mode */
    double *ms;                 /* [steps] */
    uint32_t *step_rows;
    size_t room; /* of both */
} totals_t;

/* What the first mode said, to compare the others with. */
typedef struct said {
    size_t n[KEPT_STEPS];
    candidate_t top[KEPT_STEPS][64];
} said_t;

typedef struct replay {
    const replay_options_t *o;
    engine_t *e;
    int mode;
    size_t batch, rows, waiting; /* rows of the step; copies: tokens appended since */
    trace_tree_t t;
    deft_tree_t *copy[TRACE_NODES]; /* copies: the tree of each node's path */
    const trace_node_t *nodes;
    int n_nodes;
    void *k, *v;
    unfused_t *unfused;
    candidate_t *top[2]; /* of the last two steps, in turns */
    size_t top_rows[2];
    engine_times_t last;
    double products[MAX_ROWS + 1]; /* milliseconds, by rows; 0: not measured */
    double paused_s, start_s;
    long middle; /* iteration at which parts are measured */
    int running;
    said_t *said;
    int says; /* 1: the first mode */
    totals_t sum;
} replay_t;

static void check(replay_t *r, int status)
{
    if (status != 0)
        bench_die("%s", engine_error(r->e));
}

/* ---- a step ---------------------------------------------------------------------------------- */

static double used_gib(void)
{
    size_t left, total;
    if (cudaMemGetInfo(&left, &total) != cudaSuccess)
        bench_die("cudaMemGetInfo failed");
    return (double)(total - left) / (1 << 30);
}

/* Time products alone once for each number of rows, and all parts in the middle; the search waits
 * for it. */
static void measure_parts(replay_t *r, long iteration)
{
    const unsigned part[3] = { ENGINE_PRODUCTS, ENGINE_ATTENTION, ENGINE_REST };
    const double start = bench_now();
    const int middle = iteration == r->middle && r->sum.parts[0] == 0;
    double s;
    if (r->products[r->rows] != 0 && !middle)
        return;
    const double used = used_gib();
    if (r->products[r->rows] == 0) {
        check(r, engine_time_parts(r->e, ENGINE_PRODUCTS, 5, &s));
        r->products[r->rows] = 1e3 * s;
    }
    for (int i = 0; i < 3 && middle; i++)
        check(r, engine_time_parts(r->e, part[i], 9, &r->sum.parts[i]));
    r->sum.own_gib += used_gib() - used;
    r->paused_s += bench_now() - start;
}

/* Room for n steps. */
static void reserve_steps(totals_t *t, size_t n)
{
    if (n <= t->room)
        return;
    t->room = 2 * n + 4096;
    t->ms = realloc(t->ms, t->room * sizeof(*t->ms));
    t->step_rows = realloc(t->step_rows, t->room * sizeof(*t->step_rows));
    if (t->ms == NULL || t->step_rows == NULL)
        bench_die("out of memory");
}

/* Steps whose time has come in since the last call. */
static void take_times(replay_t *r)
{
    const engine_times_t *t = engine_times(r->e);
    totals_t *sum = &r->sum;
    const uint64_t n = t->done - r->last.done;
    reserve_steps(sum, sum->steps + n);
    for (uint64_t i = 0; i < n; i++)
        sum->ms[sum->steps + i] = 1e3 * (t->device - r->last.device) / (double)n;
    sum->steps += n;
    sum->device_ms += 1e3 * (t->device - r->last.device);
    sum->gap_ms += 1e3 * (t->gap - r->last.gap);
    r->last.done = t->done;
    r->last.device = t->device;
    r->last.gap = t->gap;
}

/* What a step was, for its floor. */
static void take_bytes(replay_t *r)
{
    const engine_times_t *t = engine_times(r->e);
    const engine_geometry_t *g = engine_geometry(r->e);
    totals_t *sum = &r->sum;
    const double unique = (double)(t->kv_unique_bytes - r->last.kv_unique_bytes) / g->n_layers;
    const double logical = (double)(t->kv_logical_bytes - r->last.kv_logical_bytes) / g->n_layers;
    const double pairs = logical / (4.0 * g->n_kv * g->head_dim),
                 q = (double)r->rows * g->n_q * g->head_dim;
    const double read = bench_cuda_read_ms(unique + 4 * q),
                 compute = bench_cuda_compute_ms(4.0 * g->head_dim * g->n_q * pairs);
    const double limit = (read > compute ? read : compute) * g->n_layers;
    reserve_steps(sum, sum->begun + 1);
    sum->step_rows[sum->begun++] = (uint32_t)r->rows;
    sum->rows += r->rows;
    sum->plan_us += 1e6 * (t->plan - r->last.plan);
    sum->unique += unique * g->n_layers;
    sum->logical += logical * g->n_layers;
    sum->unfused += (double)(t->unfused_bytes - r->last.unfused_bytes);
    sum->products_ms += r->products[r->rows];
    sum->limit_ms += limit;
    r->last.plan = t->plan;
    r->last.kv_unique_bytes = t->kv_unique_bytes;
    r->last.kv_logical_bytes = t->kv_logical_bytes;
    r->last.unfused_bytes = t->unfused_bytes;
}

/* Candidates of a step have come. */
static void take_candidates(replay_t *r, int turn, uint64_t step)
{
    const candidate_t *top = r->top[turn];
    const size_t n = r->top_rows[turn];
    for (size_t i = 0; i < n * TOP; i++) {
        uint64_t bits;
        memcpy(&bits, &top[i], sizeof(bits));
        r->sum.digest = (r->sum.digest ^ bits) * 0x100000001b3u;
    }
    if (step >= KEPT_STEPS || r->mode == COPIES)
        return;
    for (size_t i = 0; i < n && i < 64; i++) {
        candidate_t *said = &r->said->top[step][i];
        const double d = (double)top[i * TOP].logprob - (double)said->logprob;
        if (r->says)
            *said = top[i * TOP];
        else if (i < r->said->n[step] && (d < 0 ? -d : d) > r->sum.difference)
            r->sum.difference = d < 0 ? -d : d;
    }
    if (r->says)
        r->said->n[step] = n;
}

static void decode_step(replay_t *r, long iteration)
{
    const uint64_t index = engine_times(r->e)->steps;
    const int turn = (int)(index % 2);
    const engine_output_t out = { .n = ENGINE_ALL, .k = TOP, .top = r->top[turn] };
    measure_parts(r, iteration);
    check(r, engine_submit(r->e, NULL, 0, 0, &out));
    if (index >= 2) /* those of this step come into their place later */
        take_candidates(r, turn, index - 2);
    r->top_rows[turn] = r->rows;
    take_times(r);
    take_bytes(r);
}

/* The prompt is computed in batches; the search begins behind it. */
static void prefill(replay_t *r, deft_tree_t *tree, deft_node_t node)
{
    deft_node_info_t info = { .struct_size = sizeof(info) };
    const double start = bench_now();
    BENCH_CHECK(engine_ctx(r->e), deft_tree_node(tree, node, &info));
    if (r->unfused != NULL)
        unfused_begin(r->unfused, tree, r->o->spec != NULL);
    for (size_t done = 0; done < info.len; done += r->batch) {
        const deft_rows_t rows = { tree, node,
                                   info.len - done < r->batch ? info.len - done : r->batch };
        check(r, engine_submit(r->e, &rows, 1, 0, NULL));
        if (r->unfused != NULL)
            unfused_prompt(r->unfused, rows.n);
    }
    check(r, engine_wait(r->e));
    r->sum.prefill_s += bench_now() - start;
}

static void begin_search(replay_t *r)
{
    engine_reset_times(r->e);
    memset(&r->last, 0, sizeof(r->last));
    if (r->unfused != NULL) {
        const engine_attention_t hook = unfused_attention(r->unfused);
        engine_set_attention(r->e, &hook);
    }
    r->running = 1;
    r->paused_s = 0;
    r->start_s = bench_now();
}

static void end_search(replay_t *r)
{
    check(r, engine_wait(r->e));
    take_times(r);
    const uint64_t steps = engine_times(r->e)->steps;
    for (uint64_t i = steps >= 2 ? steps - 2 : 0; i < steps; i++)
        take_candidates(r, (int)(i % 2), i);
    r->sum.wall_s += bench_now() - r->start_s - r->paused_s;
    engine_set_attention(r->e, NULL);
    r->running = 0;
}

static void on_step(void *arg, long iteration)
{
    replay_t *r = arg;
    deft_tree_t *tree = r->mode == COPIES ? r->copy[0] : r->t.tree;
    r->rows = r->mode == COPIES ? r->waiting : r->t.waiting;
    r->waiting = 0;
    if (iteration == 0) {
        if (r->running) /* a record of drafts has ended */
            end_search(r);
        prefill(r, tree, deft_tree_root(tree));
        begin_search(r);
    } else {
        decode_step(r, iteration);
    }
}

/* ---- a copy of its path for each leaf ---- */

static void copies_append(void *arg, int node, size_t n)
{
    replay_t *r = arg;
    deft_tree_t *tree = r->copy[node];
    int32_t *ids = bench_alloc(n * sizeof(*ids));
    for (size_t i = 0; i < n; i++) {
        r->t.seed = r->t.seed * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((r->t.seed >> 33) % engine_vocab(r->e));
    }
    r->waiting += n;
    BENCH_CHECK(engine_ctx(r->e), deft_tree_append(tree, deft_tree_root(tree), n, ids));
    free(ids);
}

/* A tree with the path's KV again: every slot is written, with values of no meaning. */
static deft_tree_t *copy_path(replay_t *r, const deft_tree_t *from)
{
    deft_ctx_t *ctx = engine_ctx(r->e);
    const size_t n = deft_tree_path_len(from, deft_tree_root(from));
    int32_t *ids = bench_alloc((n + 1) * sizeof(*ids));
    deft_tree_t *tree;
    BENCH_CHECK(ctx, deft_tree_create(ctx, &tree));
    BENCH_CHECK(ctx, deft_tree_path_tokens(from, deft_tree_root(from), n, ids));
    BENCH_CHECK(ctx, deft_tree_append(tree, deft_tree_root(tree), n, ids));
    for (size_t done = 0; done < n; done += r->batch) {
        const deft_rows_t rows = { tree, deft_tree_root(tree),
                                   n - done < r->batch ? n - done : r->batch };
        deft_step_t step;
        BENCH_CHECK(ctx, deft_step_begin(ctx, &rows, 1, 0, &step));
        for (uint32_t l = 0; l < engine_layers(r->e); l++)
            BENCH_CHECK(ctx, deft_step_write(step, l, r->k, r->v));
        BENCH_CHECK(ctx, deft_step_end(step));
    }
    free(ids);
    return tree;
}

static void copies_fork(void *arg, int parent, const int *kids, size_t n)
{
    replay_t *r = arg;
    const double start = bench_now();
    check(r, engine_wait(r->e));
    for (size_t i = 1; i < n; i++)
        r->copy[kids[i]] = copy_path(r, r->copy[parent]);
    if (cudaDeviceSynchronize() != cudaSuccess)
        bench_die("copying paths failed");
    engine_skip_gap(r->e);
    r->copy[kids[0]] = r->copy[parent];
    r->copy[parent] = NULL;
    r->paused_s += bench_now() - start;
}

/* Is `i` the node, or below it? */
static int is_below(const trace_node_t *nodes, int i, int node)
{
    while (i > node)
        i = nodes[i].parent;
    return i == node;
}

static void copies_prune(void *arg, int node)
{
    replay_t *r = arg;
    for (int i = node; i < r->n_nodes; i++)
        if (r->copy[i] != NULL && is_below(r->nodes, i, node)) {
            deft_tree_destroy(r->copy[i]);
            r->copy[i] = NULL;
        }
}

static const trace_ops_t copies_ops = { copies_append, copies_fork, copies_prune, on_step };

/* ---- how large a search gets ---- */

typedef struct size_of {
    const trace_node_t *nodes;
    int n;
    size_t len[TRACE_NODES], rows, live, paths, most_rows, most_live, most_paths;
    int leaf[TRACE_NODES]; /* has a path of its own */
} size_of_t;

static size_t path_of(const size_of_t *s, int node)
{
    size_t len = 0;
    for (; node >= 0; node = s->nodes[node].parent)
        len += s->len[node];
    return len;
}

static void size_append(void *arg, int node, size_t n)
{
    size_of_t *s = arg;
    s->len[node] += n;
    s->live += n;
    s->paths += n;
    s->rows += n;
}

static void size_fork(void *arg, int parent, const int *kids, size_t n)
{
    size_of_t *s = arg;
    s->paths += (n - 1) * path_of(s, parent);
    s->most_paths = s->paths > s->most_paths ? s->paths : s->most_paths;
    s->leaf[parent] = 0;
    for (size_t i = 0; i < n; i++)
        s->leaf[kids[i]] = 1;
}

static void size_prune(void *arg, int node)
{
    size_of_t *s = arg;
    for (int i = s->n - 1; i >= node; i--) {
        if (!is_below(s->nodes, i, node))
            continue;
        s->paths -= s->leaf[i] ? path_of(s, i) : 0;
        s->live -= s->len[i];
        s->leaf[i] = 0;
        s->len[i] = 0;
    }
}

static void size_step(void *arg, long iteration)
{
    size_of_t *s = arg;
    if (iteration > 0 && s->rows > s->most_rows)
        s->most_rows = s->rows;
    s->rows = 0;
    s->most_live = s->live > s->most_live ? s->live : s->most_live;
    s->most_paths = s->paths > s->most_paths ? s->paths : s->most_paths;
}

static const trace_ops_t size_ops = { size_append, size_fork, size_prune, size_step };

/* ---- searches ---- */

typedef struct search {
    trace_node_t *nodes;
    int n;
} search_t;

typedef struct searches {
    search_t *list;
    size_t n;
    size_t rows, live, paths; /* the most of any */
    long last;                /* iteration, of the first */
} searches_t;

static void add_search(searches_t *all, const trace_node_t *nodes, int n)
{
    static size_of_t size;
    search_t *s;
    all->list = realloc(all->list, (all->n + 1) * sizeof(*all->list));
    if (all->list == NULL)
        bench_die("out of memory");
    s = &all->list[all->n++];
    s->n = n;
    s->nodes = bench_alloc((size_t)n * sizeof(*nodes));
    memcpy(s->nodes, nodes, (size_t)n * sizeof(*nodes));
    memset(&size, 0, sizeof(size));
    size.nodes = s->nodes;
    size.n = n;
    size.leaf[0] = 1;
    const long last = trace_replay(s->nodes, n, &size_ops, &size);
    all->last = all->n == 1 ? last : all->last;
    all->rows = size.most_rows > all->rows ? size.most_rows : all->rows;
    all->live = size.most_live > all->live ? size.most_live : all->live;
    all->paths = size.most_paths > all->paths ? size.most_paths : all->paths;
}

/* Trees of a trace, drawn by a seed, each once. */
static void draw_searches(const replay_options_t *o, searches_t *all)
{
    static trace_node_t nodes[TRACE_NODES];
    FILE *file = fopen(o->trace, "r");
    int total = 0, index = 0, n;
    if (file == NULL)
        bench_die("cannot read %s", o->trace);
    while (trace_read(file, nodes) > 0)
        total++;
    rewind(file);
    uint64_t random = o->seed;
    long left = o->trees == 0 || (int)o->trees > total ? total : (long)o->trees;
    while (left > 0 && (n = trace_read(file, nodes)) > 0) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        if ((long)((random >> 33) % (uint64_t)(total - index++)) < left) {
            add_search(all, nodes, n);
            left--;
        }
    }
    fclose(file);
}

/* A shared prompt and leaves below it: few-shot prompting with many samples. */
static void make_shape(const replay_options_t *o, searches_t *all)
{
    trace_node_t *nodes = bench_alloc((size_t)(o->leaves + 1) * sizeof(*nodes));
    nodes[0] = (trace_node_t){ -1, o->prompt, 1 - o->prompt, 0, o->tokens };
    for (long i = 1; i <= o->leaves; i++)
        nodes[i] = (trace_node_t){ 0, o->tokens, 1, o->tokens, o->tokens };
    add_search(all, nodes, (int)o->leaves + 1);
    free(nodes);
}

static void replay_search(replay_t *r, const search_t *s)
{
    deft_ctx_t *ctx = engine_ctx(r->e);
    r->nodes = s->nodes;
    r->n_nodes = s->n;
    if (r->mode == COPIES) {
        memset(r->copy, 0, sizeof(r->copy));
        BENCH_CHECK(ctx, deft_tree_create(ctx, &r->copy[0]));
        (void)trace_replay(s->nodes, s->n, &copies_ops, r);
        end_search(r);
        copies_prune(r, 0);
        return;
    }
    trace_tree_begin(&r->t, ctx, engine_vocab(r->e), r->o->seed + 1, on_step, r);
    (void)trace_replay(s->nodes, s->n, &trace_tree_ops, &r->t);
    end_search(r);
    trace_tree_end(&r->t);
}

/* ---- speculative decoding ---- */

static void replay_drafts(replay_t *r)
{
    FILE *file = fopen(r->o->spec, "r");
    if (file == NULL)
        bench_die("cannot read %s", r->o->spec);
    r->t.ctx = engine_ctx(r->e);
    r->t.vocab = engine_vocab(r->e);
    r->t.seed = r->o->seed + 1;
    r->t.step = on_step;
    r->t.arg = r;
    (void)trace_speculate(&r->t, file, (size_t)r->o->prompt, r->o->trees, r->o->steps);
    fclose(file);
    end_search(r);
}

/* ---- a mode ---- */

static int open_engine(replay_t *r, const searches_t *all)
{
    const replay_options_t *o = r->o;
    const size_t live = r->mode == COPIES ? all->paths : all->live;
    engine_options_t eo = { .device = DEFT_DEVICE_CUDA,
                            .kv_type = o->type,
                            .seed = 1,
                            .split = r->mode < COPIES    ? (deft_split_t)r->mode
                                     : r->mode == COPIES ? DEFT_SPLIT_SEQUENCE
                                                         : DEFT_SPLIT_AUTO };
    char err[256];
    eo.pool_tokens = live + live / 20 + 4096;
    eo.max_rows = all->rows > 512 ? all->rows : 512;
    eo.max_outputs = all->rows > 128 ? all->rows : 128;
    const int status = o->model ? engine_open(o->model, &eo, &r->e, err, sizeof(err))
                                : engine_open_random(engine_geometry_named(o->geometry), &eo, &r->e,
                                                     err, sizeof(err));
    if (status != 0) {
        printf("{\"workload\":\"%s\",\"model\":\"%s\",\"mode\":\"%s\",\"error\":\"%s\"}\n", o->name,
               o->model ? "file" : o->geometry, mode_names[r->mode], err);
        return -1;
    }
    r->batch = eo.max_rows;
    for (int i = 0; i < 2; i++)
        r->top[i] = bench_alloc(MAX_ROWS * TOP * sizeof(*r->top[i]));
    return 0;
}

/* K and V for copied paths. */
static void make_values(replay_t *r)
{
    const engine_geometry_t *g = engine_geometry(r->e);
    const size_t n = r->batch * g->n_kv * g->head_dim;
    const kernels_at_t at = { NULL, r->o->type == DEFT_BF16, 0 };
    if (cudaMalloc(&r->k, 2 * n) != cudaSuccess || cudaMalloc(&r->v, 2 * n) != cudaSuccess ||
        kernels_fill(&at, r->k, n, 11, 1) != 0 || kernels_fill(&at, r->v, n, 12, 1) != 0 ||
        cudaDeviceSynchronize() != cudaSuccess)
        bench_die("no memory for K and V");
}

static void print_mode(const replay_t *r)
{
    const totals_t *t = &r->sum;
    const double n = (double)t->steps;
    double *sorted = bench_alloc(t->steps * sizeof(*sorted));
    memcpy(sorted, t->ms, t->steps * sizeof(*sorted));
    const double median = bench_median(sorted, t->steps);
    free(sorted);
    printf("{\"workload\":\"%s\",\"model\":\"%s\",\"mode\":\"%s\",\"steps\":%llu,\"rows\":%.2f,"
           "\"step_ms\":%.4f,\"median_ms\":%.4f,\"total_s\":%.4f,\"wall_s\":%.4f,\"gap\":%.4f,"
           "\"plan_us\":%.2f,"
           "\"products_ms\":%.4f,\"limit_ms\":%.4f,\"prefill_s\":%.4f,"
           "\"kv_unique\":%.0f,\"kv_logical\":%.0f,\"unfused\":%.0f,\"part_products_ms\":%.4f,"
           "\"part_attention_ms\":%.4f,\"part_rest_ms\":%.4f,\"used_gib\":%.3f,\"moved_mib\":%.1f,"
           "\"difference\":%.4f,\"digest\":\"%016llx\"}\n",
           r->o->name, r->o->model ? "file" : r->o->geometry, mode_names[r->mode],
           (unsigned long long)t->steps, (double)t->rows / n, t->device_ms / n, median,
           t->device_ms * 1e-3, t->wall_s, t->gap_ms / (t->device_ms + t->gap_ms), t->plan_us / n,
           t->products_ms / n, t->limit_ms / n, t->prefill_s, t->unique, t->logical, t->unfused,
           1e3 * t->parts[0], 1e3 * t->parts[1], 1e3 * t->parts[2], t->used_gib, t->moved_mib,
           t->difference, (unsigned long long)t->digest);
    fflush(stdout);
}

static void write_curve(const replay_t *r, FILE *file)
{
    for (uint64_t i = 0; i < r->sum.steps; i += CURVE_EVERY)
        fprintf(file, "%s %llu %u %.4f\n", mode_names[r->mode], (unsigned long long)i,
                r->sum.step_rows[i], r->sum.ms[i]);
}

/* False: it cannot be opened; the reason is printed. */
static int run_mode(const replay_options_t *o, const searches_t *all, int mode, said_t *said,
                    int says)
{
    replay_t *r = bench_alloc(sizeof(*r));
    memset(r, 0, sizeof(*r));
    r->o = o;
    r->mode = mode;
    r->said = said;
    r->says = says;
    r->middle = all->n > 0 ? all->last / 2 : o->steps > 0 ? o->steps / 2 : 10;
    if (open_engine(r, all) != 0) {
        free(r);
        return 0;
    }
    if (mode == COPIES)
        make_values(r);
    if (mode == UNFUSED)
        r->unfused = unfused_create(r->e, o->type == DEFT_BF16, r->batch, all->live);
    else
        check(r, engine_prepare(r->e, all->rows, TOP));
    const double before = used_gib();
    for (size_t i = 0; i < all->n; i++)
        replay_search(r, &all->list[i]);
    if (o->spec)
        replay_drafts(r);
    r->sum.used_gib = used_gib();
    r->sum.moved_mib = (r->sum.used_gib - before - r->sum.own_gib) * 1024;
    print_mode(r);
    if (o->curve) {
        FILE *file = fopen(o->curve, says ? "w" : "a");
        if (file == NULL)
            bench_die("cannot write %s", o->curve);
        write_curve(r, file);
        fclose(file);
    }
    unfused_destroy(r->unfused);
    engine_close(r->e);
    cudaFree(r->k);
    cudaFree(r->v);
    free(r->top[0]);
    free(r->top[1]);
    free(r->sum.ms);
    free(r->sum.step_rows);
    free(r);
    return 1;
}

static int usage(int status)
{
    fprintf(status == 0 ? stdout : stderr,
            "usage: deft_bench replay (-m MODEL | --geometry llama2-7b|llama3-8b|llama3-70b) "
            "SEARCH [OPTION]...\n\n"
            "  --trace FILE [--trees N]          recorded trees, N of them drawn by the seed (3)\n"
            "  --spec FILE [--trees N]           draft trees and accepted lengths, N records (1)\n"
            "  --leaves N --tokens T             N leaves of T tokens below the prompt\n"
            "  --prompt P                        tokens of the prompt, not for traces (4000)\n"
            "  --steps N                         steps of a record at most (all)\n"
            "  --mode MODE                       auto, node, node-chunk, flatten, sequence, copies "
            "or unfused;\n"
            "                                    again for more (auto)\n"
            "  --kv f16|bf16                     KV, weights and activations (bf16)\n"
            "  --seed N  --name NAME             (1, the search)\n"
            "  --curve FILE                      time of every eighth step\n\n"
            "One line of JSON a mode. Weights of a geometry are random: its times mean something, "
            "its text does not.\n");
    return status;
}

static int find_mode(const char *name)
{
    for (int i = 0; i < MODES; i++)
        if (strcmp(mode_names[i], name) == 0)
            return i;
    bench_die("no mode %s", name);
}

int bench_replay(int argc, char **argv)
{
    static const struct option longs[] = {
        { "geometry", 1, 0, 'g' }, { "trace", 1, 0, 't' },  { "trees", 1, 0, 'n' },
        { "spec", 1, 0, 's' },     { "leaves", 1, 0, 'l' }, { "tokens", 1, 0, 'T' },
        { "prompt", 1, 0, 'p' },   { "steps", 1, 0, 'S' },  { "mode", 1, 0, 'M' },
        { "kv", 1, 0, 'k' },       { "seed", 1, 0, 'r' },   { "name", 1, 0, 'N' },
        { "curve", 1, 0, 'c' },    { "help", 0, 0, 'h' },   { 0, 0, 0, 0 }
    };
    replay_options_t o = { .prompt = 4000, .seed = 1, .type = DEFT_BF16 };
    searches_t all = { 0 };
    for (int c; (c = getopt_long(argc, argv, "m:", longs, NULL)) != -1;) {
        if (c == 'm')
            o.model = optarg;
        else if (c == 'g')
            o.geometry = optarg;
        else if (c == 't')
            o.trace = optarg;
        else if (c == 'n')
            o.trees = (uint32_t)strtoul(optarg, NULL, 10);
        else if (c == 's')
            o.spec = optarg;
        else if (c == 'l')
            o.leaves = strtol(optarg, NULL, 10);
        else if (c == 'T')
            o.tokens = strtol(optarg, NULL, 10);
        else if (c == 'p')
            o.prompt = strtol(optarg, NULL, 10);
        else if (c == 'S')
            o.steps = strtol(optarg, NULL, 10);
        else if (c == 'M')
            o.modes |= 1u << find_mode(optarg);
        else if (c == 'k')
            o.type = bench_type(optarg);
        else if (c == 'r')
            o.seed = strtoull(optarg, NULL, 10);
        else if (c == 'N')
            o.name = optarg;
        else if (c == 'c')
            o.curve = optarg;
        else
            return usage(c == 'h' ? 0 : 2);
    }
    if (optind != argc || !o.model == !(o.geometry && engine_geometry_named(o.geometry)) ||
        o.prompt < 1 ||
        (o.trace != NULL) + (o.spec != NULL) +
                (o.leaves > 0 && o.leaves < TRACE_NODES && o.tokens > 0) !=
            1)
        return usage(2);
    o.modes = o.modes ? o.modes : 1;
    o.trees = o.trees ? o.trees : o.spec ? 1 : 3;
    o.name = o.name ? o.name : o.trace ? o.trace : o.spec ? o.spec : "shape";
    if (o.trace)
        draw_searches(&o, &all);
    else if (!o.spec)
        make_shape(&o, &all);
    if (o.spec) {
        all.rows = 128;
        all.live = (size_t)o.prompt + 8192;
    }
    if (all.rows > MAX_ROWS)
        bench_die("%zu leaves at a time: %d at most", all.rows, MAX_ROWS);
    bench_cuda_begin();
    for (int i = 0; i < 18; i++)
        (void)bench_cuda_read_ms((double)((size_t)65536 << i));
    bench_cuda_end();
    said_t *said = bench_alloc(sizeof(*said));
    int says = 1;
    for (int mode = 0; mode < MODES; mode++)
        if (o.modes >> mode & 1 && run_mode(&o, &all, mode, said, says))
            says = 0;
    free(said);
    for (size_t i = 0; i < all.n; i++)
        free(all.list[i].nodes);
    free(all.list);
    return 0;
}
