/* SPDX-License-Identifier: MIT */
/* Building the image of a plan: records, the copies that their tiles are made of, lists. */
#include "config.h"

#include "plan_image.h"

#include <string.h>

_Static_assert(IDEFT_TILE == IDEFT_TILE_TOKENS, "plans are cut at whole tiles");

enum { WARPGROUP_ROWS = IDEFT_ROWS / 2 }; /* matrix rows that a warpgroup computes */

typedef struct builder {
    const ideft_plan_t *plan;
    const ideft_geometry_t *g;
    uint32_t record_bytes, rows_max;
    unsigned char *records;
    uint32_t n_records;
    ideft_cuda_copy_t *copies;
    uint32_t n_copies;
    uint64_t n_read; /* tokens of the narrow records */
    /* the record that is being made */
    ideft_cuda_record_t *rec;
    uint32_t row_begin, row_end;
    uint32_t wg_begin[2], wg_end[2];  /* a warpgroup's query rows, in the record */
    uint32_t n_tiles, last, final[2]; /* first copies: of the last tile, of each warpgroup's last */
} builder_t;

/* Tokens of a record on their way into tiles: those that the warpgroups of `mine` see, no
 * others. */
typedef struct cursor {
    uint32_t mine; /* bit w: warpgroup w */
    uint32_t seg, end, token;
} cursor_t;

static uint32_t row_tiles(const ideft_group_t *group, uint32_t rows_max)
{
    return (group->row_end - group->row_begin + rows_max - 1) / rows_max;
}

/* Records and copies at most: a seg is cut where warpgroups stop seeing it and where tiles end. */
static void count(const ideft_plan_t *plan, uint32_t rows_max, uint64_t *records_p,
                  uint64_t *copies_p)
{
    *records_p = *copies_p = 0;
    for (uint32_t i = 0; i < plan->n_groups; i++) {
        const ideft_group_t *group = &plan->group[i];
        const uint64_t tiles = row_tiles(group, rows_max);
        uint64_t tokens = 0;
        for (uint32_t s = group->seg_begin; s < group->seg_end; s++)
            tokens += plan->seg[s].n;
        *records_p += tiles;
        *copies_p += tiles *
                     (2 * (uint64_t)(group->seg_end - group->seg_begin) + tokens / IDEFT_TILE + 5);
    }
}

size_t ideft_image_bound(const ideft_plan_t *plan, const ideft_geometry_t *g, size_t max_rows)
{
    uint64_t records, copies;
    count(plan, ideft_image_rows(g, plan->invariant), &records, &copies);
    const uint64_t lists = (uint64_t)plan->n_rows + 1 + plan->part_begin[plan->n_rows];
    return ideft_image_front_bytes(max_rows) + records * ideft_image_record_bytes(g) +
           copies * sizeof(ideft_cuda_copy_t) + plan->n_rows * sizeof(ideft_cuda_place_t) +
           lists * sizeof(uint32_t) + 256;
}

void ideft_image_bound_of_any(const ideft_geometry_t *g, uint32_t n_sm, size_t pool_tokens,
                              size_t rows, size_t nodes, size_t *bytes_p, size_t *parts_p)
{
    const size_t tile_rows = IDEFT_ROWS / g->G, round = n_sm / g->Hkv + 1,
                 whole = (rows + tile_rows - 1) / tile_rows;
    const size_t tiles = ideft_min(rows, whole + IDEFT_TILE_ROUNDS * round);
    const size_t items = 2 * tiles + IDEFT_PART_ROUNDS * round; /* the last may be small */
    /* a tile reads a token at most once; nodes, parts and warpgroups end a copy before its tile is
     * full */
    const size_t copies = tiles * (pool_tokens / IDEFT_TILE + 2 * nodes) + 2 * rows + 7 * items;
    *parts_p = items * tile_rows;
    *bytes_p = ideft_image_front_bytes(rows) + items * ideft_image_record_bytes(g) +
               copies * sizeof(ideft_cuda_copy_t) + rows * sizeof(ideft_cuda_place_t) +
               (rows + 1 + *parts_p) * sizeof(uint32_t) + 256;
}

/* ---- tiles ----------------------------------------------------------------------------------- */

