/* SPDX-License-Identifier: MIT */
/* From the tree to groups: host arithmetic alone, no device, no backend.
 *
 * plan.c finds the active nodes (those on the path of a row) by climbing from the rows, numbers rows
 * and nodes in depth-first order (rows that come in another order are sorted first), and hands the
 * nodes in this order ("visits") to cut.c, which makes segs and items of them. A plan whose leaves only grew by one since is patched: O(rows). */
#ifndef IDEFT_PLAN_H
#define IDEFT_PLAN_H

#include "types.h"

/* Plan a step over `rows` (NULL: all that is not computed) into ctx->plan. On error the context is
 * as before, but the next plan is made afresh. */
deft_status_t ideft_plan_make(deft_ctx_t *ctx, const deft_rows_t *rows, size_t n_rows,
                              uint64_t flags);
void ideft_plan_fini(ideft_plan_t *plan);

/* cut.c: segs, items, partials and order from the visits. Sets cut_stays. */
deft_status_t ideft_plan_cut(deft_ctx_t *ctx);

#endif
