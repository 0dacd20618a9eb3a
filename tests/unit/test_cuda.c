/* SPDX-License-Identifier: MIT */
/* What only a context on CUDA has: captured graphs, several contexts on one device, bounds, device
 * memory that is short, pointers of the wrong kind, a device that fails. That its results are right
 * is for test_attention, test_attention_properties and test_batch_invariance with
 * DEFT_TEST_DEVICE=cuda (cuda.sh). Without a device: exit status 77.
 *
 *   test_cuda          everything but the last
 *   test_cuda lost     a device that fails, which ends CUDA for the process */
#include "config.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device_memory.h"
#include "problem.h"

#ifdef HAVE_CUDA
#include <cuda_runtime_api.h>

#include <deft/cuda.h>

void dev_fault(void);

#define GPU(_expr)                                                                    \
    do {                                                                              \
        const cudaError_t error_ = (_expr);                                           \
        T_CHECK(error_ == cudaSuccess, "%s: %s", #_expr, cudaGetErrorString(error_)); \
    } while (0)

enum { LAYERS = 2, MOST_ROWS = 600 };

/* Buffers of a pass for up to MOST_ROWS rows: q, k, v are random once; what a step computes with
 * them is compared with itself. */
typedef struct pass {
    world_t *w;
    cudaStream_t stream;
    void *q[LAYERS], *k[LAYERS], *v[LAYERS], *o[LAYERS];
    size_t q_bytes, kv_bytes; /* a row */
    uint16_t *a, *b;          /* host copies of o */
} pass_t;

static void *random_buffer(size_t bytes, uint64_t seed, deft_dtype_t type)
{
    uint16_t *host = t_alloc(bytes);
    void *p = NULL;
    rng_t rng;

    rng_init(&rng, seed);
    for (size_t i = 0; i < bytes / 2; i++) {
        const float x = (float)((double)rng_below(&rng, 4097) / 1024 - 2);

        host[i] = type == DEFT_F16 ? t_to_f16(x) : t_to_bf16(x);
    }
    GPU(cudaMalloc(&p, bytes));
    GPU(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice));
    free(host);
    return p;
}

static void pass_init(pass_t *p, deft_config_t *cfg, uint64_t seed)
{
    memset(p, 0, sizeof(*p));
    cfg->device = DEFT_DEVICE_CUDA;
    cfg->n_layers = LAYERS;
    p->w = world_new(cfg, seed, false);
    GPU(cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking));
    T_OK(deft_cuda_set_stream(p->w->ctx, p->stream));
    p->q_bytes = (size_t)p->w->Hq * p->w->D * 2;
    p->kv_bytes = (size_t)p->w->Hkv * p->w->D * 2;
    for (int l = 0; l < LAYERS; l++) {
        p->q[l] = random_buffer(MOST_ROWS * p->q_bytes, seed + 10 + (uint64_t)l, cfg->kv_type);
        p->k[l] = random_buffer(MOST_ROWS * p->kv_bytes, seed + 20 + (uint64_t)l, cfg->kv_type);
        p->v[l] = random_buffer(MOST_ROWS * p->kv_bytes, seed + 30 + (uint64_t)l, cfg->kv_type);
        p->o[l] = random_buffer(MOST_ROWS * p->q_bytes, seed + 40 + (uint64_t)l, cfg->kv_type);
    }
    p->a = t_alloc(LAYERS * MOST_ROWS * p->q_bytes);
    p->b = t_alloc(LAYERS * MOST_ROWS * p->q_bytes);
}

static void pass_free(pass_t *p)
{
    GPU(cudaStreamSynchronize(p->stream));
    world_free(p->w);
    for (int l = 0; l < LAYERS; l++) {
        GPU(cudaFree(p->q[l]));
        GPU(cudaFree(p->k[l]));
        GPU(cudaFree(p->v[l]));
        GPU(cudaFree(p->o[l]));
    }
    GPU(cudaStreamDestroy(p->stream));
    free(p->a);
    free(p->b);
}

static void launch(const pass_t *p, deft_step_t step)
{
    for (uint32_t l = 0; l < LAYERS; l++) {
        T_OK(t_layer(step, l, p->q[l], p->k[l], p->v[l], p->o[l]));
    }
}

static void poison(const pass_t *p)
{
    for (int l = 0; l < LAYERS; l++) {
        GPU(cudaMemsetAsync(p->o[l], 0xff, MOST_ROWS * p->q_bytes, p->stream));
    }
}

