/* SPDX-License-Identifier: MIT */
/* Attention of a group, the same for every instruction set that has vectors. Compiled once for
 * each: a file isa_*.c includes its vectors (lanes.h), its micro kernels (micro_*.h) and this.
 *
 * A group is computed for up to TILE_ROWS matrix rows at a time. Its KV goes through in tiles of
 * TILE columns (tokens): tokens of several runs, and of several small nodes, are packed into one
 * tile, in path order, so that lanes are not wasted on odd lengths and the sums are taken in an
 * order that does not depend on where the pool keeps the tokens. KV is used where it lies if it is
 * aligned; for many rows 16-bit KV is widened into the tile once, for few it is widened in
 * registers, which gives the same bits. Then for each panel of rows: scores, softmax in units of
 * log2 with a running maximum, and O += P V. Nothing is padded to the panel: a run's scores are
 * computed for the interval of rows that sees it.
 *
 * Micro kernels define
 *   TILE                  columns of a tile
 *   MAX_ROWS              rows of a panel
 *   WHOLE_PANELS          all panels but the last have MAX_ROWS; else even ones
 *   BY_TURNS              KV that many rows see and KV that few see take turns (walk.h)
 *   RAW_PANELS            for more panels than these, K and V are widened into the tile
 *   micro_t               what they keep of a pass (Q) and of a tile; zero before the first
 *   iterations(w, cols, rows)
 *                         of its loops for a panel of a tile, about: how often it asks for KV ahead
 *   pack_rows(w, from, r, n, factor)
 *                         rows [r, r + n) of Q times factor, at most 8; it may advance from[8]
 *   place_values(w, stored, slot, n)
 *                         V of the n tokens at `slot`, which become the next columns; returns where
 *                         add_values() finds it: `stored` itself, or a copy
 *   prepare_tile(w)       all columns are there
 *   clear_values(w)       V of the tile again, with zeros where it is not finite
 *   scores(w, r, n)       sc->s of the panel = rows [r, r + n) of Q times K
 *   LDS                   floats from row to row of the scores
 *   weight_v(x), keep_weights(sc, i, v, p), kept_weight(sc, i, col)
 *                         2^x for vector v of row i of the panel, and where that goes
 *   add_values(w, r, n)   O of the rows = O * sc->alpha + the weights times V */
#ifndef IDEFT_TILE_H
#define IDEFT_TILE_H

#include "work.h"

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

#define EACH_SCORE _Pragma("GCC unroll 8") for (uint32_t v = 0; v < nv; v++)

#define SLACK 8.0f /* a score may exceed the running maximum by so much before that is moved */

/* Row i of the panel, matrix row r: scores to weights, running maximum and denominator. The maximum
 * only has to keep 2^(s - m) in range: moving it for every larger score would cost a reduction and
 * a scaling of O for each tile. Where weights are rounded, the denominator keeps their sum before:
 * errors of both signs cancel in O. */
INLINE void softmax_row(const work_t *w, uint32_t i, uint32_t r, uint32_t nv, float cap,
                        bool masked)
{
    scratch_t *sc = w->sc;
    float *s = sc->s + i * LDS, m = sc->m[r], alpha = 1.0f;
    vf top = splat(-INFINITY);
    EACH_SCORE
    {
        vf x = *(vf *)(s + v * VL);
        if (cap > 0)
            x = tanh_v(x) * splat(cap * (float)IDEFT_LOG2E);
        if (masked)
            x = select_v(visible(w, r, v), x, splat(-INFINITY));
        if (cap > 0 || masked)
            *(vf *)(s + v * VL) = x;
        top = max_v(x, top);
    }
    if (any_above(top, m + SLACK)) {
        const float m_new = largest(top);
        const vf e = exp2_v(splat(m - m_new));
        alpha = e[0];
        sc->m[r] = m = m_new;
    }
    const float base = m == -INFINITY ? 0.0f : m; /* nothing seen yet: all weights are 0 */
    vf sum = splat(0.0f);
    EACH_SCORE
    {
        const vf p = weight_v(*(vf *)(s + v * VL) - base);
        keep_weights(sc, i, v, p);
        sum += p;
    }
    vf *d = (vf *)(sc->d + r * VL);
    *d = *d * alpha + sum;
    sc->alpha[i] = alpha;
}

