/* SPDX-License-Identifier: MIT */
/* The computing warpgroups: S = Q K^T, weights, O += P V over the tiles of a unit, and its output.
 *
 * A thread of a warpgroup has rows r and r + 8 of the warp's 16, and of each 8 columns the two at
 * 2 * (lane % 4). m is in units of log2; d is a thread's own share until the end. */
#ifndef IDEFT_CONSUME_CUH
#define IDEFT_CONSUME_CUH

#include "block.cuh"

namespace {

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
    constexpr int W = panel_width<D>(D / 64);
    const uint32_t q16 = (smem_of(q_tile) >> 4) + (row & 64) * 8, k16 = smem_of(k) >> 4;
    hold<32>(s);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        const int q_at = i / 4 * IDEFT_ROWS * 8 + i % 4 * 2, k_at = i / 4 * IDEFT_TILE * 8 + i % 4 * 2;
        if constexpr (!shape<D>::Q_IN_REGISTERS)
            wgmma_ss<T>(s, descriptor<64, 16>(q16 + q_at), descriptor<64, 16>(k16 + k_at), i > 0);
        else if (i / 4 < D / 64)
            wgmma_rs<T, 64, 0>(s, q[i], descriptor<64, 16>(k16 + k_at), i > 0);
        else
            wgmma_rs<T, 64, 0>(s, q[i], descriptor<W, 16>(k16 + k_at), i > 0);
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
    constexpr int PANEL = IDEFT_TILE * 128;
    const uint32_t at = smem_of(v) >> 4;
    hold<D / 2>(o);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (D % 128 == 0) {
#pragma unroll
            for (int j = 0; j < D / 128; j++)
                wgmma_rs<T, 128, 1>(o + j * 64, p[i], descriptor<64, PANEL>(at + (j * 2 * PANEL + i * 2048 >> 4)), 1);
        } else {
            wgmma_rs<T, 64, 1>(o, p[i], descriptor<64, PANEL>(at + i * 128), 1);
            if constexpr (D % 64 != 0) {
                constexpr int W = D % 64;
                wgmma_rs<T, W, 1>(o + 32, p[i], descriptor<W, PANEL>(at + (PANEL + i * W * 32 >> 4)), 1);
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
template <bool GENERAL>
__device__ __forceinline__ void mask_scores(float (&s)[32], const tile_meta &meta, const rows_t &rows, uint32_t window)
{
    const uint32_t quad = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const uint32_t w = meta.seen[j * 4 + quad];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t first = w >> (16 * e) & 255, n = w >> (16 * e + 8) & 255;
            const uint32_t until = GENERAL && window != 0 ? meta.pos[j * 8 + quad * 2 + e] + window : ~0u;
#pragma unroll
            for (int r = 0; r < 2; r++)
                if (rows.query[r] - first >= n || (GENERAL && until <= rows.pos[r]))
                    s[j * 4 + r * 2 + e] = -INFINITY;
        }
    }
}

/* Scores to weights 2^(s - m), counted into d. m moves only when a score exceeds it by 2^8, so that
 * most tiles leave O alone: where it does, by[] is what O has to be multiplied by. Returns whether a
 * row of the warp moved. */
template <int D, bool GENERAL>
__device__ __forceinline__ bool weigh(float (&s)[32], state<D> &st, float (&by)[2], const ideft_cuda_attend_t &a)
{
    float top[2], minus[2], sum[4] = { 0, 0, 0, 0 };
    bool moves = false;
    if (GENERAL && a.cap_out != 0) {
#pragma unroll
        for (int i = 0; i < 32; i++) { /* tanh(x) = 1 - 2 / (e^2x + 1) */
            const float e = exp2_fast(s[i] * a.cap_in * 2.885390081777927f);
            s[i] = s[i] == -INFINITY ? s[i] : a.cap_out - __fdividef(2 * a.cap_out, e + 1);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float x[4]; /* short chains */
#pragma unroll
        for (int c = 0; c < 4; c++)
            x[c] = fmaxf(fmaxf(s[c * 8 + r * 2], s[c * 8 + r * 2 + 1]), fmaxf(s[c * 8 + 4 + r * 2], s[c * 8 + 5 + r * 2]));
        top[r] = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    }
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
        sum[i % 4] += s[i];
    }
    st.d[0] = fmaf(st.d[0], by[0], sum[0] + sum[1]);
    st.d[1] = fmaf(st.d[1], by[1], sum[2] + sum[3]);
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

/* N chunks, from chunk `from` on, of the warp's 16 rows to where they belong. */
template <int D, int N>
__device__ __forceinline__ void store_rows(uint4 *const *place, const unsigned char *space, uint32_t from)
{
    constexpr uint32_t STEP = 32 / N; /* rows at a time */
    const uint32_t lane = threadIdx.x % 32, chunk = from + lane % N;
#pragma unroll 4
    for (uint32_t r = lane / N; r < 16; r += STEP)
        if ((STEP * N == 32 || lane < STEP * N) && place[r] != NULL)
            place[r][chunk] = *(const uint4 *)(space + tile_chunk<D>(16, r, chunk));
}

/* The states of the warp's 16 rows go to the output, or as partials to where they are joined: both are
 * normalised and rounded, a partial has the log2 of its denominator beside it. Through shared memory,
 * so that whole rows are written. `half`: -1 for all columns, or the half that this warpgroup has. */
template <typename T, int D>
__device__ __forceinline__ void finish(const state<D> &st, const ideft_cuda_attend_t &a, control &ctl,
                                       const unit_meta &unit, uint32_t first, unsigned char *space, int half)
{
    constexpr uint32_t CHUNKS = D / 8;
    const uint32_t lane = threadIdx.x % 32, quad = lane % 4, warp = threadIdx.x / 32;
    uint4 **place = &ctl.place[warp * 16];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const uint32_t row = first + lane / 4 + 8 * r, query = row * a.inverse >> 16, h = (unit.head - query) * a.G + row;
        const bool there = query < unit.n_rows;
        const uint32_t token = there ? unit.row[query].token : 0, part = unit.part + query;
        const bool direct = (token & IDEFT_DIRECT) != 0;
        const float m = st.m[r];
        float d = st.d[r], scale = 1;
        if (direct && a.sinks != NULL) {
            const float sink = a.sinks[h], top = fmaxf(sink, m);
            scale = m == -INFINITY ? 0.0f : exp2_fast(m - top);
            d = d * scale + (sink == -INFINITY ? 0.0f : exp2_fast(sink - top));
        }
        scale = d == 0 ? 0.0f : __fdividef(scale, d);
        if (quad == 0) {
            T *to = direct ? (T *)a.o + ((size_t)(token & ~IDEFT_DIRECT) * a.H + h) * D
                           : (T *)a.part_o + ((size_t)part * a.H + h) * D;
            place[lane / 4 + 8 * r] = there ? (uint4 *)to : NULL;
            if (there && !direct && half <= 0)
                a.part_lse[(size_t)part * a.H + h] = d == 0 ? -INFINITY : m + __log2f(d);
        }
#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
            if (half < 0 || (j >= CHUNKS / 2) == half)
                *(uint32_t *)(space + tile_chunk<D>(16, lane / 4 + 8 * r, j) + quad * 4) =
                    pack<T>(st.o[j * 4 + r * 2] * scale, st.o[j * 4 + r * 2 + 1] * scale);
    }
    __syncwarp(); /* publishes rows and places */
    if (half < 0)
        store_rows<D, CHUNKS>(place, space, 0);
    else
        store_rows<D, CHUNKS / 2>(place, space, half * (CHUNKS / 2));
}

/* A tile that a warpgroup has got from the ring. */
struct tile_ref {
    uint32_t stage, flags;
};

__device__ __forceinline__ void release(control &ctl, uint32_t stage)
{
    barrier_arrive(&ctl.empty[stage]);
}

/* The flags of the tile that is next in the ring, with PEEKED if it is there already: asked for while
 * there is something else to wait for. */
constexpr uint32_t PEEKED = 0x80000000u;

__device__ __forceinline__ uint32_t peek(const control &ctl, const ring &at)
{
    uint32_t flags = 0;
    if (barrier_test(&ctl.full[at.stage], at.parity))
        flags = ctl.tile[at.stage].flags | PEEKED; /* not before it is known to be there */
    return __shfl_sync(~0u, flags, 0);
}

/* The next tile that is there; those of the other warpgroup alone go back at once, unless it is the
 * unit's last. */
template <int D>
__device__ __forceinline__ tile_ref next_tile(const ideft_cuda_attend_t &a, control &ctl, ring &at, uint32_t wg,
                                              uint32_t peeked = 0)
{
    for (;; peeked = 0) {
        if (!(peeked & PEEKED))
            barrier_wait(&ctl.full[at.stage], at.parity);
#if IDEFT_HOPPER
        if constexpr (!shape<D>::BOXES)
            fence_async();
#endif
        /* through a shuffle, so that the compiler sees that a warp agrees */
        const tile_ref t = { at.stage, peeked & PEEKED ? peeked : __shfl_sync(~0u, ctl.tile[at.stage].flags, 0) };
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
    bool apart;         /* both warpgroups have work of their own, and the first has a tile at once */
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

/* Scores to weights, counted; what O has to be multiplied by, and whether it has to. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ bool weights_of(const work<D> &w, const tile_ref &t, float (&s)[32], state<D> &st, float (&by)[2])
{
    if ((t.flags & IDEFT_MASK << w.wg) || (GENERAL && w.a.window != 0))
        mask_scores<GENERAL>(s, w.ctl.tile[t.stage], w.rows, w.a.window);
    return weigh<D, GENERAL>(s, st, by, w.a);
}

/* The tiles of a unit that are this warpgroup's, from the first on; *t becomes the last. The scores
 * of the next tile are under way while values of this one are added and while its own weights are
 * computed: only O has to wait. The first time round there is no tile before: values of the first
 * itself are added with weights of 0. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_ahead(const work<D> &w, ring &at, state<D> &st, const uint32_t (&q)[D / 16][4],
                                              tile_ref &t)
{
    float s[32], by[2];
    uint32_t p[4][4] = {};
    tile_ref next = t;
    for (bool first = true;; first = false) {
        scores<T, D>(s, q, w.q_tile, w.first, w.k(next.stage));
        add_values<T, D>(st.o, p, w.v(t.stage));
        const uint32_t peeked = peek(w.ctl, at);
        products_wait<1>();
        settle(s);
        if (first && w.apart && w.wg == 0)
            asm volatile("bar.arrive 3, 256;" ::: "memory");
        const bool moves = weights_of<T, D, GENERAL>(w, next, s, st, by);
        products_wait<0>();
        settle(st.o);
        if (!first)
            release(w.ctl, t.stage);
        if (moves)
            scale_outputs<D>(st, by);
        pack_weights<T>(p, s);
        t = next;
        if (t.flags & IDEFT_FINAL << w.wg)
            break;
        next = next_tile<D>(w.a, w.ctl, at, w.wg, peeked);
    }
    add_values<T, D>(st.o, p, w.v(t.stage));
    products_wait<0>();
    settle(st.o);
}

/* The same, one tile after the other. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_plain(const work<D> &w, ring &at, state<D> &st, const uint32_t (&q)[D / 16][4],
                                              tile_ref &t)
{
    float s[32], by[2];
    uint32_t p[4][4];
    for (;;) {
        scores<T, D>(s, q, w.q_tile, w.first, w.k(t.stage));
        products_wait<0>();
        settle(s);
        if (weights_of<T, D, GENERAL>(w, t, s, st, by))
            scale_outputs<D>(st, by);
        pack_weights<T>(p, s);
        add_values<T, D>(st.o, p, w.v(t.stage));
        products_wait<0>();
        settle(st.o);
        if (t.flags & IDEFT_FINAL << w.wg)
            return;
        release(w.ctl, t.stage);
        t = next_tile<D>(w.a, w.ctl, at, w.wg);
    }
}

template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_tiles(const work<D> &w, ring &at, state<D> &st, const uint32_t (&q)[D / 16][4])
{
    tile_ref t = next_tile<D>(w.a, w.ctl, at, w.wg);
    /* Where both compute all the time, they should not do the same at a time: the second begins when
     * the first goes from its first products to weights. */
    if (w.apart && w.wg == 1)
        asm volatile("bar.sync 3, 256;" ::: "memory");
    if (t.flags & IDEFT_MINE << w.wg) {
        if constexpr (shape<D>::AHEAD)
            consume_ahead<T, D, GENERAL>(w, at, st, q, t);
        else
            consume_plain<T, D, GENERAL>(w, at, st, q, t);
    }
    release(w.ctl, t.stage);
    while (!(t.flags & IDEFT_LAST)) { /* tiles of the other warpgroup */
        t = next_tile<D>(w.a, w.ctl, at, w.wg);
        release(w.ctl, t.stage);
    }
}

/* One unit, from its first tile to its output. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_unit(const ideft_cuda_attend_t &a, control &ctl, const unsigned char *stages,
                                             unsigned char *q_tile, const unit_meta &unit, ring &at, uint32_t wg)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const bool tokens = unit.share == IDEFT_SHARE_TILES;
    const uint32_t first = warp * 16 + (tokens ? 0 : wg * 64);
    work<D> w = { a, ctl, stages, q_tile, wg, first, shape<D>::AHEAD && unit.share == IDEFT_SHARE_BOTH, {} };
    uint32_t q[D / 16][4];
    state<D> st;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        w.rows.query[r] = (first + lane / 4 + 8 * r) * a.inverse >> 16;
        w.rows.pos[r] = unit.row[w.rows.query[r] < unit.n_rows ? w.rows.query[r] : 0].pos;
        st.m[r] = -INFINITY;
        st.d[r] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        st.o[i] = 0;
    if constexpr (shape<D>::Q_IN_REGISTERS)
        load_q<D>(q, q_tile, first);
    consume_tiles<T, D, GENERAL>(w, at, st, q);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        st.d[r] += __shfl_xor_sync(~0u, st.d[r], 1);
        st.d[r] += __shfl_xor_sync(~0u, st.d[r], 2);
    }
    if (tokens)
        join<D>(st, ctl, (float *)q_tile, wg);
    consumers_meet(); /* nobody reads Q or what was joined any more: its place is free */
    finish<T, D>(st, a, ctl, unit, first, q_tile + (wg * 4 + warp) * (16 * D * 2), tokens ? (int)wg : -1);
}

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
        release(ctl, i);
    for (uint32_t k = 0;; k++) {
        const uint32_t buf = k % a.q_buffers;
        barrier_wait(&ctl.q_full[buf], k / a.q_buffers & 1);
        const unit_meta &unit = ctl.unit[buf];
        if (unit.n_rows == 0)
            return;
        consume_unit<T, D, GENERAL>(a, ctl, stages, q + (size_t)buf * shape<D>::Q_BYTES, unit, at, wg);
#if IDEFT_HOPPER
        fence_async(); /* the copy engine is next to write where Q and outputs were */
#endif
        barrier_arrive(&ctl.q_empty[buf]);
    }
}

} // namespace

#endif
