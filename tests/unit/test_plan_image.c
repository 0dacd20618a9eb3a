/* SPDX-License-Identifier: MIT */
/* The image of a plan for the GPU, read on the host as the kernels read it: every row must meet
 * every token that it sees exactly once, in tiles that are formed as kernels.h says. Needs no
 * device. */
#include "config.h"

#include "problem.h"
#include "suite.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "context_int.h"
#include "plan_image.h"

typedef struct reader {
    const ideft_plan_t *plan;
    const ideft_geometry_t *g;
    const unsigned char *image;
    size_t max_rows;
    uint8_t *seen; /* [n_rows][pool slots] how often */
    uint32_t n_slots;
    uint32_t *row_of; /* by token */
} reader_t;

/* Do the warpgroups take tiles by turns? */
static bool by_turns(const ideft_cuda_record_t *rec)
{
    return rec->share % 4 == IDEFT_SHARE_TILES || rec->share % 4 == IDEFT_SHARE_TOKENS;
}

/* Query rows [*from, *to) of a record that a warpgroup has matrix rows of. */
static void group_rows(const reader_t *rd, const ideft_cuda_record_t *rec, uint32_t w,
                       uint32_t *from, uint32_t *to)
{
    const uint32_t G = rd->g->G, n = rec->n_rows;

    *from = by_turns(rec) ? 0 : 64 * w / G;
    *to = by_turns(rec) ? n : (64 * (w + 1) + G - 1) / G;
    *from = *from < n ? *from : n;
    *to = *to < n ? *to : n;
}

static bool sees(const ideft_cuda_copy_t *c, uint32_t column, uint32_t row)
{
    const uint32_t later = column > c->edge ? column - c->edge : 0;

    return row >= c->lo + later && row < c->hi;
}

static void read_tile(const reader_t *rd, const ideft_cuda_record_t *rec,
                      const ideft_cuda_copy_t *c, uint32_t tile)
{
    const ideft_cuda_row_t *rows = (const ideft_cuda_row_t *)(rec + 1);
    uint32_t used = 0;
    bool dense = true;

    T_CHECK(c->count <= IDEFT_TILE_COPIES, "%u copies", c->count);
    for (uint32_t i = 0; i < c->count; i++) {
        dense &= c[i].slot == c->slot + used && ((c[i].at ^ c->at) & IDEFT_STREAM) == 0;
        T_CHECK((c[i].at & ~IDEFT_STREAM) == used && (c[i].n > 0 || c->used == 0),
                "copy %u begins at %u, not %u", i, c[i].at, used);
        T_CHECK(i == 0 || c[i].count == 0, "a tile begins inside another");
        used += c[i].n;
    }
    T_CHECK(used == c->used && used <= IDEFT_TILE, "%u columns of %u", used, c->used);
    for (uint32_t i = 0; i < c->count; i++) {
        T_CHECK(used == 0 || dense == ((c[i].flags & IDEFT_DENSE) != 0),
                "copy %u of a tile whose slots%s adjoin", i, dense ? "" : " do not");
    }
    for (uint32_t w = 0; w < 2; w++) {
        uint32_t from, to;
        bool any = false, all = c->used == IDEFT_TILE;

        group_rows(rd, rec, w, &from, &to);
        for (uint32_t i = 0; i < c->count; i++) {
            for (uint32_t x = 0; x < c[i].n; x++) {
                for (uint32_t r = from; r < to; r++) {
                    any |= sees(&c[i], x, r);
                    all &= sees(&c[i], x, r);
                }
            }
        }
        if (by_turns(rec)) {
            T_CHECK(((c->flags & IDEFT_MINE << w) != 0) == (tile % 2 == w) || c->used == 0,
                    "whose is tile %u", tile);
        } else {
            T_CHECK(!any || (c->flags & IDEFT_MINE << w) != 0, "warpgroup %u skips what it sees",
                    w);
        }
        T_CHECK(all || !(c->flags & IDEFT_MINE << w) || (c->flags & IDEFT_MASK << w),
                "tile %u has no mask", tile);
    }
    for (uint32_t i = 0; i < c->count; i++) {
        for (uint32_t x = 0; x < c[i].n; x++) {
            for (uint32_t r = 0; r < rec->n_rows; r++) {
                const uint32_t row = rd->row_of[rows[r].token & ~IDEFT_DIRECT];

                T_CHECK(rows[r].pos == rd->plan->row[row].pos, "position of a row");
                if (sees(&c[i], x, r)) {
                    T_CHECK(c[i].pos + x <= rows[r].pos, "row %u sees a later token", row);
                    rd->seen[(size_t)row * rd->n_slots + c[i].slot + x]++;
                }
            }
        }
    }
}

