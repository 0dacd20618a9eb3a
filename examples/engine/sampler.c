/* SPDX-License-Identifier: MIT */
#include "sampler.h"

#include <math.h>

double sampler_uniform(sampler_t *s) /* splitmix64 */
{
    uint64_t z = s->state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return ((double)(z >> 12) + 0.5) * 0x1p-52;
}

int32_t sampler_argmax(const float *logits, size_t n)
{
    size_t best = 0;

    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i])))
            best = i;
    return (int32_t)best;
}

double sampler_log_sum(const float *logits, size_t n, float temperature)
{
    double scale = temperature > 0 ? 1.0 / (double)temperature : 1.0, sum = 0;
    float max = n ? logits[sampler_argmax(logits, n)] : 0.0f;

    if (n == 0 || isnan(max) || isinf(max))
        return 0;
    for (size_t i = 0; i < n; i++)
        if (!isnan(logits[i]))
            sum += (double)expf((float)((double)(logits[i] - max) * scale));
    return (double)max * scale + log(sum);
}

static int before(candidate_t a, candidate_t b)
{
    return a.logprob > b.logprob || (a.logprob == b.logprob && a.id < b.id);
}

size_t sampler_top(const float *logits, size_t n, size_t k, candidate_t *out)
{
    double log_sum = sampler_log_sum(logits, n, 0);
    size_t have = 0;

    if (k == 0)
        return 0;
    for (size_t i = 0; i < n; i++) {
        candidate_t c = { (int32_t)i, isnan(logits[i]) ? -INFINITY : logits[i] };
        if (have == k && !before(c, out[k - 1]))
            continue;
        size_t at = have < k ? have++ : k - 1;
        for (; at > 0 && before(c, out[at - 1]); at--)
            out[at] = out[at - 1];
        out[at] = c;
    }
    for (size_t i = 0; i < have; i++)
        out[i].logprob -= (float)log_sum;
    return have;
}

int32_t sampler_pick(sampler_t *s, const candidate_t *top, size_t k)
{
    double p[SAMPLER_CANDIDATES], sum = 0, kept = 0;
    size_t m = 0;

    k = k < SAMPLER_CANDIDATES ? k : SAMPLER_CANDIDATES;
    k = s->top_k > 0 && s->top_k < k ? s->top_k : k;
    if (!(s->temperature > 0))
        return top[0].id;
    for (size_t i = 0; i < k; i++)
        sum += p[i] = exp((double)(top[i].logprob - top[0].logprob) / (double)s->temperature);
    double limit = s->top_p > 0 && s->top_p < 1 ? (double)s->top_p * sum : sum;
    while (m < k && kept < limit)
        kept += p[m++];
    double at = sampler_uniform(s) * kept;
    for (size_t i = 0; i < m; i++)
        if ((at -= p[i]) < 0)
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
