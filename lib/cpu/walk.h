/* SPDX-License-Identifier: MIT */
/* The order in which a pass takes the KV of its group. Runs that many rows see are bound by
 * arithmetic, runs that few rows see by memory. Each kind is taken in the order of the plan. Where
 * arithmetic is the bound of the whole, both take turns, so that the one's requests for memory
 * (ahead.h) go on during the other's arithmetic. What lies before the window of every row is left
 * out. Nothing depends on how the pool cuts a node into runs. */
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
    const ideft_seg_t *begin, *end;
    const ideft_row_t *row;
    uint32_t row_begin, row_end; /* of the pass */
    uint32_t window;             /* of the layer, 0: none */
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

/* Tokens of the run that they see: the last of the rows that see it sees all that any of them does.
 * (Rows on the node's own tokens come first, in order; all others see the whole run.) */
INLINE uint32_t walk_tokens(const walk_t *w, const ideft_seg_t *seg)
{
    if (walk_rows(w, seg) == 0)
        return 0;
    const uint32_t pos = w->row[ideft_min(seg->row_end, w->row_end) - 1].pos;
    return pos < seg->pos ? 0 : ideft_min(seg->n, pos + 1 - seg->pos);
}

/* Tokens at the start of the run that no row of the pass has in its window: whole tiles of them, so
 * that the others lie in the columns where they would lie with those, and add up to the same
 * bits. */
static uint32_t walk_hidden(const walk_t *w, const ideft_seg_t *seg)
{
    const uint32_t end = ideft_min(seg->row_end, w->row_end);
    const uint32_t n = w->window == 0 ? 0 : walk_tokens(w, seg);
    uint32_t least = UINT32_MAX;
    if (n < TILE)
        return 0;
    for (uint32_t r = ideft_max(seg->row_begin, w->row_begin); r < end; r++)
        least = ideft_min(least, w->row[r].pos);
    const uint64_t first = (uint64_t)seg->pos + w->window; /* that does not see seg's first token */
    const uint64_t hidden = first > least ? 0 : least + 1 - first;
    return (hidden < n ? (uint32_t)hidden : n) / TILE * TILE;
}

/* On to a run of the kind of which something is seen, and to the first token in it that is. */
static void walk_skip(walk_t *w, uint32_t kind)
{
    const ideft_seg_t *seg = w->kind[kind].seg;
    for (; seg < w->end; seg++) {
        if ((walk_rows(w, seg) < w->many) != (kind == 1))
            continue;
        w->kind[kind].from = walk_hidden(w, seg);
        if (w->kind[kind].from < walk_tokens(w, seg))
            break;
    }
    w->kind[kind].seg = seg;
}

/* Query rows of the pass that see a token, in the mean over the tokens that any of them sees. */
static float walk_mean_rows(const walk_t *w)
{
    uint64_t tokens = 0, seen = 0;
    for (const ideft_seg_t *seg = w->begin; seg < w->end; seg++) {
        const uint32_t n = walk_tokens(w, seg);
        tokens += n;
        seen += (uint64_t)walk_rows(w, seg) * n;
    }
    return tokens == 0 ? 0.0f : (float)seen / (float)tokens;
}

/* Begin. `many`: rows from which on a run is of the first kind; 0: all are. */
static void walk_start(walk_t *w, uint32_t many)
{
    w->many = many;
    for (const ideft_seg_t *seg = w->begin; seg < w->end; seg++)
        w->kind[walk_rows(w, seg) < many].total += walk_tokens(w, seg);
    for (uint32_t kind = 0; kind < 2; kind++) {
        w->kind[kind].seg = w->begin;
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

/* True if a node goes on in the next run. */
INLINE bool walk_goes_on(const ideft_seg_t *seg, const ideft_seg_t *next)
{
    return next->row_begin == seg->row_begin && next->row_end == seg->row_end &&
           next->pos == seg->pos + seg->n;
}

#define SMALL 16u /* tokens of a node that shares a tile with others */

/* True if the group has few tokens of the node that the run is of. */
static bool walk_is_small(const walk_t *w, const ideft_seg_t *seg)
{
    uint32_t n = seg->n;
    for (const ideft_seg_t *at = seg; n < SMALL && at > w->begin && walk_goes_on(at - 1, at); at--)
        n += at[-1].n;
    for (seg++; n < SMALL && seg < w->end && walk_goes_on(seg - 1, seg); seg++)
        n += seg->n;
    return n < SMALL;
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
        w->kind[kind].seg++;
        walk_skip(w, kind);
        if (w->taken >= TILE / 2 && w->kind[kind].seg < w->end &&
            !walk_goes_on(seg, w->kind[kind].seg))
            walk_turn(w);
    }
    return true;
}

#endif
