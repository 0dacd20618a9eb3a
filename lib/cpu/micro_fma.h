/* SPDX-License-Identifier: MIT */
/* Micro kernels (tile.h) by fused multiply-adds of floats: sums of rank-one updates, KV of 16 bits
 * widened in registers, or in the tile where many rows share it. */
#ifndef IDEFT_MICRO_FMA_H
#define IDEFT_MICRO_FMA_H

#include "shapes.h"

#define WHOLE_PANELS 0
#define BY_TURNS 1
#define RAW_PANELS 2u  /* up to so many panels of rows widen in registers, each for itself */
#define MAX_CHAIN 128u /* products that a score sums up one after the other */

typedef struct micro {
    /* [D][ldq]: the rows of Q side by side, and room for the last 8 that are packed */
    float q[MAX_D * (TILE_ROWS + 16)] __attribute__((aligned(64)));
    deft_dtype_t v_form; /* of the tile's V: f32, or as stored */
} micro_t;

#include "work.h"

/* ---- Q and V --------------------------------------------------------------------------------- */

static void pack_rows(const work_t *w, const float **from, uint32_t r, uint32_t n, float factor)
{
    (void)n; /* those after the last are copies of it */
    for (uint32_t d = 0; d < w->D; d += 8) {
        transpose8(from, w->sc->micro.q + (size_t)d * w->ldq + r, w->ldq, factor);
        for (uint32_t i = 0; i < 8; i++)
            from[i] += 8;
    }
}

static void widen_v(const work_t *w, uint32_t col, uint32_t slot, uint32_t n)
{
    float *to = w->sc->vt + (size_t)col * w->D;
    if (w->type == DEFT_F16) {
        const uint16_t *v = (const uint16_t *)w->v + (size_t)slot * w->D;
        for (size_t e = 0; e < (size_t)n * w->D; e += VL)
            *(vfu *)(to + e) = load_f16(v + e);
        return;
    }
    const uint16_t *v = (const uint16_t *)w->v + (size_t)(slot / 2) * 2 * w->D;
    uint32_t i = 0;
    if (slot % 2 != 0) {
        for (uint32_t d = 0; d < w->D; d += VL)
            *(vfu *)(to + d) = high_half(*(const vuu *)(v + 2 * d));
        v += 2 * w->D;
        i++;
    }
    for (; i + 2 <= n; i += 2, v += 2 * w->D)
        for (uint32_t d = 0; d < w->D; d += VL) {
            const vu pair = *(const vuu *)(v + 2 * d);
            *(vfu *)(to + (size_t)i * w->D + d) = low_half(pair);
            *(vfu *)(to + (size_t)(i + 1) * w->D + d) = high_half(pair);
        }
    for (uint32_t d = 0; i < n && d < w->D; d += VL)
        *(vfu *)(to + (size_t)i * w->D + d) = low_half(*(const vuu *)(v + 2 * d));
}

static const void *place_values(const work_t *w, const void *stored, uint32_t slot, uint32_t n)
{
    if (w->sc->form == w->type)
        return stored;
    widen_v(w, w->sc->cols, slot, n);
    return w->sc->vt + (size_t)w->sc->cols * w->D;
}

static void prepare_tile(const work_t *w)
{
    w->sc->micro.v_form = w->sc->form;
}

static void clear_values(const work_t *w)
{
    scratch_t *sc = w->sc;
    for (uint32_t c = 0; c < sc->cols; c++)
        for (uint32_t d = 0; d < w->D; d++) {
            const float v = stored_value(w, c, d);
            sc->vt[(size_t)c * w->D + d] = isfinite(v) ? v : 0.0f;
        }
    sc->piece[0] = (piece_t){ sc->vt, sc->cols, 0 };
    sc->n_piece = 1;
    sc->micro.v_form = DEFT_F32;
}

/* ---- weights --------------------------------------------------------------------------------- */

INLINE vf weight_v(vf x)
{
    return exp2_v(x);
}

