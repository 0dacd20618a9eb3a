/* SPDX-License-Identifier: MIT */
/* Micro kernels (tile.h) by the tile unit, which multiplies 16 rows by 32 pairs of bf16 at a time:
 * two blocks of 16 rows by two of 16 columns, so that each operand that is loaded serves twice, and
 * K four times (Q has two halves). Tiles 0 to 3 accumulate; 4 and 5 hold rows, 6 and 7 columns. */
#ifndef IDEFT_MICRO_AMX_H
#define IDEFT_MICRO_AMX_H

#define TILE 128u       /* O goes through the tiles once for so many columns */
#define LDS (TILE + 16) /* rows of a tile of scores lie in different sets of the cache */
#define MAX_ROWS 32
#define WHOLE_PANELS 1
#define BY_TURNS 0 /* it gains nothing with tiles as large as these */
#define STEP 32u   /* what a product sums up: d of scores, tokens of values */
#define ASKS 32u   /* lines that a step asks for at most */

typedef struct micro {
    uint16_t q[(TILE_ROWS + 32) * 2 * MAX_D] __attribute__((aligned(64))); /* [row][half][d] */
    uint16_t p[MAX_ROWS * TILE] __attribute__((aligned(64)));
    float edge[16 * MAX_D] __attribute__((aligned(64))); /* O of a block that is not full */
    uint16_t k_tail[TILE * STEP] __attribute__((aligned(64)));
    uint16_t v_tail[STEP * MAX_D] __attribute__((aligned(64)));
    const char *v; /* [pair of columns][D][2] of the tile, here or in the pool */
} micro_t;

#include "work.h"

#include "pairs.h"

/* From one half of a row of Q to the next; what is between stays zero. */
INLINE uint32_t q_half(const work_t *w)
{
    return (w->D + STEP - 1) / STEP * STEP;
}

INLINE void put_q(const work_t *w, uint32_t r, uint32_t d, vf high, vf low)
{
    uint16_t *q = w->sc->micro.q + (size_t)r * 2 * q_half(w) + d;
    store_bf16(q, high);
    store_bf16(q + q_half(w), low);
}

INLINE uint32_t iterations(const work_t *w, uint32_t cols, uint32_t rows)
{
    (void)rows;
    return 2 * ASKS * ((cols + STEP - 1) / STEP) * ((w->D + STEP - 1) / STEP);
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
        config.bytes[i] = 64;
        config.rows[i] = 16;
    }
    __asm__ volatile("" : : "r"(&config) : "memory"); /* gcc 12 drops the stores without it */
    _tile_loadconfig(&config);
}

static void spend_ahead(scratch_t *sc)
{
    const ahead_t a = take_ahead(&sc->stream, ASKS);
    for (uint32_t i = 0; i < ASKS * a.bytes; i += 64)
        PREFETCH(a.at + i);
}

/* ---- products -------------------------------------------------------------------------------- */

