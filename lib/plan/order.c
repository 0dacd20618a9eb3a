/* SPDX-License-Identifier: MIT */
/* Rows and the nodes above them, numbered in depth-first order. */
#include "config.h"

#include "planner.h"

/* Room for _n elements of one of the planner's arrays, or the function returns. */
#define ROOM(_planner, _vec, _n)                                        \
    do {                                                                \
        if (!IDEFT_VEC_ROOM((_planner)->host, &(_planner)->_vec, (_n))) \
            return ideft_plan_nomem(_planner);                          \
    } while (0)

/* ---- what is asked for ----------------------------------------------------------------------- */

static deft_status_t request(ideft_planner_t *planner, uint32_t index, size_t n, uint32_t *rows_p)
{
    ideft_host_t *host = planner->host;
    const ideft_node_t *node = ideft_node(planner->forest, index);
    const uint32_t left = ideft_node_len(node) - node->computed;
    if (left == 0)
        return ideft_fail(host, DEFT_ERR_EMPTY, "a node has no uncomputed token");
    if (n > left)
        return ideft_fail(host, DEFT_ERR_STATE,
                          "%zu rows asked of a node with %u uncomputed tokens", n, left);
    const uint32_t take = n == 0 ? left : (uint32_t)n;
    if (take > IDEFT_MAX_TOKENS - *rows_p)
        return ideft_fail(host, DEFT_ERR_LIMIT, "more than %zu rows", IDEFT_MAX_TOKENS);
    ROOM(planner, request, planner->request.n + 1);
    planner->request.at[planner->request.n++] =
        (ideft_request_t){ index, take, *rows_p, IDEFT_NONE, 0 };
    *rows_p += take;
    return DEFT_OK;
}

static deft_status_t gather_requests(ideft_planner_t *planner, const ideft_ask_t *ask,
                                     uint32_t *rows_p)
{
    const ideft_forest_t *forest = planner->forest;
    planner->request.n = 0;
    *rows_p = 0;
    if (ask->rows == NULL) {
        for (uint32_t at = forest->dirty_first; at != 0; at = ideft_node(forest, at)->dirty_next)
            IDEFT_TRY(request(planner, at, 0, rows_p));
        return DEFT_OK;
    }
    for (size_t i = 0; i < ask->n_rows; i++) {
        const deft_rows_t *rows = &ask->rows[i];
        uint32_t index;
        if (rows->tree == NULL || rows->tree->forest != forest)
            return ideft_fail(planner->host, DEFT_ERR_INVAL, "rows[%zu] is of another context", i);
        IDEFT_TRY(ideft_node_get(rows->tree, rows->node, &index));
        IDEFT_TRY(request(planner, index, rows->n, rows_p));
    }
    return DEFT_OK;
}

/* ---- bringing requests into depth-first order ------------------------------------------------ */

static bool is_active(const ideft_planner_t *planner, uint32_t node)
{
    const uint32_t mark = planner->mark.at[node];
    return mark < planner->active.n && planner->active.at[mark].node == node;
}

static uint32_t activate(ideft_planner_t *planner, uint32_t node)
{
    const uint32_t a = (uint32_t)planner->active.n++;
    planner->active.at[a] =
        (ideft_active_t){ node, IDEFT_NONE, IDEFT_NONE, IDEFT_NONE, IDEFT_NONE, IDEFT_NONE };
    planner->mark.at[node] = a;
    return a;
}

static void link_active(ideft_planner_t *planner, uint32_t a, uint32_t parent)
{
    ideft_active_t *up = &planner->active.at[parent];
    planner->active.at[a].parent = parent;
    if (up->first_child == IDEFT_NONE)
        up->first_child = a;
    else
        planner->active.at[up->last_child].next = a;
    up->last_child = a;
}

/* From every row up to the first node that is known already. Roots are linked through `next`. */
static deft_status_t climb(ideft_planner_t *planner)
{
    const ideft_forest_t *forest = planner->forest;
    uint32_t last_root = IDEFT_NONE;
    planner->active.n = 0;
    for (uint32_t i = 0; i < planner->request.n; i++) {
        uint32_t at = planner->request.at[i].node, below = IDEFT_NONE;
        for (; at != 0 && !is_active(planner, at); at = ideft_node(forest, at)->parent) {
            ROOM(planner, active, planner->active.n + 1);
            const uint32_t a = activate(planner, at);
            if (below != IDEFT_NONE)
                link_active(planner, below, a);
            below = a;
        }
        if (below != IDEFT_NONE && at != 0) {
            link_active(planner, below, planner->mark.at[at]);
        } else if (below != IDEFT_NONE) {
            if (last_root != IDEFT_NONE)
                planner->active.at[last_root].next = below;
            last_root = below;
        }
        ideft_active_t *own = &planner->active.at[planner->mark.at[planner->request.at[i].node]];
        if (own->request != IDEFT_NONE)
            return ideft_fail(planner->host, DEFT_ERR_INVAL, "a node is listed twice");
        own->request = i;
    }
    return DEFT_OK;
}

