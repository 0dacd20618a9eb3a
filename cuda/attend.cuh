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
 * Above, each has 64 rows of its own and skips tiles that none of them sees.
 *
 * Order is fixed everywhere: tiles by their number, states by warpgroup, partials by the plan. A
 * row's bits depend on the tokens of its tiles and their order alone.
 *
 * Shapes: Q tile [128][D], K and V tiles [64][D], in panels (arch.cuh). A thread of a warpgroup has
 * rows r and r + 8 of the warp's 16, and of each 8 columns the two at 2 * (lane % 4).
 * m is in units of log2; d is a thread's own share until the end. */
#include "arch.cuh"

#include <math.h>

namespace {

struct tile_meta {
    uint32_t lohi[IDEFT_TILE / 2]; /* a column: lo | hi << 8; two a word */
    uint32_t pos[IDEFT_TILE];
    uint32_t flags, used;
};

struct unit_meta {
    uint32_t n_rows, head, part, tokens; /* n_rows 0: no unit follows */
    ideft_cuda_row_t row[IDEFT_ROWS];
};

constexpr int MAX_STAGES = 8, MAX_Q = 2;

/* What is behind the tiles in shared memory. */
struct control {
    uint64_t full[MAX_STAGES], empty[MAX_STAGES], q_full[MAX_Q], q_empty[MAX_Q];
    float2 state[2][64]; /* m, d of the warpgroups, to be joined */
    unit_meta unit[MAX_Q];
    tile_meta tile[MAX_STAGES];
};

constexpr int CONSUMERS = 256;
constexpr int THREADS = IDEFT_HOPPER ? 384 : 288;
constexpr int Q_LOADERS = IDEFT_HOPPER ? 96 : 32;

template <int D> struct shape {
    static constexpr int KV_BYTES = IDEFT_TILE * D * 2; /* K or V of a stage */
    static constexpr int Q_BYTES = IDEFT_ROWS * D * 2;
    static constexpr int STEPS = D / 16; /* of the matrix unit over a head */
    static constexpr bool Q_IN_REGISTERS = !IDEFT_HOPPER && D <= 128;
    /* The copy engine writes at multiples of 128 bytes, which rows of a narrow panel are not. */
    static constexpr bool BOXES = IDEFT_HOPPER && D % 64 == 0;
    /* Scores are computed a tile ahead. It takes three stages, which two tiles of D 256 fill. */
    static constexpr bool AHEAD = IDEFT_HOPPER && D < 256;
};

struct ring {
    uint32_t stage, parity;
    __device__ void next(uint32_t n)
    {
        if (++stage == n) {
            stage = 0;
            parity ^= 1;
        }
    }
};

__device__ __forceinline__ const ideft_cuda_record_t *record_of(const ideft_cuda_attend_t &a, uint32_t unit)
{
    return (const ideft_cuda_record_t *)(a.records + (size_t)(unit / a.Hkv) * a.record_bytes);
}

/* ---- producing K and V ------------------------------------------------------------------------ */

/* Who sees which column; published by the arrival on `full`. */
__device__ __forceinline__ void put_meta(tile_meta &meta, const ideft_cuda_copy_t &c, uint32_t count, uint32_t used,
                                         uint32_t lane)
{
    uint16_t *lohi = (uint16_t *)meta.lohi;
    if (count == 1) {
        const uint32_t n = __shfl_sync(~0u, c.n, 0), lo = __shfl_sync(~0u, c.lo, 0), hi = __shfl_sync(~0u, c.hi, 0);
        const uint32_t edge = __shfl_sync(~0u, c.edge, 0), pos = __shfl_sync(~0u, c.pos, 0);
        for (uint32_t i = lane; i < n; i += 32) {
            lohi[i] = (uint16_t)(lo + (i > edge ? i - edge : 0) | hi << 8);
            meta.pos[i] = pos + i;
        }
    } else if (lane < count) {
        for (uint32_t i = 0; i < c.n; i++) {
            lohi[c.at + i] = (uint16_t)(c.lo + (i > c.edge ? i - c.edge : 0u) | (uint32_t)c.hi << 8);
            meta.pos[c.at + i] = c.pos + i;
        }
    }
    for (uint32_t i = used + lane; i < IDEFT_TILE; i += 32) {
        lohi[i] = 0;
        meta.pos[i] = 0;
    }
}

#if IDEFT_HOPPER
/* A lane's copy as boxes of 64, 32, ..., 1 tokens. */
template <int D>
__device__ __forceinline__ void copy_run(const ideft_cuda_attend_t &a, const ideft_cuda_copy_t &c, uint32_t k, uint32_t v,
                                         uint32_t plane, uint64_t *full)
{
    for (uint32_t done = 0; done < c.n;) {
        const uint32_t b = 31 - __clz(c.n - done), row = c.at + done, slot = c.slot + done;
#pragma unroll
        for (int p = 0; p < D / 64; p++) {
            const uint32_t at = p * IDEFT_TILE * 128 + row * 128;
            copy_box(k + at, &a.box[b], p * 64, slot, plane, full);
            copy_box(v + at, &a.box[b], p * 64, slot, plane + a.Hkv, full);
        }
        done += 1u << b;
    }
}
#endif

template <typename T, int D>
__device__ __forceinline__ void put_tile(const ideft_cuda_attend_t &a, control &ctl, unsigned char *stages,
                                         const ideft_cuda_copy_t &c, uint32_t stage, uint32_t plane, uint32_t lane)
{
    unsigned char *k = stages + (size_t)stage * 2 * shape<D>::KV_BYTES, *v = k + shape<D>::KV_BYTES;
    const uint32_t count = __shfl_sync(~0u, c.count, 0), used = __shfl_sync(~0u, c.used, 0);
    const uint32_t flags = __shfl_sync(~0u, c.flags, 0);
    tile_meta &meta = ctl.tile[stage];
    if (lane == 0) {
        meta.flags = flags;
        meta.used = used;
    }
    if ((flags & (IDEFT_MASK * 3)) != 0 || a.window != 0)
        put_meta(meta, c, count, used, lane);
#if IDEFT_HOPPER
    if constexpr (shape<D>::BOXES) {
        __syncwarp();
        if (lane == 0) /* publishes the meta data */
            barrier_expect(&ctl.full[stage], used * D * 4);
        __syncwarp();
        if (lane < count)
            copy_run<D>(a, c, smem_of(k), smem_of(v), plane, &ctl.full[stage]);
        return;
    }
#endif
    const T *arena = (const T *)a.arena;
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t slot = __shfl_sync(~0u, c.slot, i), at = __shfl_sync(~0u, c.at, i), n = __shfl_sync(~0u, c.n, i);
        for (uint32_t j = lane; j < n * (D / 8); j += 32) {
            const uint32_t row = j / (D / 8), chunk = j % (D / 8), to = tile_chunk<D>(IDEFT_TILE, at + row, chunk);
            const size_t from = (size_t)plane * a.plane + (size_t)(slot + row) * D + chunk * 8;
            copy_16(smem_of(k) + to, arena + from);
            copy_16(smem_of(v) + to, arena + from + (size_t)a.Hkv * a.plane);
        }
    }
    barrier_arrive_after_copies(&ctl.full[stage]);
    barrier_arrive(&ctl.full[stage]);
}

