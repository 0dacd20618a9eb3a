/* SPDX-License-Identifier: MIT */
/* The forward pass on CUDA: products by cuBLASLt, attention by libdeft, the rest by forward_kernels.cu, a
 * whole pass one CUDA graph.
 *
 * A graph is captured once for each number of rows out of a short list, and serves every step of up
 * to as many rows: products are for that many, whatever they hold, the other kernels read from the
 * device how many there are. Steps are queued two deep, so that the next is planned while one runs. */
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "deft/cuda.h"
#include "forward.h"
#include "forward_kernels.h"

/* Products of a layer, and the last. */
enum { QKV, OUT, GATE_UP, DOWN, HEAD, KINDS };

/* Rows that graphs are captured for. */
static const uint32_t sizes[] = { 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048 };
enum { N_SIZES = sizeof(sizes) / sizeof(*sizes), N_GRAPHS = 96, N_SLOTS = 3, N_ALGOS = 8 };

static const size_t WORKSPACE = (size_t)64 << 20;

typedef struct product {
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
    int ready;
} product_t;

typedef struct graph {
    uint32_t rows, outputs, k;
    unsigned parts;
    uint64_t name; /* of the other attention's launches */
    cudaGraphExec_t exec;
} graph_t;

/* A step that is in the stream. */
typedef struct slot {
    cudaEvent_t begin, end;
    uint32_t *which;  /* pinned [1 + max_outputs]: how many, then the rows */
    candidate_t *top; /* pinned [max_outputs][ENGINE_TOP] */
    engine_output_t out;
    int first;        /* nothing of interest ran before */
} slot_t;

typedef struct layer {
    void *w[HEAD];
    float *attn_norm, *ffn_norm;
} layer_t;

struct forward {
    cudaStream_t stream;
    kernels_at_t at;
    cublasLtHandle_t lt;
    cublasLtMatmulDesc_t desc;
    uint32_t n[KINDS], k[KINDS]; /* y [rows][n] = x [rows][k] w[n][k]^T */
    product_t product[KINDS][N_SIZES];
    layer_t *layers;
    void *embedding, *head;
    float *out_norm, *x, *cs, *logits, *staging;
    double *inv_freq;
    void *h, *qkv, *q, *att, *ff, *act, *workspace;
    uint32_t *which;
    candidate_t *top;
    uint64_t *digest;
    size_t max_rows, max_outputs, reserved_rows, reserved_nodes, staging_floats;
    graph_t graph[N_GRAPHS];
    uint32_t n_graphs, next_graph;
    slot_t slot[N_SLOTS];
    uint32_t oldest, n_pending;
    int interrupted; /* something else ran since the last step */
    deft_cuda_view_t view;
    engine_attention_t other; /* attend NULL: libdeft's */
    void *blocks[32];         /* all device memory, to be freed */
    uint32_t n_blocks;
};

static int cuda_fail(engine_t *e, const char *what, cudaError_t error)
{
    (void)cudaGetLastError();
    return FAIL(e, "%s: %s", what, cudaGetErrorString(error));
}