static bool by_tiles(const builder_t *b)
{
    return b->rec->share % 4 == IDEFT_SHARE_TILES || b->rec->share % 4 == IDEFT_SHARE_TOKENS;
}

/* A record of so few matrix rows that the time goes to reading its KV. */
static bool is_narrow(const builder_t *b)
{
    return b->rec->n_rows * b->g->G <= IDEFT_NARROW_ROWS;
}

/* Matrix rows of each warpgroup as query rows. */
static void share_rows(builder_t *b)
{
    const uint32_t G = b->g->G, n = b->row_end - b->row_begin;
    for (uint32_t w = 0; w < 2; w++) {
        b->wg_begin[w] = by_tiles(b) ? 0 : ideft_min(WARPGROUP_ROWS * w / G, n);
        b->wg_end[w] = by_tiles(b) ? n : ideft_min((WARPGROUP_ROWS * (w + 1) + G - 1) / G, n);
    }
}

/* What stands at a cursor: tokens of one seg that the same warpgroups see. */
typedef struct stretch {
    uint32_t mine, n;
    uint32_t lo, hi, edge; /* query rows that see it: ideft_cuda_copy_t */
} stretch_t;

/* The stretch that begins at a token of a seg. Rows of the node itself follow each other in
 * position, so token j is seen from query row lo + (j - last) on, where `last` is the last that row
 * lo sees. n 0: no row of the record sees this token or a later one. */
static stretch_t stretch_at(const builder_t *b, const ideft_seg_t *seg, uint32_t token)
{
    if (token >= seg->n || seg->row_begin >= b->row_end || seg->row_end <= b->row_begin)
        return (stretch_t){ 0 };
    const uint32_t lo = ideft_max(seg->row_begin, b->row_begin) - b->row_begin;
    const uint32_t hi = ideft_min(seg->row_end, b->row_end) - b->row_begin;
    const uint32_t pos = b->plan->row[b->row_begin + lo].pos, at = seg->pos + token;
    const uint32_t later = at > pos ? at - pos : 0; /* rows that see no such late token */
    stretch_t p = { 0, seg->n - token, lo + later, hi, at < pos ? pos - at : 0 };
    if (p.lo >= hi)
        return (stretch_t){ 0 };
    /* after column `edge`, each column is seen by one row less, the first rows drop out */
    const uint32_t first = p.lo < b->wg_end[0] ? p.edge + b->wg_end[0] - p.lo : 0;
    p.mine = (first > 0 && hi > b->wg_begin[0] ? 1u : 0) |
             (hi > b->wg_begin[1] && !by_tiles(b) ? 2u : 0);
    p.n = ideft_min(p.n, p.edge + (hi - p.lo));
    if (first > 0)
        p.n = ideft_min(p.n, first);
    return p;
}

/* Move on to the next stretch for the cursor's warpgroups; n 0: there is none. */
static stretch_t next_stretch(const builder_t *b, cursor_t *c)
{
    while (c->seg < c->end) {
        const stretch_t p = stretch_at(b, &b->plan->seg[c->seg], c->token);
        if (p.n > 0 && p.mine == c->mine)
            return p;
        c->token += p.n;
        if (p.n == 0) {
            c->seg++;
            c->token = 0;
        }
    }
    return (stretch_t){ 0 };
}

/* Some row of the warpgroup does not see some column of the copy. */
static bool is_masked(const builder_t *b, const ideft_cuda_copy_t *c, uint32_t w)
{
    return c->lo > b->wg_begin[w] || c->hi < b->wg_end[w] || c->edge + 1u < c->n;
}

/* No other record reads the seg. A seg's rows are cut to those of its group, so for one that
 * reaches the edge of the record this cannot be known, and the answer is no. */
static bool is_own(const builder_t *b, const ideft_seg_t *seg)
{
    return b->row_end - b->row_begin == b->plan->n_rows ||
           (seg->row_begin > b->row_begin && seg->row_end < b->row_end);
}

