/* SPDX-License-Identifier: MIT */
/* The merge of partials: a row that several groups have worked on gets its output from the states
 * that they left (state.cuh), joined in the order of the plan.
 *
 * The partials of a row and query head are summed by slices of eight, and the slices joined in
 * their order, whoever has summed them. So a row's bits do not depend on how many warps share it.
 * A lane has four columns of each 128. */
#include "named_barrier.cuh"
#include "state.cuh"

namespace {

constexpr int MERGE_WARPS = 16;
constexpr int SLICE = 8; /* partials; their loads are under way together */

/* What a lane has of the state of some partials. */
template <int D> struct lane_state {
    static constexpr int COLUMNS = (D + 127) / 128; /* times four */
    float4 o[COLUMNS];
    row_sum sum;
};

/* The state of a slice of n partials. part: in lane i, partial i % 8 of the slice. */
template <typename T, int D>
__device__ __forceinline__ lane_state<D> sum_slice(const ideft_cuda_merge_t &a, uint32_t part,
                                                   uint32_t n, uint32_t h)
{
    constexpr int COLUMNS = lane_state<D>::COLUMNS;
    const uint32_t lane = threadIdx.x % 32;
    lane_state<D> slice = {};
    uint2 x[SLICE][COLUMNS];
    const float lse = lane % SLICE < n ? a.part_lse[(size_t)part * a.H + h] : -INFINITY;
#pragma unroll
    for (int i = 0; i < SLICE; i++) {
        const T *from = (const T *)a.part_o + ((size_t)__shfl_sync(~0u, part, i) * a.H + h) * D +
                        lane * 4;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
            x[i][c] = i < n && (D % 128 == 0 || c * 128 + lane * 4 < D)
                          ? *(const uint2 *)(from + c * 128)
                          : make_uint2(0, 0);
    }
    slice.sum.m = lse;
    for (int i = SLICE / 2; i > 0; i /= 2)
        slice.sum.m = fmaxf(slice.sum.m, __shfl_xor_sync(~0u, slice.sum.m, i));
    const float w = rebased(lse, base_of(slice.sum.m)); /* 0 for the empty set */
#pragma unroll
    for (int i = 0; i < SLICE; i++) {
        const float wi = __shfl_sync(~0u, w, i);
        slice.sum.d += wi; /* a partial is normalised: its d is 1 */
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const float4 y = unpack<T>(x[i][c]), o = slice.o[c];
            slice.o[c] = make_float4(fmaf(wi, y.x, o.x), fmaf(wi, y.y, o.y), fmaf(wi, y.z, o.z),
                                     fmaf(wi, y.w, o.w));
        }
    }
    return slice;
}

/* Join `more` to what has been summed so far. */
template <int D>
__device__ __forceinline__ void join_slice(lane_state<D> &all, const lane_state<D> &more)
{
    const joined j = join<GUARD_BASE>(all.sum, more.sum);
    all.sum = j.sum;
#pragma unroll
    for (int c = 0; c < lane_state<D>::COLUMNS; c++) {
        const float4 x = all.o[c], y = more.o[c];
        all.o[c] =
            make_float4(weighted(j.by[0], x.x, j.by[1], y.x), weighted(j.by[0], x.y, j.by[1], y.y),
                        weighted(j.by[0], x.z, j.by[1], y.z), weighted(j.by[0], x.w, j.by[1], y.w));
    }
}

/* The output of one query head of a row. */
template <typename T, int D>
__device__ __forceinline__ void write_output(const ideft_cuda_merge_t &a, const lane_state<D> &all,
                                             uint32_t h, T *o)
{
    const uint32_t lane = threadIdx.x % 32;
    with_sink end = { all.sum, 1 };
    if (a.sinks != NULL)
        end = join_sink(all.sum, a.sinks[h]);
    const float scale = normaliser(end.sum, end.by);
#pragma unroll
    for (int c = 0; c < lane_state<D>::COLUMNS; c++) {
        if (D % 128 != 0 && c * 128 + lane * 4 >= D)
            continue;
        const float4 x = all.o[c];
        *(uint2 *)(o + c * 128 + lane * 4) =
            make_uint2(pack<T>(x.x * scale, x.y * scale), pack<T>(x.z * scale, x.w * scale));
    }
}

