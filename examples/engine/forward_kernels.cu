/* SPDX-License-Identifier: MIT */
/* Each kernel waits for the one before it first of all, and lets the next one start as early: what
 * they have is latency. */
#include "forward_kernels.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>

namespace {

__device__ __forceinline__ void take_turn()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ float2 unpack(const __half2 v)
{
    return __half22float2(v);
}
__device__ __forceinline__ float2 unpack(const __nv_bfloat162 v)
{
    return __bfloat1622float2(v);
}
template <typename T> struct pair_of;
template <> struct pair_of<__half> {
    using type = __half2;
    static __device__ __forceinline__ __half2 pack(float a, float b)
    {
        return __floats2half2_rn(a, b);
    }
};
template <> struct pair_of<__nv_bfloat16> {
    using type = __nv_bfloat162;
    static __device__ __forceinline__ __nv_bfloat162 pack(float a, float b)
    {
        return __floats2bfloat162_rn(a, b);
    }
};

/* Eight elements, 16 bytes. */
template <typename T> struct alignas(16) eight {
    typename pair_of<T>::type p[4];
};

template <typename T> __device__ __forceinline__ void load(float (&x)[8], const T *from)
{
    const eight<T> e = *(const eight<T> *)from;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 f = unpack(e.p[i]);
        x[2 * i] = f.x;
        x[2 * i + 1] = f.y;
    }
}

template <typename T> __device__ __forceinline__ void store(T *to, const float (&x)[8])
{
    eight<T> e;
#pragma unroll
    for (int i = 0; i < 4; i++)
        e.p[i] = pair_of<T>::pack(x[2 * i], x[2 * i + 1]);
    *(eight<T> *)to = e;
}

template <typename T> __global__ void __launch_bounds__(256) embed_kernel(const kernels_embed_t a)
{
    const uint32_t r = blockIdx.x;
    take_turn();
    if (r >= *a.n_rows)
        return;
    const T *from = (const T *)a.table + (size_t)a.ids[r] * a.dim;
    for (uint32_t i = threadIdx.x * 8; i < a.dim; i += 256 * 8) {
        float x[8];
        load(x, from + i);
        float4 *to = (float4 *)(a.x + (size_t)r * a.dim + i);
        to[0] = make_float4(x[0], x[1], x[2], x[3]);
        to[1] = make_float4(x[4], x[5], x[6], x[7]);
    }
    for (uint32_t i = threadIdx.x; i < a.rope_dim / 2; i += 256) {
        double s, c;
        sincos(a.positions[r] * a.inv_freq[i], &s, &c);
        a.cs[(size_t)r * a.rope_dim + 2 * i] = (float)c;
        a.cs[(size_t)r * a.rope_dim + 2 * i + 1] = (float)s;
    }
}

constexpr int NORM_THREADS = 512, NORM_PARTS = 8; /* 16 KiB elements of a row at most */

/* x / sqrt(mean(x^2) + eps) * w. Everything is asked for at once: the weights before the kernel
 * before has ended, the row before it is known to be one. */
