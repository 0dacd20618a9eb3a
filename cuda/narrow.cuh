/* SPDX-License-Identifier: MIT */
/* Narrow units: up to 16 matrix rows, as a single sequence has. A tile of 64 rows would be mostly
 * padding, and computing the softmax of the padding would take longer than reading the KV. So
 * every warp has all of the rows, and 16 of each tile's 64 tokens. Products are mma.sync, which a
 * warp does by itself; the states of the warps are joined at the end. */
#ifndef IDEFT_NARROW_CUH
#define IDEFT_NARROW_CUH

#include "consume.cuh"

namespace {

constexpr uint32_t NARROW_TOKENS = 16; /* of each tile, for a warp */

/* Rows of K, or of V, as operands of all products of a warp with its tokens, from `token` on. */
template <int D>
__device__ __forceinline__ void load_k(uint32_t (&k)[D / 16][4], const unsigned char *tile,
                                       uint32_t token)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < D / 16; i++)
        load_matrices(k[i],
                      smem_of(tile) + tile_chunk<D>(IDEFT_TILE, token + lane % 8 + lane / 16 * 8,
                                                    i * 2 + lane / 8 % 2));
}

template <int D>
__device__ __forceinline__ void load_v(uint32_t (&v)[D / 16][4], const unsigned char *tile,
                                       uint32_t token)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < D / 16; n++)
        load_matrices_trans(
            v[n], smem_of(tile) + tile_chunk<D>(IDEFT_TILE, token + lane % 16, n * 2 + lane / 16));
}

/* S = Q K^T, 16 rows by 16 tokens. Two chains of products for each 8 tokens, for their latency. */
template <typename T, int D>
__device__ __forceinline__ void narrow_scores(float (&s)[8], const uint32_t (&q)[D / 16][4],
                                              const uint32_t (&k)[D / 16][4])
{
    float sum[2][8] = {};
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        mma<T>(sum[i % 2], q[i], k[i][0], k[i][1]);
        mma<T>(sum[i % 2] + 4, q[i], k[i][2], k[i][3]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        s[i] = sum[0][i] + sum[1][i];
}

/* O += P V */
template <typename T, int D>
__device__ __forceinline__ void narrow_values(float (&o)[D / 2], const uint32_t (&p)[4],
                                              const uint32_t (&v)[D / 16][4])
{
#pragma unroll
    for (int n = 0; n < D / 16; n++) {
        mma<T>(o + n * 8, p, v[n][0], v[n][1]);
        mma<T>(o + n * 8 + 4, p, v[n][2], v[n][3]);
    }
}

/* All tiles of a unit that this warpgroup computes; the warpgroups take turns. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void narrow_tiles(const consumer<D> &w, uint32_t token, ring &at,
                                             thread_state<D> &st, const uint32_t (&q)[D / 16][4])
{
    if (w.turns == 1 && w.wg == 1) {
        skip_tile(w, at);
        return;
    }
    for (tile_ref t = first_tile(w, at);; t = next_tile(w, at)) {
        uint32_t kv[D / 16][4], p[1][4];
        float s[8], by[2];
        load_k<D>(kv, w.k(t.stage), token);
        narrow_scores<T, D>(s, q, kv);
        if (weights_of<D, GENERAL>(w, t, token, s, st, by))
            scale_outputs<D>(st, by);
        pack_weights<T>(p, s);
        load_v<D>(kv, w.v(t.stage), token);
        narrow_values<T, D>(st.o, p[0], kv);
        if (t.flags & IDEFT_FINAL << w.wg) {
            leave_tiles(w, at, t);
            return;
        }
        release(w.ctl, t.stage);
    }
}

/* All warps have states of the same rows. They are joined in the order of the warps, eight rows at
 * a time, a warp each, and written at once. */
template <typename T, int D>
__device__ __forceinline__ void finish_narrow(const thread_state<D> &st,
                                              const ideft_cuda_attend_t &a, control &ctl,
                                              const unit_meta &unit, float *space)
{
    constexpr uint32_t CHUNKS = D / 8, WARPS = CONSUMERS / 32;
    const uint32_t lane = threadIdx.x % 32, quad = lane % 4, warp = threadIdx.x / 32;
    row_sum(*sums)[16] = (row_sum(*)[16])ctl.sums;
    /* The unit before may still be read from `sums`. With one buffer of Q it is not: this unit's Q
     * could not have come before all were done with that. */
    if (a.q_buffers > 1)
        meet<named_barrier::CONSUMERS>();
    if (quad == 0)
#pragma unroll
        for (int r = 0; r < 2; r++)
            sums[warp][lane / 4 + 8 * r] = st.sum(r);
    meet<named_barrier::CONSUMERS>(); /* publishes sums; `space` is where Q was */
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (r > 0 && unit.n_rows * a.G <= 8)
            break;
        if (r > 0)
            meet<named_barrier::CONSUMERS>(); /* the first eight rows have been read */
        const uint32_t at = lane / 4;
#pragma unroll
        for (int n = 0; n < CHUNKS; n++) { /* turned by a chunk a row, for other banks */
            const uint32_t chunk = n + at < CHUNKS ? n + at : n + at - CHUNKS;
            *(float2 *)(space + (warp * 8 + at) * D + chunk * 8 + quad * 2) =
                make_float2(st.o[n * 4 + r * 2], st.o[n * 4 + r * 2 + 1]);
        }
        meet<named_barrier::CONSUMERS>(); /* publishes eight rows */
        float by[WARPS];
        const row_sum sum = join_all<WARPS>(&sums[0][warp + 8 * r], 16, by);
        const target<T> t = target_of<T, D>(a, unit, warp + 8 * r, sum.m, sum.d, lane == 0);
        if (t.to == NULL)
            continue;
#pragma unroll
        for (uint32_t c = lane; c < D / 4; c += 32) {
            const uint32_t chunk = c / 2 + warp < CHUNKS ? c / 2 + warp : c / 2 + warp - CHUNKS;
            float4 o = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float4 x =
                    *(const float4 *)(space + (w * 8 + warp) * D + chunk * 8 + c % 2 * 4);
                o = make_float4(o.x + by[w] * x.x, o.y + by[w] * x.y, o.z + by[w] * x.z,
                                o.w + by[w] * x.w);
            }
            *(uint2 *)(t.to + c * 4) =
                make_uint2(pack<T>(o.x * t.by, o.y * t.by), pack<T>(o.z * t.by, o.w * t.by));
        }
    }
}

/* One unit, from its first tile to its output. */
template <typename T, int D, bool GENERAL>
__device__ __forceinline__ void consume_narrow(const ideft_cuda_attend_t &a, control &ctl,
                                               const unsigned char *stages, unsigned char *q_tile,
                                               const unit_meta &unit, ring &at, uint32_t wg)
{
    consumer<D> w = { a, ctl, stages, q_tile, wg, 0, unit.turns(), false, {} };
    uint32_t q[D / 16][4];
    thread_state<D> st;
    begin_unit<D>(w, st, unit);
    load_q<D>(q, q_tile, 0);
    narrow_tiles<T, D, GENERAL>(w, threadIdx.x / 32 % 4 * NARROW_TOKENS, at, st, q);
    end_unit<D>(st);
    finish_narrow<T, D>(st, a, ctl, unit, (float *)q_tile);
}

} // namespace

#endif