/* A slice that a warp hands to the first of its team. */
template <int D> struct handed_slice {
    float4 o[lane_state<D>::COLUMNS][32];
    row_sum sum;
};

/* A team of `size` warps shares a row and query head, a slice each at a time. The first of them
 * joins the n_slices that they have: its own, then the others in their order. warp: number in the
 * team; handed: the team's. */
template <int D>
__device__ __forceinline__ void join_team(handed_slice<D> *handed, uint32_t warp, uint32_t size,
                                          uint32_t n_slices, lane_state<D> &all,
                                          const lane_state<D> &mine)
{
    const uint32_t lane = threadIdx.x % 32, team = threadIdx.x / 32 / size;
    if (warp > 0 && warp < n_slices) {
        for (int c = 0; c < lane_state<D>::COLUMNS; c++)
            handed[warp].o[c][lane] = mine.o[c];
        if (lane == 0)
            handed[warp].sum = mine.sum;
    }
    meet_team(team, size * 32); /* publishes the slices */
    if (warp == 0) {
        join_slice(all, mine);
        for (uint32_t i = 1; i < n_slices; i++) {
            lane_state<D> x;
            for (int c = 0; c < lane_state<D>::COLUMNS; c++)
                x.o[c] = handed[i].o[c][lane];
            x.sum = handed[i].sum;
            join_slice(all, x);
        }
    }
    meet_team(team, size * 32); /* they have been read */
}

/* How many slices a team has of so many partials in one round. */
__device__ __forceinline__ uint32_t slices_of(uint32_t parts, uint32_t size)
{
    return (parts + SLICE - 1) / SLICE < size ? (parts + SLICE - 1) / SLICE : size;
}

/* Grid: any; the sizes are read from the image, so that a launch is the same for every plan.
 * Block: MERGE_WARPS warps. Teams of one to eight of them share a row and query head, the more the
 * fewer of these there are. What is read before the wait is the plan, which was there before the
 * kernel that is waited for. */
template <typename T, int D>
__global__ void __launch_bounds__(MERGE_WARPS * 32) ideft_merge_kernel(const ideft_cuda_merge_t a)
{
    __shared__ handed_slice<D> handed[MERGE_WARPS];
    const ideft_cuda_head_t *head = (const ideft_cuda_head_t *)a.image;
    const uint32_t n_rows = __ldg(&head->n_rows), n_parts = __ldg(&head->n_parts);
    const ideft_cuda_place_t *places = (const ideft_cuda_place_t *)(a.image + __ldg(&head->places));
    const uint32_t *begin = (const uint32_t *)(a.image + __ldg(&head->part_begin));
    const uint32_t *list = (const uint32_t *)(a.image + __ldg(&head->part_list));
    const uint64_t n = n_parts == 0 ? 0 : (uint64_t)n_rows * a.H;
    const uint32_t size = n <= 512 ? 8 : n <= 1024 ? 4 : n <= 2048 ? 2 : 1;
    const uint32_t warp = threadIdx.x / 32, w = warp % size, entry = threadIdx.x % SLICE;
    bool waited = false;
    for (uint64_t i = blockIdx.x + gridDim.x * (warp / size); i < n;
         i += gridDim.x * (MERGE_WARPS / size)) {
        const uint32_t r = (uint32_t)(i / a.H), h = (uint32_t)(i % a.H);
        const uint32_t from = __ldg(&begin[r]), to = __ldg(&begin[r + 1]);
        const uint32_t token = __ldg(&places[r].token);
        lane_state<D> all = {};
        all.sum = empty_sum();
        for (uint32_t base = from; base < to; base += SLICE * size) {
            const uint32_t at = base + SLICE * w, left = at < to ? to - at : 0;
            const uint32_t part = entry < left ? __ldg(&list[at + entry]) : 0;
            if (!waited)
                wait_for_kernel_before();
            waited = true;
            const lane_state<D> mine = left > 0 ? sum_slice<T, D>(a, part, left, h)
                                                : lane_state<D>();
            if (size > 1 && to - from > SLICE)
                join_team<D>(&handed[warp - w], w, size, slices_of(to - base, size), all, mine);
            else if (left > 0)
                join_slice(all, mine);
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
