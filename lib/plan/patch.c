/* SPDX-License-Identifier: MIT */
/* Patching: decoding grows every leaf by one token a step, and then the last plan is almost this
 * one. Leaves have a spare seg after theirs, for a run that begins elsewhere. */
#include "config.h"

#include "planner.h"

bool ideft_plan_can_patch(const ideft_planner_t *planner, const ideft_ask_t *ask)
{
    return ask->rows == NULL && planner->ended && planner->one_each &&
           planner->topology == planner->forest->topology &&
           planner->plan.invariant == ask->invariant && planner->split == ask->split &&
           planner->chunk_tokens == ask->chunk_tokens && planner->geometry->max_window == 0;
}

/* One leaf has grown by the token at `row`. False: its KV has no room in the cut as it stands. */
static inline bool patch_seg(const ideft_planner_t *planner, ideft_visit_t *v,
                             const ideft_row_t *row, uint32_t chunk)
{
    IDEFT_ASSERT(v->last_seg < planner->seg.n);
    ideft_seg_t *seg = &planner->seg.at[v->last_seg];
    if (chunk != 0 && (v->n - 1) % chunk == 0)
        return false;
    if (seg->slot + seg->n == row->slot) {
        seg->n++;
        return true;
    }
    if (v->last_seg + 1 >= planner->seg.n || seg[1].n != 0)
        return false;
    seg[1].slot = row->slot;
    seg[1].n = 1;
    seg[1].pos = row->pos;
    v->last_seg++;
    return true;
}

bool ideft_plan_patch(ideft_planner_t *planner, bool *cut_again_p)
{
    const ideft_forest_t *forest = planner->forest;
    const bool chunked = planner->split == DEFT_SPLIT_NODE_CHUNK || planner->plan.invariant;
    const uint32_t chunk = chunked ? planner->chunk_tokens : 0;
    const ideft_request_t *request = planner->request.at;
    const size_t n = planner->request.n;
    int32_t *positions = planner->positions.at;
    uint32_t *slots = planner->list.at;
    bool again = !planner->cut_stays;
    size_t i = 0;
    for (uint32_t at = forest->dirty_first; at != 0; i++) {
        const ideft_node_t *node = ideft_node(forest, at);
        if (i == n || request[i].node != at || ideft_node_len(node) != node->computed + 1)
            return false;
        ideft_visit_t *v = &planner->visit.at[request[i].visit];
        ideft_row_t *row = &planner->row.at[v->row_begin];
        row->pos++;
        row->slot = slots[i] = ideft_runs_end(&node->runs) - 1;
        v->n++;
        v->slot = ideft_runs_count(&node->runs) == 1 ? v->slot : IDEFT_NONE;
        v->self_pos++;
        v->min_pos++;
        positions[i]++;
        again = again || !patch_seg(planner, v, row, chunk);
        at = node->dirty_next;
    }
    if (i != n)
        return false;
    ideft_pool_tokens_of(forest->pool, slots, n, planner->ids.at);
    planner->plan.n_tokens += n;
    *cut_again_p = again;
    return true;
}
