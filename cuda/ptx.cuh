/* SPDX-License-Identifier: MIT */
/* Thin wrappers around the instructions that every supported architecture has: mbarriers, copies
 * into shared memory, matrix fragments, the fast exponential, conversions. What only one
 * architecture has is in sm90.cuh; where the architectures do the same thing by different
 * instructions, sm90.cuh and sm80.cuh have a function of the same name. */
#ifndef IDEFT_PTX_CUH
#define IDEFT_PTX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

template <typename T> constexpr bool is_half = false;
template <> constexpr bool is_half<__half> = true;

/* Address in the shared window, as PTX takes it. */
__device__ __forceinline__ uint32_t smem_of(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- mbarriers: completed by a number of arrivals (and of bytes). Waiting is by the parity of the
 * phase; mbarrier_wait() is in sm90.cuh and sm80.cuh. ---- */

__device__ __forceinline__ void mbarrier_init(uint64_t *b, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_of(b)), "r"(count)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t *b)
{
    asm volatile("{\n.reg .b64 t;\nmbarrier.arrive.shared::cta.b64 t, [%0];\n}" ::"r"(smem_of(b))
                 : "memory");
}

/* Arrive for `count` threads at once. */
__device__ __forceinline__ void mbarrier_arrive(uint64_t *b, uint32_t count)
{
    asm volatile(
        "{\n.reg .b64 t;\nmbarrier.arrive.shared::cta.b64 t, [%0], %1;\n}" ::"r"(smem_of(b)),
        "r"(count)
        : "memory");
}

/* Whether the phase is complete, without waiting. */
__device__ __forceinline__ bool mbarrier_test(const uint64_t *b, uint32_t parity)
{
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(smem_of(b)), "r"(parity)
                 : "memory");
    return done != 0;
}

/* ---- copies into shared memory, 16 bytes a thread ---- */

/* No "memory" clobber: the compiler may move loads past the copy. */
__device__ __forceinline__ void copy_16(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
}

__device__ __forceinline__ void copies_wait()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* Arrive when all copies that this thread has issued so far have landed. */
__device__ __forceinline__ void mbarrier_arrive_after_copies(uint64_t *b)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_of(b))
                 : "memory");
}

/* ---- arithmetic ---- */

/* 2^x. exp2_fast(-INFINITY) is 0. */
__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Two floats to two 16-bit elements in a word, and four back. */
template <typename T> __device__ __forceinline__ uint32_t pack(float lo, float hi);
template <> __device__ __forceinline__ uint32_t pack<__half>(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}
template <> __device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float lo, float hi)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

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

/* ---- matrix fragments and the product of a single warp ---- */

/* Four 8x8 matrices of 16-bit elements; each lane gives the address of one row. */
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_trans(uint32_t (&r)[4], uint32_t at)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* c[16 x 8] += a[16 x 16] b[16 x 8] */
template <typename T>
__device__ __forceinline__ void mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    if constexpr (is_half<T>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7},"
            " {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7},"
            " {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif
