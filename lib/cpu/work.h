/* SPDX-License-Identifier: MIT */
/* What a thread works in while it computes a group, and what a tile of it is. Made for one
 * instruction set: VL and MAX_ROWS are its, and micro_t is the part of its micro kernels. */
#ifndef IDEFT_WORK_H
#define IDEFT_WORK_H

#if !defined(VL) || !defined(TILE) || !defined(LDS) || !defined(MAX_ROWS)
#error "for a header of micro kernels, which defines these and micro_t before it includes this"
#endif

#include "ahead.h"

#define NV (TILE / VL)        /* vectors of a row of scores */
#define BV (IDEFT_BLOCK / VL) /* vectors of a block of slots */

typedef struct piece { /* tokens whose V adjoins */
    const void *v;     /* of its first token; raw bf16: of the pair that it is in */
    uint32_t n, slot;
} piece_t;

typedef struct scratch {
    micro_t micro;
    float o[TILE_ROWS * MAX_D] __attribute__((aligned(64)));
    float kt[MAX_D * TILE] __attribute__((aligned(64)));
    float vt[TILE * MAX_D] __attribute__((aligned(64)));
    float s[MAX_ROWS * LDS] __attribute__((aligned(64)));
    float d[TILE_ROWS * VL] __attribute__((aligned(64))); /* denominators, a partial sum a lane */
    float m[TILE_ROWS], alpha[MAX_ROWS];
    int32_t row[TILE_ROWS], pos[TILE_ROWS]; /* of each matrix row: query row, path position */
    /* who sees a column: query rows [row_begin, row_end) from its path position on */
    int32_t c_begin[TILE + IDEFT_BLOCK] __attribute__((aligned(64)));
    int32_t c_end[TILE + IDEFT_BLOCK] __attribute__((aligned(64)));
    int32_t c_pos[TILE + IDEFT_BLOCK] __attribute__((aligned(64)));
    uint32_t c_slot[TILE + IDEFT_BLOCK];
    const char *k[TILE / IDEFT_BLOCK]; /* blocks of K, here or in the pool */
    deft_dtype_t form;                 /* of the tile's K and V: f32, or as stored */
    piece_t piece[TILE];
    uint32_t n_piece, cols;
    stream_t stream;     /* what is asked for ahead of the tiles */
    uint32_t begin, end; /* rows that see any column, and */
    bool uniform;        /* all columns have this interval */
    bool small;          /* made of small nodes: others may join */
} scratch_t;

typedef struct work {
    const ideft_attn_t *attn;
    const unsigned char *k, *v; /* the head's planes */
    scratch_t *sc;
    uint32_t row0, rows, n; /* query rows of this pass; n matrix rows */
    uint32_t ldq, D;
    deft_dtype_t type;
} work_t;

INLINE float stored_value(const work_t *w, uint32_t col, uint32_t d)
{
    return ideft_element_load(w->type, w->v, ideft_v_index(w->type, w->D, w->sc->c_slot[col], d));
}

#endif
