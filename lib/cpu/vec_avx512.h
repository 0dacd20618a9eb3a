/* SPDX-License-Identifier: MIT */
/* Vectors of 16 floats in AVX-512 F, BW, DQ, VL (lanes.h); with AVX512-BF16, conversions to
 * bf16. */
#ifndef IDEFT_VEC_AVX512_H
#define IDEFT_VEC_AVX512_H

#include <immintrin.h>

#define VL 16
#define REGISTERS 32

#include "lanes.h"

INLINE vf max_v(vf a, vf b)
{
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}

INLINE float largest(vf v)
{
    return _mm512_reduce_max_ps((__m512)v);
}

INLINE int any_above(vf v, float x)
{
    return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(x), _CMP_GT_OQ) != 0;
}

INLINE vf load_f16(const void *p)
{
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p));
}

INLINE void store_first(float *p, vf v, uint32_t n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}

INLINE vf split_v(vf x, vf *n)
{
    const vf f = (vf)_mm512_reduce_ps((__m512)x, 0); /* 0 for infinite x */
    *n = x - f;
    return f;
}

INLINE vf scale_v(vf p, vf n)
{
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
}

#ifdef __AVX512BF16__
INLINE void store_bf16(void *p, vf v)
{
    _mm256_storeu_si256(p, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}

/* v rounded to bf16, as floats again. */
INLINE vf rounded_to_bf16(vf v)
{
    const __m256i h = (__m256i)_mm512_cvtneps_pbh((__m512)v);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
}

INLINE vf dot_pairs(vf acc, vu v, uint32_t pair)
{
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)v, (__m512bh)_mm512_set1_epi32((int)pair));
}
#endif

#include "transpose8_avx.h"
#include "vec_math.h"

#endif
