/* SPDX-License-Identifier: MIT */
/* The algebra of partial attention: states of a softmax, and how they are merged. Whoever merges
 * uses these functions: the attention kernel as tiles go by and at the end of a unit, and the merge
 * kernel.
 *
 * Attention of a row over a set of tokens, with scores s in units of log2 and values v, is o / d of
 * the set's state (m, d, o):
 *
 *     d = sum of 2^(s - m),   o = sum of 2^(s - m) v
 *
 * m is about the largest score; any m gives the same o / d, but a much smaller one overflows. The
 * empty set is (-INFINITY, 0, 0). To join the states of two disjoint sets, both are brought to the
 * larger m and added up. That is associative but for rounding, so that all callers join in an order
 * that the plan fixes.
 *
 *   a sink       a token with a score and no value: (sink, 1, 0)
 *   a partial    a state that was normalised and written out: (log2_sum(), 1, o / d)
 *
 * m and d of a row are known to each thread that has some of its o. How o lies in threads differs,
 * so it is the caller who multiplies it, by the factors that these functions return. All of them
 * are values and return values: with references to the hot loop's registers, nvcc 13.0 gives them
 * out in another order. */
#ifndef IDEFT_STATE_CUH
#define IDEFT_STATE_CUH

#include "ptx.cuh"

#include <math.h>

/* m and d of a state. */
struct alignas(8) row_sum {
    float m, d;
};

__device__ __forceinline__ row_sum empty_sum()
{
    return { -INFINITY, 0 };
}

/* ---- weights ---- */

/* What is relative to 2^from is multiplied by this to be relative to 2^to, which is finite. */
__device__ __forceinline__ float rebased(float from, float to)
{
    return exp2_fast(from - to);
}

/* If both are -INFINITY, from - to is not a number, where an empty set has to count 0. To guard
 * against that, either leave the exponential out, or replace `to`, which may serve several sets.
 * The bits are the same. */
__device__ __forceinline__ float weight(float from, float to)
{
    return from == -INFINITY ? 0.0f : rebased(from, to);
}

__device__ __forceinline__ float base_of(float to)
{
    return to == -INFINITY ? 0.0f : to;
}

/* The same for many scores: a weight is 2^(s + shift). All of them may be -INFINITY, and m too. */
__device__ __forceinline__ float shift_of(float m)
{
    return m == -INFINITY ? 0.0f : -m;
}

/* Scores up to this one leave m where it is; only a larger one moves it there. Weights of up to 2^8
 * do no harm, and most tiles leave o alone this way. */
__device__ __forceinline__ float limit_of(float m)
{
    return m + 8;
}

/* d with more weights, after m has moved by a factor of `by`. */
__device__ __forceinline__ float add_weights(float d, float by, float weights)
{
    return fmaf(d, by, weights);
}

/* ---- joining ---- */

/* a x + b y, rounded in one way whatever the compiler prefers to contract. */
__device__ __forceinline__ float weighted(float a, float x, float b, float y)
{
    return fmaf(a, x, b * y);
}

/* Two states: their sum, and by what o of each is multiplied. */
struct joined {
    row_sum sum;
    float by[2];
};

/* What differs between the attention and the merge kernel: the guard, because the merge kernel
 * spills registers with the other, and which product of d is rounded before they are added, which
 * is part of the bits of a result. */
enum guard { GUARD_EACH, GUARD_BASE };

template <guard G> __device__ __forceinline__ joined join(row_sum x, row_sum y)
{
    joined j;
    j.sum.m = fmaxf(x.m, y.m);
    const float to = G == GUARD_BASE ? base_of(j.sum.m) : j.sum.m;
    j.by[0] = G == GUARD_BASE ? rebased(x.m, to) : weight(x.m, to);
    j.by[1] = G == GUARD_BASE ? rebased(y.m, to) : weight(y.m, to);
    j.sum.d = G == GUARD_BASE ? weighted(j.by[0], x.d, j.by[1], y.d)
                              : weighted(j.by[1], y.d, j.by[0], x.d);
    return j;
}

/* A state and a sink (in units of log2), which has no o. */
struct with_sink {
    row_sum sum;
    float by;
};

__device__ __forceinline__ with_sink join_sink(row_sum x, float sink)
{
    with_sink j;
    j.sum.m = fmaxf(sink, x.m);
    j.by = weight(x.m, j.sum.m);
    j.sum.d = weighted(j.by, x.d, weight(sink, j.sum.m), 1);
    return j;
}

/* N states, `stride` apart, in their order. by: what o of each is multiplied by. */
template <int N>
__device__ __forceinline__ row_sum join_all(const row_sum *x, uint32_t stride, float (&by)[N])
{
    row_sum sum = empty_sum();
#pragma unroll
    for (int i = 0; i < N; i++)
        sum.m = fmaxf(sum.m, x[i * stride].m);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const row_sum v = x[i * stride];
        by[i] = weight(v.m, sum.m);
        sum.d += by[i] * v.d;
    }
    return sum;
}

/* ---- the result ---- */

/* What o / by is multiplied by to be normalised; 0 for the empty set. The attention kernel divides
 * approximately, the merge exactly. */
__device__ __forceinline__ float normaliser_fast(row_sum x, float by)
{
    return x.d == 0 ? 0.0f : __fdividef(by, x.d);
}

__device__ __forceinline__ float normaliser(row_sum x, float by)
{
    return x.d == 0 ? 0.0f : by / x.d;
}

/* log2 of the sum of 2^s. */
__device__ __forceinline__ float log2_sum(row_sum x)
{
    return x.d == 0 ? -INFINITY : x.m + __log2f(x.d);
}

#endif
