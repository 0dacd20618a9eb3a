/* SPDX-License-Identifier: MIT */
/* The mask is made from who wrote each slot: a row sees a slot of the pool if its node is on the row's
 * path and its token no later one. KV is the pool up to the last slot in use, as it lies: the pool is
 * sized for the search. */
#include "bench_unfused.h"

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>

extern "C" {
#include "bench.h"
}
#include "deft/cuda.h"

#define GPU(_call)                                                                                    \
    do {                                                                                              \
        const cudaError_t error_ = (_call);                                                           \
        if (error_ != cudaSuccess)                                                                    \
            bench_die("%s:%d: %s: %s", __FILE__, __LINE__, #_call, cudaGetErrorString(error_));       \
    } while (0)

enum { NODES = 4096, TILE = 256, NOBODY = 0, EVERYBODY = 1 };

struct unfused {
    engine_t *e;
    const deft_tree_t *tree;
    bool bf16;
    deft_cuda_view_t view;
    cublasHandle_t blas;
    size_t max_rows, high; /* slots in use reach up to here */
    uint32_t tokens;       /* of this step's products: high, rounded up */
    uint32_t rows;
    void *q, *s, *o, *workspace;
    uint32_t *owner;       /* [pool_tokens] number of the node that wrote a slot, with its position */
    int32_t *pos;
    uint8_t *mask;         /* [max_rows][tokens], made once a step */
    uint8_t *sees;         /* [max_rows][NODES] on the device, */
    uint8_t *sees_host;    /* and pinned, with the rows' node numbers behind it */
    uint32_t *row_node, *slots_host;
    bool drafts;
    uint32_t *before;      /* of the last step's rows, the slots; how many; where they began */
    uint32_t n_before;
    int32_t began;
    deft_node_t key[2 * NODES]; /* node handles, hashed, */
    uint32_t number[2 * NODES]; /* and their numbers */
    uint32_t n_nodes;
};

namespace {

const size_t WORKSPACE = (size_t)64 << 20;

__global__ void own_kernel(uint32_t *owner, int32_t *pos, const uint32_t *slots, const uint32_t *node,
                           const int32_t *positions, const uint32_t *n_rows)
{
    const uint32_t r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < *n_rows) {
        owner[slots[r]] = node[r];
        pos[slots[r]] = positions[r];
    }
}

/* What became of the rows of the last step: the first few are everybody's, the others are gone. */
__global__ void keep_kernel(uint32_t *owner, int32_t *pos, const uint32_t *before, uint32_t n, uint32_t kept)
{
    const uint32_t r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < n) {
        owner[before[r]] = r < kept ? EVERYBODY : NOBODY;
        pos[before[r]] = 0;
    }
}

/* mask [rows][n]: does the row see the slot? */
__global__ void mask_kernel(uint8_t *mask, const uint8_t *sees, const uint32_t *owner, const int32_t *pos,
                            const int32_t *positions, uint32_t n)
{
    const uint32_t r = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        mask[(size_t)r * n + i] = sees[(size_t)r * NODES + owner[i]] && pos[i] <= positions[r];
}

/* [rows][Hkv][G][D] to [Hkv][rows][G][D], or back. */
template <bool BACK> __global__ void turn_kernel(uint4 *to, const uint4 *from, uint32_t rows, uint32_t Hkv, uint32_t width)
{
    const uint32_t r = blockIdx.x, h = blockIdx.y;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x) {
        const size_t a = ((size_t)r * Hkv + h) * width + i, b = ((size_t)h * rows + r) * width + i;
        if (BACK)
            to[a] = from[b];
        else
            to[b] = from[a];
    }
}

__device__ float2 get(const __half2 v) { return __half22float2(v); }
__device__ float2 get(const __nv_bfloat162 v) { return __bfloat1622float2(v); }
__device__ void put(__half2 *p, float a, float b) { *p = __floats2half2_rn(a, b); }
__device__ void put(__nv_bfloat162 *p, float a, float b) { *p = __floats2bfloat162_rn(a, b); }

/* A block a row and head: s [Hkv][rows * G][n] becomes its weights: read twice, written once. 256
 * threads, eight scores each at a time; n is a multiple of 8. */