/* The copies of the next tile, a lane each; what is behind them is not used. */
__device__ __forceinline__ ideft_cuda_copy_t fetch_copy(const ideft_cuda_copy_t *copies, uint32_t i)
{
    const uint4 w = __ldg((const uint4 *)(copies + i));
    ideft_cuda_copy_t c;
    memcpy(&c, &w, sizeof(c));
    return c;
}

/* ---- producing Q ------------------------------------------------------------------------------- */

/* Those who gather Q wait for each other. */
__device__ __forceinline__ void loaders_meet()
{
    if (IDEFT_HOPPER)
        asm volatile("bar.sync 2, 96;" ::: "memory");
    else
        __syncwarp();
}

/* Rows of Q of a unit, and what the consumers need to know of it. `lane` counts the loaders: each
 * has one chunk of 16 bytes in every so many rows. */
template <typename T, int D>
__device__ __forceinline__ void put_rows(const ideft_cuda_attend_t &a, const uint4 h, const ideft_cuda_row_t *rows,
                                         control &ctl, unsigned char *q, uint32_t buf, uint32_t head, uint32_t lane)
{
    constexpr uint32_t CHUNKS = D / 8, STRIDE = Q_LOADERS / CHUNKS;
    const uint32_t inverse = 65536 / a.G + 1; /* r * inverse >> 16 is r / G for the 128 rows there are */
    unit_meta &unit = ctl.unit[buf];
    if (lane == 0) {
        unit.n_rows = h.y;
        unit.head = head;
        unit.part = h.z;
        unit.tokens = h.w;
    }
    for (uint32_t i = lane; i < h.y; i += Q_LOADERS)
        *(uint2 *)&unit.row[i] = __ldg((const uint2 *)&rows[i]);
    loaders_meet(); /* publishes unit.row */
    if (lane < STRIDE * CHUNKS) {
        const uint32_t n = h.y * a.G, chunk = lane % CHUNKS;
        const T *from = (const T *)a.q + (size_t)head * a.G * D + chunk * 8;
#pragma unroll 4
        for (uint32_t r = lane / CHUNKS; r < n; r += STRIDE) {
            const uint32_t query = r * inverse >> 16, token = unit.row[query].token & ~IDEFT_DIRECT;
            copy_16(smem_of(q) + tile_chunk<D>(IDEFT_ROWS, r, chunk), from + ((size_t)token * a.H + r - query * a.G) * D);
        }
    }
#if IDEFT_HOPPER
    copies_wait();
    fence_async();
#else
    barrier_arrive_after_copies(&ctl.q_full[buf]);
#endif
    barrier_arrive(&ctl.q_full[buf]); /* publishes rows and unit */
}

