/* SPDX-License-Identifier: MIT */
/* It keeps K and V in places of its own, [layers][K, V][Hkv][places][D], packed: a new token takes
 * the lowest place that is free, so that products are over little more than the tree. The mask is
 * made from who is in a place: a row sees it if its node is on the row's path and its token no
 * later one. */
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
#include "bench_cuda_error.h"
#include "deft/cuda.h"

enum { NODES = 4096, TILE = 256, NOBODY = 0, EVERYBODY = 1 };

struct unfused {
    engine_t *e;
    const deft_tree_t *tree;
    bool bf16;
    deft_cuda_view_t view;
    cublasHandle_t blas;
    size_t max_rows, places, high; /* places in use reach up to `high` */
    uint32_t tokens;               /* of this step's products: high, rounded up */
    uint32_t rows;
    void *q, *s, *o, *workspace;
    char *kv;
    uint32_t *owner; /* [places] number of the node whose token is there, with its position */
    int32_t *pos;
    uint32_t *owner_host; /* the same on the host; NOBODY: free */
    uint8_t *mask;        /* [max_rows][tokens], made once a step */
    uint8_t *sees;        /* [max_rows][NODES] on the device, */
    uint8_t *sees_host;   /* and pinned, with the rows' node numbers behind it */
    uint32_t *row_node;   /* [max_rows] node numbers, then places, on the device, */
    uint32_t *row_host;   /* and pinned */
    bool drafts;
    uint32_t *before; /* places of the last step's rows; how many; where they began */
    uint32_t n_before;
    int32_t began;
    uint64_t last;
    deft_node_t key[2 * NODES]; /* node handles, hashed, */
    uint32_t number[2 * NODES]; /* and their numbers */
    deft_node_t node[NODES];    /* by number; DEFT_NODE_NONE: it is gone */
    uint32_t n_nodes;
};

namespace {

const size_t WORKSPACE = (size_t)64 << 20;

__global__ void own_kernel(uint32_t *owner, int32_t *pos, const uint32_t *row_node,
                           const uint32_t *place, const int32_t *positions, const uint32_t *n_rows)
{
    const uint32_t r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < *n_rows) {
        owner[place[r]] = row_node[r];
        pos[place[r]] = row_node[r] == EVERYBODY ? 0 : positions[r];
    }
}

/* mask [rows][n]: does the row see the slot? */
__global__ void mask_kernel(uint8_t *mask, const uint8_t *sees, const uint32_t *owner,
                            const int32_t *pos, const int32_t *positions, uint32_t n)
{
    const uint32_t r = blockIdx.y, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        mask[(size_t)r * n + i] = sees[(size_t)r * NODES + owner[i]] && pos[i] <= positions[r];
}

/* Where the step's K and V are, and where they go. Strides in units of 16 bytes. */
struct moves {
    const uint4 *pool;
    uint4 *kv;
    size_t pool_plane, kv_plane;
    const uint32_t *slots, *places;
    uint32_t width;
};

/* A row of K or V of one head: planes are those of the layer, K before V. */
__device__ void move_row(const moves &m, uint32_t r, uint32_t plane)
{
    const uint4 *from = m.pool + plane * m.pool_plane + (size_t)m.slots[r] * m.width;
    uint4 *to = m.kv + plane * m.kv_plane + (size_t)m.places[r] * m.width;
    for (uint32_t i = threadIdx.x; i < m.width; i += blockDim.x)
        to[i] = from[i];
}

/* q: [rows][Hkv][G][D] to [Hkv][rows][G][D]; and the step's K and V into their places. */
__global__ void take_kernel(uint4 *to, const uint4 *from, uint32_t rows, uint32_t Hkv,
                            uint32_t width, const moves m)
{
    const uint32_t r = blockIdx.x, h = blockIdx.y;
    if (h >= Hkv) {
        move_row(m, r, h - Hkv);
        return;
    }
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
        to[((size_t)h * rows + r) * width + i] = from[((size_t)r * Hkv + h) * width + i];
}

__global__ void move_kernel(const moves m)
{
    move_row(m, blockIdx.x, blockIdx.y);
}

/* o: back. */
__global__ void give_kernel(uint4 *to, const uint4 *from, uint32_t rows, uint32_t Hkv,
                            uint32_t width)
{
    const uint32_t r = blockIdx.x, h = blockIdx.y;
    for (uint32_t i = threadIdx.x; i < width; i += blockDim.x)
        to[((size_t)r * Hkv + h) * width + i] = from[((size_t)h * rows + r) * width + i];
}