static void fetch(const pass_t *p, size_t rows, uint16_t *to)
{
    GPU(cudaStreamSynchronize(p->stream));
    for (int l = 0; l < LAYERS; l++) {
        GPU(cudaMemcpy(to + (size_t)l * rows * p->q_bytes / 2, p->o[l], rows * p->q_bytes,
                       cudaMemcpyDeviceToHost));
    }
}

static cudaGraphExec_t capture(const pass_t *p, deft_step_t step)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;

    GPU(cudaStreamBeginCapture(p->stream, cudaStreamCaptureModeThreadLocal));
    launch(p, step);
    GPU(cudaStreamEndCapture(p->stream, &graph));
    GPU(cudaGraphInstantiate(&exec, graph, 0));
    GPU(cudaGraphDestroy(graph));
    return exec;
}

/* A computed prefix of so many tokens, long enough for AUTO to cut it into parts. */
static void grow_trunk(const pass_t *p, size_t tokens)
{
    stree_t *t = world_tree(p->w);
    sstep_t ss;

    for (size_t n; tokens > 0; tokens -= n) {
        n = tokens < MOST_ROWS ? tokens : MOST_ROWS;
        T_OK(s_append(p->w, t, t->root, n, NULL));
        T_OK(world_begin(p->w, NULL, 0, 0, &ss));
        launch(p, ss.step);
        world_end(p->w, &ss);
        sstep_free(&ss);
    }
}

/* A decode step, or some mutations: at least one token is uncomputed after it. */
static void grow(play_t *play)
{
    world_t *w = play->w;

    for (size_t i = rng_chance(&play->rng, 0.4) ? 0 : 1 + rng_below(&play->rng, 4); i > 0; i--) {
        play_mutate(play);
    }
    for (size_t i = 0; i < w->n_trees; i++) {
        snode_t **list;
        const size_t n = s_nodes(w->trees[i], &list);

        for (size_t j = 0; j < n; j++) {
            if (list[j]->n_kids == 0 && rng_chance(&play->rng, 0.9)) {
                play_append(play, w->trees[i], list[j], 1);
            }
        }
        free(list);
    }
    for (int i = 0; !play_uncomputed(w) && i < 100;
         i++) { /* the pool is full, or there was no luck */
        stree_t *t = play_tree(play);

        T_OK(s_commit(w, t, play_leaf(play, t), DEFT_COMMIT_PATH));
        play_append(play, t, play_leaf(play, t), 1);
    }
}

/* ---- captured once, replayed for every later step ---- */

static size_t n_joined, n_direct; /* steps with partials, and without */

/* A context with a trunk of so many tokens and a tree on it, for random steps. */
static void begin_play(pass_t *p, play_t *play, deft_dtype_t type, uint32_t heads,
                       uint32_t kv_heads, uint32_t dim, size_t trunk, uint64_t seed)
{
    deft_config_t cfg = t_config(3000 + trunk);

    cfg.n_q_heads = heads;
    cfg.n_kv_heads = kv_heads;
    cfg.head_dim = dim;
    cfg.kv_type = type;
    pass_init(p, &cfg, seed);
    *play = (play_t){ .w = p->w, .max_trees = 3, .max_nodes = 120, .max_len = 40, .id_range = 9 };
    rng_init(&play->rng, seed);
    T_OK(deft_cuda_reserve(p->w->ctx, MOST_ROWS, 400));
    grow_trunk(p, trunk);
    play_build(play, p->w->trees[0], SHAPE_LEVELS, 30);
}

static void graph_replays(deft_dtype_t type, uint32_t heads, uint32_t kv_heads, uint32_t dim,
                          size_t trunk, uint64_t seed)
{
    cudaGraphExec_t exec = NULL;
    pass_t p;
    play_t play;
    const size_t steps = t_count(200);

    begin_play(&p, &play, type, heads, kv_heads, dim, trunk, seed);
    for (size_t i = 0; i < steps; i++) {
        sstep_t ss;

        t_note("test_cuda graph %s %u/%u x %u seed %llu, step %zu", t_type_name(type), heads,
               kv_heads, dim, (unsigned long long)seed, i);
        T_OK(world_begin(p.w, NULL, 0, 0, &ss));
        T_CHECK(ss.n <= MOST_ROWS, "%zu rows", ss.n);
        if (exec == NULL) {
            exec = capture(&p, ss.step);
        }
        n_joined += ss.stats.partials > 0;
        n_direct += ss.stats.partials == 0;
        poison(&p);
        GPU(cudaGraphLaunch(exec, p.stream));
        fetch(&p, ss.n, p.a);
        T_OK(deft_cuda_replayed(ss.step));
        poison(&p);
        launch(&p, ss.step);
        fetch(&p, ss.n, p.b);
        for (size_t j = 0; j < LAYERS * ss.n * p.q_bytes / 2; j++) {
            T_CHECK(p.a[j] == p.b[j] && p.a[j] != 0xffff,
                    "output %zu of %zu rows: %04x in the graph, %04x without", j, ss.n, p.a[j],
                    p.b[j]);
        }
        world_end(p.w, &ss);
        sstep_free(&ss);
        grow(&play);
    }
    printf("graph %s %u/%u x %u: %zu replays\n", t_type_name(type), heads, kv_heads, dim, steps);
    GPU(cudaGraphExecDestroy(exec));
    pass_free(&p);
}

