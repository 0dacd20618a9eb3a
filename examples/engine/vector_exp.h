/* SPDX-License-Identifier: MIT */
/* ENGINE_EXP(name, vf, vi) defines vf name(vf x): e^x for vectors of floats, vi being ints of as
 * many lanes. By 2^n and a polynomial of degree 6; x is clamped to +-87, a NaN stays one. */
#ifndef ENGINE_VECTOR_EXP_H
#define ENGINE_VECTOR_EXP_H

#define ENGINE_EXP(_name, _vf, _vi)                                       \
    static inline _vf _name(_vf x)                                        \
    {                                                                     \
        const _vf zero = { 0 }, magic = zero + 12582912.0f;               \
        const _vi low = x<-87.0f, high = x> 87.0f;                        \
        x = (_vf)(((_vi)x & ~low & ~high) | ((_vi)(zero - 87.0f) & low) | \
                  ((_vi)(zero + 87.0f) & high));                          \
        const _vf t = x * 1.44269504f + magic, n = t - magic;             \
        const _vf r = x - n * 0.693359375f + n * 2.12194440e-4f;          \
        _vf y = r * 1.3888889e-3f + 8.3333333e-3f;                        \
        y = y * r + 4.1666667e-2f;                                        \
        y = y * r + 1.6666667e-1f;                                        \
        y = y * r + 0.5f;                                                 \
        y = y * r + 1.0f;                                                 \
        y = y * r + 1.0f;                                                 \
        return (_vf)((_vi)y + (((_vi)t - (_vi)magic) << 23));             \
    }

#endif