static void read_records(const reader_t *rd, uint32_t *n_direct, uint8_t *parts)
{
    const ideft_cuda_head_t *head = (const ideft_cuda_head_t *)rd->image;
    const unsigned char *at = rd->image + ideft_image_front_bytes(rd->max_rows);
    const ideft_cuda_copy_t *copies = (const ideft_cuda_copy_t *)(rd->image + head->copies);
    const uint32_t bytes = ideft_image_record_bytes(rd->g);

    for (uint32_t i = 0; i < head->n_records; i++, at += bytes) {
        const ideft_cuda_record_t *rec = (const ideft_cuda_record_t *)at;
        const ideft_cuda_row_t *rows = (const ideft_cuda_row_t *)(rec + 1);
        const ideft_cuda_copy_t *c = &copies[rec->copy];
        const ideft_cuda_copy_t *own = (const ideft_cuda_copy_t *)(at + bytes) - IDEFT_INLINE;
        uint32_t tile = 0, at_last[2] = { 0, 0 };
        bool has[2] = { false, false }, final[2] = { false, false };

        T_CHECK(rec->n_rows > 0 && rec->n_rows * rd->g->G <= IDEFT_ROWS, "%u rows", rec->n_rows);
        T_CHECK(by_turns(rec) == (rec->n_rows * rd->g->G <= 64),
                "how a record of %u rows is shared", rec->n_rows);
        T_CHECK((rec->share % 4 == IDEFT_SHARE_TOKENS) ==
                    (rec->n_rows * rd->g->G <= IDEFT_NARROW_ROWS && rd->g->D <= IDEFT_NARROW_DIM &&
                     !rd->plan->invariant),
                "a record of %u rows, invariant %d", rec->n_rows, rd->plan->invariant);
        T_CHECK(c->count > IDEFT_INLINE || memcmp(own, c, c->count * sizeof(*c)) == 0,
                "the first tile is not inline");
        for (;; c += c->count, tile++) {
            T_CHECK(c->count > 0, "a tile without copies");
            read_tile(rd, rec, c, tile);
            for (uint32_t w = 0; w < 2; w++) {
                if (c->flags & IDEFT_MINE << w) {
                    T_CHECK(!has[w] || tile - at_last[w] <= 2, "a warpgroup waits for %u tiles",
                            tile - at_last[w]);
                    T_CHECK(!final[w], "a tile behind the final one");
                    final[w] = (c->flags & IDEFT_FINAL << w) != 0;
                    has[w] = true;
                    at_last[w] = tile;
                }
            }
            if (c->flags & IDEFT_LAST) {
                break;
            }
        }
        T_CHECK(rec->share / 4 == (by_turns(rec) ? tile + 1 : 0), "%u tiles by turns, not %u",
                rec->share / 4, tile + 1);
        T_CHECK(has[0] == final[0] && has[1] == final[1], "no tile is the final one");
        for (uint32_t r = 0; r < rec->n_rows; r++) {
            if (rows[r].token & IDEFT_DIRECT) {
                ++*n_direct;
            } else {
                T_CHECK(rec->part + r < rd->plan->n_parts && parts[rec->part + r]++ == 0,
                        "a partial is written twice");
            }
        }
    }
}

/* Row r against its path, from the tree. */
static void check_row(const ideft_forest_t *forest, const reader_t *rd, uint32_t r)
{
    const ideft_row_t *row = &rd->plan->row[r];
    const uint32_t window = rd->g->max_window;
    uint32_t pos = row->pos;
    uint8_t *seen = rd->seen + (size_t)r * rd->n_slots;

    for (uint32_t at = row->node; at != 0; at = ideft_node(forest, at)->parent) {
        const ideft_node_t *node = ideft_node(forest, at);
        const ideft_run_t *runs = ideft_runs_at(&node->runs);
        uint32_t p = node->start + node->gone;

        for (uint32_t i = 0; i < ideft_runs_count(&node->runs); i++) {
            for (uint32_t x = 0; x < runs[i].n; x++, p++) {
                if (p <= pos) {
                    T_CHECK(seen[runs[i].slot + x] == 1 || (window != 0 && p + window <= row->pos),
                            "row %u at %u meets position %u %u times", r, row->pos, p,
                            seen[runs[i].slot + x]);
                    seen[runs[i].slot + x] = 0;
                }
            }
        }
    }
    for (uint32_t s = 0; s < rd->n_slots; s++) {
        T_CHECK(seen[s] == 0, "row %u meets a slot that is not on its path", r);
    }
}

static size_t n_images, n_bounds;

