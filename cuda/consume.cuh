/* SPDX-License-Identifier: MIT */
/* The computing warpgroups: S = Q K^T, weights, O += P V over the tiles of a unit, and its output.
 *
 * A thread of a warpgroup has rows r and r + 8 of its warp's 16, r = lane / 4, and of each 8
 * columns the two at 2 * (lane % 4), as the fragments of mma.sync and wgmma have them. So four
 * threads, a quad, share a row. They agree on its m; d is a thread's own share of it until all
 * tiles are done. */
#ifndef IDEFT_CONSUME_CUH
#define IDEFT_CONSUME_CUH

#include "named_barrier.cuh"
#include "shared_memory.cuh"

namespace {

/* What a thread has of the states (state.cuh) of its two rows. o: by columns j of 8, then row, then
 * column of the two: o[j * 4 + row * 2 + column]. Scores and weights lie in the same way. */
template <int D> struct thread_state {
    float o[D / 2], m[2], d[2];
    __device__ __forceinline__ row_sum sum(int r) const { return { m[r], d[r] }; }
};

/* The rows of a thread. */
struct thread_rows {
    uint32_t query[2]; /* query row, in the record */
    uint32_t pos[2];   /* its path position */
};

/* A computing warp at work on a unit: where everything is, and its part in the work. */
template <int D> struct consumer {
    const ideft_cuda_attend_t &a;
    control &ctl;
    const unsigned char *stages;
    unsigned char *q_tile;
    uint32_t wg, first; /* warpgroup; the warp's first matrix row */
    uint32_t turns;     /* as in unit_meta */
    bool stagger;       /* both warpgroups have rows of their own in the first tile */
    thread_rows rows;

    __device__ const unsigned char *k(uint32_t stage) const
    {
        return stages + (size_t)stage * 2 * shape<D>::KV_BYTES;
    }
    __device__ const unsigned char *v(uint32_t stage) const
    {
        return k(stage) + shape<D>::KV_BYTES;
    }
};

/* ---- tiles from the ring ---- */

/* A tile of the ring, while its stage is held. */
struct tile_ref {
    uint32_t stage, flags;
};

/* A stage is free again when every thread of both warpgroups has arrived. */
__device__ __forceinline__ void release(control &ctl, uint32_t stage)
{
    mbarrier_arrive(&ctl.empty[stage]);
}

/* Pass over a tile that is the other warpgroup's turn. It has to be waited for all the same:
 * waiting by parity tells a phase from the next, but not from the one after that, so no phase may
 * be skipped. */
template <int D> __device__ __forceinline__ void skip_tile(const consumer<D> &w, ring &at)
{
    mbarrier_wait(&w.ctl.full[at.stage], at.parity);
    release(w.ctl, at.stage);
    at.next(w.a.stages);
}

/* Look ahead, without waiting, at the tile that this warpgroup will take next (the one after the
 * next, if they take turns): its flags and PEEKED if it has landed, else 0. Done while products are
 * under way, so that the flags cost no time later. */
constexpr uint32_t PEEKED = 0x80000000u;

template <int D> __device__ __forceinline__ uint32_t peek(const consumer<D> &w, ring at)
{
    uint32_t flags = 0;
    bool there = true;
    if (w.turns > 0) {
        there = mbarrier_test(&w.ctl.full[at.stage], at.parity);
        at.next(w.a.stages);
    }
    if (there && mbarrier_test(&w.ctl.full[at.stage], at.parity))
        flags = w.ctl.tile[at.stage].flags | PEEKED; /* read only once it is known to be there */
    flags = __all_sync(~0u, flags != 0) ? flags : 0;
    return __shfl_sync(~0u, flags, 0);
}

/* Wait for the tile that is next in the ring. */
template <int D>
__device__ __forceinline__ tile_ref take_tile(const consumer<D> &w, ring &at, uint32_t peeked)
{
    if (!(peeked & PEEKED))
        mbarrier_wait(&w.ctl.full[at.stage], at.parity);
    if constexpr (!shape<D>::BOXES)
        fence_async();
    /* through a shuffle, so that the compiler sees that a warp agrees */
    const tile_ref t = { at.stage, peeked & PEEKED
                                       ? peeked
                                       : __shfl_sync(~0u, w.ctl.tile[at.stage].flags, 0) };
    at.next(w.a.stages);
    return t;
}

/* The next tile for this warpgroup. If the warpgroups take turns that is the next but one. Else
 * tiles that only the other one computes are given back at once, but for the unit's last. */
template <int D>
__device__ __forceinline__ tile_ref next_tile(const consumer<D> &w, ring &at, uint32_t peeked = 0)
{
    if (w.turns > 0)
        skip_tile(w, at);
    for (;; peeked = 0) {
        const tile_ref t = take_tile(w, at, peeked);
        if (w.turns > 0 || t.flags & (IDEFT_MINE << w.wg | IDEFT_LAST))
            return t;
        release(w.ctl, t.stage);
    }
}

/* The first tile of a unit for this warpgroup. */
template <int D> __device__ __forceinline__ tile_ref first_tile(const consumer<D> &w, ring &at)
{
    return w.turns > 0 && w.wg == 0 ? take_tile(w, at, 0) : next_tile(w, at);
}

/* Give back t, the last tile that this warpgroup computes, and pass over those of the other one
 * that are left in the unit. */
template <int D>
__device__ __forceinline__ void leave_tiles(const consumer<D> &w, ring &at, tile_ref t)
{
    release(w.ctl, t.stage);
    if (w.turns > 0) {
        if ((w.turns - w.wg) % 2 == 0)
            skip_tile(w, at);
        return;
    }
    while (!(t.flags & IDEFT_LAST)) {
        t = next_tile(w, at);
        release(w.ctl, t.stage);
    }
}

/* ---- from scores to weights ---- */

/* Scores that a row does not see become -INFINITY. s: columns from `at` on of the tile. */
template <bool GENERAL, int N>
__device__ __forceinline__ void mask_scores(float (&s)[N], const tile_meta &meta, uint32_t at,
                                            const thread_rows &rows, uint32_t window)
{
    const uint32_t first_col = at + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < N / 4; j++) {
        const uint32_t w = meta.seen[first_col / 2 + j * 4];
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t first = w >> (16 * e) & 255, n = w >> (16 * e + 8) & 255;
            const uint32_t until = GENERAL && window != 0 ? meta.pos[first_col + j * 8 + e] + window
                                                          : ~0u;
#pragma unroll
            for (int r = 0; r < 2; r++)
                if (rows.query[r] - first >= n || (GENERAL && until <= rows.pos[r]))
                    s[j * 4 + r * 2 + e] = -INFINITY;
        }
    }
}

