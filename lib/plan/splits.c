/* SPDX-License-Identifier: MIT */
/* Splits: from visits (nodes in depth-first order, each with the interval of rows that see it) to
 * groups. All splits are one walk with other borders: which rows form a tile, and where the tile's
 * KV, taken in depth-first order, is cut. Within a tile a row meets the groups in the order of its
 * path, so the order of its partials is fixed by the tree. */
#include "config.h"

#include <string.h>

#include "planner.h"

typedef struct cutter {
    ideft_planner_t *planner;
    const ideft_machine_t *machine;
    ideft_sizes_t sizes;
    uint32_t row_begin, row_end; /* the tile */
    bool sequence;               /* a tile is rows of one node */
    bool spares;                 /* a free seg after each growing leaf, for patching */
    bool failed;                 /* out of memory */
    bool open;                   /* the last group takes more segs */
    uint64_t cost;               /* of the open group */
    uint32_t least;              /* cost of a token that a tile reads */
    /* where the last piece of a node with several runs ended, so that it is walked once */
    uint32_t at_visit, at_run, at_offset;
} cutter_t;

static bool segs_fit(cutter_t *c, size_t n)
{
    ideft_planner_t *planner = c->planner;
    const size_t want = planner->seg.n + n;
    if (want > planner->seg.cap && !IDEFT_VEC_ROOM(planner->host, &planner->seg, want + want / 2))
        c->failed = true;
    return !c->failed;
}

static void close_group(cutter_t *c)
{
    if (c->open) {
        ideft_group_t *group = &c->planner->group.at[c->planner->group.n - 1];
        group->seg_end = (uint32_t)c->planner->seg.n;
        IDEFT_ASSERT(c->failed ||
                     (group->seg_begin < group->seg_end && group->row_begin < group->row_end));
        group->cost = c->cost > UINT32_MAX ? UINT32_MAX : (uint32_t)c->cost;
    }
    c->open = false;
    c->cost = 0;
}

static void open_group(cutter_t *c, uint32_t row_begin, uint32_t row_end)
{
    ideft_planner_t *planner = c->planner;
    if (!c->open) {
        const uint32_t seg = (uint32_t)planner->seg.n;
        const size_t want = planner->group.n + 1;
        if (want > planner->group.cap &&
            !IDEFT_VEC_ROOM(planner->host, &planner->group, want + want / 2)) {
            c->failed = true;
            return;
        }
        planner->group.at[planner->group.n++] =
            (ideft_group_t){ seg, seg, row_begin, row_end, IDEFT_NONE, 0 };
        c->open = true;
        return;
    }
    ideft_group_t *group = &planner->group.at[planner->group.n - 1];
    group->row_begin = ideft_min(group->row_begin, row_begin);
    group->row_end = ideft_max(group->row_end, row_end);
}

static void push_seg(cutter_t *c, const ideft_seg_t *seg)
{
    if (segs_fit(c, 1))
        c->planner->seg.at[c->planner->seg.n++] = *seg;
}

/* The first row of the tile that sees the node's token at `offset`. The rows before it are rows of
 * the node itself, of earlier tokens; every row after it sees the token too, up to the end of the
 * node's interval. */
static uint32_t first_row(const cutter_t *c, const ideft_visit_t *v, uint32_t offset)
{
    const uint32_t pos = v->start + offset;
    const uint32_t own = pos <= v->self_pos ? 0 : ideft_min(pos - v->self_pos, v->n_self);
    return ideft_max(v->row_begin + own, c->row_begin);
}

/* Tokens of the visit that rows of the tile see. Its own rows stand on tokens that adjoin: where
 * the tile ends among them, nothing after its last row's token is seen. */
static uint32_t seen_tokens(const cutter_t *c, const ideft_visit_t *v)
{
    const uint32_t last = ideft_min(v->row_end, c->row_end) - 1;
    if (last >= v->row_begin + v->n_self)
        return v->n;
    return ideft_min(v->n, v->self_pos + (last - v->row_begin) + 1 - v->start);
}

