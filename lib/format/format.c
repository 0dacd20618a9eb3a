/* SPDX-License-Identifier: MIT */
/* Sizes that follow from the format of KV. */
#include "config.h"

#include "format.h"

ideft_format_t ideft_format_of(deft_dtype_t element, uint32_t k_width, uint32_t v_width)
{
    return (ideft_format_t){
        .element = element,
        .bytes = ideft_element_bytes(element),
        .scale_bytes = ideft_element_scale_bytes(element),
        .planes = 2,
        .k_width = k_width,
        .v_width = v_width,
    };
}

size_t ideft_format_token_bytes(const ideft_format_t *format)
{
    return ((size_t)format->k_width + format->v_width) * format->bytes +
           (size_t)format->planes * format->scale_bytes;
}

size_t ideft_plane_bytes(const ideft_format_t *format, size_t slots, ideft_plane_t which)
{
    const size_t width = which == IDEFT_PLANE_K ? format->k_width : format->v_width;
    return slots * (width * format->bytes + format->scale_bytes);
}

size_t ideft_plane_offset(const ideft_format_t *format, size_t slots, uint32_t n_kv_heads,
                          uint32_t layer, ideft_plane_t which, uint32_t head)
{
    const size_t k = ideft_plane_bytes(format, slots, IDEFT_PLANE_K);
    const size_t v = ideft_plane_bytes(format, slots, IDEFT_PLANE_V);
    const size_t layers = layer * n_kv_heads * (k + v);
    return which == IDEFT_PLANE_K ? layers + head * k : layers + n_kv_heads * k + head * v;
}