#define TRY(_e, _call)                                       \
    do {                                                     \
        const cudaError_t error_ = (cudaError_t)(_call);     \
        if (error_ != cudaSuccess)                           \
            return cuda_fail(_e, #_call, error_);            \
    } while (0)

#define TRY_LT(_e, _call)                                                           \
    do {                                                                            \
        const cublasStatus_t status_ = (_call);                                     \
        if (status_ != CUBLAS_STATUS_SUCCESS)                                       \
            return FAIL(_e, "%s: cuBLASLt status %d", #_call, (int)status_);        \
    } while (0)

#define TRY_DEFT(_e, _call)                                                         \
    do {                                                                            \
        if ((_call) != DEFT_OK)                                                     \
            return FAIL(_e, "%s", deft_last_error((_e)->ctx));                      \
    } while (0)

static uint32_t size_index(size_t rows)
{
    uint32_t i = 0;

    while (i + 1 < N_SIZES && sizes[i] < rows)
        i++;
    return i;
}

/* ---- memory ---- */

/* Device memory of all kinds in one list: pointer, bytes. */
typedef struct piece {
    void **p;
    size_t bytes;
} piece_t;

enum { MAX_PIECES = 24 };

static size_t pieces_of(engine_t *e, piece_t *piece, size_t *n_p)
{
    struct forward *f = e->fw;
    const engine_geometry_t *g = &e->g;
    const size_t R = f->max_rows, O = f->max_outputs, q = (size_t)g->n_q * g->head_dim;
    const size_t kv = (size_t)g->n_kv * g->head_dim;
    const piece_t all[] = {
        { &f->embedding, (size_t)g->vocab * g->dim * 2 },
        { (void **)&f->out_norm, g->dim * sizeof(float) },
        { (void **)&f->inv_freq, g->rope_dim / 2 * sizeof(double) },
        { (void **)&f->x, R * g->dim * sizeof(float) },
        { (void **)&f->cs, R * g->rope_dim * sizeof(float) },
        { &f->h, R * g->dim * 2 },
        { &f->qkv, R * (q + 2 * kv) * 2 },
        { &f->q, R * q * 2 },
        { &f->att, R * q * 2 },
        { &f->ff, R * 2 * g->ffn * 2 },
        { &f->act, R * g->ffn * 2 },
        { &f->workspace, WORKSPACE },
        { (void **)&f->logits, O * g->vocab * sizeof(float) },
        { (void **)&f->which, (1 + O) * sizeof(uint32_t) },
        { (void **)&f->top, O * ENGINE_TOP * sizeof(candidate_t) },
        { (void **)&f->staging, f->staging_floats * sizeof(float) },
        { (void **)&f->digest, sizeof(uint64_t) },
    };
    size_t bytes = 0;

    *n_p = sizeof(all) / sizeof(*all);
    memcpy(piece, all, sizeof(all));
    for (size_t i = 0; i < *n_p; i++)
        bytes += (all[i].bytes + 255) / 256 * 256;
    return bytes;
}

static size_t layer_bytes(const engine_t *e)
{
    size_t bytes = 2 * (e->g.dim * sizeof(float) + 256);

    for (int i = 0; i < HEAD; i++)
        bytes += (size_t)e->fw->n[i] * e->fw->k[i] * 2 + 256;
    return bytes;
}

static int allocate(engine_t *e, void **p, size_t bytes)
{
    struct forward *f = e->fw;
    const cudaError_t error = cudaMalloc(p, bytes);

    if (error != cudaSuccess)
        return cuda_fail(e, "device memory", error);
    f->blocks[f->n_blocks++] = *p;
    return 0;
}

/* All of the device memory but the pool and what plans need; before a weight is read. */
static int make_memory(engine_t *e, const engine_options_t *o, int own_head)
{
    struct forward *f = e->fw;
    const engine_geometry_t *g = &e->g;
    piece_t piece[MAX_PIECES];
    size_t n, free_bytes, total, head = own_head ? (size_t)g->vocab * g->dim * 2 : 0;
    const size_t buffers = pieces_of(e, piece, &n), weights = layer_bytes(e) * g->n_layers + head;
    const size_t pool = (o->pool_tokens ? o->pool_tokens : 8192) * (size_t)g->n_layers * 2 * g->n_kv * g->head_dim * 2;
    const double gib = 1.0 / (1 << 30);
    unsigned char *at;

    TRY(e, cudaMemGetInfo(&free_bytes, &total));
    if (o->pool_tokens != DEFT_POOL_FREE && buffers + weights + pool > free_bytes)
        return FAIL(e, "the device has %.1f GiB free: weights take %.1f, the KV of %zu tokens %.1f, buffers %.1f",
                    (double)free_bytes * gib, (double)weights * gib, o->pool_tokens ? o->pool_tokens : 8192,
                    (double)pool * gib, (double)buffers * gib);
    if (!(f->layers = calloc(g->n_layers, sizeof(*f->layers))))
        return FAIL(e, "out of memory");
    if (allocate(e, (void **)&at, buffers) != 0)
        return -1;
    TRY(e, cudaMemset(at, 0, buffers));
    for (size_t i = 0; i < n; i++) {
        *piece[i].p = at;
        at += (piece[i].bytes + 255) / 256 * 256;
    }
    if (allocate(e, (void **)&at, weights) != 0)
        return -1;
    f->head = own_head ? at + layer_bytes(e) * g->n_layers : f->embedding;
    for (uint32_t l = 0; l < g->n_layers; l++) {
        layer_t *y = &f->layers[l];
        for (int i = 0; i < HEAD; i++) {
            y->w[i] = at;
            at += ((size_t)f->n[i] * f->k[i] * 2 + 255) / 256 * 256;
        }
        y->attn_norm = (float *)at;
        at += (g->dim * sizeof(float) + 255) / 256 * 256;
        y->ffn_norm = (float *)at;
        at += (g->dim * sizeof(float) + 255) / 256 * 256;
        e->weight_bytes += layer_bytes(e);
    }
    e->weight_bytes += (size_t)g->vocab * g->dim * 2;
    return 0;
}

static int make_slots(engine_t *e)
{
    struct forward *f = e->fw;

    for (int i = 0; i < N_SLOTS; i++) {
        TRY(e, cudaEventCreate(&f->slot[i].begin));
        TRY(e, cudaEventCreate(&f->slot[i].end));
        TRY(e, cudaMallocHost((void **)&f->slot[i].which, (1 + f->max_outputs) * sizeof(uint32_t)));
        TRY(e, cudaMallocHost((void **)&f->slot[i].top, f->max_outputs * ENGINE_TOP * sizeof(candidate_t)));
    }
    return 0;
}

/* ---- loading ---- */

/* A tensor's rows, through host memory as f32. */
static int load_tensor(engine_t *e, const gguf_tensor_t *t, float *space, void **to)
{
    struct forward *f = e->fw;
    const size_t width = t->dims[0], rows = t->dims[1], step = f->staging_floats / width;

    for (size_t r = 0; r < rows; r += step) {
        const size_t n = rows - r < step ? rows - r : step;
        if (gguf_dequantize(t, r, n, space) != 0)
            return FAIL(e, "tensor %.*s cannot be read", (int)t->name_len, t->name);
        TRY(e, cudaMemcpyAsync(f->staging, space, n * width * sizeof(float), cudaMemcpyHostToDevice, f->stream));
        TRY(e, kernels_convert(&f->at, *to, f->staging, n * width));
        TRY(e, cudaStreamSynchronize(f->stream));
        *to = (char *)*to + n * width * 2;
    }
    return 0;
}

static int load_norm(engine_t *e, const float *from, float *to)
{
    TRY(e, cudaMemcpy(to, from, e->g.dim * sizeof(float), cudaMemcpyHostToDevice));
    return 0;
}

static int load_layer(engine_t *e, uint32_t l, float *space)
{
    static const int matrix[LAYER_MATRICES] = { QKV, QKV, QKV, OUT, GATE_UP, GATE_UP, DOWN };
    const layer_t *y = &e->fw->layers[l];
    const gguf_tensor_t *t[LAYER_MATRICES];
    float *norm[2] = { NULL, NULL };
    void *to = NULL;
    int status = engine_layer_tensors(e, l, t) || engine_layer_norms(e, l, &norm[0], &norm[1]) ||
                 load_norm(e, norm[0], y->attn_norm) || load_norm(e, norm[1], y->ffn_norm) ? -1 : 0;

    for (int i = 0; i < LAYER_MATRICES && status == 0; i++) {
        if (i == 0 || matrix[i] != matrix[i - 1])
            to = y->w[matrix[i]];
        status = load_tensor(e, t[i], space, &to);
    }
    free(norm[0]);
    free(norm[1]);
    return status;
}

static int load_file(engine_t *e, int own_head)
{
    struct forward *f = e->fw;
    float *space = malloc(f->staging_floats * sizeof(float)), *norm = NULL;
    const gguf_tensor_t *embedding = engine_tensor(e, "token_embd.weight", e->g.dim, e->g.vocab);
    const gguf_tensor_t *head = engine_head_tensor(e);
    void *to = f->embedding;
    int status = space ? 0 : FAIL(e, "out of memory");

    if (status != 0 || !embedding || !head || engine_vector(e, "output_norm.weight", e->g.dim, &norm) ||
        load_norm(e, norm, f->out_norm) || load_tensor(e, embedding, space, &to))
        status = -1;
    to = f->head;
    if (status == 0 && own_head)
        status = load_tensor(e, head, space, &to);
    for (uint32_t l = 0; l < e->g.n_layers && status == 0; l++)
        status = load_layer(e, l, space);
    free(space);
    free(norm);
    return status;
}

/* Weights that keep the size of what they multiply, norms of 1. */
static int load_random(engine_t *e, uint64_t seed)
{
    struct forward *f = e->fw;
    float *ones = malloc(e->g.dim * sizeof(float));

    if (!ones)
        return FAIL(e, "out of memory");
    for (uint32_t i = 0; i < e->g.dim; i++)
        ones[i] = 1;
    int status = load_norm(e, ones, f->out_norm);
    for (uint32_t l = 0; l < e->g.n_layers && status == 0; l++) {
        const layer_t *y = &f->layers[l];
        status = load_norm(e, ones, y->attn_norm) || load_norm(e, ones, y->ffn_norm) ? -1 : 0;
        for (int i = 0; i < HEAD && status == 0; i++)
            status = kernels_fill(&f->at, y->w[i], (size_t)f->n[i] * f->k[i], seed + 8 * l + (uint64_t)i + 16,
                                  1 / sqrtf((float)f->k[i]));
    }
    free(ones);
    TRY(e, kernels_fill(&f->at, f->embedding, (size_t)e->g.vocab * e->g.dim, seed, 1));
    if (f->head != f->embedding)
        TRY(e, kernels_fill(&f->at, f->head, (size_t)e->g.vocab * e->g.dim, seed + 1, 1 / sqrtf((float)e->g.dim)));
    TRY(e, cudaStreamSynchronize(f->stream));
    return status == 0 ? 0 : FAIL(e, "the weights cannot be filled");
}

/* ---- products ---- */

static cudaDataType_t type_of(const struct forward *f)
{
    return f->at.bf16 ? CUDA_R_16BF : CUDA_R_16F;
}

/* The residual takes OUT and DOWN in f32 and adds them; logits are f32. */
static int is_float(int kind)
{
    return kind == OUT || kind == DOWN || kind == HEAD;
}

/* Column-major is the transpose: y^T [n][rows] = w^T x^T. */
static cublasStatus_t multiply_with(struct forward *f, int kind, const product_t *p, const cublasLtMatmulAlgo_t *algo,
                                    const void *w, const void *x, void *y)
{
    const float one = 1, beta = kind == OUT || kind == DOWN ? 1 : 0;

    return cublasLtMatmul(f->lt, f->desc, &one, w, p->w, x, p->x, &beta, y, p->y, y, p->y, algo, f->workspace, WORKSPACE,
                          f->stream);
}

static const void *input_of(const struct forward *f, int kind)
{
    return kind == OUT ? f->att : kind == DOWN ? f->act : f->h;
}

static void *output_of(const struct forward *f, int kind)
{
    return kind == QKV ? f->qkv : kind == GATE_UP ? f->ff : kind == HEAD ? (void *)f->logits : (void *)f->x;
}

static const void *weights_of(const engine_t *e, int kind, uint32_t l)
{
    return kind == HEAD ? e->fw->head : e->fw->layers[l].w[kind];
}

/* Time an algorithm over the weights of several layers, which the L2 does not hold all of. */
static int time_algo(engine_t *e, int kind, const product_t *p, const cublasLtMatmulAlgo_t *algo, float *ms_p)
{
    struct forward *f = e->fw;
    slot_t *s = &f->slot[0];
    const uint32_t n = e->g.n_layers < 8 ? e->g.n_layers : 8;

    *ms_p = INFINITY;
    for (int rep = 0; rep < 3; rep++) {
        float ms;
        TRY(e, cudaEventRecord(s->begin, f->stream));
        for (uint32_t l = 0; l < n; l++)
            if (multiply_with(f, kind, p, algo, weights_of(e, kind, l), input_of(f, kind), output_of(f, kind)) !=
                CUBLAS_STATUS_SUCCESS)
                return 0; /* this one does not do it */
        TRY(e, cudaEventRecord(s->end, f->stream));
        TRY(e, cudaEventSynchronize(s->end));
        TRY(e, cudaEventElapsedTime(&ms, s->begin, s->end));
        *ms_p = ms < *ms_p ? ms : *ms_p;
    }
    return 0;
}

/* A digest of what an algorithm makes of given inputs. */
static int digest_algo(engine_t *e, int kind, uint32_t rows, const product_t *p, const cublasLtMatmulAlgo_t *algo,
                       uint64_t *digest_p)
{
    struct forward *f = e->fw;
    const size_t y = (size_t)rows * f->n[kind] * (is_float(kind) ? 4 : 2);

    TRY(e, cudaMemsetAsync(output_of(f, kind), 0, y, f->stream));
    TRY(e, cudaMemsetAsync(f->digest, 0, sizeof(uint64_t), f->stream));
    *digest_p = 0;
    if (multiply_with(f, kind, p, algo, weights_of(e, kind, 0), input_of(f, kind), output_of(f, kind)) !=
        CUBLAS_STATUS_SUCCESS)
        return 0;
    TRY(e, kernels_digest(&f->at, f->digest, output_of(f, kind), y / 4));
    TRY(e, cudaMemcpyAsync(digest_p, f->digest, sizeof(*digest_p), cudaMemcpyDeviceToHost, f->stream));
    TRY(e, cudaStreamSynchronize(f->stream));
    return 0;
}

/* The fastest of cuBLASLt's proposals that give the bits of the first: which one wins may differ from
 * process to process, what it computes does not. */
static int tune_product(engine_t *e, int kind, uint32_t size)
{
    struct forward *f = e->fw;
    product_t *p = &f->product[kind][size];
    const uint32_t rows = sizes[size];
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[N_ALGOS];
    uint64_t first = 0, digest;
    float best = INFINITY, ms;
    int n = 0;

    TRY_LT(e, cublasLtMatrixLayoutCreate(&p->w, type_of(f), f->k[kind], f->n[kind], f->k[kind]));
    TRY_LT(e, cublasLtMatrixLayoutCreate(&p->x, type_of(f), f->k[kind], rows, f->k[kind]));
    TRY_LT(e, cublasLtMatrixLayoutCreate(&p->y, is_float(kind) ? CUDA_R_32F : type_of(f), f->n[kind], rows, f->n[kind]));
    TRY_LT(e, cublasLtMatmulPreferenceCreate(&preference));
    TRY_LT(e, cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE,
                                                   sizeof(WORKSPACE)));
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(f->lt, f->desc, p->w, p->x, p->y, p->y, preference,
                                                                 N_ALGOS, found, &n);
    (void)cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || n == 0)
        return FAIL(e, "cuBLASLt has no product of %u x %u by %u", rows, f->k[kind], f->n[kind]);
    TRY(e, kernels_fill(&f->at, (void *)input_of(f, kind), (size_t)rows * f->k[kind], 7, 1));
    p->algo = found[0].algo;
    for (int i = 0; i < n && rows <= 256; i++) {
        if (digest_algo(e, kind, rows, p, &found[i].algo, &digest) != 0 || time_algo(e, kind, p, &found[i].algo, &ms) != 0)
            return -1;
        first = i == 0 ? digest : first;
        if (digest == first && ms < best) {
            best = ms;
            p->algo = found[i].algo;
        }
    }
    p->ready = 1;
    return 0;
}