/* Tiles += R blocks of rows, `row_bytes` apart in each, times C blocks of columns. */
INLINE void multiply(const int R, const int C, const uint16_t *rows, const uint16_t *more_rows,
                     size_t row_bytes)
{
    _tile_loadd(4, rows, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if (C == 2)
        _tile_dpbf16ps(1, 4, 7);
    if (R == 2) {
        _tile_loadd(5, more_rows, row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if (C == 2)
            _tile_dpbf16ps(3, 5, 7);
    }
}

INLINE void zero_sums(void)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

INLINE void store_sums(const int R, const int C, float *to, float *more, size_t row_bytes)
{
    _tile_stored(0, to, row_bytes);
    if (C == 2)
        _tile_stored(1, to + 16, row_bytes);
    if (R == 2) {
        _tile_stored(2, more, row_bytes);
        if (C == 2)
            _tile_stored(3, more + 16, row_bytes);
    }
}

/* Rows of Q from r on, columns from t on. */
INLINE void scores_body(const int R, const int C, const work_t *w, uint32_t r, uint32_t t)
{
    scratch_t *sc = w->sc;
    const uint32_t half = q_half(w), ld = 2 * half, block = t / 16;
    const uint16_t *q = sc->micro.q + (size_t)r * ld;
    zero_sums();
    for (uint32_t d = 0; d < w->D; d += STEP, q += STEP) {
        const bool tail = d + STEP > w->D;
        const char *k_tail = (const char *)(sc->micro.k_tail + t * STEP);
        _tile_loadd(6, tail ? k_tail : sc->k[block] + (size_t)d * 32, 64);
        if (C == 2)
            _tile_loadd(7, tail ? k_tail + 1024 : sc->k[block + 1] + (size_t)d * 32, 64);
        multiply(R, C, q, q + 16 * ld, ld * 2);
        multiply(R, C, q + half, q + half + 16 * ld, ld * 2);
        spend_ahead(sc);
    }
    store_sums(R, C, sc->s + t, sc->s + 16 * LDS + t, LDS * 4);
}

/* Rows after the last are computed from what lies there and unused. */
static void scores(const work_t *w, uint32_t r, uint32_t n)
{
    for (uint32_t t = 0; t < w->sc->cols; t += 32) {
        if (t + 16 >= w->sc->cols)
            n > 16 ? scores_body(2, 1, w, r, t) : scores_body(1, 1, w, r, t);
        else
            n > 16 ? scores_body(2, 2, w, r, t) : scores_body(1, 2, w, r, t);
    }
}

INLINE void load_sums(const int R, const int C, const float *o, const float *more, size_t row_bytes)
{
    _tile_loadd(0, o, row_bytes);
    if (C == 2)
        _tile_loadd(1, o + 16, row_bytes);
    if (R == 2) {
        _tile_loadd(2, more, row_bytes);
        if (C == 2)
            _tile_loadd(3, more + 16, row_bytes);
    }
}

/* C blocks of O at column `at`, rows in `o` and the sixteen in `more`, += P V. */
INLINE void values_body(const int R, const int C, const work_t *w, float *o, float *more,
                        uint32_t at)
{
    scratch_t *sc = w->sc;
    const size_t row = (size_t)w->D * 4; /* bytes of a pair of tokens, and of a row of O */
    const uint16_t *p = sc->micro.p;
    load_sums(R, C, o + at, more + at, row);
    for (uint32_t t = 0; t < sc->cols; t += STEP, p += STEP) {
        const char *v = t + STEP > sc->cols ? (const char *)sc->micro.v_tail
                                            : sc->micro.v + t / 2 * row;
        _tile_loadd(6, v + at * 4, row);
        if (C == 2)
            _tile_loadd(7, v + at * 4 + 64, row);
        multiply(R, C, p, p + 16 * TILE, TILE * 2);
        spend_ahead(sc);
    }
    store_sums(R, C, o + at, more + at, row);
}

/* Of a block that is not full, the rows after the last are another panel's: its O goes through a
 * copy, so that every row is summed up in the same way. */
static void add_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    float *o = sc->o + (size_t)r * w->D, *more = o + 16 * (size_t)w->D;
    const uint32_t full = n / 16 * 16, rest = n % 16;
    float *last = o + (size_t)full * w->D;
    for (uint32_t i = 0; i < n; i++) {
        if (sc->alpha[i] != 1.0f)
            for (uint32_t d = 0; d < w->D; d += VL)
                *(vfu *)(o + (size_t)i * w->D + d) *= sc->alpha[i];
        if (sc->cols % 32 != 0 && sc->cols % 32 <= 16) /* columns that no score was stored for */
            memset(sc->micro.p + i * TILE + sc->cols / 32 * 32 + 16, 0, 32);
    }
    if (rest > 0) {
        memcpy(sc->micro.edge, last, (size_t)rest * w->D * sizeof(*o));
        *(full == 0 ? &o : &more) = sc->micro.edge;
    }
    for (uint32_t at = 0; at < w->D; at += 32) {
        if (at + 16 >= w->D)
            n > 16 ? values_body(2, 1, w, o, more, at) : values_body(1, 1, w, o, more, at);
        else
            n > 16 ? values_body(2, 2, w, o, more, at) : values_body(1, 2, w, o, more, at);
    }
    if (rest > 0)
        memcpy(last, sc->micro.edge, (size_t)rest * w->D * sizeof(*o));
}

/* ---- a tile ---------------------------------------------------------------------------------- */

static void prepare_tile(const work_t *w)
{
    scratch_t *sc = w->sc;
    const uint32_t whole = sc->cols / STEP * STEP;
    const bool here = values_adjoin(sc);
    sc->micro.v = here ? sc->piece[0].v : (const char *)sc->vt;
    if (!here)
        gather_pairs(w, (uint32_t *)sc->vt, 0, whole);
    if (whole < sc->cols)
        gather_pairs(w, (uint32_t *)sc->micro.v_tail, whole, whole + STEP);
    for (uint32_t t = 0; t < sc->cols && w->D % STEP != 0; t += 16) /* the rest stays zero */
        memcpy(sc->micro.k_tail + t * STEP, sc->k[t / 16] + (size_t)(w->D - 16) * 32, 512);
}

static void clear_values(const work_t *w)
{
    scratch_t *sc = w->sc;
    clear_pairs(w, (uint16_t *)sc->vt, 0, sc->cols / STEP * STEP);
    clear_pairs(w, sc->micro.v_tail, sc->cols / STEP * STEP, sc->cols);
    sc->micro.v = (const char *)sc->vt;
}

#endif
