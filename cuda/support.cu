/* SPDX-License-Identifier: MIT */
/* The two kernels beside attention: K and V into the arena, partials into outputs. Both read their
 * sizes from the image, so that their launch is the same for every plan, and loop over the rest. */
#include "arch.cuh"

#include <math.h>

namespace {

/* Has one of the eight 16-bit elements all exponent bits set? */
template <typename T> __device__ __forceinline__ bool not_finite(const uint4 &x)
{
    constexpr uint32_t e = is_half<T> ? 0x7c007c00u : 0x7f807f80u;
    bool bad = false;
    for (uint32_t w : { x.x, x.y, x.z, x.w })
        bad |= (w & e & 0xffff) == (e & 0xffff) || (w & e & 0xffff0000u) == (e & 0xffff0000u);
    return bad;
}

/* Grid: any. Block: 256. A thread moves 16 bytes of K and of V. A V that is not finite would reach rows
 * that do not see it, because the matrix unit multiplies it by their weight of 0. So it is kept as a
 * NaN in K, where a mask can stop it: rows that see the token become NaN, and no others. */
template <typename T>
__global__ void __launch_bounds__(256) ideft_write_kernel(const ideft_cuda_write_t a)
{
    const ideft_cuda_head_t *head = (const ideft_cuda_head_t *)a.image;
    const uint32_t n_rows = __ldg(&head->n_rows), chunks = a.D / 8, row_chunks = a.Hkv * chunks;
    const ideft_cuda_place_t *places = (const ideft_cuda_place_t *)(a.image + __ldg(&head->places));
    const uint64_t n = (uint64_t)n_rows * row_chunks;
    wait_for_kernel_before();
    let_next_kernel_start();
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < n; i += gridDim.x * 256ull) {
        const uint32_t r = (uint32_t)(i / row_chunks), rest = (uint32_t)(i % row_chunks);
        const uint32_t h = rest / chunks, c = rest % chunks;
        const uint2 place = __ldg((const uint2 *)&places[r]); /* token, slot */
        const size_t from = (size_t)place.x * row_chunks + rest;
        const size_t to = (((size_t)(a.first_plane + h) * a.plane + (size_t)place.y * a.D) >> 3) + c;
        uint4 k = __ldg((const uint4 *)a.k + from), v = __ldg((const uint4 *)a.v + from);
        if (not_finite<T>(v)) {
            k = make_uint4(~0u, ~0u, ~0u, ~0u);
            v = make_uint4(0, 0, 0, 0);
        }
        ((uint4 *)a.arena)[to] = k;
        ((uint4 *)a.arena)[to + (a.Hkv * a.plane >> 3)] = v;
    }
}

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

/* Sums of a lane: four columns of each 128, and of the weights. */
template <int D> struct sum_t {
    static constexpr int CHUNKS = (D + 127) / 128;
    float4 o[CHUNKS];
    float d;
};

/* Add up to 32 partials in their order, weights relative to 2^top. Loads of a batch are under way
 * together, before the weights are known. */
template <typename T, int D>
__device__ __forceinline__ void add_parts(const ideft_cuda_merge_t &a, uint32_t part, float w, uint32_t n, uint32_t h,
                                          sum_t<D> &sum)
{
    constexpr int BATCH = 8, CHUNKS = sum_t<D>::CHUNKS;
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t base = 0; base < n; base += BATCH) {
        uint2 x[BATCH][CHUNKS];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const T *from = (const T *)a.part_o + ((size_t)__shfl_sync(~0u, part, base + i) * a.H + h) * D + lane * 4;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++)
                x[i][c] = base + i < n && (D % 128 == 0 || c * 128 + lane * 4 < D) ? *(const uint2 *)(from + c * 128)
                                                                                  : make_uint2(0, 0);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const float wi = base + i < n ? __shfl_sync(~0u, w, base + i) : 0.0f;
            sum.d += wi;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                const float4 y = unpack<T>(x[i][c]);
                sum.o[c] = make_float4(fmaf(wi, y.x, sum.o[c].x), fmaf(wi, y.y, sum.o[c].y), fmaf(wi, y.z, sum.o[c].z),
                                       fmaf(wi, y.w, sum.o[c].w));
            }
        }
    }
}