template <typename T>
__global__ void __launch_bounds__(NORM_THREADS) norm_kernel(const kernels_norm_t a)
{
    __shared__ float sums[NORM_THREADS / 32];
    const uint32_t i = blockIdx.x, lane = threadIdx.x % 32;
    const float4 *w = (const float4 *)a.w;
    float4 v[NORM_PARTS], g[NORM_PARTS];
    float sum = 0;
#pragma unroll
    for (int p = 0; p < NORM_PARTS; p++) {
        const uint32_t at = p * NORM_THREADS + threadIdx.x;
        if (at * 4 < a.dim)
            g[p] = __ldg(w + at);
    }
    take_turn();
    const uint32_t n = *a.n_rows;
    const uint32_t row = a.which == NULL ? i : i < n ? a.which[i] : 0;
    const float4 *x = (const float4 *)(a.x + (size_t)row * a.dim);
#pragma unroll
    for (int p = 0; p < NORM_PARTS; p++) {
        const uint32_t at = p * NORM_THREADS + threadIdx.x;
        if (at * 4 < a.dim)
            v[p] = x[at];
    }
    if (i >= n)
        return;
#pragma unroll
    for (int p = 0; p < NORM_PARTS; p++)
        if ((p * NORM_THREADS + threadIdx.x) * 4 < a.dim)
            sum += v[p].x * v[p].x + v[p].y * v[p].y + v[p].z * v[p].z + v[p].w * v[p].w;
    for (int d = 16; d > 0; d /= 2)
        sum += __shfl_xor_sync(~0u, sum, d);
    if (lane == 0)
        sums[threadIdx.x / 32] = sum;
    __syncthreads(); /* publishes the warps' sums */
    sum = sums[lane % (NORM_THREADS / 32)];
    for (int d = NORM_THREADS / 64; d > 0; d /= 2)
        sum += __shfl_xor_sync(~0u, sum, d);
    const float by = rsqrtf(sum / (float)a.dim + a.eps);
    uint2 *h = (uint2 *)((T *)a.h + (size_t)i * a.dim);
#pragma unroll
    for (int p = 0; p < NORM_PARTS; p++) {
        const uint32_t at = p * NORM_THREADS + threadIdx.x;
        if (at * 4 < a.dim) {
            const auto lo = pair_of<T>::pack(v[p].x * by * g[p].x, v[p].y * by * g[p].y);
            const auto hi = pair_of<T>::pack(v[p].z * by * g[p].z, v[p].w * by * g[p].w);
            h[at] = make_uint2(*(const uint32_t *)&lo, *(const uint32_t *)&hi);
        }
    }
}

/* From a row of the product to Q, rotated, and to its slot of the pool. Block: 256 of a row's
 * chunks of 8 elements, which lie in one head. */
template <typename T> __global__ void __launch_bounds__(256) rope_kernel(const kernels_rope_t a)
{
    const uint32_t r = blockIdx.y, chunk = blockIdx.x * 256 + threadIdx.x,
                   per_head = a.head_dim / 8;
    const uint32_t head = chunk / per_head, d = chunk % per_head * 8;
    if (head >= a.n_q + 2 * a.n_kv)
        return;
    take_turn();
    const bool rotated = head < a.n_q + a.n_kv && d < a.rope_dim;
    const float4 *cs = (const float4 *)(a.cs + (size_t)r * a.rope_dim + (rotated ? d : 0));
    const float4 t[2] = { cs[0], cs[1] };
    const uint32_t n = *a.n_rows,
                   slot = a.slots[r]; /* the step has room for all rows of the launch */
    float x[8];
    load(x, (const T *)a.qkv + ((size_t)r * (a.n_q + 2 * a.n_kv) + head) * a.head_dim + d);
    if (r >= n)
        return;
    if (rotated) { /* pairs of neighbours */
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float c = i % 2 == 0 ? t[i / 2].x : t[i / 2].z,
                        s = i % 2 == 0 ? t[i / 2].y : t[i / 2].w;
            const float even = x[2 * i], odd = x[2 * i + 1];
            x[2 * i] = even * c - odd * s;
            x[2 * i + 1] = even * s + odd * c;
        }
    }
    if (head < a.n_q) {
        store((T *)a.q + ((size_t)r * a.n_q + head) * a.head_dim + d, x);
    } else {
        const uint32_t h = head - a.n_q;
        T *plane = h < a.n_kv ? (T *)a.k + h * a.plane : (T *)a.v + (h - a.n_kv) * a.plane;
        store(plane + (size_t)slot * a.head_dim + d, x);
    }
}

template <typename T> __global__ void __launch_bounds__(256) swiglu_kernel(const kernels_swiglu_t a)
{
    const uint32_t r = blockIdx.y, i = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (i >= a.ffn)
        return;
    take_turn();
    const uint32_t n = *a.n_rows;
    float gate[8], up[8];
    load(gate, (const T *)a.ff + (size_t)r * 2 * a.ffn + i);
    load(up, (const T *)a.ff + (size_t)r * 2 * a.ffn + a.ffn + i);
    if (r >= n)
        return;
#pragma unroll
    for (int j = 0; j < 8; j++)
        up[j] *= gate[j] / (1 + __expf(-gate[j]));
    store((T *)a.act + (size_t)r * a.ffn + i, up);
}

/* ---- candidates ---- */

constexpr int TOP_THREADS = 1024, TOP_ROOM = 2048;

