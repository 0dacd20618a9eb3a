/* SPDX-License-Identifier: MIT */
/* Cutting: from visits (active nodes in depth-first order, each with the interval of rows that see
 * it) to items. All splits are one walk with other borders: which rows form a tile, and where the
 * tile's KV, taken in depth-first order, is cut. Within a tile a row meets the items in the order
 * of its path, so the order of its partials is fixed by the tree. */
#include "config.h"

#include <string.h>

#include "alloc.h"
#include "plan.h"
#include "status_int.h"
#include "tree_int.h"

typedef struct cutter {
    deft_ctx_t *ctx;
    ideft_plan_t *plan;
    uint32_t row_begin, row_end; /* the tile */
    bool sequence;               /* a tile is rows of one node */
    bool spares;                 /* a free seg behind each growing leaf, for patching */
    bool failed;                 /* out of memory */
    bool open;                   /* the last item takes more segs */
    uint64_t cost;               /* of the open item */
    uint32_t least;              /* cost of a token that a tile reads */
    /* where the last piece ended, so that a long node is walked once */
    uint32_t at_visit, at_run, at_offset;
} cutter_t;

static inline bool room(cutter_t *c, ideft_buf_t *buf, size_t n, size_t elem, size_t used)
{
    if (n * elem <= buf->bytes)
        return true;
    if (!ideft_buf_reserve(c->plan->alloc, buf, n + n / 2, elem, used * elem, "plan"))
        c->failed = true;
    c->plan->seg = c->plan->seg_b.p;
    c->plan->item = c->plan->item_b.p;
    return !c->failed;
}

static void close_item(cutter_t *c)
{
    if (c->open) {
        ideft_item_t *item = &c->plan->item[c->plan->n_item - 1];
        item->seg_end = c->plan->n_seg;
        IDEFT_ASSERT(c->failed || (item->seg_begin < item->seg_end && item->row_begin < item->row_end));
        item->cost = c->cost > UINT32_MAX ? UINT32_MAX : (uint32_t)c->cost;
    }
    c->open = false;
    c->cost = 0;
}

static void open_item(cutter_t *c, uint32_t row_begin, uint32_t row_end)
{
    ideft_plan_t *plan = c->plan;
    if (!c->open) {
        if (!room(c, &plan->item_b, plan->n_item + 1, sizeof(*plan->item), plan->n_item))
            return;
        plan->item[plan->n_item++] =
            (ideft_item_t){ plan->n_seg, plan->n_seg, row_begin, row_end, IDEFT_NONE, 0 };
        c->open = true;
        return;
    }
    ideft_item_t *item = &plan->item[plan->n_item - 1];
    item->row_begin = ideft_min(item->row_begin, row_begin);
    item->row_end = ideft_max(item->row_end, row_end);
}

static void push_seg(cutter_t *c, const ideft_seg_t *seg)
{
    ideft_plan_t *plan = c->plan;
    if (room(c, &plan->seg_b, plan->n_seg + 1, sizeof(*seg), plan->n_seg))
        plan->seg[plan->n_seg++] = *seg;
}

/* Rows of the tile that see the node's tokens from `offset` on: own rows from there, and all below. */
static uint32_t first_row(const cutter_t *c, const ideft_visit_t *v, uint32_t offset)
{
    const uint32_t pos = v->start + offset;
    const uint32_t own = pos <= v->self_pos ? 0 : ideft_min(pos - v->self_pos, v->n_self);
    return ideft_max(v->row_begin + own, c->row_begin);
}

/* The tokens of `whole`, `from` tokens into a node of several runs, run by run. */
static void emit_runs(cutter_t *c, uint32_t visit, uint32_t from, const ideft_seg_t *whole)
{
    const ideft_run_t *runs = ideft_runs(ideft_node(c->ctx, c->plan->visit[visit].node));
    if (c->at_visit != visit || c->at_offset > from)
        c->at_visit = visit, c->at_run = 0, c->at_offset = 0;
    uint32_t run = c->at_run, at = c->at_offset;
    while (at + runs[run].n <= from)
        at += runs[run++].n;
    c->at_run = run, c->at_offset = at;
    ideft_seg_t seg = *whole;
    for (uint32_t left = whole->n; left > 0 && !c->failed; run++) {
        seg.slot = runs[run].slot + (from - at);
        seg.n = ideft_min(left, at + runs[run].n - from);
        push_seg(c, &seg);
        at += runs[run].n;
        from += seg.n;
        seg.pos += seg.n;
        left -= seg.n;
    }
}

