/* SPDX-License-Identifier: MIT */
/* deft_bench attend --backend cuda: attention of one layer on the GPU, cold, beside its limit.
 *
 * limit = the larger of the time of a kernel that reads the unique KV, q and o once, measured in
 * the same way, and 4 * head_dim * query heads * (sum of path lengths) operations at 790 TFLOP/s
 * (what cuBLAS reaches in bf16 on an H200) plus an empty launch. Each call is a graph replay
 * between two events, after 256 MB were cleared so that the L2 holds nothing of use; the median of
 * many. K and V are written through the library, their values are functions of (node, position,
 * head, d), so that the reference has them again on the host; every split is verified before it is
 * timed. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>

extern "C" {
#include "bench_attend.h"
}
#include "bench_cuda_error.h"
#include "deft/cuda.h"

namespace {

constexpr size_t CLEAR_BYTES = (size_t)256 << 20;
constexpr double PEAK = 790e12;
constexpr size_t FILL_ROWS = 8192;

struct gpu {
    cudaStream_t stream;
    cudaEvent_t from, to;
    void *clear, *read;
    size_t read_bytes;
    int n_sm;
    double empty_ms;
};
gpu gpu_;

struct run {
    deft_ctx_t *ctx;
    deft_tree_t *tree;
    deft_node_t *leaves;
    cell_t *cell;
    void *q, *k, *v, *o;
    uint64_t *nodes;
    int32_t *pos;
    size_t rows;
};

/* ---- values ---------------------------------------------------------------------------------- */

__host__ __device__ inline uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* A sum of four uniforms: variance 1, the same bits on host and device. */
__host__ __device__ inline float value(uint64_t node, int32_t pos, int plane, uint32_t i)
{
    const uint64_t r =
        mix(mix(node * 4 + (uint64_t)plane) + (uint64_t)(uint32_t)pos * 0x9e3779b97f4a7c15u + i);
    const int sum = (int)((r & 65535) + (r >> 16 & 65535) + (r >> 32 & 65535) + (r >> 48));
    return (float)(sum - 131070) * 0x1.bb67aep-16f;
}

template <typename T>
__global__ void fill_kernel(T *to, const uint64_t *nodes, const int32_t *pos, int plane,
                            size_t rows, uint32_t width)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < rows * width;
         i += gridDim.x * (size_t)blockDim.x)
        to[i] = (T)value(nodes[i / width], pos[i / width], plane, (uint32_t)(i % width));
}

__global__ void read_kernel(const uint4 *from, size_t n, uint32_t *to)
{
    const size_t step = (size_t)gridDim.x * blockDim.x;
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    uint32_t x = 0;
    for (; i + 7 * step < n; i += 8 * step) {
        uint4 w[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            w[j] = __ldcs(from + i + j * step);
#pragma unroll
        for (int j = 0; j < 8; j++)
            x ^= w[j].x ^ w[j].y ^ w[j].z ^ w[j].w;
    }
    for (; i < n; i += step) {
        const uint4 w = __ldcs(from + i);
        x ^= w.x ^ w.y ^ w.z ^ w.w;
    }
    if (x == 0x12345678)
        *to = x;
}

__global__ void empty_kernel() {}

/* Rows of the open step into a device buffer. */
void fill(run *r, deft_step_t step, void *to, int plane, uint32_t width)
{
    const size_t rows = deft_step_tokens(step);
    GPU(cudaMemcpyAsync(r->nodes, deft_step_nodes(step), rows * sizeof(*r->nodes),
                        cudaMemcpyHostToDevice, gpu_.stream));
    GPU(cudaMemcpyAsync(r->pos, deft_step_positions(step), rows * sizeof(*r->pos),
                        cudaMemcpyHostToDevice, gpu_.stream));
    if (r->cell->type == DEFT_F16)
        fill_kernel<<<1024, 256, 0, gpu_.stream>>>((__half *)to, r->nodes, r->pos, plane, rows,
                                                   width);
    else
        fill_kernel<<<1024, 256, 0, gpu_.stream>>>((__nv_bfloat16 *)to, r->nodes, r->pos, plane,
                                                   rows, width);
    GPU(cudaGetLastError());
}

/* ---- timing ---------------------------------------------------------------------------------- */

double replay(cudaGraphExec_t graph, int reps)
{
    double *t = (double *)bench_alloc((size_t)reps * sizeof(*t));
    for (int i = -2; i < reps; i++) {
        float ms;
        GPU(cudaMemsetAsync(gpu_.clear, i & 1, CLEAR_BYTES, gpu_.stream));
        GPU(cudaEventRecord(gpu_.from, gpu_.stream));
        GPU(cudaGraphLaunch(graph, gpu_.stream));
        GPU(cudaEventRecord(gpu_.to, gpu_.stream));
        GPU(cudaEventSynchronize(gpu_.to));
        GPU(cudaEventElapsedTime(&ms, gpu_.from, gpu_.to));
        if (i >= 0)
            t[i] = ms;
    }
    const double median = bench_median(t, (size_t)reps);
    free(t);
    return median;
}

template <typename F> double time_captured(F launch, int reps)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    GPU(cudaStreamBeginCapture(gpu_.stream, cudaStreamCaptureModeThreadLocal));
    launch();
    GPU(cudaStreamEndCapture(gpu_.stream, &graph));
    GPU(cudaGraphInstantiate(&exec, graph, 0));
    const double ms = replay(exec, reps);
    GPU(cudaGraphExecDestroy(exec));
    GPU(cudaGraphDestroy(graph));
    return ms;
}

