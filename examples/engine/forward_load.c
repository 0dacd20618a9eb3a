/* SPDX-License-Identifier: MIT */
/* The forward pass on CUDA: device memory, and the weights in it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "forward_cuda.h"

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

int forward_make_memory(engine_t *e, const engine_options_t *o, int own_head)
{
    struct forward *f = e->fw;
    const engine_geometry_t *g = &e->g;
    piece_t piece[MAX_PIECES];
    size_t n, free_bytes, total, head = own_head ? (size_t)g->vocab * g->dim * 2 : 0;
    const size_t buffers = pieces_of(e, piece, &n), weights = layer_bytes(e) * g->n_layers + head;
    const size_t pool = (o->pool_tokens ? o->pool_tokens : 8192) * (size_t)g->n_layers * 2 *
                        g->n_kv * g->head_dim * 2;
    const double gib = 1.0 / (1 << 30);
    unsigned char *at;

    TRY(e, cudaMemGetInfo(&free_bytes, &total));
    if (o->pool_tokens != DEFT_POOL_FREE && buffers + weights + pool > free_bytes)
        return FAIL(e,
                    "the device has %.1f GiB free: weights take %.1f, the KV of %zu tokens %.1f, "
                    "buffers %.1f",
                    (double)free_bytes * gib, (double)weights * gib,
                    o->pool_tokens ? o->pool_tokens : 8192, (double)pool * gib,
                    (double)buffers * gib);
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
        TRY(e, cudaMemcpyAsync(f->staging, space, n * width * sizeof(float), cudaMemcpyHostToDevice,
                               f->stream));
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
                         load_norm(e, norm[0], y->attn_norm) || load_norm(e, norm[1], y->ffn_norm)
                     ? -1
                     : 0;

    for (int i = 0; i < LAYER_MATRICES && status == 0; i++) {
        if (i == 0 || matrix[i] != matrix[i - 1])
            to = y->w[matrix[i]];
        status = load_tensor(e, t[i], space, &to);
    }
    free(norm[0]);
    free(norm[1]);
    return status;
}

int forward_load_file(engine_t *e, int own_head)
{
    struct forward *f = e->fw;
    float *space = malloc(f->staging_floats * sizeof(float)), *norm = NULL;
    const gguf_tensor_t *embedding = engine_tensor(e, "token_embd.weight", e->g.dim, e->g.vocab);
    const gguf_tensor_t *head = engine_head_tensor(e);
    void *to = f->embedding;
    int status = space ? 0 : FAIL(e, "out of memory");

    if (status != 0 || !embedding || !head ||
        engine_vector(e, "output_norm.weight", e->g.dim, &norm) ||
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

int forward_load_random(engine_t *e, uint64_t seed)
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
            status = kernels_fill(&f->at, y->w[i], (size_t)f->n[i] * f->k[i],
                                  seed + 8 * l + (uint64_t)i + 16, 1 / sqrtf((float)f->k[i]));
    }
    free(ones);
    TRY(e, kernels_fill(&f->at, f->embedding, (size_t)e->g.vocab * e->g.dim, seed, 1));
    if (f->head != f->embedding)
        TRY(e, kernels_fill(&f->at, f->head, (size_t)e->g.vocab * e->g.dim, seed + 1,
                            1 / sqrtf((float)e->g.dim)));
    TRY(e, cudaStreamSynchronize(f->stream));
    return status == 0 ? 0 : FAIL(e, "the weights cannot be filled");
}