/* Descending by logit, then ascending by id: as an unsigned number, larger first. NaN is -inf. */
__device__ __forceinline__ uint64_t rank(float x, uint32_t id)
{
    const uint32_t bits = x != x ? 0xff800000u : __float_as_uint(x + 0.0f); /* -0 is 0 */
    return (uint64_t)(bits & 0x80000000u ? ~bits : bits | 0x80000000u) << 32 | (0xffffffffu - id);
}

__device__ __forceinline__ float logit_of(uint64_t rank)
{
    const uint32_t u = (uint32_t)(rank >> 32);
    return __uint_as_float(u & 0x80000000u ? u & 0x7fffffffu : ~u);
}

/* Sort n = a power of two of them, the largest first. */
__device__ void sort_down(uint64_t *v, uint32_t n)
{
    for (uint32_t size = 2; size <= n; size *= 2) {
        for (uint32_t step = size / 2; step > 0; step /= 2) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < n; i += TOP_THREADS) {
                const uint32_t j = i ^ step;
                if (j > i && (v[i] < v[j]) == ((i & size) == 0)) {
                    const uint64_t t = v[i];
                    v[i] = v[j];
                    v[j] = t;
                }
            }
        }
    }
    __syncthreads();
}

template <typename V, typename F> __device__ V reduce_block(V x, V *space, F op)
{
    for (int d = 16; d > 0; d /= 2)
        x = op(x, __shfl_xor_sync(~0u, x, d));
    __syncthreads(); /* space is free */
    if (threadIdx.x % 32 == 0)
        space[threadIdx.x / 32] = x;
    __syncthreads();
    x = space[threadIdx.x % 32];
    for (int d = 16; d > 0; d /= 2)
        x = op(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

/* The k-th largest of the threads' maxima bounds the k-th largest of all from below, and little
 * else is above it: that is collected and sorted. Where too much is (many equal logits), the
 * candidates are taken one by one. */
__global__ void __launch_bounds__(TOP_THREADS) top_kernel(const kernels_top_t a)
{
    __shared__ uint64_t best[TOP_ROOM], space[32];
    __shared__ uint32_t n_best;
    const uint32_t t = threadIdx.x;
    const float *logits = a.logits + (size_t)blockIdx.x * a.vocab;
    take_turn();
    if (blockIdx.x >= *a.n_rows)
        return;
    uint64_t most = 0;
    for (uint32_t i = t; i < a.vocab; i += TOP_THREADS) {
        const uint64_t r = rank(logits[i], i);
        most = r > most ? r : most;
    }
    best[t] = most;
    best[t + TOP_THREADS] = 0;
    if (t == 0)
        n_best = 0;
    sort_down(best, TOP_THREADS);
    const float top = logit_of(best[0]);
    const uint64_t bound = best[a.k - 1];
    const bool finite = top > -INFINITY && top < INFINITY;
    double sum = 0;
    for (uint32_t i = t; i < a.vocab && finite; i += TOP_THREADS)
        sum += logits[i] == logits[i] ? __expf(logits[i] - top) : 0.0f;
    sum = reduce_block(sum, (double *)space, [](double x, double y) { return x + y; });
    const float log_sum = finite ? top + (float)log(sum) : 0; /* as sampler_log_sum() */
    for (uint32_t i = t; i < a.vocab; i += TOP_THREADS) {
        const uint64_t r = rank(logits[i], i);
        if (r >= bound) {
            const uint32_t at = atomicAdd(&n_best, 1);
            if (at < TOP_ROOM)
                best[at] = r;
        }
    }
    __syncthreads();
    const uint32_t n = n_best;
    if (n <= TOP_ROOM) {
        uint32_t two = 1;
        while (two < n)
            two *= 2;
        for (uint32_t i = n + t; i < two; i += TOP_THREADS)
            best[i] = 0;
        sort_down(best, two);
    } else {
        uint64_t below = ~0ull;
        for (uint32_t j = 0; j < a.k; j++) {
            most = 0;
            for (uint32_t i = t; i < a.vocab; i += TOP_THREADS) {
                const uint64_t r = rank(logits[i], i);
                most = r < below && r > most ? r : most;
            }
            below = reduce_block(most, space, [](uint64_t x, uint64_t y) { return x > y ? x : y; });
            if (t == 0)
                best[j] = below;
        }
        __syncthreads();
    }
    for (uint32_t j = t; j < a.k; j += TOP_THREADS) {
        candidate_t *c = &a.top[(size_t)blockIdx.x * a.k + j];
        c->id = (int32_t)(0xffffffffu - (uint32_t)best[j]);
        c->logprob = logit_of(best[j]) - log_sum;
    }
}

/* ---- loading ---- */

template <typename T> __global__ void convert_kernel(T *to, const float *from, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += gridDim.x * (size_t)blockDim.x)
        to[i] = (T)from[i];
}

__device__ __forceinline__ uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Sums of four uniforms. */
template <typename T> __global__ void fill_kernel(T *to, size_t n, uint64_t seed, float deviation)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += gridDim.x * (size_t)blockDim.x) {
        const uint64_t r = mix(seed + (i + 1) * 0x9e3779b97f4a7c15u);
        const int sum = (int)((r & 65535) + (r >> 16 & 65535) + (r >> 32 & 65535) + (r >> 48));
        to[i] = (T)((float)(sum - 131070) * 2.6429e-5f * deviation);
    }
}

