/* SPDX-License-Identifier: MIT */
/* What a plan moves: deft_step_stats(). */
#include "config.h"

#include "planner.h"

typedef struct tokens {
    uint64_t unique;  /* of KV that some row sees, each node once */
    uint64_t logical; /* over the rows, each its own path */
    uint64_t read;    /* over the groups */
    uint64_t pairs;   /* rows x tokens of their tree */
} tokens_t;

/* Tokens that the visit's own rows see on their paths, through a window. Cost: the nodes in it, a
 * row. */
static uint64_t seen_through(const ideft_planner_t *planner, uint32_t visit, uint32_t window)
{
    const ideft_visit_t *own = &planner->visit.at[visit];
    uint64_t seen = 0;
    for (uint32_t pos = own->self_pos; pos < own->self_pos + own->n_self; pos++) {
        const uint32_t first = pos >= window ? pos - window + 1 : 0;
        for (uint32_t at = visit; at != IDEFT_NONE; at = planner->visit.at[at].parent) {
            const ideft_visit_t *v = &planner->visit.at[at];
            const uint32_t lo = ideft_max(v->start, first),
                           hi = ideft_min(v->start + v->n, pos + 1);
            seen += hi > lo ? hi - lo : 0;
            if (v->start <= first)
                break;
        }
    }
    return seen;
}

/* Of a visit, tokens times the rows that see them: all for rows below, up to its own position for
 * each of its own rows. */
static uint64_t seen_by_all(const ideft_visit_t *v)
{
    const uint64_t below = v->row_end - v->row_begin - v->n_self, n = v->n_self;
    const uint64_t before = v->n - n; /* tokens that every own row sees */
    return below * v->n + n * before + n * (n + 1) / 2;
}

static tokens_t count_tokens(const ideft_planner_t *planner)
{
    const uint32_t window = planner->geometry->max_window;
    tokens_t t = { 0, 0, 0, 0 };
    for (uint32_t i = 0, root = 0; i < planner->visit.n; i++) {
        const ideft_visit_t *v = &planner->visit.at[i];
        const uint32_t end = v->start + v->n;
        const uint32_t first = window != 0 && v->min_pos >= window ? v->min_pos - window + 1 : 0;
        root = v->parent == IDEFT_NONE ? i : root;
        const ideft_visit_t *top = &planner->visit.at[root];
        t.unique += end <= first ? 0 : first <= v->start ? v->n : end - first;
        t.logical += window != 0 ? seen_through(planner, i, window) : seen_by_all(v);
        t.pairs += (uint64_t)v->n * (top->row_end - top->row_begin);
    }
    for (size_t i = 0; i < planner->seg.n; i++)
        t.read += planner->seg.at[i].n;
    return t;
}

void ideft_plan_stats(const ideft_planner_t *planner, deft_step_stats_t *stats)
{
    const ideft_plan_t *plan = &planner->plan;
    const ideft_geometry_t *g = planner->geometry;
    const tokens_t t = count_tokens(planner);
    const uint64_t token = g->Hkv * (uint64_t)ideft_format_token_bytes(&g->format);
    const uint64_t partial = g->H * (uint64_t)(g->D + 2) * sizeof(float);
    stats->split = plan->invariant ? DEFT_SPLIT_NODE_CHUNK : planner->split;
    stats->planned = planner->planned;
    stats->plan_ns = planner->plan_ns;
    stats->rows = plan->n_rows;
    stats->groups = plan->n_groups;
    stats->partials = plan->part_begin[plan->n_rows];
    stats->kv_unique_bytes = t.unique * token;
    stats->kv_logical_bytes = t.logical * token;
    stats->kv_read_bytes = t.read * token;
    stats->partial_bytes = 2 * plan->n_parts * partial;
    stats->mask_bytes = (uint64_t)plan->n_segs * 2 * sizeof(uint32_t);
    /* QK^T and softmax of every head written and read, one mask read */
    stats->unfused_bytes = t.pairs * (4 * (uint64_t)g->H + 1) * g->format.bytes;
}
