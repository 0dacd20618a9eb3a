/* SPDX-License-Identifier: MIT */
/* Micro kernels (tile.h) by vdpbf16ps, which multiplies pairs of bf16 and adds both products. */
#ifndef IDEFT_MICRO_BF16_H
#define IDEFT_MICRO_BF16_H

#include "shapes.h"

#define WHOLE_PANELS 0
#define BY_TURNS 1

#define Q_HALF ((size_t)MAX_D * (TILE_ROWS + 32)) /* the rows, and room after them */

typedef struct micro {
    /* high parts, then low ones */
    uint16_t q[2 * MAX_D * (TILE_ROWS + 32)] __attribute__((aligned(64))); /* [D/2][ldq][2] */
    uint16_t p[MAX_ROWS * TILE] __attribute__((aligned(64)));
    const char *v; /* [pair of columns][D][2] of the tile, here or in the pool */
} micro_t;

#include "work.h"

#include "pairs.h"

INLINE void put_q(const work_t *w, uint32_t r, uint32_t d, vf high, vf low)
{
    uint32_t pair[2][VL / 2] __attribute__((aligned(32)));
    uint32_t *q = (uint32_t *)w->sc->micro.q + r;
    store_bf16(pair[0], high);
    store_bf16(pair[1], low);
    for (uint32_t j = 0; j < VL / 2; j++) {
        q[(size_t)(d / 2 + j) * w->ldq] = pair[0][j];
        q[Q_HALF / 2 + (size_t)(d / 2 + j) * w->ldq] = pair[1][j];
    }
}

INLINE void qk_body(const int R, const int C, const uint32_t *q, uint32_t ldq, const char *const *k,
                    uint32_t D, float *s, ahead_t ahead)
{
    vf acc[MAX_ROWS][4];
    vu kv[4];
    EACH_ROW EACH_VEC acc[r][c] = splat(0.0f);
    for (uint32_t d = 0; d < D; d += 2, q += ldq) {
        PREFETCH(ahead.at);
        ahead.at += ahead.bytes;
        EACH_VEC kv[c] = *(const vuu *)(k[c] + d * IDEFT_BLOCK * 2);
        EACH_ROW EACH_VEC acc[r][c] = dot_pairs(acc[r][c], kv[c], q[r]);
        EACH_ROW EACH_VEC acc[r][c] = dot_pairs(acc[r][c], kv[c], q[r + Q_HALF / 2]);
    }
    EACH_ROW EACH_VEC *(vf *)(s + r * LDS + c * VL) = acc[r][c];
}

INLINE void pv_body(const int R, const int C, const uint16_t *p, const char *v, uint32_t cols,
                    uint32_t D, const float *alpha, float *o, uint32_t at, ahead_t ahead)
{
    vf acc[MAX_ROWS][4];
    vu vv[4];
    EACH_ROW EACH_VEC acc[r][c] = *(const vfu *)(o + (size_t)r * D + at + c * VL) * alpha[r];
    v += at * 4;
    for (uint32_t t = 0; t < cols; t += 2, v += D * 4) {
        PREFETCH(ahead.at);
        ahead.at += ahead.bytes;
        EACH_VEC vv[c] = *(const vuu *)(v + c * VL * 4);
        EACH_ROW EACH_VEC acc[r][c] =
            dot_pairs(acc[r][c], vv[c], *(const uint32_t *)(p + r * TILE + t));
    }
    EACH_ROW EACH_VEC *(vfu *)(o + (size_t)r * D + at + c * VL) = acc[r][c];
}

typedef void (*qk_fn)(const uint32_t *, uint32_t, const char *const *, uint32_t, float *, ahead_t);
typedef void (*pv_fn)(const uint16_t *, const char *, uint32_t, uint32_t, const float *, float *,
                      uint32_t, ahead_t);

#define MICRO(_R, _C, _form)                                                                      \
    static void qk_##_R##_##_C(const uint32_t *q, uint32_t ldq, const char *const *k, uint32_t D, \
                               float *s, ahead_t ahead)                                           \
    {                                                                                             \
        qk_body(_R, _C, q, ldq, k, D, s, ahead);                                                  \
    }                                                                                             \
    static void pv_##_R##_##_C(const uint16_t *p, const char *v, uint32_t cols, uint32_t D,       \
                               const float *alpha, float *o, uint32_t at, ahead_t ahead)          \
    {                                                                                             \
        pv_body(_R, _C, p, v, cols, D, alpha, o, at, ahead);                                      \
    }
SHAPES(MICRO, )
#define QK_ENTRY(_R, _C, _form) [_C][_R] = qk_##_R##_##_C,
#define PV_ENTRY(_R, _C, _form) [_C][_R] = pv_##_R##_##_C,
static const qk_fn qk[5][MAX_ROWS + 1] = { SHAPES(QK_ENTRY, ) };
static const pv_fn pv[5][MAX_ROWS + 1] = { SHAPES(PV_ENTRY, ) };

static void scores(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    const char *k[NV];
    const uint32_t nv = (sc->cols + VL - 1) / VL;
    for (uint32_t i = 0; i < nv; i++)
        k[i] = sc->k[i / BV] + i % BV * VL * 4;
    for (uint32_t c = 0, take; c < nv; c += take) {
        take = at_once(nv - c, n);
        qk[take][n]((const uint32_t *)sc->micro.q + r, w->ldq, k + c, w->D, sc->s + c * VL,
                    take_ahead(&sc->stream, w->D / 2));
    }
}

static void add_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t nv = w->D / VL, cols = (sc->cols + 1) / 2 * 2;
    for (uint32_t c = 0, take; c < nv; c += take) {
        take = at_once(nv - c, n);
        pv[take][n](sc->micro.p, sc->micro.v, cols, w->D, sc->alpha, sc->o + (size_t)r * w->D,
                    c * VL, take_ahead(&sc->stream, cols / 2));
    }
}

INLINE uint32_t iterations(const work_t *w, uint32_t cols, uint32_t rows)
{
    return product_steps(cols, w->D, rows) / 2;
}

/* ---- a tile ---------------------------------------------------------------------------------- */

static void prepare_tile(const work_t *w)
{
    scratch_t *sc = w->sc;
    const bool here = values_adjoin(sc) && sc->cols % 2 == 0;
    sc->micro.v = here ? sc->piece[0].v : (const char *)sc->vt;
    if (!here)
        gather_pairs(w, (uint32_t *)sc->vt, 0, sc->cols);
}

static void clear_values(const work_t *w)
{
    scratch_t *sc = w->sc;
    clear_pairs(w, (uint16_t *)sc->vt, 0, sc->cols);
    sc->micro.v = (const char *)sc->vt;
}

#endif
