/* SPDX-License-Identifier: MIT */
/* The engine's matrix products, of random weights of every type, against float64; and that a row's
 * bits depend on nothing but the row. */
#include <math.h>
#include <string.h>

#include "matmul.h"
#include "suite.h"
#include "util.h"

/* DEFT_ISA; NULL: the best. What a machine lacks, the next lower one stands for. */
static const char *const sets[] = { "scalar", "avx2", "avx512", "avx512_bf16", NULL };
static const uint32_t types[] = { GGUF_F32,  GGUF_F16,  GGUF_BF16, GGUF_Q4_0,
                                  GGUF_Q4_1, GGUF_Q8_0, GGUF_Q6_K };

enum { N_SETS = sizeof(sets) / sizeof(*sets), N_TYPES = sizeof(types) / sizeof(*types) };

static matmul_t *matmul_of(const char *set, uint32_t threads)
{
    if (set != NULL) {
        setenv("DEFT_ISA", set, 1);
    } else {
        unsetenv("DEFT_ISA");
    }
    matmul_t *mm = matmul_create(threads);
    ck_assert(mm != NULL);
    return mm;
}

static void put_half(unsigned char *p, float x)
{
    const uint16_t h = t_to_f16(x);

    memcpy(p, &h, 2);
}

/* n rows of k random weights; data is the caller's to free. */
static gguf_tensor_t random_tensor(rng_t *rng, uint32_t type, size_t n, size_t k)
{
    uint32_t block, bytes;

    ck_assert_int_eq(gguf_type_layout(type, &block, &bytes), 0);
    const size_t blocks = n * k / block;
    unsigned char *data = t_alloc(blocks * bytes);
    for (size_t i = 0; i < blocks * bytes; i++) {
        data[i] = (unsigned char)rng_u64(rng);
    }
    for (size_t b = 0; b < blocks; b++) { /* sane scales and floats */
        unsigned char *p = data + b * bytes;
        float v;
        t_fill(rng_u64(rng), 0.02f, &v, 1);
        if (type == GGUF_F32) {
            memcpy(p, &v, 4);
        } else if (type == GGUF_F16) {
            put_half(p, v);
        } else if (type == GGUF_BF16) {
            const uint16_t h = t_to_bf16(v);
            memcpy(p, &h, 2);
        } else if (type == GGUF_Q6_K) {
            put_half(p + bytes - 2, v * 0.01f);
        } else {
            put_half(p, v);
            if (type == GGUF_Q4_1) {
                put_half(p + 2, -8 * v);
            }
        }
    }
    return (gguf_tensor_t){ .name = "w",
                            .name_len = 1,
                            .type = type,
                            .n_dims = 2,
                            .dims = { k, n, 1, 1 },
                            .data = data,
                            .bytes = blocks * bytes };
}

/* A product of rows x k by two stacked tensors, in every set: right, and a row's bits the same
 * alone, in another batch and with other threads. */
static void check_product(rng_t *rng, uint32_t type, size_t rows, size_t k, size_t n0, size_t n1)
{
    const gguf_tensor_t t0 = random_tensor(rng, type, n0, k), t1 = random_tensor(rng, type, n1, k);
    const gguf_tensor_t *const t[] = { &t0, &t1 };
    const size_t n = n0 + n1, ldy = n + rng_below(rng, 3), one = rng_below(rng, rows);
    float *w = t_alloc(n * k * sizeof(float)), *x = t_alloc(rows * k * sizeof(float));
    double *want = t_alloc(rows * n * sizeof(double)), norm = 0;
    t_buf_t y, alone;

    t_buf_init(&y, rows * ldy, 1);
    t_buf_init(&alone, n, 0);
    ck_assert_int_eq(gguf_dequantize(&t0, 0, n0, w), 0);
    ck_assert_int_eq(gguf_dequantize(&t1, 0, n1, w + n0 * k), 0);
    t_fill(rng_u64(rng), 1, x, rows * k);
    for (size_t i = 0; i < rows * k; i += 97) {
        x[i] *= 30; /* activations have outliers */
    }
    memset(x, 0, (k < 40 ? k : 40) * sizeof(float)); /* and a block may be zero */
    for (size_t i = 0; i < rows * n; i++) {
        for (size_t j = 0; j < k; j++) {
            want[i] += (double)x[i / n * k + j] * w[i % n * k + j];
        }
        norm += want[i] * want[i];
    }
    for (int s = 0; s < N_SETS; s++) {
        double err = 0;
        matmul_t *mm = matmul_of(sets[s], 1), *two = matmul_of(sets[s], 2);
        matrix_t *m = matrix_create(mm, t, 2), *m2 = matrix_create(two, t, 2);
        ck_assert(m != NULL && m2 != NULL);
        ck_assert_uint_eq(matrix_rows(m), n);
        t_buf_poison(&y);
        matmul(two, m2, x, rows, y.p, ldy);
        t_buf_check(&y);
        for (size_t i = 0; i < rows * ldy; i++) {
            if (i % ldy >= n) {
                ck_assert_msg(t_is_poison(y.p[i]), "wrote between rows");
            } else {
                const double d = (double)y.p[i] - want[i / ldy * n + i % ldy];
                err += d * d;
            }
        }
        /* halves of f32 weights are rounded, 15-bit activations too */
        ck_assert_msg(sqrt(err) <= 5e-4 * sqrt(norm), "%s by %s, %zu x %zu x %zu: error %g",
                      gguf_type_name(type), matmul_kernels(mm), rows, k, n, sqrt(err / norm));
        matmul(mm, m, x + one * k, 1, alone.p, n);
        ck_assert_msg(memcmp(alone.p, y.p + one * ldy, n * sizeof(float)) == 0,
                      "%s by %s: row %zu of %zu has other bits alone", gguf_type_name(type),
                      matmul_kernels(mm), one, rows);
        matrix_free(m);
        matrix_free(m2);
        matmul_free(mm);
        matmul_free(two);
    }
    free((void *)(uintptr_t)t0.data);
    free((void *)(uintptr_t)t1.data);
    free(w);
    free(x);
    free(want);
    t_buf_free(&y);
    t_buf_free(&alone);
}

