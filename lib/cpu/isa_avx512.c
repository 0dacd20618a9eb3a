/* SPDX-License-Identifier: MIT */
/* AVX-512 F, BW, DQ, VL: 24 accumulators of 16 floats, all KV types widened to f32. */
#include "config.h"

#include "kernel.h"

#include "vec_avx512.h"

#include "micro_fma.h"

#include "tile.h"

const ideft_kernel_t ideft_kernel_avx512 = {
    .name = "avx512",
    .isa = DEFT_ISA_AVX512,
    .group = { NULL, compute_group, compute_group, compute_group },
    .join = ideft_attn_join,
    .scratch_bytes = sizeof(scratch_t),
    .row_cost = 5,
};
