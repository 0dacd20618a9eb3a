/* SPDX-License-Identifier: MIT */
/* The algebra of partial attention. A state of a matrix row over a set of tokens is
 *   m: a number that no s_t exceeds by more than 8;      s_t: scores in units of log2
 *   d = sum of 2^(s_t - m),  o = sum of 2^(s_t - m) v_t
 * The empty set is (-inf, 0, 0). Two sets without a common token join as
 *   m = max(m1, m2),  d = 2^(m1 - m) d1 + 2^(m2 - m) d2,  o likewise;
 * the order of joining is fixed by the plan, so that bits do not depend on who works when. The
 * attention is o / d. Here with scalar code for all backends of the host. */
#ifndef IDEFT_STATE_H
#define IDEFT_STATE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* 2^(a - m) where m >= a; 0 for an empty set, also where both are -inf. */
static inline float ideft_weight(float a, float m)
{
    return a == -INFINITY ? 0.0f : exp2f(a - m);
}

/* A partial in memory: D floats of o, then m, then d. */
static inline size_t ideft_part_floats(uint32_t D)
{
    return D + 16; /* keeps rows on cache lines for every D */
}

#endif
