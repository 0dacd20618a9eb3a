/* SPDX-License-Identifier: MIT */
/* Vectors of VL floats: the types, and what the compiler's own operators give. VL is defined by the
 * header of an instruction set (vec_avx2.h, vec_avx512.h, vec_4.h), which includes this one, and
 * defines besides
 *
 *   REGISTERS             vector registers: 16 or 32
 *   max_v(a, b)           lanewise; b where one is NaN
 *   largest(v)            of the lanes, of which none is NaN
 *   any_above(v, x)       is a lane above x
 *   load_f16(p)           VL halves as floats
 *   store_first(p, v, n)  the first n lanes
 *   split_v(x, &n)        x less the nearest integer, which goes to n in a form for scale_v(); for
 *                         x up to 100; NaN stays
 *   scale_v(p, n)         p * 2^n, 0 for n up to -127
 *   transpose8(from, to, ld, factor)
 *                         to[d * ld + i] = from[i][d] * factor for i, d below 8
 *
 * and includes vec_math.h last. */
#ifndef IDEFT_LANES_H
#define IDEFT_LANES_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VL * 4), may_alias));
typedef float vfu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), may_alias));
typedef uint32_t vuu __attribute__((vector_size(VL * 4), aligned(4), may_alias));

INLINE vf splat(float x)
{
    return x - (vf){ 0 };
}

INLINE vf select_v(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

/* Pairs of bf16 as floats. */
INLINE vf low_half(vu pair)
{
    return (vf)(pair << 16);
}

INLINE vf high_half(vu pair)
{
    return (vf)(pair & 0xffff0000u);
}

INLINE float sum_lanes(const float *d)
{
    float sum = 0;
    for (int i = 0; i < VL; i++)
        sum += d[i];
    return sum;
}

/* split_v() and scale_v() where no instruction does it; x is above -127.5. Adding 1.5 * 2^23 leaves
 * the nearest integer in the low bits. */
#define ROUNDER 12582912.0f

INLINE vf split_by_rounding(vf x, vf *n)
{
    *n = x + splat(ROUNDER);
    return x - (*n - splat(ROUNDER));
}

INLINE vf scale_by_exponent(vf p, vf n)
{
    return p * (vf)(((vi)n << 23) + (127 << 23));
}

/* Ask for a cache line that will be read, to come into the second level of cache: in the first it
 * would take the place of what is in use. */
#define PREFETCH(_p) __builtin_prefetch((_p), 0, 2)

#endif