static int multiply(engine_t *e, int kind, uint32_t l, uint32_t size)
{
    struct forward *f = e->fw;
    const product_t *p = &f->product[kind][size];

    TRY_LT(e, multiply_with(f, kind, p, &p->algo, weights_of(e, kind, l), input_of(f, kind), output_of(f, kind)));
    return 0;
}

/* ---- a pass ---- */

enum { WHOLE = ENGINE_PRODUCTS | ENGINE_ATTENTION | ENGINE_REST };

static int attend(engine_t *e, deft_step_t *step, uint32_t l)
{
    struct forward *f = e->fw;

    TRY_DEFT(e, deft_cuda_written(step, l));
    if (f->other.attend)
        return f->other.attend(f->other.arg, l, f->q, f->att) == 0 ? 0 : FAIL(e, "the other attention failed");
    TRY_DEFT(e, deft_step_attend(step, l, f->q, f->att));
    return 0;
}

static int put_layer(engine_t *e, deft_step_t *step, uint32_t l, uint32_t rows, unsigned parts)
{
    struct forward *f = e->fw;
    const engine_geometry_t *g = &e->g;
    const uint32_t size = size_index(rows);
    const size_t plane = f->view.pool_tokens * g->head_dim;
    const int rest = (parts & ENGINE_REST) != 0, products = (parts & ENGINE_PRODUCTS) != 0;
    char *k = (char *)f->view.pool + 2 * (size_t)l * g->n_kv * plane * 2;
    const kernels_norm_t norm = { f->view.n_rows, NULL, f->x, f->layers[l].attn_norm, f->h, g->dim, g->eps };
    const kernels_norm_t ffn_norm = { f->view.n_rows, NULL, f->x, f->layers[l].ffn_norm, f->h, g->dim, g->eps };
    const kernels_rope_t rope = { f->view.n_rows, f->view.slots, f->qkv, f->cs, f->q, k, k + g->n_kv * plane * 2, plane,
                                  g->n_q, g->n_kv, g->head_dim, g->rope_dim };
    const kernels_swiglu_t swiglu = { f->view.n_rows, f->ff, f->act, g->ffn };

    if (rest)
        TRY(e, kernels_norm(&f->at, &norm, rows));
    if (products && multiply(e, QKV, l, size) != 0)
        return -1;
    if (rest)
        TRY(e, kernels_rope(&f->at, &rope, rows));
    if ((parts & ENGINE_ATTENTION) && attend(e, step, l) != 0)
        return -1;
    if (products && multiply(e, OUT, l, size) != 0)
        return -1;
    if (rest)
        TRY(e, kernels_norm(&f->at, &ffn_norm, rows));
    if (products && multiply(e, GATE_UP, l, size) != 0)
        return -1;
    if (rest)
        TRY(e, kernels_swiglu(&f->at, &swiglu, rows));
    return products ? multiply(e, DOWN, l, size) : 0;
}