__device__ __forceinline__ void put_stop(control &ctl, uint32_t buf, uint32_t lane)
{
    if (lane == 0)
        ctl.unit[buf].n_rows = 0;
#if !IDEFT_HOPPER
    barrier_arrive_after_copies(&ctl.q_full[buf]);
#endif
    barrier_arrive(&ctl.q_full[buf]);
}

/* The warps behind the consumers. On Hopper the first streams K and V, three gather Q; elsewhere
 * one does both. */
template <typename T, int D>
__device__ void produce(const ideft_cuda_attend_t &a, control &ctl, unsigned char *stages, unsigned char *q)
{
    const uint32_t warp = (threadIdx.x - CONSUMERS) / 32, lane = threadIdx.x % 32;
    const bool does_kv = warp == 0, does_q = !IDEFT_HOPPER || warp > 0;
    const uint32_t q_lane = IDEFT_HOPPER ? threadIdx.x - CONSUMERS - 32 : lane;
    const ideft_cuda_head_t *head = (const ideft_cuda_head_t *)a.image;
    ideft_cuda_copy_t c = {};
    ring at = { 0, 0 };
    /* the first record is asked for before it is known to exist: the image is never shorter */
    const ideft_cuda_record_t *rec = record_of(a, blockIdx.x);
    uint4 h = __ldg((const uint4 *)rec);
    if (does_kv && lane < IDEFT_INLINE)
        c = fetch_copy((const ideft_cuda_copy_t *)((const unsigned char *)rec + a.record_bytes) - IDEFT_INLINE, lane);
    const uint32_t n_units = __ldg(&head->n_units);
    const ideft_cuda_copy_t *copies = (const ideft_cuda_copy_t *)(a.image + __ldg(&head->copies));
#if IDEFT_HOPPER
    if (shape<D>::BOXES && does_kv && lane < IDEFT_BOXES)
        asm volatile("prefetch.tensormap [%0];" ::"l"(&a.box[lane]) : "memory");
#endif
    wait_for_kernel_before();
    uint32_t k = 0;
    for (uint32_t unit = blockIdx.x; unit < n_units; unit += gridDim.x, k++) {
        const uint32_t kv_head = unit % a.Hkv, buf = k % a.q_buffers;
        if (k > 0) {
            rec = record_of(a, unit);
            h = __ldg((const uint4 *)rec);
        }
        if (does_q) {
            barrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
            put_rows<T, D>(a, h, (const ideft_cuda_row_t *)(rec + 1), ctl, q + (size_t)buf * shape<D>::Q_BYTES, buf,
                           kv_head, q_lane);
        }
        if (!does_kv)
            continue;
        uint32_t next = h.x;
        if (k > 0 || __shfl_sync(~0u, c.count, 0) > IDEFT_INLINE)
            c = fetch_copy(copies, next + lane);
        for (bool last = false; !last; at.next(a.stages)) {
            last = (__shfl_sync(~0u, c.flags, 0) & IDEFT_LAST) != 0;
            next += __shfl_sync(~0u, c.count, 0);
            const ideft_cuda_copy_t now = c;
            if (!last)
                c = fetch_copy(copies, next + lane);
            barrier_wait(&ctl.empty[at.stage], at.parity);
            put_tile<T, D>(a, ctl, stages, now, at.stage, a.first_plane + kv_head, lane);
        }
    }
    if (does_q) {
        const uint32_t buf = k % a.q_buffers;
        barrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
        put_stop(ctl, buf, q_lane);
    }
    if (does_kv && !shape<D>::BOXES)
        copies_wait();
}