template <typename T2>
__global__ void __launch_bounds__(256) softmax_kernel(T2 *s, const uint8_t *mask, uint32_t G, uint32_t n)
{
    __shared__ float2 space[8];
    const uint32_t m = blockIdx.x, r = m / G, lane = threadIdx.x % 32;
    uint4 *row = (uint4 *)(s + ((size_t)blockIdx.y * gridDim.x + m) * (n / 2));
    const uint2 *sees = (const uint2 *)(mask + (size_t)r * n);
    float top = -INFINITY, sum = 0;
    for (uint32_t i = threadIdx.x; i < n / 8; i += 256) {
        const uint2 w = sees[i];
        uint4 v = row[i];
        if ((w.x | w.y) == 0)
            continue;
        float x[8], most = top;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 p = get(((const T2 *)&v)[j]);
            const uint32_t b = j < 2 ? w.x >> (16 * j) : w.y >> (16 * (j - 2));
            x[2 * j] = b & 255 ? p.x : -INFINITY;
            x[2 * j + 1] = b & 65280 ? p.y : -INFINITY;
            most = fmaxf(most, fmaxf(x[2 * j], x[2 * j + 1]));
        }
        sum *= __expf(top - most);
        top = most;
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += __expf(x[j] - top);
    }
    for (int d = 16; d > 0; d /= 2) {
        const float top2 = __shfl_xor_sync(~0u, top, d), sum2 = __shfl_xor_sync(~0u, sum, d), most = fmaxf(top, top2);
        sum = most == -INFINITY ? 0 : sum * __expf(top - most) + sum2 * __expf(top2 - most);
        top = most;
    }
    if (lane == 0)
        space[threadIdx.x / 32] = make_float2(top, sum);
    __syncthreads();
    top = -INFINITY;
    sum = 0;
    for (int i = 0; i < 8; i++)
        top = fmaxf(top, space[i].x);
    for (int i = 0; i < 8; i++)
        sum += space[i].y * __expf(space[i].x - top);
    const float by = 1 / sum;
    for (uint32_t i = threadIdx.x; i < n / 8; i += 256) {
        const uint2 w = sees[i];
        uint4 v = make_uint4(0, 0, 0, 0);
        if ((w.x | w.y) != 0) {
            v = row[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float2 p = get(((const T2 *)&v)[j]);
                const uint32_t b = j < 2 ? w.x >> (16 * j) : w.y >> (16 * (j - 2));
                put(&((T2 *)&v)[j], b & 255 ? __expf(p.x - top) * by : 0, b & 65280 ? __expf(p.y - top) * by : 0);
            }
        }
        row[i] = v;
    }
}

uint32_t number_of(unfused *u, deft_node_t node, bool make)
{
    uint32_t i = (uint32_t)(node * 0x9e3779b97f4a7c15u >> 40) % (2 * NODES);
    while (u->key[i] != DEFT_NODE_NONE && u->key[i] != node)
        i = (i + 1) % (2 * NODES);
    if (u->key[i] == DEFT_NODE_NONE && make) {
        if (u->n_nodes == NODES - 1)
            bench_die("unfused: more than %d nodes", NODES - 1);
        u->key[i] = node;
        u->number[i] = ++u->n_nodes;
    }
    return u->key[i] == node ? u->number[i] : NODES - 1;
}

void forget_nodes(unfused *u)
{
    for (uint32_t i = 0; i < 2 * NODES; i++)
        u->key[i] = DEFT_NODE_NONE;
    u->n_nodes = EVERYBODY;
}

