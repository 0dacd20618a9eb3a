/* SPDX-License-Identifier: MIT */
/* The forward pass on CUDA: products by cuBLASLt, attention by libdeft, the rest by
 * forward_kernels.cu, a whole pass one CUDA graph.
 *
 * A graph is captured once for each number of rows out of a short list, and serves every step of up
 * to as many rows: products are for that many, whatever they hold, the other kernels read from the
 * device how many there are. Steps are queued two deep, so that the next is planned while one
 * runs. */
#include <stdlib.h>
#include <string.h>

#include "forward_cuda.h"

/* ---- a pass ---- */

enum { WHOLE = ENGINE_PRODUCTS | ENGINE_ATTENTION | ENGINE_REST };

static int attend(engine_t *e, deft_step_t step, uint32_t l)
{
    struct forward *f = e->fw;

    TRY_DEFT(e, deft_cuda_written(step, l));
    if (f->other.attend)
        return f->other.attend(f->other.arg, l, f->q, f->att) == 0
                   ? 0
                   : FAIL(e, "the other attention failed");
    TRY_DEFT(e, deft_step_attend(step, l, f->q, f->att));
    return 0;
}

static int put_layer(engine_t *e, deft_step_t step, uint32_t l, uint32_t rows, unsigned parts)
{
    struct forward *f = e->fw;
    const engine_geometry_t *g = &e->g;
    const uint32_t size = size_index(rows);
    const size_t plane = f->view.pool_tokens * g->head_dim;
    const int rest = (parts & ENGINE_REST) != 0, products = (parts & ENGINE_PRODUCTS) != 0;
    char *k = (char *)f->view.pool + 2 * (size_t)l * g->n_kv * plane * 2;
    const kernels_norm_t norm = { f->view.n_rows, NULL,   f->x,  f->layers[l].attn_norm,
                                  f->h,           g->dim, g->eps };
    const kernels_norm_t ffn_norm = { f->view.n_rows, NULL,   f->x,  f->layers[l].ffn_norm,
                                      f->h,           g->dim, g->eps };
    const kernels_rope_t rope = {
        f->view.n_rows,          f->view.slots, f->qkv, f->cs,   f->q,        k,
        k + g->n_kv * plane * 2, plane,         g->n_q, g->n_kv, g->head_dim, g->rope_dim
    };
    const kernels_swiglu_t swiglu = { f->view.n_rows, f->ff, f->act, g->ffn };

    if (rest)
        TRY(e, kernels_norm(&f->at, &norm, rows));
    if (products && forward_multiply(e, QKV, l, size) != 0)
        return -1;
    if (rest)
        TRY(e, kernels_rope(&f->at, &rope, rows));
    if ((parts & ENGINE_ATTENTION) && attend(e, step, l) != 0)
        return -1;
    if (products && forward_multiply(e, OUT, l, size) != 0)
        return -1;
    if (rest)
        TRY(e, kernels_norm(&f->at, &ffn_norm, rows));
    if (products && forward_multiply(e, GATE_UP, l, size) != 0)
        return -1;
    if (rest)
        TRY(e, kernels_swiglu(&f->at, &swiglu, rows));
    return products ? forward_multiply(e, DOWN, l, size) : 0;
}

/* All launches of a pass: for up to `rows` rows, and outputs of up to `outputs` of them. */
static int put_pass(engine_t *e, deft_step_t step, uint32_t rows, uint32_t outputs, uint32_t k,
                    unsigned parts)
{
    struct forward *f = e->fw;
    const engine_geometry_t *g = &e->g;
    const kernels_embed_t embed = { f->view.n_rows, f->view.ids, f->view.positions,
                                    f->embedding,   f->inv_freq, f->x,
                                    f->cs,          g->dim,      g->rope_dim };
    const kernels_norm_t norm = { f->which, f->which + 1, f->x, f->out_norm, f->h, g->dim, g->eps };
    const kernels_top_t top = { f->which, f->logits, f->top, g->vocab, k };

    if (parts & ENGINE_REST)
        TRY(e, kernels_embed(&f->at, &embed, rows));
    for (uint32_t l = 0; l < g->n_layers; l++)
        if (put_layer(e, step, l, rows, parts) != 0)
            return -1;
    if (outputs > 0 && (parts & ENGINE_REST))
        TRY(e, kernels_norm(&f->at, &norm, outputs));
    if (outputs > 0 && (parts & ENGINE_PRODUCTS) &&
        forward_multiply(e, HEAD, 0, size_index(outputs)) != 0)
        return -1;
    if (outputs > 0 && k > 0 && (parts & ENGINE_REST))
        TRY(e, kernels_top(&f->at, &top, outputs));
    return 0;
}

