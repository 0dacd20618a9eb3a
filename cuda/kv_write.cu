/* SPDX-License-Identifier: MIT */
/* Writing a step's new K and V into the arena. */
#include "arch.cuh"

namespace {

/* Whether one of the eight 16-bit elements is infinite or a NaN: all exponent bits are set. */
template <typename T> __device__ __forceinline__ bool not_finite(const uint4 &x)
{
    constexpr uint32_t e = is_half<T> ? 0x7c007c00u : 0x7f807f80u;
    bool bad = false;
    for (uint32_t w : { x.x, x.y, x.z, x.w })
        bad |= (w & e & 0xffff) == (e & 0xffff) || (w & e & 0xffff0000u) == (e & 0xffff0000u);
    return bad;
}

/* Grid: any; the sizes are read from the image, so that a launch is the same for every plan.
 * Block: 256. A thread moves 16 bytes of K and of V. A V that is not finite would reach rows that
 * do not see it, because the matrix unit multiplies it by their weight of 0. So it is kept as a
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
        const size_t to = (((size_t)(a.first_plane + h) * a.plane + (size_t)place.y * a.D) >> 3) +
                          c;
        uint4 k = __ldg((const uint4 *)a.k + from), v = __ldg((const uint4 *)a.v + from);
        if (not_finite<T>(v)) {
            k = make_uint4(~0u, ~0u, ~0u, ~0u);
            v = make_uint4(0, 0, 0, 0);
        }
        ((uint4 *)a.arena)[to] = k;
        ((uint4 *)a.arena)[to + (a.Hkv * a.plane >> 3)] = v;
    }
}

} // namespace

extern "C" const void *ideft_cuda_write_function(int bf16)
{
    return bf16 ? (const void *)ideft_write_kernel<__nv_bfloat16>
                : (const void *)ideft_write_kernel<__half>;
}
