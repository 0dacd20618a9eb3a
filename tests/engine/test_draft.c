/* SPDX-License-Identifier: MIT */
/* Guesses and what is kept of them, without a model: the order of a draft tree, ends and limits,
 * and that sampling over drafts follows the model's distribution. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "draft.h"
#include "suite.h"
#include "util.h"

START_TEST(test_lookup_makes_a_tree)
{
    /* "1 2" was followed by 3 4, then by 3 5, then by 6; the end is "1 2" again */
    const int32_t text[] = { 9, 1, 2, 3, 4, 7, 1, 2, 3, 5, 8, 1, 2, 6, 0, 1, 2 };
    const size_t n = sizeof(text) / sizeof(*text);
    draft_t d;

    draft_lookup(&d, text, n, 16, 2);
    ck_assert_uint_eq(d.n, 5); /* the latest first: 6 0, then 3 with 5 and 4 below it */
    const int32_t ids[] = { 6, 0, 3, 5, 4 };
    const uint8_t parents[] = { 0, 1, 0, 3, 3 };
    for (size_t i = 0; i < 5; i++) {
        ck_assert_int_eq(d.id[i + 1], ids[i]);
        ck_assert_uint_eq(d.parent[i + 1], parents[i]);
    }
    draft_lookup(&d, text, n, 3, 2);
    ck_assert_uint_eq(d.n, 3);
    draft_lookup(&d, text, n, 0, 2);
    ck_assert_uint_eq(d.n, 0);
    draft_lookup(&d, text, 1, 16, 2);
    ck_assert_uint_eq(d.n, 0);
}
END_TEST

START_TEST(test_lookup_parents_come_first)
{
    int32_t text[400];
    rng_t rng;
    draft_t d;

    rng_init(&rng, 3);
    for (size_t round = 0; round < 200; round++) {
        const size_t n = 1 + rng_below(&rng, 400), max = rng_below(&rng, 80),
                     length = 1 + rng_below(&rng, 12);
        for (size_t i = 0; i < n; i++)
            text[i] = (int32_t)rng_below(&rng, 4);
        draft_lookup(&d, text, n, max, length);
        ck_assert(d.n <= max && d.n <= DRAFT_MAX);
        for (size_t i = 1; i <= d.n; i++) {
            size_t depth = 0, last = i;
            /* depth-first: what lies between a token and its parent is below the parent */
            ck_assert(d.parent[i] < i && d.id[i] >= 0 && d.id[i] < 4);
            for (size_t at = i; at > 0; at = d.parent[at])
                depth++;
            ck_assert(depth <= length);
            while (last > d.parent[i] + 1u) {
                size_t up = --last;
                while (up > d.parent[i])
                    up = d.parent[up];
                ck_assert_uint_eq(up, d.parent[i]);
            }
            for (size_t j = 1; j < i; j++)
                ck_assert(d.parent[j] != d.parent[i] || d.id[j] != d.id[i]);
        }
    }
}
END_TEST

static int never(const void *arg, int32_t id)
{
    (void)arg;
    (void)id;
    return 0;
}

static int is_seven(const void *arg, int32_t id)
{
    (void)arg;
    return id == 7;
}

START_TEST(test_accept_ends_and_limits)
{
    const draft_t d = { 3, { 0, 5, 7, 6 }, { 0, 0, 1, 2 } }; /* 5 7 6 */
    const candidate_t top[4] = { { 5, 0 }, { 7, 0 }, { 6, 0 }, { 4, 0 } };
    sampler_t s = { .state = 1 };
    int32_t ids[8];
    size_t at;

    ck_assert_uint_eq(draft_accept(&d, top, 1, &s, never, NULL, ids, 8, &at), 4);
    ck_assert(at == 3 && ids[0] == 5 && ids[1] == 7 && ids[2] == 6 && ids[3] == 4);
    ck_assert_uint_eq(draft_accept(&d, top, 1, &s, is_seven, NULL, ids, 8, &at), 2);
    ck_assert(at == 1 && ids[1] == 7);
    ck_assert_uint_eq(draft_accept(&d, top, 1, &s, never, NULL, ids, 2, &at), 2);
    ck_assert_uint_eq(at, 1);
    const candidate_t other[4] = { { 8, 0 } };
    ck_assert_uint_eq(draft_accept(&d, other, 1, &s, never, NULL, ids, 8, &at), 1);
    ck_assert(at == 0 && ids[0] == 8);
}
END_TEST

