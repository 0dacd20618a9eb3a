/* SPDX-License-Identifier: MIT */
/* Micro kernels whose accumulators stay in registers: R rows by C vectors. Each shape is a function
 * of its own, so that the loops over it unroll. */
#ifndef IDEFT_SHAPES_H
#define IDEFT_SHAPES_H

#define TILE IDEFT_TILE_TOKENS
#define LDS TILE

#if REGISTERS == 32
#define MAX_ROWS 12 /* with 2 vectors */
#define WIDE_ROWS 6 /* with 4 */
#else
#define MAX_ROWS 6
#define WIDE_ROWS 0
#endif

#define EACH_ROW _Pragma("GCC unroll 16") for (int r = 0; r < R; r++)
#define EACH_VEC _Pragma("GCC unroll 4") for (int c = 0; c < C; c++)

/* _X(rows, vectors, _f) for every shape that there is. */
#define UP_TO_6(_X, _C, _f) \
    _X(1, _C, _f) _X(2, _C, _f) _X(3, _C, _f) _X(4, _C, _f) _X(5, _C, _f) _X(6, _C, _f)
#define FROM_7(_X, _C, _f) \
    _X(7, _C, _f) _X(8, _C, _f) _X(9, _C, _f) _X(10, _C, _f) _X(11, _C, _f) _X(12, _C, _f)
#if REGISTERS == 32
#define SHAPES(_X, _f) \
    UP_TO_6(_X, 1, _f) FROM_7(_X, 1, _f) UP_TO_6(_X, 2, _f) FROM_7(_X, 2, _f) UP_TO_6(_X, 4, _f)
#else
#define SHAPES(_X, _f) UP_TO_6(_X, 1, _f) UP_TO_6(_X, 2, _f)
#endif

/* How many of n vectors are taken at once with these rows. */
INLINE uint32_t at_once(uint32_t n, uint32_t rows)
{
    return n >= 4 && rows <= WIDE_ROWS ? 4 : n >= 2 ? 2 : 1;
}

/* Steps of the loops over a tile for a panel of so many rows: over d for the scores, over tokens
 * for the values. */
INLINE uint32_t product_steps(uint32_t cols, uint32_t D, uint32_t rows)
{
    const uint32_t wide = VL * (rows <= WIDE_ROWS ? 4 : 2);
    return (cols + wide - 1) / wide * D + (D + wide - 1) / wide * cols;
}

#endif