static int capture(engine_t *e, deft_step_t step, graph_t *g)
{
    struct forward *f = e->fw;
    cudaGraph_t graph = NULL;

    TRY(e, cudaStreamBeginCapture(f->stream, cudaStreamCaptureModeThreadLocal));
    const int status = put_pass(e, step, g->rows, g->outputs, g->k, g->parts);
    const cudaError_t error = cudaStreamEndCapture(f->stream, &graph);
    if (status != 0) {
        (void)cudaGetLastError();
        if (graph)
            (void)cudaGraphDestroy(graph);
        return -1;
    }
    TRY(e, error);
    const cudaError_t made = cudaGraphInstantiate(&g->exec, graph, 0);
    (void)cudaGraphDestroy(graph);
    TRY(e, made);
    const cudaError_t uploaded =
        cudaGraphUpload(g->exec, f->stream); /* what it takes of the device it takes now */
    if (uploaded == cudaSuccess)
        return 0;
    (void)cudaGraphExecDestroy(g->exec);
    g->exec = NULL;
    return cuda_fail(e, "cudaGraphUpload", uploaded);
}

static void drop_graph(struct forward *f, uint32_t i)
{
    if (f->graph[i].exec)
        (void)cudaGraphExecDestroy(f->graph[i].exec);
    f->graph[i].exec = NULL;
}

static void drop_graphs(struct forward *f)
{
    (void)cudaStreamSynchronize(f->stream);
    for (uint32_t i = 0; i < f->n_graphs; i++)
        drop_graph(f, i);
    f->n_graphs = f->next_graph = 0;
}

static int capture_new(engine_t *e, deft_step_t step, const graph_t *want, cudaGraphExec_t *exec_p)
{
    struct forward *f = e->fw;

    for (int kind = 0; kind < KINDS; kind++) {
        const uint32_t size = size_index(kind == HEAD ? want->outputs : want->rows);
        if ((kind < HEAD || want->outputs > 0) && forward_tune(e, kind, size) != 0)
            return -1;
    }
    if (f->n_graphs == N_GRAPHS)
        (void)cudaStreamSynchronize(f->stream);
    const uint32_t at = f->n_graphs < N_GRAPHS ? f->n_graphs : f->next_graph++ % N_GRAPHS;
    drop_graph(f, at);
    f->graph[at] = *want;
    if (capture(e, step, &f->graph[at]) != 0)
        return -1;
    f->n_graphs += at == f->n_graphs;
    *exec_p = f->graph[at].exec;
    return 0;
}

/* The graph for this step, captured if it is the first of its kind. */
static int graph_for(engine_t *e, deft_step_t step, size_t n, const engine_output_t *out,
                     unsigned parts, uint64_t name, cudaGraphExec_t *exec_p)
{
    struct forward *f = e->fw;
    const graph_t want = { sizes[size_index(n)],
                           out->n > 0 ? sizes[size_index(out->n)] : 0,
                           (uint32_t)out->k,
                           parts,
                           name,
                           NULL };

    for (uint32_t i = 0; i < f->n_graphs; i++) {
        const graph_t *g = &f->graph[i];
        if (g->exec && g->rows == want.rows && g->outputs == want.outputs && g->k == want.k &&
            g->parts == parts && g->name == name) {
            *exec_p = g->exec;
            return 0;
        }
    }
    const double start = engine_now(), waited = e->times.waited;
    const int status = capture_new(e, step, &want, exec_p);
    e->times.captured += engine_now() - start - (e->times.waited - waited);
    return status;
}

/* ---- steps in the stream ---- */

/* Wait for the oldest step and hand over what it was asked for. */
static int complete(engine_t *e)
{
    struct forward *f = e->fw;
    slot_t *s = &f->slot[f->oldest], *before = &f->slot[(f->oldest + N_SLOTS - 1) % N_SLOTS];
    float ms;

    f->oldest = (f->oldest + 1) % N_SLOTS;
    f->n_pending--;
    const double start = engine_now();
    TRY(e, cudaEventSynchronize(s->end));
    e->times.waited += engine_now() - start;
    TRY(e, cudaEventElapsedTime(&ms, s->begin, s->end));
    e->times.device += 1e-3 * (double)ms;
    e->times.done++;
    if (!s->first) {
        TRY(e, cudaEventElapsedTime(&ms, before->end, s->begin));
        e->times.gap += 1e-3 * (double)ms;
    }
    if (s->out.k > 0)
        memcpy(s->out.top, s->top, s->out.n * s->out.k * sizeof(*s->top));
    return 0;
}

