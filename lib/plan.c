/* SPDX-License-Identifier: MIT */
#include "config.h"

#include "plan.h"

#include <time.h>

#include "alloc.h"
#include "status_int.h"
#include "tree_int.h"

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Room for n elements in the buffer behind a pointer; `used` elements are kept. */
#define ROOM(_ctx, _plan, _buf, _ptr, _n, _used)                                              \
    do {                                                                                      \
        if (!ideft_buf_reserve((_plan)->alloc, &(_plan)->_buf, (_n), sizeof(*(_plan)->_ptr),  \
                               (size_t)(_used) * sizeof(*(_plan)->_ptr), #_ptr))              \
            return ideft_fail(_ctx, DEFT_ERR_NOMEM, "no memory for a plan");                  \
        (_plan)->_ptr = (_plan)->_buf.p;                                                      \
    } while (0)

/* ---- what is asked for ---------------------------------------------------------------------- */

static deft_status_t request(deft_ctx_t *ctx, uint32_t index, size_t n)
{
    ideft_plan_t *plan = &ctx->plan;
    const ideft_node_t *node = ideft_node(ctx, index);
    const uint32_t left = node->len - node->computed;
    if (n > left)
        return ideft_fail(ctx, DEFT_ERR_STATE, "%zu rows asked of a node with %u uncomputed tokens",
                          n, left);
    const uint32_t take = n == 0 ? left : (uint32_t)n;
    if (take == 0)
        return ideft_fail(ctx, DEFT_ERR_STATE, "a node has no uncomputed token");
    if (take > IDEFT_MAX_TOKENS - plan->n_row)
        return ideft_fail(ctx, DEFT_ERR_LIMIT, "more than %zu rows", IDEFT_MAX_TOKENS);
    plan->req[plan->n_req++] =
        (ideft_request_t){ index, take, plan->n_row, IDEFT_NONE, 0 };
    plan->n_row += take;
    return DEFT_OK;
}

static deft_status_t gather(deft_ctx_t *ctx, const deft_rows_t *rows, size_t n_rows)
{
    ideft_plan_t *plan = &ctx->plan;
    plan->n_req = plan->n_row = 0;
    if (rows != NULL) {
        ROOM(ctx, plan, req_b, req, n_rows, 0);
        for (size_t i = 0; i < n_rows; i++) {
            uint32_t index;
            if (rows[i].tree == NULL || rows[i].tree->ctx != ctx)
                return ideft_fail(ctx, DEFT_ERR_INVAL, "rows[%zu] is of another context", i);
            IDEFT_TRY(ideft_node_get(rows[i].tree, rows[i].node, &index));
            IDEFT_TRY(request(ctx, index, rows[i].n));
        }
        return DEFT_OK;
    }
    for (uint32_t at = ctx->dirty_first; at != 0; at = ideft_node(ctx, at)->dirty_next) {
        if ((plan->n_req + 1) * sizeof(*plan->req) > plan->req_b.bytes)
            ROOM(ctx, plan, req_b, req, plan->n_req + 1, plan->n_req);
        IDEFT_TRY(request(ctx, at, 0));
    }
    return DEFT_OK;
}

/* ---- patching -------------------------------------------------------------------------------- */

/* One leaf has grown by the token at row r. False: its KV has no room in the cut as it stands. */
static bool patch_seg(const ideft_plan_t *plan, const ideft_visit_t *v, const ideft_row_t *row,
                      uint32_t chunk)
{
    IDEFT_ASSERT(v->last_seg < plan->n_seg);
    ideft_seg_t *seg = &plan->seg[v->last_seg];
    if (chunk != 0 && (v->n - 1) % chunk == 0)
        return false;
    if (seg->slot + seg->n == row->slot) {
        seg->n++;
        return true;
    }
    if (v->last_seg + 1 >= plan->n_seg || seg[1].n != 0)
        return false;
    seg[1].slot = row->slot;
    seg[1].n = 1;
    seg[1].pos = row->pos;
    return true;
}

/* True: the plan of the last step, its leaves one token longer, is the plan of this one. Where
 * false, the plan is half patched and has to be made afresh. */
static bool patch(deft_ctx_t *ctx, bool *cut_again_p)
{
    ideft_plan_t *plan = &ctx->plan;
    const uint32_t chunk = plan->split == DEFT_SPLIT_NODE_CHUNK || plan->flags != 0
                               ? ctx->chunk_tokens : 0;
    bool again = !plan->cut_stays;
    uint32_t i = 0;
    for (uint32_t at = ctx->dirty_first; at != 0; i++) {
        const ideft_node_t *node = ideft_node(ctx, at);
        if (i == plan->n_req || plan->req[i].node != at || node->len != node->computed + 1)
            return false;
        ideft_visit_t *v = &plan->visit[plan->req[i].visit];
        ideft_row_t *row = &plan->row[v->row_begin];
        row->pos++;
        row->slot = ideft_runs_end(node) - 1;
        v->n++;
        v->slot = node->n_runs == 1 ? v->slot : IDEFT_NONE;
        v->self_pos++;
        v->min_pos++;
        plan->positions[i]++;
        plan->ids[i] = ctx->pool.slot[row->slot].tag;
        if (!again && patch_seg(plan, v, row, chunk))
            v->last_seg += plan->seg[v->last_seg].pos + plan->seg[v->last_seg].n <= row->pos;
        else
            again = true;
        at = node->dirty_next;
    }
    if (i != plan->n_req)
        return false;
    *cut_again_p = again;
    return true;
}

static bool can_patch(const deft_ctx_t *ctx, const deft_rows_t *rows, uint64_t flags)
{
    const ideft_plan_t *plan = &ctx->plan;
    return rows == NULL && plan->valid && plan->one_each && plan->topology == ctx->topology &&
           plan->flags == flags && plan->split == ctx->split && ctx->geom.max_window == 0;
}

/* ---- bringing requests into depth-first order ------------------------------------------------- */

static deft_status_t next_pass(deft_ctx_t *ctx)
{
    if (++ctx->plan.epoch == 0)
        return ideft_fail(ctx, DEFT_ERR_LIMIT, "plan numbers are used up");
    return DEFT_OK;
}

static uint32_t activate(ideft_plan_t *plan, ideft_node_t *node)
{
    plan->act[plan->n_act] =
        (ideft_active_t){ IDEFT_NONE, IDEFT_NONE, IDEFT_NONE, IDEFT_NONE, IDEFT_NONE };
    node->mark = plan->n_act;
    node->mark_epoch = plan->epoch;
    return plan->n_act++;
}

static void link_active(ideft_plan_t *plan, uint32_t a, uint32_t parent)
{
    ideft_active_t *up = &plan->act[parent];
    plan->act[a].parent = parent;
    if (up->first_child == IDEFT_NONE)
        up->first_child = a;
    else
        plan->act[up->last_child].next = a;
    up->last_child = a;
}

/* From every row up to the first node that is known already. Roots are linked through `next`. */
static deft_status_t climb(deft_ctx_t *ctx)
{
    ideft_plan_t *plan = &ctx->plan;
    uint32_t last_root = IDEFT_NONE;
    plan->n_act = 0;
    for (uint32_t i = 0; i < plan->n_req; i++) {
        uint32_t at = plan->req[i].node, below = IDEFT_NONE;
        ideft_node_t *node = ideft_node(ctx, at);
        for (; at != 0 && node->mark_epoch != plan->epoch; at = node->parent, node = ideft_node(ctx, at)) {
            if ((plan->n_act + 1) * sizeof(*plan->act) > plan->act_b.bytes)
                ROOM(ctx, plan, act_b, act, plan->n_act + 1, plan->n_act);
            const uint32_t a = activate(plan, node);
            if (below != IDEFT_NONE)
                link_active(plan, below, a);
            below = a;
        }
        if (below != IDEFT_NONE && at != 0) {
            link_active(plan, below, node->mark);
        } else if (below != IDEFT_NONE) {
            if (last_root != IDEFT_NONE)
                plan->act[last_root].next = below;
            last_root = below;
        }
        ideft_active_t *act = &plan->act[ideft_node(ctx, plan->req[i].node)->mark];
        if (act->request != IDEFT_NONE)
            return ideft_fail(ctx, DEFT_ERR_INVAL, "a node is listed twice");
        act->request = i;
    }
    return DEFT_OK;
}

/* req[].sorted: the requests as a depth-first walk meets them. */
static deft_status_t sort_requests(deft_ctx_t *ctx)
{
    ideft_plan_t *plan = &ctx->plan;
    uint32_t n = 0;
    IDEFT_TRY(next_pass(ctx));
    IDEFT_TRY(climb(ctx));
    /* the first root is the last node of the first climb */
    uint32_t a = 0;
    while (plan->act[a].parent != IDEFT_NONE)
        a = plan->act[a].parent;
    while (a != IDEFT_NONE) {
        if (plan->act[a].request != IDEFT_NONE)
            plan->req[n++].sorted = plan->act[a].request;
        if (plan->act[a].first_child != IDEFT_NONE) {
            a = plan->act[a].first_child;
            continue;
        }
        while (plan->act[a].next == IDEFT_NONE && plan->act[a].parent != IDEFT_NONE)
            a = plan->act[a].parent;
        a = plan->act[a].next;
    }
    return DEFT_OK;
}

/* ---- numbering -------------------------------------------------------------------------------- */

/* The rows of a request, in order: they are computed after the first `computed` tokens. */
static void number_rows(deft_ctx_t *ctx, const ideft_request_t *req, ideft_visit_t *v)
{
    ideft_plan_t *plan = &ctx->plan;
    const ideft_node_t *node = ideft_node(ctx, req->node);
    const ideft_run_t *run = &ideft_runs(node)[node->n_runs - 1];
    uint32_t run_at = node->len - run->n;
    const deft_node_t handle = ideft_handle(ctx, req->node);
    while (run_at > node->computed)
        run_at -= (--run)->n;
    v->n_self = req->n;
    v->self_pos = v->min_pos = node->start + node->computed;
    for (uint32_t i = 0; i < req->n; i++) {
        const uint32_t offset = node->computed + i, token = req->token + i;
        while (offset >= run_at + run->n)
            run_at += (run++)->n;
        ideft_row_t *row = &plan->row[v->row_begin + i];
        *row = (ideft_row_t){ node->start + offset, token, run->slot + (offset - run_at), req->node };
        plan->positions[token] = (int32_t)row->pos;
        plan->ids[token] = ctx->pool.slot[row->slot].tag;
        plan->nodes[token] = handle;
    }
}

/* Where numbering stands: rows so far, deepest visit on the path of the last one. */
typedef struct place {
    uint32_t row, top;
} place_t;

/* Leave the visits below `up`: their intervals end with the last row. */
static void leave(ideft_plan_t *plan, place_t *place, uint32_t up)
{
    while (place->top != up) {
        ideft_visit_t *v = &plan->visit[place->top];
        v->row_end = place->row;
        if (v->parent != IDEFT_NONE && plan->visit[v->parent].min_pos > v->min_pos)
            plan->visit[v->parent].min_pos = v->min_pos;
        place->top = v->parent;
    }
}

/* The next visit, below the last one. False: a token between the two will not be computed. */
static bool enter(deft_ctx_t *ctx, place_t *place, uint32_t index)
{
    ideft_plan_t *plan = &ctx->plan;
    ideft_node_t *node = ideft_node(ctx, index);
    if (place->top != IDEFT_NONE) {
        const ideft_visit_t *up = &plan->visit[place->top];
        if (up->start + up->n != node->start)
            return false;
    }
    node->mark = plan->n_visit++;
    node->mark_epoch = plan->epoch;
    plan->visit[node->mark] = (ideft_visit_t){
        .node = index,
        .parent = place->top,
        .start = node->start,
        .n = node->computed,
        .row_begin = place->row,
        .min_pos = UINT32_MAX,
        .last_seg = IDEFT_NONE,
        .slot = node->n_runs == 1 ? ideft_runs(node)->slot : IDEFT_NONE,
    };
    place->top = node->mark;
    return true;
}

/* The part of a request's path that is new, into list[], from the row up. *up_p: the visit that it
 * hangs from. False: the walk has left this visit already, the requests are not in order. */
static deft_status_t new_path(deft_ctx_t *ctx, const ideft_request_t *req, uint32_t *depth_p,
                              uint32_t *up_p, bool *in_order_p)
{
    ideft_plan_t *plan = &ctx->plan;
    uint32_t at = req->node, depth = 0;
    const ideft_node_t *node = ideft_node(ctx, at);
    for (; at != 0 && node->mark_epoch != plan->epoch; at = node->parent, node = ideft_node(ctx, at)) {
        if ((depth + 1) * sizeof(*plan->list) > plan->list_b.bytes)
            ROOM(ctx, plan, list_b, list, depth + 1, depth);
        plan->list[depth++] = at;
    }
    *depth_p = depth;
    *up_p = at == 0 ? IDEFT_NONE : node->mark;
    *in_order_p = depth > 0 && (at == 0 || plan->visit[node->mark].row_end == 0);
    return DEFT_OK;
}

/* Make the visits while requests come in depth-first order: each adds the part of its path that it
 * does not share with the one before. row_end is 0 while a visit is open. */
static deft_status_t number(deft_ctx_t *ctx, bool sorted, bool *in_order_p)
{
    ideft_plan_t *plan = &ctx->plan;
    place_t place = { 0, IDEFT_NONE };
    uint32_t depth = 0, up = IDEFT_NONE;
    IDEFT_TRY(next_pass(ctx));
    plan->n_visit = 0;
    for (uint32_t k = 0; k < plan->n_req; k++) {
        ideft_request_t *req = &plan->req[sorted ? plan->req[k].sorted : k];
        IDEFT_TRY(new_path(ctx, req, &depth, &up, in_order_p));
        if (!*in_order_p)
            return DEFT_OK;
        leave(plan, &place, up);
        if ((plan->n_visit + (size_t)depth) * sizeof(*plan->visit) > plan->visit_b.bytes)
            ROOM(ctx, plan, visit_b, visit, plan->n_visit + (size_t)depth, plan->n_visit);
        while (depth > 0 && enter(ctx, &place, plan->list[depth - 1]))
            depth--;
        if (depth > 0 && sorted)
            return ideft_fail(ctx, DEFT_ERR_STATE, "a row is below tokens that are neither computed nor in the step");
        if (depth > 0) { /* or an ancestor is listed later */
            *in_order_p = false;
            return DEFT_OK;
        }
        req->visit = place.top;
        plan->visit[place.top].n += req->n;
        number_rows(ctx, req, &plan->visit[place.top]);
        place.row += req->n;
    }
    leave(plan, &place, IDEFT_NONE);
    return DEFT_OK;
}

static deft_status_t plan_afresh(deft_ctx_t *ctx, const deft_rows_t *rows, size_t n_rows)
{
    ideft_plan_t *plan = &ctx->plan;
    bool in_order = true;
    IDEFT_TRY(gather(ctx, rows, n_rows));
    if (plan->n_row == 0)
        return ideft_fail(ctx, DEFT_ERR_STATE, "every token is computed already");
    ROOM(ctx, plan, row_b, row, plan->n_row, 0);
    ROOM(ctx, plan, pos_b, positions, plan->n_row, 0);
    ROOM(ctx, plan, id_b, ids, plan->n_row, 0);
    ROOM(ctx, plan, node_b, nodes, plan->n_row, 0);
    IDEFT_TRY(number(ctx, false, &in_order));
    if (!in_order) {
        IDEFT_TRY(sort_requests(ctx));
        IDEFT_TRY(number(ctx, true, &in_order));
    }
    ROOM(ctx, plan, list_b, list, plan->n_visit, 0);
    plan->one_each = plan->n_req == plan->n_row;
    for (uint32_t i = 0; i < plan->n_req && plan->one_each; i++) {
        const ideft_visit_t *v = &plan->visit[plan->req[i].visit];
        plan->one_each = v->row_end - v->row_begin == 1;
    }
    return ideft_plan_cut(ctx);
}

deft_status_t ideft_plan_make(deft_ctx_t *ctx, const deft_rows_t *rows, size_t n_rows,
                              uint64_t flags)
{
    ideft_plan_t *plan = &ctx->plan;
    const uint64_t begin = now_ns();
    bool cut_again = false;
    plan->patched = 0;
    if (can_patch(ctx, rows, flags) && patch(ctx, &cut_again)) {
        plan->patched = cut_again ? 2 : 1;
        plan->valid = false;
        if (cut_again)
            IDEFT_TRY(ideft_plan_cut(ctx));
    } else {
        plan->valid = false;
        plan->topology = ctx->topology;
        plan->flags = flags;
        plan->split = ctx->split;
        IDEFT_TRY(plan_afresh(ctx, rows, n_rows));
    }
    plan->plan_ns = now_ns() - begin;
    return DEFT_OK;
}

void ideft_plan_fini(ideft_plan_t *plan)
{
    ideft_buf_t *bufs[] = { &plan->req_b,   &plan->act_b,  &plan->visit_b, &plan->row_b, &plan->list_b,
                            &plan->seg_b,   &plan->item_b, &plan->order_b, &plan->part_b,
                            &plan->begin_b, &plan->pos_b,  &plan->id_b,    &plan->node_b };
    for (size_t i = 0; i < sizeof(bufs) / sizeof(*bufs); i++)
        ideft_buf_free(plan->alloc, bufs[i]);
}
