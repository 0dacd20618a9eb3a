/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "image.h"

#include <string.h>

#include "plan.h"

typedef struct builder {
    const ideft_plan_t *plan;
    const ideft_geom_t *g;
    uint32_t record_bytes, rows_max;
    unsigned char *records;
    uint32_t n_records;
    ideft_cuda_copy_t *copies;
    uint32_t n_copies;
    /* the record that is being made */
    ideft_cuda_record_t *rec;
    uint32_t row_begin, row_end;
    /* its open tile */
    uint32_t first, used, tile;
    bool masked[2], mine[2];
} builder_t;

static uint32_t row_tiles(const ideft_item_t *item, uint32_t rows_max)
{
    return (item->row_end - item->row_begin + rows_max - 1) / rows_max;
}

/* Records and copies at most: every seg may begin and end a tile, and tiles of one-token runs are
 * closed for their number of copies. */
static void count(const ideft_plan_t *plan, uint32_t rows_max, uint64_t *records_p, uint64_t *copies_p)
{
    *records_p = *copies_p = 0;
    for (uint32_t i = 0; i < plan->n_item; i++) {
        const ideft_item_t *item = &plan->item[i];
        const uint64_t tiles = row_tiles(item, rows_max);
        uint64_t tokens = 0;
        for (uint32_t s = item->seg_begin; s < item->seg_end; s++)
            tokens += plan->seg[s].n;
        *records_p += tiles;
        *copies_p += tiles * (item->seg_end - item->seg_begin + tokens / IDEFT_TILE + 2);
    }
}

size_t ideft_image_bound(const ideft_plan_t *plan, const ideft_geom_t *g, size_t max_rows)
{
    uint64_t records, copies;
    count(plan, ideft_image_rows(g, plan->flags), &records, &copies);
    const uint64_t lists = (uint64_t)plan->n_row + 1 + plan->part_begin[plan->n_row];
    return ideft_image_front_bytes(max_rows) + records * ideft_image_record_bytes(g) +
           copies * sizeof(ideft_cuda_copy_t) + plan->n_row * sizeof(ideft_cuda_place_t) +
           lists * sizeof(uint32_t) + 256;
}

/* ---- tiles -------------------------------------------------------------------------------------- */

/* Matrix rows of warpgroup w as query rows of the record: [*from, *to). */
static void rows_of_group(const builder_t *b, uint32_t w, uint32_t *from, uint32_t *to)
{
    const uint32_t G = b->g->G, n = b->row_end - b->row_begin;
    if (b->rec->tokens) {
        *from = 0;
        *to = n;
        return;
    }
    *from = ideft_min(64 * w / G, n);
    *to = ideft_min((64 * (w + 1) + G - 1) / G, n);
}

static void close_tile(builder_t *b)
{
    if (b->first == b->n_copies)
        return;
    ideft_cuda_copy_t *c = &b->copies[b->first];
    c->count = (uint8_t)(b->n_copies - b->first);
    c->used = (uint8_t)b->used;
    for (uint32_t w = 0; w < 2; w++) {
        const bool mine = b->rec->tokens ? b->tile % 2 == w : b->mine[w];
        if (mine)
            c->flags |= (uint8_t)(IDEFT_MINE << w);
        if (mine && (b->masked[w] || b->used < IDEFT_TILE))
            c->flags |= (uint8_t)(IDEFT_MASK << w);
        b->masked[w] = b->mine[w] = false;
    }
    b->first = b->n_copies;
    b->used = 0;
    b->tile++;
}

/* n tokens of a run into the open tile. Query rows [lo, hi) see them, the first of them only
 * columns up to `edge`. */
static void put_copy(builder_t *b, uint32_t slot, uint32_t pos, uint32_t n, uint32_t lo, uint32_t hi, uint32_t edge)
{
    b->copies[b->n_copies++] = (ideft_cuda_copy_t){
        .slot = slot, .pos = pos, .at = (uint8_t)b->used, .n = (uint8_t)n, .lo = (uint8_t)lo,
        .hi = (uint8_t)hi, .edge = (uint8_t)ideft_min(edge, IDEFT_TILE) };
    for (uint32_t w = 0; w < 2; w++) {
        uint32_t from, to;
        rows_of_group(b, w, &from, &to);
        if (from < to && lo < to && hi > from)
            b->mine[w] = true;
        if (from < to && (lo > from || hi < to || edge + 1 < n))
            b->masked[w] = true;
    }
    b->used += n;
    if (b->used == IDEFT_TILE || b->n_copies - b->first == IDEFT_TILE_COPIES)
        close_tile(b);
}

/* A seg, as far as rows of the record see it. Rows of the node itself follow each other in position,
 * so token j is seen from query row lo + (j - last) on, where `last` is the last that row lo sees. */
