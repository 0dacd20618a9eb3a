/* SPDX-License-Identifier: MIT */
/* The attention kernel: partial attention over the records of a plan's image (kernels.h).
 *
 * One persistent block a multiprocessor takes every gridDim-th unit of work, a record and a KV
 * head. Its first two warpgroups compute (consume.cuh). Its other warps produce (produce.cuh):
 * they stream the unit's tokens, 64 at a time, into a ring of stages in shared memory, gather the
 * rows of Q, and run ahead into the next unit while this one is finished. A warpgroup multiplies
 * 64 matrix rows (query heads of one KV head, of neighbouring query rows) by a tile: S = Q K^T,
 * weights, O += P V. Products are padded to 64 rows. That costs nothing, because memory is slower:
 * 64 rows are 64 operations a byte, half of what the chip can do. What counts is that a byte of KV
 * is fetched once for as many rows as possible.
 *
 * How the two warpgroups share a unit depends on its rows:
 *
 *   over 64       each has 64 rows of its own and skips tiles that none of them sees
 *   up to 64      both have the same rows and take turns at tiles, so that one computes weights
 *                 while the other multiplies; at the end they join states through shared memory
 *   up to 16      narrow.cuh
 *
 * Every order is fixed: of tiles by number, of states by warp, of partials by the plan. A row's
 * bits depend on the tokens of its tiles, on their order and on whether the unit is narrow; in an
 * invariant step none is.
 *
 * Shapes: Q tile [128][D], K and V tiles [64][D], in panels (tile.cuh). m is in units of log2. */
#include "narrow.cuh"
#include "produce.cuh"

namespace {

/* A computing warp, from its first unit to the last. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume(const ideft_cuda_attend_t &a, control &ctl,
                                        unsigned char *stages, unsigned char *q)
{
    const uint32_t wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
    ring at = { 0, 0 };
    /* V past a tile's last token is multiplied by weights of 0: it must not be a NaN */
    for (uint32_t i = threadIdx.x; i < a.stages * (shape<D>::KV_BYTES / 16); i += CONSUMERS)
        *(uint4 *)(stages + (i / (shape<D>::KV_BYTES / 16) * 2 + 1) * (size_t)shape<D>::KV_BYTES +
                   i % (shape<D>::KV_BYTES / 16) * 16) = make_uint4(0, 0, 0, 0);
    fence_async();
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
        fence_async(); /* the copy engine is next to write where Q and outputs were */
        mbarrier_arrive(&ctl.q_empty[buf]);
    }
}

/* Grid: a block a multiprocessor. Block: THREADS; its shared memory and registers leave no room for
 * a second. Dynamic shared memory: stages, buffers of Q, control. GENERAL: with windows or a soft
 * cap. They are a kernel of their own because code that is not there need not be fetched. */
template <typename T, int D, bool GENERAL>
__global__ void __launch_bounds__(THREADS, 1)
    ideft_attend_kernel(const __grid_constant__ ideft_cuda_attend_t a)
{
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char *stages = shared, *q = stages + (size_t)a.stages * 2 * shape<D>::KV_BYTES;
    control &ctl = *(control *)(q + (size_t)a.q_buffers * shape<D>::Q_BYTES);
    const uint32_t lane = threadIdx.x % 32;
    /* through a shuffle, so that the compiler sees that a warp agrees */
    const uint32_t warp =
        __shfl_sync(~0u, threadIdx.x < CONSUMERS ? 0 : (threadIdx.x - CONSUMERS) / 32, 0);
    const producer_role role = role_of(warp, lane, shape<D>::Q_LOADERS / 32);
    unit_loads<D> u = {};
    unit_list units = {};
    if (threadIdx.x >= CONSUMERS) { /* what takes longest first */
        const ideft_cuda_head_t *head = (const ideft_cuda_head_t *)a.image;
        fetch_unit<D>(a, u, blockIdx.x / a.Hkv, role, lane);
        units = read_units(a, head);
        if constexpr (shape<D>::BOXES) {
            if (role.kv < NO_KV && lane < IDEFT_BOXES)
                prefetch_map(&a.box[lane]);
            if (role.q && lane < IDEFT_Q_BOXES)
                prefetch_map(&a.q_box[lane]);
        }
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
        mbarriers_publish();
    }
    __syncthreads(); /* publishes the mbarriers */
    let_next_kernel_start();
    if (threadIdx.x >= CONSUMERS) {
        producer_registers();
        wait_for_kernel_before();
        if (role.kv < NO_KV || role.q)
            produce<T, D>(a, ctl, stages, q, u, units, role);
    } else {
        consumer_registers();
        consume<T, D, GENERAL>(a, ctl, stages, q);
    }
}

/* ---- for the host ---- */

/* The kernel as the code of one architecture needs to be launched. */
template <typename ARCH, typename T, int D> ideft_cuda_kernel_t kernel_as(int general)
{
    return { general ? (const void *)ideft_attend_kernel<T, D, true>
                     : (const void *)ideft_attend_kernel<T, D, false>,
             ARCH::NAME,
             (uint32_t)THREADS_OF<ARCH>,
             BOXES_OF<ARCH, D>,
             2 * (size_t)shape<D>::KV_BYTES,
             (size_t)shape<D>::Q_BYTES,
             sizeof(control) };
}

template <typename T> ideft_cuda_kernel_t kernel_of(uint32_t D, int general, uint32_t max_threads)
{
    const bool sm90 = max_threads >= THREADS_OF<sm90_facts>;
#define IDEFT_KERNEL(_d) \
    if (D == _d)         \
        return sm90 ? kernel_as<sm90_facts, T, _d>(general) : kernel_as<sm80_facts, T, _d>(general);
    IDEFT_CUDA_DIMS(IDEFT_KERNEL)
#undef IDEFT_KERNEL
    return { nullptr, nullptr, 0, 0, 0, 0, 0 };
}

} // namespace