/* ---- the same bits every time ---- */

static void same_bits(void)
{
    deft_config_t cfg = t_config(9000);
    pass_t p;
    play_t play = { .max_trees = 3, .max_nodes = 200, .max_len = 60, .id_range = 9 };
    sstep_t ss;
    const size_t runs = t_count(1000);

    cfg.n_q_heads = 8;
    cfg.n_kv_heads = 2;
    cfg.head_dim = 128;
    cfg.kv_type = DEFT_BF16;
    pass_init(&p, &cfg, 5);
    play.w = p.w;
    rng_init(&play.rng, 5);
    grow_trunk(&p, 5000);
    play_build(&play, p.w->trees[0], SHAPE_RANDOM, 20);
    T_OK(world_begin(p.w, NULL, 0, 0, &ss));
    T_CHECK(ss.n <= MOST_ROWS, "%zu rows", ss.n);
    T_CHECK(ss.stats.partials > 0, "nothing to join");
    launch(&p, ss.step);
    fetch(&p, ss.n, p.a);
    for (size_t i = 0; i < runs; i++) {
        poison(&p);
        launch(&p, ss.step);
        fetch(&p, ss.n, p.b);
        T_CHECK(memcmp(p.a, p.b, LAYERS * ss.n * p.q_bytes) == 0, "run %zu gave other bits", i);
    }
    printf("same bits: %zu runs of %zu rows, %zu partials\n", runs, ss.n, ss.stats.partials);
    world_end(p.w, &ss);
    sstep_free(&ss);
    pass_free(&p);
}

/* ---- contexts side by side, a thread each ---- */

typedef struct worker {
    pthread_t thread;
    uint32_t heads, kv_heads, dim;
    uint64_t seed, digest; /* of all outputs */
} worker_t;

/* A context from its making to its end: growing, captures and replays, while others do the same. */
static void *search_alone(void *arg)
{
    worker_t *worker = arg;
    cudaGraphExec_t exec = NULL;
    pass_t p;
    play_t play;

    begin_play(&p, &play, worker->seed % 2 ? DEFT_F16 : DEFT_BF16, worker->heads, worker->kv_heads,
               worker->dim, 1000, worker->seed);
    worker->digest = 14695981039346656037u; /* FNV-1a, of 16 bits at a time */
    for (size_t i = 0; i < t_count(60); i++) {
        sstep_t ss;

        T_OK(world_begin(p.w, NULL, 0, 0, &ss));
        if (i % 20 == 0) { /* capture now and then, while others allocate and launch */
            if (exec) {
                GPU(cudaGraphExecDestroy(exec));
            }
            exec = capture(&p, ss.step);
        }
        poison(&p);
        GPU(cudaGraphLaunch(exec, p.stream));
        fetch(&p, ss.n, p.a);
        T_OK(deft_cuda_replayed(ss.step));
        for (size_t j = 0; j < LAYERS * ss.n * p.q_bytes / 2; j++) {
            worker->digest = (worker->digest ^ p.a[j]) * 1099511628211u;
        }
        world_end(p.w, &ss);
        sstep_free(&ss);
        grow(&play);
    }
    GPU(cudaGraphExecDestroy(exec));
    pass_free(&p);
    return NULL;
}

