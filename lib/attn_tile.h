/* SPDX-License-Identifier: MIT */
/* The vector kernel, compiled once an instruction set. The file that includes it defines
 *   VL                    floats a vector: 8 or 16
 *   MAX_ROWS, WIDE_ROWS   matrix rows that QK^T takes at once with 2, with 4 vectors of tokens
 *   VMAX(a, b)            lanewise; b where one is NaN
 *   HMAX(v)               largest lane
 *   LOAD_F16(p)           VL halves as floats
 *   STORE_FIRST(p, v, n)  the first n lanes
 *
 * An item is computed for up to TILE_ROWS matrix rows at a time. Its KV goes through in tiles of
 * TILE columns (tokens): tokens of several runs, and of several small nodes, are packed into one
 * tile, in path order, so that lanes are not wasted on odd lengths and the sums are taken in an
 * order that does not depend on where the pool keeps the tokens. 16-bit KV is widened into the
 * tile; f32 KV is used where it lies if it is aligned. Then for each panel of rows: scores (QK^T
 * from rank-one updates: one d of VL tokens times one d of each row), softmax in units of log2
 * with a running maximum, and O += P V from rank-one updates again. Nothing is padded to the
 * panel: a run's scores are computed for the interval of rows that sees it. */
#include <immintrin.h>
#include <math.h>

#include "attn_cpu.h"
#include "kv.h"
#include "plan.h"

#define TILE 64u
#define TILE_ROWS 128u
#define MAX_D 256u
#define NV (TILE / VL)       /* vectors of a row of scores */
#define BV (IDEFT_BLOCK / VL) /* vectors of a block of slots */

