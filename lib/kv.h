/* SPDX-License-Identifier: MIT */
/* Where the CPU arena keeps an element, and how a stored one becomes a float.
 *
 * Per layer two planes, K then V, each [Hkv][n_slots][D] with slots rounded up to whole blocks.
 *   K, f32 f16:  [block of 16 slots][D][16]        a vector holds one d of 16 tokens: QK^T needs no
 *   K, bf16:     [block of 16 slots][D/2][16][2]   transposition, and the bf16 forms are what
 *   V, f32 f16:  [slot][D]                         vdpbf16ps and the tile unit take as they are
 *   V, bf16:     [pair of slots][D][2]
 * A plane of one head is contiguous, so a run of slots is read in one sweep. */
#ifndef IDEFT_KV_H
#define IDEFT_KV_H

#include <string.h>

#include "types.h"

#define IDEFT_BLOCK 16u

static inline float ideft_bf16_to_f32(uint16_t h)
{
    const uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* Round to nearest, ties to even; a NaN stays one. */
static inline uint16_t ideft_f32_to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline float ideft_f16_to_f32(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = h >> 10 & 31, man = h & 0x3ffu;
    uint32_t bits;
    float f;
    if (exp == 31) {
        bits = sign | 0x7f800000u | man << 13;
    } else if (exp != 0) {
        bits = sign | (exp + 112) << 23 | man << 13;
    } else {
        f = (float)man * 0x1p-24f;
        return sign ? -f : f;
    }
    memcpy(&f, &bits, 4);
    return f;
}

/* Round to nearest, ties to even; too large becomes infinite. */
static inline uint16_t ideft_f32_to_f16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (bits >= 0x477ff000u)
        return (uint16_t)(sign | 0x7c00u);
    if (bits < 0x38800000u) { /* subnormal: let the adder round */
        float magic;
        memcpy(&magic, &bits, 4);
        magic += 0.5f;
        memcpy(&bits, &magic, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    bits += 0xc8000fffu + (bits >> 13 & 1);
    return (uint16_t)(sign | bits >> 13);
}

/* Element index of (slot, d) in a head's plane. */
static inline size_t ideft_k_index(deft_dtype_t type, uint32_t D, uint32_t slot, uint32_t d)
{
    const size_t block = slot / IDEFT_BLOCK, lane = slot % IDEFT_BLOCK;
    if (type == DEFT_BF16)
        return block * D * IDEFT_BLOCK + (d / 2) * 2 * IDEFT_BLOCK + lane * 2 + d % 2;
    return block * D * IDEFT_BLOCK + d * IDEFT_BLOCK + lane;
}

static inline size_t ideft_v_index(deft_dtype_t type, uint32_t D, uint32_t slot, uint32_t d)
{
    if (type == DEFT_BF16)
        return (size_t)(slot / 2) * 2 * D + d * 2 + slot % 2;
    return (size_t)slot * D + d;
}

static inline float ideft_kv_load(deft_dtype_t type, const void *plane, size_t index)
{
    if (type == DEFT_F32)
        return ((const float *)plane)[index];
    const uint16_t h = ((const uint16_t *)plane)[index];
    return type == DEFT_F16 ? ideft_f16_to_f32(h) : ideft_bf16_to_f32(h);
}

static inline void ideft_kv_store(deft_dtype_t type, void *plane, size_t index, float f)
{
    if (type == DEFT_F32)
        ((float *)plane)[index] = f;
    else
        ((uint16_t *)plane)[index] = type == DEFT_F16 ? ideft_f32_to_f16(f) : ideft_f32_to_bf16(f);
}

#endif