static void side_by_side(void)
{
    worker_t alone[] = {
        { .heads = 8, .kv_heads = 2, .dim = 128, .seed = 1 },
        { .heads = 3, .kv_heads = 3, .dim = 64, .seed = 2 },
        { .heads = 4, .kv_heads = 1, .dim = 80, .seed = 3 },
        { .heads = 16, .kv_heads = 1, .dim = 256, .seed = 4 },
        { .heads = 8, .kv_heads = 2, .dim = 128, .seed = 5 },
        { .heads = 8, .kv_heads = 8, .dim = 96, .seed = 6 },
    };
    enum { WORKERS = sizeof(alone) / sizeof(*alone) };
    worker_t beside[WORKERS];

    memcpy(beside, alone, sizeof(beside));
    for (int i = 0; i < WORKERS; i++) {
        T_CHECK(pthread_create(&beside[i].thread, NULL, search_alone, &beside[i]) == 0,
                "no thread %d", i);
    }
    for (int i = 0; i < WORKERS; i++) {
        (void)pthread_join(beside[i].thread, NULL);
    }
    for (int i = 0; i < WORKERS; i++) {
        search_alone(&alone[i]);
        T_CHECK(alone[i].digest == beside[i].digest,
                "context %d: other bits beside others than alone", i);
    }
    printf("side by side: %d contexts, a thread each, gave the bits that each gives alone\n",
           WORKERS);
}

/* ---- bounds and states ---- */

static void bounds(void)
{
    deft_config_t cfg = t_config(4000);
    cudaGraphExec_t exec;
    pass_t p;
    stree_t *t;
    sstep_t ss;
    deft_step_t step = DEFT_STEP_INIT;

    cfg.kv_type = DEFT_F16;
    pass_init(&p, &cfg, 6);
    t = world_tree(p.w);
    T_OK(s_append(p.w, t, t->root, 20, NULL));
    T_STATUS(deft_cuda_replayed((deft_step_t)DEFT_STEP_INIT), DEFT_ERR_INVAL);
    T_OK(world_begin(p.w, NULL, 0, 0, &ss));
    T_STATUS(deft_cuda_replayed(ss.step), DEFT_ERR_STATE); /* nothing is captured */
    T_STATUS(deft_cuda_reserve(p.w->ctx, 10, 10), DEFT_ERR_BUSY);
    T_STATUS(deft_cuda_set_stream(p.w->ctx, NULL), DEFT_ERR_BUSY);
    exec = capture(&p, ss.step);
    GPU(cudaGraphLaunch(exec, p.stream));
    T_OK(deft_cuda_replayed(ss.step));
    world_end(p.w, &ss);
    sstep_free(&ss);

    /* rows beyond what there was room for at the capture */
    T_OK(s_append(p.w, t, t->root, 3000, NULL));
    deft_tree_t *const trees[1] = { t->tree };
    T_UNCHANGED(p.w->ctx, trees, 1, deft_step_begin(p.w->ctx, NULL, 0, 0, &step), DEFT_ERR_LIMIT,
                DEFT_ERR_LIMIT);
    T_CHECK(step.ctx == NULL && strstr(deft_last_error(p.w->ctx), "capture again") != NULL, "%s",
            deft_last_error(p.w->ctx));
    T_STATUS(deft_cuda_reserve(p.w->ctx, 0, 1), DEFT_ERR_INVAL);
    T_OK(deft_cuda_reserve(p.w->ctx, 3000, 10));
    T_OK(deft_step_begin(p.w->ctx, NULL, 0, 0, &step));
    T_STATUS(deft_cuda_replayed(step), DEFT_ERR_STATE); /* what was captured is void */

    /* a graph with nothing but a write is bound to the buffers as well */
    cudaGraph_t graph;
    GPU(cudaStreamBeginCapture(p.stream, cudaStreamCaptureModeThreadLocal));
    T_OK(deft_step_write(step, 0, p.k[0], p.v[0]));
    GPU(cudaStreamEndCapture(p.stream, &graph));
    GPU(cudaGraphDestroy(graph));
    T_OK(deft_cuda_replayed(step));
    deft_step_abandon(step);
    T_OK(deft_cuda_reserve(p.w->ctx, 3000, 10));

    /* a cancelled step is refused from the next call on; what is in the stream runs out */
    const deft_rows_t some = { t->tree, t->root->h, 10 };
    T_OK(deft_step_begin(p.w->ctx, &some, 1, 0, &step));
    T_OK(deft_step_write(step, 0, p.k[0], p.v[0]));
    deft_step_cancel(step);
    T_STATUS(deft_step_attend(step, 0, p.q[0], p.o[0]), DEFT_ERR_CANCELLED);
    T_STATUS(deft_cuda_written(step, 1), DEFT_ERR_CANCELLED);
    T_STATUS(deft_step_end(step), DEFT_ERR_CANCELLED);
    deft_step_abandon(step);
    T_STATUS(deft_cuda_written(step, 1), DEFT_ERR_STALE);

    /* a plan is uploaded for every step, and tokens are moved once, so not in a capture */
    stree_t *apart[2] = { world_tree(p.w), world_tree(p.w) };
    for (int i = 0; i < 4; i++) {
        T_OK(s_append(p.w, apart[i % 2], apart[i % 2]->root, 1, NULL));
    }
    GPU(cudaStreamBeginCapture(p.stream, cudaStreamCaptureModeThreadLocal));
    T_STATUS(deft_step_begin(p.w->ctx, NULL, 0, 0, &step), DEFT_ERR_STATE);
    T_UNCHANGED(p.w->ctx, trees, 1,
                deft_tree_compact(apart[0]->tree, apart[0]->root->h, 0, DEFT_COMPACT_CHAINS, NULL),
                DEFT_ERR_STATE, DEFT_ERR_STATE);
    GPU(cudaStreamEndCapture(p.stream, &graph));
    GPU(cudaGraphDestroy(graph));
    GPU(cudaGraphExecDestroy(exec));
    pass_free(&p);
}

