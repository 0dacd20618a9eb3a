/* SPDX-License-Identifier: MIT */
/* The reference kernel: portable C, one score after the other, sums in double. It is what the
 * others are compared with, and what runs where there is no better one. */
#include "config.h"

#include <math.h>

#include "attn_cpu.h"
#include "kv.h"

static double score(const ideft_attn_t *attn, const float *q, const unsigned char *k, uint32_t slot)
{
    const ideft_geom_t *g = attn->geom;
    double s = 0;
    for (uint32_t d = 0; d < g->D; d++)
        s += (double)q[d] * ideft_kv_load(g->kv_type, k, ideft_k_index(g->kv_type, g->D, slot, d));
    s *= g->scale;
    if (g->softcap > 0)
        s = g->softcap * tanh(s / g->softcap);
    return s * IDEFT_LOG2E;
}

/* One matrix row over all segs of an item. */
static void row_over_item(const ideft_attn_t *attn, const ideft_item_t *item, uint32_t r,
                          uint32_t head, uint32_t q_head)
{
    const ideft_geom_t *g = attn->geom;
    const ideft_row_t *row = &attn->plan->row[r];
    const unsigned char *k = attn->k + head * attn->head_bytes, *v = attn->v + head * attn->head_bytes;
    const float *q = attn->q + ((size_t)row->token * g->H + q_head) * g->D;
    double m = -INFINITY, sum = 0, o[256] = { 0 };
    float out[256];
    for (uint32_t i = item->seg_begin; i < item->seg_end; i++) {
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
            const double top = s > m ? (double)(float)s : m, old = m == -INFINITY ? 0 : exp2(m - top);
            const double p = exp2(s - top);
            sum = sum * old + p;
            for (uint32_t d = 0; d < g->D; d++)
                o[d] = o[d] * old +
                       p * ideft_kv_load(g->kv_type, v, ideft_v_index(g->kv_type, g->D, seg->slot + t, d));
            m = top;
        }
    }
    for (uint32_t d = 0; d < g->D; d++)
        out[d] = (float)o[d];
    ideft_attn_finish(attn, item, r, q_head, out, (float)m, (float)sum);
}

static void ref_item(const ideft_attn_t *attn, uint32_t i, uint32_t head, void *scratch)
{
    const ideft_item_t *item = &attn->plan->item[i];
    const uint32_t G = attn->geom->G;
    (void)scratch;
    for (uint32_t r = item->row_begin; r < item->row_end; r++)
        for (uint32_t h = 0; h < G; h++)
            row_over_item(attn, item, r, head, head * G + h);
}

static void ref_merge(const ideft_attn_t *attn, uint32_t row)
{
    ideft_attn_merge(attn, row);
}

const ideft_kernel_t ideft_kernel_ref = {
    .name = "ref",
    .isa = DEFT_ISA_SCALAR,
    .item = { NULL, ref_item, ref_item, ref_item },
    .merge = ref_merge,
    .scratch_bytes = 64,
};