__device__ float2 get(const __half2 v)
{
    return __half22float2(v);
}
__device__ float2 get(const __nv_bfloat162 v)
{
    return __bfloat1622float2(v);
}
__device__ void put(__half2 *p, float a, float b)
{
    *p = __floats2half2_rn(a, b);
}
__device__ void put(__nv_bfloat162 *p, float a, float b)
{
    *p = __floats2bfloat162_rn(a, b);
}

/* A block a row and head: s [Hkv][rows * G][n] becomes its weights: read twice, written once. 256
 * threads, eight scores each at a time; n is a multiple of 8. */
template <typename T2>
__global__ void __launch_bounds__(256)
    softmax_kernel(T2 *s, const uint8_t *mask, uint32_t G, uint32_t n)
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
        const float top2 = __shfl_xor_sync(~0u, top, d), sum2 = __shfl_xor_sync(~0u, sum, d),
                    most = fmaxf(top, top2);
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
                put(&((T2 *)&v)[j], b & 255 ? __expf(p.x - top) * by : 0,
                    b & 65280 ? __expf(p.y - top) * by : 0);
            }
        }
        row[i] = v;
    }
}

uint32_t number_of(unfused *u, deft_node_t node)
{
    uint32_t i = (uint32_t)(node * 0x9e3779b97f4a7c15u >> 40) % (2 * NODES);
    while (u->key[i] != DEFT_NODE_NONE && u->key[i] != node)
        i = (i + 1) % (2 * NODES);
    if (u->key[i] == DEFT_NODE_NONE) {
        if (u->n_nodes == NODES - 1)
            bench_die("unfused: more than %d nodes", NODES - 1);
        u->key[i] = node;
        u->number[i] = ++u->n_nodes;
        u->node[u->n_nodes] = node;
    }
    return u->number[i];
}

void forget_nodes(unfused *u)
{
    for (uint32_t i = 0; i < 2 * NODES; i++)
        u->key[i] = DEFT_NODE_NONE;
    u->n_nodes = EVERYBODY;
}

/* Places of nodes that were pruned since are free. */
void free_places(unfused *u)
{
    static bool gone[NODES];
    bool any = false;
    for (uint32_t i = EVERYBODY + 1; i <= u->n_nodes; i++) {
        deft_node_info_t info = {};
        info.struct_size = sizeof(info);
        gone[i] = u->node[i] != DEFT_NODE_NONE &&
                  deft_tree_node(u->tree, u->node[i], &info) != DEFT_OK;
        any |= gone[i];
        if (gone[i])
            u->node[i] = DEFT_NODE_NONE;
    }
    for (size_t p = 0; any && p < u->high; p++)
        if (u->owner_host[p] > EVERYBODY && gone[u->owner_host[p]])
            u->owner_host[p] = NOBODY;
}

/* Of the last step over a draft the first few rows stay, everybody's; the places of the others are
 * free. */
void keep_drafts(unfused *u, uint32_t kept)
{
    for (uint32_t r = 0; r < u->n_before; r++)
        u->owner_host[u->before[r]] = r < kept ? EVERYBODY : NOBODY;
    GPU(cudaMemcpyAsync(u->owner, u->owner_host, u->high * sizeof(uint32_t), cudaMemcpyHostToDevice,
                        u->view.stream));
    GPU(cudaMemsetAsync(u->pos, 0, u->high * sizeof(int32_t), u->view.stream));
    forget_nodes(u);
}

/* The lowest free place for each row; the pinned buffers are free. */
void take_places(unfused *u, const uint32_t *numbers, uint32_t rows)
{
    size_t p = 0;
    for (uint32_t r = 0; r < rows; r++, p++) {
        while (p < u->places && u->owner_host[p] != NOBODY)
            p++;
        if (p == u->places)
            bench_die("unfused: no place is free");
        u->owner_host[p] = numbers[r];
        u->row_host[r] = numbers[r];
        u->row_host[u->max_rows + r] = (uint32_t)p;
        u->before[r] = (uint32_t)p;
        u->high = p + 1 > u->high ? p + 1 : u->high;
    }
    while (u->high > 0 && u->owner_host[u->high - 1] == NOBODY)
        u->high--;
    GPU(cudaMemcpyAsync(u->row_node, u->row_host, 2 * u->max_rows * sizeof(uint32_t),
                        cudaMemcpyHostToDevice, u->view.stream));
    own_kernel<<<(rows + 255) / 256, 256, 0, u->view.stream>>>(u->owner, u->pos, u->row_node,
                                                               u->row_node + u->max_rows,
                                                               u->view.positions, u->view.n_rows);
    GPU(cudaGetLastError());
}

moves moves_of(const unfused *u, uint32_t layer)
{
    const engine_geometry_t *g = engine_geometry(u->e);
    const size_t width = g->head_dim / 8, first = 2 * (size_t)layer * g->n_kv;
    const moves m = { (const uint4 *)u->view.pool + first * u->view.pool_tokens * width,
                      (uint4 *)u->kv + first * u->places * width,
                      u->view.pool_tokens * width,
                      u->places * width,
                      u->view.slots,
                      u->row_node + u->max_rows,
                      (uint32_t)width };
    return m;
}