static void pointers(void)
{
    deft_config_t cfg = t_config(400);
    pass_t p;
    stree_t *t;
    sstep_t ss;
    static uint16_t host[1 << 16] __attribute__((aligned(64)));

    cfg.kv_type = DEFT_F16;
    pass_init(&p, &cfg, 7);
    t = world_tree(p.w);
    T_OK(s_append(p.w, t, t->root, 20, NULL));
    T_OK(world_begin(p.w, NULL, 0, 0, &ss));
    T_STATUS(deft_step_write(ss.step, 0, host, p.v[0]), DEFT_ERR_INVAL);
    T_STATUS(deft_step_write(ss.step, 0, p.k[0], (char *)p.v[0] + 8), DEFT_ERR_INVAL);
    T_OK(deft_step_write(ss.step, 0, p.k[0], p.v[0]));
    T_STATUS(deft_step_attend(ss.step, 0, p.q[0], host), DEFT_ERR_INVAL);
    T_CHECK(strstr(deft_last_error(p.w->ctx), "device") != NULL, "%s", deft_last_error(p.w->ctx));
    launch(&p, ss.step);
    world_end(p.w, &ss);
    sstep_free(&ss);

    deft_cuda_view_t view = { .struct_size = sizeof(view) };
    uint32_t rows = 0;
    T_OK(deft_cuda_view(p.w->ctx, &view));
    T_CHECK(view.stream == p.stream && view.pool != NULL && view.pool_tokens == 400, "the view");
    GPU(cudaStreamSynchronize(p.stream));
    GPU(cudaMemcpy(&rows, view.n_rows, sizeof(rows), cudaMemcpyDeviceToHost));
    T_CHECK(rows == 20, "%u rows on the device", rows);
    int32_t positions[20];
    GPU(cudaMemcpy(positions, view.positions, sizeof(positions), cudaMemcpyDeviceToHost));
    uint32_t slots[20];
    GPU(cudaMemcpy(slots, view.slots, sizeof(slots), cudaMemcpyDeviceToHost));
    for (int i = 0; i < 20; i++) {
        T_CHECK(slots[i] == slots[0] + (uint32_t)i, "slot %u behind %u", slots[i], slots[0]);
        T_CHECK(positions[i] == i, "position %d is %d", i, positions[i]);
    }
    T_STATUS(deft_cuda_view(p.w->ctx, NULL), DEFT_ERR_INVAL);
    pass_free(&p);
}

/* ---- K and V that the caller stores ---- */

/* K and V of a step's rows from the host to where deft_cuda_view() says. */
static void store(const pass_t *p, const deft_cuda_view_t *view, uint32_t layer,
                  const uint32_t *slots, size_t rows, uint16_t *const kv[2])
{
    const size_t heads = p->w->Hkv, dim = p->w->D;
    uint16_t *pool = view->pool;

    for (size_t i = 0; i < 2; i++) {
        for (size_t r = 0; r < rows; r++) {
            for (size_t h = 0; h < heads; h++) {
                const size_t to = (((layer * 2 + i) * heads + h) * view->pool_tokens + slots[r]) *
                                  dim;

                GPU(cudaMemcpyAsync(pool + to, kv[i] + (r * heads + h) * dim, dim * 2,
                                    cudaMemcpyHostToDevice, view->stream));
            }
        }
    }
}