/* The tokens of `whole`, `from` tokens into a node of several runs, run by run. */
static void emit_runs(cutter_t *c, uint32_t visit, uint32_t from, const ideft_seg_t *whole)
{
    const ideft_planner_t *planner = c->planner;
    const ideft_run_t *runs =
        ideft_runs_at(&ideft_node(planner->forest, planner->visit.at[visit].node)->runs);
    if (c->at_visit != visit || c->at_offset > from) {
        c->at_visit = visit;
        c->at_run = c->at_offset = 0;
    }
    uint32_t run = c->at_run, at = c->at_offset;
    while (at + runs[run].n <= from)
        at += runs[run++].n;
    c->at_run = run;
    c->at_offset = at;
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

/* Put tokens [from, to) of a visit into the open group. */
static void emit(cutter_t *c, uint32_t visit, uint32_t from, uint32_t to)
{
    const ideft_planner_t *planner = c->planner;
    ideft_visit_t *v = &planner->visit.at[visit];
    const uint32_t row_begin = first_row(c, v, from), row_end = ideft_min(v->row_end, c->row_end);
    const uint32_t window = planner->geometry->max_window;
    if (row_begin >= row_end || from >= to)
        return;
    /* the rows of a sequence tile are of one node, the first stands first */
    const uint32_t min_pos = c->sequence ? planner->row.at[row_begin].pos : v->min_pos;
    if (window != 0 && v->start + to - 1 + window <= min_pos)
        return; /* too far back for every row */
    if (window != 0 && c->sequence && v->start + from + window <= min_pos)
        from = min_pos - window + 1 - v->start;
    open_group(c, row_begin, row_end);
    const ideft_seg_t seg = { v->slot + from, to - from, v->start + from, row_begin, row_end };
    if (v->slot != IDEFT_NONE)
        push_seg(c, &seg);
    else
        emit_runs(c, visit, from, &seg);
    if (to == v->n && v->n_self == 1 && !c->failed) {
        v->last_seg = (uint32_t)planner->seg.n - 1;
        if (c->spares && v->row_end - v->row_begin == 1) {
            const ideft_seg_t spare = { 0, 0, v->start + to, row_begin, row_end };
            push_seg(c, &spare);
        }
    }
}

/* Cost of a token of the visit for the rows of the tile. */
static uint64_t token_cost(const cutter_t *c, const ideft_visit_t *v)
{
    const uint32_t rows = ideft_min(v->row_end, c->row_end) - ideft_max(v->row_begin, c->row_begin);
    return ideft_max(c->machine->row_cost * rows * c->sizes.G, c->least);
}

/* ---- the splits ------------------------------------------------------------------------------ */

/* NODE: a group a node. NODE_CHUNK, and every invariant step: long nodes cut at multiples of chunk
 * tokens from their start. */
static void cut_nodes(cutter_t *c, uint32_t chunk)
{
    for (uint32_t i = 0; i < c->planner->visit.n && !c->failed; i++) {
        const ideft_visit_t *v = &c->planner->visit.at[i];
        const uint64_t cost = token_cost(c, v);
        for (uint32_t from = 0, to; from < v->n; from = to) {
            to = v->n - from > chunk ? from + chunk : v->n;
            emit(c, i, from, to);
            c->cost = cost * (to - from);
            close_group(c);
        }
    }
}

/* FLATTEN: the KV of all trees in depth-first order in even chunks of at most chunk tokens. */
static void cut_flatten(cutter_t *c, uint32_t chunk)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < c->planner->visit.n; i++)
        total += c->planner->visit.at[i].n;
    const uint64_t n = (total + chunk - 1) / chunk;
    const uint32_t even = n == 0 ? 1 : (uint32_t)((total + n - 1) / n);
    uint32_t left = even;
    for (uint32_t i = 0; i < c->planner->visit.n && !c->failed; i++) {
        const ideft_visit_t *v = &c->planner->visit.at[i];
        const uint64_t cost = token_cost(c, v);
        for (uint32_t from = 0; from < v->n;) {
            const uint32_t take = ideft_min(left, v->n - from);
            emit(c, i, from, from + take);
            c->cost += cost * take;
            from += take;
            left -= take;
            if (left == 0) {
                close_group(c);
                left = even;
            }
        }
    }
    close_group(c);
}

/* Visits from a root down to `visit`. Returns how many. */
static uint32_t path_of(const ideft_planner_t *planner, uint32_t visit, uint32_t *path)
{
    uint32_t depth = 0, at;
    for (at = visit; at != IDEFT_NONE; at = planner->visit.at[at].parent)
        depth++;
    uint32_t i = depth;
    for (at = visit; at != IDEFT_NONE; at = planner->visit.at[at].parent)
        path[--i] = at;
    return depth;
}

/* True if at most half of the tile's rows see the visit. */
static bool few_see(const cutter_t *c, const ideft_visit_t *v)
{
    const uint32_t rows = ideft_min(v->row_end, c->row_end) - ideft_max(v->row_begin, c->row_begin);
    return 2 * rows <= c->row_end - c->row_begin;
}