typedef float vf __attribute__((vector_size(VL * 4), may_alias));
typedef float vfu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t vuu __attribute__((vector_size(VL * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

typedef struct piece { /* rows of V that adjoin */
    const float *v;
    uint32_t n;
} piece_t;

/* What a thread works in. q: [D][ldq], the rows of Q side by side, scale folded in. */
typedef struct scratch {
    float q[MAX_D * TILE_ROWS] __attribute__((aligned(64)));
    float o[TILE_ROWS * MAX_D] __attribute__((aligned(64)));
    float kt[MAX_D * TILE] __attribute__((aligned(64)));
    float vt[TILE * MAX_D] __attribute__((aligned(64)));
    float s[MAX_ROWS * TILE] __attribute__((aligned(64)));
    float d[TILE_ROWS * VL] __attribute__((aligned(64))); /* denominators, a partial sum a lane */
    float m[TILE_ROWS], alpha[MAX_ROWS];
    int32_t row[TILE_ROWS], pos[TILE_ROWS]; /* of each matrix row: query row, path position */
    /* who sees a column: query rows [row_begin, row_end) from its path position on */
    int32_t c_begin[TILE] __attribute__((aligned(64)));
    int32_t c_end[TILE] __attribute__((aligned(64)));
    int32_t c_pos[TILE] __attribute__((aligned(64)));
    const float *k[TILE / IDEFT_BLOCK]; /* blocks of K: [D][16], here or in the pool */
    piece_t piece[TILE];
    uint32_t n_piece, cols;
    uint32_t begin, end; /* rows that see any column, and */
    bool uniform;        /* all columns have this interval */
    bool small;          /* made of small nodes: others may join */
} scratch_t;

typedef struct work {
    const ideft_attn_t *attn;
    const ideft_item_t *item;
    const unsigned char *k, *v; /* the head's planes */
    scratch_t *sc;
    uint32_t row0, rows, n; /* query rows of this pass; n matrix rows */
    uint32_t ldq, D;
    deft_dtype_t type;
} work_t;

/* ---- arithmetic ------------------------------------------------------------------------------- */

INLINE vf splat(float x)
{
    return x - (vf){ 0 };
}

/* 2^x for x <= 0: error below 1e-7, 0 from -127 down, NaN stays. Polynomial on [-1/2, 1/2] by
 * Remez (that of Cephes' exp2f). */
INLINE vf exp2_v(vf x)
{
    const vf round = splat(12582912.0f);
    x = VMAX(splat(-127.0f), x);
    const vf big = x + round;
    const vf f = x - (big - round);
    vf p = splat(1.535336188319500e-4f);
    p = p * f + splat(1.339887440266574e-3f);
    p = p * f + splat(9.618437357674640e-3f);
    p = p * f + splat(5.550332471162809e-2f);
    p = p * f + splat(2.402264791363012e-1f);
    p = p * f + splat(6.931472028550421e-1f);
    p = p * f + splat(1.0f);
    const vi exponent = ((vi)big - (vi)round + 127) << 23;
    return p * (vf)exponent;
}

INLINE vf select_v(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

/* tanh: odd polynomial below 5/8 (Cephes' tanhf), 1 - 2 / (e^2x + 1) above. */
INLINE vf tanh_v(vf x)
{
    const vf a = (vf)((vi)x & 0x7fffffff), z = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = p * z + splat(2.06390887954e-2f);
    p = p * z + splat(-5.37397155531e-2f);
    p = p * z + splat(1.33314422036e-1f);
    p = p * z + splat(-3.33332819422e-1f);
    const vf small = p * z * x + x;
    const vf e = exp2_v(a * splat(-2.0f * (float)IDEFT_LOG2E)); /* e^-2|x| */
    const vf large = (splat(1.0f) - e) / (splat(1.0f) + e);
    const vf signed_large = (vf)((vi)large | ((vi)x & (int32_t)0x80000000));
    return select_v(a < splat(0.625f), small, signed_large);
}

INLINE float sum_lanes(const float *d)
{
    float sum = 0;
    for (int i = 0; i < VL; i++)
        sum += d[i];
    return sum;
}

/* ---- micro kernels ------------------------------------------------------------------------------ */

/* s[R][C vectors] = q^T k. k[c] points at token vector c of d 0; a d further is a block row. */
INLINE void qk_body(const int R, const int C, const float *q, uint32_t ldq, const float *const *k,
                    uint32_t D, float *s)
{
    vf acc[MAX_ROWS][4];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
            acc[r][c] = splat(0.0f);
    for (uint32_t d = 0; d < D; d++, q += ldq) {
        vf kv[4];
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
            kv[c] = *(const vfu *)(k[c] + (size_t)d * IDEFT_BLOCK);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int c = 0; c < C; c++)
                acc[r][c] += q[r] * kv[c];
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int c = 0; c < C; c++)
            *(vf *)(s + r * TILE + c * VL) = acc[r][c];
}

/* o[R][C vectors] = o * alpha + p v. */
INLINE void pv_body(const int R, const int C, const float *p, const piece_t *piece, uint32_t n_piece,
                    uint32_t D, const float *alpha, float *o, uint32_t at)
{
    vf acc[6][6];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 6
        for (int c = 0; c < C; c++)
            acc[r][c] = *(const vfu *)(o + (size_t)r * D + at + c * VL) * alpha[r];
    for (uint32_t i = 0; i < n_piece; i++) {
        const float *v = piece[i].v + at;
        for (uint32_t t = 0; t < piece[i].n; t++, v += D, p++) {
            vf vv[6];
#pragma GCC unroll 6
            for (int c = 0; c < C; c++)
                vv[c] = *(const vfu *)(v + c * VL);
#pragma GCC unroll 6
            for (int r = 0; r < R; r++)
#pragma GCC unroll 6
                for (int c = 0; c < C; c++)
                    acc[r][c] += p[r * TILE] * vv[c];
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 6
        for (int c = 0; c < C; c++)
            *(vfu *)(o + (size_t)r * D + at + c * VL) = acc[r][c];
}

#define QK(_R, _C)                                                                              \
    static void qk_##_R##_##_C(const float *q, uint32_t ldq, const float *const *k, uint32_t D, \
                               float *s)                                                        \
    {                                                                                           \
        qk_body(_R, _C, q, ldq, k, D, s);                                                       \
    }
#define PV(_R, _C)                                                                              \
    static void pv_##_R##_##_C(const float *p, const piece_t *piece, uint32_t n, uint32_t D,    \
                               const float *alpha, float *o, uint32_t at)                       \
    {                                                                                           \
        pv_body(_R, _C, p, piece, n, D, alpha, o, at);                                          \
    }
typedef void (*qk_fn)(const float *, uint32_t, const float *const *, uint32_t, float *);
typedef void (*pv_fn)(const float *, const piece_t *, uint32_t, uint32_t, const float *, float *,
                      uint32_t);

/* A register holds an accumulator for every (row, vector): as many rows as the file has room for. */
QK(1, 1) QK(2, 1) QK(3, 1) QK(4, 1) QK(5, 1) QK(6, 1)
QK(1, 2) QK(2, 2) QK(3, 2) QK(4, 2) QK(5, 2) QK(6, 2)
#if VL == 16
QK(7, 1) QK(8, 1) QK(9, 1) QK(10, 1) QK(11, 1) QK(12, 1)
QK(7, 2) QK(8, 2) QK(9, 2) QK(10, 2) QK(11, 2) QK(12, 2)
QK(1, 4) QK(2, 4) QK(3, 4) QK(4, 4) QK(5, 4) QK(6, 4)
PV(1, 4) PV(2, 4) PV(3, 4) PV(4, 4) PV(5, 4) PV(6, 4)
PV(1, 5) PV(2, 5) PV(3, 5) PV(4, 5)
PV(1, 6) PV(2, 6) PV(3, 6) PV(4, 6)
static const qk_fn qk1[] = { qk_1_1, qk_2_1, qk_3_1, qk_4_1,  qk_5_1,  qk_6_1,
                             qk_7_1, qk_8_1, qk_9_1, qk_10_1, qk_11_1, qk_12_1 };
static const qk_fn qk2[] = { qk_1_2, qk_2_2, qk_3_2, qk_4_2,  qk_5_2,  qk_6_2,
                             qk_7_2, qk_8_2, qk_9_2, qk_10_2, qk_11_2, qk_12_2 };
static const qk_fn qk4[] = { qk_1_4, qk_2_4, qk_3_4, qk_4_4, qk_5_4, qk_6_4 };
static const pv_fn pv4[] = { pv_1_4, pv_2_4, pv_3_4, pv_4_4, pv_5_4, pv_6_4 };
static const pv_fn pv5[] = { pv_1_5, pv_2_5, pv_3_5, pv_4_5 };
static const pv_fn pv6[] = { pv_1_6, pv_2_6, pv_3_6, pv_4_6 };
#else
PV(1, 2) PV(2, 2) PV(3, 2) PV(4, 2) PV(5, 2) PV(6, 2)
static const qk_fn qk1[] = { qk_1_1, qk_2_1, qk_3_1, qk_4_1, qk_5_1, qk_6_1 };
static const qk_fn qk2[] = { qk_1_2, qk_2_2, qk_3_2, qk_4_2, qk_5_2, qk_6_2 };
static const pv_fn pv2[] = { pv_1_2, pv_2_2, pv_3_2, pv_4_2, pv_5_2, pv_6_2 };
#endif

/* Scores of rows [r, r + n) over the tile. */
static void scores(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    const float *k[NV];
    const uint32_t nv = (sc->cols + VL - 1) / VL;
    for (uint32_t i = 0; i < nv; i++)
        k[i] = sc->k[i / BV] + i % BV * VL;
    for (uint32_t c = 0; c < nv;) {
#if VL == 16
        if (nv - c >= 4 && n <= WIDE_ROWS) {
            qk4[n - 1](sc->q + r, w->ldq, k + c, w->D, sc->s + c * VL);
            c += 4;
            continue;
        }
#endif
        if (nv - c >= 2) {
            qk2[n - 1](sc->q + r, w->ldq, k + c, w->D, sc->s + c * VL);
            c += 2;
        } else {
            qk1[n - 1](sc->q + r, w->ldq, k + c, w->D, sc->s + c * VL);
            c += 1;
        }
    }
}

static void add_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
#if VL == 16
    const uint32_t width = w->D == 80 ? 5 : w->D == 96 ? 6 : 4, most = width == 4 ? 6 : 4;
    const pv_fn *const pv = width == 4 ? pv4 : width == 5 ? pv5 : pv6;
#else
    const uint32_t width = 2, most = 6;
    const pv_fn *const pv = pv2;
#endif
    for (uint32_t i = 0, take; i < n; i += take) {
        take = ideft_min(most, n - i);
        if (n - i > most && n - i < 2 * most)
            take = (n - i + 1) / 2;
        for (uint32_t at = 0; at < w->D; at += width * VL)
            pv[take - 1](sc->s + i * TILE, sc->piece, sc->n_piece, w->D, sc->alpha + i,
                         sc->o + (size_t)(r + i) * w->D, at);
    }
}

/* ---- softmax ------------------------------------------------------------------------------------- */

INLINE vi visible(const work_t *w, uint32_t r, uint32_t v)
{
    const scratch_t *sc = w->sc;
    const int32_t row = sc->row[r], pos = sc->pos[r];
    const vi begin = *(const vi *)(sc->c_begin + v * VL), end = *(const vi *)(sc->c_end + v * VL);
    const vi at = *(const vi *)(sc->c_pos + v * VL);
    vi mask = (begin <= row) & (end > row) & (at <= pos);
    if (w->attn->window != 0)
        mask &= at > pos - (int32_t)w->attn->window;
    return mask;
}

/* Row i of the panel, matrix row r: scores to probabilities, running maximum and denominator. */
INLINE void softmax_row(const work_t *w, uint32_t i, uint32_t r, bool masked)
{
    scratch_t *sc = w->sc;
    const float cap = w->attn->geom->softcap;
    const uint32_t nv = (sc->cols + VL - 1) / VL;
    float *s = sc->s + i * TILE;
    vf top = splat(-INFINITY);
    for (uint32_t v = 0; v < nv; v++) {
        vf x = *(vf *)(s + v * VL);
        if (cap > 0)
            x = tanh_v(x) * splat(cap * (float)IDEFT_LOG2E);
        if (masked)
            x = select_v(visible(w, r, v), x, splat(-INFINITY));
        *(vf *)(s + v * VL) = x;
        top = VMAX(x, top);
    }
    const float m_tile = HMAX(top), m_old = sc->m[r], m = m_tile > m_old ? m_tile : m_old;
    const float base = m == -INFINITY ? 0.0f : m; /* nothing seen yet: all weights are 0 */
    float alpha = 1.0f;
    if (m_old < m) {
        const vf e = exp2_v(splat(m_old - base));
        alpha = e[0];
    }
    vf sum = splat(0.0f);
    for (uint32_t v = 0; v < nv; v++) {
        const vf p = exp2_v(*(vf *)(s + v * VL) - base);
        *(vf *)(s + v * VL) = p;
        sum += p;
    }
    vf *d = (vf *)(sc->d + r * VL);
    *d = *d * alpha + sum;
    sc->m[r] = m;
    sc->alpha[i] = alpha;
}

/* ---- a tile of columns ---------------------------------------------------------------------------- */

/* Is any V of the tile infinite or NaN? Then a masked column must not be multiplied by zero. */
static bool values_finite(const work_t *w)
{
    const scratch_t *sc = w->sc;
    vi bad = (vi){ 0 };
    for (uint32_t i = 0; i < sc->n_piece; i++)
        for (size_t e = 0; e < (size_t)sc->piece[i].n * w->D; e += VL)
            bad |= (((vi)(vf) * (const vfu *)(sc->piece[i].v + e)) & 0x7f800000) == 0x7f800000;
    int32_t any = 0;
    for (int i = 0; i < VL; i++)
        any |= bad[i];
    return any == 0;
}

/* add_values() that leaves out what a row does not see. */
static void add_seen_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    for (uint32_t i = 0; i < n; i++) {
        float *o = sc->o + (size_t)(r + i) * w->D;
        uint32_t t = 0;
        for (uint32_t e = 0; e < w->D; e++)
            o[e] *= sc->alpha[i];
        for (uint32_t p = 0; p < sc->n_piece; p++) {
            for (uint32_t j = 0; j < sc->piece[p].n; j++, t++) {
                const vi seen = visible(w, r + i, t / VL);
                for (uint32_t e = 0; e < w->D && seen[t % VL]; e++)
                    o[e] += sc->s[i * TILE + t] * sc->piece[p].v[(size_t)j * w->D + e];
            }
        }
    }
}

/* Does a row of the tile's interval not see one of its columns? */
static bool needs_mask(const work_t *w)
{
    const scratch_t *sc = w->sc;
    if (!sc->uniform || sc->cols % VL != 0)
        return true;
    /* the first row of an interval stands first on its path */
    const uint32_t first = (sc->begin - w->row0) * w->attn->geom->G;
    if (sc->c_pos[sc->cols - 1] > sc->pos[first])
        return true;
    if (w->attn->window != 0)
        for (uint32_t r = first; r < (sc->end - w->row0) * w->attn->geom->G; r++)
            if (sc->c_pos[0] <= sc->pos[r] - (int32_t)w->attn->window)
                return true;
    return false;
}

static void flush(const work_t *w)
{
    scratch_t *sc = w->sc;
    const uint32_t G = w->attn->geom->G;
    if (sc->cols == 0)
        return;
    const uint32_t first = (sc->begin - w->row0) * G, last = (sc->end - w->row0) * G;
    for (uint32_t c = sc->cols; c % VL != 0; c++) { /* nobody sees the lanes behind the last */
        sc->c_begin[c] = sc->c_end[c] = 0;
        sc->c_pos[c] = INT32_MAX;
    }
    const bool masked = needs_mask(w), exact = !masked || values_finite(w);
    uint32_t panels = (last - first + MAX_ROWS - 1) / MAX_ROWS;
    for (uint32_t r = first, n; r < last; r += n, panels--) {
        n = (last - r + panels - 1) / panels;
        scores(w, r, n);
        if (masked)
            for (uint32_t i = 0; i < n; i++)
                softmax_row(w, i, r + i, true);
        else
            for (uint32_t i = 0; i < n; i++)
                softmax_row(w, i, r + i, false);
        if (exact)
            add_values(w, r, n);
        else
            add_seen_values(w, r, n);
    }
    sc->cols = sc->n_piece = 0;
}

/* ---- filling it ------------------------------------------------------------------------------------ */

/* n tokens of one block of slots become columns of one block of the tile. */
static void widen_k(const work_t *w, uint32_t col, uint32_t slot, uint32_t n)
{
    float *to = w->sc->kt + (size_t)(col / IDEFT_BLOCK) * w->D * IDEFT_BLOCK + col % IDEFT_BLOCK;
    const size_t at = ideft_k_index(w->type, w->D, slot, 0);
    for (uint32_t part = 0; part < n; part += VL) {
        const uint32_t lanes = ideft_min(VL, n - part);
        float *t = to + part;
        if (w->type == DEFT_F32) {
            const float *k = (const float *)w->k + at + part;
            for (uint32_t d = 0; d < w->D; d++, k += IDEFT_BLOCK, t += IDEFT_BLOCK)
                STORE_FIRST(t, *(const vfu *)k, lanes);
        } else if (w->type == DEFT_F16) {
            const uint16_t *k = (const uint16_t *)w->k + at + part;
            for (uint32_t d = 0; d < w->D; d++, k += IDEFT_BLOCK, t += IDEFT_BLOCK)
                STORE_FIRST(t, LOAD_F16(k), lanes);
        } else {
            const uint16_t *k = (const uint16_t *)w->k + at + 2 * part;
            for (uint32_t d = 0; d < w->D; d += 2, k += 2 * IDEFT_BLOCK, t += 2 * IDEFT_BLOCK) {
                const vu pair = *(const vuu *)k;
                STORE_FIRST(t, (vf)(pair << 16), lanes);
                STORE_FIRST(t + IDEFT_BLOCK, (vf)(pair & 0xffff0000u), lanes);
            }
        }
    }
}

static void widen_v(const work_t *w, uint32_t col, uint32_t slot, uint32_t n)
{
    float *to = w->sc->vt + (size_t)col * w->D;
    for (uint32_t i = 0; i < n; i++, slot++) {
        if (w->type == DEFT_F16) {
            const uint16_t *v = (const uint16_t *)w->v + (size_t)slot * w->D;
            for (uint32_t d = 0; d < w->D; d += VL)
                *(vfu *)(to + d) = LOAD_F16(v + d);
        } else {
            const uint16_t *v = (const uint16_t *)w->v + (size_t)(slot / 2) * 2 * w->D;
            const int up = slot % 2 == 0 ? 16 : 0;
            for (uint32_t d = 0; d < w->D; d += VL)
                *(vfu *)(to + d) = (vf)((*(const vuu *)(v + 2 * d) << up) & 0xffff0000u);
        }
        to += w->D;
    }
}

/* Columns [col, col + n) are the tokens at `slot`, seen from path position `pos` on. */
static void put_columns(const work_t *w, const ideft_seg_t *seg, uint32_t slot, uint32_t pos,
                        uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t col = sc->cols, block = col / IDEFT_BLOCK;
    if (w->type == DEFT_F32 && n == IDEFT_BLOCK) {
        sc->k[block] = (const float *)w->k + ideft_k_index(DEFT_F32, w->D, slot, 0);
    } else {
        widen_k(w, col, slot, n);
        sc->k[block] = sc->kt + (size_t)block * w->D * IDEFT_BLOCK;
    }
    const float *v = sc->vt + (size_t)col * w->D;
    if (w->type == DEFT_F32)
        v = (const float *)w->v + (size_t)slot * w->D;
    else
        widen_v(w, col, slot, n);
    piece_t *last = sc->n_piece > 0 ? &sc->piece[sc->n_piece - 1] : NULL;
    if (last != NULL && last->v + (size_t)last->n * w->D == v)
        last->n += n;
    else
        sc->piece[sc->n_piece++] = (piece_t){ v, n };
    for (uint32_t i = 0; i < n; i++) {
        sc->c_begin[col + i] = (int32_t)seg->row_begin;
        sc->c_end[col + i] = (int32_t)seg->row_end;
        sc->c_pos[col + i] = (int32_t)(pos + i);
    }
    sc->cols += n;
}

#define SMALL 16u /* tokens of a node that shares a tile with others */

/* A run, for the rows of this pass. */
static void add_seg(const work_t *w, const ideft_seg_t *seg)
{
    scratch_t *sc = w->sc;
    const uint32_t begin = ideft_max(seg->row_begin, w->row0);
    const uint32_t end = ideft_min(seg->row_end, w->row0 + w->rows);
    if (begin >= end || seg->n == 0)
        return;
    const bool same = sc->cols > 0 && begin == sc->begin && end == sc->end && sc->uniform;
    if (sc->cols > 0 && !same && !(sc->small && seg->n < SMALL))
        flush(w);
    uint32_t slot = seg->slot, pos = seg->pos, left = seg->n;
    while (left > 0) {
        if (sc->cols == TILE)
            flush(w);
        if (sc->cols == 0) {
            sc->begin = begin;
            sc->end = end;
            sc->uniform = true;
            sc->small = seg->n < SMALL;
        } else if (begin != sc->begin || end != sc->end) {
            sc->uniform = false;
            sc->begin = ideft_min(sc->begin, begin);
            sc->end = ideft_max(sc->end, end);
        }
        const uint32_t room = IDEFT_BLOCK - sc->cols % IDEFT_BLOCK, here = IDEFT_BLOCK - slot % IDEFT_BLOCK;
        const uint32_t n = ideft_min(left, ideft_min(room, here));
        put_columns(w, seg, slot, pos, n);
        slot += n;
        pos += n;
        left -= n;
    }
}

/* ---- rows ------------------------------------------------------------------------------------------- */

INLINE void transpose8(const float *const *from, float *to, size_t ld, __m256 scale)
{
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++)
        a[i] = _mm256_mul_ps(_mm256_loadu_ps(from[i]), scale);
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(to + i * ld, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(to + (i + 4) * ld, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

/* Q of the pass side by side: scores come out in units of log2, or of the soft cap. */
static void load_rows(work_t *w, uint32_t head)
{
    const ideft_geom_t *g = w->attn->geom;
    scratch_t *sc = w->sc;
    const float factor = g->softcap > 0 ? g->scale / g->softcap : (float)(g->scale * IDEFT_LOG2E);
    w->n = w->rows * g->G;
    w->ldq = (w->n + 7) & ~7u;
    for (uint32_t r = 0; r < w->n; r += 8) {
        const float *from[8];
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t mr = ideft_min(r + i, w->n - 1), row = w->row0 + mr / g->G;
            const ideft_row_t *info = &w->attn->plan->row[row];
            from[i] = w->attn->q + ((size_t)info->token * g->H + head * g->G + mr % g->G) * g->D;
            sc->row[mr] = (int32_t)row;
            sc->pos[mr] = (int32_t)info->pos;
        }
        for (uint32_t d = 0; d < g->D; d += 8) {
            transpose8(from, sc->q + (size_t)d * w->ldq + r, w->ldq, _mm256_set1_ps(factor));
            for (uint32_t i = 0; i < 8; i++)
                from[i] += 8;
        }
    }
    memset(sc->o, 0, (size_t)w->n * g->D * sizeof(float));
    memset(sc->d, 0, (size_t)w->n * VL * sizeof(float));
    for (uint32_t r = 0; r < w->n; r++)
        sc->m[r] = -INFINITY;
    sc->cols = sc->n_piece = 0;
}

static void compute_item(const ideft_attn_t *attn, uint32_t index, uint32_t head, void *scratch)
{
    const ideft_geom_t *g = attn->geom;
    const ideft_item_t *item = &attn->plan->item[index];
    work_t w = { .attn = attn,
                 .item = item,
                 .k = attn->k + head * attn->head_bytes,
                 .v = attn->v + head * attn->head_bytes,
                 .sc = scratch,
                 .D = g->D,
                 .type = g->kv_type };
    const uint32_t step = ideft_max(1, TILE_ROWS / g->G);
    for (uint32_t row = item->row_begin; row < item->row_end; row += step) {
        w.row0 = row;
        w.rows = ideft_min(step, item->row_end - row);
        load_rows(&w, head);
        for (uint32_t s = item->seg_begin; s < item->seg_end; s++)
            add_seg(&w, &attn->plan->seg[s]);
        flush(&w);
        for (uint32_t r = 0; r < w.n; r++)
            ideft_attn_finish(attn, item, row + r / g->G, head * g->G + r % g->G,
                              w.sc->o + (size_t)r * g->D, w.sc->m[r], sum_lanes(w.sc->d + r * VL));
    }
}

static void merge_row(const ideft_attn_t *attn, uint32_t row)
{
    ideft_attn_merge(attn, row);
}