INLINE void keep_weights(scratch_t *sc, uint32_t i, uint32_t v, vf p)
{
    *(vf *)(sc->s + i * LDS + v * VL) = p;
}

INLINE float kept_weight(const scratch_t *sc, uint32_t i, uint32_t col)
{
    return sc->s[i * LDS + col];
}

/* ---- products -------------------------------------------------------------------------------- */

/* Bytes from one d to the next (bf16: to the next pair) in a block of K. */
INLINE uint32_t k_step(const deft_dtype_t form)
{
    return IDEFT_BLOCK * ideft_lane_bytes(form);
}

/* acc[R][C] += x[r] * y[c]. */
#define RANK_ONE(_x, _y) EACH_ROW EACH_VEC acc[r][c] += (_x) * (_y)

/* s[R][C vectors] = q^T k. k[c] points at token vector c of d 0. */
INLINE void qk_body(const int R, const int C, const deft_dtype_t form, const float *q, uint32_t ldq,
                    const char *const *k, uint32_t D, float *s, ahead_t ahead)
{
    vf acc[MAX_ROWS][4], kv[4];
    vu pair[4];
    EACH_ROW EACH_VEC acc[r][c] = splat(0.0f);
    for (uint32_t d = 0, at = 0; d < D; at += k_step(form)) {
        if (d == MAX_CHAIN) { /* the sum of a long row in two parts: half the rounding */
            EACH_ROW EACH_VEC *(vf *)(s + r * LDS + c * VL) = acc[r][c];
            EACH_ROW EACH_VEC acc[r][c] = splat(0.0f);
        }
        PREFETCH(ahead.at);
        ahead.at += ahead.bytes;
        if (form == DEFT_F32) {
            EACH_VEC kv[c] = *(const vfu *)(k[c] + at);
        } else if (form == DEFT_F16) {
            EACH_VEC kv[c] = load_f16(k[c] + at);
        } else {
            EACH_VEC pair[c] = *(const vuu *)(k[c] + at);
            EACH_VEC kv[c] = low_half(pair[c]);
            RANK_ONE(q[r], kv[c]);
            q += ldq;
            d++;
            EACH_VEC kv[c] = high_half(pair[c]);
        }
        RANK_ONE(q[r], kv[c]);
        q += ldq;
        d++;
    }
    if (D > MAX_CHAIN)
        EACH_ROW EACH_VEC acc[r][c] += *(vf *)(s + r * LDS + c * VL);
    EACH_ROW EACH_VEC *(vf *)(s + r * LDS + c * VL) = acc[r][c];
}

/* o[R][C vectors] = o * alpha + p v, at column `at` of D. */
INLINE void pv_body(const int R, const int C, const deft_dtype_t form, const float *p,
                    const piece_t *piece, uint32_t n_piece, uint32_t D, const float *alpha,
                    float *o, uint32_t at, ahead_t ahead)
{
    vf acc[MAX_ROWS][4], vv[4];
    /* a tile's sum starts at zero: a chain over the whole path would lose bits on the way */
    EACH_ROW EACH_VEC acc[r][c] = splat(0.0f);
    for (uint32_t i = 0; i < n_piece; i++) {
        const uint32_t n = piece[i].n, odd = form == DEFT_BF16 ? piece[i].slot % 2 : 0;
        const size_t row = D * ideft_lane_bytes(form); /* bf16: a pair of tokens */
        const char *v = (const char *)piece[i].v + at * ideft_lane_bytes(form);
        for (uint32_t t = 0; t < n; v += row) {
            PREFETCH(ahead.at);
            ahead.at += ahead.bytes;
            if (form == DEFT_F32) {
                EACH_VEC vv[c] = *(const vfu *)(v + c * VL * 4);
            } else if (form == DEFT_F16) {
                EACH_VEC vv[c] = load_f16(v + c * VL * 2);
            } else {
                vu pair[4];
                EACH_VEC pair[c] = *(const vuu *)(v + c * VL * 4);
                if (t > 0 || odd == 0) {
                    EACH_VEC vv[c] = low_half(pair[c]);
                    RANK_ONE(p[r * LDS], vv[c]);
                    p++;
                    if (++t == n)
                        break;
                }
                EACH_VEC vv[c] = high_half(pair[c]);
            }
            RANK_ONE(p[r * LDS], vv[c]);
            p++;
            t++;
        }
    }
    EACH_ROW EACH_VEC
    {
        vfu *to = (vfu *)(o + (size_t)r * D + at + c * VL);
        *to = *to * alpha[r] + acc[r][c];
    }
}