static void own_write(void)
{
    deft_config_t cfg = t_config(2000);
    deft_cuda_view_t view = { .struct_size = sizeof(view) };
    pass_t p;
    play_t play = { .max_trees = 1, .max_nodes = 40, .max_len = 20, .id_range = 9 };
    sstep_t ss;
    uint16_t *kv[LAYERS][2];

    cfg.n_q_heads = 8;
    cfg.n_kv_heads = 2;
    cfg.head_dim = 128;
    cfg.kv_type = DEFT_BF16;
    pass_init(&p, &cfg, 9);
    play.w = p.w;
    rng_init(&play.rng, 9);
    grow_trunk(&p, 300);
    play_build(&play, p.w->trees[0], SHAPE_RANDOM, 20);

    /* the step with K and V of our own first: its slots hold nothing of use before */
    T_OK(world_begin(p.w, NULL, 0, 0, &ss));
    const size_t rows = ss.n;
    T_CHECK(rows > 20 && rows <= MOST_ROWS, "%zu rows", rows);
    T_OK(deft_cuda_view(p.w->ctx, &view));
    T_CHECK(rows <= view.max_rows, "%zu rows, room for %zu", rows, view.max_rows);
    uint32_t *slots = t_alloc(rows * sizeof(*slots));
    GPU(cudaStreamSynchronize(p.stream));
    GPU(cudaMemcpy(slots, view.slots, rows * sizeof(*slots), cudaMemcpyDeviceToHost));
    for (size_t r = 0; r < rows; r++) {
        T_CHECK(slots[r] < view.pool_tokens, "row %zu: slot %u of %zu", r, slots[r],
                view.pool_tokens);
    }
    poison(&p);
    T_STATUS(deft_cuda_written((deft_step_t)DEFT_STEP_INIT, 0), DEFT_ERR_INVAL);
    T_STATUS(deft_cuda_written(ss.step, LAYERS), DEFT_ERR_INVAL);
    T_STATUS(deft_cuda_written(ss.step, UINT32_MAX), DEFT_ERR_INVAL);
    for (uint32_t l = 0; l < LAYERS; l++) {
        for (int i = 0; i < 2; i++) {
            kv[l][i] = t_alloc(rows * p.kv_bytes);
            GPU(cudaMemcpy(kv[l][i], i == 0 ? p.k[l] : p.v[l], rows * p.kv_bytes,
                           cudaMemcpyDeviceToHost));
        }
        T_STATUS(deft_step_attend(ss.step, l, p.q[l], p.o[l]), DEFT_ERR_STATE);
        T_STATUS(deft_step_end(ss.step), DEFT_ERR_STATE);
        store(&p, &view, l, slots, rows, kv[l]);
        T_OK(deft_cuda_written(ss.step, l));
        T_OK(deft_cuda_written(ss.step, l)); /* counts once */
        T_OK(deft_step_attend(ss.step, l, p.q[l], p.o[l]));
    }
    fetch(&p, rows, p.a);
    deft_step_abandon(ss.step);
    T_STATUS(deft_cuda_written(ss.step, 0), DEFT_ERR_STALE);
    sstep_free(&ss);

    T_OK(world_begin(p.w, NULL, 0, 0, &ss));
    T_CHECK(ss.n == rows, "%zu rows, %zu before", ss.n, rows);
    T_STATUS(deft_step_attend(ss.step, 0, p.q[0], p.o[0]), DEFT_ERR_STATE); /* of the step before */
    poison(&p);
    launch(&p, ss.step);
    fetch(&p, rows, p.b);
    for (size_t j = 0; j < LAYERS * rows * p.q_bytes / 2; j++) {
        T_CHECK(p.a[j] == p.b[j] && p.a[j] != 0xffff,
                "output %zu of %zu rows: %04x by our own write, %04x without", j, rows, p.a[j],
                p.b[j]);
    }
    world_end(p.w, &ss);
    sstep_free(&ss);

    /* a step whose layers were all written so can end */
    play_append(&play, p.w->trees[0], play_leaf(&play, p.w->trees[0]), 1);
    T_OK(world_begin(p.w, NULL, 0, 0, &ss));
    T_CHECK(ss.n == 1, "%zu rows", ss.n);
    T_OK(deft_cuda_view(p.w->ctx, &view));
    GPU(cudaStreamSynchronize(p.stream));
    GPU(cudaMemcpy(slots, view.slots, sizeof(*slots), cudaMemcpyDeviceToHost));
    for (uint32_t l = 0; l < LAYERS; l++) {
        store(&p, &view, l, slots, 1, kv[l]);
        T_OK(deft_cuda_written(ss.step, l));
    }
    world_end(p.w, &ss);
    sstep_free(&ss);
    printf("own write: %zu rows gave the same bits\n", rows);
    GPU(cudaStreamSynchronize(p.stream));
    for (int l = 0; l < LAYERS; l++) {
        free(kv[l][0]);
        free(kv[l][1]);
    }
    free(slots);
    pass_free(&p);
}

/* ---- what cannot be made ---- */

static char last_line[512];

