/* SPDX-License-Identifier: MIT */
/* The engine's candidates on the GPU against those on the CPU, where it is hard: ties, infinities,
 * NaN. What its other kernels compute is for test_engine with DEFT_TEST_DEVICE=cuda. No device:
 * 77. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "device_memory.h"
#include "forward_kernels.h"
#include "util.h"

#define GPU(_expr)                                                                    \
    do {                                                                              \
        const cudaError_t error_ = (cudaError_t)(_expr);                              \
        T_CHECK(error_ == cudaSuccess, "%s: %s", #_expr, cudaGetErrorString(error_)); \
    } while (0)

enum { ROWS = 13, MOST = 130001 };

/* A row of each kind. */
static void make_row(float *x, uint32_t n, int kind, rng_t *rng)
{
    for (uint32_t i = 0; i < n; i++) {
        const float u = (float)((double)rng_below(rng, 1u << 24) / (1 << 20) - 8);

        x[i] = u;
        if (kind == 1)
            x[i] = 1; /* all equal: the lowest ids */
        else if (kind == 2)
            x[i] = floorf(u); /* sixteen values */
        else if (kind == 3)
            x[i] = rng_chance(rng, 0.5) ? NAN : u;
        else if (kind == 4)
            x[i] = i == n / 2 ? u : -INFINITY;
        else if (kind == 5)
            x[i] = -INFINITY;
        else if (kind == 6)
            x[i] = (float)(n - i); /* the first threads have them all */
        else if (kind == 7)
            x[i] = i % 1024 == 3 ? 20 + u : u; /* one thread has them all */
        else if (kind == 8)
            x[i] = rng_chance(rng, 0.5) ? 0.0f : -0.0f;
        else if (kind == 9)
            x[i] = i < 3000 ? 5 : u; /* more ties than there is room for */
        else if (kind == 10)
            x[i] = u * 1e30f;
        else if (kind == 11)
            x[i] = i % 1024 < 100 ? 20 + u : u; /* a hundred threads have them all */
    }
}

static void compare(const float *x, uint32_t n, uint32_t k, const candidate_t *got, int kind)
{
    candidate_t *want = t_alloc(k * sizeof(*want));

    T_CHECK(sampler_top(x, n, k, want) == k, "the CPU has fewer");
    for (uint32_t i = 0; i < k; i++) {
        const float a = got[i].logprob, b = want[i].logprob;

        T_CHECK(got[i].id == want[i].id, "kind %d of %u, candidate %u of %u: %d, on the CPU %d",
                kind, n, i, k, got[i].id, want[i].id);
        T_CHECK(a == b || (a != a && b != b) || fabsf(a - b) <= 1e-5f * (1 + fabsf(b)),
                "kind %d of %u, candidate %u of %u: log probability %g, on the CPU %g", kind, n, i,
                k, (double)a, (double)b);
    }
    free(want);
}

static void candidates(uint32_t n, uint32_t k)
{
    const kernels_at_t at = { NULL, 0, 0 };
    const uint32_t rows = ROWS - 1; /* of ROWS that the launch is for */
    float *x = t_alloc((size_t)ROWS * n * sizeof(*x)), *x_dev;
    candidate_t *top = t_alloc((size_t)ROWS * k * sizeof(*top)), *top_dev;
    uint32_t *rows_dev;
    rng_t rng;

    rng_init(&rng, n + k);
    for (int r = 0; r < ROWS; r++)
        make_row(x + (size_t)r * n, n, r, &rng);
    GPU(cudaMalloc((void **)&x_dev, (size_t)ROWS * n * sizeof(*x)));
    GPU(cudaMalloc((void **)&top_dev, (size_t)ROWS * k * sizeof(*top)));
    GPU(cudaMalloc((void **)&rows_dev, sizeof(rows)));
    GPU(cudaMemcpy(x_dev, x, (size_t)ROWS * n * sizeof(*x), cudaMemcpyHostToDevice));
    GPU(cudaMemcpy(rows_dev, &rows, sizeof(rows), cudaMemcpyHostToDevice));
    GPU(cudaMemset(top_dev, 0xff, (size_t)ROWS * k * sizeof(*top)));
    const kernels_top_t args = { rows_dev, x_dev, top_dev, n, k };
    GPU(kernels_top(&at, &args, ROWS));
    GPU(cudaMemcpy(top, top_dev, (size_t)ROWS * k * sizeof(*top), cudaMemcpyDeviceToHost));
    for (int r = 0; r < (int)rows; r++)
        compare(x + (size_t)r * n, n, k, top + (size_t)r * k, r);
    T_CHECK(top[(size_t)rows * k].id == -1, "a row that is not there was written");
    GPU(cudaFree(x_dev));
    GPU(cudaFree(top_dev));
    GPU(cudaFree(rows_dev));
    free(x);
    free(top);
}

int main(void)
{
    static const uint32_t sizes[] = { 128, 200, 1000, 1024, 5003, 32000, MOST };
    static const uint32_t k[] = { 1, 5, 65, 128 };

    if (!dev_there()) {
        puts("no CUDA device");
        return 77;
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        for (size_t j = 0; j < sizeof(k) / sizeof(*k); j++)
            candidates(sizes[i], k[j]);
    puts("candidates: as on the CPU");
    return 0;
}