/* All launches of a pass: for up to `rows` rows, and outputs of up to `outputs` of them. */
static int put_pass(engine_t *e, deft_step_t *step, uint32_t rows, uint32_t outputs, uint32_t k, unsigned parts)
{
    struct forward *f = e->fw;
    const engine_geometry_t *g = &e->g;
    const kernels_embed_t embed = { f->view.n_rows, f->view.ids, f->view.positions, f->embedding, f->inv_freq, f->x,
                                    f->cs, g->dim, g->rope_dim };
    const kernels_norm_t norm = { f->which, f->which + 1, f->x, f->out_norm, f->h, g->dim, g->eps };
    const kernels_top_t top = { f->which, f->logits, f->top, g->vocab, k };

    if (parts & ENGINE_REST)
        TRY(e, kernels_embed(&f->at, &embed, rows));
    for (uint32_t l = 0; l < g->n_layers; l++)
        if (put_layer(e, step, l, rows, parts) != 0)
            return -1;
    if (outputs > 0 && (parts & ENGINE_REST))
        TRY(e, kernels_norm(&f->at, &norm, outputs));
    if (outputs > 0 && (parts & ENGINE_PRODUCTS) && multiply(e, HEAD, 0, size_index(outputs)) != 0)
        return -1;
    if (outputs > 0 && k > 0 && (parts & ENGINE_REST))
        TRY(e, kernels_top(&f->at, &top, outputs));
    return 0;
}