/* ---- consuming --------------------------------------------------------------------------------- */

template <int D> struct state {
    float o[D / 2], m[2], d[2];
};

/* The warp's 16 rows of Q as operands. */
template <int D> __device__ __forceinline__ void load_q(uint32_t (&q)[D / 16][4], const unsigned char *tile, uint32_t row)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < D / 16; s++)
        load_matrices(q[s], smem_of(tile) + tile_chunk<D>(IDEFT_ROWS, row + lane % 16, s * 2 + lane / 16));
}

/* S = Q K^T, 64 rows by 64 tokens. On Hopper it is under way: wgmma_wait() before it is used. */
template <typename T, int D>
__device__ __forceinline__ void scores(float (&s)[32], const uint32_t (&q)[D / 16][4], const unsigned char *q_tile,
                                       uint32_t row, const unsigned char *k)
{
#if IDEFT_HOPPER
    /* Q stays in shared memory: ptxas 13.0 gave registers of a Q that wgmma reads in a loop to
     * others (seen at D 64). */
    (void)q;
    hold<32>(s);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        constexpr int W = panel_width<D>(D / 64);
        const int p = i / 4;
        const uint32_t q_at = smem_of(q_tile) + p * IDEFT_ROWS * 128 + i % 4 * 32;
        const uint32_t k_at = smem_of(k) + p * IDEFT_TILE * 128 + i % 4 * 32;
        if (p < D / 64)
            wgmma_ss<T>(s, descriptor<64>(q_at + (row & 64) * 128, 16), descriptor<64>(k_at, 16), i > 0);
        else
            wgmma_ss<T>(s, descriptor<W>(q_at + (row & 64) * W * 2, 16), descriptor<W>(k_at, 16), i > 0);
    }
    wgmma_commit();
#else
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 32; i++)
        s[i] = 0;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        uint32_t own[4];
        if constexpr (!shape<D>::Q_IN_REGISTERS)
            load_matrices(own, smem_of(q_tile) + tile_chunk<D>(IDEFT_ROWS, row + lane % 16, i * 2 + lane / 16));
        const uint32_t *a = shape<D>::Q_IN_REGISTERS ? q[i] : own;
#pragma unroll
        for (int n = 0; n < 4; n++) { /* 16 tokens */
            uint32_t b[4];
            load_matrices(b, smem_of(k) + tile_chunk<D>(IDEFT_TILE, n * 16 + lane % 8 + lane / 16 * 8,
                                                        i * 2 + lane / 8 % 2));
            mma<T>(s + n * 8, a, b[0], b[1]);
            mma<T>(s + n * 8 + 4, a, b[2], b[3]);
        }
    }
#endif
}

/* O += P V. Weights behind the last token are 0, and so is V there or it is of another tile: finite.
 * On Hopper under way, as scores(). */
template <typename T, int D>
__device__ __forceinline__ void add_values(float (&o)[D / 2], const uint32_t (&p)[4][4], const unsigned char *v)
{
#if IDEFT_HOPPER
    const uint32_t at = smem_of(v), panel = IDEFT_TILE * 128;
    hold<D / 2>(o);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (D % 128 == 0) {
#pragma unroll
            for (int j = 0; j < D / 128; j++)
                wgmma_rs<T, 128, 1>(o + j * 64, p[i], descriptor<64>(at + j * 2 * panel + i * 2048, panel), 1);
        } else {
            wgmma_rs<T, 64, 1>(o, p[i], descriptor<64>(at + i * 2048, panel), 1);
            if constexpr (D % 64 != 0) {
                constexpr int W = D % 64;
                wgmma_rs<T, W, 1>(o + 32, p[i], descriptor<W>(at + panel + i * W * 32, panel), 1);
            }
        }
    }
    wgmma_commit();