/* request[].sorted: the requests as a depth-first walk meets them. */
static deft_status_t sort_requests(ideft_planner_t *planner)
{
    IDEFT_TRY(climb(planner));
    const ideft_active_t *active = planner->active.at;
    uint32_t n = 0, a = 0;
    while (active[a].parent != IDEFT_NONE) /* the first root is the last node of the first climb */
        a = active[a].parent;
    while (a != IDEFT_NONE) {
        if (active[a].request != IDEFT_NONE)
            planner->request.at[n++].sorted = active[a].request;
        if (active[a].first_child != IDEFT_NONE) {
            a = active[a].first_child;
            continue;
        }
        while (active[a].next == IDEFT_NONE && active[a].parent != IDEFT_NONE)
            a = active[a].parent;
        a = active[a].next;
    }
    return DEFT_OK;
}

/* ---- numbering ------------------------------------------------------------------------------- */

static inline bool is_visited(const ideft_planner_t *planner, uint32_t node)
{
    const uint32_t mark = planner->mark.at[node];
    return mark < planner->visit.n && planner->visit.at[mark].node == node;
}

/* The rows of a request, in order: they are computed after the first `computed` tokens. */
static void number_rows(ideft_planner_t *planner, const ideft_request_t *req, ideft_visit_t *v)
{
    const ideft_forest_t *forest = planner->forest;
    const ideft_node_t *node = ideft_node(forest, req->node);
    const ideft_run_t *run = &ideft_runs_at(&node->runs)[ideft_runs_count(&node->runs) - 1];
    const deft_node_t handle = ideft_handle(forest, req->node);
    uint32_t run_at = ideft_node_len(node) - run->n, offset = node->computed;
    while (run_at > offset)
        run_at -= (--run)->n;
    v->n_self = req->n;
    v->self_pos = v->min_pos = node->start + offset;
    for (uint32_t i = 0; i < req->n; run_at += (run++)->n) {
        const uint32_t slot = run->slot + (offset - run_at);
        const uint32_t n = ideft_min(req->n - i, run_at + run->n - offset), token = req->token + i;
        for (uint32_t j = 0; j < n; j++) {
            const uint32_t pos = node->start + offset + j;
            planner->row.at[v->row_begin + i + j] =
                (ideft_row_t){ pos, token + j, slot + j, req->node };
            planner->positions.at[token + j] = (int32_t)pos;
            planner->nodes.at[token + j] = handle;
        }
        ideft_pool_tokens(forest->pool, slot, n, &planner->ids.at[token]);
        offset += n;
        i += n;
    }
}

/* Where numbering stands: rows so far, deepest visit on the path of the last one. */
typedef struct standing {
    uint32_t row, top;
} standing_t;

/* Leave the visits below `up`: their intervals end with the last row. */
static void leave_visits(ideft_planner_t *planner, standing_t *standing, uint32_t up)
{
    while (standing->top != up) {
        ideft_visit_t *v = &planner->visit.at[standing->top];
        v->row_end = standing->row;
        if (v->parent != IDEFT_NONE && planner->visit.at[v->parent].min_pos > v->min_pos)
            planner->visit.at[v->parent].min_pos = v->min_pos;
        standing->top = v->parent;
    }
}

/* The next visit, below the last one. False: a token between the two will not be computed. */
static bool enter_visit(ideft_planner_t *planner, standing_t *standing, uint32_t index)
{
    const ideft_node_t *node = ideft_node(planner->forest, index);
    if (standing->top != IDEFT_NONE) {
        const ideft_visit_t *up = &planner->visit.at[standing->top];
        if (up->start + up->n != node->start)
            return false;
    }
    const uint32_t mark = (uint32_t)planner->visit.n++;
    planner->mark.at[index] = mark;
    planner->visit.at[mark] = (ideft_visit_t){
        .node = index,
        .parent = standing->top,
        .start = node->start + node->gone,
        .n = node->computed - node->gone,
        .row_begin = standing->row,
        .min_pos = UINT32_MAX,
        .last_seg = IDEFT_NONE,
        .slot = ideft_runs_count(&node->runs) == 1 ? ideft_runs_at(&node->runs)->slot : IDEFT_NONE,
    };
    planner->plan.n_tokens += node->computed - node->gone;
    standing->top = mark;
    return true;
}

