/* SPDX-License-Identifier: MIT */
/* Scores and outputs by fused multiply-adds of floats: sums of rank-one updates, KV of 16 bits
 * widened in registers. Part of tile.h; tile_bf16.h takes its place where pairs of bf16 are
 * multiplied. */

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
            EACH_ROW EACH_VEC *(vf *)(s + r * TILE + c * VL) = acc[r][c];
            EACH_ROW EACH_VEC acc[r][c] = splat(0.0f);
        }
        _mm_prefetch(ahead.at, _MM_HINT_T0);
        ahead.at += ahead.bytes;
        if (form == DEFT_F32) {
            EACH_VEC kv[c] = *(const vfu *)(k[c] + at);
        } else if (form == DEFT_F16) {
            EACH_VEC kv[c] = LOAD_F16(k[c] + at);
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
        EACH_ROW EACH_VEC acc[r][c] += *(vf *)(s + r * TILE + c * VL);
    EACH_ROW EACH_VEC *(vf *)(s + r * TILE + c * VL) = acc[r][c];
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
            _mm_prefetch(ahead.at, _MM_HINT_T0);
            ahead.at += ahead.bytes;
            if (form == DEFT_F32) {
                EACH_VEC vv[c] = *(const vfu *)(v + c * VL * 4);
            } else if (form == DEFT_F16) {
                EACH_VEC vv[c] = LOAD_F16(v + c * VL * 2);
            } else {
                vu pair[4];
                EACH_VEC pair[c] = *(const vuu *)(v + c * VL * 4);
                if (t > 0 || odd == 0) {
                    EACH_VEC vv[c] = low_half(pair[c]);
                    RANK_ONE(p[r * TILE], vv[c]);
                    p++;
                    if (++t == n)
                        break;
                }
                EACH_VEC vv[c] = high_half(pair[c]);
            }
            RANK_ONE(p[r * TILE], vv[c]);
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
        qk[sc->form][take][n](sc->q + r, w->ldq, k + c, w->D, sc->s + c * VL, take_ahead(sc, w->D));
    }
}

static void add_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t nv = w->D / VL;
    for (uint32_t c = 0, take; c < nv; c += take) {
        take = at_once(nv - c, n);
        pv[sc->v_form][take][n](sc->s, sc->piece, sc->n_piece, w->D, sc->alpha,
                                sc->o + (size_t)r * w->D, c * VL, take_ahead(sc, sc->cols));
    }
}