/* Put tokens [from, to) of a visit into the open item. */
static void emit(cutter_t *c, uint32_t visit, uint32_t from, uint32_t to)
{
    const deft_ctx_t *ctx = c->ctx;
    ideft_visit_t *v = &c->plan->visit[visit];
    const uint32_t row_begin = first_row(c, v, from), row_end = ideft_min(v->row_end, c->row_end);
    const uint32_t window = ctx->geom.max_window;
    if (row_begin >= row_end || from >= to)
        return;
    /* the rows of a sequence tile are of one node, the first stands first */
    const uint32_t min_pos = c->sequence ? c->plan->row[row_begin].pos : v->min_pos;
    if (window != 0 && v->start + to - 1 + window <= min_pos)
        return; /* too far back for every row */
    if (window != 0 && c->sequence && v->start + from + window <= min_pos)
        from = min_pos - window + 1 - v->start;
    open_item(c, row_begin, row_end);
    const ideft_seg_t seg = { v->slot + from, to - from, v->start + from, row_begin, row_end };
    if (v->slot != IDEFT_NONE)
        push_seg(c, &seg);
    else
        emit_runs(c, visit, from, &seg);
    if (to == v->n && v->n_self == 1 && !c->failed) {
        v->last_seg = c->plan->n_seg - 1;
        if (c->spares && v->row_end - v->row_begin == 1) {
            const ideft_seg_t spare = { 0, 0, v->start + to, row_begin, row_end };
            push_seg(c, &spare);
        }
    }
}

static uint64_t token_cost(const cutter_t *c, const ideft_visit_t *v)
{
    const ideft_machine_t *machine = &c->ctx->machine;
    const uint32_t rows = ideft_min(v->row_end, c->row_end) - ideft_max(v->row_begin, c->row_begin);
    return ideft_max(machine->row_cost * rows * c->ctx->geom.G, c->least);
}

/* ---- the splits ------------------------------------------------------------------------------ */

/* NODE: a group a node. NODE_CHUNK, and every invariant step: long nodes cut at multiples of chunk
 * tokens from their start. */
static void cut_nodes(cutter_t *c, uint32_t chunk)
{
    for (uint32_t i = 0; i < c->plan->n_visit && !c->failed; i++) {
        const ideft_visit_t *v = &c->plan->visit[i];
        const uint64_t cost = token_cost(c, v);
        for (uint32_t from = 0, to; from < v->n; from = to) {
            to = v->n - from > chunk ? from + chunk : v->n;
            emit(c, i, from, to);
            c->cost = cost * (to - from);
            close_item(c);
        }
    }
}

/* FLATTEN: the KV of all trees in depth-first order in even chunks of at most chunk tokens. */
static void cut_flatten(cutter_t *c, uint32_t chunk)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < c->plan->n_visit; i++)
        total += c->plan->visit[i].n;
    const uint64_t n = (total + chunk - 1) / chunk;
    const uint32_t even = n == 0 ? 1 : (uint32_t)((total + n - 1) / n);
    uint32_t left = even;
    for (uint32_t i = 0; i < c->plan->n_visit && !c->failed; i++) {
        const ideft_visit_t *v = &c->plan->visit[i];
        const uint64_t cost = token_cost(c, v);
        for (uint32_t from = 0; from < v->n;) {
            const uint32_t take = ideft_min(left, v->n - from);
            emit(c, i, from, from + take);
            c->cost += cost * take;
            from += take;
            left -= take;
            if (left == 0) {
                close_item(c);
                left = even;
            }
        }
    }
    close_item(c);
}

/* Visits from a root down to `visit`. Returns how many. */
static uint32_t path_of(const ideft_plan_t *plan, uint32_t visit, uint32_t *path)
{
    uint32_t depth = 0, at;
    for (at = visit; at != IDEFT_NONE; at = plan->visit[at].parent)
        depth++;
    uint32_t i = depth;
    for (at = visit; at != IDEFT_NONE; at = plan->visit[at].parent)
        path[--i] = at;
    return depth;
}

/* Parts that a tile's KV of `cost` is cut into, when there are `units` tiles and heads, on a machine that
 * takes units in rounds: the number with the shortest time in all, which goes to *time_p. */
