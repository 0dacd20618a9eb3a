/* SPDX-License-Identifier: MIT */
/* What the micro kernels (tile.h) have in common whose instructions multiply pairs of bf16: K and V
 * are used as the pool holds them, P is rounded to bf16, Q is the sum of two bf16. A Q of one bf16
 * would be wrong by 2^-9, and so a score of 10 by 2%; with two, the rounding of P is all that is
 * lost: 2^-9 at most of the output. */
#ifndef IDEFT_PAIRS_H
#define IDEFT_PAIRS_H

#include "work.h"

#define RAW_PANELS TILE_ROWS /* KV stays as it is stored, however many panels there are */

/* Provided by the header that includes this one: both parts of VL values of row r of Q. */
INLINE void put_q(const work_t *w, uint32_t r, uint32_t d, vf high, vf low);

static void pack_rows(const work_t *w, const float **from, uint32_t r, uint32_t n, float factor)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < w->D; d += VL) {
            const vf x = *(const vfu *)(from[i] + d) * factor;
            put_q(w, r + i, d, x, x - rounded_to_bf16(x));
        }
    }
}

static const void *place_values(const work_t *w, const void *stored, uint32_t slot, uint32_t n)
{
    (void)w;
    (void)slot;
    (void)n;
    return stored;
}

/* True if V of the tile lies in the pool as its pairs of columns. */
INLINE bool values_adjoin(const scratch_t *sc)
{
    return sc->n_piece == 1 && sc->piece[0].slot % 2 == 0;
}

/* V of columns [begin, end) in pairs, zeros for those after the last; begin is even. */
static void gather_pairs(const work_t *w, uint32_t *to, uint32_t begin, uint32_t end)
{
    const scratch_t *sc = w->sc;
    for (uint32_t c = begin; c < end; c += 2, to += w->D) {
        const uint32_t a = sc->c_slot[ideft_min(c, sc->cols - 1)],
                       b = sc->c_slot[ideft_min(c + 1, sc->cols - 1)];
        const uint32_t *v_a = (const uint32_t *)w->v + (size_t)(a / 2) * w->D,
                       *v_b = (const uint32_t *)w->v + (size_t)(b / 2) * w->D;
        const uint32_t low = c < sc->cols ? 0xffffu : 0, high = c + 1 < sc->cols ? 0xffff0000u : 0;
        for (uint32_t d = 0; d < w->D; d += VL)
            *(vu *)(to + d) = (*(const vuu *)(v_a + d) >> a % 2 * 16 & low) |
                              (*(const vuu *)(v_b + d) << (b % 2 == 0 ? 16 : 0) & high);
    }
}

/* The same with zeros where V is not finite. */
static void clear_pairs(const work_t *w, uint16_t *to, uint32_t begin, uint32_t end)
{
    for (uint32_t c = begin; c < ideft_min(end, w->sc->cols); c++)
        for (uint32_t d = 0; d < w->D; d++) {
            const float v = stored_value(w, c, d);
            to[((size_t)((c - begin) / 2) * w->D + d) * 2 + c % 2] =
                isfinite(v) ? ideft_f32_to_bf16(v) : 0;
        }
}

/* With P rounded to bf16 a short polynomial is enough. */
INLINE vf weight_v(vf x)
{
    return exp2_bf16_v(x);
}

INLINE void keep_weights(scratch_t *sc, uint32_t i, uint32_t v, vf p)
{
    store_bf16(sc->micro.p + i * TILE + v * VL, p);
}

INLINE float kept_weight(const scratch_t *sc, uint32_t i, uint32_t col)
{
    return ideft_bf16_to_f32(sc->micro.p[i * TILE + col]);
}

#endif
