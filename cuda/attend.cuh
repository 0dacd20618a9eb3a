/* SPDX-License-Identifier: MIT */
/* Partial attention over the records of an image: one persistent block a multiprocessor.
 *
 * A block takes every gridDim-th unit. Its last warps produce: one streams the unit's tokens, 64 at
 * a time, into a ring of stages, the others gather the rows of Q. They run ahead into the next unit
 * while the two warpgroups before them still finish this one. A warpgroup multiplies 64 matrix rows
 * (query heads of one KV head, of adjoining query rows) by a tile: S = Q K^T, weights, O += P V.
 * Products are padded to 64 rows, which costs nothing: the memory is the slower side (at 64 rows,
 * 64 operations a byte, half of what the chip has). What counts is that each KV byte is fetched
 * once for as many rows as there are.
 *
 * Up to 64 matrix rows, both warpgroups have the same rows and take tiles by turns (one computes
 * weights while the other multiplies), and join their states at the end through shared memory.
 * Above, each has 64 rows of its own and skips tiles that none of them sees. Up to 16 see narrow.cuh.
 *
 * Order is fixed everywhere: tiles by their number, states by warp, partials by the plan. A row's bits
 * depend on the tokens of its tiles, their order, and on whether the unit is narrow, which it never is in
 * an invariant step.
 *
 * Shapes: Q tile [128][D], K and V tiles [64][D], in panels (arch.cuh). A thread of a warpgroup has
 * rows r and r + 8 of the warp's 16, and of each 8 columns the two at 2 * (lane % 4).
 * m is in units of log2; d is a thread's own share until the end. */
#include "narrow.cuh"
#include "produce.cuh"

namespace {

/* A computing warp's life. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume(const ideft_cuda_attend_t &a, control &ctl, unsigned char *stages, unsigned char *q)
{
    const uint32_t wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
    ring at = { 0, 0 };
    /* A tile's V behind its last token is multiplied by weights of 0: it must not be a NaN. */
    for (uint32_t i = threadIdx.x; i < a.stages * (shape<D>::KV_BYTES / 16); i += CONSUMERS)
        *(uint4 *)(stages + (i / (shape<D>::KV_BYTES / 16) * 2 + 1) * (size_t)shape<D>::KV_BYTES +
                   i % (shape<D>::KV_BYTES / 16) * 16) = make_uint4(0, 0, 0, 0);
#if IDEFT_HOPPER
    fence_async();
#endif
    for (uint32_t i = 0; i < a.stages; i++)
        mbarrier_arrive(&ctl.empty[i]);
    for (uint32_t k = 0;; k++) {
        const uint32_t buf = k % a.q_buffers;
        mbarrier_wait(&ctl.q_full[buf], k / a.q_buffers & 1);
        const unit_meta &unit = ctl.unit[buf];
        unsigned char *q_tile = q + (size_t)buf * shape<D>::Q_BYTES;
        if (unit.n_rows == 0)
            return;
        bool narrow = false;
        if constexpr (D <= IDEFT_NARROW_DIM) {
            narrow = unit.kind() == IDEFT_SHARE_TOKENS;
            if (narrow)
                consume_narrow<T, D, GENERAL>(a, ctl, stages, q_tile, unit, at, wg);
        }
        if (!narrow)
            consume_unit<T, D, GENERAL>(a, ctl, stages, q_tile, unit, at, wg);
#if IDEFT_HOPPER
        fence_async(); /* the copy engine is next to write where Q and outputs were */
#endif
        mbarrier_arrive(&ctl.q_empty[buf]);
    }
}

/* Grid: a block a multiprocessor. Block: THREADS, one a multiprocessor because of its shared memory
 * and registers. Shared memory: stages, buffers of Q, control. GENERAL: with windows or a soft cap;
 * apart, because code that is not there need not be fetched. */
template <typename T, int D, bool GENERAL>
__global__ void __launch_bounds__(THREADS, 1) ideft_attend_kernel(const __grid_constant__ ideft_cuda_attend_t a)
{
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char *stages = shared, *q = stages + (size_t)a.stages * 2 * shape<D>::KV_BYTES;
    control &ctl = *(control *)(q + (size_t)a.q_buffers * shape<D>::Q_BYTES);
    const uint32_t lane = threadIdx.x % 32;
    /* through a shuffle, so that the compiler sees that a warp agrees */
    const uint32_t warp = __shfl_sync(~0u, threadIdx.x < CONSUMERS ? 0 : (threadIdx.x - CONSUMERS) / 32, 0);
    const bool does_q = !IDEFT_HOPPER || (warp >= 2 && warp < 2 + shape<D>::Q_LOADERS / 32);
    const uint32_t side = !IDEFT_HOPPER ? 2 : warp < 2 ? warp : 3;
    const uint32_t q_lane = IDEFT_HOPPER ? threadIdx.x - CONSUMERS - 64 : lane;
    order<D> o = {};
    job_t job = {};
    if (threadIdx.x >= CONSUMERS) { /* what takes longest first */
        const ideft_cuda_head_t *head = (const ideft_cuda_head_t *)a.image;
        fetch_order<D>(a, o, blockIdx.x / a.Hkv, side < 3, does_q, q_lane, lane);
        job = { __ldg(&head->n_units), __ldg(&head->n_records), __ldg(&head->by_head),
                (const ideft_cuda_copy_t *)(a.image + __ldg(&head->copies)) };
#if IDEFT_HOPPER
        if (shape<D>::BOXES && side < 3 && lane < IDEFT_BOXES)
            asm volatile("prefetch.tensormap [%0];" ::"l"(&a.box[lane]) : "memory");
        if (shape<D>::BOXES && does_q && lane < IDEFT_Q_BOXES)
            asm volatile("prefetch.tensormap [%0];" ::"l"(&a.q_box[lane]) : "memory");
#endif
    }
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (uint32_t i = 0; i < a.stages; i++) {
            mbarrier_init(&ctl.full[i], shape<D>::FULL_COUNT);
            mbarrier_init(&ctl.empty[i], CONSUMERS);
        }
#pragma unroll 1
        for (uint32_t i = 0; i < a.q_buffers; i++) {
            mbarrier_init(&ctl.q_full[i], shape<D>::Q_COUNT);
            mbarrier_init(&ctl.q_empty[i], CONSUMERS);
        }
#if IDEFT_HOPPER
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    }
    __syncthreads(); /* publishes the barriers */
    let_next_kernel_start();
    if (threadIdx.x >= CONSUMERS) {
#if IDEFT_HOPPER
        asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
#endif
        wait_for_kernel_before();
        if (side < 3 || does_q)
            produce<T, D>(a, ctl, stages, q, o, job, side, does_q, q_lane);
    } else {
#if IDEFT_HOPPER
        asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
#endif
        consume<T, D, GENERAL>(a, ctl, stages, q);
    }
#endif
}

template <typename T> ideft_cuda_kernel_t kernel_of(uint32_t D, int general, int hopper)
{
#define IDEFT_KERNEL(_d)                                                                                       \
    if (D == _d)                                                                                               \
        return { general ? (const void *)ideft_attend_kernel<T, _d, true>                                      \
                         : (const void *)ideft_attend_kernel<T, _d, false>,                                    \
                 hopper ? 384u : 288u, 2 * (size_t)shape<_d>::KV_BYTES, (size_t)shape<_d>::Q_BYTES,            \
                 sizeof(control) };
    IDEFT_CUDA_DIMS(IDEFT_KERNEL)
#undef IDEFT_KERNEL
    return { nullptr, 0, 0, 0, 0 };
}

} // namespace
