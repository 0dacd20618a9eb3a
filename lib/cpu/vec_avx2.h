/* SPDX-License-Identifier: MIT */
/* Vectors of 8 floats in AVX2, FMA and F16C (lanes.h). */
#ifndef IDEFT_VEC_AVX2_H
#define IDEFT_VEC_AVX2_H

#include <immintrin.h>

#define VL 8
#define REGISTERS 16

#include "lanes.h"

INLINE vf max_v(vf a, vf b)
{
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
}

INLINE float largest(vf v)
{
    __m128 x = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    x = _mm_max_ss(x, _mm_shuffle_ps(x, x, 1));
    return _mm_cvtss_f32(x);
}

INLINE int any_above(vf v, float x)
{
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(x), _CMP_GT_OQ)) != 0;
}

INLINE vf load_f16(const void *p)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(p));
}

INLINE void store_first(float *p, vf v, uint32_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane), (__m256)v);
}

INLINE vf split_v(vf x, vf *n)
{
    return split_by_rounding(max_v(splat(-127.0f), x), n);
}

INLINE vf scale_v(vf p, vf n)
{
    return scale_by_exponent(p, n);
}

#include "transpose8_avx.h"
#include "vec_math.h"

#endif