#else
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[4];
            load_matrices_trans(b, smem_of(v) + tile_chunk<D>(IDEFT_TILE, i * 16 + lane % 16, n * 2 + lane / 16));
            mma<T>(o + n * 8, p[i], b[0], b[1]);
            mma<T>(o + n * 8 + 4, p[i], b[2], b[3]);
        }
    }
#endif
}

/* Products into these registers are done. */
template <int N> __device__ __forceinline__ void settle(float (&r)[N])
{
#if IDEFT_HOPPER
    hold<N>(r);
#endif
}

/* Wait until all but the last N products under way are done. */
template <int N> __device__ __forceinline__ void products_wait()
{
#if IDEFT_HOPPER
    wgmma_wait<N>();
#endif
}

/* The rows of a thread, r and r + 8. */
struct rows_t {
    uint32_t query[2]; /* query row, in the record */
    uint32_t pos[2];
};

/* Scores that a row does not see become -inf. */
__device__ __forceinline__ void mask_scores(float (&s)[32], const tile_meta &meta, const rows_t &rows, uint32_t window)
{
    const uint32_t quad = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const uint32_t w = meta.lohi[j * 4 + quad];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t lo = w >> (16 * e) & 255, hi = w >> (16 * e + 8) & 255;
            const uint32_t first = window != 0 ? meta.pos[j * 8 + quad * 2 + e] + window : ~0u;
#pragma unroll
            for (int r = 0; r < 2; r++)
                if (rows.query[r] < lo || rows.query[r] >= hi || first <= rows.pos[r])
                    s[j * 4 + r * 2 + e] = -INFINITY;
        }
    }
}

/* Scores to weights 2^(s - m), counted into d. m moves only when a score exceeds it by 2^8, so that
 * most tiles leave O alone: where it does, by[] is what O has to be multiplied by. Returns whether a
 * row of the warp moved. */
template <int D>
__device__ __forceinline__ bool weigh(float (&s)[32], state<D> &st, float (&by)[2], const ideft_cuda_attend_t &a)
{
    float top[2] = { -INFINITY, -INFINITY }, minus[2], sum[2] = { 0, 0 };
    bool moves = false;
    if (a.cap_out != 0) {
#pragma unroll
        for (int i = 0; i < 32; i++) { /* tanh(x) = 1 - 2 / (e^2x + 1) */
            const float e = exp2_fast(s[i] * a.cap_in * 2.885390081777927f);
            s[i] = s[i] == -INFINITY ? s[i] : a.cap_out - __fdividef(2 * a.cap_out, e + 1);
        }
    }
#pragma unroll
    for (int i = 0; i < 32; i++)
        top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
        top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2)) * a.scale_log2;
        const bool move = top[r] > st.m[r] + 8;
        by[r] = move ? exp2_fast(st.m[r] - top[r]) : 1.0f;
        st.m[r] = move ? top[r] : st.m[r];
        minus[r] = st.m[r] == -INFINITY ? 0.0f : -st.m[r];
        moves |= move;
    }
#pragma unroll
    for (int i = 0; i < 32; i++) {
        s[i] = exp2_fast(fmaf(s[i], a.scale_log2, minus[i / 2 % 2]));
        sum[i / 2 % 2] += s[i];
    }
    st.d[0] = fmaf(st.d[0], by[0], sum[0]);
    st.d[1] = fmaf(st.d[1], by[1], sum[1]);
    return __any_sync(~0u, moves);
}

template <int D> __device__ __forceinline__ void scale_outputs(state<D> &st, const float (&by)[2])
{
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        st.o[i] *= by[i / 2 % 2];
}

template <typename T> __device__ __forceinline__ void pack_weights(uint32_t (&p)[4][4], const float (&s)[32])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            p[i][e] = pack<T>(s[i * 8 + e * 2], s[i * 8 + e * 2 + 1]);
}

__device__ __forceinline__ void consumers_meet()
{
    asm volatile("bar.sync 1, 256;" ::: "memory");
}

/* Both warpgroups have states of the same rows: each gives the other half of its columns and joins
 * the other half's states, the first warpgroup's first. */