/* Tells steps apart. */
uint64_t key_of(deft_step_t step)
{
    const size_t n = deft_step_tokens(step);
    uint64_t key = n;
    for (size_t r = 0; r < n; r++)
        key = (key ^ deft_step_nodes(step)[r] ^ (uint64_t)deft_step_positions(step)[r] << 40) *
              0x100000001b3u;
    return key;
}

uint64_t begin(void *arg, deft_step_t step)
{
    unfused *u = (unfused *)arg;
    const deft_node_t *nodes = deft_step_nodes(step);
    const int32_t start = deft_step_positions(step)[0];
    uint32_t *numbers;
    u->rows = (uint32_t)deft_step_tokens(step);
    if (u->rows > u->max_rows)
        bench_die("unfused: %u rows", u->rows);
    GPU(cudaStreamSynchronize(u->view.stream)); /* the pinned buffers are free */
    const uint64_t key = key_of(step);
    if (u->n_before > 0 &&
        u->last == key) { /* a step that was timed in parts: its places are taken */
        for (uint32_t r = 0; r < u->n_before; r++)
            u->owner_host[u->before[r]] = NOBODY;
    } else if (u->drafts && u->n_before > 0) {
        keep_drafts(u, (uint32_t)(start - u->began));
    } else {
        free_places(u);
    }
    u->last = key;
    memset(u->sees_host, 0, u->rows * (size_t)NODES);
    numbers = (uint32_t *)bench_alloc(u->rows * sizeof(*numbers));
    for (uint32_t r = 0; r < u->rows; r++) {
        uint8_t *sees = u->sees_host + (size_t)r * NODES;
        numbers[r] = number_of(u, nodes[r]);
        sees[EVERYBODY] = 1;
        for (deft_node_t n = nodes[r]; n != DEFT_NODE_NONE; n = deft_tree_parent(u->tree, n))
            sees[number_of(u, n)] = 1;
    }
    take_places(u, numbers, u->rows);
    free(numbers);
    u->n_before = u->rows;
    u->began = start;
    u->tokens = (uint32_t)((u->high + TILE - 1) / TILE * TILE);
    GPU(cudaMemcpyAsync(u->sees, u->sees_host, u->rows * (size_t)NODES, cudaMemcpyHostToDevice,
                        u->view.stream));
    mask_kernel<<<dim3((u->tokens + 255) / 256, u->rows), 256, 0, u->view.stream>>>(
        u->mask, u->sees, u->owner, u->pos, u->view.positions, u->tokens);
    GPU(cudaGetLastError());
    return (uint64_t)u->rows << 32 | u->tokens;
}

