/* SPDX-License-Identifier: MIT */
/* Micro kernels (tile.h) by the tile unit: 16 rows by 16 tokens (or 16 of D) at a time. Tiles 0 to
 * 3 accumulate, 4 and 5 hold whole operands, 6 and 7 half ones. */
#ifndef IDEFT_MICRO_AMX_H
#define IDEFT_MICRO_AMX_H

#define MAX_ROWS 16
#define WIDE_ROWS 16
#define WHOLE_PANELS 1

typedef struct micro {
    uint16_t q[2 * MAX_D * (TILE_ROWS + 32)] __attribute__((aligned(64))); /* [row][D] */
    uint16_t p[MAX_ROWS * TILE] __attribute__((aligned(64)));
    float edge[16 * MAX_D] __attribute__((aligned(64))); /* O of a panel that is not full */
    const char *v; /* [pair of columns][D][2] of the tile, here or in the pool */
} micro_t;

#include "work.h"

#include "pairs.h"

INLINE void put_q(const work_t *w, uint16_t *q, uint32_t r, uint32_t d, vf x)
{
    store_bf16(q + (size_t)r * w->D + d, x);
}

/* To whole half tiles. */
INLINE uint32_t padded(uint32_t cols)
{
    return (cols + 15) / 16 * 16;
}

static void configure_tiles(void)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64)));
    memset(&config, 0, sizeof(config));
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.bytes[i] = i == 6 ? 32 : 64;
        config.rows[i] = i == 7 ? 8 : 16;
    }
    __asm__ volatile("" : : "r"(&config) : "memory"); /* gcc 12 drops the stores without it */
    _tile_loadconfig(&config);
}

static void spend_ahead(scratch_t *sc, uint32_t n)
{
    ahead_t a = take_ahead(sc, n);
    for (uint32_t i = 0; i < n && a.bytes > 0; i++, a.at += a.bytes)
        PREFETCH(a.at);
}

/* Does _do(i) for i below n, 4 at most: the number of a tile is part of the instruction. */
#define EACH_OF(_n, _do) \
    do {                 \
        _do(0);          \
        if ((_n) > 1)    \
            _do(1);      \
        if ((_n) > 2)    \
            _do(2);      \
        if ((_n) > 3)    \
            _do(3);      \
    } while (0)

/* Tile _acc += the left operand, loaded before, times what is at _right: whole tiles, half ones. */
#define WHOLE(_acc, _right, _stride)       \
    do {                                   \
        _tile_loadd(5, (_right), _stride); \
        _tile_dpbf16ps(_acc, 4, 5);        \
    } while (0)
#define HALF(_acc, _right, _stride)        \
    do {                                   \
        _tile_loadd(7, (_right), _stride); \
        _tile_dpbf16ps(_acc, 6, 7);        \
    } while (0)

/* Scores of 16 rows from r on, in tiles 0 to 3 for up to four blocks of columns. Rows after the
 * last are computed from what lies there and unused. */
static void scores(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t blocks = (sc->cols + 15) / 16;
    const size_t stride = w->D * 2;
    (void)n;
#define ZERO(_i) _tile_zero(_i)
#define WHOLE_K(_i) WHOLE(_i, sc->k[_i] + at, 64)
#define HALF_K(_i) HALF(_i, sc->k[_i] + at, 64)
#define STORE_S(_i) _tile_stored(_i, sc->s + (_i)*16, TILE * 4)
    EACH_OF(blocks, ZERO);
    for (uint32_t d = 0; d < w->D; d += 32) {
        const uint16_t *q = sc->micro.q + (size_t)r * w->D + d;
        const size_t at = (size_t)d * 32;
        if (d + 32 <= w->D) {
            _tile_loadd(4, q, stride);
            EACH_OF(blocks, WHOLE_K);
            _tile_loadd(4, q + Q_HALF, stride);
            EACH_OF(blocks, WHOLE_K);
        } else { /* D is 80 */
            _tile_loadd(6, q, stride);
            EACH_OF(blocks, HALF_K);
            _tile_loadd(6, q + Q_HALF, stride);
            EACH_OF(blocks, HALF_K);
        }
        spend_ahead(sc, 16);
    }
    EACH_OF(blocks, STORE_S);
}

/* O of 16 rows, 64 columns at `at`, += P V. o: [16][D]. */
static void add_columns(const work_t *w, float *o, uint32_t at)
{
    scratch_t *sc = w->sc;
    const uint16_t *p = sc->micro.p;
    const uint32_t n = (w->D - at) / 16, cols = padded(sc->cols);
    const size_t stride = w->D * 4;
    const char *v = sc->micro.v + at * 4;
    uint32_t t = 0;
#define LOAD_O(_i) _tile_loadd(_i, o + at + (_i)*16, stride)
#define STORE_O(_i) _tile_stored(_i, o + at + (_i)*16, stride)
#define WHOLE_V(_i) WHOLE(_i, v + (_i)*64, stride)
#define HALF_V(_i) HALF(_i, v + (_i)*64, stride)
    EACH_OF(n, LOAD_O);
    for (; t + 32 <= cols; t += 32, v += 16 * stride) {
        _tile_loadd(4, p + t, TILE * 2);
        EACH_OF(n, WHOLE_V);
        spend_ahead(sc, 16);
    }
    if (t < cols) {
        _tile_loadd(6, p + t, TILE * 2);
        EACH_OF(n, HALF_V);
        spend_ahead(sc, 16);
    }
    EACH_OF(n, STORE_O);
}

/* Rows after the last are another panel's, so that O of a panel that is not full goes through a
 * copy: a row's sum is taken in the same way in every panel. */
static void add_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    float *o = sc->o + (size_t)r * w->D, *to = n == 16 ? o : sc->micro.edge;
    for (uint32_t i = 0; i < n; i++)
        if (sc->alpha[i] != 1.0f)
            for (uint32_t d = 0; d < w->D; d += VL)
                *(vfu *)(o + (size_t)i * w->D + d) *= sc->alpha[i];
    if (n < 16)
        memcpy(to, o, (size_t)n * w->D * sizeof(*o));
    for (uint32_t at = 0; at < w->D; at += 64)
        add_columns(w, to, at);
    if (n < 16)
        memcpy(o, to, (size_t)n * w->D * sizeof(*o));
}

#endif
