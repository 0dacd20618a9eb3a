/* SPDX-License-Identifier: MIT */
/* What the instruction sets share. A kernel computes one group for one KV head: the outputs of rows
 * that are in this group alone, partials of the others. */
#ifndef IDEFT_KERNEL_H
#define IDEFT_KERNEL_H

#include <string.h>

#include "../device.h"
#include "arena.h"
#include "state.h"

#define TILE_ROWS 128u /* matrix rows of a pass */
#define MAX_D 256u

/* One layer's attention, the same for all threads. */
typedef struct ideft_attn {
    const ideft_geometry_t *geom;
    const ideft_plan_t *plan;
    const unsigned char *k, *v; /* planes of the layer */
    size_t k_bytes, v_bytes;    /* from one KV head's plane to the next */
    uint32_t window;            /* of the layer, 0: none */
    const float *q;             /* [n_row][H][D] in the caller's order */
    float *o;
    float *part;              /* [n_parts][H][D + 16] */
    const ideft_stop_t *stop; /* looked at between tiles of rows; may be NULL */
} ideft_attn_t;

typedef void (*ideft_group_fn)(const ideft_attn_t *attn, uint32_t group, uint32_t head,
                               void *scratch);

/* An instruction set: how groups are computed for each KV type. */
typedef struct ideft_kernel {
    const char *name;
    deft_isa_t isa;
    ideft_group_fn group[4]; /* by deft_dtype_t; NULL: take that of the set before */
    void (*merge)(const ideft_attn_t *attn, uint32_t row); /* partials to output, all heads */
    size_t scratch_bytes;                                  /* a thread */
    uint32_t row_cost; /* a token and matrix row with what softmax adds, in D/60 clocks */
} ideft_kernel_t;

extern const ideft_kernel_t ideft_kernel_scalar, ideft_kernel_vector, ideft_kernel_avx2,
    ideft_kernel_avx512, ideft_kernel_avx512_bf16, ideft_kernel_amx_bf16;

/* isa.c: the kernel for a KV type, of the instruction set that is asked for or the best one.
 * DEFT_ERR_UNSUPPORTED. */
deft_status_t ideft_kernel_choose(ideft_host_t *host, deft_isa_t asked, deft_dtype_t type,
                                  const ideft_kernel_t **kernel_p);

/* Inline, so that each instruction set compiles its own: D goes in steps of 16 floats, which the
 * compiler makes of whatever vectors there are. */
typedef float ideft_lanes_t __attribute__((vector_size(64), aligned(4), may_alias));

/* The output of a row's query head from its whole state: o / d, with the sink if there is one. */
static inline void ideft_attn_output(const ideft_attn_t *attn, uint32_t row, uint32_t q_head,
                                     const float *o, float m, float d)
{
    const ideft_geometry_t *g = attn->geom;
    float *out = attn->o + ((size_t)attn->plan->row[row].token * g->H + q_head) * g->D;
    float scale = 1.0f;
    if (g->sinks != NULL) {
        const float sink = (float)(g->sinks[q_head] * IDEFT_LOG2E), top = sink > m ? sink : m;
        scale = ideft_weight(m, top);
        d = d * scale + ideft_weight(sink, top);
    }
    scale = d == 0.0f ? 0.0f : scale / d;
    for (uint32_t i = 0; i < g->D; i += 16)
        *(ideft_lanes_t *)(out + i) = *(const ideft_lanes_t *)(o + i) * scale;
}

/* Hand on a row's state over a group: the output where the row is in this group alone, else the
 * partial. */
static inline void ideft_attn_finish(const ideft_attn_t *attn, const ideft_group_t *group,
                                     uint32_t row, uint32_t q_head, const float *o, float m,
                                     float d)
{
    const ideft_geometry_t *g = attn->geom;
    if (attn->plan->part_begin[row] == attn->plan->part_begin[row + 1]) {
        ideft_attn_output(attn, row, q_head, o, m, d);
        return;
    }
    float *part = attn->part + ((size_t)(group->part + row - group->row_begin) * g->H + q_head) *
                                   ideft_part_floats(g->D);
    memcpy(part, o, g->D * sizeof(float));
    part[g->D] = m;
    part[g->D + 1] = d;
}

/* Join a row's partials in the order of its path. */
static inline void ideft_attn_merge(const ideft_attn_t *attn, uint32_t row)
{
    const ideft_geometry_t *g = attn->geom;
    const uint32_t begin = attn->plan->part_begin[row], end = attn->plan->part_begin[row + 1];
    const uint32_t *list = attn->plan->part_list;
    const size_t stride = ideft_part_floats(g->D);
    for (uint32_t h = 0; h < g->H; h++) {
        float o[MAX_D], m = -INFINITY, d = 0;
        for (uint32_t i = begin; i < end; i++) {
            const float pm = attn->part[((size_t)list[i] * g->H + h) * stride + g->D];
            m = pm > m ? pm : m;
        }
        memset(o, 0, g->D * sizeof(float));
        for (uint32_t i = begin; i < end; i++) {
            const float *part = attn->part + ((size_t)list[i] * g->H + h) * stride;
            const float w = ideft_weight(part[g->D], m);
            d += w * part[g->D + 1];
            for (uint32_t e = 0; e < g->D; e += 16)
                *(ideft_lanes_t *)(o + e) += w * *(const ideft_lanes_t *)(part + e);
        }
        ideft_attn_output(attn, row, h, o, m, d);
    }
}

#endif
