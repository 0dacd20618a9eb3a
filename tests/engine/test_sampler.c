/* SPDX-License-Identifier: MIT */
/* The engine's samplers, and what engine_open() refuses. */
#include <math.h>
#include <string.h>

#include "model.h"
#include "sampler.h"
#include "suite.h"

START_TEST(test_sampler_top_and_greedy)
{
    float x[] = { 1, NAN, 3, 3, -INFINITY, 2 };
    candidate_t top[8];
    double sum = 0;

    ck_assert_int_eq(sampler_argmax(x, 6), 2);
    ck_assert_uint_eq(sampler_top(x, 6, 8, top), 6);
    ck_assert(top[0].id == 2 && top[1].id == 3 && top[2].id == 5 && top[3].id == 0);
    for (int i = 0; i < 4; i++)
        sum += exp((double)top[i].logprob);
    ck_assert(fabs(sum - 1) < 1e-5);
    ck_assert_uint_eq(sampler_top(x, 6, 0, top), 0);
}
END_TEST

/* Sizes that divide nothing, ties, NaNs and infinities, against sums in double and a sort by
 * hand. */
START_TEST(test_sampler_top_of_many)
{
    static const size_t sizes[] = { 1, 3, 4, 31, 32, 33, 67, 1000, 4099 };
    static float x[4099];
    static candidate_t top[128];
    sampler_t rng = { .state = 5 };

    for (size_t s = 0; s < 9; s++) {
        const size_t n = sizes[s], k = n < 128 ? n : 128;
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            const double u = sampler_uniform(&rng);
            x[i] = u < 0.02   ? NAN
                   : u < 0.04 ? -INFINITY
                              : (float)(int)(40 * sampler_uniform(&rng)) * 0.5f - 60;
        }
        x[n / 2] = -41; /* one at least is a number */
        for (size_t i = 0; i < n; i++)
            sum += isnan(x[i]) ? 0 : exp((double)x[i]);
        ck_assert_uint_eq(sampler_top(x, n, k, top), k);
        ck_assert_int_eq(sampler_argmax(x, n), top[0].id);
        for (size_t i = 0; i < k; i++) {
            const float v = isnan(x[top[i].id]) ? -INFINITY : x[top[i].id];
            ck_assert(isinf(v) ? isinf(top[i].logprob)
                               : fabs((double)top[i].logprob - ((double)v - log(sum))) < 1e-5);
            ck_assert(i == 0 || top[i - 1].logprob > top[i].logprob ||
                      (top[i - 1].logprob == top[i].logprob && top[i - 1].id < top[i].id));
        }
        for (size_t i = 0, better = 0; i < n;
             i++) { /* whoever is left out is no better than the last */
            better += x[i] > x[top[k - 1].id];
            ck_assert_uint_le(better, k);
        }
    }
}
END_TEST

START_TEST(test_sampler_draw_follows_probabilities)
{
    float x[] = { 0, 0.69314718f, -INFINITY };
    sampler_t s = { .state = 7, .temperature = 1 }, again = s, tight = s;
    int ones = 0;

    tight.top_p = 0.5f;
    for (int i = 0; i < 30000; i++) {
        int32_t id = sampler_draw(&s, x, 3);
        ck_assert_int_eq(id, sampler_draw(&again, x, 3));
        ck_assert(id == 0 || id == 1);
        ones += id;
        ck_assert_int_eq(sampler_draw(&tight, x, 3), 1);
    }
    ck_assert(ones > 19500 && ones < 20500);
}
END_TEST

START_TEST(test_engine_open_refuses)
{
    char err[256] = "";
    engine_t *none = NULL;

    ck_assert_int_eq(engine_open("/nonexistent", NULL, &none, err, sizeof(err)), -1);
    ck_assert(err[0] != '\0' && none == NULL);
}
END_TEST

START_TEST(test_engine_open_random_refuses)
{
    const engine_geometry_t small = { 1, 64, 128, 1, 1, 64, 64, 100, 1e-5f, 10000 };
    engine_options_t o = { .device = DEFT_DEVICE_CPU };
    char err[256] = "";
    engine_t *none = NULL;

    ck_assert(engine_geometry_named("llama2-7b") && !engine_geometry_named("llama2"));
    ck_assert_int_eq(engine_open_random(&small, &o, &none, err, sizeof(err)), -1);
    ck_assert(strstr(err, "CUDA") && none == NULL);
    o.device = DEFT_DEVICE_CUDA;
    o.kv_type = DEFT_F32; /* refused with a device and without */
    err[0] = '\0';
    ck_assert_int_eq(engine_open_random(&small, &o, &none, err, sizeof(err)), -1);
    ck_assert(err[0] != '\0' && none == NULL);
}
END_TEST

int main(void)
{
    const TTest *const tests[] = { test_sampler_top_and_greedy, test_sampler_top_of_many,
                                   test_sampler_draw_follows_probabilities,
                                   test_engine_open_refuses, test_engine_open_random_refuses };

    return suite_run("sampler", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