static void keep_line(void *arg, deft_log_level_t level, const char *text)
{
    (void)arg;
    (void)level;
    snprintf(last_line, sizeof(last_line), "%s", text);
}

/* Has CUDA made its context of this process on the device? It takes some 500 MiB. */
static bool has_cuda_context(void)
{
    typedef int (*state_fn)(int device, unsigned *flags, int *active);
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    void *symbol = driver == NULL ? NULL : dlsym(driver, "cuDevicePrimaryCtxGetState");
    state_fn state;
    unsigned flags;
    int active = -1;

    T_CHECK(symbol != NULL, "no driver");
    memcpy(&state, &symbol, sizeof(state));
    T_CHECK(state(0, &flags, &active) == 0, "the driver does not know");
    dlclose(driver);
    return active != 0;
}

/* Configurations that are refused for their values leave no trace on the device. The first thing
 * that the process does with CUDA. */
static void refused_values(void)
{
    deft_config_t cfg = t_config(400);
    world_t *w = NULL;

    T_CHECK(!has_cuda_context(), "there is a context before the first call");
    cfg.device = DEFT_DEVICE_CUDA;
    cfg.log = keep_line;
    cfg.kv_type = DEFT_F32;
    T_STATUS(world_try(&cfg, 1, false, &w), DEFT_ERR_UNSUPPORTED);
    cfg.kv_type = DEFT_F16;
    cfg.act_type = DEFT_BF16;
    T_STATUS(world_try(&cfg, 1, false, &w), DEFT_ERR_UNSUPPORTED);
    cfg.act_type = DEFT_F32;
    T_STATUS(world_try(&cfg, 1, false, &w), DEFT_ERR_UNSUPPORTED);
    cfg.act_type = DEFT_DTYPE_DEFAULT;
    cfg.device_index = 99;
    T_STATUS(world_try(&cfg, 1, false, &w), DEFT_ERR_NODEVICE);
    cfg.device_index = -1;
    T_STATUS(world_try(&cfg, 1, false, &w), DEFT_ERR_NODEVICE);
    T_CHECK(!has_cuda_context(), "a context was made for nothing");
}

static void refusals(void)
{
    deft_config_t cfg = t_config(400);
    world_t *w = NULL;
    size_t available, total, left;

    cfg.device = DEFT_DEVICE_CUDA;
    cfg.log = keep_line;
    cfg.kv_type = DEFT_F16;

    /* a pool that does not fit says what would; that much can be had */
    GPU(cudaMemGetInfo(&available, &total));
    cfg.n_layers = 100;
    cfg.pool_tokens = total / (100 * 2 * 64 * 2) + 1;
    T_STATUS(world_try(&cfg, 1, false, &w), DEFT_ERR_NOMEM);
    const char *fit = strstr(last_line, "free, ");
    T_CHECK(fit != NULL && strstr(last_line, "would fit") != NULL, "%s", last_line);
    cfg.pool_tokens = (size_t)strtoull(fit + 6, NULL, 10);
    T_CHECK(cfg.pool_tokens > 1000, "%s", last_line);
    if (cfg.pool_tokens < (size_t)1 << 28) { /* the host's table has 16 bytes a slot */
        T_OK(world_try(&cfg, 1, false, &w));
        world_free(w);
    }
    cfg.n_layers = 65535;
    cfg.pool_tokens = DEFT_POOL_FREE;
    cfg.pool_spare = (size_t)1 << 30;
    T_OK(world_try(&cfg, 1, false, &w));
    GPU(cudaMemGetInfo(&left, &total));
    T_CHECK(left >= (size_t)1 << 30 && left < (size_t)3 << 29, "%zu MiB left of 1024 to spare",
            left >> 20);
    T_CHECK(w->info.pool_tokens > 100 && w->info.pool_tokens != DEFT_POOL_FREE, "%zu tokens",
            w->info.pool_tokens);
    world_free(w);
    cfg.pool_spare = SIZE_MAX / 2;
    T_STATUS(world_try(&cfg, 1, false, &w), DEFT_ERR_NOMEM);

    /* AUTO takes the device where the types say that the caller is prepared for it */
    cfg = t_config(400);
    cfg.device = DEFT_DEVICE_AUTO;
    cfg.kv_type = cfg.act_type = DEFT_BF16;
    w = world_new(&cfg, 1, false);
    T_CHECK(w->info.device == DEFT_DEVICE_CUDA && strncmp(w->info.backend, "cuda", 4) == 0, "%s",
            w->info.backend);
    printf("backend: %s, %u multiprocessors\n", w->info.backend, w->info.n_threads);
    world_free(w);
    cfg.act_type = DEFT_F32;
    w = world_new(&cfg, 1, false);
    T_CHECK(w->info.device != DEFT_DEVICE_CUDA, "AUTO with f32 took CUDA");
    world_free(w);
}

