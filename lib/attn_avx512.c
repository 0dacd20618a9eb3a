/* SPDX-License-Identifier: MIT */
/* AVX-512 F, BW, DQ, VL: 24 accumulators of 16 floats, all KV types widened to f32. */
#include "config.h"

#include <immintrin.h>

#define VL 16
#define MAX_ROWS 12
#define WIDE_ROWS 6
#define VMAX(_a, _b) ((vf)_mm512_max_ps((__m512)(_a), (__m512)(_b)))
#define HMAX(_v) _mm512_reduce_max_ps((__m512)(_v))
#define ANY_ABOVE(_v, _x) _mm512_cmp_ps_mask((__m512)(_v), _mm512_set1_ps(_x), _CMP_GT_OQ)
#define LOAD_F16(_p) ((vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(_p))))
#define STORE_FIRST(_p, _v, _n) \
    _mm512_mask_storeu_ps(_p, (__mmask16)((1u << (_n)) - 1), (__m512)(_v))

#define REDUCE(_v) ((vf)_mm512_reduce_ps((__m512)(_v), 0))
#define SCALE(_p, _n) ((vf)_mm512_scalef_ps((__m512)(_p), (__m512)(_n)))

#include "attn_tile.h"

const ideft_kernel_t ideft_kernel_avx512 = {
    .name = "avx512",
    .isa = DEFT_ISA_AVX512,
    .item = { NULL, compute_item, compute_item, compute_item },
    .merge = merge_row,
    .scratch_bytes = sizeof(scratch_t),
};