static uint64_t cost_of(const cutter_t *c, const uint32_t *list, uint32_t n, bool few_alone)
{
    uint64_t cost = 0;
    for (uint32_t i = 0; i < n; i++) {
        const ideft_visit_t *v = &c->planner->visit.at[list[i]];
        if (!few_alone || few_see(c, v))
            cost += token_cost(c, v) * seen_tokens(c, v);
    }
    return cost;
}

/* Put the listed visits, of so much cost in all, into groups of about a part each.
 *
 * Where units go to whoever is free, the last ones should be small. Visits that few of the rows
 * see can be cut finer for nothing, since a cut between two leaves adds no partial. Where there are
 * enough of them to end with, the others are cut less often. */
static void emit_even(cutter_t *c, const uint32_t *list, uint32_t n, uint64_t cost_all,
                      uint32_t parts)
{
    const uint64_t even = (cost_all + parts - 1) / parts, least = c->machine->min_cost / 2;
    uint64_t part = even, fine = even;
    if (parts > 1 && !ideft_in_rounds(c->machine)) {
        fine = even / 4 > least ? even / 4 : least;
        part += cost_of(c, list, n, true) >= fine ? even / 4 : 0;
    }
    for (uint32_t i = 0; i < n && !c->failed; i++) {
        const ideft_visit_t *v = &c->planner->visit.at[list[i]];
        const uint64_t cost = token_cost(c, v), target = few_see(c, v) ? fine : part;
        const uint32_t n_seen = seen_tokens(c, v);
        for (uint32_t from = 0, to; from < n_seen; from = to) {
            const uint64_t fit = c->cost < target ? (target - c->cost + cost - 1) / cost : 1;
            /* cuts at whole tiles of the node; no slivers */
            const uint64_t tile = IDEFT_TILE_TOKENS, end = (from + fit + tile - 1) / tile * tile;
            to = end + tile / 2 >= n_seen ? n_seen : (uint32_t)end;
            emit(c, list[i], from, to);
            c->cost += cost * (to - from);
            if (c->cost >= target)
                close_group(c);
        }
    }
    close_group(c);
}

/* SEQUENCE: every node with rows by itself, its path read for it alone, cut evenly where there are
 * too few of them to fill the machine (flash-decoding). */
static void cut_sequence(cutter_t *c, uint32_t *list)
{
    const ideft_planner_t *planner = c->planner;
    const uint32_t step = ideft_cost_tile_rows(c->machine, &c->sizes);
    uint32_t tiles = 0;
    c->sequence = true;
    for (uint32_t i = 0; i < planner->visit.n; i++)
        tiles += (planner->visit.at[i].n_self + step - 1) / step;
    for (uint32_t i = 0; i < planner->visit.n && !c->failed; i++) {
        const uint32_t begin = planner->visit.at[i].row_begin,
                       end = begin + planner->visit.at[i].n_self;
        for (uint32_t r = begin; r < end && !c->failed; r += step) {
            c->row_begin = r;
            c->row_end = ideft_min(end, r + step);
            const uint32_t n = path_of(planner, i, list);
            const uint64_t cost = cost_of(c, list, n, false);
            const uint32_t parts = ideft_cost_parts(c->machine, &c->sizes, cost, tiles, c->least);
            emit_even(c, list, n, cost, parts);
        }
    }
}

/* A visit, whole, into the open group, which has the tile's rows and room for two more segs. The
 * short way of emit(): a large plan is mostly this. */
static inline void put_whole(cutter_t *c, uint32_t visit)
{
    ideft_planner_t *planner = c->planner;
    ideft_visit_t *v = &planner->visit.at[visit];
    const uint32_t n = seen_tokens(c, v);
    if (v->slot == IDEFT_NONE || planner->geometry->max_window != 0) {
        emit(c, visit, 0, n);
    } else if (n > 0) {
        const uint32_t begin = ideft_max(v->row_begin, c->row_begin);
        const uint32_t end = ideft_min(v->row_end, c->row_end);
        ideft_seg_t *seg = &planner->seg.at[planner->seg.n];
        seg[0] = (ideft_seg_t){ v->slot, n, v->start, begin, end };
        planner->seg.n++;
        if (v->n_self == 1 && v->row_end - v->row_begin == 1) {
            v->last_seg = (uint32_t)planner->seg.n - 1;
            seg[1] = (ideft_seg_t){ 0, 0, 0, begin, end };
            planner->seg.n++;
        }
    }
    c->cost += token_cost(c, v) * n;
}

