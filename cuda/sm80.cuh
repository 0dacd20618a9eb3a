/* SPDX-License-Identifier: MIT */
/* sm_80, and by its PTX all newer chips: cp.async and mma.sync. Included by arch.cuh alone, which
 * lists the names that this file and sm90.cuh have in common. */
#ifndef IDEFT_SM80_CUH
#define IDEFT_SM80_CUH

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the kernels need sm_80: cp.async, mbarriers"
#endif

/* ---- programmatic dependent launch: chips that compile the PTX may have it ---- */

__device__ __forceinline__ void wait_for_kernel_before()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* ---- mbarriers and fences ---- */

__device__ __forceinline__ void mbarrier_wait(uint64_t *b, uint32_t parity)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(smem_of(b)),
                 "r"(parity)
                 : "memory");
#else
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(smem_of(b)),
                 "r"(parity)
                 : "memory");
#endif
}

__device__ __forceinline__ void mbarriers_publish() {}

__device__ __forceinline__ void fence_async() {}

/* ---- warps ---- */

/* The one producing warp brings everything. */
__device__ __forceinline__ producer_role role_of(uint32_t, uint32_t lane, uint32_t)
{
    return { K_AND_V, true, lane };
}

__device__ __forceinline__ void producer_registers() {}

__device__ __forceinline__ void consumer_registers() {}

/* ---- products: complete when the functions return ---- */

template <int N> __device__ __forceinline__ void products_wait() {}

template <int N> __device__ __forceinline__ void settle(float (&)[N]) {}

/* S = Q K^T, 64 rows by 64 tokens. q: the warp's rows if Q_IN_REGISTERS; else they are read from
 * `row` on of the tile. */
template <typename T, int D>
__device__ __forceinline__ void scores(float (&s)[32], const uint32_t (&q)[D / 16][4],
                                       const unsigned char *q_tile, uint32_t row,
                                       const unsigned char *k)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 32; i++)
        s[i] = 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t own[4];
        if constexpr (!Q_IN_REGISTERS<D>)
            load_matrices(own, smem_of(q_tile) +
                                   tile_chunk<D>(IDEFT_ROWS, row + lane % 16, i * 2 + lane / 16));
        const uint32_t *a = Q_IN_REGISTERS<D> ? q[i] : own;
#pragma unroll
        for (int n = 0; n < 4; n++) { /* 16 tokens */
            uint32_t b[4];
            load_matrices(b,
                          smem_of(k) + tile_chunk<D>(IDEFT_TILE, n * 16 + lane % 8 + lane / 16 * 8,
                                                     i * 2 + lane / 8 % 2));
            mma<T>(s + n * 8, a, b[0], b[1]);
            mma<T>(s + n * 8 + 4, a, b[2], b[3]);
        }
    }
}

/* O += P V. Past a tile's last token weights are 0, and V is finite: it is 0 or of an earlier
 * tile. */
template <typename T, int D>
__device__ __forceinline__ void add_values(float (&o)[D / 2], const uint32_t (&p)[4][4],
                                           const unsigned char *v)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            load_matrices_trans(
                b, smem_of(v) + tile_chunk<D>(IDEFT_TILE, i * 16 + lane % 16, n * 2 + lane / 16));
            mma<T>(o + n * 8, p[i], b[0], b[1]);
            mma<T>(o + n * 8 + 4, p[i], b[2], b[3]);
        }
    }
}

#endif