int attend(void *arg, uint32_t layer, const void *q, void *o)
{
    unfused *u = (unfused *)arg;
    const engine_geometry_t *g = engine_geometry(u->e);
    const uint32_t Hkv = g->n_kv, G = g->n_q / g->n_kv, D = g->head_dim, rows = u->rows,
                   n = u->tokens, width = G * D / 8;
    const int m = (int)(rows * G);
    const size_t plane = u->places * D;
    const char *k = u->kv + 2 * (size_t)layer * Hkv * plane * 2, *v = k + Hkv * plane * 2;
    const cudaDataType_t type = u->bf16 ? CUDA_R_16BF : CUDA_R_16F;
    const float scale = 1 / sqrtf((float)D), one = 1, zero = 0;
    take_kernel<<<dim3(rows, 3 * Hkv), 128, 0, u->view.stream>>>(
        (uint4 *)u->q, (const uint4 *)q, rows, Hkv, width, moves_of(u, layer));
    if (cublasGemmStridedBatchedEx(u->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int)n, m, (int)D, &scale, k,
                                   type, (int)D, (long long)plane, u->q, type, (int)D,
                                   (long long)m * D, &zero, u->s, type, (int)n, (long long)m * n,
                                   (int)Hkv, CUBLAS_COMPUTE_32F,
                                   CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        return -1;
    if (u->bf16)
        softmax_kernel<<<dim3((unsigned)m, Hkv), 256, 0, u->view.stream>>>((__nv_bfloat162 *)u->s,
                                                                           u->mask, G, n);
    else
        softmax_kernel<<<dim3((unsigned)m, Hkv), 256, 0, u->view.stream>>>((__half2 *)u->s, u->mask,
                                                                           G, n);
    if (cublasGemmStridedBatchedEx(u->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)D, m, (int)n, &one, v,
                                   type, (int)D, (long long)plane, u->s, type, (int)n,
                                   (long long)m * n, &zero, u->o, type, (int)D, (long long)m * D,
                                   (int)Hkv, CUBLAS_COMPUTE_32F,
                                   CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
        return -1;
    give_kernel<<<dim3(rows, Hkv), 128, 0, u->view.stream>>>((uint4 *)o, (const uint4 *)u->o, rows,
                                                             Hkv, width);
    return cudaGetLastError() == cudaSuccess ? 0 : -1;
}

} // namespace

extern "C" unfused_t *unfused_create(engine_t *e, int bf16, size_t max_rows, size_t places)
{
    const engine_geometry_t *g = engine_geometry(e);
    unfused *u = (unfused *)bench_alloc(sizeof(*u));
    memset(u, 0, sizeof(*u));
    u->e = e;
    u->bf16 = bf16 != 0;
    u->max_rows = max_rows;
    u->view.struct_size = sizeof(u->view);
    BENCH_CHECK(engine_ctx(e), deft_cuda_view(engine_ctx(e), &u->view));
    const size_t q = max_rows * g->n_q * g->head_dim * 2;
    u->places = places / TILE * TILE + 2 * TILE;
    const size_t kv = (size_t)g->n_layers * 2 * g->n_kv * u->places * g->head_dim * 2;
    GPU(cudaMalloc(&u->q, q));
    GPU(cudaMalloc(&u->o, q));
    GPU(cudaMalloc(&u->s, max_rows * g->n_q * u->places * 2));
    GPU(cudaMalloc(&u->workspace, WORKSPACE));
    GPU(cudaMalloc((void **)&u->kv, kv));
    GPU(cudaMalloc((void **)&u->owner, u->places * sizeof(uint32_t)));
    GPU(cudaMalloc((void **)&u->pos, u->places * sizeof(int32_t)));
    GPU(cudaMalloc((void **)&u->mask, max_rows * u->places));
    GPU(cudaMalloc((void **)&u->sees, max_rows * NODES));
    GPU(cudaMalloc((void **)&u->row_node, 2 * max_rows * sizeof(uint32_t)));
    GPU(cudaMallocHost((void **)&u->sees_host, max_rows * NODES));
    GPU(cudaMallocHost((void **)&u->row_host, 2 * max_rows * sizeof(uint32_t)));
    u->before = (uint32_t *)bench_alloc(max_rows * sizeof(uint32_t));
    u->owner_host = (uint32_t *)bench_alloc(u->places * sizeof(uint32_t));
    /* places that nobody has had yet are multiplied by weights of 0 */
    GPU(cudaMemset(u->kv, 0, kv));
    if (cublasCreate(&u->blas) != CUBLAS_STATUS_SUCCESS ||
        cublasSetStream(u->blas, u->view.stream) != CUBLAS_STATUS_SUCCESS ||
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
    cudaFree(u->kv);
    cudaFree(u->owner);
    cudaFree(u->pos);
    cudaFree(u->mask);
    cudaFree(u->sees);
    cudaFree(u->row_node);
    cudaFreeHost(u->sees_host);
    cudaFreeHost(u->row_host);
    free(u->before);
    free(u->owner_host);
    free(u);
}

extern "C" void unfused_begin(unfused_t *u, const deft_tree_t *tree, int drafts)
{
    u->tree = tree;
    u->drafts = drafts != 0;
    u->high = 0;
    u->n_before = 0;
    forget_nodes(u);
    memset(u->owner_host, 0, u->places * sizeof(uint32_t));
    GPU(cudaDeviceSynchronize());
    GPU(cudaMemset(u->owner, 0, u->places * sizeof(uint32_t)));
    GPU(cudaMemset(u->pos, 0, u->places * sizeof(int32_t)));
}

extern "C" void unfused_prompt(unfused_t *u, size_t rows)
{
    const engine_geometry_t *g = engine_geometry(u->e);
    uint32_t *numbers = (uint32_t *)bench_alloc(u->max_rows * sizeof(*numbers));
    for (size_t r = 0; r < u->max_rows; r++)
        numbers[r] = EVERYBODY;
    if (rows > u->max_rows)
        bench_die("unfused: %zu rows of a prompt", rows);
    GPU(cudaStreamSynchronize(u->view.stream));
    take_places(u, numbers, (uint32_t)rows);
    for (uint32_t l = 0; l < g->n_layers; l++)
        move_kernel<<<dim3((unsigned)rows, 2 * g->n_kv), 32, 0, u->view.stream>>>(moves_of(u, l));
    GPU(cudaGetLastError());
    free(numbers);
}

extern "C" engine_attention_t unfused_attention(unfused_t *u)
{
    const engine_attention_t hook = { begin, attend, u };
    return hook;
}