/* Visits of the tile: those met before that go on into it, to the front of `list`. */
static uint32_t carried(const cutter_t *c, uint32_t next, uint32_t *list)
{
    uint32_t n = 0;
    const uint32_t depth = next > 0 ? path_of(c->planner, next - 1, list) : 0;
    for (uint32_t i = 0; i < depth; i++)
        if (c->planner->visit.at[list[i]].row_end > c->row_begin)
            list[n++] = list[i];
    return n;
}

/* Tokens that tiles of so many rows read in all. */
static uint64_t tokens_read(const ideft_planner_t *planner, uint32_t rows)
{
    uint64_t tokens = 0;
    for (size_t i = 0; i < planner->visit.n; i++) {
        const ideft_visit_t *v = &planner->visit.at[i];
        if (v->row_begin < v->row_end)
            tokens += (uint64_t)v->n * ((v->row_end - 1) / rows - v->row_begin / rows + 1);
    }
    return tokens;
}

/* Tiles of even size: no last one with a single row. */
static uint32_t even_rows(uint32_t n_rows, uint32_t rows)
{
    const uint32_t tiles = (n_rows + rows - 1) / rows;
    return (n_rows + tiles - 1) / tiles;
}

/* Rows of a tile where whole tiles do not fill a machine that takes units in rounds: many read
 * shared KV less often, few make more units that need no partials. */
static uint32_t fewer_rows(const cutter_t *c, uint32_t most)
{
    const uint32_t n_rows = c->sizes.n_rows;
    uint64_t least = UINT64_MAX;
    uint32_t best = most;
    for (uint32_t rows = most; rows > 0; rows /= 2) {
        const uint64_t units = (uint64_t)((n_rows + rows - 1) / rows) * c->sizes.Hkv;
        if (rows < most && units > IDEFT_TILE_ROUNDS * (uint64_t)c->machine->width)
            break;
        const uint64_t tokens = tokens_read(c->planner, even_rows(n_rows, rows));
        const uint64_t time = ideft_cost_time(c->machine, &c->sizes, rows, tokens);
        if (time < least) {
            least = time;
            best = rows;
        }
    }
    return best;
}

/* AUTO: tiles of rows that adjoin in depth-first order, each of as many rows as can share a pass
 * over KV. A tile takes its whole paths as one group, which needs no partials; where there are
 * too few tiles to fill the machine, its KV is cut into parts of even cost. */
static void cut_auto(cutter_t *c, uint32_t *list)
{
    ideft_planner_t *planner = c->planner;
    const uint32_t n_rows = c->sizes.n_rows, most = ideft_cost_tile_rows(c->machine, &c->sizes);
    const bool whole = ideft_cost_fills(c->machine, &c->sizes, (n_rows + most - 1) / most);
    const bool fewer = !whole && ideft_in_rounds(c->machine);
    const uint32_t step = fewer ? fewer_rows(c, most) : most;
    const uint32_t tiles = (n_rows + step - 1) / step, rows = even_rows(n_rows, step);
    uint32_t next = 0;
    c->spares = whole;
    planner->cut_stays = whole;
    if (fewer)
        c->least = ideft_cost_token(c->machine, &c->sizes, rows);
    for (uint32_t r = 0; r < n_rows && !c->failed; r += rows) {
        c->row_begin = r;
        c->row_end = ideft_min(n_rows, r + rows);
        uint32_t n = carried(c, next, list), end = next;
        while (end < planner->visit.n && planner->visit.at[end].row_begin < c->row_end)
            end++;
        if (whole) {
            open_group(c, c->row_begin, c->row_end);
            for (uint32_t i = 0; i < n + end - next && !c->failed; i++)
                if (segs_fit(c, 2))
                    put_whole(c, i < n ? list[i] : next + i - n);
            close_group(c);
        } else {
            for (uint32_t i = next; i < end; i++)
                list[n++] = i;
            const uint64_t cost = cost_of(c, list, n, false);
            const uint32_t parts = ideft_cost_parts(c->machine, &c->sizes, cost, tiles, c->least);
            emit_even(c, list, n, cost, parts);
        }
        next = end;
    }
}

/* ---- partials and order ---------------------------------------------------------------------- */