/* ---- a child of fork() ---- */

/* It has no device: it is told so, frees the host's side, and disturbs nobody. */
static void in_a_child(void)
{
    deft_config_t cfg = t_config(400);
    pass_t p;
    stree_t *t;
    sstep_t ss;
    int status;

    cfg.kv_type = DEFT_F16;
    pass_init(&p, &cfg, 9);
    t = world_tree(p.w);
    T_OK(s_append(p.w, t, t->root, 20, NULL));
    for (int uses = 0; uses < 2; uses++) {
        const pid_t child = fork();

        if (child == 0) {
            deft_step_t step = DEFT_STEP_INIT;

            alarm(20);
            if (uses) {
                T_STATUS(deft_step_begin(p.w->ctx, NULL, 0, 0, &step), DEFT_ERR_DEVICE);
                T_CHECK(strstr(deft_last_error(p.w->ctx), "child") != NULL, "%s",
                        deft_last_error(p.w->ctx));
                T_OK(deft_tree_check(t->tree));
            }
            deft_ctx_destroy(p.w->ctx);
            _exit(0);
        }
        T_CHECK(waitpid(child, &status, 0) == child, "no child");
        T_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child: %#x", status);
    }
    T_OK(world_begin(p.w, NULL, 0, 0, &ss));
    for (uint32_t l = 0; l < LAYERS; l++) {
        T_OK(t_layer(ss.step, l, p.q[l], p.k[l], p.v[l], p.o[l]));
    }
    T_OK(deft_step_end(ss.step));
    t->root->computed = 20;
    sstep_free(&ss);
    pass_free(&p);
}

/* ---- a device that fails ---- */

static void lost(void)
{
    deft_config_t cfg = t_config(400);
    pass_t p;
    stree_t *t;
    sstep_t ss;
    deft_step_t step = DEFT_STEP_INIT;

    cfg.kv_type = DEFT_F16;
    pass_init(&p, &cfg, 8);
    t = world_tree(p.w);
    T_OK(s_append(p.w, t, t->root, 20, NULL));
    T_OK(world_begin(p.w, NULL, 0, 0, &ss));
    dev_fault();
    T_STATUS(t_layer(ss.step, 0, p.q[0], p.k[0], p.v[0], p.o[0]), DEFT_ERR_DEVICE);
    T_CHECK(strstr(deft_last_error(p.w->ctx), "lost") != NULL, "%s", deft_last_error(p.w->ctx));
    T_STATUS(deft_step_write(ss.step, 1, p.k[0], p.v[0]), DEFT_ERR_DEVICE);
    T_STATUS(deft_step_end(ss.step), DEFT_ERR_DEVICE);
    deft_step_abandon(ss.step);
    T_STATUS(deft_step_begin(p.w->ctx, NULL, 0, 0, &step), DEFT_ERR_DEVICE);
    T_STATUS(deft_cuda_reserve(p.w->ctx, 10, 10), DEFT_ERR_DEVICE);
    T_OK(deft_tree_check(t->tree)); /* the host's side is whole */
    ss.step = (deft_step_t)DEFT_STEP_INIT;
    sstep_free(&ss);
    world_free(p.w); /* and goes without a leak */
    free(p.a);
    free(p.b);
    puts("lost: told, and everything of the host came back");
}

int main(int argc, char **argv)
{
    if (!dev_there()) {
        puts("no CUDA device");
        return 77;
    }
    if (argc > 1 && strcmp(argv[1], "lost") == 0) {
        lost();
        return 0;
    }
    refused_values(); /* before CUDA has a context */
    side_by_side();   /* before others: kernels are loaded when they are first used */
    refusals();
    pointers();
    own_write();
    bounds();
    graph_replays(DEFT_F16, 8, 2, 128, 0, 1);
    graph_replays(DEFT_BF16, 3, 3, 64, 4000, 2);
    graph_replays(DEFT_F16, 4, 1, 80, 0, 3);
    graph_replays(DEFT_BF16, 16, 1, 256, 4000, 4);
    printf("of all steps %zu had partials, %zu had none\n", n_joined, n_direct);
    T_CHECK(n_joined > 0 && n_direct > 0, "replays met one kind of plan only");
    same_bits();
    in_a_child();
    return 0;
}
#else
int main(void)
{
    puts("a build without CUDA");
    return 77;
}
#endif