/* One tile from the cursor. False: nothing is left. */
static bool put_tile(builder_t *b, cursor_t *cursor)
{
    const uint32_t first = b->n_copies;
    uint32_t used = 0, flags = 0, dense = IDEFT_DENSE;
    while (used < IDEFT_TILE && b->n_copies - first < IDEFT_TILE_COPIES) {
        const stretch_t p = next_stretch(b, cursor);
        if (p.n == 0)
            break;
        const ideft_seg_t *seg = &b->plan->seg[cursor->seg];
        const uint32_t n = ideft_min(p.n, IDEFT_TILE - used);
        ideft_cuda_copy_t *c = &b->copies[b->n_copies++];
        *c = (ideft_cuda_copy_t){ .slot = seg->slot + cursor->token,
                                  .pos = seg->pos + cursor->token,
                                  .at = (uint8_t)(used | (is_own(b, seg) ? IDEFT_STREAM : 0)),
                                  .n = (uint8_t)n,
                                  .lo = (uint8_t)p.lo,
                                  .hi = (uint8_t)p.hi,
                                  .edge = (uint8_t)ideft_min(p.edge, IDEFT_TILE) };
        for (uint32_t w = 0; w < 2; w++)
            flags |= is_masked(b, c, w) ? IDEFT_MASK << w : 0;
        if (c->slot != b->copies[first].slot + used ||
            ((c->at ^ b->copies[first].at) & IDEFT_STREAM) != 0)
            dense = 0;
        used += n;
        cursor->token += n;
    }
    if (b->n_copies == first)
        return false;
    if (used < IDEFT_TILE)
        flags |= IDEFT_MASK * 3;
    const uint32_t mine = by_tiles(b) ? 1u << b->n_tiles % 2 : cursor->mine;
    b->copies[first].count = (uint8_t)(b->n_copies - first);
    b->copies[first].used = (uint8_t)used;
    b->copies[first].flags = (uint8_t)(IDEFT_MINE * mine | (flags & IDEFT_MASK * mine));
    for (uint32_t i = first; i < b->n_copies; i++)
        b->copies[i].flags |= (uint8_t)dense;
    b->n_read += is_narrow(b) ? used : 0;
    b->last = first;
    for (uint32_t w = 0; w < 2; w++)
        b->final[w] = mine >> w & 1 ? first : b->final[w];
    b->n_tiles++;
    return true;
}

/* First the tiles that both warpgroups see, then those of one and of the other alternately: so both
 * are busy. A warpgroup looks for its next tile while it holds one: it must be at most two on, or
 * the ring of stages would stop. */
static void put_tiles(builder_t *b, const ideft_group_t *group)
{
    cursor_t both = { by_tiles(b) ? 1 : 3, group->seg_begin, group->seg_end, 0 };
    cursor_t own[2] = { { 1, group->seg_begin, group->seg_end, 0 },
                        { 2, group->seg_begin, group->seg_end, 0 } };
    b->n_tiles = 0;
    b->final[0] = b->final[1] = IDEFT_NONE;
    while (put_tile(b, &both))
        ;
    if (b->n_tiles > 0 && !by_tiles(b))
        b->rec->share = IDEFT_SHARE_BOTH;
    for (bool any = !by_tiles(b); any;) {
        any = put_tile(b, &own[0]);
        any = put_tile(b, &own[1]) || any;
    }
    if (b->n_tiles == 0) { /* none of these rows sees anything: a tile of no tokens */
        b->last = b->final[0] = b->n_copies;
        b->copies[b->n_copies++] =
            (ideft_cuda_copy_t){ .count = 1, .flags = IDEFT_MINE | IDEFT_MASK };
        b->n_tiles = 1;
    }
    b->copies[b->last].flags |= IDEFT_LAST;
    if (by_tiles(b))
        b->rec->share += 4 * b->n_tiles;
    for (uint32_t w = 0; w < 2; w++)
        if (b->final[w] != IDEFT_NONE)
            b->copies[b->final[w]].flags |= (uint8_t)(IDEFT_FINAL << w);
}

/* ---- records --------------------------------------------------------------------------------- */

/* How the warpgroups share a record. In an invariant step all records, which have the rows of one
 * warpgroup at most, are computed in one way. */
static uint32_t share_of(const builder_t *b, uint32_t matrix_rows)
{
    if (matrix_rows > WARPGROUP_ROWS)
        return IDEFT_SHARE_ROWS;
    return is_narrow(b) && b->g->D <= IDEFT_NARROW_DIM && !b->plan->invariant ? IDEFT_SHARE_TOKENS
                                                                              : IDEFT_SHARE_TILES;
}

