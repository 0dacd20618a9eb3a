/* SPDX-License-Identifier: MIT */
/* Between the parts of the forward pass on CUDA: what it has in memory, and what goes wrong. */
#ifndef ENGINE_FORWARD_CUDA_H
#define ENGINE_FORWARD_CUDA_H

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include "deft/cuda.h"
#include "forward.h"
#include "forward_kernels.h"

/* Products of a layer, and the last. */
enum { QKV, OUT, GATE_UP, DOWN, HEAD, KINDS };

/* Rows that graphs are captured for. */
static const uint32_t sizes[] = { 1,   2,   4,   8,   16,  24,  32,   48,   64,  96,
                                  128, 192, 256, 384, 512, 768, 1024, 1536, 2048 };
enum { N_SIZES = sizeof(sizes) / sizeof(*sizes), N_GRAPHS = 96, N_SLOTS = 3 };

static const size_t WORKSPACE = (size_t)64 << 20; /* of cuBLASLt, bytes */

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
    int first; /* nothing of interest ran before */
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

static inline int cuda_fail(engine_t *e, const char *what, cudaError_t error)
{
    (void)cudaGetLastError();
    return FAIL(e, "%s: %s", what, cudaGetErrorString(error));
}

#define TRY(_e, _call)                                   \
    do {                                                 \
        const cudaError_t error_ = (cudaError_t)(_call); \
        if (error_ != cudaSuccess)                       \
            return cuda_fail(_e, #_call, error_);        \
    } while (0)

#define TRY_LT(_e, _call)                                                    \
    do {                                                                     \
        const cublasStatus_t status_ = (_call);                              \
        if (status_ != CUBLAS_STATUS_SUCCESS)                                \
            return FAIL(_e, "%s: cuBLASLt status %d", #_call, (int)status_); \
    } while (0)

#define TRY_DEFT(_e, _call)                                    \
    do {                                                       \
        if ((_call) != DEFT_OK)                                \
            return FAIL(_e, "%s", deft_last_error((_e)->ctx)); \
    } while (0)

/* The first of `sizes` that is as large. */
static inline uint32_t size_index(size_t rows)
{
    uint32_t i = 0;

    while (i + 1 < N_SIZES && sizes[i] < rows)
        i++;
    return i;
}

/* forward_load.c */

/* All of the device memory but the pool and what plans need; before a weight is read. own_head: the
 * last product has a matrix of its own. */
int forward_make_memory(engine_t *e, const engine_options_t *o, int own_head);
int forward_load_file(engine_t *e, int own_head);
/* Weights that keep the size of what they multiply, norms of 1. */
int forward_load_random(engine_t *e, uint64_t seed);

/* forward_products.c */

/* Choose how a product is computed for sizes[size] rows; at once where it is chosen already. */
int forward_tune(engine_t *e, int kind, uint32_t size);
/* The product of layer l in the stream. */
int forward_multiply(engine_t *e, int kind, uint32_t l, uint32_t size);
void forward_free_products(struct forward *f);

#endif