template <int D> __device__ __forceinline__ void join(state<D> &st, control &ctl, float *space, uint32_t wg)
{
    const uint32_t t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
    consumers_meet(); /* both have read their Q, whose place this is */
    if (t % 4 == 0) {
        ctl.state[wg][row] = make_float2(st.m[0], st.d[0]);
        ctl.state[wg][row + 8] = make_float2(st.m[1], st.d[1]);
    }
    float *give = space + wg * (D / 4) * 128, *take = space + (wg ^ 1) * (D / 4) * 128;
#pragma unroll
    for (int i = 0; i < D / 4; i++)
        give[i * 128 + t] = wg == 0 ? st.o[D / 4 + i] : st.o[i];
    consumers_meet(); /* publishes states and columns */
    float w[2][2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float2 x = ctl.state[0][row + 8 * r], y = ctl.state[1][row + 8 * r];
        const float m = fmaxf(x.x, y.x);
        w[0][r] = x.x == -INFINITY ? 0.0f : exp2_fast(x.x - m);
        w[1][r] = y.x == -INFINITY ? 0.0f : exp2_fast(y.x - m);
        st.m[r] = m;
        st.d[r] = w[0][r] * x.y + w[1][r] * y.y;
    }
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        const float own = wg == 0 ? st.o[i] : st.o[D / 4 + i], other = take[i * 128 + t];
        const float x = wg == 0 ? own : other, y = wg == 0 ? other : own;
        const float o = w[0][i / 2 % 2] * x + w[1][i / 2 % 2] * y;
        if (wg == 0)
            st.o[i] = o;
        else
            st.o[D / 4 + i] = o;
    }
}

/* The states of the warp's 16 rows go to the output, or as partials to where they are joined: both are
 * normalised and rounded, a partial has the log2 of its denominator beside it. Through shared memory,
 * so that whole rows are written. `half`: -1 for all columns, or the half that this warpgroup has. */
template <typename T, int D>
__device__ __forceinline__ void finish(const state<D> &st, const ideft_cuda_attend_t &a, const unit_meta &unit,
                                       uint32_t first, unsigned char *space, int half)
{
    constexpr uint32_t CHUNKS = D / 8;
    const uint32_t lane = threadIdx.x % 32, quad = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t row = first + lane / 4 + 8 * r, query = row / a.G, h = unit.head * a.G + row % a.G;
        const bool there = query < unit.n_rows, direct = there && (unit.row[query].token & IDEFT_DIRECT) != 0;
        const float m = st.m[r];
        float d = st.d[r], scale = 1;
        if (direct && a.sinks != NULL) {
            const float sink = a.sinks[h], top = fmaxf(sink, m);
            scale = m == -INFINITY ? 0.0f : exp2_fast(m - top);
            d = d * scale + (sink == -INFINITY ? 0.0f : exp2_fast(sink - top));
        }
        scale = d == 0 ? 0.0f : scale / d;
        if (there && !direct && quad == 0 && half <= 0)
            a.part_lse[(size_t)(unit.part + query) * a.H + h] = d == 0 ? -INFINITY : m + __log2f(d);
#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
            if (half < 0 || (j >= CHUNKS / 2) == half)
                *(uint32_t *)(space + tile_chunk<D>(16, lane / 4 + 8 * r, j) + quad * 4) =
                    pack<T>(st.o[j * 4 + r * 2] * scale, st.o[j * 4 + r * 2 + 1] * scale);
    }
    __syncwarp(); /* publishes the rows */
    const uint32_t from = half == 1 ? CHUNKS / 2 : 0, n = half < 0 ? CHUNKS : CHUNKS / 2;
#pragma unroll 4
    for (uint32_t i = lane; i < 16 * n; i += 32) {
        const uint32_t r = i / n, chunk = from + i % n, row = first + r, query = row / a.G;
        if (query >= unit.n_rows)
            break;
        const uint32_t token = unit.row[query].token, h = unit.head * a.G + row % a.G;
        T *to = token & IDEFT_DIRECT ? (T *)a.o + ((size_t)(token & ~IDEFT_DIRECT) * a.H + h) * D
                                     : (T *)a.part_o + ((size_t)(unit.part + query) * a.H + h) * D;
        *(uint4 *)(to + chunk * 8) = *(const uint4 *)(space + tile_chunk<D>(16, r, chunk));
    }
}

/* A tile that a warpgroup has got from the ring. */
struct tile_ref {
    uint32_t stage, flags;
};

