/* SPDX-License-Identifier: MIT */
/* What depends on the architecture.
 *
 * IDEFT_HOPPER: sm_90a. Tiles come through the tensor copy engine, products are wgmma. Elsewhere
 * (sm_80 and, as PTX, whatever comes later) they come by cp.async, and products are mma.sync.
 * Both use one layout of shared memory, one of fragments and one order of work. */
#ifndef IDEFT_ARCH_CUH
#define IDEFT_ARCH_CUH

#include "ptx.cuh"
#include "tile.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define IDEFT_HOPPER 1
#else
#define IDEFT_HOPPER 0
#endif

/* Two warpgroups compute. The producing warps come behind them in the block. */
constexpr int CONSUMERS = 256;

/* ---- waiting for the kernel before (programmatic dependent launch) ---- */

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

/* ---- mbarriers ---- */

__device__ __forceinline__ void mbarrier_wait(uint64_t *b, uint32_t parity)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(smem_of(b)), "r"(parity) : "memory");
#else
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.test_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(smem_of(b)), "r"(parity) : "memory");
#endif
}

/* ---- the tensor copy engine ---- */

#if IDEFT_HOPPER
/* Ordinary stores to shared memory before, the copy engine and the matrix unit after. */
__device__ __forceinline__ void fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_of(b)), "r"(bytes) : "memory");
}

/* A copy that leaves the L2 first. */
__device__ __forceinline__ uint64_t evict_first()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ __forceinline__ void stream_box(uint32_t to, const ideft_cuda_map_t *map, uint32_t slot, uint32_t panel,
                                           uint32_t plane, uint64_t *b, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
                 " [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
                 "l"(map), "r"(0), "r"(slot), "r"(panel), "r"(plane), "r"(smem_of(b)), "l"(policy)
                 : "memory");
}

/* A box of the arena as [plane][panel][slot][64 columns]. */
__device__ __forceinline__ void copy_box(uint32_t to, const ideft_cuda_map_t *map, uint32_t slot, uint32_t panel,
                                         uint32_t plane, uint64_t *b)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(to),
                 "l"(map), "r"(0), "r"(slot), "r"(panel), "r"(plane), "r"(smem_of(b))
                 : "memory");
}
#endif

/* ---- wgmma ---- */

#if IDEFT_HOPPER
__device__ __forceinline__ void wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int N> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* The compiler must not move uses of the registers over this. */
template <int N> __device__ __forceinline__ void hold(float *r)
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+f"(r[i])::"memory");
}

/* Matrix descriptor of an operand in a panel W columns wide, in shared memory at at16 * 16 bytes.
 * PANEL: bytes from one panel to the next. */
template <int W, int PANEL> __device__ __forceinline__ uint64_t descriptor(uint32_t at16)
{
    constexpr uint32_t swizzle = W == 64 ? 1 : W == 32 ? 2 : 3, high = (W * 16 >> 4) | swizzle << 30;
    uint64_t d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(at16 | (uint32_t)(PANEL >> 4) << 16), "n"(high));
    return d;
}

#define F4(_i) "+f"(c[_i]), "+f"(c[_i + 1]), "+f"(c[_i + 2]), "+f"(c[_i + 3])
#define F8(_i) F4(_i), F4(_i + 4)
#define F16(_i) F8(_i), F8(_i + 8)
#define F32(_i) F16(_i), F16(_i + 16)
#define F64(_i) F32(_i), F32(_i + 32)
#define C8 "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define C16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define C32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
            "%26,%27,%28,%29,%30,%31}"
#define C64 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25," \
            "%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,"    \
            "%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

/* A from registers. */
#define WGMMA_RS(_n, _type, _list, _regs, _a, _b, _scale, _trans)                                              \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #_scale ", 0;\n"                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #_n "k16.f32." _type "." _type " " _list ", " _a ", %" #_b \
                 ", p, 1, 1, %" #_trans ";\n}"                                                                 \
                 : _regs : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANS))

/* c (+)= A B with B in shared memory, N columns; TRANS: B lies [k][n]. */
template <typename T, int N, int TRANS>
__device__ __forceinline__ void wgmma_rs(float *c, const uint32_t *a, uint64_t b, int accumulate)
{
    constexpr bool half = is_half<T>;
    if constexpr (N == 16 && half)
        WGMMA_RS(16, "f16", C8, F8(0), "{%8,%9,%10,%11}", 12, 13, 14);
    else if constexpr (N == 16)
        WGMMA_RS(16, "bf16", C8, F8(0), "{%8,%9,%10,%11}", 12, 13, 14);
    else if constexpr (N == 32 && half)
        WGMMA_RS(32, "f16", C16, F16(0), "{%16,%17,%18,%19}", 20, 21, 22);
    else if constexpr (N == 32)
        WGMMA_RS(32, "bf16", C16, F16(0), "{%16,%17,%18,%19}", 20, 21, 22);
    else if constexpr (N == 64 && half)
        WGMMA_RS(64, "f16", C32, F32(0), "{%32,%33,%34,%35}", 36, 37, 38);
    else if constexpr (N == 64)
        WGMMA_RS(64, "bf16", C32, F32(0), "{%32,%33,%34,%35}", 36, 37, 38);
    else if constexpr (half)
        WGMMA_RS(128, "f16", C64, F64(0), "{%64,%65,%66,%67}", 68, 69, 70);
    else
        WGMMA_RS(128, "bf16", C64, F64(0), "{%64,%65,%66,%67}", 68, 69, 70);
}

/* c (+)= A B^T, both in shared memory, 64 columns. */
template <typename T> __device__ __forceinline__ void wgmma_ss(float *c, uint64_t a, uint64_t b, int accumulate)
{
    if constexpr (is_half<T>)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " C32 ", %32, %33, p, 1, 1, 0, 0;\n}"
                     : F32(0) : "l"(a), "l"(b), "r"(accumulate));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " C32 ", %32, %33, p, 1, 1, 0, 0;\n}"
                     : F32(0) : "l"(a), "l"(b), "r"(accumulate));
}
#endif

#endif