double time_reading(size_t bytes, int reps)
{
    if (bytes > gpu_.read_bytes) {
        GPU(cudaFree(gpu_.read));
        GPU(cudaMalloc(&gpu_.read, bytes));
        GPU(cudaMemset(gpu_.read, 1, bytes));
        gpu_.read_bytes = bytes;
    }
    double best = 1e30;
    for (int threads = 256; threads <= 1024; threads *= 2) {
        const int blocks = gpu_.n_sm * (2048 / threads);
        const double ms = time_captured(
            [&] {
                read_kernel<<<blocks, threads, 0, gpu_.stream>>>(
                    (const uint4 *)gpu_.read, bytes / 16, (uint32_t *)gpu_.clear);
            },
            reps);
        best = ms < best ? ms : best;
    }
    return best;
}

/* ---- verifying ------------------------------------------------------------------------------- */

float stored(deft_dtype_t type, float x)
{
    return type == DEFT_F16 ? __half2float(__float2half(x)) : __bfloat162float(__float2bfloat16(x));
}

/* One query head of the row at `last` of a leaf's path in double, from its node up. */
void reference(const run *r, size_t leaf, size_t last, uint32_t h, double *out)
{
    const cell_t *c = r->cell;
    const uint32_t D = c->D, kv = h / (c->H / c->Hkv);
    const size_t total = deft_tree_path_len(r->tree, r->leaves[leaf]);
    double *score = (double *)bench_alloc(total * sizeof(*score));
    float *q = (float *)bench_alloc(D * sizeof(*q)),
          *v = (float *)bench_alloc(total * D * sizeof(*v));
    size_t t = 0;
    for (uint32_t d = 0; d < D; d++)
        q[d] = stored(c->type, value(r->leaves[leaf], (int32_t)last, BENCH_Q, h * D + d));
    for (deft_node_t n = r->leaves[leaf]; n != DEFT_NODE_NONE; n = deft_tree_parent(r->tree, n)) {
        deft_node_info_t info = {};
        info.struct_size = sizeof(info);
        BENCH_CHECK(r->ctx, deft_tree_node(r->tree, n, &info));
        for (size_t i = 0; i < info.len && info.start + i <= last; i++, t++) {
            const int32_t pos = (int32_t)(info.start + i);
            score[t] = 0;
            for (uint32_t d = 0; d < D; d++) {
                score[t] += (double)q[d] * stored(c->type, value(n, pos, BENCH_K, kv * D + d));
                v[t * D + d] = stored(c->type, value(n, pos, BENCH_V, kv * D + d));
            }
            score[t] /= sqrt((double)D);
        }
    }
    bench_softmax_v(score, v, t, D, out);
    free(score);
    free(q);
    free(v);
}