/* Scores to weights 2^(s - m), added to d. by: what o has to be multiplied by; returns whether that
 * is not 1 in all rows of the warp. */
template <int D, bool GENERAL, int N>
__device__ __forceinline__ bool weigh(float (&s)[N], thread_state<D> &st, float (&by)[2],
                                      const ideft_cuda_attend_t &a)
{
    float top[2], shift[2], sum[4] = { 0, 0, 0, 0 };
    if (GENERAL && a.cap_out != 0) {
#pragma unroll
        for (int i = 0; i < N; i++) { /* tanh(x) = 1 - 2 / (e^2x + 1) */
            const float e = exp2_fast(s[i] * a.cap_in * 2.885390081777927f);
            s[i] = s[i] == -INFINITY ? s[i] : a.cap_out - __fdividef(2 * a.cap_out, e + 1);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float x[N / 8]; /* short chains */
#pragma unroll
        for (int c = 0; c < N / 8; c++)
            x[c] = fmaxf(fmaxf(s[c * 8 + r * 2], s[c * 8 + r * 2 + 1]),
                         fmaxf(s[c * 8 + 4 + r * 2], s[c * 8 + 5 + r * 2]));
        if constexpr (N == 32)
            x[0] = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
        top[r] = x[0] * a.scale_log2;
        by[r] = 1;
    }
    const bool moves = __any_sync(~0u, top[0] > limit_of(st.m[0]) || top[1] > limit_of(st.m[1]));
    if (moves) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
            const bool move = top[r] > limit_of(st.m[r]);
            by[r] = move ? rebased(st.m[r], top[r]) : 1.0f;
            st.m[r] = move ? top[r] : st.m[r];
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++)
        shift[r] = shift_of(st.m[r]);
#pragma unroll
    for (int i = 0; i < N; i++) {
        s[i] = exp2_fast(fmaf(s[i], a.scale_log2, shift[i / 2 % 2]));
        sum[i % 4] += s[i];
    }
    st.d[0] = add_weights(st.d[0], by[0], sum[0] + sum[1]);
    st.d[1] = add_weights(st.d[1], by[1], sum[2] + sum[3]);
    return moves;
}

