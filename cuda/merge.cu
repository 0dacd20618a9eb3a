/* SPDX-License-Identifier: MIT */
/* The merge of partials: a row that several groups have worked on gets its output from the states
 * that they left, joined in the order of the plan. */
#include "named_barrier.cuh"

#include <math.h>

namespace {

constexpr int MERGE_WARPS = 16;

/* Four 16-bit elements as floats. */
template <typename T> __device__ __forceinline__ float4 unpack(uint2 w)
{
    float2 a, b;
    if constexpr (is_half<T>) {
        a = __half22float2(*(const __half2 *)&w.x);
        b = __half22float2(*(const __half2 *)&w.y);
    } else {
        a = __bfloat1622float2(*(const __nv_bfloat162 *)&w.x);
        b = __bfloat1622float2(*(const __nv_bfloat162 *)&w.y);
    }
    return make_float4(a.x, a.y, b.x, b.y);
}

/* What a lane has of the sum of some partials: four columns of each 128, relative to 2^m. */
template <int D> struct sum_t {
    static constexpr int CHUNKS = (D + 127) / 128;
    float4 o[CHUNKS];
    float m, d;
};

/* Partials are summed by slices, slices in their order: a row's bits do not depend on how many warps
 * share it. Loads of a slice are under way together. */
constexpr int SLICE = 8;

/* A slice. part: of lane i, the partial i % 8 of the slice; n: how many there are. */
template <typename T, int D>
__device__ __forceinline__ sum_t<D> sum_slice(const ideft_cuda_merge_t &a, uint32_t part, uint32_t n, uint32_t h)
{
    constexpr int CHUNKS = sum_t<D>::CHUNKS;
    const uint32_t lane = threadIdx.x % 32;
    sum_t<D> sum = {};
    uint2 x[SLICE][CHUNKS];
    const float lse = lane % SLICE < n ? a.part_lse[(size_t)part * a.H + h] : -INFINITY;
#pragma unroll
    for (int i = 0; i < SLICE; i++) {
        const T *from = (const T *)a.part_o + ((size_t)__shfl_sync(~0u, part, i) * a.H + h) * D + lane * 4;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            x[i][c] = i < n && (D % 128 == 0 || c * 128 + lane * 4 < D) ? *(const uint2 *)(from + c * 128)
                                                                       : make_uint2(0, 0);
    }
    sum.m = lse;
    for (int i = SLICE / 2; i > 0; i /= 2)
        sum.m = fmaxf(sum.m, __shfl_xor_sync(~0u, sum.m, i));
    const float w = exp2_fast(lse - (sum.m == -INFINITY ? 0.0f : sum.m)); /* 0 for an empty set */
#pragma unroll
    for (int i = 0; i < SLICE; i++) {
        const float wi = __shfl_sync(~0u, w, i);
        sum.d += wi;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const float4 y = unpack<T>(x[i][c]);
            sum.o[c] = make_float4(fmaf(wi, y.x, sum.o[c].x), fmaf(wi, y.y, sum.o[c].y), fmaf(wi, y.z, sum.o[c].z),
                                   fmaf(wi, y.w, sum.o[c].w));
        }
    }
    return sum;
}

template <int D> __device__ __forceinline__ void add(sum_t<D> &sum, const sum_t<D> &x)
{
    const float m = fmaxf(sum.m, x.m), top = m == -INFINITY ? 0.0f : m;
    const float a = exp2_fast(sum.m - top), b = exp2_fast(x.m - top);
    sum.m = m;
    sum.d = fmaf(a, sum.d, b * x.d);
#pragma unroll
    for (int c = 0; c < sum_t<D>::CHUNKS; c++) {
        const float4 y = sum.o[c], z = x.o[c];
        sum.o[c] = make_float4(fmaf(a, y.x, b * z.x), fmaf(a, y.y, b * z.y), fmaf(a, y.z, b * z.z), fmaf(a, y.w, b * z.w));
    }
}

/* The output of one query head of a row. */
template <typename T, int D>
__device__ __forceinline__ void write_output(const ideft_cuda_merge_t &a, const sum_t<D> &sum, uint32_t h, T *o)
{
    const uint32_t lane = threadIdx.x % 32;
    float scale = 1, d = sum.d;
    if (a.sinks != NULL) {
        const float sink = a.sinks[h], high = fmaxf(sink, sum.m);
        scale = sum.m == -INFINITY ? 0.0f : exp2_fast(sum.m - high);
        d = d * scale + (sink == -INFINITY ? 0.0f : exp2_fast(sink - high));
    }
    scale = d == 0 ? 0.0f : scale / d;
#pragma unroll
    for (int c = 0; c < sum_t<D>::CHUNKS; c++) {
        if (D % 128 != 0 && c * 128 + lane * 4 >= D)
            continue;
        const float4 x = sum.o[c];
        *(uint2 *)(o + c * 128 + lane * 4) =
            make_uint2(pack<T>(x.x * scale, x.y * scale), pack<T>(x.z * scale, x.w * scale));
    }
}