/* ---- a tile of columns ----------------------------------------------------------------------- */

/* Lanes of x in which all bits of `low` or all bits of `high` are ones; 0 names no bits. */
INLINE vu not_finite(vu x, uint32_t low, uint32_t high)
{
    vu bad = (vu){ 0 };
    if (low != 0)
        bad |= (vu)((x & low) == low);
    if (high != 0)
        bad |= (vu)((x & high) == high);
    return bad;
}

/* True if all V of the tile is finite. If not, a masked column must not be multiplied by zero. */
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

/* Add what clear_values() left out, for the rows that do see it. */
static void add_bad_values(const work_t *w, uint32_t r, uint32_t n)
{
    scratch_t *sc = w->sc;
    for (uint32_t i = 0; i < n; i++) {
        float *o = sc->o + (size_t)(r + i) * w->D;
        for (uint32_t c = 0; c < sc->cols; c++) {
            const vi seen = visible(w, r + i, c / VL);
            for (uint32_t d = 0; d < w->D && seen[c % VL]; d++) {
                const float v = stored_value(w, c, d);
                o[d] += isfinite(v) ? 0.0f : kept_weight(sc, i, c) * v;
            }
        }
    }
}

/* True if a row of the tile's interval does not see one of its columns. */
static bool needs_mask(const work_t *w)
{
    const scratch_t *sc = w->sc;
    if (!sc->uniform || sc->cols % VL != 0)
        return true;
    /* rows on the node's own tokens come first, in order: the others see all of it */
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
    const float cap = w->attn->geom->softcap;
    const bool masked = needs_mask(w), bad = masked && !values_finite(w);
    uint32_t panels = (last - first + MAX_ROWS - 1) / MAX_ROWS;
    stream_pace(&sc->stream, sc->cols,
                panels * iterations(w, sc->cols, (last - first + panels - 1) / panels));
    prepare_tile(w);
    if (bad) /* slow, and rare: so rows that do not see such a token have their usual bits */
        clear_values(w);
    for (uint32_t r = first, n; r < last; r += n, panels--) {
        n = WHOLE_PANELS ? ideft_min(MAX_ROWS, last - r) : (last - r + panels - 1) / panels;
        scores(w, r, n);
        if (!masked && cap <= 0 && sc->cols == TILE) /* most of all work */
            for (uint32_t i = 0; i < n; i++)
                softmax_row(w, i, r + i, TILE / VL, 0, false);
        else
            for (uint32_t i = 0; i < n; i++)
                softmax_row(w, i, r + i, (sc->cols + VL - 1) / VL, cap, masked);
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
                store_first(t, *(const vfu *)k, lanes);
        } else if (w->type == DEFT_F16) {
            const uint16_t *k = (const uint16_t *)w->k + at + part;
            for (uint32_t d = 0; d < w->D; d++, k += IDEFT_BLOCK, t += IDEFT_BLOCK)
                store_first(t, load_f16(k), lanes);
        } else {
            const uint16_t *k = (const uint16_t *)w->k + at + 2 * part;
            for (uint32_t d = 0; d < w->D; d += 2, k += 2 * IDEFT_BLOCK, t += 2 * IDEFT_BLOCK) {
                const vu pair = *(const vuu *)k;
                store_first(t, low_half(pair), lanes);
                store_first(t + IDEFT_BLOCK, high_half(pair), lanes);
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
    v = place_values(w, v, slot, n);
    if (last != NULL && last->slot + last->n == slot) {
        last->n += n;
        return;
    }
    sc->piece[sc->n_piece++] = (piece_t){ v, n, slot };
}

typedef int32_t ints_t __attribute__((vector_size(64), aligned(4), may_alias));

static const ints_t count = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };

/* Columns [cols, cols + n) are the tokens at `slot`, seen from path position `pos` on. */
static void put_columns(const work_t *w, const ideft_seg_t *seg, uint32_t slot, uint32_t pos,
                        uint32_t n)
{
    scratch_t *sc = w->sc;
    const uint32_t col = sc->cols;
    put_k(w, slot, n);
    put_v(w, slot, n);
    /* a block at a time: those after the n-th are written again, or belong to nobody */
    const ints_t zero = { 0 };
    *(ints_t *)(sc->c_begin + col) = zero + (int32_t)seg->row_begin;
    *(ints_t *)(sc->c_end + col) = zero + (int32_t)seg->row_end;
    *(ints_t *)(sc->c_pos + col) = count + (int32_t)pos;
    *(ints_t *)(sc->c_slot + col) = count + (int32_t)slot;
    sc->cols += n;
}

/* K and V of a tile that so many matrix rows see: as stored, or widened. */
INLINE deft_dtype_t form_for(const work_t *w, uint32_t rows)
{
    return rows <= RAW_PANELS * MAX_ROWS ? w->type : DEFT_F32;
}

static void add_stretch(const work_t *w, const walk_t *walk, const stretch_t *next)
{
    scratch_t *sc = w->sc;
    const ideft_seg_t *seg = next->seg;
    const uint32_t begin = ideft_max(seg->row_begin, w->row0);
    const uint32_t end = ideft_min(seg->row_end, w->row0 + w->rows);
    const bool same = sc->cols > 0 && begin == sc->begin && end == sc->end && sc->uniform;
    const bool small = walk_is_small(walk, seg);
    if (sc->cols > 0 && !same && !(sc->small && small))
        flush(w);
    uint32_t slot = seg->slot + next->from, pos = seg->pos + next->from, left = next->n;
    while (left > 0) {
        if (sc->cols == TILE)
            flush(w);
        if (sc->cols == 0) {
            sc->begin = begin;
            sc->end = end;
            sc->uniform = true;
            sc->small = small;
            sc->form = form_for(w, (end - begin) * w->attn->geom->G);
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
        pack_rows(w, from, r, ideft_min(8, w->n - r), factor);
    }
    memset(sc->o, 0, (size_t)w->n * g->D * sizeof(float));
    memset(sc->d, 0, (size_t)w->n * VL * sizeof(float));
    for (uint32_t r = 0; r < w->n; r++)
        sc->m[r] = -INFINITY;
    sc->cols = sc->n_piece = 0;
}

/* Take the group's KV for the rows of this pass. */
static void add_group(const work_t *w, const ideft_group_t *group)
{
    const ideft_plan_t *plan = w->attn->plan;
    walk_t walk = { .begin = plan->seg + group->seg_begin,
                    .end = plan->seg + group->seg_end,
                    .row = plan->row,
                    .row_begin = w->row0,
                    .row_end = w->row0 + w->rows,
                    .window = w->attn->window };
    const float mean_rows = walk_mean_rows(&walk);
    const uint32_t bytes = w->D * ideft_element_bytes(w->type);
    const uint32_t rows = (uint32_t)(mean_rows * (float)w->attn->geom->G),
                   panels = rows / MAX_ROWS + 1;
    w->sc->form = form_for(w, rows); /* the order must not depend on what was computed before */
    const uint32_t loops = panels * iterations(w, TILE, rows / panels + 1);
    const float pace = (float)(2 * bytes * TILE) / (float)loops; /* bytes an iteration */
    /* where arithmetic is the bound, and all that is counted is seen */
    const bool turns = BY_TURNS && pace < LINE && walk.window == 0;
    const ahead_t none = { (const char *)w->sc->o, 0 };
    stretch_t next;
    walk_start(&walk, turns ? (uint32_t)ceilf(mean_rows) : 0);
    w->sc->stream = (stream_t){ .k = none,
                                .v = none,
                                .walk = walk,
                                .k_plane = w->k,
                                .v_plane = w->v,
                                .token_bytes = bytes,
                                .mean = turns ? pace : 0 };
    while (walk_next(&walk, &next))
        add_stretch(w, &walk, &next);
    flush(w);
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
        add_group(&w, group);
        for (uint32_t r = 0; r < w.n; r++)
            ideft_attn_finish(attn, group, row + r / g->G, head * g->G + r % g->G,
                              w.sc->o + (size_t)r * g->D, w.sc->m[r], sum_lanes(w.sc->d + r * VL));
    }
}

#endif
