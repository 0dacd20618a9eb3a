/* SPDX-License-Identifier: MIT */
/* From a plan to its image (kernels.h): host arithmetic alone, no device. */
#ifndef IDEFT_PLAN_IMAGE_H
#define IDEFT_PLAN_IMAGE_H

#include "../lib/format/geometry.h"
#include "../lib/plan/cost.h"
#include "../lib/plan/plan.h"
#include "kernels.h"

/* Query rows of a record at most; in an invariant step no more than one warpgroup's, so that the
 * way a row is computed does not depend on how many others there are. */
static inline uint32_t ideft_image_rows(const ideft_geometry_t *g, bool invariant)
{
    return (invariant ? IDEFT_ROWS / 2u : (uint32_t)IDEFT_ROWS) / g->G;
}

/* Bytes of a record, the same for every plan of a context. */
static inline uint32_t ideft_image_record_bytes(const ideft_geometry_t *g)
{
    const size_t rows = IDEFT_ROWS / g->G * sizeof(ideft_cuda_row_t);
    return (uint32_t)((sizeof(ideft_cuda_record_t) + ((rows + 15) & ~(size_t)15) +
                       IDEFT_INLINE * sizeof(ideft_cuda_copy_t)));
}

/* Bytes in front of the records, with room for max_rows positions, ids and slots. */
static inline size_t ideft_image_front_bytes(size_t max_rows)
{
    return sizeof(ideft_cuda_head_t) + ((3 * max_rows * sizeof(int32_t) + 63) & ~(size_t)63);
}

/* Bytes that the image of the plan needs at most. Cost: O(segs). */
size_t ideft_image_bound(const ideft_plan_t *plan, const ideft_geometry_t *g, size_t max_rows);

/* Bytes and partials that any plan of DEFT_SPLIT_AUTO takes at most, with up to `rows` rows over
 * `nodes` nodes of one run each, on a machine of so many multiprocessors. Cost: O(1). */
void ideft_image_bound_of_any(const ideft_geometry_t *g, uint32_t n_sm, size_t pool_tokens,
                              size_t rows, size_t nodes, size_t *bytes_p, size_t *parts_p);

/* Build it. to: ideft_image_bound() bytes, aligned to 16. Returns the bytes used.
 * Cost: O(rows + segs * tiles of rows that their group has). */
size_t ideft_image_build(const ideft_plan_t *plan, const ideft_geometry_t *g, size_t max_rows,
                         unsigned char *to);

#endif