constexpr int SAMPLES = 6;

struct sample {
    size_t row;
    uint32_t h;
    double ref[256];
};

/* Decode: rows are leaves. Prefill: rows are the tokens of the only node. */
void make_samples(const run *r, bool prefill, sample *s)
{
    for (int i = 0; i < SAMPLES; i++) {
        s[i].row = (size_t)i * (r->rows - 1) / (SAMPLES - 1);
        s[i].h = (uint32_t)i * 7 % r->cell->H;
        const size_t leaf = prefill ? 0 : s[i].row;
        reference(r, leaf, prefill ? s[i].row : deft_tree_path_len(r->tree, r->leaves[leaf]) - 1,
                  s[i].h, s[i].ref);
    }
}

/* Largest relative norm error of the samples; dies where an output was not written. Rows of the
 * step are in the order of the leaves. */
double verify(const run *r, const sample *s)
{
    const cell_t *c = r->cell;
    const size_t n = r->rows * c->H * c->D;
    uint16_t *o = (uint16_t *)bench_alloc(n * 2);
    double worst = 0;
    GPU(cudaStreamSynchronize(gpu_.stream));
    GPU(cudaMemcpy(o, r->o, n * 2, cudaMemcpyDeviceToHost));
    const uint16_t inf = c->type == DEFT_F16 ? 0x7c00 : 0x7f80;
    for (size_t i = 0; i < n; i++)
        if ((o[i] & inf) == inf)
            bench_die("%s: output %zu was not written or is not finite", c->tree, i);
    for (int k = 0; k < SAMPLES; k++) {
        double error = 0, norm = 0;
        for (uint32_t d = 0; d < c->D; d++) {
            const uint16_t bits = o[(s[k].row * c->H + s[k].h) * c->D + d];
            __half h;
            __nv_bfloat16 b;
            memcpy(&h, &bits, 2);
            memcpy(&b, &bits, 2);
            const double x = c->type == DEFT_F16 ? __half2float(h) : __bfloat162float(b);
            error += (x - s[k].ref[d]) * (x - s[k].ref[d]);
            norm += s[k].ref[d] * s[k].ref[d];
        }
        error = sqrt(error / norm);
        worst = error > worst || error != error ? error : worst;
    }
    free(o);
    return worst;
}

/* ---- a cell ---------------------------------------------------------------------------------- */

/* Compute all tokens but the last of each leaf, some thousand rows a step. */
void fill_tree(run *r)
{
    const cell_t *c = r->cell;
    const deft_node_t root = deft_tree_root(r->tree);
    static deft_rows_t rows[FILL_ROWS];
    deft_node_t node = root;
    size_t done = 0; /* of the node */
    BENCH_CHECK(r->ctx, deft_ctx_set_split(r->ctx, DEFT_SPLIT_NODE));
    while (node != DEFT_NODE_NONE) {
        size_t n = 0, room = FILL_ROWS;
        while (node != DEFT_NODE_NONE && room > 0) {
            deft_node_info_t info = {};
            info.struct_size = sizeof(info);
            BENCH_CHECK(r->ctx, deft_tree_node(r->tree, node, &info));
            const size_t left = info.len - (info.n_children == 0) - done,
                         take = left < room ? left : room;
            if (take > 0) {
                rows[n].tree = r->tree;
                rows[n].node = node;
                rows[n++].n = take;
            }
            room -= take;
            done += take;
            if (take < left)
                break;
            node = deft_tree_next(r->tree, root, node);
            done = 0;
        }
        if (n == 0)
            break;
        deft_step_t step;
        BENCH_CHECK(r->ctx, deft_step_begin(r->ctx, rows, n, 0, &step));
        fill(r, step, r->k, BENCH_K, c->Hkv * c->D);
        fill(r, step, r->v, BENCH_V, c->Hkv * c->D);
        BENCH_CHECK(r->ctx, deft_step_write(step, 0, r->k, r->v));
        BENCH_CHECK(r->ctx, deft_step_end(step));
    }
}