__device__ __forceinline__ void release(control &ctl, uint32_t stage)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        barrier_arrive(&ctl.empty[stage]);
}

/* The next tile that is there; those of the other warpgroup alone go back at once, unless it is the
 * unit's last. */
template <int D>
__device__ __forceinline__ tile_ref next_tile(const ideft_cuda_attend_t &a, control &ctl, ring &at, uint32_t wg)
{
    for (;;) {
        barrier_wait(&ctl.full[at.stage], at.parity);
#if IDEFT_HOPPER
        if constexpr (!shape<D>::BOXES)
            fence_async();
#endif
        /* through a shuffle, so that the compiler sees that a warp agrees */
        const tile_ref t = { at.stage, __shfl_sync(~0u, ctl.tile[at.stage].flags, 0) };
        at.next(a.stages);
        if (t.flags & (IDEFT_MINE << wg | IDEFT_LAST))
            return t;
        release(ctl, t.stage);
    }
}

/* Everything of a unit that its consumers share. */
template <int D> struct work {
    const ideft_cuda_attend_t &a;
    control &ctl;
    const unsigned char *stages;
    unsigned char *q_tile;
    uint32_t wg, first; /* matrix row of the warp's first */
    rows_t rows;

    __device__ const unsigned char *k(uint32_t stage) const
    {
        return stages + (size_t)stage * 2 * shape<D>::KV_BYTES;
    }
    __device__ const unsigned char *v(uint32_t stage) const
    {
        return k(stage) + shape<D>::KV_BYTES;
    }
};

/* The tiles of a unit that are this warpgroup's. The scores of the next tile are under way while the
 * values of this one are added and while its own weights are computed: only O has to wait. */
template <typename T, int D>
__device__ __forceinline__ void consume_tiles(const work<D> &w, ring &at, state<D> &st, const uint32_t (&q)[D / 16][4])
{
    float s[32], by[2];
    uint32_t p[4][4];
    tile_ref t = next_tile<D>(w.a, w.ctl, at, w.wg);
    bool last = (t.flags & IDEFT_LAST) != 0;
    if (t.flags & IDEFT_MINE << w.wg) {
        scores<T, D>(s, q, w.q_tile, w.first, w.k(t.stage));
        products_wait<0>();
        settle(s);
        if ((t.flags & IDEFT_MASK << w.wg) || w.a.window != 0)
            mask_scores(s, w.ctl.tile[t.stage], w.rows, w.a.window);
        weigh<D>(s, st, by, w.a); /* O is 0 */
        pack_weights<T>(p, s);
        while (!(t.flags & IDEFT_FINAL << w.wg)) {
            tile_ref next;
            bool moves;
            if constexpr (shape<D>::AHEAD) {
                next = next_tile<D>(w.a, w.ctl, at, w.wg);
                scores<T, D>(s, q, w.q_tile, w.first, w.k(next.stage));
                add_values<T, D>(st.o, p, w.v(t.stage));
                products_wait<1>();
                settle(s);
            } else {
                add_values<T, D>(st.o, p, w.v(t.stage));
                products_wait<0>();
                settle(st.o);
                release(w.ctl, t.stage);
                next = next_tile<D>(w.a, w.ctl, at, w.wg);
                scores<T, D>(s, q, w.q_tile, w.first, w.k(next.stage));
                products_wait<0>();
                settle(s);
            }
            if ((next.flags & IDEFT_MASK << w.wg) || w.a.window != 0)
                mask_scores(s, w.ctl.tile[next.stage], w.rows, w.a.window);
            moves = weigh<D>(s, st, by, w.a);
            if constexpr (shape<D>::AHEAD) {
                products_wait<0>();
                settle(st.o);
                release(w.ctl, t.stage);
            }
            if (moves)
                scale_outputs<D>(st, by);
            pack_weights<T>(p, s);
            last = (next.flags & IDEFT_LAST) != 0;
            t = next;
        }
        add_values<T, D>(st.o, p, w.v(t.stage));
        products_wait<0>();
        settle(st.o);
    }
    release(w.ctl, t.stage);
    while (!last) { /* tiles of the other warpgroup */
        t = next_tile<D>(w.a, w.ctl, at, w.wg);
        last = (t.flags & IDEFT_LAST) != 0;
        release(w.ctl, t.stage);
    }
}

