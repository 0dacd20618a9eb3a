/* SPDX-License-Identifier: MIT */
/* AVX2, FMA, F16C: 12 accumulators of 8 floats, all KV types widened to f32. */
#include "config.h"

#include "kernel.h"

#include "vec_avx2.h"

#include "micro_fma.h"

#include "tile.h"

const ideft_kernel_t ideft_kernel_avx2 = {
    .name = "avx2",
    .isa = DEFT_ISA_AVX2,
    .group = { NULL, compute_group, compute_group, compute_group },
    .join = ideft_attn_join,
    .scratch_bytes = sizeof(scratch_t),
    .row_cost = 9,
};