__global__ void digest_kernel(unsigned long long *to, const uint32_t *from, size_t n)
{
    unsigned long long sum = 0;
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += gridDim.x * (size_t)blockDim.x)
        sum += mix(from[i] + ((uint64_t)i << 32));
    atomicAdd(to, sum);
}

/* ---- launches ---- */

template <typename A>
int launch(const kernels_at_t *at, void (*kernel)(A), A a, dim3 grid, uint32_t block)
{
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = at->stream;
    config.attrs = &early;
    config.numAttrs = (unsigned)at->early;
    void *list[1] = { &a };
    return cudaLaunchKernelExC(&config, (const void *)kernel, list);
}

} // namespace

/* The kernel for the type in use. */
#define LAUNCH(_kernel, _grid, _block)                                \
    (at->bf16 ? launch(at, _kernel<__nv_bfloat16>, *a, _grid, _block) \
              : launch(at, _kernel<__half>, *a, _grid, _block))

int kernels_embed(const kernels_at_t *at, const kernels_embed_t *a, uint32_t rows)
{
    return LAUNCH(embed_kernel, rows, 256);
}

int kernels_norm(const kernels_at_t *at, const kernels_norm_t *a, uint32_t rows)
{
    return LAUNCH(norm_kernel, rows, NORM_THREADS);
}

int kernels_rope(const kernels_at_t *at, const kernels_rope_t *a, uint32_t rows)
{
    const uint32_t chunks = (a->n_q + 2 * a->n_kv) * a->head_dim / 8;
    return LAUNCH(rope_kernel, dim3((chunks + 255) / 256, rows), 256);
}

int kernels_swiglu(const kernels_at_t *at, const kernels_swiglu_t *a, uint32_t rows)
{
    return LAUNCH(swiglu_kernel, dim3((a->ffn / 8 + 255) / 256, rows), 256);
}

int kernels_top(const kernels_at_t *at, const kernels_top_t *a, uint32_t rows)
{
    return launch(at, top_kernel, *a, rows, TOP_THREADS);
}

int kernels_convert(const kernels_at_t *at, void *to, const float *from, size_t n)
{
    if (at->bf16)
        convert_kernel<<<1024, 256, 0, at->stream>>>((__nv_bfloat16 *)to, from, n);
    else
        convert_kernel<<<1024, 256, 0, at->stream>>>((__half *)to, from, n);
    return cudaGetLastError();
}

int kernels_fill(const kernels_at_t *at, void *to, size_t n, uint64_t seed, float deviation)
{
    if (at->bf16)
        fill_kernel<<<1024, 256, 0, at->stream>>>((__nv_bfloat16 *)to, n, seed, deviation);
    else
        fill_kernel<<<1024, 256, 0, at->stream>>>((__half *)to, n, seed, deviation);
    return cudaGetLastError();
}

int kernels_digest(const kernels_at_t *at, uint64_t *to, const uint32_t *from, size_t n)
{
    digest_kernel<<<512, 256, 0, at->stream>>>((unsigned long long *)to, from, n);
    return cudaGetLastError();
}