uint64_t begin(void *arg, deft_step_t *step)
{
    unfused *u = (unfused *)arg;
    const deft_node_t *nodes = deft_step_nodes(step);
    u->rows = (uint32_t)deft_step_tokens(step);
    if (u->rows > u->max_rows)
        bench_die("unfused: %u rows", u->rows);
    GPU(cudaMemcpyAsync(u->slots_host, u->view.slots, u->rows * sizeof(uint32_t), cudaMemcpyDeviceToHost, u->view.stream));
    GPU(cudaStreamSynchronize(u->view.stream)); /* the pinned buffers are free, too */
    const int32_t start = deft_step_positions(step)[0];
    if (u->drafts && u->n_before > 0 && start != u->began) {
        keep_kernel<<<(u->n_before + 255) / 256, 256, 0, u->view.stream>>>(u->owner, u->pos, u->before, u->n_before,
                                                                           (uint32_t)(start - u->began));
        forget_nodes(u); /* of the last draft */
    }
    memset(u->sees_host, 0, u->rows * (size_t)NODES);
    uint32_t *row_node = (uint32_t *)(u->sees_host + u->max_rows * (size_t)NODES);
    for (uint32_t r = 0; r < u->rows; r++) {
        u->high = u->slots_host[r] >= u->high ? u->slots_host[r] + 1 : u->high;
        row_node[r] = number_of(u, nodes[r], true);
        for (deft_node_t n = nodes[r]; n != DEFT_NODE_NONE; n = deft_tree_parent(u->tree, n))
            u->sees_host[(size_t)r * NODES + number_of(u, n, true)] = 1;
        u->sees_host[(size_t)r * NODES + EVERYBODY] = 1;
    }
    GPU(cudaMemcpyAsync(u->sees, u->sees_host, u->rows * (size_t)NODES, cudaMemcpyHostToDevice, u->view.stream));
    GPU(cudaMemcpyAsync(u->row_node, row_node, u->rows * sizeof(uint32_t), cudaMemcpyHostToDevice, u->view.stream));
    own_kernel<<<(u->rows + 255) / 256, 256, 0, u->view.stream>>>(u->owner, u->pos, u->view.slots, u->row_node,
                                                                  u->view.positions, u->view.n_rows);
    GPU(cudaMemcpyAsync(u->before, u->view.slots, u->rows * sizeof(uint32_t), cudaMemcpyDeviceToDevice, u->view.stream));
    u->n_before = u->rows;
    u->began = start;
    GPU(cudaGetLastError());
    u->tokens = (uint32_t)((u->high + TILE - 1) / TILE * TILE);
    if (u->tokens > u->view.pool_tokens)
        u->tokens = (uint32_t)u->view.pool_tokens / 8 * 8;
    if (u->tokens < u->high)
        bench_die("unfused: the pool's last slots are in use");
    mask_kernel<<<dim3((u->tokens + 255) / 256, u->rows), 256, 0, u->view.stream>>>(u->mask, u->sees, u->owner, u->pos,
                                                                                  u->view.positions, u->tokens);
    return (uint64_t)u->rows << 32 | u->tokens;
}

