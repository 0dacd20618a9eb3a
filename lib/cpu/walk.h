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

static void walk_skip(walk_t *w, uint32_t kind)
{
    const ideft_seg_t *seg = w->kind[kind].seg;
    for (; seg < w->end; seg++) {
        const uint32_t rows = seg->n == 0 ? 0 : walk_rows(w, seg);
        if (rows > 0 && (rows < w->many) == (kind == 1))
            break;
    }
    w->kind[kind].seg = seg;
}

/* Query rows of the pass that see a token, in the mean over the tokens that any of them sees. */
static float walk_mean_rows(const ideft_seg_t *seg, const ideft_seg_t *end, uint32_t row_begin,
                            uint32_t row_end)
{
    const walk_t pass = { .row_begin = row_begin, .row_end = row_end };
    uint64_t tokens = 0, seen = 0;
    for (; seg < end; seg++) {
        const uint32_t rows = walk_rows(&pass, seg);
        tokens += rows > 0 ? seg->n : 0;
        seen += (uint64_t)rows * seg->n;
    }
    return tokens == 0 ? 0.0f : (float)seen / (float)tokens;
}

/* Begin. `many`: rows from which on a run is of the first kind; 0: all are. */
static void walk_start(walk_t *w, const ideft_seg_t *seg, const ideft_seg_t *end,
                       uint32_t row_begin, uint32_t row_end, uint32_t many)
{
    *w = (walk_t){ .end = end, .row_begin = row_begin, .row_end = row_end, .many = many };
    for (const ideft_seg_t *at = seg; at < end; at++)
        if (walk_rows(w, at) > 0)
            w->kind[walk_rows(w, at) < many].total += at->n;
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
    const uint32_t n = ideft_min(seg->n - from, TILE - w->taken);
    *to = (stretch_t){ seg, from, n };
    w->kind[kind].done += n;
    w->kind[kind].from += n;
    w->taken += n;
    if (w->kind[kind].from == seg->n) {
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
