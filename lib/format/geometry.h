/* SPDX-License-Identifier: MIT */
/* What a context has to know of the model: heads, dims, scores, windows. Fixed when it is made.
 *
 * Glossary of the attention code: q k v o as everywhere; m running maximum of the scores in units
 * of log2, d denominator (sum of 2^(s-m)), both per matrix row; H query heads, Hkv KV heads,
 * G = H/Hkv; D head dim. A row is a query token; a matrix row is one of its G heads of a KV
 * head. */
#ifndef IDEFT_GEOMETRY_H
#define IDEFT_GEOMETRY_H

#include "format.h"

#define IDEFT_LOG2E 1.44269504088896340736 /* scores in units of log2: exp is 2^x then */

typedef struct ideft_geometry {
    uint32_t n_layers, H, Hkv, G, D;
    ideft_format_t format;
    float scale, softcap;
    uint32_t *windows;   /* [n_layers] */
    uint32_t max_window; /* 0: some layer sees everything */
    float *sinks;        /* [H] or NULL */
} ideft_geometry_t;

#endif