static int cuda_collect(engine_t *e)
{
    return e->fw->n_pending == 0 ? 0 : complete(e) == 0 ? 1 : -1;
}

static int ask(engine_t *e, slot_t *s, const engine_output_t *out)
{
    struct forward *f = e->fw;

    s->out = *out;
    s->which[0] = (uint32_t)out->n;
    for (size_t i = 0; i < out->n; i++)
        s->which[1 + i] = out->which ? out->which[i] : (uint32_t)i;
    TRY(e, cudaMemcpyAsync(f->which, s->which, (1 + out->n) * sizeof(uint32_t),
                           cudaMemcpyHostToDevice, f->stream));
    return 0;
}

static int fetch(engine_t *e, const slot_t *s)
{
    struct forward *f = e->fw;
    const engine_output_t *out = &s->out;

    if (out->k > 0)
        TRY(e, cudaMemcpyAsync(s->top, f->top, out->n * out->k * sizeof(*s->top),
                               cudaMemcpyDeviceToHost, f->stream));
    if (out->logits && out->n > 0)
        TRY(e, cudaMemcpyAsync(out->logits, f->logits, out->n * e->g.vocab * sizeof(float),
                               cudaMemcpyDeviceToHost, f->stream));
    return 0;
}

static int cuda_run(engine_t *e, deft_step_t step, const engine_output_t *out)
{
    struct forward *f = e->fw;
    const size_t n = deft_step_tokens(step);
    cudaGraphExec_t exec;

    if (n > f->max_rows || out->n > f->max_outputs)
        return FAIL(e, "%zu rows and %zu outputs: at most %zu and %zu were asked for", n, out->n,
                    f->max_rows, f->max_outputs);
    while (f->n_pending > N_SLOTS - 2)
        if (complete(e) != 0)
            return -1;
    slot_t *s = &f->slot[(f->oldest + f->n_pending) % N_SLOTS];
    s->first = e->times.steps == 0 || f->interrupted;
    f->interrupted = 0;
    const uint64_t name = f->other.begin ? f->other.begin(f->other.arg, step) : 0;
    if (graph_for(e, step, n, out, WHOLE, name, &exec) != 0)
        return -1;
    TRY(e, cudaEventRecord(s->begin, f->stream));
    if (ask(e, s, out) != 0)
        return -1;
    TRY(e, cudaGraphLaunch(exec, f->stream));
    TRY_DEFT(e, deft_cuda_replayed(step));
    if (fetch(e, s) != 0)
        return -1;
    TRY(e, cudaEventRecord(s->end, f->stream));
    f->n_pending++;
    return 0;
}

/* A pass is captured without regard to the plan: any open step will do. */
static int prepare_with(engine_t *e, deft_step_t step, size_t rows, size_t k)
{
    struct forward *f = e->fw;
    const uint32_t last = size_index(rows < f->max_rows ? rows : f->max_rows);
    const engine_output_t none = { 0 };
    cudaGraphExec_t exec;

    for (uint32_t i = 0; i < N_SIZES && sizes[i] <= f->max_rows; i++) {
        const engine_output_t out = { .n = sizes[i] < f->max_outputs ? sizes[i] : f->max_outputs,
                                      .k = k },
                              end = { .n = 1, .k = k };
        if (i <= last && graph_for(e, step, sizes[i], &out, WHOLE, 0, &exec) != 0)
            return -1;
        if (graph_for(e, step, sizes[i], &none, WHOLE, 0, &exec) != 0 ||
            graph_for(e, step, sizes[i], &end, WHOLE, 0, &exec) != 0)
            return -1;
    }
    return 0;
}

static int cuda_prepare(engine_t *e, size_t rows, size_t k)
{
    const int32_t id = 0;
    deft_tree_t *tree;
    deft_step_t step;
    int status = -1;

    if (k > ENGINE_TOP || k > e->g.vocab)
        return FAIL(e, "%zu candidates of %u, and at most %d", k, e->g.vocab, ENGINE_TOP);
    if (engine_wait(e) != 0)
        return -1;
    e->fw->interrupted = 1;
    TRY_DEFT(e, deft_tree_create(e->ctx, &tree));
    const deft_rows_t row = { tree, deft_tree_root(tree), 1 };
    if (deft_tree_append(tree, row.node, 1, &id) != DEFT_OK ||
        deft_step_begin(e->ctx, &row, 1, 0, &step) != DEFT_OK) {
        (void)FAIL(e, "%s", deft_last_error(e->ctx));
    } else {
        status = prepare_with(e, step, rows, k);
        deft_step_abandon(step);
    }
    deft_tree_destroy(tree);
    return status;
}