static int capture(engine_t *e, deft_step_t *step, graph_t *g)
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
    TRY(e, cudaGraphUpload(g->exec, f->stream)); /* what it takes of the device it takes now */
    return 0;
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

/* The graph for this step, captured if it is the first of its kind. */
static int graph_for(engine_t *e, deft_step_t *step, size_t n, const engine_output_t *out, unsigned parts, uint64_t name,
                     cudaGraphExec_t *exec_p)
{
    struct forward *f = e->fw;
    const uint32_t rows = sizes[size_index(n)], outputs = out->n > 0 ? sizes[size_index(out->n)] : 0;

    for (uint32_t i = 0; i < f->n_graphs; i++) {
        const graph_t *g = &f->graph[i];
        if (g->exec && g->rows == rows && g->outputs == outputs && g->k == out->k && g->parts == parts && g->name == name) {
            *exec_p = g->exec;
            return 0;
        }
    }
    for (int kind = 0; kind < KINDS; kind++) {
        const uint32_t size = size_index(kind == HEAD ? outputs : rows);
        if ((kind < HEAD || outputs > 0) && !f->product[kind][size].ready && tune_product(e, kind, size) != 0)
            return -1;
    }
    if (f->n_graphs == N_GRAPHS)
        (void)cudaStreamSynchronize(f->stream);
    const uint32_t at = f->n_graphs < N_GRAPHS ? f->n_graphs : f->next_graph++ % N_GRAPHS;
    drop_graph(f, at);
    f->graph[at] = (graph_t){ rows, outputs, (uint32_t)out->k, parts, name, NULL };
    if (capture(e, step, &f->graph[at]) != 0)
        return -1;
    f->n_graphs += at == f->n_graphs;
    *exec_p = f->graph[at].exec;
    return 0;
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
    TRY(e, cudaMemcpyAsync(f->which, s->which, (1 + out->n) * sizeof(uint32_t), cudaMemcpyHostToDevice, f->stream));
    return 0;
}