START_TEST(test_product_matches_float64)
{
    rng_t rng;

    rng_init(&rng, t_seed(41));
    for (size_t i = 0; i < t_count(60); i++) {
        for (int t = 0; t < N_TYPES; t++) {
            uint32_t block, bytes;
            ck_assert_int_eq(gguf_type_layout(types[t], &block, &bytes), 0);
            const size_t k = block * rng_range(&rng, 1, block == 1 ? 300 : block == 32 ? 40 : 3);
            check_product(&rng, types[t], rng_chance(&rng, 0.1) ? 257 : rng_range(&rng, 1, 70), k,
                          rng_range(&rng, 1, 70), rng_range(&rng, 1, 70));
        }
    }
}
END_TEST

/* RMSNorm and SwiGLU against float64; n of any size for the one, of 16 for the other. */
START_TEST(test_rows_match_float64)
{
    enum { MAX = 208 };
    rng_t rng;
    float x[MAX], add[MAX], w[MAX], out[MAX], kept[MAX];

    rng_init(&rng, t_seed(43));
    for (int s = 0; s < N_SETS; s++) {
        matmul_t *mm = matmul_of(sets[s], 1);
        for (size_t i = 0; i < t_count(400); i++) {
            const size_t n = rng_range(&rng, 1, MAX);
            const bool with = rng_chance(&rng, 0.5);
            double sum = 0;
            t_fill(rng_u64(&rng), 3, x, n);
            t_fill(rng_u64(&rng), 3, add, MAX);
            t_fill(rng_u64(&rng), 1, w, n);
            memcpy(kept, x, n * sizeof(float));
            add_norm(mm, x, with ? add : NULL, w, 1e-5f, out, n);
            for (size_t j = 0; j < n; j++) {
                ck_assert(x[j] == (with ? kept[j] + add[j] : kept[j]));
                sum += (double)x[j] * x[j];
            }
            for (size_t j = 0; j < n; j++) {
                const double want = x[j] / sqrt(sum / (double)n + 1e-5) * w[j];
                ck_assert_msg(fabs(out[j] - want) <= 1e-6 * fabs(want), "%g, not %g", out[j], want);
            }
            t_fill(rng_u64(&rng), i % 2 ? 60 : 3, x, MAX);
            swiglu(mm, x, add, out, MAX / 16 * 16);
            for (size_t j = 0; j < MAX / 16 * 16; j++) {
                const double want = x[j] / (1 + exp(-(double)x[j])) * add[j];
                ck_assert_msg(fabs(out[j] - want) <= 1e-6 * fabs(want) + 1e-30,
                              "silu(%g) %g: %g, not %g", x[j], add[j], out[j], want);
            }
        }
        matmul_free(mm);
    }
}
END_TEST

int main(void)
{
    const TTest *const tests[] = { test_product_matches_float64, test_rows_match_float64 };

    return suite_run("matmul", NULL, NULL, tests, sizeof(tests) / sizeof(tests[0]));
}