typedef void (*qk_fn)(const float *, uint32_t, const char *const *, uint32_t, float *, ahead_t);
typedef void (*pv_fn)(const float *, const piece_t *, uint32_t, uint32_t, const float *, float *,
                      uint32_t, ahead_t);

#define MICRO(_R, _C, _form)                                                                    \
    static void qk_##_R##_##_C##_##_form(const float *q, uint32_t ldq, const char *const *k,    \
                                         uint32_t D, float *s, ahead_t ahead)                   \
    {                                                                                           \
        qk_body(_R, _C, DEFT_##_form, q, ldq, k, D, s, ahead);                                  \
    }                                                                                           \
    static void pv_##_R##_##_C##_##_form(const float *p, const piece_t *piece, uint32_t n,      \
                                         uint32_t D, const float *alpha, float *o, uint32_t at, \
                                         ahead_t ahead)                                         \
    {                                                                                           \
        pv_body(_R, _C, DEFT_##_form, p, piece, n, D, alpha, o, at, ahead);                     \
    }
SHAPES(MICRO, F32)
SHAPES(MICRO, F16)
SHAPES(MICRO, BF16)

/* By form, vectors at once, rows. */
#define QK_ENTRY(_R, _C, _form) [DEFT_##_form][_C][_R] = qk_##_R##_##_C##_##_form,
#define PV_ENTRY(_R, _C, _form) [DEFT_##_form][_C][_R] = pv_##_R##_##_C##_##_form,
static const qk_fn qk[4][5][MAX_ROWS + 1] = { SHAPES(QK_ENTRY, F32) SHAPES(QK_ENTRY, F16)
                                                  SHAPES(QK_ENTRY, BF16) };
static const pv_fn pv[4][5][MAX_ROWS + 1] = { SHAPES(PV_ENTRY, F32) SHAPES(PV_ENTRY, F16)
                                                  SHAPES(PV_ENTRY, BF16) };

INLINE uint32_t iterations(const work_t *w, uint32_t cols, uint32_t rows)
{
    const uint32_t steps = product_steps(cols, w->D, rows);
    return w->sc->form == DEFT_BF16 ? steps / 2 : steps; /* two tokens, two d at a time */
}

/* Scores of rows [r, r + n) over the tile. */
static void scores(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    const char *k[NV];
    const uint32_t nv = (sc->cols + VL - 1) / VL, lane = ideft_lane_bytes(sc->form);
    for (uint32_t i = 0; i < nv; i++)
        k[i] = sc->k[i / BV] + i % BV * VL * lane;
    for (uint32_t c = 0, take; c < nv; c += take) {
        take = at_once(nv - c, n);
        qk[sc->form][take][n](sc->micro.q + r, w->ldq, k + c, w->D, sc->s + c * VL,
                              take_ahead(&sc->stream, w->D));
    }
}

static void add_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t nv = w->D / VL;
    for (uint32_t c = 0, take; c < nv; c += take) {
        take = at_once(nv - c, n);
        pv[sc->micro.v_form][take][n](sc->s, sc->piece, sc->n_piece, w->D, sc->alpha,
                                      sc->o + (size_t)r * w->D, c * VL,
                                      take_ahead(&sc->stream, sc->cols));
    }
}

#endif
