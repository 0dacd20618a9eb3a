/* SPDX-License-Identifier: MIT */
/* sm_90a: the tensor copy engine and wgmma. Included by arch.cuh alone, which lists the names that
 * this file and sm80.cuh have in common. */
#ifndef IDEFT_SM90_CUH
#define IDEFT_SM90_CUH

/* ---- programmatic dependent launch ---- */

__device__ __forceinline__ void wait_for_kernel_before()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ void let_next_kernel_start()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* ---- mbarriers and fences ---- */

__device__ __forceinline__ void mbarrier_wait(uint64_t *b, uint32_t parity)
{
    asm volatile("{\n.reg .pred p;\nagain:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@!p bra again;\n}" ::"r"(smem_of(b)),
                 "r"(parity)
                 : "memory");
}

__device__ __forceinline__ void mbarriers_publish()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void fence_async()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- warps ---- */

/* Of the producing warps, the first brings K, the second V, the next one or two Q. */
__device__ __forceinline__ producer_role role_of(uint32_t warp, uint32_t, uint32_t q_warps)
{
    return { warp < 2 ? warp : NO_KV, warp >= 2 && warp < 2 + q_warps,
             threadIdx.x - CONSUMERS - 64 };
}

/* Three warpgroups start with 168 registers a thread. 88 + 2 * 208 are as many. */
__device__ __forceinline__ void producer_registers()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 88;");
}

__device__ __forceinline__ void consumer_registers()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 208;");
}

/* ---- wgmma ---- */

/* The registers are read or written by products from here on. */
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

/* The compiler must not move a use of these registers from one side of this to the other. */
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
    constexpr uint32_t swizzle = W == 64 ? 1 : W == 32 ? 2 : 3;
    constexpr uint32_t high = (W * 16 >> 4) | swizzle << 30;
    uint64_t d;
    asm("mov.b64 %0, {%1, %2};" : "=l"(d) : "r"(at16 | (uint32_t)(PANEL >> 4) << 16), "n"(high));
    return d;
}

/* Operand lists of asm, which no function can make: 4 to 64 accumulators, and their numbers. */
#define F4(_i) "+f"(c[_i]), "+f"(c[_i + 1]), "+f"(c[_i + 2]), "+f"(c[_i + 3])
#define F8(_i) F4(_i), F4(_i + 4)
#define F16(_i) F8(_i), F8(_i + 8)
#define F32(_i) F16(_i), F16(_i + 16)
#define F64(_i) F32(_i), F32(_i + 32)
#define C8 "{%0,%1,%2,%3,%4,%5,%6,%7}"
#define C16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define C32                                                                                   \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
    "%24,%25,%26,%27,%28,%29,%30,%31}"
#define C64                                                                                   \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
    "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,"    \
    "%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

/* A from registers. _a, _b, _scale, _trans: numbers of the operands after the accumulators. */
#define WGMMA_RS(_n, _type, _list, _regs, _a, _b, _scale, _trans)                             \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #_scale ", 0;\n"                        \
                 "wgmma.mma_async.sync.aligned.m64n" #_n "k16.f32." _type "." _type " " _list \
                 ", " _a ", %" #_b ", p, 1, 1, %" #_trans ";\n}"                              \
                 : _regs                                                                      \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),       \
                   "n"(TRANS))

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
template <typename T>
__device__ __forceinline__ void wgmma_ss(float *c, uint64_t a, uint64_t b, int accumulate)
{
    if constexpr (is_half<T>)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " C32
                     ", %32, %33, p, 1, 1, 0, 0;\n}"
                     : F32(0)
                     : "l"(a), "l"(b), "r"(accumulate));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " C32
                     ", %32, %33, p, 1, 1, 0, 0;\n}"
                     : F32(0)
                     : "l"(a), "l"(b), "r"(accumulate));
}

#undef F4
#undef F8
#undef F16
#undef F32
#undef F64
#undef C8
#undef C16
#undef C32
#undef C64
#undef WGMMA_RS

/* ---- products: under way when the functions return ---- */

template <int N> __device__ __forceinline__ void products_wait()
{
    wgmma_wait<N>();
}

template <int N> __device__ __forceinline__ void settle(float (&r)[N])
{
    hold<N>(r);
}

/* S = Q K^T, 64 rows by 64 tokens. q: the warp's rows if Q_IN_REGISTERS; else they are read from
 * the tile, where `row` is the first of the warp. */
template <typename T, int D>
__device__ __forceinline__ void scores(float (&s)[32], const uint32_t (&q)[D / 16][4],
                                       const unsigned char *q_tile, uint32_t row,
                                       const unsigned char *k)
{
    constexpr int W = panel_width<D>(D / 64);
    const uint32_t q16 = (smem_of(q_tile) >> 4) + (row & 64) * 8, k16 = smem_of(k) >> 4;
    hold<32>(s);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const int q_at = i / 4 * IDEFT_ROWS * 8 + i % 4 * 2;
        const int k_at = i / 4 * IDEFT_TILE * 8 + i % 4 * 2;
        if constexpr (!Q_IN_REGISTERS<D>)
            wgmma_ss<T>(s, descriptor<64, 16>(q16 + q_at), descriptor<64, 16>(k16 + k_at), i > 0);
        else if (i / 4 < D / 64)
            wgmma_rs<T, 64, 0>(s, q[i], descriptor<64, 16>(k16 + k_at), i > 0);
        else
            wgmma_rs<T, 64, 0>(s, q[i], descriptor<W, 16>(k16 + k_at), i > 0);
    }
    wgmma_commit();
}

/* O += P V. Past a tile's last token weights are 0, and V is finite: it is 0 or of an earlier
 * tile. */
template <typename T, int D>
__device__ __forceinline__ void add_values(float (&o)[D / 2], const uint32_t (&p)[4][4],
                                           const unsigned char *v)
{
    constexpr int PANEL = IDEFT_TILE * 128;
    const uint32_t at = smem_of(v) >> 4;
    hold<D / 2>(o);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (D % 128 == 0) {
#pragma unroll
            for (int j = 0; j < D / 128; j++)
                wgmma_rs<T, 128, 1>(o + j * 64, p[i],
                                    descriptor<64, PANEL>(at + (j * 2 * PANEL + i * 2048 >> 4)), 1);
        } else {
            wgmma_rs<T, 64, 1>(o, p[i], descriptor<64, PANEL>(at + i * 128), 1);
            if constexpr (D % 64 != 0) {
                constexpr int W = D % 64;
                wgmma_rs<T, W, 1>(o + 32, p[i],
                                  descriptor<W, PANEL>(at + (PANEL + i * W * 32 >> 4)), 1);
            }
        }
    }
    wgmma_commit();
}

#endif