/* Runs of all nodes of the plan. */
static size_t n_runs(const deft_ctx_t *ctx)
{
    size_t n = 0;

    for (size_t i = 0; i < ctx->planner.visit.n; i++) {
        n += ideft_runs_count(&ideft_node(&ctx->forest, ctx->planner.visit.at[i].node)->runs);
    }
    return n;
}

static void on_step(void *arg, const world_t *w, const sstep_t *ss, size_t step)
{
    deft_ctx_t *ctx = w->ctx;
    const ideft_plan_t *plan = &ctx->planner.plan;
    const uint32_t machine = *(const uint32_t *)arg;
    uint32_t n_direct = 0, want_direct = 0;

    (void)step;
    reader_t rd = { .plan = plan,
                    .g = &ctx->geometry,
                    .n_slots = (uint32_t)ctx->facts.pool_tokens };
    rd.max_rows = ss->n + 3;
    const size_t bound = ideft_image_bound(plan, rd.g, rd.max_rows);
    unsigned char *image = aligned_alloc(64, (bound + 127) & ~(size_t)63);
    memset(image, 0xee, (bound + 127) & ~(size_t)63);
    const size_t bytes = ideft_image_build(plan, rd.g, rd.max_rows, image);
    T_CHECK(bytes <= bound && image[bound] == 0xee, "%zu bytes, at most %zu announced", bytes,
            bound);
    if (ctx->planner.split == DEFT_SPLIT_AUTO && !plan->invariant &&
        ctx->planner.machine.item_cost != 0) {
        size_t any_bytes, any_parts;
        ideft_image_bound_of_any(rd.g, ctx->planner.machine.width, rd.n_slots, rd.max_rows,
                                 n_runs(ctx), &any_bytes, &any_parts);
        T_CHECK(bound <= any_bytes && plan->n_parts <= any_parts,
                "%zu bytes, %u partials; reserved: %zu, %zu", bound, plan->n_parts, any_bytes,
                any_parts);
        n_bounds++;
    }
    rd.image = image;
    rd.seen = t_alloc(ss->n * rd.n_slots);
    rd.row_of = t_alloc(ss->n * sizeof(*rd.row_of));
    for (uint32_t r = 0; r < plan->n_rows; r++) {
        rd.row_of[plan->row[r].token] = r;
        want_direct += plan->part_begin[r] == plan->part_begin[r + 1];
    }
    uint8_t *parts = t_alloc(plan->n_parts + 1);
    read_records(&rd, &n_direct, parts);
    T_CHECK(n_direct == want_direct, "%u rows go straight to the output, not %u", n_direct,
            want_direct);
    for (uint32_t r = 0; r < plan->n_rows; r++) {
        check_row(&ctx->forest, &rd, r);
    }
    free(parts);
    free(rd.row_of);
    free(rd.seen);
    free(image);
    n_images++;
    if (machine != 0) { /* the next plans as for a GPU of so many multiprocessors */
        ctx->planner.machine = (ideft_machine_t){ .tile_rows = IDEFT_ROWS,
                                                  .width = machine,
                                                  .row_cost = 0,
                                                  .token_cost = 4,
                                                  .min_cost = 192,
                                                  .item_cost = 256,
                                                  .merge_cost = 512,
                                                  .part_cost = 16,
                                                  .half_cost = 3 };
        ctx->planner.ended = false; /* nothing is patched from the last one */
    }
}

START_TEST(test_image_every_row_meets_its_path_once)
{
    static const uint32_t machines[] = { 0, 1, 8, 132 };
    const size_t n = t_count(400);
    const uint64_t seed = t_seed(31);

    for (size_t i = 0; i < n; i++) {
        uint32_t machine = machines[i % 4];
        problem_t p;
        variant_t v = { .device = DEFT_DEVICE_CPU,
                        .isa = DEFT_ISA_SCALAR,
                        .split = problem_splits[i / 4 % 5],
                        .threads = 1,
                        .chunk = i % 3 == 0 ? 0 : 48,
                        .flags = i % 7 == 6 ? DEFT_STEP_INVARIANT : 0 };

        problem_make(&p, seed, i, DEFT_F16);
        if (p.n_nodes > 200) {
            continue;
        }
        p.n_layers = 1;
        p.head_dim = 64;
        t_note(
            "test_plan_image %zu seed %#llx: ratio %u, shape %d, %zu nodes, window %u, machine %u, "
            "split %s, chunk %u, flags %llu",
            i, (unsigned long long)seed, p.ratio, p.shape, p.n_nodes, p.window, machine,
            t_split_name(v.split), v.chunk, (unsigned long long)v.flags);
        problem_run(&p, &v, on_step, &machine);
    }
    printf("%zu images, %zu within the bound of any plan\n", n_images, n_bounds);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = { test_image_every_row_meets_its_path_once };

    return suite_run("plan_image", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
