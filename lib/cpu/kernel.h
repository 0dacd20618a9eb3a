/* SPDX-License-Identifier: MIT */
/* What the instruction sets share. A kernel computes one group for one KV head: the outputs of rows
 * that no other group has, partials of the others.
 *
 *   row          a query token; it has H query heads, G of them for each KV head
 *   matrix row   a row and one of the G query heads: a row of the matrices Q, scores and O
 *   pass         up to TILE_ROWS matrix rows, for which a group's KV is read once
 *   panel        up to MAX_ROWS rows of a pass, which micro kernels take at a time
 *   run          tokens in adjoining slots (ideft_seg_t): of a node, or of a part of it
 *   block        IDEFT_BLOCK adjoining slots, in which K lies transposed (layout.h)
 *   stretch      tokens of a run that are taken at a time (walk.h)
 *   tile         up to TILE tokens, its columns, of one or more runs
 *   piece        columns of a tile whose V adjoins
 *   form         type of a tile's K and V: as the pool stores them, or widened to f32 */
#ifndef IDEFT_KERNEL_H
#define IDEFT_KERNEL_H

#include <string.h>

#include "../device.h"
#include "layout.h"
#include "state.h"

#if __FINITE_MATH_ONLY__
#error "infinities are used: without -ffast-math and -ffinite-math-only"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "pairs of bf16 are read as words: little-endian machines only"
#endif

#define TILE_ROWS 128u
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
    void (*join)(const ideft_attn_t *attn, uint32_t row, uint32_t q_head); /* partials to output */
    size_t scratch_bytes;                                                  /* a thread */
    uint32_t row_cost; /* of a token for one matrix row, softmax too, in units of D/60 clocks */
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

/* Join the partials of a row's query head in the order of the row's path. */
static inline void ideft_attn_join(const ideft_attn_t *attn, uint32_t row, uint32_t q_head)
{
    const ideft_geometry_t *g = attn->geom;
    const uint32_t *at = attn->plan->part_list + attn->plan->part_begin[row],
                   *end = attn->plan->part_list + attn->plan->part_begin[row + 1];
    const size_t stride = ideft_part_floats(g->D), step = g->H * stride;
    const float *parts = attn->part + q_head * stride;
    float o[MAX_D], m = -INFINITY, d = 0;
    for (const uint32_t *i = at; i < end; i++) {
        const float pm = parts[*i * step + g->D];
        m = pm > m ? pm : m;
    }
    memset(o, 0, g->D * sizeof(float));
    for (const uint32_t *i = at; i < end; i++) {
        const float *part = parts + *i * step;
        const float w = ideft_weight(part[g->D], m);
        d += w * part[g->D + 1];
        for (uint32_t e = 0; e < g->D; e += 16)
            *(ideft_lanes_t *)(o + e) += w * *(const ideft_lanes_t *)(part + e);
    }
    ideft_attn_output(attn, row, q_head, o, m, d);
}

#endif
