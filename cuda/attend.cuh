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
    static constexpr bool Q_IN_REGISTERS = D <= 128;
    /* The copy engine writes at multiples of 128 bytes, which rows of a narrow panel are not. */
    static constexpr bool BOXES = IDEFT_HOPPER && D % 64 == 0;
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

/* V behind the last token, up to what is multiplied: a weight of 0 times a NaN would be one. */
template <int D> __device__ __forceinline__ void put_zeros(unsigned char *v, uint32_t used, uint32_t lane)
{
    const uint32_t rows = (used + 15) / 16 * 16 - used;
    for (uint32_t i = lane; i < rows * (D / 8); i += 32)
        *(uint4 *)(v + tile_chunk<D>(IDEFT_TILE, used + i / (D / 8), i % (D / 8))) = make_uint4(0, 0, 0, 0);
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
    if (used % 16 != 0)
        put_zeros<D>(v, used, lane);
#if IDEFT_HOPPER
    if constexpr (shape<D>::BOXES) {
        fence_async();
        __syncwarp();
        if (lane == 0)
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

/* Rows of Q of a unit, and what the consumers need to know of it. `lane` counts the loaders. */
template <typename T, int D>
__device__ __forceinline__ void put_rows(const ideft_cuda_attend_t &a, const ideft_cuda_record_t *rec, control &ctl,
                                         unsigned char *q, uint32_t buf, uint32_t head, uint32_t lane)
{
    const ideft_cuda_row_t *rows = (const ideft_cuda_row_t *)(rec + 1);
    const uint4 h = __ldg((const uint4 *)rec);
    unit_meta &unit = ctl.unit[buf];
    if (lane == 0) {
        unit.n_rows = h.y;
        unit.head = head;
        unit.part = h.z;
        unit.tokens = h.w;
    }
    for (uint32_t i = lane; i < h.y; i += Q_LOADERS)
        unit.row[i] = rows[i];
    const uint32_t n = h.y * a.G * (D / 8);
    for (uint32_t i = lane; i < n; i += Q_LOADERS) {
        const uint32_t r = i / (D / 8), chunk = i % (D / 8), token = __ldg(&rows[r / a.G].token) & ~IDEFT_DIRECT;
        const T *from = (const T *)a.q + ((size_t)token * a.H + head * a.G + r % a.G) * D + chunk * 8;
        copy_16(smem_of(q) + tile_chunk<D>(IDEFT_ROWS, r, chunk), from);
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
    ring at = { 0, 1 };
    /* the first record is asked for before it is known to exist: the image is never shorter */
    if (does_kv && lane < IDEFT_INLINE)
        c = fetch_copy((const ideft_cuda_copy_t *)((const unsigned char *)record_of(a, blockIdx.x) + a.record_bytes) -
                           IDEFT_INLINE, lane);
    const uint32_t n_units = __ldg(&head->n_units);
    const ideft_cuda_copy_t *copies = (const ideft_cuda_copy_t *)(a.image + __ldg(&head->copies));
    wait_for_kernel_before();
    uint32_t k = 0;
    for (uint32_t unit = blockIdx.x; unit < n_units; unit += gridDim.x, k++) {
        const ideft_cuda_record_t *rec = record_of(a, unit);
        const uint32_t kv_head = unit % a.Hkv, buf = k % a.q_buffers;
        if (does_q) {
            barrier_wait(&ctl.q_empty[buf], (k / a.q_buffers & 1) ^ 1);
            put_rows<T, D>(a, rec, ctl, q + (size_t)buf * shape<D>::Q_BYTES, buf, kv_head, q_lane);
        }
        if (!does_kv)
            continue;
        uint32_t next = __ldg(&rec->copy);
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

/* S = Q K^T, 64 rows by 64 tokens. */
template <typename T, int D>
__device__ __forceinline__ void scores(float (&s)[32], const uint32_t (&q)[D / 16][4], const unsigned char *q_tile,
                                       uint32_t row, const unsigned char *k)
{
#if IDEFT_HOPPER
    (void)row;
    hold<32>(s);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        constexpr int W = panel_width<D>(D / 64);
        const int p = i / 4;
        const uint32_t at = smem_of(k) + p * IDEFT_TILE * 128 + i % 4 * 32;
        const uint64_t b = p < D / 64 ? descriptor<64>(at, 16) : descriptor<W>(at, 16);
        if constexpr (shape<D>::Q_IN_REGISTERS) {
            wgmma_rs<T, 64, 0>(s, q[i], b, i > 0);
        } else {
            const uint32_t from = smem_of(q_tile) + p * IDEFT_ROWS * 128 + (row & 64) * 128 + i % 4 * 32;
            wgmma_ss<T>(s, descriptor<64>(from, 16), b, i > 0);
        }
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold<32>(s);
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

/* O += P V over the first 16 * N tokens. */
template <typename T, int D, int N>
__device__ __forceinline__ void add_values(float (&o)[D / 2], const uint32_t (&p)[4][4], const unsigned char *v)
{
#if IDEFT_HOPPER
    const uint32_t at = smem_of(v), panel = IDEFT_TILE * 128;
    hold<D / 2>(o);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < N; i++) {
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
    wgmma_wait<0>();
    hold<D / 2>(o);
#else
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < N; i++) {
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

/* The same over `used` tokens. Straight code for each number of steps: a branch between products
 * makes the compiler put a wait there. */
template <typename T, int D>
__device__ __forceinline__ void add_used_values(float (&o)[D / 2], const uint32_t (&p)[4][4], const unsigned char *v,
                                                uint32_t used)
{
    if (used > 48)
        add_values<T, D, 4>(o, p, v);
    else if (used > 32)
        add_values<T, D, 3>(o, p, v);
    else if (used > 16)
        add_values<T, D, 2>(o, p, v);
    else
        add_values<T, D, 1>(o, p, v);
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

/* Scores to weights 2^(s - m), joined to the state; O is scaled where m moves. It moves only when a
 * score exceeds it by 2^8, so that most tiles leave O alone. */
template <int D>
__device__ __forceinline__ void weigh(float (&s)[32], state<D> &st, const ideft_cuda_attend_t &a)
{
    float top[2] = { -INFINITY, -INFINITY }, minus[2], by[2];
    bool moves = false;
    if (a.cap_out != 0) {
#pragma unroll
        for (int i = 0; i < 32; i++) { /* tanh(x) = 1 - 2 / (e^2x + 1) */
            const float e = exp2_fast(s[i] * a.cap_in * 2.885390081777927f);
            s[i] = s[i] == -INFINITY ? s[i] : a.cap_out - 2 * a.cap_out / (e + 1);
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
    if (__any_sync(~0u, moves)) {
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            st.o[i] *= by[i / 2 % 2];
        st.d[0] *= by[0];
        st.d[1] *= by[1];
    }
    float sum[2] = { 0, 0 };
#pragma unroll
    for (int i = 0; i < 32; i++) {
        s[i] = exp2_fast(fmaf(s[i], a.scale_log2, minus[i / 2 % 2]));
        sum[i / 2 % 2] += s[i];
    }
    st.d[0] += sum[0];
    st.d[1] += sum[1];
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

/* The states of a unit's rows go to the output or to the partials. `half`: -1 for all columns, or
 * the half that this warpgroup has. */
template <typename T, int D>
__device__ __forceinline__ void finish(const state<D> &st, const ideft_cuda_attend_t &a, const unit_meta &unit,
                                       uint32_t matrix_row, int half)
{
    const uint32_t quad = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t row = matrix_row + 8 * r, query = row / a.G, h = unit.head * a.G + row % a.G;
        if (query >= unit.n_rows)
            continue;
        const uint32_t token = unit.row[query].token;
        if (token & IDEFT_DIRECT) {
            float m = st.m[r], d = st.d[r], scale = 1;
            if (a.sinks != NULL) {
                const float sink = a.sinks[h], top = fmaxf(sink, m);
                scale = m == -INFINITY ? 0.0f : exp2_fast(m - top);
                d = d * scale + (sink == -INFINITY ? 0.0f : exp2_fast(sink - top));
            }
            scale = d == 0 ? 0.0f : scale / d;
            T *o = (T *)a.o + ((size_t)(token & ~IDEFT_DIRECT) * a.H + h) * D;
#pragma unroll
            for (int j = 0; j < D / 8; j++)
                if (half < 0 || (j >= D / 16) == half)
                    *(uint32_t *)(o + j * 8 + quad * 2) =
                        pack<T>(st.o[j * 4 + r * 2] * scale, st.o[j * 4 + r * 2 + 1] * scale);
        } else {
            const size_t part = (size_t)(unit.part + query) * a.H + h;
#pragma unroll
            for (int j = 0; j < D / 8; j++)
                if (half < 0 || (j >= D / 16) == half)
                    *(float2 *)(a.part_o + part * D + j * 8 + quad * 2) =
                        make_float2(st.o[j * 4 + r * 2], st.o[j * 4 + r * 2 + 1]);
            if (quad == 0 && half <= 0)
                *(float2 *)(a.part_md + part * 2) = make_float2(st.m[r], st.d[r]);
        }
    }
}

/* One unit, from its first tile to its output. */
template <typename T, int D>
__device__ __forceinline__ void consume_unit(const ideft_cuda_attend_t &a, control &ctl, const unsigned char *stages,
                                             unsigned char *q_tile, const unit_meta &unit, ring &at, uint32_t wg)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const bool tokens = unit.tokens != 0;
    const uint32_t first = warp * 16 + (tokens ? 0 : wg * 64), row = first + lane / 4;
    rows_t rows;
    uint32_t q[D / 16][4];
    state<D> st;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        rows.query[r] = (row + 8 * r) / a.G;
        rows.pos[r] = unit.row[rows.query[r] < unit.n_rows ? rows.query[r] : 0].pos;
        st.m[r] = -INFINITY;
        st.d[r] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        st.o[i] = 0;
    if constexpr (shape<D>::Q_IN_REGISTERS)
        load_q<D>(q, q_tile, first);
    for (bool last = false; !last; at.next(a.stages)) {
        const tile_meta &meta = ctl.tile[at.stage];
        barrier_wait(&ctl.full[at.stage], at.parity);
#if IDEFT_HOPPER
        if constexpr (!shape<D>::BOXES)
            fence_async();
#endif
        /* through a shuffle, so that the compiler sees that a warp agrees */
        const uint32_t flags = __shfl_sync(~0u, meta.flags, 0);
        last = (flags & IDEFT_LAST) != 0;
        if (flags & IDEFT_MINE << wg) {
            const unsigned char *k = stages + (size_t)at.stage * 2 * shape<D>::KV_BYTES;
            float s[32];
            uint32_t p[4][4];
            scores<T, D>(s, q, q_tile, first, k);
            if ((flags & IDEFT_MASK << wg) || a.window != 0)
                mask_scores(s, meta, rows, a.window);
            weigh<D>(s, st, a);
            pack_weights<T>(p, s);
            add_used_values<T, D>(st.o, p, k + shape<D>::KV_BYTES, __shfl_sync(~0u, meta.used, 0));
        }
        __syncwarp();
        if (lane == 0)
            barrier_arrive(&ctl.empty[at.stage]);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        st.d[r] += __shfl_xor_sync(~0u, st.d[r], 1);
        st.d[r] += __shfl_xor_sync(~0u, st.d[r], 2);
    }
    if (tokens)
        join<D>(st, ctl, (float *)q_tile, wg);
    finish<T, D>(st, a, unit, row, tokens ? (int)wg : -1);
}

template <typename T, int D>
__device__ void consume(const ideft_cuda_attend_t &a, control &ctl, const unsigned char *stages, unsigned char *q)
{
    const uint32_t wg = __shfl_sync(~0u, threadIdx.x / 128, 0);
    ring at = { 0, 0 };
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
    extern __shared__ unsigned char shared[];
    unsigned char *stages = (unsigned char *)(((uintptr_t)shared + 1023) & ~(uintptr_t)1023);
    unsigned char *q = stages + (size_t)a.stages * 2 * shape<D>::KV_BYTES;
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
                 2 * (size_t)shape<_d>::KV_BYTES, (size_t)shape<_d>::Q_BYTES, sizeof(control) + 1024 };
    IDEFT_CUDA_DIMS(IDEFT_KERNEL)
#undef IDEFT_KERNEL
    return { nullptr, 0, 0, 0, 0 };
}

} // namespace
