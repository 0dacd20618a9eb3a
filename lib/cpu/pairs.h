/* SPDX-License-Identifier: MIT */
/* What the micro kernels (tile.h) have in common whose instructions multiply pairs of bf16: K and V
 * are used as the pool holds them, P is rounded to bf16, Q is the sum of two bf16. A Q of one bf16
 * would be wrong by 2^-9, and so a score of 10 by 2%; with two, the rounding of P is all that is
 * lost: 2^-9 at most of the output. The second half of q holds the low parts. */
#ifndef IDEFT_PAIRS_H
#define IDEFT_PAIRS_H

#define RAW_PANELS 129u /* KV stays as it is stored, however many rows there are */
#define Q_HALF ((size_t)MAX_D * (TILE_ROWS + 32)) /* the rows, and room after them */

/* Provided by the header that includes this one: the row of a value of Q, and to how many columns a
 * product over the tile's tokens is padded. */
INLINE void put_q(const work_t *w, uint16_t *q, uint32_t r, uint32_t d, vf x);
INLINE uint32_t padded(uint32_t cols);

static void pack_rows(const work_t *w, const float **from, uint32_t r, uint32_t n, float factor)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < w->D; d += VL) {
            const vf x = *(const vfu *)(from[i] + d) * factor;
            put_q(w, w->sc->micro.q, r + i, d, x);
            put_q(w, w->sc->micro.q + Q_HALF, r + i, d, x - rounded_to_bf16(x));
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

/* V of the tile in pairs of columns: where it lies if its pairs are the pool's and nothing has to
 * be padded, else put together here, zeros after the last. */
static void prepare_tile(const work_t *w)
{
    scratch_t *sc = w->sc;
    const piece_t *first = &sc->piece[0];
    if (sc->n_piece == 1 && first->slot % 2 == 0 && padded(sc->cols) == sc->cols) {
        sc->micro.v = first->v;
        return;
    }
    uint32_t *to = (uint32_t *)sc->vt, col = 0;
    for (uint32_t p = 0; p < sc->n_piece; p++) {
        for (uint32_t i = 0; i < sc->piece[p].n; i++, col++) {
            const uint32_t slot = sc->piece[p].slot + i, shift = slot % 2 * 16;
            const uint32_t *v = (const uint32_t *)w->v + (size_t)(slot / 2) * w->D;
            uint32_t *out = to + (size_t)(col / 2) * w->D;
            if (col % 2 == 0)
                for (uint32_t d = 0; d < w->D; d++)
                    out[d] = v[d] >> shift & 0xffffu;
            else
                for (uint32_t d = 0; d < w->D; d++)
                    out[d] |= v[d] >> shift << 16;
        }
    }
    col = (col + 1) / 2;
    if (col < padded(sc->cols) / 2)
        memset(to + (size_t)col * w->D, 0, (padded(sc->cols) / 2 - col) * w->D * sizeof(*to));
    sc->micro.v = (const char *)to;
}

static void clear_values(const work_t *w)
{
    scratch_t *sc = w->sc;
    memset(sc->vt, 0, sizeof(sc->vt));
    for (uint32_t c = 0; c < sc->cols; c++)
        for (uint32_t d = 0; d < w->D; d++) {
            const float v = stored_value(w, c, d);
            ((uint16_t *)sc->vt)[((size_t)(c / 2) * w->D + d) * 2 + c % 2] =
                isfinite(v) ? ideft_f32_to_bf16(v) : 0;
        }
    sc->micro.v = (const char *)sc->vt;
}

/* With P rounded to bf16 a short polynomial is enough. */
INLINE vf weight_v(vf x)
{
    return exp2_bf16_v(x);
}

/* The scores' place keeps the weights before rounding, for add_bad_values(). */
INLINE void keep_weights(scratch_t *sc, uint32_t i, uint32_t v, vf p)
{
    *(vf *)(sc->s + i * TILE + v * VL) = p;
    store_bf16(sc->micro.p + i * TILE + v * VL, p);
}

#endif
