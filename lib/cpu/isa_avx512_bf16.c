/* SPDX-License-Identifier: MIT */
/* AVX512-BF16: bf16 KV through vdpbf16ps. Twice the work an instruction where it runs at the rate
 * of an f32 FMA (AMD's cores), no gain where it runs at half of it (Intel's). */
#include "config.h"

#include "isa_avx512.h"

#define DOT 1
#define MAX_ROWS 12
#define WIDE_ROWS 6
#define WHOLE_PANELS 0
#define DOT_PAIRS(_acc, _v, _pair)                        \
    ((vf)_mm512_dpbf16_ps((__m512)(_acc), (__m512bh)(_v), \
                          (__m512bh)_mm512_set1_epi32((int)(_pair))))

#include "tile.h"

const ideft_kernel_t ideft_kernel_avx512_bf16 = {
    .name = "avx512_bf16",
    .isa = DEFT_ISA_AVX512_BF16,
    .group = { NULL, NULL, NULL, compute_group },
    .merge = merge_row,
    .scratch_bytes = sizeof(scratch_t),
};