double time_split(run *r, int split, uint64_t flags, const sample *s, int reps,
                  deft_step_stats_t *stats)
{
    cell_t *c = r->cell;
    deft_step_t step;
    double plan = 1e30;
    BENCH_CHECK(r->ctx, deft_cuda_reserve(r->ctx, 0, 0));
    for (int i = 0; i < 5; i++) { /* fresh plans, warm */
        BENCH_CHECK(r->ctx, deft_ctx_set_split(r->ctx, (deft_split_t)split));
        const double begin = bench_now();
        BENCH_CHECK(r->ctx, deft_step_begin(r->ctx, NULL, 0, flags, &step));
        const double t = bench_now() - begin;
        plan = t < plan ? t : plan;
        if (i < 4)
            deft_step_abandon(step);
    }
    if (stats != NULL) {
        c->plan_us = plan * 1e6;
        stats->struct_size = sizeof(*stats);
        BENCH_CHECK(r->ctx, deft_step_stats(step, stats));
    }
    fill(r, step, r->k, BENCH_K, c->Hkv * c->D);
    fill(r, step, r->v, BENCH_V, c->Hkv * c->D);
    fill(r, step, r->q, BENCH_Q, c->H * c->D);
    BENCH_CHECK(r->ctx, deft_step_write(step, 0, r->k, r->v));
    GPU(cudaMemsetAsync(r->o, 0xff, r->rows * c->H * c->D * 2, gpu_.stream));
    const double ms =
        time_captured([&] { BENCH_CHECK(r->ctx, deft_step_attend(step, 0, r->q, r->o)); }, reps);
    const double error = verify(r, s);
    c->worst_error = error > c->worst_error || error != error ? error : c->worst_error;
    if (!(error < 4e-3))
        printf("  WRONG: %s %u/%u %s: relative error %.2e\n", c->tree, c->H, c->Hkv,
               bench_splits[split], error);
    deft_step_abandon(step);
    return ms;
}

void make_run(run *r, cell_t *c, const bench_spec_t *spec, bool prefill)
{
    const size_t tokens = bench_spec_tokens(spec);
    deft_config_t config = DEFT_CONFIG_INIT;
    memset(r, 0, sizeof(*r));
    config.device = DEFT_DEVICE_CUDA;
    config.n_layers = 1;
    config.n_q_heads = c->H;
    config.n_kv_heads = c->Hkv;
    config.head_dim = c->D;
    config.kv_type = c->type;
    config.pool_tokens = tokens + 64;
    r->cell = c;
    BENCH_CHECK(NULL, deft_ctx_create(&config, &r->ctx));
    BENCH_CHECK(r->ctx, deft_cuda_set_stream(r->ctx, gpu_.stream));
    r->tree = bench_grow(r->ctx, spec, &r->leaves, &c->n_leaves);
    r->rows = prefill ? tokens : c->n_leaves;
    const size_t room = r->rows > FILL_ROWS ? r->rows : FILL_ROWS;
    GPU(cudaMalloc(&r->q, r->rows * c->H * c->D * 2));
    GPU(cudaMalloc(&r->o, r->rows * c->H * c->D * 2));
    GPU(cudaMalloc(&r->k, room * c->Hkv * c->D * 2));
    GPU(cudaMalloc(&r->v, room * c->Hkv * c->D * 2));
    GPU(cudaMalloc((void **)&r->nodes, room * sizeof(*r->nodes)));
    GPU(cudaMalloc((void **)&r->pos, room * sizeof(*r->pos)));
    if (!prefill)
        fill_tree(r);
}

void free_run(run *r)
{
    GPU(cudaStreamSynchronize(gpu_.stream));
    deft_ctx_destroy(r->ctx);
    free(r->leaves);
    GPU(cudaFree(r->q));
    GPU(cudaFree(r->k));
    GPU(cudaFree(r->v));
    GPU(cudaFree(r->o));
    GPU(cudaFree(r->nodes));
    GPU(cudaFree(r->pos));
}

} // namespace

