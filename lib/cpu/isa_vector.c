/* SPDX-License-Identifier: MIT */
/* Vectors of 4 floats in the compiler's own types, all KV types widened to f32: NEON on ARM, SSE on
 * x86 (fused multiply-adds and conversions where the compiler was told that it has them). */
#include "config.h"

#include "kernel.h"

#include "vec_4.h"

#include "micro_fma.h"

#include "tile.h"

const ideft_kernel_t ideft_kernel_vector = {
#ifdef __ARM_NEON
    .name = "neon",
#else
    .name = "vector",
#endif
    .isa = DEFT_ISA_VECTOR,
    .group = { NULL, compute_group, compute_group, compute_group },
    .join = ideft_attn_join,
    .scratch_bytes = sizeof(scratch_t),
    .row_cost = 18,
};