/* The output of one query head of a row from its partials, in the order of the plan. first: the
 * lane's entry of the list. */
template <typename T, int D>
__device__ __forceinline__ void merge_row(const ideft_cuda_merge_t &a, const uint32_t *list, uint32_t n, uint32_t first,
                                          uint32_t h, T *o)
{
    const uint32_t lane = threadIdx.x % 32;
    float m = lane < n ? a.part_lse[(size_t)first * a.H + h] : -INFINITY;
    const float first_lse = m;
    sum_t<D> sum = {};
    for (uint32_t i = lane + 32; i < n; i += 32)
        m = fmaxf(m, a.part_lse[(size_t)__ldg(&list[i]) * a.H + h]);
    for (int x = 16; x > 0; x /= 2)
        m = fmaxf(m, __shfl_xor_sync(~0u, m, x));
    const float top = m == -INFINITY ? 0.0f : m; /* a weight of an empty set is 0 */
    add_parts<T, D>(a, first, exp2_fast(first_lse - top), n < 32 ? n : 32, h, sum);
    for (uint32_t base = 32; base < n; base += 32) {
        const uint32_t part = base + lane < n ? __ldg(&list[base + lane]) : 0;
        const float lse = base + lane < n ? a.part_lse[(size_t)part * a.H + h] : -INFINITY;
        add_parts<T, D>(a, part, exp2_fast(lse - top), n - base < 32 ? n - base : 32, h, sum);
    }
    float scale = 1, d = sum.d;
    if (a.sinks != NULL) {
        const float sink = a.sinks[h], high = fmaxf(sink, m);
        scale = m == -INFINITY ? 0.0f : exp2_fast(m - high);
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

/* Grid: any. Block: MERGE_WARPS warps, each takes (row, query head) pairs by turns. What is read
 * before the wait is the plan, which was there before the kernel that is waited for. */
template <typename T, int D>
__global__ void __launch_bounds__(MERGE_WARPS * 32) ideft_merge_kernel(const ideft_cuda_merge_t a)
{
    const ideft_cuda_head_t *head = (const ideft_cuda_head_t *)a.image;
    const uint32_t n_rows = __ldg(&head->n_rows), n_parts = __ldg(&head->n_parts);
    const ideft_cuda_place_t *places = (const ideft_cuda_place_t *)(a.image + __ldg(&head->places));
    const uint32_t *begin = (const uint32_t *)(a.image + __ldg(&head->part_begin));
    const uint32_t *list = (const uint32_t *)(a.image + __ldg(&head->part_list));
    const uint64_t n = n_parts == 0 ? 0 : (uint64_t)n_rows * a.H;
    bool waited = false;
    for (uint64_t i = blockIdx.x + gridDim.x * (threadIdx.x / 32); i < n; i += gridDim.x * MERGE_WARPS) {
        const uint32_t r = (uint32_t)(i / a.H), h = (uint32_t)(i % a.H);
        const uint32_t from = __ldg(&begin[r]), to = __ldg(&begin[r + 1]), token = __ldg(&places[r].token);
        const uint32_t lane = threadIdx.x % 32, first = lane < to - from ? __ldg(&list[from + lane]) : 0;
        if (!waited)
            wait_for_kernel_before();
        waited = true;
        if (from < to)
            merge_row<T, D>(a, list + from, to - from, first, h, (T *)a.o + ((size_t)token * a.H + h) * D);
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

extern "C" const void *ideft_cuda_write_function(int bf16)
{
    return bf16 ? (const void *)ideft_write_kernel<__nv_bfloat16> : (const void *)ideft_write_kernel<__half>;
}
