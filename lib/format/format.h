/* SPDX-License-Identifier: MIT */
/* The format of KV as a value: what an element is, how it becomes a float and back, how many bytes
 * a token takes, where a plane lies. No other file knows the size of an element. A new format is a
 * case in each of the four functions of an element here, and a kernel instance in the devices that
 * have it. */
#ifndef IDEFT_FORMAT_H
#define IDEFT_FORMAT_H

#include <stddef.h>

#include "deft/context.h"
#include "half.h"

/* ---- elements ---- */

/* Bytes of an element. */
static inline uint32_t ideft_element_bytes(deft_dtype_t element)
{
    return element == DEFT_F32 ? 4 : 2;
}

/* Bytes of the scales of one token and head, which lie beside its elements. */
static inline uint32_t ideft_element_scale_bytes(deft_dtype_t element)
{
    (void)element;
    return 0;
}

static inline float ideft_element_load(deft_dtype_t element, const void *from, size_t index)
{
    if (element == DEFT_F32)
        return ((const float *)from)[index];
    const uint16_t h = ((const uint16_t *)from)[index];
    return element == DEFT_F16 ? ideft_f16_to_f32(h) : ideft_bf16_to_f32(h);
}

static inline void ideft_element_store(deft_dtype_t element, void *to, size_t index, float f)
{
    if (element == DEFT_F32)
        ((float *)to)[index] = f;
    else
        ((uint16_t *)to)[index] = element == DEFT_F16 ? ideft_f32_to_f16(f) : ideft_f32_to_bf16(f);
}

/* ---- the format of a context's KV ---- */

typedef struct ideft_format {
    deft_dtype_t element;
    uint32_t bytes;            /* of an element */
    uint32_t scale_bytes;      /* of a token and head; 0: none */
    uint32_t planes;           /* of a layer: K and V */
    uint32_t k_width, v_width; /* elements of a token and head */
} ideft_format_t;

typedef enum ideft_plane { IDEFT_PLANE_K = 0, IDEFT_PLANE_V = 1 } ideft_plane_t;

ideft_format_t ideft_format_of(deft_dtype_t element, uint32_t k_width, uint32_t v_width);

/* Bytes of a token of one layer and one KV head: K, V and scales. */
size_t ideft_format_token_bytes(const ideft_format_t *format);

/* An arena holds the planes [layer][K, V][KV head]; each is contiguous and has room for all slots,
 * so that a run of slots is read in one sweep. What order tokens and elements have inside a plane
 * is the device's own. Bytes of a plane, and bytes from the start of the arena to where one
 * begins. */
size_t ideft_plane_bytes(const ideft_format_t *format, size_t slots, ideft_plane_t which);
size_t ideft_plane_offset(const ideft_format_t *format, size_t slots, uint32_t n_kv_heads,
                          uint32_t layer, ideft_plane_t which, uint32_t head);

#endif