static uint32_t parts_in_rounds(const cutter_t *c, uint64_t cost, uint64_t units, uint64_t *time_p)
{
    const ideft_machine_t *machine = &c->ctx->machine;
    const uint64_t most = cost / machine->min_cost, tile = (uint64_t)c->least * 64;
    /* a partial of every row and head: a row's follow each other, all of them share the memory */
    const uint64_t a_part = machine->part_cost + 2 * (uint64_t)c->plan->n_row * c->ctx->geom.H / machine->width;
    uint32_t parts = 1;
    *time_p = UINT64_MAX;
    for (uint64_t n = 1; n == 1 || (n <= most && units * (n - 1) < IDEFT_PART_ROUNDS * (uint64_t)machine->width); n++) {
        const uint64_t rounds = (units * n + machine->width - 1) / machine->width;
        const uint64_t part = ((cost + n - 1) / n + tile - 1) / tile * tile;
        const uint64_t time = rounds * (part + machine->item_cost) + (n > 1 ? machine->merge_cost + n * a_part : 0);
        if (time < *time_p) {
            *time_p = time;
            parts = (uint32_t)n;
        }
    }
    return parts;
}

/* The same for any machine, when there are `tiles` tiles. */
static uint32_t parts_of(const cutter_t *c, uint64_t cost, uint32_t tiles)
{
    const ideft_machine_t *machine = &c->ctx->machine;
    const uint64_t units = (uint64_t)tiles * c->ctx->geom.Hkv;
    uint64_t time;
    if (machine->item_cost != 0)
        return parts_in_rounds(c, cost, units, &time);
    const uint64_t by_width = (machine->width + units / 2) / units, by_cost = cost / machine->min_cost;
    const uint64_t parts = by_cost < by_width ? by_cost : by_width;
    return parts == 0 ? 1 : (uint32_t)parts;
}

/* Put the listed visits into items of about `target` cost each. */
static void emit_even(cutter_t *c, const uint32_t *list, uint32_t n, uint64_t target)
{
    for (uint32_t i = 0; i < n && !c->failed; i++) {
        const ideft_visit_t *v = &c->plan->visit[list[i]];
        const uint64_t cost = token_cost(c, v);
        for (uint32_t from = 0, to; from < v->n; from = to) {
            const uint64_t fit = c->cost < target ? (target - c->cost + cost - 1) / cost : 1;
            /* cuts at whole vector tiles of the node; no slivers */
            const uint64_t end = (from + fit + 63) / 64 * 64;
            to = end + 32 >= v->n ? v->n : (uint32_t)end;
            emit(c, list[i], from, to);
            c->cost += cost * (to - from);
            if (c->cost >= target)
                close_item(c);
        }
    }
    close_item(c);
}

static uint64_t cost_of(const cutter_t *c, const uint32_t *list, uint32_t n)
{
    uint64_t cost = 0;
    for (uint32_t i = 0; i < n; i++)
        cost += token_cost(c, &c->plan->visit[list[i]]) * c->plan->visit[list[i]].n;
    return cost;
}

/* Query rows of a tile. */
static uint32_t tile_rows(const cutter_t *c)
{
    return ideft_max(1, c->ctx->machine.tile_rows / c->ctx->geom.G);
}

/* Do tiles fill the machine well as they are? Depends on their number alone, so that plans whose
 * leaves grow keep their cut. */
static bool fills(const cutter_t *c, uint32_t tiles)
{
    const ideft_machine_t *machine = &c->ctx->machine;
    const uint64_t units = (uint64_t)tiles * c->ctx->geom.Hkv;
    if (machine->item_cost == 0)
        return parts_of(c, UINT64_MAX, tiles) == 1;
    const uint64_t rounds = (units + machine->width - 1) / machine->width;
    return units * 5 >= rounds * machine->width * 4;
}

/* SEQUENCE: every node with rows by itself, its path read for it alone, cut evenly where there are
 * too few of them to fill the machine (flash-decoding). */
static void cut_sequence(cutter_t *c, uint32_t *list)
{
    const ideft_plan_t *plan = c->plan;
    const uint32_t step = tile_rows(c);
    uint32_t tiles = 0;
    c->sequence = true;
    for (uint32_t i = 0; i < plan->n_visit; i++)
        tiles += (plan->visit[i].n_self + step - 1) / step;
    for (uint32_t i = 0; i < plan->n_visit && !c->failed; i++) {
        const uint32_t begin = plan->visit[i].row_begin, end = begin + plan->visit[i].n_self;
        for (uint32_t r = begin; r < end && !c->failed; r += step) {
            c->row_begin = r;
            c->row_end = ideft_min(end, r + step);
            const uint32_t n = path_of(plan, i, list);
            const uint64_t cost = cost_of(c, list, n);
            const uint32_t parts = parts_of(c, cost, tiles);
            emit_even(c, list, n, (cost + parts - 1) / parts);
        }
    }
}

/* A visit, whole, into the open item, which has the tile's rows and room for two more segs. The
 * short way of emit(): a large plan is mostly this. */
