/* SPDX-License-Identifier: MIT */
/* 2^x and tanh, lane by lane (lanes.h). */
#ifndef IDEFT_VEC_MATH_H
#define IDEFT_VEC_MATH_H

#include "../format/geometry.h"

/* 2^x for x up to 100: error below 1e-7, 0 from -127 down, NaN stays. Polynomial on [-1/2, 1/2] by
 * Remez (that of Cephes' exp2f). */
INLINE vf exp2_v(vf x)
{
    vf n;
    const vf f = split_v(x, &n);
    vf p = splat(1.535336188319500e-4f);
    p = p * f + splat(1.339887440266574e-3f);
    p = p * f + splat(9.618437357674640e-3f);
    p = p * f + splat(5.550332471162809e-2f);
    p = p * f + splat(2.402264791363012e-1f);
    p = p * f + splat(6.931472028550421e-1f);
    p = p * f + splat(1.0f);
    return scale_v(p, n);
}

/* The same with an error of 1.02e-4, and exact for 0: enough for what is rounded to bf16. */
INLINE vf exp2_bf16_v(vf x)
{
    vf n;
    const vf f = split_v(x, &n);
    vf p = splat(0.05500893506f);
    p = p * f + splat(0.24221099814f);
    p = p * f + splat(0.69328293097f);
    p = p * f + splat(1.0f);
    return scale_v(p, n);
}

/* Odd polynomial below 5/8 (Cephes' tanhf), 1 - 2 / (e^2x + 1) above. */
INLINE vf tanh_v(vf x)
{
    const vf a = (vf)((vi)x & 0x7fffffff), z = x * x;
    vf p = splat(-5.70498872745e-3f);
    p = p * z + splat(2.06390887954e-2f);
    p = p * z + splat(-5.37397155531e-2f);
    p = p * z + splat(1.33314422036e-1f);
    p = p * z + splat(-3.33332819422e-1f);
    const vf small = p * z * x + x;
    const vf e = exp2_v(a * splat(-2.0f * (float)IDEFT_LOG2E)); /* e^-2|x| */
    const vf large = (splat(1.0f) - e) / (splat(1.0f) + e);
    const vf signed_large = (vf)((vi)large | ((vi)x & (int32_t)0x80000000));
    return select_v(a < splat(0.625f), small, signed_large);
}

#endif