/* ---- opening ---- */

static int cuda_grow(engine_t *e)
{
    struct forward *f = e->fw;

    if (engine_wait(e) != 0)
        return -1;
    drop_graphs(f);
    f->reserved_rows *= 2;
    f->reserved_nodes *= 2;
    TRY_DEFT(e, deft_cuda_reserve(e->ctx, f->reserved_rows, f->reserved_nodes));
    TRY_DEFT(e, deft_cuda_view(e->ctx, &f->view));
    return 0;
}

static int make_slots(engine_t *e)
{
    struct forward *f = e->fw;

    for (int i = 0; i < N_SLOTS; i++) {
        TRY(e, cudaEventCreate(&f->slot[i].begin));
        TRY(e, cudaEventCreate(&f->slot[i].end));
        TRY(e, cudaMallocHost((void **)&f->slot[i].which, (1 + f->max_outputs) * sizeof(uint32_t)));
        TRY(e, cudaMallocHost((void **)&f->slot[i].top,
                              f->max_outputs * ENGINE_TOP * sizeof(candidate_t)));
    }
    return 0;
}

static int make_context(engine_t *e, const engine_options_t *o)
{
    struct forward *f = e->fw;

    if (engine_context(e, o, DEFT_DEVICE_CUDA, NULL) != 0)
        return -1;
    f->view.struct_size = sizeof(f->view);
    f->reserved_rows = f->max_rows;
    f->reserved_nodes = o->max_nodes ? o->max_nodes : 4096;
    TRY_DEFT(e, deft_cuda_set_stream(e->ctx, f->stream));
    TRY_DEFT(e, deft_cuda_reserve(e->ctx, f->reserved_rows, f->reserved_nodes));
    TRY_DEFT(e, deft_cuda_view(e->ctx, &f->view));
    return 0;
}

static int check_shape(engine_t *e, const engine_options_t *o)
{
    const engine_geometry_t *g = &e->g;

    if (o->kv_type == DEFT_F32)
        return FAIL(e, "f32 is for the CPU: f16 or bf16");
    if (g->dim % 8 != 0 || g->dim > 16384 || g->ffn % 8 != 0 || g->head_dim % 8 != 0 ||
        g->rope_dim % 8 != 0)
        return FAIL(e,
                    "width %u, ffn %u, heads of %u, %u of them rotated: CUDA needs multiples of 8",
                    g->dim, g->ffn, g->head_dim, g->rope_dim);
    if (e->fw->max_rows > sizes[N_SIZES - 1] || e->fw->max_outputs > e->fw->max_rows)
        return FAIL(e, "%zu rows of %u, %zu outputs", e->fw->max_rows, sizes[N_SIZES - 1],
                    e->fw->max_outputs);
    return 0;
}