static inline void put_whole(cutter_t *c, uint32_t visit)
{
    ideft_plan_t *plan = c->plan;
    ideft_visit_t *v = &plan->visit[visit];
    if (v->slot == IDEFT_NONE || c->ctx->geom.max_window != 0) {
        emit(c, visit, 0, v->n);
    } else if (v->n > 0) {
        const uint32_t begin = ideft_max(v->row_begin, c->row_begin);
        const uint32_t end = ideft_min(v->row_end, c->row_end);
        plan->seg[plan->n_seg++] = (ideft_seg_t){ v->slot, v->n, v->start, begin, end };
        if (v->n_self == 1 && v->row_end - v->row_begin == 1) {
            v->last_seg = plan->n_seg - 1;
            plan->seg[plan->n_seg++] = (ideft_seg_t){ 0, 0, 0, begin, end };
        }
    }
    c->cost += token_cost(c, v) * v->n;
}

/* Visits of the tile: those met before that go on into it, to the front of `list`. */
static uint32_t carried(const cutter_t *c, uint32_t next, uint32_t *list)
{
    uint32_t n = 0;
    const uint32_t depth = next > 0 ? path_of(c->plan, next - 1, list) : 0;
    for (uint32_t i = 0; i < depth; i++)
        if (c->plan->visit[list[i]].row_end > c->row_begin)
            list[n++] = list[i];
    return n;
}

/* Time of the whole step with tiles of so many rows, by the cost model. Sets what a token costs. */
static uint64_t time_with(cutter_t *c, uint32_t rows)
{
    const ideft_plan_t *plan = c->plan;
    const ideft_machine_t *machine = &c->ctx->machine;
    const uint32_t tiles = (plan->n_row + rows - 1) / rows, even = (plan->n_row + tiles - 1) / tiles;
    uint64_t tokens = 0, time;
    for (uint32_t i = 0; i < plan->n_visit; i++) {
        const ideft_visit_t *v = &plan->visit[i];
        if (v->row_begin < v->row_end)
            tokens += (uint64_t)v->n * ((v->row_end - 1) / even - v->row_begin / even + 1);
    }
    c->least = 2 * even * c->ctx->geom.G <= machine->tile_rows ? machine->half_cost : machine->token_cost;
    parts_in_rounds(c, tokens * c->least / tiles, (uint64_t)tiles * c->ctx->geom.Hkv, &time);
    return time;
}

/* Rows of a tile where whole tiles do not fill a machine that takes units in rounds: many read shared
 * KV less often, few make more units that need no partials. */
static uint32_t fewer_rows(cutter_t *c, uint32_t most)
{
    uint64_t least = UINT64_MAX;
    uint32_t best = most;
    for (uint32_t rows = most; rows > 0; rows /= 2) {
        const uint64_t units = (uint64_t)(c->plan->n_row + rows - 1) / rows * c->ctx->geom.Hkv;
        if (rows < most && units > IDEFT_TILE_ROUNDS * (uint64_t)c->ctx->machine.width)
            break;
        const uint64_t time = time_with(c, rows);
        if (time < least) {
            least = time;
            best = rows;
        }
    }
    time_with(c, best); /* for what a token costs */
    return best;
}

/* AUTO: tiles of rows that adjoin in depth-first order, as many as fill the registers' reuse of a
 * pass over KV. A tile takes its whole paths as one item, which needs no partials; where there are
 * too few tiles to fill the machine, its KV is cut into parts of even cost. */
static void cut_auto(cutter_t *c, uint32_t *list)
{
    ideft_plan_t *plan = c->plan;
    const uint32_t most = tile_rows(c);
    const bool whole = fills(c, (plan->n_row + most - 1) / most);
    const uint32_t step = whole || c->ctx->machine.item_cost == 0 ? most : fewer_rows(c, most);
    const uint32_t tiles = (plan->n_row + step - 1) / step;
    /* even tiles: no last one with a single row */
    const uint32_t rows = (plan->n_row + tiles - 1) / tiles;
    uint32_t next = 0;
    c->spares = whole;
    plan->cut_stays = whole;
    for (uint32_t r = 0; r < plan->n_row && !c->failed; r += rows) {
        c->row_begin = r;
        c->row_end = ideft_min(plan->n_row, r + rows);
        uint32_t n = carried(c, next, list), end = next;
        while (end < plan->n_visit && plan->visit[end].row_begin < c->row_end)
            end++;
        if (whole) {
            open_item(c, c->row_begin, c->row_end);
            for (uint32_t i = 0; i < n + end - next && !c->failed; i++)
                if (room(c, &plan->seg_b, plan->n_seg + 2, sizeof(*plan->seg), plan->n_seg))
                    put_whole(c, i < n ? list[i] : next + i - n);
            close_item(c);
        } else {
            for (uint32_t i = next; i < end; i++)
                list[n++] = i;
            const uint64_t cost = cost_of(c, list, n);
            const uint32_t parts = parts_of(c, cost, tiles);
            emit_even(c, list, n, (cost + parts - 1) / parts);
        }
        next = end;
    }
}

