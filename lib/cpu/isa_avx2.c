/* SPDX-License-Identifier: MIT */
/* AVX2, FMA, F16C: 12 accumulators of 8 floats, all KV types widened to f32. */
#include "config.h"

#include <immintrin.h>

#define VL 8
#define MAX_ROWS 6
#define WIDE_ROWS 0
#define WHOLE_PANELS 0
#define VMAX(_a, _b) ((vf)_mm256_max_ps((__m256)(_a), (__m256)(_b)))
#define HMAX(_v) largest((__m256)(_v))
#define ANY_ABOVE(_v, _x) \
    _mm256_movemask_ps(_mm256_cmp_ps((__m256)(_v), _mm256_set1_ps(_x), _CMP_GT_OQ))
#define LOAD_F16(_p) ((vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(_p))))
#define STORE_FIRST(_p, _v, _n)                                                        \
    _mm256_maskstore_ps(_p,                                                            \
                        _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(_n)),               \
                                           _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)), \
                        (__m256)(_v))

static inline float largest(__m256 v)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    x = _mm_max_ss(x, _mm_shuffle_ps(x, x, 1));
    return _mm_cvtss_f32(x);
}

#include "tile.h"

const ideft_kernel_t ideft_kernel_avx2 = {
    .name = "avx2",
    .isa = DEFT_ISA_AVX2,
    .group = { NULL, compute_group, compute_group, compute_group },
    .merge = merge_row,
    .scratch_bytes = sizeof(scratch_t),
};
