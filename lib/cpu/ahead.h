/* SPDX-License-Identifier: MIT */
/* KV that is asked for before it is needed. A core can wait for only some sixteen cache lines at
 * once, so memory and arithmetic overlap only where the requests are spread evenly over the
 * arithmetic. At the least the next tile is asked for during the arithmetic of this one. Where runs
 * take turns (walk.h), requests go on as far ahead as the cache has room. */
#ifndef IDEFT_AHEAD_H
#define IDEFT_AHEAD_H

#include "walk.h"

#define LINE 64                        /* bytes of a cache line */
#define AHEAD_MAX ((int64_t)256 << 10) /* bytes that wait at most */

/* What a loop asks for: a line at `at`, then `bytes` further on each time. */
typedef struct ahead {
    const char *at;
    uint32_t bytes;
} ahead_t;

typedef struct stream {
    ahead_t k, v; /* what is being asked for: K, then V of a stretch */
    walk_t walk;  /* what comes after it */
    const unsigned char *k_plane, *v_plane;
    uint32_t token_bytes; /* of K, and of V */
    uint64_t asked, used; /* tokens: up to k and v, and in tiles */
    float mean;           /* bytes an iteration over the whole pass; 0: no further than a tile */
    uint32_t pace;        /* bytes an iteration, in this tile */
} stream_t;

/* On to the next stretch, with all of its blocks of K. False: there is none. */
static bool stream_next(stream_t *s)
{
    stretch_t next;
    if (!walk_next(&s->walk, &next))
        return false;
    const uint32_t slot = next.seg->slot + next.from;
    const uint32_t block = slot / IDEFT_BLOCK * IDEFT_BLOCK,
                   end = (slot + next.n + IDEFT_BLOCK - 1) / IDEFT_BLOCK * IDEFT_BLOCK;
    s->k = (ahead_t){ (const char *)s->k_plane + (size_t)block * s->token_bytes,
                      (end - block) * s->token_bytes };
    s->v = (ahead_t){ (const char *)s->v_plane + (size_t)slot * s->token_bytes,
                      next.n * s->token_bytes };
    s->asked += next.n;
    return true;
}

/* Where to go on asking. */
INLINE ahead_t *stream_at(stream_t *s)
{
    if (s->k.bytes + s->v.bytes == 0 && s->pace > 0)
        stream_next(s);
    return s->k.bytes > 0 ? &s->k : &s->v;
}

/* For a loop of n iterations. */
INLINE ahead_t take_ahead(stream_t *s, uint32_t n)
{
    ahead_t *from = stream_at(s);
    const uint32_t step = ideft_min(s->pace, from->bytes / n);
    const ahead_t take = { from->at, step };
    const uint32_t took = step == s->pace ? n * step : from->bytes;
    from->at += took;
    from->bytes -= took;
    return take;
}

/* A tile of n tokens begins, whose loops have so many iterations: set the pace. */
static void stream_pace(stream_t *s, uint32_t n_tokens, uint32_t iterations)
{
    const int64_t token = 2 * (int64_t)s->token_bytes, loops = iterations;
    s->used += n_tokens;
    s->pace = 1;
    while (s->asked < s->used && stream_next(s)) /* too late to ask for those */
        s->k.bytes = s->v.bytes = 0;
    const int64_t waiting = ((int64_t)s->asked - (int64_t)s->used) * token - s->k.bytes -
                            s->v.bytes;
    const int64_t next = TILE * token - waiting, room = AHEAD_MAX - waiting,
                  even = (int64_t)(s->mean * (float)loops);
    int64_t want = even < room ? even : room;
    want = want < next ? next : want;
    /* more than a line an iteration: memory is the bound, ask for the surplus at once */
    for (int64_t surplus = want - loops * LINE; surplus > 0;) {
        ahead_t *from = stream_at(s);
        const int64_t bytes = surplus < from->bytes ? surplus : from->bytes;
        if (bytes == 0)
            break;
        for (int64_t i = 0; i < bytes; i += LINE)
            PREFETCH(from->at + i);
        from->at += bytes;
        from->bytes -= (uint32_t)bytes;
        surplus -= bytes;
        want -= bytes;
    }
    s->pace = want <= 0 ? 0 : (uint32_t)ideft_min(LINE, want / (loops + 1) + 1);
}

#endif