/* ---- the distribution ---- */

enum { VOCAB = 4, LENGTH = 3, PATHS = 64, RUNS = 60000 };

/* The model: what follows a path of up to LENGTH - 1 tokens, as candidates in falling order. */
typedef struct model {
    candidate_t top[1 + VOCAB + VOCAB * VOCAB][VOCAB];
} model_t;

static size_t state_of(const int32_t *path, size_t n)
{
    return n == 0   ? 0
           : n == 1 ? 1 + (size_t)path[0]
                    : 1 + VOCAB + (size_t)(path[0] * VOCAB + path[1]);
}

static void make_model(model_t *m, rng_t *rng)
{
    for (size_t s = 0; s < sizeof(m->top) / sizeof(*m->top); s++) {
        float logits[VOCAB];
        for (int i = 0; i < VOCAB; i++)
            logits[i] = (float)rng_below(rng, 300) / 100;
        ck_assert_uint_eq(sampler_top(logits, VOCAB, VOCAB, m->top[s]), VOCAB);
    }
}

static double probability(const model_t *m, const int32_t *path)
{
    double p = 1;

    for (size_t n = 0; n < LENGTH; n++)
        for (int i = 0; i < VOCAB; i++) {
            const candidate_t c = m->top[state_of(path, n)][i];
            p *= c.id == path[n] ? exp((double)c.logprob) : 1;
        }
    return p;
}

/* A draft of random guesses below `path`, at most as deep as the model goes. */
static void guess(draft_t *d, size_t depth, size_t parent, rng_t *rng)
{
    for (int32_t id = 0; id < VOCAB && depth < LENGTH; id++)
        if (rng_chance(rng, 0.5)) {
            d->id[++d->n] = id;
            d->parent[d->n] = (uint8_t)parent;
            guess(d, depth + 1, d->n, rng);
        }
}

static void path_to(const draft_t *d, size_t at, int32_t *path, size_t *n)
{
    if (at > 0) {
        path_to(d, d->parent[at], path, n);
        path[(*n)++] = d->id[at];
    }
}

START_TEST(test_sampling_follows_the_model)
{
    static model_t m;
    static candidate_t top[1 + DRAFT_MAX][VOCAB];
    size_t seen[PATHS] = { 0 };
    sampler_t s = { .state = 5, .temperature = 1 };
    double chi = 0;
    rng_t rng;

    rng_init(&rng, 8);
    make_model(&m, &rng);
    for (int run = 0; run < RUNS; run++) {
        int32_t path[2 * LENGTH];
        size_t n = 0;
        while (n < LENGTH) { /* as a decoder goes on */
            draft_t d = { 0 };
            size_t at;
            guess(&d, n + 1, 0, &rng);
            for (size_t i = 0; i <= d.n; i++) {
                int32_t to[2 * LENGTH];
                size_t len = n;
                memcpy(to, path, n * sizeof(*to));
                path_to(&d, i, to, &len);
                memcpy(top[i], m.top[len < LENGTH ? state_of(to, len) : 0], sizeof(top[i]));
            }
            n += draft_accept(&d, top[0], VOCAB, &s, never, NULL, path + n, LENGTH - n, &at);
        }
        seen[(path[0] * VOCAB + path[1]) * VOCAB + path[2]]++;
    }
    for (int i = 0; i < PATHS; i++) {
        const int32_t path[LENGTH] = { i / 16, i / 4 % 4, i % 4 };
        const double want = RUNS * probability(&m, path), d = (double)seen[i] - want;
        ck_assert(want > 5);
        chi += d * d / want;
    }
    ck_assert_msg(chi < 135, "chi-square %.1f with 63 degrees of freedom",
                  chi); /* one in a million is above */
}
END_TEST

int main(void)
{
    const TTest *const tests[] = { test_lookup_makes_a_tree, test_lookup_parents_come_first,
                                   test_accept_ends_and_limits, test_sampling_follows_the_model };

    return suite_run("draft", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
