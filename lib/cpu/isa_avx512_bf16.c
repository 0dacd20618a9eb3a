/* SPDX-License-Identifier: MIT */
/* AVX512-BF16: bf16 KV through vdpbf16ps. Twice the work an instruction where it runs at the rate
 * of an f32 FMA (AMD's cores), no gain where it runs at half of it (Intel's). */
#include "config.h"

#include "kernel.h"

#include "vec_avx512.h"

#include "micro_bf16.h"

#include "tile.h"

const ideft_kernel_t ideft_kernel_avx512_bf16 = {
    .name = "avx512_bf16",
    .isa = DEFT_ISA_AVX512_BF16,
    .group = { NULL, NULL, NULL, compute_group },
    .join = ideft_attn_join,
    .scratch_bytes = sizeof(scratch_t),
    .row_cost = 5,
};