/* The part of a request's path that is new, into list[], from the row up. *up_p: the visit that it
 * hangs from. *in_order_p false: the walk has left this visit already. */
static deft_status_t new_path(ideft_planner_t *planner, const ideft_request_t *req,
                              bool *in_order_p, uint32_t *up_p)
{
    uint32_t at = req->node;
    planner->list.n = 0;
    for (; at != 0 && !is_visited(planner, at); at = ideft_node(planner->forest, at)->parent) {
        ROOM(planner, list, planner->list.n + 1);
        planner->list.at[planner->list.n++] = at;
    }
    *up_p = at == 0 ? IDEFT_NONE : planner->mark.at[at];
    *in_order_p = planner->list.n > 0 && (at == 0 || planner->visit.at[*up_p].row_end == 0);
    return DEFT_OK;
}

/* Make the visits while requests come in depth-first order: each adds the part of its path that it
 * does not share with the one before. row_end is 0 while a visit is open. */
static deft_status_t number(ideft_planner_t *planner, bool sorted, bool *in_order_p)
{
    standing_t standing = { 0, IDEFT_NONE };
    uint32_t up = IDEFT_NONE;
    planner->visit.n = 0;
    planner->plan.n_tokens = 0;
    for (size_t k = 0; k < planner->request.n; k++) {
        ideft_request_t *req = &planner->request.at[sorted ? planner->request.at[k].sorted : k];
        IDEFT_TRY(new_path(planner, req, in_order_p, &up));
        if (!*in_order_p)
            return DEFT_OK;
        leave_visits(planner, &standing, up);
        ROOM(planner, visit, planner->visit.n + planner->list.n);
        size_t depth = planner->list.n;
        while (depth > 0 && enter_visit(planner, &standing, planner->list.at[depth - 1]))
            depth--;
        if (depth > 0 && sorted)
            return ideft_fail(planner->host, DEFT_ERR_UNCOMPUTED,
                              "a row is below tokens that are neither computed nor in the step");
        if (depth > 0) { /* or an ancestor is listed later */
            *in_order_p = false;
            return DEFT_OK;
        }
        req->visit = standing.top;
        planner->visit.at[standing.top].n += req->n;
        planner->plan.n_tokens += req->n;
        number_rows(planner, req, &planner->visit.at[standing.top]);
        standing.row += req->n;
    }
    leave_visits(planner, &standing, IDEFT_NONE);
    return DEFT_OK;
}

/* ---- the whole of it ------------------------------------------------------------------------- */

static deft_status_t make_room(ideft_planner_t *planner, uint32_t n_rows)
{
    const size_t known = planner->mark.cap;
    planner->row.n = planner->positions.n = planner->ids.n = planner->nodes.n = 0;
    ROOM(planner, row, n_rows);
    ROOM(planner, positions, n_rows);
    ROOM(planner, ids, n_rows);
    ROOM(planner, nodes, n_rows);
    planner->mark.n = planner->mark.cap;
    ROOM(planner, mark, planner->forest->next_node);
    for (size_t i = known; i < planner->mark.cap; i++)
        planner->mark.at[i] = 0;
    return DEFT_OK;
}

deft_status_t ideft_plan_order(ideft_planner_t *planner, const ideft_ask_t *ask)
{
    uint32_t n_rows;
    bool in_order = true;
    IDEFT_TRY(gather_requests(planner, ask, &n_rows));
    if (n_rows == 0)
        return ideft_fail(planner->host, DEFT_ERR_EMPTY, "every token is computed already");
    IDEFT_TRY(make_room(planner, n_rows));
    planner->row.n = n_rows;
    IDEFT_TRY(number(planner, false, &in_order));
    if (!in_order) {
        IDEFT_TRY(sort_requests(planner));
        IDEFT_TRY(number(planner, true, &in_order));
    }
    planner->list.n = 0;
    ROOM(planner, list, planner->visit.n);
    planner->one_each = planner->request.n == n_rows;
    for (size_t i = 0; i < planner->request.n && planner->one_each; i++) {
        const ideft_visit_t *v = &planner->visit.at[planner->request.at[i].visit];
        planner->one_each = v->row_end - v->row_begin == 1;
    }
    return DEFT_OK;
}
