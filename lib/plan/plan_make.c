/* SPDX-License-Identifier: MIT */
/* Making a plan: patch the last one, or bring rows and nodes into order and cut them into
 * groups. */
#include "config.h"

#include "planner.h"

#include <time.h>

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* What devices read. */
static void publish(ideft_planner_t *planner)
{
    ideft_plan_t *plan = &planner->plan;
    plan->n_rows = (uint32_t)planner->row.n;
    plan->n_segs = (uint32_t)planner->seg.n;
    plan->n_groups = (uint32_t)planner->group.n;
    plan->row = planner->row.at;
    plan->seg = planner->seg.at;
    plan->group = planner->group.at;
    plan->order = planner->order.at;
    plan->part_begin = planner->part_begin.at;
    plan->part_list = planner->part_list.at;
    plan->positions = planner->positions.at;
    plan->ids = planner->ids.at;
    plan->nodes = planner->nodes.at;
}

deft_status_t ideft_plan_make(ideft_planner_t *planner, const ideft_ask_t *ask)
{
    const uint64_t begin = now_ns();
    bool cut_again = false;
    if (ideft_plan_can_patch(planner, ask) && ideft_plan_patch(planner, &cut_again)) {
        planner->ended = false;
        planner->planned = cut_again ? DEFT_PLANNED_RECUT : DEFT_PLANNED_PATCHED;
        if (cut_again)
            IDEFT_TRY(ideft_plan_cut(planner));
    } else {
        planner->ended = false;
        planner->planned = DEFT_PLANNED_AFRESH;
        planner->topology = planner->forest->topology;
        planner->plan.invariant = ask->invariant;
        planner->split = ask->split;
        planner->chunk_tokens = ask->chunk_tokens;
        IDEFT_TRY(ideft_plan_order(planner, ask));
        IDEFT_TRY(ideft_plan_cut(planner));
    }
    publish(planner);
    planner->plan_ns = now_ns() - begin;
    return DEFT_OK;
}

void ideft_plan_ended(ideft_planner_t *planner)
{
    planner->ended = true;
}

void ideft_plan_forget(ideft_planner_t *planner)
{
    planner->ended = false;
}

void ideft_planner_init(ideft_planner_t *planner, ideft_host_t *host, const ideft_forest_t *forest,
                        const ideft_geometry_t *geometry, const ideft_machine_t *machine)
{
    *planner = (ideft_planner_t){
        .host = host, .forest = forest, .geometry = geometry, .machine = *machine
    };
}

void ideft_planner_trim(ideft_planner_t *planner)
{
    ideft_host_t *host = planner->host;
    IDEFT_VEC_FREE(host, &planner->row);
    IDEFT_VEC_FREE(host, &planner->seg);
    IDEFT_VEC_FREE(host, &planner->group);
    IDEFT_VEC_FREE(host, &planner->order);
    IDEFT_VEC_FREE(host, &planner->part_begin);
    IDEFT_VEC_FREE(host, &planner->part_list);
    IDEFT_VEC_FREE(host, &planner->positions);
    IDEFT_VEC_FREE(host, &planner->ids);
    IDEFT_VEC_FREE(host, &planner->nodes);
    IDEFT_VEC_FREE(host, &planner->request);
    IDEFT_VEC_FREE(host, &planner->active);
    IDEFT_VEC_FREE(host, &planner->visit);
    IDEFT_VEC_FREE(host, &planner->list);
    IDEFT_VEC_FREE(host, &planner->mark);
    planner->plan = (ideft_plan_t){ .n_rows = 0 };
    planner->ended = false;
}
