/* SPDX-License-Identifier: MIT */
/* The vector kernel, compiled once an instruction set. The file that includes it defines
 *   VL                    floats a vector: 8 or 16
 *   MAX_ROWS, WIDE_ROWS   rows whose accumulators fit the registers with 2, with 4 vectors each
 *   VMAX(a, b)            lanewise; b where one is NaN
 *   HMAX(v)               largest lane
 *   ANY_ABOVE(v, x)       is a lane above x
 *   LOAD_F16(p)           VL halves as floats
 *   STORE_FIRST(p, v, n)  the first n lanes
 *   WHOLE_PANELS          all panels but the last of MAX_ROWS; else even ones
 *   DOT                   bf16 KV meets bf16 Q and P in dot products of pairs: tile_bf16.h, not
 *                         tile_fma.h
 *   REDUCE(v), SCALE(p, n)  v - nearest integer, p * 2^n, where there are instructions for them
 *
 * A group is computed for up to TILE_ROWS matrix rows at a time. Its KV goes through in tiles of
 * TILE columns (tokens): tokens of several runs, and of several small nodes, are packed into one
 * tile, in path order, so that lanes are not wasted on odd lengths and the sums are taken in an
 * order that does not depend on where the pool keeps the tokens. KV is used where it lies if it is
 * aligned; for many rows 16-bit KV is widened into the tile once, for few it is widened in
 * registers, which gives the same bits. Then for each panel of rows: scores (QK^T from rank-one
 * updates: one d of VL tokens times one d of each row), softmax in units of log2 with a running
 * maximum, and O += P V from rank-one updates again. Nothing is padded to the panel: a run's scores
 * are computed for the interval of rows that sees it. */
#include <immintrin.h>
#include <math.h>

#include "kernel.h"

#define TILE IDEFT_TILE_TOKENS
#define TILE_ROWS 128u
#define MAX_D 256u
#define MAX_CHAIN 128u        /* products that a score sums up one after the other */
#define NV (TILE / VL)        /* vectors of a row of scores */
#define BV (IDEFT_BLOCK / VL) /* vectors of a block of slots */

