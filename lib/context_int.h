/* SPDX-License-Identifier: MIT */
/* A context: what was asked for, a forest, a planner, a step, a device. Only the public calls see
 * it as a whole; each part below is handed what it needs. */
#ifndef IDEFT_CONTEXT_INT_H
#define IDEFT_CONTEXT_INT_H

#include "deft.h"

#include "device.h"
#include "forest/forest.h"
#include "plan/planner.h"

/* The step, a small machine of states: closed, or open with some layers written. `stop.step` is the
 * number of the open step, or of the last one. */
typedef struct ideft_step {
    bool open;
    uint32_t n_written;
    uint8_t *written; /* [n_layers] */
    ideft_stop_t stop;
} ideft_step_t;

struct deft_ctx_t {
    ideft_host_t host;
    deft_config_t asked; /* its arrays are in the geometry */
    ideft_geometry_t geometry;
    ideft_forest_t forest;
    ideft_planner_t planner;
    ideft_step_t step;
    ideft_device_t *device;
    ideft_facts_t facts;
    deft_split_t split; /* of steps to come */
    bool debug_check;   /* every call that changes a tree ends in a check */
    bool lost;          /* the device failed: steps are refused */
};

static inline deft_ctx_t *ideft_ctx_of(const deft_tree_t *tree)
{
    return tree->forest->owner;
}

/* ---- step.c: states ---- */

/* No step is open: DEFT_ERR_BUSY. Every call that changes a tree asks. */
static inline deft_status_t ideft_need_closed(deft_ctx_t *ctx)
{
    if (ctx->step.open)
        return ideft_fail(&ctx->host, DEFT_ERR_BUSY, "a step is open: end or abandon it first");
    return DEFT_OK;
}

/* The device works: DEFT_ERR_DEVICE. */
deft_status_t ideft_need_alive(deft_ctx_t *ctx);
/* The handle is that of the open step: DEFT_ERR_INVAL, DEFT_ERR_STALE. */
deft_status_t ideft_need_open(deft_step_t step);
/* The same, and it was not cancelled, and the device works. */
deft_status_t ideft_need_running(deft_step_t step);
/* Note a status of the device on its way up: DEFT_ERR_DEVICE loses the context. */
deft_status_t ideft_heed(deft_ctx_t *ctx, deft_status_t status);
/* K and V of a layer are there. */
void ideft_step_wrote(ideft_step_t *step, uint32_t layer);
deft_status_t ideft_check_layer(const deft_ctx_t *ctx, uint32_t layer);

#endif
