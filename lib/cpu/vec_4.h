/* SPDX-License-Identifier: MIT */
/* Vectors of 4 floats in the compiler's own vector types (lanes.h): NEON on ARM, SSE on x86, and
 * whatever the compiler makes of them elsewhere. */
#ifndef IDEFT_VEC_4_H
#define IDEFT_VEC_4_H

#ifdef __ARM_NEON
#include <arm_neon.h>
#endif
#ifdef __F16C__
#include <immintrin.h>
#endif
#include <string.h>

#define VL 4
#if defined(__x86_64__) || defined(__i386__)
#define REGISTERS 16
#else
#define REGISTERS 32
#endif

#include "lanes.h"

INLINE vf max_v(vf a, vf b)
{
    return select_v(a > b, a, b);
}

INLINE float largest(vf v)
{
    const float x = v[0] > v[1] ? v[0] : v[1], y = v[2] > v[3] ? v[2] : v[3];
    return x > y ? x : y;
}

INLINE int any_above(vf v, float x)
{
    const vi above = v > splat(x);
    return (above[0] | above[1] | above[2] | above[3]) != 0;
}

INLINE vf load_f16(const void *p)
{
#if defined(__ARM_NEON) && defined(__aarch64__)
    return (vf)vcvt_f32_f16(vld1_f16(p));
#elif defined(__F16C__)
    return (vf)_mm_cvtph_ps(_mm_loadl_epi64(p));
#else
    uint16_t h[4];
    memcpy(h, p, sizeof(h));
    const vu x = { h[0], h[1], h[2], h[3] };
    const vu infinite = (vu)((x & 0x7c00u) == 0x7c00u) & 0x7f800000u;
    const vf size = (vf)((x & 0x7fffu) << 13) * splat(0x1p112f); /* subnormal numbers too */
    return (vf)((vu)size | infinite | (x & 0x8000u) << 16);
#endif
}

INLINE void store_first(float *p, vf v, uint32_t n)
{
    if (n == VL) {
        *(vfu *)p = v;
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        p[i] = v[i];
}

INLINE vf split_v(vf x, vf *n)
{
    return split_by_rounding(max_v(splat(-127.0f), x), n);
}

INLINE vf scale_v(vf p, vf n)
{
    return scale_by_exponent(p, n);
}

INLINE void transpose8(const float *const *from, float *to, size_t ld, float factor)
{
    for (int i = 0; i < 8; i++)
        for (int d = 0; d < 8; d++)
            to[d * ld + i] = from[i][d] * factor;
}

#include "vec_math.h"

#endif
