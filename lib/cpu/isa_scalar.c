/* SPDX-License-Identifier: MIT */
/* Portable C, one score after the other, sums in double: what the other sets are compared with, and
 * what runs where there is no better one. */
#include "config.h"

#include <math.h>

#include "kernel.h"

static double score(const ideft_attn_t *attn, const float *q, const unsigned char *k, uint32_t slot)
{
    const ideft_geometry_t *g = attn->geom;
    const deft_dtype_t type = g->format.element;
    double s = 0;
    for (uint32_t d = 0; d < g->D; d++)
        s += (double)q[d] * ideft_element_load(type, k, ideft_k_index(type, g->D, slot, d));
    s *= g->scale;
    if (g->softcap > 0)
        s = g->softcap * tanh(s / g->softcap);
    return s * IDEFT_LOG2E;
}

/* One matrix row over all segs of a group. */
static void row_over_group(const ideft_attn_t *attn, const ideft_group_t *group, uint32_t r,
                           uint32_t head, uint32_t q_head)
{
    const ideft_geometry_t *g = attn->geom;
    const deft_dtype_t type = g->format.element;
    const ideft_row_t *row = &attn->plan->row[r];
    const unsigned char *k = attn->k + head * attn->k_bytes, *v = attn->v + head * attn->v_bytes;
    const float *q = attn->q + ((size_t)row->token * g->H + q_head) * g->D;
    double m = -INFINITY, sum = 0, o[MAX_D] = { 0 };
    float out[MAX_D];
    for (uint32_t i = group->seg_begin; i < group->seg_end; i++) {
        const ideft_seg_t *seg = &attn->plan->seg[i];
        if (r < seg->row_begin || r >= seg->row_end)
            continue;
        for (uint32_t t = 0; t < seg->n && seg->pos + t <= row->pos; t++) {
            if (attn->window != 0 && seg->pos + t + attn->window <= row->pos)
                continue;
            const double s = score(attn, q, k, seg->slot + t);
            if (s == -INFINITY)
                continue;
            /* m is a float, as partials keep it */
            const double top = s > m ? (double)(float)s : m,
                         old = m == -INFINITY ? 0 : exp2(m - top);
            const double p = exp2(s - top);
            sum = sum * old + p;
            for (uint32_t d = 0; d < g->D; d++)
                o[d] = o[d] * old +
                       p * ideft_element_load(type, v, ideft_v_index(type, g->D, seg->slot + t, d));
            m = top;
        }
    }
    for (uint32_t d = 0; d < g->D; d++)
        out[d] = (float)o[d];
    ideft_attn_finish(attn, group, r, q_head, out, (float)m, (float)sum);
}

static void scalar_group(const ideft_attn_t *attn, uint32_t i, uint32_t head, void *scratch)
{
    const ideft_group_t *group = &attn->plan->group[i];
    const uint32_t G = attn->geom->G;
    (void)scratch;
    for (uint32_t r = group->row_begin; r < group->row_end; r++)
        for (uint32_t h = 0; h < G && !ideft_stops(attn->stop); h++)
            row_over_group(attn, group, r, head, head * G + h);
}

const ideft_kernel_t ideft_kernel_scalar = {
    .name = "scalar",
    .isa = DEFT_ISA_SCALAR,
    .group = { NULL, scalar_group, scalar_group, scalar_group },
    .join = ideft_attn_join,
    .scratch_bytes = 64,
    .row_cost = 5, /* that of AVX-512: a checker plans as what it checks */
};