/* One unit, from its first tile to its output. */
template <typename T, int D>
__device__ __forceinline__ void consume_unit(const ideft_cuda_attend_t &a, control &ctl, const unsigned char *stages,
                                             unsigned char *q_tile, const unit_meta &unit, ring &at, uint32_t wg)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const bool tokens = unit.tokens != 0;
    const uint32_t first = warp * 16 + (tokens ? 0 : wg * 64);
    work<D> w = { a, ctl, stages, q_tile, wg, first, {} };
    uint32_t q[D / 16][4];
    state<D> st;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        w.rows.query[r] = (first + lane / 4 + 8 * r) / a.G;
        w.rows.pos[r] = unit.row[w.rows.query[r] < unit.n_rows ? w.rows.query[r] : 0].pos;
        st.m[r] = -INFINITY;
        st.d[r] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        st.o[i] = 0;
    if constexpr (shape<D>::Q_IN_REGISTERS)
        load_q<D>(q, q_tile, first);
    consume_tiles<T, D>(w, at, st, q);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        st.d[r] += __shfl_xor_sync(~0u, st.d[r], 1);
        st.d[r] += __shfl_xor_sync(~0u, st.d[r], 2);
    }
    if (tokens)
        join<D>(st, ctl, (float *)q_tile, wg);
    consumers_meet(); /* nobody reads Q or what was joined any more: its place is free */
    finish<T, D>(st, a, unit, first, q_tile + (wg * 4 + warp) * (16 * D * 2), tokens ? (int)wg : -1);
}

template <typename T, int D>
__device__ void consume(const ideft_cuda_attend_t &a, control &ctl, unsigned char *stages, unsigned char *q)
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
        release(ctl, i);
    for (uint32_t k = 0;; k++) {
        const uint32_t buf = k % a.q_buffers;
        barrier_wait(&ctl.q_full[buf], k / a.q_buffers & 1);
        const unit_meta &unit = ctl.unit[buf];
        if (unit.n_rows == 0)
            return;
        consume_unit<T, D>(a, ctl, stages, q + (size_t)buf * shape<D>::Q_BYTES, unit, at, wg);
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            barrier_arrive(&ctl.q_empty[buf]);
    }
}

/* Grid: a block a multiprocessor. Block: THREADS, one a multiprocessor because of its shared memory
 * and registers. Shared memory: stages, buffers of Q, control. */
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 1) ideft_attend_kernel(const __grid_constant__ ideft_cuda_attend_t a)
{
#if __CUDA_ARCH__ >= 800
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char *stages = shared, *q = stages + (size_t)a.stages * 2 * shape<D>::KV_BYTES;
    control &ctl = *(control *)(q + (size_t)a.q_buffers * shape<D>::Q_BYTES);
    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < a.stages; i++) {
            barrier_init(&ctl.full[i], shape<D>::BOXES ? 1 : 64);
            barrier_init(&ctl.empty[i], CONSUMERS / 32);
        }
        for (uint32_t i = 0; i < a.q_buffers; i++) {
            barrier_init(&ctl.q_full[i], IDEFT_HOPPER ? Q_LOADERS : 64);
            barrier_init(&ctl.q_empty[i], CONSUMERS / 32);
        }
#if IDEFT_HOPPER
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
    }
    __syncthreads(); /* publishes the barriers */
    let_next_kernel_start();
    if (threadIdx.x >= CONSUMERS) {
#if IDEFT_HOPPER
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
#endif
        produce<T, D>(a, ctl, stages, q);
    } else {
#if IDEFT_HOPPER
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
#endif
        consume<T, D>(a, ctl, stages, q);
    }
#endif
}

template <typename T> ideft_cuda_kernel_t kernel_of(uint32_t D, int hopper)
{
#define IDEFT_KERNEL(_d)                                                                       \
    if (D == _d)                                                                               \
        return { (const void *)ideft_attend_kernel<T, _d>, hopper ? 384u : 288u,               \
                 2 * (size_t)shape<_d>::KV_BYTES, (size_t)shape<_d>::Q_BYTES, sizeof(control) };
    IDEFT_CUDA_DIMS(IDEFT_KERNEL)
#undef IDEFT_KERNEL
    return { nullptr, 0, 0, 0, 0 };
}

} // namespace
