/* SPDX-License-Identifier: MIT */
/* Where the CPU device keeps an element inside a plane (../format/format.h), slots rounded up to
 * whole blocks.
 *
 *   K, f32 f16:  [block of 16 slots][D][16]
 *   K, bf16:     [block of 16 slots][D/2][16][2]
 *   V, f32 f16:  [slot][D]
 *   V, bf16:     [pair of slots][D][2]
 *
 * So a vector of K holds one d of several tokens, and QK^T needs no transposition. Elements of bf16
 * lie in pairs, two d of a token in K and two tokens in V, as vdpbf16ps and the tile unit of AMX
 * take them. */
#ifndef IDEFT_LAYOUT_H
#define IDEFT_LAYOUT_H

#include "../format/format.h"

#define IDEFT_BLOCK 16u

/* Elements that lie together as one lane of a block of K, or as one column of V. */
static inline uint32_t ideft_lane_elements(deft_dtype_t element)
{
    return element == DEFT_BF16 ? 2 : 1;
}

static inline uint32_t ideft_lane_bytes(deft_dtype_t element)
{
    return ideft_lane_elements(element) * ideft_element_bytes(element);
}

/* Element index of (slot, d) in a plane. */
static inline size_t ideft_k_index(deft_dtype_t element, uint32_t D, uint32_t slot, uint32_t d)
{
    const size_t block = slot / IDEFT_BLOCK, lane = slot % IDEFT_BLOCK;
    if (element == DEFT_BF16)
        return block * D * IDEFT_BLOCK + (d / 2) * 2 * IDEFT_BLOCK + lane * 2 + d % 2;
    return block * D * IDEFT_BLOCK + d * IDEFT_BLOCK + lane;
}

static inline size_t ideft_v_index(deft_dtype_t element, uint32_t D, uint32_t slot, uint32_t d)
{
    if (element == DEFT_BF16)
        return (size_t)(slot / 2) * 2 * D + d * 2 + slot % 2;
    return (size_t)slot * D + d;
}

#endif
