/* SPDX-License-Identifier: MIT */
/* The order in which a pass takes the KV of its group. Runs that many rows see are bound by
 * arithmetic, runs that few rows see by memory. Each kind is taken in the order of the plan. Where
 * arithmetic is the bound of the whole, both take turns, so that the one's requests for memory
 * (ahead.h) go on during the other's arithmetic. The order depends on tokens and rows alone, not on
 * how the pool cuts a node into runs. */
#ifndef IDEFT_WALK_H
#define IDEFT_WALK_H

#include "kernel.h"

/* Some tokens of a run: a tile at most. */
typedef struct stretch {
    const ideft_seg_t *seg;
    uint32_t from, n;
} stretch_t;

typedef struct walk {
    struct {
        const ideft_seg_t *seg;
        uint32_t from;        /* of seg */
        uint64_t done, total; /* tokens */
    } kind[2];                /* seen by many rows, by few */
    const ideft_seg_t *end;
    const ideft_row_t *row;
    uint32_t row_begin, row_end; /* of the pass */
    uint32_t many;               /* rows */
    uint32_t now, taken;         /* the kind whose turn it is, and its tokens in this turn */
} walk_t;

/* Rows of the pass that see the run. */
INLINE uint32_t walk_rows(const walk_t *w, const ideft_seg_t *seg)
{
    const uint32_t begin = ideft_max(seg->row_begin, w->row_begin),
                   end = ideft_min(seg->row_end, w->row_end);
    return begin < end ? end - begin : 0;
}

/* Tokens of the run that they see: of those that see it, the last row stands furthest back. */
INLINE uint32_t walk_tokens(const walk_t *w, const ideft_seg_t *seg)
{
    if (walk_rows(w, seg) == 0)
        return 0;
    const uint32_t pos = w->row[ideft_min(seg->row_end, w->row_end) - 1].pos;
    return pos < seg->pos ? 0 : ideft_min(seg->n, pos + 1 - seg->pos);
}

static void walk_skip(walk_t *w, uint32_t kind)
{
    const ideft_seg_t *seg = w->kind[kind].seg;
    while (seg < w->end &&
           (walk_tokens(w, seg) == 0 || (walk_rows(w, seg) < w->many) != (kind == 1)))
        seg++;
    w->kind[kind].seg = seg;
}

/* Query rows of the pass that see a token, in the mean over the tokens that any of them sees. */
static float walk_mean_rows(const walk_t *w, const ideft_seg_t *seg)
{
    uint64_t tokens = 0, seen = 0;
    for (; seg < w->end; seg++) {
        const uint32_t n = walk_tokens(w, seg);
        tokens += n;
        seen += (uint64_t)walk_rows(w, seg) * n;
    }
    return tokens == 0 ? 0.0f : (float)seen / (float)tokens;
}

/* Begin at `seg`. `many`: rows from which on a run is of the first kind; 0: all are. */
static void walk_start(walk_t *w, const ideft_seg_t *seg, uint32_t many)
{
    w->many = many;
    for (const ideft_seg_t *at = seg; at < w->end; at++)
        w->kind[walk_rows(w, at) < many].total += walk_tokens(w, at);
    for (uint32_t kind = 0; kind < 2; kind++) {
        w->kind[kind].seg = seg;
        walk_skip(w, kind);
    }
}

/* Whose turn is next: a turn takes a tile of tokens, or less where a node ends. */
static void walk_turn(walk_t *w)
{
    const uint64_t a = w->kind[0].done * w->kind[1].total, b = w->kind[1].done * w->kind[0].total;
    const bool left[2] = { w->kind[0].seg < w->end, w->kind[1].seg < w->end };
    w->taken = 0;
    w->now = left[0] && left[1] ? b < a : left[1];
}

/* Does a node go on in the next run? */
INLINE bool walk_goes_on(const ideft_seg_t *seg, const ideft_seg_t *next)
{
    return next->row_begin == seg->row_begin && next->row_end == seg->row_end &&
           next->pos == seg->pos + seg->n;
}

/* The next stretch to *to; false at the end. */
static bool walk_next(walk_t *w, stretch_t *to)
{
    if (w->kind[w->now].seg == w->end || w->taken == TILE)
        walk_turn(w);
    const uint32_t kind = w->now, from = w->kind[kind].from;
    const ideft_seg_t *seg = w->kind[kind].seg;
    if (seg == w->end)
        return false;
    const uint32_t all = walk_tokens(w, seg), n = ideft_min(all - from, TILE - w->taken);
    *to = (stretch_t){ seg, from, n };
    w->kind[kind].done += n;
    w->kind[kind].from += n;
    w->taken += n;
    if (w->kind[kind].from == all) {
        w->kind[kind].from = 0;
        w->kind[kind].seg++;
        walk_skip(w, kind);
        if (w->taken >= TILE / 2 && w->kind[kind].seg < w->end &&
            !walk_goes_on(seg, w->kind[kind].seg))
            walk_turn(w);
    }
    return true;
}

#endif
