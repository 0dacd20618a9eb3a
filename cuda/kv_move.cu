/* SPDX-License-Identifier: MIT */
/* Moving tokens to other slots of the arena, in all layers at once. */
#include "arch.cuh"

namespace {

/* Grid: planes (a KV head's K or V of a layer), each by as many blocks as a token has pieces of
 * IDEFT_MOVE_CHUNKS. Block: 256. A block reads its piece of all tokens before it writes one: a slot
 * may be in both lists. */
__global__ void __launch_bounds__(256) ideft_move_kernel(const ideft_cuda_move_t a)
{
    __shared__ uint4 kept[IDEFT_MOVE_TOKENS * IDEFT_MOVE_CHUNKS];
    const uint32_t chunks = a.D / 8, parts = (chunks + IDEFT_MOVE_CHUNKS - 1) / IDEFT_MOVE_CHUNKS;
    const uint32_t first = blockIdx.x % parts * IDEFT_MOVE_CHUNKS, n = a.n * IDEFT_MOVE_CHUNKS;
    uint4 *plane = (uint4 *)a.arena + (size_t)(blockIdx.x / parts) * (a.plane >> 3);
    wait_for_kernel_before();
    for (uint32_t i = threadIdx.x; i < n; i += 256)
        if (first + i % IDEFT_MOVE_CHUNKS < chunks)
            kept[i] = plane[(size_t)a.from[i / IDEFT_MOVE_CHUNKS] * chunks + first +
                            i % IDEFT_MOVE_CHUNKS];
    __syncthreads(); /* publishes `kept` */
    for (uint32_t i = threadIdx.x; i < n; i += 256)
        if (first + i % IDEFT_MOVE_CHUNKS < chunks)
            plane[(size_t)a.to[i / IDEFT_MOVE_CHUNKS] * chunks + first + i % IDEFT_MOVE_CHUNKS] =
                kept[i];
}

} // namespace

extern "C" const void *ideft_cuda_move_function(void)
{
    return (const void *)ideft_move_kernel;
}