/* The same for a tile, its tokens from `token` on, masked where it needs to be. */
template <int D, bool GENERAL, int N>
__device__ __forceinline__ bool weights_of(const consumer<D> &w, const tile_ref &t, uint32_t token,
                                           float (&s)[N], thread_state<D> &st, float (&by)[2])
{
    if ((t.flags & IDEFT_MASK << w.wg) || (GENERAL && w.a.window != 0))
        mask_scores<GENERAL>(s, w.ctl.tile[t.stage], token, w.rows, w.a.window);
    return weigh<D, GENERAL>(s, st, by, w.a);
}

template <int D>
__device__ __forceinline__ void scale_outputs(thread_state<D> &st, const float (&by)[2])
{
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        st.o[i] *= by[i / 2 % 2];
}

template <typename T, int N>
__device__ __forceinline__ void pack_weights(uint32_t (&p)[N / 8][4], const float (&s)[N])
{
#pragma unroll
    for (int i = 0; i < N / 8; i++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            p[i][e] = pack<T>(s[i * 8 + e * 2], s[i * 8 + e * 2 + 1]);
}

/* ---- the tiles of a unit ---- */

/* The warp's 16 rows of Q as operands. */
template <int D>
__device__ __forceinline__ void load_q(uint32_t (&q)[D / 16][4], const unsigned char *tile,
                                       uint32_t row)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < D / 16; s++)
        load_matrices(q[s], smem_of(tile) +
                                tile_chunk<D>(IDEFT_ROWS, row + lane % 16, s * 2 + lane / 16));
}

/* All tiles of a unit that this warpgroup computes, from t on; t becomes the last of them. The
 * scores of the next tile are started before the values of this one, and run while this one's
 * values are added; only o has to wait. In the first round there is no tile before: values of the
 * first are added with weights of 0. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_ahead(const consumer<D> &w, ring &at, thread_state<D> &st,
                                              const uint32_t (&q)[D / 16][4], tile_ref &t)
{
    float s[32], by[2];
    uint32_t p[4][4] = {};
    tile_ref next = t;
    for (bool first = true;; first = false) {
        scores<T, D>(s, q, w.q_tile, w.first, w.k(next.stage));
        add_values<T, D>(st.o, p, w.v(t.stage));
        const uint32_t peeked = peek(w, at);
        products_wait<1>();
        settle(s);
        if (first && w.stagger && w.wg == 0)
            announce<named_barrier::STAGGER>();
        const bool moves = weights_of<D, GENERAL>(w, next, 0, s, st, by);
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
        next = next_tile(w, at, peeked);
    }
    add_values<T, D>(st.o, p, w.v(t.stage));
    products_wait<0>();
    settle(st.o);
}

/* The same, one tile after the other. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_plain(const consumer<D> &w, ring &at, thread_state<D> &st,
                                              const uint32_t (&q)[D / 16][4], tile_ref &t)
{
    float s[32], by[2];
    uint32_t p[4][4];
    for (;;) {
        scores<T, D>(s, q, w.q_tile, w.first, w.k(t.stage));
        products_wait<0>();
        settle(s);
        if (weights_of<D, GENERAL>(w, t, 0, s, st, by))
            scale_outputs<D>(st, by);
        pack_weights<T>(p, s);
        add_values<T, D>(st.o, p, w.v(t.stage));
        products_wait<0>();
        settle(st.o);
        if (t.flags & IDEFT_FINAL << w.wg)
            return;
        release(w.ctl, t.stage);
        t = next_tile(w, at);
    }
}

template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_tiles(const consumer<D> &w, ring &at, thread_state<D> &st,
                                              const uint32_t (&q)[D / 16][4])
{
    if (w.turns == 1 && w.wg == 1) {
        skip_tile(w, at);
        return;
    }
    tile_ref t = first_tile(w, at);
    if (w.stagger && w.wg == 1)
        meet<named_barrier::STAGGER>();
    if (t.flags & IDEFT_MINE << w.wg) {
        if constexpr (shape<D>::AHEAD)
            consume_ahead<T, D, GENERAL>(w, at, st, q, t);
        else
            consume_plain<T, D, GENERAL>(w, at, st, q, t);
    }
    leave_tiles(w, at, t);
}

/* ---- the output of a unit ---- */