static void put_seg(builder_t *b, const ideft_seg_t *seg)
{
    if (seg->n == 0 || seg->row_begin >= b->row_end || seg->row_end <= b->row_begin)
        return;
    const uint32_t lo = ideft_max(seg->row_begin, b->row_begin) - b->row_begin;
    const uint32_t hi = ideft_min(seg->row_end, b->row_end) - b->row_begin;
    const uint32_t pos = b->plan->row[b->row_begin + lo].pos;
    const uint32_t last = pos >= seg->pos ? pos - seg->pos : 0;
    const uint32_t skip = pos >= seg->pos ? 0 : seg->pos - pos; /* rows that see none of it */
    for (uint32_t j = 0, n; j < seg->n; j += n) {
        const uint32_t later = skip + (j > last ? j - last : 0);
        if (lo + later >= hi)
            return;
        n = ideft_min(seg->n - j, IDEFT_TILE - b->used);
        put_copy(b, seg->slot + j, seg->pos + j, n, lo + later, hi, last > j ? last - j : 0);
    }
}

/* ---- records ------------------------------------------------------------------------------------ */

static void put_record(builder_t *b, const ideft_item_t *item)
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
    rec->part = item->part + (b->row_begin - item->row_begin);
    rec->tokens = n * b->g->G <= 64;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t r = b->row_begin + i;
        const bool direct = plan->part_begin[r] == plan->part_begin[r + 1];
        rows[i] = (ideft_cuda_row_t){ plan->row[r].token | (direct ? IDEFT_DIRECT : 0), plan->row[r].pos };
    }
    b->first = b->n_copies;
    b->used = b->tile = 0;
    for (uint32_t s = item->seg_begin; s < item->seg_end; s++)
        put_seg(b, &plan->seg[s]);
    close_tile(b);
    if (b->n_copies == rec->copy) { /* none of these rows sees anything: a tile of no tokens */
        b->copies[b->n_copies++] = (ideft_cuda_copy_t){ .count = 1 };
        b->first = b->n_copies;
    }
    uint32_t last = b->n_copies - 1;
    while (b->copies[last].count == 0)
        last--;
    b->copies[last].flags |= IDEFT_LAST;
    memset(head, 0, IDEFT_INLINE * sizeof(*head));
    memcpy(head, &b->copies[rec->copy], ideft_min(b->n_copies - rec->copy, IDEFT_INLINE) * sizeof(*head));
}

static void put_records(builder_t *b)
{
    for (uint32_t i = 0; i < b->plan->n_item; i++) {
        const ideft_item_t *item = &b->plan->item[b->plan->order[i]];
        const uint32_t tiles = row_tiles(item, b->rows_max), n = item->row_end - item->row_begin;
        const uint32_t even = (n + tiles - 1) / tiles;
        for (uint32_t t = 0; t < tiles; t++) {
            b->row_begin = item->row_begin + ideft_min(t * even, n);
            b->row_end = item->row_begin + ideft_min((t + 1) * even, n);
            if (b->row_begin < b->row_end)
                put_record(b, item);
        }
    }
}

size_t ideft_image_build(const ideft_plan_t *plan, const ideft_geom_t *g, size_t max_rows, unsigned char *to)
{
    const uint32_t R = plan->n_row, n_list = plan->part_begin[R];
    ideft_cuda_head_t *head = (ideft_cuda_head_t *)to;
    int32_t *positions = (int32_t *)(head + 1);
    builder_t b = { .plan = plan, .g = g, .record_bytes = ideft_image_record_bytes(g),
                    .rows_max = ideft_image_rows(g, plan->flags), .records = to + ideft_image_front_bytes(max_rows) };
    uint64_t records, copies;
    count(plan, b.rows_max, &records, &copies);
    memcpy(positions, plan->positions, R * sizeof(*positions));
    memcpy(positions + max_rows, plan->ids, R * sizeof(*positions));
    b.copies = (ideft_cuda_copy_t *)(b.records + records * b.record_bytes);
    put_records(&b);
    ideft_cuda_place_t *places = (ideft_cuda_place_t *)(b.copies + b.n_copies);
    for (uint32_t r = 0; r < R; r++)
        places[r] = (ideft_cuda_place_t){ plan->row[r].token, plan->row[r].slot };
    uint32_t *begin = (uint32_t *)(places + R), *list = begin + R + 1;
    memcpy(begin, plan->part_begin, (R + 1) * sizeof(*begin));
    if (n_list > 0)
        memcpy(list, plan->part_list, n_list * sizeof(*list));
    *head = (ideft_cuda_head_t){
        .n_units = b.n_records * g->Hkv,
        .n_rows = R,
        .n_records = b.n_records,
        .n_parts = plan->n_part,
        .copies = (uint32_t)((unsigned char *)b.copies - to),
        .places = (uint32_t)((unsigned char *)places - to),
        .part_begin = (uint32_t)((unsigned char *)begin - to),
        .part_list = (uint32_t)((unsigned char *)list - to),
    };
    return (size_t)((unsigned char *)(list + n_list) - to);
}