/* ---- partials and order ----------------------------------------------------------------------- */

/* A row in one item alone gets its output from it; the others a partial from each of theirs.
 * part_begin is filled in three passes over one array: number of items a row, first place of its
 * list (at r + 1, so that filling the list moves it to where it belongs), list. */
static bool number_partials(cutter_t *c)
{
    ideft_plan_t *plan = c->plan;
    const uint32_t R = plan->n_row;
    if (!ideft_buf_reserve(plan->alloc, &plan->begin_b, 2 * (size_t)R + 2, sizeof(uint32_t), 0, "plan"))
        return false;
    uint32_t *begin = plan->part_begin = plan->begin_b.p, *count = begin + R + 1;
    memset(begin, 0, (2 * (size_t)R + 2) * sizeof(*begin));
    for (uint32_t i = 0; i < plan->n_item; i++) {
        count[plan->item[i].row_begin]++;
        count[plan->item[i].row_end]--;
    }
    uint32_t n = 0, total = 0;
    for (uint32_t r = 0; r < R; r++) {
        count[r] = n += count[r];
        begin[r + 1] = total;
        total += n > 1 ? n : 0;
    }
    if (!ideft_buf_reserve(plan->alloc, &plan->part_b, total, sizeof(uint32_t), 0, "plan"))
        return false;
    plan->part_list = plan->part_b.p;
    plan->n_part = 0;
    for (uint32_t i = 0; i < plan->n_item; i++) {
        ideft_item_t *item = &plan->item[i];
        bool shared = false;
        for (uint32_t r = item->row_begin; r < item->row_end; r++) {
            if (count[r] > 1) {
                plan->part_list[begin[r + 1]++] = plan->n_part + r - item->row_begin;
                shared = true;
            }
        }
        if (shared) {
            item->part = plan->n_part;
            plan->n_part += item->row_end - item->row_begin;
        }
    }
    return true;
}

/* Most expensive first, by powers of two: long items must not come last. */
static bool order_items(cutter_t *c)
{
    ideft_plan_t *plan = c->plan;
    uint32_t at[33] = { 0 };
    if (!ideft_buf_reserve(plan->alloc, &plan->order_b, plan->n_item, sizeof(uint32_t), 0, "plan"))
        return false;
    plan->order = plan->order_b.p;
    for (uint32_t i = 0; i < plan->n_item; i++)
        at[1 + (uint32_t)__builtin_clz(plan->item[i].cost | 1)]++;
    for (uint32_t b = 1; b < 33; b++)
        at[b] += at[b - 1];
    for (uint32_t i = 0; i < plan->n_item; i++)
        plan->order[at[__builtin_clz(plan->item[i].cost | 1)]++] = i;
    return true;
}

deft_status_t ideft_plan_cut(deft_ctx_t *ctx)
{
    ideft_plan_t *plan = &ctx->plan;
    cutter_t c = { .ctx = ctx, .plan = plan, .row_end = plan->n_row, .at_visit = IDEFT_NONE,
                    .least = ctx->machine.token_cost };
    const bool nodes = plan->flags != 0 || plan->split == DEFT_SPLIT_NODE ||
                       plan->split == DEFT_SPLIT_NODE_CHUNK;
    plan->n_seg = plan->n_item = 0;
    plan->cut_stays = c.spares = nodes;
    uint32_t *list = plan->list;
    if (nodes)
        cut_nodes(&c, plan->flags == 0 && plan->split == DEFT_SPLIT_NODE ? UINT32_MAX
                                                                        : ctx->chunk_tokens);
    else if (plan->split == DEFT_SPLIT_FLATTEN)
        cut_flatten(&c, ctx->chunk_tokens);
    else if (plan->split == DEFT_SPLIT_SEQUENCE)
        cut_sequence(&c, list);
    else
        cut_auto(&c, list);
    IDEFT_ASSERT(c.failed || plan->n_item > 0);
    if (c.failed || !number_partials(&c) || !order_items(&c))
        return ideft_fail(ctx, DEFT_ERR_NOMEM, "no memory for a plan");
    return DEFT_OK;
}