/* Slices of a warp that helps, for the one that adds them up. */
template <int D> struct box_t {
    float4 o[sum_t<D>::CHUNKS][32];
    float m, d;
};

/* The sum of a round, a slice a warp: to the first of the S warps that share a row and head. */
template <int D>
__device__ __forceinline__ void gather(box_t<D> *box, uint32_t w, uint32_t S, uint32_t n_slices, sum_t<D> &all,
                                       const sum_t<D> &mine)
{
    const uint32_t lane = threadIdx.x % 32, team = threadIdx.x / 32 / S;
    if (w > 0 && w < n_slices) {
        for (int c = 0; c < sum_t<D>::CHUNKS; c++)
            box[w].o[c][lane] = mine.o[c];
        if (lane == 0)
            box[w].m = mine.m, box[w].d = mine.d;
    }
    meet_team(team, S * 32);
    if (w == 0) {
        add(all, mine);
        for (uint32_t i = 1; i < n_slices; i++) {
            sum_t<D> x;
            for (int c = 0; c < sum_t<D>::CHUNKS; c++)
                x.o[c] = box[i].o[c][lane];
            x.m = box[i].m;
            x.d = box[i].d;
            add(all, x);
        }
    }
    meet_team(team, S * 32);
}

/* Grid: any. Block: MERGE_WARPS warps. One to eight of them share a (row, query head) pair, the more the
 * fewer pairs there are. What is read before the wait is the plan, which was there before the kernel
 * that is waited for. */
template <typename T, int D>
__global__ void __launch_bounds__(MERGE_WARPS * 32) ideft_merge_kernel(const ideft_cuda_merge_t a)
{
    __shared__ box_t<D> boxes[MERGE_WARPS];
    const ideft_cuda_head_t *head = (const ideft_cuda_head_t *)a.image;
    const uint32_t n_rows = __ldg(&head->n_rows), n_parts = __ldg(&head->n_parts);
    const ideft_cuda_place_t *places = (const ideft_cuda_place_t *)(a.image + __ldg(&head->places));
    const uint32_t *begin = (const uint32_t *)(a.image + __ldg(&head->part_begin));
    const uint32_t *list = (const uint32_t *)(a.image + __ldg(&head->part_list));
    const uint64_t n = n_parts == 0 ? 0 : (uint64_t)n_rows * a.H;
    const uint32_t S = n <= 512 ? 8 : n <= 1024 ? 4 : n <= 2048 ? 2 : 1;
    const uint32_t warp = threadIdx.x / 32, w = warp % S, entry = threadIdx.x % SLICE;
    bool waited = false;
    for (uint64_t i = blockIdx.x + gridDim.x * (warp / S); i < n; i += gridDim.x * (MERGE_WARPS / S)) {
        const uint32_t r = (uint32_t)(i / a.H), h = (uint32_t)(i % a.H);
        const uint32_t from = __ldg(&begin[r]), to = __ldg(&begin[r + 1]), token = __ldg(&places[r].token);
        sum_t<D> all = {};
        all.m = -INFINITY;
        for (uint32_t base = from; base < to; base += SLICE * S) {
            const uint32_t at = base + SLICE * w, left = at < to ? to - at : 0;
            const uint32_t part = entry < left ? __ldg(&list[at + entry]) : 0;
            if (!waited)
                wait_for_kernel_before();
            waited = true;
            const sum_t<D> mine = left > 0 ? sum_slice<T, D>(a, part, left, h) : sum_t<D>();
            if (S > 1 && to - from > SLICE)
                gather<D>(&boxes[warp - w], w, S, (to - base + SLICE - 1) / SLICE < S ? (to - base + SLICE - 1) / SLICE : S,
                          all, mine);
            else if (left > 0)
                add(all, mine);
        }
        if (w == 0 && from < to)
            write_output<T, D>(a, all, h, (T *)a.o + ((size_t)token * a.H + h) * D);
    }
    if (!waited)
        wait_for_kernel_before(); /* whoever follows relies on it */
}

template <typename T> const void *merge_of(uint32_t D)
{
#define IDEFT_MERGE(_d) \
    if (D == _d)        \
        return (const void *)ideft_merge_kernel<T, _d>;
    IDEFT_CUDA_DIMS(IDEFT_MERGE)
#undef IDEFT_MERGE
    return nullptr;
}

} // namespace

extern "C" const void *ideft_cuda_merge_function(uint32_t D, int bf16)
{
    return bf16 ? merge_of<__nv_bfloat16>(D) : merge_of<__half>(D);
}