int attend(void *arg, uint32_t layer, const void *q, void *o)
{
    unfused *u = (unfused *)arg;
    const engine_geometry_t *g = engine_geometry(u->e);
    const uint32_t Hkv = g->n_kv, G = g->n_q / g->n_kv, D = g->head_dim, rows = u->rows, n = u->tokens, width = G * D / 8;
    const int m = (int)(rows * G);
    const size_t plane = u->view.pool_tokens * D;
    const char *k = (const char *)u->view.pool + 2 * (size_t)layer * Hkv * plane * 2, *v = k + Hkv * plane * 2;
    const cudaDataType_t type = u->bf16 ? CUDA_R_16BF : CUDA_R_16F;
    const float scale = 1 / sqrtf((float)D), one = 1, zero = 0;
    turn_kernel<false><<<dim3(rows, Hkv), 128, 0, u->view.stream>>>((uint4 *)u->q, (const uint4 *)q, rows, Hkv, width);
    if (cublasGemmStridedBatchedEx(u->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)n, m, (int)D, &scale, k, type, (int)D, (long long)plane,
                                   u->q, type, (int)D, (long long)m * D, &zero, u->s, type, (int)n, (long long)m * n, (int)Hkv,
                                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        return -1;
    if (u->bf16)
        softmax_kernel<<<dim3((unsigned)m, Hkv), 256, 0, u->view.stream>>>((__nv_bfloat162 *)u->s, u->mask, G, n);
    else
        softmax_kernel<<<dim3((unsigned)m, Hkv), 256, 0, u->view.stream>>>((__half2 *)u->s, u->mask, G, n);
    if (cublasGemmStridedBatchedEx(u->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)D, m, (int)n, &one, v, type, (int)D, (long long)plane, u->s,
                                   type, (int)n, (long long)m * n, &zero, u->o, type, (int)D, (long long)m * D, (int)Hkv,
                                   CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        return -1;
    turn_kernel<true><<<dim3(rows, Hkv), 128, 0, u->view.stream>>>((uint4 *)o, (const uint4 *)u->o, rows, Hkv, width);
    return cudaGetLastError() == cudaSuccess ? 0 : -1;
}

} // namespace

extern "C" unfused_t *unfused_create(engine_t *e, int bf16, size_t max_rows)
{
    const engine_geometry_t *g = engine_geometry(e);
    unfused *u = (unfused *)bench_alloc(sizeof(*u));
    memset(u, 0, sizeof(*u));
    u->e = e;
    u->bf16 = bf16 != 0;
    u->max_rows = max_rows;
    u->view.struct_size = sizeof(u->view);
    BENCH_CHECK(engine_ctx(e), deft_cuda_view(engine_ctx(e), &u->view));
    const size_t q = max_rows * g->n_q * g->head_dim * 2, pool = u->view.pool_tokens;
    GPU(cudaMalloc(&u->q, q));
    GPU(cudaMalloc(&u->o, q));
    GPU(cudaMalloc(&u->s, max_rows * g->n_q * (pool + TILE) * 2));
    GPU(cudaMalloc(&u->workspace, WORKSPACE));
    GPU(cudaMalloc((void **)&u->owner, pool * sizeof(uint32_t)));
    GPU(cudaMalloc((void **)&u->pos, pool * sizeof(int32_t)));
    GPU(cudaMalloc((void **)&u->before, max_rows * sizeof(uint32_t)));
    GPU(cudaMalloc((void **)&u->mask, max_rows * (pool + TILE)));
    GPU(cudaMalloc((void **)&u->sees, max_rows * NODES));
    GPU(cudaMalloc((void **)&u->row_node, max_rows * sizeof(uint32_t)));
    GPU(cudaMallocHost((void **)&u->sees_host, max_rows * (NODES + sizeof(uint32_t))));
    GPU(cudaMallocHost((void **)&u->slots_host, max_rows * sizeof(uint32_t)));
    /* slots that nobody has written yet are multiplied by weights of 0 */
    GPU(cudaMemset(u->view.pool, 0, (size_t)g->n_layers * 2 * g->n_kv * pool * g->head_dim * 2));
    if (cublasCreate(&u->blas) != CUBLAS_STATUS_SUCCESS || cublasSetStream(u->blas, u->view.stream) != CUBLAS_STATUS_SUCCESS ||
        cublasSetWorkspace(u->blas, u->workspace, WORKSPACE) != CUBLAS_STATUS_SUCCESS)
        bench_die("cuBLAS cannot be set up");
    return u;
}

extern "C" void unfused_destroy(unfused_t *u)
{
    if (u == NULL)
        return;
    cublasDestroy(u->blas);
    cudaFree(u->q);
    cudaFree(u->o);
    cudaFree(u->s);
    cudaFree(u->workspace);
    cudaFree(u->owner);
    cudaFree(u->pos);
    cudaFree(u->before);
    cudaFree(u->mask);
    cudaFree(u->sees);
    cudaFree(u->row_node);
    cudaFreeHost(u->sees_host);
    cudaFreeHost(u->slots_host);
    free(u);
}

extern "C" void unfused_begin(unfused_t *u, const deft_tree_t *tree, int drafts)
{
    u->tree = tree;
    u->drafts = drafts != 0;
    u->high = 0;
    u->n_before = 0;
    forget_nodes(u);
    GPU(cudaDeviceSynchronize());
    GPU(cudaMemset(u->owner, 0, u->view.pool_tokens * sizeof(uint32_t)));
    GPU(cudaMemset(u->pos, 0, u->view.pool_tokens * sizeof(int32_t)));
}

extern "C" void unfused_prompt(unfused_t *u, size_t rows)
{
    uint32_t *slots = (uint32_t *)bench_alloc(rows * sizeof(*slots));
    keep_kernel<<<(unsigned)(rows + 255) / 256, 256, 0, u->view.stream>>>(u->owner, u->pos, u->view.slots, (uint32_t)rows,
                                                                         (uint32_t)rows);
    GPU(cudaMemcpyAsync(slots, u->view.slots, rows * sizeof(*slots), cudaMemcpyDeviceToHost, u->view.stream));
    GPU(cudaStreamSynchronize(u->view.stream));
    for (size_t i = 0; i < rows; i++)
        u->high = slots[i] >= u->high ? slots[i] + 1 : u->high;
    free(slots);
}

extern "C" engine_attention_t unfused_attention(unfused_t *u)
{
    const engine_attention_t hook = { begin, attend, u };
    return hook;
}