/* A row in one group alone gets its output from it; the others get a partial from each of theirs.
 *
 * Rows of a group are an interval, so counting is a sum of differences: +1 where a group begins, -1
 * where it ends. part_begin has room for two arrays: the counts lie in its second half; in the
 * first, entry r + 1 starts as the first place of row r's list and moves on with every partial that
 * is entered, so that it ends as the first place of row r + 1's:
 *
 *     rows in 1, 3, 2 groups:   places   [0 | 0 0 3]   then filled   [0 | 0 3 5] */
static deft_status_t number_partials(ideft_planner_t *planner)
{
    const size_t R = planner->row.n;
    planner->part_begin.n = planner->part_list.n = 0;
    if (!IDEFT_VEC_ROOM(planner->host, &planner->part_begin, 2 * R + 2))
        return ideft_plan_nomem(planner);
    uint32_t *begin = planner->part_begin.at, *count = begin + R + 1;
    memset(begin, 0, (2 * R + 2) * sizeof(*begin));
    for (size_t i = 0; i < planner->group.n; i++) {
        count[planner->group.at[i].row_begin]++;
        count[planner->group.at[i].row_end]--;
    }
    uint32_t n = 0;
    uint64_t total = 0, all = 0;
    for (size_t r = 0; r < R; r++) {
        n += count[r];
        count[r] = n;
        begin[r + 1] = (uint32_t)total;
        total += n > 1 ? n : 0;
        all += n;
    }
    if (all > UINT32_MAX) /* partials are numbered in 32 bits, a group's all together */
        return ideft_fail(planner->host, DEFT_ERR_LIMIT,
                          "%llu partials, more than 2^32: fewer rows a step, or larger chunks",
                          (unsigned long long)all);
    if (!IDEFT_VEC_ROOM(planner->host, &planner->part_list, total))
        return ideft_plan_nomem(planner);
    planner->plan.n_parts = 0;
    for (size_t i = 0; i < planner->group.n; i++) {
        ideft_group_t *group = &planner->group.at[i];
        bool shared = false;
        for (uint32_t r = group->row_begin; r < group->row_end; r++) {
            if (count[r] > 1) {
                const uint32_t place = begin[r + 1]++;
                planner->part_list.at[place] = planner->plan.n_parts + r - group->row_begin;
                shared = true;
            }
        }
        if (shared) {
            group->part = planner->plan.n_parts;
            planner->plan.n_parts += group->row_end - group->row_begin;
        }
    }
    return DEFT_OK;
}

/* Most expensive first, by powers of two: long groups must not come last. */
static bool order_groups(ideft_planner_t *planner)
{
    uint32_t at[33] = { 0 };
    planner->order.n = 0;
    if (!IDEFT_VEC_ROOM(planner->host, &planner->order, planner->group.n))
        return false;
    for (size_t i = 0; i < planner->group.n; i++)
        at[1 + (uint32_t)__builtin_clz(planner->group.at[i].cost | 1)]++;
    for (uint32_t b = 1; b < 33; b++)
        at[b] += at[b - 1];
    for (uint32_t i = 0; i < planner->group.n; i++)
        planner->order.at[at[__builtin_clz(planner->group.at[i].cost | 1)]++] = i;
    return true;
}

deft_status_t ideft_plan_cut(ideft_planner_t *planner)
{
    const ideft_geometry_t *g = planner->geometry;
    const uint32_t n_rows = (uint32_t)planner->row.n;
    cutter_t c = { .planner = planner,
                   .machine = &planner->machine,
                   .sizes = { n_rows, g->H, g->Hkv, g->G },
                   .row_end = n_rows,
                   .at_visit = IDEFT_NONE,
                   .least = planner->machine.token_cost };
    const bool chunks = planner->plan.invariant || planner->split == DEFT_SPLIT_NODE_CHUNK;
    const bool nodes = chunks || planner->split == DEFT_SPLIT_NODE;
    planner->seg.n = planner->group.n = 0;
    planner->cut_stays = c.spares = nodes;
    if (nodes)
        cut_nodes(&c, chunks ? planner->chunk_tokens : UINT32_MAX);
    else if (planner->split == DEFT_SPLIT_FLATTEN)
        cut_flatten(&c, planner->chunk_tokens);
    else if (planner->split == DEFT_SPLIT_SEQUENCE)
        cut_sequence(&c, planner->list.at);
    else
        cut_auto(&c, planner->list.at);
    IDEFT_ASSERT(c.failed || planner->group.n > 0);
    if (c.failed)
        return ideft_plan_nomem(planner);
    IDEFT_TRY(number_partials(planner));
    return order_groups(planner) ? DEFT_OK : ideft_plan_nomem(planner);
}