static int cuda_open(engine_t *e, const engine_options_t *o)
{
    const engine_geometry_t *g = &e->g;
    const uint32_t q = g->n_q * g->head_dim, kv = g->n_kv * g->head_dim;
    const uint32_t n[KINDS] = { q + 2 * kv, g->dim, 2 * g->ffn, g->dim, g->vocab };
    const uint32_t k[KINDS] = { g->dim, q, g->dim, g->ffn, g->dim };
    const cublasOperation_t transposed = CUBLAS_OP_T;
    struct forward *f;
    int devices = 0, major = 0;

    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        (void)cudaGetLastError();
        (void)FAIL(e, "no CUDA device");
        return ENGINE_NO_DEVICE;
    }
    if (!(f = e->fw = calloc(1, sizeof(*f))))
        return FAIL(e, "out of memory");
    memcpy(f->n, n, sizeof(n));
    memcpy(f->k, k, sizeof(k));
    f->max_rows = sizes[size_index(o->max_rows ? o->max_rows : 512)];
    f->max_outputs = o->max_outputs      ? sizes[size_index(o->max_outputs)]
                     : f->max_rows < 128 ? f->max_rows
                                         : 128;
    f->staging_floats = (size_t)4 << 20;
    e->batch = f->max_rows;
    if (check_shape(e, o) != 0)
        return -1;
    TRY(e, cudaSetDevice(0));
    TRY(e, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
    TRY(e, cudaStreamCreateWithFlags(&f->stream, cudaStreamNonBlocking));
    f->at = (kernels_at_t){ f->stream, o->kv_type == DEFT_BF16, major >= 9 };
    TRY_LT(e, cublasLtCreate(&f->lt));
    TRY_LT(e, cublasLtMatmulDescCreate(&f->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TRY_LT(e, cublasLtMatmulDescSetAttribute(f->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                             sizeof(transposed)));
    const int own_head = !e->file || gguf_tensor(e->file, "output.weight") != NULL;
    if (forward_make_memory(e, o, own_head) != 0 || make_slots(e) != 0 || make_context(e, o) != 0)
        return -1;
    TRY(e, cudaMemcpy(f->inv_freq, e->inv_freq, g->rope_dim / 2 * sizeof(double),
                      cudaMemcpyHostToDevice));
    return e->file ? forward_load_file(e, own_head) : forward_load_random(e, o->seed);
}

static void cuda_close(engine_t *e)
{
    struct forward *f = e->fw;

    if (f && f->stream)
        (void)cudaStreamSynchronize(f->stream);
    deft_ctx_destroy(e->ctx);
    e->ctx = NULL;
    if (!f)
        return;
    drop_graphs(f);
    forward_free_products(f);
    for (int i = 0; i < N_SLOTS; i++) {
        if (f->slot[i].begin)
            (void)cudaEventDestroy(f->slot[i].begin);
        if (f->slot[i].end)
            (void)cudaEventDestroy(f->slot[i].end);
        (void)cudaFreeHost(f->slot[i].which);
        (void)cudaFreeHost(f->slot[i].top);
    }
    for (uint32_t i = 0; i < f->n_blocks; i++)
        (void)cudaFree(f->blocks[i]);
    if (f->desc)
        (void)cublasLtMatmulDescDestroy(f->desc);
    if (f->lt)
        (void)cublasLtDestroy(f->lt);
    if (f->stream)
        (void)cudaStreamDestroy(f->stream);
    free(f->layers);
    free(f);
    e->fw = NULL;
}

const forward_ops_t forward_cuda = { .open = cuda_open,
                                     .close = cuda_close,
                                     .run = cuda_run,
                                     .collect = cuda_collect,
                                     .grow = cuda_grow,
                                     .prepare = cuda_prepare };

/* ---- measuring ---- */

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

static int time_graph(engine_t *e, cudaGraphExec_t exec, int reps, double *seconds_p)
{
    struct forward *f = e->fw;
    slot_t *s = &f->slot[f->oldest];
    float ms[64];

    reps = reps < 1 ? 1 : reps > 64 ? 64 : reps;
    for (int i = -1; i < reps; i++) {
        TRY(e, cudaEventRecord(s->begin, f->stream));
        TRY(e, cudaGraphLaunch(exec, f->stream));
        TRY(e, cudaEventRecord(s->end, f->stream));
        TRY(e, cudaEventSynchronize(s->end));
        TRY(e, cudaEventElapsedTime(&ms[i < 0 ? 0 : i], s->begin, s->end));
    }
    qsort(ms, (size_t)reps, sizeof(*ms), by_value);
    *seconds_p = 1e-3 * (double)ms[reps / 2];
    return 0;
}

int engine_time_parts(engine_t *e, unsigned parts, int reps, double *seconds_p)
{
    struct forward *f = e->fw;
    deft_step_t step;
    cudaGraphExec_t exec;

    if (e->ops != &forward_cuda)
        return FAIL(e, "parts are timed on CUDA");
    if (engine_wait(e) != 0)
        return -1;
    f->interrupted = 1;
    TRY_DEFT(e, deft_step_begin(e->ctx, NULL, 0, 0, &step));
    const size_t n = deft_step_tokens(step);
    const engine_output_t out = { .n = n < f->max_outputs ? n : f->max_outputs, .k = 1 };
    const uint64_t name = f->other.begin ? f->other.begin(f->other.arg, step) : 0;
    const int status = n > f->max_rows ? FAIL(e, "%zu rows", n)
                       : ask(e, &f->slot[f->oldest], &out) ||
                               graph_for(e, step, n, &out, parts, name, &exec)
                           ? -1
                           : time_graph(e, exec, reps, seconds_p);
    deft_step_abandon(step);
    return status;
}

void engine_skip_gap(engine_t *e)
{
    if (e->ops == &forward_cuda)
        e->fw->interrupted = 1;
}

void engine_set_attention(engine_t *e, const engine_attention_t *attention)
{
    const engine_attention_t none = { 0 };

    if (e->ops != &forward_cuda)
        return;
    (void)engine_wait(e);
    drop_graphs(e->fw);
    e->fw->other = attention ? *attention : none;
}
