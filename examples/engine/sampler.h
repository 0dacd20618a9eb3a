/* SPDX-License-Identifier: MIT */
/* From logits to tokens. NaN counts as minus infinity throughout. */
#ifndef ENGINE_SAMPLER_H
#define ENGINE_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

enum { SAMPLER_CANDIDATES = 64 }; /* enough for anything */

typedef struct sampler {
    uint64_t state;    /* of the generator: any seed will do */
    float temperature; /* 0: greedy */
    float top_p;       /* 0 or 1: off */
    size_t top_k;      /* 0: SAMPLER_CANDIDATES */
} sampler_t;

typedef struct candidate {
    int32_t id;
    float logprob;
} candidate_t;

/* Uniform in (0, 1). */
double sampler_uniform(sampler_t *s);

int32_t sampler_argmax(const float *logits, size_t n); /* the lowest id of the largest */

/* The k best in falling order (ties: lower id first) with their log probabilities at temperature 1.
 * Returns how many: fewer than k where n is. O(n log k). */
size_t sampler_top(const float *logits, size_t n, size_t k, candidate_t *out);

/* One token by temperature, top_k and top_p: of the k best candidates, of which it uses up to
 * SAMPLER_CANDIDATES (k > 0), or of logits. With as many candidates both give the same token. */
int32_t sampler_pick(sampler_t *s, const candidate_t *top, size_t k);
int32_t sampler_draw(sampler_t *s, const float *logits, size_t n);

#endif