static void put_record(builder_t *b, const ideft_group_t *group)
{
    const ideft_plan_t *plan = b->plan;
    unsigned char *at = b->records + (size_t)b->n_records++ * b->record_bytes;
    ideft_cuda_record_t *rec = b->rec = (ideft_cuda_record_t *)at;
    ideft_cuda_row_t *rows = (ideft_cuda_row_t *)(rec + 1);
    ideft_cuda_copy_t *head =
        (ideft_cuda_copy_t *)(at + b->record_bytes - IDEFT_INLINE * sizeof(ideft_cuda_copy_t));
    const uint32_t n = b->row_end - b->row_begin;
    rec->copy = b->n_copies;
    rec->n_rows = n;
    rec->part = group->part + (b->row_begin - group->row_begin);
    rec->share = share_of(b, n * b->g->G);
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t r = b->row_begin + i;
        const bool direct = plan->part_begin[r] == plan->part_begin[r + 1];
        rows[i] = (ideft_cuda_row_t){ plan->row[r].token | (direct ? IDEFT_DIRECT : 0),
                                      plan->row[r].pos };
    }
    share_rows(b);
    put_tiles(b, group);
    memset(head, 0, IDEFT_INLINE * sizeof(*head));
    memcpy(head, &b->copies[rec->copy],
           ideft_min(b->n_copies - rec->copy, IDEFT_INLINE) * sizeof(*head));
}

static void put_records(builder_t *b)
{
    for (uint32_t i = 0; i < b->plan->n_groups; i++) {
        const ideft_group_t *group = &b->plan->group[b->plan->order[i]];
        const uint32_t tiles = row_tiles(group, b->rows_max), n = group->row_end - group->row_begin;
        const uint32_t even = (n + tiles - 1) / tiles;
        for (uint32_t t = 0; t < tiles; t++) {
            b->row_begin = group->row_begin + ideft_min(t * even, n);
            b->row_end = group->row_begin + ideft_min((t + 1) * even, n);
            if (b->row_begin < b->row_end)
                put_record(b, group);
        }
    }
}

size_t ideft_image_build(const ideft_plan_t *plan, const ideft_geometry_t *g, size_t max_rows,
                         unsigned char *to)
{
    const uint32_t R = plan->n_rows, n_list = plan->part_begin[R];
    ideft_cuda_head_t *head = (ideft_cuda_head_t *)to;
    int32_t *positions = (int32_t *)(head + 1);
    builder_t b = { .plan = plan,
                    .g = g,
                    .record_bytes = ideft_image_record_bytes(g),
                    .rows_max = ideft_image_rows(g, plan->invariant),
                    .records = to + ideft_image_front_bytes(max_rows) };
    uint64_t records, copies;
    count(plan, b.rows_max, &records, &copies);
    memcpy(positions, plan->positions, R * sizeof(*positions));
    memcpy(positions + max_rows, plan->ids, R * sizeof(*positions));
    b.copies = (ideft_cuda_copy_t *)(b.records + records * b.record_bytes);
    put_records(&b);
    ideft_cuda_place_t *places = (ideft_cuda_place_t *)(b.copies + b.n_copies);
    for (uint32_t r = 0; r < R; r++) {
        places[r] = (ideft_cuda_place_t){ plan->row[r].token, plan->row[r].slot };
        ((uint32_t *)positions)[2 * max_rows + plan->row[r].token] = plan->row[r].slot;
    }
    uint32_t *begin = (uint32_t *)(places + R), *list = begin + R + 1;
    memcpy(begin, plan->part_begin, (R + 1) * sizeof(*begin));
    if (n_list > 0)
        memcpy(list, plan->part_list, n_list * sizeof(*list));
    *head = (ideft_cuda_head_t){
        .n_units = b.n_records * g->Hkv,
        .n_rows = R,
        .n_records = b.n_records,
        .n_parts = plan->n_parts,
        .by_head = b.n_read >= 2 * plan->n_tokens,
        .copies = (uint32_t)((unsigned char *)b.copies - to),
        .places = (uint32_t)((unsigned char *)places - to),
        .part_begin = (uint32_t)((unsigned char *)begin - to),
        .part_list = (uint32_t)((unsigned char *)list - to),
    };
    return (size_t)((unsigned char *)(list + n_list) - to);
}
