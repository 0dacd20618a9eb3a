/* SPDX-License-Identifier: MIT */
/* Drawing a token from the best candidates of a row. */
#include "sampler.h"

#include <math.h>

#include "vector_exp.h"

double sampler_uniform(sampler_t *s) /* splitmix64 */
{
    uint64_t z = s->state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return ((double)(z >> 12) + 0.5) * 0x1p-52;
}

/* Logits are looked at by blocks: most vocabularies are large, and few of their tokens matter. */
enum { BLOCK = 32, LANES = 4 };

typedef float vf __attribute__((vector_size(16), aligned(4)));
typedef int32_t vi __attribute__((vector_size(16), aligned(4)));

ENGINE_EXP(exp_of, vf, vi)

/* The largest of n values, NaNs aside: -INFINITY if there is none. */
static float largest(const float *x, size_t n)
{
    vf most = (vf){ 0 } - INFINITY;
    float max = -INFINITY;
    size_t i = 0;

    for (; i + LANES <= n; i += LANES) {
        const vf v = *(const vf *)(x + i);
        const vi more = v > most;
        most = (vf)(((vi)v & more) | ((vi)most & ~more));
    }
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (int j = 0; j < LANES; j++)
        max = most[j] > max ? most[j] : max;
    return max;
}

int32_t sampler_argmax(const float *logits, size_t n)
{
    const float max = largest(logits, n);

    for (size_t i = 0; i < n; i++)
        if (logits[i] == max)
            return (int32_t)i;
    return 0;
}

/* log of the sum of exp(logits), NaNs aside. */
static double log_sum(const float *logits, size_t n)
{
    const float max = largest(logits, n);
    double sum = 0;

    if (isinf(max))
        return 0;
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        vf part = { 0 };
        float rest = 0;
        size_t i = begin;
        const size_t end = n - begin < BLOCK ? n : begin + BLOCK;
        for (; i + LANES <= end; i += LANES) {
            const vf x = *(const vf *)(logits + i);
            part += (vf)((vi)exp_of(x - max) & (x == x));
        }
        for (; i < end; i++)
            rest += isnan(logits[i]) ? 0 : expf(logits[i] - max);
        sum += (double)(part[0] + part[1] + (part[2] + part[3]) + rest);
    }
    return (double)max + log(sum);
}

static int before(candidate_t a, candidate_t b)
{
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id);
}

size_t sampler_top(const float *logits, size_t n, size_t k, candidate_t *out)
{
    size_t have = 0;

    if (k == 0)
        return 0;
    const double sum = log_sum(logits, n);
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        const size_t end = n - begin < BLOCK ? n : begin + BLOCK;
        if (have == k &&
            !(largest(logits + begin, end - begin) > out[k - 1].logprob)) /* ids only grow */
            continue;
        for (size_t i = begin; i < end; i++) {
            const candidate_t c = { (int32_t)i, isnan(logits[i]) ? -INFINITY : logits[i] };
            if (have == k && !before(c, out[k - 1]))
                continue;
            size_t at = have < k ? have++ : k - 1;
            for (; at > 0 && before(c, out[at - 1]); at--)
                out[at] = out[at - 1];
            out[at] = c;
        }
    }
    for (size_t i = 0; i < have; i++)
        out[i].logprob -= (float)sum;
    return have;
}

int32_t sampler_pick(sampler_t *s, const candidate_t *top, size_t k)
{
    float p[SAMPLER_CANDIDATES] = { 0 };
    double sum = 0, kept = 0;
    size_t m = 0;

    k = k < SAMPLER_CANDIDATES ? k : SAMPLER_CANDIDATES;
    k = s->top_k > 0 && s->top_k < k ? s->top_k : k;
    if (!(s->temperature > 0))
        return top[0].id;
    for (size_t i = 0; i < k; i++)
        p[i] = (top[i].logprob - top[0].logprob) / s->temperature;
    for (size_t i = 0; i < k; i += LANES) /* SAMPLER_CANDIDATES is a multiple */
        *(vf *)(p + i) = exp_of(*(vf *)(p + i));
    for (size_t i = 0; i < k; i++)
        sum += (double)p[i];
    double limit = s->top_p > 0 && s->top_p < 1 ? (double)s->top_p * sum : sum;
    while (m < k && kept < limit)
        kept += (double)p[m++];
    double at = sampler_uniform(s) * kept;
    for (size_t i = 0; i < m; i++)
        if ((at -= (double)p[i]) < 0)
            return top[i].id;
    return top[m > 0 ? m - 1 : 0].id;
}

int32_t sampler_draw(sampler_t *s, const float *logits, size_t n)
{
    candidate_t top[SAMPLER_CANDIDATES];

    if (!(s->temperature > 0))
        return sampler_argmax(logits, n);
    return sampler_pick(s, top, sampler_top(logits, n, SAMPLER_CANDIDATES, top));
}