/* Both warpgroups have states of the same rows. Each gives the other one half of its columns, and
 * joins what both have of the half that it keeps: the first warpgroup's state, then the other's. */
template <int D>
__device__ __forceinline__ void join_warpgroups(thread_state<D> &st, control &ctl, float *space,
                                                uint32_t wg)
{
    const uint32_t t = threadIdx.x % 128, row = t / 32 * 16 + t % 32 / 4;
    meet<named_barrier::CONSUMERS>(); /* both have read their Q, whose place `space` is */
    if (t % 4 == 0) {
        ctl.sums[wg][row] = st.sum(0);
        ctl.sums[wg][row + 8] = st.sum(1);
    }
    float *give = space + wg * (D / 4) * 128, *take = space + (wg ^ 1) * (D / 4) * 128;
#pragma unroll
    for (int i = 0; i < D / 4; i++)
        give[i * 128 + t] = wg == 0 ? st.o[D / 4 + i] : st.o[i];
    meet<named_barrier::CONSUMERS>(); /* publishes sums and columns */
    joined j[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        j[r] = join<GUARD_EACH>(ctl.sums[0][row + 8 * r], ctl.sums[1][row + 8 * r]);
        st.m[r] = j[r].sum.m;
        st.d[r] = j[r].sum.d;
    }
#pragma unroll
    for (int i = 0; i < D / 4; i++) {
        const float own = wg == 0 ? st.o[i] : st.o[D / 4 + i], other = take[i * 128 + t];
        const float x = wg == 0 ? own : other, y = wg == 0 ? other : own;
        const float o = weighted(j[i / 2 % 2].by[0], x, j[i / 2 % 2].by[1], y);
        if (wg == 0)
            st.o[i] = o;
        else
            st.o[D / 4 + i] = o;
    }
}

/* Where a matrix row's output goes, NULL: nowhere, and what its o has to be multiplied by. A row
 * that is in this group alone goes to the caller's output, its sink taken in; others leave a
 * normalised partial, with the log2_sum() beside it, which the thread with `notes` writes. */
template <typename T> struct target {
    T *to;
    float by;
};

template <typename T, int D>
__device__ __forceinline__ target<T> target_of(const ideft_cuda_attend_t &a, const unit_meta &unit,
                                               uint32_t row, float m, float d, bool notes)
{
    const uint32_t query = row * a.inverse >> 16, h = (unit.head - query) * a.G + row;
    const bool there = query < unit.n_rows;
    const uint32_t token = there ? unit.row[query].token : 0, part = unit.part + query;
    const bool direct = (token & IDEFT_DIRECT) != 0;
    float scale = 1;
    if (direct && a.sinks != NULL) {
        const with_sink j = join_sink({ m, d }, a.sinks[h]);
        scale = j.by;
        d = j.sum.d; /* m is not needed any more */
    }
    T *to = direct ? (T *)a.o + ((size_t)(token & ~IDEFT_DIRECT) * a.H + h) * D
                   : (T *)a.part_o + ((size_t)part * a.H + h) * D;
    if (notes && there && !direct)
        a.part_lse[(size_t)part * a.H + h] = log2_sum({ m, d });
    return { there ? to : NULL, normaliser_fast({ m, d }, scale) };
}