static int fetch(engine_t *e, const slot_t *s)
{
    struct forward *f = e->fw;
    const engine_output_t *out = &s->out;

    if (out->k > 0)
        TRY(e, cudaMemcpyAsync(s->top, f->top, out->n * out->k * sizeof(*s->top), cudaMemcpyDeviceToHost, f->stream));
    if (out->logits && out->n > 0)
        TRY(e, cudaMemcpyAsync(out->logits, f->logits, out->n * e->g.vocab * sizeof(float), cudaMemcpyDeviceToHost,
                               f->stream));
    return 0;
}

static int cuda_run(engine_t *e, deft_step_t *step, const engine_output_t *out)
{
    struct forward *f = e->fw;
    const size_t n = deft_step_tokens(step);
    cudaGraphExec_t exec;

    if (n > f->max_rows || out->n > f->max_outputs)
        return FAIL(e, "%zu rows and %zu outputs: at most %zu and %zu were asked for", n, out->n, f->max_rows,
                    f->max_outputs);
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
static int prepare_with(engine_t *e, deft_step_t *step, size_t rows, size_t k)
{
    struct forward *f = e->fw;
    const uint32_t last = size_index(rows < f->max_rows ? rows : f->max_rows);
    const engine_output_t none = { 0 };
    cudaGraphExec_t exec;

    for (uint32_t i = 0; i < N_SIZES && sizes[i] <= f->max_rows; i++) {
        const engine_output_t out = { .n = sizes[i] < f->max_outputs ? sizes[i] : f->max_outputs, .k = k };
        if (i <= last && graph_for(e, step, sizes[i], &out, WHOLE, 0, &exec) != 0)
            return -1;
        if (graph_for(e, step, sizes[i], &none, WHOLE, 0, &exec) != 0)
            return -1;
    }
    return 0;
}

static int cuda_prepare(engine_t *e, size_t rows, size_t k)
{
    const int32_t id = 0;
    deft_tree_t *tree;
    deft_step_t *step;
    int status = -1;

    if (k > ENGINE_TOP || k > e->g.vocab)
        return FAIL(e, "%zu candidates of %u, and at most %d", k, e->g.vocab, ENGINE_TOP);
    if (engine_wait(e) != 0)
        return -1;
    TRY_DEFT(e, deft_tree_create(e->ctx, &tree));
    const deft_rows_t row = { tree, deft_tree_root(tree), 1 };
    if (deft_tree_append(tree, row.node, 1, &id) != DEFT_OK || deft_step_begin(e->ctx, &row, 1, 0, &step) != DEFT_OK) {
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

static int make_context(engine_t *e, const engine_options_t *o)
{
    struct forward *f = e->fw;

    if (engine_context(e, o, DEFT_DEVICE_CUDA, 0) != 0)
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
    if (g->dim % 8 != 0 || g->dim > 16384 || g->ffn % 8 != 0 || g->head_dim % 8 != 0 || g->rope_dim % 8 != 0)
        return FAIL(e, "width %u, ffn %u, heads of %u, %u of them rotated: CUDA needs multiples of 8", g->dim, g->ffn,
                    g->head_dim, g->rope_dim);
    if (e->fw->max_rows > sizes[N_SIZES - 1] || e->fw->max_outputs > e->fw->max_rows)
        return FAIL(e, "%zu rows of %u, %zu outputs", e->fw->max_rows, sizes[N_SIZES - 1], e->fw->max_outputs);
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
    f->max_outputs = o->max_outputs ? sizes[size_index(o->max_outputs)] : f->max_rows < 128 ? f->max_rows : 128;
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
    TRY_LT(e, cublasLtMatmulDescSetAttribute(f->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
    const int own_head = !e->file || gguf_tensor(e->file, "output.weight") != NULL;
    if (make_memory(e, o, own_head) != 0 || make_slots(e) != 0 || make_context(e, o) != 0)
        return -1;
    TRY(e, cudaMemcpy(f->inv_freq, e->inv_freq, g->rope_dim / 2 * sizeof(double), cudaMemcpyHostToDevice));
    return e->file ? load_file(e, own_head) : load_random(e, o->seed);
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
    for (int kind = 0; kind < KINDS; kind++)
        for (int i = 0; i < N_SIZES; i++) {
            product_t *p = &f->product[kind][i];
            cublasLtMatrixLayout_t layout[3] = { p->w, p->x, p->y };
            for (int j = 0; j < 3; j++)
                if (layout[j])
                    (void)cublasLtMatrixLayoutDestroy(layout[j]);
        }
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

const forward_ops_t forward_cuda = { .open = cuda_open, .close = cuda_close, .run = cuda_run, .collect = cuda_collect,
                                     .grow = cuda_grow, .prepare = cuda_prepare };

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
    deft_step_t *step;
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
    const int status = n > f->max_rows ? FAIL(e, "%zu rows", n) :
                       ask(e, &f->slot[f->oldest], &out) || graph_for(e, step, n, &out, parts, name, &exec) ? -1 :
                       time_graph(e, exec, reps, seconds_p);
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
