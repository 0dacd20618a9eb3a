/* SPDX-License-Identifier: MIT */
/* The micro kernels for instructions that multiply pairs of bf16: K and V are used as the pool
 * holds them, P is rounded to bf16, Q is the sum of two bf16. A Q of one bf16 would be wrong by
 * 2^-9, and so a score of 10 by 2%; with two, the rounding of P is all that is lost: 2^-9 at most
 * of the output. The second half of q16 holds the low parts. Part of tile.h. The file that includes
 * that defines DOT as one of
 *   1   vdpbf16ps: q16 is [D/2][ldq][2], panels of up to 12 rows as with f32
 *   2   tiles of 16 rows: q16 is [row][D] */

#define Q_HALF ((size_t)MAX_D * (TILE_ROWS + 32))

/* VL values of D from d on, of row r of Q. */
INLINE void put_q(const work_t *w, uint16_t *q, uint32_t r, uint32_t d, vf x)
{
#if DOT == 1
    uint32_t pair[VL / 2] __attribute__((aligned(32)));
    ROUND_BF16(pair, x);
    for (uint32_t j = 0; j < VL / 2; j++)
        ((uint32_t *)q)[(size_t)(d / 2 + j) * w->ldq + r] = pair[j];
#else
    ROUND_BF16(q + (size_t)r * w->D + d, x);
#endif
}

/* Rows [r, r + n) of Q. */
static void pack_rows(const work_t *w, const float *const *from, uint32_t r, uint32_t n,
                      float factor)
{
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t d = 0; d < w->D; d += VL) {
            const vf x = *(const vfu *)(from[i] + d) * factor;
            put_q(w, w->sc->q16, r + i, d, x);
            put_q(w, w->sc->q16 + Q_HALF, r + i, d, x - FROM_BF16(TO_BF16(x)));
        }
    }
}

/* Columns that a product over the tile's tokens takes: whole pairs, or whole half tiles. */
INLINE uint32_t padded(uint32_t cols)
{
    const uint32_t whole = DOT == 1 ? 2 : 16;
    return (cols + whole - 1) / whole * whole;
}

/* V of the tile in pairs of columns: where it lies if its pairs are the pool's and nothing has to
 * be padded, else put together here, zeros after the last. */
static void pair_values(const work_t *w)
{
    scratch_t *sc = w->sc;
    const piece_t *first = &sc->piece[0];
    if (sc->n_piece == 1 && first->slot % 2 == 0 && padded(sc->cols) == sc->cols) {
        sc->v16 = first->v;
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
    sc->v16 = (const char *)to;
}

#if DOT == 1

INLINE void qk_body(const int R, const int C, const uint32_t *q, uint32_t ldq, const char *const *k,
                    uint32_t D, float *s, ahead_t ahead)
{
    vf acc[MAX_ROWS][4];
    vu kv[4];
    EACH_ROW EACH_VEC acc[r][c] = splat(0.0f);
    for (uint32_t d = 0; d < D; d += 2, q += ldq) {
        _mm_prefetch(ahead.at, _MM_HINT_T0);
        ahead.at += ahead.bytes;
        EACH_VEC kv[c] = *(const vuu *)(k[c] + d * IDEFT_BLOCK * 2);
        EACH_ROW EACH_VEC acc[r][c] = DOT_PAIRS(acc[r][c], kv[c], q[r]);
        EACH_ROW EACH_VEC acc[r][c] = DOT_PAIRS(acc[r][c], kv[c], q[r + Q_HALF / 2]);
    }
    EACH_ROW EACH_VEC *(vf *)(s + r * TILE + c * VL) = acc[r][c];
}

INLINE void pv_body(const int R, const int C, const uint16_t *p, const char *v, uint32_t cols,
                    uint32_t D, const float *alpha, float *o, uint32_t at, ahead_t ahead)
{
    vf acc[MAX_ROWS][4];
    vu vv[4];
    EACH_ROW EACH_VEC acc[r][c] = *(const vfu *)(o + (size_t)r * D + at + c * VL) * alpha[r];
    v += at * 4;
    for (uint32_t t = 0; t < cols; t += 2, v += D * 4) {
        _mm_prefetch(ahead.at, _MM_HINT_T0);
        ahead.at += ahead.bytes;
        EACH_VEC vv[c] = *(const vuu *)(v + c * VL * 4);
        EACH_ROW EACH_VEC acc[r][c] =
            DOT_PAIRS(acc[r][c], vv[c], *(const uint32_t *)(p + r * TILE + t));
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
        qk[take][n]((const uint32_t *)sc->q16 + r, w->ldq, k + c, w->D, sc->s + c * VL,
                    take_ahead(sc, w->D / 2));
    }
}

static void add_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t nv = w->D / VL, cols = padded(sc->cols);
    for (uint32_t c = 0, take; c < nv; c += take) {
        take = at_once(nv - c, n);
        pv[take][n](sc->p16, sc->v16, cols, w->D, sc->alpha, sc->o + (size_t)r * w->D, c * VL,
                    take_ahead(sc, (cols + 1) / 2));
    }
}

#else /* tiles: 0-3 accumulate, 4 and 5 hold whole operands, 6 and 7 half ones */

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
        _mm_prefetch(a.at, _MM_HINT_T0);
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
        const uint16_t *q = sc->q16 + (size_t)r * w->D + d;
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
    const uint16_t *p = sc->p16;
    const uint32_t n = (w->D - at) / 16, cols = padded(sc->cols);
    const size_t stride = w->D * 4;
    const char *v = sc->v16 + at * 4;
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
    float *o = sc->o + (size_t)r * w->D, *to = n == 16 ? o : sc->edge;
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