/* N chunks, from chunk `from` on, of the warp's 16 rows to their outputs. */
template <int D, int N>
__device__ __forceinline__ void store_rows(uint4 *const *outputs, const unsigned char *space,
                                           uint32_t from)
{
    constexpr uint32_t STEP = 32 / N; /* rows at a time */
    const uint32_t lane = threadIdx.x % 32, chunk = from + lane % N;
#pragma unroll 4
    for (uint32_t r = lane / N; r < 16; r += STEP)
        if ((STEP * N == 32 || lane < STEP * N) && outputs[r] != NULL)
            outputs[r][chunk] = *(const uint4 *)(space + tile_chunk<D>(16, r, chunk));
}

/* The outputs of the warp's 16 rows, arranged in shared memory so that whole rows are written.
 * half: the half of the columns that this warpgroup has, -1: all. */
template <typename T, int D>
__device__ __forceinline__ void finish(const thread_state<D> &st, const ideft_cuda_attend_t &a,
                                       control &ctl, const unit_meta &unit, uint32_t first,
                                       unsigned char *space, int half)
{
    constexpr uint32_t CHUNKS = D / 8;
    const uint32_t lane = threadIdx.x % 32, quad = lane % 4, warp = threadIdx.x / 32;
    uint4 **outputs = &ctl.outputs[warp * 16];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const target<T> t = target_of<T, D>(a, unit, first + lane / 4 + 8 * r, st.m[r], st.d[r],
                                            quad == 0 && half <= 0);
        if (quad == 0)
            outputs[lane / 4 + 8 * r] = (uint4 *)t.to;
#pragma unroll
        for (int j = 0; j < CHUNKS; j++)
            if (half < 0 || (j >= CHUNKS / 2) == half)
                *(uint32_t *)(space + tile_chunk<D>(16, lane / 4 + 8 * r, j) + quad * 4) =
                    pack<T>(st.o[j * 4 + r * 2] * t.by, st.o[j * 4 + r * 2 + 1] * t.by);
    }
    __syncwarp(); /* publishes rows and where they go */
    if (half < 0)
        store_rows<D, CHUNKS>(outputs, space, 0);
    else
        store_rows<D, CHUNKS / 2>(outputs, space, half * (CHUNKS / 2));
}

/* ---- a unit ---- */

template <int D>
__device__ __forceinline__ void begin_unit(consumer<D> &w, thread_state<D> &st,
                                           const unit_meta &unit)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        w.rows.query[r] = (w.first + threadIdx.x % 32 / 4 + 8 * r) * w.a.inverse >> 16;
        w.rows.pos[r] = unit.row[w.rows.query[r] < unit.n_rows ? w.rows.query[r] : 0].pos;
        st.m[r] = -INFINITY;
        st.d[r] = 0;
    }
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        st.o[i] = 0;
}

/* From a thread's shares of d to the row's. */
template <int D> __device__ __forceinline__ void end_unit(thread_state<D> &st)
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        st.d[r] += __shfl_xor_sync(~0u, st.d[r], 1);
        st.d[r] += __shfl_xor_sync(~0u, st.d[r], 2);
    }
}

/* One unit, from its first tile to its output. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_unit(const ideft_cuda_attend_t &a, control &ctl,
                                             const unsigned char *stages, unsigned char *q_tile,
                                             const unit_meta &unit, ring &at, uint32_t wg)
{
    const uint32_t warp = threadIdx.x / 32 % 4;
    const bool turns = unit.turns() > 0;
    const uint32_t first = warp * 16 + (turns ? 0 : wg * 64);
    consumer<D> w = { a,  ctl,   stages,       q_tile,
                      wg, first, unit.turns(), shape<D>::AHEAD && unit.kind() == IDEFT_SHARE_BOTH,
                      {} };
    uint32_t q[D / 16][4];
    thread_state<D> st;
    begin_unit<D>(w, st, unit);
    if constexpr (Q_IN_REGISTERS<D>)
        load_q<D>(q, q_tile, first);
    consume_tiles<T, D, GENERAL>(w, at, st, q);
    end_unit<D>(st);
    if (turns)
        join_warpgroups<D>(st, ctl, (float *)q_tile, wg);
    meet<named_barrier::CONSUMERS>(); /* nobody reads Q, or what was joined, any more */
    finish<T, D>(st, a, ctl, unit, first, q_tile + (wg * 4 + warp) * (16 * D * 2),
                 turns ? (int)wg : -1);
}

} // namespace

#endif