extern "C" void bench_cuda_begin(void)
{
    cudaDeviceProp prop;
    int driver = 0, clock = 0;
    GPU(cudaGetDeviceProperties(&prop, 0));
    GPU(cudaDriverGetVersion(&driver));
    GPU(cudaDeviceGetAttribute(&clock, cudaDevAttrClockRate, 0));
    gpu_.n_sm = prop.multiProcessorCount;
    GPU(cudaStreamCreateWithFlags(&gpu_.stream, cudaStreamNonBlocking));
    GPU(cudaEventCreate(&gpu_.from));
    GPU(cudaEventCreate(&gpu_.to));
    GPU(cudaMalloc(&gpu_.clear, CLEAR_BYTES));
    gpu_.empty_ms = time_captured([&] { empty_kernel<<<1, 32, 0, gpu_.stream>>>(); }, 50);
    printf("%s, %d multiprocessors, up to %d MHz, driver for CUDA %d.%d; an empty launch takes "
           "%.1f us\n",
           prop.name, gpu_.n_sm, clock / 1000, driver / 1000, driver % 1000 / 10,
           gpu_.empty_ms * 1e3);
}

/* Milliseconds of a kernel that reads so many bytes once, between measured powers of two. */
extern "C" double bench_cuda_read_ms(double bytes)
{
    static double ms[24]; /* of 64 KiB << i */
    int i = 0;
    while (i < 22 && (double)((size_t)65536 << (i + 1)) < bytes)
        i++;
    for (int j = i; j < i + 2; j++)
        if (ms[j] == 0)
            ms[j] = time_reading((size_t)65536 << j, 15);
    const double low = (double)((size_t)65536 << i), at = bytes <= low ? 0 : (bytes - low) / low;
    return ms[i] + at * (ms[i + 1] - ms[i]);
}

extern "C" double bench_cuda_compute_ms(double operations)
{
    return operations / PEAK * 1e3 + gpu_.empty_ms;
}

/* Give back the memory that timing took. */
extern "C" void bench_cuda_end(void)
{
    GPU(cudaFree(gpu_.clear));
    GPU(cudaFree(gpu_.read));
    gpu_.clear = gpu_.read = NULL;
    gpu_.read_bytes = 0;
}

extern "C" void bench_cuda_cell(cell_t *c, const options_t *opt)
{
    bench_spec_t spec;
    run r;
    sample s[SAMPLES];
    bench_parse(c->tree, &spec);
    if (opt->prefill && spec.levels != 1)
        bench_die("%s: prefill is measured for one node: write it as 1/4096", c->tree);
    make_run(&r, c, &spec, opt->prefill);
    make_samples(&r, opt->prefill, s);
    c->ms[0] = time_split(&r, 0, 0, s, opt->reps, &c->stats);
    for (int split = 1; split < SPLITS && !opt->only_auto; split++)
        c->ms[split] = time_split(&r, split, 0, s, opt->reps, NULL);
    if (!opt->only_auto) {
        c->invariant_ms = time_split(&r, 0, DEFT_STEP_INVARIANT, s, opt->reps, NULL);
        const double again = time_split(&r, 0, 0, s, opt->reps, NULL);
        c->ms[0] = again < c->ms[0] ? again : c->ms[0];
    }
    const double paths = (double)c->stats.kv_logical_bytes / (4.0 * c->Hkv * c->D);
    /* KV, q and o: what any kernel has to move */
    c->read_ms =
        time_reading((size_t)c->stats.kv_unique_bytes + 4 * r.rows * c->H * c->D, opt->reps);
    c->compute_ms = 4.0 * c->D * c->H * paths / PEAK * 1e3 + gpu_.empty_ms;
    c->limit_ms = c->read_ms > c->compute_ms ? c->read_ms : c->compute_ms;
    free_run(&r);
}
