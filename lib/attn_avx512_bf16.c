/* SPDX-License-Identifier: MIT */
/* AVX512-BF16: bf16 KV through vdpbf16ps. Twice the work an instruction where it runs at the rate of
 * an f32 FMA (AMD's cores), no gain where it runs at half of it (Intel's). */
#include "config.h"

#include <immintrin.h>

#define DOT 1
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
#define DOT_PAIRS(_acc, _v, _pair) \
    ((vf)_mm512_dpbf16_ps((__m512)(_acc), (__m512bh)(_v), (__m512bh)_mm512_set1_epi32((int)(_pair))))
#define ROUND_BF16(_p, _v) \
    _mm256_storeu_si256((__m256i *)(_p), (__m256i)_mm512_cvtneps_pbh((__m512)(_v)))

#include "attn_tile.h"

const ideft_kernel_t ideft_kernel_avx512_bf16 = {
    .name = "avx512_bf16",
    .isa = DEFT_ISA_AVX512_BF16,
    .item = { NULL, NULL, NULL, compute_item },
    .merge = merge_row,
    .scratch_bytes = sizeof(scratch_t),
};