typedef float vf __attribute__((vector_size(VL * 4), may_alias));
typedef float vfu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t vuu __attribute__((vector_size(VL * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* KV of the tile to come, asked for bit by bit while this one is computed. */
typedef struct ahead {
    const char *at;
    uint32_t bytes;
} ahead_t;

typedef struct piece { /* tokens whose V adjoins */
    const void *v;     /* of its first token; raw bf16: of the pair that it is in */
    uint32_t n, slot;
} piece_t;

/* What a thread works in. q: [D][ldq], the rows of Q side by side, scale folded in. */
typedef struct scratch {
    float q[MAX_D * (TILE_ROWS + 16)] __attribute__((aligned(64)));
    float o[TILE_ROWS * MAX_D] __attribute__((aligned(64)));
    float kt[MAX_D * TILE] __attribute__((aligned(64)));
    float vt[TILE * MAX_D] __attribute__((aligned(64)));
    float s[MAX_ROWS * TILE] __attribute__((aligned(64)));
    float d[TILE_ROWS * VL] __attribute__((aligned(64))); /* denominators, a partial sum a lane */
    float m[TILE_ROWS], alpha[MAX_ROWS];
#ifdef DOT
    uint16_t q16[2 * MAX_D * (TILE_ROWS + 32)] __attribute__((aligned(64))); /* rows of Q */
    uint16_t p16[MAX_ROWS * TILE] __attribute__((aligned(64)));
#if DOT == 2
    float edge[16 * MAX_D] __attribute__((aligned(64))); /* O of a panel that is not full */
#endif
    const char *v16; /* [pair of columns][D][2] of the tile, here or in the pool */
#endif
    int32_t row[TILE_ROWS], pos[TILE_ROWS]; /* of each matrix row: query row, path position */
    /* who sees a column: query rows [row_begin, row_end) from its path position on */
    int32_t c_begin[TILE] __attribute__((aligned(64)));
    int32_t c_end[TILE] __attribute__((aligned(64)));
    int32_t c_pos[TILE] __attribute__((aligned(64)));
    uint32_t c_slot[TILE];
    const char *k[TILE / IDEFT_BLOCK]; /* blocks of K, here or in the pool */
    deft_dtype_t form, v_form;         /* of the tile's K and V: f32, or as stored */
    piece_t piece[TILE];
    uint32_t n_piece, cols;
    ahead_t ahead[2];    /* of K, of V */
    uint32_t pace;       /* bytes of it an iteration */
    uint32_t begin, end; /* rows that see any column, and */
    bool uniform;        /* all columns have this interval */
    bool small;          /* made of small nodes: others may join */
} scratch_t;

typedef struct work {
    const ideft_attn_t *attn;
    const unsigned char *k, *v; /* the head's planes */
    scratch_t *sc;
    uint32_t row0, rows, n; /* query rows of this pass; n matrix rows */
    uint32_t ldq, D;
    deft_dtype_t type;
} work_t;

/* ---- arithmetic ------------------------------------------------------------------------------ */

INLINE vf splat(float x)
{
    return x - (vf){ 0 };
}

/* 2^x for x up to 100: error below 1e-7, 0 from -127 down, NaN stays. Polynomial on [-1/2, 1/2] by
 * Remez (that of Cephes' exp2f). */
INLINE vf exp2_v(vf x)
{
#ifdef REDUCE
    const vf f = REDUCE(x); /* 0 for infinite x */
#else
    const vf round = splat(12582912.0f);
    x = VMAX(splat(-127.0f), x);
    const vf big = x + round;
    const vf f = x - (big - round);
#endif
    vf p = splat(1.535336188319500e-4f);
    p = p * f + splat(1.339887440266574e-3f);
    p = p * f + splat(9.618437357674640e-3f);
    p = p * f + splat(5.550332471162809e-2f);
    p = p * f + splat(2.402264791363012e-1f);
    p = p * f + splat(6.931472028550421e-1f);
    p = p * f + splat(1.0f);
#ifdef REDUCE
    return SCALE(p, x - f);
#else
    return p * (vf)(((vi)big << 23) + (127 << 23)); /* the low bits of big are the exponent */
#endif
}

/* A weight: with P rounded to bf16 a polynomial with an error of 1.02e-4 is enough. p(0) is 1. */
INLINE vf weight_v(vf x)
{
#ifdef DOT
    const vf f = REDUCE(x);
    vf p = splat(0.05500893506f);
    p = p * f + splat(0.24221099814f);
    p = p * f + splat(0.69328293097f);
    p = p * f + splat(1.0f);
    return SCALE(p, x - f);
#else
    return exp2_v(x);
#endif
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

/* Bytes for a loop of n iterations to ask for: where to begin and how far to step each time. Asking
 * evenly over all of a tile's arithmetic is what lets memory and arithmetic overlap: a core can
 * only wait for some sixteen lines at once. */
INLINE ahead_t take_ahead(scratch_t *sc, uint32_t n)
{
    ahead_t *from = sc->ahead[0].bytes > 0 ? &sc->ahead[0] : &sc->ahead[1];
    const uint32_t step = ideft_min(sc->pace, from->bytes / n);
    const ahead_t take = { from->at, step };
    const uint32_t took = step == sc->pace ? n * step : from->bytes;
    from->at += took;
    from->bytes -= took;
    return take;
}

/* Divide the bytes to be asked for over the iterations of this tile's loops. */
static void set_pace(const work_t *w, uint32_t panels, uint32_t rows)
{
    scratch_t *sc = w->sc;
    const uint32_t bytes = sc->ahead[0].bytes + sc->ahead[1].bytes,
                   wide = VL * (rows <= WIDE_ROWS ? 4 : 2);
    const uint32_t fold = sc->form == DEFT_BF16 ? 2 : 1; /* two tokens, two d an iteration */
    const uint32_t loops = panels * ((sc->cols + wide - 1) / wide * w->D + w->D / wide * sc->cols) /
                           fold;
    sc->pace = ideft_min(64, bytes / (loops + 1) + 1);
    /* more than one line an iteration: memory binds, ask for the surplus at once */
    for (uint32_t i = 0, left = bytes; i < 2; i++)
        while (left > loops * 64 && sc->ahead[i].bytes >= 64) {
            _mm_prefetch(sc->ahead[i].at, _MM_HINT_T0);
            sc->ahead[i].at += 64;
            sc->ahead[i].bytes -= 64;
            left -= 64;
        }
}

/* ---- micro kernels --------------------------------------------------------------------------- */

INLINE vf low_half(vu pair)
{
    return (vf)(pair << 16);
}

INLINE vf high_half(vu pair)
{
    return (vf)(pair & 0xffff0000u);
}

/* Loops over accumulators, unrolled so that these stay in registers. */
#define EACH_ROW _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)
#define EACH_VEC _Pragma("GCC unroll 4") for (int c = 0; c < C; c++)

/* Which (rows, vectors at once) a register file has room for. */
#define UP_TO_6(_X, _C, _f) \
    _X(1, _C, _f) _X(2, _C, _f) _X(3, _C, _f) _X(4, _C, _f) _X(5, _C, _f) _X(6, _C, _f)
#define FROM_7(_X, _C, _f) \
    _X(7, _C, _f) _X(8, _C, _f) _X(9, _C, _f) _X(10, _C, _f) _X(11, _C, _f) _X(12, _C, _f)
#if VL == 16
#define SHAPES(_X, _f) \
    UP_TO_6(_X, 1, _f) FROM_7(_X, 1, _f) UP_TO_6(_X, 2, _f) FROM_7(_X, 2, _f) UP_TO_6(_X, 4, _f)
#else
#define SHAPES(_X, _f) UP_TO_6(_X, 1, _f) UP_TO_6(_X, 2, _f)
#endif

/* How many of n vectors are taken at once with these rows. */
INLINE uint32_t at_once(uint32_t n, uint32_t rows)
{
    return n >= 4 && rows <= WIDE_ROWS ? 4 : n >= 2 ? 2 : 1;
}

#ifndef DOT
#include "tile_fma.h"
#endif

/* ---- softmax --------------------------------------------------------------------------------- */

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

#define SLACK 8.0f /* a score may exceed the running maximum by so much before that is moved */

/* Row i of the panel, matrix row r: scores to weights, running maximum and denominator. The maximum
 * only has to keep 2^(s - m) in range: moving it for every larger score would cost a reduction and
 * a scaling of O for each tile. With DOT the weights go to p16 too; the denominator keeps their sum
 * before rounding, as errors of both signs cancel in O. */
INLINE void softmax_row(const work_t *w, uint32_t i, uint32_t r, bool masked)
{
    scratch_t *sc = w->sc;
    const float cap = w->attn->geom->softcap;
    const uint32_t nv = (sc->cols + VL - 1) / VL;
    float *s = sc->s + i * TILE, m = sc->m[r], alpha = 1.0f;
    vf top = splat(-INFINITY);
    for (uint32_t v = 0; v < nv; v++) {
        vf x = *(vf *)(s + v * VL);
        if (cap > 0)
            x = tanh_v(x) * splat(cap * (float)IDEFT_LOG2E);
        if (masked)
            x = select_v(visible(w, r, v), x, splat(-INFINITY));
        if (cap > 0 || masked)
            *(vf *)(s + v * VL) = x;
        top = VMAX(x, top);
    }
    if (ANY_ABOVE(top, m + SLACK)) {
        const float m_new = HMAX(top);
        const vf e = exp2_v(splat(m - m_new));
        alpha = e[0];
        sc->m[r] = m = m_new;
    }
    const float base = m == -INFINITY ? 0.0f : m; /* nothing seen yet: all weights are 0 */
    vf sum = splat(0.0f);
    for (uint32_t v = 0; v < nv; v++) {
        const vf p = weight_v(*(vf *)(s + v * VL) - base);
        *(vf *)(s + v * VL) = p;
        sum += p;
#ifdef DOT
        ROUND_BF16(sc->p16 + i * TILE + v * VL, p);
#endif
    }
    vf *d = (vf *)(sc->d + r * VL);
    *d = *d * alpha + sum;
    sc->alpha[i] = alpha;
}

/* ---- a tile of columns ----------------------------------------------------------------------- */

/* Lanes of x whose exponent is all ones, in the halves or words that `exp` names. */
INLINE vu not_finite(vu x, uint32_t low, uint32_t high)
{
    vu bad = (vu){ 0 };
    if (low != 0)
        bad |= (vu)((x & low) == low);
    if (high != 0)
        bad |= (vu)((x & high) == high);
    return bad;
}

/* Is all V of the tile finite? If not, a masked column must not be multiplied by zero. */
static bool values_finite(const work_t *w)
{
    const scratch_t *sc = w->sc;
    const uint32_t exp = w->type == DEFT_F32   ? 0x7f800000u
                         : w->type == DEFT_F16 ? 0x7c00u
                                               : 0x7f80u;
    const size_t row = (size_t)w->D * ideft_lane_bytes(w->type); /* bf16: of a pair of tokens */
    vu bad = (vu){ 0 };
    for (uint32_t i = 0; i < sc->n_piece; i++) {
        const uint32_t end = sc->piece[i].slot + sc->piece[i].n;
        for (uint32_t slot = sc->piece[i].slot; slot < end;) {
            uint32_t low = exp, high = w->type == DEFT_F32 ? 0 : exp << 16, took = 1;
            const unsigned char *v = w->v + slot * row;
            if (w->type == DEFT_BF16) { /* the other token of the pair may be another's */
                v = w->v + slot / 2 * row;
                low = slot % 2 == 0 ? exp : 0;
                high = slot % 2 == 1 || slot + 1 < end ? exp << 16 : 0;
                took = slot % 2 == 0 ? 2 : 1;
            }
            for (size_t at = 0; at + VL * 4 <= row; at += VL * 4)
                bad |= not_finite(*(const vuu *)(v + at), low, high);
            bad |= not_finite(*(const vuu *)(v + row - VL * 4), low, high);
            slot += took;
        }
    }
    uint32_t any = 0;
    for (int i = 0; i < VL; i++)
        any |= bad[i];
    return any == 0;
}

#ifdef DOT
#include "tile_bf16.h"
#endif

INLINE float stored_value(const work_t *w, uint32_t col, uint32_t d)
{
    return ideft_element_load(w->type, w->v, ideft_v_index(w->type, w->D, w->sc->c_slot[col], d));
}

/* For a masked tile with an infinite or NaN in V: V once more with zeros in their place, which
 * leaves the rows that do not see them with the bits that they always have. Slow, and rare. */
static void clear_bad_values(const work_t *w)
{
    scratch_t *sc = w->sc;
#ifdef DOT
    memset(sc->vt, 0, sizeof(sc->vt));
#endif
    for (uint32_t c = 0; c < sc->cols; c++) {
        for (uint32_t d = 0; d < w->D; d++) {
            const float v = stored_value(w, c, d);
#ifdef DOT
            ((uint16_t *)sc->vt)[((size_t)(c / 2) * w->D + d) * 2 + c % 2] =
                isfinite(v) ? ideft_f32_to_bf16(v) : 0;
#else
            sc->vt[(size_t)c * w->D + d] = isfinite(v) ? v : 0.0f;
#endif
        }
    }
#ifdef DOT
    sc->v16 = (const char *)sc->vt;
#else
    sc->piece[0] = (piece_t){ sc->vt, sc->cols, 0 };
    sc->n_piece = 1;
    sc->v_form = DEFT_F32;
#endif
}

/* Add what clear_bad_values() left out, for the rows that do see it. */
static void add_bad_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    for (uint32_t i = 0; i < n; i++) {
        float *o = sc->o + (size_t)(r + i) * w->D;
        for (uint32_t c = 0; c < sc->cols; c++) {
            const vi seen = visible(w, r + i, c / VL);
            for (uint32_t d = 0; d < w->D && seen[c % VL]; d++) {
                const float v = stored_value(w, c, d);
                o[d] += isfinite(v) ? 0.0f : sc->s[i * TILE + c] * v;
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
    IDEFT_ASSERT_EXPENSIVE(first < last && last <= w->n && sc->cols <= TILE && sc->n_piece <= TILE);
    for (uint32_t c = sc->cols; c % VL != 0; c++) { /* nobody sees the lanes after the last */
        sc->c_begin[c] = sc->c_end[c] = 0;
        sc->c_pos[c] = INT32_MAX;
    }
    const bool masked = needs_mask(w), bad = masked && !values_finite(w);
    uint32_t panels = (last - first + MAX_ROWS - 1) / MAX_ROWS;
    set_pace(w, panels, (last - first + panels - 1) / panels);
#ifdef DOT
    pair_values(w);
#endif
    sc->v_form = sc->form;
    if (bad)
        clear_bad_values(w);
    for (uint32_t r = first, n; r < last; r += n, panels--) {
        n = WHOLE_PANELS ? ideft_min(MAX_ROWS, last - r) : (last - r + panels - 1) / panels;
        scores(w, r, n);
        if (masked)
            for (uint32_t i = 0; i < n; i++)
                softmax_row(w, i, r + i, true);
        else
            for (uint32_t i = 0; i < n; i++)
                softmax_row(w, i, r + i, false);
        add_values(w, r, n);
        if (bad)
            add_bad_values(w, r, n);
    }
    sc->cols = sc->n_piece = 0;
}

/* ---- filling it ------------------------------------------------------------------------------ */

/* n tokens of one block of slots become columns of one block of the tile, in f32. */
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
                STORE_FIRST(t, low_half(pair), lanes);
                STORE_FIRST(t + IDEFT_BLOCK, high_half(pair), lanes);
            }
        }
    }
}

/* The same as it is stored: a block keeps its form. */
static void copy_k(const work_t *w, uint32_t col, uint32_t slot, uint32_t n)
{
    const uint32_t lane = ideft_lane_bytes(w->type), block = IDEFT_BLOCK * lane;
    const uint32_t rows = w->D / ideft_lane_elements(w->type);
    char *to = (char *)w->sc->kt + (size_t)(col / IDEFT_BLOCK) * rows * block +
               col % IDEFT_BLOCK * lane;
    const char *k = (const char *)w->k + (size_t)(slot / IDEFT_BLOCK) * rows * block +
                    slot % IDEFT_BLOCK * lane;
    for (uint32_t i = 0; i < rows; i++, k += block, to += block)
        memcpy(to, k, n * lane);
}

#ifndef DOT
static void widen_v(const work_t *w, uint32_t col, uint32_t slot, uint32_t n)
{
    float *to = w->sc->vt + (size_t)col * w->D;
    if (w->type == DEFT_F16) {
        const uint16_t *v = (const uint16_t *)w->v + (size_t)slot * w->D;
        for (size_t e = 0; e < (size_t)n * w->D; e += VL)
            *(vfu *)(to + e) = LOAD_F16(v + e);
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

#endif

/* K of columns [cols, cols + n): a whole block where it lies if its form allows. */
static void put_k(const work_t *w, uint32_t slot, uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t block = sc->cols / IDEFT_BLOCK;
    const size_t elem = ideft_element_bytes(w->type);
    if (sc->form == w->type && n == IDEFT_BLOCK) {
        sc->k[block] = (const char *)w->k + (size_t)slot * w->D * elem;
        return;
    }
    if (sc->form == w->type && w->type != DEFT_F32) {
        copy_k(w, sc->cols, slot, n);
        sc->k[block] = (const char *)sc->kt + (size_t)block * w->D * IDEFT_BLOCK * elem;
        return;
    }
    widen_k(w, sc->cols, slot, n);
    sc->k[block] = (const char *)(sc->kt + (size_t)block * w->D * IDEFT_BLOCK);
}

static void put_v(const work_t *w, uint32_t slot, uint32_t n)
{
    scratch_t *sc = w->sc;
    const size_t elem = ideft_element_bytes(w->type);
    piece_t *last = sc->n_piece > 0 ? &sc->piece[sc->n_piece - 1] : NULL;
    const void *v = w->v + (size_t)(w->type == DEFT_BF16 ? slot & ~1u : slot) * w->D * elem;
#ifndef DOT
    if (sc->form != w->type) {
        widen_v(w, sc->cols, slot, n);
        v = sc->vt + (size_t)sc->cols * w->D;
    }
#endif
    if (last != NULL && last->slot + last->n == slot) {
        last->n += n;
        return;
    }
    sc->piece[sc->n_piece++] = (piece_t){ v, n, slot };
}

/* Columns [cols, cols + n) are the tokens at `slot`, seen from path position `pos` on. */
static void put_columns(const work_t *w, const ideft_seg_t *seg, uint32_t slot, uint32_t pos,
                        uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t col = sc->cols;
    put_k(w, slot, n);
    put_v(w, slot, n);
    for (uint32_t i = 0; i < n; i++) {
        sc->c_begin[col + i] = (int32_t)seg->row_begin;
        sc->c_end[col + i] = (int32_t)seg->row_end;
        sc->c_pos[col + i] = (int32_t)(pos + i);
        sc->c_slot[col + i] = slot + i;
    }
    sc->cols += n;
}

/* The next tile will begin at `slot`: ask for it. */
static void look_ahead(const work_t *w, uint32_t slot, uint32_t n)
{
    const size_t elem = ideft_element_bytes(w->type);
    n = ideft_min(n, TILE);
    const size_t bytes = (size_t)n * w->D * elem;
    w->sc->ahead[0] =
        (ahead_t){ (const char *)w->k + (size_t)(slot / IDEFT_BLOCK) * IDEFT_BLOCK * w->D * elem,
                   (uint32_t)bytes };
    w->sc->ahead[1] = (ahead_t){ (const char *)w->v + (size_t)slot * w->D * elem, (uint32_t)bytes };
}

/* Up to so many panels of rows widen 16-bit KV in registers, each for itself. */
#ifdef DOT
#define RAW_PANELS (TILE_ROWS / MAX_ROWS + 1)
#else
#define RAW_PANELS 2u
#endif
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
    if (sc->cols > 0 && !same && !(sc->small && seg->n < SMALL)) {
        look_ahead(w, seg->slot, seg->n);
        flush(w);
    }
    uint32_t slot = seg->slot, pos = seg->pos, left = seg->n;
    while (left > 0) {
        if (sc->cols == TILE) {
            look_ahead(w, slot, left);
            flush(w);
        }
        if (sc->cols == 0) {
            sc->begin = begin;
            sc->end = end;
            sc->uniform = true;
            sc->small = seg->n < SMALL;
            sc->form = (end - begin) * w->attn->geom->G <= RAW_PANELS * MAX_ROWS ? w->type
                                                                                 : DEFT_F32;
        } else if (begin != sc->begin || end != sc->end) {
            sc->uniform = false;
            sc->begin = ideft_min(sc->begin, begin);
            sc->end = ideft_max(sc->end, end);
        }
        const uint32_t room = IDEFT_BLOCK - sc->cols % IDEFT_BLOCK,
                       here = IDEFT_BLOCK - slot % IDEFT_BLOCK;
        const uint32_t n = ideft_min(left, ideft_min(room, here));
        put_columns(w, seg, slot, pos, n);
        slot += n;
        pos += n;
        left -= n;
    }
}

/* ---- rows ------------------------------------------------------------------------------------ */

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
    const ideft_geometry_t *g = w->attn->geom;
    scratch_t *sc = w->sc;
    const float factor = g->softcap > 0 ? g->scale / g->softcap : (float)(g->scale * IDEFT_LOG2E);
    w->n = w->rows * g->G;
    /* an odd number of cache lines from d to d: a panel's Q spreads over all sets of the cache */
    w->ldq = ((w->n + 15) / 16 | 1) * 16;
    for (uint32_t r = 0; r < w->n; r += 8) {
        const float *from[8];
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t mr = ideft_min(r + i, w->n - 1), row = w->row0 + mr / g->G;
            const ideft_row_t *info = &w->attn->plan->row[row];
            from[i] = w->attn->q + ((size_t)info->token * g->H + head * g->G + mr % g->G) * g->D;
            sc->row[mr] = (int32_t)row;
            sc->pos[mr] = (int32_t)info->pos;
        }
#ifdef DOT
        pack_rows(w, from, r, ideft_min(8, w->n - r), factor);
        continue;
#endif
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
    sc->ahead[0] = sc->ahead[1] = (ahead_t){ (const char *)sc->q, 0 };
}

static void compute_group(const ideft_attn_t *attn, uint32_t index, uint32_t head, void *scratch)
{
    const ideft_geometry_t *g = attn->geom;
    const ideft_group_t *group = &attn->plan->group[index];
    work_t w = { .attn = attn,
                 .k = attn->k + head * attn->k_bytes,
                 .v = attn->v + head * attn->v_bytes,
                 .sc = scratch,
                 .D = g->D,
                 .type = g->format.element };
    const uint32_t step = ideft_max(1, TILE_ROWS / g->G);
    for (uint32_t row = group->row_begin; row < group->row_end && !ideft_stops(attn->stop);
         row += step) {
        w.row0 = row;
        w.rows = ideft_min(step, group->row_end - row);
        load_rows(&w, head);
        for (uint32_t s = group->seg_begin; s < group->seg_end; s++)
            add_seg(&w, &attn->plan->seg[s]);
        flush(&w);
        for (uint32_t r = 0; r < w.n; r++)
            ideft_attn_finish(attn, group, row + r / g->G, head * g->G + r % g->G,
                              w.sc->o + (size_t)r * g->D, w.sc->m[r], sum_lanes(w.sc->d + r * VL));
    }
}

static void merge_row(const ideft_attn_t *attn, uint32_t row)
{
    ideft_attn_merge(attn, row);
}
